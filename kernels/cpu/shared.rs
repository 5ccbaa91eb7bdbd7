//! A slice that several threads write, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A `&mut [T]` split among threads at run time.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the type hands out parts only through `part`, whose caller promises that no two threads
// hold overlapping ones.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    ///
    /// # Safety
    /// No other part that overlaps `range` may be alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {} elements", self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
