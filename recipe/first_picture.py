"""From the start of a process to its first picture, beside diffusers: processor time, in turn, on one thread.

    python recipe/first_picture.py --catelier target/release/catelier                       # the embedded base
    python recipe/first_picture.py --catelier target/release/catelier --base FOLDER --size 256

Prints one line a round and the ratios. Beside it stand importing diffusers' pipeline, and importing, loading and drawing
the same number of steps.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT = "a red house in a field"

IMPORT = "from diffusers import StableDiffusionPipeline"
DRAW = """
import sys, torch
torch.set_num_threads(1)
from diffusers import StableDiffusionPipeline
folder, steps, size, dtype, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), safety_checker=None)
pipe("%s", num_inference_steps=int(steps), height=int(size), width=int(size)).images[0].save(out)
""" % PROMPT


def seconds(command):
    """Processor time of a command that must succeed, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def round_of(args, folder):
    steps, size = str(args.steps), str(args.size)
    precision = {"float32": "f32", "bfloat16": "bf16"}[args.dtype]
    ours = [args.catelier, "preview", "--prompt", PROMPT, "--steps", steps, "--size", f"{size}x{size}", "--threads", "1"]
    ours += ["--base", args.base, "--dtype", precision, "--out", os.path.join(folder, "ours")]
    times = {"catelier": seconds(ours)}
    times["import"] = seconds([sys.executable, "-c", IMPORT])
    drawn = os.path.join(HERE, "..", "base") if args.base == "embedded" else args.base
    picture = os.path.join(folder, "theirs.png")
    times["diffusers"] = seconds([sys.executable, "-c", DRAW, drawn, steps, size, args.dtype, picture])
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catelier", required=True)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(round_of(args, folder))
        print(json.dumps(rounds[-1]), file=sys.stderr)
    for name in ("import", "diffusers"):
        ratios = sorted(times["catelier"] / times[name] for times in rounds)
        print(f"catelier / {name}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
