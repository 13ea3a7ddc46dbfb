#!/usr/bin/env python3
"""Times the work of `catelier bench` in the Python stack: torch, diffusers, PEFT.

    python recipe/bench_peer.py cat --shape sd15 --latent 32 --threads 1

prints one JSON object whose keys are those of `catelier bench --json`. Models have the configurations that
`catelier bench` has, and random weights made in memory. `cargo xtask bench-peer` runs both in turn.

unet      one forward pass
lora      one optimizer step: denoising with the adapter
cat       one optimizer step as the authors of CAT take it: a pass with the trigger, a pass without it, a pass of a
          second, frozen UNet without it, one backward pass of the sum; with --copies 1 there is no second UNet, the
          adapter is switched off for that pass
generate  guided DDIM steps, then the decoder
vae       pictures to latents and back
text      prompts of full length

f32 is everything in f32. mixed is frozen weights in bf16 and the adapter in f32 under autocast, which is what
diffusers' training scripts do for `--mixed_precision bf16`.

With `--device cuda` memory is what torch holds on the device, and nothing is told of processor time.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "embedded": ROOT / "base",
    **{name: ROOT / "bench/src/shapes" / name for name in ("sd15", "sd21", "sdxl")},
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
# Sides of the matrices whose product shows how fast a device is, as in `catelier bench`.
PRODUCT_SIDES, PRODUCT_REPEATS = {"cpu": 1024, "cuda": 8192}, 8


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=sorted(WORK))
    parser.add_argument("--shape", choices=sorted(SHAPES), default="sd15")
    parser.add_argument("--latent", type=int, default=32, help="side of the latents; 32 is a picture of 256 px")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=["f32", "mixed"], default="f32")
    parser.add_argument("--copies", type=int, choices=[1, 2], default=2, help="of the weights, for cat")
    parser.add_argument("--device", choices=sorted(PRODUCT_SIDES), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the UNet; the warm-up pays for it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    if args.work == "generate" and args.shape == "sdxl":
        parser.error("generate knows the pipeline of sd15, sd21 and embedded only")
    if args.work != "cat" and args.copies != 2:
        parser.error("--copies is for cat")
    if args.compile and (args.work in ("vae", "text") or args.warmup == 0):
        parser.error("--compile is for work with a UNet, and needs a warm-up")
    return args


class Models:
    """The parts of one shape, built when they are asked for, in the type of the frozen weights."""

    def __init__(self, args):
        import torch

        self.args, self.torch, self.device = args, torch, args.device
        self.folder = SHAPES[args.shape]
        self.dtype = torch.bfloat16 if args.dtype == "mixed" else torch.float32

    def config(self, component):
        return json.loads((self.folder / component / "config.json").read_text())

    def build(self, make):
        """What `make` builds, frozen; its random weights are made in the right type at once."""
        self.torch.set_default_dtype(self.dtype)
        try:
            return make().requires_grad_(False).eval().to(self.device)
        finally:
            self.torch.set_default_dtype(self.torch.float32)

    def unet(self):
        from diffusers import UNet2DConditionModel

        unet = self.build(lambda: UNet2DConditionModel.from_config(self.config("unet")))
        if self.args.compile:
            unet.compile()  # in place, when it is first called: with its adapter, if it gets one
        return unet

    def vae(self):
        from diffusers import AutoencoderKL

        return self.build(lambda: AutoencoderKL.from_config(self.config("vae")))

    def text_encoders(self):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kinds = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
        encoders = []
        for component in ("text_encoder", "text_encoder_2"):
            if (self.folder / component / "config.json").exists():
                config = self.config(component)
                kind = kinds[config["architectures"][0]]
                config.pop("dtype", None)
                encoders.append(self.build(lambda: kind(CLIPTextConfig(**config))))
        return encoders

    def schedule(self, kind):
        import diffusers

        settings = json.loads((self.folder / "scheduler/scheduler_config.json").read_text())
        return getattr(diffusers, kind).from_config(settings)

    def normal(self, *shape):
        return self.torch.randn(*shape, dtype=self.dtype, device=self.device)

    def latents(self):
        side = self.args.latent
        return self.normal(self.args.batch, self.config("unet").get("in_channels", 4), side, side)

    def tokens(self):
        return self.config("text_encoder")["max_position_embeddings"]

    def condition(self):
        """Random keyword arguments of the UNet for one batch of prompts."""
        config, batch = self.config("unet"), self.args.batch
        condition = {"encoder_hidden_states": self.normal(batch, self.tokens(), config["cross_attention_dim"])}
        if config.get("addition_embed_type") == "text_time":
            time_width = config["addition_time_embed_dim"]
            pooled = config["projection_class_embeddings_input_dim"] - 6 * time_width
            side = 8.0 * self.args.latent
            sizes = [[side, side, 0.0, 0.0, side, side]]
            time_ids = self.torch.tensor(sizes, dtype=self.dtype, device=self.device).repeat(batch, 1)
            condition["added_cond_kwargs"] = {"text_embeds": self.normal(batch, pooled), "time_ids": time_ids}
        return condition

    def precision(self):
        """The context in which the models are called."""
        if self.args.dtype == "mixed":
            return self.torch.autocast(self.device, dtype=self.torch.bfloat16)
        return contextlib.nullcontext()


def unet_work(models):
    torch, unet = models.torch, models.unet()
    latents, condition = models.latents(), models.condition()
    timestep = torch.tensor(500, device=models.device)

    def work():
        with torch.no_grad(), models.precision():
            unet(latents, timestep, **condition)

    return work


@contextlib.contextmanager
def without_adapter(unet):
    """The base. PEFT also freezes the adapter meanwhile, and asks for its gradients again afterwards."""
    unet.disable_adapters()
    try:
        yield unet
    finally:
        unet.enable_adapters()


def training_work(models, with_cat):
    import torch
    from peft import LoraConfig

    unet, schedule = models.unet(), models.schedule("DDPMScheduler")
    frozen = models.unet() if with_cat and models.args.copies == 2 else None
    rank = models.args.rank
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    unet.train()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    latents, with_trigger, without_trigger = models.latents(), models.condition(), models.condition()
    squared = torch.nn.functional.mse_loss

    def predict(noisy, timesteps, condition):
        with models.precision():
            return unet(noisy, timesteps, **condition).sample.float()

    def base():
        return without_adapter(unet) if frozen is None else contextlib.nullcontext(frozen)

    def step():
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),), device=models.device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        velocity = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps) if velocity else noise
        loss = squared(predict(noisy, timesteps, with_trigger), target.float())
        if with_cat:
            with torch.no_grad(), models.precision(), base() as unadapted:
                kept = unadapted(noisy, timesteps, **without_trigger).sample.float()
            loss = loss + squared(predict(noisy, timesteps, without_trigger), kept)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def generate_work(models):
    import torch
    from diffusers import StableDiffusionPipeline

    (text,), args, unet, vae = models.text_encoders(), models.args, models.unet(), models.vae()
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=models.schedule("DDIMScheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    ids = torch.arange(models.tokens(), device=models.device).unsqueeze(0)
    side = args.latent * pipeline.vae_scale_factor

    def work():
        with torch.no_grad(), models.precision():
            negative, positive = (text(ids).last_hidden_state.to(models.dtype) for _ in range(2))
            pipeline(prompt_embeds=positive.repeat(args.batch, 1, 1),
                     negative_prompt_embeds=negative.repeat(args.batch, 1, 1),
                     num_inference_steps=args.steps, guidance_scale=7.5, height=side, width=side, output_type="np")

    return work


def vae_work(models):
    torch, vae = models.torch, models.vae()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side, scale = models.args.latent * factor, vae.config.scaling_factor
    pictures = models.normal(models.args.batch, vae.config.in_channels, side, side).clamp(-1, 1)

    def work():
        with torch.no_grad(), models.precision():
            latents = vae.encode(pictures).latent_dist.mode() * scale
            vae.decode(latents / scale)

    return work


def text_work(models):
    torch, encoders = models.torch, models.text_encoders()
    ids = torch.arange(models.tokens(), device=models.device).repeat(models.args.batch, 1)

    def work():
        with torch.no_grad(), models.precision():
            for encoder in encoders:
                encoder(ids)

    return work


WORK = {
    "unet": unet_work,
    "lora": lambda models: training_work(models, with_cat=False),
    "cat": lambda models: training_work(models, with_cat=True),
    "generate": generate_work,
    "vae": vae_work,
    "text": text_work,
}


def status_bytes(key):
    """A line of /proc/self/status in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def forget_peak():
    """Lets VmHWM begin anew; whether the system could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measure(work, warmup, repeat):
    loaded = status_bytes("VmRSS")
    for _ in range(warmup):
        work()
    peak_is_known = forget_peak()
    wall, cpu = [], []
    for _ in range(repeat):
        wall_before, cpu_before = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - wall_before)
        cpu.append(time.process_time() - cpu_before)
    return {
        "wall_seconds": median_and_best(wall),
        "cpu_seconds": median_and_best(cpu),
        "memory_bytes": {"after_loading": loaded, "peak": status_bytes("VmHWM") if peak_is_known else None},
    }


def measure_on_cuda(work, warmup, repeat):
    """The same on the device, which goes on by itself after the last call."""
    from torch import cuda

    loaded = cuda.memory_allocated()
    for _ in range(warmup):
        work()
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    wall = []
    for _ in range(repeat):
        before = time.perf_counter()
        work()
        cuda.synchronize()
        wall.append(time.perf_counter() - before)
    return {
        "wall_seconds": median_and_best(wall),
        "cpu_seconds": None,
        "memory_bytes": {"after_loading": loaded, "peak": cuda.max_memory_allocated()},
    }


MEASURE = {"cpu": measure, "cuda": measure_on_cuda}


def median_and_best(seconds):
    return {"median": statistics.median(seconds), "best": min(seconds)}


def matrix_product(device, dtype):
    """The best rate of a large product."""
    import torch

    side = PRODUCT_SIDES[device]
    ones = torch.ones(side, side, dtype=dtype, device=device)
    measured = MEASURE[device](lambda: ones @ ones, 1, PRODUCT_REPEATS)
    gflop, cpu = 2 * side**3 / 1e9, measured["cpu_seconds"]
    return {
        "gflop_per_second": gflop / measured["wall_seconds"]["best"],
        "gflop_per_cpu_second": cpu and gflop / cpu["best"],
    }


def main():
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    # Libraries may print; stdout is for the JSON object alone.
    stdout, sys.stdout = sys.stdout, sys.stderr
    warnings.filterwarnings("ignore")
    import diffusers
    import peft
    import torch
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    # f32 is f32: cuDNN's convolutions would round their factors to TF32 unless told not to.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report = vars(args) | MEASURE[args.device](WORK[args.work](Models(args)), args.warmup, args.repeat)
    types = {"f32": torch.float32, "bf16": torch.bfloat16}
    report["matrix_product"] = {name: matrix_product(args.device, dtype) for name, dtype in types.items()}
    report["versions"] = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, peft)}
    print(json.dumps(report), file=stdout)


if __name__ == "__main__":
    main()
