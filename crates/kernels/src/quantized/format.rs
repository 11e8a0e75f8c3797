//! The block formats of GGUF files: their names, numbers and sizes.

/// How the numbers of a tensor are stored in a GGUF file (GGML's types), bit for bit and little-endian.
///
/// All but the three float formats cut a row into blocks that share a scale: a number is `scale * code + offset`, with a
/// code of 2 to 8 bits. The formats with `K` in their name put 256 numbers into a block, and give each 16 or 32 of them a
/// scale of 4 to 8 bits, in units of one f16 for the whole block.
#[allow(non_camel_case_types)] // the names that files and tools use
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// Floats.
    F32,
    /// Half-precision floats.
    F16,
    /// Floats without their lower 16 bits.
    BF16,
    /// 32 codes of 4 bits with an f16 scale, around 0.
    Q4_0,
    /// 32 codes of 4 bits with an f16 scale and an f16 offset.
    Q4_1,
    /// 32 codes of 5 bits with an f16 scale, around 0.
    Q5_0,
    /// 32 codes of 5 bits with an f16 scale and an f16 offset.
    Q5_1,
    /// 32 signed bytes with an f16 scale.
    Q8_0,
    /// 256 codes of 2 bits; each 16 with a scale and an offset of 4 bits.
    Q2_K,
    /// 256 codes of 3 bits around 0; each 16 with a scale of 6 bits.
    Q3_K,
    /// 256 codes of 4 bits; each 32 with a scale and an offset of 6 bits.
    Q4_K,
    /// 256 codes of 5 bits; each 32 with a scale and an offset of 6 bits.
    Q5_K,
    /// 256 codes of 6 bits around 0; each 16 with a scale of 8 bits.
    Q6_K,
    /// 32 codes of 4 bits, which choose from 16 uneven steps, with an f16 scale.
    IQ4_NL,
    /// 256 codes of 4 bits, which choose from 16 uneven steps; each 32 with a scale of 6 bits.
    IQ4_XS,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// Numbers in a block. A row of a matrix is a whole number of blocks.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        }
    }

    /// The bytes that `numbers` take in one row, or in whole rows; nothing where that is not a whole number of blocks, or
    /// more than can be counted.
    pub fn bytes_of(self, numbers: usize) -> Option<usize> {
        if numbers.is_multiple_of(self.block()) { (numbers / self.block()).checked_mul(self.bytes()) } else { None }
    }

    /// The name that files and tools use.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
        }
    }

    /// The number that stands for the format in a GGUF file.
    pub fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::IQ4_NL => 20,
            Self::IQ4_XS => 23,
            Self::BF16 => 30,
        }
    }

    /// The format that a number in a GGUF file stands for, if it is one of these.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.number() == number)
    }

    /// Whether numbers are stored one by one, as floats.
    pub fn is_float(self) -> bool {
        self.block() == 1
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
