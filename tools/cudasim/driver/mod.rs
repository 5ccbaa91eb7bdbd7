//! The stand-in driver: what `libcuda.so.1` exports.
//!
//! Entry points are C functions with the driver's names, grouped by what they are about. They return the codes that
//! the real driver returns; what goes wrong inside a kernel is told at the next call that waits for it, and spoils the
//! context until it is destroyed. Handles are numbers that are looked up, so that a stale one is an error code.
//!
//! | file | what |
//! |---|---|
//! | `config`, `fault` | settings; faults on request |
//! | `entry`, `error`, `handles`, `state` | what entry points share; codes; handles; devices and contexts |
//! | `context`, `module`, `image`, `function`, `launch` | devices and contexts; code; kernels and occupancy; launches |
//! | `memory`, `pool`, `transfer`, `copy` | allocations; memory pools; copies and memsets |
//! | `stream`, `event`, `op`, `clock` | queues of work, places in them, pieces of work, their modelled times |
//! | `capture`, `graph`, `graph_api` | stream capture; graphs and their updates |
//! | `journal` | reports on stderr, the file at exit |
//! | `unsupported`, `proc_address` | everything else, which returns 801; look-up by name |

mod capture;
mod clock;
mod config;
mod context;
mod copy;
mod entry;
mod error;
mod event;
mod fault;
mod function;
mod graph;
mod graph_api;
mod handles;
mod image;
mod journal;
mod launch;
mod memory;
mod module;
mod op;
mod pool;
mod proc_address;
mod state;
mod stream;
mod transfer;
mod unsupported;

pub use config::Config;
pub use error::Error;
pub use journal::Run;
