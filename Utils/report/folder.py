"""Where a scan leaves its files: a folder of its own under the output, written whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.basics.files import is_full, is_left_over, mark, remove_parts, text_digest
from Utils.intake.folders import full_path
from Utils.report.contract import SCHEMA

logger = logging.getLogger("amber")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Errors of a disk that are written to."""


def result_name(model: str, output: Path, taken: Collection[str] = ()) -> str:
    """The sanitised last two parts of the model path, plus eight hash digits if that name is taken by something else."""
    try:
        last = Path(model).resolve().parts[-2:]
    except (OSError, ValueError, RuntimeError):  # no name a file can have, or links in a circle
        last = Path(model).parts[-2:]
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", p).strip("._")[:100] for p in last]
    name, where = "_".join(p for p in parts if p) or "model", full_path(model)
    return name if name not in taken and _free(output / name, where) else f"{name}_{text_digest(where)[:8]}"


def model_of(folder: Path) -> str | None:
    """The model whose result lies in a folder; None where no result does."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return report["model"]["path"] if report["schema"] == SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _free(folder: Path, where: str) -> bool:
    """Whether a result of the model at `where` may take this place: nothing is there, or an older result of its own."""
    try:
        return not folder.exists() or model_of(folder) == where
    except OSError:
        return False


class _Log(logging.FileHandler):
    """log.txt.  What cannot be written there is lost without a word: the report says that a disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def result_folder(model: str, output: Path, name: str | None = None) -> Iterator[Path]:
    """A folder to write into; it takes the place of an older result only when the block ends without an error.

    `name`: where the caller has chosen one (result_name).  Yields the temporary folder; log.txt in it collects what the
    logger `amber` says.
    """
    final = output / (name or result_name(model, output))
    if not _free(final, full_path(model)):
        raise InputError(f"{final} is no result of an earlier scan; move it away or choose another folder with --output.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".partial_{mark()}_", dir=output))
        handler = _Log(work / "log.txt", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror}); choose another folder with --output.") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    older = output / f".older_{mark()}_{final.name}"
    try:
        yield work
        logger.removeHandler(handler)
        handler.close()
        if final.exists():
            final.rename(older)
        work.chmod(0o755)  # mkdtemp makes private folders
        work.rename(final)
    except InputError:
        raise
    except Exception as error:
        if reason := _disk(error, work):
            raise InputError(
                f"{output} cannot be written ({reason}); see to it or choose another folder with --output."
            ) from error
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        shutil.rmtree(work, ignore_errors=True)
        _put_back(older, final)


def _disk(error: Exception, work: Path) -> str | None:
    """What is wrong with the disk that the result goes to, whatever a library makes of it; None where nothing is."""
    if not work.is_dir():
        return "it was removed or renamed during the scan"
    if isinstance(error, OSError) and (error.errno in DISK or str(error.filename or "").startswith(str(work))):
        return error.strerror or "no reason is told"
    return os.strerror(errno.ENOSPC) if is_full(work) else None


def _put_back(older: Path, final: Path) -> None:
    """An older result goes when the new one is in its place, and returns to it otherwise."""
    with suppress(OSError):
        if older.exists() and not final.exists():
            older.rename(final)
        shutil.rmtree(older, ignore_errors=True)


def remove_leftovers(output: Path) -> None:
    """Remove what dead runs left half done in an output folder; an older result that they had moved away returns."""
    remove_parts(output)
    with suppress(OSError):
        for path in output.iterdir():
            kind, _, rest = path.name.partition("_")
            if kind in (".partial", ".older") and is_left_over(rest):
                if kind == ".older":
                    _put_back(path, output / rest.partition("_")[2])
                shutil.rmtree(path, ignore_errors=True)
