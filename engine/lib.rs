//! `qwenvl`: an inference engine for the Qwen2-VL family.

pub mod checkpoint;
pub mod error;
pub mod exec;
#[path = "../kernels/mod.rs"]
pub mod kernels;
pub mod prompt;
pub mod sampler;
pub mod vision;

pub use error::{Error, Result};
pub use qwenvl_graph as graph;
