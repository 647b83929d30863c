"""Known public bases (configs/anchors.yaml) and what belongs to them: a pipeline that draws, a CLIP that projects."""

from __future__ import annotations

from pathlib import Path

import yaml

from Utils.intake import InputError, find_parts, read_config

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "configs" / "anchors.yaml"


def known_anchors() -> list[dict]:
    """The entries of the registry, in its order."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))


def companion(anchor: str, kind: str) -> Path | None:
    """The folder that belongs to an anchor: `pipeline` (draws its features) or `clip` (projects them).

    What the registry names, or else the anchor's own folder where it is such a thing; None where there is neither.
    """
    try:
        parts = find_parts(ROOT / anchor if (ROOT / anchor).exists() else anchor)
        for entry in known_anchors():
            same = entry["hub"] == anchor if "hub" in entry else _weights(ROOT / entry["path"]) == parts.weights
            if kind in entry and same:
                return ROOT / entry[kind]
        own = {
            "pipeline": lambda: parts.root if (parts.root / "model_index.json").exists() else None,
            "clip": lambda: parts.weights if read_config(parts.weights)["model_type"] == "clip" else None,
        }
        return own[kind]()
    except InputError:
        return None


def _weights(model: Path) -> Path:
    return find_parts(model).weights
