"""Logits processors of transformers, for the tests of crates/core/src/sampling/text.

Run: python tools/reference/logit_filters.py [file]
Writes logits (rows, vocabulary), prompt (rows, ids) and NAME.VALUE with the logits after the processor; `chain` after
several. Versions and seed in the header.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else
            Path(__file__).parents[2] / "crates/core/tests/fixtures/logit_filters.safetensors")
ROWS, VOCABULARY = 4, 200

torch.manual_seed(0)
# From nearly even to very decided.
logits = torch.randn(ROWS, VOCABULARY) * torch.tensor([0.3, 1.0, 3.0, 8.0])[:, None]
logits[1, 17] = logits[1].max()  # two likeliest tokens
prompt = torch.randint(0, VOCABULARY, (ROWS, 12))
CASES = {
    "temperature": (TemperatureLogitsWarper, [0.3, 1.7]),
    "top_k": (TopKLogitsWarper, [1, 5, 50]),
    "top_p": (TopPLogitsWarper, [0.1, 0.5, 0.9, 0.99]),
    "min_p": (MinPLogitsWarper, [0.02, 0.2, 0.9]),
    "typical": (TypicalLogitsWarper, [0.2, 0.6, 0.95]),
    "repetition": (RepetitionPenaltyLogitsProcessor, [1.3, 0.8]),
}
tensors = {"logits": logits, "prompt": prompt.to(torch.int32)}
for name, (processor, values) in CASES.items():
    for value in values:
        tensors[f"{name}.{value}"] = processor(value)(prompt, logits.clone())
chain = LogitsProcessorList([
    RepetitionPenaltyLogitsProcessor(1.1), TemperatureLogitsWarper(0.8), TopKLogitsWarper(40), TopPLogitsWarper(0.95),
    MinPLogitsWarper(0.05), TypicalLogitsWarper(0.9),
])
tensors["chain"] = chain(prompt, logits.clone())
made_by = f"tools/reference/logit_filters.py, transformers {transformers.__version__}, torch {torch.__version__}"
save_file({k: v.contiguous() for k, v in tensors.items()}, FILE, {"made_by": made_by, "seed": "0"})
for name, tensor in sorted(tensors.items()):
    print(f"{name:16} {tuple(tensor.shape)} kept {(tensor > -torch.inf).sum(-1).tolist()}")
