//! Stop strings over streamed text.

use crate::{Error, Result};

/// Finds the first stop string in text that comes in pieces, and cuts the text before it.
///
/// The match is the one that is complete first; if two end at the same place, the longer. That is a
/// property of the whole text: how it is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that could be the beginning of a stop string.
    held: String,
    matched: Option<usize>,
}

/// What a [`StopMatcher`] lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that no stop string can claim any more.
    pub text: String,
    /// Index of the stop string that was found; the text before it is complete.
    pub matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`. With none, all text passes at once.
    ///
    /// # Errors
    /// [`Error::Request`] for an empty stop string.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        match stops.iter().position(String::is_empty) {
            None => Ok(StopMatcher { stops, held: String::new(), matched: None }),
            Some(i) => Err(Error::Request {
                field: format!("stop[{i}]"),
                found: "an empty string".into(),
                expected: "at least one character".into(),
            }),
        }
    }

    /// Takes the next piece of text. After a match, everything is swallowed and the match reported
    /// again. The text that is let through is in the buffer of the text that came, if it has room.
    pub fn push(&mut self, mut text: String) -> StopOutput {
        if self.matched.is_some() {
            return StopOutput { text: String::new(), matched: self.matched };
        }
        if self.stops.is_empty() {
            return StopOutput { text, matched: None };
        }
        self.held.push_str(&text);
        text.clear();
        let found = self.stops.iter().enumerate().filter_map(|(i, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, i))
        });
        if let Some((_, start, i)) = found.min() {
            self.matched = Some(i);
            text.push_str(&self.held[..start]);
            self.held.clear();
            return StopOutput { text, matched: self.matched };
        }
        let free = self.held.len() - self.claimed();
        text.push_str(&self.held[..free]);
        self.held.drain(..free);
        StopOutput { text, matched: None }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length in bytes of the longest end of the held text that begins a stop string.
    fn claimed(&self) -> usize {
        let longest = |stop: &String| {
            let held = self.held.as_str();
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| {
                let start = held.len() - n;
                held.is_char_boundary(start) && stop.as_bytes().starts_with(&held.as_bytes()[start..])
            })
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|s| s.to_string()).collect()).unwrap()
    }

    #[test]
    fn text_that_could_become_a_stop_string_is_held_back_and_released() {
        let mut matcher = matcher(&["</end>"]);
        assert_eq!(matcher.push("one <".into()).text, "one ");
        assert_eq!(matcher.push("/en".into()).text, "");
        assert_eq!(matcher.push("tity".into()).text, "</entity");
        assert_eq!(matcher.push("</".into()).text, "");
        assert_eq!(matcher.finish(), "</");
    }

    #[test]
    fn a_stop_string_across_pieces_cuts_the_text_before_it() {
        let mut matcher = matcher(&["x", "\n\n"]);
        assert_eq!(matcher.push("a\n".into()), StopOutput { text: "a".into(), matched: None });
        assert_eq!(matcher.push("\nb".into()), StopOutput { text: String::new(), matched: Some(1) });
        assert_eq!(matcher.push("c".into()), StopOutput { text: String::new(), matched: Some(1) });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn an_empty_stop_string_is_an_error() {
        assert!(
            StopMatcher::new(vec!["a".into(), String::new()]).unwrap_err().to_string().contains("stop[1]")
        );
    }

    proptest! {
        #[test]
        fn any_cutting_gives_what_a_search_in_the_whole_text_gives(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,4}", 0..12),
        ) {
            let whole = pieces.concat();
            let naive = (1..=whole.len()).filter(|&end| whole.is_char_boundary(end)).find_map(|end| {
                let longest = stops.iter().filter(|s| whole[..end].ends_with(s.as_str())).max_by_key(|s| s.len())?;
                Some((end - longest.len(), stops.iter().position(|s| s == longest).unwrap()))
            });
            let mut matcher = StopMatcher::new(stops.clone()).unwrap();
            let mut text = String::new();
            let mut matched = None;
            for piece in &pieces {
                let output = matcher.push(piece.clone());
                text += &output.text;
                matched = output.matched;
            }
            text += &matcher.finish();
            prop_assert_eq!(matched, naive.map(|(_, i)| i));
            prop_assert_eq!(text.as_str(), &whole[..naive.map_or(whole.len(), |(start, _)| start)]);
        }
    }
}
