//! The distinct tokens of a sequence.

/// A set of token ids, for the repetition penalty: one bit for each id of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u64>,
}

impl TokenSet {
    /// The empty set of ids below `vocab_size`.
    pub fn new(vocab_size: usize) -> Self {
        TokenSet { words: vec![0; vocab_size.div_ceil(64)] }
    }

    /// Adds an id. One beyond the vocabulary is ignored: it has no logit to penalise.
    pub fn insert(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// Adds ids.
    pub fn extend(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| self.insert(id));
    }

    /// Removes all ids.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether an id is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// A bit for each id, 64 to a word, the lowest first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < 64).then_some(i as u32 * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holds_each_id_of_the_vocabulary_once(ids in prop::collection::vec(0u32..400, 0..100)) {
            let mut set = TokenSet::new(256);
            set.extend(&ids);
            let expected: std::collections::BTreeSet<u32> = ids.iter().copied().filter(|&id| id < 256).collect();
            prop_assert!(set.iter().eq(expected.iter().copied()));
            prop_assert!((0..500).all(|id| set.contains(id) == expected.contains(&id)));
            set.clear();
            prop_assert_eq!(set.iter().count(), 0);
        }
    }
}
