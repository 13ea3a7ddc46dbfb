"""What the tests share: the program, a studio, and a reason to skip."""

import os
import subprocess
import sys
import tempfile
import unittest
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent.absolute()
FLOWER = HERE.parent
REPOSITORY = FLOWER.parent.parent
sys.path[:0] = [str(FLOWER), str(FLOWER / "app")]

CATELIER = Path(os.environ.get("CATELIER", REPOSITORY / "target/debug/catelier")).absolute()


def missing() -> str | None:
    """Why nothing can be tested here."""
    if find_spec("flwr") is None:
        return "flwr is not installed: pip install -r federation/flower/requirements.txt"
    return None if CATELIER.is_file() else f"there is no program at {CATELIER}: cargo build, or set CATELIER"


class Studio(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


def catelier(*arguments, folder: Path) -> str:
    """Runs the program in a folder; what it wrote to stdout."""
    line = [str(argument) for argument in (CATELIER, *arguments)]
    ran = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    if ran.returncode != 0:
        raise AssertionError(f"{line}: {ran.stderr}")
    return ran.stdout
