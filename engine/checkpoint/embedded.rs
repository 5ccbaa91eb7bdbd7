//! The tiny model that is part of the program.

use super::Checkpoint;
use crate::error::Result;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../tiny_model/", $name)))),*]
    };
}

/// See `engine/tiny_model`. `vocab.json` and `merges.txt` repeat what `tokenizer.json` holds.
static TINY: &[(&str, &[u8])] = files![
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "model.safetensors",
];

impl Checkpoint {
    /// The embedded model: a Qwen2-VL of five million parameters in AWQ, trained to describe simple
    /// pictures of shapes and words. It makes the program testable without a download.
    ///
    /// # Errors
    /// None in practice; the signature is that of [`open`](Self::open).
    pub fn tiny() -> Result<Self> {
        Self::embedded(TINY, "tiny")
    }
}
