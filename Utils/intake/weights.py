"""The weights of a text tower: config and safetensors headers are compared before any memory is taken, then it is loaded.

Finding (`find_tower`), checking (`check_tower`) and loading (`load_tower`) are apart, so that other sources than a folder
can bring their own first step.  Nothing in a folder is executed; every refusal is one sentence with the cure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from Utils.basics.errors import InputError, first_line
from Utils.intake.families import FAMILIES, Family
from Utils.intake.files import MAX_JSON, PICKLES, other_checkpoint, pickle_sentence, read_json

BUFFERS = ("position_ids", "token_type_ids")
"""Known tensors that are no weights: old checkpoints carry them, new ones do not."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats of weights, as safetensors headers name them."""
CODE_KEYS = (
    "auto_map", "custom_pipelines", "_attn_implementation", "attn_implementation", "_attn_implementation_internal",
    "_experts_implementation", "experts_implementation", "_commit_hash", "_name_or_path", "torchscript",
    "num_labels", "id2label", "label2id", "problem_type",
)  # fmt: skip
"""Config keys that could fetch code (attention kernels come from the hub by name), take memory without end (transformers
names every label) or that only a trainer needs."""


def read_config(folder: Path) -> dict:
    """config.json of an encoder of a known family, without what could fetch code."""
    file = folder / "config.json"
    if not folder.is_dir() or not file.exists():
        for stray in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            if sentence := other_checkpoint(stray):
                raise InputError(sentence)
        if folder.is_dir() and (folder / "adapter_config.json").exists():
            raise InputError(f"{folder} is an adapter without its base; merge it into its base and save the whole model.")
        raise InputError(f"{folder} holds no config.json; give the folder of a text encoder or of a pipeline.")
    config = read_json(file)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{file} names the model type {repr(kind)[:80]}; the scan knows {', '.join(FAMILIES)}.")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds adapter_config.json: merge the adapter into its base and save the whole model.")
    text = config.get("text_config")
    for part in (config, text) if isinstance(text, dict) else (config,):
        if part.get("quantization_config") is not None:
            raise InputError(f"{file} asks for quantised weights; give the encoder in full or half precision.")
    cleaned = {name: value for name, value in config.items() if name not in CODE_KEYS}
    if isinstance(text, dict):
        cleaned["text_config"] = {name: value for name, value in text.items() if name not in CODE_KEYS}
    return cleaned


# ------------------------------------------------------------------------------------------------------------ weights
def weight_files(folder: Path, name: str = "model") -> tuple[list[Path], str | None]:
    """The safetensors files that are loaded from a folder, and their variant (fp16) where they are named for one."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        if pickles := sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES):
            raise InputError(pickle_sentence(folder / pickles[0]))
        raise InputError(f"{folder} holds no {name}.safetensors; fetch the weights in safetensors form.")
    for variant in (None, "fp16"):
        stem = f"{name}.{variant}" if variant else name
        whole, index = (
            folder / f"{stem}.safetensors",
            folder / f"{name}.safetensors.index{f'.{variant}' if variant else ''}.json",
        )
        indexed = _indexed(index, files) if index.exists() else []
        if whole.exists() or indexed:
            return [whole] if whole.exists() else indexed, variant  # as transformers chooses
    raise InputError(other_checkpoint(files[0]) or f"{folder} holds no {name}.safetensors; give the weights their usual name.")


def _indexed(index: Path, files: list[Path]) -> list[Path]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    wanted = set(map(str, names.values())) if isinstance(names, dict) else set()
    if not wanted or not wanted <= {f.name for f in files}:
        raise InputError(f"{index} names weights that are not beside it; fetch the model again.")
    return [file for file in files if file.name in wanted]


def read_headers(files: list[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> shape and number format, from the headers alone.

    safetensors itself refuses headers whose offsets overlap, leave holes or do not fit shapes and file size.
    """
    stored: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
            if length > MAX_JSON:
                raise SafetensorError(f"its header claims {length} bytes")
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping)
                    part = opened.get_slice(name)
                    stored[name] = tuple(part.get_shape()), str(part.get_dtype())
        except (SafetensorError, OSError, OverflowError, ValueError) as error:
            raise InputError(f"{file} is not a readable safetensors file ({first_line(error)}); fetch it again.") from None
    return stored


def parse_config(config: dict, folder: Path, stored: dict) -> PreTrainedConfig:
    """The text tower's config; what no file of this size can hold is refused before a model is laid out."""
    family = FAMILIES[config["model_type"]]
    try:
        parsed = family.config.from_dict(config)
        parsed = getattr(parsed, "text_config", parsed)
        layers, tensors = parsed.num_hidden_layers, len(stored)
        if not isinstance(layers, int) or layers < 1:
            raise ValueError("num_hidden_layers is below 1")
        if layers > tensors:
            raise ValueError(f"{layers} layers, but {tensors} tensors are stored")
        return parsed
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(folder, family, error)) from None


def _unloadable(folder: Path, family: Family, error: BaseException) -> str:
    return f"{folder} cannot be loaded as a {family.tower.__name__} ({first_line(error)}); fetch the model again."


def check_layout(family: Family, config: PreTrainedConfig, folder: Path, stored: dict) -> None:
    """Compare the tensors that config.json promises with the stored ones, on the meta device: no memory is taken."""
    try:
        with torch.device("meta"):
            tower = family.tower(config, **dict(family.options))
        promised = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
        tied = set(getattr(tower, "all_tied_weights_keys", None) or {})
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(folder, family, error)) from None
    found = {_plain(name, family.prefix): (name, *header) for name, header in stored.items()}
    missing = sorted(promised.keys() - found.keys() - tied)
    if missing and not (missing == ["shared.weight"] and tied & found.keys()):  # a T5 file may name its table either way
        first = missing[0]
        raise InputError(
            f"{folder}: {len(missing)} tensors of the text tower are missing, first {first}; fetch it again, or use its config."
        )
    for name in promised.keys() & found.keys():
        full, shape, kind = found[name]
        if shape != promised[name]:
            raise InputError(f"{folder}: tensor {full} has another shape than config.json says; use the matching config.")
        if kind not in FLOATS:
            raise InputError(f"{folder}: tensor {full} is stored as {kind}; save the encoder in full or half precision.")


def _plain(name: str, prefix: str) -> str:
    """A tensor's name in the tower itself: without the prefix of a larger model, and with today's names of layer norms."""
    return name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


@dataclass(frozen=True)
class FoundTower:
    """A text tower that was found and not looked at yet: its config and the files of its weights."""

    folder: Path
    family: Family
    config: dict
    files: list[Path]
    variant: str | None
    """fp16 where the files are named for it."""


@dataclass(frozen=True)
class CheckedTower:
    """A text tower whose headers hold what its config promises."""

    found: FoundTower
    config: PreTrainedConfig
    stored: dict[str, tuple[tuple[int, ...], str]]
    """Tensor name -> shape and number format."""


def find_tower(folder: Path) -> FoundTower:
    """The text tower in a folder."""
    config = read_config(folder)
    files, variant = weight_files(folder)
    return FoundTower(folder, FAMILIES[config["model_type"]], config, files, variant)


def check_tower(found: FoundTower) -> CheckedTower:
    """Compare config and headers; no memory is taken for weights."""
    stored = read_headers(found.files)
    config = parse_config(found.config, found.folder, stored)
    check_layout(found.family, config, found.folder, stored)
    return CheckedTower(found, config, stored)


def load_tower(checked: CheckedTower) -> tuple[PreTrainedModel, list[str]]:
    """The tower in single precision, and the names of tensors in its files that are no part of it."""
    found = checked.found
    try:
        tower, info = found.family.tower.from_pretrained(
            found.folder, config=checked.config, dtype=torch.float32, use_safetensors=True, variant=found.variant,
            output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True, **dict(found.family.options),
        )  # fmt: skip
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(found.folder, found.family, error)) from None
    return tower, check_tensors(tower, info, found.folder, checked.stored, found.family)


def check_tensors(tower: PreTrainedModel, info: dict, folder: Path, stored: dict, family: Family) -> list[str]:
    """Refuse a tower that is not wholly in the file; return the names of tensors that are no part of it."""
    if wrong := sorted(str(m[0] if isinstance(m, tuple) else m) for m in info["mismatched_keys"]):
        raise InputError(f"{folder}: tensor {wrong[0]} has another shape than config.json says; use the matching config.")
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder}: {len(missing)} tensors of the text tower are missing, first {missing[0]}; fetch it again.")
    inside_names = tower.state_dict().keys()
    unread = {n for n in stored if _plain(n, family.prefix) not in inside_names and not n.endswith(BUFFERS)}
    ignored = sorted(unread | set(info["unexpected_keys"]))  # transformers does not name all that it leaves out
    prefix = family.prefix
    own = {name.split(".")[0] for name in inside_names}
    for name in ignored:
        stem = name.removeprefix(prefix) if prefix else name
        inside = bool(prefix) and (name != stem or prefix + stem in stored)
        known = stem.endswith(BUFFERS) or (not family.head and stem.startswith("pooler."))
        if (inside or stem.split(".")[0] in own) and not known:
            raise InputError(f"{folder}: unknown tensor {name} in the text tower; this is not a plain encoder of its type.")
    for name, tensor in tower.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{folder}: tensor {name} holds NaN or infinite values; the model cannot work, fetch it again.")
    return ignored
