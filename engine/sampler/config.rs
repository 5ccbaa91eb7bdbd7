//! How to pick tokens: what a request or `generation_config.json` may say.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Temperatures below this are taken as zero: scores divided by them could overflow.
const MIN_TEMPERATURE: f32 = 1e-6;

/// How the next token is picked. See [`Sampler`](super::Sampler) for the order of the steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Whether to draw; if not, the most probable token is taken.
    pub do_sample: bool,
    /// Scores are divided by it, 0 or above. Zero, or anything below 1e-6, is greedy.
    pub temperature: f32,
    /// Only this many of the most probable tokens stay, and what ties with the last; 0 for all.
    pub top_k: u32,
    /// Only the most probable tokens stay that together reach this probability, 0 to 1.
    pub top_p: f32,
    /// Positive scores of tokens that occurred, in the prompt or since, are divided by it, negative
    /// ones multiplied. Above 0; 1 for none.
    pub repetition_penalty: f32,
    /// Key of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// The defaults of transformers 4.57.6 (`GenerationConfig`).
    fn default() -> Self {
        SamplingParams {
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Whether the most probable token is taken.
    pub fn is_greedy(&self) -> bool {
        !self.do_sample || self.temperature < MIN_TEMPERATURE
    }

    /// Whether all values are in range.
    ///
    /// # Errors
    /// [`Error::Request`] that names the first field that is not.
    pub fn check(&self) -> Result<()> {
        match self.out_of_range() {
            None => Ok(()),
            Some((field, found, expected)) => {
                Err(Error::Request { field: field.into(), found, expected: expected.into() })
            }
        }
    }

    fn out_of_range(&self) -> Option<(&'static str, String, &'static str)> {
        let SamplingParams { temperature, top_p, repetition_penalty, .. } = *self;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Some(("temperature", temperature.to_string(), "a finite number that is not negative"));
        }
        if !(0.0..=1.0).contains(&top_p) {
            return Some(("top_p", top_p.to_string(), "a number from 0 to 1"));
        }
        if !(repetition_penalty.is_finite() && repetition_penalty > 0.0) {
            return Some(("repetition_penalty", repetition_penalty.to_string(), "a number above 0"));
        }
        None
    }
}

/// What the engine reads from `generation_config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// How to pick tokens unless a request says otherwise. The seed is zero.
    pub sampling: SamplingParams,
    /// Tokens that end the answer. Empty if the file names none: then `config.json` does.
    pub eos_token_ids: Vec<u32>,
    /// Keys of the file that would change the answer and that this engine does not know how to
    /// honour, to warn about.
    pub ignored: Vec<String>,
}

/// Keys of transformers that change which tokens are picked, with the value that changes nothing.
const NOT_DONE: [(&str, f64); 9] = [
    ("min_p", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("min_new_tokens", 0.0),
    ("num_beams", 1.0),
];

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`; `None` if the checkpoint has none. Absent keys
    /// have the defaults of transformers, `null` switches a step off.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the first field that is malformed or out of range.
    pub fn from_json(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else { return Ok(GenerationConfig::default()) };
        let root: Value =
            serde_json::from_str(text).map_err(|e| fail(format!("not valid JSON: {e}"), "JSON"))?;
        let map = root.as_object().ok_or_else(|| fail("the file holds no object".into(), "an object"))?;
        let default = SamplingParams::default();
        let sampling = SamplingParams {
            do_sample: match map.get("do_sample") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(value)) => *value,
                Some(other) => return Err(mismatch("do_sample", other, "true or false")),
            },
            temperature: number(map, "temperature", default.temperature)?,
            top_k: match map.get("top_k") {
                None => default.top_k,
                Some(Value::Null) => 0,
                Some(value) => id(value).ok_or_else(|| mismatch("top_k", value, "a non-negative integer"))?,
            },
            top_p: number(map, "top_p", default.top_p)?,
            repetition_penalty: number(map, "repetition_penalty", default.repetition_penalty)?,
            seed: 0,
        };
        if let Some((field, found, expected)) = sampling.out_of_range() {
            return Err(fail(format!("{field} is {found}"), expected));
        }
        Ok(GenerationConfig {
            sampling,
            eos_token_ids: eos_token_ids(map.get("eos_token_id"))?,
            ignored: ignored(map),
        })
    }
}

/// Reads an `eos_token_id` of `generation_config.json` or `config.json`: absent, an id, or an array.
///
/// # Errors
/// [`Error::Checkpoint`] for anything else.
fn eos_token_ids(value: Option<&Value>) -> Result<Vec<u32>> {
    let ids = match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(id).collect(),
        Some(single) => id(single).map(|id| vec![id]),
    };
    ids.ok_or_else(|| {
        mismatch("eos_token_id", value.unwrap_or(&Value::Null), "a token id or an array of them")
    })
}

fn ignored(map: &Map<String, Value>) -> Vec<String> {
    let changes = |(key, neutral): &(&str, f64)| match map.get(*key) {
        None | Some(Value::Null) => false,
        Some(value) => value.as_f64() != Some(*neutral),
    };
    NOT_DONE.iter().filter(|entry| changes(entry)).map(|(key, _)| key.to_string()).collect()
}

/// The number of `key`, `default` if absent, and 1, which changes nothing, if `null`.
fn number(map: &Map<String, Value>, key: &str, default: f32) -> Result<f32> {
    match map.get(key) {
        None => Ok(default),
        Some(Value::Null) => Ok(1.0),
        Some(value) => value.as_f64().map(|n| n as f32).ok_or_else(|| mismatch(key, value, "a number")),
    }
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn mismatch(field: &str, found: &Value, expected: &str) -> Error {
    fail(format!("{field} is {found}"), expected)
}

fn fail(problem: String, expected: &str) -> Error {
    Error::Checkpoint { path: "generation_config.json".into(), problem, help: format!("expected {expected}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> GenerationConfig {
        GenerationConfig::from_json(Some(text)).unwrap()
    }

    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = read("{}");
        assert_eq!(config, GenerationConfig::from_json(None).unwrap());
        assert_eq!((config.sampling.top_k, config.sampling.do_sample), (50, false));
        assert!(config.eos_token_ids.is_empty());
    }

    #[test]
    fn the_file_of_the_2b_model_is_read() {
        let config = read(
            r#"{"do_sample": true, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.0,
                "eos_token_id": [151645, 151643], "pad_token_id": 151643, "bos_token_id": 151643}"#,
        );
        let expected = SamplingParams {
            do_sample: true,
            temperature: 0.01,
            top_p: 0.001,
            top_k: 1,
            ..Default::default()
        };
        assert_eq!(config.sampling, expected);
        assert_eq!(config.eos_token_ids, [151_645, 151_643]);
        assert_eq!(read(r#"{"eos_token_id": 7}"#).eos_token_ids, [7]);
    }

    #[test]
    fn null_switches_a_step_off() {
        let sampling = read(r#"{"top_k": null, "temperature": null, "top_p": null}"#).sampling;
        assert_eq!((sampling.top_k, sampling.temperature, sampling.top_p), (0, 1.0, 1.0));
    }

    #[test]
    fn keys_that_would_be_ignored_are_told() {
        let config = read(r#"{"min_p": 0.1, "num_beams": 1, "no_repeat_ngram_size": 3, "typical_p": null}"#);
        assert_eq!(config.ignored, ["min_p", "no_repeat_ngram_size"]);
    }

    #[test]
    fn malformed_files_are_errors_that_name_the_field() {
        for (text, field) in [
            ("[]", "object"),
            ("{", "JSON"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"temperature": 1e99}"#, "temperature"),
            (r#"{"temperature": "1"}"#, "temperature"),
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"top_k": -1}"#, "top_k"),
            (r#"{"top_k": 1.5}"#, "top_k"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"do_sample": 1}"#, "do_sample"),
            (r#"{"eos_token_id": [1, -2]}"#, "eos_token_id"),
            (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
        ] {
            let error = GenerationConfig::from_json(Some(text)).unwrap_err().to_string();
            assert!(error.contains("generation_config.json") && error.contains(field), "{text}: {error}");
        }
    }
}
