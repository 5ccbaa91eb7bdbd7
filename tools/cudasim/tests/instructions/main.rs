//! One PTX instruction at a time against plain Rust. The expected values follow the PTX ISA manual and know nothing of
//! how the executor works.

// Formulas as the manual writes them, and shapes with a one among their numbers.
#![allow(
    clippy::precedence,
    clippy::type_complexity,
    clippy::modulo_one,
    clippy::approx_constant,
    clippy::needless_range_loop
)]

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
