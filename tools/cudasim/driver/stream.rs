//! Streams: queues of work with a modelled clock each.
//!
//! Work runs when it is enqueued, in the order of the calls, which is one of the orders that a device may choose.
//! With `CUDASIM_ORDER=late` it runs when something waits for it, and only as much of it as the waiting needs: the
//! other extreme, which shows a missing synchronisation as a wrong result.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::capture::{Capture, Tail};
use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::op::Op;
use super::state::{Context, Device, Driver, current, current_any, driver, lock};

/// `CU_STREAM_NON_BLOCKING`: no implicit order with the legacy stream.
const NON_BLOCKING: u32 = 1;
/// Handles that name a default stream instead of an object.
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A point in a stream: the modelled time when it was reached.
#[derive(Debug, Default)]
pub(super) struct Marker(Mutex<Option<f64>>);

impl Marker {
    /// When the point was reached, in ns; `None` before.
    pub fn reached(&self) -> Option<f64> {
        *lock(&self.0)
    }

    /// Notes that the point is reached.
    pub fn reach(&self, ns: f64) {
        *lock(&self.0) = Some(ns);
    }
}

/// A stream.
pub(super) struct Stream {
    /// 0 for the default streams.
    pub handle: usize,
    /// Handle of the context.
    pub context: usize,
    pub device: Arc<Device>,
    pub legacy: bool,
    /// Ordered with the legacy stream.
    pub blocking: bool,
    pub flags: u32,
    pub priority: i32,
    pub lane: Mutex<Lane>,
}

/// What changes in a stream.
#[derive(Default)]
pub(super) struct Lane {
    queue: VecDeque<Job>,
    /// When the last work that ran was done.
    pub clock_ns: f64,
    /// The capture that this stream takes part in, and its last nodes there.
    pub capture: Option<(Arc<Capture>, Tail)>,
}

struct Job {
    op: Op,
    /// Modelled time of the host when it was enqueued.
    ready_ns: f64,
}

impl Stream {
    /// One of the two default streams of a context.
    pub fn default_of(context: &Context, legacy: bool) -> Stream {
        Stream {
            handle: 0,
            context: context.handle,
            device: context.device.clone(),
            legacy,
            blocking: true,
            flags: 0,
            priority: 0,
            lane: Mutex::default(),
        }
    }

    /// The capture that the stream takes part in.
    pub fn capture(&self) -> Option<Arc<Capture>> {
        lock(&self.lane).capture.as_ref().map(|(capture, _)| capture.clone())
    }

    /// Whether all work is done.
    pub fn idle(&self) -> bool {
        lock(&self.lane).queue.is_empty()
    }

    /// Adds work at the end, without running it.
    fn push(&self, op: Op) {
        let ready_ns = *lock(&self.device.host_ns);
        lock(&self.lane).queue.push_back(Job { op, ready_ns });
    }

    /// A marker after the work that is there now.
    pub fn mark(&self) -> Arc<Marker> {
        let marker = Arc::new(Marker::default());
        self.push(Op::Mark(marker.clone()));
        marker
    }

    /// Runs work until the queue is empty or `until` is reached.
    pub fn run(&self, driver: &Driver, until: Option<&Marker>) {
        while until.is_none_or(|marker| marker.reached().is_none()) {
            let busy = lock(&self.device.busy);
            let mut lane = lock(&self.lane);
            let Some(front) = lane.queue.front() else { return };
            if let Op::Wait(other, marker) = &front.op
                && marker.reached().is_none()
            {
                let (other, marker) = (other.clone(), marker.clone());
                drop(lane);
                drop(busy);
                other.run(driver, Some(&marker));
                if marker.reached().is_none() {
                    // Its stream was torn down: nothing is left to wait for.
                    marker.reach(0.0);
                }
                continue;
            }
            let Some(job) = lane.queue.pop_front() else { return };
            let start = lane.clock_ns.max(job.ready_ns);
            drop(lane);
            let end = match driver.contexts.get(self.context) {
                Ok(context) => job.op.run(driver, &context, start),
                Err(_) => start,
            };
            lock(&self.lane).clock_ns = end;
        }
    }

    /// Runs everything and advances the host's clock to its end.
    pub fn finish(&self, driver: &Driver) {
        self.run(driver, None);
        advance_host(&self.device, lock(&self.lane).clock_ns);
    }
}

/// The host waited for something that happened at `ns`.
pub(super) fn advance_host(device: &Device, ns: f64) {
    let mut host = lock(&device.host_ns);
    *host = host.max(ns);
}

/// The stream that a handle stands for in `context`.
pub(super) fn find(driver: &Driver, context: &Arc<Context>, handle: usize) -> Result<Arc<Stream>> {
    match handle {
        0 | LEGACY => context.legacy.get().cloned().ok_or(Error::INVALID_CONTEXT),
        PER_THREAD => {
            let mut streams = lock(&context.per_thread);
            let own = streams
                .entry(std::thread::current().id())
                .or_insert_with(|| driver.streams.insert(|_| Stream::default_of(context, false)));
            Ok(own.clone())
        }
        _ => driver.streams.get(handle),
    }
}

/// The current context and the stream behind a handle. A stream of another context is used with its own context, as
/// the driver allows for most calls.
pub(super) fn open(handle: usize) -> Result<(&'static Driver, Arc<Context>, Arc<Stream>)> {
    let (driver, context) = (driver()?, current()?);
    let stream = find(driver, &context, handle)?;
    if stream.context == context.handle {
        return Ok((driver, context, stream));
    }
    let owner = driver.contexts.get(stream.context)?;
    owner.check()?;
    Ok((driver, owner, stream))
}

/// All streams of a context.
pub(super) fn of_context(driver: &Driver, context: &Context) -> Vec<Arc<Stream>> {
    let mut streams = driver.streams.all();
    streams.retain(|stream| stream.context == context.handle);
    streams.extend(context.legacy.get().cloned());
    streams
}

/// Enqueues work, or adds it to the graph when the stream is being captured.
pub(super) fn submit(driver: &Driver, context: &Arc<Context>, stream: &Arc<Stream>, op: Op) -> Result {
    if let Some(capture) = stream.capture() {
        return capture.add(stream, op);
    }
    order_with_legacy(driver, context, stream)?;
    stream.push(op);
    if !driver.config.late {
        stream.run(driver, None);
    }
    Ok(())
}

/// The legacy stream waits for the blocking streams and they for it.
fn order_with_legacy(driver: &Driver, context: &Arc<Context>, stream: &Arc<Stream>) -> Result {
    if stream.legacy {
        refuse_implicit(driver, context)?;
        for other in of_context(driver, context) {
            if other.blocking && !other.legacy {
                wait_for(stream, &other);
            }
        }
    } else if stream.blocking
        && let Some(legacy) = context.legacy.get()
    {
        wait_for(stream, legacy);
    }
    Ok(())
}

fn wait_for(stream: &Stream, other: &Arc<Stream>) {
    let (idle, clock) = {
        let lane = lock(&other.lane);
        (lane.queue.is_empty(), lane.clock_ns)
    };
    if idle {
        let mut lane = lock(&stream.lane);
        if lane.queue.is_empty() {
            lane.clock_ns = lane.clock_ns.max(clock);
            return;
        }
    }
    let marker = other.mark();
    stream.push(Op::Wait(other.clone(), marker));
}

/// The legacy stream must not come to depend on a blocking stream that is being captured.
pub(super) fn refuse_implicit(driver: &Driver, context: &Context) -> Result {
    for other in of_context(driver, context) {
        if other.blocking
            && let Some(capture) = other.capture()
        {
            capture.invalidate();
            return Err(Error::STREAM_CAPTURE_IMPLICIT);
        }
    }
    Ok(())
}

/// Waits for everything in a context.
pub(super) fn synchronise(driver: &Driver, context: &Context) -> Result {
    let streams = of_context(driver, context);
    for stream in &streams {
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    for stream in &streams {
        stream.finish(driver);
    }
    context.check_work()
}

fn create(out: Out<usize>, flags: u32, priority: i32) -> Result {
    out.check()?;
    if flags & !NON_BLOCKING != 0 {
        return Err(Error::INVALID_VALUE);
    }
    let (driver, context) = (driver()?, current()?);
    let stream = driver.streams.insert(|handle| Stream {
        handle,
        context: context.handle,
        device: context.device.clone(),
        legacy: false,
        blocking: flags & NON_BLOCKING == 0,
        flags,
        priority: priority.clamp(GREATEST_PRIORITY, 0),
        lane: Mutex::default(),
    });
    lock(&stream.lane).clock_ns = *lock(&context.device.host_ns);
    out.set(stream.handle)
}

/// The priorities of the cards simulated here go from 0, the least, to this.
const GREATEST_PRIORITY: i32 = -5;

api! {
    fn cuStreamCreate(stream: Out<usize>, flags: u32) {
        create(stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(stream: Out<usize>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(GREATEST_PRIORITY);
        Ok(())
    }

    fn cuStreamDestroy_v2(stream: usize) {
        let driver = driver()?;
        current_any()?;
        let stream = driver.streams.get(stream)?;
        if let Some(capture) = stream.capture() {
            capture.invalidate();
        } else {
            stream.run(driver, None);
        }
        driver.streams.remove(stream.handle)?;
        Ok(())
    }

    fn cuStreamSynchronize(stream: usize) {
        let (driver, context, stream) = open(stream)?;
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        if stream.legacy {
            // Work of blocking streams comes before a wait for the legacy stream.
            order_with_legacy(driver, &context, &stream)?;
        }
        stream.finish(driver);
        context.check_work()
    }

    fn cuStreamQuery(stream: usize) {
        let (driver, context, stream) = open(stream)?;
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        if stream.legacy {
            refuse_implicit(driver, &context)?;
        }
        // A program that polls makes progress, as a device would.
        let idle = stream.idle();
        stream.finish(driver);
        context.check_work()?;
        if idle { Ok(()) } else { Err(Error::NOT_READY) }
    }

    fn cuStreamGetPriority(stream: usize, priority: Out<i32>) {
        let (_, _, stream) = open(stream)?;
        priority.set(stream.priority)
    }

    fn cuStreamGetFlags(stream: usize, flags: Out<u32>) {
        let (_, _, stream) = open(stream)?;
        flags.set(stream.flags)
    }

    fn cuStreamGetId(stream: usize, id: Out<u64>) {
        let (_, context, found) = open(stream)?;
        id.set(if found.handle == 0 { context.handle as u64 + stream.max(LEGACY) as u64 } else { stream as u64 })
    }

    fn cuStreamGetCtx(stream: usize, context: Out<usize>) {
        let (_, owner, _) = open(stream)?;
        context.set(owner.handle)
    }

    fn cuStreamGetDevice(stream: usize, device: Out<i32>) {
        let (_, owner, _) = open(stream)?;
        device.set(owner.device.ordinal as i32)
    }

    fn cuLaunchHostFunc(stream: usize, function: usize, data: usize) {
        let (driver, context, stream) = open(stream)?;
        if function == 0 {
            return Err(Error::INVALID_VALUE);
        }
        submit(driver, &context, &stream, Op::Host { function, data })
    }

    fn cuStreamAddCallback(stream: usize, function: usize, data: usize, flags: u32) {
        let handle = stream;
        let (driver, context, stream) = open(stream)?;
        if function == 0 || flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        submit(driver, &context, &stream, Op::Callback { stream: handle, function, data })
    }

    fn cuStreamCopyAttributes(to: usize, from: usize) {
        open(to)?;
        open(from).map(|_| ())
    }

    fn cuStreamSetAttribute(stream: usize, attribute: u32, value: In<u8>) {
        open(stream)?;
        // Access-policy windows (1) and priorities (8) are hints; synchronisation policy (3) is about host waits.
        match attribute {
            1 | 3 | 8 if !value.pointer().is_null() => Ok(()),
            _ => Err(Error::INVALID_VALUE),
        }
    }
}
