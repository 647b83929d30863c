"""Where a scan leaves its files: a folder of its own under the output, written whole or not at all."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.folders import full_path

logger = logging.getLogger("amber")
SCHEMA = "amber-report/1"
"""Version of report.json."""


def result_name(model: str, output: Path, taken: Collection[str] = ()) -> str:
    """The sanitised last two parts of the model path, plus eight hash digits if that name is taken by something else."""
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", p).strip("._")[:100] for p in Path(model).resolve().parts[-2:]]
    name, where = "_".join(p for p in parts if p) or "model", full_path(model)
    return name if name not in taken and _free(output / name, where) else f"{name}_{sha256(where.encode()).hexdigest()[:8]}"


def _free(folder: Path, where: str) -> bool:
    """Whether a result of the model at `where` may take this place: nothing is there, or an older result of its own."""
    if not folder.exists():
        return True
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return report["schema"] == SCHEMA and report["model"]["path"] == where
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
        work = Path(tempfile.mkdtemp(prefix=".partial_", dir=output))
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror}); choose another folder with --output.") from None
    handler = logging.FileHandler(work / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    older = work.with_name(work.name.replace(".partial_", ".older_"))
    try:
        yield work
        logger.removeHandler(handler)
        handler.close()
        if final.exists():
            final.rename(older)
        work.chmod(0o755)  # mkdtemp makes private folders
        work.rename(final)
    finally:
        logger.removeHandler(handler)
        handler.close()
        shutil.rmtree(work, ignore_errors=True)
        if final.exists():
            shutil.rmtree(older, ignore_errors=True)
