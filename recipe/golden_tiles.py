"""Reference tensors for the tiled autoencoder, by diffusers: writes golden/fixtures/vae_tiled.safetensors.

    python recipe/golden_tiles.py

The pictures and latents are those of golden/fixtures/vae.safetensors; tiles are 32 pixels wide. Of the decoded pictures
every third row and column is kept, which meets every fade between two tiles.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent.parent / "golden"
TILE_PIXELS = 32


def main():
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(GOLDEN / "tiny-sd1" / "vae").eval()
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // 8
    inputs = load_file(GOLDEN / "fixtures" / "vae.safetensors")
    with torch.no_grad():
        moments = vae.encode(inputs["sd1.image"]).latent_dist
        decoded = vae.decode(inputs["sd1.latents"] / vae.config.scaling_factor).sample
    tensors = {"sd1.mean": moments.mean, "sd1.logvar": moments.logvar, "sd1.decoded_thirds": decoded[..., ::3, ::3]}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, GOLDEN / "fixtures" / "vae_tiled.safetensors")
    print({name: list(tensor.shape) for name, tensor in tensors.items()}, decoded.shape)


if __name__ == "__main__":
    main()
