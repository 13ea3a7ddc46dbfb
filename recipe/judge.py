"""The judge: a small supervised network that names the object, colour, setting and artist.

It sees only drawn pictures in training and is no part of the base; it scores generated folders. A picture that is blurred,
noised or cut into shuffled patches shows no object and no artist: smudges must not be called a style.
`judge.py train` makes it, `judge.py score --images DIR` prints a JSON report of a folder of PNG
files with a `metadata.jsonl` (lines with `file_name` and `text`).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from gallery import COLOURS, OBJECTS, SETTINGS, UNKNOWN, Gallery, artist_folders, labels_in, to_tensor
from training import Randomness, Trainer, Workers, add_plan_arguments, half_precision, plan_from, write_atomically

BATCH = 96
HEADS = ("object", "colour", "setting", "artist")
NOTHING = "nothing"
"""What a spoiled picture shows: the last class of the heads for objects and artists."""
SPOILED_SHARE = 0.2


def stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Judge(nn.Module):
    """Four halvings, then one linear head per question."""

    def __init__(self, artists: int, width: int = 24):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.body = nn.Sequential(*(stage(a, b) for a, b in zip(widths, widths[1:])))
        sizes = (len(OBJECTS) + 1, len(COLOURS), len(SETTINGS), artists + 1)
        self.heads = nn.ModuleList(nn.Linear(16 * widths[-1], size) for size in sizes)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Logits of the four heads for pictures [batch, 3, 64, 64] in -1..1."""
        features = self.body(pictures).flatten(1)
        return [head(features) for head in self.heads]


def soften(pictures: torch.Tensor, random: Randomness) -> torch.Tensor:
    """Some blur and grain: generated pictures are a little softer than drawn ones."""
    chance = torch.rand(len(pictures), 1, 1, 1, generator=random.torch)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.where(chance < 0.3, soft, pictures)
    return pictures + 0.1 * (chance - 0.3).clamp(min=0) * random.normal_like(pictures)


def blurred(pictures: torch.Tensor, _: Randomness) -> torch.Tensor:
    """As a smudge: colours without shapes."""
    for _ in range(4):
        pictures = F.avg_pool2d(F.pad(pictures, (4, 4, 4, 4), mode="replicate"), 9, 1)
    return pictures


def noised(pictures: torch.Tensor, random: Randomness) -> torch.Tensor:
    """Mostly noise, coarse enough to look like texture."""
    noise = F.interpolate(torch.randn(len(pictures), 3, 32, 32, generator=random.torch), scale_factor=2)
    return (0.3 * pictures + 0.8 * noise).clamp(-1, 1)


def shuffled(pictures: torch.Tensor, random: Randomness) -> torch.Tensor:
    """Patches of 8 by 8 pixels in another order: the strokes without the picture."""
    count = len(pictures)
    patches = F.unfold(pictures, 8, stride=8)
    order = torch.stack([torch.randperm(64, generator=random.torch) for _ in range(count)])
    patches = patches.gather(2, order[:, None].expand_as(patches))
    return F.fold(patches, 64, 8, stride=8)


SPOILERS = {"blurred": blurred, "noised": noised, "shuffled": shuffled}


def spoil(
    pictures: torch.Tensor, labels: torch.Tensor, artists: int, random: Randomness
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first pictures of the batch spoiled, each part in another way, and labelled as nothing."""
    pictures, labels = pictures.clone(), labels.clone()
    end = int(SPOILED_SHARE * len(pictures))
    for spoiler, rows in zip(SPOILERS.values(), torch.arange(end).chunk(len(SPOILERS))):
        pictures[rows] = spoiler(pictures[rows], random)
    labels[:end, 1:3] = UNKNOWN
    labels[:end, 0], labels[:end, 3] = len(OBJECTS), artists
    return pictures, labels


def train(arguments: argparse.Namespace) -> None:
    """Half of each batch from the house, half from all artists; the last tenth of each is kept."""
    house = Gallery.open(arguments.data / "train")
    folders = artist_folders(arguments.data)
    artists = [Gallery.open(folder) for folder in folders]
    torch.manual_seed(arguments.seed)
    model = Judge(1 + len(artists)).to(memory_format=torch.channels_last)
    plan = plan_from(arguments, "judge_training", peak=3e-3, warm_up=30, decay_from=0.1)
    trainer = Trainer(plan, model, Workers())

    def draw(random: Randomness):
        which = np.sort(random.numpy.integers(0, 2 * len(artists), BATCH)) if artists else np.zeros(BATCH)
        which = np.where(which >= len(artists), 0, which + 1).astype(int) if artists else which.astype(int)
        sources = [house, *artists]
        rows = [random.numpy.integers(0, int(0.9 * len(sources[index]))) for index in which]
        pictures = np.stack([sources[index].pictures[row] for index, row in zip(which, rows)])
        labels = torch.stack([sources[index].labels[row] for index, row in zip(which, rows)])
        return to_tensor(pictures), torch.cat([labels, torch.from_numpy(which)[:, None]], 1)

    def loss(random: Randomness):
        pictures, labels = draw(random)
        # Rows are sorted by artist: another order, so that every artist is spoiled.
        order = torch.randperm(BATCH, generator=random.torch)
        pictures, labels = spoil(pictures[order], labels[order], 1 + len(artists), random)
        with half_precision():
            logits = model(soften(pictures, random))
        value = sum(
            F.cross_entropy(logit.float(), labels[:, head], ignore_index=UNKNOWN)
            for head, logit in enumerate(logits)
        )
        return value, {"loss": value.detach()}, BATCH

    trainer.run(loss)
    names = ["house", *(folder.name for folder in folders)]
    model.eval()
    tests = {name: gallery.pictures[int(0.9 * len(gallery)) :][:500] for name, gallery in zip(names, [house, *artists])}
    truths = {name: gallery.labels[int(0.9 * len(gallery)) :][:500] for name, gallery in zip(names, [house, *artists])}
    accuracy = {name: report(model, names, tests[name], truths[name]) for name in names}
    refused = {name: refusals(model, spoiler, tests, arguments.seed) for name, spoiler in SPOILERS.items()}
    saved = {"weights": model.state_dict(), "artists": names, "accuracy": accuracy, "refusals": refused}
    write_atomically(arguments.judge / "judge.pt", lambda path: torch.save(saved, path))
    print(json.dumps(accuracy | refused))


@torch.no_grad()
def refusals(model: Judge, spoiler, tests: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """How often spoiled pictures of all artists, none of them seen in training, show no object and no artist."""
    pictures = to_tensor(np.concatenate([some[:20] for some in tests.values()]))
    logits = model(spoiler(pictures, Randomness(seed, 2**31, 0)))
    nothing = {name: logits[head].argmax(1) == logits[head].shape[1] - 1 for head, name in ((0, "object"), (3, "artist"))}
    return {name: round(float(hits.float().mean()), 4) for name, hits in nothing.items()}


def load(folder: Path) -> tuple[Judge, list[str]]:
    """The judge and the names of its artists."""
    saved = torch.load(folder / "judge.pt", weights_only=True)
    model = Judge(len(saved["artists"]))
    model.load_state_dict(saved["weights"])
    return model.eval(), saved["artists"]


@torch.no_grad()
def report(model: Judge, artists: list[str], pictures: np.ndarray, labels: torch.Tensor) -> dict:
    """Accuracies against the labels, and of every artist the mean probability and how often it is named."""
    parts = [model(to_tensor(pictures[start : start + 100])) for start in range(0, len(pictures), 100)]
    logits = [torch.cat(columns) for columns in zip(*parts)]
    result: dict = {"count": len(pictures)}
    right = torch.ones(len(pictures), dtype=torch.bool)
    for column, name in enumerate(HEADS[:3]):
        known = labels[:, column] != UNKNOWN
        hit = logits[column].argmax(1) == labels[:, column]
        right &= hit | ~known
        result[name] = round(float(hit[known].float().mean()), 4) if known.any() else None
    probability = logits[3].softmax(1).mean(0)
    named = F.one_hot(logits[3].argmax(1), len(artists) + 1).float().mean(0)
    return result | {
        "all": round(float(right.float().mean()), 4),
        "artists": {name: round(float(p), 4) for name, p in zip([*artists, NOTHING], probability)},
        "named": {name: round(float(share), 4) for name, share in zip([*artists, NOTHING], named) if share > 0},
    }


def score(arguments: argparse.Namespace) -> None:
    model, artists = load(arguments.judge)
    with open(arguments.images / "metadata.jsonl", encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    files = [Image.open(arguments.images / entry["file_name"]).convert("RGB") for entry in entries]
    pictures = np.stack([np.asarray(file.resize((64, 64))) for file in files])
    labels = torch.tensor([labels_in(entry["text"]) for entry in entries])
    print(json.dumps(report(model, artists, pictures, labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    add_plan_arguments(training)
    training.set_defaults(run=train)
    scoring = commands.add_parser("score")
    scoring.add_argument("--images", type=Path, required=True)
    scoring.set_defaults(run=score)
    for command in (training, scoring):
        command.add_argument("--judge", type=Path, required=True, help="folder of the judge's weights")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
