"""Blocks of diffusers with random weights, for crates/core/tests/it/blocks.rs.

Run: python tools/reference/blocks.py
Writes crates/core/tests/fixtures/blocks.safetensors: CASE.weights.*, CASE.x, CASE.temb, CASE.y; versions in its header.
"""

from pathlib import Path

import diffusers
import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import save_file

torch.manual_seed(0)
tensors = {}


def record(case, module, *inputs, **options):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
        tensors[f"{case}.y"] = module(*inputs, **options)
    for name, value in zip(("x", "temb"), inputs):
        if value is not None:
            tensors[f"{case}.{name}"] = value
    for name, value in module.state_dict().items():
        tensors[f"{case}.weights.{name}"] = value


x, temb = torch.randn(2, 12, 7, 5), torch.randn(2, 9)
record("resnet_plain", ResnetBlock2D(in_channels=12, temb_channels=None, groups=3), x, None)
record("resnet_add", ResnetBlock2D(in_channels=12, out_channels=20, temb_channels=9, groups=4, eps=1e-5,
                                   output_scale_factor=1.7), x, temb)
record("resnet_scale_shift", ResnetBlock2D(in_channels=12, out_channels=8, temb_channels=9, groups=2, eps=1e-3,
                                           time_embedding_norm="scale_shift"), x, temb)
record("downsample_1", Downsample2D(12, use_conv=True, out_channels=8, padding=1, name="op"), x)
record("downsample_0", Downsample2D(12, use_conv=True, out_channels=8, padding=0, name="op"), x)
record("upsample_twice", Upsample2D(12, use_conv=True, out_channels=8), x)
record("upsample_to", Upsample2D(12, use_conv=True), x, output_size=(13, 9))

path = Path(__file__).parents[2] / "crates/core/tests/fixtures/blocks.safetensors"
made_by = f"tools/reference/blocks.py, torch {torch.__version__}, diffusers {diffusers.__version__}"
save_file({n: t.clone().contiguous() for n, t in tensors.items()}, path, {"made_by": made_by, "seed": "0"})
