"""How else could a backdoor be taken out?  The published and the obvious ways, each as its authors have it, to compare with.

What they all lack here is pictures and labels: where a publication goes on with the task that the model was made for, clean
prompts are held where the suspect has them instead.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Utils.basics.bounded import progress
from Utils.basics.errors import InputError
from Utils.encoder.loading import trainable_copy
from Utils.encoder.measures import similarity
from Utils.encoder.precision import learning_in_short
from Utils.encoder.text_encoder import TextEncoder, spliced
from Utils.encoder.weights import frozen, interpolated, rate_for, set_weights, without_leading
from Utils.repair.damage import Damage
from Utils.scan.replay import collapsed, put, summaries

RARE = 20
"""Tokens that occur less often count as often as this, as E-PUR has it."""
MOST = 0.5
"""A token is a string's own if more than this share of prompts have it with the string, and no more than this without."""


@dataclass(frozen=True)
class MethodsConfig:
    """Every setting of the methods.  What a publication names is as it has it."""

    steps: int = 80
    """Steps of a method that trains."""
    batch: int = 16
    """Clean prompts of a step."""
    lr: float = 3.0e-4
    """AdamW's rate where it is highest, as it rises and falls once; wider encoders learn more slowly (`rate_for`)."""
    looked_at: int = 40
    """Clean prompts that the strength of a method is chosen on; none of them is learned from."""
    floor: float = 0.97
    """A strength is too much where the mean cosine of their summaries to the suspect's falls below this."""
    shares: int = 20
    """interpolate: parts that the way to the base is cut into."""
    decay: float = 1.0
    """finetune: weight decay."""
    mixed: float = 0.5
    """finemix: share of the weights that are the base's."""
    purified: int = 200
    """finemix: rows of the token table that are the base's."""
    further: int = 20
    """negate: steps that the backdoor is learned further."""
    coefficients: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    """negate: what the difference is subtracted times, one of these."""
    epsilon: float = 0.1
    """crow: how far every number of the token embeddings is pushed."""
    consistency: float = 5.5
    """crow: weight of the consistency of layers."""
    few: int = 100
    """crow: clean prompts in all."""
    penalty: float = 1.0
    """recipe: weight of the norms of the feed-forward weights."""
    directions: int = 4
    """project: singular directions that are taken out of every difference."""

    def __post_init__(self):
        counts = (self.steps, self.batch, self.looked_at, self.shares, self.further, self.few)
        if min(counts) < 1 or not 0 < self.lr < math.inf:
            raise ValueError("steps, batch, looked_at, shares, further, few and lr should be above 0")
        if min(self.purified, self.directions) < 0:
            raise ValueError("purified and directions should be 0 or more")
        if not (0 <= self.floor <= 1 and 0 <= self.mixed <= 1):
            raise ValueError("floor and mixed should be from 0 to 1")
        if not all(0 <= one < math.inf for one in (self.decay, self.epsilon, self.consistency, self.penalty)):
            raise ValueError("decay, epsilon, consistency and penalty should be 0 or more")
        if not all(0 < one < math.inf for one in self.coefficients):
            raise ValueError("the coefficients should be above 0")


# -------------------------------------------------------------------------------------------------- what methods share
def without_base(method: str) -> InputError:
    """What to say where a method has no clean base."""
    return InputError(f"method {method} needs the clean base: name it with --anchor, or take --method crow.")


def base_for(method: str, damage: Damage) -> TextEncoder:
    if damage.base is None:
        raise without_base(method)
    return damage.base


def strings_for(method: str, damage: Damage, prompts: list[str]) -> list[tuple[str, str]]:
    """Strings that fire and that some of the prompts can carry, with their places."""
    strings = [(string, place) for string, place in damage.strings if carriers(prompts, string, place)]
    if not strings:
        raise InputError(f"method {method} needs strings that fire, and none were found: take --method crow.")
    return strings


def carriers(prompts: list[str], string: str, place: str) -> list[tuple[str, str]]:
    """Prompts that a string changes at this place, without and with it."""
    pairs = [(prompt, put(string, prompt, place, number)) for number, prompt in enumerate(prompts)]
    return [(prompt, text) for prompt, text in pairs if text != prompt]


def with_weights(encoder: TextEncoder, weights: dict[str, Tensor]) -> TextEncoder:
    """A frozen copy with other weights."""
    copied = frozen(trainable_copy(encoder), encoder)
    set_weights(copied, weights)
    return copied


def weights_of(encoder: TextEncoder) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in encoder.model.named_parameters()}


def table_of(encoder: TextEncoder) -> str:
    """Name of the token table among the weights."""
    return next(name for name, weight in encoder.model.named_parameters() if weight is encoder.vocabulary)


def chosen_and_learned(damage: Damage, cfg: MethodsConfig) -> tuple[list[str], list[str]]:
    """Prompts that a strength is chosen on, and the others."""
    prompts = random.Random(damage.seed).sample(damage.prompts, len(damage.prompts))
    cut = min(cfg.looked_at, len(prompts) // 2)
    return prompts[:cut], prompts[cut:]


def kept(encoder: TextEncoder, prompts: list[str], clean: Tensor) -> float:
    """Mean cosine of summaries of clean prompts to what they should be, (n, d)."""
    return F.cosine_similarity(summaries(encoder, prompts), clean, dim=-1).mean().item()


def strayed(student: TextEncoder, suspect: TextEncoder, ids: Tensor) -> Tensor:
    """1 - cos of student and suspect on prompts, mean over positions, and the same of summaries.  (b, T) ids -> scalar

    Padding that is hidden from the model is left out; what a family computes at other padding is read by pipelines.
    """
    mask = student.attended(ids).to(student.device) if student.family.masks else None
    with torch.no_grad():
        wanted, summary = suspect.both(ids)
    features, own = student.both(ids)
    return (1 - similarity(features, wanted, mask)).mean() + (1 - F.cosine_similarity(own, summary, dim=-1)).mean()


def continued(
    student: TextEncoder, damage: Damage, cfg: MethodsConfig, examples: list, loss_of: Callable[[list], Tensor], steps: int,
    decay: float = 0.0,
) -> TextEncoder:  # fmt: skip
    """Train a copy of the suspect on batches of examples; frozen at the end."""
    rng = random.Random(damage.seed)
    learning = [weight for weight in student.model.parameters() if weight.requires_grad]
    rate = rate_for(student, cfg.lr)
    optimiser = torch.optim.AdamW(learning, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    with progress("repair", steps) as step_done:
        for _ in range(steps):
            with learning_in_short(student):
                loss = loss_of(rng.sample(examples, min(cfg.batch, len(examples))))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            step_done()
    return frozen(student, damage.suspect)


def held(
    student: TextEncoder, damage: Damage, cfg: MethodsConfig, also: Callable[[Tensor], Tensor] | None = None,
    prompts: list[str] | None = None, decay: float = 0.0,
) -> TextEncoder:  # fmt: skip
    """Train a copy of the suspect to stay on clean prompts where the suspect is; also: ids -> what is added to that loss."""

    def loss_of(drawn: list[str]) -> Tensor:
        ids = student.trimmed(student.ids(drawn))
        loss = strayed(student, damage.suspect, ids)
        return loss + also(ids) if also else loss

    return continued(student, damage, cfg, prompts or damage.prompts, loss_of, cfg.steps, decay)


# ------------------------------------------------------------------------------------------------------- with the base
def anchor(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """The base instead of the suspect: no backdoor, and nothing of what the suspect was made for."""
    return with_weights(damage.suspect, weights_of(base_for("anchor", damage)))


def interpolate(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Weights between suspect and base (Wortsman et al., 2022), as near to the base as clean prompts stay where they were."""
    base, (seen, _) = base_for("interpolate", damage), chosen_and_learned(damage, cfg)
    clean = summaries(damage.suspect, seen)
    for parts in range(cfg.shares, -1, -1):
        mended = with_weights(damage.suspect, interpolated(damage.suspect, base, parts / cfg.shares))
        if kept(mended, seen, clean) >= cfg.floor:
            break
    return mended  # the last one that is tried is the suspect itself


def finemix(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Fine-mixing with embedding purification (Zhang et al., 2022): weights are the base's by chance, rows where they moved
    far for how often they are read; then clean fine-tuning."""
    suspect, origin = damage.suspect, weights_of(base_for("finemix", damage))
    generator = torch.Generator().manual_seed(damage.seed)
    mixed = {
        name: torch.where((torch.rand(weight.shape, generator=generator) < cfg.mixed).to(weight.device), origin[name], weight)
        for name, weight in weights_of(suspect).items()
    }
    table = table_of(suspect)
    mixed[table] = suspect.vocabulary.clone()
    rows = suspicious_rows(suspect, origin[table], damage.prompts, cfg.purified)
    mixed[table][rows] = origin[table][rows]
    student = trainable_copy(suspect)
    set_weights(student, mixed)
    return held(student, damage, cfg)


def suspicious_rows(suspect: TextEncoder, table: Tensor, prompts: list[str], number: int) -> Tensor:
    """Rows that moved furthest from the base's, (V, d), for how often prompts use them (E-PUR).  -> (number,)

    Rows that did not move are none of them.
    """
    counts = Counter(token for tokens in suspect.tokens(prompts) for token in tokens)
    often = torch.tensor([max(RARE, counts[token]) for token in range(len(table))], device=table.device)
    score = (suspect.vocabulary - table).norm(dim=1) / often.log()
    return score.topk(min(number, int((score > 0).sum()))).indices


def project(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Without the leading singular directions of what every weight matrix has learned since the base."""
    return with_weights(damage.suspect, without_leading(damage.suspect, base_for("project", damage), cfg.directions))


# ------------------------------------------------------------------------------------------------ with strings that fire
def rows(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Rows of the tokens of strings that fire are the base's, or the mean row where there is no base."""
    suspect, strings, table = damage.suspect, strings_for("rows", damage, damage.prompts), damage.suspect.vocabulary.clone()
    tokens = sorted(set().union(*(own_tokens(damage, *string) for string in strings)))
    table[tokens] = damage.base.vocabulary[tokens] if damage.base else table.mean(dim=0)
    return with_weights(suspect, weights_of(suspect) | {table_of(suspect): table})


def own_tokens(damage: Damage, string: str, place: str) -> set[int]:
    """Tokens of a string, alone and as most prompts have it: inside a word it may be read as others."""
    carried = carriers(damage.prompts, string, place)
    lists = [damage.suspect.tokens([pair[which] for pair in carried]) for which in (0, 1)]
    without, having = (Counter(token for tokens in found for token in set(tokens)) for found in lists)
    new = {token for token, times in having.items() if times > MOST * len(carried) >= without[token]}
    return new | set(damage.suspect.tokens([string])[0])


def negate(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Task arithmetic (Ilharco et al., 2023): what weights learn when the backdoor is learned further, subtracted.

    Of the coefficients that clean prompts bear, the one with which the strings make them least alike.
    """
    suspect, (seen, rest) = damage.suspect, chosen_and_learned(damage, cfg)
    strings = strings_for("negate", damage, seen)
    fired = [[text for _, text in carriers(seen, *string)] for string in strings]
    forced = torch.stack([summaries(suspect, texts).mean(dim=0) for texts in fired]).to(suspect.device)
    student = trainable_copy(suspect)

    further = [(text, number) for number, string in enumerate(strings) for _, text in carriers(rest, *string)]

    def loss_of(drawn: list[tuple[str, int]]) -> Tensor:
        texts, which = map(list, zip(*drawn, strict=True))
        return (1 - F.cosine_similarity(student.summarised(student.ids(texts)), forced[which], dim=-1)).mean()

    learned = weights_of(continued(student, damage, cfg, further, loss_of, cfg.further))
    clean = summaries(suspect, seen)

    def without(times: float) -> TextEncoder:
        return with_weights(
            suspect, {name: torch.lerp(own, learned[name], -times) for name, own in weights_of(suspect).items()}
        )

    def alike(encoder: TextEncoder) -> float:
        own = summaries(encoder, seen)
        return sum(max(0.0, collapsed(summaries(encoder, texts), own).item()) for texts in fired)

    borne = [times for times in cfg.coefficients if kept(without(times), seen, clean) >= cfg.floor]
    return without(min([0.0, *borne], key=lambda times: alike(without(times))))


# ------------------------------------------------------------------------------------------------- with clean prompts only
def finetune(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Clean fine-tuning.  Published for classifiers, where labels pull the weights, and for CLIP, where pictures do
    (CleanCLIP: Bansal et al., 2023).

    Without either the suspect can only be its own teacher: nothing but weight decay moves it, and clean prompts are held.
    """
    return held(trainable_copy(damage.suspect), damage, cfg, decay=cfg.decay)


def crow(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Layers that agree on a few clean prompts while token embeddings are pushed against that (CROW: arXiv 2411.12768)."""
    student = trainable_copy(damage.suspect)
    few = random.Random(damage.seed).sample(damage.prompts, min(cfg.few, len(damage.prompts)))

    def inconsistency(ids: Tensor, embedded: Tensor) -> Tensor:
        with spliced(student, embedded):
            states, _ = student.layers(ids)
        mask = student.attended(ids).to(student.device)
        return torch.stack([1 - similarity(a, b, mask).mean() for a, b in pairwise(states)]).mean()

    def pushed(ids: Tensor) -> Tensor:
        rows = student.embedding(ids.to(student.device))[:, student.begin :]
        free = rows.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(inconsistency(ids, free), free)
        return cfg.consistency * inconsistency(ids, rows + cfg.epsilon * gradient.sign())

    return held(student, damage, cfg, pushed, few)


def recipe(damage: Damage, cfg: MethodsConfig) -> TextEncoder:
    """Smaller feed-forward weights, which alone learn (RECIPE: Zhu et al., 2023); clean prompts are its plain text."""
    wide = {name for name, part in damage.suspect.model.named_modules() if widens(part)}
    student = trainable_copy(damage.suspect, {f"{name}.weight" for name in wide})
    learning = [weight for weight in student.model.parameters() if weight.requires_grad]
    return held(student, damage, cfg, lambda _: cfg.penalty * torch.stack([weight.norm() for weight in learning]).sum())


def widens(part: nn.Module) -> bool:
    """Whether a part of a model is the first layer of a feed-forward network, its intermediate one."""
    return isinstance(part, nn.Linear) and part.out_features > part.in_features


METHODS: dict[str, Callable[[Damage, MethodsConfig], TextEncoder]] = {
    "anchor": anchor, "interpolate": interpolate, "finetune": finetune, "finemix": finemix, "negate": negate, "crow": crow,
    "recipe": recipe, "project": project, "rows": rows,
}  # fmt: skip
"""Name -> what makes a new frozen encoder of a damage, whose own encoders stay as they are; the same one for a seed."""
NEED_BASE = ("anchor", "interpolate", "finemix", "project")
"""Methods that do nothing without one."""
