"""Files of a round as Flower's records, and back.

A message to a client is `round.json` and the two adapter files of the round's folder; its answer is one contribution.
A tensor file travels as its tensors (an `ArrayRecord`) and the entries of its header (a `ConfigRecord`). The file that
is put together again has the bytes of the first, so that the checksum inside it still holds. A key that is not known
here travels in neither direction.
"""

import hashlib
import json
import re
import struct
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

ROUND = "round.json"
GLOBAL = "global.safetensors"
MERGED = "merged.safetensors"
CONTRIBUTION = "contribution.safetensors"

FORMAT = "catelier federation contribution"
VERSION = "1"

_CHECKSUM = "catelier.sha256"
_ADAPTER = {"format", "version", _CHECKSUM}
# Entries that the header of each file may have.
_ENTRIES = {GLOBAL: _ADAPTER, MERGED: _ADAPTER, CONTRIBUTION: _ADAPTER | {"client", "round", "weight", "base"}}

_METADATA = "__metadata__"
_STYPE = "safetensors.raw"
# Element types by their name in a file: their name in a record, and their bytes.
_TYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
_FILE_TYPES = {name: (file_type, size) for file_type, (name, size) in _TYPES.items()}
_TENSOR = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


class Refused(Exception):
    """A message that is not one of a round. The text is about the message alone: it may be told to its sender."""


def pack_round(folder: Path) -> RecordDict:
    """The files of a round's folder, as a message to a client."""
    content = RecordDict({ROUND: ConfigRecord({ROUND: (folder / ROUND).read_bytes()})})
    for name in (GLOBAL, MERGED):
        if (folder / name).exists():
            _pack_file(folder / name, name, content)
    return content


def unpack_round(content: RecordDict) -> dict[str, bytes]:
    """The files of a message to a client, by name, `round.json` last."""
    names = [name for name in (GLOBAL, MERGED) if name in content]
    _refuse_others(content, [ROUND, *(key for name in names for key in (name, _header(name)))])
    return {name: _unpack_file(content, name)[0] for name in names} | {ROUND: round_text(content)}


def round_text(content: RecordDict) -> bytes:
    """The bytes of `round.json` in a message."""
    record = content.get(ROUND)
    if not isinstance(record, ConfigRecord):
        raise Refused(f"the message has no `{ROUND}`")
    _refuse_others(record, [ROUND])
    if not isinstance(record.get(ROUND), bytes):
        raise Refused(f"`{ROUND}` is not bytes")
    return record[ROUND]


def pack_contribution(path: Path) -> RecordDict:
    """A contribution's file, as a message to the server."""
    content = RecordDict()
    _pack_file(path, CONTRIBUTION, content)
    return content


def unpack_contribution(content: RecordDict) -> tuple[bytes, dict[str, str]]:
    """The bytes of a contribution's file, and the entries of its header."""
    _refuse_others(content, [CONTRIBUTION, _header(CONTRIBUTION)])
    return _unpack_file(content, CONTRIBUTION)


def new_contribution(tensors: ArrayRecord, entries: dict[str, str]) -> bytes:
    """The file of a contribution that no client wrote as it is, with a checksum over all of it."""
    entries = {"format": FORMAT, "version": VERSION, _CHECKSUM: "0" * 64} | entries
    content = RecordDict({CONTRIBUTION: tensors, _header(CONTRIBUTION): ConfigRecord(entries)})
    entries[_CHECKSUM] = hashlib.sha256(unpack_contribution(content)[0]).hexdigest()
    content[_header(CONTRIBUTION)] = ConfigRecord(entries)
    return unpack_contribution(content)[0]


def array(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """A tensor as it travels."""
    return Array(dtype, shape, _STYPE, data)


def _header(name: str) -> str:
    return f"{name}.header"


def _refuse_others(keys, known) -> None:
    others = sorted(repr(key)[:80] for key in keys if key not in known)
    if others:
        raise Refused(f"the message has keys that have no place in a round: {', '.join(others[:5])}")


def _pack_file(path: Path, name: str, content: RecordDict) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    body = data[8 + length :]
    header = json.loads(data[8 : 8 + length])
    entries = header.pop(_METADATA, {})
    tensors = {}
    for tensor, described in header.items():
        start, end = described["data_offsets"]
        element = _TYPES.get(described["dtype"])
        if element is None:
            raise Refused(f"`{tensor}` has elements of type {described['dtype']}, which no adapter has")
        tensors[tensor] = array(element[0], tuple(described["shape"]), body[start:end])
    content[name] = ArrayRecord(tensors)
    content[_header(name)] = ConfigRecord(entries)
    if _unpack_file(content, name)[0] != data:
        raise Refused(f"`{name}` is not written as catelier writes it, so that its checksum would be lost")


def _unpack_file(content: RecordDict, name: str) -> tuple[bytes, dict[str, str]]:
    tensors, entries = content.get(name), content.get(_header(name))
    if not (isinstance(tensors, ArrayRecord) and isinstance(entries, ConfigRecord)):
        raise Refused(f"the message has no tensors `{name}` with a header")
    _refuse_others(entries, _ENTRIES[name])
    if not all(isinstance(value, str) for value in entries.values()):
        raise Refused(f"the header of `{name}` has entries that are not text")
    for tensor, array in tensors.items():
        if not (_TENSOR.fullmatch(tensor) and array.stype == _STYPE and array.dtype in _FILE_TYPES):
            raise Refused(f"`{name}` has a tensor that no adapter has: {tensor!r:.80}")
    entries = dict(sorted(entries.items()))
    return _file(tensors, entries), entries


def _file(tensors: ArrayRecord, entries: dict[str, str]) -> bytes:
    """The file that catelier writes: entries first, then tensors, wide elements first, then by name."""
    header, start = {_METADATA: entries}, 0
    order = sorted(tensors, key=lambda tensor: (-_FILE_TYPES[tensors[tensor].dtype][1], tensor))
    for tensor in order:
        array = tensors[tensor]
        end = start + len(array.data)
        element = _FILE_TYPES[array.dtype][0]
        header[tensor] = {"dtype": element, "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[tensor].data for tensor in order)])
