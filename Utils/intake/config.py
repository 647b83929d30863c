"""config.json of a text encoder: what the family's class knows is taken, everything else is left out and looked at.

A key that a loader obeys but this reading leaves out would make another encoder of the same folder.  Keys that are known to
change nothing are named here; of any other one the verdict cannot be "clean".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from Utils.basics.errors import InputError
from Utils.intake.families import FAMILIES, Family, is_family
from Utils.intake.files import PICKLES, gguf_sentence, pickle_sentence
from Utils.intake.reader import Reader

KEYS_WITHOUT_A_SAY = """
who made the file, and how it is written:
  _name_or_path _commit_hash architectures model_type transformers_version torch_dtype dtype name_or_path
what comes back beside the features, and what only a trainer or a generator reads:
  return_dict use_return_dict output_attentions output_hidden_states output_past torchscript use_cache problem_type
  finetuning_task task_specific_params num_labels id2label label2id classifier_dropout hidden_dropout_prob dropout
  attention_dropout attention_probs_dropout_prob dropout_rate qa_dropout seq_classif_dropout initializer_range
  initializer_factor gradient_checkpointing tf_legacy_loss logit_scale_init_value loss_type
  max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
  typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
  num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
  remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix
  decoder_start_token_id bos_token_id pad_token_id eos_token_id sep_token_id cls_token_id mask_token_id
of the other tower, or of a decoder:
  vision_config projection_dim projection_size vision_config_dict num_decoder_layers cross_attention_hidden_size
  tokenizer_class sentence_transformers n_positions
"""
MUTE = frozenset(word for line in KEYS_WITHOUT_A_SAY.splitlines() if line.startswith("  ") for word in line.split())
"""Keys without a say in the features of texts."""
ONE_VALUE = {
    "position_embedding_type": ("absolute",), "is_encoder_decoder": (True, False), "is_decoder": (False,),
    "add_cross_attention": (False,), "tie_encoder_decoder": (False,), "tie_word_embeddings": (True, False),
    "pruned_heads": ({},), "use_bfloat16": (False,), "chunk_size_feed_forward": (0,), "quantization_config": (None,),
    "_attn_implementation": ("eager", "sdpa", None), "attn_implementation": ("eager", "sdpa", None),
    "_attn_implementation_internal": ("eager", "sdpa", None), "_attn_implementation_autoset": (True, False),
    "_experts_implementation": (None,), "experts_implementation": (None,), "tie_weights_": (True,),
}  # fmt: skip
"""Keys of older and newer versions that say nothing only where they have one of these values."""
FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What an encoder can be run in; torch has other formats, such as float8, that it stores but does not add."""


@dataclass(frozen=True)
class EncoderConfig:
    """What a config.json says about the text tower."""

    family: Family
    values: dict
    """For the family's config class: nothing that it does not know."""
    doubts: list[str] = field(default_factory=list)
    """Keys that another loader may obey, one sentence each."""
    dtypes: tuple[str, ...] = ()
    """Number formats that it tells loaders to compute in."""

    @property
    def kind(self) -> str:
        return self.values["model_type"]


def read_config(folder: Path, reader: Reader | None = None) -> EncoderConfig:
    """config.json of an encoder of a known family.

    Raises:
        InputError: there is none, it cannot be read, or it is of no known family.
    """
    file, reader = folder / "config.json", reader or Reader(folder)
    if not folder.is_dir() or not file.exists():
        raise InputError(_no_config(folder))
    config = reader.json(file)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not is_family(kind):
        raise InputError(f"{file} names the model type {repr(kind)[:80]}; the scan knows {', '.join(FAMILIES)}.")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds adapter_config.json: merge the adapter into its base and save the whole model.")
    family, text = FAMILIES[kind], config.get("text_config")
    for part in (config, text) if isinstance(text, dict) else (config,):
        if part.get("quantization_config") is not None:
            raise InputError(f"{file} asks for quantised weights; give the encoder in full or half precision.")
    if not _composite(family):
        values, doubts = _known(config, _own_keys(family.config), family, file.name)
        return EncoderConfig(family, values | {"model_type": kind}, doubts, _dtypes(file, config))
    if not isinstance(text, dict | None):
        raise InputError(f"{file}: text_config is no object; fetch the model again.")
    inner = family.config.sub_configs["text_config"]
    above, doubts = _known(
        {k: v for k, v in config.items() if k not in ("text_config", "text_config_dict")}, frozenset(), family, file.name
    )
    below, more = _known(text or {}, _own_keys(inner), family, f"{file.name}: text_config")
    doubts += more + _other_text_config(config.get("text_config_dict"), below, file.name)
    values = above | {"text_config": below, "model_type": kind}
    return EncoderConfig(family, values, doubts, _dtypes(file, config, text or {}))


def _no_config(folder: Path) -> str:
    if strays := sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        several = f"one of its files, such as {strays[0]}, or all of them with --models {folder}"
        which = several if len(strays) > 1 else f"the file itself: {strays[0]}"
        return f"{folder} holds no config.json; give {which}."
    if packed := sorted(folder.glob("*.gguf")) if folder.is_dir() else []:
        return gguf_sentence(packed[0])
    if folder.is_dir() and (folder / "adapter_config.json").exists():
        return f"{folder} is an adapter without its base; merge it into its base and save the whole model."
    if folder.is_dir() and (pickles := sorted(file for file in folder.iterdir() if file.suffix.lower() in PICKLES)):
        return pickle_sentence(pickles[0])
    if inner := [file.parent for file in sorted(folder.glob("*/config.json")) if is_encoder_config(file)]:
        return f"{folder} holds no config.json; give the folder of the text encoder in it, {inner[0]}."
    return f"{folder} holds no config.json; give the folder of a text encoder or of a pipeline."


def is_encoder_config(file: Path) -> bool:
    """Whether a config.json is that of a text encoder, or of a larger model that holds one."""
    try:
        config = Reader(file.parent).json(file)
    except InputError:
        return False
    return isinstance(config, dict) and is_family(config.get("model_type"))


def _composite(family: Family) -> bool:
    return "text_config" in (getattr(family.config, "sub_configs", None) or {})


@cache
def _own_keys(kind: type) -> frozenset[str]:
    """What a config class knows and configs of other kinds do not."""
    return frozenset(kind().to_dict()) - frozenset(PreTrainedConfig().to_dict())


def _known(config: dict, own: frozenset[str], family: Family, where: str) -> tuple[dict, list[str]]:
    """The keys that the class knows, and a doubt for every other one that may say something."""
    values, doubts = {name: value for name, value in config.items() if name in own}, []
    aliases = getattr(family.config, "attribute_map", {})
    for name, value in config.items():
        same = name in aliases and value == config.get(aliases[name])
        mute = name in own or name in MUTE or same or any(value is v or value == v for v in ONE_VALUE.get(name, ()))
        if not mute:
            doubts.append(f"{where}: {name[:80]} is a key that other loaders may obey")
    return values, doubts


def _other_text_config(other: object, taken: dict, where: str) -> list[str]:
    """CLIPConfig lets text_config_dict overrule text_config, CLIPTextConfig does not: they have to agree."""
    if not isinstance(other, dict):
        return [] if other is None else [f"{where}: text_config_dict is no object"]
    kind = FAMILIES["clip"].config.sub_configs["text_config"]
    usual = kind().to_dict()
    differing = [k for k in _own_keys(kind) & other.keys() - MUTE if other[k] != taken.get(k, usual[k])]
    return [f"{where} has another {name} in text_config_dict than in text_config" for name in sorted(differing)]


def _dtypes(file: Path, *parts: dict) -> tuple[str, ...]:
    """Number formats that a config names, at whatever level."""
    named = [part.get(name) for part in parts for name in ("dtype", "torch_dtype")]
    formats = tuple(dict.fromkeys(name.removeprefix("torch.") for name in named if isinstance(name, str)))
    if wrong := [name for name in formats if getattr(torch, name, None) not in FORMATS]:
        raise InputError(f"{file} names the number format {wrong[0][:80]!r}, which no encoder runs in; fetch the model again.")
    return formats
