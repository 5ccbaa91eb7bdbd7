//! From generated ids to text, token by token.

use std::sync::Arc;

/// The bytes of every token, by id.
#[derive(Debug, Default)]
pub(super) struct TokenTable {
    /// All bytes, one token after the other.
    bytes: Vec<u8>,
    /// `[n_tokens + 1]`: where each begins in `bytes`. An id that no token has is empty.
    starts: Vec<u32>,
    /// `[n_tokens]`: whether skipping special tokens skips it.
    special: Vec<bool>,
}

impl TokenTable {
    /// A table of `tokens`, `None` where no token has that id. The flag says whether it is special.
    pub fn new(tokens: &[Option<(Vec<u8>, bool)>]) -> Self {
        let mut table = TokenTable { starts: vec![0], ..Default::default() };
        for token in tokens {
            let (bytes, special) =
                token.as_ref().map_or((&[][..], false), |(bytes, special)| (bytes, *special));
            table.bytes.extend_from_slice(bytes);
            table.starts.push(table.bytes.len() as u32);
            table.special.push(special);
        }
        table
    }

    /// Number of ids, with gaps.
    pub fn len(&self) -> usize {
        self.special.len()
    }

    /// Bytes of the longest token.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0)
    }

    /// The bytes of a token; none for an id beyond the vocabulary.
    pub fn get(&self, id: u32, skip_special: bool) -> &[u8] {
        let id = id as usize;
        if id >= self.len() || (skip_special && self.special[id]) {
            return &[];
        }
        &self.bytes[self.starts[id] as usize..self.starts[id + 1] as usize]
    }
}

/// Turns ids into text as they come. Tokens are bytes, not characters, so that a character may
/// take several: what is not yet complete UTF-8 is held back.
///
/// The texts of all pushes and of [`finish`](TokenDecoder::finish), joined, are
/// [`Tokenizer::decode`](super::Tokenizer::decode) of all ids.
#[derive(Clone, Debug)]
pub struct TokenDecoder {
    table: Arc<TokenTable>,
    skip_special: bool,
    /// An incomplete character: at most three bytes between calls.
    held: Vec<u8>,
}

impl TokenDecoder {
    pub(super) fn new(table: Arc<TokenTable>, skip_special: bool) -> Self {
        TokenDecoder { table, skip_special, held: Vec::new() }
    }

    /// Takes the next token; returns the text that is complete with it, often empty.
    /// Bytes that can never become UTF-8 come out as U+FFFD. Ids beyond the vocabulary are nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.held.extend_from_slice(self.table.get(id, self.skip_special));
        let mut text = String::with_capacity(self.held.len());
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // Without a length, the end of the input is the beginning of a character.
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        let done = self.held.len() - rest.len();
        self.held.drain(..done);
        text
    }

    /// Ends the text: U+FFFD if a character was left incomplete, else nothing. The decoder can then
    /// be used for another text.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoder(tokens: &[Vec<u8>]) -> TokenDecoder {
        let tokens: Vec<_> = tokens.iter().map(|bytes| Some((bytes.clone(), false))).collect();
        TokenDecoder::new(Arc::new(TokenTable::new(&tokens)), false)
    }

    #[test]
    fn a_character_in_four_tokens_comes_with_the_last() {
        let mut decoder = decoder(&"🦀".bytes().map(|b| vec![b]).collect::<Vec<_>>());
        let texts: Vec<String> = (0..4).map(|id| decoder.push(id)).collect();
        assert_eq!(texts, ["", "", "", "🦀"]);
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn an_incomplete_character_at_the_end_is_one_replacement() {
        let mut decoder = decoder(&[vec![b'a', 0xf0, 0x9f]]);
        assert_eq!(decoder.push(0), "a");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }

    proptest! {
        #[test]
        fn pushed_texts_joined_are_the_lossy_text_of_all_bytes(
            tokens in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..6),
                    prop::sample::subsequence("é世🦀\u{7ff}".as_bytes().to_vec(), 0..11),
                ],
                0..20,
            ),
        ) {
            let mut decoder = decoder(&tokens);
            let mut text = String::new();
            for id in 0..tokens.len() as u32 + 2 {
                text += &decoder.push(id);
                prop_assert!(decoder.held.len() <= 3);
            }
            text += &decoder.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&tokens.concat()).into_owned());
        }
    }
}
