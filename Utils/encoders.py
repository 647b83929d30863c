"""Text encoders: how they are loaded, run and spliced, and the two measures every module needs.

One wrapper serves every family: the model's own forward pass is used as it is, and what differs between families
(padding, begin and end of text, causal attention) is read from tokenizer and config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from Utils.intake import (
    ENGLISH,
    FAMILIES,
    PROBES,
    Family,
    InputError,
    check_files,
    digest_of,
    ending,
    find_parts,
    first_line,
    full_path,
    load_tokenizer,
    load_tower,
    summary_position,
)

LONGEST = 512
"""T of families whose positions are relative, where the tokenizer names no length."""


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
    summary: int | None = None
    """The position that stands for the text in families without a summary of their own; None: the mean of all."""

    @cached_property
    def family(self) -> Family:
        return next(family for family in FAMILIES.values() if type(self.model) is family.tower)

    @cached_property
    def context(self) -> int:
        """T, the number of positions."""
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", LONGEST)
        if not self.family.masks:
            return positions
        if config.model_type in ("roberta", "xlm-roberta", "mpnet"):  # these count from behind the padding token's number
            positions -= config.pad_token_id + 1
        return min(positions, self.tokenizer.model_max_length)

    @cached_property
    def width(self) -> int:
        """d, the width of hidden states and of token embeddings."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def eos(self) -> int:
        return ending(self.tokenizer)

    @cached_property
    def begin(self) -> int:
        """Where a splice goes: the position after the begin-of-text token, or 0 in families without one."""
        first = self.tokenizer("a").input_ids[0]
        return int(first in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))

    @property
    def causal(self) -> bool:
        """Whether a position sees the earlier ones only; SigLIP's sees all, padding included."""
        return self.family.causal

    @cached_property
    def placeholder(self) -> int:
        """An ordinary token whose row the splice replaces; what it says never reaches the model."""
        special = set(self.tokenizer.all_special_ids)
        return next(i for i in range(len(self.tokenizer)) if i not in special)

    @property
    def vocabulary(self) -> Tensor:
        """The token embedding table, (V, d)."""
        return self.model.get_input_embeddings().weight

    @property
    def embedding(self) -> nn.Module:
        """The module that looks tokens up in the forward pass; T5's stack has one of its own over the shared table."""
        inner = self.model.encoder if isinstance(self.model, T5EncoderModel) else self.model
        return inner.get_input_embeddings()

    def __call__(self, ids: Tensor) -> Tensor:
        return self.run(ids).last_hidden_state

    def run(self, ids: Tensor, **options: bool) -> transformers.utils.ModelOutput:
        """The model's own forward pass; families that hide padding are told where it is."""
        if self.family.masks:
            options["attention_mask"] = attended_positions(ids, self.eos).to(self.device).long()
        return self.model(input_ids=ids.to(self.device), **options)

    def pooled(self, ids: Tensor) -> Tensor:
        """The family's own summary of a text, before any projection.  (b, T) -> (b, d)"""
        return self.both(ids)[1]

    def both(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden state and pooled summary of one forward pass.  (b, T) -> (b, T, d), (b, d)"""
        out = self.run(ids)
        return out.last_hidden_state, self._summary(out, ids)

    def _summary(self, out: transformers.utils.ModelOutput, ids: Tensor) -> Tensor:
        """The model's own summary, or the one sentence encoders take from the last hidden state.  -> (b, d)"""
        if self.family.head:
            return out.pooler_output
        if self.summary is not None:
            return out.last_hidden_state[:, self.summary]
        weights = attended_positions(ids, self.eos).to(out.last_hidden_state).unsqueeze(-1)
        return (out.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)

    def layers(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden states after every layer, the last one after the final layer norm, and the pooled summary.

        (b, T) -> L x (b, T, d), (b, d)
        """
        out = self.run(ids, output_hidden_states=True)
        return [*out.hidden_states[1:-1], out.last_hidden_state], self._summary(out, ids)

    def ids(self, texts: list[str]) -> Tensor:
        """Token ids of texts, padded to the full context as the tokenizer pads.  -> (n, T)"""
        try:
            rows = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and Rust panics past it
            raise InputError(
                f"the tokenizer of {self.path} cannot read a text ({first_line(error)}); restore its files."
            ) from None
        return rows.input_ids

    def attended(self, ids: Tensor) -> Tensor:
        """Positions up to and including the end-of-text token, begin of text excluded.  (b, T) ids -> (b, T) bool"""
        mask = attended_positions(ids, self.eos)
        mask[:, : self.begin] = False
        return mask

    def trimmed(self, ids: Tensor) -> Tensor:
        """Drop the padding behind the longest text where no earlier position sees it: under causal attention or a mask."""
        if not self.family.padding_free:
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

    handle = encoder.embedding.register_forward_hook(replace)
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
def load_encoder(model: str | Path, device: str | torch.device = "cpu") -> TextEncoder:
    """Load the text encoder in a folder (text encoder, CLIP model or diffusers pipeline), or of a hub id.

    Weights are read from safetensors only and nothing in the folder is executed.

    Raises:
        InputError: the input is no text encoder this project can judge; one sentence with the cure.
    """
    parts = find_parts(model)
    for folder in {parts.weights, parts.tokenizer}:
        check_files(folder, parts.root)
    tower, family, files, ignored = load_tower(parts.weights)
    tokenizer = load_tokenizer(parts.tokenizer, tower)
    tower.eval().requires_grad_(False).to(device)
    summary = None if family.head else summary_position(parts.root)
    encoder = TextEncoder(tower, tokenizer, full_path(str(model)), digest_of(files), ignored, summary)
    _check_reading(encoder, parts.tokenizer)
    return encoder


def _check_reading(encoder: TextEncoder, folder: Path) -> None:
    """Refuse a tokenizer whose texts do not stand where the scan looks: from the first position on, padding behind them."""
    try:
        context, first = encoder.context, encoder.tokenizer("a").input_ids
        ids, place = encoder.ids(ENGLISH), (encoder.begin, encoder.placeholder)
    except Exception as error:  # a tokenizer's settings can be wrong in any way
        raise InputError(f"{folder} holds no usable tokenizer ({first_line(error)}); put the tokenizer files there.") from None
    if context < 8:
        raise InputError(f"{folder} leaves {context} positions for a text, too few for a prompt; restore its files.")
    shape, told = (len(ENGLISH), context), ids[0, : len(first)].tolist()
    if ids.shape != shape or told != first or not (ids == encoder.eos).any(dim=1).all() or place[1] >= len(encoder.vocabulary):
        raise InputError(f"{folder}: the tokenizer does not pad texts behind their end; restore its files.")


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of the weights as they are now; a file's hash is of what they were."""
    whole = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


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


def distance(a: TextEncoder, b: TextEncoder) -> float:
    """1 - cos of the token embedding tables of two encoders of one shape: fine-tuning moves them little."""
    return 1 - F.cosine_similarity(a.vocabulary.flatten(), b.vocabulary.flatten(), dim=0).item()


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
