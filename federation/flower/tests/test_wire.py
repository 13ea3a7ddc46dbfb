"""What travels, and what does not."""

import json
import struct
import unittest

import support

if not support.missing():
    from catelier_flower import wire
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

NAME = "unet.mid_block.attn1.to_q"
ENTRIES = {"base": "v2-0", "catelier.sha256": "0" * 64, "client": "ada", "format": "é\"\\", "round": "1"}


def file(entries: dict[str, str]) -> bytes:
    """A tensor file as catelier writes it: wide elements first."""
    header = {
        "__metadata__": entries,
        f"{NAME}.alpha": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
        f"{NAME}.down": {"dtype": "F32", "shape": [1, 2], "data_offsets": [8, 16]},
        f"{NAME}.up": {"dtype": "BF16", "shape": [1, 1], "data_offsets": [16, 18]},
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<dff", 2.0, float("nan"), -0.0) + b"\x80\x3f"


@unittest.skipIf(support.missing(), support.missing())
class WireTest(unittest.TestCase):
    def refused(self, content: "RecordDict", told: str) -> None:
        with self.assertRaisesRegex(wire.Refused, told):
            wire.unpack_contribution(content)

    def does_not_leave(self, data: bytes, told: str) -> None:
        """Neither does a sender pack it, nor does a receiver believe a sender who did."""
        with self.assertRaisesRegex(wire.Refused, told):
            wire.pack_contribution(data)
        length = struct.unpack("<Q", data[:8])[0]
        content = wire.pack_contribution(file(ENTRIES))
        content[f"{wire.CONTRIBUTION}.header"]["header"] = data[8 : 8 + length]
        body = data[8 + length :]
        content[wire.CONTRIBUTION]["tensors"] = Array("uint8", (len(body),), "safetensors", body)
        self.refused(content, told)

    def test_a_file_arrives_with_every_bit_of_it(self) -> None:
        content = wire.pack_contribution(file(ENTRIES))
        self.assertEqual(wire.unpack_contribution(content), file(ENTRIES))
        entries, tensors = wire.read(file(ENTRIES), wire.CONTRIBUTION)
        self.assertEqual(entries, ENTRIES)
        self.assertEqual(tensors[f"{NAME}.up"], ("BF16", [1, 1], b"\x80\x3f"))

    def test_a_header_with_an_unknown_entry_does_not_leave(self) -> None:
        for entry in ("images", "path", "modelspec.title"):
            self.does_not_leave(file(dict(sorted({**ENTRIES, entry: "/home/ada/art"}.items()))), entry)

    def test_a_file_in_another_order_or_with_bytes_beside_its_tensors_does_not_leave(self) -> None:
        told = "not written as catelier writes it"
        self.does_not_leave(file(dict(reversed(ENTRIES.items()))), told)
        self.does_not_leave(file(ENTRIES) + b"\x89PNG", told)
        self.does_not_leave(file(ENTRIES)[:-1], told)
        whole = file(ENTRIES)
        self.does_not_leave(whole.replace(b'"base":"v2-0"', b'"base":"v2-1","base":"v2-0"'), "header|written")
        self.does_not_leave(whole.replace(b"[0,8]", b"[8,8]"), told)
        self.does_not_leave(whole.replace(b"[1,2]", b"[2,1]").replace(b'"shape":[]', b'"shape":[2]'), "written|header")

    def test_tensors_that_no_adapter_has_do_not_leave(self) -> None:
        whole, told = file(ENTRIES), "a tensor that no adapter has"
        self.does_not_leave(whole.replace(b"BF16", b"BOOL"), told)
        for name in (b"../../etc/passwd", b"/home/ada/a.png ", b"a b", b"unet..down"):
            length = len(f"{NAME}.down")
            self.does_not_leave(whole.replace(f"{NAME}.down".encode(), name.ljust(length, b"/")), told)
        for shape in (b"-1", b'""', b"1e"):
            self.does_not_leave(whole.replace(b"[1,2]", b"[" + shape.ljust(3) + b"]"), "no adapter has|no header")

    def test_what_is_no_tensor_file_does_not_leave(self) -> None:
        for data in (b"", b"\x89PNG", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}"):
            with self.assertRaisesRegex(wire.Refused, "no header of a tensor file"):
                wire.pack_contribution(data)

    def test_records_beside_the_contribution_are_refused(self) -> None:
        for record in (ConfigRecord({"a.png": b"\x89PNG"}), MetricRecord({"loss": 1.0}), ArrayRecord({})):
            content = wire.pack_contribution(file(ENTRIES))
            content["pictures"] = record
            self.refused(content, "'pictures'")
        for name, key in ((wire.CONTRIBUTION, "a.png"), (f"{wire.CONTRIBUTION}.header", "path")):
            content = wire.pack_contribution(file(ENTRIES))
            content[name][key] = next(iter(content[name].values()))
            self.refused(content, key)

    def test_records_of_another_kind_are_refused(self) -> None:
        content = wire.pack_contribution(file(ENTRIES))
        self.refused(RecordDict(), "no tensors")
        self.refused(RecordDict({wire.CONTRIBUTION: content[f"{wire.CONTRIBUTION}.header"]}), "no tensors")
        content[f"{wire.CONTRIBUTION}.header"]["header"] = "{}"
        self.refused(content, "no tensors")

    def test_a_round_without_its_description_is_refused(self) -> None:
        for content in (
            RecordDict(),
            RecordDict({wire.ROUND: ConfigRecord({wire.ROUND: "{}"})}),
            RecordDict({wire.ROUND: ConfigRecord({wire.ROUND: b"{}", "images": "/"})}),
            RecordDict({wire.ROUND: ConfigRecord({wire.ROUND: b"{}"}), "../x": ConfigRecord()}),
            RecordDict({wire.ROUND: ConfigRecord({wire.ROUND: b"{}"}), wire.GLOBAL: ArrayRecord({})}),
        ):
            with self.assertRaises(wire.Refused):
                wire.unpack_round(content)


if __name__ == "__main__":
    unittest.main()
