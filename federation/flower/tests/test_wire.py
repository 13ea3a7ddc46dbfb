"""What travels, and what does not."""

import json
import struct
import unittest

import support
from support import Studio

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
class WireTest(Studio):
    def packed(self, data: bytes) -> "RecordDict":
        path = self.folder / "contribution.safetensors"
        path.write_bytes(data)
        return wire.pack_contribution(path)

    def refused(self, content: "RecordDict", told: str) -> None:
        with self.assertRaisesRegex(wire.Refused, told):
            wire.unpack_contribution(content)

    def test_a_file_arrives_with_every_bit_of_it(self) -> None:
        data, entries = wire.unpack_contribution(self.packed(file(ENTRIES)))
        self.assertEqual((data, entries), (file(ENTRIES), ENTRIES))

    def test_the_order_of_records_on_the_way_does_not_matter(self) -> None:
        content = self.packed(file(ENTRIES))
        content[wire.CONTRIBUTION] = ArrayRecord(dict(reversed(content[wire.CONTRIBUTION].items())))
        key = f"{wire.CONTRIBUTION}.header"
        content[key] = ConfigRecord(dict(reversed(content[key].items())))
        self.assertEqual(wire.unpack_contribution(content)[0], file(ENTRIES))

    def test_a_header_with_an_unknown_entry_does_not_leave(self) -> None:
        for entry in ("images", "path", "modelspec.title"):
            with self.assertRaisesRegex(wire.Refused, entry):
                self.packed(file(dict(sorted({**ENTRIES, entry: "/home/ada/art"}.items()))))

    def test_a_file_in_another_order_does_not_leave(self) -> None:
        with self.assertRaisesRegex(wire.Refused, "checksum would be lost"):
            self.packed(file(dict(reversed(ENTRIES.items()))))

    def test_elements_that_no_adapter_has_do_not_leave(self) -> None:
        with self.assertRaisesRegex(wire.Refused, "BOOL"):
            self.packed(file(ENTRIES).replace(b"BF16", b"BOOL"))

    def test_records_beside_the_contribution_are_refused(self) -> None:
        for record in (ConfigRecord({"a.png": b"\x89PNG"}), MetricRecord({"loss": 1.0}), ArrayRecord({})):
            content = self.packed(file(ENTRIES))
            content["pictures"] = record
            self.refused(content, "'pictures'")

    def test_tensors_that_no_adapter_has_are_refused(self) -> None:
        for name, array in {
            "../../etc/passwd": Array("float32", (1,), "safetensors.raw", b"1234"),
            "/art/a.png": Array("float32", (1,), "safetensors.raw", b"1234"),
            "a b": Array("float32", (1,), "safetensors.raw", b"1234"),
            "pickled": Array("float32", (1,), "numpy.ndarray", b"1234"),
            "bytes": Array("uint8", (4,), "safetensors.raw", b"1234"),
        }.items():
            content = self.packed(file(ENTRIES))
            content[wire.CONTRIBUTION][name] = array
            self.refused(content, "a tensor that no adapter has")

    def test_records_of_another_kind_are_refused(self) -> None:
        content = self.packed(file(ENTRIES))
        self.refused(RecordDict(), "no tensors")
        self.refused(RecordDict({wire.CONTRIBUTION: content[f"{wire.CONTRIBUTION}.header"]}), "no tensors")
        content[f"{wire.CONTRIBUTION}.header"]["weight"] = 3
        self.refused(content, "not text")

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
