//! Pieces of work: what streams hold and graphs are made of.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use super::clock;
use super::copy::{Copy, Fill};
use super::entry::in_callback;
use super::error::Error;
use super::event::{Event, Recorded};
use super::graph::Node;
use super::launch::Launch;
use super::memory::GraphMemory;
use super::state::{Context, Driver, lock};
use super::stream::{Marker, Stream};

/// One piece of work.
#[derive(Clone)]
pub(super) enum Op {
    /// A kernel.
    Kernel(Arc<Launch>),
    /// A copy.
    Copy(Copy),
    /// A memset.
    Fill(Fill),
    /// A function of the program, by address.
    Host { function: usize, data: usize },
    /// The older form, which is told the stream and the state.
    Callback { stream: usize, function: usize, data: usize },
    /// Memory of a graph.
    Alloc(Arc<GraphMemory>),
    /// The end of an allocation.
    Free { addr: u64 },
    /// A place in the stream.
    Mark(Arc<Marker>),
    /// Waits for a place in another stream.
    Wait(Arc<Stream>, Arc<Marker>),
    /// Records an event when a graph gets here.
    Record(Arc<Event>),
    /// Waits for an event when a graph gets here.
    Await(Arc<Event>),
    /// Nothing: joins dependencies.
    Empty,
    /// A graph: launched as a whole, or a node in another.
    Graph(Arc<Vec<Node>>),
}

impl Op {
    /// `CUgraphNodeType`.
    pub fn node_type(&self) -> u32 {
        match self {
            Op::Kernel(_) => 0,
            Op::Copy(_) => 1,
            Op::Fill(_) => 2,
            Op::Host { .. } | Op::Callback { .. } => 3,
            Op::Graph(_) => 4,
            Op::Empty | Op::Mark(_) | Op::Wait(..) => 5,
            Op::Await(_) => 6,
            Op::Record(_) => 7,
            Op::Alloc(_) => 10,
            Op::Free { .. } => 11,
        }
    }

    /// Runs it, beginning at `start` ns on the modelled clock; returns when it is done.
    pub fn run(&self, driver: &Driver, context: &Arc<Context>, start: f64) -> f64 {
        self.run_in(driver, context, start, false)
    }

    fn run_in(&self, driver: &Driver, context: &Arc<Context>, start: f64, in_graph: bool) -> f64 {
        match self {
            Op::Mark(marker) => {
                marker.reach(start);
                return start;
            }
            Op::Wait(_, marker) => return start.max(marker.reached().unwrap_or(start)),
            Op::Record(event) => {
                let marker = Arc::new(Marker::default());
                marker.reach(start);
                if let Some(stream) = context.legacy.get() {
                    *lock(&event.recorded) = Recorded::Stream(stream.clone(), marker);
                }
                return start;
            }
            Op::Await(event) => {
                return match &*lock(&event.recorded) {
                    Recorded::Stream(_, marker) => start.max(marker.reached().unwrap_or(start)),
                    _ => start,
                };
            }
            _ => {}
        }
        if !context.runs() {
            // What comes after a failure does not happen.
            return start;
        }
        match self {
            Op::Kernel(launch) => start + launch.run(driver, context, in_graph),
            Op::Copy(copy) => {
                match copy.run(driver) {
                    Ok(0) => {}
                    Ok(unwritten) => driver.journal.note(format_args!(
                        "{unwritten} of {} bytes copied to the host were never written",
                        copy.bytes()
                    )),
                    Err(error) => {
                        driver.journal.note(format_args!("a copy hit freed memory: {error}"));
                        context.fail(Error::ILLEGAL_ADDRESS);
                    }
                }
                start + clock::copy_ns(&context.device.spec, copy.direction(), copy.bytes())
            }
            Op::Fill(fill) => {
                if let Err(error) = fill.run() {
                    driver.journal.note(format_args!("a memset hit freed memory: {error}"));
                    context.fail(Error::ILLEGAL_ADDRESS);
                }
                start + clock::fill_ns(&context.device.spec, fill.bytes())
            }
            Op::Host { function, data } => {
                // SAFETY: the program passed this as a `CUhostFn`, which takes its data pointer.
                let function: extern "C" fn(*mut c_void) = unsafe { std::mem::transmute(*function) };
                in_callback(|| function(*data as *mut c_void));
                start
            }
            Op::Callback { stream, function, data } => {
                // SAFETY: the program passed this as a `CUstreamCallback`: stream, status, data.
                let function: extern "C" fn(usize, u32, *mut c_void) =
                    unsafe { std::mem::transmute(*function) };
                in_callback(|| function(*stream, 0, *data as *mut c_void));
                start
            }
            Op::Free { addr } => {
                super::memory::release(context, *addr);
                start
            }
            Op::Graph(nodes) => run_graph(driver, context, nodes, start),
            _ => start,
        }
    }
}

/// Runs nodes in the order given, which respects their dependencies. On the modelled clock a node begins when what it
/// depends on is done, so that branches overlap.
fn run_graph(driver: &Driver, context: &Arc<Context>, nodes: &[Node], start: f64) -> f64 {
    let mut done: HashMap<usize, f64> = HashMap::with_capacity(nodes.len());
    let mut end = start;
    for node in nodes {
        let ready = node.after.iter().filter_map(|other| done.get(other)).fold(start, |a, b| a.max(*b));
        let at = match &node.op {
            // Memory of a graph stays until the graph goes.
            Op::Free { .. } | Op::Alloc(_) => ready,
            op if node.enabled => op.run_in(driver, context, ready, true),
            _ => ready,
        };
        done.insert(node.id, at);
        end = end.max(at);
    }
    end
}
