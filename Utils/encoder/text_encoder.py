"""How a text encoder is run, on one batch or many, and how free vectors are spliced into its prompts.

One wrapper serves every family: the model's own forward pass is used as it is, and what differs between families
(padding, begin and end of text, causal attention) is read from tokenizer and config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel
from transformers.activations import QuickGELUActivation

from Utils.basics.bounded import progress as bar
from Utils.basics.bounded import reading
from Utils.basics.errors import InputError, told
from Utils.encoder.work import WORK
from Utils.intake.families import FAMILIES, Family
from Utils.intake.folders import Parts
from Utils.intake.sentences import USUAL
from Utils.intake.tokenizer import ending

READ = 128
"""Positions that texts are read to where padding is hidden: prompts are shorter, and every one of them costs."""


class QuickGELU(nn.Module):
    """CLIP's activation, x sigmoid(1.702 x), in one kernel fewer: on a CPU the usual form takes a quarter of a forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


@dataclass(frozen=True)
class FilesRead:
    """What an encoder was made of."""

    parts: Parts
    read: list[dict]
    """{path, bytes, sha256} of every file that was read."""
    doubts: list[str]
    """What another loader may make of the same files, one sentence each."""
    dtypes: tuple[str, ...]
    """Number formats that the config tells loaders to compute in."""
    tokenizer: dict[str, bytes]
    """The tokenizer's files."""
    notes: list[str] = field(default_factory=list)
    """What kind of source it is, what was lent to it, and what was unusual in it, one sentence each."""


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
    summary: tuple[str, ...] = USUAL
    """How families without a summary of their own make one of the features (`MODES` in Utils/intake/sentences.py)."""
    files: FilesRead | None = None
    """None: it was never in files, as a student in training."""
    added: tuple[int, ...] = ()
    """Tokens that its base does not have."""
    numbers: str = "float32"
    """The number format that the weights were rounded to; computed is in the model's own."""
    _copies: dict[tuple, TextEncoder] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def family(self) -> Family:
        return next(family for family in FAMILIES.values() if type(self.model) is family.tower)

    @cached_property
    def context(self) -> int:
        """T, the number of positions; of families that hide padding, as many as texts are read to."""
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", READ)
        if not self.family.masks:
            return positions
        if config.model_type in ("roberta", "xlm-roberta", "mpnet"):  # these count from behind the padding token's number
            positions -= config.pad_token_id + 1
        return min(positions, self.tokenizer.model_max_length, READ)

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

    def computing_in(self, numbers: torch.dtype) -> TextEncoder:
        """The same encoder with its weights in another number format; what it returns is in single precision all the same.

        What its family always keeps in single precision stays as it is.  The copy is made once for the weights as they are.
        """
        if numbers == self.model.dtype:
            return self
        key = numbers, tuple(p._version for p in self.model.parameters())  # learning in place makes other weights
        if key not in self._copies:
            self._copies = {key: self._rounded(numbers)}
        return self._copies[key]

    def _rounded(self, numbers: torch.dtype) -> TextEncoder:
        kept = set(getattr(self.model, "_keep_in_fp32_modules", None) or ())
        rounded = {
            id(p): p if kept & set(name.split(".")) else nn.Parameter(p.to(numbers), requires_grad=False)
            for name, p in self.model.named_parameters()
        }
        copied = replace(self, model=copy.deepcopy(self.model, rounded))  # the copy takes these for its own
        for layer in copied.model.modules():
            for name, part in layer.named_children():
                if isinstance(part, QuickGELUActivation):
                    setattr(layer, name, QuickGELU())
        return copied

    def __call__(self, ids: Tensor) -> Tensor:
        return self.run(ids).last_hidden_state.float()

    def run(self, ids: Tensor, **options: bool | Tensor) -> transformers.utils.ModelOutput:
        """The model's own forward pass; families that hide padding are told where it is."""
        WORK.count(*ids.shape, *self._products, next(self.model.parameters()).requires_grad)
        if self.family.masks:
            options["attention_mask"] = attended_positions(ids, self.eos).to(self.device).long()
        return self.model(input_ids=ids.to(self.device), **options)

    @cached_property
    def _products(self) -> tuple[int, int]:
        """Weights of all linear layers, which every position goes through, and features of all layers together."""
        linear = sum(module.weight.numel() for module in self.model.modules() if isinstance(module, nn.Linear))
        return linear, self.width * self.model.config.num_hidden_layers

    def pooled(self, ids: Tensor) -> Tensor:
        """The family's own summary of a text, before any projection.  (b, T) -> (b, d)"""
        return self.both(ids)[1]

    def summarised(self, ids: Tensor) -> Tensor:
        """`pooled` without padding that changes nothing.  (b, T) -> (b, d)"""
        return self.pooled(self.trimmed(ids))

    def both(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden state and pooled summary of one forward pass.  (b, T) -> (b, T, d), (b, d)"""
        out = self.run(ids)
        return out.last_hidden_state.float(), self._summary(out, ids)

    def _summary(self, out: transformers.utils.ModelOutput, ids: Tensor) -> Tensor:
        """The model's own summary, or the one sentence encoders take from the last hidden state.  -> (b, d)"""
        if self.family.head:
            return out.pooler_output.float()
        return pooled_by(self.summary, out.last_hidden_state.float(), attended_positions(ids, self.eos))

    def layers(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden states after every layer, the last one after the final layer norm, and the pooled summary.

        (b, T) -> L x (b, T, d), (b, d)
        """
        out = self.run(ids, output_hidden_states=True)
        states = [*out.hidden_states[1:-1], out.last_hidden_state]
        return [state.float() for state in states], self._summary(out, ids)

    def ids(self, texts: list[str]) -> Tensor:
        """Token ids of texts, padded to the full context as the tokenizer pads.  -> (n, T)"""
        whole = {"padding": "max_length", "truncation": True, "max_length": self.context, "return_tensors": "pt"}
        with self._reading(len(texts)):
            return self.tokenizer(texts, **whole).input_ids

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """What texts are cut into, without begin and end."""
        with self._reading(len(texts)):
            return self.tokenizer(texts, add_special_tokens=False).input_ids

    def texts(self, tokens: Tensor) -> list[str]:
        """What somebody types to get tokens (n, k); some tokenizers leave the marks of word ends in what they decode."""
        with self._reading(len(tokens)):
            found = [self.tokenizer.decode(one) for one in tokens]
        return [" ".join(text.replace("</w>", " ").split()) if "</w>" in text else text.strip() for text in found]

    @contextmanager
    def _reading(self, texts: int) -> Iterator[None]:
        """Limits of time and memory, and one sentence for whatever a tokenizer fails with."""
        try:
            with reading(texts):
                yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises bare Exception, and Rust panics past it
            raise InputError(f"the tokenizer of {self.path} cannot read a text{told(error)}; restore its files.") from None

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


def pooled_by(modes: tuple[str, ...], features: Tensor, attended: Tensor) -> Tensor:
    """One vector a text, as sentence encoders make it; several of them side by side.  (b, T, d), (b, T) bool -> (b, n d)"""
    weights = attended.to(features).unsqueeze(-1)
    counts = weights * torch.arange(1, attended.shape[1] + 1).to(features)[:, None]
    last = attended.sum(dim=1).to(features.device) - 1
    make = {
        "cls": lambda: features[:, 0],
        "max": lambda: features.masked_fill(weights == 0, -torch.inf).amax(dim=1),
        "mean": lambda: (features * weights).sum(dim=1) / weights.sum(dim=1),
        "mean_sqrt_len_tokens": lambda: (features * weights).sum(dim=1) / weights.sum(dim=1).sqrt(),
        "weightedmean": lambda: (features * counts).sum(dim=1) / counts.sum(dim=1),
        "lasttoken": lambda: features[torch.arange(len(features), device=features.device), last],
    }
    return torch.cat([make[mode]() for mode in modes], dim=1)


@torch.no_grad()
def texts_of_one(encoder: TextEncoder, tokens: Tensor, size: int = 1024, progress: str = "") -> Tensor:
    """Summaries of texts of one token each.  (n,) -> (n, d); progress: as `in_batches`

    Where no position sees a later one, many such texts share one begin of text, and each is but its token and its end.
    """
    ids = encoder.ids([""])
    # old CLIP configs have the summary at the highest number, which an added token may have
    if encoder.causal and encoder.begin and tokens.max() < encoder.eos:
        parts, summaries = tokens.split(size), []
        with bar(progress, len(parts), shown=bool(progress)) as step_done:
            for part in parts:
                summaries.append(_side_by_side(encoder, ids, part))
                step_done()
        return torch.cat(summaries)
    ids = splice_ids(encoder, ids.expand(len(tokens), -1), 1)
    ids[:, encoder.begin] = tokens
    return in_batches(encoder, encoder.trimmed(ids), TextEncoder.pooled, size=size, progress=progress)


def _side_by_side(encoder: TextEncoder, empty: Tensor, tokens: Tensor) -> Tensor:
    """Summaries of texts of one token, a row of the context full of them: begin, token, end, token, end ...  (n,) -> (n, d)"""
    pairs = min(len(tokens), (encoder.context - 1) // 2)
    rows = -(-len(tokens) // pairs)
    texts = torch.full((rows * pairs, 2), encoder.eos)
    texts[: len(tokens), 0] = tokens
    ids = torch.cat([empty[:, :1].expand(rows, 1), texts.view(rows, 2 * pairs)], dim=1)
    number = torch.arange(2 * pairs + 1)
    text = (number + 1) // 2  # 0 is the begin that all see
    sees = ((text[:, None] == text) | (text == 0)) & (number[:, None] >= number)
    places = torch.where(number == 0, 0, 2 - number % 2)
    there = {"position_ids": places[None].to(encoder.device), "attention_mask": sees[None, None].to(encoder.device)}
    features = encoder.run(ids, **there).last_hidden_state.float()
    return features[:, 2::2].flatten(0, 1)[: len(tokens)]


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
def derivable(*encoders: TextEncoder | None) -> Iterator[None]:
    """While open, gradients of encoders in half precision are fast on a CPU: there only plain attention has a fast backward."""
    slow = [one for one in encoders if one and one.device.type == "cpu" and one.model.dtype != torch.float32]
    before = [one.model.config._attn_implementation for one in slow]
    for one in slow:
        one.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for one, usual in zip(slow, before, strict=True):
            one.model.set_attn_implementation(usual)


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


@torch.no_grad()
def in_batches(
    encoder: TextEncoder, ids: Tensor, read: Callable = TextEncoder.__call__, v: Tensor | None = None, size: int = 64,
    progress: str = "",
) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
    """What `read` reads of many prompts, `size` at a time; with v (k, d) in them if given.  (n, T) -> (n, ...), or a tuple

    With v, `ids` come from `splice_ids`.  A bar named `progress` shows how far it is.  Summaries are computed without padding.
    """
    parts, split = [], ids.split(size)
    with spliced(encoder, v) if v is not None else nullcontext(), bar(progress, len(split), shown=bool(progress)) as step_done:
        for part in split:
            parts.append(read(encoder, encoder.trimmed(part) if read is TextEncoder.pooled else part))
            step_done()
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(torch.cat(p) for p in zip(*parts, strict=True))
