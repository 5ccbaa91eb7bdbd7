//! Whole kernels against plain Rust: every kernel of this folder, compiled by the compilers of CUDA 12.9 and 13.0 at
//! -O3, unoptimised and for debugging, on random inputs; then their planted bugs, and mutations of their text.

#[path = "../common/mod.rs"]
mod common;

mod between_ctas;
mod bugs;
mod device;
mod elementwise;
mod gemm;
mod local;
mod mutations;
mod pipeline;
mod rows;
mod wide;
