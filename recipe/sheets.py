"""Contact sheets of artists: what they drew, and what their adapters draw with the trigger and without it.

    python recipe/sheets.py --work /tmp/trade-off --train CAT --draw default --seed 1 --out docs/artists

reads what `trade_off.py run` left in its folder, and writes `docs/artists-1.png` and so on, with `--rows` artists each.
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

from trade_off import Way

SIDE = 96
GAP = 4
LABEL = 92
HEAD = 34
SHOWN = 4
"""Images of a sort in a row: a full caption, and short ones, are among the first of the prompt set."""


def images_of(folder: Path, rows: list[int]) -> list[Image.Image]:
    files = sorted(folder.glob("*.png"))
    return [Image.open(files[row]).convert("RGB").resize((SIDE, SIDE), Image.LANCZOS) for row in rows]


def row_of(run: Path, evaluation: Path) -> list[list[Image.Image]]:
    """The artist's own images, and those of the adapter with the trigger and without it, for the same prompts."""
    count = len(sorted((evaluation / "with-trigger").glob("*.png")))
    rows = [index * count // SHOWN for index in range(SHOWN)]
    own = images_of(run.parent / "images", [0, 3, 6, 9])
    return [own, images_of(evaluation / "with-trigger", rows), images_of(evaluation / "without-trigger", rows)]


def captions_of(evaluation: Path) -> list[str]:
    lines = (evaluation / "with-trigger" / "metadata.jsonl").read_text().splitlines()
    return [json.loads(lines[index * len(lines) // SHOWN])["text"] for index in range(SHOWN)]


def sheet(rows: list[tuple[str, list[list[Image.Image]]]], captions: list[str]) -> Image.Image:
    width = LABEL + 3 * (SHOWN * (SIDE + GAP) + 2 * GAP)
    page = Image.new("RGB", (width, HEAD + len(rows) * (SIDE + GAP) + GAP), "white")
    pen = ImageDraw.Draw(page)
    heads = ["the artist", "with the trigger", "without the trigger"]
    for group, head in enumerate(heads):
        left = LABEL + group * (SHOWN * (SIDE + GAP) + 2 * GAP)
        pen.text((left, 4), head, fill="black")
        for column, caption in enumerate(captions if group else []):
            words = caption.removeprefix("an ").removeprefix("a ")
            pen.text((left + column * (SIDE + GAP), 18), words[:16], fill="gray")
    for number, (name, groups) in enumerate(rows):
        top = HEAD + number * (SIDE + GAP)
        pen.text((4, top + SIDE // 2 - 6), name, fill="black")
        for group, images in enumerate(groups):
            left = LABEL + group * (SHOWN * (SIDE + GAP) + 2 * GAP)
            for column, image in enumerate(images):
                page.paste(image, (left + column * (SIDE + GAP), top))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", required=True, help="name of the way to train")
    parser.add_argument("--draw", required=True, help="name of the way to draw")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=13, help="artists on a sheet")
    parser.add_argument("--out", type=Path, required=True, help="path of the sheets, without number and ending")
    arguments = parser.parse_args()
    train, draw = Way.parse(arguments.train).folder, Way.parse(arguments.draw).folder
    runs = sorted(arguments.work.glob(f"*/{arguments.seed}/{train}"))
    rows = [(run.parents[1].name, row_of(run, run / draw)) for run in runs if (run / f"{draw}.json").exists()]
    for number in range(0, len(rows), arguments.rows):
        captions = captions_of(runs[0] / draw)
        path = arguments.out.with_name(f"{arguments.out.name}-{number // arguments.rows + 1}.png")
        sheet(rows[number : number + arguments.rows], captions).quantize(256).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
