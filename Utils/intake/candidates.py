"""How many encoders a user's word names: every encoder of a pipeline, every set of weights that a loader could take for one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.intake.config import is_encoder_config
from Utils.intake.folders import Parts, find_folder, find_parts, is_encoder_folder_name, is_weights, pipeline_encoders
from Utils.intake.hub import located
from Utils.intake.inventory import look_around, walk
from Utils.intake.reader import Reader
from Utils.intake.tensors import read_tensors
from Utils.intake.weights import WeightSet, find_tower, weight_files, weight_sets, wrapper_of

MOST = 16
"""Encoders of one model that are scanned; one that holds more is no model but a collection."""
ROUNDED = (torch.float16, torch.bfloat16)


def encoders_of(model: str, only: str = "") -> list[str]:
    """The encoders behind what the user named, each as `load_encoder` takes it, those that loaders take first in front.

    only: the name of the weights that count, as --only gives it; then nothing else is an encoder of this model.

    Raises:
        InputError: there is no such model, it holds too many encoders, or none of the name `only`.
    """
    if is_weights(located(model)):
        return [model]
    folder, base = find_folder(model), model.rstrip("/\\")
    if (folder / "model_index.json").exists():
        names = pipeline_encoders(folder)
        encoders = [model] if len(names) < 2 else [f"{base}/{name}" for name in names]
        if _holds_encoder(folder):  # AutoModel takes these, a pipeline does not
            encoders.append(f"{base}/{weight_files(folder)[0].name.name}")
    else:
        encoders = [model]
    if only:
        return _only(encoders, only)
    further = []
    for encoder in encoders:
        parts = find_parts(encoder)
        further += [str(one.name) for one in other_weights(parts) if not same_numbers(parts, one)]
    judged = {find_parts(encoder).weights for encoder in encoders}
    encoders += further + [f"{base}/{inside}" for inside in _inner_encoders(folder) if folder / inside not in judged]
    if len(encoders) > MOST:
        raise InputError(f"{model} holds {len(encoders)} text encoders; name one of them, or scan them all with --models.")
    return encoders


def _only(encoders: list[str], only: str) -> list[str]:
    """Of every encoder the weights of this name."""
    chosen = []
    for encoder in encoders:
        parts = find_parts(encoder)
        for one in weight_sets(parts.weights, Reader(parts.root)):
            names = {one.name.name, one.name.relative_to(parts.root).as_posix(), str(one.name)}
            if only in names:
                chosen.append(str(one.name))
    if not chosen:
        raise InputError(f"--only {only}: no encoder there has weights of this name; name a .safetensors file or an index.")
    return chosen


def _holds_encoder(folder: Path) -> bool:
    """Whether a folder itself is a text encoder, or a larger model that holds one."""
    return is_encoder_config(folder / "config.json") and any(folder.glob("*.safetensors"))


def _inner_encoders(folder: Path) -> list[str]:
    """Folders below a model's that hold encoders and are no part of its pipeline."""
    pipeline = (folder / "model_index.json").exists()
    parts = set(pipeline_part_names(folder)) if pipeline else set()
    found = []
    for inside, path in walk(folder):
        if path.name != "config.json" or not inside.parent.parts or inside.parts[0] in (*parts, ".git", ".cache"):
            continue
        if not (pipeline and is_encoder_folder_name(inside.parts[0])) and _holds_encoder(path.parent):
            found.append(inside.parent.as_posix())
    return sorted(found)


def pipeline_part_names(folder: Path) -> list[str]:
    """Names of the folders that model_index.json names."""
    index = Reader(folder).json(folder / "model_index.json")
    return [name for name, entry in index.items() if isinstance(entry, list)]


def other_weights(parts: Parts) -> list[WeightSet]:
    """Sets of weights in an encoder's folder beside those that are judged, which a loader could take for them."""
    reader = Reader(parts.root)
    judged = set(find_tower(parts, reader).files)
    doubtful = {parts.root / b.path for b in look_around(parts, set(), judged) if b.kind == "weights of a text encoder"}
    return [one for one in weight_sets(parts.weights, reader) if not judged & set(one.files) and doubtful & set(one.files)]


def same_numbers(parts: Parts, other: WeightSet) -> bool:
    """Whether a second set of weights holds the judged ones, as they are or rounded to half precision."""
    reader = Reader(parts.root)
    found = find_tower(parts, reader)
    judged, second = (_tensors(reader, files) for files in (found.files, other.files))
    inner = [name for name in judged if not name.startswith(("vision_model.", "visual_projection."))]
    return bool(inner) and all(name in second and alike(judged[name], second[name]) for name in inner)


def _tensors(reader: Reader, files: list[Path]) -> dict[str, Tensor]:
    tensors = {}
    for file in files:
        tensors |= {n.removeprefix(wrapper_of(n)): t for n, t in read_tensors(reader, file, lambda _: True).items()}
    return tensors


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or one is the other rounded."""
    if a.shape != b.shape:
        return False
    a, b = a.float(), b.float()
    forms = [(a, b)] + [(x.to(kind).float(), y) for kind in ROUNDED for x, y in ((a, b), (b, a))]
    return any(torch.equal(x, y) for x, y in forms)
