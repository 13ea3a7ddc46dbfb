"""What leaks out of a federation's rounds, with CAT and without, with clipping, noise and other rules.

    python recipe/audit.py run   --binary target/release/catelier --work WORK --seeds 1
    python recipe/audit.py write --work WORK --out docs/experiments/audit.md

`run` plays every federation with every seed on the embedded base, attacks it as an artist and as the server, and skips what is
done. `write` puts the tables between the marks in the page. With several seeds a cell is the mean over them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ARTISTS = ("blueprint", "goldleaf", "poster")
COMMON = ("--artists", ",".join(ARTISTS), "--rounds", 4, "--images", 10, "--local-steps", 40, "--score-every", 1, "--prompts", 1)
FFA = ("--loss", "lora", "--strategy", "ffa")
FEDERATIONS = {
    # Nothing is learned in one step, so that nothing must be found.
    "one step": ("--artists", ",".join(ARTISTS[:2]), "--rounds", 1, "--local-steps", 1),
    "CAT": (),
    "plain LoRA": ("--loss", "lora"),
    # No federation's way to train: it shows what the attacks find where there is something to be found.
    "three images, overtrained": ("--loss", "lora", "--artists", ",".join(ARTISTS[:2]), "--images", 3, "--rounds", 1, "--local-steps", 300),
    "LoRA, `ffa`": FFA,
    "LoRA, `ffa`, clip 5": (*FFA, "--clip", 5),
    "LoRA, `ffa`, clip 5, noise 0.002": (*FFA, "--clip", 5, "--noise", 0.002),
    "LoRA, two artists": ("--loss", "lora", "--artists", ",".join(ARTISTS[:2])),
    "LoRA, `fedavg`": ("--loss", "lora", "--strategy", "fedavg"),
}
ATTACKERS = (ARTISTS[0], "server")
MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("copying", "membership", "strength", "trials")}


def call(binary, *command):
    ran = subprocess.run([str(part) for part in (binary, *command)], capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{ran.stderr}")
    return ran.stdout


def folder_of(name):
    return name.replace("`", "").replace(",", "").replace(" ", "-").lower()


def play(arguments, seed, name):
    folder = arguments.work / str(seed) / folder_of(name)
    played = folder / "simulation"
    own = FEDERATIONS[name]
    flags = {**dict(zip(COMMON[::2], COMMON[1::2])), **dict(zip(own[::2], own[1::2]))}
    if not (played / "simulation.json").exists():
        resume = (played / "simulation.toml").exists()
        settings = ["--resume"] if resume else ["--seed", seed, *(part for flag in flags.items() for part in flag)]
        call(arguments.binary, "federate", "simulate", *settings, "--out", played)
    for attacker in ATTACKERS:
        result = folder / f"{attacker}.json"
        if result.exists():
            continue
        found = call(arguments.binary, "federate", "audit", played, "--attacker", attacker, "--seed", seed, *arguments.flags,
                     "--json", "--out", folder / f"audit-{attacker}")
        partial = result.with_suffix(".partial")
        partial.write_text(found)
        os.replace(partial, result)
        print(seed, name, attacker, flush=True)


def run(arguments):
    for seed in arguments.seeds:
        for name in arguments.federations or FEDERATIONS:
            play(arguments, seed, name)


def audits(arguments, name, attacker):
    files = (arguments.work / str(seed) / folder_of(name) / f"{attacker}.json" for seed in arguments.seeds)
    return [json.loads(file.read_text()) for file in files if file.exists()]


def styles(arguments, name):
    """Mean style of the last global adapter, over artists and seeds."""
    values = []
    for seed in arguments.seeds:
        file = arguments.work / str(seed) / folder_of(name) / "simulation" / "simulation.json"
        if file.exists():
            scores = json.loads(file.read_text())["scores"]
            values += [score["style"] for score in scores if score["adapter"] == "averaged" and "round" not in score]
    return f"{statistics.mean(values):.2f}" if values else "-"


def interval(told):
    """Of one seed with its interval, of several their mean."""
    if len(told) == 1:
        return f"{told[0]['mean']:.2f} [{told[0]['low']:.2f}, {told[0]['high']:.2f}]"
    return f"{statistics.mean(one['mean'] for one in told):.2f}"


def rows_of(found, part, **wanted):
    return [row for audit in found for row in audit[part] if all(row.get(key) == value for key, value in wanted.items())]


def named(attacker):
    return "the server" if attacker == "server" else "an artist"


def found_in(arguments, cells, part, keys):
    """A row for each federation and attacker, with `cells` of the rows of `part`."""
    lines = []
    for name in FEDERATIONS:
        for attacker in ATTACKERS:
            found = audits(arguments, name, attacker)
            if found:
                values = [cell for wanted in keys for cell in cells(rows_of(found, part, victim=None, **wanted))]
                lines.append(f"| {name} | {named(attacker)} | {' | '.join(values)} |")
    return lines


def copying_table(arguments):
    def cells(rows):
        if not rows:
            return ["-", "-"]
        told = [row["told"] for row in rows]
        count = sum(round(one["above_99"]["mean"] * one["above_99"]["n"]) for one in told)
        return [f"{count} of {sum(one['above_99']['n'] for one in told)}", interval([one["auc"] for one in told])]

    keys = [{"handed_out": None}, {"handed_out": "the last", "knows": "captions"},
            {"handed_out": "every round", "knows": "nothing"}, {"handed_out": "every round", "knows": "captions"}]
    lines = ["| federation | attacker | base | | the last | | every round, knows nothing | | every round, knows trigger and captions | |",
             "|---|---|" + "---|---|" * len(keys)]
    return lines + found_in(arguments, cells, "copying", keys)


def membership_table(arguments):
    def cells(rows):
        if not rows:
            return ["-", "-", "-"]
        return [interval([row["told"][part] for row in rows]) for part in ("auc", "above_99", "above_90")]

    keys = [{"handed_out": "the last", "with_trigger": True}, {"handed_out": "every round", "with_trigger": True}]
    lines = ["| federation | style | attacker | the last: AUC | at 1 % | at 10 % | every round: AUC | at 1 % | at 10 % |", "|" + "---|" * 9]
    for line in found_in(arguments, cells, "membership", keys):
        _, name, rest = line.split("|", 2)
        lines.append(f"| {name.strip()} | {styles(arguments, name.strip())} |{rest}")
    return lines


def strength_table(arguments):
    lines = ["| federation | attacker | difference from | strength | nearer than 99 of 100 | AUC |", "|---|---|---|---|---|---|"]
    for name in ("CAT", "plain LoRA", "three images, overtrained"):
        for attacker in ATTACKERS:
            found = audits(arguments, name, attacker)
            for way in found[0]["by_strength"] if found else []:
                wanted = {key: way[key] for key in ("early", "strength")}
                told = [row["told"] for row in rows_of(found, "by_strength", **wanted)]
                count = sum(round(one["above_99"]["mean"] * one["above_99"]["n"]) for one in told)
                early = "the base" if way["early"] is None else f"round {way['early']}"
                cells = [early, f"{way['strength']:g}", f"{count} of {sum(one['above_99']['n'] for one in told)}",
                         interval([one["auc"] for one in told])]
                lines.append(f"| {name} | {named(attacker)} | {' | '.join(cells)} |")
    return lines


def trials_table(arguments):
    """Of the first federation's audit by the server, which looks for all artists."""
    found = audits(arguments, "one step", "server")
    lines = ["| measure | noise in the copies | nearer than 99 of 100 | AUC | similarity of a copy | of a held-out image |",
             "|---|---|---|---|---|---|"]
    for trial in found[0]["trials"] if found else []:
        same = rows_of(found, "trials", measure=trial["measure"], noise=trial["noise"])
        told = [one["copying"]["told"] for one in same]
        count = sum(round(one["above_99"]["mean"] * one["above_99"]["n"]) for one in told)
        similar = [statistics.mean(one["copying"][part] for one in same) for part in ("training", "held_out")]
        lines.append(f"| {trial['measure']} | {trial['noise']:g} | {count} of {sum(one['above_99']['n'] for one in told)} | "
                     f"{interval([one['auc'] for one in told])} | {similar[0]:.2f} | {similar[1]:.2f} |")
    return lines


def write(arguments):
    page = arguments.out.read_text()
    tables = {"copying": copying_table, "membership": membership_table, "strength": strength_table, "trials": trials_table}
    for name, table in tables.items():
        begin, end = MARKS[name]
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n" + "\n".join(table(arguments)) + f"\n{end}{after}"
    arguments.out.write_text(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "write"])
    parser.add_argument("--binary", type=Path, help="of catelier")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the page with the marks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--federations", nargs="+", choices=list(FEDERATIONS), help="only these")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of `federate audit`, last")
    arguments = parser.parse_args()
    {"run": run, "write": write}[arguments.command](arguments)


if __name__ == "__main__":
    main()
