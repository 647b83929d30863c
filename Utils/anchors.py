"""Known public bases (configs/anchors.yaml) and what belongs to them: a pipeline that draws, a CLIP that projects."""

from __future__ import annotations

from pathlib import Path

import yaml

from Utils.intake import InputError, Parts, find_parts, read_config

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "configs" / "anchors.yaml"


def known_anchors() -> list[dict]:
    """The entries of the registry, in its order."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))


def companion(anchor: str, kind: str) -> Path | None:
    """The folder that belongs to an anchor: `pipeline` (draws its features) or `clip` (projects them).

    What the registry names, or else the anchor's own folder where it is such a thing; None where there is neither.
    """
    parts = _parts(str(ROOT / anchor) if (ROOT / anchor).exists() else anchor)
    if not parts:
        return None
    for entry in known_anchors():
        named = entry.get("hub") == anchor or ("path" in entry and _weights(ROOT / entry["path"]) == parts.weights.resolve())
        if kind in entry and named:
            return ROOT / entry[kind]
    if kind == "pipeline":
        return parts.root if (parts.root / "model_index.json").exists() else None
    try:
        return parts.weights if read_config(parts.weights)["model_type"] == "clip" else None
    except InputError:
        return None


def _parts(model: str) -> Parts | None:
    """Where an encoder's weights and tokenizer lie; None where there is no such model."""
    try:
        return find_parts(model)
    except InputError:
        return None


def _weights(model: Path) -> Path | None:
    parts = _parts(str(model)) if model.exists() else None
    return parts and parts.weights.resolve()
