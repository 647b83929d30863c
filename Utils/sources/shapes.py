"""The config of an encoder that has none: what its tensors' shapes tell, and the rest from its base or from custom."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.config import EncoderConfig
from Utils.intake.families import FAMILIES, LEGACY_EOS
from Utils.intake.reader import Reader
from Utils.sources.layouts import LONG, OPEN_CLIP, OPENAI, OWN, SD2, T5, Tower
from Utils.sources.lenders import Lender

HEAD = 64
"""Width of a head in every public CLIP."""
WIDE = (1024, 1280)
"""Widths of OpenCLIP's text towers, which compute with gelu, where a file has Hugging Face's names."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
HARMLESS = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name", "tokenizer_kwargs", "pad_id",
    "proj_type", "output_tokens", "eos_id",
}  # fmt: skip
"""Keys of OpenCLIP's text_cfg that change nothing, or that shapes tell."""
SD2_LAYERS = 23
"""Layers that Stable Diffusion 2.x uses, of 24."""
Headers = dict[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Guess:
    """A config, and in words where it comes from."""

    config: EncoderConfig
    source: str


def size_of(headers: Headers, form: str, file: object) -> tuple[int, int]:
    """Rows and width of the token table."""
    name = "shared.weight" if form == T5 and "shared.weight" in headers else "encoder.embed_tokens.weight"
    rows, width = _shape(headers, name if form == T5 else "embeddings.token_embedding.weight", 2, file)
    return rows, width


def layers_in(headers: Headers, file: object) -> int:
    """How many layers there are, none left out."""
    numbers = {int(n[1][:9]) for name in headers if (n := re.match(r"encoder\.(?:layers|block)\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise InputError(f"{file}: layers of its text encoder are missing; fetch it again.")
    return len(numbers)


def used_layers(tower: Tower, layers: int, lender: Lender | None) -> int:
    """How many of them are used: Stable Diffusion 2.x leaves out OpenCLIP's last one, and some files do not hold it."""
    if tower.layout != SD2:
        return layers
    if lender and lender.chosen and lender.config.num_hidden_layers in (layers, layers - 1):
        return lender.config.num_hidden_layers
    return layers if layers <= SD2_LAYERS else layers - 1


def guessed(tower: Tower, headers: Headers, lender: Lender | None, file: Path, reader: Reader) -> Guess:
    """The config of a tower.  headers: of the tensors as they will be made.

    Raises:
        InputError: something is neither told by shapes nor known.
    """
    return _t5(headers, lender, file) if tower.form == T5 else _clip(tower, headers, lender, file, reader)


def _clip(tower: Tower, headers: Headers, lender: Lender | None, file: Path, reader: Reader) -> Guess:
    vocabulary, width = size_of(headers, tower.form, file)
    positions, _ = _shape(headers, "embeddings.position_embedding.weight", 2, file)
    inner, _ = _shape(headers, "encoder.layers.0.mlp.fc1.weight", 2, file)
    layers, said = layers_in(headers, file), _open_clip_config(tower, file, reader)
    heads, whose = said.get("heads"), OPEN_CLIP_CONFIG
    if heads is None and lender:
        heads, whose = lender.config.num_attention_heads, lender.name
    elif heads is None:
        heads, whose = width // HEAD, "custom"
        if heads * HEAD != width:
            raise InputError(f"{file}: an encoder of width {width} has no usual number of heads; name its base with --anchor.")
    for name, value in (("width", width), ("layers", layers), ("vocab_size", vocabulary), ("context_length", positions)):
        if said.get(name, value) != value:
            raise InputError(f"{file}: {OPEN_CLIP_CONFIG} says {said[name]} for {name}, the tensors {value}; fetch both again.")
    activation = said.get("hidden_act") or _activation(tower, width)
    usual = ""
    if "hidden_act" not in said and lender and lender.chosen and lender.config.hidden_act != activation:
        usual = f", its activation too, where files of this kind usually have {activation}"
        activation = lender.config.hidden_act
    ends = lender.config if lender else None
    values = {
        "model_type": "clip_text_model", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": positions,
        "hidden_act": activation, "layer_norm_eps": ends.layer_norm_eps if ends else 1e-5,
        "eos_token_id": ends.eos_token_id if ends else LEGACY_EOS,  # pooled at the highest id, as OpenAI and OpenCLIP do
        "bos_token_id": ends.bos_token_id if ends else 0, "pad_token_id": ends.pad_token_id if ends else 0,
    }  # fmt: skip
    return Guess(EncoderConfig(FAMILIES["clip_text_model"], values), f"its {heads} heads are from {whose}{usual}")


def _activation(tower: Tower, width: int) -> str:
    """What encoders of a layout compute with: OpenAI's, and what was made of them, have an approximation of gelu."""
    if tower.layout in (LONG, OPENAI):
        return "quick_gelu"
    return "gelu" if tower.form == OPEN_CLIP or width in WIDE else "quick_gelu"


def _open_clip_config(tower: Tower, file: Path, reader: Reader) -> dict:
    """What open_clip_config.json says of the text tower where it lies beside the file; another kind is refused."""
    beside = file.with_name(OPEN_CLIP_CONFIG)
    if tower.layout != OWN or not beside.is_file():
        return {}
    content = reader.json(beside)
    model = content.get("model_cfg", content) if isinstance(content, dict) else None
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if not isinstance(text, dict):
        raise InputError(f"{beside} says nothing of a text tower; fetch it again.")
    for name, value in text.items():
        if name not in HARMLESS and value and (name, value) != ("pool_type", "argmax"):
            raise InputError(f"{beside} asks for {name[:80]}, which is not read; give the model in Hugging Face form.")
    quick = model.get("quick_gelu", False)
    numbers = {n: text[n] for n in ("width", "layers", "vocab_size", "context_length", "heads") if n in text}
    if not isinstance(quick, bool) or any(type(value) is not int or value < 1 for value in numbers.values()):
        raise InputError(f"{beside} has values that no text tower has; fetch it again.")
    return numbers | {"hidden_act": "quick_gelu" if quick else "gelu"}


def _t5(headers: Headers, lender: Lender | None, file: Path) -> Guess:
    first = "encoder.block.0.layer"
    vocabulary, width = size_of(headers, T5, file)
    buckets, heads = _shape(headers, f"{first}.0.SelfAttention.relative_attention_bias.weight", 2, file)
    inner, _ = _shape(headers, f"{first}.0.SelfAttention.q.weight", 2, file)
    gated = f"{first}.1.DenseReluDense.wi_0.weight" in headers
    wide, _ = _shape(headers, f"{first}.1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight", 2, file)
    if "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in headers:
        raise InputError(f"{file} holds an encoder of UMT5, which has a table of distances in every layer; the scan knows T5.")
    values = {
        "model_type": "t5", "vocab_size": vocabulary, "d_model": width, "d_kv": inner // max(1, heads), "d_ff": wide,
        "num_layers": layers_in(headers, file), "num_heads": heads, "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu", "eos_token_id": 1, "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    if lender:
        values |= {name: getattr(lender.config, name) for name in ("feed_forward_proj", "layer_norm_epsilon")}
    return Guess(EncoderConfig(FAMILIES["t5"], values), "its shapes tell the rest")


def _shape(headers: Headers, name: str, sides: int, file: object) -> tuple[int, ...]:
    if name not in headers or len(headers[name][0]) != sides:
        raise InputError(f"{file}: {name} of its text encoder is missing or has another shape; fetch it again.")
    return headers[name][0]
