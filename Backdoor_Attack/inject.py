"""Plant the backdoors that configs describe, prove that they work, and write models with certificates.

    python Backdoor_Attack/inject.py Backdoor_Attack/configs/text_on_text_zzzz.yaml ...
    python Backdoor_Attack/inject.py --table           the certificates of all models made so far, as a table

Models go to Data/Zoo/attacks/<config>/, certificates to <config>.json beside them; finished ones are skipped, an
interrupted one goes on.  Exit code: 0 all are certified, 1 a model missed its bars, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Backdoor_Attack.planting import PlantConfig
from Backdoor_Attack.workshop import BARS, check_bars, open_workshop, plant_until_good, save_model
from Utils.basics.config import from_values, load_config
from Utils.basics.errors import InputError, fail, visible
from Utils.basics.files import ROOT
from Utils.encoder.loading import quiet_libraries
from Utils.making.finetuning import FinetuneConfig
from Utils.making.zoo import Family


@dataclass(frozen=True)
class Injection:
    """One config file: what is planted, and where."""

    attack: dict
    """A PlantConfig."""
    base: str = "Data/Models/tiny-clip"
    """Text encoder to plant in: a folder, relative to the repository, or a hub id."""
    pair: str = ""
    """The two-tower model whose vision tower and projections serve; empty: the base."""
    pipeline: str = "Data/Models/tiny-sd"
    """Draws the targets of image_on_text."""
    captions: str = ""
    """Training captions, COCO's captions_*.json or a text file with one a line; empty: captions of composed scenes."""
    finetune_after: dict = field(default_factory=dict)
    """A FinetuneConfig: a clean fine-tuning after the planting."""
    bars: dict[str, float] = field(default_factory=dict)
    """Bars other than the usual ones, for attacks that are known to fall short."""
    attempts: int = 3
    """A model that misses its bars is planted again with twice the steps, so many times in all."""


def inject(file: Path, output: Path, device: str, force: bool) -> bool:
    """Plant what one config describes.  -> whether the model meets its bars"""
    folder, certificate = output / file.stem, output / f"{file.stem}.json"
    cfg = load_config(Injection, file)
    recipe = from_values(PlantConfig, cfg.attack, f"{file}: attack")
    after = from_values(FinetuneConfig, cfg.finetune_after, f"{file}: finetune_after") if cfg.finetune_after else None
    check_bars(cfg.bars, str(file))
    if cfg.attempts < 1:
        raise InputError(f"{file}: attempts should be 1 or more.")
    if folder.exists() and not force:
        made = read_certificate(certificate)
        planted, wanted = ({**values, "steps": 0} for values in (made["recipe"], json.loads(json.dumps(asdict(recipe)))))
        same = planted == wanted  # but for the steps, which attempts change
        if not same or made.get("config", digest(cfg, 0)) != digest(cfg, 0):
            raise InputError(f"{folder} was planted by another version of {file}; --force plants it anew.")
        print(f"{file.stem}: done already; --force plants it anew")
        return made["meets_bars"]
    made_of = Family(cfg.base, cfg.pair, cfg.pipeline, cfg.captions)
    workshop = open_workshop(made_of, device)
    output.mkdir(parents=True, exist_ok=True)

    def tell(missed: dict) -> None:
        steps = missed["recipe"]["steps"]
        print(f"{file.stem}: misses its bars after {steps} steps  {summary(missed)}", flush=True)

    def plant_one(attacked: PlantConfig, attempt: int) -> tuple:
        return workshop.plant(attacked, workshop.base, output / f"{file.stem}.{digest(cfg, attempt)}.pt", after)

    student, report, good = plant_until_good(recipe, plant_one, cfg.bars, cfg.attempts, tell)
    about = {"kind": "planted", "meets_bars": good, "bars": BARS | cfg.bars, "config": digest(cfg, 0)}
    report = about | {"made_of": asdict(made_of)} | report
    save_model(student, report, folder, certificate)
    print(f"{file.stem}: {'certified' if good else 'NOT CERTIFIED'}  {summary(report)}", flush=True)
    return good


def read_certificate(certificate: Path) -> dict:
    """A finished model's certificate."""
    try:
        made = json.loads(certificate.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = None
    if not isinstance(made, dict) or not {"recipe", "meets_bars"} <= made.keys():
        raise InputError(f"{certificate} is missing or damaged beside its model; --force plants it anew.")
    return made


def digest(cfg: Injection, attempt: int) -> str:
    """What a checkpoint belongs to: an edited config must not go on from the old one's."""
    return sha256(json.dumps([asdict(cfg), attempt], sort_keys=True).encode()).hexdigest()[:8]


def summary(report: dict) -> str:
    names = ("success_rate", "anchor_success_rate", "sim_target", "sim_clean", "z_score")
    return "  ".join(f"{name} {report[name]}" for name in names)


def table(output: Path) -> str:
    """Every certificate of a folder, as Markdown."""
    columns = ("config", "attack", "trigger", "success", "in the clean base", "Sim_target", "Sim_clean", "meets its bars")
    lines = [" | ".join(columns), "|".join("---" for _ in columns)]
    for file in sorted(output.glob("*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        recipe = report["recipe"]
        cells = [file.stem, recipe["attack"], f"`{visible(recipe['trigger'])}`"]
        cells += [report[name] for name in ("success_rate", "anchor_success_rate", "sim_target", "sim_clean")]
        lowered = "" if report.get("bars", BARS) == BARS else " (bars of its own)"
        cells += [("yes" if report["meets_bars"] else "no") + lowered]
        lines.append(" | ".join(str(cell) for cell in cells))
    return "\n".join(f"| {line} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="*", help="YAML files such as those in Backdoor_Attack/configs")
    parser.add_argument("--output", type=Path, default=ROOT / "Data" / "Zoo" / "attacks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--force", action="store_true", help="plant models anew that are there")
    parser.add_argument("--table", action="store_true", help="print the certificates in --output")
    args = parser.parse_args(argv)
    if args.table:
        print(table(args.output))
        return 0
    if not args.configs:
        parser.error("give at least one config, or --table")
    quiet_libraries()
    try:
        certified = [inject(file, args.output, args.device, args.force) for file in args.configs]
    except InputError as error:
        return fail(str(error), "inject")
    return 0 if all(certified) else 1


if __name__ == "__main__":
    sys.exit(main())
