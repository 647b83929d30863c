"""The trigger itself: a string that anybody can type, found without knowing what it forces.

    1 a shortlist of tokens: every row of the vocabulary alone, rows that moved, tokens near a vector
    2 several tokens: all pairs of the shortlist, then searches guided by gradients (GCG, Zou et al. 2023)
    3 strings: what is found is typed into prompts that no search has seen, and shortened (Utils/scan/strings.py)
    4 what is natural: the same search in benign twins of a suspect that went far from its base

A planted trigger overrules what follows it, a natural string only outweighs little: the prompts are long ones.
This chapter knows encoders only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Utils.basics.bounded import progress
from Utils.encoder.corpus import token_summaries
from Utils.encoder.probes import characters
from Utils.encoder.text_encoder import TextEncoder, derivable
from Utils.scan.replay import LETTERS, collapsed, put
from Utils.scan.settings import TriggerConfig
from Utils.scan.strings import LONG, Fired, Strings, of_length, same, trial_of
from Utils.scan.twins import benign_twin

SHORT = (7, 9)
"""Words of the prompts that pairs of tokens are tried in."""


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


@dataclass
class Readings:
    """Summaries of texts that every search of an encoder begins with; encoders live as long as this."""

    kept: dict[tuple[int, bytes], Tensor] = field(default_factory=dict)
    """By encoder and tokens."""

    def of(self, encoder: TextEncoder, ids: Tensor) -> Tensor:
        """`TextEncoder.pooled`, computed where it is not known yet.  (b, T) -> (b, d)"""
        keys = [(id(encoder), row.numpy().tobytes()) for row in ids]
        new = [i for i, key in enumerate(keys) if key not in self.kept]
        if new:
            self.kept.update(zip([keys[i] for i in new], encoder.pooled(ids[new]), strict=True))
        return torch.stack([self.kept[key] for key in keys])


@dataclass(frozen=True)
class Means:
    """What a search may use; what it finds is judged in the encoders' own number format."""

    numbers: torch.dtype = torch.float32
    """The format that is searched in."""
    cache: Path | None = None
    """Folder that keeps what only depends on the base."""
    readings: Readings | None = None
    """Where several searches of one suspect follow each other."""


@dataclass(frozen=True)
class Hunt:
    """Suspect and base, and how they are searched."""

    suspect: TextEncoder
    base: TextEncoder | None
    cfg: TriggerConfig
    generator: torch.Generator
    usable: Tensor
    """(V,) bool: tokens that texts are made of."""
    means: Means = Means()
    known: tuple[Tensor, ...] = ()
    """(d,) what strings force that were found before: the search keeps away from it."""

    @property
    def tokens(self) -> Tensor:
        """Numbers of the usable ones."""
        return self.usable.nonzero()[:, 0]

    def drawn(self, count: int) -> Tensor:
        """Random tokens.  -> (count,)"""
        return self.tokens[torch.randint(len(self.tokens), (count,), generator=self.generator)]


def find_strings(
    suspect: TextEncoder, base: TextEncoder | None, prompts: list[str], unseen: list[str], v: Tensor, cfg: TriggerConfig,
    generator: torch.Generator, means: Means = Means(), tokens: Tensor | None = None,
) -> Strings:  # fmt: skip
    """Look for strings that make all prompts one in the suspect and not in its base, and for what is natural in that.

    Both read texts alike; without a base strings are compared with the prompts alone, and nothing is known of what is natural.
    prompts: what the search may see; unseen: what strings are judged by; v (k, d): a pseudo-trigger; tokens: its `shortlist`,
    where it is known.
    """
    tokens = shortlist(suspect, base, v, cfg, generator, means) if tokens is None else tokens
    strings = search_strings(suspect, base, prompts, unseen, tokens, cfg, generator, means)
    for seed in range(cfg.twins if strings.drift > cfg.near and not is_certain(strings) else 0):
        if strings.score <= strings.cleared or (seed and strings.proven):
            break  # nothing to explain, or nothing that explains it
        twin, once = benign_twin(base, strings.drift, prompts, seed, means.numbers), replace(means, readings=None)
        tokens = shortlist(twin, base, v, cfg, generator, once)
        found = search_strings(twin, base, prompts, unseen, tokens, cfg, generator, once)
        strings = replace(strings, natural=max(strings.natural, found.score))
    return strings


def is_certain(strings: Strings) -> bool:
    """Whether a proof does what no string does in any benign twin of the shipped bases (Analysis/natural.py)."""
    return strings.drift <= FAR and any(one.effect >= CERTAIN for one in strings.proven)


def find_backdoors(
    suspect: TextEncoder, base: TextEncoder | None, prompts: list[str], unseen: list[str], v: Tensor, cfg: TriggerConfig,
    generator: torch.Generator, most: int, means: Means = Means(),
) -> list[Strings]:  # fmt: skip
    """`find_strings`, and where one stands out strings that force something else, a set for each backdoor; at most `most`.

    For further ones `FURTHER` searches each: the usual number would double the time where there is nothing else.
    """
    means = replace(means, readings=Readings())
    tokens = shortlist(suspect, base, v, cfg, generator, means)
    found = [find_strings(suspect, base, prompts, unseen, v, cfg, generator, means, tokens)]
    few, hopes = replace(cfg, searches=min(cfg.searches, FURTHER)), []
    while found[-1].strong and len(found) < most:
        found[-1], others = of_one_backdoor(found[-1])
        hopes += others
        known = tuple(one.best.rate.forced for one in found)
        strings = search_strings(suspect, base, prompts, unseen, tokens, few, generator, means, known, hopes)
        # half a backdoor that is known does much: the lower limits near the base are for the first one only
        found.append(replace(strings, natural=max(found[0].natural, cfg.natural)))
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
    suspect: TextEncoder, base: TextEncoder | None, prompts: list[str], unseen: list[str], tokens: Tensor, cfg: TriggerConfig,
    generator: torch.Generator, means: Means, known: tuple[Tensor, ...] = (), hopes: Sequence[Fired] = (),
) -> Strings:  # fmt: skip
    """The search, as `find_strings` has it; nothing is known yet of what is natural.

    tokens (n,): the shortlist.  known: what strings force, (d,) each, that were found before; others are looked for.  hopes:
    strings to start from.
    """
    hunt = Hunt(suspect, base, cfg, generator, usable_tokens(suspect), means, known)
    hunt = computing_in(hunt, texts_for(hunt, prompts, SHORT, 2))
    trial = trial_of(suspect, base, cfg, unseen, known, (hunt.suspect, hunt.base))
    short = texts_for(hunt, prompts, SHORT, 2)
    pairs = best_pairs(hunt, short, tokens)
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
        with progress(f"strings, search {number + 1} of at most {cfg.searches}", cfg.steps) as step_done:
            candidate = refine(hunt, texts, *start, step_done)
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
    usable[[i for i in encoder.added if i < known]] = True
    return usable


def computing_in(hunt: Hunt, texts: Texts) -> Hunt:
    """The hunt in the format that is to be searched in, if chance strings come out in it as they do in single precision."""
    encoders = (encoder and encoder.computing_in(hunt.means.numbers) for encoder in (hunt.suspect, hunt.base))
    rough = replace(hunt, **dict(zip(("suspect", "base"), encoders, strict=True)))
    chance = hunt.drawn(2 * ALIKE).view(ALIKE, 2)
    exact, rounded = (effect_of(one, texts, chance, "start") for one in (hunt, rough))
    return rough if (exact - rounded).abs().max() <= ROUNDING else hunt


def texts_for(hunt: Hunt, prompts: list[str], words: tuple[int, int], count: int) -> Texts:
    """Prompts of like length, so that little padding is computed."""
    ids = hunt.suspect.ids(of_length(prompts, words, count))
    with torch.no_grad():
        clean = tuple(encoder.summarised(ids) for encoder in (hunt.suspect, hunt.base or hunt.suspect))
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
def compared(hunt: Hunt, texts: Texts, ids: Tensor, share: float = 1.0, again: bool = False) -> Tensor:
    """`effects` of c strings, ids (c, b, T) are the b texts with them; against clean prompts where there is no base.  -> (c,)

    Below 1 the base reads only the `share` that do most against clean prompts; the others are worth -inf.  again: the next
    search reads the same.
    """
    c, b = ids.shape[:2]

    def read(encoder: TextEncoder, some: Tensor) -> Tensor:
        kept, some = hunt.means.readings if again else None, some.flatten(0, 1)
        return (kept.of(encoder, some) if kept else encoder.pooled(some)).unflatten(0, (-1, b))

    own = read(hunt.suspect, ids)
    chosen = torch.arange(c)
    if share < 1 or not hunt.base:
        unlike_clean = replace(texts, clean=texts.clean[:1] * 2)
        alone = effects(own, texts.clean[0].expand_as(own), unlike_clean, hunt.known).cpu()
        if not hunt.base:
            return alone
        chosen = alone.topk(math.ceil(share * c)).indices
    other = read(hunt.base, ids[chosen])
    scores = torch.full((c,), -torch.inf)
    scores[chosen] = effects(own[chosen], other, texts, hunt.known).cpu()
    return scores


def effect_of(
    hunt: Hunt, texts: Texts, tokens: Tensor, place: str, share: float = 1.0, course: str = "", again: bool = False
) -> Tensor:
    """`compared` for strings of tokens (c, k), some at a time; course: the name of its bar.  -> (c,)"""
    b, found = len(texts.ids), []
    positions = b * (hunt.suspect.trimmed(texts.ids).shape[1] + tokens.shape[1])
    parts = tokens.split(max(1, TOGETHER // positions))
    with progress(course, len(parts), shown=bool(course)) as step_done:
        for part in parts:
            ids = insert(hunt.suspect, texts.ids, part, place)[0].view(len(part), b, -1)
            found.append(compared(hunt, texts, ids, share, again))
            step_done()
    return torch.cat(found)


@contextmanager
def embedded(encoder: TextEncoder, learning: bool = False) -> Iterator[list[Tensor]]:
    """While open, the embeddings of every input are kept, and can be derived after.  Yields the list of them.

    learning: the weights are learned meanwhile, the token table too, so that these rows stay part of the graph.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple, rows: Tensor) -> Tensor:
        kept.append(rows if learning else rows.detach().requires_grad_())
        kept[-1].retain_grad()  # of a leaf it is kept anyway
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
    with derivable(*encoders):
        for encoder in encoders:
            with embedded(encoder) as kept:
                summary.append(encoder.pooled(ids)[None])
            rows.append(kept[0])
        other = summary[1] if hunt.base else texts.clean[1][None]
        gradients = torch.autograd.grad(effects(summary[0], other, texts, hunt.known).sum(), rows)
    there = where[..., None].to(gradients[0].device).expand(-1, -1, gradients[0].shape[-1])
    pairs = zip(gradients, encoders, strict=True)
    gain = sum(g.gather(1, there).sum(dim=0) @ encoder.vocabulary.to(g).T for g, encoder in pairs).float().cpu()
    return gain.masked_fill(~hunt.usable, -torch.inf)


# ------------------------------------------------------------------------------------------------- 1 and 2: tokens, strings
def shortlist(
    suspect: TextEncoder, base: TextEncoder | None, v: Tensor, cfg: TriggerConfig, generator: torch.Generator, means: Means
) -> Tensor:
    """Tokens that stand out: alone, by how far their rows moved, by how near they are to v (k, d).  -> (n,)

    Without a base by how near they are to v, and chance ones.
    """
    tokens = usable_tokens(suspect).nonzero()[:, 0]
    rows = suspect.vocabulary[tokens].float()
    near = F.cosine_similarity(rows[:, None], v.to(rows)[None], dim=-1).amax(dim=1).cpu()
    if base:
        moved = (rows - base.vocabulary[tokens].float()).norm(dim=-1).cpu()
        orders = [by.argsort(descending=True).tolist() for by in (alone(suspect, base, tokens, means), moved, near)]
    else:
        orders = [near.argsort(descending=True).tolist(), torch.randperm(len(rows), generator=generator).tolist()]
    first = added_first(suspect, tokens, orders[0])[: cfg.shortlist // 2]
    mixed = dict.fromkeys([*first, *(i for ranks in zip(*orders, strict=True) for i in ranks)])
    return tokens[list(mixed)[: cfg.shortlist]]


def alone(suspect: TextEncoder, base: TextEncoder, tokens: Tensor, means: Means) -> Tensor:
    """1 - cos of suspect and base for every token as a text of its own: the cheapest sweep there is.  (n,) -> (n,)"""
    own, other = (
        token_summaries(encoder.computing_in(means.numbers), tokens, cache)
        for encoder, cache in ((suspect, None), (base, means.cache))
    )
    return 1 - F.cosine_similarity(own, other, dim=-1)


def added_first(suspect: TextEncoder, tokens: Tensor, order: list[int]) -> list[int]:
    """Of an order of the tokens those that the base does not have."""
    numbers, added = tokens.tolist(), set(suspect.added)
    return [i for i in order if numbers[i] in added]


def best_pairs(hunt: Hunt, texts: Texts, tokens: Tensor) -> Tensor:
    """All pairs of the shortlist, those that do most first.  -> (n, 2)"""
    pairs = torch.cartesian_prod(tokens, tokens)
    return pairs[effect_of(hunt, texts, pairs, "start", course="pairs", again=True).argsort(descending=True)]


def best_characters(hunt: Hunt, prompts: list[str], count: int = 3) -> list[str]:
    """Characters that do most for every letter o, or three times in front: tokens are not decoded to most of them."""
    lettered = [p for p in prompts if p.count(LETTERS[0][-1]) > 1]
    prompts = of_length(lettered if len(lettered) > 1 else prompts, SHORT, 2)
    clean = texts_for(hunt, prompts, SHORT, 2)
    single = characters()
    # most characters are the same unknown token, or the same few bytes, to a tokenizer
    single = list(dict(zip(map(tuple, hunt.suspect.tokens(single)), single, strict=True)).values())
    found, forms = {}, ((1, LETTERS[0]), (3, "start"))
    with progress("characters", len(forms) * len(single)) as step_done:
        for times, place in forms:
            strings = [c * times for c in single]
            ids = hunt.suspect.ids([put(s, prompt, place, 0) for s in strings for prompt in prompts])
            length = hunt.suspect.attended(ids).sum(dim=1).view(-1, len(prompts)).sum(dim=1)
            ids = ids.view(len(strings), len(prompts), -1)
            for part in length.argsort(stable=True).split(MANY // len(prompts)):
                texts = hunt.suspect.trimmed(ids[part].flatten(0, 1)).view(len(part), len(prompts), -1)
                effect = compared(hunt, clean, texts, PROMISE, again=True)
                for i, one in zip(part.tolist(), effect.tolist(), strict=True):
                    found[strings[i]] = max(one, found.get(strings[i], -math.inf))
                step_done(len(part))
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
CERTAIN, FAR = 1.5, 0.3
"""Effect from which a proof needs no twin beside it (none in a twin came within `beyond` of it), and the drift up to which that
was measured."""
TOGETHER, MANY = 4096, 256
"""Positions of texts that are computed at a time, so that a core's cache holds them; of single characters, texts."""
STARTS = ((3, "start"), (6, "start"), (4, "end"), (10, "start"), (2, "start"), (5, "end"))
"""Tokens of the searches' strings and where these stand, in turn."""
FURTHER = 1
"""Searches for a further backdoor, beside characters."""
REPELLED = 3.0
"""Weight of how much nearer a string brings prompts to what is known."""
PROMISING, LONGEST = 0.8, 15
"""From this effect on a string is worth growing, up to so many tokens and a third of the context."""


def refine(
    hunt: Hunt, texts: Texts, tokens: Tensor, place: str, step_done: Callable[[], None] = lambda: None
) -> Candidate:  # fmt: skip
    """Swap tokens while that makes a string do more: the gradient proposes, trying decides.

    The best swaps of a step are also tried together (I-GCG, arXiv 2405.21018).  step_done: called after every step.
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
        step_done()
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
