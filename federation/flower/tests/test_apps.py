"""The two apps by themselves: what a site answers, and whom a server believes."""

import json
import os
import shutil
import unittest

import support
from support import CATELIER, Studio, catelier

if not support.missing():
    from catelier_flower import client_app, server_app, settings, wire
    from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.task_identity import TaskIdentity

    # Who sends the messages of these tests.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1

PLAN = 'strategy = "fedavg"\nrounds = 2\n'
PRIVATE = PLAN + '[privacy]\nclip = 0.5\nnoise = 1.0\nat = "client"\nseed = 1\n'
TRAINING = 'images = "art"\ntrigger = "shs"\nrank = 2\nbatch = 1\nsteps = 2\ndrift_every = 0\nbase = "base"\n'
SITE = f'client = "ada"\nconfig = "run.toml"\nrounds = "rounds"\ncatelier = "{CATELIER}"\n'


@unittest.skipIf(support.missing(), support.missing())
class SiteTest(Studio):
    """A site with pictures and a small base."""

    def setUp(self) -> None:
        super().setUp()
        catelier("gallery", "draw", "--artist", "wash", "--count", 2, "--out", "site/art", folder=self.folder)
        shutil.copytree(support.REPOSITORY / "golden/tiny-sd1", self.folder / "site/base")
        self.write("site/run.toml", TRAINING)
        self.site(SITE)
        self.open(PLAN)

    def site(self, text: str) -> None:
        os.environ["CATELIER_SITE"] = str(self.write("site/site.toml", text))

    def open(self, plan: str) -> None:
        """Opens the first round of a federation."""
        for name in ("state", "round"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.write("plan.toml", plan)
        line = "federate aggregate --round 0 --plan plan.toml --base site/base --state state --next round"
        catelier(*line.split(), folder=self.folder)

    def message(self, change=None, kind: str = "train") -> "Message":
        content = wire.pack_round(self.folder / "round")
        if change:
            described = json.loads(wire.round_text(content))
            change(described)
            content[wire.ROUND] = ConfigRecord({wire.ROUND: json.dumps(described).encode()})
        return Message(content, 1, kind)

    def answer(self, message: "Message") -> "RecordDict":
        context = Context(7, 1, {}, RecordDict(), {})
        return client_app.app(message, context).content

    def refused(self, message: "Message", told: str) -> None:
        """The message has no answer, and the reason tells nothing of the site."""
        with self.assertRaisesRegex(Exception, told) as caught:
            self.answer(message)
        self.assertNotIn(str(self.folder), repr(caught.exception))

    def rounds(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "site/rounds").glob("*/*"))

    def test_a_round_is_answered_with_what_the_program_sends_and_no_more(self) -> None:
        content = self.answer(self.message())
        self.assertEqual(set(content), {"contribution.safetensors", "contribution.safetensors.header"})
        line = "train --round ../round --client ada --config run.toml --out ../by-hand"
        catelier(*line.split(), folder=self.folder / "site")
        by_hand = (self.folder / "by-hand/contribution.safetensors").read_bytes()
        self.assertEqual(wire.unpack_contribution(content), by_hand)

    def test_other_kinds_of_messages_have_no_answer(self) -> None:
        for kind in ("query", "evaluate", "query.pictures", "train.pictures", "evaluate.paths"):
            self.refused(self.message(kind=kind), "No (train|query|evaluate) function")
        self.assertEqual(self.rounds(), [])

    def test_wishes_beside_a_round_are_refused(self) -> None:
        for key in ("pictures", "../art", "run.toml", "contribution.safetensors"):
            message = self.message()
            message.content[key] = ConfigRecord({"images": "/home", "out": "../../x"})
            self.refused(message, "keys that have no place in a round")
        message = self.message()
        message.content[wire.ROUND]["images"] = "/home"
        self.refused(message, "'images'")

    def test_a_round_with_a_number_that_leads_elsewhere_is_refused(self) -> None:
        for number in ("../../x", "1", -1, 0, 10000, 1.0, True, None, [1]):
            elsewhere = self.message(lambda described: described["instructions"].update(round=number))
            self.refused(elsewhere, "number from 1")
        for text in (b"", b"[]", b"{}", b"null", b"[" * 100_000, b'{"plan": 1, "instructions": 2}'):
            message = self.message()
            message.content[wire.ROUND] = ConfigRecord({wire.ROUND: text})
            self.refused(message, "does not describe a round")
        self.assertEqual(self.rounds(), [])

    def test_paths_in_a_round_are_refused_by_the_program(self) -> None:
        for part, key in ((None, "images"), ("plan", "out"), ("instructions", "config")):
            shutil.rmtree(self.folder / "site/rounds", ignore_errors=True)
            wish = lambda described: (described[part] if part else described).update({key: "/home"})  # noqa: E731
            self.refused(self.message(wish), "not trained; the reason is in this node's log")
            self.assertEqual(list((self.folder / "site/rounds").glob("*/*/trained")), [])

    def test_a_failure_at_home_tells_no_path(self) -> None:
        self.site(SITE.replace(str(CATELIER), str(self.folder / "nowhere")))
        self.refused(self.message(), "the reason is in this node's log")
        self.site(SITE.replace("run.toml", "missing.toml"))
        self.refused(self.message(), "asked for before")
        os.environ["CATELIER_SITE"] = str(self.folder / "missing.toml")
        self.refused(self.message(), "the reason is in this node's log")

    def test_a_round_is_answered_once_and_a_site_can_have_enough(self) -> None:
        self.site(SITE + "most_rounds = 1\n")
        self.answer(self.message())
        self.refused(self.message(), "asked for before")
        self.refused(self.message(lambda described: described["instructions"].update(round=2)), "as many rounds as")

    def test_a_site_can_insist_on_clipping_and_noise_of_its_own(self) -> None:
        self.site(SITE + "least_noise = 1.0\nlargest_clip = 0.5\n")
        self.refused(self.message(), "only with noise of 1.0")
        self.open(PRIVATE)
        for change in ({"noise": 0.5}, {"at": "server"}, {"noise": float("nan")}):
            self.refused(self.message(lambda described: described["plan"]["privacy"].update(change)), "only with noise")
        for clip in (0.6, float("nan"), float("inf")):
            weaker = lambda described: described["plan"]["privacy"].update(clip=clip)  # noqa: E731
            self.refused(self.message(weaker), "clipping norm of 0.5 at most")
        first = wire.unpack_contribution(self.answer(self.message()))
        shutil.rmtree(self.folder / "site/rounds")
        again = wire.unpack_contribution(self.answer(self.message()))
        self.assertNotEqual(first, again, "noise has a seed that nobody else knows")


class Nodes:
    """The nodes that a SuperLink knows."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def get_nodes(self):
        return [NodeInfo(node_id=node, name=name) for node, name in enumerate(self.names, 1)]


@unittest.skipIf(support.missing(), support.missing())
class ServerTest(Studio):
    def server(self, **others) -> "settings.Server":
        values = {"plan": self.folder, "clients": ["ada", "ben"], "out": self.folder, "patience": 0.0}
        return settings.Server(**values | others)

    def test_only_nodes_of_the_allow_list_are_asked(self) -> None:
        nodes = Nodes("eve", "ben", "", "ada", "Ada")
        self.assertEqual(server_app.nodes(nodes, self.server()), {2: "ben", 4: "ada"})

    def test_two_nodes_of_one_name_are_refused(self) -> None:
        with self.assertRaisesRegex(settings.Unusable, "registered as `ada`"):
            server_app.nodes(Nodes("ada", "ada", "ben"), self.server())

    def test_a_round_needs_its_quorum(self) -> None:
        with self.assertRaisesRegex(settings.Unusable, "1 nodes are online, and a round needs 2 of 2"):
            server_app.nodes(Nodes("ada"), self.server())
        self.assertEqual(server_app.nodes(Nodes("ada"), self.server(quorum=1)), {1: "ada"})

    def test_nobody_speaks_for_another_client_or_round(self) -> None:
        entries = {"client": "ada", "round": "3"}

        def reply(**others) -> "Message":
            return Message(wire.pack_contribution(wire.new_contribution({}, entries | others)), 1, "train")

        self.assertTrue(server_app.contribution(reply(), "ada", 3))
        for entry, value in {"client": "ben", "round": "2", "format": "x"}.items():
            with self.assertRaisesRegex(wire.Refused, f"`{entry}`"):
                server_app.contribution(reply(**{entry: value}), "ada", 3)
        error = Message(Error(0, "\x1b[2J" + "x" * 1000), reply_to=reply())
        with self.assertRaises(wire.Refused) as caught:
            server_app.contribution(error, "ada", 3)
        self.assertLess(len(str(caught.exception)), 400)
        self.assertNotIn("\x1b", str(caught.exception))

    def test_settings_that_mean_nothing_are_refused(self) -> None:
        good = 'plan = "plan.toml"\nclients = ["ada"]\nout = "out"\n'
        read = settings.read(settings.Server, self.write("server.toml", good))
        self.assertEqual(read.plan, self.folder / "plan.toml")
        for text, told in (
            (good + "color = 1\n", "unknown key `color`"),
            (good.replace("plan =", "start ="), "`plan` is missing"),
            (good.replace('"ada"', '"../ada"'), "a client's name"),
            (good.replace('"ada"', "3"), "a client's name"),
        ):
            with self.assertRaisesRegex(settings.Unusable, told):
                settings.read(settings.Server, self.write("server.toml", text))


if __name__ == "__main__":
    unittest.main()
