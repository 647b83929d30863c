"""A repaired encoder in files, so that it drops in where the suspect stood: what was not learnt stays as it was, byte for byte.

A pipeline stays a pipeline and a single file stays one of its layout.  What lies beside the suspect's weights and could be
loaded in their place, with the backdoor still in it, does not come along.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F

from Utils.basics.errors import InputError, visible
from Utils.basics.files import remove_parts, whole_folder
from Utils.encoder.loading import load_encoder, same_shape, save_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import other_weights
from Utils.intake.files import leads_out
from Utils.intake.hub import file_and_part, not_fetched
from Utils.intake.inventory import MOST, REST, look_around, other_parts, walk
from Utils.intake.reader import Reader
from Utils.intake.tensors import read_metadata
from Utils.intake.tokenizer import ENGLISH
from Utils.intake.weights import CheckedTower
from Utils.repair.patching import coarse, misread, patch
from Utils.sources.find import source_of
from Utils.sources.lenders import Given
from Utils.sources.onbase import OnBase

NOT_COPIED = (".git", ".cache", ".huggingface", "__pycache__")
"""Folders of programs that are no part of a model, wherever they lie."""
ALIKE, ALIKE_COARSE = 0.99, 0.9
"""Least mean cosine of what was learnt and what was written, over the tokens of plain texts; the second for FP8."""
SHOWN = 5
"""Names that a note lists."""


def write_repaired(student: TextEncoder, suspect: TextEncoder, given: Given, place: Path) -> list[str]:
    """Write a repaired encoder as the suspect's model with other weights in it.  -> what has to be known of it, a sentence each

    student: the suspect with other weights, at rest; suspect: as it was loaded; given: what the user said when it was;
    place: a folder that is not there yet.  For a single file it will hold a file of the same name.

    Raises:
        InputError: there is something at `place`, it lies in the model itself, or cannot be written to.
        RuntimeError: what was written is not what was learnt; then nothing is left of it.
    """
    _check_place(place, suspect)
    _check_student(student, suspect)
    try:
        remove_parts(place.parent)
        with whole_folder(place) as partial:
            notes = _write(student, suspect, given, partial)
            check_written(dropped_in(suspect, partial), student, given, suspect.files.tokenizer)
            _check_place(place, suspect)  # it took a while
        return notes
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise InputError(f"{place} cannot be written ({why}); make room there, or name another folder.") from error


def dropped_in(suspect: TextEncoder, place: Path) -> str:
    """What names the repaired encoder in `place` as the user's word names the suspect in its model."""
    return str(place) if _is_change(suspect) else _word(suspect, place)


def check_written(word: str, student: TextEncoder, given: Given, tokenizer: dict[str, bytes] | None = None) -> None:
    """Load what was written and compare: every weight is the learnt one as its number format rounds it, and so are features.

    tokenizer: the suspect's own files; with others it has to read as the student does.

    Raises:
        RuntimeError: it is something else.
    """
    try:
        written, source = load_encoder(word, given=given), source_of(word, given)
        reader = Reader(written.files.parts.root)
        checked = source.checked(reader)
        wrong = misread(checked, written.model.state_dict(), student.model.state_dict(), reader)
        near = ALIKE_COARSE if coarse(checked, reader) else ALIKE
    except InputError as error:
        raise RuntimeError(f"the repaired encoder cannot be loaded from where it was written: {error}") from error
    if wrong:
        raise RuntimeError(f"the repaired encoder was not written as it was learnt: {wrong[0]} holds other numbers.")
    if written.files.tokenizer != tokenizer and not torch.equal(written.ids(ENGLISH), student.ids(ENGLISH)):
        raise RuntimeError("the repaired encoder was not written as it was learnt: its tokenizer reads otherwise.")
    cosine = _likeness(written, student)
    if not cosine >= near:  # not a number is not alike
        raise RuntimeError(f"the repaired encoder was not written as it was learnt: its features agree to {cosine:.3f} only.")


@torch.no_grad()
def _likeness(written: TextEncoder, student: TextEncoder) -> float:
    """The mean cosine of two encoders' features, over tokens, of the plain text on which they differ most."""
    ids = student.ids(ENGLISH)
    cosines = F.cosine_similarity(written(ids), student(ids).cpu(), dim=-1)
    inside = student.attended(ids)
    return min(row[mask].mean().item() for row, mask in zip(cosines, inside, strict=True))


# --------------------------------------------------------------------------------------------------------- what is given
def _check_place(place: Path, suspect: TextEncoder) -> None:
    """Refuse a place where something is, or one within the model that is copied."""
    parts = suspect.files.parts
    if os.path.lexists(place):
        raise InputError(f"{place} is there already; name a folder for the repaired encoder that is not.")
    if not parts.alone and place.resolve().is_relative_to(parts.root.resolve()):
        raise InputError(f"{place} lies in the folder of the model that is to be repaired; name one outside of it.")


def _check_student(student: TextEncoder, suspect: TextEncoder) -> None:
    """Refuse weights that are none, or none of such an encoder."""
    if not same_shape(student, suspect):
        raise RuntimeError("the repaired encoder has other tensors than the suspect.")
    for name, tensor in student.model.state_dict().items():
        if not tensor.isfinite().all():
            raise RuntimeError(f"the repair has learnt no weights: {name} holds NaN or infinite values.")


def _is_change(suspect: TextEncoder) -> bool:
    """Whether the suspect is a change of a base, so that no file holds its tensors."""
    return isinstance(source_of(_word(suspect, suspect.files.parts.root)), OnBase)


def _word(suspect: TextEncoder, root: Path) -> str:
    """What the user's word would be if the suspect's model lay at `root`."""
    parts, named = suspect.files.parts, Path(suspect.path)
    if parts.file:
        _, part = file_and_part(suspect.path)
        if not part and named.parent == parts.file.resolve():  # a link of the hub's cache to a file of another name
            part = named.name
        return str(root / parts.file.relative_to(parts.root) / part)
    inside = parts.weights != parts.root and named.name == parts.weights.name
    return str(root / parts.weights.relative_to(parts.root)) if inside else str(root)


# ------------------------------------------------------------------------------------------------------- what is written
def _write(student: TextEncoder, suspect: TextEncoder, given: Given, place: Path) -> list[str]:
    """Fill an empty folder.  -> notes"""
    parts = suspect.files.parts
    if _is_change(suspect):
        save_encoder(student, place)
        what = f"{visible(parts.file.name)} only changes a base"
        return [f"{what}, so the repaired encoder was written as a Hugging Face folder of its own, in half precision"]
    notes = _copy_file(suspect, place) if parts.alone else _copy_folder(suspect, place)
    checked = source_of(_word(suspect, place), given).checked(Reader(place))
    patch(checked, student.model.state_dict(), Reader(place))
    return [*notes, *_notes_of(checked)]


def _copy_file(suspect: TextEncoder, place: Path) -> list[str]:
    """A single file, and of what lies beside it what was read for it: its own tokenizer and config."""
    parts = suspect.files.parts
    beside = [entry["path"] for entry in suspect.files.read if "/" not in entry["path"]]
    for name in {parts.file.name, *beside}:
        shutil.copyfile(parts.root / name, place / name)
    _, own = file_and_part(suspect.path)
    inside = [file_and_part(word)[1] for word in source_of(str(parts.file)).encoders("")]
    return _note_on_others([part for part in inside if part and part != own])


def _copy_folder(suspect: TextEncoder, place: Path) -> list[str]:
    """A model's folder, without what a loader could take in the place of the repaired weights.  -> notes"""
    parts, read = suspect.files.parts, {entry["path"] for entry in suspect.files.read}
    beside = look_around(parts, read, set())
    second, known = _second_sets(suspect), read | {one.path for one in beside}
    kept = (read | {one.path for one in beside if not one.doubt}) - second
    left, links = [], []
    for inside, path in walk(parts.root):
        name = inside.as_posix()
        if set(NOT_COPIED) & set(inside.parts):
            continue
        if leads_out(path, parts.root) or not path.is_file():
            links.append(name)
        elif name in kept:
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / inside)
        elif name in known:
            left.append(name)
    cut = any(one.path == REST for one in beside)
    more = [f"not copied: what lies behind the first {MOST} entries of the folder, which nobody looked at"] if cut else []
    return _notes_on_copy(suspect, left, links) + more


def _second_sets(suspect: TextEncoder) -> set[str]:
    """Files of other weights in the encoder's folder: whole sets, so that no index is left without its files."""
    parts = suspect.files.parts
    if not (parts.weights / "config.json").is_file():  # what lies there has another form than sets have
        return set()
    files = [file for one in other_weights(parts) for file in (*one.files, one.name)]
    return {file.relative_to(parts.root).as_posix() for file in files}


# ----------------------------------------------------------------------------------------------------------------- notes
def _notes_on_copy(suspect: TextEncoder, left: list[str], links: list[str]) -> list[str]:
    """What the copy of a folder lacks, and what in it is as it was although somebody may think otherwise."""
    parts, notes = suspect.files.parts, []
    if left:
        notes.append(f"left out, for a loader could take it in place of the repaired weights: {_some(left)}")
    if links:
        notes.append(f"left out, for it leads out of the model's folder or is no ordinary file: {_some(links)}")
    notes += _note_on_others([name for name, what in other_parts(parts).items() if what.startswith("another encoder")])
    if missing := not_fetched(parts.root):
        notes.append(f"on the hub, but not fetched with the model and so not in the copy: {_some(missing)}")
    return notes


def _note_on_others(names: list[str]) -> list[str]:
    """What has to be known of other encoders in the same pipeline or file."""
    cure = "scan this copy, and repair in it what is backdoored"
    return [f"copied as it was, for every encoder is repaired by itself: {_some(names)}; {cure}"] if names else []


def _notes_of(checked: CheckedTower) -> list[str]:
    """What files of weights still say or hold that is not repaired."""
    notes = []
    if checked.unused:
        notes.append(f"stored layers that no config counts stay as they were: {_some(checked.unused)}")
    for file in checked.found.files:
        said = sorted(name for name in read_metadata(Reader(file.parent), file) if "hash" in name.lower())
        if said:
            notes.append(f"the header of {visible(file.name)} still names a hash of the suspect's weights: {_some(said)}")
    return notes


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(visible(name[:200]) for name in ordered[:SHOWN]) + more
