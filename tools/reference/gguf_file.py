"""A GGUF file with a tensor of every type that is read, for crates/core/tests/it/gguf.rs.

Run: python tools/reference/gguf_file.py
Writes crates/core/tests/fixtures/types.gguf, and types_expected.safetensors with each tensor as the gguf package dequantises
it; versions in its header. What the package cannot quantise itself (the K and IQ4_XS blocks) is random bytes with sane scales.
(The script is not called gguf.py: it would be imported in place of the package.)
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

rng = np.random.default_rng(0)
folder = Path(__file__).parents[2] / "crates/core/tests/fixtures"
ROWS, COLUMNS = 3, 256


def random_blocks(kind):
    """Rows of random blocks, every f16 in them between 0.01 and 0.02."""
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLUMNS // numbers, size), dtype=np.uint8)
    halves = {Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
              Type.IQ4_NL: [0], Type.IQ4_XS: [0]}[kind]
    for at in halves:
        scales = rng.uniform(0.01, 0.02, len(blocks)).astype(np.float16)
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


writer = gguf.GGUFWriter(folder / "types.gguf", "llama")
writer.add_name("every type")
writer.add_uint32("llama.context_length", 128)
writer.add_float32("llama.rope.freq_base", 10000.0)
writer.add_bool("tokenizer.ggml.add_bos_token", True)
writer.add_uint64("test.u64", 2**40)
writer.add_int8("test.i8", -5)
writer.add_float64("test.f64", 0.1)
writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "é", "猫", ""])
writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.25, 0.5, 1.0])
writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1, 1])
writer.add_string("tokenizer.ggml.model", "gpt2")

expected = {}
for kind in (Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0):
    x = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    data = quantize(x, kind)
    expected[kind.name] = dequantize(data, kind)
    writer.add_tensor(f"{kind.name}.weight", data, raw_dtype=kind)
for kind in (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS):
    data = random_blocks(kind)
    expected[kind.name] = dequantize(data, kind)
    writer.add_tensor(f"{kind.name}.weight", data, raw_dtype=kind)
for kind, dtype in ((Type.I32, np.int32), (Type.I64, np.int64), (Type.F64, np.float64)):
    data = np.arange(6, dtype=dtype).reshape(3, 2) - 2
    expected[kind.name] = data.astype(np.float32)
    writer.add_tensor(f"{kind.name}.weight", data)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

made_by = f"tools/reference/gguf_file.py, gguf {__import__('importlib.metadata').metadata.version('gguf')}"
tensors = {f"{name}.weight": np.ascontiguousarray(x, dtype=np.float32) for name, x in expected.items()}
save_file(tensors, folder / "types_expected.safetensors", {"made_by": made_by, "seed": "0"})
