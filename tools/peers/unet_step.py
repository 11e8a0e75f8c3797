"""One U-Net step at Stable Diffusion 1.5's full size, Conjure beside PyTorch f32, in turn in one run.

    cargo build --release -p conjure-models --example unet_step
    python tools/peers/unet_step.py [--threads N] [--batch 2] [--latent 64] [--rounds 2]

Each program runs alone, in a process of its own, so that peak memory is its own; the fastest step of all rounds counts.
Prints a row for BENCHMARKS.md.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

TORCH = """
import json, resource, sys, time, torch
from diffusers import UNet2DConditionModel
threads, batch, latent, steps = map(int, sys.argv[1:])
torch.set_num_threads(threads)
with torch.device("meta"):
    model = UNet2DConditionModel(cross_attention_dim=768)
model = model.to_empty(device="cpu").eval()
with torch.no_grad():
    for p in model.parameters():
        p.fill_(1.0) if p.ndim == 1 else p.uniform_(-p[0].numel() ** -0.5, p[0].numel() ** -0.5)
sample, prompt = torch.randn(batch, 4, latent, latent), torch.randn(batch, 77, 768)
seconds = []
with torch.inference_mode():
    for _ in range(steps):
        start = time.perf_counter()
        y = model(sample, 500, prompt).sample
        assert y.square().sum().isfinite()
        seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_rss": peak, "version": torch.__version__}))
"""


def run(command, threads):
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    sizes = [str(args.batch), str(args.latent), str(args.steps)]
    commands = {
        "conjure": [str(ROOT / "target/release/examples/unet_step"), *sizes],
        "torch": [sys.executable, "-c", TORCH, str(args.threads), *sizes],
    }
    results = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            results[name].append(run(command, args.threads))
            print(name, results[name][-1], file=sys.stderr)
    best = {name: min(s for r in rs for s in r["seconds"]) for name, rs in results.items()}
    peak = {name: max(r["peak_rss"] for r in rs) / 2**30 for name, rs in results.items()}
    pixels = 8 * args.latent
    print(
        f"| U-Net step, SD 1.5 f32, {pixels}x{pixels}, batch {args.batch}, {args.threads} threads "
        f"| {best['conjure']:.2f} s | {best['torch']:.2f} s (PyTorch {results['torch'][0]['version']}) "
        f"| {best['torch'] / best['conjure']:.2f}x | {peak['conjure']:.2f} GiB | {peak['torch']:.2f} GiB | {cpu()} |"
    )


main()
