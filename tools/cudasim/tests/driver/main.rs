//! Unchanged cudarc, which loads `libcuda.so.1` by name, runs on the stand-in.
//!
//! The loader reads `LD_LIBRARY_PATH` when a process starts, and the stand-in its settings when it is initialised. So
//! every test runs in a process of its own: this program again, with that one test and the settings it names.

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
