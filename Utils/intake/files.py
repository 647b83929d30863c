"""What lies in a stranger's folder: links, pipes and oversized JSON are refused, files that are no encoder get their cure."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from Utils.basics.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON = 16 << 20
"""Bytes; the largest public config files have some kilobytes."""


def check_files(folder: Path, root: Path) -> None:
    """Refuse files that lead out of the model folder or are none; the hub cache's own snapshot links are the exception."""
    inside = root.resolve()
    blobs = [parent.parent / "blobs" for parent in (inside, *inside.parents) if parent.name == "snapshots"]
    try:
        files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")] if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); make it readable for this user.") from None
    for file in files:
        real = file.resolve()
        if not real.is_relative_to(inside) and real.parent not in blobs:
            raise InputError(f"{file} is a link that leads out of the model folder; put the file itself there.")
        if not real.is_file() and not real.is_dir():
            raise InputError(f"{file} is no ordinary file (a pipe, a device or a broken link); fetch the model again.")
        if real.is_file() and not os.access(real, os.R_OK):
            raise InputError(f"{file} cannot be read by this user; make it readable.")


def what_file(file: Path) -> str:
    """Why a file cannot be scanned, and what to do with it."""
    if file.suffix.lower() in PICKLES:
        return pickle_sentence(file)
    if file.suffix == ".safetensors" and file.is_file() and (sentence := other_checkpoint(file)):
        return sentence
    return f"{file} is a file; give the folder that holds config.json and model.safetensors."


def pickle_sentence(file: Path) -> str:
    return (
        f"{file} is a pickle, which can run code when it is opened; convert it to safetensors "
        "on a machine you can lose (save_pretrained of its own loader writes model.safetensors)."
    )


def other_checkpoint(file: Path) -> str | None:
    """How to convert a single-file checkpoint or a LoRA; None where the file is neither."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError):
        return None
    if lora_names(names):
        return (
            f"{file} is a LoRA, which changes a base and is no encoder; fuse it first: pipe = DiffusionPipeline.from_pretrained"
            f"(BASE); pipe.load_lora_weights({str(file)!r}); pipe.fuse_lora(); pipe.unload_lora_weights(); "
            "pipe.save_pretrained(FOLDER), then scan FOLDER."
        )
    if single_file_names(names):
        return (
            f"{file} is a single-file checkpoint; convert it with diffusers: StableDiffusionPipeline.from_single_file"
            f"({str(file)!r}).save_pretrained(FOLDER), then scan FOLDER."
        )
    return None


def lora_names(names: list[str]) -> bool:
    """Whether tensors of these names are low-rank updates of a base."""
    return any(re.search(r"(^|[._])lora([._]|$)|\.lora_|lora_(up|down|A|B)\b", name) for name in names)


def single_file_names(names: list[str]) -> bool:
    """Whether tensors of these names are a whole pipeline in one file."""
    return any(name.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.")) for name in names)
