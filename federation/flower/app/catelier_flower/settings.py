"""Settings of a site and of the server: files on their own disks, which no message can change."""

import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

_NAME = re.compile(r"[a-z0-9_-]{1,64}")


class Unusable(Exception):
    """Settings that cannot be used."""


@dataclass(frozen=True)
class Site:
    """Settings of one artist's site."""

    # The name under which the server knows the SuperNode.
    client: str
    # Settings of the training, for `catelier train --config`: images, trigger, base, steps.
    config: Path
    # Where rounds and what was trained in them are kept.
    rounds: Path
    # The program.
    catelier: str = "catelier"
    # Rounds that this site takes part in at most, those of all runs together.
    most_rounds: int = 1000
    # Only rounds whose noise at the client is at least this, in units of the clipping norm; 0 for any round.
    least_noise: float = 0.0
    # Only rounds with a clipping norm of at most this; none for any.
    largest_clip: float | None = None
    # Only rounds under secure aggregation, instead of only rounds without it.
    secure_aggregation: bool = False


@dataclass(frozen=True)
class Server:
    """Settings of the server."""

    # The plan of the rounds, for `catelier federate`.
    plan: Path
    # Names of the SuperNodes that may take part.
    clients: list
    # Where rounds, contributions, the state and the adapters are kept.
    out: Path
    # The adapter that the first round starts from.
    start: Path | None = None
    # The base that adapters belong to: embedded, a folder or a hub id.
    base: str = "embedded"
    # Contributions that a round needs; all clients if none.
    quorum: int | None = None
    # Seconds that a round waits for its clients.
    patience: float = 3600.0
    # The program.
    catelier: str = "catelier"


def read(kind, path: Path):
    """The settings of this kind in a TOML file. Paths in it are relative to its folder."""
    path = Path(path)
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            raise Unusable(f"`{path}`: unknown key `{key}`; the keys are {', '.join(known)}")
    for key, field in known.items():
        if field.default is MISSING and key not in values:
            raise Unusable(f"`{path}`: the key `{key}` is missing")
        if field.type in (Path, Path | None) and key in values:
            values[key] = path.parent.absolute() / values[key]
    for name in values.get("clients", [values.get("client")]):
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise Unusable(f"`{path}`: a client's name has 1 to 64 of a-z, 0-9, - and _, found {name!r}")
    return kind(**values)
