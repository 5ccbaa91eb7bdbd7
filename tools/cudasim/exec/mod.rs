//! Execution of a launch: CTAs over host threads, warps in turn, lanes in rows.

pub(crate) mod carry;
mod collective;
mod consts;
mod cta;
pub(crate) mod cx;
pub(crate) mod elem;
mod ends;
pub(crate) mod float;
pub(crate) mod inst;
pub(crate) mod lanes;
mod launch;
pub(crate) mod logic;
pub(crate) mod mem;
pub(crate) mod mma;
pub(crate) mod pred;
pub(crate) mod print;
mod run;
mod sampled;
mod schedule;
mod stats;
mod tally;
#[cfg(test)]
mod tests;
mod warp;
pub(crate) mod wide;

pub(crate) use collective::{Vote, warp_ops};
pub(crate) use cta::bar;
pub use launch::{ExecOptions, GlobalAddresses, Launch, Outcome, Sampling};
pub use schedule::run;
