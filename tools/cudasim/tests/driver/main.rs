//! Unchanged cudarc, which loads `libcuda.so.1` by name, runs on the stand-in.
//!
//! The loader reads `LD_LIBRARY_PATH` when a process starts, and the stand-in its settings when it is initialised. So
//! every test runs in a process of its own: this program again, with that one test and the settings it names.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every one is a call into the stand-in, with buffers and handles that the same test made"
)]

#[path = "../common/mod.rs"]
mod common;

mod basics;
mod capture;
mod code;
mod errors;
mod faults;
mod graphs;
mod harness;
mod memory;
mod streams;
