//! One buffer written by several threads, each in its own part.

use std::marker::PhantomData;

/// A mutable slice whose parts are handed to tasks that run at the same time.
pub(crate) struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part`'s contract forbids two threads from holding the same element.
unsafe impl Sync for Disjoint<'_> {}
// SAFETY: a `&mut [f32]` may be sent, and this is one.
unsafe impl Send for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    /// Takes the buffer for as long as parts of it are in use.
    pub(crate) fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), borrow: PhantomData }
    }

    /// `count` elements from `first` on.
    ///
    /// # Safety
    /// No element is in two parts that live at the same time.
    ///
    /// # Panics
    /// The part does not lie in the buffer.
    #[allow(clippy::mut_from_ref)] // The caller vouches that parts do not overlap.
    pub(crate) unsafe fn part(&self, first: usize, count: usize) -> &mut [f32] {
        assert!(first <= self.len && count <= self.len - first, "part {first}+{count} of {}", self.len);
        // SAFETY: inside the borrowed buffer, and the caller vouches that nobody else has these elements.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
