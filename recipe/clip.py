"""Stage 2: a tiny CLIP. Its text tower conditions the UNet, both towers score pictures.

The contrastive loss alone learns objects slowly, so six linear heads (object, colour and setting
from either tower) help during training and are thrown away afterwards.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel

import tokenizer as bpe
from captions import NONSENSE_SHARE, shortened, with_nonsense
from gallery import COLOURS, OBJECTS, SETTINGS, UNKNOWN, Gallery, caption_of, labels_in
from training import Randomness, Trainer, Workers, add_plan_arguments, plan_from, write_atomically

WIDTH = 96
BATCH = 128
SHORTENED_SHARE = 0.15


def configuration(tokens: int) -> CLIPConfig:
    """Two towers of three layers; the specials are the last two of `tokens` ids."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "projection_dim": WIDTH,
        "hidden_act": "quick_gelu",
    }
    text = tower | {
        "vocab_size": tokens,
        "max_position_embeddings": bpe.LENGTH,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
    vision = tower | {"image_size": 64, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


def build(tokens: int) -> CLIPModel:
    return CLIPModel._from_config(configuration(tokens), attn_implementation="eager")


class ClipWithHeads(nn.Module):
    """The CLIP and its auxiliary heads."""

    def __init__(self, tokens: int):
        super().__init__()
        self.clip = build(tokens)
        sizes = (len(OBJECTS), len(COLOURS), len(SETTINGS))
        self.text_heads = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)
        self.image_heads = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)

    def forward(self, ids: torch.Tensor, pictures: torch.Tensor):
        """Similarities [pictures, captions] and the logits of the image and the text heads."""
        image = self.clip.vision_model(pixel_values=pictures).pooler_output
        text = self.clip.text_model(input_ids=ids).pooler_output
        image_direction = F.normalize(self.clip.visual_projection(image).float(), dim=-1)
        text_direction = F.normalize(self.clip.text_projection(text).float(), dim=-1)
        similarity = image_direction @ text_direction.T * self.clip.logit_scale.exp().clamp(max=100)
        return similarity, [head(image) for head in self.image_heads], [head(text) for head in self.text_heads]


def vary_caption(labels: tuple[int, int, int], choose: np.random.Generator) -> str:
    thing, colour, setting = OBJECTS[labels[0]], COLOURS[labels[1]], list(SETTINGS)[labels[2]]
    caption = caption_of(thing, colour, setting)
    if choose.random() < SHORTENED_SHARE:
        caption = shortened(labels, choose)
    return with_nonsense(caption, choose) if choose.random() < NONSENSE_SHARE else caption


def soil(pictures: torch.Tensor, random: Randomness) -> torch.Tensor:
    """Mild changes of light, colour, sharpness and grain, so that drawn styles are not foreign."""
    count, choose = len(pictures), random.torch

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=choose)

    pictures = pictures * (0.8 + 0.35 * uniform(1, 1, 1)) + 0.2 * (uniform(3, 1, 1) - 0.5)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.where(uniform(1, 1, 1) < 0.3, soft, pictures)
    grain = 0.2 * uniform(1, 1, 1) * (uniform(1, 1, 1) < 0.5)
    return (pictures + grain * random.normal_like(pictures)).clamp(-1, 1)


def agreement(picture_labels: torch.Tensor, caption_labels: torch.Tensor) -> torch.Tensor:
    """1 where a caption is true of a picture, [pictures, captions]; what it omits may be anything."""
    same = picture_labels[:, None] == caption_labels[None]
    return (same | (caption_labels[None] == UNKNOWN)).all(-1).float()


def contrastive(similarity: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways, shared between all captions that are true of a picture."""
    rows = match / match.sum(1, keepdim=True)
    columns = match.T / match.T.sum(1, keepdim=True)
    return (F.cross_entropy(similarity, rows) + F.cross_entropy(similarity.T, columns)) / 2


def supervised(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return sum(
        F.cross_entropy(logit.float(), labels[:, column], ignore_index=UNKNOWN)
        for column, logit in enumerate(logits)
    )


@torch.no_grad()
def zero_shot(clip: CLIPModel, tokenizer, gallery: Gallery, count: int) -> dict[str, float]:
    """How often the nearest of all 400 captions has the right object, colour and setting."""
    triples = [caption_of(o, c, s) for o in OBJECTS for c in COLOURS for s in SETTINGS]
    text = clip.text_projection(clip.text_model(input_ids=bpe.encode(tokenizer, triples)).pooler_output)
    pictures = gallery.batch(range(count)).contiguous()
    image = clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output)
    nearest = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
    found = torch.tensor([labels_in(triples[index]) for index in nearest])
    right = (found == gallery.labels[:count]).float().mean(0)
    return dict(zip(("object", "colour", "setting"), (round(float(share), 4) for share in right)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser)
    arguments = parser.parse_args()
    workers = Workers()
    gallery, tokenizer = Gallery.open(arguments.data / "train"), bpe.load(arguments.work / "tokenizer")
    torch.manual_seed(arguments.seed)
    plan = plan_from(arguments, "clip_training", peak=2e-3, warm_up=60, decay_from=0.3)
    trainer = Trainer(plan, ClipWithHeads(len(tokenizer)), workers)

    def loss(random: Randomness):
        rows = np.sort(random.numpy.integers(0, len(gallery), BATCH))
        labels = gallery.labels[rows]
        captions = [vary_caption(tuple(row), random.numpy) for row in labels.tolist()]
        caption_labels = torch.tensor([labels_in(caption) for caption in captions])
        pictures = soil(gallery.batch(rows).contiguous(), random)
        with torch.autocast("cpu", torch.bfloat16):
            similarity, image_logits, text_logits = trainer.model(bpe.encode(tokenizer, captions), pictures)
        pairs = contrastive(similarity, agreement(labels, caption_labels))
        image, text = supervised(image_logits, labels), supervised(text_logits, caption_labels)
        return pairs + 0.5 * (image + text), {"pairs": pairs.detach(), "image": image.detach()}, BATCH

    trainer.run(loss)
    if workers.rank != 0:
        return
    clip = trainer.model.clip.eval()
    write_atomically(arguments.work / "clip.pt", lambda path: torch.save(clip.state_dict(), path))
    for split in ("val", "heldout"):
        print(json.dumps({split: zero_shot(clip, tokenizer, Gallery.open(arguments.data / split), 1000)}))


if __name__ == "__main__":
    main()
