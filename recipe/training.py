"""What every stage shares: one resumable training loop over one or more worker processes.

All randomness is a function of (seed, step, worker), so a resumed run continues the same
sequence, and a run that ended at a deadline is repeated by `--steps` with its recorded count.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as distributed
from torch import nn

MEETING_STEPS = 8
"""Workers train on their own for this many steps, then average: waiting for each other is rare."""


@dataclass
class Plan:
    """How long a stage trains and how its learning rate moves."""

    checkpoint: Path
    seed: int
    steps: int | None
    until: float | None
    peak: float
    warm_up: int
    decay_from: float
    ema_decay: float | None = None
    save_seconds: float = 120.0
    log_steps: int = 50

    def learning_rate(self, step: int, progress: float) -> float:
        """Linear warm-up, a plateau, then a straight line to zero from `decay_from` to the end."""
        decay = min(1.0, (1.0 - progress) / (1.0 - self.decay_from))
        return self.peak * min(1.0, (step + 1) / self.warm_up) * max(0.0, decay)

    def progress(self, step: int, started: float) -> float:
        """The share of the training that is done: of the steps, or of the wall-clock time."""
        if self.steps is not None:
            return step / self.steps
        return (time.time() - started) / (self.until - started)


@dataclass
class Progress:
    """What a checkpoint remembers beside the weights."""

    step: int = 0
    started: float = field(default_factory=time.time)
    cpu_seconds: float = 0.0
    samples: int = 0
    history: list[dict] = field(default_factory=list)
    finished: bool = False


def half_precision():
    """bf16 where the CPU multiplies in it; elsewhere it would only be slower."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


class Workers:
    """The processes that train together (`torchrun --nproc-per-node N`), or this one alone."""

    def __init__(self):
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        if self.count > 1:
            distributed.init_process_group("gloo")

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replaces every tensor by its mean over the workers."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view(tensor.shape))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all workers, one worker after the other; every worker has as many."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    def wait(self) -> None:
        """Until every worker is here."""
        if self.count > 1:
            distributed.barrier()

    def agree(self, value: float) -> float:
        """The first worker's value, on every worker: their clocks never disagree on the end."""
        shared = torch.tensor([value], dtype=torch.float64)
        if self.count > 1:
            distributed.broadcast(shared, 0)
        return float(shared)


class Randomness:
    """The random numbers of one step of one worker."""

    def __init__(self, seed: int, step: int, rank: int):
        self.numpy = np.random.default_rng([seed, step, rank])
        self.torch = torch.Generator().manual_seed(int(self.numpy.integers(2**62)))

    def normal_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=self.torch)


class Trainer:
    """A model, its optimiser, its moving average and its checkpoint."""

    def __init__(self, plan: Plan, model: nn.Module, workers: Workers):
        self.plan, self.model, self.workers = plan, model, workers
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.ema = {k: v.clone() for k, v in model.state_dict().items()} if plan.ema_decay else None
        self.progress = Progress()
        self.done = 0.0
        if plan.checkpoint.exists():
            self.resume()

    def resume(self) -> None:
        saved = torch.load(self.plan.checkpoint, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.ema = saved["ema"]
        self.progress = Progress(**saved["progress"])

    def save(self) -> None:
        """Writes the checkpoint beside the old one, then renames: a crash leaves one of the two."""
        if self.workers.rank != 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "progress": asdict(self.progress),
        }
        write_atomically(self.plan.checkpoint, lambda path: torch.save(state, path))

    def run(self, loss: Callable[[Randomness], tuple[torch.Tensor, dict, int]]) -> None:
        """Trains to the plan's end. `loss` returns the loss, figures to log and its sample count."""
        last_save, cpu_mark = time.time(), time.process_time()
        running: dict[str, float] = {}
        while True:
            if self.progress.step % MEETING_STEPS == 0:
                self.done = self.workers.agree(self.plan.progress(self.progress.step, self.progress.started))
                if self.done >= 1.0:
                    break
                if time.time() - last_save > self.plan.save_seconds:
                    self.save()
                    last_save = time.time()
            random = Randomness(self.plan.seed, self.progress.step, self.workers.rank)
            value, figures, samples = loss(random)
            self.step(value)
            self.progress.samples += samples * self.workers.count
            self.progress.cpu_seconds += time.process_time() - cpu_mark
            cpu_mark = time.process_time()
            for name, figure in figures.items():
                running[name] = 0.97 * running.get(name, float(figure)) + 0.03 * float(figure)
            if self.progress.step % self.plan.log_steps == 0:
                self.log(running)
        self.progress.finished = True
        self.save()

    def step(self, value: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(self.progress.step, self.done)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.progress.step += 1
        if self.progress.step % MEETING_STEPS == 0:
            self.meet()

    @torch.no_grad()
    def meet(self) -> None:
        """Averages weights and moments over the workers: from here on they are the same again."""
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        self.workers.average([parameter.data for parameter in self.parameters])
        self.workers.average([state[name] for state in states for name in ("exp_avg", "exp_avg_sq")])
        if self.ema is not None:
            self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the average towards the weights; young averages move faster."""
        meetings = self.progress.step // MEETING_STEPS
        decay = min(self.plan.ema_decay, (1 + meetings) / (10 + meetings))
        state = self.model.state_dict()
        torch._foreach_lerp_(list(self.ema.values()), [state[name] for name in self.ema], 1 - decay)

    def log(self, running: dict[str, float]) -> None:
        if self.workers.rank != 0:
            return
        seconds = time.time() - self.progress.started
        line = {"step": self.progress.step, "samples": self.progress.samples, "seconds": round(seconds)}
        line |= {"progress": round(self.done, 3)} | {name: round(v, 4) for name, v in running.items()}
        self.progress.history.append(line)
        print(json.dumps(line), flush=True)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a sibling path, then renames it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every stage takes."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the drawn galleries")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--steps", type=int, help="train for this many steps (repeatable)")
    end.add_argument("--until", type=datetime.fromisoformat, help="train until this local time")


def plan_from(arguments: argparse.Namespace, stage: str, **choices) -> Plan:
    """The plan of a stage from its command line."""
    until = arguments.until.timestamp() if arguments.until else None
    checkpoint = arguments.work / f"{stage}.pt"
    return Plan(checkpoint, arguments.seed, arguments.steps, until, **choices)
