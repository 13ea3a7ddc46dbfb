"""Stage 2c: the style tower, which tells hands apart, also those that it has never seen.

Two pictures by one hand are drawn together, and those of other hands are pushed away (InfoNCE, van den Oord et al. 2018).
The hands are random styles of the family; no artist is seen, and the artists' accuracy is told only at the end.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from gallery import UNKNOWN, Gallery, artist_folders
from training import Randomness, Trainer, Workers, add_plan_arguments, half_precision, plan_from, write_atomically

WIDTH = 96
HANDS = 96
"""Hands in a batch, with two pictures each."""
TEMPERATURE = 0.1


def build() -> CLIPVisionModelWithProjection:
    """A tower of the standard class. Small patches: a style lives in strokes of a few pixels."""
    configuration = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
        image_size=64,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection._from_config(configuration, attn_implementation="eager")


def directions(tower: CLIPVisionModelWithProjection, pictures: torch.Tensor) -> torch.Tensor:
    """The normalised embeddings of pictures, [batch, WIDTH]."""
    return F.normalize(tower(pixel_values=pictures).image_embeds.float(), dim=-1)


class Hands:
    """Pictures of the family by hand."""

    def __init__(self, family: Gallery):
        self.family = family
        order = np.argsort(family.styles.numpy(), kind="stable")
        self.rows = np.split(order, np.flatnonzero(np.diff(family.styles.numpy()[order])) + 1)

    def draw(self, random: Randomness) -> torch.Tensor:
        """Two pictures of each of `HANDS` hands: [2 * HANDS, 3, 64, 64], the seconds after the firsts."""
        hands = random.numpy.choice(len(self.rows), HANDS, replace=False)
        pairs = np.stack([random.numpy.choice(self.rows[hand], 2, replace=False) for hand in hands])
        pictures = self.family.batch(pairs.T.reshape(-1)).contiguous()
        mirrored = torch.rand(len(pictures), 1, 1, 1, generator=random.torch) < 0.5
        return torch.where(mirrored, pictures.flip(-1), pictures)


def contrast(embedded: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of finding the other picture of the same hand among all others of the batch."""
    similarity = embedded @ embedded.T / TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(embedded)).roll(len(embedded) // 2)
    return F.cross_entropy(similarity, partner)


@torch.no_grad()
def embed(tower: CLIPVisionModelWithProjection, gallery: Gallery, count: int) -> torch.Tensor:
    parts = torch.arange(min(count, len(gallery))).split(200)
    return torch.cat([directions(tower, gallery.batch(rows).contiguous()) for rows in parts])


def leave_one_out(embedded: torch.Tensor, hands: torch.Tensor) -> float:
    """How often the nearest mean of a hand is the picture's own, the picture left out of it."""
    names, index = hands.unique(return_inverse=True)
    sums = torch.zeros(len(names), embedded.shape[1]).index_add_(0, index, embedded)
    similarity = embedded @ F.normalize(sums, dim=-1).T
    own = F.normalize(sums[index] - embedded, dim=-1)
    similarity[torch.arange(len(index)), index] = (embedded * own).sum(-1)
    return round(float((similarity.argmax(1) == index).float().mean()), 4)


def report(tower: CLIPVisionModelWithProjection, data) -> dict[str, float]:
    """Leave-one-out accuracy among styles of the family that were held out, and among the artists."""
    held_out = Gallery.open(data / "family_heldout")
    artists = [embed(tower, Gallery.open(folder), 60) for folder in artist_folders(data)]
    hands = torch.cat([torch.full((len(part),), number) for number, part in enumerate(artists)])
    return {
        "family": leave_one_out(embed(tower, held_out, len(held_out)), held_out.styles),
        "artists": leave_one_out(torch.cat(artists), hands),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_plan_arguments(parser)
    arguments = parser.parse_args()
    workers = Workers()
    family = Gallery.open(arguments.data / "family")
    if (family.styles == UNKNOWN).any():
        parser.error(f"{arguments.data / 'family'} has pictures outside the family of random styles")
    hands = Hands(family)
    torch.manual_seed(arguments.seed)
    trainer = Trainer(plan_from(arguments, "style_training", peak=1e-3, warm_up=100, decay_from=0.3), build(), workers)

    def loss(random: Randomness):
        with half_precision():
            embedded = directions(trainer.model, hands.draw(random))
        value = contrast(embedded)
        return value, {"contrast": value.detach()}, 2 * HANDS

    trainer.run(loss)
    if workers.rank != 0:
        return
    tower = trainer.model.eval()
    write_atomically(arguments.work / "style.pt", lambda path: torch.save(tower.state_dict(), path))
    print(json.dumps(report(tower, arguments.data)))


if __name__ == "__main__":
    main()
