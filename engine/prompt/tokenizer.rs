//! The byte-level BPE tokenizer of a checkpoint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokenizers::{DecoderWrapper, ModelWrapper};

use super::decoder::{TokenDecoder, TokenTable};
use crate::{Error, Result};

/// Largest token id accepted, well above any vocabulary. Bounds the table of ids.
const MAX_ID: u32 = 1 << 22;

/// Text to ids and back, as `tokenizer.json` says.
///
/// Encoding is done by the `tokenizers` library. Decoding is done here, on bytes, so that it can go
/// token by token; the text is the same.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    table: Arc<TokenTable>,
    longest_token_bytes: usize,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the file is malformed or describes something other than byte-level
    /// BPE, which is what all Qwen2-VL models have.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let load = || tokenizers::Tokenizer::from_bytes(json).map_err(|e| problem(e.to_string()));
        let mut inner = no_panic("tokenizer.json is malformed", load)??;
        match inner.get_model() {
            ModelWrapper::BPE(model) if model.dropout.is_none() => {}
            ModelWrapper::BPE(_) => {
                return Err(problem("tokenizer.json: found dropout, expected none: null"));
            }
            _ => return Err(problem("tokenizer.json: the model is not BPE, as that of every Qwen2-VL is")),
        }
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(problem(
                "tokenizer.json: the decoder is not ByteLevel, as that of every Qwen2-VL is",
            ));
        }
        // A prompt is never cut or padded behind the caller's back.
        inner.with_truncation(None).map_err(|e| problem(e.to_string()))?;
        inner.with_padding(None);
        let table = Arc::new(token_table(&inner)?);
        Ok(Tokenizer { inner, longest_token_bytes: table.longest(), table })
    }

    /// The ids of a text. Nothing is added; special tokens spelled out in the text become their ids,
    /// as in the reference.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library gives up, as its regex engine does on millions of
    /// characters that make it backtrack.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encode = || self.inner.encode_fast(text, false).map_err(|e| problem(e.to_string()));
        let encoding = no_panic("the text cannot be split into words", encode)??;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids. Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary are nothing.
    /// `skip_special` leaves special tokens out, with them the marks of boxes and references.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.table.get(id, skip_special)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder that takes ids one at a time. It owns what it needs.
    pub fn decoder(&self, skip_special: bool) -> TokenDecoder {
        TokenDecoder::new(Arc::clone(&self.table), skip_special)
    }

    /// The id of a token given by its text, as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Bytes of the longest token: so many tokens times this is as long as their text can be.
    pub fn longest_token_bytes(&self) -> usize {
        self.longest_token_bytes
    }

    /// One more than the largest id that has a token. The embedding table may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }
}

/// Runs a call into the library, which panics on some malformed input: overlapping ids of added
/// tokens when loading, an exhausted regex engine when encoding.
fn no_panic<T>(what: &str, call: impl FnOnce() -> T) -> Result<T> {
    // The closures only read, and what they build is dropped with the panic.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| problem(format!("{what}; the message above says where")))
}

fn token_table(tokenizer: &tokenizers::Tokenizer) -> Result<TokenTable> {
    let vocabulary = tokenizer.get_vocab(false);
    let added = tokenizer.get_added_tokens_decoder();
    let largest = vocabulary.values().chain(added.keys()).copied().max().unwrap_or(0);
    if largest > MAX_ID {
        return Err(problem(format!(
            "tokenizer.json: found the token id {largest}, expected at most {MAX_ID}"
        )));
    }
    let bytes_of = byte_of_char();
    let mut tokens = vec![None; largest as usize + 1];
    for (text, id) in vocabulary {
        // A token with a character outside the map stands for its own text, as in the library.
        let bytes = text.chars().map(&bytes_of).collect::<Option<Vec<u8>>>();
        tokens[id as usize] = Some((bytes.unwrap_or_else(|| text.into_bytes()), false));
    }
    for (id, token) in added {
        tokens[id as usize] = Some((token.content.into_bytes(), token.special));
    }
    Ok(TokenTable::new(&tokens))
}

/// The byte that a character of a byte-level token stands for: printable Latin-1 characters for
/// themselves, the other bytes in order as U+0100 and up.
///
/// `bytes_to_unicode` of OpenAI's GPT-2 (`encoder.py`).
fn byte_of_char() -> impl Fn(char) -> Option<u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255).filter(|&b| !printable(b)).collect();
    move |c| match u8::try_from(c as u32) {
        Ok(byte) => Some(byte).filter(|&b| printable(b)),
        Err(_) => others.get(c as usize - 256).copied(),
    }
}

fn problem(text: impl Into<String>) -> Error {
    Error::Tokenizer { problem: text.into() }
}
