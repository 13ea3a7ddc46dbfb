"""Secure aggregation: three sites in this process play the protocol with the server."""

import copy
import json
import os
import shutil
import unittest

import numpy as np
import support
from support import CATELIER, Studio, catelier

if not support.missing():
    from catelier_flower import client_app, secure, wire
    from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Stage
    from flwr.supercore.task_identity import TaskIdentity

    # Who sends the messages of these tests.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 9, 1

NAMES = {1: "ada", 2: "ben", 3: "cy"}
TRAINING = 'images = "art"\ntrigger = "shs"\nrank = 2\nbatch = 1\nsteps = 2\ndrift_every = 0\nbase = "../base"\n'
PLAN = 'strategy = "fedavg"\nweighting = "uniform"\nsecure_aggregation = true\n'


def tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file in float32 or float64."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__")
    types = {"F32": "<f4", "F64": "<f8"}
    return {
        name: np.frombuffer(body[slice(*described["data_offsets"])], types[described["dtype"]])
        for name, described in header.items()
    }


@unittest.skipIf(support.missing(), support.missing())
class SecureTest(Studio):
    """A grid whose nodes are sites in this process."""

    def setUp(self) -> None:
        super().setUp()
        shutil.copytree(support.REPOSITORY / "golden/tiny-sd1", self.folder / "base")
        self.states = {node: Context(7, node, {}, RecordDict(), {}) for node in NAMES}
        self.away, self.change = set(), lambda stage, configs: None
        for node, name in NAMES.items():
            art = ["gallery", "draw", "--artist", "wash", "--count", 2, "--seed", node, "--out", f"{name}/art"]
            catelier(*art, folder=self.folder)
            self.write(f"{name}/run.toml", TRAINING)
            site = f'client = "{name}"\nconfig = "run.toml"\nrounds = "rounds"\ncatelier = "{CATELIER}"\n'
            self.write(f"{name}/site.toml", site + "secure_aggregation = true\n")
        self.open(PLAN)

    def open(self, plan: str) -> None:
        for name in ("state", "round"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.write("plan.toml", plan)
        line = "federate aggregate --round 0 --plan plan.toml --base base --state state --next round"
        catelier(*line.split(), folder=self.folder)

    def deliver(self, node: int, message: "Message") -> "Message":
        os.environ["CATELIER_SITE"] = str(self.folder / NAMES[node] / "site.toml")
        return client_app.app(message, self.states[node])

    def send_and_receive(self, messages, timeout=None):
        replies = []
        for message in messages:
            node, message = message.metadata.dst_node_id, copy.deepcopy(message)
            configs = message.content[RECORD_KEY_CONFIGS]
            self.change(configs["stage"], configs)
            try:
                if (node, configs["stage"]) in self.away:
                    raise ConnectionError("gone")
                replies.append(self.deliver(node, message))
            except Exception as error:  # as a SuperNode does
                replies.append(Message(Error(0, str(error)), reply_to=message))
        return replies

    def ask(self):
        context = Context(7, 9, {}, RecordDict(), {})
        return secure.ask(self, context, list(NAMES), 1, wire.pack_round(self.folder / "round"), 60.0)

    def sent(self) -> list[dict[str, np.ndarray]]:
        """What the program of each site that trained would have sent by itself."""
        files = sorted(self.folder.glob("*/rounds/7/0001/trained/contribution.safetensors"))
        return [tensors(file.read_bytes()) for file in files]

    def assert_is_mean(self, mean: bytes, sent: list[dict[str, np.ndarray]]) -> None:
        for name, values in tensors(mean).items():
            expected = np.mean([one[name].astype(np.float64) for one in sent], axis=0)
            self.assertLess(np.max(np.abs(values - expected)), 8e-6, name)

    def test_the_server_gets_the_mean_and_the_program_takes_it_as_a_contribution(self) -> None:
        mean, clients = self.ask()
        self.assertEqual(clients, 3)
        self.assert_is_mean(mean, self.sent())
        (self.folder / "mean.safetensors").write_bytes(mean)
        self.write("replies.json", json.dumps([{"client": secure.MEAN, "file": "mean.safetensors"}]))
        line = "federate aggregate --round 1 --plan plan.toml --base base --state state --replies replies.json"
        catelier(*line.split(), "--out", "a.safetensors", folder=self.folder)

    def test_what_a_client_sends_is_masked(self) -> None:
        replies = []
        answer, self.deliver = self.deliver, lambda *call: replies.append(answer(*call)) or replies[-1]
        self.ask()
        values = b"".join(self.sent()[0][name].tobytes() for name in self.sent()[0] if not name.endswith("alpha"))
        pieces = {values[start : start + 16] for start in range(0, len(values) - 16, 4)}
        masked = [reply.content for reply in replies if "fitres.metrics" in reply.content]
        self.assertEqual(len(masked), 3)
        for content in masked:
            self.assertEqual(sum(len(record) for record in content.array_records.values()), 0)
            data = b"".join(content[RECORD_KEY_CONFIGS]["masked_params"])
            self.assertFalse(any(piece in data for piece in pieces if any(piece)))
            self.assertEqual(set(content["fitres.metrics"]), {secure.ABOUT})

    def test_a_client_that_drops_out_is_not_in_the_mean(self) -> None:
        self.away = {(3, Stage.COLLECT_MASKED_VECTORS), (3, Stage.UNMASK)}
        mean, clients = self.ask()
        self.assertEqual(clients, 2)
        self.assert_is_mean(mean, self.sent())

    def test_a_server_that_asks_for_both_masks_of_a_client_is_refused(self) -> None:
        def both(stage: str, configs: "ConfigRecord") -> None:
            if stage == Stage.UNMASK:
                configs["dead_nids"] = configs["active_nids"]

        self.change = both
        self.assertEqual(self.ask(), (None, 0))

    def test_a_server_that_wants_few_shares_or_cuts_values_is_refused(self) -> None:
        for key, value in (("threshold", 1), ("share_num", 2), ("clipping_range", 0.1)):
            self.change = lambda stage, configs: stage == Stage.SETUP and configs.update({key: value})
            self.assertEqual(self.ask(), (None, 0))
        self.assertEqual(self.sent(), [], "nobody has trained for it")

    def test_sites_and_plans_agree_on_secure_aggregation_or_nothing_is_sent(self) -> None:
        plain = Message(wire.pack_round(self.folder / "round"), 1, "train")
        with self.assertRaisesRegex(wire.Refused, "only under secure aggregation"):
            self.deliver(1, plain)
        self.open('strategy = "fedavg"\n')
        self.assertEqual(self.ask(), (None, 0))
        self.open(PLAN.replace('weighting = "uniform"\n', ""))
        self.assertEqual(self.ask(), (None, 0))
        with self.assertRaisesRegex(wire.Refused, "needs 3 clients"):
            secure.ask(self, Context(7, 9, {}, RecordDict(), {}), [1, 2], 1, RecordDict(), 60.0)
        self.assertEqual(self.sent(), [])


if __name__ == "__main__":
    unittest.main()
