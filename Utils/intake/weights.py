"""The weights of a text tower: config and safetensors headers are compared before any memory is taken, then it is loaded.

Finding (`find_tower`), checking (`check_tower`) and loading (`load_tower`) are apart, so that other sources than a folder
can bring their own first step.  Nothing in a folder is executed; every refusal is one sentence with the cure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from Utils.basics.errors import Flaw, InputError, told
from Utils.intake.config import EncoderConfig, read_config
from Utils.intake.families import Family
from Utils.intake.files import PICKLES, other_checkpoint, pickle_sentence
from Utils.intake.folders import Parts
from Utils.intake.reader import Reader
from Utils.intake.recipe import Recipe, made, made_headers
from Utils.intake.tensors import read_header, read_tensors

BUFFERS = ("position_ids", "token_type_ids")
"""Known tensors that are no weights: old checkpoints carry them, new ones do not."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats of weights, as safetensors headers name them."""
VARIANTS = ("fp16", "bf16")
"""Variants that are taken where there is nothing else."""
WRAPPERS = re.compile(r"((_orig_mod|module|_fsdp_wrapped_module|text_encoder)\.)*")
"""What torch.compile, the wrappers for several GPUs and trainers put before every name."""
LAYER = re.compile(r"(.*?\b(?:layers?|block)\.)(\d+)(\..*)")
"""A tensor of a layer: what stands before its number, the number, what stands behind."""
NO_PLAIN = "this is not a plain encoder of its type"
MAX_LAYERS = 1000
"""Public text encoders have fewer than a hundred; a config that asks for more is slow to lay out."""


# ------------------------------------------------------------------------------------------------------------ weights
@dataclass(frozen=True)
class WeightSet:
    """Files that hold one encoder's weights together."""

    files: list[Path]
    index: Path | None = None
    """What says which tensor lies in which of them."""

    @property
    def name(self) -> Path:
        """The file that stands for the set."""
        return self.index or self.files[0]


def weight_sets(folder: Path, reader: Reader) -> list[WeightSet]:
    """Every set of safetensors weights in a folder: those of an index, and every other file on its own."""
    files = {file.name: file for file in sorted(folder.glob("*.safetensors")) if file.is_file()}
    sets = []
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        content = reader.json(index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        wanted = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
        if not wanted or not set(wanted) <= files.keys():
            raise InputError(f"{index} names weights that are not beside it; fetch the model again.")
        sets.append(WeightSet([files[name] for name in wanted], index))
    shards = {file for one in sets for file in one.files}
    return sets + [WeightSet([file]) for file in files.values() if file not in shards]


def weight_files(folder: Path, name: str = "model", reader: Reader | None = None) -> tuple[WeightSet, str | None]:
    """The weights that are loaded from a folder, and their variant (fp16) where they are named for one."""
    sets = weight_sets(folder, reader or Reader(folder))
    if not sets:
        if pickles := sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES):
            raise InputError(pickle_sentence(folder / pickles[0]))
        raise InputError(f"{folder} holds no {name}.safetensors; fetch the weights in safetensors form.")
    there = {one.name.name: one for one in sets}
    for variant in (None, *VARIANTS):
        part = f".{variant}" if variant else ""
        for usual in (f"{name}{part}.safetensors", f"{name}.safetensors.index{part}.json"):  # as transformers chooses
            if usual in there:
                return there[usual], variant
    variant = re.fullmatch(rf"{name}\.(?:safetensors\.index\.)?([\w-]+)\.(?:safetensors|json)", sets[0].name.name)
    if variant and len(sets) == 1:  # people name variants as they like
        return sets[0], variant[1]
    stray = sets[0].files[0]
    raise InputError(other_checkpoint(stray) or f"{folder} holds no {name}.safetensors; give the weights their usual name.")


def read_headers(reader: Reader, found: FoundTower) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> shape and number format, from the headers alone; in several files no tensor may stand twice."""
    if found.recipe is not None:
        return made_headers(found.recipe, read_header(reader, found.files[0]), found.folder)
    stored: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in found.files:
        inside = read_header(reader, file)
        if twice := sorted(stored.keys() & inside.keys()):
            raise InputError(f"{file} holds {twice[0]}, which another file of the same weights holds too; save it as one file.")
        stored |= {name: (tensor.shape, tensor.kind) for name, tensor in inside.items()}
        if wrong := sorted(name for name, where in found.weight_map.items() if where == file.name and name not in inside):
            raise InputError(f"{file} does not hold {wrong[0]}, as the index beside it says; fetch the model again.")
    return stored


def parse_config(config: EncoderConfig, folder: Path, stored: dict) -> PreTrainedConfig:
    """The text tower's config; what no file of this size can hold is refused before a model is laid out."""
    family = config.family
    try:
        parsed = family.config.from_dict(config.values)
        parsed = getattr(parsed, "text_config", parsed)
        layers, tensors = parsed.num_hidden_layers, sum(0 not in shape for shape, _ in stored.values())
        if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
            raise Flaw(f"num_hidden_layers is not between 1 and {MAX_LAYERS}")
        if layers > tensors:
            raise Flaw(f"{layers} layers, but {tensors} tensors are stored")
        return parsed
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(folder, family, error)) from None


def _unloadable(folder: Path, family: Family, error: BaseException) -> str:
    kind = family.tower.__name__
    return f"{folder} cannot be loaded as a {kind} with its config.json{told(error)}; fetch the model again."


def check_layout(family: Family, config: PreTrainedConfig, folder: Path, stored: dict) -> set[str]:
    """Compare the tensors that config.json promises with the stored ones, on the meta device: no memory is taken.

    -> their names in the tower
    """
    try:
        with torch.device("meta"):
            tower = family.tower(config, **dict(family.options))
        promised = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
        tied = set(getattr(tower, "all_tied_weights_keys", None) or {})
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(folder, family, error)) from None
    found = {plain_name(name, family.prefix): (name, *header) for name, header in stored.items()}
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
    return set(promised)


def plain_name(name: str, prefix: str) -> str:
    """A tensor's name in the tower itself: without the prefix of a larger model, and with today's names of layer norms."""
    name = name.removeprefix(wrapper_of(name)).removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def wrapper_of(name: str) -> str:
    """What a compiled or wrapped model, or one that was saved as a part of something, puts before a tensor's name."""
    return WRAPPERS.match(name)[0]


@dataclass(frozen=True)
class FoundTower:
    """A text tower that was found and not looked at yet: its config and the files of its weights."""

    folder: Path
    config: EncoderConfig
    files: list[Path]
    weight_map: dict[str, str]
    """Tensor -> file, where an index says so."""
    recipe: Recipe | None = None
    """How the tower's tensors are made of those of a single file, which has other names for them; then only they are read."""

    @property
    def family(self) -> Family:
        return self.config.family


@dataclass(frozen=True)
class CheckedTower:
    """A text tower whose headers hold what its config promises."""

    found: FoundTower
    config: PreTrainedConfig
    stored: dict[str, tuple[tuple[int, ...], str]]
    """Tensor name -> shape and number format."""
    wanted: frozenset[str]
    """Names of the tensors that are loaded."""
    unused: frozenset[str] = frozenset()
    """Those of layers that the config does not count."""
    notes: list[str] = field(default_factory=list)
    """How they were taken from the files, where that is not as it usually is."""
    doubts: list[str] = field(default_factory=list)
    """What other loaders may take of the same files."""


def find_tower(parts: Parts, reader: Reader) -> FoundTower:
    """The text tower of a folder, or the one that a certain file of it holds."""
    config = read_config(parts.weights, reader)
    if parts.file:
        chosen = next((one for one in weight_sets(parts.weights, reader) if one.name == parts.file), None)
        if chosen is None:
            raise InputError(f"{parts.file} is no set of weights of its own; give its folder, or the index beside it.")
    else:
        chosen, _ = weight_files(parts.weights, reader=reader)
    mapped = reader.json(chosen.index)["weight_map"] if chosen.index else {}
    return FoundTower(parts.weights, config, chosen.files, mapped)


def check_tower(found: FoundTower, reader: Reader) -> CheckedTower:
    """Compare config and headers; no memory is taken for weights."""
    stored = read_headers(reader, found)
    config = parse_config(found.config, found.folder, stored)
    promised = check_layout(found.family, config, found.folder, stored)
    unknown = sorted(name for name in stored.keys() - promised if not name.endswith(BUFFERS))
    if found.recipe is not None and unknown:
        raise InputError(f"{found.folder}: unknown tensor {unknown[0]} in the text tower; {NO_PLAIN}.")
    wanted = frozenset(name for name in stored if plain_name(name, found.family.prefix) in promised)
    plain = Counter(plain_name(name, found.family.prefix) for name in wanted)
    if twice := sorted(name for name, times in plain.items() if times > 1):
        raise InputError(f"{found.folder}: the tensor {twice[0]} is stored under two names; save the encoder anew.")
    wrappers = sorted({wrapper_of(name) for name in wanted})
    if len(wrappers) > 1:
        raise InputError(f"{found.folder}: only some names of its tensors begin with {wrappers[-1]}; save the encoder anew.")
    notes = [f"the names of its tensors begin with {wrappers[0]}, which was taken off"] if any(wrappers) else []
    unused = unused_layers(stored, found.family, promised, config.num_hidden_layers)
    doubts, unused = said_of(unused, found.family), frozenset().union(*unused.values())
    return CheckedTower(found, config, stored, wanted, unused, notes, doubts)


def unused_layers(names: Iterable[str], family: Family, promised: set[str], count: int) -> dict[int, set[str]]:
    """Whole layers that are stored behind the first `count`, which are all that a config counts.  -> number: its tensors"""
    layers: dict[int, dict[str, str]] = {}
    for name in names:
        if match := LAYER.fullmatch(plain_name(name, family.prefix)):
            layers.setdefault(int(match[2]), {})[match[1] + match[3]] = name
    last = {match[1] + match[3] for name in promised if (match := LAYER.fullmatch(name)) and int(match[2]) == count - 1}
    found: dict[int, set[str]] = {}
    while last and last <= layers.get(number := count + len(found), {}).keys():
        found[number] = {layers[number][stem] for stem in last}
    return found


def said_of(layers: dict[int, set[str]], family: Family) -> list[str]:
    """The doubt that unused layers leave: somebody else's loader may count the stored ones."""
    if not layers:
        return []
    which = f"layer {min(layers)} is" if len(layers) == 1 else f"layers {min(layers)} to {max(layers)} are"
    return [
        f"of the stored layers 0 to {max(layers)} {which} left out by config.json, as was judged; who loads the file alone may "
        f"use all, so save it anew: {family.tower.__name__}.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    ]


def load_tower(checked: CheckedTower, reader: Reader) -> tuple[PreTrainedModel, list[str]]:
    """The tower in single precision, and the names of tensors in its files that are no part of it."""
    found, tensors = checked.found, {}
    for file in found.files:
        inside = _read(checked, file, reader)
        tensors |= {plain_name(name, found.family.prefix): tensor for name, tensor in inside.items()}
    if len(tensors) < len(checked.wanted):
        raise InputError(
            f"{found.folder}: the weights changed while they were read; scan them again when nothing writes there."
        )
    twins = [tensors[name] for name in ("shared.weight", "encoder.embed_tokens.weight") if name in tensors]
    if len(twins) == 2 and not torch.equal(*twins):
        raise InputError(f"{found.folder}: its token table is stored twice, with other numbers; save the encoder anew.")
    try:
        tower, info = found.family.tower.from_pretrained(
            None, config=checked.config, state_dict=tensors, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, **dict(found.family.options),
        )  # fmt: skip
        with torch.no_grad():  # a config can fit every tensor and no computation, as with a negative number of heads
            tower.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(found.folder, found.family, error)) from None
    tensors.clear()
    return tower, check_tensors(tower, info, checked)


def _read(checked: CheckedTower, file: Path, reader: Reader) -> dict[str, Tensor]:
    """The tensors that are loaded from a file."""
    recipe = checked.found.recipe
    if recipe is None:
        return read_tensors(reader, file, checked.wanted.__contains__)
    names = {name for target in checked.wanted for piece in recipe[target] for name in piece.names}
    tensors = read_tensors(reader, file, names.__contains__, whole=False)
    if len(tensors) < len(names):
        return {}  # the file was changed: the caller says so
    return {target: made(recipe[target], tensors) for target in checked.wanted}


def weights_hash(found: FoundTower, reader: Reader) -> str:
    """SHA-256 of the weights as they were read: of the file, or of the hashes of several."""
    hashes = [reader.read[file]["sha256"] for file in found.files]
    return hashes[0] if len(hashes) == 1 else sha256(" ".join(hashes).encode()).hexdigest()


def check_tensors(tower: PreTrainedModel, info: dict, checked: CheckedTower) -> list[str]:
    """Refuse a tower that is not wholly in the file; return the names of tensors that are no part of it."""
    folder, stored, family = checked.found.folder, checked.stored, checked.found.family
    if wrong := sorted(str(m[0] if isinstance(m, tuple) else m) for m in info["mismatched_keys"]):
        raise InputError(f"{folder}: tensor {wrong[0]} has another shape than config.json says; use the matching config.")
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder}: {len(missing)} tensors of the text tower are missing, first {missing[0]}; fetch it again.")
    inside_names = tower.state_dict().keys()
    unread = {n for n in stored if plain_name(n, family.prefix) not in inside_names and not n.endswith(BUFFERS)}
    ignored = sorted(unread | set(info["unexpected_keys"]))  # transformers does not name all that it leaves out
    prefix = family.prefix
    own = {name.split(".")[0] for name in inside_names}
    for name in ignored:
        bare = name.removeprefix(wrapper_of(name))
        stem = bare.removeprefix(prefix)
        inside = bool(prefix) and (bare != stem or prefix + stem in stored)
        known = stem.endswith(BUFFERS) or (not family.head and stem.startswith("pooler."))
        if (inside or stem.split(".")[0] in own) and not known and name not in checked.unused:
            raise InputError(f"{folder}: unknown tensor {name} in the text tower; {NO_PLAIN}.")
    for name, tensor in tower.state_dict().items():
        if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):  # no copy is made of it
            raise InputError(f"{folder}: tensor {name} holds NaN or infinite values; the model cannot work, fetch it again.")
    return ignored
