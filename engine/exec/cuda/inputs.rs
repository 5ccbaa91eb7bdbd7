//! What the host sends with a call: one block of u32, laid out anew for each call and sent in one copy.

use std::ops::Range;

use bytemuck::cast_slice;

use super::gpu::{Gpu, Staging};
use crate::error::Result;

/// Words of a call and the device address of each part.
pub(super) struct Inputs {
    base: u64,
    capacity: usize,
    words: Vec<u32>,
}

impl Inputs {
    /// Inputs for the device range `at`.
    pub(super) fn new(at: Range<u64>) -> Inputs {
        let capacity = ((at.end - at.start) / 4) as usize;
        Inputs { base: at.start, capacity, words: Vec::with_capacity(capacity) }
    }

    /// Forgets the call before.
    pub(super) fn clear(&mut self) {
        self.words.clear();
    }

    /// Appends words and returns the address at which the device will find them, a multiple of 16.
    ///
    /// # Panics
    /// If the plan left no room: a defect of the plan.
    pub(super) fn push(&mut self, words: impl IntoIterator<Item = u32>) -> u64 {
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        let at = self.base + 4 * self.words.len() as u64;
        self.words.extend(words);
        assert!(self.words.len() <= self.capacity, "{} words of input", self.words.len());
        at
    }

    /// As [`Inputs::push`], followed by `fill` up to `len` words.
    pub(super) fn padded(&mut self, words: impl IntoIterator<Item = u32>, fill: u32, len: usize) -> u64 {
        let at = self.push(words);
        let end = ((at - self.base) / 4) as usize + len;
        assert!(end <= self.capacity, "{end} words of input");
        self.words.resize(end, fill);
        at
    }

    /// What was pushed.
    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }

    /// Sends all words.
    pub(super) fn send(&self, gpu: &Gpu, staging: &mut Staging) -> Result<()> {
        staging.upload(gpu, "sending inputs", self.base, cast_slice(&self.words))
    }
}
