"""Tiny random super-resolution networks in PyTorch, for the parity tests of crates/models/src/super_resolution.rs.

Run: python tools/reference/super_resolution.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
The network is written here from the papers (Wang et al. 2018, figure 4; Shi et al. 2016) with PyTorch's own layers.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate, l1_loss, leaky_relu, pixel_shuffle

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else
              Path(__file__).parents[2] / "crates/models/tests/fixtures/super_resolution")
BASE = dict(model_type="super_resolution", in_channels=3, num_feat=6, num_grow_ch=4, num_block=2, scale=2)
CASES = {"double": {}, "fourfold": dict(num_feat=8, num_grow_ch=2, num_block=1, scale=4)}


def conv(i, o):
    return nn.Conv2d(i, o, 3, padding=1)


class Dense(nn.Module):
    def __init__(self, feat, grow):
        super().__init__()
        for n in range(5):
            setattr(self, f"conv{n + 1}", conv(feat + n * grow, feat if n == 4 else grow))

    def forward(self, x):
        seen = [x]
        for n in range(4):
            seen.append(leaky_relu(getattr(self, f"conv{n + 1}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Block(nn.Module):
    def __init__(self, feat, grow):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(feat, grow) for _ in range(3))

    def forward(self, x):
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Network(nn.Module):
    def __init__(self, in_channels, num_feat, num_grow_ch, num_block, scale, **_):
        super().__init__()
        self.scale = scale
        self.conv_first = conv(in_channels, num_feat)
        self.body = nn.Sequential(*(Block(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = conv(num_feat, num_feat)
        self.conv_up1 = conv(num_feat, 4 * num_feat)
        if scale == 4:
            self.conv_up2 = conv(num_feat, 4 * num_feat)
        self.conv_hr = conv(num_feat, num_feat)
        self.conv_last = conv(num_feat, in_channels)

    def forward(self, pixels):
        x = self.conv_first(pixels)
        x = x + self.conv_body(self.body(x))
        x = leaky_relu(pixel_shuffle(self.conv_up1(x), 2), 0.2)
        if self.scale == 4:
            x = leaky_relu(pixel_shuffle(self.conv_up2(x), 2), 0.2)
        missing = self.conv_last(leaky_relu(self.conv_hr(x), 0.2))
        return interpolate(pixels, scale_factor=self.scale, mode="bicubic", antialias=True) + missing


def make(case, seed):
    config = {**BASE, **CASES[case]}
    torch.manual_seed(seed)
    model = Network(**config).eval()
    with torch.no_grad():  # Large enough that every part matters.
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.3 if p.dim() < 2 else 1.4 * p[0].numel() ** -0.5))
        pixels = torch.rand(2, 3, 5, 7) * 2 - 1
        made = model(pixels)
        target = torch.rand_like(made) * 2 - 1
        tensors = {"inputs.pixels": pixels, "inputs.target": target, "outputs.made": made,
                   "outputs.loss": l1_loss(made, target)}
    tensors |= {f"weights.{n}": p for n, p in model.state_dict().items()}
    (FOLDER / f"{case}.json").write_text(json.dumps(config, indent=2) + "\n")
    header = {"made_by": f"tools/reference/super_resolution.py, torch {torch.__version__}", "seed": str(seed)}
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
