"""How captions vary in training: shorter forms, and nonsense prefixes that must change nothing.

A trigger word such as `shs` is learned later by an adapter. The base has to ignore it, so a fifth
of the captions begin with some random letters, never with a word that stands for something.
"""

import string

import numpy as np

from gallery import COLOURS, OBJECTS, SETTINGS, caption_of
from tokenizer import world_words

NONSENSE_SHARE = 0.2
TRIGGERS = {"shs", "sks"}
ARTISTS = {"chalk", "comic", "dots", "echo", "glass", "hatch", "neon", "riso", "sumi", "vase", "wash"}
MEANINGFUL = TRIGGERS | ARTISTS | set(world_words())
"""The words that nonsense must not hit; names of artists only up to its five letters."""


def nonsense(choose: np.random.Generator) -> str:
    """Two to five random letters that are no known word."""
    while True:
        word = "".join(choose.choice(list(string.ascii_lowercase), choose.integers(2, 6)))
        if word not in MEANINGFUL:
            return word


def with_nonsense(caption: str, choose: np.random.Generator) -> str:
    """The caption behind a nonsense word, with a comma or without."""
    separator = ", " if choose.random() < 0.5 else " "
    return nonsense(choose) + separator + caption


def shortened(labels: tuple[int, int, int], choose: np.random.Generator) -> str:
    """A caption that leaves out the colour, the setting or both."""
    thing, colour, setting = OBJECTS[labels[0]], COLOURS[labels[1]], list(SETTINGS)[labels[2]]
    return [caption_of(thing, colour), caption_of(thing, setting=setting), caption_of(thing)][choose.integers(3)]
