//! Stream capture: work that becomes graph nodes instead of running, with the driver's rules about what may depend on
//! what (codes 900 to 908).

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use super::entry::{In, Out, api};
use super::error::{Error, Result};
use super::graph::{Graph, NodeId};
use super::op::Op;
use super::state::{CAPTURE_MODE, Driver, current, driver, lock};
use super::stream::{Stream, open, refuse_implicit};

/// The nodes that the next node of a stream depends on.
pub(super) type Tail = Vec<NodeId>;

/// A stream's part in a capture.
type Part = (Arc<Capture>, Tail);

const GLOBAL: u32 = 0;
const RELAXED: u32 = 2;

/// Captures that are going on: most programs have none most of the time.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// One capture, from begin to end.
pub(super) struct Capture {
    pub graph: Arc<Graph>,
    /// Handle of the stream that it began in.
    origin: Arc<Stream>,
    mode: u32,
    thread: ThreadId,
    state: Mutex<State>,
    /// Arrays handed out by `cuStreamGetCaptureInfo`, valid until the capture ends.
    exposed: Mutex<Vec<Box<[NodeId]>>>,
}

struct State {
    status: Status,
    /// All streams that took part.
    streams: Vec<Arc<Stream>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Status {
    Active,
    Invalid,
    Ended,
}

impl Capture {
    /// Fails when the capture was spoilt or is over.
    pub fn check(&self) -> Result {
        match lock(&self.state).status {
            Status::Active => Ok(()),
            Status::Invalid => Err(Error::STREAM_CAPTURE_INVALIDATED),
            Status::Ended => Err(Error::CAPTURED_EVENT),
        }
    }

    /// Spoils the capture: a call was made that it cannot hold.
    pub fn invalidate(&self) {
        let mut state = lock(&self.state);
        if state.status == Status::Active {
            state.status = Status::Invalid;
        }
    }

    /// Adds a node after the stream's last.
    pub fn add(&self, stream: &Stream, op: Op) -> Result {
        self.check()?;
        let mut lane = lock(&stream.lane);
        if let Some((_, tail)) = &mut lane.capture {
            let node = self.graph.add(op, std::mem::take(tail));
            *tail = vec![node];
        }
        Ok(())
    }

    /// A stream outside the capture waits for an event inside: it takes part from now on.
    pub fn fork(self: &Arc<Self>, stream: &Arc<Stream>, tail: &Tail) -> Result {
        self.check()?;
        if stream.legacy {
            self.invalidate();
            return Err(Error::STREAM_CAPTURE_IMPLICIT);
        }
        lock(&stream.lane).capture = Some((self.clone(), tail.clone()));
        lock(&self.state).streams.push(stream.clone());
        Ok(())
    }

    /// A stream inside the capture waits for an event inside.
    pub fn join(&self, stream: &Stream, others: &Tail) {
        if let Some((_, tail)) = &mut lock(&stream.lane).capture {
            for node in others {
                if !tail.contains(node) {
                    tail.push(*node);
                }
            }
        }
    }

    /// Ends the capture whatever its state: streams leave it. Returns whether it was good and complete.
    fn end(&self) -> Result {
        let (status, streams) = {
            let mut state = lock(&self.state);
            (std::mem::replace(&mut state.status, Status::Ended), std::mem::take(&mut state.streams))
        };
        let mut tails = Vec::new();
        let mut last = Tail::new();
        for stream in &streams {
            if let Some((_, tail)) = lock(&stream.lane).capture.take() {
                if Arc::ptr_eq(stream, &self.origin) {
                    last = tail;
                } else {
                    tails.extend(tail);
                }
            }
        }
        lock(&self.exposed).clear();
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
        if status == Status::Invalid {
            return Err(Error::STREAM_CAPTURE_INVALIDATED);
        }
        let joined: HashSet<NodeId> = self.graph.ancestors(&last);
        if tails.iter().all(|node| joined.contains(node)) {
            Ok(())
        } else {
            Err(Error::STREAM_CAPTURE_UNJOINED)
        }
    }
}

/// Refuses a call that may synchronise with other work, as the capture modes say, and spoils the captures that it
/// would disturb. Allocation, pinning and loading of modules are such calls.
pub(super) fn refuse_unsafe(driver: &Driver) -> Result {
    if ACTIVE.load(Ordering::Relaxed) == 0 || CAPTURE_MODE.get() == RELAXED {
        return Ok(());
    }
    let own_thread = std::thread::current().id();
    let mut refused = Ok(());
    for stream in driver.streams.all() {
        let Some(capture) = stream.capture() else { continue };
        let own = capture.thread == own_thread && capture.mode != RELAXED;
        let others = CAPTURE_MODE.get() == GLOBAL && capture.mode == GLOBAL;
        if own || others {
            capture.invalidate();
            refused = Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    refused
}

fn begin(stream: usize, mode: u32) -> Result {
    let (driver, _, stream) = open(stream)?;
    if mode > RELAXED {
        return Err(Error::INVALID_VALUE);
    }
    if stream.legacy {
        return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
    }
    let mut lane = lock(&stream.lane);
    if lane.capture.is_some() {
        return Err(Error::ILLEGAL_STATE);
    }
    let state = State { status: Status::Active, streams: vec![stream.clone()] };
    let capture = Arc::new(Capture {
        graph: driver.graphs.insert(Graph::new),
        origin: stream.clone(),
        mode,
        thread: std::thread::current().id(),
        state: Mutex::new(state),
        exposed: Mutex::default(),
    });
    lane.capture = Some((capture, Tail::new()));
    ACTIVE.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// `CU_STREAM_CAPTURE_STATUS_NONE`, `_ACTIVE` or `_INVALIDATED`.
fn status(driver: &Driver, stream: usize) -> Result<(u32, Option<Part>)> {
    let (_, context, stream) = open(stream)?;
    if stream.legacy {
        refuse_implicit(driver, &context)?;
    }
    let capture = lock(&stream.lane).capture.clone();
    let number = match &capture {
        None => 0,
        Some((capture, _)) if capture.check().is_ok() => 1,
        Some(_) => 2,
    };
    Ok((number, capture))
}

fn info(
    stream: usize,
    status_out: Out<u32>,
    id: Out<u64>,
    graph: Out<usize>,
    dependencies: Out<usize>,
    count: Out<usize>,
) -> Result {
    status_out.check()?;
    let (number, capture) = status(driver()?, stream)?;
    status_out.set(number)?;
    let Some((capture, tail)) = capture.filter(|_| number == 1) else { return Ok(()) };
    id.set_if_wanted(capture.graph.handle as u64);
    graph.set_if_wanted(capture.graph.handle);
    count.set_if_wanted(tail.len());
    if !dependencies.is_null() {
        let kept = tail.into_boxed_slice();
        dependencies.set(kept.as_ptr() as usize)?;
        lock(&capture.exposed).push(kept);
    }
    Ok(())
}

fn update_dependencies(stream: usize, nodes: In<usize>, count: usize, flags: u32) -> Result {
    let (_, _, stream) = open(stream)?;
    let nodes = nodes.get_all(count)?;
    let mut lane = lock(&stream.lane);
    let Some((capture, tail)) = &mut lane.capture else { return Err(Error::ILLEGAL_STATE) };
    capture.check()?;
    if !nodes.iter().all(|node| capture.graph.contains(*node)) {
        return Err(Error::INVALID_VALUE);
    }
    match flags {
        0 => tail.extend(nodes),
        1 => *tail = nodes,
        _ => return Err(Error::INVALID_VALUE),
    }
    Ok(())
}

api! {
    fn cuStreamBeginCapture_v2(stream: usize, mode: u32) {
        begin(stream, mode)
    }

    fn cuStreamEndCapture(stream: usize, graph: Out<usize>) {
        graph.check()?;
        graph.set(0)?;
        let (driver, _, stream) = open(stream)?;
        let Some(capture) = stream.capture() else { return Err(Error::ILLEGAL_STATE) };
        if !Arc::ptr_eq(&capture.origin, &stream) {
            capture.invalidate();
            return Err(Error::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
            return Err(Error::STREAM_CAPTURE_WRONG_THREAD);
        }
        match capture.end() {
            Ok(()) => graph.set(capture.graph.handle),
            Err(error) => {
                let _ = driver.graphs.remove(capture.graph.handle);
                Err(error)
            }
        }
    }

    fn cuStreamIsCapturing(stream: usize, status: Out<u32>) {
        status.check()?;
        status.set(self::status(driver()?, stream)?.0)
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: usize,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        count: Out<usize>,
    ) {
        info(stream, status, id, graph, dependencies, count)
    }

    fn cuStreamGetCaptureInfo_v3(
        stream: usize,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<usize>,
        dependencies: Out<usize>,
        edges: Out<usize>,
        count: Out<usize>,
    ) {
        edges.set_if_wanted(0);
        info(stream, status, id, graph, dependencies, count)
    }

    fn cuStreamUpdateCaptureDependencies(stream: usize, nodes: In<usize>, count: usize, flags: u32) {
        update_dependencies(stream, nodes, count, flags)
    }

    fn cuStreamUpdateCaptureDependencies_v2(
        stream: usize,
        nodes: In<usize>,
        _edges: usize,
        count: usize,
        flags: u32,
    ) {
        update_dependencies(stream, nodes, count, flags)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        current()?;
        let new = mode.get()?;
        if new > RELAXED {
            return Err(Error::INVALID_VALUE);
        }
        mode.set(CAPTURE_MODE.replace(new))
    }
}
