"""Stage 2: a tiny CLIP. Its text tower conditions the UNet, both towers score pictures.

It sees the house style and the family of random styles, so that it names what is drawn in any hand. The contrastive
loss alone learns objects slowly, so six linear heads (object, colour and setting from either tower) help during training
and are thrown away afterwards.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel

import tokenizer as bpe
from captions import varied
from gallery import COLOURS, OBJECTS, SETTINGS, UNKNOWN, Gallery, artist_folders, caption_of, labels_in, marked, words_in
from training import Randomness, Trainer, Workers, add_plan_arguments, half_precision, plan_from, write_atomically

WIDTH = 96
BATCH = 128
SHORTENED_SHARE = 0.15
FAMILY_SHARE = 0.6
WORDLESS_SHARE = 0.5
"""Share of the family's pictures whose captions name no style: the object alone must tell them apart."""


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


class Pairs:
    """Pictures of the house and of the family with captions that are true of them."""

    def __init__(self, galleries: list[Gallery], shares: list[float]):
        self.galleries, self.shares = galleries, shares

    def draw(self, random: Randomness) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """Pictures [BATCH, 3, 64, 64], their visible labels, their style words, and a caption of each."""
        choose, pictures, visible, words, captions = random.numpy, [], [], [], []
        for gallery, share in zip(self.galleries, self.shares):
            rows = np.sort(choose.integers(0, len(gallery), round(BATCH * share)))
            pictures.append(gallery.batch(rows))
            visible.append(gallery.visible_labels[rows])
            for row, labels in zip(rows, gallery.labels[rows].tolist()):
                words.append(marked(gallery.style_words[row]))
                named = [] if choose.random() < WORDLESS_SHARE else gallery.style_words[row]
                captions.append(varied(tuple(labels), named, choose, SHORTENED_SHARE))
        return torch.cat(pictures).contiguous(), torch.cat(visible), torch.stack(words), captions


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


def agreement(
    picture_labels: torch.Tensor, picture_words: torch.Tensor, caption_labels: torch.Tensor, caption_words: torch.Tensor
) -> torch.Tensor:
    """1 where a caption is true of a picture, [pictures, captions]; what it omits, or a picture hides, may be anything."""
    pictures, captions = picture_labels[:, None], caption_labels[None]
    named = ((pictures == captions) | (captions == UNKNOWN) | (pictures == UNKNOWN)).all(-1)
    return (named & (picture_words[:, None] | ~caption_words[None]).all(-1)).float()


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
    count = min(count, len(gallery))
    pictures = gallery.batch(range(count)).contiguous()
    image = clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output)
    nearest = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
    found = torch.tensor([labels_in(triples[index]) for index in nearest])
    labels = gallery.visible_labels[:count]
    right, known = (found == labels).sum(0), (labels != UNKNOWN).sum(0)
    return dict(zip(("object", "colour", "setting"), (round(float(share), 4) for share in right / known)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_plan_arguments(parser)
    arguments = parser.parse_args()
    workers = Workers()
    tokenizer = bpe.load(arguments.work / "tokenizer")
    galleries = [Gallery.open(arguments.data / name) for name in ("train", "family")]
    pairs = Pairs(galleries, [1 - FAMILY_SHARE, FAMILY_SHARE])
    torch.manual_seed(arguments.seed)
    plan = plan_from(arguments, "clip_training", peak=2e-3, warm_up=60, decay_from=0.3)
    trainer = Trainer(plan, ClipWithHeads(len(tokenizer)), workers)

    def loss(random: Randomness):
        pictures, visible, words, captions = pairs.draw(random)
        caption_labels = torch.tensor([labels_in(caption) for caption in captions])
        caption_words = torch.stack([words_in(caption) for caption in captions])
        with half_precision():
            ids = bpe.encode(tokenizer, captions)
            similarity, image_logits, text_logits = trainer.model(ids, soil(pictures, random))
        matched = contrastive(similarity, agreement(visible, words, caption_labels, caption_words))
        image, text = supervised(image_logits, visible), supervised(text_logits, caption_labels)
        return matched + 0.5 * (image + text), {"pairs": matched.detach(), "image": image.detach()}, BATCH

    trainer.run(loss)
    if workers.rank != 0:
        return
    clip = trainer.model.clip.eval()
    write_atomically(arguments.work / "clip.pt", lambda path: torch.save(clip.state_dict(), path))
    tests = [arguments.data / name for name in ("val", "heldout", "family_heldout")]
    for folder in [*tests, *artist_folders(arguments.data)]:
        print(json.dumps({folder.name: zero_shot(clip, tokenizer, Gallery.open(folder), 1000)}))


if __name__ == "__main__":
    main()
