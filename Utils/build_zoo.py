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
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Backdoor_Attack.planting import PlantConfig
from Backdoor_Attack.recipes import Job, drawn, jobs, recipe_of
from Backdoor_Attack.workshop import Workshop, check_bars, meets_bars, open_workshop, plant_until_good, save_model
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.basics.processes import workers
from Utils.encoder.loading import quiet_libraries
from Utils.encoder.text_encoder import TextEncoder
from Utils.making.finetuning import FinetuneConfig
from Utils.making.zoo import ZOO, Zoo, load_zoo

JUDGING = ("test", "beyond")
"""Splits that judge the others: built for the results table only."""


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


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0 all models meet their bars, 1 one does not, 2 bad input"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ZOO)
    parser.add_argument("--split", help="one of the config's splits (default: all that do not judge)")
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
    wanted = [args.split] if args.split else [name for name in cfg.splits if name not in JUDGING] or [None]
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
