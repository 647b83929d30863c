"""Whom a scan compares: the suspect, its anchor, and the prompts that both have read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from Utils.encoder.corpus import Corpus
from Utils.encoder.text_encoder import TextEncoder, splice_ids


@dataclass(frozen=True)
class Pair:
    """Two encoders, the corpus under each, and who sees which prompts."""

    suspect: TextEncoder
    anchor: TextEncoder | None
    prompts: list[str]
    """All lines of the prompt file; the first n are the corpus."""
    corpus: Corpus
    anchor_corpus: Corpus | None
    fit: Tensor
    """Row numbers of the prompts that the search sees."""
    held_out: Tensor
    """Those of the others, which the witnesses are measured on."""

    @property
    def unseen(self) -> list[str]:
        """Prompts that the search never sees: those held out, and those that are no part of the corpus."""
        return [self.prompts[i] for i in self.held_out.tolist()] + self.prompts[len(self.corpus.ids) :]

    @property
    def held_out_ids(self) -> Tensor:
        """(m, T)"""
        return self.corpus.ids[self.held_out]

    def spliced_ids(self, v: Tensor) -> Tensor:
        """Held-out prompts with room for v (k, d).  -> (m, T)"""
        return splice_ids(self.suspect, self.held_out_ids, len(v))
