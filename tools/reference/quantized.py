"""Random blocks of GGUF files and the numbers that the `gguf` package reads in them, for the tests of
crates/kernels/src/quantized.

Run: python tools/reference/quantized.py [file]
Writes, for each format in the order of NAMES and with nothing in between: the blocks of 2048 numbers, then these as f32.
Half of the blocks have scales of an ordinary size, the others are random bytes altogether: NaN and infinity happen.
"""

import sys
from pathlib import Path

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/kernels/tests/fixtures/quantized.bin")
NAMES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
# Where the f16 in a block are, if not only at its beginning.
HALVES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

random = numpy.random.default_rng(0)
with FILE.open("wb") as file:
    for name in NAMES:
        format = GGMLQuantizationType[name]
        size, bytes_ = GGML_QUANT_SIZES[format]
        blocks = random.integers(0, 256, (2048 // size, bytes_), dtype=numpy.uint8)
        if size > 1:
            for at in HALVES.get(name, [0]):
                ordinary = random.normal(0, 0.05, (len(blocks), 1)).astype(numpy.float16).view(numpy.uint8)
                blocks[::2, at : at + 2] = ordinary[::2]
        numbers = dequantize(blocks.reshape(-1), format) if name != "F16" else blocks.view(numpy.float16).astype(numpy.float32)
        file.write(blocks.tobytes() + numpy.ascontiguousarray(numbers, dtype="<f4").tobytes())
