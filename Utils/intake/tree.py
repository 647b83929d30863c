"""A folder of models, as web interfaces and the hub's cache keep them: which of its thousands of files have a text encoder?

Folders are told by their configs, files by the names of their tensors; nothing but headers is read and nothing is executed.
What cannot be told is named as a model, so that the scan says what it is: only what has no text encoder is left out, with a
reason.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.families import is_family
from Utils.intake.files import PICKLES, TENSORS, lora_names, single_file_names, word_names
from Utils.intake.folders import index_of, is_encoder_entry, sentence_modules
from Utils.intake.hub import snapshot_of
from Utils.intake.inventory import DEEPEST, HEAD, LEFTOVERS
from Utils.intake.reader import Reader
from Utils.intake.tensors import read_header

MOST = 500_000
"""Files of a tree that are looked at."""
MAX_NAMES = 64 << 20
"""Bytes of a pickle's instructions; those of the largest public checkpoints have some hundred thousand."""
INNER = re.compile(r"(token_embedding|word_embeddings|embed_tokens|shared)\.weight$|(^|\.)positional_embedding$")
"""Tensors that text encoders have, whatever stands before their names."""
OTHER_TOWERS = re.compile(r"(^|\.)(vision_model|visual|decoder)\.")
DENOISER = re.compile(
    r"unet|diffusion_model|(transformer|single|double|down|up|mid|input|output|middle)_blocks?[._]|first_stage_model"
)
"""What names of a denoiser's and an autoencoder's tensors hold."""
WORDS = "textual inversions, which are no encoders"
GGUF_DENOISER = re.compile(
    rb"general\.architecture.{12}(flux|sd1|sd3|sdxl|aura|ltxv|hyvid|wan|cosmos|lumina2|hidream|qwen_image)", re.S
)
"""A GGUF file of a denoiser."""
MODEL = "a model"
"""In place of a reason to leave something out: it has a text encoder, or nobody can tell."""


@dataclass(frozen=True)
class Skipped:
    """Something that has no text encoder, and why that is so; files that are no models are counted only."""

    path: str
    reason: str


@dataclass
class Tree:
    """What lies in a folder of models."""

    models: list[str] = field(default_factory=list)
    """What a scan can be asked for, in the order of names."""
    skipped: list[Skipped] = field(default_factory=list)
    others: int = 0
    """Files that are no models."""


def look_through(root: Path) -> Tree:
    """Every model below a folder that has a text encoder, and what was left out.

    Raises:
        InputError: it holds more than can be looked at.
    """
    tree, todo, seen = Tree(), [(root, 0)], 0
    while todo:
        folder, depth = todo.pop()
        if depth and _taken(folder, _folder_kind, tree):
            continue
        try:
            with os.scandir(snapshot_of(folder)) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # nobody may look: the scan will say so
            tree.models.append(str(folder))
            continue
        seen += len(ordered)
        if seen > MOST:
            raise InputError(f"{root} holds more than {MOST:,} files; give a folder in it.")
        for entry in ordered:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < DEEPEST:
                    todo.append((path, depth + 1))
                else:
                    tree.skipped.append(Skipped(str(path), "folders that lie too deep; give a folder nearer to them"))
            elif entry.is_dir():
                if not _taken(path, _folder_kind, tree):
                    tree.skipped.append(Skipped(str(path), "folders that are links; give what they lead to"))
            elif not _taken(path, _file_kind, tree):
                tree.others += 1
    tree.models.sort()
    return tree


def _taken(path: Path, kind_of: Callable[[Path], str | None], tree: Tree) -> bool:
    """Put a path where it belongs; False where it is no model at all."""
    try:
        kind = kind_of(path)
    except (InputError, OSError):  # the scan will say what is wrong with it
        kind = MODEL
    if kind == MODEL:
        tree.models.append(str(path))
    elif kind:
        tree.skipped.append(Skipped(str(path), kind))
    return kind is not None


def _folder_kind(folder: Path) -> str | None:
    """MODEL, why a model's folder is left out, or None for a folder that is none and may hold some."""
    if re.match(r"(datasets|spaces)--", folder.name):
        return "data sets and spaces of the hub"
    folder = snapshot_of(folder)
    if (folder / "model_index.json").exists():
        inside = any(is_encoder_entry(name, entry) for name, entry in index_of(folder).items())
        return MODEL if inside else "pipelines without a text encoder"
    if (folder / "adapter_config.json").exists() or any(name.endswith(".Transformer") for name, _ in _modules(folder)):
        return MODEL
    if not (folder / "config.json").exists():
        return None
    config = Reader(folder).json(folder / "config.json")
    kind = config.get("model_type", config.get("_class_name")) if isinstance(config, dict) else None
    if isinstance(kind, str):
        return MODEL if is_family(kind) else f"models of another kind ({kind[:40]})"
    weights = any(path.suffix.lower() in (".safetensors", *PICKLES) for path in folder.iterdir())
    return MODEL if weights else None  # programs call their settings so too


def _modules(folder: Path) -> list[tuple[str, str]]:
    return sentence_modules(folder, Reader(folder))


def _file_kind(file: Path) -> str | None:
    """MODEL, why a file is left out, or None for one that is no model."""
    suffix = file.suffix.lower()
    if suffix in TENSORS:
        return kind_of_names(list(read_header(Reader(file.parent), file)))
    if suffix in PICKLES:
        return "what trainers leave" if LEFTOVERS.fullmatch(file.name) else _pickle_kind(file)
    if suffix == ".gguf":
        with file.open("rb") as stream:
            return "denoisers in GGUF form" if GGUF_DENOISER.search(stream.read(HEAD)) else MODEL
    return None


def kind_of_names(names: list[str]) -> str:
    """MODEL where tensors of these names have to do with a text encoder; else what they are."""
    if lora_names(names):
        return "LoRAs that touch no text encoder" if all(DENOISER.search(name) for name in names) else MODEL
    if any(INNER.search(name) and not OTHER_TOWERS.search(name) for name in names):
        return MODEL
    if word_names(names):
        return WORDS
    return "checkpoints without a text encoder" if single_file_names(names) else "tensors of something else than a text encoder"


def _pickle_kind(file: Path) -> str:
    """By the strings in its instructions, which are looked at and not followed; of older forms nobody can tell."""
    try:
        with zipfile.ZipFile(file) as archive:
            inside = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
            if inside.file_size > MAX_NAMES:
                return MODEL
            content = archive.read(inside)
        names = list(_strings(content))
    except Exception:  # a pickle can be wrong in any way
        return MODEL
    tensors = [name for name in names if "." in name]
    kind = WORDS if "string_to_param" in names else kind_of_names(tensors) if tensors else MODEL
    return kind if kind == MODEL else f"{kind} (pickles)"


def _strings(content: bytes) -> Iterable[str]:
    return (value for code, value, _ in pickletools.genops(content) if "UNICODE" in code.name and isinstance(value, str))
