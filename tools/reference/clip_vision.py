"""Tiny random CLIP picture encoders of transformers, for the parity tests of crates/models/src/clip_vision.rs.

Run: python tools/reference/clip_vision.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/clip_vision")
BASE = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, image_size=12, patch_size=4)
CASES = {
    # OpenAI's conventions, without projection.
    "quick_gelu": (CLIPVisionModel, dict(hidden_act="quick_gelu")),
    # OpenCLIP's: exact GELU; patches that do not cover the picture, another epsilon, projection to another width.
    "projection": (CLIPVisionModelWithProjection,
                   dict(hidden_act="gelu", hidden_size=36, num_attention_heads=3, projection_dim=14, image_size=14,
                        num_channels=2, num_hidden_layers=2, layer_norm_eps=1e-3)),
}


def randomize(model):
    with torch.no_grad():  # Large enough that every part matters, biases and norms too.
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            norm = ("layer_norm" in name or "layernorm" in name or "layrnorm" in name) and name.endswith("weight")
            if p.dim() > 0:
                p.copy_(1 + 0.3 * noise if norm else 0.3 * noise)


def save(case, seed, model, tensors):
    # The weights as this version of transformers names them in a file.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        (FOLDER / f"{case}.json").write_text(Path(folder, "config.json").read_text())
    tensors |= {f"weights.{name}": w for name, w in weights.items()}
    made_by = f"tools/reference/clip_vision.py, torch {torch.__version__}, transformers {transformers.__version__}"
    header = {"made_by": made_by, "seed": str(seed)}
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


def tower(case, seed):
    cls, changes = CASES[case]
    config = CLIPVisionConfig(**{**BASE, **changes})
    torch.manual_seed(seed)
    model = cls(config).eval()
    model.set_attn_implementation("eager")
    randomize(model)
    pixels = torch.randn(3, config.num_channels, config.image_size, config.image_size)
    with torch.no_grad():
        out = model(pixels, output_hidden_states=True, output_attentions=True)
    tensors = {"inputs.pixels": pixels, "outputs.probabilities.1": out.attentions[1]}
    for n, state in enumerate(out.hidden_states):
        tensors[f"outputs.hidden_states.{n}"] = state
    if cls is CLIPVisionModelWithProjection:
        tensors["outputs.image_embeds"] = out.image_embeds
    else:
        tensors["outputs.pooled_output"] = out.pooler_output
    save(case, seed, model, tensors)


def both_towers(case, seed):
    """CLIPModel: both towers, the temperature, its logits and its loss."""
    config = CLIPConfig(
        text_config=dict(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=7, bos_token_id=28, eos_token_id=29, pad_token_id=1, projection_dim=10),
        vision_config={**BASE, "hidden_size": 16, "num_hidden_layers": 1, "projection_dim": 10},
        projection_dim=10, logit_scale_init_value=1.3)
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    randomize(model)
    ids = torch.randint(2, 28, (3, 7))
    ids[:, 5:] = 29
    pixels = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    save(case, seed, model, {
        "inputs.ids": ids.to(torch.int32), "inputs.pixels": pixels, "outputs.loss": out.loss,
        "outputs.logits_per_text": out.logits_per_text})


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    tower(case, seed)
both_towers("both_towers", len(CASES))
