"""Makes crates/conjure/tests/fixtures/stable_diffusion: a tiny random Stable Diffusion in the diffusers layout and the
pictures that diffusers renders with it.

    python tools/reference/stable_diffusion.py

Made with diffusers 0.42.1, transformers 5.23, torch 2.15 (CPU, f32). Weights are random but scaled so that pictures use
the whole range of brightness and depend on prompt, seed and every step: a mistake anywhere moves PSNR far below 45 dB.
"""

import json
import pathlib
import shutil

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/conjure/tests/fixtures/stable_diffusion"
PROMPT = "a red heart, on blue"
NEGATIVE = "green"
SIZE = 64
STEPS = 6
SEED = 42


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(hidden))]


def write_tokenizer(folder):
    letters = byte_alphabet()
    merges = ["r e", "re d</w>", "h e", "a r", "ar t</w>", "he art</w>", "o n</w>", "b l", "u e</w>", "bl ue</w>"]
    pieces = letters + [c + "</w>" for c in letters] + [m.replace(" ", "") for m in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    dump(folder / "vocab.json", {p: i for i, p in enumerate(pieces)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    dump(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": "<|startoftext|>",
            "do_lower_case": True,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": "<|endoftext|>",
        },
    )
    return len(pieces)


def dump(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def randomise(model, seed, gain):
    """Normal weights of standard deviation gain / sqrt(fan in); norms near 1; small biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                p.copy_(noise * gain / p[0].numel() ** 0.5)


def unet(in_channels):
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    randomise(model, 1, 1.0)
    return model


def build(folder):
    vocabulary = write_tokenizer(folder / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )
    randomise(text, 2, 1.0)
    text.save_pretrained(folder / "text_encoder")
    unet(4).save_pretrained(folder / "unet")
    unet(9).save_pretrained(folder / "unet_inpaint")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    randomise(vae, 3, 1.0)
    vae.save_pretrained(folder / "vae")
    # As the public SD 1.5 states it: what it leaves out is each scheduler's own default.
    (folder / "scheduler").mkdir()
    dump(
        folder / "scheduler/scheduler_config.json",
        {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.6.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "clip_sample": False,
        },
    )
    dump(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def drawings(folder):
    """A gradient with a disc, and a mask whose edge does not lie on the latent grid."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    picture = np.stack([x * 4, y * 4, 255 - 2 * (x + y)], -1).clip(0, 255).astype(np.uint8)
    picture[(x - 24) ** 2 + (y - 30) ** 2 < 200] = (240, 30, 60)
    Image.fromarray(picture).save(folder / "init.png")
    mask = (((x - 40) ** 2 + (y - 30) ** 2) < 330).astype(np.uint8) * 255
    Image.fromarray(mask).save(folder / "mask.png")


SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}

# name, task, sampler (None: the folder's own), and what differs from the defaults of this file
CASES = [
    *[(f"text-{sampler}", "text", sampler, {}) for sampler in SCHEDULERS],
    ("text-default", "text", None, {}),
    ("text-euler-karras", "text", "euler", {"schedule": "karras"}),
    ("text-dpmpp-2m-karras", "text", "dpmpp-2m", {"schedule": "karras"}),
    ("text-guidance-1", "text", "ddim", {"guidance": 1.0}),
    ("text-rescale", "text", "ddim", {"guidance_rescale": 0.7}),
    ("text-eta", "text", "ddim", {"eta": 0.6}),
    ("text-batch", "text", "euler", {"batch": 2}),
    ("text-clip-skip", "text", "euler", {"clip_skip": 1}),
    ("text-wide", "text", "euler", {"width": 72, "height": 48}),
    ("text-v-prediction", "text", "euler", {"prediction_type": "v_prediction"}),
    *[(f"init-{s}", "init", s, {"strength": 0.6}) for s in ("pndm", "ddim", "euler", "euler-a", "dpmpp-2m", "unipc")],
    *[(f"mask-{s}", "mask", s, {"strength": 1.0}) for s in ("ddim", "euler", "dpmpp-2m")],
    ("mask-strength", "mask", "euler-a", {"strength": 0.7}),
    ("mask9-ddim", "mask9", "ddim", {"strength": 1.0}),
    ("mask9-strength", "mask9", "euler", {"strength": 0.7}),
]
PIPELINES = {
    "text": StableDiffusionPipeline,
    "init": StableDiffusionImg2ImgPipeline,
    "mask": StableDiffusionInpaintPipeline,
    "mask9": StableDiffusionInpaintPipeline,
}


def render(folder, task, sampler, settings):
    parts = {"safety_checker": None}
    if task == "mask9":
        parts["unet"] = UNet2DConditionModel.from_pretrained(folder / "unet_inpaint")
    pipe = PIPELINES[task].from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    # With clip_skip this diffusers looks for the final norm where transformers 5 no longer keeps it.
    pipe.text_encoder.__dict__.setdefault("text_model", pipe.text_encoder)
    extra = {}
    if settings.get("schedule") == "karras":
        extra["use_karras_sigmas"] = True
    if "prediction_type" in settings:
        extra["prediction_type"] = settings["prediction_type"]
    if sampler is not None:
        name, own = SCHEDULERS[sampler]
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **own, **extra)
    call = dict(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=settings.get("guidance", 7.5),
        num_images_per_prompt=settings.get("batch", 1),
        eta=settings.get("eta", 0.0),
        clip_skip=settings.get("clip_skip"),
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    )
    if task == "text":
        call["guidance_rescale"] = settings.get("guidance_rescale", 0.0)
        call["width"], call["height"] = settings.get("width"), settings.get("height")
    else:
        call["image"] = Image.open(folder / "init.png")
        call["strength"] = settings["strength"]
    if task.startswith("mask"):
        call["mask_image"] = Image.open(folder / "mask.png")
        call["width"] = call["height"] = SIZE
    pictures = pipe(**call).images
    return torch.from_numpy((pictures * 255).round().astype(np.uint8))


def main():
    torch.set_num_threads(2)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    build(OUT)
    drawings(OUT)
    pictures, cases = {}, []
    for name, task, sampler, settings in CASES:
        pictures[name] = render(OUT, task, sampler, settings)
        cases.append({"name": name, "task": task, "sampler": sampler, **settings})
        shown = pictures[name].float()
        base = pictures["text-ddpm"].float()
        distance = (
            10 * torch.log10(255**2 / ((shown - base) ** 2).mean()) if shown.shape == base.shape else float("nan")
        )
        print(f"{name:24} mean {shown.mean():6.1f} std {shown.std():5.1f} against text-ddpm {distance:5.1f} dB")
    half = len(CASES) // 2
    versions = {
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
    }
    names = list(pictures)
    for part, chosen in enumerate((names[:half], names[half:])):
        save_file({n: pictures[n].contiguous() for n in chosen}, OUT / f"pictures_{part}.safetensors", versions)
    defaults = {"prompt": PROMPT, "negative": NEGATIVE, "steps": STEPS, "seed": SEED, "size": SIZE}
    dump(OUT / "cases.json", {"versions": versions, "defaults": defaults, "cases": cases})


if __name__ == "__main__":
    main()
