"""The pictures a stage trains on: a folder drawn by `catelier gallery draw --format npy`.

A folder holds `pictures.npy` (uint8, [count, 64, 64, 3]) and `metadata.jsonl`
(one line per picture: text, object, colour, setting, artist).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

OBJECTS = ["house", "tree", "boat", "fish", "star", "flower", "mug", "cat", "mushroom", "umbrella"]
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"]
SETTINGS = {
    "field": "in a field",
    "sea": "on the sea",
    "night": "at night",
    "snow": "in the snow",
    "wall": "on a plain wall",
}
UNKNOWN = -100
"""The label of a picture that shows no known object, colour or setting (torch ignores it)."""


@dataclass
class Gallery:
    """Pictures, their captions and their labels.

    pictures: uint8 [count, 64, 64, 3]; labels: int64 [count, 3], the columns
    object, colour and setting, `UNKNOWN` where the picture has none.
    """

    pictures: np.ndarray
    captions: list[str]
    labels: torch.Tensor

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        """Reads a folder; the pictures stay on disk until they are asked for."""
        with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        if len(pictures) != len(entries):
            raise ValueError(f"{folder}: {len(pictures)} pictures but {len(entries)} lines of metadata")
        labels = torch.tensor([labels_of(entry) for entry in entries], dtype=torch.int64)
        return cls(pictures, [entry["text"] for entry in entries], labels)

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows) -> torch.Tensor:
        """The pictures of these rows as floats in -1..1, [len(rows), 3, 64, 64], channels last."""
        return to_tensor(self.pictures[np.asarray(rows)])


def labels_of(entry: dict) -> list[int]:
    """Object, colour and setting of one metadata line as indices."""
    names = [("object", OBJECTS), ("colour", COLOURS), ("setting", list(SETTINGS))]
    return [known.index(entry[key]) if entry.get(key) in known else UNKNOWN for key, known in names]


def labels_in(caption: str) -> list[int]:
    """Object, colour and setting that a caption names, `UNKNOWN` for what it leaves out."""
    words = caption.replace(",", " ").split()

    def named(known: list[str]) -> int:
        return next((index for index, name in enumerate(known) if name in words), UNKNOWN)

    return [named(OBJECTS), named(COLOURS), named(list(SETTINGS))]


def caption_of(thing: str | None, colour: str | None = None, setting: str | None = None) -> str:
    """The caption `a red house in a field`, with any part left out."""
    noun = " ".join(word for word in (colour, thing) if word)
    article = "an" if noun[0] in "aeiou" else "a"
    return " ".join(part for part in (article, noun, SETTINGS.get(setting, "")) if part)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [batch, height, width, 3] to floats in -1..1, [batch, 3, height, width]."""
    floats = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return floats.div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """Floats in -1..1, [batch, 3, height, width], to uint8 [batch, height, width, 3]."""
    bytes_ = tensor.clamp(-1, 1).add(1).mul(127.5).round().byte()
    return bytes_.permute(0, 2, 3, 1).contiguous().numpy()
