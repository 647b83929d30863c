"""Encoders that come in Python packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def weights_of(package: str) -> Path | None:
    """The folder with the weights inside an installed package; None where it is not installed or has none."""
    found = find_spec(package)
    return next((file.parent for file in sorted(Path(found.origin).parent.rglob("model.safetensors"))), None) if found else None
