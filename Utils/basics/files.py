"""Where the repository lies, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from Utils.basics.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
CACHE = ROOT / "Data" / "Main" / "Features"
CACHE_BYTES = 4 << 30
"""Where features of the corpus are kept, and how much of them; two encoders of CLIP-L's size have 0.3 GB."""
ROOM = 1 << 20
"""A disk with less bytes free is full: a library that stopped there had none for its next block."""
NUMBERS = itertools.count()
"""Tell the partial folders of one process apart."""


def typed_command(script: str, *words: object) -> str:
    """A command line of ours as it can be typed into a shell where this program was started; script: in the repository."""
    place = Path(script)
    return shlex.join(["python", str(place if Path.cwd() == ROOT else ROOT / place), *map(str, words)])


def text_digest(text: str) -> str:
    """SHA-256 of a text or a name; names are bytes, and some are no text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def mark() -> str:
    """What unfinished files of this process have in their names."""
    return f"{text_digest(platform.node())[:8]}-{os.getpid()}"


def is_left_over(name: str) -> bool:
    """Whether the `mark` that a name begins with is of a process of this machine that is no more."""
    found = re.match(r"([0-9a-f]{8})-(\d+)(?!\d)", name)
    return found is not None and mark().startswith(f"{found[1]}-") and not psutil.pid_exists(int(found[2]))


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files and folders that dead processes left in `folder`."""
    with suppress(OSError):
        for path in folder.glob("*.part"):
            if is_left_over(path.name.removesuffix(".part").rsplit(".", 1)[-1]):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no room left."""
    with suppress(OSError):
        return shutil.disk_usage(folder).free < ROOM
    return False


@contextmanager
def _said_as_a_disk_does(written: Path) -> Iterator[None]:
    """Raise an OSError that names what was written where a library makes something else of a full disk, as torch does."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        if is_full(written.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(written)) from error
        raise


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to; it takes the file's place when the block ends without an error, or goes.

    Raises:
        OSError: the disk says no, or is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{mark()}.part")
    try:
        with _said_as_a_disk_does(file):
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

    Raises:
        OSError: the disk says no, or is full.
    """
    partial = folder.with_name(f"{folder.name}.{mark()}-{next(NUMBERS)}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _said_as_a_disk_does(folder):
            yield partial
        if not unless():
            shutil.rmtree(folder, ignore_errors=True)  # a folder that holds files cannot be renamed over
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_taken(folder: Path, force: bool) -> None:
    """Raise unless a folder may be written there.

    Raises:
        InputError: something lies there that may not go.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is no folder; name a new one.")
    if folder.exists() and not force:
        raise InputError(f"{folder} exists already; name a new folder, or let it be replaced with --force.")
    above = next((one for one in folder.absolute().parents if one.exists()), folder)
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"{above} takes no folder, so that {folder} cannot be written; name a place elsewhere.")


def move_aside(folder: Path) -> None:
    """Give a folder, if it is there, a name beside its own that is free: what is replaced is never lost."""
    names = (folder.with_name(f"{folder.name}.replaced{number or ''}") for number in itertools.count())
    if folder.exists():
        folder.rename(next(name for name in names if not os.path.lexists(name)))


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
