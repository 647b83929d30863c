"""Tensors out of safetensors files in one pass: the header first, then the data, hashed as it goes by.

Only what is wanted is kept in memory, so that one encoder of a large checkpoint costs no more than itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.intake.files import MAX_JSON, PRECISE
from Utils.intake.reader import BLOCK, Reader, parsed

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64,
}  # fmt: skip
"""Number formats of safetensors headers."""
FLOAT_KINDS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""Those of weights."""
SMALL = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")
"""Others that they may name: of a few bits, with their scales elsewhere."""


@dataclass(frozen=True)
class Stored:
    """One tensor as the header describes it."""

    shape: tuple[int, ...]
    kind: str
    """Number format, as the header names it."""
    begin: int
    end: int
    """Where its bytes lie behind the header."""


def read_header(reader: Reader, file: Path) -> dict[str, Stored]:
    """The tensors that a file holds, by its header alone; the file is not counted as read."""
    with reader.opened(file) as (stream, size):
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(MAX_JSON, size - 8):
            raise _unreadable(file, f"its header claims {length} bytes")
        return _stored(stream.read(length), size - 8 - length, file)


def read_metadata(reader: Reader, file: Path) -> dict[str, str]:
    """What its writer says beside the tensors, as text by name."""
    with reader.opened(file) as (stream, size):
        length = int.from_bytes(stream.read(8), "little")
        content = parsed(stream.read(min(length, MAX_JSON, size)), file)
    said = content.get("__metadata__") if isinstance(content, dict) else None
    return {n: text for n, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}


def read_tensors(reader: Reader, file: Path, wanted: Callable[[str], bool], whole: bool = True) -> dict[str, Tensor]:
    """The tensors whose names are wanted; the whole file is read once, and its hash noted.

    whole: else only the header and these tensors are, and the hash is of their bytes, in the order in which they lie there.

    Raises:
        InputError: it is no whole safetensors file, or changes meanwhile.
    """
    with reader.opened(file) as (stream, size):
        head = stream.read(8)
        length, digest = int.from_bytes(head, "little"), sha256(head)
        if len(head) < 8 or length > min(MAX_JSON, size - 8):
            raise _unreadable(file, f"its header claims {length} bytes")
        header = stream.read(length)
        digest.update(header)
        stored = _stored(header, size - 8 - length, file)
        tensors, position, taken = {}, 0, 8 + length
        for name, tensor in sorted(stored.items(), key=lambda item: (item[1].begin, item[1].end)):
            data = bytearray(tensor.end - tensor.begin) if wanted(name) else None
            if data is None and not whole:
                stream.seek(tensor.end - position, os.SEEK_CUR)
                position = tensor.end
            while position < tensor.end:
                block = stream.read(min(BLOCK, tensor.end - position))
                if not block:
                    raise _unreadable(file, "it ends in the middle of a tensor")
                digest.update(block)
                if data is not None:
                    data[position - tensor.begin : position - tensor.begin + len(block)] = block
                position += len(block)
                taken += len(block)
            if data is not None:
                plain = torch.frombuffer(data, dtype=DTYPES[tensor.kind]) if data else torch.empty(0, dtype=DTYPES[tensor.kind])
                tensors[name] = plain.reshape(tensor.shape)
    reader.note(file, size if whole else taken, digest.hexdigest())
    return tensors


def _stored(header: bytes, room: int, file: Path) -> dict[str, Stored]:
    """A header whose tensors fill the rest of the file: no overlap, no hole, every size that of its shape."""
    try:
        content = parsed(header, file)
    except InputError as error:
        raise _unreadable(file, str(error).partition("(")[2].rpartition(")")[0]) from None
    if not isinstance(content, dict):
        raise _unreadable(file, "its header is no object")
    content.pop("__metadata__", None)
    stored = {}
    for name, entry in content.items():
        stored[name] = _entry(entry, name, file)
    position = 0
    for name, tensor in sorted(stored.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise _unreadable(file, f"the data of {name[:80]} overlaps or leaves a hole")
        position = tensor.end
    if position != room:
        raise _unreadable(file, f"its tensors fill {position} of {room} bytes")
    return stored


def _entry(entry: object, name: str, file: Path) -> Stored:
    shape, kind, where = (entry.get(key) if isinstance(entry, dict) else None for key in ("shape", "dtype", "data_offsets"))
    if kind in SMALL:
        raise InputError(f"{file} holds {name[:80]} as {kind}, a format of few bits; {PRECISE}.")
    whole = all(isinstance(part, list) and all(type(x) is int and x >= 0 for x in part) for part in (shape, where))
    if not whole or len(where) != 2 or len(shape) > 16 or not isinstance(kind, str) or kind not in DTYPES:
        raise _unreadable(file, f"its header describes {name[:80]} wrongly")
    if where[1] - where[0] != math.prod(shape) * DTYPES[kind].itemsize:
        raise _unreadable(file, f"the size of {name[:80]} is not that of its shape")
    return Stored(tuple(shape), kind, *where)


def _unreadable(file: Path, why: str) -> InputError:
    return InputError(f"{file} is not a readable safetensors file ({why}); fetch it again.")
