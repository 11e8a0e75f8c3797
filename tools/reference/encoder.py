"""Tiny random BERT and RoBERTa of transformers, for the parity tests of crates/models/src/encoder.rs.

Run: python tools/reference/encoder.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM, XLMRobertaConfig,
                          XLMRobertaModel)

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/encoder")
BASE = dict(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=16)
CASES = {
    "bert": (BertModel, BertConfig, {}),
    # The keys begin with "bert.", and there is no pooler but a head.
    "bert_masked": (BertForMaskedLM, BertConfig, dict(hidden_size=20, num_attention_heads=5, num_hidden_layers=2,
                                                      hidden_act="gelu_new", layer_norm_eps=1e-3)),
    "roberta_masked": (RobertaForMaskedLM, RobertaConfig, dict(pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5,
                                                               num_hidden_layers=2)),
    "xlm_roberta": (XLMRobertaModel, XLMRobertaConfig, dict(pad_token_id=1, type_vocab_size=1, hidden_act="relu",
                                                            num_hidden_layers=2)),
}


def make(case, seed):
    cls, config_cls, changes = CASES[case]
    config = config_cls(**{**BASE, **changes})
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # Large enough that every part matters, biases and norms too.
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            p.copy_(1 + 0.3 * noise if "orm" in name and name.endswith("weight") else 0.3 * noise)
    ids = torch.randint(3, 60, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    mask[2, 1:] = 0
    ids[mask == 0] = config.pad_token_id
    types = torch.zeros_like(ids)
    if config.type_vocab_size > 1:
        types[0, 4:] = 1
    with torch.no_grad():
        out = model(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True, output_attentions=True)
    tensors = {"inputs.ids": ids.int(), "inputs.mask": mask.int(), "inputs.types": types.int()}
    for n, state in enumerate(out.hidden_states):
        tensors[f"outputs.hidden_states.{n}"] = state * mask[..., None]
    for n, probabilities in enumerate(out.attentions):
        tensors[f"outputs.probabilities.{n}"] = probabilities * mask[:, None, :, None]
    if "logits" in out:
        chosen = torch.zeros_like(mask)
        chosen[0, [1, 6]] = chosen[1, 3] = 1
        labels = torch.randint(3, 60, ids.shape)
        with torch.no_grad():
            loss = model(ids, attention_mask=mask, token_type_ids=types,
                         labels=labels.masked_fill(chosen == 0, -100)).loss
        tensors |= {"inputs.chosen": chosen.int(), "inputs.labels": labels.int(), "outputs.loss": loss,
                    "outputs.logits": out.logits * mask[..., None]}
    else:
        # The three poolings of sentence-transformers, and its normalisation.
        state, tokens = out.last_hidden_state, mask[..., None].float()
        mean = (state * tokens).sum(1) / tokens.sum(1).clamp(min=1e-9)
        tensors |= {
            "outputs.pooler_output": out.pooler_output,
            "outputs.cls": state[:, 0],
            "outputs.mean": mean,
            "outputs.max": state.masked_fill(tokens == 0, -1e9).max(1).values,
            "outputs.normalised": torch.nn.functional.normalize(mean, p=2, dim=1),
        }
    # The weights as this version of transformers names them in a file.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        (FOLDER / f"{case}.json").write_text(Path(folder, "config.json").read_text())
    tensors |= {f"weights.{name}": w for name, w in weights.items()}
    header = {
        "made_by": f"tools/reference/encoder.py, torch {torch.__version__}, transformers {transformers.__version__}",
        "seed": str(seed),
    }
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
