"""Writes small PyTorch checkpoints of every layout that is read, and their tensors as safetensors:
crates/core/tests/fixtures/checkpoint_*.pt and checkpoint_expected.safetensors.
"""

import io
import pathlib
import zipfile

import safetensors.torch
import torch

OUT = pathlib.Path(__file__).parents[2] / "crates/core/tests/fixtures"
torch.manual_seed(0)

base = torch.randn(6, 4)
tensors = {
    "plain": torch.randn(3, 5),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    # Views of one storage: whole, transposed, with an offset, with gaps.
    "shared.whole": base,
    "shared.transposed": base.t(),
    "shared.rows": base[2:5],
    "shared.gaps": base[::2, 1::2],
    "half": torch.randn(7).half(),
    "brain": torch.randn(7).bfloat16(),
    "double": torch.randn(7).double(),
    "long": torch.tensor([[-1, 2**40]]),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
}
optimiser = torch.optim.Adam([tensors["parameter"]])
tensors["parameter"].square().sum().backward()
optimiser.step()
whole = {"epoch": 3, "state_dict": tensors, "optimizer_states": [optimiser.state_dict()], "lr": 1e-4, "device": torch.device("cpu")}

expected = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
versions = {"made_by": "tools/reference/checkpoints.py", "torch": torch.__version__}
safetensors.torch.save_file(expected, OUT / "checkpoint_expected.safetensors", metadata=versions)

torch.save(tensors, OUT / "checkpoint_flat.pt")
torch.save(whole, OUT / "checkpoint_nested.pt")
torch.save(whole, OUT / "checkpoint_legacy.pt", _use_new_zipfile_serialization=False)
torch.save(whole, OUT / "checkpoint_protocol4.pt", pickle_protocol=4)

# The same archive with its entries deflated, as some tools repack it.
stored = io.BytesIO()
torch.save(tensors, stored)
with zipfile.ZipFile(stored) as source, zipfile.ZipFile(OUT / "checkpoint_deflated.pt", "w", zipfile.ZIP_DEFLATED) as target:
    for name in source.namelist():
        target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)

for path in sorted(OUT.glob("checkpoint_*")):
    print(path.name, path.stat().st_size)
