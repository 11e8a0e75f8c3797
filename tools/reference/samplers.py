"""Reference trajectories of samplers: every step's latent of diffusers' schedulers on a small nonlinear model.

Where diffusers lacks a sampler (DPM++ 2S ancestral), draws from a Brownian tree (DPM++ SDE) or has the sign of a third-order
term wrong (DPM++ 3M SDE), k-diffusion is the reference. All noise is recorded beforehand and handed out in order.

Run: python tools/reference/samplers.py   (writes crates/core/tests/fixtures/sampling/)
"""

import json
import math
import pathlib
import sys
import types

import diffusers
import torch
from diffusers import schedulers as S
from safetensors.torch import save_file

# k-diffusion's package imports its evaluation tools, whose CLIP does not import everywhere; its sampling does not need them.
sys.modules.setdefault("clip", types.ModuleType("clip"))
import k_diffusion.sampling as K  # noqa: E402

SHAPE = (1, 2, 4, 4)
SIZE = math.prod(SHAPE)
OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/core/tests/fixtures/sampling"

torch.manual_seed(20)
A = torch.randn(SIZE, SIZE) / SIZE**0.5
B = torch.randn(SIZE, 3)
NOISE = torch.randn(64, *SHAPE)
START = torch.randn(SHAPE)
X0 = torch.randn(SHAPE)


def model(x, t):
    t = float(t)
    embedding = torch.tensor([math.sin(t / 100), math.cos(t / 100), t / 1000], dtype=torch.float32)
    return torch.tanh(A @ x.flatten() + B @ embedding).reshape(SHAPE)


class Recorded:
    def __init__(self):
        self.drawn = 0

    def __call__(self, *_, **__):
        self.drawn += 1
        return NOISE[self.drawn - 1].clone()


CLASSES = {
    "ddpm": S.DDPMScheduler, "ddim": S.DDIMScheduler, "pndm": S.PNDMScheduler, "euler": S.EulerDiscreteScheduler,
    "euler-a": S.EulerAncestralDiscreteScheduler, "heun": S.HeunDiscreteScheduler, "dpm2": S.KDPM2DiscreteScheduler,
    "dpm2-a": S.KDPM2AncestralDiscreteScheduler, "lms": S.LMSDiscreteScheduler,
    "dpmpp-2m": S.DPMSolverMultistepScheduler, "dpmpp-2m-sde": S.DPMSolverMultistepScheduler,
    "unipc": S.UniPCMultistepScheduler, "lcm": S.LCMScheduler,
}


def scheduler_for(sampler, config):
    """The scheduler, as a Stable Diffusion pipeline has it that opens a folder with this file, or exchanged for another."""
    cls = CLASSES[sampler]
    if "_class_name" in config:
        pipeline = diffusers.StableDiffusionPipeline(
            vae=None, text_encoder=None, tokenizer=None, unet=None, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, scheduler=getattr(S, config["_class_name"]).from_config(config))
        if type(pipeline.scheduler) is cls:
            return pipeline.scheduler
        config = pipeline.scheduler.config
    extra = {"algorithm_type": "sde-dpmsolver++"} if sampler == "dpmpp-2m-sde" else {}
    if sampler == "pndm":
        extra = {"skip_prk_steps": True}
    return cls.from_config(config, **extra)


def diffusers_run(sampler, config, steps, eta, strength):
    """The latents after each whole step (PLMS: each evaluation), as the scheduler keeps them, and the timesteps asked."""
    cls = CLASSES[sampler]
    scheduler = scheduler_for(sampler, config)
    recorded = Recorded()
    sys.modules[cls.__module__].randn_tensor = recorded
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if strength < 1:
        start = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        timesteps = timesteps[start:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        x = scheduler.add_noise(X0, START, timesteps[:1])
    else:
        x = START * scheduler.init_noise_sigma
    kwargs = {"eta": eta} if sampler == "ddim" else {}
    trajectory, asked = [x], []
    for i, t in enumerate(timesteps):
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, return_dict=False, **kwargs)[0]
        asked.append(float(t))
        # A second-order scheduler ends a step at every second evaluation, and at the last, single one.
        if scheduler.order == 1 or i % 2 == 1 or i == len(timesteps) - 1:
            trajectory.append(x)
    return torch.stack(trajectory), asked


def k_diffusion_run(sampler, config, steps):
    """The same from k-diffusion, on the noise levels of diffusers' multistep (3M SDE) or second-order (others) schedulers."""
    cls = S.DPMSolverMultistepScheduler if sampler == "dpmpp-3m-sde" else S.DPMSolverSDEScheduler
    scheduler = cls.from_config(config)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas if cls is S.DPMSolverMultistepScheduler else torch.cat(
        [scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])
    grid = {float(s): float(t) for s, t in zip(
        sigmas, scheduler.timesteps if cls is S.DPMSolverMultistepScheduler else scheduler.timesteps[::2])}
    log_sigmas = torch.log(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).numpy()
    asked = []

    def denoise(x, sigma):
        sigma = float(sigma)
        t = grid.get(sigma)
        if t is None:
            t = float(scheduler._sigma_to_t(torch.tensor(sigma).numpy(), log_sigmas))
        asked.append(t)
        output = model(x / (sigma**2 + 1) ** 0.5, t)
        if config["prediction_type"] == "v_prediction":
            return output * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)
        return x - sigma * output

    recorded = Recorded()
    path = {}

    def noise_sampler(sigma, sigma_next):
        sigma, sigma_next = float(sigma), float(sigma_next)
        if sampler != "dpmpp-sde":
            return recorded()
        # Two noises a step, increments of one Brownian path in sigma: first to the middle, then to the end.
        if not path:
            path["middle"], path["early"] = sigma_next, recorded()
            return path["early"]
        late, early, middle = recorded(), path.pop("early"), path.pop("middle")
        return (early * (sigma - middle) ** 0.5 + late * (middle - sigma_next) ** 0.5) / (sigma - sigma_next) ** 0.5

    run = {"dpmpp-3m-sde": K.sample_dpmpp_3m_sde, "dpmpp-sde": K.sample_dpmpp_sde,
           "dpmpp-2s-a": K.sample_dpmpp_2s_ancestral}[sampler]
    trajectory = []
    top = sigmas.max()
    if sampler == "dpmpp-3m-sde":
        x = START * (1 + top**2) ** 0.5
    else:
        x = START * scheduler.init_noise_sigma
    final = run(denoise, x, sigmas, callback=lambda d: trajectory.append(d["x"].clone()), disable=True,
                noise_sampler=noise_sampler)
    if sampler == "dpmpp-3m-sde":  # stored variance-preserving, like diffusers' multistep solvers
        trajectory = [x / (1 + sigma**2) ** 0.5 for x, sigma in zip(trajectory, sigmas)]
    return torch.stack(trajectory + [final]), asked


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SCHEDULES = {s: {f"use_{s}_sigmas": True} for s in ("karras", "exponential", "beta")}


def cases():
    """(sampler, steps, config entries beside the class name, eta, strength)"""
    for sampler in ("ddpm", "ddim"):
        latent = {"clip_sample": False}
        yield sampler, 5, {}, 0, 1
        yield sampler, 20, SD | latent | LEADING, 0, 1
        yield sampler, 5, SD | latent | TRAILING | V, 0, 1
        yield sampler, 7, SD | latent | LINSPACE, 0, 1
        yield sampler, 1, SD | latent | LEADING, 0, 1
        yield sampler, 5, SD | latent | ZERO, 0, 1
        yield sampler, 5, SD | latent | {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}, 0, 1
        yield sampler, 5, SD | {"clip_sample": True, "clip_sample_range": 0.5} | LEADING, 0, 1
        yield sampler, 10, SD | latent | LEADING, 0, 0.55
    yield "ddpm", 5, SD | {"clip_sample": False, "variance_type": "fixed_large"} | LEADING, 0, 1
    yield "ddim", 20, SD | {"clip_sample": False, "set_alpha_to_one": False} | LEADING, 0.5, 1
    yield "ddim", 5, SD | {"clip_sample": True} | LINSPACE, 1, 1
    for spacing in (LEADING, TRAILING, LINSPACE):
        yield "pndm", 7, SD | spacing, 0, 1
        yield "pndm", 5, SD | spacing | V | {"set_alpha_to_one": True}, 0, 1
    yield "pndm", 1, SD | LEADING, 0, 1
    yield "pndm", 2, SD | LEADING, 0, 1
    yield "pndm", 20, SD | LEADING, 0, 1
    yield "pndm", 10, SD | LEADING, 0, 0.95
    yield "pndm", 10, SD | LEADING, 0, 0.55
    for sampler in ("euler", "euler-a", "heun", "dpm2", "dpm2-a", "lms"):
        yield sampler, 5, {}, 0, 1
        yield sampler, 20, SD | LEADING, 0, 1
        yield sampler, 6, SD | TRAILING | V, 0, 1
        yield sampler, 1, SD | LEADING, 0, 1
        yield sampler, 2, SD, 0, 1
        # Cosine betas end at sigma 2e4, where two references run out of f32: dpm2-a's levels are NaN, and heun differs
        # from itself in f64 by 1e-3.
        if sampler not in ("heun", "dpm2-a"):
            yield sampler, 7, SD | {"beta_schedule": "squaredcos_cap_v2"}, 0, 1
        if sampler != "lms":  # diffusers starts LMS in the middle with coefficients of order 4 for a single slope
            yield sampler, 10, SD | LEADING, 0, 0.55
        if sampler != "euler-a":
            for schedule in SCHEDULES.values():
                yield sampler, 6, SD | schedule, 0, 1
    yield "euler", 5, SD | ZERO, 0, 1
    yield "euler-a", 5, SD | ZERO, 0, 1
    yield "euler", 5, SD | {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}, 0, 1
    yield "euler", 5, SD | SCHEDULES["karras"] | {"sigma_min": 0.1, "sigma_max": 10.0}, 0, 1
    yield "heun", 5, SD | {"clip_sample": True, "prediction_type": "sample"}, 0, 1
    for sampler in ("dpmpp-2m", "dpmpp-2m-sde", "unipc"):
        yield sampler, 5, {}, 0, 1
        yield sampler, 20, SD | LEADING, 0, 1
        yield sampler, 6, SD | TRAILING | V, 0, 1
        yield sampler, 1, SD | LEADING, 0, 1
        yield sampler, 2, SD, 0, 1
        yield sampler, 16, SD | {"final_sigmas_type": "sigma_min"}, 0, 1
        yield sampler, 6, SD | {"final_sigmas_type": "sigma_min"} | SCHEDULES["karras"], 0, 1
        yield sampler, 5, SD | ZERO, 0, 1
        yield sampler, 10, SD | LEADING, 0, 0.55
        for schedule in SCHEDULES.values():
            yield sampler, 6, SD | schedule, 0, 1
    yield "dpmpp-2m", 20, SD | {"solver_order": 3}, 0, 1
    yield "dpmpp-2m", 6, SD | {"solver_order": 3, "lower_order_final": False}, 0, 1
    yield "dpmpp-2m", 16, SD | {"solver_type": "heun", "euler_at_final": True}, 0, 1
    yield "dpmpp-2m-sde", 16, SD | {"solver_type": "heun"}, 0, 1
    yield "dpmpp-2m", 6, SD | {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, 0, 1
    yield "unipc", 8, SD | {"solver_order": 3}, 0, 1
    yield "unipc", 8, SD | {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"}, 0, 1
    yield "unipc", 6, SD | {"disable_corrector": [0, 2]}, 0, 1
    yield "unipc", 6, SD | {"prediction_type": "sample"}, 0, 1
    for steps in (1, 4, 8):
        yield "lcm", steps, SD, 0, 1
    yield "lcm", 4, SD | ZERO, 0, 1
    yield "lcm", 6, SD | {"clip_sample": True, "prediction_type": "v_prediction"}, 0, 1
    yield "lcm", 8, SD, 0, 0.5
    for sampler in ("dpmpp-3m-sde", "dpmpp-sde", "dpmpp-2s-a"):
        yield sampler, 2, SD, 0, 1
        yield sampler, 5, SD | LEADING, 0, 1
        yield sampler, 16, SD | SCHEDULES["karras"], 0, 1
        yield sampler, 6, SD | TRAILING | V, 0, 1


FOLDERS = [
    # Stable Diffusion 1.5, 2.1, XL base, a DPM-Solver fine-tune, and a file that leaves nearly everything out.
    SD | {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "num_train_timesteps": 1000,
          "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False},
    SD | {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "num_train_timesteps": 1000, "clip_sample": False,
          "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
          "trained_betas": None},
    SD | {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "clip_sample": False,
          "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
          "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
          "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
    SD | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "solver_order": 2,
          "solver_type": "midpoint", "thresholding": False, "dynamic_thresholding_ratio": 0.995, "use_karras_sigmas": True,
          "lower_order_final": True, "variance_type": None, "steps_offset": 0},
    {"_class_name": "DDIMScheduler"},
]


def folder_cases():
    for folder in FOLDERS:
        for sampler in ("ddim", "pndm", "euler", "euler-a", "heun", "dpmpp-2m", "unipc", "lcm"):
            if folder.get("prediction_type") != "v_prediction" or sampler != "pndm":
                yield sampler, 4, folder, 0, 1


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    header = {"torch": torch.__version__, "diffusers": diffusers.__version__, "k_diffusion": "0.1.1.post1", "seed": "20"}
    groups = {"runge_kutta": ("euler", "euler-a", "heun", "dpm2", "dpm2-a"), "multistep": ("dpmpp-2m", "dpmpp-2m-sde", "unipc"),
              "others": ("ddpm", "ddim", "pndm", "lms", "lcm", "dpmpp-3m-sde", "dpmpp-sde", "dpmpp-2s-a")}
    save_file({"a": A, "b": B, "noise": NOISE, "start": START, "x0": X0}, OUT / "model.safetensors", header)
    save_file({name: scheduler.alphas_cumprod for name, scheduler in {
        "linear": S.DDIMScheduler(), "scaled_linear": S.DDIMScheduler(**SD),
        "squaredcos_cap_v2": S.DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        "zero_snr": S.DDIMScheduler(**SD, rescale_betas_zero_snr=True),
        "zero_snr_finite": S.EulerDiscreteScheduler(**SD, rescale_betas_zero_snr=True)}.items()},
        OUT / "noise_schedules.safetensors", header)
    listed = []
    tensors = {group: {} for group in groups}
    for index, (sampler, steps, entries, eta, strength) in enumerate([*cases(), *folder_cases()]):
        config = dict(entries)
        if sampler in ("dpmpp-3m-sde", "dpmpp-sde", "dpmpp-2s-a"):
            trajectory, asked = k_diffusion_run(sampler, {"prediction_type": "epsilon"} | config, steps)
        else:
            trajectory, asked = diffusers_run(sampler, config, steps, eta, strength)
        assert trajectory.isfinite().all(), (sampler, steps, entries)
        group = next(g for g, members in groups.items() if sampler in members)
        tensors[group][str(index)] = trajectory.contiguous()
        listed.append({"index": index, "group": group, "sampler": sampler, "steps": steps, "eta": eta,
                       "strength": strength, "config": config, "timesteps": asked})
    for group, members in tensors.items():
        save_file(members, OUT / f"{group}.safetensors", header)
    (OUT / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in listed) + "\n]\n")
    print(len(listed), "cases")


if __name__ == "__main__":
    main()
