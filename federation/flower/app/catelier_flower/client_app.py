"""The client of a round: a message in, `catelier train --round`, a contribution out.

Nothing in a message names a file, a program or a setting of the training: those are the site's own, in the file that
the environment variable CATELIER_SITE names.
"""

import json
import os
import subprocess
import traceback
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from catelier_flower import settings, wire

LAST_ROUND = 9999

app = ClientApp()


class Failed(Exception):
    """What the server is told of a failure at home: no reason, since reasons name files."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answers a round with a contribution. No other kind of message has an answer."""
    try:
        site = settings.read(settings.Site, os.environ["CATELIER_SITE"])
        answer = partial(take_part, site=site, run=context.run_id)
        if site.secure_aggregation:
            from catelier_flower import secure

            return secure.train(message, context, answer)
        return Message(answer(message.content), reply_to=message)
    except wire.Refused:
        raise
    except Exception:
        traceback.print_exc()
        raise Failed("the round was not trained; the reason is in this node's log") from None


def take_part(content: RecordDict, site: settings.Site, run: int) -> RecordDict:
    """Trains as the round asks, and returns what leaves."""
    files = wire.unpack_round(content)
    number = _round(files[wire.ROUND], site)
    run_folder = site.rounds / str(run)
    folder = run_folder / f"{number:04}"
    if folder.exists():
        raise wire.Refused(f"round {number} of this run was asked for before")
    if len(list(site.rounds.glob("*/*/trained"))) >= site.most_rounds:
        raise wire.Refused("this site has taken part in as many rounds as it wants to")
    (folder / "round").mkdir(parents=True)
    for name, data in files.items():
        (folder / "round" / name).write_bytes(data)
    _train(site, folder, _own(run_folder, number))
    return wire.pack_contribution((folder / "trained" / wire.CONTRIBUTION).read_bytes())


def _round(text: bytes, site: settings.Site) -> int:
    """The number of a round that the site is willing to take part in."""
    try:
        described = json.loads(text)
        number, privacy = described["instructions"]["round"], described["plan"].get("privacy") or {}
        secure, weighting = (described["plan"].get(key) for key in ("secure_aggregation", "weighting"))
        at_home = privacy.get("at") == "client"
        noise, clip = float(privacy.get("noise", 0) if at_home else 0), float(privacy.get("clip", "inf"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise wire.Refused(f"`{wire.ROUND}` does not describe a round") from None
    if type(number) is not int or not 1 <= number <= LAST_ROUND:
        raise wire.Refused(f"a round has a number from 1 to {LAST_ROUND}")
    if secure is not site.secure_aggregation:
        kind = "under" if site.secure_aggregation else "without"
        raise wire.Refused(f"this site takes part only {kind} secure aggregation")
    if secure and weighting != "uniform":
        raise wire.Refused("under secure aggregation every client counts once: the plan's weighting is `uniform`")
    if not noise >= site.least_noise:
        raise wire.Refused(f"this site takes part only with noise of {site.least_noise} at the client")
    if site.largest_clip is not None and not clip <= site.largest_clip:
        raise wire.Refused(f"this site takes part only with a clipping norm of {site.largest_clip} at most")
    return number


def _train(site: settings.Site, folder: Path, own: Path | None) -> None:
    command = [site.catelier, "train", "--round", folder / "round", "--client", site.client]
    command += ["--config", site.config, "--out", folder / "trained"]
    command += ["--own", own] if own else []
    # Paths in the configuration are relative to it, as for whoever trains by hand beside it.
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=site.config.parent)


def _own(run_folder: Path, number: int) -> Path | None:
    """The client's own adapter of its last round in this run."""
    for before in range(number - 1, 0, -1):
        trained = run_folder / f"{before:04}" / "trained"
        if (trained / wire.CONTRIBUTION).exists():
            adapters = [*sorted(trained.glob("phase-*/adapter.safetensors")), trained / "adapter.safetensors"]
            return next((adapter for adapter in reversed(adapters) if adapter.exists()), None)
    return None
