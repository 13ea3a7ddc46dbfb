"""The server of a federation: a round's folder out to the clients, their contributions in, `catelier federate`.

Which nodes may take part, the plan and all files are the server's own settings, in the file that the environment
variable CATELIER_SERVER names.
"""

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from catelier_flower import settings, wire

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Plays the rounds that are not there yet."""
    server = settings.read(settings.Server, os.environ["CATELIER_SERVER"])
    rounds = Rounds(server)
    while not rounds.are_over():
        number = rounds.next()
        replies = ask(grid, server, number, rounds.folder(number))
        rounds.close(number, replies)
    tell(f"the last adapter is {rounds.adapter(rounds.next() - 1)}")


def tell(text: str) -> None:
    print(text, flush=True)


def ask(grid: Grid, server: settings.Server, number: int, folder: Path) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Sends a round to the nodes of the allow-list, and returns what each client sent, by its name."""
    names = nodes(grid, server)
    content = wire.pack_round(folder)
    messages = [Message(content, node, "train", group_id=str(number), ttl=server.patience) for node in names]
    tell(f"round {number}: asked {', '.join(sorted(names.values()))}")
    sent = {}
    for reply in grid.send_and_receive(messages, timeout=server.patience):
        name = names.get(reply.metadata.src_node_id)
        if name is None or name in sent:
            continue
        try:
            sent[name] = contribution(reply, name, number)
        except wire.Refused as refused:
            tell(f"round {number}: `{name}` is left out: {refused}")
    return sent


def nodes(grid: Grid, server: settings.Server) -> dict[int, str]:
    """The nodes that are online, by the names with which their keys were registered, once all or enough are there."""
    end = time.monotonic() + server.patience
    while True:
        online = {node.node_id: node.name for node in grid.get_nodes() if node.name in server.clients}
        twice = [name for name, count in Counter(online.values()).items() if count > 1]
        if twice:
            raise settings.Unusable(f"more than one node is registered as `{twice[0]}`: unregister the others")
        if len(online) == len(server.clients):
            return online
        if time.monotonic() > end:
            require(len(online), server, "nodes are online")
            return online
        time.sleep(1)


def require(count: int, server: settings.Server, are: str) -> None:
    quorum = len(server.clients) if server.quorum is None else server.quorum
    if count < quorum:
        raise settings.Unusable(f"{count} {are}, and a round needs {quorum} of {len(server.clients)}")


def contribution(reply: Message, name: str, number: int) -> tuple[bytes, dict[str, str]]:
    """A contribution to this round by the client of this name, who can speak for nobody else."""
    if reply.has_error():
        raise wire.Refused(f"error {reply.error.code}: {reply.error.reason!r:.300}")
    data, entries = wire.unpack_contribution(reply.content)
    said = {"client": entries.get("client"), "round": entries.get("round")}
    if said != {"client": name, "round": str(number)}:
        raise wire.Refused(f"it says that it is from {said['client']!r:.80} for round {said['round']!r:.80}")
    return data, entries


class Rounds:
    """The folder of the server, and the program that computes there."""

    def __init__(self, server: settings.Server) -> None:
        self.server = server
        server.out.mkdir(parents=True, exist_ok=True)
        if not self.folder(1).exists():
            self.federate("open", "--next", self.folder(1), *self.start())

    def folder(self, number: int) -> Path:
        return self.server.out / f"round-{number:04}"

    def adapter(self, number: int) -> Path:
        return self.server.out / f"adapter-{number:04}.safetensors"

    def next(self) -> int:
        """The first round without an adapter."""
        number = 1
        while self.adapter(number).exists():
            number += 1
        return number

    def are_over(self) -> bool:
        described = json.loads((self.folder(1) / wire.ROUND).read_bytes())
        return self.next() > described["plan"]["rounds"]

    def close(self, number: int, sent: dict[str, tuple[bytes, dict[str, str]]]) -> None:
        """Aggregates what was sent, and opens the next round."""
        require(len(sent), self.server, f"contributions came to round {number}")
        folder = self.server.out / f"replies-{number:04}"
        folder.mkdir(exist_ok=True)
        replies = []
        for name, (data, entries) in sorted(sent.items()):
            (folder / f"{name}.safetensors").write_bytes(data)
            replies.append({"client": name, "file": f"{name}.safetensors", "weight": float(entries["weight"])})
        (folder / "replies.json").write_text(json.dumps(replies), encoding="utf-8")
        files = ["--replies", folder / "replies.json", "--out", self.adapter(number), "--next", self.folder(number + 1)]
        self.federate("aggregate", "--round", str(number), *files, "--skip-refused", "--json", *self.start())

    def start(self) -> list:
        return ["--start", self.server.start] if self.server.start else []

    def federate(self, command: str, *arguments) -> None:
        server = self.server
        line = [server.catelier, "federate", command, "--plan", server.plan, "--state", server.out / "state"]
        ran = subprocess.run([*line, "--base", server.base, *arguments], stdin=subprocess.DEVNULL, capture_output=True)
        tell((ran.stderr + ran.stdout).decode(errors="replace").strip())
        ran.check_returncode()
