//! Qwen2-VL as data: configuration, graph, fusion passes and the static plan.
//!
//! This crate knows no device and does no input or output.
#![forbid(unsafe_code)]

pub mod builder;
pub mod config;
pub mod cost;
pub mod cuda;
mod decoder;
pub mod device;
pub mod dtype;
pub mod error;
pub mod fit;
mod fuse;
pub mod grid;
pub mod kernel;
pub mod memory;
mod merger;
pub mod model;
pub mod op;
pub mod plan;
pub mod positions;
pub mod shape;
mod show;
mod vit;
pub mod weights;

pub use builder::{Graph, Node, Value, ValueId, Weight, WeightId, WeightKind};
pub use config::ModelConfig;
pub use cost::Cost;
pub use device::{Device, DeviceKind};
pub use dtype::DType;
pub use error::{Error, Result};
pub use grid::{Grid, PixelLimits, smart_resize};
pub use op::{Activation, Epilogue, Op};
pub use plan::{MemoryUse, Plan, PlanOptions, Program, Segment};
pub use positions::{RopeIndex, rope_index};
pub use shape::{Rows, Shape, Sizes};
