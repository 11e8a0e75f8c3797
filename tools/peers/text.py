"""Reading a prompt and writing tokens: Conjure beside llama.cpp on the same GGUF file, in turn in one run.

    cargo build --release
    pip install -r tools/requirements.txt llama-cpp-python
    python tools/peers/text.py MODEL.gguf [--threads 2] [--rounds 5] [--prompt 512] [--generate 64]

Each program runs alone, from a cold start, in a process of its own, so that start and peak memory are its own. Tokens a second
of a round are what the program itself measures, without loading; the median of the rounds counts. Greedy, the same prompt ids.
Prints rows for BENCHMARKS.md.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

LLAMA = """
import json, sys, time
import llama_cpp
path, threads, ids, count = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
model = llama_cpp.Llama(path, n_ctx=len(ids) + count + 8, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
def best():
    logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    import numpy
    return int(numpy.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())
began = time.perf_counter()
model.eval(ids)
token = best()
read = time.perf_counter() - began
began, made = time.perf_counter(), [token]
for _ in range(count - 1):
    model.eval([token])
    token = best()
    made.append(token)
wrote = time.perf_counter() - began
print(json.dumps({"prompt": len(ids) / read, "generated": (count - 1) / wrote, "tokens": made, "version": llama_cpp.__version__}))
"""


def measured(command):
    """What a process prints, its wall time and its peak memory in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(err.decode())
    return out, time.perf_counter() - began, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--cache", default="f16", help="how Conjure keeps keys and values; llama.cpp's is f16")
    parser.add_argument("--conjure", default=str(ROOT / "target/release/conjure"))
    args = parser.parse_args()
    # Ids that every vocabulary has, in no order that repeats.
    ids = [(i * 7919) % 20000 + 100 for i in range(args.prompt)]
    ours = [
        args.conjure, "text", "--model", args.model, "--tokens", ",".join(map(str, ids)), "--temperature", "0",
        "--max-tokens", str(args.generate), "--threads", str(args.threads), "--json",
        "--cache", args.cache,
    ]
    theirs = [sys.executable, "-c", LLAMA, args.model, str(args.threads), json.dumps(ids), str(args.generate)]
    rows = {"conjure": [], "llama.cpp": []}
    tokens = {}
    for _ in range(args.rounds):
        for name, command in (("conjure", ours), ("llama.cpp", theirs)):
            out, seconds, peak = measured(command)
            told = json.loads(out)
            read = told.get("prompt_tokens_per_second", told.get("prompt"))
            # The first token comes of reading the prompt.
            wrote = (len(told["tokens"]) - 1) / told["seconds"] if "seconds" in told else told["generated"]
            rows[name].append((read, wrote, seconds, peak))
            tokens[name] = told["tokens"]
    medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in rows.items()}
    same = next((i for i, (a, b) in enumerate(zip(*tokens.values())) if a != b), args.generate)
    labels = ["prompt tokens/s", "generated tokens/s", "whole process s", "peak MiB"]
    print(f"{pathlib.Path(args.model).name}, prompt {args.prompt}, {args.threads} threads, cache {args.cache}, {args.rounds} rounds; the first {same} tokens agree")
    print("| figure | Conjure | llama.cpp | ratio (above 1: ours is better) |\n|---|---|---|---|")
    for n, label in enumerate(labels):
        a, b = medians["conjure"][n], medians["llama.cpp"][n]
        print(f"| {label} | {a:.2f} | {b:.2f} | {a / b if n < 2 else b / a:.2f} |")


if __name__ == "__main__":
    main()
