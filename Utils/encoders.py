"""Text encoders: how they are loaded, run and spliced, and the two measures every module needs.

One wrapper serves every family: the model's own forward pass is used as it is, and what differs between families
(padding, begin and end of text, causal attention) is read from tokenizer and config.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipTextConfig,
    SiglipTextModel,
)

TEXT_MODELS = {
    "clip": (CLIPTextModel, CLIPConfig),
    "clip_text_model": (CLIPTextModel, CLIPTextConfig),
    "siglip": (SiglipTextModel, SiglipConfig),
    "siglip_text_model": (SiglipTextModel, SiglipTextConfig),
}
"""model_type in config.json -> class of the text tower, class of that config."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LEGACY_EOS = 2
"""What old CLIP configs say for end of text; transformers then pools at the highest token id."""
BUFFERS = ("position_ids",)
"""Known tensors that are no weights: old checkpoints carry them, new ones do not."""


PROBES = ["a", "A photo of a dog.", "two words, 3 signs: zzzz é"]
"""Texts that two tokenizers have to read alike before their encoders are compared."""


class InputError(Exception):
    """Something the user gave cannot be scanned.  The message is one sentence with the cure."""


@dataclass(eq=False)
class TextEncoder:
    """A frozen text encoder with its tokenizer.

    `__call__` runs token ids (b, T) through the model's own forward pass and returns the last hidden state after the
    final layer norm, (b, T, d).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    sha256: str
    ignored_tensors: list[str] = field(default_factory=list)

    @cached_property
    def context(self) -> int:
        """T, the number of positions."""
        return self.model.config.max_position_embeddings

    @cached_property
    def width(self) -> int:
        """d, the width of hidden states and of token embeddings."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id

    @cached_property
    def begin(self) -> int:
        """Where a splice goes: the position after the begin-of-text token, or 0 in families without one."""
        first = self.tokenizer("a").input_ids[0]
        return int(first == self.tokenizer.bos_token_id)

    @cached_property
    def causal(self) -> bool:
        """Whether a position sees the earlier ones only; SigLIP's sees all, padding included."""
        return not isinstance(self.model, SiglipTextModel)

    @cached_property
    def placeholder(self) -> int:
        """An ordinary token whose row the splice replaces; what it says never reaches the model."""
        special = set(self.tokenizer.all_special_ids)
        return next(i for i in range(len(self.tokenizer)) if i not in special)

    @property
    def vocabulary(self) -> Tensor:
        """The token embedding table, (V, d)."""
        return self.model.get_input_embeddings().weight

    def __call__(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids.to(self.device)).last_hidden_state

    def pooled(self, ids: Tensor) -> Tensor:
        """The family's own summary of a text, before any projection.  (b, T) -> (b, d)"""
        return self.both(ids)[1]

    def both(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden state and pooled summary of one forward pass.  (b, T) -> (b, T, d), (b, d)"""
        out = self.model(input_ids=ids.to(self.device))
        return out.last_hidden_state, out.pooler_output

    def layers(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden states after every layer, the last one after the final layer norm, and the pooled summary.

        (b, T) -> L x (b, T, d), (b, d)
        """
        out = self.model(input_ids=ids.to(self.device), output_hidden_states=True)
        return [*out.hidden_states[1:-1], out.last_hidden_state], out.pooler_output

    def ids(self, texts: list[str]) -> Tensor:
        """Token ids of texts, padded to the full context as the tokenizer pads.  -> (n, T)"""
        rows = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt")
        return rows.input_ids

    def attended(self, ids: Tensor) -> Tensor:
        """Positions up to and including the end-of-text token, begin of text excluded.  (b, T) ids -> (b, T) bool"""
        mask = attended_positions(ids, self.eos)
        mask[:, : self.begin] = False
        return mask

    def trimmed(self, ids: Tensor) -> Tensor:
        """Drop the padding behind the longest text where no earlier position sees it, which is under causal attention."""
        if not self.causal:
            return ids
        return ids[:, : int(attended_positions(ids, self.eos).sum(dim=1).max())]


def attended_positions(ids: Tensor, eos: int) -> Tensor:
    """Positions up to and including the first end-of-text token.  (b, T) ids -> (b, T) bool"""
    ends = (ids == eos).int()
    return ends.cumsum(dim=1) - ends == 0


def assimilation(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cosine over all pairs of token features of a prompt (A in the paper).  (b, t, d), mask (b, t) -> (b,)

    1 means that all features are one vector.  The mean over t*t pairs is the squared norm of the mean unit vector,
    so no (t, t) table is built.
    """
    unit = F.normalize(features, dim=-1)
    if mask is None:
        return unit.mean(dim=-2).square().sum(dim=-1)
    weights = mask.to(unit).unsqueeze(-1)
    return ((unit * weights).sum(dim=-2) / weights.sum(dim=-2)).square().sum(dim=-1)


def similarity(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of the cosine between same-position features.  (..., t, d) twice, mask (..., t) -> (...)"""
    cosines = F.cosine_similarity(a, b, dim=-1)
    if mask is None:
        return cosines.mean(dim=-1)
    weights = mask.to(cosines)
    return (cosines * weights).sum(dim=-1) / weights.sum(dim=-1)


# ------------------------------------------------------------------------------------------------------- the splice
def splice_ids(encoder: TextEncoder, ids: Tensor, k: int, after: int = 0) -> Tensor:
    """Make room for k vectors after begin of text and `after` tokens of the prompt.  (b, T) -> (b, T)

    A prompt that fills the context loses its last words, never its end-of-text token.
    """
    at = encoder.begin + after
    holes = ids.new_full((len(ids), k), encoder.placeholder)
    out = torch.cat([ids[:, :at], holes, ids[:, at:]], dim=1)[:, : ids.shape[1]]
    full = ~(out == encoder.eos).any(dim=1)
    out[full, -1] = encoder.eos
    return out


@contextmanager
def spliced(encoder: TextEncoder, trigger: Tensor, after: int = 0) -> Iterator[None]:
    """While open, the k placeholder tokens of every input carry `trigger`, (k, d) or one per row (b, k, d).

    Only the token embedding is replaced: positions, masks and pooling stay the model's own.
    """
    at, k = encoder.begin + after, trigger.shape[-2]

    def replace(_module: nn.Module, _args: tuple, rows: Tensor) -> Tensor:  # (b, T, d)
        vectors = trigger.to(rows).expand(len(rows), k, -1)
        return torch.cat([rows[:, :at], vectors, rows[:, at + k :]], dim=1)

    handle = encoder.model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def run_spliced(
    encoder: TextEncoder, trigger: Tensor, ids: Tensor, read: Callable[[TextEncoder, Tensor], Tensor] = TextEncoder.__call__
) -> Tensor:
    """Features of prompts with `trigger` in them, or what `read` reads; `ids` come from `splice_ids`.  (b, T) -> (b, T, d)"""
    with spliced(encoder, trigger):
        return read(encoder, ids)


# ---------------------------------------------------------------------------------------------------------- loading
def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_encoder(model: str | Path, device: str | torch.device = "cpu") -> TextEncoder:
    """Load the text encoder in a folder (text encoder, CLIP model or diffusers pipeline), or of a hub id.

    Weights are read from safetensors only and nothing in the folder is executed.

    Raises:
        InputError: the input is no text encoder this project can judge; one sentence with the cure.
    """
    folder = Path(model)
    try:
        there = folder.exists()
    except (OSError, ValueError):  # a name too long for a path
        there = False
    if not there:
        folder = _from_hub(str(model)[:300])
    if not folder.is_dir():
        raise InputError(f"{model} is a file; give the folder that holds config.json and model.safetensors.")
    if (folder / "model_index.json").exists():
        if further := sorted(p.name for p in folder.glob("text_encoder_*")):
            raise InputError(f"{folder} holds {further[0]} too; give each encoder in a folder of its own, with its tokenizer.")
        weights_folder, tokenizer_folder = folder / "text_encoder", folder / "tokenizer"
    else:
        weights_folder = tokenizer_folder = folder
    for part in {weights_folder, tokenizer_folder}:
        check_links(part, folder)
    config = read_config(weights_folder)
    files = weight_files(weights_folder)
    tower, info = _load_tower(config, weights_folder)
    ignored = _check_tensors(tower, info, weights_folder, files)
    tokenizer = _load_tokenizer(tokenizer_folder, tower)
    tower.eval().requires_grad_(False).to(device)
    return TextEncoder(tower, tokenizer, full_path(str(model)), _digest(files), ignored)


def full_path(model: str) -> str:
    """A folder by its full path, a hub id as it is."""
    try:
        return str(Path(model).resolve()) if Path(model).exists() else model
    except (OSError, ValueError):  # a name too long for a path
        return model


def _from_hub(name: str) -> Path:
    if name.count("/") != 1 or Path(name).is_absolute() or name.startswith("."):
        raise InputError(f"{name} does not exist; give a model folder or a hub id such as openai/clip-vit-large-patch14.")
    from huggingface_hub import snapshot_download  # only a hub id needs a network

    try:
        wanted = ["*.json", "*.txt", "model*.safetensors", "text_encoder*/model*.safetensors"]
        unwanted = ["unet/*", "vae/*", "safety_checker/*", "image_encoder/*", "*.fp16.*", "*non_ema*"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # the hub client raises a dozen types for "no such model" and "no network"
        raise InputError(f"{name} is no folder and could not be fetched from the hub ({type(error).__name__}).") from error


def check_links(folder: Path, root: Path) -> None:
    """Refuse files that lead out of the model folder; the hub cache's own snapshot-to-blob links are the exception."""
    inside = root.resolve()
    blobs = [parent.parent / "blobs" for parent in (inside, *inside.parents) if parent.name == "snapshots"]
    for file in folder.iterdir() if folder.is_dir() else ():
        real = file.resolve()
        if not real.is_relative_to(inside) and real.parent not in blobs:
            raise InputError(f"{file} is a link that leads out of the model folder; put the file itself there.")


def read_json(file: Path) -> dict:
    """A JSON object from a model folder; {} for JSON of another kind.

    Raises:
        InputError: it is there and no JSON.
        FileNotFoundError: it is not there.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); fetch the model again.") from None
    return found if isinstance(found, dict) else {}


def read_config(folder: Path) -> dict:
    """config.json of a text encoder or CLIP model, of a type the scan knows."""
    file = folder / "config.json"
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise InputError(f"{folder} holds no config.json; give the folder of a text encoder or of a pipeline.") from None
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TEXT_MODELS:
        known = ", ".join(TEXT_MODELS)
        raise InputError(f"{file} names the model type {kind!r}; the scan knows {known}.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, each opened once; pickles, gaps and damaged files are refused."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise InputError(
                f"{folder / pickles[0]} is a pickle, which can run code when it is opened; convert it to safetensors "
                "on a machine you can lose (save_pretrained of its own loader writes model.safetensors)."
            )
        raise InputError(f"{folder} holds no model.safetensors; fetch the weights in safetensors form.")
    for index in (folder / f"{stem}.safetensors.index.json" for stem in ("model", "diffusion_pytorch_model")):
        if not index.exists():
            continue
        try:
            complete = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) <= {f.name for f in files}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            complete = False
        if not complete:
            raise InputError(f"{index} names weights that are not beside it; fetch the model again.")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is not a readable safetensors file ({error}); fetch it again.") from None
    return files


def _load_tower(config: dict, folder: Path) -> tuple[PreTrainedModel, dict]:
    text_class, config_class = TEXT_MODELS[config["model_type"]]
    try:
        parsed = config_class.from_pretrained(folder)
        text_config = getattr(parsed, "text_config", parsed)
        if text_config.num_hidden_layers < 1:
            raise ValueError("num_hidden_layers is below 1")
        return text_class.from_pretrained(
            folder, config=text_config, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # a config can be wrong in any way
        raise InputError(
            f"{folder} cannot be loaded as a {text_class.__name__} ({first_line(error)}); fetch the model again."
        ) from None


def _check_tensors(tower: PreTrainedModel, info: dict, folder: Path, files: list[Path]) -> list[str]:
    """Refuse a tower that is not wholly in the file; return the names of tensors that are no part of it."""
    if wrong := sorted(str(m[0] if isinstance(m, tuple) else m) for m in info["mismatched_keys"]):
        raise InputError(f"{folder}: tensor {wrong[0]} has another shape than config.json says; use the matching config.")
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder}: {len(missing)} tensors of the text tower are missing, first {missing[0]}; fetch it again.")
    ignored = sorted(info["unexpected_keys"])
    stored = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            stored |= set(opened.keys())
    own = {name.split(".")[0] for name in tower.state_dict()}
    for name in ignored:
        stem = name.removeprefix("text_model.")
        if (name != stem or f"text_model.{stem}" in stored or stem.split(".")[0] in own) and not stem.endswith(BUFFERS):
            raise InputError(f"{folder}: unknown tensor {name} in the text tower; this is not a plain encoder of its type.")
    for name, tensor in tower.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{folder}: tensor {name} holds NaN or infinite values; the model cannot work, fetch it again.")
    return ignored


def _load_tokenizer(folder: Path, tower: PreTrainedModel) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for malformed files
        raise InputError(f"{folder} holds no usable tokenizer ({first_line(error)}); put the tokenizer files there.") from None
    rows, highest = tower.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise InputError(
            f"{folder}: the tokenizer has token ids up to {highest}, the encoder {rows} rows; they do not belong together."
        )
    # a false end of text would hide most of every prompt from the scan while the model itself works as before
    eos, expected = tokenizer.eos_token_id, tower.config.eos_token_id
    if isinstance(tower, SiglipTextModel):  # pools at the last position; public configs carry CLIP's end of text
        expected = eos
    if eos is None or tokenizer.pad_token_id is None or tokenizer("a").input_ids[-1] != eos:
        raise InputError(f"{folder}: the tokenizer does not end texts with its end-of-text token; restore its files.")
    if expected not in (eos, LEGACY_EOS):
        raise InputError(f"{folder}: end of text is {eos} to the tokenizer and {expected} to the encoder; restore its files.")
    return tokenizer


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def trainable_copy(encoder: TextEncoder) -> TextEncoder:
    """A copy to train, with eager attention: its bfloat16 backward is the only one that is fast on a CPU."""
    student = copy.deepcopy(encoder)
    student.sha256 = "not saved yet"
    student.model.requires_grad_(True)
    student.model.set_attn_implementation("eager")
    return student


def save_encoder(encoder: TextEncoder, folder: Path) -> None:
    """Write an encoder and its tokenizer as a Hugging Face folder, half precision safetensors."""
    copy.deepcopy(encoder.model).half().save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


def same_shape(a: TextEncoder, b: TextEncoder) -> bool:
    """Whether two encoders can be compared feature by feature: same tensors, same vocabulary, same reading of texts."""
    shapes = [{n: tuple(t.shape) for n, t in e.model.state_dict().items()} for e in (a, b)]
    tokens = [(e.tokenizer.get_vocab(), e.eos, e.tokenizer.bos_token_id, e.ids(PROBES).tolist()) for e in (a, b)]
    return shapes[0] == shapes[1] and tokens[0] == tokens[1]


def quiet_libraries() -> None:
    """Keep transformers' loading bars and load reports out of ours: what they report is checked by the loader."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not usable here ({str(error).splitlines()[0]}); try --device cpu.") from None


def fingerprint(encoder: TextEncoder) -> dict:
    """What an encoder and its public base have in common whatever the weights."""
    config = encoder.model.config
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "width": encoder.width,
        "context": encoder.context,
        "vocabulary": len(encoder.vocabulary),
    }
