"""Stage 4: the base as a standard diffusers folder of f16 weights, with the tiny CLIP and the style tower beside it."""

import argparse
import os
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPTextModel

import style as style_stage
import tokenizer as bpe
import unet as unet_stage
import vae as vae_stage


def text_encoder_of(clip) -> CLIPTextModel:
    """The text tower alone, under the names of a Stable Diffusion text encoder."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


def assemble(work: Path) -> tuple[StableDiffusionPipeline, torch.nn.Module]:
    """The pipeline and the CLIP from the checkpoints, in f16; the UNet is the moving average."""
    tokenizer = bpe.load(work / "tokenizer")
    clip = unet_stage.load_clip(work, tokenizer)
    vae = vae_stage.load(work)
    unet = unet_stage.build()
    unet.load_state_dict(unet_stage.latest_weights(work))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder_of(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=unet_stage.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline.to(torch.float16), clip.half()


def style_tower(work: Path) -> torch.nn.Module:
    """The style tower from its checkpoint, in f16."""
    tower = style_stage.build()
    tower.load_state_dict(torch.load(work / "style.pt", weights_only=True))
    return tower.half().eval()


def name_as_published(weights: Path) -> None:
    """Puts `text_model.` before every name, as in every published Stable Diffusion folder.

    Newer versions of transformers leave it out when they save, but read both.
    """
    tensors = load_file(weights)
    save_file({f"text_model.{name}": tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})


def write(work: Path, base: Path) -> None:
    """Writes everything beside the folder, then moves it in file by file."""
    partial = base.with_name(base.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline, clip = assemble(work)
    pipeline.save_pretrained(partial)
    name_as_published(partial / "text_encoder" / "model.safetensors")
    bpe.write(partial / "tokenizer")
    (partial / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    clip.save_pretrained(partial / "clip")
    processor().save_pretrained(partial / "clip")
    style_tower(work).save_pretrained(partial / "style")
    processor().save_pretrained(partial / "style")
    bpe.write(partial / "clip")
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            target = base / path.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(partial)


def processor() -> CLIPImageProcessor:
    """64x64 pictures in -1..1 for the image tower."""
    return CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.work, arguments.base)
    size = sum(path.stat().st_size for path in arguments.base.rglob("*") if path.is_file())
    print(f"{arguments.base}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
