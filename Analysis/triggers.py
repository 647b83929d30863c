"""How many planted models does the search for strings find, and what does it say of clean ones?

    python Utils/build_zoo.py --split dev
    python Analysis/triggers.py --zoo Data/Zoo/dev Data/Zoo/stress Data/Zoo/strings
    python Analysis/triggers.py --zoo Data/Zoo/dev --effort quick

The search for strings of a scan, alone.  Writes Results/benchmark/triggers.json, one row a model (triggers_quick.json for
--effort quick), and into configs/power.yaml what the scan says of its own power.  Resumes: rows of the same settings stay, but
for --anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, pick_device, quiet_libraries
from Utils.encoder.precision import AUTO, NAMES, pick_precision
from Utils.making.certificates import RIGHT
from Utils.scan.effort import EFFORTS, USUAL, config_of
from Utils.scan.power import POWER
from Utils.scan.proof import verdict_of
from Utils.scan.settings import SETTINGS, ScanConfig
from Utils.scan.strings import described
from Utils.scan.trigger import Means, find_strings

RESULTS = ROOT / "Results" / "benchmark"
PIECE = 2
"""Characters that a string shares with the planted one where it holds a piece of it; all of it where that is shorter."""


def judge(certificate: Path, cfg: ScanConfig, anchor: str, seed: int, device: str, precision: str) -> dict:
    """What one model is, and what strings say of it."""
    quiet_libraries()
    truth = json.loads(certificate.read_text(encoding="utf-8"))
    suspect = load_encoder(str(certificate.with_suffix("")), pick_device(device))
    base, _ = pick_anchor(anchor, suspect, suspect.device)
    prompts, generator = read_prompts(ROOT / cfg.corpus), torch.Generator().manual_seed(seed)
    v = torch.randn(cfg.k, suspect.width, generator=generator) * suspect.vocabulary.std().cpu()
    began, fit = time.perf_counter(), prompts[: int(cfg.prompts * cfg.fit_fraction)]
    numbers = pick_precision(precision, suspect).strings
    strings = find_strings(suspect, base, fit, prompts[cfg.prompts :], v, cfg.trigger, generator, Means(numbers))
    seconds = time.perf_counter() - began
    recipe = truth["recipe"] if truth["kind"] == "planted" else {}
    said, shown = verdict_of(strings), (strings.strong or strings.found)[:1]
    text = shown[0].text if shown else ""
    return {
        "split": certificate.parent.name, "name": certificate.stem, "family": truth.get("family", "clip"),
        "kind": truth["kind"], "attack": recipe.get("attack", ""), "trigger": recipe.get("trigger", ""),
        "tokens": len(base.tokens([recipe["trigger"]])[0]) if recipe else 0, "sim_clean": truth["sim_clean"],
        "drift": round(strings.drift, 4), "score": round(strings.score, 4), "natural": round(strings.natural, 4),
        "verdict": said, "right": said == RIGHT[truth["kind"]], "proven": bool(strings.proven),
        "string": described(shown[0]) if shown else None, "piece": bool(recipe) and shares(text, recipe["trigger"]),
        "likeness": round(SequenceMatcher(None, text.lower(), recipe["trigger"].lower()).ratio(), 4) if recipe else None,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def shares(text: str, trigger: str) -> bool:
    """Whether a string holds a piece of the planted one."""
    text, trigger = text.lower(), trigger.lower()
    size = SequenceMatcher(None, text, trigger, autojunk=False).find_longest_match().size
    return size >= min(PIECE, len(trigger))


def power_of(rows: list[dict], settings: dict) -> dict:
    """Attack -> found and planted, and how far the farthest went from its base, for configs/power.yaml."""
    planted = [row for row in rows if row["kind"] == "planted"]
    found = Counter(row["attack"] for row in planted if row["right"])
    kinds = {attack: [found[attack], number] for attack, number in sorted(Counter(r["attack"] for r in planted).items())}
    return {"settings": settings, "drift": max((row["drift"] for row in planted), default=0.0), "kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, nargs="+", required=True, help="folders of models with certificates")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these models only; their rows are added")
    parser.add_argument("--anew", action="store_true", help="judge models again whose rows are there already")
    parser.add_argument("--anchor", default="auto")
    parser.add_argument("--config", type=Path, default=SETTINGS)
    parser.add_argument("--effort", choices=EFFORTS, default=USUAL)
    parser.add_argument(
        "--precision", choices=NAMES, default=AUTO, help="others than auto get a file of their own, and no power"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--jobs", type=int, default=1, help="models at the same time (default: 1)")
    args = parser.parse_args()
    cfg = config_of(ScanConfig, args.config, args.effort, {})
    settings = asdict(cfg.trigger)
    words = [word for word, usual in ((args.effort, USUAL), (args.precision, AUTO)) if word != usual]
    result = RESULTS / f"{'_'.join(['triggers', *words])}.json"
    known = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    rows = known["models"] if (known.get("settings"), known.get("seed")) == (settings, args.seed) else []
    files = [file for zoo in args.zoo for file in sorted(zoo.glob("*.json"))]
    files = [file for file in files if file.stem in (args.models or [file.stem])]
    if args.anew:
        rows = [row for row in rows if (row["split"], row["name"]) not in {(file.parent.name, file.stem) for file in files}]
    done = {(row["split"], row["name"]) for row in rows}
    files = [file for file in files if (file.parent.name, file.stem) not in done]
    if not files and not rows:
        parser.error("no certificate of such a model; build some with Utils/build_zoo.py")
    with workers(args.jobs) as pool:
        for one in as_completed(
            [pool.submit(judge, file, cfg, args.anchor, args.seed, args.device, args.precision) for file in files]
        ):
            rows.append(one.result())
            row = rows[-1]
            print(
                *(row[name] for name in ("name", "family", "kind", "attack", "trigger", "score", "natural", "verdict")),
                row["string"],
                flush=True,
            )
            rows.sort(key=lambda row: (row["split"], row["family"], row["name"]))
            write_whole(result, json.dumps({"settings": settings, "seed": args.seed, "models": rows}, indent=1) + "\n")
    if args.precision == AUTO:
        measured = yaml.safe_load(POWER.read_text(encoding="utf-8")) if POWER.exists() else []
        others = [one for one in measured if one["settings"] != settings]
        write_whole(POWER, yaml.safe_dump([*others, power_of(rows, settings)], sort_keys=False))


if __name__ == "__main__":
    main()
