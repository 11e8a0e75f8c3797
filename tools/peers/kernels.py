"""Times single operations of Conjure beside PyTorch, in turn in one run, and prints a Markdown table.

    cargo build --release -p conjure-core --example bench_ops
    python tools/peers/kernels.py [--threads 2] [--rounds 15] [--only conv3x3]

A case is a name that `bench_ops` understands (its kind, then numbers) and a function here that returns PyTorch's
version of it as a function without arguments, and its multiplications and additions; 0 where memory, not
arithmetic, takes the time.
"""

import argparse
import pathlib
import platform
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]


def conv3x3(channels, size):
    x, w, b = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3), torch.randn(channels)
    return lambda: F.conv2d(x, w, b, padding=1), 2 * 9 * channels**2 * size**2


def linear(rows, inputs, outputs):
    x, w, b = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    return lambda: F.linear(x, w, b), 2 * rows * inputs * outputs


def attention(batch, heads, queries, keys, size):
    q, k, v = (torch.randn(batch, time, heads, size).transpose(1, 2) for time in (queries, keys, keys))
    return lambda: F.scaled_dot_product_attention(q, k, v), 4 * batch * heads * queries * keys * size


def group_norm_silu(batch, channels, size):
    x, weight = torch.randn(batch, channels, size, size), torch.randn(channels)
    return lambda: F.silu(F.group_norm(x, 32, weight, weight, 1e-5)), 0


def layer_norm(rows, features):
    x, weight = torch.randn(rows, features), torch.randn(features)
    return lambda: F.layer_norm(x, [features], weight, weight), 0


def gelu(*shape):
    x = torch.randn(*shape)
    return lambda: F.gelu(x), 0


def add(*shape):
    x = torch.randn(*shape)
    return lambda: x + x, 0


def train(batch):
    x = torch.randn(batch, 1, 28, 28)
    channels = [1, 32, 64, 64]
    layers = [torch.nn.Conv2d(i, o, 3, padding=1) for i, o in zip(channels, channels[1:])]

    def step():
        with torch.enable_grad():
            y = x
            for layer in layers:
                layer.zero_grad(set_to_none=True)
                y = F.silu(layer(y))
            y.sum().backward()

    # Forward, gradient by the weight, and gradient by the input but for the first layer.
    first, rest = 1 * 32, 32 * 64 + 64 * 64
    return step, 2 * 9 * 784 * batch * (2 * first + 3 * rest)


CASES = [
    (conv3x3, 320, 64),
    (conv3x3, 640, 32),
    (conv3x3, 1280, 16),
    (conv3x3, 128, 256),
    (linear, 4096, 320, 320),
    (linear, 4096, 320, 2560),
    (linear, 1024, 640, 640),
    (linear, 256, 1280, 10240),
    (linear, 77, 768, 320),
    (train, 64),
    (attention, 1, 8, 4096, 4096, 40),
    (attention, 2, 8, 1024, 1024, 80),
    (attention, 2, 8, 256, 256, 160),
    (attention, 1, 10, 4096, 4096, 64),
    (attention, 1, 1, 4096, 4096, 512),
    (attention, 2, 8, 4096, 77, 40),
    (group_norm_silu, 2, 320, 64),
    (group_norm_silu, 2, 1280, 16),
    (group_norm_silu, 1, 128, 512),
    (layer_norm, 8192, 320),
    (gelu, 2, 4096, 1280),
    (add, 2, 320, 64, 64),
]


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    ours = subprocess.Popen(
        [ROOT / "target/release/examples/bench_ops", str(options.threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run_ours(name):
        ours.stdin.write(name + "\n")
        ours.stdin.flush()
        return float(ours.stdout.readline())

    def run_torch(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    print(f"{cpu_model()}, {options.threads} threads, f32; PyTorch {torch.__version__}; medians of {options.rounds}\n")
    print("| case | Conjure ms | PyTorch ms | Conjure GFLOP/s | PyTorch GFLOP/s | PyTorch time / ours |")
    print("|---|---|---|---|---|---|")
    for make, *sizes in CASES:
        name = " ".join(map(str, [make.__name__, *sizes]))
        if options.only not in name:
            continue
        with torch.no_grad():
            function, operations = make(*sizes)
            times = {"ours": [], "torch": []}
            for i in range(options.rounds + 2):
                # A thread of OpenMP spins for milliseconds after its work and would take a core from the other side.
                # After the pause each side runs once untimed, which wakes its own threads.
                time.sleep(0.02)
                run_ours(name)
                a = run_ours(name)
                time.sleep(0.02)
                run_torch(function)
                b = run_torch(function)
                if i >= 2:  # the first two warm caches and buffers up
                    times["ours"].append(a)
                    times["torch"].append(b)
        a, b = statistics.median(times["ours"]), statistics.median(times["torch"])
        speeds = [f"{operations / seconds / 1e9:.0f}" if operations else "" for seconds in (a, b)]
        print(f"| {name} | {a * 1e3:.2f} | {b * 1e3:.2f} | {speeds[0]} | {speeds[1]} | {b / a:.2f} |", flush=True)
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
