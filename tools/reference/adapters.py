"""Makes crates/conjure/tests/fixtures/adapters: LoRA and textual inversion files for the tiny Stable Diffusion of
stable_diffusion.py, and what diffusers computes with them.

    python tools/reference/adapters.py

Made with diffusers 0.42.1, peft 0.21.2, transformers 5.23, torch 2.15 (CPU, f32). The factors are random and large: each
file alone moves the U-Net's prediction by about a tenth of its size or more.
"""

import json
import pathlib
import shutil

import diffusers
import peft
import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "crates/conjure/tests/fixtures"
MODEL = FIXTURES / "stable_diffusion"
OUT = FIXTURES / "adapters"
PROMPT = "a red heart, on blue"
TIMESTEP = 481

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "proj_in", "proj_out"]

# Weights of each file, by its name.
CASES = {
    "diffusers": {"diffusers": 1.0},
    "kohya": {"kohya": 1.0},
    "processors": {"processors": 1.0},
    "weighted": {"diffusers": 0.8},
    "several": {"diffusers": 0.6, "kohya": -0.7, "processors": 0.3},
}


def pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def randomise(state, seed):
    """Normal factors; the product's elements have a standard deviation of about 0.3 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in sorted(state.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if "lora_A" in name:
            noise *= (0.3 / tensor[0].numel()) ** 0.5
        else:
            noise *= (0.3 / tensor.shape[1]) ** 0.5
        result[name] = noise
    return result


def factors(seed, unet_targets, text_targets, rank, alpha):
    """Random factors for these layers, under PEFT's names, and PEFT's settings."""
    pipe = pipeline()
    parts, modules = {}, {}
    for part, model, targets in (("unet", pipe.unet, unet_targets), ("text_encoder", pipe.text_encoder, text_targets)):
        if targets:
            model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
            parts[part] = randomise(get_peft_model_state_dict(model), seed)
            modules[part] = model
            seed += 1
    settings = _collate_lora_metadata(modules)
    for part in settings.values():
        part["base_model_name_or_path"] = None  # where the model lay on this machine
    return parts, settings


def write_diffusers(path):
    parts, settings = factors(1, ATTENTION + ["ff.net.0.proj"], ["q_proj", "k_proj", "v_proj", "out_proj"], 3, 6)
    StableDiffusionPipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=convert_state_dict_to_diffusers(parts["unet"]),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(parts["text_encoder"]),
        weight_name=path.name,
        **settings,
    )


def write_kohya(path):
    """As kohya's scripts with LoCon name them: dots lost, alpha beside the factors."""
    parts, _ = factors(11, ATTENTION + CONVOLUTIONS + ["conv_in"], ["q_proj", "v_proj", "out_proj", "fc1", "fc2"], 2, 1)
    tensors = {}
    for part, state in parts.items():
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        for name, tensor in state.items():
            layer, factor = name.removesuffix(".weight").rsplit(".", 1)
            flat = prefix + layer.replace(".", "_")
            tensors[f"{flat}.{'lora_down' if factor == 'lora_A' else 'lora_up'}.weight"] = tensor
            tensors[f"{flat}.alpha"] = torch.tensor(1.5)
    save_file(tensors, path, {"ss_network_module": "networks.lora", "ss_base_model_version": "sd_v1"})


def write_processors(path):
    """As diffusers' first training scripts named them: below each attention's processor."""
    parts, _ = factors(21, ATTENTION, None, 4, 4)
    tensors = {}
    for name, tensor in parts["unet"].items():
        attention, projection = name.split(".to_")
        projection, factor = projection.removesuffix(".weight").rsplit(".", 1)
        side = "down" if factor == "lora_A" else "up"
        tensors[f"unet.{attention}.processor.to_{projection.split('.')[0]}_lora.{side}.weight"] = tensor
    save_file(tensors, path, {"format": "pt"})


def inputs(pipe):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return latents, ids


@torch.no_grad()
def evaluate(pipe, latents, ids):
    hidden = pipe.text_encoder(ids)[0]
    return hidden, pipe.unet(latents, TIMESTEP, hidden).sample


def write_embeddings():
    """Three vectors for one token in each layout; the text encoder's output for a prompt with it."""
    vectors = 0.5 * torch.randn(3, 16, generator=torch.Generator().manual_seed(31))
    one = 0.5 * torch.randn(16, generator=torch.Generator().manual_seed(32))
    save_file({"<cat-toy>": one}, OUT / "one_vector.safetensors")
    save_file({"emb_params": vectors}, OUT / "spiky.safetensors")
    torch.save({"<cat-toy>": one}, OUT / "one_vector.bin")
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(vectors)},
            "name": "spiky",
            "step": 999,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        },
        OUT / "spiky.pt",
    )
    pipe = pipeline()
    pipe.load_textual_inversion(str(OUT / "one_vector.safetensors"))
    pipe.load_textual_inversion(str(OUT / "spiky.pt"), token="spiky")
    prompt = "a Spiky heart, <cat-toy>on blue"
    converted = pipe.maybe_convert_prompt(prompt.lower(), pipe.tokenizer)
    ids = pipe.tokenizer(converted, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = pipe.text_encoder(ids)[0]
    return prompt, ids, hidden


def main():
    torch.set_num_threads(2)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    for name, write in (("diffusers", write_diffusers), ("kohya", write_kohya), ("processors", write_processors)):
        write(OUT / f"{name}.safetensors")
    expected = {}
    plain = pipeline()
    latents, ids = inputs(plain)
    expected["latents"], expected["ids"] = latents, ids
    expected["plain.hidden"], expected["plain.prediction"] = evaluate(plain, latents, ids)
    for case, weights in CASES.items():
        pipe = pipeline()
        for name in weights:
            pipe.load_lora_weights(OUT, weight_name=f"{name}.safetensors", adapter_name=name)
        pipe.set_adapters(list(weights), list(weights.values()))
        hidden, prediction = evaluate(pipe, latents, ids)
        expected[f"{case}.hidden"], expected[f"{case}.prediction"] = hidden, prediction
        for what, value in (("hidden", hidden), ("prediction", prediction)):
            base = expected[f"plain.{what}"]
            print(f"{case:12} {what:10} moved by {(value - base).norm() / base.norm():.3f} of its size")
    prompt, ids, hidden = write_embeddings()
    expected["embedding.ids"], expected["embedding.hidden"] = ids, hidden
    versions = {
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
    }
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / "expected.safetensors", versions)
    cases = {"versions": versions, "prompt": prompt, "timestep": TIMESTEP, "cases": CASES}
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    for path in sorted(OUT.iterdir()):
        print(f"{path.name:28} {path.stat().st_size:7} bytes")
    assert len(load_file(OUT / "kohya.safetensors")) > 100


if __name__ == "__main__":
    main()
