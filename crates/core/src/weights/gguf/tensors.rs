//! The table of tensors in a GGUF header: what each is, and where it lies.

use super::reader::Reader;
use crate::weights::TensorInfo;
use crate::weights::safetensors::checked_bytes;
use crate::weights::stored::StoredType;
use crate::{DType, Error, Result, Shape};
use conjure_kernels::quantized::Format;
use std::collections::BTreeMap;
use std::ops::Range;

/// GGML's own limit.
const MAX_RANK: u32 = 4;

/// The types of GGML that are not read, by the numbers that files use.
const OTHERS: [(u32, &str); 22] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// How a tensor's numbers are stored.
#[derive(Clone, Copy)]
pub(super) enum Stored {
    /// One by one, in a type that models seldom use.
    Plain(StoredType),
    /// One of the formats that weights are in.
    Blocks(Format),
}

impl Stored {
    fn from_number(number: u32) -> Option<Self> {
        if let Some(format) = Format::from_number(number) {
            return Some(Self::Blocks(format));
        }
        Some(Self::Plain(match number {
            24 => StoredType::I8,
            25 => StoredType::I16,
            26 => StoredType::I32,
            27 => StoredType::I64,
            28 => StoredType::F64,
            _ => return None,
        }))
    }

    /// Bytes of a tensor; `None` where its rows are not whole blocks or its shape is past reason.
    fn bytes(self, shape: &[usize]) -> Option<usize> {
        match self {
            Self::Plain(stored) => checked_bytes(shape, stored),
            Self::Blocks(format) => {
                checked_bytes(shape, StoredType::F32)?; // nor may its floats be past reason
                format.bytes_of(shape.last().copied().unwrap_or(1))?;
                format.bytes_of(shape.iter().product())
            }
        }
    }

    fn info(self, shape: Vec<usize>) -> TensorInfo {
        match self {
            Self::Plain(stored) => TensorInfo::new(stored.dtype(), shape),
            Self::Blocks(format) => {
                let dtype = match format {
                    Format::F16 => DType::F16,
                    Format::BF16 => DType::BF16,
                    _ => DType::F32,
                };
                let format = (!format.is_float()).then_some(format);
                TensorInfo { format, ..TensorInfo::new(dtype, Shape::from(shape)) }
            }
        }
    }
}

/// How a tensor is stored and which bytes of the file it takes.
pub(super) struct Entry {
    pub stored: Stored,
    pub range: Range<usize>,
}

/// Reads `count` entries and holds them against a file of `file` bytes whose data begin at the first multiple of `alignment`
/// after the header.
pub(super) fn read(
    reader: &mut Reader,
    count: usize,
    alignment: usize,
    file: usize,
) -> Result<(BTreeMap<String, TensorInfo>, BTreeMap<String, Entry>)> {
    let mut listed = Vec::new();
    for i in 0..count {
        let name = reader.name(format_args!("the name of tensor {i}"))?;
        let rank = reader.u32(format_args!("the number of dimensions of tensor {name}"))?;
        if rank > MAX_RANK {
            return Err(
                reader.damaged(format!("tensor {name} claims {rank} dimensions, more than the {MAX_RANK} allowed"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = reader.u64(format_args!("the shape of tensor {name}"))?;
            shape.push(usize::try_from(size).unwrap_or(usize::MAX));
        }
        shape.reverse(); // GGML names the fastest dimension first
        let number = reader.u32(format_args!("the type of tensor {name}"))?;
        let offset = reader.u64(format_args!("the offset of tensor {name}"))?;
        let stored = Stored::from_number(number).ok_or_else(|| unknown_type(reader, name, number))?;
        let size = stored.bytes(&shape).ok_or_else(|| misshapen(reader, name, stored, &shape))?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(reader.damaged(format!("tensor {name} begins at {offset}, not a multiple of {alignment}")));
        }
        listed.push((name, stored, shape, size, offset));
    }

    let data = reader.position().next_multiple_of(alignment) as u64;
    let (mut infos, mut entries, mut ranges) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (name, stored, shape, size, offset) in listed {
        // Sums that do not fit are past the end of every file.
        let start = data.saturating_add(offset);
        let end = start.saturating_add(size as u64);
        if end > file as u64 {
            let missing = end - file as u64;
            return Err(reader.cut(format!("tensor {name} ends {missing} bytes after the end of the file")));
        }
        let range = start as usize..end as usize;
        if !range.is_empty() {
            ranges.push((range.clone(), name));
        }
        infos.insert(name.to_owned(), stored.info(shape));
        if entries.insert(name.to_owned(), Entry { stored, range }).is_some() {
            return Err(reader.damaged(format!("tensor {name} is listed twice")));
        }
    }
    ranges.sort_by_key(|(range, _)| range.start);
    for pair in ranges.windows(2) {
        if let [(before, other), (range, name)] = pair
            && range.start < before.end
        {
            return Err(reader.damaged(format!("tensor {name} overlaps the tensor {other}")));
        }
    }
    Ok((infos, entries))
}

fn unknown_type(reader: &Reader, name: &str, number: u32) -> Error {
    let own = match OTHERS.iter().find(|(other, _)| *other == number) {
        Some((_, own)) => format!("the type {own}, which is not read"),
        None => format!("the unknown type {number}"),
    };
    let known: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
    reader
        .damaged(format!("tensor {name} has {own}"))
        .with_help(format!("these types are read: {}; get the model in one of them", known.join(", ")))
}

fn misshapen(reader: &Reader, name: &str, stored: Stored, shape: &[usize]) -> Error {
    match (stored, shape.last().copied().unwrap_or(1)) {
        (Stored::Blocks(format), columns) if !columns.is_multiple_of(format.block()) => {
            let block = format.block();
            reader.damaged(format!("tensor {name} has rows of {columns} numbers, but {format} has blocks of {block}"))
        }
        _ => reader.damaged(format!("tensor {name} has the impossible shape {shape:?}")),
    }
}
