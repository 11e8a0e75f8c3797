"""Makes crates/models/tests/fixtures/unet_2d_condition: tiny random U-Nets with inputs and outputs, and the names and shapes
of the full-size ones' parameters.

    python tools/reference/unet_2d_condition.py

Made with diffusers 0.42.1, torch 2.15 (CPU, f32). Weights are rounded to half precision before the reference runs, so that
they can be stored in half the space without changing anything.
"""

import gzip
import json
import pathlib

import diffusers
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/models/tests/fixtures/unet_2d_condition"
DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"

TWO_LEVELS = dict(
    down_block_types=[CROSS_DOWN, DOWN],
    up_block_types=[UP, CROSS_UP],
    block_out_channels=[8, 16],
    norm_num_groups=4,
    layers_per_block=1,
    cross_attention_dim=12,
)

# name: (config, (height, width), timesteps, extra inputs)
CASES = {
    "sd1": (dict(TWO_LEVELS, layers_per_block=2, attention_head_dim=2), (8, 8), [961.0], []),
    "sd2": (
        dict(TWO_LEVELS, attention_head_dim=[1, 4], use_linear_projection=True, upcast_attention=True),
        (8, 6),
        [500.0],
        [],
    ),
    "sdxl": (
        dict(
            down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
            up_block_types=[CROSS_UP, CROSS_UP, UP],
            block_out_channels=[4, 8, 8],
            norm_num_groups=2,
            layers_per_block=1,
            cross_attention_dim=10,
            attention_head_dim=[1, 2, 4],
            transformer_layers_per_block=[1, 1, 2],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=6,
            projection_class_embeddings_input_dim=6 * 6 + 10,
        ),
        (8, 8),
        [7.0],
        ["text_time"],
    ),
    # Sizes that do not halve evenly, heads that do not divide the channels, sines first, a scaled middle.
    "odd": (
        dict(
            TWO_LEVELS,
            block_out_channels=[6, 15],
            norm_num_groups=3,
            attention_head_dim=[4, 5],
            flip_sin_to_cos=False,
            freq_shift=1,
            mid_block_scale_factor=1.5,
            center_input_sample=True,
            downsample_padding=0,
            only_cross_attention=[True, False],
            resnet_time_scale_shift="scale_shift",
            norm_eps=1e-3,
            out_channels=3,
        ),
        (9, 8),
        [3.0, 400.25],
        [],
    ),
    "inpaint_lcm": (
        dict(TWO_LEVELS, in_channels=9, time_cond_proj_dim=5, num_class_embeds=7, attention_head_dim=4),
        (7, 5),
        [999.0, 0.5],
        ["timestep_cond", "class_table", "mask"],
    ),
    "no_middle": (
        dict(
            TWO_LEVELS,
            mid_block_type=None,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=9,
            conv_in_kernel=1,
            conv_out_kernel=5,
            time_embedding_dim=20,
            cross_attention_dim=[12, 12],
        ),
        (4, 4),
        [250.0],
        ["class_features"],
    ),
    "class_timestep": (dict(TWO_LEVELS, class_embed_type="timestep"), (4, 4), [250.0], ["class_times"]),
}

FULL = {
    "sd15": dict(cross_attention_dim=768),
    "sd21": dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
    "sdxl_base": dict(
        down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
        up_block_types=[CROSS_UP, CROSS_UP, UP],
        block_out_channels=[320, 640, 1280],
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}


def randomise(model, seed):
    """Normal weights of variance 1 / fan in; norms near 1; small biases; all exact in half precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                p.copy_(noise / (p[0].numel() ** 0.5))
            p.copy_(p.half().float())


def inputs(config, size, timesteps, extras, seed):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    context = config["cross_attention_dim"]
    context = context if isinstance(context, int) else context[0]
    tensors = {
        "sample": normal(2, config.get("in_channels", 4), *size),
        "timesteps": torch.tensor(timesteps),
        "encoder_hidden_states": normal(2, 7, context),
    }
    if "text_time" in extras:
        tensors["text_embeds"] = normal(2, 10)
        tensors["time_ids"] = torch.tensor([[64.0, 48, 0, 3, 64, 64], [32, 64, 1, 0, 32, 64]])
    if "timestep_cond" in extras:
        tensors["timestep_cond"] = normal(2, config["time_cond_proj_dim"])
    if "class_table" in extras:
        tensors["class_labels"] = torch.tensor([3, 6], dtype=torch.int64)
    if "class_features" in extras:
        tensors["class_labels"] = normal(2, 9)
    if "class_times" in extras:
        tensors["class_labels"] = torch.tensor([20.0, 300.0])
    if "mask" in extras:
        tensors["encoder_attention_mask"] = torch.tensor([[1.0] * 7, [1, 1, 0, 1, 0, 0, 0]])
    return tensors


def run(model, x):
    timesteps = x["timesteps"]
    with torch.no_grad():
        return model(
            x["sample"],
            timesteps if timesteps.shape[0] > 1 else timesteps[0],
            x["encoder_hidden_states"],
            class_labels=x.get("class_labels"),
            timestep_cond=x.get("timestep_cond"),
            encoder_attention_mask=x.get("encoder_attention_mask"),
            added_cond_kwargs={k: x[k] for k in ("text_embeds", "time_ids") if k in x} or None,
        ).sample


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for seed, (name, (config, size, timesteps, extras)) in enumerate(CASES.items()):
        model = UNet2DConditionModel(**config).eval()
        randomise(model, seed)
        x = inputs(config, size, timesteps, extras, 100 + seed)
        y = run(model, x)
        if "class_labels" in x and x["class_labels"].dtype == torch.int64:
            x["class_labels"] = x["class_labels"].to(torch.uint32)
        tensors = {f"weights.{k}": v.half().contiguous() for k, v in model.state_dict().items()}
        tensors |= {f"inputs.{k}": v.contiguous() for k, v in x.items()} | {"output": y.contiguous()}
        path = OUT / f"{name}.safetensors"
        versions = f"diffusers {diffusers.__version__}, torch {torch.__version__}"
        save_file(tensors, path, {"versions": versions})
        # What diffusers itself writes, so that reading its config.json is tested as well.
        model.save_config(OUT / "config")
        (OUT / "config/config.json").rename(OUT / f"{name}.json")
        print(path.name, path.stat().st_size, f"output std {y.std():.3f}")
    (OUT / "config").rmdir()
    for name, config in FULL.items():
        with torch.device("meta"):
            model = UNet2DConditionModel(**config)
        lines = [f"{k} {','.join(map(str, v.shape))}" for k, v in sorted(model.state_dict().items())]
        path = OUT / f"{name}.keys.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
        print(path.name, path.stat().st_size, len(lines), "parameters", sum(p.numel() for p in model.parameters()))


main()
