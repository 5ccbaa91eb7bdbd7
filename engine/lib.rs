//! `qwenvl`: an inference engine for the Qwen2-VL family.

pub mod checkpoint;
mod engine;
pub mod error;
pub mod exec;
mod frontend;
mod generate;
pub mod grounding;
pub mod host;
#[path = "../kernels/mod.rs"]
pub mod kernels;
pub mod kv_cache;
pub mod prompt;
mod request;
pub mod sampler;
pub mod vision;

pub use checkpoint::Checkpoint;
pub use engine::{Engine, EngineOptions, Generation, Target};
pub use error::{Error, Result};
pub use frontend::{DEFAULT_PROMPT_TOKENS, Frontend, Prepared};
pub use generate::{Event, RequestId, Work};
pub use qwenvl_graph as graph;
pub use request::{
    Answer, CancelHandle, DEFAULT_MAX_TOKENS, FinishReason, Request, Timings, Token, Usage, VisualInfo,
};
