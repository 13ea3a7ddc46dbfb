"""Asks every node for its pictures."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = [node.node_id for node in grid.get_nodes()]
    content = RecordDict({"wanted": ConfigRecord({"paths": ["art", "../art", "/"]})})
    replies = grid.send_and_receive([Message(content, node, "query") for node in nodes], timeout=300)
    for reply in replies:
        found = f"error {reply.error.code}" if reply.has_error() else f"pictures {list(reply.content['pictures'])}"
        print(f"a node answers: {found}", flush=True)
