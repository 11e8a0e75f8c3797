"""Tiny random language models of transformers, for the parity tests of crates/models/src/decoder.rs.

Run: python tools/reference/decoder.py [folder]
Writes CASE.json, the config, and CASE.safetensors with weights.*, inputs.ids and outputs.*; versions and seed in its header.
The logits of a continuation are computed by transformers with its own cache: 11 tokens at once, then one by one.
PaLM has no model in transformers: its case is computed here, from the paper.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/decoder")
TIME, PREFILL = 26, 11
LLAMA = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             tie_word_embeddings=False)


def llama(scaling=None, model_type="llama", **changes):
    extra = {"rope_parameters": scaling} if scaling else {}
    return model_type, {**LLAMA, **extra, **changes}


CASES = {
    "gpt2": ("gpt2", dict(vocab_size=61, n_positions=40, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2)),
    "gpt_neox": ("gpt_neox", dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                  intermediate_size=40, max_position_embeddings=64, rotary_pct=0.5, rotary_emb_base=500,
                                  bos_token_id=1, eos_token_id=2)),
    "gpt_neox_sequential": ("gpt_neox", dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                             intermediate_size=40, max_position_embeddings=64, rotary_pct=0.25,
                                             use_parallel_residual=False, hidden_act="gelu_new", attention_bias=False)),
    # Heads that are no power of two.
    "mpt": ("mpt", dict(vocab_size=61, d_model=36, n_heads=6, n_layers=2, max_seq_len=64,
                        bos_token_id=1, eos_token_id=2)),
    "llama": llama(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
    "llama_linear": llama(dict(rope_type="linear", factor=3.0, rope_theta=1000.0)),
    "llama_dynamic": llama(dict(rope_type="dynamic", factor=2.0, rope_theta=1000.0), max_position_embeddings=18),
    "llama_llama3": llama(dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=100.0,
                               original_max_position_embeddings=32), max_position_embeddings=128, head_dim=12,
                          tie_word_embeddings=True),
    "llama_yarn": llama(dict(rope_type="yarn", factor=4.0, rope_theta=100.0, original_max_position_embeddings=32,
                             beta_fast=4.0), max_position_embeddings=128, head_dim=16, num_key_value_heads=1),
    "llama_yarn_mscale": llama(dict(rope_type="yarn", factor=8.0, rope_theta=100.0, original_max_position_embeddings=16,
                                    mscale=1.5, mscale_all_dim=0.7, truncate=False), max_position_embeddings=128,
                               head_dim=16),
    "mistral": llama(model_type="mistral", sliding_window=7, head_dim=10),
    "qwen2": llama(model_type="qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1, hidden_size=24),
    "qwen3": llama(model_type="qwen3", head_dim=12, attention_bias=True, tie_word_embeddings=True),
    "smollm3": llama(model_type="smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], tie_word_embeddings=True),
    "gemma": llama(model_type="gemma", num_key_value_heads=1, head_dim=12, tie_word_embeddings=True),
    "gemma2": llama(model_type="gemma2", head_dim=12, sliding_window=7, query_pre_attn_scalar=20,
                    attn_logit_softcapping=2.0, final_logit_softcapping=3.0, tie_word_embeddings=True),
    "gemma3": llama(dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000.0),
                         sliding_attention=dict(rope_type="default", rope_theta=50.0)), model_type="gemma3_text",
                    head_dim=12, sliding_window=7, sliding_window_pattern=3, num_hidden_layers=4, query_pre_attn_scalar=20,
                    tie_word_embeddings=True),
    "phi3": llama(model_type="phi3", sliding_window=9),
    "phi3_longrope": llama(dict(rope_type="longrope", rope_theta=100.0, partial_rotary_factor=0.75,
                                short_factor=[1.0, 1.1, 1.3], long_factor=[1.2, 2.0, 4.0]), model_type="phi3",
                           max_position_embeddings=64, original_max_position_embeddings=8),
}


def shake(model):
    """Weights large enough that every part matters, biases and norms too."""
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        is_norm = p.ndim == 1 and name.endswith("weight")
        offset = 0.0 if "gemma" in type(model).__name__.lower() else 1.0
        p.copy_(offset + 0.3 * noise if is_norm else 0.25 * noise)


def save(case, seed, config, tensors):
    (FOLDER / f"{case}.json").write_text(config)
    header = {
        "made_by": f"tools/reference/decoder.py, torch {torch.__version__}, transformers {transformers.__version__}",
        "seed": str(seed),
    }
    path = FOLDER / f"{case}.safetensors"
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, path, header)
    print(f"{case}: {path.stat().st_size // 1000} kB, logits up to {tensors['outputs.logits'].abs().max():.2f}")


def make(case, seed):
    model_type, changes = CASES[case]
    config = AutoConfig.for_model(model_type, **changes)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        shake(model)
        ids = torch.randint(3, 61, (2, TIME))
        out = model(ids, output_hidden_states=True, output_attentions=True, use_cache=False)
        # A continuation with transformers' own cache.
        step = model(ids[:, :PREFILL], use_cache=True)
        cached = [step.logits]
        for n in range(PREFILL, TIME):
            step = model(ids[:, n:n + 1], past_key_values=step.past_key_values, use_cache=True)
            cached.append(step.logits)
        targets = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
        targets[0, :5] = -100
        loss = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    tensors = {
        "inputs.ids": ids.to(torch.int32),
        "inputs.targets": targets.to(torch.int32),
        "outputs.logits": out.logits,
        "outputs.cached_logits": torch.cat(cached, 1),
        "outputs.hidden_states.0": out.hidden_states[0],
        "outputs.hidden_states.1": out.hidden_states[1],
        "outputs.probabilities.1": out.attentions[1],
        "outputs.loss": loss,
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        config = Path(folder, "config.json").read_text()
    tensors |= {f"weights.{name}": w for name, w in weights.items()}
    save(case, seed, config, tensors)


def palm(seed):
    """Chowdhery et al. 2022, section 2: parallel layers, multi-query attention, SwiGLU, RoPE, shared embeddings, no biases."""
    hidden, inner, layers, heads, dim, vocab = 32, 40, 2, 4, 8, 61
    config = dict(model_type="palm", vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                  num_attention_heads=heads, num_key_value_heads=1, head_dim=dim, max_position_embeddings=64)
    torch.manual_seed(seed)
    matrix = lambda *shape: 0.25 * torch.randn(*shape)
    weights = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": 1 + matrix(hidden)}
    for n in range(layers):
        at = f"model.layers.{n}."
        for name, shape in [("self_attn.q_proj", (heads * dim, hidden)), ("self_attn.k_proj", (dim, hidden)),
                            ("self_attn.v_proj", (dim, hidden)), ("self_attn.o_proj", (hidden, heads * dim)),
                            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)),
                            ("mlp.down_proj", (hidden, inner))]:
            weights[f"{at}{name}.weight"] = matrix(*shape)
        weights[f"{at}input_layernorm.weight"] = 1 + matrix(hidden)
    ids = torch.randint(3, vocab, (2, TIME))
    angles = torch.arange(TIME)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    turn = lambda x: torch.cat([x[..., :dim // 2] * angles.cos() - x[..., dim // 2:] * angles.sin(),
                                x[..., :dim // 2] * angles.sin() + x[..., dim // 2:] * angles.cos()], -1)
    norm = lambda x, name: F.layer_norm(x, (hidden,), weights[name + ".weight"])
    embedded = x = weights["model.embed_tokens.weight"][ids]
    states, probabilities = [x], []
    for n in range(layers):
        w = lambda name: weights[f"model.layers.{n}.{name}.weight"]
        y = norm(x, f"model.layers.{n}.input_layernorm")
        q = turn((y @ w("self_attn.q_proj").T).unflatten(-1, (heads, dim)).transpose(1, 2))
        k, v = turn((y @ w("self_attn.k_proj").T)[:, None]), (y @ w("self_attn.v_proj").T)[:, None]
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim)
        p = scores.masked_fill(torch.ones(TIME, TIME, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
        probabilities.append(p)
        attended = (p @ v).transpose(1, 2).flatten(2) @ w("self_attn.o_proj").T
        gated = F.silu(y @ w("mlp.gate_proj").T) * (y @ w("mlp.up_proj").T)
        x = x + attended + gated @ w("mlp.down_proj").T
        states.append(x)
    logits = norm(x, "model.norm") @ weights["model.embed_tokens.weight"].T / math.sqrt(hidden)
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    tensors = {
        "inputs.ids": ids.to(torch.int32), "inputs.targets": targets.to(torch.int32), "outputs.logits": logits,
        "outputs.cached_logits": logits, "outputs.hidden_states.0": embedded, "outputs.hidden_states.1": states[1],
        "outputs.probabilities.1": probabilities[1],
        "outputs.loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100),
    }
    save("palm", seed, json.dumps(config, indent=2), tensors | {f"weights.{n}": w for n, w in weights.items()})


FOLDER.mkdir(parents=True, exist_ok=True)
for seed, case in enumerate(CASES):
    make(case, seed)
palm(len(CASES))
