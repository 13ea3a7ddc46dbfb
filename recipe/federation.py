"""Rules of a federation on drawn artists: own style, averaged style, knowledge kept, late joiners, bytes.

    python recipe/federation.py run --binary target/release/catelier --work /tmp/federation --seeds 1 2 3
    python recipe/federation.py write --work /tmp/federation --out docs/experiments/federation

`run` plays `catelier federate simulate` for every rule, loss and seed, and skips what is done; one that was interrupted
goes on. `write` turns the tables into one.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARTISTS = ("blueprint", "chalk", "goldleaf", "handheld", "neon", "riso", "vase", "wash")
LATE = ("pastel",)
HEAD = "up_blocks.2.*"
RULES = {
    "fedavg": "--strategy fedavg --baselines",
    "product": "--strategy product",
    "ffa": "--strategy ffa",
    "fedsa": "--strategy fedsa",
    "fedrot": "--strategy fedrot",
    "flora": "--strategy flora",
    "ewwa": "--strategy ewwa-adam",
    "ewwa, updates": "--strategy ewwa-adam:product",
    "fedavg, tuned": "--strategy fedavg --tuning-steps 40",
    "fedbabu": "--strategy product --head {head} --tuning-steps 40",
    "fedrep": "--strategy product --head {head} --head-rule fedrep --tuning-steps 40",
    "fedprox": "--strategy fedavg --proximal 0.1",
    "knowledge": "--exchange knowledge",
}
SCORES = ("style", "content", "preservation", "kps_no_token")
MIB = 1 << 20


def folder_of(rule, loss, seed):
    return "".join(letter if letter.isalnum() else "_" for letter in f"{rule} {loss} {seed}")


def play(arguments, rule, loss, seed):
    out = arguments.work / folder_of(rule, loss, seed)
    if (out / "simulation.json").exists():
        return
    command = [arguments.binary, "federate", "simulate", "--threads", 1, "--json", "--out", out]
    if (out / "state.safetensors").exists():
        command += ["--resume"]
    else:
        flags = RULES[rule].format(head=arguments.head)
        command += ["--artists", ",".join(arguments.artists), "--late", ",".join(arguments.late), "--rounds", arguments.rounds,
                    "--local-steps", arguments.local_steps, "--prompts", arguments.prompts, "--loss", loss, "--seed", seed,
                    "--score-every", 1 if rule == "product" else 0, *shlex.split(flags)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    (out / "condition.json").write_text(json.dumps({"rule": rule, "loss": loss, "seed": seed}))
    print(f"{rule}, {loss}, seed {seed}", flush=True)


def run(arguments):
    jobs = [(rule, loss, seed) for seed in arguments.seeds for loss in arguments.losses for rule in arguments.rules]
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda job: play(arguments, *job), jobs))


def mean_of(scores, adapter, figure):
    known = [score[figure] for score in scores
             if score["adapter"] == adapter and "round" not in score and score[figure] is not None]
    return statistics.mean(known) if known else None


def rows(arguments):
    for condition in sorted(arguments.work.glob("*/condition.json")):
        row = json.loads(condition.read_text())
        played = json.loads((condition.parent / "simulation.json").read_text())
        adapters = list(dict.fromkeys(score["adapter"] for score in played["scores"]))
        row["scores"] = {adapter: {figure: mean_of(played["scores"], adapter, figure) for figure in SCORES}
                         for adapter in adapters}
        row["by_round"] = [[score["round"], score["artist"], score["style"], score["preservation"]]
                           for score in played["scores"] if "round" in score]
        row["distance"] = [round["relative_distance"] for round in played["rounds"]]
        row["bytes_sent"] = sum(round.get("bytes_sent", 0) for round in played["rounds"])
        yield row


def cell(values, digits=2):
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def table(found):
    """One line for each rule, loss and adapter."""
    lines = ["| rule | loss | adapter | style | content | preservation | kps_no_token | from the exact mean | MiB sent | n |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    groups = {}
    for row in found:
        for adapter in row["scores"]:
            groups.setdefault((row["rule"], row["loss"], adapter), []).append(row)
    for (rule, loss, adapter), members in groups.items():
        scores = [cell([row["scores"][adapter][figure] for row in members], 3 if figure == "kps_no_token" else 2)
                  for figure in SCORES]
        distance = cell([row["distance"][-1] for row in members], 3)
        sent = cell([row["bytes_sent"] / MIB for row in members], 1)
        lines.append(f"| {rule} | {loss} | {adapter} | {' | '.join(scores)} | {distance} | {sent} | {len(members)} |")
    return "\n".join(lines)


def write(arguments):
    found = list(rows(arguments))
    order = list(RULES)
    found.sort(key=lambda row: (row["loss"], order.index(row["rule"]), row["seed"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--binary", type=Path, required=True)
    running.add_argument("--work", type=Path, required=True)
    running.add_argument("--artists", nargs="+", default=ARTISTS)
    running.add_argument("--late", nargs="+", default=LATE)
    running.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    running.add_argument("--losses", nargs="+", default=["cat", "lora"])
    running.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    running.add_argument("--rounds", type=int, default=4)
    running.add_argument("--local-steps", type=int, default=50)
    running.add_argument("--prompts", type=int, default=3)
    running.add_argument("--head", default=HEAD, help="patterns of the head's modules")
    running.add_argument("--workers", type=int, default=2)
    running.set_defaults(run=run)
    writing = commands.add_parser("write")
    writing.add_argument("--work", type=Path, required=True)
    writing.add_argument("--out", type=Path, required=True, help="path of the JSON file, without an ending")
    writing.set_defaults(run=write)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
