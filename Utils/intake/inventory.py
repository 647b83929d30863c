"""What lies beside the files that were judged: harmless things, and second things that somebody's loader could take.

A scan that calls an encoder clean while other weights, another config or a pickle of the same name lie in its folder has said
nothing about what other people load from there.  Everything in a model's folder is therefore accounted for, by kind; of each
second thing that was not judged there is a doubt, and with a doubt no verdict is "clean".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from Utils.basics.errors import InputError
from Utils.intake.families import is_family
from Utils.intake.files import TOKENIZER, lora_names, single_file_names
from Utils.intake.folders import Parts, index_of, is_encoder_entry
from Utils.intake.hub import not_fetched
from Utils.intake.reader import Reader
from Utils.intake.sentences import POOLING
from Utils.intake.tensors import read_header

MOST = 20_000
"""Entries of a folder tree that are looked at; there is doubt about one that holds more."""
REST = "..."
"""Stands for those that are not."""
DEEPEST = 12
HEAD = 4096
"""Bytes of a file that tell what it is."""
MAGIC = (
    (b"GGUF", "a GGUF file"), (b"\x89HDF", "an HDF5 file"), (b"\x93NUMPY", "a numpy array"), (b"PK\x03\x04", "a zip archive"),
    (b"\x80\x02", "a pickle"), (b"\x80\x03", "a pickle"), (b"\x80\x04", "a pickle"), (b"\x80\x05", "a pickle"),
    (b"\x89PNG", "picture"), (b"\xff\xd8\xff", "picture"), (b"GIF8", "picture"), (b"RIFF", "picture"), (b"BM", "picture"),
    (b"%PDF", "document"), (b"\x1f\x8b", "an archive"), (b"7z\xbc\xaf", "an archive"), (b"\x00\x00\x00\x18ftyp", "picture"),
    (b"\x00\x00\x00\x20ftyp", "picture"), (b"\x1aE\xdf\xa3", "picture"),
)  # fmt: skip
"""How a file begins -> what it is."""
UNJUDGED = {
    ".bin": "a pickle", ".pt": "a pickle", ".pth": "a pickle", ".ckpt": "a pickle", ".pkl": "a pickle", ".pickle": "a pickle",
    ".joblib": "a pickle", ".msgpack": "Flax weights", ".h5": "TensorFlow weights", ".keras": "TensorFlow weights",
    ".onnx": "an ONNX model", ".onnx_data": "ONNX weights", ".gguf": "a GGUF file", ".ggml": "a GGML file",
    ".tflite": "a TensorFlow Lite model", ".pb": "a TensorFlow graph", ".ot": "weights for Rust", ".npz": "numpy arrays",
    ".npy": "a numpy array", ".mlmodel": "a Core ML model", ".engine": "a TensorRT engine", ".plan": "a TensorRT engine",
}  # fmt: skip
"""Suffixes of weights that the scan cannot read."""
LEFTOVERS = re.compile(
    r"(training_args\.bin|optimizer(_\d+)?\.(bin|pt)|scheduler(_\d+)?\.(bin|pt)|scaler\.pt|rng_state(_\d+)?\.pth"
    r"|random_states_\d+\.pkl|events\.out\.tfevents\..*)"
)
"""What a trainer leaves, and no loader takes for an encoder."""
COMPONENTS = (
    "unet", "vae", "vqvae", "scheduler", "safety_checker", "feature_extractor", "image_encoder", "image_processor",
    "transformer", "prior", "decoder", "controlnet", "vae_decoder", "vae_encoder", "movq",
)  # fmt: skip
"""Usual names of a pipeline's other parts."""
SIBLINGS = ("vision_model.", "decoder.", "cls.", "lm_head.", "qformer.", "visual_projection.", "text_projection.")
"""What larger models put before the tensors of their other parts."""


@dataclass(frozen=True)
class Beside:
    """One thing that was not judged."""

    path: str
    kind: str
    doubt: bool = False
    """Whether somebody's loader could take it in place of what was judged."""


def look_around(parts: Parts, read: set[str], judged: set[Path], only: bool = False) -> list[Beside]:
    """Everything below the model's folder that was not read.

    read: paths relative to the root that were; judged: weights that have a report of their own or hold the same numbers;
    only: the user has named the weights that count, so that there is no doubt about others.
    """
    try:
        others, found = other_parts(parts), []
        for number, (inside, path) in enumerate(walk(parts.root)):
            if number >= MOST:
                found.append(Beside(REST, f"more than {MOST} entries, of which the rest was not looked at", True))
                break
            name = inside.as_posix()
            if name not in read and (beside := _what(parts, inside, path, others, judged)):
                found.append(beside)
        found += _left_on_the_hub(parts, others)
    except OSError as error:
        raise InputError(f"{parts.root} cannot be read ({error.strerror}); make it readable for this user.") from None
    return [Beside(b.path, b.kind) for b in found] if only else found


def _left_on_the_hub(parts: Parts, others: dict[str, str]) -> list[Beside]:
    """Weights in the repository of a snapshot that were not fetched with it: somebody's loader may fetch them."""
    found = []
    for place in map(PurePosixPath, not_fetched(parts.root)):
        other = len(place.parts) > 1 and (place.parts[0] in others or place.parts[0] in COMPONENTS)
        kind = UNJUDGED.get(place.suffix.lower(), "weights" if place.suffix == ".safetensors" else "")
        if kind and not other and not LEFTOVERS.fullmatch(place.name):
            found.append(Beside(place.as_posix(), f"{kind} on the hub, not fetched", doubt=True))
    return found


def other_parts(parts: Parts) -> dict[str, str]:
    """Folders of a pipeline that are no part of this encoder -> what they are."""
    if not (parts.root / "model_index.json").exists():
        return {}
    own = {parts.weights.name, parts.tokenizer.name}
    others = {}
    for name, entry in index_of(parts.root).items():
        if name in own or not isinstance(entry, list) or name.startswith("_"):
            continue
        if is_encoder_entry(name, entry):
            others[name] = "another encoder, with a report of its own"
        else:
            others[name] = "another part of the pipeline"
    return others


def walk(root: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Every file below a folder, by names; folders that are links are files here, and nobody follows them."""
    todo = [(root, PurePosixPath())]
    while todo:
        folder, inside = todo.pop()
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.is_dir(follow_symlinks=False) and len(inside.parts) < DEEPEST:
                todo.append((Path(entry.path), inside / entry.name))
            else:
                yield inside / entry.name, Path(entry.path)


def _what(parts: Parts, inside: PurePosixPath, path: Path, others: dict[str, str], judged: set[Path]) -> Beside | None:
    """What a file is, and whether there is doubt about it.  None: not worth a word (caches, repositories)."""
    top, name, place = inside.parts[0], inside.name, inside.as_posix()
    if top in (".git", ".cache", "__pycache__", ".huggingface") or name in (".gitattributes", ".gitignore", ".DS_Store"):
        return None
    if len(inside.parts) > 1 and top in others:
        return Beside(place, others[top])
    if path in judged:
        return Beside(place, "other weights, with a report of their own or the same numbers")
    if len(inside.parts) > 1 and top in COMPONENTS and (parts.root / "model_index.json").exists():
        return Beside(place, "another part of the pipeline")
    if path.is_dir():
        return Beside(place, "a folder that is a link or lies too deep", doubt=True)
    if name == "config.json" and inside.parent.parts and inside.parent.name != POOLING:
        return Beside(place, _other_config(path), doubt=False)
    if re.fullmatch(r"(config|tokenizer|tokenizer_config)\.\d.*\.json", name):
        return Beside(place, "another version of the config or the tokenizer", doubt=True)
    if name in TOKENIZER and path.parent not in (parts.weights, parts.tokenizer, parts.root):
        return Beside(place, "another tokenizer")
    if name in TOKENIZER and path.parent == parts.root != parts.tokenizer:
        return Beside(place, "a second tokenizer", doubt=True)
    if name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        return Beside(place, "an adapter", doubt=True)
    if LEFTOVERS.fullmatch(name):
        return Beside(place, "a trainer's leftover")
    return _by_content(parts, place, path)


def _other_config(path: Path) -> str:
    try:
        kind = Reader(path.parent).json(path)
    except InputError:
        return "a config that cannot be read"
    kind = kind.get("model_type") if isinstance(kind, dict) else None
    return "the config of another encoder" if is_family(kind) else "the config of something else"


def _by_content(parts: Parts, place: str, path: Path) -> Beside:
    """What a file is by its suffix and by how it begins."""
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            return Beside(place, "no ordinary file (a pipe, a device or a broken link)", doubt=suffix in UNJUDGED)
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return Beside(place, "a file that this user cannot read", doubt=True)
    if not path.resolve().is_relative_to(parts.root.resolve()) and path.resolve().parent.name != "blobs":
        return Beside(place, "a link that leads out of the model folder", doubt=suffix in (*UNJUDGED, ".safetensors"))
    if suffix == ".safetensors" or (len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30):
        return _other_tensors(place, path)
    for magic, kind in MAGIC:
        if head.startswith(magic):
            harmless = kind in ("picture", "document", "an archive")
            return Beside(place, kind if suffix not in UNJUDGED or harmless else UNJUDGED[suffix], doubt=not harmless)
    if is_text(head):
        return Beside(place, "text")
    return Beside(place, UNJUDGED.get(suffix, "a file of an unknown kind"), doubt=True)


def is_text(head: bytes) -> bool:
    """Whether the beginning of a file is text; of a longer file a character may be cut off at its end."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < HEAD or error.start < HEAD - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return not any(c < " " and c not in "\t\n\r\f\x1b" for c in text)


def _other_tensors(place: str, path: Path) -> Beside:
    """A safetensors file that was not judged: an adapter, a whole checkpoint, weights of an encoder, or of something else."""
    try:
        names = list(read_header(Reader(path.parent), path))
    except InputError:
        return Beside(place, "a damaged safetensors file", doubt=True)
    if lora_names(names):
        return Beside(place, "a LoRA", doubt=True)
    if single_file_names(names):
        return Beside(place, "a single-file checkpoint", doubt=True)
    inner = r"(token_embedding|word_embeddings|embed_tokens|shared)\.weight$"
    if any(re.search(inner, name) and not name.startswith(SIBLINGS) for name in names):
        return Beside(place, "weights of a text encoder", doubt=True)
    return Beside(place, "tensors of something else than a text encoder")
