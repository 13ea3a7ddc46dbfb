"""A federation of drawn artists on this machine: a SuperLink and a SuperNode for each artist, over TLS, with node keys.

    python loopback.py --catelier ../../target/release/catelier --out flower-demo

Prints every command that it runs, so that the same can be done by hand on several machines.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import keys

HERE = Path(__file__).parent.absolute()
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
# Seconds until a SuperLink answers.
PATIENCE = 120


def tell(line: str) -> None:
    print(line, flush=True)


class Federation:
    """A folder with the settings, keys and results of a server and of its artists."""

    def __init__(self, folder: Path, catelier: Path, say=tell) -> None:
        self.folder, self.catelier, self.say = folder.absolute(), catelier.absolute(), say
        self.port = free_port()
        self.processes: list[subprocess.Popen] = []
        self.environment = os.environ | {
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "CATELIER_SERVER": str(self.folder / "server/server.toml"),
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
            "NO_PROXY": HOST,
        }

    def prepare(self, artists: list[str], plan: str, steps: int, images: int) -> None:
        """Draws images for each artist, and writes keys and settings."""
        tls = self.folder / "tls"
        keys.make_server([HOST], tls)
        write(self.folder / "flwr/config.toml", CONNECTION.format(address=f"{HOST}:{self.port}", ca=tls / "ca.crt"))
        write(self.folder / "server/plan.toml", plan)
        names = ", ".join(f'"{artist}"' for artist in artists)
        write(self.folder / "server/server.toml", SERVER.format(clients=names, catelier=self.catelier))
        for artist in artists:
            home = self.folder / artist
            keys.make_node(home / "node.key")
            self.run([self.catelier, "gallery", "draw", "--artist", artist, "--count", images, "--out", home / "art"])
            write(home / "run.toml", RUN.format(steps=steps))
            write(home / "site.toml", SITE.format(client=artist, catelier=self.catelier))

    def start_server(self) -> None:
        """Starts a SuperLink, and waits until it answers."""
        tls = self.folder / "tls"
        line = [BIN / "flower-superlink", "--host", HOST, "--port", self.port, "--enable-supernode-auth"]
        line += ["--ssl-ca-certfile", tls / "ca.crt", "--ssl-certfile", tls / "server.crt"]
        line += ["--ssl-keyfile", tls / "server.key", "--disable-runtime-dependency-installation"]
        superlink = self.start("superlink", line)
        context = ssl.create_default_context(cafile=tls / "ca.crt")
        over_tls = urllib.request.HTTPSHandler(context=context)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), over_tls)
        for _ in range(PATIENCE * 5):
            if superlink.poll() is not None:
                break
            with contextlib.suppress(OSError):
                opener.open(f"https://{HOST}:{self.port}/health", timeout=5).close()
                return
            time.sleep(0.2)
        sys.exit(f"error: the SuperLink does not answer; see `{self.folder / 'superlink.log'}`")

    def register(self, artist: str) -> None:
        """Registers the artist's public key under the artist's name."""
        self.run([BIN / "flwr", "supernode", "register", self.folder / artist / "node.key.pub", "--name", artist])

    def start_node(self, artist: str) -> subprocess.Popen:
        """Starts the artist's SuperNode."""
        home = self.folder / artist
        line = [sys.executable, HERE / "supernode.py", "--site", home / "site.toml"]
        line += ["--superlink", f"{HOST}:{self.port}"]
        line += ["--root-certificates", self.folder / "tls/ca.crt", "--auth-supernode-private-key", home / "node.key"]
        return self.start(artist, [*line, "--port", free_port()])

    def submit(self, app: Path) -> subprocess.Popen:
        """Submits an app, and follows its log."""
        return self.start(f"run-{app.name}", [BIN / "flwr", "run", app, "--stream"])

    def follow(self, app: Path) -> None:
        """Submits an app, and shows its log until its run is over."""
        line = self.told([BIN / "flwr", "run", app, "--stream"])
        subprocess.run(line, env=self.environment, stdin=subprocess.DEVNULL)

    def adapter(self, number: int) -> Path:
        """The adapter after a round."""
        return self.folder / f"server/federation/adapter-{number:04}.safetensors"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def run(self, line: list) -> None:
        line = self.told(line)
        ran = subprocess.run(line, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"error: {shlex.join(line)}\n{ran.stdout}{ran.stderr}")

    def start(self, name: str, line: list) -> subprocess.Popen:
        """Starts a program with its children in a group of its own, and its output in a log."""
        line = self.told(line)
        with open(self.folder / f"{name}.log", "wb") as log:
            settings = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            process = subprocess.Popen(line, env=self.environment, cwd=self.folder, **settings)
        self.processes.append(process)
        return process

    def told(self, line: list) -> list[str]:
        line = [str(word) for word in line]
        self.say(f"$ {shlex.join(line)}")
        return line

    def stop(self) -> None:
        """Stops all programs, the newest first."""
        for process in reversed(self.processes):
            signal_group(process, signal.SIGINT)
        for process in reversed(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            signal_group(process, signal.SIGKILL)
            process.wait()
        self.processes.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.stop()


CONNECTION = """[superlink]
default = "federation"

[superlink.federation]
address = "{address}"
root-certificates = "{ca}"
"""

PLAN = """strategy = "{strategy}"
rounds = {rounds}
on_failure = "skip_client"
"""

SERVER = """plan = "plan.toml"
clients = [{clients}]
out = "federation"
patience = 600
catelier = "{catelier}"
"""

RUN = """images = "art"
trigger = "shs"
rank = 4
steps = {steps}
drift_every = 0
"""

SITE = """client = "{client}"
config = "run.toml"
rounds = "rounds"
catelier = "{catelier}"
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catelier", type=Path, required=True, help="the program")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for everything")
    parser.add_argument("--artists", default="goldleaf,wash", help="see `catelier gallery list` [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="[default: %(default)s]")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a round [default: %(default)s]")
    parser.add_argument("--images", type=int, default=8, help="images of each artist [default: %(default)s]")
    parser.add_argument("--strategy", default="fedavg", help="the aggregation rule [default: %(default)s]")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    if asked.out.exists():
        sys.exit(f"error: `{asked.out}` is there already; name a new folder")
    if not shutil.which(asked.catelier):
        sys.exit(f"error: `{asked.catelier}` is no program; build it with `cargo build --release`")
    artists = asked.artists.split(",")
    # So that the programs are stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    with Federation(asked.out, asked.catelier) as federation:
        plan = PLAN.format(strategy=asked.strategy, rounds=asked.rounds)
        federation.prepare(artists, plan, asked.steps, asked.images)
        federation.start_server()
        for artist in artists:
            federation.register(artist)
            federation.start_node(artist)
        federation.follow(HERE / "app")
        if not federation.adapter(asked.rounds).exists():
            sys.exit(f"error: not all rounds were played; the logs are in `{asked.out}`")
        print(f"the adapter: {federation.adapter(asked.rounds)}")


if __name__ == "__main__":
    main()
