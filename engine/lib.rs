//! `qwenvl`: an inference engine for the Qwen2-VL family.

pub mod error;
pub mod prompt;
pub mod sampler;

pub use error::{Error, Result};
pub use qwenvl_graph as graph;
