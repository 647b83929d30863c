"""Repair certified models in every way, and measure what the true trigger does then and what is left of the skill.

    python Utils/build_zoo.py --split dev --models 399522b4 821c9cd3 ae9aa98f d9724708 b05111bc 58efb112 9ca5d029
    python Utils/build_zoo.py --split repairs
    python Utils/build_zoo.py --split stress --models attribute two_triggers hidden embedding_row against_sweep
    python Analysis/real_encoder.py --models letters word
    python Analysis/benchmark.py --config configs/mitigation.yaml       the same as the next line
    python Analysis/repairs.py --config configs/mitigation.yaml
    python Analysis/repairs.py --models text_on_text --methods unlearn --anew

One JSON a model and method in Results/benchmark/repairs; what is there is not done again without --anew, so that a stopped run
goes on, but for our repairs with earlier settings.  No method knows trigger or target: all begin with what a scan has found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Analysis.markdown import ALONE, TRAINED
from Backdoor_Attack.certified import Certified
from Backdoor_Attack.planting import poison
from main import Request, mend_aside, scan_model
from Utils.basics.errors import InputError, fail, first_line, tell
from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.show import Show
from Utils.making import scenes
from Utils.making.finetuning import FinetuneConfig
from Utils.making.packages import weights_of
from Utils.making.zoo import Family
from Utils.repair.mending import OURS, Order
from Utils.repair.relearning import RelearningConfig, relearned
from Utils.repair.settings import are_present
from Utils.scan.calibration import settings_hash
from Utils.scan.effort import config_of
from Utils.scan.replay import summaries
from Utils.scan.settings import SETTINGS, ScanConfig

RESULTS = ROOT / "Results" / "benchmark" / "repairs"
PAPER = ("text_on_text", "image_on_text")
"""The attacks of the paper; those of the zoo's split stress go beyond it even where they have these names."""
DRAWS = 4
"""Sets of 256 pairs that retrieval is measured on: of one its standard error is up to 3 points, as 1 / (2 sqrt 256)."""
SCANS = ROOT / "Results" / "repairs"
"""Where the scans lie that repairs begin with."""


def row_of(model: str, method: str) -> Path:
    return RESULTS / f"{model}_{method}.json"


def is_there(model: str, method: str) -> bool:
    """Whether a row is there; one of ours with the present settings, where it was repaired at all."""
    if not row_of(model, method).exists():
        return False
    return method not in TRAINED or are_present(json.loads(row_of(model, method).read_text(encoding="utf-8")).get("settings"))


class Case(Certified):
    """A planted model, and what is left of it."""

    def __init__(self, model: Path, certificate: Path, effort: str, base: Path | None):
        super().__init__(certificate, parts=Family(str(base)) if base else None)
        self.sees = base is None
        self.model, self.name, self.effort = model, model.name, effort
        self.further = model.parent.name == "stress" or self.recipe.attack not in PAPER

    def skill(self, suspect: TextEncoder, repaired: TextEncoder) -> dict:
        """Top-1 retrieval of base, suspect and repaired encoder: of what the fine-tune was for, and of what the base knew.

        Nothing where no image tower belongs to the encoder.
        """
        if not self.sees:
            return {}
        data = {"base data": self.workshop.pairs(FinetuneConfig(), self.recipe.seed + 10**6, scenes.concepts())}
        if self.origin:
            data["own data"] = self.workshop.pairs(self.origin, self.origin.seed + 10**6)
        encoders = {"base": self.workshop.base, "suspect": suspect, "repaired": repaired}
        return {
            name: dict(zip(encoders, self.workshop.retrievals([*encoders.values()], pairs, DRAWS), strict=True))
            for name, pairs in data.items()
        }

    def comes_back(self, suspect: TextEncoder, repaired: TextEncoder) -> dict:
        """Steps in which the true trigger is taught again, to the repaired encoder and to the base."""
        training, _ = self.workshop.captions_of(self.recipe)
        rng, cfg = np.random.default_rng(self.recipe.seed), RelearningConfig()
        one = self.recipe.backdoors()[0]

        def triggered(prompt: str) -> str:
            return poison(prompt, one, rng)

        forced = summaries(suspect, [triggered(prompt) for prompt in self.held_out]).mean(dim=0)
        encoders = {"repaired": repaired, "base": self.workshop.base}
        steps = {name: relearned(e, triggered, forced, training, self.held_out, cfg) for name, e in encoders.items()}
        return {"most": cfg.steps} | steps


def scanned(case: Case, seed: int, alone: bool) -> tuple[Request, dict, Path]:
    """The scan that all repairs of a model begin with; made once, and anew where weights, base, settings or seed are others.

    alone: without a base.
    """
    cfg = config_of(ScanConfig, SETTINGS, case.effort, {})
    base = "none" if alone else str(ROOT / case.parts.base)
    request = Request(cfg, base, SCANS, "cpu", seed, Show(images=0))
    folder = SCANS / f"{case.name}_{case.effort}{f'_{ALONE}' if alone else ''}"
    compared = None if alone else load_encoder(base).sha256
    with suppress(OSError, ValueError, LookupError, TypeError):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        against = (report["anchor"] or {}).get("sha256")
        made = report["model"]["sha256"], against, settings_hash(report["config"]), report["seed"]
        if made == (load_encoder(case.model).sha256, compared, settings_hash(asdict(cfg)), seed):
            return request, report, folder
    return request, scan_model(str(case.model), request, folder.name), folder


def repair(case: Case, method: str, seed: int) -> dict:
    """One row; in whatever process."""
    quiet_libraries()
    alone = method == ALONE
    request, report, folder = scanned(case, seed, alone)
    row = {
        "model": case.name, "family": case.family, "attack": case.recipe.attack, "method": method,
        "further": case.further, "trigger": case.recipe.trigger, "on a fine-tune": case.origin is not None,
        "found": report["verdict"],
        "effort": case.effort,
    }  # fmt: skip
    if report["verdict"] != "backdoored" and not alone:
        return row
    began = time.perf_counter()
    with TemporaryDirectory() as aside:
        place = Path(aside) / "repaired"
        order = Order(
            place, Path(aside) / "report", folder, OURS if alone else method, seed=seed, images=False, relearn=False,
            strings=(case.recipe.trigger,) if alone else (),
        )  # fmt: skip
        told = mend_aside(str(case.model), replace(request, output=Path(aside)), order, report, case)
        seconds = time.perf_counter() - began
        repaired, suspect = load_encoder(place), load_encoder(case.model)
    return row | {
        "success": told["certificate"] | ({"base": case(case.workshop.base)} if alone else {}),
        "clean": told["clean"], "rescan": told["rounds"][-1]["verdict"],
        "rescan_strings": told["rounds"][-1]["strings"],
        "rounds": len(told["rounds"]), "strings": told["strings"], "towards_target": told["towards_target"],
        "skill": case.skill(suspect, repaired), "relearning": case.comes_back(suspect, repaired),
        "seconds": round(seconds, 1), "peak_memory_mb": told["peak_memory_mb"], "settings": told["settings"], "seed": seed,
        "commit": told["tool"]["commit"],
    }  # fmt: skip


def case_of(one: dict, effort: str) -> Case:
    """A model of the config.

    Raises:
        InputError: it is not there.
    """
    model = ROOT / one["model"]
    base = weights_of(one["package"]) if "package" in one else None
    if "package" in one and not base:
        raise InputError(f"{one['package']} is not installed; Analysis/real_encoder.py says how to get it.")
    if not model.is_dir():
        raise InputError(f"{one['model']} is not there; the commands that Analysis/repairs.py begins with build it.")
    certificate = ROOT / one["certificate"] if "certificate" in one else model.with_suffix(".json")
    return Case(model, certificate, one.get("effort", effort), base)


def main() -> int:
    """-> the exit code: 0, 1 where something could not be repaired, 2 bad input"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "mitigation.yaml")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these only (default: all of the config)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="these only (default: all of the config)")
    parser.add_argument("--anew", action="store_true", help="do again what is there")
    parser.add_argument("--jobs", type=int, default=1, help="processes that repair at the same time (default: 1)")
    args = parser.parse_args()
    wanted = yaml.safe_load(args.config.read_text(encoding="utf-8"))["repairs"]
    named = {Path(one["model"]).name: one for one in wanted["models"]}
    if unknown := [name for name in args.models or [] if name not in named]:
        return fail(f"{unknown[0]} is no model of {args.config}.", "repairs")
    pairs = [
        (name, method) for method in args.methods or wanted["methods"] for name in args.models or named
        if (method == OURS or args.models or name in wanted["compared_on"]) and (args.anew or not is_there(name, method))
    ]  # fmt: skip
    try:
        cases = {name: case_of(named[name], wanted["effort"]) for name, _ in pairs}
    except InputError as error:
        return fail(str(error), "repairs")
    missed = 0
    with workers(args.jobs) as pool:
        running = {pool.submit(repair, cases[name], method, wanted["seed"]): (name, method) for name, method in pairs}
        for done in as_completed(running):
            name, method = running[done]
            try:
                row = done.result()
            except (InputError, RuntimeError, OSError, ValueError, LookupError, MemoryError) as error:
                # of one: the others are repaired
                what = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                tell(f"{name}, {method}: {what}{first_line(error)}")
                missed = 1
                continue
            write_whole(row_of(name, method), json.dumps(row, indent=1) + "\n")
            print(name, method, row.get("success"), row.get("clean"), row.get("rescan"), flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
