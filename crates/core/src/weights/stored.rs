//! From bytes in a file to a tensor: the element types that files use, and their conversion.

use crate::{DType, Device, Result, Shape, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Element type in a file. Wider than [`DType`]: what candle lacks is widened when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    I64,
    F8E4M3,
    F16,
    BF16,
    F32,
    F64,
}

impl StoredType {
    /// By the name in a safetensors header.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "BOOL" => Self::Bool,
            "U8" => Self::U8,
            "I8" => Self::I8,
            "U16" => Self::U16,
            "I16" => Self::I16,
            "U32" => Self::U32,
            "I32" => Self::I32,
            "I64" => Self::I64,
            "F8_E4M3" => Self::F8E4M3,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "F32" => Self::F32,
            "F64" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// The tensor type that holds every value of this one.
    pub fn dtype(self) -> DType {
        match self {
            Self::Bool | Self::U8 => DType::U8,
            Self::I8 | Self::I16 => DType::I16,
            Self::U16 | Self::I32 => DType::I32,
            Self::U32 => DType::U32,
            Self::I64 => DType::I64,
            Self::F8E4M3 => DType::F8E4M3,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }

    /// `bytes`, little-endian elements in row-major order, as a tensor of `dtype`. Bytes past `shape` are ignored; the
    /// caller has checked that there are enough.
    pub fn tensor(self, bytes: &[u8], shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let bytes = &bytes[..shape.elem_count() * self.size()];
        let shape = shape.clone();
        let cpu = &Device::Cpu;
        let tensor = match (self, dtype) {
            (Self::F16, DType::F32) => Tensor::from_vec(f16_to_f32(bytes), shape, cpu)?,
            (Self::BF16, DType::F32) => {
                let wide = |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
                Tensor::from_vec(convert(bytes, wide), shape, cpu)?
            }
            (Self::F64, DType::F32) => Tensor::from_vec(convert(bytes, |b| f64::from_le_bytes(b) as f32), shape, cpu)?,
            (Self::Bool | Self::U8, _) => Tensor::from_vec(convert(bytes, |[b]: [u8; 1]| b), shape, cpu)?,
            (Self::I8, _) => Tensor::from_vec(convert(bytes, |b| i16::from(i8::from_le_bytes(b))), shape, cpu)?,
            (Self::U16, _) => Tensor::from_vec(convert(bytes, |b| i32::from(u16::from_le_bytes(b))), shape, cpu)?,
            (Self::I16, _) => Tensor::from_vec(convert(bytes, i16::from_le_bytes), shape, cpu)?,
            (Self::U32, _) => Tensor::from_vec(convert(bytes, u32::from_le_bytes), shape, cpu)?,
            (Self::I32, _) => Tensor::from_vec(convert(bytes, i32::from_le_bytes), shape, cpu)?,
            (Self::I64, _) => Tensor::from_vec(convert(bytes, i64::from_le_bytes), shape, cpu)?,
            (Self::F8E4M3, _) => Tensor::from_vec(convert(bytes, |[b]: [u8; 1]| f8e4m3(b)), shape, cpu)?,
            (Self::F16, _) => Tensor::from_vec(convert(bytes, f16::from_le_bytes), shape, cpu)?,
            (Self::BF16, _) => Tensor::from_vec(convert(bytes, bf16::from_le_bytes), shape, cpu)?,
            (Self::F32, _) => Tensor::from_vec(convert(bytes, f32::from_le_bytes), shape, cpu)?,
            (Self::F64, _) => Tensor::from_vec(convert(bytes, f64::from_le_bytes), shape, cpu)?,
        };
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }
}

/// Elements per task: small enough that a mapped file is read by every thread, large enough to be worth a task.
const CHUNK: usize = 1 << 16;

/// Elements of `N` bytes, converted on all threads. Files promise no alignment, so the bytes are not cast.
fn convert<const N: usize, T: Copy + Default + Send + Sync>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut out = vec![T::default(); elements.len()];
    out.par_chunks_mut(CHUNK).zip(elements.par_chunks(CHUNK)).for_each(|(out, elements)| {
        for (slot, &element) in out.iter_mut().zip(elements) {
            *slot = read(element);
        }
    });
    out
}

/// [`convert`] for the type that most weights are shared in, with the CPU's own instruction where it has one.
fn f16_to_f32(bytes: &[u8]) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<2>();
    let mut out = vec![0.0; elements.len()];
    out.par_chunks_mut(CHUNK).zip(elements.par_chunks(CHUNK)).for_each(|(out, elements)| {
        let mut aligned = [f16::ZERO; 512];
        for (out, elements) in out.chunks_mut(512).zip(elements.chunks(512)) {
            let aligned = &mut aligned[..elements.len()];
            for (slot, &element) in aligned.iter_mut().zip(elements) {
                *slot = f16::from_le_bytes(element);
            }
            aligned.convert_to_f32_slice(out);
        }
    });
    out
}

/// OCP 8-bit float, 4 exponent bits with bias 7, 3 mantissa bits, no infinities; 0x7f and 0xff are NaN.
fn f8e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let shape = Shape::from(65_536);
        let read = |stored: StoredType| {
            stored.tensor(&bytes, &shape, DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap()
        };
        for (bits, (half, brain)) in (0..=u16::MAX).zip(read(StoredType::F16).into_iter().zip(read(StoredType::BF16))) {
            let expected = f16::from_bits(bits).to_f32();
            assert!(half == expected || half.is_nan() && expected.is_nan(), "{bits:#x}");
            assert_eq!(brain.to_bits() >> 16, u32::from(bits));
        }
    }

    #[test]
    fn eight_bit_floats() {
        for (byte, value) in [(0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (0x01, 0.001_953_125), (0x08, 0.015_625)] {
            assert_eq!(f8e4m3(byte), value);
        }
        assert!(f8e4m3(0xff).is_nan());
    }

    #[test]
    fn integers_are_read_signed_and_unsigned() {
        let read = |stored: StoredType, bytes: &[u8]| {
            stored.tensor(bytes, &Shape::from(1), DType::F64, &Device::Cpu).unwrap().to_vec1::<f64>().unwrap()[0]
        };
        assert_eq!(read(StoredType::I8, &[0xff]), -1.0);
        assert_eq!(read(StoredType::U8, &[0xff]), 255.0);
        assert_eq!(read(StoredType::U16, &[0xff; 2]), 65_535.0);
        assert_eq!(read(StoredType::I64, &(-5_i64).to_le_bytes()), -5.0);
        assert_eq!(read(StoredType::F64, &0.1_f64.to_le_bytes()), 0.1);
    }
}
