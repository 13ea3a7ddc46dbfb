"""Draws with diffusers what `catelier preview` drew, from the same noise, and compares the pixels.

    catelier preview --adapter my-style/adapter.safetensors --prompt "shs, a red house in a field" --seed 7 --out here
    python recipe/same_picture.py --base base --adapter my-style/adapter.safetensors \
        --prompt "shs, a red house in a field" --seed 7 --picture here/000-seed7.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

MASK = 0xFFFFFFFF


def fnv1a(text: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in text:
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def quarter_round(state: list, a: int, b: int, c: int, d: int) -> None:
    for first, second, third, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[first] = (state[first] + state[second]) & MASK
        mixed = state[third] ^ state[first]
        state[third] = ((mixed << turn) | (mixed >> (32 - turn))) & MASK


def chacha12(key: list, blocks: int) -> np.ndarray:
    """The stream's 64-bit words; counter from 0, stream 0."""
    words = []
    for counter in range(blocks):
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *key, counter, 0, 0, 0]
        state = list(start)
        for _ in range(6):
            for column in range(4):
                quarter_round(state, column, column + 4, column + 8, column + 12)
            for row in range(4):
                quarter_round(state, row, 4 + (row + 1) % 4, 8 + (row + 2) % 4, 12 + (row + 3) % 4)
        words += [(left + right) & MASK for left, right in zip(state, start)]
    return np.array(words, np.uint32).view(np.uint64)


def start_noise(seed: int, shape: tuple) -> torch.Tensor:
    """The noise that `catelier` starts a picture from: ChaCha12 bits through Box and Muller's transform."""
    count = int(np.prod(shape))
    key = [part for word in (seed, fnv1a(b"generate/start"), 0, 0) for part in (word & MASK, word >> 32)]
    uniforms = (chacha12(key, (count + 7) // 8 + 1) >> np.uint64(11)) / 2.0**53
    first, second = uniforms[0::2], uniforms[1::2]
    radius = np.sqrt(-2 * np.log(1 - first))
    normals = np.stack([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)], 1).ravel()
    return torch.from_numpy(normals[:count].astype(np.float32).reshape(shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--picture", type=Path, required=True)
    arguments = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.base, torch_dtype=torch.float32, safety_checker=None)
    if arguments.adapter:
        pipeline.load_lora_weights(arguments.adapter.parent, weight_name=arguments.adapter.name)
    side = pipeline.unet.config.sample_size
    latents = start_noise(arguments.seed, (1, pipeline.unet.config.in_channels, side, side))
    drawn = pipeline(arguments.prompt, latents=latents, num_inference_steps=arguments.steps,
                     guidance_scale=arguments.guidance, output_type="np").images[0]
    ours = np.asarray(Image.open(arguments.picture).convert("RGB"), np.float64)
    difference = np.abs(np.round(drawn * 255) - ours)
    print(f"largest difference {difference.max():.0f}/255, mean {difference.mean():.4f}/255")


if __name__ == "__main__":
    main()
