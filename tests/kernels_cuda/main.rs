//! Every CUDA kernel against plain float64, with ragged sizes and poisoned outputs; and the promise that bits depend on
//! nothing but the request. Runs on a GPU, or on the simulated one: `cudasim env cargo test --features cuda`.
#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod gpu;
mod linear;
mod resources;
mod rest;
mod sample;
