"""The pictures a stage trains on: a folder drawn by `catelier gallery draw --format npy`.

A folder holds `pictures.npy` (uint8, [count, 64, 64, 3]) and `metadata.jsonl`
(one line per picture: text, object, colour, setting, artist, and for the family of random styles
style and style_words).
"""

import json
from dataclasses import dataclass
from functools import cached_property
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
STYLE_WORDS = (
    # palette and inks
    "tinted duotone tritone quadtone monochrome accented cameo inverted stark shifted negative "
    # grade
    "vivid muted pale deep warm cool "
    # fills
    "solid hollow hatched crosshatched wavy striped scribbled dotted stippled washed brushed grainy faceted cracked "
    "tiled bricked checked graded ringed radiant "
    # lines and the hand
    "fine outlined bold scratched inked wobbly dry doubled slipped glowing "
    # edges, paper and frame
    "haloed shadowed soft bled torn pixelated airy cream toned dark bordered framed vignetted"
).split()
"""The words of the family of random styles, as `gallery/README.md` lists them."""
OTHER_COLOURS = {"duotone", "tritone", "quadtone", "monochrome", "cameo", "shifted"}
"""Styles of these words do not show the colour that the caption names."""
UNKNOWN = -100
"""The label of a picture that shows no known object, colour or setting (torch ignores it)."""


@dataclass
class Gallery:
    """Pictures, their captions and their labels.

    pictures: uint8 [count, 64, 64, 3]; labels: int64 [count, 3], the columns
    object, colour and setting, `UNKNOWN` where the picture has none;
    styles: int64 [count], the number of the random style, `UNKNOWN` outside the family;
    style_words: the words of that style, in the order of captions.
    """

    pictures: np.ndarray
    captions: list[str]
    labels: torch.Tensor
    styles: torch.Tensor
    style_words: list[list[str]]

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        """Reads a folder; the pictures stay on disk until they are asked for."""
        with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        if len(pictures) != len(entries):
            raise ValueError(f"{folder}: {len(pictures)} pictures but {len(entries)} lines of metadata")
        labels = torch.tensor([labels_of(entry) for entry in entries], dtype=torch.int64)
        styles = torch.tensor([entry.get("style", UNKNOWN) for entry in entries])
        style_words = [entry.get("style_words", []) for entry in entries]
        return cls(pictures, [entry["text"] for entry in entries], labels, styles, style_words)

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows) -> torch.Tensor:
        """The pictures of these rows as floats in -1..1, [len(rows), 3, 64, 64], channels last."""
        return to_tensor(self.pictures[np.asarray(rows)])

    @cached_property
    def visible_labels(self) -> torch.Tensor:
        """The labels, `UNKNOWN` for the colour where the style shows another one."""
        labels = self.labels.clone()
        labels[torch.tensor([not OTHER_COLOURS.isdisjoint(words) for words in self.style_words]), 1] = UNKNOWN
        return labels


def artist_folders(data: Path) -> list[Path]:
    """The folders of the artists' pictures."""
    folder = data / "artists"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


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


def marked(words: list[str]) -> torch.Tensor:
    """Which of the style words are among these words, bool [len(STYLE_WORDS)]."""
    return torch.tensor([word in words for word in STYLE_WORDS])


def words_in(caption: str) -> torch.Tensor:
    """The style words of a caption, bool [len(STYLE_WORDS)]."""
    return marked(caption.replace(",", " ").split())


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
