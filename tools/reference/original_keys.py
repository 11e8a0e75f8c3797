"""Makes crates/models/tests/fixtures/original_keys: for every parameter of the full-size models, the tensor of the original
single-file checkpoint that diffusers' own conversion takes it from.

    python tools/reference/original_keys.py

Made with diffusers 0.42.1, transformers 5.23, torch 2.15. Each original tensor is filled with a number of its own, counted up
along its rows, without taking memory (stride 0 over the columns). So the converted tensors tell where they come from: which
tensor, which rows, transposed or not.

Lines: component, our name, shape, original name, original shape, first row.

The tiny_* files hold small models with real numbers, under original names as a file that users have, and as diffusers'
conversion names and cuts them (`component/name`). All numbers come from one short row, repeated, so that they pack well.
"""

import collections
import gzip
import io
import pathlib
import re

import safetensors.torch
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as official
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/models/tests/fixtures/original_keys"
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
# The files hold 24 layers, of which diffusers uses 23.
OPEN_CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, projection_dim=1024)
OPEN_CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280)
D, CD, U, CU = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
UNETS = {
    "sd15": dict(cross_attention_dim=768),
    "sd15_inpainting": dict(cross_attention_dim=768, in_channels=9),
    "sd21": dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
    "sdxl_base": dict(
        down_block_types=[D, CD, CD], up_block_types=[CU, CU, U], block_out_channels=[320, 640, 1280],
        attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10], cross_attention_dim=2048,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}  # fmt: skip
VAE = dict(
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip


def shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def sub(name, *rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def original_unet(wanted, config):
    """Names as in the authors' files, by inverting diffusers' rules; that diffusers' conversion finds all is checked below."""
    ups = config.get("up_block_types", [U, CU, CU, CU])
    layers = config.get("layers_per_block", 2)
    place = layers + 1
    resnet = [
        (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."), (r"\.time_emb_proj\.", ".emb_layers.1."),
        (r"\.norm2\.", ".out_layers.0."), (r"\.conv2\.", ".out_layers.3."), (r"\.conv_shortcut\.", ".skip_connection."),
    ]  # fmt: skip
    table = {}
    for name, shape in wanted.items():
        old = sub(name, *(resnet if "resnets" in name else []))
        old = re.sub(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
                     lambda m: f"input_blocks.{place * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}", old)  # fmt: skip
        old = re.sub(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
                     lambda m: f"output_blocks.{place * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}", old)  # fmt: skip
        old = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{place * (int(m[1]) + 1)}.0.op", old)
        old = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0",
                     lambda m: f"output_blocks.{place * int(m[1]) + layers}.{1 + int(ups[int(m[1])] == CU)}", old)  # fmt: skip
        old = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", old)
        old = old.replace("mid_block.attentions.0", "middle_block.1")
        old = sub(old, (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
                  (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
                  (r"^add_embedding\.linear_1", "label_emb.0.0"), (r"^add_embedding\.linear_2", "label_emb.0.2"))  # fmt: skip
        table["model.diffusion_model." + old] = shape
    return table


def original_vae(wanted, config):
    last = len(config["block_out_channels"]) - 1
    table = {}
    for name, shape in wanted.items():
        old = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{last - int(m[1])}", name)
        old = sub(old, (r"down_blocks", "down"), (r"(down|up)samplers\.0", r"\1sample"), (r"conv_norm_out", "norm_out"),
                  (r"conv_shortcut", "nin_shortcut"), (r"mid_block\.attentions\.0", "mid.attn_1"),
                  (r"group_norm", "norm"), (r"\.to_([qkv])\.", r".\1."), (r"to_out\.0", "proj_out"))  # fmt: skip
        old = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", old)
        old = old.replace("resnets", "block")
        pointwise = ".attn_1." in old and len(shape) == 2
        table["first_stage_model." + old] = (*shape, 1, 1) if pointwise else shape
    return table


def original_open_clip(config, prefix):
    h, f = config["hidden_size"], config["intermediate_size"]
    vocabulary, positions = config.get("vocab_size", 49408), config.get("max_position_embeddings", 77)
    table = {"token_embedding.weight": (vocabulary, h), "positional_embedding": (positions, h),
             "text_projection": (h, config["projection_dim"]),
             "ln_final.weight": (h,), "ln_final.bias": (h,), "logit_scale": ()}  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        layer = {"ln_1": (h,), "ln_2": (h,), "attn.out_proj": (h, h), "mlp.c_fc": (f, h), "mlp.c_proj": (h, f)}
        for name, shape in layer.items():
            table[f"transformer.resblocks.{i}.{name}.weight"] = shape
            table[f"transformer.resblocks.{i}.{name}.bias"] = shape[:1]
        table[f"transformer.resblocks.{i}.attn.in_proj_weight"] = (3 * h, h)
        table[f"transformer.resblocks.{i}.attn.in_proj_bias"] = (3 * h,)
    return {prefix + k: v for k, v in table.items()}


STEP = 10**5  # more than any tensor has rows


def marked(table):
    """Each tensor's value is its number times STEP plus the row."""
    tensors = {}
    for i, (name, shape) in enumerate(sorted(table.items())):
        rows = torch.arange(shape[0] if shape else 1, dtype=torch.float64) + i * STEP
        tensors[name] = rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape) if shape else rows[0]
    return tensors


def text_model(config, projection):
    config = CLIPTextConfig(**{"vocab_size": 49408, "max_position_embeddings": 77} | config)
    with torch.device("meta"):
        return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def full_names(names):
    """Transformers 5 leaves text_model. out where there is no projection; its files before that, and ours, have it."""
    wrap = lambda k: k if k.startswith(("text_model.", "text_projection.")) else "text_model." + k
    return {wrap(k): v for k, v in names.items()}


def original_table(name, wanted, unet_config, vae_config, encoders):
    """Original names and shapes of everything in a file of this family, and the text encoders' wanted shapes."""
    table = original_unet(wanted["unet"], unet_config) | original_vae(wanted["vae"], vae_config)
    if "sd2" in name:
        open_clip_h = encoders["open_clip_h"]
        used = min(open_clip_h["num_hidden_layers"], 23)
        wanted["text_encoder"] = full_names(shapes(text_model(open_clip_h | {"num_hidden_layers": used}, False)))
        table |= original_open_clip(open_clip_h, "cond_stage_model.model.")
    else:
        wanted["text_encoder"] = full_names(shapes(text_model(encoders["clip_l"], False)))
        prefix = "conditioner.embedders.0.transformer." if "sdxl" in name else "cond_stage_model.transformer."
        table |= {prefix + k: v for k, v in wanted["text_encoder"].items()}
    if "sdxl" in name:
        wanted["text_encoder_2"] = full_names(shapes(text_model(encoders["open_clip_g"], True)))
        table |= original_open_clip(encoders["open_clip_g"], "conditioner.embedders.1.model.")
    return table


def convert(name, file, unet, vae, encoders):
    """What diffusers makes of a file: the tensors of each component."""
    converted = {
        "unet": official.convert_ldm_unet_checkpoint(dict(file), dict(unet.config)),
        "vae": official.convert_ldm_vae_checkpoint(dict(file), dict(vae.config)),
    }
    if "sd2" in name:
        model = text_model(encoders["open_clip_h"], False)
        text = official.convert_open_clip_checkpoint(model, dict(file), "cond_stage_model.model.")
    else:
        text = official.convert_ldm_clip_checkpoint(dict(file))
    converted["text_encoder"] = full_names(text)
    if "sdxl" in name:
        model = text_model(encoders["open_clip_g"], True)
        text = official.convert_open_clip_checkpoint(model, dict(file), "conditioner.embedders.1.model.")
        converted["text_encoder_2"] = full_names(text)
    return converted


def full_size():
    encoders = {"clip_l": CLIP_L, "open_clip_h": OPEN_CLIP_H, "open_clip_g": OPEN_CLIP_G}
    for name, unet_config in UNETS.items():
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**VAE)
        wanted = {"unet": shapes(unet), "vae": shapes(vae)}
        table = original_table(name, wanted, unet_config, VAE, encoders)
        names = sorted(table)
        converted = convert(name, marked(table), unet, vae, encoders)
        kind = official.infer_diffusers_model_type({k: torch.empty(v, device="meta") for k, v in table.items()})
        text = lambda s: ",".join(map(str, s))
        lines = []
        for component, shapes_wanted in wanted.items():
            got = converted[component]
            assert set(got) == set(shapes_wanted), sorted(set(got) ^ set(shapes_wanted))[:8]
            for key, shape in sorted(shapes_wanted.items()):
                assert tuple(got[key].shape) == shape, (key, got[key].shape, shape)
                index, row = divmod(int(got[key].flatten()[0]), STEP)
                old = names[index]
                lines.append(f"{component} {key} {text(shape)} {old} {text(table[old])} {row}")
        used = {line.split()[3] for line in lines}
        lines += [f"unused - - {k} {','.join(map(str, table[k])) or 'scalar'} 0" for k in names if k not in used]
        path = OUT / f"{name}.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
        print(path.name, path.stat().st_size, kind, len(lines), "unused", sum(line.startswith("unused") for line in lines))


# Small, and yet what the shapes of a single file are enough for: norms have 32 groups, linear projections heads of 64.
TINY_TEXT = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, projection_dim=64, vocab_size=40,
    max_position_embeddings=8,
)  # fmt: skip
TINY_ENCODERS = {
    "clip_l": TINY_TEXT,
    "open_clip_h": TINY_TEXT | {"projection_dim": 48},
    "open_clip_g": TINY_TEXT | {"hidden_size": 128, "num_attention_heads": 2, "projection_dim": 48},
}
TINY_UNETS = {
    "tiny_sd1": dict(
        down_block_types=[CD, CD, D], up_block_types=[U, CU, CU], block_out_channels=[32, 32, 64], layers_per_block=1,
        attention_head_dim=8, cross_attention_dim=64,
    ),
    "tiny_sd2": dict(
        down_block_types=[CD, D], up_block_types=[U, CU], block_out_channels=[64, 64], layers_per_block=2,
        attention_head_dim=[1, 1], cross_attention_dim=64, use_linear_projection=True,
    ),
    "tiny_sdxl": dict(
        down_block_types=[D, CD], up_block_types=[CU, U], block_out_channels=[64, 128], layers_per_block=1,
        attention_head_dim=[1, 2], transformer_layers_per_block=[1, 2], cross_attention_dim=192,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + 48,
    ),
}  # fmt: skip
TINY_VAE = dict(
    block_out_channels=[32, 64], layers_per_block=1, latent_channels=4,
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
)  # fmt: skip


def numbers(table):
    """A different stretch of one repeated row for every tensor; scales around 1 for norms."""
    row = torch.randn(4099, generator=torch.Generator().manual_seed(0)) * 0.1
    tensors = {}
    for i, (name, shape) in enumerate(sorted(table.items())):
        n = torch.Size(shape).numel()
        values = row.roll(37 * i).repeat(n // len(row) + 1)[:n].reshape(shape)
        is_norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = (values + 1.0 if is_norm else values).half()
    return tensors


def packed(path, content):
    path.write_bytes(gzip.compress(content, mtime=0))
    print(path.name, len(content), "packed", path.stat().st_size)


def tiny():
    for name, unet_config in TINY_UNETS.items():
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**TINY_VAE)
        wanted = {"unet": shapes(unet), "vae": shapes(vae)}
        file = numbers(original_table(name, wanted, unet_config, TINY_VAE, TINY_ENCODERS))
        converted = {
            f"{component}/{key}": value.contiguous().clone()
            for component, tensors in convert(name, file, unet, vae, TINY_ENCODERS).items()
            for key, value in tensors.items()
        }
        assert set(converted) == {f"{component}/{key}" for component in wanted for key in wanted[component]}
        packed(OUT / f"{name}.expected.safetensors.gz", safetensors.torch.save(converted))
        if name == "tiny_sd1":
            # As the first checkpoints were published: the weights beside what the training program kept.
            state = {"epoch": 3, "global_step": 470000, "state_dict": collections.OrderedDict(file), "lr_schedulers": []}
            whole = io.BytesIO()
            torch.save(state, whole)
            packed(OUT / f"{name}.ckpt.gz", whole.getvalue())
        else:
            packed(OUT / f"{name}.safetensors.gz", safetensors.torch.save(file))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    official.is_accelerate_available = lambda: False
    full_size()
    tiny()


main()
