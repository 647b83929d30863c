"""Where a policy may lie so that it is the team's and no stranger's: beside the models, never in what was downloaded."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants

from Utils.intake.files import PICKLES, TENSORS, TOKENIZER
from Utils.intake.hub import file_and_part, is_path

POLICY = "amber.yaml"
"""What a policy is called that is found without a flag."""
INDEXES = ("model_index.json", "modules.json", "adapter_config.json")
SETTINGS = (*INDEXES, "config.json", *TOKENIZER)
WEIGHTS = (*TENSORS, *PICKLES, ".gguf", ".onnx", ".msgpack", ".h5", ".pickle")
"""Files that say of a folder that it is a model, names and suffixes of all that models are made of."""


@dataclass(frozen=True)
class Place:
    """What the command line names: one model, a list of them, or a folder that holds them."""

    named: str
    many: bool = False


def policy_beside(place: Place) -> tuple[Path | None, tuple[str, ...]]:
    """The policy beside what was named, and a note on one that lies there and is not taken.

    Of a folder, a file or a list it lies in the folder that holds it, of a hub id in the working directory.
    """
    named = file_and_part(place.named)[0] if not place.many else place.named
    file = (Path(os.path.abspath(named)).parent if is_path(named) else Path.cwd()) / POLICY
    try:
        if not os.path.lexists(file):
            return None, ()
        why = None if file.is_file() else "it is no file"
        why = why or _stranger_s(file.parent) or _stranger_s(file.resolve().parent) or _inside(file, named)
    except (OSError, ValueError, RuntimeError):
        why = "its folder cannot be looked at"
    if why:
        return None, (f"{file} was not taken for the policy, as {why}; name your policy with --policy.",)
    return file, ()


def _inside(file: Path, named: str) -> str | None:
    """Whether a policy lies in what it would judge."""
    inside = is_path(named) and Path(named).is_dir() and file.resolve().is_relative_to(Path(named).resolve())
    return "it lies in what is to be judged" if inside else None


def _stranger_s(folder: Path) -> str | None:
    """Why a folder may have been written by whoever made a model; None where nothing speaks for it."""
    from Utils.intake.config import is_encoder_config  # and with it libraries that take seconds: only where a policy lies

    if any(name in SETTINGS or name.endswith(WEIGHTS) for name in map(str.lower, os.listdir(folder))):
        return "files of a model lie beside it"
    for outer in (folder, *folder.parents):
        if any((outer / name).exists() for name in INDEXES) or is_encoder_config(outer / "config.json"):
            return f"it lies in the model {outer}"
        if _downloaded(outer):
            return f"{outer} was fetched from the hub"
    return None


def _downloaded(folder: Path) -> bool:
    """Whether a folder is a repository of the hub, by what its programs leave there: cache, local copy or clone."""
    if folder.name.startswith("models--") or (folder / ".cache" / "huggingface" / "download").is_dir():
        return True
    with suppress(OSError):
        hosts = {urlparse(constants.ENDPOINT).netloc, "huggingface.co", "hf.co"}
        remotes = (folder / ".git" / "config").read_bytes()[: 1 << 16].decode("utf-8", "replace")
        return any(host and host in remotes for host in hosts)
    return False
