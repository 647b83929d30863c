"""Tokens that a suspect has and its base does not, and tables of tokens that are longer or shorter than the base's.

Trainers add words (DreamBooth, textual inversion) and pad tables to round numbers.  Such a suspect is compared with its base on
the tokens that both have: the base gets the suspect's further rows and reads the added words as the suspect does, so that what
is found in them is due to the weights.  What the words themselves do, beside what the base reads in their letters, is another
question (Utils/scan/added.py).
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from Utils.encoder.readings import read_by, token_texts
from Utils.encoder.text_encoder import TextEncoder

PART = re.compile(r"(.+)_\d+")
"""How loaders name the further vectors of a word: word, word_1, word_2 ..."""
ORDINARY = 0.01
"""A text that occurs in a larger share of prompts is no addition: to make it one token is to read ordinary prompts anew."""
NAMED = 5
"""Tokens that a sentence names; the report lists all."""


@dataclass(frozen=True)
class Added:
    """What a suspect has beyond the tokens of its base."""

    base: TextEncoder
    """With as many rows as the suspect, reading as its own tokenizer does."""
    knowing: TextEncoder
    """The same, reading added tokens as the suspect does but for those of ordinary texts."""
    shared: int
    """Rows that both had."""
    tokens: dict[int, str]
    """Added tokens, number -> text."""
    rows: int
    """Further rows that no token of the suspect's has."""

    @property
    def words(self) -> dict[str, list[int]]:
        """What a user types -> its tokens: a word of several vectors is typed as one behind the other."""
        numbers = {text: number for number, text in self.tokens.items()}
        words: dict[str, list[str]] = {}
        for text in numbers:
            part = PART.fullmatch(text)
            words.setdefault(part[1] if part and part[1] in numbers else text, []).append(text)
        return {" ".join(texts): [numbers[text] for text in texts] for texts in words.values()}

    @property
    def notes(self) -> list[str]:
        """What the report says of it, in sentences."""
        named = ", ".join(f"`{text}`" for text in list(self.tokens.values())[:NAMED])
        more = f" and {len(self.tokens) - NAMED} more" if len(self.tokens) > NAMED else ""
        many = "token is" if len(self.tokens) == 1 else "tokens are"
        said = [f"{len(self.tokens)} {many} added to those of the base: {named}{more}"] if self.tokens else []
        beyond = f"{self.rows} rows of its token table are beyond the base's {self.shared}, and no token reaches them"
        return [*said, beyond] if self.rows else said


def added_to(suspect: TextEncoder, base: TextEncoder, prompts: list[str]) -> Added:
    """What a suspect has beyond the tokens of its base; prompts: ordinary texts."""
    known, own = base.tokenizer.get_vocab(), suspect.tokenizer.get_added_vocab()
    taken = set(known.values())
    tokens = dict(sorted((n, text) for text, n in own.items() if text not in known and n not in taken))
    shared = min(len(suspect.vocabulary), len(base.vocabulary))
    beyond = {n for n in suspect.tokenizer.get_vocab().values() if n >= shared}
    aligned = with_rows(base, suspect, shared, list(tokens))
    tokenizer = with_tokens(base.tokenizer, suspect.tokenizer, additions(tokens, base, prompts)) if tokens else base.tokenizer
    knowing = aligned if tokenizer is base.tokenizer else read_by(aligned, tokenizer)
    return Added(aligned, knowing, shared, tokens, len(suspect.vocabulary) - shared - len(beyond))


def additions(tokens: dict[int, str], base: TextEncoder, prompts: list[str]) -> list[int]:
    """Those of the added tokens that are no ordinary word and part of few prompts: the base reads nearly all as before."""
    words, texts = {text.lower() for text in token_texts(base.tokenizer)}, [prompt.lower() for prompt in prompts]
    found = []
    for number, text in tokens.items():
        plain = text.strip().lower()
        if plain not in words and sum(plain in prompt for prompt in texts) <= ORDINARY * len(texts):
            found.append(number)
    return found


def with_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, numbers: list[int]) -> PreTrainedTokenizerBase:
    """A tokenizer with added tokens of another one, or as it is where it would give them other numbers."""
    tokenizer = copy.deepcopy(own)
    tokens = [other.added_tokens_decoder[number] for number in numbers]
    tokenizer.add_tokens(tokens)
    same = all(tokenizer.convert_tokens_to_ids(str(t)) == n for t, n in zip(tokens, numbers, strict=True))
    return tokenizer if numbers and same else own


def with_rows(base: TextEncoder, suspect: TextEncoder, shared: int, numbers: list[int]) -> TextEncoder:
    """The base with as many rows as the suspect, and the suspect's own for these tokens; all else is the same memory."""
    if len(base.vocabulary) == len(suspect.vocabulary) and not numbers:
        return base
    rows = torch.cat([base.vocabulary[:shared], suspect.vocabulary[shared:].to(base.vocabulary)])
    rows[numbers] = suspect.vocabulary[numbers].to(rows)
    return _with_table(base, rows)


def with_plain_rows(added: Added, text: str) -> TextEncoder:
    """The base that knows added words and has an ordinary one for each of their vectors, of this text in turn."""
    rows = added.knowing.vocabulary.clone()
    for number, plain in zip(added.tokens, cycle(added.base.tokens([text])[0]), strict=False):
        rows[number] = rows[plain]
    return _with_table(added.knowing, rows)


def _with_table(base: TextEncoder, rows: Tensor) -> TextEncoder:
    """An encoder with another token table, (V, d); all else is the same memory."""
    kept = [*base.model.parameters(), *base.model.buffers()]
    model = copy.deepcopy(base.model, {id(tensor): tensor for tensor in kept})
    model.set_input_embeddings(nn.Embedding.from_pretrained(rows, padding_idx=base.model.get_input_embeddings().padding_idx))
    model.config.vocab_size = len(rows)
    return replace(base, model=model)
