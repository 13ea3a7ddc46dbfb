"""A SuperLink and two SuperNodes on this machine, over TLS and with node keys; a stranger's node and app."""

import json
import shutil
import ssl
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import support
from support import CATELIER, FLOWER, HERE, catelier

if not support.missing():
    import keys
    from loopback import Federation

ARTISTS = ["goldleaf", "wash"]
ROUNDS = 2
# Its second round carries both adapter files: a global adapter, and a residual that is merged into the base.
PLAN = f'strategy = "fedex"\nrounds = {ROUNDS}\n'
# Seconds for a program that should end by itself.
PATIENCE = 1800


@unittest.skipIf(support.missing(), support.missing())
class LoopbackTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        federation = cls.federation = Federation(cls.folder / "flower", CATELIER, say=lambda _: None)
        cls.addClassCleanup(federation.stop)
        federation.prepare(ARTISTS, PLAN, steps=2, images=3)
        federation.start_server()
        for artist in ARTISTS:
            federation.register(artist)
            federation.start_node(artist)
        # One who knows everything but has no key that is registered.
        shutil.copytree(federation.folder / "wash", federation.folder / "rogue")
        (federation.folder / "rogue/node.key").unlink()
        (federation.folder / "rogue/node.key.pub").unlink()
        keys.make_node(federation.folder / "rogue/node.key")
        rogue = federation.start_node("rogue")
        run, hostile = federation.submit(FLOWER / "app"), federation.submit(HERE / "hostile")
        run.wait(PATIENCE)
        hostile.wait(PATIENCE)
        cls.rogue = rogue.wait(PATIENCE)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in self.federation.folder.glob("*.log"))

    def test_rounds_over_flower_give_the_bytes_of_rounds_through_files(self) -> None:
        self.assertTrue(self.federation.adapter(ROUNDS).exists(), self.logs())
        by_hand, plan = self.folder / "by-hand", self.federation.folder / "server/plan.toml"
        by_hand.mkdir()
        aggregate = ["federate", "aggregate", "--plan", plan, "--state", "state"]
        catelier(*aggregate, "--round", 0, "--next", "round-1", folder=by_hand)
        for number in range(1, ROUNDS + 1):
            replies = []
            for artist in ARTISTS:
                home, out = self.federation.folder / artist, by_hand / f"{artist}-{number}"
                taking_part = ["--round", by_hand / f"round-{number}", "--client", artist]
                catelier("train", *taking_part, "--config", "run.toml", "--out", out, folder=home)
                replies.append({"client": artist, "file": str(out / "contribution.safetensors")})
            (by_hand / "replies.json").write_text(json.dumps(replies))
            files = ["--replies", "replies.json", "--out", f"{number}.safetensors", "--next", f"round-{number + 1}"]
            catelier(*aggregate, "--round", number, *files, folder=by_hand)
            same = self.federation.adapter(number).read_bytes() == (by_hand / f"{number}.safetensors").read_bytes()
            self.assertTrue(same, f"round {number}")
        self.assertTrue((by_hand / "round-2/merged.safetensors").exists(), "both adapter files have travelled")

    def test_a_node_whose_key_is_not_registered_is_refused(self) -> None:
        self.assertNotEqual(self.rogue, 0)
        self.assertIn("Failed to initialize the connection", self.federation.log("rogue"))
        self.assertNotIn("rogue", self.federation.log("run-app"))

    def test_whoever_reaches_the_port_has_the_control_interface_and_not_the_nodes_part(self) -> None:
        """What the README says about Flower itself."""
        context = ssl.create_default_context(cafile=self.federation.folder / "tls/ca.crt")

        def status(path: str) -> int:
            url = f"https://127.0.0.1:{self.federation.port}/v1/{path}"
            request = urllib.request.Request(url, b"", {"Content-Type": "application/protobuf"})
            try:
                with urllib.request.urlopen(request, context=context, timeout=60) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code

        self.assertEqual(status("control/list-runs"), 200)
        self.assertEqual(status("fleet/pull-messages"), 401)
        self.assertEqual(status("runtime/get-nodes"), 401)

    def test_an_app_that_asks_for_pictures_is_refused_before_it_is_loaded(self) -> None:
        log = self.federation.log("run-hostile")
        self.assertEqual(log.count("a node answers: error"), len(ARTISTS), self.logs())
        self.assertNotIn("a node answers: pictures", log)
        for artist in ARTISTS:
            self.assertFalse((self.federation.folder / artist / "stolen").exists())
            self.assertIn("could not verify the FAB", self.federation.log(artist))


if __name__ == "__main__":
    unittest.main()
