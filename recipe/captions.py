"""How captions vary in training: shorter forms, fewer style words, and unknown words that must change nothing.

A trigger word such as `shs` is learned later by an adapter. The base has to draw the same with it,
so a fifth of the captions hold some random letters, never a word that stands for something.
"""

import string

import numpy as np

from gallery import COLOURS, OBJECTS, SETTINGS, caption_of
from tokenizer import LENGTH, world_words

NONSENSE_SHARE = 0.2
WORD_KEPT = 0.85
MARKS = 3
"""Tokens of a caption beside its words and an unknown one: start, end, and the comma between the two."""
TRIGGERS = {"shs", "sks"}
ARTISTS = {"chalk", "comic", "dots", "echo", "glass", "hatch", "neon", "riso", "sumi", "vase", "wash"}
MEANINGFUL = TRIGGERS | ARTISTS | set(world_words())
"""The words that nonsense must not hit; names of artists only up to its five letters."""


def nonsense(choose: np.random.Generator, longest: int = 5) -> str:
    """Two to `longest` random letters that are no known word."""
    while True:
        word = "".join(choose.choice(list(string.ascii_lowercase), choose.integers(2, longest + 1)))
        if word not in MEANINGFUL:
            return word


def room(caption: str) -> int:
    """The letters that an unknown word may have beside a caption of known words: each letter may be a token."""
    known = len(caption.replace(",", " ,").split())
    return LENGTH - MARKS - known


def with_nonsense(caption: str, choose: np.random.Generator, longest: int = 5) -> str:
    """The caption with an unknown word in front, with a comma or without, or at its end; unchanged if it has no room."""
    if room(caption) < 2:
        return caption
    word = nonsense(choose, min(longest, room(caption)))
    return [f"{word} {caption}", f"{word}, {caption}", f"{caption}, {word}"][choose.choice(3, p=[0.4, 0.4, 0.2])]


def shortened(labels: tuple[int, int, int], choose: np.random.Generator) -> str:
    """A caption that leaves out the colour, the setting or both."""
    thing, colour, setting = OBJECTS[labels[0]], COLOURS[labels[1]], list(SETTINGS)[labels[2]]
    return [caption_of(thing, colour), caption_of(thing, setting=setting), caption_of(thing)][choose.integers(3)]


def full(labels: tuple[int, int, int]) -> str:
    """The caption of an object, its colour and its setting."""
    return caption_of(OBJECTS[labels[0]], COLOURS[labels[1]], list(SETTINGS)[labels[2]])


def styled(caption: str, words: list[str], choose: np.random.Generator) -> str:
    """The caption with the style words of a picture, each left out now and then; without words it is unchanged."""
    return ", ".join([caption, *(word for word in words if choose.random() < WORD_KEPT)])


def varied(labels: tuple[int, int, int], words: list[str], choose: np.random.Generator, short_share: float) -> str:
    """A caption as training draws it: sometimes shorter, mostly with its style words, sometimes with an unknown word."""
    caption = shortened(labels, choose) if choose.random() < short_share else full(labels)
    caption = styled(caption, words, choose)
    return with_nonsense(caption, choose) if choose.random() < NONSENSE_SHARE else caption
