"""The base to compare a suspect with, and what belongs to it: a pipeline that draws, a CLIP that projects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder.loading import comparable, dimensions, distance, load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.config import read_config
from Utils.intake.folders import Parts, find_parts, matching_part
from Utils.sources.lenders import Given, is_file_name
from Utils.sources.registry import at_hand, fetching, known_anchors

NEAR, FAR = 0.2, 0.5
"""Distances of token tables.  Fine-tunes of the zoo's dev split lie within 0.13 of their base, nine of ten within 0.03; tables
that were trained apart have nothing in common, which is 1."""
SAME = 1.0e-6
"""Rounding of that distance: one table, published twice."""
ALIKE = 2.0
"""A base that is less than so many times as far away as the nearest is as good a guess."""


def pick_anchor(
    wanted: str, suspect: TextEncoder, device: torch.device, tokenizer: str = ""
) -> tuple[TextEncoder | None, list[str]]:
    """The base to compare with, and notes on the choice.

    wanted: a folder, a file or a hub id, `none`, or `auto`: the nearest of configs/anchors.yaml that fits and is at hand;
    tokenizer: for a file that has none.
    """
    if wanted == "none":
        return None, ["no anchor was given: what is foreign to the clean base cannot be told"]
    if wanted == "auto":
        return _nearest(suspect, device)
    lent = Given(tokenizer) if is_file_name(wanted) else None
    anchor = load_encoder(matching_part(wanted, suspect.path), device, lent)
    if not comparable(suspect, anchor):
        raise InputError(f"the anchor {wanted} has other tensors or another end of text than the suspect; give its own base.")
    return anchor, [f"the base: {note}" for note in anchor.files.notes]


def _nearest(suspect: TextEncoder, device: torch.device) -> tuple[TextEncoder | None, list[str]]:
    """Of the known bases at hand the one whose token table is nearest, and how sure that is."""
    known = _of_its_dimensions(suspect)
    elsewhere, notes, found = [], [], []
    for entry in known:
        if at_hand(entry) is None:
            elsewhere.append(entry)
            continue
        try:
            base = load_encoder(entry["hub"] if "hub" in entry else ROOT / entry["path"], device)
        except InputError as error:
            notes.append(f"the known base {entry['name']} could not be used: {error}")
            continue
        same_table = entry["dimensions"]["vocabulary"] == len(suspect.vocabulary)
        if comparable(suspect, base) and (same_table or distance(suspect, base) < FAR):
            base = replace(base, path=entry.get("path") or entry["hub"])
            found = sorted([*found, (distance(suspect, base), entry["name"], base)], key=lambda one: one[0])[:2]
    missing = f"of its shape are known and not here: fetch them with {fetching(elsewhere)}" if elsewhere else ""
    if found:
        return found[0][2], [*notes, _how_sure(found) + (f"; {len(elsewhere)} more {missing}" if missing else "")]
    notes += [f"{len(elsewhere)} bases {missing}"] if missing else []
    return None, [*notes, "no known base at hand fits this encoder (configs/anchors.yaml): name one with --anchor"]


def _of_its_dimensions(suspect: TextEncoder) -> list[dict]:
    """Known bases of a suspect's dimensions; where there is none, those that have another number of tokens only."""
    wanted = dimensions(suspect)
    alike = [entry for entry in known_anchors() if entry["dimensions"] | {"vocabulary": 0} == wanted | {"vocabulary": 0}]
    return [entry for entry in alike if entry["dimensions"] == wanted] or alike


def _how_sure(found: list[tuple[float, str, TextEncoder]]) -> str:
    """How sure it is that the nearest base is the one: by its own distance, and by that of the next.

    found: the two nearest, distance, name and encoder.
    """
    (near, name, base), *others = found
    rivals = [one for one in others if one[0] <= ALIKE * near and distance(base, one[2]) > SAME]
    if near >= FAR:
        sure = f"auto found no better base than {name}, and this is hardly it"
    elif near >= NEAR:
        sure = f"auto took {name} for the base, and is not sure"
    elif rivals:
        sure = f"auto took {name} for the base, and is not sure: {rivals[0][1]} is about as near"
    else:
        sure = f"auto took {name} for the base, and is sure"
    further = ", ".join(f"{other} by {far:.2g}" for far, other, _ in others)
    return f"{sure}; its token table differs by {near:.2g}" + (f", that of {further}" if further else "")


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
