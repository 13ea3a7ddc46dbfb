"""Stage 3: the UNet. It learns to draw: v-prediction on cached latents and cached text states.

`--part train` makes it. `--part adapt` goes on from it after the text tower has changed a little.
"""

import argparse
import json

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

import clip as tiny_clip
import tokenizer as bpe
from captions import NONSENSE_SHARE, with_nonsense
from gallery import COLOURS, OBJECTS, SETTINGS, Gallery, caption_of
from training import Randomness, Trainer, Workers, add_plan_arguments, plan_from

BATCH = 24
NONSENSE_FORMS = 24
EMPTY_SHARE = 0.10
SHORTENED_SHARE = 0.06


def build() -> UNet2DConditionModel:
    """The shape of Stable Diffusion 1, small: attention at 16x16, at 8x8 and in the middle."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 160),
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        layers_per_block=1,
        attention_head_dim=2,  # in this class the number of heads, as in Stable Diffusion 1
        cross_attention_dim=tiny_clip.WIDTH,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    """The noise schedule of the folder: it ends in pure noise (zero terminal signal)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class MatrixAttention:
    """Attention as two matrix products; at these sizes 1.3 times the speed of the fused kernel."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        batch, length, width = query.shape
        size = width // attn.heads

        def by_head(states):
            heads = states.view(batch, -1, attn.heads, size).transpose(1, 2)
            return heads.reshape(batch * attn.heads, -1, size)

        scores = torch.bmm(by_head(query * size**-0.5), by_head(key).transpose(1, 2))
        weights = torch.softmax(scores, -1, dtype=scores.dtype)
        mixed = torch.bmm(weights, by_head(value)).view(batch, attn.heads, length, size)
        return attn.to_out[0](mixed.transpose(1, 2).reshape(batch, length, width))


class CaptionBank:
    """The text states of every caption that training can draw, computed once."""

    def __init__(self, clip, tokenizer, seed: int):
        choose = np.random.default_rng([seed, 77])
        settings = list(SETTINGS)
        full = [caption_of(o, c, s) for o in OBJECTS for c in COLOURS for s in settings]
        prefixed = [with_nonsense(caption, choose) for caption in full for _ in range(NONSENSE_FORMS)]
        no_setting = [caption_of(o, c) for o in OBJECTS for c in COLOURS]
        no_colour = [caption_of(o, setting=s) for o in OBJECTS for s in settings]
        groups = [full, prefixed, no_setting, no_colour, [""]]
        self.first = np.cumsum([0, *map(len, groups)])
        self.states = text_states(clip, tokenizer, sum(groups, []))

    def draw(self, labels: np.ndarray, choose: np.random.Generator) -> torch.Tensor:
        """One varied caption per picture, as text states [batch, tokens, width]."""
        thing, colour, setting = labels.T
        count = len(labels)
        triple = (thing * len(COLOURS) + colour) * len(SETTINGS) + setting
        rows = self.first[0] + triple
        share = choose.random(count)

        def replace(below: float, above: float, others: np.ndarray) -> None:
            chosen = (share >= below) & (share < above)
            rows[chosen] = others[chosen]

        first_short = EMPTY_SHARE + NONSENSE_SHARE
        second_short = first_short + SHORTENED_SHARE / 2
        form = choose.integers(0, NONSENSE_FORMS, count)
        replace(0, EMPTY_SHARE, np.full(count, self.first[4]))
        replace(EMPTY_SHARE, first_short, self.first[1] + triple * NONSENSE_FORMS + form)
        replace(first_short, second_short, self.first[2] + thing * len(COLOURS) + colour)
        replace(second_short, second_short + SHORTENED_SHARE / 2, self.first[3] + thing * len(SETTINGS) + setting)
        return self.states[torch.from_numpy(rows)]


@torch.no_grad()
def text_states(clip, tokenizer, captions: list[str]) -> torch.Tensor:
    """The text encoder's last hidden states, [captions, tokens, width]."""
    ids = bpe.encode(tokenizer, captions)
    return torch.cat([clip.text_model(input_ids=part).last_hidden_state for part in ids.split(256)])


def load_clip(work, tokenizer):
    """The CLIP after its last stage."""
    listened = work / "clip_listened.pt"
    clip = tiny_clip.build(len(tokenizer))
    clip.load_state_dict(torch.load(listened if listened.exists() else work / "clip.pt", weights_only=True))
    return clip.eval()


def latest_weights(work) -> dict:
    """The moving average of the UNet after its last stage."""
    adapted = work / "unet_adapted.pt"
    return torch.load(adapted if adapted.exists() else work / "unet.pt", weights_only=True)["ema"]


PARTS = {
    "train": ("unet", {"peak": 1e-3, "warm_up": 150, "decay_from": 0.42, "ema_decay": 0.985}),
    "adapt": ("unet_adapted", {"peak": 5e-4, "warm_up": 40, "decay_from": 0.3, "ema_decay": 0.985}),
}


def stratified_timesteps(count: int, random: Randomness) -> torch.Tensor:
    """One timestep from each of `count` equal parts of 0..1000."""
    position = (torch.arange(count) + torch.rand(count, generator=random.torch)) / count
    return (position * 1000).long().clamp(max=999)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_plan_arguments(parser)
    parser.add_argument("--part", choices=PARTS, default="train")
    arguments = parser.parse_args()
    workers = Workers()
    tokenizer = bpe.load(arguments.work / "tokenizer")
    bank = CaptionBank(load_clip(arguments.work, tokenizer), tokenizer, arguments.seed)
    latents = torch.load(arguments.work / "latents.pt", weights_only=True)
    labels = Gallery.open(arguments.data / "train").labels.numpy()
    signal = scheduler().alphas_cumprod

    torch.manual_seed(arguments.seed)
    unet = build()
    if arguments.part == "adapt":
        unet.load_state_dict(torch.load(arguments.work / "unet.pt", weights_only=True)["ema"])
    unet.set_attn_processor(MatrixAttention())
    compiled = torch.compile(unet)
    stage, choices = PARTS[arguments.part]
    trainer = Trainer(plan_from(arguments, stage, **choices), unet, workers)

    def loss(random: Randomness):
        rows = random.numpy.integers(0, len(latents), BATCH)
        clean, states = latents[rows], bank.draw(labels[rows], random.numpy)
        noise, timesteps = random.normal_like(clean), stratified_timesteps(BATCH, random)
        kept = signal[timesteps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = compiled(noisy, timesteps, states).sample
        error = nn.functional.mse_loss(prediction.float(), velocity)
        return error, {"v_loss": error.detach()}, BATCH

    trainer.run(loss)
    if workers.rank == 0:
        print(json.dumps({"steps": trainer.progress.step, "samples": trainer.progress.samples}))


if __name__ == "__main__":
    main()
