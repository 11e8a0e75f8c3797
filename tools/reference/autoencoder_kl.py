"""Tiny random autoencoders of diffusers, for the parity tests of crates/models/src/autoencoder_kl.rs.

Run: python tools/reference/autoencoder_kl.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
Weights are rounded to half precision and stored so, which loses nothing and halves the files.
"""

import sys
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/autoencoder_kl")


def config(channels, **changes):
    return dict(block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * len(channels),
                up_block_types=["UpDecoderBlock2D"] * len(channels), norm_num_groups=4, sample_size=16) | changes


# name: config, size of the picture, size of the latent; both larger than a tile where tiles are compared.
CASES = {
    # As in SD 1.x. The last row of tiles is as high as an overlap, the last column one latent pixel wide.
    "sd": (config([12, 20], layers_per_block=1), (40, 50), (20, 19)),
    # Three resolutions with two layers, of odd multiples; no quantising convolutions, another scale (as in SD 3).
    "shift": (config([4, 12, 20], layers_per_block=2, latent_channels=6, scaling_factor=1.5305, shift_factor=0.0609,
                     use_quant_conv=False, use_post_quant_conv=False, sample_size=32), (48, 32), (9, 14)),
    # Grey pictures, statistics for each latent channel, no attention, a picture that fits a tile on one side.
    "statistics": (config([20, 12], layers_per_block=2, in_channels=1, out_channels=2, latent_channels=3,
                          latents_mean=[0.1, -0.4, 2.0], latents_std=[0.5, 1.5, 3.0], mid_block_add_attention=False,
                          use_post_quant_conv=False), (16, 30), (4, 8)),
}


def make(case, seed):
    settings, picture, latent = CASES[case]
    torch.manual_seed(seed)
    model = AutoencoderKL(**settings).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                p.copy_(centre + 0.3 * torch.randn_like(p))
            p.copy_(p.half().float())
    c = model.config
    x = torch.rand(2 if case == "statistics" else 1, c.in_channels, *picture) * 2 - 1
    z = torch.randn(2 if case == "statistics" else 1, c.latent_channels, *latent)
    with torch.no_grad():
        posterior = model.encode(x).latent_dist
        noise = torch.randn_like(posterior.mean)
        tensors = {
            "inputs.x": x,
            "inputs.z": z,
            "inputs.noise": noise,
            "outputs.mean": posterior.mean,
            "outputs.logvar": posterior.logvar,
            "outputs.sample": posterior.mean + posterior.std * noise,
            "outputs.kl": posterior.kl(),
            "outputs.decoded": model.decode(z).sample,
        }
        model.enable_tiling()
        tiled = model.encode(x).latent_dist
        tensors |= {
            "outputs.tiled_mean": tiled.mean,
            "outputs.tiled_logvar": tiled.logvar,
            "outputs.tiled_decoded": model.decode(z).sample,
        }
        # What the diffusion pipelines do to latents before they are decoded.
        unscaled = z / c.scaling_factor + (c.shift_factor or 0.0)
        if c.latents_mean:
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (c.latents_mean, c.latents_std))
            unscaled = z * std / c.scaling_factor + mean
        tensors["outputs.unscaled"] = unscaled
    tensors |= {f"weights.{name}": w.half() for name, w in model.state_dict().items()}
    header = {
        "made_by": f"tools/reference/autoencoder_kl.py, torch {torch.__version__}, diffusers {diffusers.__version__}",
        "seed": str(seed),
    }
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)
    with tempfile.TemporaryDirectory() as folder:
        model.save_config(folder)
        (FOLDER / f"{case}.json").write_text(Path(folder, "config.json").read_text())


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
