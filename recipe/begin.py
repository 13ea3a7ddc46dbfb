"""Begins a work folder with the weights of an exported base, so that later stages go on from them.

Writes `vae.pt` and `unet_begun.pt`, from which `vae.py --part refine` and `unet.py --part adapt` go on, and `latents.pt`,
where the exported autoencoder puts the house style. A new tokenizer and CLIP are made by their own stages.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import vae as vae_stage
from gallery import Gallery
from training import Workers, write_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work, workers = arguments.work, Workers()
    if any(work.glob("*.pt")):
        parser.error(f"{work} has checkpoints already, which later stages would go on from; choose another folder")
    vae = AutoencoderKL.from_pretrained(arguments.base / "vae", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(arguments.base / "unet", torch_dtype=torch.float32)
    latents = vae_stage.latent_means(vae.to(memory_format=torch.channels_last), Gallery.open(arguments.data / "train"), workers)
    if workers.rank == 0:
        write_atomically(work / "vae.pt", lambda path: torch.save(vae.state_dict(), path))
        write_atomically(work / "unet_begun.pt", lambda path: torch.save({"ema": unet.state_dict()}, path))
        write_atomically(work / "latents.pt", lambda path: torch.save(latents, path))


if __name__ == "__main__":
    main()
