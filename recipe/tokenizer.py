"""The tokenizer: CLIP's byte-level BPE, with merges that make every world word one token.

Any text can be written: 256 byte symbols, the same 256 at the end of a word, the merges, and the
two special tokens. A word outside the world becomes a few letters.
"""

import argparse
import json
from pathlib import Path

from transformers import CLIPTokenizer

from gallery import COLOURS, OBJECTS, SETTINGS, STYLE_WORDS

LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """One printable letter per byte, in the order of CLIP's vocabulary.

    Printable Latin-1 bytes stand for themselves; the others take the letters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def world_words() -> list[str]:
    """Every word of the captions, once, in a fixed order."""
    phrases = " ".join(SETTINGS.values()).split()
    return list(dict.fromkeys(["a", "an", *phrases, *COLOURS, *OBJECTS, *STYLE_WORDS]))


def split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The byte-pair encoding of one word under these merges."""
    rank = {pair: index for index, pair in enumerate(merges)}
    symbols = [*word[:-1], word[-1] + "</w>"]
    while len(symbols) > 1:
        pairs = list(zip(symbols, symbols[1:]))
        best = min(pairs, key=lambda pair: rank.get(pair, len(merges)))
        if best not in rank:
            return symbols
        position = pairs.index(best)
        symbols[position : position + 2] = ["".join(best)]
    return symbols


def build_merges(words: list[str]) -> list[tuple[str, str]]:
    """Adds merges word by word, left to right, until each word is one token.

    A later merge ranks below every earlier one, so it cannot change an earlier word.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        symbols = split(word, merges)
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols = split(word, merges)
    return merges


def write(folder: Path) -> None:
    """Writes the four files of a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = build_merges(world_words())
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def load(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: CLIPTokenizer, captions: list[str]):
    """Token ids padded to the full length, [len(captions), LENGTH]."""
    tokens = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return tokens.input_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    folder = parser.parse_args().work / "tokenizer"
    write(folder)
    tokenizer = load(folder)
    broken = [word for word in world_words() if len(tokenizer.tokenize(word)) != 1]
    if broken:
        raise ValueError(f"words of more than one token: {broken}")
    print(f"{len(tokenizer)} tokens; `shs, a red house` is {tokenizer.tokenize('shs, a red house')}")


if __name__ == "__main__":
    main()
