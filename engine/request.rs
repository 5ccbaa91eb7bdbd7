//! What is asked of the engine, and what it answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::prompt::{Message, messages_from_json};
use crate::sampler::SamplingParams;
use crate::vision::Sampling;

/// One conversation to be answered. What is `None` is left to the checkpoint's
/// `generation_config.json`.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The conversation; the answer continues it.
    pub messages: Vec<Message>,
    /// Most tokens to generate, [`DEFAULT_MAX_TOKENS`] if not given.
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token; above 0 draws.
    pub temperature: Option<f32>,
    /// Draw among this many of the most probable tokens; 0 for all.
    pub top_k: Option<u32>,
    /// Draw among the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Makes tokens that occurred less likely if above 1.
    pub repetition_penalty: Option<f32>,
    /// Key of the random numbers, 0 if not given; the same seed gives the same answer.
    pub seed: Option<u64>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Numbers the pictures in the prompt: `Picture 1: `, `Video 1: `.
    pub add_vision_id: bool,
    /// Keeps special tokens in the text, as the box markers of grounding answers.
    pub keep_special_tokens: bool,
    /// Where relative paths of pictures start; the working directory if empty.
    pub base_dir: PathBuf,
    /// Stops the answer from another thread.
    pub cancel: CancelHandle,
}

/// Tokens that an answer may have unless the request says otherwise.
pub const DEFAULT_MAX_TOKENS: usize = 512;

/// Stops a request from anywhere. Clones stop the same request.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Ends the answer before its next token.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`CancelHandle::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Request {
    /// A request with the defaults of the checkpoint.
    pub fn new(messages: Vec<Message>) -> Request {
        Request { messages, ..Request::default() }
    }

    /// Reads a request from a JSON object, as a line of a batch file: `messages`, and optionally
    /// `max_tokens`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `seed`, `stop` (a string or an
    /// array), `add_vision_id`, `keep_special_tokens`. Other keys than these and `custom_id` are an
    /// error.
    ///
    /// # Errors
    /// [`Error::Request`] naming the first field that is missing, unknown or malformed.
    pub fn from_json(value: &Value, base_dir: PathBuf) -> Result<Request> {
        const KEYS: &[&str] = &[
            "custom_id",
            "messages",
            "max_tokens",
            "temperature",
            "top_k",
            "top_p",
            "repetition_penalty",
            "seed",
            "stop",
            "add_vision_id",
            "keep_special_tokens",
        ];
        let Some(map) = value.as_object() else { return Err(mismatch("the line", value, "a JSON object")) };
        if let Some(unknown) = map.keys().find(|k| !KEYS.contains(&k.as_str())) {
            return Err(Error::Request {
                field: unknown.clone(),
                found: "an unknown key".into(),
                expected: format!("one of {}", KEYS.join(", ")),
            });
        }
        let messages = map.get("messages").ok_or_else(|| Error::Request {
            field: "messages".into(),
            found: "nothing".into(),
            expected: "an array of messages".into(),
        })?;
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        let number = |key: &str| -> Result<Option<f32>> {
            get(key)
                .map(|v| v.as_f64().map(|f| f as f32).ok_or_else(|| mismatch(key, v, "a number")))
                .transpose()
        };
        let whole = |key: &str, max: u64| -> Result<Option<u64>> {
            get(key)
                .map(|v| {
                    v.as_u64()
                        .filter(|n| *n <= max)
                        .ok_or_else(|| mismatch(key, v, &format!("an integer in 0..={max}")))
                })
                .transpose()
        };
        let flag = |key: &str| -> Result<bool> {
            get(key).map_or(Ok(false), |v| v.as_bool().ok_or_else(|| mismatch(key, v, "true or false")))
        };
        let stop = match get("stop") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(v) => v
                .as_array()
                .and_then(|a| a.iter().map(|s| s.as_str().map(str::to_string)).collect())
                .ok_or_else(|| mismatch("stop", v, "a string or an array of strings"))?,
        };
        Ok(Request {
            messages: messages_from_json(messages, "messages")?,
            max_tokens: whole("max_tokens", 1 << 24)?.map(|n| n as usize),
            temperature: number("temperature")?,
            top_k: whole("top_k", u64::from(u32::MAX))?.map(|n| n as u32),
            top_p: number("top_p")?,
            repetition_penalty: number("repetition_penalty")?,
            seed: whole("seed", u64::MAX)?,
            stop,
            add_vision_id: flag("add_vision_id")?,
            keep_special_tokens: flag("keep_special_tokens")?,
            base_dir,
            cancel: CancelHandle::default(),
        })
    }

    /// The parameters of the draw: the request's own over `defaults`. A temperature switches between
    /// drawing and the most probable token; top-k or top-p alone keep what the checkpoint does.
    pub(crate) fn sampling(&self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            do_sample: self.temperature.map_or(defaults.do_sample, |t| t > 0.0),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.unwrap_or(defaults.seed),
        }
    }
}

fn mismatch(field: &str, found: &Value, expected: &str) -> Error {
    let mut found = found.to_string();
    if found.len() > 80 {
        let end = (0..=80).rev().find(|i| found.is_char_boundary(*i)).unwrap_or(0);
        found.truncate(end);
        found.push_str("...");
    }
    Error::Request { field: field.into(), found, expected: expected.into() }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string was found.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The request was cancelled.
    Cancelled,
}

/// Tokens read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt, pictures included.
    pub prompt_tokens: usize,
    /// Those of them that stand for pictures.
    pub visual_tokens: usize,
    /// Tokens of the answer, the one that ends it included.
    pub completion_tokens: usize,
}

/// Where the time went, in milliseconds. With several requests at once, a call that works on
/// several counts for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Reading or downloading pictures. With several in parallel, the sum over them.
    pub image_fetch_ms: f64,
    /// Decoding pictures.
    pub image_decode_ms: f64,
    /// Resizing pictures.
    pub image_resize_ms: f64,
    /// Template, tokenizer and positions.
    pub prompt_ms: f64,
    /// Vision tower and merger.
    pub vit_ms: f64,
    /// The decoder over the prompt.
    pub prefill_ms: f64,
    /// The decoder over the answer.
    pub decode_ms: f64,
    /// From the start of the request's work on the executor to its first token.
    pub first_token_ms: f64,
}

/// One step of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Text that is complete with it: often a word, sometimes nothing, always whole characters.
    pub text: String,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The tokens, the one that ends the answer included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens read and written.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The pictures as the model saw them, in the order of the prompt.
    pub visuals: Vec<VisualInfo>,
    /// What of the request had no effect, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// A picture or video as the model saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VisualInfo {
    /// Width of the original in pixels.
    pub width: u32,
    /// Height of the original in pixels.
    pub height: u32,
    /// Width after the resize.
    pub resized_width: u32,
    /// Height after the resize.
    pub resized_height: u32,
    /// Patches in time, height and width.
    pub grid_thw: [usize; 3],
    /// Tokens in the prompt.
    pub tokens: usize,
    /// Of a video file, the frames that were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<Sampling>,
}
