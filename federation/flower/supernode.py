"""A Flower SuperNode that runs the app beside this file and no other.

Whoever reaches a SuperLink's control interface can submit an app, and a plain `flower-supernode` runs its Python. This
one compares every app with `app/` here before any of its code is loaded, and answers others with an error.

    python supernode.py --site ada/site.toml --superlink HOST:8000 --root-certificates ca.crt \
        --auth-supernode-private-key ada.key

All other arguments are those of `flower-supernode`.
"""

import argparse
import importlib
import io
import os
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

# The check below goes into functions of Flower that are not public, so it holds for this release alone.
RELEASE = "1.42.0"
APP = Path(__file__).parent / "app"

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


def files(bundle: bytes) -> dict[str, bytes]:
    """The files of an app's bundle."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise zipfile.BadZipFile("a name occurs twice")
        return {name: archive.read(name) for name in names}


def run_only(app: Path) -> None:
    """Makes Flower refuse every app but this one, where it verifies the signatures of apps."""
    build, connection, node, command = (
        importlib.import_module(f"flwr.{name}")
        for name in (
            "cli.build",
            "supernode.fleet_http_connection",
            "supernode.start_client_internal",
            "supernode.cli.flower_supernode",
        )
    )
    ours = files(build.build_fab_from_disk(app))

    def is_ours(fab, _trusted) -> bool:
        try:
            return files(fab.content) == ours
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
            return False

    def with_verification(fab):
        fab.verifications["valid_license"] = "compared by supernode.py"
        return fab

    from_proto, start = connection.fab_from_proto, command.start_client_internal
    connection.fab_from_proto = lambda proto: with_verification(from_proto(proto))
    node._verify_fab = is_ours
    command.start_client_internal = lambda **settings: start(**settings | {"trusted_entities": {str(app): ""}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, required=True, help="settings of this site, a TOML file")
    ours, theirs = parser.parse_known_args()
    if version("flwr") != RELEASE:
        sys.exit(f"error: flwr {version('flwr')} is installed, and apps are checked for {RELEASE} only")
    if not ours.site.is_file():
        sys.exit(f"error: there is no file `{ours.site}`")
    if any(argument.split("=")[0] in ("--trusted-entities", "--isolation") for argument in theirs):
        sys.exit("error: --trusted-entities and --isolation are set here")
    run_only(APP)
    # Apps are unpacked into a folder of this process, where no earlier one can have left files.
    with tempfile.TemporaryDirectory(prefix="catelier-flower-") as home:
        os.environ["FLWR_HOME"] = home
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        os.environ["CATELIER_SITE"] = str(ours.site.absolute())
        sys.argv = ["flower-supernode", *theirs]
        importlib.import_module("flwr.supernode.cli").flower_supernode()


if __name__ == "__main__":
    main()
