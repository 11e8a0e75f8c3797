"""Tiny language models with tokenizers and PEFT adapters, for the tests of training and perplexity in crates/conjure.

Run: python tools/reference/language_models.py [folder]
Needs peft and gguf. Writes
  llama/, gpt2/           models as transformers saves them, random weights; llama has a tokenizer and a chat template
  llama_adapter/, gpt2_adapter/   LoRA adapters as PEFT saves them, random factors
  llama.gguf              the same llama with its matrices in Q8_0
  text.txt, pairs.jsonl   what was measured
  expected.json           perplexities by window and stride, DPO's losses
  expected.safetensors    logits with the adapters
"""

import json
import math
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1
              else Path(__file__).parents[2] / "crates/conjure/tests/fixtures/language_model")
TEXT = """The tide went out before dawn and left the harbour standing on its mud. Boats leaned against their ropes.
A heron walked between them, slowly, as if it were counting. "Eleven," said Anna, who had counted too; "there were twelve
yesterday." Nobody answered. Far out, where the channel bends, a light went on, went off, and stayed off.

Später kam der Müller vorbei — naß bis auf die Haut — und fragte nach dem zwölften Boot. 十二、と彼女は言った。
They looked at the light that was no longer there. The heron flew up. "Twelve," said Anna again, and the water came back.
"""
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
PAIRS = [
    {"messages": [{"role": "user", "content": "How many boats?"}], "chosen": "Eleven.", "rejected": "I do not count boats."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And the light?"},
                  {"role": "assistant", "content": "Off."}, {"role": "user", "content": "Since when?"}],
     "chosen": "Since dawn.", "rejected": "Yes"},
    {"prompt": "The tide went", "chosen": " out before dawn", "rejected": " in, or so said Anna, who had counted"},
]


def shake(model, size=0.25):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or p.ndim > 1:
                p.copy_(size * torch.randn_like(p))
            else:
                p.add_(0.2 * torch.randn_like(p))


def tokenizer():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    outer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    outer.chat_template = TEMPLATE
    return outer


def perplexity(model, ids, context, stride):
    """Windows as in https://huggingface.co/docs/transformers/perplexity; every token counts as one."""
    total, scored, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:end]])).logits[0].double()
        log_p = F.log_softmax(logits, -1)
        for at in range(max(previous, begin + 1), end):
            total -= log_p[at - 1 - begin, ids[at]].item()
            scored += 1
        previous = end
        if end == len(ids):
            break
    return total, scored


def answer_log_p(model, ids, first):
    with torch.no_grad():
        log_p = F.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(log_p[at - 1, ids[at]].item() for at in range(first, len(ids)))


def sequences(tok, pair, answer):
    """Ids, and where the answer begins; they end with the mark that ends it."""
    if "prompt" in pair:
        before = tok(pair["prompt"], add_special_tokens=False)["input_ids"]
        return before + tok(answer, add_special_tokens=False)["input_ids"] + [tok.eos_token_id], len(before)
    before = tok.apply_chat_template(pair["messages"], add_generation_prompt=True, tokenize=False)
    whole = before + answer + "<|im_end|>"
    first = len(tok(before, add_special_tokens=False)["input_ids"])
    return tok(whole, add_special_tokens=False)["input_ids"], first


def dpo(policy, reference, tok, beta, smoothing):
    losses, margins = [], []
    for pair in PAIRS:
        gained = []
        for answer in (pair["chosen"], pair["rejected"]):
            ids, first = sequences(tok, pair, answer)
            gained.append(answer_log_p(policy, ids, first) - answer_log_p(reference, ids, first))
        m = torch.tensor(beta * (gained[0] - gained[1]), dtype=torch.float64)
        losses.append((-(1 - smoothing) * F.logsigmoid(m) - smoothing * F.logsigmoid(-m)).item())
        margins.append(m.item())
    n = len(PAIRS)
    return {"beta": beta, "label_smoothing": smoothing, "loss": sum(losses) / n, "margin": sum(margins) / n,
            "accuracy": sum(m > 0 for m in margins) / n}


def adapted(base_folder, name, **settings):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_" in key:
                p.copy_(0.3 * torch.randn_like(p))
    # PEFT notes where the base lay on this machine; its name is enough.
    model.peft_config["default"].base_model_name_or_path = base_folder.name
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink(missing_ok=True)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), FOLDER / name).eval()


NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def quantized(model, tok, path):
    """Writes the model as llama.cpp does, in Q8_0, and gives it the weights that are in the file."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("context_length", config.max_position_embeddings), ("embedding_length", config.hidden_size),
                        ("block_count", config.num_hidden_layers), ("feed_forward_length", config.intermediate_size),
                        ("attention.head_count", config.num_attention_heads),
                        ("attention.head_count_kv", config.num_key_value_heads), ("vocab_size", config.vocab_size),
                        ("rope.dimension_count", config.hidden_size // config.num_attention_heads)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    inner = json.loads(tok.backend_tokenizer.to_str())
    tokens = [tok.convert_ids_to_tokens(i) for i in range(len(tok))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            module, kind = name.removeprefix("model.").rsplit(".", 1)
            if module.startswith("layers."):
                _, layer, rest = module.split(".", 2)
                stored = f"blk.{layer}.{NAMES[rest]}.{kind}"
            else:
                stored = {"embed_tokens": "token_embd", "norm": "output_norm"}[module] + f".{kind}"
            array = p.float().numpy()
            if p.ndim == 1:
                writer.add_tensor(stored, array)
                continue
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1])
            if heads:  # the order of features in which llama.cpp rotates
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            blocks = gguf.quants.quantize(np.ascontiguousarray(array), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(stored, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            array = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
            if heads:
                array = array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            p.copy_(torch.from_numpy(np.ascontiguousarray(array)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    torch.manual_seed(7)
    tok = tokenizer()
    llama = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        "llama", vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2,
        pad_token_id=None)).eval()
    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        "gpt2", vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)).eval()
    for name, model in (("llama", llama), ("gpt2", gpt2)):
        shake(model)
        model.save_pretrained(FOLDER / name)
    tok.save_pretrained(FOLDER / "llama")
    (FOLDER / "text.txt").write_text(TEXT)
    (FOLDER / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    llama_lora = adapted(FOLDER / "llama", "llama_adapter", r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
                         rank_pattern={"down_proj": 3}, alpha_pattern={"down_proj": 5})
    gpt2_lora = adapted(FOLDER / "gpt2", "gpt2_adapter", r=3, lora_alpha=4, target_modules=["c_attn", "c_proj", "c_fc"],
                        use_rslora=True, fan_in_fan_out=True)
    ids = tok(TEXT, add_special_tokens=False)["input_ids"]
    cases = []
    for context, stride in ((128, 128), (128, 64), (64, 16), (33, 7), (128, 1)):
        total, scored = perplexity(llama, ids, context, stride)
        cases.append({"context": context, "stride": stride, "scored": scored, "nll": total,
                      "perplexity": math.exp(total / scored)})
    some, few = torch.tensor([ids[:40]]), torch.randint(3, 40, (1, 20))
    with torch.no_grad():
        tensors = {"llama.ids": some.to(torch.int32), "llama.logits": llama_lora(some).logits,
                   "gpt2.ids": few.to(torch.int32), "gpt2.logits": gpt2_lora(few).logits}
    reference = AutoModelForCausalLM.from_pretrained(FOLDER / "llama").eval()
    blocks = AutoModelForCausalLM.from_pretrained(FOLDER / "llama").eval()
    quantized(blocks, tok, FOLDER / "llama.gguf")
    with torch.no_grad():
        tensors["llama.quantized"] = blocks(some).logits
        tensors["llama.quantized_adapted"] = PeftModel.from_pretrained(blocks, FOLDER / "llama_adapter").eval()(some).logits
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, FOLDER / "expected.safetensors")
    expected = {
        "made_by": f"tools/reference/language_models.py, torch {torch.__version__}, transformers {transformers.__version__}, "
                   f"peft {peft.__version__}",
        "tokens": len(ids), "bytes": len(TEXT.encode()), "perplexity": cases,
        "dpo": [dpo(llama_lora, reference, tok, 0.1, 0.0), dpo(llama_lora, reference, tok, 0.3, 0.1)],
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            print(path.relative_to(FOLDER), path.stat().st_size)
    print(json.dumps(expected, indent=1))


if __name__ == "__main__":
    main()
