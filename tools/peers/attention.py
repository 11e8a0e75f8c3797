"""Times attention, norms and activations beside PyTorch, in turn in one run, and prints the ratios.

Build first: cargo build --release -p conjure-core --example bench_attention
Then:        python tools/peers/attention.py target/release/examples/bench_attention [THREADS]
"""

import json
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

REPEATS = 7


def best_ms(run):
    best = float("inf")
    with torch.no_grad():
        for _ in range(REPEATS):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    return best * 1e3


def peer(case):
    """PyTorch's run of a case, named by what it computes and its sizes."""
    kind, *sizes = case.split()
    sizes = [int(size) for size in sizes]
    if kind == "attention":
        batch, heads, t, s, dim = sizes
        q, k, v = (torch.randn(batch, n, heads, dim).transpose(1, 2) for n in (t, s, s))
        return lambda: F.scaled_dot_product_attention(q, k, v)
    if kind == "group_norm_silu":
        batch, channels, side = sizes
        x, weight = torch.randn(batch, channels, side, side), torch.randn(channels)
        return lambda: F.silu(F.group_norm(x, 32, weight, weight, 1e-5))
    if kind == "layer_norm":
        x, weight = torch.randn(*sizes), torch.randn(sizes[-1])
        return lambda: F.layer_norm(x, sizes[-1:], weight, weight)
    if kind == "gelu":
        x = torch.randn(*sizes)
        return lambda: F.gelu(x)
    if kind == "add":
        batch, channels, side = sizes
        x = torch.randn(batch, channels, side, side)
        return lambda: x + x
    raise ValueError(f"unknown case {case}")


def main():
    binary, threads = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2
    torch.set_num_threads(threads)
    lines = subprocess.run([binary, str(threads)], capture_output=True, text=True, check=True).stdout.splitlines()
    print(f"PyTorch {torch.__version__}, {threads} threads; PyTorch's time over Conjure's: above 1 Conjure is faster")
    print("| case | Conjure ms | PyTorch ms | ratio |")
    print("|---|---|---|---|")
    for line in lines:
        result = json.loads(line)
        torch_ms = best_ms(peer(result["case"]))
        print(f"| {result['case']} | {result['ms']:.2f} | {torch_ms:.2f} | {torch_ms / result['ms']:.2f} |")


if __name__ == "__main__":
    main()
