"""Where classifier-free guidance should start from, for adapters of drawn artists, by the judge.

    python recipe/guidance.py --binary target/release/catelier --base base --judge WEIGHTS --work /tmp/guidance \\
        --artists goldleaf wash --losses cat lora

Trains an adapter for every artist and loss with `catelier train`'s defaults, draws with stock diffusers modules under each
way to guide, and prints a table of how often the judge names the object and the artist. DCO's separate guidance (Lee et al.
2024, arXiv 2402.12004) is among the ways; `catelier` does not have it.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import judge
from captions import full
from gallery import COLOURS, OBJECTS, SETTINGS, labels_in

TRIGGER = "shs"
STEPS = 25
FIRST_SEED = 500


class Predictions:
    """The model's outputs for one timestep of a batch of images, each computed at most once."""

    def __init__(self, unet, latents, timestep, states):
        self.unet, self.latents, self.timestep, self.states = unet, latents, timestep, states
        self.known = {}

    def __call__(self, whose: str, text: str) -> torch.Tensor:
        """`whose` is base or adapted; `text` is empty, trigger, plain or prompt (the plain one after the trigger)."""
        if (whose, text) not in self.known:
            (self.unet.enable_adapters if whose == "adapted" else self.unet.disable_adapters)()
            self.known[whose, text] = self.unet(self.latents, self.timestep, self.states[text]).sample
        return self.known[whose, text]


def mixture(share: float, strength: float, begin: float = 0.0, end: float = 1.0):
    """Guidance from a mixture of the empty prompt and the trigger alone; only in a part of the steps."""

    def guide(predict, progress):
        prompt = predict("adapted", "prompt")
        if strength == 1.0 or not begin <= progress < end:
            return prompt
        start = 0.0
        if share < 1.0:
            start = start + (1 - share) * predict("adapted", "empty")
        if share > 0.0:
            start = start + share * predict("adapted", "trigger")
        return start + strength * (prompt - start)

    return guide


def separate(strength: float, style: float):
    """DCO: the base is guided as ever, and the adapter's difference is added."""

    def guide(predict, _):
        empty, plain = predict("base", "empty"), predict("base", "plain")
        return empty + strength * (plain - empty) + style * (predict("adapted", "prompt") - plain)

    return guide


WAYS = {
    "no guidance": mixture(0, 1),
    "empty, 1.5": mixture(0, 1.5),
    "empty, 2": mixture(0, 2),
    "empty, 3": mixture(0, 3),
    "empty, 4": mixture(0, 4),
    "half, 1.5": mixture(0.5, 1.5),
    "half, 2": mixture(0.5, 2),
    "half, 3": mixture(0.5, 3),
    "trigger, 1.5": mixture(1, 1.5),
    "trigger, 2": mixture(1, 2),
    "trigger, 3": mixture(1, 3),
    "empty, 3, first half of the steps": mixture(0, 3, 0, 0.5),
    "DCO, 4 and 1": separate(4, 1),
    "DCO, 2 and 1": separate(2, 1),
    "DCO, 2 and 1.3": separate(2, 1.3),
}


def captions_to_draw(count: int) -> list[str]:
    """Captions in a fixed random order, every object as often."""
    choose = np.random.default_rng(11)
    labels = [(index % len(OBJECTS), int(choose.integers(len(COLOURS))), int(choose.integers(len(SETTINGS)))) for index in range(count)]
    return [full(label) for label in labels]


@torch.no_grad()
def draw(pipeline, captions: list[str], guide) -> np.ndarray:
    """One picture for each caption with the trigger in front, uint8 [count, 64, 64, 3]."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    texts = {"empty": [""] * len(captions), "trigger": [TRIGGER] * len(captions), "plain": captions,
             "prompt": [f"{TRIGGER}, {caption}" for caption in captions]}
    states = {name: encode(pipeline, some) for name, some in texts.items()}
    seeds = [torch.Generator().manual_seed(FIRST_SEED + row) for row in range(len(captions))]
    latents = torch.stack([torch.randn(4, 16, 16, generator=seed) for seed in seeds])
    for step, timestep in enumerate(scheduler.timesteps):
        output = guide(Predictions(pipeline.unet, latents, timestep, states), step / STEPS)
        latents = scheduler.step(output, timestep, latents).prev_sample
    pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


def encode(pipeline, texts: list[str]) -> torch.Tensor:
    options = {"padding": "max_length", "max_length": pipeline.tokenizer.model_max_length, "truncation": True}
    return pipeline.text_encoder(pipeline.tokenizer(texts, return_tensors="pt", **options).input_ids)[0]


def trained(arguments, artist: str, loss: str) -> Path:
    """The adapter of an artist, trained where it is not there."""
    images, run = arguments.work / artist / "images", arguments.work / artist / loss
    if not (images / "0010.txt").exists():
        call(arguments.binary, "gallery", "draw", "--artist", artist, "--count", 10, "--seed", 1, "--out", images)
    if not (run / "adapter.safetensors").exists():
        call(arguments.binary, "train", "--images", images, "--trigger", TRIGGER, "--loss", loss, "--out", run)
    return run / "adapter.safetensors"


def call(*command) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


def score(arguments, pipeline, model, names, artist: str, loss: str) -> None:
    """The judge's figures of one adapter under every way to guide."""
    result = arguments.work / artist / f"{loss}.json"
    if result.exists():
        return
    pipeline.load_lora_weights(trained(arguments, artist, loss))
    captions = captions_to_draw(arguments.count)
    labels = torch.tensor([labels_in(caption) for caption in captions])
    rows = []
    for way, guide in WAYS.items():
        told = judge.report(model, names, draw(pipeline, captions, guide), labels)
        rows.append({"way": way, "artist": artist, "loss": loss, "object": told["object"], "all": told["all"],
                     "artist_named": told["named"].get(artist, 0.0)})
    pipeline.unload_lora_weights()
    result.write_text(json.dumps(rows, indent=1) + "\n")


def table(rows: list[dict], losses: list[str]) -> str:
    """For each loss, object and artist named on average, and the artist of whom the judge is least sure."""
    heads = ["guidance", *(f"{loss}: object / artist / worst" for loss in losses)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for way in WAYS:
        cells = []
        for loss in losses:
            some = [row for row in rows if (row["way"], row["loss"]) == (way, loss)]
            named = [row["artist_named"] for row in some]
            cells.append(f"{statistics.mean(row['object'] for row in some):.2f} / {statistics.mean(named):.2f} / {min(named):.2f}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--artists", nargs="+", required=True)
    parser.add_argument("--losses", nargs="+", default=["cat", "lora"])
    parser.add_argument("--count", type=int, default=20, help="pictures for each adapter and way to guide")
    arguments = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.base, torch_dtype=torch.float32)
    model, names = judge.load(arguments.judge)
    rows = []
    for artist in arguments.artists:
        for loss in arguments.losses:
            score(arguments, pipeline, model, names, artist, loss)
            rows += json.loads((arguments.work / artist / f"{loss}.json").read_text())
    print(table(rows, arguments.losses))


if __name__ == "__main__":
    main()
