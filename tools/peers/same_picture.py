"""The shipped picture model in diffusers and in Conjure: the same picture, with their times and memory.

    cargo build --release
    pip install -r tools/requirements.txt
    python tools/peers/same_picture.py [--model models/emoji] [--prompts "a red heart, fluent style" ...] [--steps 20]
        [--guidance 3.5] [--seed 7] [--threads 2] [--out FOLDER]

Both begin with PyTorch's noise for the seed, in f32, each in a process of its own. Prints for each prompt the PSNR between the
two pictures, the seconds from the start of the program to the finished file, and the largest memory.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["a red heart, fluent style", "red apple, flat style", "smiling face with sunglasses, noto style"]

DIFFUSERS = """
import json, resource, sys, time
model, prompt, steps, guidance, seed, threads, out = sys.argv[1:]
import torch
from diffusers import StableDiffusionPipeline
torch.set_num_threads(int(threads))
pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
began = time.perf_counter()
picture = pipeline(prompt, num_inference_steps=int(steps), guidance_scale=float(guidance),
                   generator=torch.Generator().manual_seed(int(seed))).images[0]
print(json.dumps({"work": time.perf_counter() - began}))
picture.save(out)
"""


def timed(command, environment):
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    output, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{errors}")
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, output


def psnr(a, b):
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (a, b))
    if a.shape != b.shape:
        sys.exit(f"the pictures have different sizes: {a.shape} and {b.shape}")
    error = ((a - b) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/emoji"))
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    args = parser.parse_args()
    folder = pathlib.Path(args.out or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    settings = [str(args.steps), str(args.guidance), str(args.seed), str(args.threads)]
    for n, prompt in enumerate(args.prompts):
        theirs, ours = folder / f"{n}-diffusers.png", folder / f"{n}-conjure.png"
        command = [str(ROOT / "target/release/conjure"), "image", prompt, "--model", args.model, "--rng", "torch",
                   "--upscale", "1", "--steps", settings[0], "--guidance", settings[1], "--seed", settings[2],
                   "--threads", settings[3], "-o", str(ours)]
        # The memory of all children so far is the largest of theirs: Conjure goes first.
        seconds, memory, _ = timed(command, environment)
        their_seconds, their_memory, output = timed([sys.executable, "-c", DIFFUSERS, args.model, prompt, *settings, str(theirs)], environment)
        work = json.loads(output.splitlines()[-1])["work"]
        print(f"{prompt!r}: PSNR {psnr(theirs, ours):.1f} dB; Conjure {seconds:.2f} s", end="")
        print(f" and {memory:.0f} MiB" if n == 0 else "", end="")
        print(f", diffusers {their_seconds:.2f} s ({work:.2f} s of them for the picture) and {their_memory:.0f} MiB")
    print(f"pictures are in {folder}")


if __name__ == "__main__":
    main()
