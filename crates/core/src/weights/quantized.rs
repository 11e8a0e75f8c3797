//! A matrix of few bits per number, read where it lies.

use super::bytes::Bytes;
use crate::{Device, Error, Result, Tensor};
use conjure_kernels::fresh::zeros;
use conjure_kernels::quantized::{self, Format};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A matrix `(rows, columns)` in one of GGML's block formats: a window onto a mapped file or onto memory. Cloning copies
/// nothing.
#[derive(Clone)]
pub struct Quantized {
    format: Format,
    rows: usize,
    columns: usize,
    bytes: Arc<Bytes>,
    range: Range<usize>,
}

impl Quantized {
    /// A matrix whose blocks are in memory, rows one after the other.
    ///
    /// # Errors
    /// A row is not a whole number of blocks, or there are not as many bytes as the matrix needs.
    pub fn new(format: Format, rows: usize, columns: usize, bytes: Vec<u8>) -> Result<Self> {
        let range = 0..bytes.len();
        Self::window(format, rows, columns, Arc::new(Bytes::Memory(bytes)), range).ok_or_else(|| {
            let block = format.block();
            Error::request(format!(
                "{rows} x {columns} numbers do not fit the bytes given in blocks of {block} {format}"
            ))
        })
    }

    /// The matrix in these bytes of a file; nothing where they are not exactly as many as it needs.
    pub(super) fn window(
        format: Format,
        rows: usize,
        columns: usize,
        bytes: Arc<Bytes>,
        range: Range<usize>,
    ) -> Option<Self> {
        let needed = format.bytes_of(columns)?.checked_mul(rows)?;
        let fits = bytes.get(range.clone()).is_some_and(|bytes| bytes.len() == needed);
        fits.then_some(Self { format, rows, columns, bytes, range })
    }

    /// How the numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: the outputs of a linear layer, the vocabulary of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The blocks of all rows.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }

    /// The blocks of one row.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.row_bytes();
        &self.bytes()[row * bytes..][..bytes]
    }

    /// Some of the rows, nothing copied; `None` where there are not so many.
    pub fn slice(&self, rows: Range<usize>) -> Option<Self> {
        if rows.start > rows.end || rows.end > self.rows {
            return None;
        }
        let (first, bytes) = (self.range.start, self.row_bytes());
        let range = first + rows.start * bytes..first + rows.end * bytes;
        Some(Self { rows: rows.len(), range, ..self.clone() })
    }

    /// The numbers: `(rows, columns)` in f32, in main memory.
    ///
    /// # Errors
    /// Out of memory.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut numbers = zeros(self.rows * self.columns);
        quantized::dequantize(self.format, self.bytes(), &mut numbers);
        Ok(Tensor::from_vec(numbers, (self.rows, self.columns), &Device::Cpu)?)
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.range.len() / self.rows.max(1)
    }
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quantized({} x {} {})", self.rows, self.columns, self.format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_windows_onto_the_same_bytes() {
        let bytes: Vec<u8> = (0..3 * 4_u8).collect();
        let matrix = Quantized::new(Format::BF16, 3, 2, bytes).unwrap();
        assert_eq!(matrix.row(1), [4, 5, 6, 7]);
        let last = matrix.slice(1..3).unwrap().slice(1..2).unwrap();
        assert_eq!((last.rows(), last.columns(), last.bytes()), (1, 2, &[8, 9, 10, 11][..]));
        assert!(std::ptr::eq(last.bytes(), &matrix.bytes()[8..]));
        assert_eq!(last.dequantize().unwrap().dims(), [1, 2]);
        assert!(matrix.slice(2..4).is_none());
        assert!(matrix.slice(3..3).unwrap().bytes().is_empty());
    }

    #[test]
    fn bytes_that_are_not_the_matrix_are_refused() {
        for (rows, columns, bytes) in [(1, 32, 33), (2, 32, 34), (1, 31, 34), (usize::MAX, 32, 34)] {
            let error = Quantized::new(Format::Q8_0, rows, columns, vec![0; bytes]).expect_err("accepted");
            assert!(error.to_string().contains("in blocks of 32 Q8_0"), "{error}");
        }
    }
}
