"""What lies in a stranger's folder: links, pipes and oversized JSON are refused, files that are no encoder get their cure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection
from itertools import count
from pathlib import Path

from safetensors import SafetensorError, safe_open

from Utils.basics.errors import InputError
from Utils.basics.files import typed_command

TENSORS = (".safetensors", ".sft")
"""Files of tensors that nothing can run from."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PRECISE = "take the model in half precision or FP8 safetensors from where it was published"
"""The cure for weights that are packed into fewer bits."""
WORD = re.compile(r"emb_params|clip_[lg]|t5xxl|<[^>]+>")
"""What the tensors of a textual inversion are called."""
PARAMETER = re.compile(r"\.\D|(^|[._])(weight|bias|scale|alpha|\w*embedding|\w*projection|lora\w*)$")
"""What the names of other tensors hold: modules, or what modules call theirs."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""What tokenizers are made of; nothing else in a folder is read for one."""
MAX_JSON = 16 << 20
"""Bytes; the largest public config files have some kilobytes."""


def check_files(folder: Path, root: Path) -> None:
    """Refuse files that lead out of the model folder or are none; the hub cache's own snapshot links are the exception."""
    try:
        files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")] if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); make it readable for this user.") from None
    for file in files:
        real = file.resolve()
        if leads_out(file, root):
            raise InputError(f"{file} is a link that leads out of the model folder; put the file itself there.")
        if not real.is_file() and not real.is_dir():
            raise InputError(f"{file} is no ordinary file (a pipe, a device or a broken link); fetch the model again.")
        if real.is_file() and not os.access(real, os.R_OK):
            raise InputError(f"{file} cannot be read by this user; make it readable.")


def leads_out(file: Path, root: Path) -> bool:
    """Whether a file lies outside of the model folder, links followed, and not where the hub's cache keeps what it links to."""
    inside, real = root.resolve(), file.resolve()
    blobs = [parent.parent / "blobs" for parent in (inside, *inside.parents) if parent.name == "snapshots"]
    return not real.is_relative_to(inside) and real.parent not in blobs


def what_file(file: Path) -> str:
    """Why a file cannot be scanned, and what to do with it."""
    if file.suffix.lower() in PICKLES:
        return pickle_sentence(file)
    return f"{file} is a file; give the folder that holds config.json and model.safetensors."


def pickle_sentence(file: Path) -> str:
    """Why a pickle is not opened, and the command that makes safetensors of it, as it can be typed here."""
    source = convertible(file)
    target = free_name(source)
    command = typed_command("Utils/convert.py", source, target)
    return (
        f"{file} is a pickle, which can run code when it is opened; convert it to safetensors, which runs nothing of it, "
        f"with `{command}`, then scan {shlex.quote(str(target))} instead."
    )


def convertible(pickle: Path) -> Path:
    """What has to be converted with a pickle so that it can be scanned: its pipeline, its folder, or nothing else."""
    folder = pickle.parent
    if (folder.parent / "model_index.json").is_file() and not any(folder.glob("token*")):
        return folder.parent
    return folder if any((folder / name).is_file() for name in ("config.json", "model_index.json")) else pickle


def free_name(source: Path) -> Path:
    """Where to put the safetensors form of a file or a folder: beside it, where nothing lies yet."""
    whole = source.absolute()
    if whole.parent.name == "snapshots":  # the hub's cache is nobody's to write to
        place = Path(whole.parent.parent.name.rpartition("--")[2])
    else:
        place = source if source.name else whole
    stem, suffix = (place.name, "-safetensors") if source.is_dir() else (place.stem, ".safetensors")
    names = (f"{stem}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    return next(place.with_name(name) for name in names if not place.with_name(name).exists())


def gguf_sentence(file: Path) -> str:
    """Why a GGUF file is not read."""
    return f"{file} is a GGUF file, made for another program, of packed weights; {PRECISE}."


def other_checkpoint(file: Path) -> str | None:
    """What to do with a single-file checkpoint or a LoRA in a folder; None where the file is neither."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError):
        return None
    if lora_names(names):
        return f"{file.parent} holds a LoRA, {file.name}; give the file itself, {file}, and its base with --anchor."
    if word_names(names):
        what = f"a textual inversion, {file.name}"
        return f"{file.parent} holds {what}; give the file itself, {file}, and its base with --anchor."
    if single_file_names(names):
        return f"{file.parent} holds a checkpoint, {file.name}; give the file itself: {file}."
    return None


def lora_names(names: list[str]) -> bool:
    """Whether tensors of these names are low-rank updates of a base."""
    return any(re.search(r"^lycoris_|(^|[._])lora([._]|$)|\.lora_|lora_(up|down|A|B)\b", name) for name in names)


def word_names(names: Collection[str]) -> bool:
    """Whether tensors of these names are words of a textual inversion; one alone may be called after any word."""
    alone = len(names) == 1 and not PARAMETER.search(next(iter(names)))
    return alone or (bool(names) and all(WORD.fullmatch(name) for name in names))


def single_file_names(names: list[str]) -> bool:
    """Whether tensors of these names are a whole pipeline in one file."""
    return any(name.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.")) for name in names)
