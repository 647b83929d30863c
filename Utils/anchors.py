"""Known public bases (configs/anchors.yaml) and what belongs to them: a pipeline that draws, a CLIP that projects."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "configs" / "anchors.yaml"


def known_anchors() -> list[dict]:
    """The entries of the registry, in its order."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))


def companion(anchor: str, kind: str) -> Path | None:
    """The folder that belongs to an anchor: `pipeline` (draws its features) or `clip` (projects them).

    What the registry names, or else the anchor's own folder where it is such a thing; None where there is neither.
    """
    folder = ROOT / anchor
    for entry in known_anchors():
        if kind in entry and _same(ROOT / (entry.get("path") or entry["hub"]), folder):
            return ROOT / entry[kind]
    mark = {"pipeline": folder / "model_index.json", "clip": folder / "preprocessor_config.json"}[kind]
    return folder if mark.exists() else None


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()
