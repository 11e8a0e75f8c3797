"""Records what PyTorch's CPU generator draws: crates/core/tests/fixtures/torch_rng.json.

Each case is a seed and a list of calls on one generator; of a long draw the first and last 48 numbers are kept.
"""

import json
import pathlib

import torch

SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 42, 2**63 + 12345, 2**64 - 1]
CALLS = (
    [[("normal", n)] for n in (1, 5, 15, 16, 17, 31, 64, 4 * 64 * 64)]
    + [[("uniform", n)] for n in (1, 40)]
    # The second half of a pair waits through calls that do not use it.
    + [[("normal", 5), ("normal", 16), ("normal", 2), ("uniform", 3), ("normal", 1), ("normal", 33), ("normal", 3)]]
    + [[("normal", 4 * 64 * 64), ("normal", 4 * 64 * 64), ("normal", 4 * 64 * 64 + 5)]]
)
DRAW = {"normal": torch.randn, "uniform": torch.rand}
KEEP = 48

cases = []
for seed in SEEDS:
    for calls in CALLS if seed in (0, 42) else CALLS[2:6] + CALLS[-2:-1]:
        generator = torch.Generator("cpu").manual_seed(seed)
        draws = []
        for kind, n in calls:
            values = DRAW[kind](n, generator=generator).tolist()
            ends = values if n <= 2 * KEEP else values[:KEEP] + values[-KEEP:]
            draws.append({"kind": kind, "n": n, "values": [float(f"{v:.9g}") for v in ends]})
        cases.append({"seed": str(seed), "draws": draws})

fixture = {"made_by": "tools/reference/rng.py", "torch": torch.__version__, "keep": KEEP, "cases": cases}
path = pathlib.Path(__file__).parents[2] / "crates/core/tests/fixtures/torch_rng.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(fixture, indent=None, separators=(",", ":")) + "\n")
print(path, path.stat().st_size)
