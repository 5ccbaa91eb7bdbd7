//! Events: points in streams, with the modelled time when they are reached.

use std::sync::{Arc, Mutex};

use super::capture::{Capture, Tail};
use super::entry::{Out, api};
use super::error::{Error, Result};
use super::op::Op;
use super::state::{current, current_any, driver, lock};
use super::stream::{Marker, Stream, advance_host, open, submit};

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;
/// All flags that there are: blocking sync, disable timing, interprocess.
const ALL_FLAGS: u32 = 7;
/// `CU_EVENT_RECORD_EXTERNAL` and `CU_EVENT_WAIT_EXTERNAL`: a node of its own inside a capture.
pub(super) const EXTERNAL: u32 = 1;

/// An event.
pub(super) struct Event {
    pub handle: usize,
    pub context: usize,
    pub flags: u32,
    pub recorded: Mutex<Recorded>,
}

/// What an event was last recorded in.
#[derive(Default, Clone)]
pub(super) enum Recorded {
    /// Never: counts as reached.
    #[default]
    Never,
    /// A place in a stream.
    Stream(Arc<Stream>, Arc<Marker>),
    /// A place in a capture: the nodes that came before.
    Capture(Arc<Capture>, Tail),
}

fn event(handle: usize) -> Result<Arc<Event>> {
    driver()?.events.get(handle)
}

fn record(event: usize, stream: usize, flags: u32) -> Result {
    let (driver, context, stream) = open(stream)?;
    let event = driver.events.get(event)?;
    if flags & !EXTERNAL != 0 {
        return Err(Error::INVALID_VALUE);
    }
    if let Some(capture) = stream.capture() {
        if flags & EXTERNAL != 0 {
            return capture.add(&stream, Op::Record(event));
        }
        capture.check()?;
        let tail = lock(&stream.lane).capture.as_ref().map(|(_, tail)| tail.clone()).unwrap_or_default();
        *lock(&event.recorded) = Recorded::Capture(capture, tail);
        return Ok(());
    }
    if event.context != stream.context {
        return Err(Error::INVALID_HANDLE);
    }
    let marker = Arc::new(Marker::default());
    submit(driver, &context, &stream, Op::Mark(marker.clone()))?;
    *lock(&event.recorded) = Recorded::Stream(stream, marker);
    Ok(())
}

/// Where an event is that the host asks about; an event of a capture must not be asked.
fn place(event: &Event) -> Result<Option<(Arc<Stream>, Arc<Marker>)>> {
    match &*lock(&event.recorded) {
        Recorded::Never => Ok(None),
        Recorded::Stream(stream, marker) => Ok(Some((stream.clone(), marker.clone()))),
        Recorded::Capture(capture, _) => {
            capture.invalidate();
            Err(Error::CAPTURED_EVENT)
        }
    }
}

/// Milliseconds from one event to another, as the modelled clocks have it.
fn elapsed(from: usize, to: usize) -> Result<f32> {
    current()?.check_work()?;
    let (from, to) = (event(from)?, event(to)?);
    if (from.flags | to.flags) & DISABLE_TIMING != 0 {
        return Err(Error::INVALID_HANDLE);
    }
    let time = |event: &Event| match place(event)? {
        None => Err(Error::INVALID_HANDLE),
        Some((_, marker)) => marker.reached().ok_or(Error::NOT_READY),
    };
    Ok(((time(&to)? - time(&from)?) / 1e6) as f32)
}

api! {
    fn cuEventCreate(event: Out<usize>, flags: u32) {
        event.check()?;
        let (driver, context) = (driver()?, current()?);
        if flags & !ALL_FLAGS != 0 {
            return Err(Error::INVALID_VALUE);
        }
        let made = driver.events.insert(|handle| Event {
            handle,
            context: context.handle,
            flags,
            recorded: Mutex::default(),
        });
        event.set(made.handle)
    }

    fn cuEventDestroy_v2(event: usize) {
        current_any()?;
        driver()?.events.remove(event).map(|_| ())
    }

    fn cuEventRecord(event: usize, stream: usize) {
        record(event, stream, 0)
    }

    fn cuEventRecordWithFlags(event: usize, stream: usize, flags: u32) {
        record(event, stream, flags)
    }

    fn cuEventQuery(event: usize) {
        let context = current()?;
        let event = self::event(event)?;
        let Some((stream, marker)) = place(&event)? else { return Ok(()) };
        let reached = marker.reached().is_some();
        // A program that polls makes progress, as a device would.
        stream.run(driver()?, Some(&marker));
        context.check_work()?;
        if reached { Ok(()) } else { Err(Error::NOT_READY) }
    }

    fn cuEventSynchronize(event: usize) {
        let context = current()?;
        let event = self::event(event)?;
        let Some((stream, marker)) = place(&event)? else { return Ok(()) };
        stream.run(driver()?, Some(&marker));
        advance_host(&stream.device, marker.reached().unwrap_or_default());
        context.check_work()
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, from: usize, to: usize) {
        milliseconds.check()?;
        milliseconds.set(elapsed(from, to)?)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, from: usize, to: usize) {
        milliseconds.check()?;
        milliseconds.set(elapsed(from, to)?)
    }

    fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) {
        let (driver, context, stream) = open(stream)?;
        let event = driver.events.get(event)?;
        if flags & !EXTERNAL != 0 {
            return Err(Error::INVALID_VALUE);
        }
        let recorded = lock(&event.recorded).clone();
        match (stream.capture(), recorded) {
            (Some(capture), _) if flags & EXTERNAL != 0 => capture.add(&stream, Op::Await(event)),
            (Some(capture), Recorded::Capture(other, tail)) => {
                capture.check()?;
                if !Arc::ptr_eq(&capture, &other) {
                    capture.invalidate();
                    other.invalidate();
                    return Err(Error::STREAM_CAPTURE_MERGE);
                }
                capture.join(&stream, &tail);
                Ok(())
            }
            (Some(capture), Recorded::Stream(..)) => {
                capture.invalidate();
                Err(Error::STREAM_CAPTURE_ISOLATION)
            }
            (_, Recorded::Never) => Ok(()),
            (None, Recorded::Capture(capture, tail)) => capture.fork(&stream, &tail),
            (None, Recorded::Stream(from, marker)) => {
                if Arc::ptr_eq(&from, &stream) {
                    return Ok(());
                }
                submit(driver, &context, &stream, Op::Wait(from, marker))
            }
        }
    }
}
