"""What cheaper CAT steps save, and what they cost in knowledge and style, on a drawn artist.

    python recipe/cat_options.py run   --binary target/release/catelier --work WORK
    python recipe/cat_options.py write --work WORK --out docs/cat-options.md

`run` trains and scores every option with every seed on the embedded base, one JSON file each, and skips those that are
done. `write` turns them into a table. Time is the processor time of `train` alone, on one thread.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

TRIGGER = "shs"
OPTIONS = {
    "plain LoRA": ("--loss", "lora"),
    "CAT": (),
    "--cat-every 2": ("--cat-every", "2"),
    "--cat-every 4": ("--cat-every", "4"),
    "--cat-cached-draws 2": ("--cat-cached-draws", "2"),
    "--cat-cached-draws 8": ("--cat-cached-draws", "8"),
}
SCORES = ("kps_no_token", "kps_joint", "identity", "prompt_similarity")


def call(*command):
    """Output and processor seconds of a command."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{errors}")
    return output, usage.ru_utime + usage.ru_stime


def run_one(arguments, seed, name):
    folder = arguments.work / str(seed) / name.replace(" ", "_")
    result = folder / "result.json"
    if result.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    pictures = arguments.work / str(seed) / "pictures"
    if not pictures.exists():
        call(arguments.binary, "gallery", "draw", "--artist", arguments.artist, "--count", 10, "--seed", seed,
             "--out", pictures)
    _, seconds = call(arguments.binary, "train", "--threads", 1, "--images", pictures, "--trigger", TRIGGER, "--seed",
                      seed, *OPTIONS[name], "--drift-every", 0, "--out", folder / "run")
    scores, _ = call(arguments.binary, "evaluate", "--threads", 1, "--adapter", folder / "run" / "adapter.safetensors",
                     "--references", pictures, "--prompts", arguments.prompts, "--seeds", 1, "--json",
                     "--out", folder / "evaluation")
    scores = json.loads(scores)
    row = {"name": name, "seed": seed, "seconds": seconds, **{score: scores[score]["mean"] for score in SCORES}}
    result.write_text(json.dumps(row))
    print(json.dumps(row), flush=True)


def run(arguments):
    for seed in arguments.seeds:
        for name in OPTIONS:
            run_one(arguments, seed, name)


def spread(values):
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def table(rows):
    lines = [f"| option | processor time | {' | '.join(SCORES)} | n |", "|---|---|" + "---|" * len(SCORES) + "---|"]
    full = {row["seed"]: row["seconds"] for row in rows if row["name"] == "CAT"}
    for name in OPTIONS:
        group = [row for row in rows if row["name"] == name]
        ratios = [row["seconds"] / full[row["seed"]] for row in group if row["seed"] in full]
        cells = [f"{statistics.median(ratios):.2f}", *(spread([row[score] for row in group]) for score in SCORES)]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(group)} |")
    return "\n".join(lines)


PAGE = """# Cheaper CAT steps, and what they cost

A CAT step is three forward passes (the base and the adapter without the trigger, the adapter with it) and the backward
passes of two. What can be shared exactly always is, and saves little ([cat-sharing.md](cat-sharing.md)). The options below
are not exact, and off unless asked for:

- `--cat-every N` has the CAT term in one of N batches, N times as heavy: the expected gradient is the same, its variance
  is not.
- `--cat-cached-draws N` draws noise and timestep of a picture from N fixed draws, and keeps the base's predictions of them: the
  base's pass is made once for each draw instead of in every step.

The artist is `{artist}` (ten drawn pictures) on the embedded base with its defaults; mean ± standard deviation over the
seeds {seeds}. Processor time is that of the whole run of `train` on one thread, encoding included, as a ratio to CAT's with
the same seed (median).

{table}

```
python recipe/cat_options.py run --binary target/release/catelier --work WORK --artist {artist} --seeds {seeds}
python recipe/cat_options.py write --work WORK --artist {artist} --out docs/cat-options.md
```
"""


def write(arguments):
    rows = [json.loads(path.read_text()) for path in sorted(arguments.work.glob("*/*/result.json"))]
    seeds = " ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    arguments.out.write_text(PAGE.format(artist=arguments.artist, seeds=seeds, table=table(rows)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "write"])
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--artist", default="thermal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--prompts", default=Path(__file__).parent / "trade_off_prompts.toml")
    parser.add_argument("--out", type=Path, default=Path("docs/cat-options.md"))
    arguments = parser.parse_args()
    {"run": run, "write": write}[arguments.verb](arguments)


if __name__ == "__main__":
    main()
