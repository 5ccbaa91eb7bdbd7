//! One PTX instruction at a time against plain Rust. The expected values follow the PTX ISA manual and know nothing of
//! how the executor works.

mod counting;
mod cvt;
mod float;
mod half;
mod harness;
mod integer;
mod matrix;
mod memory;
mod mma;
mod module;
mod random;
mod select;
mod soft;
mod warp;
mod wmma;
