//! The blocked matrix product that linear layers, convolutions and their gradients are made of.
//!
//! The five loops of BLIS (Van Zee & van de Geijn 2015): the output is cut into blocks whose packed factors fit the
//! caches, and each block into tiles that fit the registers. Three things are plugged in: how a factor is packed
//! ([`pack::Pack`]), the micro-kernel ([`micro::Micro`]), and what an output begins as ([`Start`]).
//!
//! An element of the output is the sum of its products in chunks of a depth that only the shapes decide, added in order.
//! Its bits therefore depend neither on the number of threads nor on how the output is cut.

mod micro;
pub(crate) mod pack;

use crate::isa::{Isa, isa};
use crate::{fresh, precision, threads};
pub(crate) use micro::Micro;
use micro::{Base, Format, MAX_TILE, Tile};
use pack::{Pack, Panels, Strided};
use std::cell::Cell;
use std::ops::Range;

/// A batch of matrices in a slice. Element `(i, j)` of matrix `b` is
/// `data[offsets[b] + i * row_stride + j * column_stride]`; offsets may repeat.
#[derive(Clone, Copy, Debug)]
pub struct Matrices<'a> {
    /// Where the values are.
    pub data: &'a [f32],
    /// Where each matrix begins.
    pub offsets: &'a [usize],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub column_stride: usize,
}

impl<'a> Matrices<'a> {
    /// One row-major matrix with `columns` columns.
    pub fn row_major(data: &'a [f32], columns: usize) -> Self {
        Self { data, offsets: &[0], row_stride: columns, column_stride: 1 }
    }

    /// The transpose of each matrix.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn assert_bounds(&self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
            assert!(self.offsets.iter().all(|offset| offset + last < self.data.len()), "matrix outside its slice");
        }
    }
}

/// What an element of the output is before products are added to it.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Zero: whatever is in the output is overwritten.
    Zero,
    /// One value for each row.
    Rows(&'a [f32]),
    /// One value for each column.
    Columns(&'a [f32]),
    /// What is in the output already.
    Keep,
}

/// `out[b] = start + a[b] b[b]` for each matrix of the batch: `a` is `m x k`, `b` is `k x n`, `out` is
/// `(batch, m, n)`, row-major.
///
/// # Panics
/// The lengths of the slices and of the two lists of offsets do not fit the shapes.
pub fn matmul(m: usize, n: usize, k: usize, a: Matrices, b: Matrices, start: Start, out: &mut [f32]) {
    matmul_on(isa(), m, n, k, a, b, start, out);
}

/// [`matmul`] into a new buffer.
///
/// # Panics
/// The lengths do not fit the shapes, or the start is [`Start::Keep`]: there is nothing to keep.
pub fn product(m: usize, n: usize, k: usize, a: Matrices, b: Matrices, start: Start) -> Vec<f32> {
    assert!(!matches!(start, Start::Keep), "product: nothing to keep");
    // SAFETY: the blocks of the grid cover every matrix of the output, and each block is written whole.
    unsafe {
        fresh::written(a.offsets.len() * m * n, |out| multiply(isa(), m, n, k, a, b, start, out.as_mut_ptr().cast()))
    }
}

#[allow(clippy::too_many_arguments)] // the shape of the problem, its factors and its result
fn matmul_on(isa: Isa, m: usize, n: usize, k: usize, a: Matrices, b: Matrices, start: Start, out: &mut [f32]) {
    assert_eq!(out.len(), a.offsets.len() * m * n, "matmul: output of another size");
    // SAFETY: `out` has room for all matrices, and is this call's own.
    unsafe { multiply(isa, m, n, k, a, b, start, out.as_mut_ptr()) };
}

/// # Safety
/// `out` may be written at `a.offsets.len() * m * n` floats, and read there if they are to be kept; nobody else accesses
/// them meanwhile. The processor has `isa`.
#[allow(clippy::too_many_arguments)] // the shape of the problem, its factors and its result
unsafe fn multiply(isa: Isa, m: usize, n: usize, k: usize, a: Matrices, b: Matrices, start: Start, out: *mut f32) {
    let batch = a.offsets.len();
    assert_eq!(batch, b.offsets.len(), "matmul: batches differ");
    a.assert_bounds(m, k);
    b.assert_bounds(k, n);
    let micro = Micro::new(isa, precision::current());
    let factor = |matrices: &Matrices<'_>, index: usize| matrices.offsets[index].min(matrices.data.len());
    let out = Output::matrix(out, m, n);
    let plan = Grid::new(&micro, m, n, k, batch);
    plan.run(batch, |index, rows, columns| {
        let left =
            Strided { data: &a.data[factor(&a, index)..], line_stride: a.row_stride, depth_stride: a.column_stride };
        let right =
            Strided { data: &b.data[factor(&b, index)..], line_stride: b.column_stride, depth_stride: b.row_stride };
        // SAFETY: the grid hands each block of each matrix of the output, which `out` has room for, to one task.
        unsafe { block(&micro, k, &left, &right, start, out.offset(index * m * n), rows, columns) };
    });
}

/// A matrix that several tasks write, each its own block: some row-major matrices side by side, all with the same rows.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub data: *mut f32,
    /// Distance between rows.
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    /// Columns of each matrix.
    pub side: usize,
    /// Distance between matrices.
    pub next: usize,
}

// SAFETY: a pointer to floats; whoever writes through it promises that no two threads write the same element.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// One matrix without gaps.
    pub fn matrix(data: *mut f32, rows: usize, columns: usize) -> Self {
        Self { data, stride: columns, rows, columns, side: columns.max(1), next: 0 }
    }

    /// The matrix that begins `offset` floats further on.
    ///
    /// # Safety
    /// That place is within the same allocation.
    pub unsafe fn offset(self, offset: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { data: unsafe { self.data.add(offset) }, ..self }
    }

    /// The distance of an element from the first.
    fn at(&self, row: usize, column: usize) -> usize {
        column / self.side * self.next + row * self.stride + column % self.side
    }

    /// The pieces of `count` columns from `column` on that lie in one matrix each: where it begins among them, and its
    /// columns.
    fn pieces(&self, column: usize, count: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let side = self.side;
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = from;
            let length = (side - (column + first) % side).min(count - first);
            from += length;
            (length > 0).then_some((first, length))
        })
    }
}

/// How the outputs of a batch are cut into tasks.
pub(crate) struct Grid {
    m: usize,
    n: usize,
    tile_m: usize,
    tile_n: usize,
}

impl Grid {
    /// Few enough tasks that packing stays cheap, enough that threads finish together.
    pub fn new(micro: &Micro, m: usize, n: usize, k: usize, batch: usize) -> Self {
        const TASKS_PER_THREAD: usize = 2;
        const SMALL: usize = 1 << 18; // multiply-adds that are not worth a second thread
        let threads = threads::count();
        let wanted = if threads == 1 || m * n * k * batch.max(1) < SMALL {
            1
        } else {
            (threads * TASKS_PER_THREAD).div_ceil(batch.max(1))
        };
        // Each cut along the rows packs the right factor once more, each cut along the columns the left one.
        let down = (1..=wanted).min_by_key(|down| down * n + wanted.div_ceil(*down) * m).unwrap_or(1);
        let across = wanted.div_ceil(down);
        Self {
            m,
            n,
            tile_m: m.div_ceil(down).next_multiple_of(micro.rows),
            tile_n: n.div_ceil(across).next_multiple_of(micro.columns),
        }
    }

    /// Runs `task(index, rows, columns)` for every block of every matrix of a batch, on the threads.
    pub fn run(&self, batch: usize, task: impl Fn(usize, Range<usize>, Range<usize>) + Sync + Send) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        let (down, across) = (self.m.div_ceil(self.tile_m), self.n.div_ceil(self.tile_n));
        threads::run(batch * down * across, |index| {
            let (matrix, block) = (index / (down * across), index % (down * across));
            let (row, column) = (block / across * self.tile_m, block % across * self.tile_n);
            task(matrix, row..self.m.min(row + self.tile_m), column..self.n.min(column + self.tile_n));
        });
    }
}

/// Depth of a packed block. Each further chunk of depth reads and writes the whole output once more, which costs more than
/// panels that leave the first-level cache: they are read in order, and the second level delivers them in time.
const DEPTH: usize = 512;
/// Rows of a packed block of the left factor: with [`DEPTH`], half of a 1 MiB second-level cache.
const ROWS: usize = 240;
/// Columns of a packed block of the right factor.
const COLUMNS: usize = 1024;

/// Buffers that a thread keeps, because fresh memory costs a page fault for every 4 KiB.
#[derive(Default)]
struct Buffers {
    left: Vec<f32>,
    right: Vec<f32>,
    scratch: Vec<f32>,
    unpacked: Vec<f32>,
}

thread_local! {
    static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Computes the block `rows` x `columns` of `out = start + left * right` on the current thread.
///
/// # Safety
/// The block lies within `out`, whose memory may be written there, and nobody else accesses it meanwhile. The processor
/// has `micro.isa`.
#[allow(clippy::too_many_arguments)] // the shape of the problem, its factors and its result
pub(crate) unsafe fn block(
    micro: &Micro,
    k: usize,
    left: &impl Pack,
    right: &impl Pack,
    start: Start,
    out: Output,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let (mr, nr) = (micro.rows, micro.columns);
    if k == 0 {
        // SAFETY: the block may be written.
        unsafe { begin(start, out, rows, columns) };
        return;
    }
    let step = left.depth_step().max(right.depth_step());
    // Panels of pairs are half as long.
    let most = if micro.format == Format::Pairs { 2 * DEPTH } else { DEPTH };
    let chunks = k.div_ceil(most.max(step));
    let depth_size = k.div_ceil(chunks).next_multiple_of(step);
    let mut buffers = BUFFERS.take().unwrap_or_default();
    let Buffers { left: packed_left, right: packed_right, scratch, unpacked } = &mut *buffers;
    for column in columns.clone().step_by(COLUMNS) {
        let block_columns = column..columns.end.min(column + COLUMNS);
        for from in (0..k).step_by(depth_size) {
            let depth = from..k.min(from + depth_size);
            let words = micro.words(depth.len());
            let right_panels = resized(packed_right, block_columns.len().next_multiple_of(nr) * words);
            let mut panels = Panels::new(micro, nr, depth.len(), right_panels, unpacked);
            right.pack(micro.isa, block_columns.clone(), depth.clone(), &mut panels, scratch);
            for row in rows.clone().step_by(ROWS) {
                let block_rows = row..rows.end.min(row + ROWS);
                let left_panels = resized(packed_left, block_rows.len().next_multiple_of(mr) * words);
                let mut panels = Panels::new(micro, mr, depth.len(), left_panels, unpacked);
                left.pack(micro.isa, block_rows.clone(), depth.clone(), &mut panels, scratch);
                for (b, j) in right_panels.chunks_exact(nr * words).zip(block_columns.clone().step_by(nr)) {
                    for (a, i) in left_panels.chunks_exact(mr * words).zip(block_rows.clone().step_by(mr)) {
                        let (used_rows, used_columns) = (mr.min(block_rows.end - i), nr.min(block_columns.end - j));
                        debug_assert!(i + used_rows <= out.rows && j + used_columns <= out.columns);
                        let base = match start {
                            _ if from > 0 => Base::Output,
                            Start::Zero => Base::Zero,
                            Start::Rows(values) => Base::Rows(values[i..i + used_rows].as_ptr()),
                            Start::Columns(values) => Base::Columns(values[j..j + used_columns].as_ptr()),
                            Start::Keep => Base::Output,
                        };
                        let tile = Tile {
                            depth: words,
                            a: a.as_ptr(),
                            b: b.as_ptr(),
                            c: out.data.wrapping_add(out.at(i, j)),
                            ldc: out.stride,
                            used_rows,
                            used_columns,
                            base,
                        };
                        // SAFETY: the tile lies within the block, the panels have the micro-kernel's widths.
                        unsafe {
                            if j % out.side + used_columns <= out.side {
                                micro.run(tile);
                            } else {
                                run_apart(micro, tile, out, i, j);
                            }
                        }
                    }
                }
            }
        }
    }
    BUFFERS.set(Some(buffers));
}

/// Computes a tile that lies in several matrices of the output: whole first, then handed out.
///
/// # Safety
/// As [`Micro::run`], for the tile at row `i` and column `j` of `out`.
unsafe fn run_apart(micro: &Micro, tile: Tile, out: Output, i: usize, j: usize) {
    let mut whole = [0f32; MAX_TILE];
    assert!(micro.rows * micro.columns <= MAX_TILE);
    let pieces = |row: usize| {
        out.pieces(j, tile.used_columns).map(move |(first, count)| (row * micro.columns + first, row, first, count))
    };
    // SAFETY: the pieces are the tile's columns, whose places in the output may be accessed.
    unsafe {
        if matches!(tile.base, Base::Output) {
            for (to, row, first, count) in (0..tile.used_rows).flat_map(pieces) {
                let from = out.data.add(out.at(i + row, j + first));
                std::ptr::copy_nonoverlapping(from, whole.as_mut_ptr().add(to), count);
            }
        }
        micro.run(Tile { c: whole.as_mut_ptr(), ldc: micro.columns, ..tile });
        for (from, row, first, count) in (0..tile.used_rows).flat_map(pieces) {
            let to = out.data.add(out.at(i + row, j + first));
            std::ptr::copy_nonoverlapping(whole.as_ptr().add(from), to, count);
        }
    }
}

/// Writes a block that no products are added to.
///
/// # Safety
/// As [`block`].
unsafe fn begin(start: Start, out: Output, rows: Range<usize>, columns: Range<usize>) {
    for i in rows {
        for j in columns.clone() {
            let value = match start {
                Start::Zero => 0.0,
                Start::Rows(values) => values[i],
                Start::Columns(values) => values[j],
                Start::Keep => return,
            };
            // SAFETY: element `(i, j)` of the block.
            unsafe { out.data.add(out.at(i, j)).write(value) };
        }
    }
}

/// The first `len` floats of a buffer that only ever grows.
pub(crate) fn resized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

#[cfg(test)]
pub(crate) mod tests;
