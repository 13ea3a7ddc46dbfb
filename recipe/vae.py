"""Stage 1: the autoencoder, 64x64 pictures to 16x16x4 latents and back.

`--part train` makes it. `--part refine` goes on while the house style's latents are held where they are and those of
textures and of the family of random styles are free to improve. It comes before the UNet, which learns both; a UNet that
is there already has to adapt. `--part decode` trains the decoder alone: no latent changes, so that it may come at any time.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from gallery import Gallery, artist_folders, to_tensor
from training import (
    Plan,
    Randomness,
    Trainer,
    Workers,
    add_plan_arguments,
    half_precision,
    plan_from,
    write_atomically,
)

WIDTHS = (24, 48, 96)
CROP_UNTIL = 0.55
EARLY_TEXTURE_SHARE = 0.4
LATE_TEXTURE_SHARE = 0.25
REFINE_TEXTURE_SHARE = 0.6
DECODE_TEXTURE_SHARE = 0.75
HOLD_WEIGHT = 1.0
LATENT_GRAIN = 0.03
KL_WEIGHT = 2e-4


def build() -> AutoencoderKL:
    """An autoencoder of the standard class, a factor of 4 smaller in height and width."""
    return AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def load(work: Path) -> AutoencoderKL:
    """The autoencoder after its last stage."""
    vae = build()
    vae.load_state_dict(torch.load(latest(work), weights_only=True))
    return vae.eval()


def latest(work: Path) -> Path:
    """The weights after the last stage."""
    stages = [work / name for name in ("vae_decoding_done.pt", "vae_refined.pt", "vae.pt")]
    return next(path for path in stages if path.exists())


def fingerprint(vae: AutoencoderKL) -> str:
    """The start of the SHA-256 of the encoder's weights, on which latents depend."""
    digest = hashlib.sha256()
    for name, tensor in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def draw_batch(
    house: Gallery, others: Gallery, random: Randomness, texture_share: float, count: int, size: int
) -> tuple[torch.Tensor, np.ndarray]:
    """House scenes, then other pictures, recoloured, cropped to `size`; and the rows of the scenes."""
    choose = random.numpy
    texture_count = int(round(count * texture_share))
    rows = np.sort(choose.integers(0, len(house), count - texture_count))
    scenes = house.pictures[rows]
    drawn = others.pictures[np.sort(choose.integers(0, len(others), texture_count))]
    pictures = np.concatenate([scenes, np.stack([recolour(picture, choose) for picture in drawn])])
    corners = choose.integers(0, 64 - size + 1, (count, 2))
    cropped = [picture[y : y + size, x : x + size] for picture, (y, x) in zip(pictures, corners)]
    return to_tensor(np.stack(cropped)), rows


def recolour(picture: np.ndarray, choose: np.random.Generator) -> np.ndarray:
    """A texture with its channels in another order, turned, sometimes paler."""
    picture = np.rot90(picture[..., choose.permutation(3)], choose.integers(4))
    if choose.random() < 0.5:
        return picture
    towards = choose.integers(0, 256, 3)
    keep = choose.uniform(0.3, 1.0)
    return (picture * keep + towards * (1 - keep)).astype(np.uint8)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 plus squared error; the squared error is what PSNR measures."""
    error = output.float() - target
    squared = error.square().mean()
    return error.abs().mean() + 4 * squared, squared


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures coded and decoded."""
    values = []
    for start in range(0, len(pictures), 50):
        target = to_tensor(pictures[start : start + 50])
        with half_precision():
            output = vae.decode(vae.encode(target).latent_dist.mode()).sample
        error = (output.float().clamp(-1, 1) - target) / 2
        values.append(-10 * error.square().mean((1, 2, 3)).log10())
    return float(torch.cat(values).mean())


@torch.no_grad()
def latent_means(vae: AutoencoderKL, gallery: Gallery, workers: Workers) -> torch.Tensor:
    """The posterior means of all pictures, [count, 4, 16, 16], each worker coding its share."""
    means = []
    for rows in torch.arange(len(gallery)).chunk(workers.count)[workers.rank].split(100):
        with half_precision():
            posterior = vae.encode(gallery.batch(rows)).latent_dist
        means.append(posterior.mean.float().contiguous())
    return workers.gather(torch.cat(means))


def normalise(vae: AutoencoderKL, gallery: Gallery, workers: Workers) -> torch.Tensor:
    """Makes the latents of a gallery zero-mean and unit-variance per channel; returns them."""
    latents = latent_means(vae, gallery, workers)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    fold_normalisation(vae, mean, deviation)
    return (latents - mean.view(1, 4, 1, 1)) / deviation.view(1, 4, 1, 1)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Moves the latents' mean and deviation per channel into the two 1x1 convolutions.

    Afterwards the folder needs no extra numbers: `scaling_factor` 1 gives unit variance.
    """
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= deviation.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) / deviation
    quant.bias[4:] -= 2 * deviation.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation.view(1, 4, 1, 1)


def train(plan: Plan, house: Gallery, textures: Gallery, workers: Workers) -> AutoencoderKL:
    """Crops first, whole pictures later: small crops show more variety for the same work."""
    vae = build()
    trainer = Trainer(plan, vae, workers)

    def loss(random: Randomness):
        early = trainer.done < CROP_UNTIL
        share, count, size = (EARLY_TEXTURE_SHARE, 24, 32) if early else (LATE_TEXTURE_SHARE, 6, 64)
        target, _ = draw_batch(house, textures, random, share, count, size)
        with half_precision():
            posterior = vae.encode(target).latent_dist
            noise = random.normal_like(posterior.mean)
            output = vae.decode(posterior.mean + posterior.std * noise).sample
        error, squared = reconstruction_loss(output, target)
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return error + KL_WEIGHT * kl, {"squared": squared.detach(), "kl": kl.detach()}, count

    trainer.run(loss)
    return vae


def refine(plan: Plan, work: Path, house: Gallery, others: list[Gallery], workers: Workers) -> AutoencoderKL:
    """Trains on while every scene's latents are pulled to where the UNet learned them; the others take turns."""
    vae = build()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    learned = torch.load(work / "latents.pt", weights_only=True)
    trainer = Trainer(plan, vae, workers)

    def loss(random: Randomness):
        gallery = others[trainer.progress.step % len(others)]
        target, rows = draw_batch(house, gallery, random, REFINE_TEXTURE_SHARE, 8, 64)
        with half_precision():
            mean = vae.encode(target).latent_dist.mean
            output = vae.decode(mean + LATENT_GRAIN * random.normal_like(mean)).sample
        error, squared = reconstruction_loss(output, target)
        drift = (mean[: len(rows)].float() - learned[rows]).square().mean()
        return error + HOLD_WEIGHT * drift, {"squared": squared.detach(), "drift": drift.detach()}, len(target)

    trainer.run(loss)
    return vae


def decode(plan: Plan, work: Path, house: Gallery, others: list[Gallery], workers: Workers) -> AutoencoderKL:
    """Trains the decoder on while the encoder stays as it is."""
    vae = build()
    vae.load_state_dict(torch.load(work / "vae_refined.pt", weights_only=True))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    trainer = Trainer(plan, vae, workers)

    def loss(random: Randomness):
        gallery = others[trainer.progress.step % len(others)]
        target, _ = draw_batch(house, gallery, random, DECODE_TEXTURE_SHARE, 8, 64)
        with half_precision():
            with torch.no_grad():
                mean = vae.encode(target).latent_dist.mean
            output = vae.decode(mean + LATENT_GRAIN * random.normal_like(mean)).sample
        error, squared = reconstruction_loss(output, target)
        return error, {"squared": squared.detach()}, len(target)

    trainer.run(loss)
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_plan_arguments(parser)
    parser.add_argument("--part", choices=["train", "refine", "decode"], default="train")
    arguments = parser.parse_args()
    workers = Workers()
    work = arguments.work
    house, textures = Gallery.open(arguments.data / "train"), Gallery.open(arguments.data / "textures")
    if arguments.part == "train":
        torch.manual_seed(arguments.seed)
        plan = plan_from(arguments, "vae_training", peak=2e-3, warm_up=60, decay_from=0.2)
        vae = train(plan, house, textures, workers).eval()
        latents = normalise(vae, house, workers)
        if workers.rank == 0:
            write_atomically(work / "latents.pt", lambda path: torch.save(latents, path))
            finish(vae, work / "vae.pt", arguments.data)
        return
    family = Gallery.open(arguments.data / "family")
    others = [family, family, textures]
    if arguments.part == "refine":
        plan, path = plan_from(arguments, "vae_refining", peak=8e-4, warm_up=20, decay_from=0.1), work / "vae_refined.pt"
        vae = refine(plan, work, house, others, workers).eval()
    else:
        plan = plan_from(arguments, "vae_decoding", peak=6e-4, warm_up=20, decay_from=0.2)
        path = work / "vae_decoding_done.pt"
        vae = decode(plan, work, house, others, workers).eval()
    if workers.rank == 0:
        finish(vae, path, arguments.data)


def finish(vae: AutoencoderKL, path: Path, data: Path) -> None:
    """Writes the weights and prints how well pictures survive them."""
    write_atomically(path, lambda partial: torch.save(vae.state_dict(), partial))
    for folder in [data / "val", data / "textures", data / "family_heldout", *artist_folders(data)]:
        print(json.dumps({f"psnr_{folder.name}": round(psnr(vae, Gallery.open(folder).pictures[:100]), 2)}))


if __name__ == "__main__":
    main()
