"""What a backdoor forces, in words: the texts that the clean base puts nearest to the forced feature.

A text is read by its pooled summary, either as it is (text space) or through the projection of the clean base's CLIP
(image-text space), where a target that was learnt from pictures lies.  Candidates are the prompts of the corpus and a
description that a beam search puts together from words.  No diffusion model is needed.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.intake.config import read_config
from Utils.intake.files import check_files
from Utils.intake.weights import weight_files

SIGN = re.compile(r"[^\W\d_]+|\d+|[.,]")
STOP = "."
BEAM = 8
"""Beam width."""
SHORTLIST = 80
"""Candidate words that say something."""
GLUE = 80
"""Frequent words that join them."""
LEADS = 10
"""How many of the shortlist may be words that the corpus does not have, which follow any word."""
LENGTH = 16
"""Most words of a description."""
FLUENCY = 0.01
"""What a unit of log probability is worth in similarity.  Without it the search strings words together that no one says."""
VOCABULARY = 2000
"""Whole words of the vocabulary that are tried beside those of the corpus; a vocabulary lists the frequent ones first."""
NEAR = 0.5
"""A target has a meaning from this centred similarity on; the best description of a random vector reaches 0.28 to 0.36."""
RIVAL = 0.1
"""A second description is given where it is at most this much further away than the first."""


class Phrases:
    """A trigram model of prompts: how they go on, so that a description reads like one."""

    def __init__(self, prompts: Iterable[str]):
        self.single: Counter[str] = Counter()
        self.pair: dict[str, Counter[str]] = defaultdict(Counter)
        self.triple: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for prompt in prompts:
            words = ["", "", *SIGN.findall(prompt.lower()), STOP]
            for a, b, c in zip(words, words[1:], words[2:], strict=False):
                self.single[c] += 1
                self.pair[b][c] += 1
                self.triple[a, b][c] += 1

    def words(self) -> list[str]:
        """All words, the frequent ones first."""
        return sorted((w for w in self.single if w.isalpha()), key=lambda w: (-self.single[w], w))

    def follows(self, before: str, word: str) -> bool:
        """Whether the corpus has the two words in this order; a word that it never has follows any."""
        return word in self.pair.get(before, ()) or (before != "" and word not in self.single)

    def may_end(self, word: str, share: float = 0.05) -> bool:
        """Whether sentences end with this word now and then; unknown words may."""
        after = self.pair.get(word)
        return not after or after[STOP] >= share * sum(after.values())

    def log_probability(self, before: tuple[str, str], word: str) -> float:
        """log p(word | the two words before), interpolated down to single words; no word is impossible."""
        p = 0.1 * (self.single[word] + 1) / (sum(self.single.values()) + len(self.single))
        for share, followers in ((0.6, self.triple.get(before)), (0.3, self.pair.get(before[1]))):
            if followers:
                p += share * followers[word] / sum(followers.values())
        return math.log(p)


@dataclass(frozen=True)
class Space:
    """One way to read texts, and what the pseudo-trigger forces in it."""

    name: str
    project: Tensor | None
    """(p, d); None: the pooled summary itself."""
    forced: Tensor
    """(p,) the mean reading of prompts with the pseudo-trigger."""
    corpus: Tensor
    """(n, p) readings of the corpus."""

    @classmethod
    def of(cls, name: str, project: Tensor | None, triggered: Tensor, corpus: Tensor) -> Space:
        """From pooled summaries: triggered (m, d) under the suspect, corpus (n, d) under the anchor."""
        return cls(name, project, cls.unit(triggered, project).mean(dim=0), cls.unit(corpus, project))

    @staticmethod
    def unit(pooled: Tensor, project: Tensor | None) -> Tensor:
        return F.normalize(pooled if project is None else pooled @ project.T, dim=-1)

    def similarity(self, pooled: Tensor) -> Tensor:
        """Cosine of texts and the forced feature.  (n, d) -> (n,)"""
        return F.cosine_similarity(self.unit(pooled, self.project), self.forced, dim=-1)

    def nearness(self, pooled: Tensor) -> Tensor:
        """The same after the corpus mean is taken off, which all texts of an anisotropic encoder share.  (n, d) -> (n,)"""
        middle = self.corpus.mean(dim=0)
        return F.cosine_similarity(self.unit(pooled, self.project) - middle, self.forced - middle, dim=-1)

    def floor(self) -> float:
        """Mean similarity of the corpus to the forced feature: what any other text reaches."""
        return F.cosine_similarity(self.corpus, self.forced, dim=-1).mean().item()


@dataclass(frozen=True)
class Description:
    text: str
    nearness: float


def pooled_texts(encoder: TextEncoder, texts: list[str], batch: int = 256) -> Tensor:
    """Pooled summaries of texts, those of like length together.  -> (n, d)"""
    ids = encoder.ids(texts)
    order = encoder.attended(ids).sum(dim=1).argsort(stable=True)
    pooled = in_batches(encoder, ids[order], TextEncoder.summarised, size=batch)
    return torch.empty_like(pooled).index_copy_(0, order.to(pooled.device), pooled).cpu()


def whole_words(encoder: TextEncoder, most: int = VOCABULARY) -> list[str]:
    """Lower-case words that are one token each, the first ones of the vocabulary; two letters are often but a piece."""
    texts = (encoder.tokenizer.decode([i]).strip() for i in range(len(encoder.tokenizer)))
    words = dict.fromkeys(w for w in texts if len(w) > 2 and w.isascii() and w.isalpha() and w.islower())
    special = len(encoder.tokenizer("").input_ids)
    whole = (word for word in words if len(encoder.tokenizer(word).input_ids) == special + 1)
    return list(islice(whole, most))


def describe(encoder: TextEncoder, space: Space, phrases: Phrases, words: list[str], pooled: Tensor) -> list[Description]:
    """The text nearest to what is forced that beam search can put together; then one without its most telling word.

    pooled (len(words), d): the words' own summaries.
    """
    telling = space.nearness(pooled)
    best = [words[i] for i in telling.argsort(descending=True, stable=True)[:SHORTLIST].tolist()]
    foreign = [word for word in best if word not in phrases.single][LEADS:]
    candidates = [word for word in dict.fromkeys([*best, *phrases.words()[:GLUE]]) if word not in foreign]
    finished = beam_search(encoder, space, phrases, candidates)
    first = finished[0]
    rank = {word: i for i, word in enumerate(best)}
    key = min(first.text.split(), key=lambda word: rank.get(word, len(best)))
    others = [d for d in finished if key not in d.text.split() and d.nearness > first.nearness - RIVAL]
    return [first, *others[:1]]


def beam_search(
    encoder: TextEncoder, space: Space, phrases: Phrases, candidates: list[str], patience: int = 4
) -> list[Description]:
    """Texts that may end where they end, best first, by nearness + FLUENCY * log probability.

    Ends when texts that are `patience` words longer were no better.
    """
    beams: list[tuple[tuple[str, ...], float]] = [((), 0.0)]
    finished: list[tuple[float, str, float]] = []
    best, waited = -math.inf, 0
    for _ in range(LENGTH):
        longer = []
        for text, log_p in beams:
            before = (("", "", *text)[-2], ("", "", *text)[-1])
            for word in candidates:
                if word != before[1] and phrases.follows(before[1], word):
                    longer.append(((*text, word), log_p + phrases.log_probability(before, word)))
        if not longer:
            break
        near = space.nearness(pooled_texts(encoder, [" ".join(text) for text, _ in longer])).tolist()
        ranked = sorted(
            ((n + FLUENCY * log_p, text, n, log_p) for n, (text, log_p) in zip(near, longer, strict=True)), reverse=True
        )
        finished += [(score, " ".join(text), n) for score, text, n, _ in ranked if phrases.may_end(text[-1])]
        beams = [(text, log_p) for _, text, _, log_p in ranked[:BEAM]]
        top = max((score for score, *_ in finished), default=-math.inf)
        waited = 0 if top > best else waited + 1
        best = max(best, top)
        if waited == patience:
            break
    return [Description(text, n) for _, text, n in sorted(finished, reverse=True)]


@dataclass(frozen=True)
class TargetTexts:
    texts: list[dict]
    """{text, similarity, floor}, the best first."""
    note: str
    """Which space was read, or that nothing is near."""


def target_texts(
    anchor: TextEncoder, triggered: Tensor, corpus: Tensor, prompts: list[str], projection: Tensor | None
) -> TargetTexts:
    """Descriptions of both spaces, those of the nearer space first, then the nearest prompts in that space.

    triggered (m, d): pooled summaries of held-out prompts with the pseudo-trigger, under the suspect; prompts: all at
    hand, to learn phrases from; corpus (n, d): summaries of the first n of them under the anchor; projection (p, d).
    """
    phrases = Phrases(prompts)
    words = list(dict.fromkeys([*phrases.words(), *whole_words(anchor)]))
    pooled = pooled_texts(anchor, words)
    spaces = reading_spaces(anchor, triggered, corpus, projection)
    described = [(space, describe(anchor, space, phrases, words, pooled)) for space in spaces]
    described.sort(key=lambda pair: -pair[1][0].nearness)
    if described[0][1][0].nearness < NEAR:
        return TargetTexts([], "no semantic target: no text comes near to what the pseudo-trigger forces")
    rows: dict[str, dict] = {}
    for space, descriptions in described:
        for description in descriptions:
            if description.nearness >= NEAR:
                add(rows, space, description.text, pooled_texts(anchor, [description.text]))
    best = described[0][0]
    for i in best.nearness(corpus).argsort(descending=True, stable=True)[:3].tolist():
        add(rows, best, prompts[i], corpus[i : i + 1])
    return TargetTexts(list(rows.values()), f"target texts are nearest in the {best.name}")


def reading_spaces(anchor: TextEncoder, triggered: Tensor, corpus: Tensor, projection: Tensor | None) -> list[Space]:
    """The ways to read what is forced; shapes as in `target_texts`."""
    # SigLIP's summary lies in the space it shares with pictures, without a projection
    shared = anchor.model.config.model_type.startswith("siglip")
    spaces = [Space.of("image-text space" if shared else "text space", None, triggered, corpus)]
    if projection is not None:
        spaces.append(Space.of("image-text space", projection.to(corpus), triggered, corpus))
    return spaces


def add(rows: dict[str, dict], space: Space, text: str, pooled: Tensor) -> None:
    """One line of the table, unless the text has one already.  pooled (1, d)"""
    similarity, floor = space.similarity(pooled).item(), space.floor()
    rows.setdefault(text, {"text": text, "similarity": round(similarity, 4), "floor": round(floor, 4)})


def load_projection(folder: Path, width: int) -> Tensor | None:
    """The text projection of a CLIP model, (p, d); None where the family's summary is in the shared space already."""
    check_files(folder, folder)
    if not read_config(folder).kind.startswith("clip"):
        return None
    for file in weight_files(folder)[0].files:
        with safe_open(file, framework="pt") as opened:
            if "text_projection.weight" in set(opened.keys()):
                weight = opened.get_tensor("text_projection.weight").float()
                if weight.dim() == 2 and weight.shape[1] == width and torch.isfinite(weight).all():
                    return weight
                raise InputError(f"{file}: the text projection does not fit features {width} wide; give the base's own CLIP.")
    raise InputError(f"{folder} holds no text projection; give the CLIP model whose text tower the anchor is.")
