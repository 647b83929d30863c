"""Encoders from folders and hub ids, as files again, and what tells two of them apart."""

from __future__ import annotations

import copy
from collections.abc import Container
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers import PreTrainedModel

from Utils.basics.errors import InputError, told
from Utils.encoder.text_encoder import FilesRead, TextEncoder
from Utils.intake.folders import full_path
from Utils.intake.tokenizer import ENGLISH, PUT_THERE
from Utils.sources.find import source_of
from Utils.sources.lenders import Given


def load_encoder(model: str | Path, device: str | torch.device = "cpu", given: Given | None = None) -> TextEncoder:
    """Load the text encoder in a folder (text encoder, CLIP model or diffusers pipeline), in a single file, or of a hub id.

    Weights are read from safetensors only and nothing is executed.  given: what the user says beside the name.

    Raises:
        InputError: the input is no text encoder this project can judge; one sentence with the cure.
    """
    read, reader = source_of(model, given).load()
    read.tower.eval().requires_grad_(False).to(device)
    path = full_path(str(model))
    encoder = TextEncoder(read.tower, read.tokenizer, path, read.sha256, read.ignored, read.pooling)
    files = list(reader.read.values())
    encoder.files = FilesRead(read.parts, files, read.doubts, read.dtypes, read.tokenizer_files, read.notes)
    check_reading(encoder, read.parts.tokenizer)
    return encoder


def check_reading(encoder: TextEncoder, folder: Path) -> None:
    """Refuse a tokenizer whose texts do not stand where the scan looks: from the first position on, padding behind them."""
    try:
        context, first = encoder.context, encoder.tokenizer("a").input_ids
        ids, place = encoder.ids(ENGLISH), (encoder.begin, encoder.placeholder)
    except Exception as error:  # a tokenizer's settings can be wrong in any way
        raise InputError(f"{folder} holds no usable tokenizer{told(error)}; {PUT_THERE}.") from None
    if context < 8:
        raise InputError(f"{folder} leaves {context} positions for a text, too few for a prompt; restore its files.")
    shape, begins = (len(ENGLISH), context), ids[0, : len(first)].tolist()
    if (
        ids.shape != shape
        or begins != first
        or not (ids == encoder.eos).any(dim=1).all()
        or place[1] >= len(encoder.vocabulary)
    ):
        raise InputError(f"{folder}: the tokenizer does not pad texts behind their end; restore its files.")


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of the weights as they are now; a file's hash is of what they were."""
    whole = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())  # of whatever number format
    return whole.hexdigest()


def trainable_copy(encoder: TextEncoder, learning: Container[str] | None = None) -> TextEncoder:
    """A copy to train, with eager attention: its bfloat16 backward is the only one that is fast on a CPU.

    learning: names of the weights that are to learn; the others are the encoder's own, and frozen as it is.  None: all.
    """
    weights = dict(encoder.model.named_parameters())
    shared = {id(w): w for name, w in weights.items() if learning is not None and name not in learning}
    # the copy knows its family and size as the encoder does: training may put another model around the tower
    student = copy.copy(encoder)
    student.model, student.sha256, student._copies = copy.deepcopy(encoder.model, shared), "not saved yet", {}
    for name, weight in student.model.named_parameters():
        if learning is None or name in learning:
            weight.requires_grad_(True)
    student.model.set_attn_implementation("eager")
    return student


def save_encoder(encoder: TextEncoder, folder: Path) -> None:
    """Write an encoder and its tokenizer as a Hugging Face folder, half precision safetensors."""
    save_half(encoder.model, folder)
    encoder.tokenizer.save_pretrained(folder)


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """Write a single precision model as half precision safetensors that load in single precision unless told otherwise.

    transformers loads what the config asks for: half, and the model does not fit the other parts of a pipeline, which
    diffusers loads in single.
    """
    model.save_pretrained(folder, state_dict=copy.deepcopy(model).half().state_dict())


def same_shape(a: TextEncoder, b: TextEncoder) -> bool:
    """Whether two encoders can be compared feature by feature: same tensors, and texts that end with the same token.

    How their tokenizers read texts is another question (Utils/encoder/readings.py).
    """
    shapes = [{n: tuple(t.shape) for n, t in e.model.state_dict().items()} for e in (a, b)]
    return shapes[0] == shapes[1] and a.eos == b.eos


def comparable(suspect: TextEncoder, base: TextEncoder) -> bool:
    """`same_shape`, but for the number of tokens: words may be added to a base, and a table padded (Utils/encoder/added.py)."""
    shapes = [{n: tuple(t.shape) for n, t in e.model.state_dict().items()} for e in (suspect, base)]
    rows = len(suspect.vocabulary)
    if len(base.vocabulary) != rows:
        table = base.vocabulary.data_ptr()
        names = [n for n, t in base.model.state_dict().items() if t.data_ptr() == table]
        shapes[1] |= {n: (rows, *shapes[1][n][1:]) for n in names}
    return shapes[0] == shapes[1] and suspect.eos == base.eos and max(base.tokenizer.get_vocab().values()) < rows


def distance(a: TextEncoder, b: TextEncoder) -> float:
    """1 - cos of the token embedding tables of two encoders, of the rows that both have: fine-tuning moves them little."""
    shared = min(len(a.vocabulary), len(b.vocabulary))
    return 1 - F.cosine_similarity(a.vocabulary[:shared].flatten(), b.vocabulary[:shared].flatten(), dim=0).item()


def quiet_libraries() -> None:
    """Keep transformers' loading bars and load reports out of ours: what they report is checked by the loader."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device  # starts a GPU
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not usable here{told(error)}; try --device cpu.") from None


def dimensions(encoder: TextEncoder) -> dict:
    """What an encoder and its public base have in common whatever the weights, as configs/anchors.yaml has it."""
    config = encoder.model.config
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "width": encoder.width,
        "positions": getattr(config, "max_position_embeddings", None),
        "vocabulary": len(encoder.vocabulary),
    }


def fingerprint(encoder: TextEncoder) -> dict:
    """What a calibration belongs to: the dimensions, and instead of the table's positions as many as are read."""
    found = dimensions(encoder)
    del found["positions"]
    return found | {"context": encoder.context}
