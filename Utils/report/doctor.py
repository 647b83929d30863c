"""--doctor: what a scan finds on this machine, one line each, with the cure where something is missing.

Nothing is scanned; of the large libraries only torch is imported, which alone knows the devices.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

import psutil

from Utils.basics.errors import visible
from Utils.basics.files import CACHE, CACHE_BYTES, ROOT
from Utils.basics.processes import cores
from Utils.sources.registry import at_hand, known_anchors

FINE, NOTE, MISSING = "ok", "note", "missing"
"""All is well; it is well, and could be better; scans do not work or do not end well."""
PYTHON = (3, 11)
LEAST_GB, USUAL_GB = 1, 8
"""Free space that a list of scans is sure to need; memory in which an encoder of CLIP-L's size is scanned with ease."""
INSTALL = f"pip install -r {{}}   (in {ROOT})"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    state: str
    what: str
    said: str
    cure: str = ""

    def __str__(self) -> str:
        return visible(f"{self.state:8}{self.what:12}{self.said}{f': {self.cure}' if self.cure else ''}")


def examine(output: Path) -> Iterator[Line]:
    """Everything that a scan depends on beside its input; output: where results would go."""
    yield _python()
    yield from _packages(ROOT / "requirements.txt", MISSING)
    yield from _packages(ROOT / "requirements-fleet.txt", NOTE)
    yield from _device()
    yield _memory()
    yield from _anchors()
    yield _hub()
    yield _folder("results", output, "choose another place with --output")
    yield _folder("cache", CACHE, "give this user the right to write there")


def is_fit(lines: list[Line]) -> bool:
    """Whether scans work here."""
    return all(line.state != MISSING for line in lines)


def _python() -> Line:
    there = f"{platform.python_version()} on {platform.system()}"
    if sys.version_info[:2] == PYTHON:
        return Line(FINE, "python", there)
    wanted = ".".join(map(str, PYTHON))
    return Line(NOTE, "python", there, f"tests run with {wanted}; make the environment with python{wanted} -m venv .venv")


def _packages(file: Path, state: str) -> Iterator[Line]:
    """A line for each package that is absent or of another version, or one for all of them."""
    wanted = dict(line.split("==") for line in file.read_text(encoding="utf-8").split())
    there = {name: _version(name) for name in wanted}
    absent = {name: wanted[name] for name in wanted if there[name] is None}
    other = {name: wanted[name] for name in wanted if there[name] not in (None, wanted[name])}
    cure = INSTALL.format(file.name)
    if absent:
        yield Line(state, "packages", f"{', '.join(absent)} of {file.name} not installed", cure)
    if other:
        named = ", ".join(f"{name} {there[name]} instead of {wanted[name]}" for name in other)
        yield Line(NOTE, "packages", named, cure)
    if not absent and not other:
        yield Line(FINE, "packages", f"all {len(wanted)} of {file.name}")


def _version(name: str) -> str | None:
    """The installed version without what tells builds apart, as in 2.13.0+cpu."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def _device() -> Iterator[Line]:
    try:
        import torch
    except ImportError as error:
        yield Line(MISSING, "device", f"torch cannot be imported ({error})", INSTALL.format("requirements.txt"))
        return
    from Utils.basics.hardware import has_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = "bfloat16" if has_bfloat16(device) else "float32"
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{cores()} core{'s' * (cores() > 1)}"
    yield Line(FINE, "device", f"{device.type} ({name}); --precision auto searches for strings in {fast}")


def _memory() -> Line:
    memory = psutil.virtual_memory()
    said = f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB free"
    if memory.available >= USUAL_GB * 1e9:
        return Line(FINE, "memory", said)
    return Line(NOTE, "memory", said, f"close other programs for encoders of CLIP-L's size, which want {USUAL_GB} GB")


def _anchors() -> Iterator[Line]:
    entries = known_anchors()
    here = [entry["name"] for entry in entries if at_hand(entry)]
    if here:
        yield Line(FINE, "anchors", f"{len(here)} of {len(entries)} known bases at hand: {', '.join(here)}")
    if len(here) < len(entries):
        cure = "python Utils/anchors.py --list shows how to get one"
        yield Line(NOTE, "anchors", f"{len(entries) - len(here)} known bases are not at hand", cure)


def _hub() -> Line:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Line(NOTE, "hub", "offline, ids are looked up in the local cache only", "unset HF_HUB_OFFLINE to fetch")
    return Line(FINE, "hub", "ids are fetched where the local cache lacks them")


def _folder(what: str, folder: Path, cure: str) -> Line:
    """Whether a folder, which need not be there yet, can be written to, and what is in it."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError:
        return Line(MISSING, what, f"{folder} cannot be written to", cure)
    free = shutil.disk_usage(there).free / 1e9
    said = f"{folder}, {free:.1f} GB free"
    if what == "cache":
        used = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
        said = f"{folder}, {used / 1e9:.1f} of at most {CACHE_BYTES / 1e9:.0f} GB used"
    return Line(FINE, what, said) if free >= LEAST_GB else Line(MISSING, what, said, "make room")
