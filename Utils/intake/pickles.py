"""Pickled checkpoints as plain tensors.

torch's restricted unpickler builds tensors and plain containers and calls nothing that a file names; what trainers put beside
their tensors (callbacks, settings) is read as objects without a behaviour, and anything else is refused by its name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.intake.tensors import DTYPES

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "string_to_param")
"""Keys under which checkpoints keep their tensors."""
DEEPEST = 4
"""Wrappers in wrappers that are opened; a dict that holds itself has no end."""
TRAINERS = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "transformers", "diffusers", "accelerate")
"""Packages whose objects trainers keep beside the tensors."""
DATA = {
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode", "argparse.Namespace",
    "datetime.datetime",
}  # fmt: skip
"""What they write numbers and settings with."""
TIMES = 4
"""Tensors may take so many times the bytes of their file: two names of one table do, a view that repeats a number does not."""
ANOTHER = "take the model in safetensors form from where it was published"


class Inert:
    """Stands for a trainer's object: takes whatever it is given and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_pickle(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a file that torch.save wrote, each whole and on its own, and the names of what else is in it.

    Raises:
        InputError: it is no such file, names code, or holds no tensors by name.
    """
    stand_ins = [(Inert, name) for name in _named_objects(file)]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a pickle can be wrong in any way
        raise InputError(f"{file} is no checkpoint of plain tensors, or a damaged one; {ANOTHER}.") from error
    tensors, dropped = named_tensors(content)
    if not tensors:
        raise InputError(f"{file} holds no tensors by name; {ANOTHER}.")
    if sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) > TIMES * file.stat().st_size:
        raise InputError(f"{file} holds tensors that are larger than itself; {ANOTHER}.")
    return _apart(tensors), dropped


def named_tensors(content: object) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name in what a checkpoint holds, out of their wrappers, and the names of everything else."""
    dropped: list[str] = []
    for _ in range(DEEPEST):
        inner = next((w for w in WRAPPERS if isinstance(content, dict) and isinstance(content.get(w), dict)), None)
        if inner is None:
            break
        dropped += [str(name) for name in content if name != inner]
        content = content[inner]
        if inner == "string_to_param" and set(content) == {"*"}:  # an embedding of a web UI; so it names them in safetensors
            content = {"emb_params": content["*"]}
    found = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and _is_plain(value)}
    return tensors, dropped + [str(name) for name in found if name not in tensors]


def _is_plain(value: object) -> bool:
    """Whether a value is a dense tensor of a format that safetensors files have."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and not value.is_quantized and value.dtype in DTYPES.values()


def _named_objects(file: Path) -> list[str]:
    """What a pickle asks for beside tensors, by its instructions, which are looked at and not followed.

    Raises:
        InputError: something of it is neither data nor a trainer's.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # an older format, which holds tensors only, or no checkpoint: to load it will say
        return []
    if code := sorted(name for name in named if name.split(".")[0] not in TRAINERS and name not in DATA):
        raise InputError(f"{file} asks for {code[0][:120]}, which is code and no weights, and was not run; {ANOTHER}.")
    return named


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in one piece that share no memory, as safetensors wants them."""
    seen, found = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found
