//! Every CUDA kernel against plain float64, with ragged sizes and poisoned outputs; the promise that bits depend on
//! nothing but the request; and what kernels take at the sizes of the published models. One file for each kernel. Runs
//! on a GPU, or on the simulated one: `cudasim env cargo test --features cuda`.
#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;

mod decode_layers;
mod embed;
mod flash_attn;
mod gpu;
mod linear;
mod mutations;
mod norm;
mod paged_attn;
mod paged_prefill;
mod patchify;
mod pointwise;
mod repack;
mod report;
mod resources;
mod rope;
mod sample;
mod shapes;
mod softmax;
