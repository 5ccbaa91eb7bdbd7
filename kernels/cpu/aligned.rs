//! Buffers that start at a cache line, so that no vector load crosses one.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// A cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A fixed number of numbers, starting at a multiple of 64 bytes.
#[derive(Clone)]
pub struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    _type: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros. The system hands out the memory as it is first written.
    pub fn zeroed(len: usize) -> Aligned<T> {
        let lines = bytemuck::zeroed_vec((len * size_of::<T>()).div_ceil(size_of::<Line>()));
        Aligned { lines, len, _type: PhantomData }
    }

    /// Makes room for `len` numbers; what was there may be lost.
    pub fn grow(&mut self, len: usize) {
        if len > self.len {
            *self = Aligned::zeroed(len);
        }
    }
}

impl<T: Pod> Default for Aligned<T> {
    fn default() -> Self {
        Aligned::zeroed(0)
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
