//! Qwen2-VL as data: configuration, graph, fusion passes and the static plan.
//!
//! This crate knows no device and does no input or output.
#![forbid(unsafe_code)]

pub mod config;
pub mod dtype;
pub mod error;
pub mod grid;
pub mod positions;
pub mod weights;

pub use config::ModelConfig;
pub use dtype::DType;
pub use error::{Error, Result};
pub use grid::{Grid, PixelLimits, smart_resize};
pub use positions::{RopeIndex, rope_index};
