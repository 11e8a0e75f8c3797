"""Tiny random Marian and T5 models of transformers, for the parity tests of crates/models/src/encoder_decoder.rs.

Run: python tools/reference/encoder_decoder.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.* and outputs.*; versions and seed in its header.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

FOLDER = Path(
    sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/encoder_decoder"
)
MARIAN = dict(vocab_size=50, d_model=24, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=40,
              decoder_layers=2, decoder_attention_heads=3, decoder_ffn_dim=36, activation_function="swish",
              max_position_embeddings=32, scale_embedding=True, decoder_start_token_id=49, pad_token_id=49,
              eos_token_id=0)
T5 = dict(vocab_size=50, d_model=20, d_kv=6, d_ff=32, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
          relative_attention_max_distance=12, decoder_start_token_id=0)
CASES = {
    "marian": (MarianMTModel, MarianConfig, MARIAN),
    # As the paper has it: ReLU; and a table of embeddings for each language.
    "marian_apart": (MarianMTModel, MarianConfig, MARIAN | dict(
        activation_function="relu", share_encoder_decoder_embeddings=False, decoder_vocab_size=44, d_model=21,
        encoder_attention_heads=3, decoder_start_token_id=43, pad_token_id=43)),
    "t5": (T5ForConditionalGeneration, T5Config, T5),
    # Gated GELU, and a matrix of its own for the logits.
    "t5_v1_1": (T5ForConditionalGeneration, T5Config, T5 | dict(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=3, num_decoder_layers=2, layer_norm_epsilon=1e-3)),
}


def make(case, seed):
    cls, config_cls, settings = CASES[case]
    config = config_cls(**settings)
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation="eager").eval()
    if case == "t5_v1_1":
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():  # Large enough that every part matters, biases and norms too.
        for name, p in model.named_parameters():
            if "embed_positions" in name:
                continue
            noise = torch.randn_like(p)
            p.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    ids = torch.randint(2, 43, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    mask[2, 1:] = 0
    ids[mask == 0] = config.pad_token_id
    labels = torch.randint(2, 43, (3, 15))
    counted = torch.ones_like(labels)
    counted[0, 12:] = 0
    with torch.no_grad():
        out = model(ids, attention_mask=mask, labels=labels.masked_fill(counted == 0, -100), output_attentions=True)
        # Every label shown, as in decoding.
        start = torch.full((3, 1), config.decoder_start_token_id)
        inputs = torch.cat([start, labels[:, :-1]], 1)
        out = model(ids, attention_mask=mask, decoder_input_ids=inputs, output_attentions=True)
        losses = [
            torch.nn.functional.cross_entropy(out.logits[counted == 1], labels[counted == 1], label_smoothing=smoothing)
            for smoothing in (0.0, 0.1)
        ]
        # The same logits token by token, with transformers' own cache.
        cache, steps = None, []
        for t in range(labels.shape[1]):
            step = model(encoder_outputs=(out.encoder_last_hidden_state,), attention_mask=mask,
                         decoder_input_ids=inputs[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
        greedy = model.generate(ids, attention_mask=mask, max_new_tokens=12, num_beams=1, do_sample=False,
                                eos_token_id=1_000_000, forced_eos_token_id=None)
    tensors = {
        "inputs.ids": ids.int(),
        "inputs.mask": mask.int(),
        "inputs.labels": labels.int(),
        "inputs.counted": counted.int(),
        "outputs.memory": out.encoder_last_hidden_state * mask[..., None],
        "outputs.logits": out.logits,
        "outputs.cached_logits": torch.cat(steps, 1),
        "outputs.loss": losses[0],
        "outputs.smoothed_loss": losses[1],
        "outputs.encoder_probabilities.1": out.encoder_attentions[1] * mask[:, None, :, None],
        "outputs.decoder_probabilities.1": out.decoder_attentions[1],
        "outputs.cross_probabilities.1": out.cross_attentions[1],
        "outputs.greedy": greedy.int(),
    }
    # The weights as this version of transformers names them in a file.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        (FOLDER / f"{case}.json").write_text(Path(folder, "config.json").read_text())
    tensors |= {f"weights.{name}": w for name, w in weights.items()}
    made_by = f"tools/reference/encoder_decoder.py, torch {torch.__version__}, transformers {transformers.__version__}"
    header = {"made_by": made_by, "seed": str(seed)}
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, FOLDER / f"{case}.safetensors", header)


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
