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
    number = rounds.open()
    if plan(rounds.folder(1))["participation"] != "all":
        raise settings.Unusable("the plan's `participation` is not `all`, and all clients are asked here")
    while number <= rounds.count():
        if not rounds.adapter(number).exists():
            rounds.keep(number, *ask(grid, context, server, number, rounds.folder(number)))
        rounds.close(number)
        number += 1
    tell(f"the last adapter is {rounds.adapter(rounds.count())}")


def tell(text: str) -> None:
    print(text, flush=True)


def ask(
    grid: Grid, context: Context, server: settings.Server, number: int, folder: Path
) -> tuple[dict[str, bytes], int]:
    """Sends a round to the nodes of the allow-list; returns contributions by client, and how many clients they have."""
    names = nodes(grid, server)
    content = wire.pack_round(folder)
    tell(f"round {number}: asked {', '.join(sorted(names.values()))}")
    if plan(folder)["secure_aggregation"]:
        from catelier_flower import secure

        mean, clients = secure.ask(grid, context, list(names), number, content, server.patience)
        return {secure.MEAN: mean} if mean else {}, clients
    messages = [Message(content, node, "train", group_id=str(number), ttl=server.patience) for node in names]
    sent = {}
    for reply in grid.send_and_receive(messages, timeout=server.patience):
        name = names[reply.metadata.src_node_id]
        try:
            sent[name] = contribution(reply, name, number)
        except wire.Refused as refused:
            tell(f"round {number}: `{name}` is left out: {refused}")
    return sent, len(sent)


def plan(folder: Path) -> dict:
    """The plan of a round."""
    return json.loads((folder / wire.ROUND).read_bytes())["plan"]


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


def contribution(reply: Message, name: str, number: int) -> bytes:
    """The file of a contribution to this round by the client of this name, who can speak for nobody else."""
    if reply.has_error():
        raise wire.Refused(f"error {reply.error.code}: {reply.error.reason!r:.300}")
    data = wire.unpack_contribution(reply.content)
    entries, _ = wire.read(data, wire.CONTRIBUTION)
    for entry, expected in {"format": wire.FORMAT, "client": name, "round": str(number)}.items():
        if entries.get(entry) != expected:
            raise wire.Refused(f"its `{entry}` is {entries.get(entry)!r:.80}, expected `{expected}`")
    return data


class Rounds:
    """The folder of the server, and the program that computes there."""

    def __init__(self, server: settings.Server) -> None:
        self.server = server
        server.out.mkdir(parents=True, exist_ok=True)

    def folder(self, number: int) -> Path:
        """What clients get."""
        return self.server.out / f"round-{number:04}"

    def adapter(self, number: int) -> Path:
        """The adapter after a round."""
        return self.server.out / f"adapter-{number:04}.safetensors"

    def replies(self, number: int) -> Path:
        """The list of what clients sent."""
        return self.server.out / f"replies-{number:04}/replies.json"

    def count(self) -> int:
        return plan(self.folder(1))["rounds"]

    def open(self) -> int:
        """Opens the federation if it is new, and returns the first round that is not closed."""
        if not self.is_open(1):
            start = ["--start", self.server.start] if self.server.start else []
            self.aggregate("--round", "0", "--next", self.folder(1), *start)
        number = 1
        while self.adapter(number).exists() and (number == self.count() or self.is_open(number + 1)):
            number += 1
        return number

    def is_open(self, number: int) -> bool:
        return (self.folder(number) / wire.ROUND).exists()

    def keep(self, number: int, sent: dict[str, bytes], clients: int) -> None:
        """Writes what clients sent."""
        require(clients, self.server, f"contributions came to round {number}")
        listed = self.replies(number)
        listed.parent.mkdir(exist_ok=True)
        for name, data in sent.items():
            (listed.parent / f"{name}.safetensors").write_bytes(data)
        replies = [{"client": name, "file": f"{name}.safetensors"} for name in sorted(sent)]
        listed.write_text(json.dumps(replies), encoding="utf-8")

    def close(self, number: int) -> None:
        """Aggregates what was sent, and opens the next round. Done again after an interruption, it changes nothing."""
        files = ["--replies", self.replies(number), "--out", self.adapter(number), "--next", self.folder(number + 1)]
        self.aggregate("--round", str(number), *files, "--force", "--json")

    def aggregate(self, *arguments) -> None:
        server = self.server
        line = [server.catelier, "federate", "aggregate", "--plan", server.plan, "--base", server.base]
        line += ["--state", server.out / "state", *arguments]
        ran = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True)
        tell((ran.stderr + ran.stdout).decode(errors="replace").strip())
        ran.check_returncode()
