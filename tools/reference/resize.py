"""Resized pictures of Pillow and PyTorch, for the tests of crates/core/src/ops/resize.rs.

Run: python tools/reference/resize.py [file]
Writes inputs.*, pillow.* and torch.*, named by shapes; versions and seed in the header.
"""

import sys
from pathlib import Path

import numpy
import PIL
import torch
from PIL import Image
from safetensors.torch import save_file

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/core/tests/fixtures/resize.safetensors")
# Larger, smaller, by whole and broken factors, each side its own way, and from a single pixel.
SIZES = [((9, 7), (18, 14)), ((8, 6), (32, 24)), ((24, 20), (12, 10)), ((17, 23), (6, 41)), ((5, 5), (5, 5)), ((1, 4), (3, 2))]

torch.manual_seed(0)
tensors = {}
for (h, w), (height, width) in SIZES:
    name = f"{h}x{w}_{height}x{width}"
    x = torch.randn(1, 2, h, w)
    planes = [Image.fromarray(plane.numpy(), mode="F").resize((width, height), Image.Resampling.BICUBIC) for plane in x[0]]
    tensors[f"inputs.{name}"] = x
    tensors[f"pillow.{name}"] = torch.from_numpy(numpy.stack([numpy.asarray(plane) for plane in planes]))[None]
    tensors[f"torch.{name}"] = torch.nn.functional.interpolate(x, (height, width), mode="bicubic", antialias=True)
shuffled = torch.randn(2, 18, 2, 3)
tensors["inputs.shuffle"] = shuffled
tensors["torch.shuffle"] = torch.nn.functional.pixel_shuffle(shuffled, 3)
made_by = f"tools/reference/resize.py, torch {torch.__version__}, Pillow {PIL.__version__}"
save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FILE, {"made_by": made_by, "seed": "0"})
