//! New buffers for results. Zeroing one on a single thread takes as long as many a kernel that then overwrites it.

use crate::threads;
use std::mem::MaybeUninit;

/// `len` zeros, written by all threads, so that they share the page faults of new memory too.
pub fn zeros(len: usize) -> Vec<f32> {
    const CHUNK: usize = 1 << 16;
    let fill = |out: &mut [MaybeUninit<f32>]| {
        threads::run_chunks(out, CHUNK, |_, piece| piece.fill(MaybeUninit::new(0.0)));
    };
    // SAFETY: the pieces are the whole buffer.
    unsafe { written(len, fill) }
}

/// `len` floats, as `write` leaves them.
///
/// # Safety
/// `write` writes every element.
pub(crate) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    write(&mut out.spare_capacity_mut()[..len]);
    // SAFETY: the caller vouches that all `len` elements, for which there is room, are written.
    unsafe { out.set_len(len) };
    out
}
