"""Where the repository lies, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
NUMBERS = itertools.count()
"""Tell the partial folders of one process apart."""


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; it takes the file's place when the block ends without an error, or goes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        yield partial
        partial.replace(file)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text file, UTF-8 with plain line ends, in one step."""
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def whole_folder(folder: Path, unless: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """An empty folder beside `folder` to fill; it takes the folder's place when the block ends without an error, or goes.

    `unless`: asked at the end whether what stands there by then should stay.
    """
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.{next(NUMBERS)}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if not unless():
            shutil.rmtree(folder, ignore_errors=True)  # a folder that holds files cannot be renamed over
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
