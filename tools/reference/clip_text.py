"""Tiny random CLIP text encoders of transformers, for the parity tests of crates/models/src/clip_text.rs.

Run: python tools/reference/clip_text.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/clip_text")
BASE = dict(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=11, bos_token_id=58, eos_token_id=59, pad_token_id=1)
CASES = {
    # ViT-L/14's conventions; the end-of-text token is not the highest id, and comes twice in a row (padding).
    "quick_gelu": (CLIPTextModel, dict(hidden_act="quick_gelu", eos_token_id=40), "first"),
    # The id that old configs carry by mistake: the highest id ends the text.
    "legacy_eos": (CLIPTextModel, dict(hidden_act="quick_gelu", eos_token_id=2, hidden_size=20, num_attention_heads=5,
                                       num_hidden_layers=2), "highest"),
    # OpenCLIP's conventions: exact GELU, projection to another width; another epsilon.
    "projection": (CLIPTextModelWithProjection, dict(hidden_act="gelu", hidden_size=36, num_attention_heads=3,
                                                     projection_dim=14, layer_norm_eps=1e-3), "first"),
}


def make(case, seed):
    cls, changes, ends = CASES[case]
    config = CLIPTextConfig(**{**BASE, **changes})
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():  # Large enough that every part matters, biases and norms too.
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            p.copy_(1 + 0.3 * noise if "layer_norm" in name and name.endswith("weight") else 0.3 * noise)
    ids = torch.randint(3, 38, (3, 11))
    eos = 59 if ends == "highest" else config.eos_token_id
    ids[0, 6:] = eos
    ids[1, 3] = eos
    ids[1, 4:] = 1
    ids[2, 10] = eos
    if ends == "first":
        ids[2, 5] = 57  # A higher id than the end of the text.
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        # Attention probabilities of the second layer, computed from its own layers.
        text_model = getattr(model, "text_model", model)
        layer = text_model.encoder.layers[1]
        x = layer.layer_norm1(out.hidden_states[1])
        split = lambda y: y.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
        q, k = split(layer.self_attn.q_proj(x)), split(layer.self_attn.k_proj(x))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        future = torch.ones(11, 11, dtype=torch.bool).triu(1)
        probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
        # What diffusers' Stable Diffusion pipeline takes with clip_skip=1, and its SDXL pipeline without.
        penultimate = out.hidden_states[-2]
        tensors = {
            "inputs.ids": ids.to(torch.int32),
            "outputs.last_hidden_state": out.last_hidden_state,
            "outputs.probabilities.1": probabilities,
            "outputs.penultimate": penultimate,
            "outputs.penultimate_normed": text_model.final_layer_norm(penultimate),
        }
        for n, state in enumerate(out.hidden_states):
            tensors[f"outputs.hidden_states.{n}"] = state
        if cls is CLIPTextModelWithProjection:
            tensors["outputs.text_embeds"] = out.text_embeds
            # The loss of transformers' CLIPModel, against random pictures.
            from transformers.models.clip.modeling_clip import image_text_contrastive_loss as loss

            image, scale = torch.randn_like(out.text_embeds), torch.tensor(1.3)
            normed = [e / e.norm(dim=-1, keepdim=True) for e in (out.text_embeds, image)]
            tensors["inputs.image_embeds"], tensors["inputs.logit_scale"] = image, scale
            tensors["outputs.loss"] = loss(normed[0] @ normed[1].t() * scale.exp())
        else:
            tensors["outputs.pooled_output"] = out.pooler_output
    # The weights as this version of transformers names them in a file.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        (FOLDER / f"{case}.json").write_text(Path(folder, "config.json").read_text())
    tensors |= {f"weights.{name}": w for name, w in weights.items()}
    header = {
        "made_by": f"tools/reference/clip_text.py, torch {torch.__version__}, transformers {transformers.__version__}",
        "seed": str(seed),
    }
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
