"""Training steps (forward, loss, backward, AdamW), Conjure beside PyTorch eager in f32, in turn in one run.

    cargo build --release -p conjure-models --example train_step
    python tools/peers/train_step.py [--threads N] [--rounds 3] [--models autoencoder,unet,transformer] [--bf16] [--cpu]

Each program runs alone, in a process of its own, so that peak memory is its own; the median step of the last two thirds of
all steps counts. `--bf16` rounds the factors of products to bf16: PyTorch by autocast, Conjure in its own kernels. `--cpu`
counts the seconds that a step computes and not those that it takes: for a machine that does other work, with one thread
(waiting threads of PyTorch compute as well). Prints rows for BENCHMARKS.md.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH = {"autoencoder": 16, "unet": 32, "transformer": 8}
STEPS = "steps"  # stands for their number in a command

TORCH = """
import json, resource, sys, time, torch, diffusers, transformers
import torch.nn.functional as F
root, name, threads, batch, steps, bf16 = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
torch.manual_seed(0)
if name == "autoencoder":
    model = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32, 64, 128, 192], layers_per_block=1, latent_channels=8)
    x, noise = torch.randn(batch, 3, 64, 64), torch.randn(batch, 8, 8, 8)
    def loss():
        p = model.encode(x).latent_dist
        y = model.decode(p.mean + p.std * noise).sample
        return F.mse_loss(y, x) + 1e-6 * p.kl().mean()
elif name == "unet":
    model = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(root + "/models/emoji/unet"))
    size = (batch, model.config.in_channels, 8, 8)
    x, target, prompt = torch.randn(size), torch.randn(size), torch.randn(batch, 32, 256)
    t = torch.arange(batch) * 1000 // batch
    def loss():
        return F.mse_loss(model(x, t, prompt).sample, target)
else:
    vocabulary, time_ = 1024, 256
    model = torch.nn.ModuleList([
        transformers.CLIPTextModel(transformers.CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=384, intermediate_size=1536, num_hidden_layers=6,
            num_attention_heads=6, max_position_embeddings=time_)),
        torch.nn.Linear(384, vocabulary, bias=False)])
    ids = (torch.arange(batch * time_) * 7919 % vocabulary).view(batch, time_)
    def loss():
        y = model[1](model[0](ids).last_hidden_state)
        return F.cross_entropy(y.view(-1, vocabulary).float(), ids.view(-1))
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01)
seconds = []
for _ in range(steps):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
        value = loss()
    optimizer.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    value.item()
    seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_rss": peak, "version": torch.__version__,
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""


def run(command, threads):
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def computed(command, threads, steps):
    """Seconds that the processors compute for a step: a long run less a short one, of two steps."""

    def seconds(steps):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run([str(steps) if word is STEPS else word for word in command], threads)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result

    short, _ = seconds(2)
    long, result = seconds(steps)
    return result | {"seconds": [(long - short) / (steps - 2)] * steps}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", default="autoencoder,unet,transformer")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    for model in args.models.split(","):
        numbers = [str(args.threads), str(BATCH[model]), STEPS]
        commands = {
            "conjure": [str(ROOT / "target/release/examples/train_step"), "--model", model, "--threads", numbers[0],
                        "--batch", numbers[1], "--steps", numbers[2], "--bf16", str(int(args.bf16))],
            "torch": [sys.executable, "-W", "ignore", "-c", TORCH, str(ROOT), model, *numbers, str(int(args.bf16))],
        }
        results = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                if args.cpu:
                    results[name].append(computed(command, args.threads, args.steps))
                else:
                    results[name].append(run([str(args.steps) if w is STEPS else w for w in command], args.threads))
                print(name, results[name][-1], file=sys.stderr)
        step = {
            name: statistics.median(s for r in rs for s in r["seconds"][args.steps // 3 :]) for name, rs in results.items()
        }
        peak = {name: max(r["peak_rss"] for r in rs) / 2**20 for name, rs in results.items()}
        print(
            f"| {model}, batch {BATCH[model]}, {args.threads} threads{', bf16' if args.bf16 else ''}{', CPU time' if args.cpu else ''} "
            f"| {step['conjure']:.3f} s | {step['torch']:.3f} s | {step['torch'] / step['conjure']:.2f} "
            f"| {peak['conjure']:.0f} MiB | {peak['torch']:.0f} MiB | {peak['conjure'] / peak['torch']:.2f} |",
            flush=True,
        )


main()
