"""Files of a round as Flower's records, and back.

A message to a client is `round.json` and the two adapter files of the round's folder; its answer is one contribution.
A tensor file travels as its header (a `ConfigRecord`) and the bytes of all of its tensors in one array (an
`ArrayRecord`), since Flower sends every array with requests of its own. The file that is put together again has the
bytes of the first. What is not known here travels in neither direction: no record, no entry of a header, no tensor with
another kind of name or element, no byte beside the tensors.
"""

import hashlib
import json
import math
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
_HEADER = "header"
_TENSORS = "tensors"
_STYPE = "safetensors"
# Bytes of an element, by the name of its type.
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

# Tensors by name: the type of an element, the shape, and the bytes.
Tensors = dict[str, tuple[str, list[int], bytes]]


class Refused(Exception):
    """A message that is not one of a round. The text is about the message alone: it may be told to its sender."""


def pack_round(folder: Path) -> RecordDict:
    """The files of a round's folder, as a message to a client."""
    content = RecordDict({ROUND: ConfigRecord({ROUND: (folder / ROUND).read_bytes()})})
    for name in (GLOBAL, MERGED):
        if (folder / name).exists():
            _pack_file((folder / name).read_bytes(), name, content)
    return content


def unpack_round(content: RecordDict) -> dict[str, bytes]:
    """The files of a message to a client, by name, `round.json` last."""
    names = [name for name in (GLOBAL, MERGED) if name in content]
    _refuse_others(content, [ROUND, *(key for name in names for key in (name, f"{name}.{_HEADER}"))])
    return {name: _unpack_file(content, name) for name in names} | {ROUND: round_text(content)}


def round_text(content: RecordDict) -> bytes:
    """The bytes of `round.json` in a message."""
    record = content.get(ROUND)
    if not isinstance(record, ConfigRecord):
        raise Refused(f"the message has no `{ROUND}`")
    _refuse_others(record, [ROUND])
    if not isinstance(record.get(ROUND), bytes):
        raise Refused(f"`{ROUND}` is not bytes")
    return record[ROUND]


def pack_contribution(data: bytes) -> RecordDict:
    """A contribution's file, as a message to the server."""
    content = RecordDict()
    _pack_file(data, CONTRIBUTION, content)
    return content


def unpack_contribution(content: RecordDict) -> bytes:
    """The bytes of a contribution's file."""
    _refuse_others(content, [CONTRIBUTION, f"{CONTRIBUTION}.{_HEADER}"])
    return _unpack_file(content, CONTRIBUTION)


def read(data: bytes, name: str) -> tuple[dict[str, str], Tensors]:
    """The entries of a file's header, and its tensors."""
    (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\xff"))
    text, body = data[8 : 8 + length], data[8 + length :]
    try:
        header = json.loads(text)
        entries = header.pop(_METADATA)
        described = {tensor: (of["dtype"], of["shape"], of["data_offsets"]) for tensor, of in header.items()}
        spans = {tensor: (start, end) for tensor, (_, _, (start, end)) in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(f"`{name}` has no header of a tensor file") from None
    _refuse_others(entries, _ENTRIES[name])
    for tensor, (element, shape, _) in described.items():
        known = _NAME.fullmatch(tensor) and element in _SIZES
        if not (known and isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)):
            raise Refused(f"`{name}` has a tensor that no adapter has: {tensor!r:.80}")
    tensors = {tensor: (of[0], of[1], body[slice(*spans[tensor])]) for tensor, of in described.items()}
    complete = all(_size(element, shape) == len(values) for element, shape, values in tensors.values())
    if not complete or _file(entries, tensors) != data:
        raise Refused(f"`{name}` is not written as catelier writes it")
    return entries, tensors


def new_contribution(tensors: Tensors, entries: dict[str, str]) -> bytes:
    """The file of a contribution that no client wrote as it is, with a checksum over all of it."""
    entries = {"format": FORMAT, "version": VERSION, _CHECKSUM: "0" * 64} | entries
    entries[_CHECKSUM] = hashlib.sha256(_file(entries, tensors)).hexdigest()
    return _file(entries, tensors)


def _refuse_others(keys, known) -> None:
    others = sorted(f"{key!r:.80}" for key in keys if key not in known)
    if others:
        raise Refused(f"the message has keys that have no place in a round: {', '.join(others[:5])}")


def _pack_file(data: bytes, name: str, content: RecordDict) -> None:
    read(data, name)
    (length,) = struct.unpack("<Q", data[:8])
    text, body = data[8 : 8 + length], data[8 + length :]
    content[name] = ArrayRecord({_TENSORS: Array("uint8", (len(body),), _STYPE, body)})
    content[f"{name}.{_HEADER}"] = ConfigRecord({_HEADER: text})


def _unpack_file(content: RecordDict, name: str) -> bytes:
    body, header = content.get(name), content.get(f"{name}.{_HEADER}")
    if not (isinstance(body, ArrayRecord) and isinstance(header, ConfigRecord)):
        raise Refused(f"the message has no tensors `{name}` with a header")
    _refuse_others(body, [_TENSORS])
    _refuse_others(header, [_HEADER])
    text = header.get(_HEADER)
    if not (isinstance(text, bytes) and _TENSORS in body):
        raise Refused(f"the message has no tensors `{name}` with a header")
    data = struct.pack("<Q", len(text)) + text + body[_TENSORS].data
    read(data, name)
    return data


def _size(element: str, shape: list[int]) -> int:
    return _SIZES[element] * math.prod(shape)


def _file(entries: dict[str, str], tensors: Tensors) -> bytes:
    """The file that catelier writes: entries by name, then tensors, wide elements first, then by name."""
    header, start = {_METADATA: {key: str(value) for key, value in sorted(entries.items())}}, 0
    order = sorted(tensors, key=lambda tensor: (-_SIZES[tensors[tensor][0]], tensor))
    for tensor in order:
        element, shape, _ = tensors[tensor]
        end = start + _size(element, shape)
        header[tensor] = {"dtype": element, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[tensor][2] for tensor in order)])
