"""Stage 5: measures the exported folder and writes `REPORT.json` and contact sheets.

The pictures are drawn by the stock `StableDiffusionPipeline`; nothing of the recipe is in between.
"""

import argparse
import hashlib
import json
import os
import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from transformers import CLIPModel, CLIPVisionModelWithProjection

import clip as tiny_clip
import judge
import style as style_stage
import vae as vae_stage
from captions import with_nonsense
from gallery import COLOURS, OBJECTS, SETTINGS, Gallery, caption_of, labels_in
from training import Workers, write_atomically

GUIDANCE = 4.0
STEPS = 20
FIRST_SEED = 1000
BATCH = 25
RECONSTRUCTED = 100
FAMILY_SHOWN = 30
GATES = {"object_seen": 0.99, "object_held_out": 0.99, "colour": 0.99, "setting": 0.99, "house_db": 31.0, "artist_db": 24.0}


def captions_to_draw(held_out: set[str], count: int) -> list[str]:
    """Captions in a fixed random order, a tenth of them of triples that training never saw."""
    everything = [caption_of(o, c, s) for o in OBJECTS for c in COLOURS for s in SETTINGS]
    seen = [caption for caption in everything if caption not in held_out]
    choose = np.random.default_rng(3)
    unseen_count = max(1, count // 5)
    unseen = sorted(held_out)

    def some(captions: list[str], how_many: int) -> list[str]:
        rounds = [choose.permutation(captions) for _ in range(how_many // len(captions) + 1)]
        return [str(caption) for caption in np.concatenate(rounds)[:how_many]]

    return some(seen, count - unseen_count) + some(unseen, unseen_count)


def draw(pipeline, captions: list[str], workers: Workers) -> np.ndarray:
    """One picture per caption, uint8 [count, 64, 64, 3]; the seed of the n-th is FIRST_SEED + n.

    Each worker draws its share of an even number of captions; all of them return all pictures.
    """
    mine = torch.arange(len(captions)).chunk(workers.count)[workers.rank]
    drawn = []
    for rows in mine.split(BATCH):
        seeds = [torch.Generator().manual_seed(FIRST_SEED + row) for row in rows.tolist()]
        options = {"height": 64, "width": 64, "guidance_scale": GUIDANCE, "num_inference_steps": STEPS}
        batch = [captions[row] for row in rows]
        drawn.append(pipeline(batch, generator=seeds, output_type="np", **options).images)
    pictures = torch.from_numpy((np.concatenate(drawn) * 255).round().astype(np.uint8))
    return workers.gather(pictures).numpy()


def sheet(pictures: np.ndarray, captions: list[str], path: Path, columns: int = 10) -> None:
    """A contact sheet at twice the size, with the captions."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * 132, rows * 156), "white")
    pen = ImageDraw.Draw(page)
    for index, (picture, caption) in enumerate(zip(pictures, captions)):
        left, top = index % columns * 132, index // columns * 156
        page.paste(Image.fromarray(picture).resize((128, 128), Image.NEAREST), (left, top))
        words = caption.split()
        pen.text((left + 2, top + 129), " ".join(words[:3]), fill="black")
        pen.text((left + 2, top + 141), " ".join(words[3:]), fill="black")
    page.save(path)


def family_sheet(pipeline, family: Gallery, path: Path, workers: Workers, columns: int = 10) -> None:
    """Random styles that training never saw: what the gallery drew, and below it what the base makes of the caption."""
    rows = np.arange(FAMILY_SHOWN)
    made = draw(pipeline, [family.captions[row] for row in rows], workers)
    if workers.rank != 0:
        return
    order = [index for start in range(0, FAMILY_SHOWN, columns) for index in [*range(start, start + columns)] * 2]
    is_made = [index % (2 * columns) >= columns for index in range(len(order))]
    pictures = np.stack([made[row] if own else family.pictures[row] for row, own in zip(order, is_made)])
    captions = [" ".join(family.style_words[row]) if own else family.captions[row].split(",")[0] for row, own in zip(order, is_made)]
    sheet(pictures, captions, path, columns)


def reconstruction(vae, data: Path) -> dict[str, float]:
    """PSNR in dB of the house style, of textures, and of every artist."""
    folders = {"house": data / "val", "textures": data / "textures"}
    folders |= {folder.name: folder for folder in judge.artist_folders(data)}
    pictures = {name: Gallery.open(folder).pictures[-RECONSTRUCTED:] for name, folder in folders.items()}
    return {name: round(vae_stage.psnr(vae, some), 2) for name, some in pictures.items()}


def prefix_effects(pipeline, scorer, captions: list[str], plain: np.ndarray, workers: Workers) -> dict:
    """What an untrained trigger and random nonsense before the caption change.

    `rms_change` is of pixel values in 0..1, against the same seed without the prefix.
    """
    choose = np.random.default_rng(5)
    prefixed = {
        "trigger": [f"shs, {caption}" for caption in captions],
        "nonsense": [with_nonsense(caption, choose) for caption in captions],
    }
    effects = {}
    for name, texts in prefixed.items():
        pictures = draw(pipeline, texts, workers)
        change = (pictures.astype(np.float32) - plain) / 255
        effects[name] = scorer(pictures, captions) | {"rms_change": round(float(np.sqrt(np.square(change).mean())), 4)}
    return effects


def training_record(work: Path) -> dict:
    """Steps, samples and seconds of every stage, to repeat it with `--steps`."""
    record = {}
    for stage in ("vae_training", "vae_refining", "vae_decoding", "clip_training", "clip_listening", "style_training", "unet", "unet_adapted"):
        path = work / f"{stage}.pt"
        if not path.exists():
            continue
        progress = torch.load(path, weights_only=True)["progress"]
        last = progress["history"][-1] if progress["history"] else {}
        record[stage] = {key: progress[key] for key in ("step", "samples", "finished")} | {
            "started": datetime.fromtimestamp(progress["started"]).isoformat(timespec="seconds"),
            "wall_seconds": last.get("seconds"),
            "cpu_seconds_first_worker": round(progress["cpu_seconds"]),
            "last_figures": last,
        }
    return record


def files_of(base: Path) -> dict[str, dict]:
    paths = [path for path in sorted(base.rglob("*")) if path.is_file() and path.name != "REPORT.json"]
    return {
        str(path.relative_to(base)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }


def quality(pipeline, arguments: argparse.Namespace, workers: Workers) -> dict:
    """Draws the captions, scores them, and writes the contact sheet."""
    held_out = set(Gallery.open(arguments.data / "heldout").captions)
    captions = captions_to_draw(held_out, arguments.count)
    model, artists = judge.load(arguments.judge)

    def scorer(pictures: np.ndarray, texts: list[str]) -> dict:
        labels = torch.tensor([labels_in(text) for text in texts])
        result = judge.report(model, artists, pictures, labels)
        return result | {"artists": {"house": result["artists"]["house"]}}

    pictures = draw(pipeline, captions, workers)
    first = arguments.count - arguments.count // 5
    report = {
        "seen": scorer(pictures[:first], captions[:first]),
        "held_out": scorer(pictures[first:], captions[first:]),
        "all": scorer(pictures, captions),
    }
    if workers.rank == 0:
        print(json.dumps(report), flush=True)
        rows = np.linspace(0, len(captions) - 1, 60).astype(int)
        rows = sorted(rows, key=lambda row: labels_in(captions[row]))
        marked = [captions[row] + (" *" if row >= first else "") for row in rows]
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        sheet(pictures[rows], marked, arguments.sheets / "generated.png")
    family_sheet(pipeline, Gallery.open(arguments.data / "family_heldout"), arguments.sheets / "family.png", workers)
    some = 50
    return report | {"prefix": prefix_effects(pipeline, scorer, captions[:some], pictures[:some], workers)}


def components(pipeline, arguments: argparse.Namespace) -> dict:
    """The figures of the autoencoder, the CLIP and the judge by themselves."""
    clip = CLIPModel.from_pretrained(arguments.base / "clip", dtype=torch.float32)
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder, "clip": clip}
    drawn = torch.load(arguments.judge / "judge.pt", weights_only=True)["accuracy"]
    return {
        "psnr_db": reconstruction(pipeline.vae, arguments.data),
        "clip_zero_shot": {
            split: tiny_clip.zero_shot(clip, pipeline.tokenizer, Gallery.open(arguments.data / split), 1000)
            for split in ("val", "heldout", "family_heldout")
        },
        "style_leave_one_out": style_stage.report(style_tower(arguments.base), arguments.data),
        "judge_on_drawn": {
            artist: {key: scores[key] for key in ("object", "colour", "setting")} | {"artist": scores["artists"][artist]}
            for artist, scores in drawn.items()
        },
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
    }


def style_tower(base: Path) -> torch.nn.Module:
    return CLIPVisionModelWithProjection.from_pretrained(base / "style", dtype=torch.float32).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--sheets", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    workers = Workers()
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.base, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    report = quality(pipeline, arguments, workers)
    if workers.rank != 0:
        return
    report |= components(pipeline, arguments) | {
        "gates": GATES,
        "drawn_with": {"guidance": GUIDANCE, "steps": STEPS, "first_seed": FIRST_SEED, "count": arguments.count},
        "training": training_record(arguments.work),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "safetensors", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no accelerator",
        "files": files_of(arguments.base),
    }
    text = json.dumps(report, indent=2) + "\n"
    write_atomically(arguments.base / "REPORT.json", lambda path: path.write_text(text))
    print(json.dumps({key: report[key] for key in ("prefix", "psnr_db", "clip_zero_shot")}))


if __name__ == "__main__":
    main()
