"""Style, content and knowledge kept, over ways to train and ways to draw, on drawn artists.

    python recipe/trade_off.py run --binary target/release/catelier --work /tmp/trade-off --judge WEIGHTS \\
        --artists neon wash --train "CAT=--loss cat" --train "LoRA=--loss lora" --draw "plain=" --draw "trigger=--guidance-from trigger"
    python recipe/trade_off.py write --work /tmp/trade-off --out docs/trade-off

`run` trains every combination of artist, seed and way to train, scores it for every way to draw, one JSON file each, and
skips what is done. `write` turns them into a table and a plot. The judge names object and artist in images with the
trigger; the other figures are those of `catelier evaluate`.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TRIGGER = "shs"
SCORES = ("style", "content", "preservation", "kps_joint", "kps_no_token", "content_no_token", "identity")
FIGURES = ("object", "artist_named", *SCORES)


@dataclass(frozen=True)
class Way:
    """A way to train or to draw: its name and its flags."""

    name: str
    flags: tuple

    @staticmethod
    def parse(text):
        name, _, flags = text.partition("=")
        return Way(name, tuple(shlex.split(flags)))

    @property
    def folder(self):
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


def call(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def draw(arguments, artist, seed):
    """The ten images that the adapter learns from."""
    images = arguments.work / artist / str(seed) / "images"
    if not (images / "0010.txt").exists():
        shutil.rmtree(images, ignore_errors=True)
        call(arguments.binary, "gallery", "draw", "--artist", artist, "--count", 10, "--seed", seed, "--out", images)
    return images


def train(arguments, artist, seed, way):
    """One training and all its evaluations."""
    images = arguments.work / artist / str(seed) / "images"
    folder = arguments.work / artist / str(seed) / way.folder
    adapter = folder / "run" / "adapter.safetensors"
    if not (folder / "trained").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        call(arguments.binary, "train", "--threads", 1, "--images", images, "--trigger", TRIGGER, "--seed", seed,
             *way.flags, "--drift-every", 0, "--out", folder / "run")
        (folder / "trained").touch()
    for drawing in arguments.draw:
        result = folder / f"{drawing.folder}.json"
        if not result.exists():
            row = {"artist": artist, "seed": seed, "train": way.name, "draw": drawing.name}
            row |= evaluate(arguments, artist, images, adapter, folder / drawing.folder, drawing)
            result.write_text(json.dumps(row))
            print(json.dumps(row), flush=True)


def evaluate(arguments, artist, images, adapter, out, drawing):
    scores = json.loads(call(
        arguments.binary, "evaluate", "--threads", 1, "--adapter", adapter, "--references", images, "--prompts",
        arguments.prompts, "--seeds", 1, *drawing.flags, "--json", "--out", out))
    judged = json.loads(call(
        sys.executable, Path(__file__).parent / "judge.py", "score", "--judge", arguments.judge, "--images",
        out / "with-trigger"))
    figures = {name: scores[name] and scores[name]["mean"] for name in SCORES}
    return {"object": judged["object"], "artist_named": judged["named"].get(artist, 0.0)} | figures


def run(arguments):
    for artist in arguments.artists:
        for seed in arguments.seeds:
            draw(arguments, artist, seed)
    jobs = [(artist, seed, way) for seed in arguments.seeds for way in arguments.train for artist in arguments.artists]
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda job: train(arguments, *job), jobs))


def spread(values):
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.2f} ± {statistics.stdev(known) if len(known) > 1 else 0:.2f}"


def grouped(rows, *keys):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def table(rows, *keys):
    """One line for each combination of `keys`."""
    heads = [*keys, "object named", "artist named", *FIGURES[2:], "n"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for group, members in sorted(grouped(rows, *keys).items()):
        cells = [spread([row[figure] for row in members]) for figure in FIGURES]
        lines.append("| " + " | ".join([*group, *cells, str(len(members))]) + " |")
    return "\n".join(lines)


def plot(rows, path):
    """Style against preservation; the size of a mark is the content."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "catelier"
    import matplotlib.pyplot as pyplot
    figure, axes = pyplot.subplots(figsize=(8.5, 4.5))
    trains, draws = ([*grouped(rows, key)] for key in ("train", "draw"))
    for (train, drawing), members in sorted(grouped(rows, "train", "draw").items()):
        mean = {key: statistics.mean(row[key] for row in members) for key in ("style", "content", "preservation")}
        axes.scatter(mean["preservation"], mean["style"], s=20 + 100 * mean["content"] ** 2, alpha=0.8,
                     color=f"C{trains.index((train,))}", marker="os^Dvp"[draws.index((drawing,)) % 6],
                     label=f"{train}, {drawing} (content {mean['content']:.2f})")
    axes.set_xlabel("preservation: 0 another image of the base, 1 unchanged")
    axes.set_ylabel("style: 0 the base, 1 the artist's own images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def write(arguments):
    results = sorted(path for path in arguments.work.glob("*/*/*/*.json") if not path.name.startswith("."))
    rows = [json.loads(path.read_text()) for path in results]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, arguments.out.with_suffix(".svg"))
    print(table(rows, "train", "draw"))
    print()
    print(table(rows, "artist", "train", "draw"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--binary", type=Path, required=True)
    running.add_argument("--work", type=Path, required=True)
    running.add_argument("--judge", type=Path, required=True)
    running.add_argument("--artists", nargs="+", required=True)
    running.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    running.add_argument("--train", type=Way.parse, action="append", required=True, metavar="NAME=FLAGS")
    running.add_argument("--draw", type=Way.parse, action="append", required=True, metavar="NAME=FLAGS")
    running.add_argument("--prompts", default=Path(__file__).parent / "trade_off_prompts.toml", help="a prompt set or a file")
    running.add_argument("--workers", type=int, default=2)
    running.set_defaults(run=run)
    writing = commands.add_parser("write")
    writing.add_argument("--work", type=Path, required=True)
    writing.add_argument("--out", type=Path, required=True, help="path of the JSON file and the plot, without an ending")
    writing.set_defaults(run=write)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
