"""A tiny random picture classifier out of diffusers' blocks, for the parity tests of crates/models/src/image_classifier.rs.

Run: python tools/reference/image_classifier.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, silu

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else
              Path(__file__).parents[2] / "crates/models/tests/fixtures/image_classifier")
HEADS = {"concept": ["cat", "dog", "heart", "star", "sun"], "style": ["flat", "round"]}
BASE = dict(model_type="image_classifier", image_size=16, in_channels=3, stem_stride=1, block_out_channels=[8, 12],
            layers_per_block=1, norm_num_groups=4, heads=HEADS)
CASES = {
    "plain": {},
    # Two blocks on a level, three levels, odd sides, a strided stem.
    "deep": dict(stem_stride=2, block_out_channels=[4, 8, 12], layers_per_block=2, norm_num_groups=2, image_size=22),
}


class Level(nn.Module):
    def __init__(self, channels, following, config):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=channels, out_channels=channels, temb_channels=None,
                          groups=config["norm_num_groups"], eps=1e-6)
            for _ in range(config["layers_per_block"]))
        if following:
            self.downsample = Downsample2D(channels, use_conv=True, out_channels=following, padding=1, name="op")


class Classifier(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = config["block_out_channels"]
        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, config["stem_stride"], 1)
        self.down_blocks = nn.ModuleList(
            Level(c, following, config) for c, following in zip(channels, channels[1:] + [None]))
        self.norm_out = nn.GroupNorm(config["norm_num_groups"], channels[-1], eps=1e-6)
        self.heads = nn.ModuleDict({n: nn.Linear(channels[-1], len(c)) for n, c in config["heads"].items()})

    def pyramid(self, x):
        x, levels = self.conv_in(x), []
        for level in self.down_blocks:
            for resnet in level.resnets:
                x = resnet(x, None)
            levels.append(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return levels

    def forward(self, x):
        features = silu(self.norm_out(self.pyramid(x)[-1])).mean((2, 3))
        return features, {n: head(features) for n, head in self.heads.items()}


def perceptual_distance(a, b):
    unit = lambda x: x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
    return torch.stack([(unit(x) - unit(y)).square().sum(1).mean() for x, y in zip(a, b)]).mean()


def make(case, seed):
    config = {**BASE, **CASES[case]}
    torch.manual_seed(seed)
    model = Classifier(config).eval()
    with torch.no_grad():  # Large enough that every part matters, biases and norms too.
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            norm = "norm" in name and name.endswith("weight")
            p.copy_(1 + 0.3 * noise if norm else noise * (0.3 if p.dim() < 2 else p[0].numel() ** -0.5))
        pixels = torch.rand(3, 3, config["image_size"], config["image_size"] + 2) * 2 - 1
        targets = {n: torch.randint(0, len(c), (3,)) for n, c in HEADS.items()}
        features, logits = model(pixels)
        levels = model.pyramid(pixels)
        tensors = {
            "inputs.pixels": pixels,
            "outputs.features": features,
            "outputs.loss": sum(cross_entropy(logits[n], targets[n], label_smoothing=0.1) for n in HEADS),
            # Of each picture and the next.
            "outputs.distance": perceptual_distance(levels, model.pyramid(pixels.roll(-1, 0))),
        }
    tensors |= {f"inputs.targets.{n}": t.to(torch.int32) for n, t in targets.items()}
    tensors |= {f"outputs.pyramid.{n}": x for n, x in enumerate(levels)}
    tensors |= {f"outputs.logits.{n}": x for n, x in logits.items()}
    tensors |= {f"weights.{n}": p for n, p in model.state_dict().items()}
    (FOLDER / f"{case}.json").write_text(json.dumps(config, indent=2) + "\n")
    made_by = f"tools/reference/image_classifier.py, torch {torch.__version__}, diffusers {diffusers.__version__}"
    header = {"made_by": made_by, "seed": str(seed)}
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
