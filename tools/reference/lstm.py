"""torch.nn.LSTM with two layers in both directions, for crates/core/tests/it/lstm.rs.

Run: python tools/reference/lstm.py [file]
Writes weights.*, x, mask, states, outputs and gradients of sum(y * dy) + sum(c * dc); versions and seed in the header.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FILE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/core/tests/fixtures/lstm.safetensors")
SEED, BATCH, TIME, INPUT, HIDDEN = 7, 3, 9, 5, 6

torch.manual_seed(SEED)
lstm = torch.nn.LSTM(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
with torch.no_grad():
    for p in lstm.parameters():
        p.normal_(std=0.6)
lengths = torch.tensor([TIME, 5, 1])
mask = (torch.arange(TIME)[None] < lengths[:, None]).int()
x = torch.randn(BATCH, TIME, INPUT, requires_grad=True)
h0, c0 = torch.randn(4, BATCH, HIDDEN), torch.randn(4, BATCH, HIDDEN)

# Without padding, with states before.
whole, (whole_h, whole_c) = lstm(x, (h0, c0))
# With padding.
y, (h, c) = lstm(pack_padded_sequence(x, lengths, batch_first=True))
y, _ = pad_packed_sequence(y, batch_first=True)
dy, dc = torch.randn_like(y), torch.randn_like(c)
((y * dy).sum() + (c * dc).sum()).backward()

tensors = {"x": x, "mask": mask, "h0": h0, "c0": c0, "whole": whole, "whole_h": whole_h, "whole_c": whole_c, "y": y, "h": h,
           "c": c, "dy": dy, "dc": dc, "gradients.x": x.grad}
tensors |= {f"weights.{name}": p for name, p in lstm.named_parameters()}
tensors |= {f"gradients.{name}": p.grad for name, p in lstm.named_parameters()}
header = {"made_by": f"tools/reference/lstm.py, torch {torch.__version__}", "seed": str(SEED)}
save_file({name: t.detach().contiguous() for name, t in tensors.items()}, FILE, header)
