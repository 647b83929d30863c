"""Which commit a folder is a checkout of, read from git's own files: no program is started."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def checked_out(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, changes that are not committed aside; None where it is no checkout."""
    with suppress(OSError, ValueError):
        place = _git_folder(folder / ".git")
        head = _text(place / "HEAD")
        return _commit(_meant(head.removeprefix("ref: "), place) if head.startswith("ref: ") else head)
    return None


def _git_folder(git: Path) -> Path:
    """Where git keeps what it knows: in .git, or where this is a file in the folder that it names, as for worktrees."""
    return git if git.is_dir() else git.parent / _text(git).removeprefix("gitdir: ")


def _meant(name: str, place: Path) -> str:
    """What a branch means: in a file of its own, or packed with others; branches are shared between worktrees."""
    common = place / _text(place / "commondir") if (place / "commondir").is_file() else place
    for home in (place, common):
        if (home / name).is_file():
            return _text(home / name)
    lines = (line.partition(" ") for line in _text(common / "packed-refs").splitlines())
    return next((commit for commit, _, packed in lines if packed == name), "")


def _commit(text: str) -> str | None:
    return text if COMMIT.fullmatch(text) else None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()
