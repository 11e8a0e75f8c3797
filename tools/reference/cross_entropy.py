"""Cross-entropy of PyTorch, for the tests of crates/core/src/ops/cross_entropy.rs.

Run: python tools/reference/cross_entropy.py [file]
Writes logits, targets, loss.SMOOTHING and gradient.SMOOTHING; version and seed in the header.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else
            Path(__file__).parents[2] / "crates/core/tests/fixtures/cross_entropy.safetensors")

torch.manual_seed(0)
logits = (5 * torch.randn(6, 11)).requires_grad_()
targets = torch.randint(0, 11, (6,))
tensors = {"logits": logits.detach(), "targets": targets.to(torch.int32),
           "log_softmax": logits.detach().log_softmax(-1)}
for smoothing in [0.0, 0.1]:
    loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    tensors[f"loss.{smoothing}"] = loss.detach()
    tensors[f"gradient.{smoothing}"] = torch.autograd.grad(loss, logits)[0]
made_by = f"tools/reference/cross_entropy.py, torch {torch.__version__}"
save_file(tensors, FILE, {"made_by": made_by, "seed": "0"})
