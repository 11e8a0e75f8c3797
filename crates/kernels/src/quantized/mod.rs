//! Matrices whose numbers are stored in few bits each, in the block formats of GGUF files: what they mean ([`dequantize`]),
//! and products with them that read them as they are ([`matmul`]).
//!
//! A product rounds the other factor to bytes, 32 numbers with one scale, and adds products of integers: the instructions for
//! that do four times the work of those for floats, and the weights come from memory in a quarter or an eighth of the bytes.
//! With few rows of activations blocks are unpacked into registers ([`few`]); with many, into panels for a blocked product
//! ([`many`]). F32, F16 and BF16 are multiplied as floats ([`floats`]).
//!
//! Results are the same bits whatever the number of threads. They depend on the instruction set, on the number of rows of
//! activations (whether these are few or many), and on nothing else.

mod activations;
mod blocks;
mod dequantize;
mod few;
mod floats;
mod format;
mod k_blocks;
mod many;
#[cfg(test)]
mod tests;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use dequantize::dequantize;
pub use format::Format;

use crate::gemm::{self, Grid, Micro, Output};
use crate::isa::isa;
use crate::{fresh, precision, threads};
use activations::Activations;
use blocks::Blocks;
use std::marker::PhantomData;
use vectors::{Level, dispatch, level};

/// Up to so many rows of activations, weights are unpacked for each few of them.
const FEW: usize = 6;
/// Bytes of weights that are worth a task, times the rows of activations.
const TASK: usize = 48 << 10;
/// Tasks for each thread, so that threads finish together.
const TASKS_PER_THREAD: usize = 4;

/// `out (m, n) = x (m, k) w^T`, for `w` `(n, k)` in rows of blocks, on all threads.
///
/// The plain twin is the product of `x` with what [`dequantize`] makes of `w`. Each product of blocks differs from it by the
/// rounding of `x` to 8 bits: by less than half a 127th of the largest of 32 numbers for each factor. For the float formats
/// it differs by the order of sums alone. A number in `x` that is not finite makes its row's products NaN, where the format
/// is not a float's.
///
/// # Panics
/// The lengths do not fit the shapes, or `k` is not a whole number of blocks.
pub fn matmul(format: Format, w: &[u8], n: usize, k: usize, x: &[f32], m: usize, out: &mut [f32]) {
    assert_eq!(Some(out.len()), m.checked_mul(n), "matmul: output of another size");
    // SAFETY: `out` has room for `m` rows of `n`, and is this call's own.
    unsafe { multiply(level(), format, w, n, k, x, m, out.as_mut_ptr()) };
}

/// [`matmul`] into a new buffer.
///
/// # Panics
/// As there.
pub fn product(format: Format, w: &[u8], n: usize, k: usize, x: &[f32], m: usize) -> Vec<f32> {
    // SAFETY: a product writes all its outputs, for which there is room.
    unsafe { fresh::written(m * n, |out| multiply(level(), format, w, n, k, x, m, out.as_mut_ptr().cast())) }
}

/// # Safety
/// `out` may be written at `m * n` floats, and nobody else accesses them meanwhile.
#[allow(clippy::too_many_arguments)] // the shape of the problem, its factors and its result
unsafe fn multiply(level: Level, format: Format, w: &[u8], n: usize, k: usize, x: &[f32], m: usize, out: *mut f32) {
    let bytes = format.bytes_of(k).and_then(|row| row.checked_mul(n));
    assert_eq!(Some(w.len()), bytes, "matmul: {n} rows of {k} numbers as {format}");
    assert_eq!(Some(x.len()), m.checked_mul(k), "matmul: {m} rows of {k} numbers");
    let out = Output::matrix(out, m, n);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        // SAFETY: the caller's promise.
        unsafe { out.data.write_bytes(0, m * n) };
        return;
    }
    match format {
        Format::F32 | Format::F16 | Format::BF16 => floating(level, format, w, k, x, out),
        Format::Q4_0 => coded::<blocks::Q4_0>(level, w, k, x, out),
        Format::Q4_1 => coded::<blocks::Q4_1>(level, w, k, x, out),
        Format::Q5_0 => coded::<blocks::Q5_0>(level, w, k, x, out),
        Format::Q5_1 => coded::<blocks::Q5_1>(level, w, k, x, out),
        Format::Q8_0 => coded::<blocks::Q8_0>(level, w, k, x, out),
        Format::Q2_K => coded::<k_blocks::Q2K>(level, w, k, x, out),
        Format::Q3_K => coded::<k_blocks::Q3K>(level, w, k, x, out),
        Format::Q4_K => coded::<k_blocks::Q4K>(level, w, k, x, out),
        Format::Q5_K => coded::<k_blocks::Q5K>(level, w, k, x, out),
        Format::Q6_K => coded::<k_blocks::Q6K>(level, w, k, x, out),
        Format::IQ4_NL => coded::<blocks::Iq4Nl>(level, w, k, x, out),
        Format::IQ4_XS => coded::<k_blocks::Iq4Xs>(level, w, k, x, out),
    }
}

/// Runs `task(first, count)` for all `n` rows of weights, in pieces of whole `step`s, on as many threads as `work` bytes are
/// worth.
fn split(n: usize, step: usize, work: usize, task: impl Fn(std::ops::Range<usize>) + Sync + Send) {
    let wanted = (work / TASK).clamp(1, threads::count() * TASKS_PER_THREAD);
    let piece = n.div_ceil(wanted).next_multiple_of(step);
    threads::run(n.div_ceil(piece), |index| task(index * piece..n.min((index + 1) * piece)));
}

/// A product with blocks of codes; all sides are above 0, and `w`, `x` and `out` have the same.
fn coded<B: Blocks>(level: Level, w: &[u8], k: usize, x: &[f32], out: Output) {
    let level = level.min(vectors::level());
    let (m, n) = (out.rows, out.columns);
    if m <= FEW {
        let x = &Activations::new(level, x, k, 1, B::GROUPS);
        split(n, 8, w.len() * m, |rows| dispatch(level, few::Few::<B> { w, k, x, out, rows, blocks: PhantomData }));
    } else {
        let x = &Activations::new(level, x, k, level.rows(), B::GROUPS);
        let work = w.len().saturating_mul(m);
        split(n, level.lanes(), work, |rows| {
            dispatch(level, many::Many::<B> { w, k, x, out, rows, blocks: PhantomData });
        });
    }
}

/// A product with floats; the same is true of its arguments.
fn floating(level: Level, format: Format, w: &[u8], k: usize, x: &[f32], out: Output) {
    let (m, n) = (out.rows, out.columns);
    if m <= FEW {
        split(n, 8, w.len() * m, |rows| dispatch(level, floats::Few { format, w, k, x, out, rows }));
        return;
    }
    let micro = Micro::new(isa(), precision::current());
    let left = gemm::pack::Strided { data: x, line_stride: k, depth_stride: 1 };
    let right = floats::Rows { format, w, k };
    Grid::new(&micro, m, n, k, 1).run(1, |_, rows, columns| {
        // SAFETY: the grid hands each block of the output to one task; the factors have as many rows as it and `k` numbers in
        // each.
        unsafe { gemm::block(&micro, k, &left, &right, gemm::Start::Zero, out, rows, columns) };
    });
}
