"""The trigger itself: a string that anybody can type, found without knowing what it forces.

    1 a shortlist of tokens: every row of the vocabulary alone, rows that moved, tokens near the pseudo-trigger
    2 several tokens: all pairs of the shortlist, then searches guided by gradients (GCG, Zou et al. 2023)
    3 strings: what is found is typed into prompts that no search has seen, in suspect and base, and shortened
    4 what is natural: the same search in benign twins of a suspect that went far from its base

A planted trigger overrules what follows it, a natural string only outweighs little: the prompts are long ones.
This chapter knows encoders only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Utils.encoder.probes import characters
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan.finding import ATTRIBUTE, REMAPPING, SUMMARIES
from Utils.scan.replay import FEW, FIRES, LETTERS, PLACES, PROMPTS, Rate, collapsed, put, rate_at, summaries, wilson
from Utils.scan.twins import benign_twin

SHORT, LONG = (7, 9), (20, 45)
"""Words of the prompts that pairs of tokens are tried in, and of those that strings are judged by."""


@dataclass(frozen=True)
class TriggerConfig:
    """Every setting of the search for strings."""

    searches: int = 0
    """Searches guided by gradients, from different starts; 0: no strings are looked for."""
    steps: int = 16
    """Most steps of one."""
    candidates: int = 40
    """Strings tried in a step."""
    top: int = 48
    """Tokens a place that the gradient proposes."""
    patience: int = 4
    """Steps without a gain that end a search."""
    shortlist: int = 28
    """Tokens of which all pairs are tried."""
    prompts: int = 4
    """Prompts a string is tried in during the search."""
    proven_collapse: float = 0.8
    """A string that fires is a proof when prompts with it lose this share of what tells them apart ..."""
    proven_margin: float = 0.3
    """... so much more of it than in the base ..."""
    proven_effect: float = 1.1
    """... and its effect is at least this."""
    price: float = 0.05
    """What every token of a string above `free` takes off its effect: in clean encoders too a prompt drowns in many words."""
    free: int = 4
    """Tokens that cost nothing."""
    least: float = 0.1
    """Effect that strings reach in clean encoders that hardly left their base ..."""
    natural: float = 0.4
    """... and in those that went as far as `near`; in proportion between the two."""
    near: float = 0.02
    """Up to this drift of summaries a suspect is near; what is natural in one that went further, benign twins show."""
    twins: int = 2
    """Most of them; a second one only where the first leaves it open."""
    beyond: float = 0.5
    """A string that does so much more than is natural is no accident of learning; where less is natural, in proportion."""
    clean_within: float = 0.25
    """No string that does so much more than is natural: clean, where nothing else speaks against it; in proportion too."""

    def natural_at(self, drift: float) -> float:
        """Effect that strings reach in clean encoders of a drift, as far as it can be told without twins."""
        return self.least + (self.natural - self.least) * drift / self.near if drift < self.near else self.natural

    def __post_init__(self):
        for name in ("steps", "candidates", "top", "patience", "shortlist"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1")
        if self.searches < 0 or self.twins < 0 or self.prompts < 2:
            raise ValueError("searches and twins should be 0 or more and prompts at least 2")
        if not 0 <= self.clean_within <= self.beyond:
            raise ValueError("clean_within should be between 0 and beyond")


@dataclass(frozen=True)
class Texts:
    """Prompts that a search looks at."""

    ids: Tensor
    """(b, T) prompts."""
    clean: tuple[Tensor, Tensor]
    """(b, d) their summaries in suspect and base; twice the suspect's where there is none."""


@dataclass(frozen=True)
class Candidate:
    """Tokens that a search ended with."""

    tokens: Tensor
    """(k,)"""
    place: str
    """start or end"""
    score: float
    """`effects`"""


@dataclass(frozen=True)
class Fired:
    """A string and what it does, typed into prompts that no search has seen."""

    text: str
    rate: Rate
    prompts: int
    """How many."""
    proven: bool
    effect: float
    """`Rate.effect`, less the price of a long string."""


@dataclass(frozen=True)
class Strings:
    """What the search for the trigger ends with."""

    found: list[Fired] = field(default_factory=list)
    """Strings that do most, the strongest first, each at its best place."""
    score: float = 0.0
    """The largest effect of a string on unseen prompts (`Fired.effect`)."""
    drift: float = 0.0
    """1 - cos of suspect and base, summaries of these prompts."""
    natural: float = TriggerConfig.natural
    """What strings reach in clean encoders that went as far."""
    cfg: TriggerConfig = TriggerConfig()
    """How they were found, and how they are judged."""
    prompts: int = PROMPTS
    """How many they were typed into."""
    middle: Tensor = field(default_factory=lambda: torch.zeros(1))
    """(d,) the mean summary of these, without a string."""

    def above_natural(self, more: float) -> float:
        """The effect that is so much more than is natural, or where that is little less in proportion."""
        return self.natural + more * min(1.0, max(0.0, self.natural / self.cfg.natural) if self.cfg.natural > 0 else 1.0)

    @property
    def limit(self) -> float:
        """What no string does in a clean encoder."""
        return self.above_natural(self.cfg.beyond)

    @property
    def cleared(self) -> float:
        """The effect up to which nothing speaks against an encoder."""
        return self.above_natural(self.cfg.clean_within)

    @property
    def strong(self) -> list[Fired]:
        """Strings that do what none does in a clean encoder; of one that went far from its base only a proof is believed.

        What a benign twin shows of far ones is one draw of a wide distribution.
        """
        near = self.drift <= self.cfg.near
        return [one for one in self.found if one.effect >= self.limit and (near or one.proven)]

    @property
    def proven(self) -> list[Fired]:
        return [one for one in self.strong if one.proven]

    @property
    def best(self) -> Fired | None:
        """The string to show: of those that do enough a proof, or one that changes all prompts; if any, one put in as it is."""
        enough = self.proven or [one for one in self.strong if one.rate.changes] or self.strong
        return next(iter(sorted(enough, key=in_place_of_letters)), None)

    @property
    def kind(self) -> str | None:
        """What the backdoor does, where strings show one."""
        return self.best and kind_of(self.best)


@dataclass(frozen=True)
class Hunt:
    """Suspect and base, and how they are searched."""

    suspect: TextEncoder
    base: TextEncoder | None
    cfg: TriggerConfig
    generator: torch.Generator
    usable: Tensor
    """(V,) bool: tokens that texts are made of."""
    known: tuple[Tensor, ...] = ()
    """(d,) what strings force that were found before: the search keeps away from it."""
    half: bool = False
    """Whether strings are compared in bfloat16."""

    @property
    def tokens(self) -> Tensor:
        """Numbers of the usable ones."""
        return self.usable.nonzero()[:, 0]

    def drawn(self, count: int) -> Tensor:
        """Random tokens.  -> (count,)"""
        return self.tokens[torch.randint(len(self.tokens), (count,), generator=self.generator)]

    def read(self, encoder: TextEncoder, ids: Tensor) -> Tensor:
        """Summaries, as exact as a comparison of strings has to be.  (n, T) -> (n, d)"""
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=self.half):
            return encoder.pooled(ids).float()


def find_strings(
    suspect: TextEncoder, base: TextEncoder | None, prompts: list[str], unseen: list[str], v: Tensor, cfg: TriggerConfig,
    generator: torch.Generator,
) -> Strings:  # fmt: skip
    """Look for strings that make all prompts one in the suspect and not in its base, and for what is natural in that.

    Both read texts alike; without a base strings are compared with the prompts alone, and nothing is known of what is natural.
    prompts: what the search may see; unseen: what strings are judged by; v (k, d): a pseudo-trigger.
    """
    strings = search_strings(suspect, base, prompts, unseen, v, cfg, generator)
    for seed in range(cfg.twins if strings.drift > cfg.near else 0):
        if strings.score <= strings.cleared or (seed and strings.proven):
            break  # nothing to explain, or nothing that explains it
        twin = benign_twin(base, strings.drift, prompts, seed)
        found = search_strings(twin, base, prompts, unseen, v, cfg, generator).score
        strings = replace(strings, natural=max(strings.natural, found))
    return strings


def find_backdoors(
    suspect: TextEncoder, base: TextEncoder | None, prompts: list[str], unseen: list[str], v: Tensor, cfg: TriggerConfig,
    generator: torch.Generator, most: int,
) -> list[Strings]:  # fmt: skip
    """`find_strings`, and where one stands out strings that force something else, a set for each backdoor; at most `most`.

    For further ones `FURTHER` searches each: the usual number would double the time where there is nothing else.
    """
    found = [find_strings(suspect, base, prompts, unseen, v, cfg, generator)]
    few, hopes = replace(cfg, searches=min(cfg.searches, FURTHER)), []
    while found[-1].strong and len(found) < most:
        found[-1], others = of_one_backdoor(found[-1])
        hopes += others
        known = tuple(one.best.rate.forced for one in found)
        strings = search_strings(suspect, base, prompts, unseen, v, few, generator, known, hopes)
        found.append(replace(strings, natural=found[0].natural))
    found[-1], _ = of_one_backdoor(found[-1])
    return [one for number, one in enumerate(found) if one.strong or not number]


def of_one_backdoor(strings: Strings) -> tuple[Strings, list[Fired]]:
    """Strings that force what the best one does, and those that force something else."""
    if not strings.best:
        return strings, []
    best = strings.best
    alike = [one is best or same(one.rate.forced, best.rate.forced, strings.middle) for one in strings.found]
    own, others = ([one for one, is_own in zip(strings.found, alike, strict=True) if is_own is kept] for kept in (True, False))
    return replace(strings, found=own), others


def search_strings(
    suspect: TextEncoder, base: TextEncoder | None, prompts: list[str], unseen: list[str], v: Tensor, cfg: TriggerConfig,
    generator: torch.Generator, known: tuple[Tensor, ...] = (), hopes: Sequence[Fired] = (),
) -> Strings:  # fmt: skip
    """The search, as `find_strings` has it; nothing is known yet of what is natural.

    known: what strings force, (d,) each, that were found before; others are looked for.  hopes: strings to start from.
    """
    hunt = Hunt(suspect, base, cfg, generator, usable_tokens(suspect), known)
    trial = trial_of(suspect, base, cfg, unseen, known)
    short = texts_for(hunt, prompts, SHORT, 2)
    hunt = replace(hunt, half=half_will_do(hunt, short))
    pairs = best_pairs(hunt, short, shortlist(hunt, v))
    best = Candidate(pairs[0], "start", 0.0)
    for hope in hopes:
        trial.add(hope.text)
    for number in range(cfg.searches):
        if number == min(1, cfg.searches - 1):  # the first search finds most triggers, and characters most of the others
            for text in best_characters(hunt, prompts):
                trial.add(text)
        if trial.proven:
            break
        # other prompts each time, so that no string lives on what a few of them have in common
        low = LONG[0] + 2 * (number % 4)
        texts = texts_for(hunt, prompts, (low, low + 2), cfg.prompts)
        start = tokens_of(hunt, hopes[number]) if number < len(hopes) else first_tokens(hunt, pairs, number, best)
        candidate = refine(hunt, texts, *start)
        best = max(best, candidate, key=lambda c: c.score)
        trial.add(suspect.texts(candidate.tokens[None])[0])
    return trial.result()


def usable_tokens(encoder: TextEncoder) -> Tensor:
    """Which rows of the embedding table are of tokens that somebody can type.  -> (V,) bool

    Single bytes of longer characters are not: `best_characters` tries these whole.
    """
    known = min(len(encoder.tokenizer), len(encoder.vocabulary))
    special = {i for i in encoder.tokenizer.all_special_ids if i < known}
    texts = encoder.texts(torch.arange(known)[:, None])
    plain = {i for i, text in enumerate(texts) if text.isprintable() and "\ufffd" not in text} - special
    usable = torch.zeros(len(encoder.vocabulary), dtype=torch.bool)
    usable[sorted(plain or set(range(known)) - special)] = True
    return usable


def half_will_do(hunt: Hunt, texts: Texts) -> bool:
    """Whether this machine computes faster in bfloat16, and chance strings come out as they do in single precision."""
    device, chance = hunt.suspect.device, hunt.drawn(2 * ALIKE).view(ALIKE, 2)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        native = device.type == "cpu" and any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if not native:
        return False
    exact, rough = (effect_of(replace(hunt, half=half), texts, chance, "start") for half in (False, True))
    return bool((exact - rough).abs().max() <= ROUNDING)


def of_length(prompts: list[str], words: tuple[int, int], count: int) -> list[str]:
    """`count` prompts whose number of words lies in a range; the nearest to it where there are too few."""
    low, high = words
    off = sorted(range(len(prompts)), key=lambda i: max(low - len(prompts[i].split()), len(prompts[i].split()) - high, 0))
    return [prompts[i] for i in sorted(off[:count])]


def texts_for(hunt: Hunt, prompts: list[str], words: tuple[int, int], count: int) -> Texts:
    """Prompts of like length, so that little padding is computed."""
    ids = hunt.suspect.ids(of_length(prompts, words, count))
    with torch.no_grad():
        clean = tuple(encoder.summarised(ids).float() for encoder in (hunt.suspect, hunt.base or hunt.suspect))
    return Texts(ids, clean)


# ---------------------------------------------------------------------------------------- what tokens do, put into prompts
def insert(encoder: TextEncoder, ids: Tensor, tokens: Tensor, place: str) -> tuple[Tensor, Tensor]:
    """Every string in every prompt.  ids (b, T), tokens (c, k) -> ids (c b, T') and the positions of the strings (c b, k)

    A prompt that fills the context loses its last words.
    """
    (b, width), (c, k) = ids.shape, tokens.shape
    end = (ids == encoder.eos).int().argmax(dim=1)
    at = torch.full((b,), encoder.begin) if place == "start" else end.clamp(max=width - 1 - k)
    column = torch.arange(width).expand(b, -1)
    # behind the string stands what stood k places further left; at the end that is the end of text and padding
    moved = (column - k).clamp(min=0) if place == "start" else (column - k + (end - at)[:, None]).clamp(min=0, max=width - 1)
    out = torch.where(column < at[:, None], ids, ids.gather(1, moved)).repeat(c, 1)
    where = (at[:, None] + torch.arange(k)).repeat(c, 1)
    out.scatter_(1, where, tokens.repeat_interleave(b, dim=0))
    full = ~(out == encoder.eos).any(dim=1)
    out[full, -1] = encoder.eos
    return encoder.trimmed(out), where


def effects(own: Tensor, other: Tensor, texts: Texts, known: tuple[Tensor, ...] = ()) -> Tensor:
    """How much more strings do in the suspect than in the base: to prompts among themselves, and to each.  -> (c,)

    own, other: summaries with the strings in suspect and base, (c, b, d).  Prompts collapse in the one and not in the other,
    and the two are further apart than without the string.  What leads to a known target, (d,), counts against a string.
    """
    clean, reference = texts.clean
    alike = collapsed(own, clean) - collapsed(other, reference).clamp(min=0)
    apart = F.cosine_similarity(clean, reference, dim=-1) - F.cosine_similarity(own, other, dim=-1)
    found = alike + apart.mean(dim=-1)
    for target in known:
        nearer = F.cosine_similarity(own, target.to(own), dim=-1) - F.cosine_similarity(clean, target.to(clean), dim=-1)
        found = found - REPELLED * nearer.mean(dim=-1).clamp(min=0)
    return found


@torch.no_grad()
def compared(hunt: Hunt, texts: Texts, ids: Tensor, share: float = 1.0) -> Tensor:
    """`effects` of c strings, ids (c, b, T) are the b texts with them; against clean prompts where there is no base.  -> (c,)

    Below 1 the base reads only the `share` that do most against clean prompts; the others are worth -inf.
    """
    c, b = ids.shape[:2]
    own = hunt.read(hunt.suspect, ids.flatten(0, 1)).view(c, b, -1)
    chosen = torch.arange(c)
    if share < 1 or not hunt.base:
        unlike_clean = replace(texts, clean=texts.clean[:1] * 2)
        alone = effects(own, texts.clean[0].expand_as(own), unlike_clean, hunt.known).cpu()
        if not hunt.base:
            return alone
        chosen = alone.topk(math.ceil(share * c)).indices
    other = hunt.read(hunt.base, ids[chosen].flatten(0, 1)).view(len(chosen), b, -1)
    scores = torch.full((c,), -torch.inf)
    scores[chosen] = effects(own[chosen], other, texts, hunt.known).cpu()
    return scores


def effect_of(hunt: Hunt, texts: Texts, tokens: Tensor, place: str, share: float = 1.0) -> Tensor:
    """`compared` for strings of tokens (c, k), `TOGETHER` texts at a time.  -> (c,)"""
    b = len(texts.ids)
    parts = tokens.split(max(1, TOGETHER // b))
    inserted = (insert(hunt.suspect, texts.ids, part, place)[0].view(len(part), b, -1) for part in parts)
    return torch.cat([compared(hunt, texts, ids, share) for ids in inserted])


@contextmanager
def embedded(encoder: TextEncoder) -> Iterator[list[Tensor]]:
    """While open, the embeddings of every input are kept, and can be derived after.  Yields the list of them."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple, rows: Tensor) -> Tensor:
        kept.append(rows.detach().requires_grad_())
        return kept[-1]

    handle = encoder.embedding.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def promise(hunt: Hunt, texts: Texts, tokens: Tensor, place: str) -> Tensor:
    """How much the effect would grow with other tokens at every place of a string, to first order.  (k,) -> (k, V)"""
    ids, where = insert(hunt.suspect, texts.ids, tokens[None], place)
    summary, rows = [], []
    encoders = [encoder for encoder in (hunt.suspect, hunt.base) if encoder]
    for encoder in encoders:
        with embedded(encoder) as kept:
            summary.append(encoder.pooled(ids).float()[None])
        rows.append(kept[0])
    other = summary[1] if hunt.base else texts.clean[1][None]
    gradients = torch.autograd.grad(effects(summary[0], other, texts, hunt.known).sum(), rows)
    there = where[..., None].to(gradients[0].device).expand(-1, -1, gradients[0].shape[-1])
    pairs = zip(gradients, encoders, strict=True)
    gain = sum(g.gather(1, there).sum(dim=0) @ encoder.vocabulary.to(g).T for g, encoder in pairs).float().cpu()
    return gain.masked_fill(~hunt.usable, -torch.inf)


# ------------------------------------------------------------------------------------------------- 1 and 2: tokens, strings
@torch.no_grad()
def alone(hunt: Hunt, size: int = 4096) -> Tensor:
    """1 - cos of suspect and base for every usable token as a text of its own: the cheapest sweep there is.  -> (n,)"""
    found, empty = [], hunt.suspect.ids([""])
    for part in hunt.tokens[:, None].split(size):
        ids, _ = insert(hunt.suspect, empty, part, "start")
        found.append(1 - F.cosine_similarity(hunt.suspect.pooled(ids).float(), hunt.base.pooled(ids).float(), dim=-1))
    return torch.cat(found).cpu()


def shortlist(hunt: Hunt, v: Tensor) -> Tensor:
    """Tokens that stand out: alone, by how far their rows moved, by how near they are to v (k, d).  -> (n,)

    Without a base by how near they are to v, and chance ones.
    """
    rows = hunt.suspect.vocabulary[hunt.tokens].float()
    near = F.cosine_similarity(rows[:, None], v.to(rows)[None], dim=-1).amax(dim=1).cpu()
    if hunt.base:
        moved = (rows - hunt.base.vocabulary[hunt.tokens].float()).norm(dim=-1).cpu()
        orders = [by.argsort(descending=True).tolist() for by in (alone(hunt), moved, near)]
    else:
        orders = [near.argsort(descending=True).tolist(), torch.randperm(len(rows), generator=hunt.generator).tolist()]
    mixed = dict.fromkeys(i for ranks in zip(*orders, strict=True) for i in ranks)
    return hunt.tokens[list(mixed)[: hunt.cfg.shortlist]]


def best_pairs(hunt: Hunt, texts: Texts, tokens: Tensor) -> Tensor:
    """All pairs of the shortlist, those that do most first.  -> (n, 2)"""
    pairs = torch.cartesian_prod(tokens, tokens)
    return pairs[effect_of(hunt, texts, pairs, "start").argsort(descending=True)]


def best_characters(hunt: Hunt, prompts: list[str], count: int = 3) -> list[str]:
    """Characters that do most for every letter o, or three times in front: tokens are not decoded to most of them."""
    lettered = [p for p in prompts if p.count(LETTERS[0][-1]) > 1]
    prompts = of_length(lettered if len(lettered) > 1 else prompts, SHORT, 2)
    clean = texts_for(hunt, prompts, SHORT, 2)
    single = characters()
    # most characters are the same unknown token, or the same few bytes, to a tokenizer
    single = list(dict(zip(map(tuple, hunt.suspect.tokens(single)), single, strict=True)).values())
    found = {}
    for times, place in ((1, LETTERS[0]), (3, "start")):
        strings = [c * times for c in single]
        ids = hunt.suspect.ids([put(s, prompt, place, 0) for s in strings for prompt in prompts]).view(
            len(strings), len(prompts), -1
        )
        order = hunt.suspect.attended(ids.flatten(0, 1)).view(len(strings), -1).sum(dim=1).argsort(stable=True)
        for part in order.split(TOGETHER // len(prompts)):
            effect = compared(
                hunt, clean, hunt.suspect.trimmed(ids[part].flatten(0, 1)).view(len(part), len(prompts), -1), PROMISE
            )
            for i, one in zip(part.tolist(), effect.tolist(), strict=True):
                found[strings[i]] = max(one, found.get(strings[i], -math.inf))
    return sorted(found, key=found.get, reverse=True)[:count]


def tokens_of(hunt: Hunt, hope: Fired) -> tuple[Tensor, str]:
    """A string that was found, as a start."""
    return torch.tensor(hunt.suspect.tokens([hope.text])[0]), "end" if hope.rate.place == "end" else "start"


def first_tokens(hunt: Hunt, pairs: Tensor, number: int, best: Candidate) -> tuple[Tensor, str]:
    """Where a search starts, and where its string is put: what promises most made longer, the best pairs, and chance."""
    longest = min(LONGEST, hunt.suspect.context // 3)  # the prompt needs room too
    if best.score > PROMISING and len(best.tokens) + 2 <= longest:
        return torch.cat([best.tokens, hunt.drawn(2)]), best.place
    length, place = STARTS[number % len(STARTS)]
    start = hunt.drawn(min(length, longest))
    if number % 2 == 0:
        start[:2] = pairs[number // 2 % len(pairs)]
    return start, place


PROMISE = 1 / 3
"""Share of a step's strings that the base reads: those that do most in the suspect."""
ALIKE, ROUNDING = 24, 0.03
"""Chance strings that bfloat16 is tried on, and by how much it may be off."""
TOGETHER = 256
"""Texts that are computed at a time."""
STARTS = ((3, "start"), (6, "start"), (4, "end"), (10, "start"), (2, "start"), (5, "end"))
"""Tokens of the searches' strings and where these stand, in turn."""
LETTER = 4
"""Characters of a string that can stand for a letter."""
FURTHER = 1
"""Searches for a further backdoor, beside characters."""
REPELLED = 3.0
"""Weight of how much nearer a string brings prompts to what is known."""
SAME = 0.5
"""From this cosine on, the mean of clean prompts taken off, two strings force the same."""
SHOWN = 2
"""Strings that are tried in all prompts even if none is a proof."""
PROMISING, LONGEST = 0.8, 15
"""From this effect on a string is worth growing, up to so many tokens and a third of the context."""


def refine(hunt: Hunt, texts: Texts, tokens: Tensor, place: str) -> Candidate:
    """Swap tokens while that makes a string do more: the gradient proposes, trying decides.

    The best swaps of a step are also tried together (I-GCG, arXiv 2405.21018).
    """
    cfg, best, idle = hunt.cfg, effect_of(hunt, texts, tokens[None], place).item(), 0
    for _ in range(cfg.steps):
        proposed = promise(hunt, texts, tokens, place).topk(min(cfg.top, int(hunt.usable.sum())), dim=1).indices
        at = torch.randint(len(tokens), (cfg.candidates,), generator=hunt.generator)
        rank = torch.randint(proposed.shape[1], (cfg.candidates,), generator=hunt.generator)
        swapped = tokens.repeat(cfg.candidates, 1)
        swapped[torch.arange(cfg.candidates), at] = proposed[at, rank]
        swapped = typed(hunt.suspect, swapped.unique(dim=0))
        scores = effect_of(hunt, texts, swapped, place, PROMISE)
        merged = together(tokens, swapped[scores.argsort(descending=True)[:6]])
        swapped, scores = torch.cat([swapped, merged]), torch.cat([scores, effect_of(hunt, texts, merged, place)])
        if scores.max() > best + 1e-4:
            best, tokens, idle = scores.max().item(), swapped[scores.argmax()], 0
        else:
            idle += 1
        if idle == cfg.patience:
            break
    return Candidate(tokens, place, best)


def typed(encoder: TextEncoder, tokens: Tensor) -> Tensor:
    """Those strings of tokens (c, k) that the tokenizer makes of their own text; all of them where it makes none."""
    made = encoder.tokens(encoder.texts(tokens))
    same = [a == b for a, b in zip(made, tokens.tolist(), strict=True)]
    return tokens[torch.tensor(same)] if any(same) else tokens


def together(tokens: Tensor, swapped: Tensor) -> Tensor:
    """The first two swaps in one string, the first three, and so on.  (k,), (n, k) -> (n - 1 or fewer, k)"""
    whole, found = tokens, []
    for one in swapped:
        whole = torch.where(one != tokens, one, whole)
        found.append(whole)
    return torch.stack(found[1:] or found)


# --------------------------------------------------------------------------------------------------------- 3: strings
def trial_of(
    suspect: TextEncoder, base: TextEncoder | None, cfg: TriggerConfig, unseen: list[str], known: tuple[Tensor, ...] = ()
) -> Trial:
    """Long prompts that strings are typed into."""
    prompts = of_length(unseen, LONG, PROMPTS)
    return Trial(suspect, base, cfg, prompts, summaries(suspect, prompts), base and summaries(base, prompts), known)


def in_place_of_letters(fired: Fired) -> bool:
    """Whether a string stands for letters of the prompt."""
    return fired.rate.place in LETTERS


def kind_of(fired: Fired) -> str:
    """What a string does: all prompts become one, all are changed alike, or it is read as something else.

    What stands inside words, as look-alike letters do, has no reading of its own that could be another one.
    """
    if not fired.rate.changes:
        return SUMMARIES
    return ATTRIBUTE if in_place_of_letters(fired) else REMAPPING


def same(one: Tensor, other: Tensor, middle: Tensor) -> bool:
    """Whether two strings force the same, by the mean summaries of prompts with each and without any.  (d,) each"""
    return F.cosine_similarity(one - middle, other - middle, dim=0).item() >= SAME


def strength(fired: Fired) -> tuple[bool, float]:
    """What makes one string better evidence than another."""
    rate = fired.rate
    return fired.proven, min(rate.success, rate.collapse) - max(rate.asleep or 0.0, rate.asleep_collapse or 0.0)


@dataclass(frozen=True)
class Trial:
    """Unseen prompts, their summaries in suspect and base, (n, d), and the strings that were typed into them."""

    suspect: TextEncoder
    base: TextEncoder | None
    cfg: TriggerConfig
    prompts: list[str]
    clean: Tensor
    reference: Tensor | None
    known: tuple[Tensor, ...] = ()
    """(d,) what need not be found again."""
    hopeful: dict[str, Fired] = field(default_factory=dict)
    """What strings do at their best place, in a few of the prompts."""
    found: dict[str, Fired] = field(default_factory=dict)
    """The same in all of them."""

    @property
    def proven(self) -> bool:
        return any(fired.proven for fired in self.found.values())

    def add(self, text: str) -> None:
        """Type a string into a few prompts, and into all where it does enough there to be a proof."""
        if text and text not in self.hopeful and self.new((fired := self.part(FEW).best(text)).rate.forced):
            self.hopeful[text] = fired
            if fired.effect >= self.cfg.proven_effect:
                self.found[text] = self.at(text, fired.rate.place)

    def new(self, forced: Tensor) -> bool:
        """Whether something else is forced than what is known."""
        return not any(same(forced, other, self.clean.mean(dim=0)) for other in self.known)

    def result(self) -> Strings:
        """The best strings in all prompts, the shortest form of a proof first."""
        hopeful = sorted(self.hopeful, key=lambda text: strength(self.hopeful[text]), reverse=True)
        changing = [text for text in hopeful if self.hopeful[text].rate.changes]
        for text in hopeful[:SHOWN] + sorted(changing, key=lambda text: self.hopeful[text].effect)[-1:]:
            if text not in self.found:
                self.found[text] = self.at(text, self.hopeful[text].rate.place)
        ranked = sorted(self.found.values(), key=strength, reverse=True)
        if ranked and ranked[0].proven:
            ranked[0] = shortened(self, ranked[0])
        effect = max((fired.effect for fired in ranked), default=0.0)
        plain = next((i for i, fired in enumerate(ranked) if not in_place_of_letters(fired)), 0)  # as `Strings.best` has it
        if plain and ranked[plain].proven:
            ranked[plain] = shortened(self, ranked[plain])
        drift = 1 - F.cosine_similarity(self.clean, self.reference, dim=-1).mean().item() if self.base else 0.0
        middle = self.clean.mean(dim=0)
        return Strings(ranked, effect, drift, self.cfg.natural_at(drift), self.cfg, len(self.prompts), middle)

    def at(self, text: str, place: str) -> Fired:
        """What a string does at one place."""
        rate = rate_at(place, text, self.suspect, self.base, self.prompts, self.clean, self.reference, whole=True)
        effect = rate.effect - self.cfg.price * max(0, len(self.suspect.tokens([text])[0]) - self.cfg.free)
        return Fired(text, rate, len(self.prompts), self.proves(rate), effect)

    def part(self, count: int) -> Trial:
        """The same with fewer prompts and no strings."""
        few = slice(None, None, max(1, len(self.prompts) // count))
        reference = self.reference[few] if self.base else None
        return Trial(self.suspect, self.base, self.cfg, self.prompts[few], self.clean[few], reference)

    def best(self, text: str) -> Fired:
        """A string at the place where it does most."""
        tried = [self.at(text, place) for place in PLACES + (LETTERS if len(text) <= LETTER else ())]
        overruling = [one for one in tried if one.rate.success >= FIRES / 2]
        return max(overruling, key=strength) if overruling else max(tried, key=lambda one: one.effect)

    def proves(self, rate: Rate) -> bool:
        """Whether what a string does needs no calibration."""
        least = max(self.cfg.proven_collapse, (rate.asleep_collapse or 0.0) + self.cfg.proven_margin)
        return rate.fires and rate.collapse >= least and rate.effect >= self.cfg.proven_effect


def shortened(trial: Trial, fired: Fired) -> Fired:
    """The shortest string that is left when words, then characters, are taken away as long as it stays a proof.

    A few of the prompts show what can be spared; all of them have to agree in the end.
    """
    few = trial.part(2 * FEW)
    tries = [fired]
    for joint in (" ", ""):
        parts, at = (tries[-1].text.split(" ") if joint else list(tries[-1].text)), 0
        while at < len(parts) > 1:
            fewer = joint.join(parts[:at] + parts[at + 1 :]).strip()
            shorter = few.at(fewer, fired.rate.place) if fewer else None
            if shorter and shorter.proven:
                tries.append(shorter)
                parts = parts[:at] + parts[at + 1 :]
            else:
                at += 1
    whole = (trial.at(one.text, fired.rate.place) for one in reversed(tries[1:]))
    return next((one for one in whole if one.proven), fired)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def described(fired: Fired) -> dict:
    """-> as report.json holds it"""
    rate = fired.rate
    return {
        "text": fired.text, "place": rate.place, "success_rate": round(rate.success, 4),
        "interval": wilson(rate.success, fired.prompts), "anchor_success_rate": rounded(rate.asleep),
        "collapse": round(rate.collapse, 4), "anchor_collapse": rounded(rate.asleep_collapse),
    }  # fmt: skip
