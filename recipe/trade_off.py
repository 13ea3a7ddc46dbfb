"""Style learned against knowledge kept, for plain LoRA and CAT, on drawn artists.

    python recipe/trade_off.py run   --binary target/release/catelier --work /tmp/trade-off --judge WEIGHTS
    python recipe/trade_off.py write --work /tmp/trade-off --out docs

`run` trains and scores every combination of artist, seed and variant, one JSON file each, and skips those that are
done. `write` turns them into a table and a plot. Style is the judge's probability of the artist on pictures drawn with
the trigger; knowledge kept is `kps_no_token`.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

TRIGGER = "shs"


@dataclass(frozen=True)
class Variant:
    """One way to train; `name` groups the runs of a curve."""

    name: str
    learning_rate: float
    flags: tuple

    @property
    def label(self):
        return f"{self.name}-{self.learning_rate:g}"


LOSSES = {
    "lora": ("--loss", "lora"),
    "cat": ("--loss", "cat"),
    "cat with empty captions": ("--loss", "cat", "--cat-empty-share", "0.2"),
}


def variants(arguments):
    return [Variant(name, rate, LOSSES[name]) for name in arguments.losses for rate in arguments.rates]


def call(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def pictures_of(arguments, artist, seed):
    return arguments.work / artist / str(seed) / "pictures"


def draw(arguments, artist, seed):
    pictures = pictures_of(arguments, artist, seed)
    if not (pictures / "0001.png").exists():
        call(arguments.binary, "gallery", "draw", "--artist", artist, "--count", 10, "--seed", seed, "--out", pictures)


def run_one(arguments, artist, seed, variant):
    folder = arguments.work / artist / str(seed) / variant.label.replace(" ", "_")
    result = folder / "result.json"
    if result.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    pictures = pictures_of(arguments, artist, seed)
    call(arguments.binary, "train", "--threads", 1, "--images", pictures, "--trigger", TRIGGER, "--steps", arguments.steps,
         "--seed", seed, "--learning-rate", variant.learning_rate, *variant.flags, "--drift-every", 0, "--out", folder / "run")
    scores = json.loads(call(
        arguments.binary, "evaluate", "--threads", 1, "--adapter", folder / "run" / "adapter.safetensors",
        "--references", pictures, "--prompts", arguments.prompts, "--seeds", 1, "--json", "--out", folder / "evaluation"))
    judged = json.loads(call(
        sys.executable, Path(__file__).parent / "judge.py", "score", "--judge", arguments.judge,
        "--images", folder / "evaluation" / "with-trigger"))
    row = {"artist": artist, "seed": seed, "style": judged["artists"][artist], **asdict(variant),
           **{name: scores[name]["mean"] for name in ("identity", "kps_no_token", "kps_joint", "prompt_similarity")}}
    result.write_text(json.dumps(row))
    print(json.dumps(row), flush=True)


def run(arguments):
    jobs = [(artist, seed, variant) for seed in arguments.seeds for variant in variants(arguments)
            for artist in arguments.artists]
    for artist in arguments.artists:
        for seed in arguments.seeds:
            draw(arguments, artist, seed)
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda job: run_one(arguments, *job), jobs))


def spread(values):
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def grouped(rows):
    """(name, learning rate) -> rows, in the order of training."""
    groups = {}
    for row in sorted(rows, key=lambda row: (row["name"], row["learning_rate"])):
        groups.setdefault((row["name"], row["learning_rate"]), []).append(row)
    return groups


def table(rows):
    lines = ["| loss | learning rate | style | identity | kps_no_token | kps_joint | n |", "|---|---|---|---|---|---|---|"]
    for (name, rate), group in grouped(rows).items():
        cells = [spread([row[key] for row in group]) for key in ("style", "identity", "kps_no_token", "kps_joint")]
        lines.append(f"| {name} | {rate:g} | {' | '.join(cells)} | {len(group)} |")
    return "\n".join(lines)


def curve(rows, name):
    """Mean (style, kept) of each learning rate of one loss, by style."""
    points = [(statistics.mean(row["style"] for row in group), statistics.mean(row["kps_no_token"] for row in group))
              for (group_name, _), group in grouped(rows).items() if group_name == name]
    return sorted(points)


def kept_at(points, style):
    """Knowledge kept at a style level, by straight lines between the measured points; None outside them."""
    for (left, kept_left), (right, kept_right) in zip(points, points[1:]):
        if left <= style <= right:
            share = (style - left) / (right - left) if right > left else 0.0
            return kept_left + share * (kept_right - kept_left)
    return None


def equal_style(rows):
    names = sorted({row["name"] for row in rows})
    lines = ["| style | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for style in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        kept = [kept_at(curve(rows, name), style) for name in names]
        if any(value is not None for value in kept):
            lines.append(f"| {style} | " + " | ".join("-" if value is None else f"{value:.3f}" for value in kept) + " |")
    return "\n".join(lines)


def plot(rows, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "catelier"
    import matplotlib.pyplot as pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in sorted({row["name"] for row in rows}):
        groups = [group for (group_name, _), group in grouped(rows).items() if group_name == name]
        mean = lambda key: [statistics.mean(row[key] for row in group) for group in groups]
        error = lambda key: [statistics.stdev(row[key] for row in group) / len(group) ** 0.5 if len(group) > 1 else 0
                             for group in groups]
        axes.errorbar(mean("style"), mean("kps_no_token"), xerr=error("style"), yerr=error("kps_no_token"), marker="o",
                      capsize=2, label=name)
    axes.set_xlabel("style learned: probability of the artist, with the trigger")
    axes.set_ylabel("knowledge kept: kps_no_token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write(arguments):
    rows = [json.loads(path.read_text()) for path in sorted(arguments.work.glob("*/*/*/result.json"))]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "trade-off.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, arguments.out / "trade-off.svg")
    print(table(rows))
    print()
    print(equal_style(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--binary", type=Path, required=True)
    running.add_argument("--work", type=Path, required=True)
    running.add_argument("--judge", type=Path, required=True)
    running.add_argument("--artists", nargs="+", required=True)
    running.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    running.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    running.add_argument("--steps", type=int, default=120)
    running.add_argument("--prompts", default=Path(__file__).parent / "trade_off_prompts.toml", help="a prompt set or a file")
    running.add_argument("--losses", nargs="+", default=list(LOSSES))
    running.add_argument("--workers", type=int, default=2)
    running.set_defaults(run=run)
    writing = commands.add_parser("write")
    writing.add_argument("--work", type=Path, required=True)
    writing.add_argument("--out", type=Path, required=True)
    writing.set_defaults(run=write)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
