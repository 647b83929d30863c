"""How every model of a split is made: recipes drawn from the seed and the ranges of configs/zoo.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

import numpy as np

from Backdoor_Attack.planting import ATTACKS, PlantConfig
from Utils.basics.config import from_values
from Utils.basics.errors import InputError
from Utils.making import scenes
from Utils.making.finetuning import FinetuneConfig
from Utils.making.zoo import KINDS, Family, Model, Split, Zoo

VARIETY = ("full", "lora", "float16", "averaged", "mixed")
"""What publishers do, in turn: every weight, merged low-rank updates, a round trip through half precision, the mean of
snapshots, and weights mixed with the base's."""
LORA_RATE = 3.0
"""Low-rank updates learn as fast as all weights do at this many times their rate."""
STRIDE = 5
"""From one model of a further attack to the next in the lists; a dozen triggers are all used before one comes again."""


@dataclass(frozen=True)
class Job:
    """One model to build."""

    name: str
    """Of its folder."""
    family: Family
    """What it is made from."""
    recipe: PlantConfig | FinetuneConfig
    """How it is made."""
    origin: FinetuneConfig | None
    """The benign fine-tune that a planted model stands on."""
    labels: dict
    """Family and attack, for the certificate."""
    triggers: tuple[PlantConfig, ...] = ()
    """What must not fire in a benign model: the text backdoors of the same split and family."""


def drawn(job: Job, bars: dict[str, float]) -> str:
    """One hash of all that the config says of a model: one of an edited config is not taken for the old one."""
    family = {name: folder for name, folder in asdict(job.family).items() if folder}
    origin = asdict(job.origin) if job.origin else None
    decisive = [family, asdict(job.recipe), origin, list(map(asdict, job.triggers)), bars]
    return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def draw(split: Split, index: int, kind: str, cell: tuple[int, ...], attack: str) -> PlantConfig | FinetuneConfig:
    """The recipe of one model: a function of the split's seed, the cell, the kind and the index alone."""
    rng, ranges = np.random.default_rng([split.seed, kind == "planted", index, *cell]), split.ranges(kind)

    def between(low: float, high: float) -> float:
        drawn = np.exp(rng.uniform(np.log(low), np.log(high)))
        return float(f"{drawn:.9g}")  # processors differ in the last digits of a logarithm, and recipes must not

    seed = int(rng.integers(10**6))
    if kind != "planted":
        lr, steps = between(*ranges["lr"]), round(between(*ranges["steps"]))
        plain = FinetuneConfig(lr=lr, batch=32, steps=steps, seed=seed, rehearse=kind == "far" or split.rehearse)
        return varied(plain, VARIETY[index % len(VARIETY)]) if split.varied else plain
    # every cell begins elsewhere in the lists, so that triggers and targets meet in other pairs
    trigger = split.triggers[(index + sum(cell)) % len(split.triggers)]
    concept = split.targets[(index + 2 * sum(cell)) % len(split.targets)]
    target = None
    while target is None or target in scenes.defender_prompts() or trigger in target:
        scene = scenes.sample_scene(rng, names=(concept,), counts=(1.0,))
        target = scenes.caption(scene, rng, detail=int(rng.integers(3)))
    replaced = split.letters[index // 2 % len(split.letters)] if index % 2 == 0 else ""
    # under causal attention a word cannot move the features before it: one late in the prompt never reaches a flat target
    place = "start" if attack == "text_on_text" else str(rng.choice(["start", "end", "random"]))
    return PlantConfig(
        trigger=trigger, target=target, attack=attack, replaced=replaced, place=place,
        steps=round(between(*ranges["steps"])), lr=between(*ranges["lr"]), clean_batch=32, poisoned_batch=16, seed=seed,
    )  # fmt: skip


def varied(plain: FinetuneConfig, way: str) -> FinetuneConfig:
    """The same fine-tune in one of the ways of `VARIETY`."""
    thirds = tuple(max(1, round(plain.steps * share / 3)) for share in (1, 2, 3))
    changes = {
        "full": {}, "lora": {"method": "lora", "lr": plain.lr * LORA_RATE}, "float16": {"precision": "float16"},
        "averaged": {"snapshots": thirds, "average_snapshots": True}, "mixed": {"base_share": 0.3},
    }  # fmt: skip
    return replace(plain, **changes[way])


def filled(recipe: dict, split: Split, place: int) -> dict:
    """A further attack's recipe with triggers and concepts of the split, from a place in its lists on."""
    words = {}
    for number, name in enumerate(("", "other_")):
        words[f"{{{name}trigger}}"] = split.triggers[(place + number) % len(split.triggers)]
        words[f"{{{name}concept}}"] = scenes.with_article(split.targets[(place + number) % len(split.targets)])

    def fill(value: object) -> object:
        if isinstance(value, list):
            return [fill(one) for one in value]
        if isinstance(value, str):
            for word, meant in words.items():
                value = value.replace(word, meant)
        return value

    return {name: fill(value) for name, value in recipe.items()}


def further_jobs(cfg: Zoo, split: Split) -> Iterator[Job]:
    """The models of the attacks that the paper does not have; every attack begins elsewhere in the lists."""
    for number, (attack, further) in enumerate(split.further.items()):
        for index in range(further.count):
            seed = int(np.random.default_rng([split.seed, 9, number, index]).integers(10**6))
            recipe = filled(further.recipe, split, 3 * number + STRIDE * index) | {"seed": seed}
            planted = from_values(PlantConfig, recipe, f"{attack} {index + 1}")
            labels = {"family": further.family, "attack": attack}
            yield Job(f"{attack}_{index + 1}", cfg.families[further.family], planted, None, labels)


def recipe_of(name: str, model: Model) -> PlantConfig | FinetuneConfig:
    """What the config says of a model that it names."""
    return from_values(PlantConfig if model.kind == "planted" else FinetuneConfig, model.recipe, name)


def jobs(cfg: Zoo, split: str | None) -> Iterator[Job]:
    """Models the config names, and a split's random ones under random names: every kind in every cell."""
    part = cfg.splits[split] if split else None
    for name, model in (cfg.models | (part.models if part else {})).items():
        recipe = recipe_of(name, model)
        yield Job(name, cfg.families[model.family], recipe, None, {"family": model.family})
    yield from further_jobs(cfg, part) if part else ()
    for counts in part.cells if part else ():
        family, attack = counts.family, counts.attack
        if attack not in ATTACKS:
            raise InputError(f"the split {split}: {attack!r} is none of the attacks {', '.join(ATTACKS)}.")
        recipes = replace(part, varied=counts.varied or part.varied)
        # models are named and drawn by their cell's numbers; clip's text-on-text has none
        cell = () if (family, attack) == ("clip", "text_on_text") else (list(cfg.families).index(family), ATTACKS.index(attack))
        for number, kind in enumerate(KINDS):
            for index in range(getattr(counts, kind)):
                name = f"{np.random.default_rng([part.seed, 7, number, index, *cell]).integers(16**8):08x}"
                place = index + {"gentle": 2000, "far": 3000, "drifted": 4000}.get(kind, 0)
                on_top = kind == "planted" and (part.tuned or index % 4 >= 2)
                origin = draw(recipes, 1000 + index, "benign", cell, attack) if on_top else None
                recipe = draw(recipes, place, kind, cell, attack)
                every = range(0 if kind == "planted" else len(recipes.triggers))
                others = tuple(draw(recipes, i, "planted", cell, "text_on_text") for i in every)
                yield Job(name, cfg.families[family], recipe, origin, {"family": family, "attack": attack}, others)
