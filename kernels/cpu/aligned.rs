//! Buffers that start at a cache line, so that no vector load crosses one.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

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

/// `len` zero bytes that are about to be written. Many are asked for in huge pages, since a fault for every small page
/// takes longer than what is written to it.
pub fn zeroed_bytes(len: usize) -> Vec<u8> {
    let bytes = vec![0; len];
    #[cfg(target_os = "linux")]
    {
        /// Below, the pages at both ends would count.
        const WORTH_BYTES: usize = 4 << 20;
        const HUGE_PAGE: usize = 2 << 20;
        let range = bytes.as_ptr_range();
        let start = (range.start as usize).next_multiple_of(HUGE_PAGE);
        if len >= WORTH_BYTES {
            let whole = range.end as usize / HUGE_PAGE * HUGE_PAGE - start;
            // SAFETY: whole pages of the vector, since the range is rounded inwards and not empty at this length. The
            // advice does not change what is in them, and a system without huge pages refuses it.
            unsafe { libc::madvise(start as *mut _, whole, libc::MADV_HUGEPAGE) };
        }
    }
    bytes
}

/// Bytes that others may read too, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Numbers that are read only: in a buffer of their own, or part of shared bytes.
pub enum Plane<T> {
    /// A buffer.
    Owned(Aligned<T>),
    /// A range of shared bytes; see [`Plane::shared`].
    Shared(SharedBytes, Range<usize>),
}

impl<T: Pod> Plane<T> {
    /// Numbers within `bytes`; `None` if the range is outside, not a whole number of them, or not
    /// aligned for them.
    pub fn shared(bytes: &SharedBytes, range: Range<usize>) -> Option<Plane<T>> {
        let part = (**bytes).as_ref().get(range.clone())?;
        bytemuck::try_cast_slice::<u8, T>(part).ok()?;
        Some(Plane::Shared(Arc::clone(bytes), range))
    }
}

impl<T: Pod> Deref for Plane<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Plane::Owned(buffer) => buffer,
            Plane::Shared(bytes, range) => bytemuck::cast_slice(&(**bytes).as_ref()[range.clone()]),
        }
    }
}
