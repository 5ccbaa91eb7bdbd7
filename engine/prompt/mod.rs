//! From messages to token ids: message forms, chat template, tokenizer, placeholders.
//!
//! Positions of the tokens are in [`graph::positions`](crate::graph::positions), because the plan
//! needs them too.

pub mod decoder;
pub mod message;
mod parse;
pub mod placeholders;
pub mod stop;
pub mod template;
pub mod tokenizer;

pub use decoder::TokenDecoder;
pub use message::{
    Content, ImageInput, ImagePart, Message, Part, Role, SizeOptions, VideoInput, VideoPart,
    messages_from_json,
};
pub use placeholders::expand;
pub use stop::{StopMatcher, StopOutput};
pub use template::{ChatTemplate, find_template};
pub use tokenizer::Tokenizer;
