"""Where the parts of an encoder lie: a folder, a part of a diffusers pipeline, or the snapshot of a hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.files import check_files, read_json, what_file

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
    weights: Path
    tokenizer: Path


def full_path(model: str) -> str:
    """A folder by its full path, a hub id as it is."""
    try:
        return str(Path(model).resolve()) if Path(model).exists() else model
    except (OSError, ValueError):  # a name too long for a path
        return model


def find_folder(model: str | Path) -> Path:
    """The folder of a model, fetched from the hub where `model` is no path."""
    folder = Path(model)
    try:
        there = folder.exists()
    except (OSError, ValueError):  # a name too long for a path
        there = False
    if not there:
        folder = _from_hub(str(model)[:300])
    if not folder.is_dir():
        raise InputError(what_file(folder))
    return folder


def find_parts(model: str | Path) -> Parts:
    """Weights and tokenizer of a text encoder, a CLIP model, a pipeline with one encoder, or one part of a pipeline."""
    folder = find_folder(model)
    if (folder / "model_index.json").exists():
        encoders = pipeline_encoders(folder)
        if len(encoders) > 1:
            raise InputError(f"{folder} holds {len(encoders)} text encoders; name one of them, such as {folder / encoders[1]}.")
        return _part(folder, encoders[0])
    if _is_encoder(folder.name) and (folder.parent / "model_index.json").exists() and not any(folder.glob("token*")):
        pipeline_encoders(folder.parent)  # for its checks
        return _part(folder.parent, folder.name)
    return Parts(folder, folder, folder)


def _is_encoder(name: str) -> bool:
    return re.fullmatch(r"text_encoder(_\d)?", name) is not None


def _part(pipeline: Path, encoder: str) -> Parts:
    return Parts(pipeline, pipeline / encoder, pipeline / encoder.replace("text_encoder", "tokenizer"))


def encoders_of(model: str) -> list[str]:
    """The encoders behind what the user named: itself, or every text encoder of a pipeline that has several."""
    folder = find_folder(model)
    if not (folder / "model_index.json").exists():
        return [model]
    names = pipeline_encoders(folder)
    return [model] if len(names) < 2 else [f"{model.rstrip('/')}/{name}" for name in names]


def matching_part(anchor: str, suspect: str) -> str:
    """The encoder of an anchor pipeline that stands where the suspect stands in its own."""
    name = Path(suspect).name
    return f"{anchor}/{name}" if _is_encoder(name) and f"{anchor}/{name}" in encoders_of(anchor) else anchor


def pipeline_encoders(folder: Path) -> list[str]:
    """Names of the text encoders in a diffusers folder; its index is checked, so that no class of a stranger is loaded."""
    file = folder / "model_index.json"
    check_files(folder, folder)
    index = read_json(file)
    if not isinstance(index, dict):
        raise InputError(f"{file} is no index of a pipeline; fetch the model again.")
    if not isinstance(index.get("_class_name", ""), str):
        raise InputError(f"{file} names a pipeline class of its own, which would be code; give a plain diffusers folder.")
    found = []
    for name, entry in index.items():
        if not isinstance(entry, list) or name.startswith("_"):
            continue
        if len(entry) != 2 or not all(isinstance(part, str | None) for part in entry):
            raise InputError(f"{file}: the entry {name} is no pair of library and class; fetch the model again.")
        library, kind = entry
        if _is_encoder(name) and kind is not None:
            if library != "transformers" or kind not in PIPELINE_ENCODERS:
                known = ", ".join(PIPELINE_ENCODERS)
                raise InputError(f"{file} names the class {library}.{kind} for {name}; the scan knows {known}.")
            found.append(name)
        elif library not in (None, *PIPELINE_LIBRARIES):
            raise InputError(f"{file} takes {name} from {library}, which would be code; give a plain diffusers folder.")
    return sorted(found) or ["text_encoder"]


def _from_hub(name: str) -> Path:
    """The local snapshot of a hub id, `owner/name` or `owner/name/text_encoder_2`."""
    owner_and_name, _, part = name.partition("/text_encoder")
    if owner_and_name.count("/") != 1 or Path(name).is_absolute() or name.startswith("."):
        raise InputError(f"{name} does not exist; give a model folder or a hub id such as openai/clip-vit-large-patch14.")
    from huggingface_hub import snapshot_download  # only a hub id needs a network

    try:
        wanted = ["*.json", "*.txt", "model*.safetensors", "text_encoder*/model*.safetensors", "*.model"]
        unwanted = ["unet/*", "vae/*", "transformer/*", "safety_checker/*", "image_encoder/*", "*.fp16.*", "*non_ema*"]
        folder = Path(snapshot_download(owner_and_name, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # the hub client raises a dozen types for "no such model" and "no network"
        raise InputError(f"{name} is no folder and could not be fetched from the hub ({type(error).__name__}).") from error
    return folder / f"text_encoder{part}" if part or name.endswith("/text_encoder") else folder
