//! `qwenvl`: an inference engine for the Qwen2-VL family.

pub mod checkpoint;
pub mod error;
#[path = "../kernels/mod.rs"]
pub mod kernels;

pub use error::{Error, Result};
pub use qwenvl_graph as graph;
