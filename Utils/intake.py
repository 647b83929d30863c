"""Intake: what is taken from a stranger's model folder, and everything that is refused before it can do harm.

Nothing in a folder is executed, nothing outside it is read, and what config.json promises is compared with the headers
of the safetensors files before any memory is taken for weights.  Every refusal is one sentence with the cure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
    Siglip2Config,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipConfig,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LEGACY_EOS = 2
"""What old CLIP configs say for end of text; transformers then pools at the highest token id."""
BUFFERS = ("position_ids", "token_type_ids")
"""Known tensors that are no weights: old checkpoints carry them, new ones do not."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats of weights, as safetensors headers name them."""
MAX_JSON, MAX_TOKENIZER = 16 << 20, 256 << 20
"""Bytes; the largest public config files have some kilobytes, the largest tokenizers some tens of megabytes."""
TEXTS = (".json", ".txt", ".model", ".jinja")
"""Files that configs and tokenizers are made of."""
POOLING = "1_Pooling"
"""Where sentence encoders say how they summarise."""
MAX_GROWTH = 4096
"""How much longer the replacements of a tokenizer may make a text; public ones make it no longer than four times."""
PIPELINE_ENCODERS = (
    "CLIPTextModel", "CLIPTextModelWithProjection", "SiglipTextModel", "Siglip2TextModel", "T5EncoderModel", "BertModel",
    "RobertaModel", "XLMRobertaModel", "DistilBertModel", "MPNetModel",
)  # fmt: skip
"""Class names that model_index.json may give a text encoder."""
PIPELINE_LIBRARIES = ("diffusers", "transformers", "stable_diffusion", "onnxruntime")
"""Libraries that it may name for other parts; anything else is a module in the folder, which would be code of its own."""
CODE_KEYS = (
    "auto_map", "custom_pipelines", "_attn_implementation", "attn_implementation", "_attn_implementation_internal",
    "_experts_implementation", "experts_implementation", "_commit_hash", "_name_or_path", "torchscript",
    "num_labels", "id2label", "label2id", "problem_type",
)  # fmt: skip
"""Config keys that could fetch code (attention kernels come from the hub by name), take memory without end (transformers
names every label) or that only a trainer needs."""


class InputError(Exception):
    """Something the user gave cannot be scanned.  The message is one sentence with the cure."""


@dataclass(frozen=True)
class Family:
    """What has to be known about one kind of text encoder; the rest is read from tokenizer and config."""

    tower: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    prefix: str
    """What checkpoints of larger models put before the tower's tensor names."""
    causal: bool = False
    """A position sees the earlier ones only."""
    masks: bool = False
    """Padding is hidden by an attention mask."""
    head: bool = True
    """The model summarises a text itself; otherwise the features of its tokens are averaged."""
    options: tuple[tuple[str, bool], ...] = ()
    """Further arguments of the tower's class."""

    @property
    def padding_free(self) -> bool:
        """Whether what stands behind the end of text changes nothing before it."""
        return self.causal or self.masks


_HEADLESS = (("add_pooling_layer", False),)  # sentence encoders average, and many files have no pooling layer
FAMILIES = {
    "clip": Family(CLIPTextModel, CLIPConfig, "text_model.", causal=True),
    "clip_text_model": Family(CLIPTextModel, CLIPTextConfig, "text_model.", causal=True),
    "siglip": Family(SiglipTextModel, SiglipConfig, "text_model."),
    "siglip_text_model": Family(SiglipTextModel, SiglipTextConfig, "text_model."),
    "siglip2": Family(Siglip2TextModel, Siglip2Config, "text_model."),
    "siglip2_text_model": Family(Siglip2TextModel, Siglip2TextConfig, "text_model."),
    "bert": Family(BertModel, BertConfig, "bert.", masks=True, head=False, options=_HEADLESS),
    "roberta": Family(RobertaModel, RobertaConfig, "roberta.", masks=True, head=False, options=_HEADLESS),
    "xlm-roberta": Family(XLMRobertaModel, XLMRobertaConfig, "roberta.", masks=True, head=False, options=_HEADLESS),
    "mpnet": Family(MPNetModel, MPNetConfig, "mpnet.", masks=True, head=False, options=_HEADLESS),
    "distilbert": Family(DistilBertModel, DistilBertConfig, "distilbert.", masks=True, head=False),
    "t5": Family(T5EncoderModel, T5Config, "", masks=True, head=False),
}
"""model_type in config.json -> the family."""


# ------------------------------------------------------------------------------------------------------ finding parts
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
        raise InputError(_what_file(folder))
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


def _what_file(file: Path) -> str:
    """Why a file cannot be scanned, and what to do with it."""
    if file.suffix.lower() in PICKLES:
        return _pickle(file)
    if file.suffix == ".safetensors" and file.is_file() and (sentence := _other_checkpoint(file)):
        return sentence
    return f"{file} is a file; give the folder that holds config.json and model.safetensors."


def _pickle(file: Path) -> str:
    return (
        f"{file} is a pickle, which can run code when it is opened; convert it to safetensors "
        "on a machine you can lose (save_pretrained of its own loader writes model.safetensors)."
    )


def _other_checkpoint(file: Path) -> str | None:
    """How to convert a single-file checkpoint or a LoRA; None where the file is neither."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError):
        return None
    if any(re.search(r"(^|[._])lora([._]|$)|\.lora_|lora_(up|down|A|B)\b", name) for name in names):
        return (
            f"{file} is a LoRA, which changes a base and is no encoder; fuse it first: pipe = DiffusionPipeline.from_pretrained"
            f"(BASE); pipe.load_lora_weights({str(file)!r}); pipe.fuse_lora(); pipe.save_pretrained(FOLDER), then scan FOLDER."
        )
    if any(name.startswith(("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders.")) for name in names):
        return (
            f"{file} is a single-file checkpoint; convert it with diffusers: StableDiffusionPipeline.from_single_file"
            f"({str(file)!r}).save_pretrained(FOLDER), then scan FOLDER."
        )
    return None


# ---------------------------------------------------------------------------------------------------- files and JSON
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


def read_json(file: Path) -> object:
    """What a JSON file of a model says; files no config can be as large as are not read."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError(f"{file.stat().st_size} bytes are no config")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({first_line(error)}); fetch the model again.") from None


def first_line(error: BaseException) -> str:
    """The first line of an error, short enough for one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def read_config(folder: Path) -> dict:
    """config.json of an encoder of a known family, without what could fetch code."""
    file = folder / "config.json"
    if not folder.is_dir() or not file.exists():
        for stray in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            if sentence := _other_checkpoint(stray):
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
            raise InputError(_pickle(folder / pickles[0]))
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
    raise InputError(_other_checkpoint(files[0]) or f"{folder} holds no {name}.safetensors; give the weights their usual name.")


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


def load_tower(folder: Path) -> tuple[PreTrainedModel, Family, list[Path], list[str]]:
    """The text tower in a folder, in single precision.  -> tower, family, its files, names of tensors that are no part of it"""
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]
    files, variant = weight_files(folder)
    stored = read_headers(files)
    parsed = parse_config(config, folder, stored)
    check_layout(family, parsed, folder, stored)
    try:
        tower, info = family.tower.from_pretrained(
            folder, config=parsed, dtype=torch.float32, use_safetensors=True, variant=variant,
            output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True, **dict(family.options),
        )  # fmt: skip
    except Exception as error:  # a config can be wrong in any way
        raise InputError(_unloadable(folder, family, error)) from None
    return tower, family, files, check_tensors(tower, info, folder, stored, family)


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


def digest_of(files: list[Path]) -> str:
    """SHA-256 of the weight files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files_digest(model: str) -> str:
    """SHA-256 of everything an encoder is made of: weights, config, tokenizer and pooling."""
    parts = find_parts(model)
    for folder in {parts.weights, parts.tokenizer}:
        check_files(folder, parts.root)
    there = {file for folder in (parts.weights, parts.tokenizer) for file in folder.iterdir()}
    there.add(parts.root / POOLING / "config.json")
    small = [file for file in there if file.suffix in TEXTS and file.is_file()]
    return digest_of(weight_files(parts.weights)[0] + sorted(small))


# ---------------------------------------------------------------------------------------------------------- tokenizer
PROBES = ["a", "A photo of a dog.", "two words, 3 signs: zzzz é"]
"""Texts that two tokenizers have to read alike before their encoders are compared."""
ENGLISH = ["a", "the quick brown fox jumps over the lazy dog", "A photo of 3 dogs, and two cats."]
"""Texts in which nothing may pass for the end of text, or the scan would read no further than that."""


def ending(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text: end of text, or the separator of BERT-like tokenizers."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def load_tokenizer(folder: Path, tower: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, checked against the encoder; code of its own is refused."""
    _check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=tower.config, local_files_only=True, trust_remote_code=False
        )  # its own config.json is not read
        highest = max(tokenizer.get_vocab().values())
        eos, pad = ending(tokenizer), tokenizer.pad_token_id
        plain = tokenizer(ENGLISH, verbose=False).input_ids  # longer than the context of a tiny model, and may be
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for malformed files, and Rust panics past it
        raise InputError(f"{folder} holds no usable tokenizer ({first_line(error)}); put the tokenizer files there.") from None
    rows = tower.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise InputError(
            f"{folder}: the tokenizer has token ids up to {highest}, the encoder {rows} rows; they do not belong together."
        )
    # a false end of text would hide most of every prompt from the scan while the model itself works as before
    if eos is None or pad is None or any(ids.count(eos) != 1 or ids[-1] != eos for ids in plain):
        raise InputError(f"{folder}: the tokenizer does not end texts with its end-of-text token; restore its files.")
    expected = getattr(tower.config, "eos_token_id", None)
    if isinstance(tower, CLIPTextModel) and expected not in (eos, LEGACY_EOS):  # the others do not pool there
        raise InputError(f"{folder}: end of text is {eos} to the tokenizer and {expected} to the encoder; restore its files.")
    return tokenizer


def summary_position(root: Path) -> int | None:
    """Which position summarises a text where a sentence encoder's pooling says the first; None: the mean of all."""
    folder = root / POOLING
    check_files(folder, root)
    pooling = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return 0 if isinstance(pooling, dict) and pooling.get("pooling_mode_cls_token") is True else None


def _check_tokenizer_files(folder: Path) -> None:
    """Refuse tokenizer files that are larger than any, or whose replacements let a short text grow without end."""
    for file in folder.glob("*") if folder.is_dir() else ():
        if file.suffix in TEXTS and file.is_file() and file.stat().st_size > MAX_TOKENIZER:
            raise InputError(f"{file} is larger than any tokenizer; fetch the model again.")
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{folder} holds no usable tokenizer ({first_line(error)}); put the tokenizer files there."
            ) from None
        growth = 1
        for text in _contents(content):
            growth *= max(1, len(text))
        if growth > MAX_GROWTH:
            raise InputError(f"{file}: the tokenizer's replacements would let texts grow without end; fetch the model again.")


def _contents(tokenizer: object, depth: int = 16) -> Iterator[str]:
    """What the steps of a tokenizer.json put into a text (Replace, Prepend and the like)."""
    steps = [tokenizer.get(name) for name in ("normalizer", "pre_tokenizer")] if isinstance(tokenizer, dict) else []
    for _ in range(depth):
        nested = []
        for step in steps:
            if isinstance(step, dict):
                yield from (step[key] for key in ("content", "prepend", "replacement") if isinstance(step.get(key), str))
                nested += [part for value in step.values() if isinstance(value, list) for part in value]
        steps = nested
