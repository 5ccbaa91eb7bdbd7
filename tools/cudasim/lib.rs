//! A simulated CUDA GPU: a stand-in `libcuda.so.1` that executes the PTX of kernels on the CPU, checks what
//! hardware would not tell, and counts what a profiler would.

#![allow(
    clippy::needless_range_loop,
    reason = "the 32 lanes of a warp are walked by number, over several rows at once"
)]

pub mod check;
mod class;
pub mod counters;
pub mod cubin;
pub mod decode;
pub mod device;
pub mod driver;
mod elf;
pub mod exec;
pub mod fatbin;
pub mod memory;
pub mod model;
pub mod ptx;
pub mod report;
