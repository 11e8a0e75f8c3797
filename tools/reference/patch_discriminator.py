"""Tiny random patch discriminators in PyTorch, for the parity tests of crates/models/src/patch_discriminator.rs.

Run: python tools/reference/patch_discriminator.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
The network is written here from the paper (Isola et al. 2017, appendix 6.1.2) with PyTorch's own layers.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import leaky_relu, relu

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else
              Path(__file__).parents[2] / "crates/models/tests/fixtures/patch_discriminator")
CASES = {
    "norms": dict(in_channels=3, ndf=4, n_layers=2, norm_num_groups=2),
    # Enough layers that the channels stop doubling.
    "no_norms": dict(in_channels=1, ndf=1, n_layers=4, norm_num_groups=None),
}


class Layer(nn.Module):
    def __init__(self, i, o, stride, groups):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 4, stride, 1)
        self.norm = nn.GroupNorm(groups, o, eps=1e-5) if groups else nn.Identity()

    def forward(self, x):
        return leaky_relu(self.norm(self.conv(x)), 0.2)


class Discriminator(nn.Module):
    def __init__(self, in_channels, ndf, n_layers, norm_num_groups):
        super().__init__()
        channels = [in_channels] + [ndf * min(2**n, 8) for n in range(n_layers + 1)]
        self.layers = nn.Sequential(*(
            Layer(i, o, 2 if n < n_layers else 1, norm_num_groups if n > 0 else None)
            for n, (i, o) in enumerate(zip(channels, channels[1:]))))
        self.conv_out = nn.Conv2d(channels[-1], 1, 4, 1, 1)

    def forward(self, x):
        return self.conv_out(self.layers(x))


def make(case, seed):
    config = CASES[case]
    torch.manual_seed(seed)
    model = Discriminator(**config).eval()
    with torch.no_grad():  # Large enough that every part matters, biases and norms too.
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            norm = "norm" in name and name.endswith("weight")
            p.copy_(1 + 0.3 * noise if norm else noise * (0.3 if p.dim() < 2 else 1.4 * p[0].numel() ** -0.5))
        real, made = (torch.rand(2, config["in_channels"], 51, 62) * 2 - 1 for _ in range(2))
        judged_real, judged_made = model(real), model(made)
        tensors = {
            "inputs.real": real, "inputs.made": made, "outputs.real": judged_real, "outputs.made": judged_made,
            "outputs.discriminator_loss": (relu(1 - judged_real).mean() + relu(1 + judged_made).mean()) / 2,
            "outputs.generator_loss": -judged_made.mean(),
        }
    tensors |= {f"weights.{n}": p for n, p in model.state_dict().items()}
    (FOLDER / f"{case}.json").write_text(json.dumps(config, indent=2) + "\n")
    header = {"made_by": f"tools/reference/patch_discriminator.py, torch {torch.__version__}", "seed": str(seed)}
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
