"""Luong's LSTMs with attention, written down once more in PyTorch, for crates/models/tests/it/lstm_attention.rs.

Run: python tools/reference/lstm_attention.py [folder]
Writes lstm_attention.json, the config, and lstm_attention.safetensors with weights.*, inputs.*, outputs.* and gradients.* of the
loss; versions and seed in its header. The equations are those of Luong et al. 2015, step by step and without haste.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "crates/models/tests/fixtures/lstm_attention")
SEED = 11
CONFIG = dict(architectures=["LstmAttention"], model_type="lstm_attention", vocab_size=40, embedding_size=10, hidden_size=12,
              num_layers=2, max_position_embeddings=32, scale_embedding=True, tie_word_embeddings=False, decoder_start_token_id=39, pad_token_id=39,
              eos_token_id=0)


class LstmAttention(torch.nn.Module):
    def __init__(self, vocab_size, embedding_size, hidden_size, num_layers, decoder_start_token_id, **_):
        super().__init__()
        nn = torch.nn
        self.start = decoder_start_token_id
        self.table = nn.Embedding(vocab_size, embedding_size)
        self.encoder = nn.LSTM(embedding_size, hidden_size // 2, num_layers, bidirectional=True, batch_first=True)
        self.decoder = nn.LSTM(embedding_size + hidden_size, hidden_size, num_layers, batch_first=True)
        self.attention = nn.Linear(hidden_size, hidden_size, bias=False)  # W_a
        self.combine = nn.Linear(2 * hidden_size, hidden_size, bias=False)  # W_c
        self.out = nn.Linear(hidden_size, vocab_size, bias=False)  # W_s

    def embed(self, ids):
        return self.table(ids) * self.table.embedding_dim**0.5

    def forward(self, ids, mask, labels):
        packed = pack_padded_sequence(self.embed(ids), mask.sum(1), batch_first=True, enforce_sorted=False)
        states, ends = self.encoder(packed)
        states, _ = pad_packed_sequence(states, batch_first=True)
        # (layers * 2, batch, hidden / 2) to (layers, batch, hidden)
        h, c = (e.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2).contiguous() for e in ends)
        before = torch.cat([torch.full_like(labels[:, :1], self.start), labels[:, :-1]], 1)
        fed, said = torch.zeros_like(h[0]), []
        for t in range(before.shape[1]):
            x = torch.cat([self.embed(before[:, t]), fed], -1)
            h_t, (h, c) = self.decoder(x[:, None], (h, c))
            score = torch.einsum("bh,bsh->bs", h_t[:, 0], self.attention(states))  # equation 8, general
            a = score.masked_fill(mask == 0, float("-inf")).softmax(-1)  # equation 7
            context = torch.einsum("bs,bsh->bh", a, states)
            fed = torch.tanh(self.combine(torch.cat([context, h_t[:, 0]], -1)))  # equation 5
            said.append(fed)
        return self.out(torch.stack(said, 1)), a  # equation 6


torch.manual_seed(SEED)
model = LstmAttention(**CONFIG)
with torch.no_grad():
    for p in model.parameters():
        p.normal_(std=0.4)
ids = torch.randint(1, 39, (3, 8))
mask = torch.ones_like(ids)
mask[1, 5:] = 0
mask[2, 1:] = 0
ids[mask == 0] = 39
labels = torch.randint(0, 39, (3, 6))
logits, last = model(ids, mask, labels)
loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
loss.backward()
tensors = {"inputs.ids": ids.int(), "inputs.mask": mask.int(), "inputs.labels": labels.int(), "outputs.logits": logits,
           "outputs.loss": loss, "outputs.last_probabilities": last}
parameters = {name.replace("table", "embed"): p for name, p in model.named_parameters()}
tensors |= {f"weights.{name}": p for name, p in parameters.items()}
tensors |= {f"gradients.{name}": p.grad for name, p in parameters.items()}
FOLDER.mkdir(parents=True, exist_ok=True)
(FOLDER / "lstm_attention.json").write_text(json.dumps(CONFIG))
header = {"made_by": f"tools/reference/lstm_attention.py, torch {torch.__version__}", "seed": str(SEED)}
save_file({n: t.detach().clone().contiguous() for n, t in tensors.items()}, FOLDER / "lstm_attention.safetensors", header)
