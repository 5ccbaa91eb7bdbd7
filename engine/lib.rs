//! `qwenvl`: an inference engine for the Qwen2-VL family.

pub mod checkpoint;
pub mod error;

pub use error::{Error, Result};
pub use qwenvl_graph as graph;
