"""Where the parts of an encoder lie: a folder, a part of a diffusers pipeline, or the snapshot of a hub id."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.files import check_files, what_file
from Utils.intake.hub import is_path, located
from Utils.intake.reader import Reader

PIPELINE_ENCODERS = (
    "CLIPTextModel", "CLIPTextModelWithProjection", "SiglipTextModel", "Siglip2TextModel", "T5EncoderModel", "BertModel",
    "RobertaModel", "XLMRobertaModel", "DistilBertModel", "MPNetModel",
)  # fmt: skip
"""Class names that model_index.json may give a text encoder."""
PIPELINE_LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "onnxruntime")
"""Libraries that it may name for other parts; anything else is a module in the folder, which would be code of its own."""


@dataclass(frozen=True)
class Parts:
    """Where the parts of one text encoder lie."""

    root: Path
    """The folder that was given or that holds the parts: nothing outside is read."""
    weights: Path
    """Folder of config and weights."""
    tokenizer: Path
    """Folder of the tokenizer."""
    file: Path | None = None
    """The weights, or the index of them, where they are not the ones that loaders take first."""
    alone: bool = False
    """The file was given by itself: what lies beside it are other models."""


def full_path(model: str) -> str:
    """A folder, a file or a part of a file by its full path, a hub id as it is."""
    try:
        return str(Path(model).resolve()) if is_path(model) else model
    except (OSError, ValueError):  # a name too long for a path
        return model


def find_folder(model: str | Path) -> Path:
    """The folder of a model, fetched from the hub where `model` is no path."""
    folder = located(model)
    if not folder.is_dir():
        raise InputError(what_file(folder))
    return folder


def find_parts(model: str | Path) -> Parts:
    """Weights and tokenizer of a text encoder, a CLIP model, a pipeline with one encoder, or one part of a pipeline."""
    if is_weights(file := located(model)):
        folder = file.parent
        if (folder / "model_index.json").exists():  # an encoder in a folder that is a pipeline too
            return Parts(folder, folder, _tokenizer_beside(folder), file)
        return replace(find_parts(folder), file=file)
    folder = find_folder(model)
    if (folder / "model_index.json").exists():
        encoders = pipeline_encoders(folder)
        if len(encoders) > 1:
            raise InputError(f"{folder} holds {len(encoders)} text encoders; name one of them, such as {folder / encoders[1]}.")
        return _part(folder, encoders[0])
    if (folder.parent / "model_index.json").exists() and not any(folder.glob("token*")):
        encoders = pipeline_encoders(folder.parent)
        if folder.name in encoders or is_encoder_folder_name(folder.name):
            return _part(folder.parent, folder.name)
    return _sentence_parts(folder) or Parts(folder, folder, folder)


def _sentence_parts(folder: Path) -> Parts | None:
    """An encoder in a folder of its own below the root of a sentence encoder, whichever of the two was given."""
    inner = None if (folder / "config.json").exists() else _transformer_of(folder)
    if inner:
        return Parts(folder, inner, inner)
    with suppress(InputError):  # what lies above may be anything
        if _transformer_of(folder.parent) == folder:
            return Parts(folder.parent, folder, folder)
    return None


def _transformer_of(root: Path) -> Path | None:
    """The folder of its own that a sentence encoder has its encoder in; None where it has none."""
    places = [place for name, place in sentence_modules(root, Reader(root)) if name.endswith(".Transformer") and place]
    return next((root / place for place in places if (root / place / "config.json").is_file()), None)


def sentence_modules(root: Path, reader: Reader) -> list[tuple[str, str]]:
    """Class and folder of every module that a sentence encoder is made of; none where nothing says so."""
    file = root / "modules.json"
    content = reader.json(file) if file.is_file() else []
    found = []
    for module in content if isinstance(content, list) else [None]:
        name, place = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(name, str) or not isinstance(place, str) or ".." in Path(place).parts or Path(place).is_absolute():
            raise InputError(f"{file} is no list of modules with folders below it; fetch the model again.")
        found.append((name, place))
    return found


def _tokenizer_beside(folder: Path) -> Path:
    """A folder's own tokenizer, or the one of the pipeline that it is too."""
    return folder if any(folder.glob("tokenizer*.json")) or not (folder / "tokenizer").is_dir() else folder / "tokenizer"


def is_weights(file: Path) -> bool:
    """Whether a path names weights, or an index of weights, beside the config that they belong to."""
    try:
        named = re.search(r"\.safetensors$|\.safetensors\.index.*\.json$", file.name)
        return bool(named) and file.is_file() and (file.parent / "config.json").is_file()
    except (OSError, ValueError):  # a name too long for a path
        return False


def is_encoder_folder_name(name: str) -> bool:
    """Whether pipelines call a text encoder like this."""
    return re.fullmatch(r"text_encoder(_\d)?", name) is not None


def _part(pipeline: Path, encoder: str) -> Parts:
    """An encoder of a pipeline with its tokenizer: the one of like name, or the pipeline's only one."""
    alike = [encoder.replace("text_encoder", "tokenizer"), encoder.replace("encoder", "tokenizer"), f"{encoder}_tokenizer"]
    there = [name for name in alike if name != encoder and (pipeline / name).is_dir()]
    return Parts(
        pipeline, pipeline / encoder, pipeline / (there or [alike[0] if is_encoder_folder_name(encoder) else "tokenizer"])[0]
    )


def matching_part(anchor: str, suspect: str) -> str:
    """The encoder of an anchor pipeline that stands where the suspect stands in its own."""
    place, folder = Path(suspect), located(anchor)
    name = place.parent.name if is_weights(place) else place.name
    several = (folder / "model_index.json").exists() and len(names := pipeline_encoders(folder)) > 1
    return f"{anchor}/{name}" if several and name in names else anchor


def pipeline_encoders(folder: Path) -> list[str]:
    """Names of the text encoders in a diffusers folder; its index is checked, so that no class of a stranger is loaded."""
    file = folder / "model_index.json"
    check_files(folder, folder)
    index = index_of(folder)
    if not isinstance(index.get("_class_name", ""), str):
        raise InputError(f"{file} names a pipeline class of its own, which would be code; give a plain diffusers folder.")
    found = []
    for name, entry in index.items():
        if not isinstance(entry, list) or name.startswith("_"):
            continue
        if len(entry) != 2 or not all(isinstance(part, str | None) for part in entry):
            raise InputError(f"{file}: the entry {name} is no pair of library and class; fetch the model again.")
        library, kind = entry
        if (is_encoder_folder_name(name) and kind is not None) or is_encoder_entry(name, entry):
            if library != "transformers" or kind not in PIPELINE_ENCODERS:
                known = ", ".join(PIPELINE_ENCODERS)
                raise InputError(f"{file} names the class {library}.{kind} for {name}; the scan knows {known}.")
            found.append(name)
        elif library not in (None, *PIPELINE_LIBRARIES):
            raise InputError(f"{file} takes {name} from {library}, which would be code; give a plain diffusers folder.")
    return sorted(found) or ["text_encoder"]


def index_of(pipeline: Path) -> dict:
    """What model_index.json says."""
    index = Reader(pipeline).json(pipeline / "model_index.json")
    if not isinstance(index, dict):
        raise InputError(f"{pipeline / 'model_index.json'} is no index of a pipeline; fetch the model again.")
    return index


def is_encoder_entry(name: str, entry: object) -> bool:
    """Whether an entry of model_index.json names a text encoder, whatever it is called."""
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return kind in PIPELINE_ENCODERS or (is_encoder_folder_name(name) and kind is not None)
