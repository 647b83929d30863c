"""Which source a user's word names, by what lies there and by the content of files, whatever they are called."""

from __future__ import annotations

from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.files import TENSORS, gguf_sentence, lora_names, word_names
from Utils.intake.folders import is_weights
from Utils.intake.hub import file_and_part, located
from Utils.intake.reader import Reader
from Utils.intake.tensors import read_header
from Utils.sources.checkpoint import Checkpoint
from Utils.sources.folder import Folder
from Utils.sources.inversion import Inversion
from Utils.sources.layouts import CLIP, OTHER, T5, towers_in
from Utils.sources.lenders import Given
from Utils.sources.lora import Lora
from Utils.sources.source import Source

OPEN_CLIP_FILE = "open_clip_model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
SETTINGS = ("config.json", "model_index.json")


def source_of(model: str | Path, given: Given | None = None) -> Source:
    """The source that a word names.

    Raises:
        InputError: there is nothing of this name, or a file that no reader reads; one sentence with the cure.
    """
    model, given = str(model), given or Given()
    named, part = file_and_part(model)
    if (place := located(named)).is_dir():
        own = place / OPEN_CLIP_FILE
        if own.is_file() and not any((place / name).exists() for name in SETTINGS):
            return Checkpoint(model, own, part, given, alone=False)
        adapter = place / ADAPTER_FILE
        if adapter.is_file() and not any((place / name).exists() for name in SETTINGS):
            return Lora(model, adapter, part, given, source_of)
        return Folder(model, given)
    if is_gguf(place):
        raise InputError(gguf_sentence(place))
    if place.suffix.lower() not in TENSORS or not place.is_file():
        return Folder(model, given)  # which says what it is
    names = read_header(Reader(place.parent), place)
    if not names:
        raise InputError(f"{place} holds no tensors; fetch it again.")
    if lora_names(names):
        return Lora(model, place, part, given, source_of)
    if word_names(names):
        return Inversion(model, place, part, given, source_of)
    if is_weights(place) and _as_its_config_says(names):
        return Folder(model, given)
    return Checkpoint(model, place, part, given)


def _as_its_config_says(names: dict) -> bool:
    """Whether the config.json beside a file may be its own: it holds no tower of another form or behind other names."""
    return all(t.form == OTHER or (t.form in (CLIP, T5) and t.root == "") for t in towers_in(names))


def is_gguf(file: Path) -> bool:
    """Whether a file is of this kind, by how it begins."""
    if not file.is_file():
        return False
    with Reader(file.parent).opened(file) as (stream, _):
        return stream.read(4) == b"GGUF"


def encoders_of(model: str, only: str = "") -> list[str]:
    """The encoders behind what the user named, each as a word that names it alone.

    only: the name of the weights that count, as --only gives it; then nothing else is an encoder of this model.
    """
    return source_of(model).encoders(only)


def source_digest(model: str, given: Given | None = None) -> str:
    """A hash of everything that a verdict on an encoder rests on, to tell whether a report still speaks of it."""
    return source_of(model, given).digest()
