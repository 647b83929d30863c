"""Which bytes were judged: every file of an encoder is opened once, hashed as it is read, and what is loaded is that.

A file that is replaced or changed while a scan runs can therefore not be another one than the report names.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from Utils.basics.errors import Flaw, InputError, told
from Utils.intake.files import MAX_JSON

BLOCK = 8 << 20
"""Bytes read at a time."""
NESTS = "it nests more than any file of its kind"
MAX_BRACKETS = 4_000_000
"""Lists and objects in a JSON file: each costs some hundred bytes of memory, whatever is in it."""


class Reader:
    """Opens the files of one encoder and remembers what it read."""

    def __init__(self, root: Path):
        self.root = root
        self.read: dict[Path, dict] = {}
        """File -> {path, bytes, sha256}, in the order of reading."""

    @contextmanager
    def opened(self, file: Path) -> Iterator[tuple[BinaryIO, int]]:
        """A regular file and its size; one that changes while it is open is refused."""
        try:
            # a pipe that took the file's place would keep a plain open waiting
            handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); fetch the model again.") from None
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            os.close(handle)
            raise InputError(f"{file} is no ordinary file (a pipe, a device or a folder); fetch the model again.")
        with os.fdopen(handle, "rb") as stream:
            yield stream, before.st_size
            if marks(os.fstat(handle)) != marks(before):
                raise InputError(f"{file} was changed while it was read; scan it again when nothing writes to it.")

    def note(self, file: Path, size: int, digest: str) -> None:
        """Remember that a file was read."""
        inside = file.relative_to(self.root) if file.is_relative_to(self.root) else file
        self.read[file] = {"path": inside.as_posix(), "bytes": size, "sha256": digest}

    def bytes(self, file: Path, limit: int = MAX_JSON) -> bytes:
        """The content of a small file.

        Raises:
            InputError: it cannot be read, is larger than `limit`, or changes meanwhile.
        """
        with self.opened(file) as (stream, size):
            if size > limit:
                raise InputError(f"{file} is larger than any file of its kind ({size} bytes); fetch the model again.")
            content = stream.read(limit + 1)
        self.note(file, len(content), sha256(content).hexdigest())
        return content

    def json(self, file: Path, limit: int = MAX_JSON) -> object:
        """What a JSON file says."""
        return parsed(self.bytes(file, limit), file)


def marks(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's content."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def parsed(content: bytes, file: Path) -> object:
    """`read_json` of a file of the model."""
    try:
        return read_json(content)
    except Flaw as flaw:
        raise InputError(f"{file} cannot be read as JSON{told(flaw)}; fetch the model again.") from None


def read_json(content: bytes) -> object:
    """JSON of bounded size; of keys that stand twice, which loaders may take differently, none is accepted.

    Raises:
        Flaw: it is none.
    """
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise Flaw(NESTS)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except Flaw:
        raise
    except json.JSONDecodeError as error:
        raise Flaw(f"line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise Flaw("it is no UTF-8") from None
    except RecursionError:
        raise Flaw(NESTS) from None
    except ValueError:  # Python's limit of digits
        raise Flaw("a number in it is too long") from None


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Flaw("a key stands twice")
    return found
