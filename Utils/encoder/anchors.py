"""The base to compare a suspect with, and what belongs to it: a pipeline that draws, a CLIP that projects."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml

from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder.loading import distance, fingerprint, load_encoder, same_shape
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.config import read_config
from Utils.intake.folders import Parts, find_parts, matching_part

REGISTRY = ROOT / "configs" / "anchors.yaml"


def known_anchors() -> list[dict]:
    """The entries of the registry, in its order."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))


def pick_anchor(wanted: str, suspect: TextEncoder, device: torch.device) -> tuple[TextEncoder | None, list[str]]:
    """The base to compare with, and notes on the choice.

    wanted: a folder or hub id, `none`, or `auto`: the nearest of configs/anchors.yaml that fits.
    """
    if wanted == "none":
        return None, ["no anchor was given: what is foreign to the clean base cannot be told"]
    if wanted != "auto":
        anchor = load_encoder(matching_part(wanted, suspect.path), device)
        if not same_shape(suspect, anchor):
            raise InputError(
                f"the anchor {wanted} has other tensors or another end of text than the suspect; give its own base."
            )
        return anchor, []
    fitting, notes = [], []
    for entry in known_anchors():
        if entry["fingerprint"] == fingerprint(suspect):
            try:
                anchor = load_encoder(entry["hub"] if "hub" in entry else ROOT / entry["path"], device)
            except InputError as error:
                notes.append(f"the known base {entry['name']} could not be used: {error}")
            else:
                fitting += [replace(anchor, path=entry.get("path") or entry["hub"])] if same_shape(suspect, anchor) else []
    if fitting:
        return min(fitting, key=partial(distance, suspect)), notes
    return None, [*notes, "no known base fits this encoder (configs/anchors.yaml): name one with --anchor"]


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
        return parts.weights if read_config(parts.weights).kind == "clip" else None
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
