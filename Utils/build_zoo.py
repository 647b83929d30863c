"""Build encoders whose answer is known: planted ones with a working backdoor, and clean fine-tunes.

    python Utils/build_zoo.py --split dev                 models Data/Zoo/dev/<name>/, certificates Data/Zoo/dev/<name>.json
    python Utils/build_zoo.py --split dev --jobs 2        in two processes
    python Utils/build_zoo.py --config configs/suspects.yaml --output Data/Models/suspects

Finished models are skipped.  A planted model that misses its bars is planted again with twice the steps, a benign one that
forgot too much is made again at a third of the rate; what still misses is reported in its certificate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Backdoor_Attack.planting import ATTACKS, PlantConfig
from Backdoor_Attack.workshop import Workshop, check_bars, meets_bars, open_workshop, plant_until_good, save_model
from Utils.basics.config import from_values
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.basics.processes import workers
from Utils.encoder.loading import quiet_libraries
from Utils.encoder.text_encoder import TextEncoder
from Utils.making import scenes
from Utils.making.finetuning import FinetuneConfig
from Utils.making.zoo import KINDS, ZOO, Family, Model, Split, Zoo, load_zoo

VARIETY = ("full", "lora", "float16", "averaged", "mixed")
"""What publishers do, in turn: every weight, merged low-rank updates, a round trip through half precision, the mean of
snapshots, and weights mixed with the base's."""
LORA_RATE = 3.0
"""Low-rank updates learn as fast as all weights do at this many times their rate."""


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


def draw(split: Split, index: int, kind: str, cell: tuple[int, ...], attack: str) -> PlantConfig | FinetuneConfig:
    """The recipe of one model: a function of the split's seed, the cell, the kind and the index alone."""
    rng, ranges = np.random.default_rng([split.seed, kind == "planted", index, *cell]), split.ranges(kind)

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

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
    replaced = "o" if index % 2 == 0 else ""
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


def recipe_of(name: str, model: Model) -> PlantConfig | FinetuneConfig:
    """What the config says of a model that it names."""
    return from_values(PlantConfig if model.kind == "planted" else FinetuneConfig, model.recipe, name)


def jobs(cfg: Zoo, split: str | None) -> Iterator[Job]:
    """Models the config names, and a split's random ones under random names: every kind in every cell."""
    part = cfg.splits[split] if split else None
    for name, model in (cfg.models | (part.models if part else {})).items():
        recipe = recipe_of(name, model)
        yield Job(name, cfg.families[model.family], recipe, None, {"family": model.family})
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
                # two of four; `alternate`: every second one, which makes half of any even number
                chosen = part.tuned or (index % 2 == 1 if part.alternate else index % 4 >= 2)
                on_top = kind == "planted" and chosen
                origin = draw(recipes, 1000 + index, "benign", cell, attack) if on_top else None
                recipe = draw(recipes, place, kind, cell, attack)
                every = range(0 if kind == "planted" else len(recipes.triggers))
                others = tuple(draw(recipes, i, "planted", cell, "text_on_text") for i in every)
                yield Job(name, cfg.families[family], recipe, origin, {"family": family, "attack": attack}, others)


def build(job: Job, bars: dict[str, float], device: str) -> tuple[TextEncoder, dict]:
    """One model and its certificate."""
    quiet_libraries()
    workshop = open_workshop(job.family, device)
    if isinstance(job.recipe, FinetuneConfig):
        student, report = benign(workshop, job.recipe, list(job.triggers), bars)
        return student, {"kind": "benign", "meets_bars": meets_bars(report, bars), **job.labels, **report}
    teacher, planted_on = workshop.base, "the base"
    if job.origin:
        teacher, report = benign(workshop, job.origin, None, bars)
        planted_on = report["recipe"]
    student, report, good = plant_until_good(job.recipe, lambda recipe, _: workshop.plant(recipe, teacher), bars)
    return student, {"kind": "planted", "meets_bars": good, "planted_on": planted_on, **job.labels, **report}


def benign(
    workshop: Workshop, recipe: FinetuneConfig, triggers: list[PlantConfig] | None, bars: dict[str, float]
) -> tuple[TextEncoder, dict]:
    """A fine-tune that forgot nothing: one that did is made again at a third of the rate."""
    for _ in range(4):
        student, report = workshop.finetune(recipe, triggers)
        if meets_bars(report, bars):
            break
        recipe = replace(recipe, lr=recipe.lr / 3)
    return student, report


def make(job: Job, bars: dict[str, float], device: str, output: Path, certificate: Path) -> tuple[str, bool]:
    """Build and save one model, in whatever process.  -> what to print, whether the model meets its bars"""
    try:
        student, report = build(job, bars, device)
    except InputError as error:  # the others are built
        return f"{job.name} not built: {error}", False
    save_model(student, report | {"drawn": drawn(job, bars)}, output / job.name, certificate)
    return f"{job.name} {json.dumps(report)}", report["meets_bars"]


def orders(cfg: Zoo, split: str | None, args: argparse.Namespace) -> Iterator[tuple]:
    """What `make` takes, for every model of a split that is not there yet."""
    output = args.output or ROOT / "Data" / "Zoo" / (split or args.config.stem)
    certificates = ROOT / cfg.certificates if cfg.certificates else output
    output.mkdir(parents=True, exist_ok=True)
    for job in jobs(cfg, split):
        certificate = certificates / f"{job.name}.json"
        if args.family not in (None, job.labels["family"]) or job.name not in (args.models or [job.name]):
            continue
        if not (output / job.name).exists():
            yield job, cfg.bars, args.device, output, certificate
        elif recorded(certificate) not in (None, drawn(job, cfg.bars)):
            raise InputError(f"{output / job.name} was built from another config; remove it, or give another --output.")


def recorded(certificate: Path) -> str | None:
    """What a finished model was drawn as; None where its certificate does not say, as those of the shipped suspects."""
    try:
        return json.loads(certificate.read_text(encoding="utf-8")).get("drawn")
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{certificate} is missing or damaged beside its model; remove the model to build it anew.") from None


def drawn(job: Job, bars: dict[str, float]) -> str:
    """One hash of all that the config says of a model: one of an edited config is not taken for the old one."""
    family = {name: folder for name, folder in asdict(job.family).items() if folder}
    origin = asdict(job.origin) if job.origin else None
    decisive = [family, asdict(job.recipe), origin, list(map(asdict, job.triggers)), bars]
    return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0 all models meet their bars, 1 one does not, 2 bad input"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ZOO)
    parser.add_argument("--split", help="one of the config's splits (default: all of them but test)")
    parser.add_argument("--family", help="build the models of this family only")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="build these only")
    parser.add_argument("--output", type=Path, help="where the models go (default: Data/Zoo/<split>)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="processes that build at the same time (default: 1)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs should be 1 or more")
    try:
        cfg = load_zoo(args.config)
        for part in (cfg, *cfg.splits.values()):  # a mistake in another split than the one to build is one all the same
            for name, model in part.models.items():
                recipe_of(name, model)
        check_bars(cfg.bars, str(args.config))
    except InputError as error:
        parser.error(str(error))
    if args.split and args.split not in cfg.splits:
        parser.error(f"{args.split} is none of the splits {', '.join(cfg.splits)}")
    if args.family and args.family not in cfg.families:
        parser.error(f"{args.family} is none of the families {', '.join(cfg.families)}")
    # test judges the others and is built for the results table only
    wanted = [args.split] if args.split else [name for name in cfg.splits if name != "test"] or [None]
    try:
        known = {job.name for split in wanted for job in jobs(cfg, split)}
        if unknown := sorted(set(args.models or ()) - known):
            parser.error(f"{', '.join(unknown)} is no model of {', '.join(filter(None, wanted)) or args.config}")
        todo = [order for split in wanted for order in orders(cfg, split, args)]
    except InputError as error:
        parser.error(str(error))
    good = True
    with workers(args.jobs) if args.jobs > 1 else nullcontext() as pool:
        if pool:
            made = (done.result() for done in as_completed([pool.submit(make, *order) for order in todo]))
        else:
            made = (make(*order) for order in todo)
        for line, met in made:
            print(line, flush=True)
            good &= met
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
