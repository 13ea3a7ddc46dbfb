"""Stage 2b: the text tower learns to hear words that it does not know.

The contrastive loss gives unknown letters no meaning, so every unknown word leaves the same faint
trace and an adapter can hardly tell a caption with its trigger from the one without. Here the
tower learns to add a fixed code of the word to every later state, padding too, while everything
else stays where it was: what the UNet sees of the caption itself does not change.
"""

import argparse
import copy
import json
import string

import numpy as np
import torch
import torch.nn.functional as F

import tokenizer as bpe
from captions import full, nonsense, room, shortened
from clip import build
from gallery import COLOURS, OBJECTS, SETTINGS, STYLE_WORDS
from training import Randomness, Trainer, Workers, add_plan_arguments, plan_from, write_atomically

BATCH = 96
LONGEST = 8
MOST_WORDS = 5
"""Style words of a caption, as many as the family has."""
STRENGTH = 0.6
"""Length of a word's code, as a share of the mean length of a state."""


class Codes:
    """A direction for every letter, another where it ends the word; a code is their normalised sum."""

    def __init__(self, width: int, length: float, seed: int):
        random = torch.Generator().manual_seed(seed)
        self.directions = torch.randn(2, len(string.ascii_lowercase), width, generator=random)
        self.length = length

    def of(self, word: str) -> torch.Tensor:
        letters = [string.ascii_lowercase.index(letter) for letter in word]
        total = self.directions[0, letters[:-1]].sum(0) + self.directions[1, letters[-1]]
        return self.length * F.normalize(total, dim=0)


class Example:
    """A plain caption and the same caption with an unknown word in front or at the end."""

    def __init__(self, tokenizer, choose: np.random.Generator):
        labels = [int(choose.integers(len(part))) for part in (OBJECTS, COLOURS, SETTINGS)]
        plain = shortened(labels, choose) if choose.random() < 0.15 else full(labels)
        words = choose.choice(STYLE_WORDS, int(choose.integers(0, MOST_WORDS + 1)), replace=False)
        self.plain = ", ".join([plain, *words])
        self.word = nonsense(choose, min(LONGEST, room(self.plain)))
        forms = [f"{self.word} {self.plain}", f"{self.word}, {self.plain}", f"{self.plain}, {self.word}"]
        self.form = int(choose.choice(3, p=[0.4, 0.4, 0.2]))
        self.with_word = forms[self.form]
        self.caption_tokens = len(tokenizer.tokenize(self.plain))
        self.all_tokens = len(tokenizer.tokenize(self.with_word))

    def target(self, plain_states: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Wanted states [tokens, width] of the longer caption, and where they are wanted, [tokens]."""
        target, wanted = plain_states.clone(), torch.zeros(len(plain_states))
        added = self.all_tokens - self.caption_tokens
        if self.form == 2:
            wanted[: 1 + self.caption_tokens] = 1
        else:
            target[1 + added : 1 + self.all_tokens] = plain_states[1 : 1 + self.caption_tokens] + code
            wanted[1 + added : 1 + self.all_tokens] = 1
        target[1 + self.all_tokens :] += code
        wanted[1 + self.all_tokens :] = 1
        return target, wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_plan_arguments(parser)
    arguments = parser.parse_args()
    tokenizer = bpe.load(arguments.work / "tokenizer")
    student = build(len(tokenizer))
    student.load_state_dict(torch.load(arguments.work / "clip.pt", weights_only=True))
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    student.vision_model.requires_grad_(False)
    student.visual_projection.requires_grad_(False)
    student.logit_scale.requires_grad_(False)

    with torch.no_grad():
        sample = teacher.text_model(input_ids=bpe.encode(tokenizer, ["a red house", ""])).last_hidden_state
    codes = Codes(sample.shape[-1], STRENGTH * float(sample.norm(dim=-1).mean()), arguments.seed)
    plan = plan_from(arguments, "clip_listening", peak=2e-3, warm_up=50, decay_from=0.3)
    trainer = Trainer(plan, student, Workers())

    def loss(random: Randomness):
        examples = [Example(tokenizer, random.numpy) for _ in range(BATCH)]
        plain_ids = bpe.encode(tokenizer, [example.plain for example in examples])
        ids = bpe.encode(tokenizer, [example.with_word for example in examples])
        with torch.no_grad():
            known = teacher.text_model(input_ids=plain_ids)
            direction = F.normalize(teacher.text_projection(known.pooler_output), dim=-1)
        pairs = [e.target(states, codes.of(e.word)) for e, states in zip(examples, known.last_hidden_state)]
        target, wanted = (torch.stack(part) for part in zip(*pairs))
        heard = student.text_model(input_ids=torch.cat([plain_ids, ids]))
        held, moved = heard.last_hidden_state.chunk(2)
        hold = (held - known.last_hidden_state).square().mean()
        code = ((moved - target).square().mean(-1) * wanted).sum() / wanted.sum()
        projected = F.normalize(student.text_projection(heard.pooler_output), dim=-1)
        turned = (1 - (projected * direction.repeat(2, 1)).sum(-1)).mean()
        return 4 * hold + code + turned, {"hold": hold.detach(), "code": code.detach(), "turned": turned.detach()}, BATCH

    trainer.run(loss)
    write_atomically(arguments.work / "clip_listened.pt", lambda path: torch.save(student.state_dict(), path))
    print(json.dumps({"code_length": round(codes.length, 3), "state_variance": round(float(sample.var()), 3)}))


if __name__ == "__main__":
    main()
