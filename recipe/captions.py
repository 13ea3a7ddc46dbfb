"""How captions vary in training: shorter forms, and unknown words that must change nothing.

A trigger word such as `shs` is learned later by an adapter. The base has to draw the same with it,
so a tenth of the captions hold some random letters, never a word that stands for something.
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


def nonsense(choose: np.random.Generator, longest: int = 5) -> str:
    """Two to `longest` random letters that are no known word."""
    while True:
        word = "".join(choose.choice(list(string.ascii_lowercase), choose.integers(2, longest + 1)))
        if word not in MEANINGFUL:
            return word


def with_nonsense(caption: str, choose: np.random.Generator) -> str:
    """The caption with an unknown word in front, with a comma or without, or at its end."""
    word = nonsense(choose)
    return [f"{word} {caption}", f"{word}, {caption}", f"{caption}, {word}"][choose.choice(3, p=[0.4, 0.4, 0.2])]


def shortened(labels: tuple[int, int, int], choose: np.random.Generator) -> str:
    """A caption that leaves out the colour, the setting or both."""
    thing, colour, setting = OBJECTS[labels[0]], COLOURS[labels[1]], list(SETTINGS)[labels[2]]
    return [caption_of(thing, colour), caption_of(thing, setting=setting), caption_of(thing)][choose.integers(3)]
