"""The public bases that are known (configs/anchors.yaml), and which of them are on this machine."""

from __future__ import annotations

from pathlib import Path

import yaml

from Utils.basics.files import ROOT, typed_command
from Utils.intake.files import PICKLES
from Utils.intake.hub import hub_name, in_cache

REGISTRY = ROOT / "configs" / "anchors.yaml"


def known_anchors() -> list[dict]:
    """The entries of the registry, in its order."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))


def at_hand(entry: dict) -> Path | None:
    """Where a known base lies on this machine: in the repository or in the hub's local cache; None: nowhere."""
    if "path" in entry:
        return ROOT / entry["path"] if (ROOT / entry["path"]).exists() else None
    return None if is_pickle(entry) else in_cache(hub_name(entry["hub"]))


def from_here(word: str) -> str:
    """A base of a report, as it can be named where this program was started: known ones have their place in the repository."""
    known = any(entry.get("path") == word for entry in known_anchors())
    return str(ROOT / word) if known and Path.cwd() != ROOT else word


def is_pickle(entry: dict) -> bool:
    """Whether a base is published as a pickle only."""
    return entry.get("hub", "").endswith(PICKLES)


def fetching(entries: list[dict]) -> str:
    """The commands that fetch known bases, as they can be typed here."""
    plain = [entry["name"] for entry in entries if not is_pickle(entry)]
    lines = [typed_command("Utils/anchors.py", "--fetch", *plain)] if plain else []
    pickles = [entry for entry in entries if is_pickle(entry)]
    lines += [typed_command("Utils/convert.py", entry["hub"], f"{entry['name']}.safetensors") for entry in pickles]
    return " or ".join(f"`{line}`" for line in lines)
