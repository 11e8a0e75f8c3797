"""Gradients of the loss by every parameter, computed by transformers on the models that decoder.py made.

Run: python tools/reference/decoder_gradients.py [folder]
Writes CASE_gradients.safetensors beside CASE.safetensors, for a Llama and a GPT-2, as gradients.* with the checkpoint's key names.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/decoder")

for case in ("llama", "gpt2"):
    tensors = load_file(FOLDER / f"{case}.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text((FOLDER / f"{case}.json").read_text())
        weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
        save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    logits = model(tensors["inputs.ids"].long(), use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), tensors["inputs.targets"].long().flatten(), ignore_index=-100)
    assert abs(loss.item() - tensors["outputs.loss"].item()) < 1e-5, (loss, tensors["outputs.loss"])
    loss.backward()
    gradients = {f"gradients.{name}": p.grad.clone().contiguous() for name, p in model.named_parameters()}
    path = FOLDER / f"{case}_gradients.safetensors"
    save_file(gradients, path, {"made_by": "tools/reference/decoder_gradients.py"})
    print(case, len(gradients), path.stat().st_size)
