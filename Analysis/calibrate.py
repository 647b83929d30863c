"""Fit the score of the scan on models whose answer is known, and write configs/calibration.yaml.

    python Utils/build_zoo.py --split calibration
    python Analysis/calibrate.py --zoo Data/Zoo/calibration --seeds 0        all families, or --family clip

The null distribution is made of benign fine-tunes and of the anchor against itself; a logistic regression over the
witnesses gives the probability.  Scans are kept in <zoo>/witnesses.jsonl, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Analysis.fitting import SCORED, THRESHOLDS, WITNESSES, fit, missed
from main import find_trigger, prepare
from Utils.basics.config import load_config
from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.loading import fingerprint, load_encoder, pick_device, quiet_libraries
from Utils.encoder.text_encoder import TextEncoder
from Utils.making.zoo import load_zoo
from Utils.report.run import Run
from Utils.scan.settings import SETTINGS, ScanConfig, landscape_settings, search_settings


@dataclass(frozen=True)
class Scanned:
    """One scan to make: which model against which anchor, and what is known of it."""

    name: str
    folder: Path
    anchor: Path
    planted: bool
    seed: int


def measure_model(scanned: Scanned, cfg: ScanConfig, device: torch.device) -> dict:
    """The witnesses of one model, and its drift; in whatever process."""
    quiet_libraries()
    suspect, anchor = load_encoder(scanned.folder, device), load_encoder(scanned.anchor, device)
    finding = find_trigger(prepare(suspect, anchor, cfg, scanned.seed), Run())
    return {"name": scanned.name, "seed": scanned.seed, "planted": scanned.planted, **finding.values}


def key(scanned: Scanned, cfg: ScanConfig) -> str:
    """What a row of witnesses rests on."""
    weights = [load_encoder(folder).sha256 for folder in (scanned.folder, scanned.anchor)]
    return " ".join([search_settings(cfg), *weights, str(scanned.seed)])


def collect(
    zoo: Path, family: str, anchor: Path, cfg: ScanConfig, seeds: list[int], device: torch.device, jobs: int
) -> list[dict]:
    """Every model of a family and its anchor itself, each with every seed; goes on where an earlier run stopped."""
    kept, done = zoo / "witnesses.jsonl", {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        with suppress(ValueError):  # the last line of an interrupted run may be cut off
            row = json.loads(line)
            done[row["key"]] = row
    wanted = {}
    for name, folder, planted in [*models(zoo, family), ("the anchor itself", anchor, False)]:
        for seed in seeds:
            scanned = Scanned(name, folder, anchor, planted, seed)
            wanted[key(scanned, cfg)] = scanned
    with workers(jobs) as pool:
        todo = {pool.submit(measure_model, scanned, cfg, device): k for k, scanned in wanted.items() if k not in done}
        for future in tqdm(as_completed(todo), total=len(todo), desc=f"{family} scans"):
            done[todo[future]] = {"key": todo[future], **future.result()}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[todo[future]]) + "\n")
    return [done[k] for k in wanted]


def models(zoo: Path, family: str) -> Iterator[tuple[str, Path, bool]]:
    """Name, folder and truth of every model of a family; planted ones only if their backdoor works."""
    for file in sorted(zoo.glob("*.json")):
        certificate = json.loads(file.read_text(encoding="utf-8"))
        planted = certificate["kind"] == "planted"
        if certificate.get("family", "clip") == family and (certificate["meets_bars"] if planted else True):
            yield file.stem, file.with_suffix(""), planted


def separation(rows: list[dict]) -> dict[str, float]:
    """How well each witness alone tells planted from clean models: area under the ROC curve, 0.5 is a coin."""
    planted = [row["planted"] for row in rows]
    return {name: round(float(roc_auc_score(planted, [row[name] for row in rows])), 3) for name in WITNESSES}


def span(rows: list[dict], planted: bool) -> list[float]:
    """Smallest and largest drift of one kind of models."""
    drifts = [row["drift"] for row in rows if row["planted"] == planted]
    return [round(min(drifts), 4), round(max(drifts), 4)]


def calibrated(rows: list[dict], anchor: TextEncoder, cfg: ScanConfig, thresholds: tuple[float, float], command: str) -> dict:
    """One entry of configs/calibration.yaml."""
    planted = {row["name"] for row in rows if row["planted"]}
    return {
        "fingerprint": fingerprint(anchor),
        "search": search_settings(cfg),
        "landscape": landscape_settings(cfg),
        **fit(rows, *thresholds),
        "provenance": {
            "command": command,
            "planted_models": len(planted),
            "benign_models": len({row["name"] for row in rows} - planted),
            "scans": len(rows),
            "missed_by_the_search": sorted({row["name"] for row in missed(rows)}),
            "area_under_roc": separation(rows),
            "drift_of_planted": span(rows, True),
            "drift_of_benign": span(rows, False),
        },
    }


def keep_witnesses(file: Path, family: str, rows: list[dict]) -> None:
    """Write what a family's score is fitted on into a file that may hold other families' already."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    told = [
        {"family": family, "name": row["name"], "planted": row["planted"]}
        | {name: round(row[name], 5) for name in (*WITNESSES, "drift")}
        for row in rows
    ]
    kept = [*(row for row in known if row["family"] != family), *told]
    write_whole(file, "[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=ROOT / "Data" / "Zoo" / "calibration")
    parser.add_argument("--family", nargs="+", help="families of configs/zoo.yaml (default: all that the zoo holds)")
    parser.add_argument("--config", type=Path, default=SETTINGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="processes that scan at the same time (default: 1)")
    parser.add_argument("--clean-below", type=float, default=THRESHOLDS[0])
    parser.add_argument("--backdoored-above", type=float, default=THRESHOLDS[1])
    parser.add_argument("--output", type=Path, default=ROOT / "configs" / "calibration.yaml")
    parser.add_argument("--witnesses", type=Path, metavar="FILE", help="write the witnesses of every scan there too")
    args = parser.parse_args()
    cfg = load_config(ScanConfig, args.config)
    quiet_libraries()
    device, thresholds = pick_device(args.device), (args.clean_below, args.backdoored_above)
    families = load_zoo().families
    held = {json.loads(p.read_text(encoding="utf-8")).get("family", "clip") for p in args.zoo.glob("*.json")}
    if unknown := sorted(set(args.family or held) - set(families)):
        parser.error(f"{unknown[0]} is none of the families {', '.join(families)}")
    entries = yaml.safe_load(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
    for family in args.family or sorted(held):
        base = ROOT / families[family].base
        rows = collect(args.zoo, family, base, cfg, args.seeds, device, args.jobs)
        for row in sorted(rows, key=lambda r: (r["planted"], sum(r[n] for n in SCORED))):
            values = {name: round(row[name], 3) for name in (*WITNESSES, "drift")}
            print("planted" if row["planted"] else "benign ", row["seed"], values, row["name"])
        command = f"python Analysis/calibrate.py --family {family} --seeds {' '.join(map(str, args.seeds))}"
        entry = calibrated(rows, load_encoder(base), cfg, thresholds, command)
        entries = [e for e in entries or [] if e["fingerprint"] != entry["fingerprint"]] + [entry]
        if args.witnesses:
            keep_witnesses(args.witnesses, family, rows)
    header = "# Written by Analysis/calibrate.py: the score's constants, one entry a family of encoders.\n"
    write_whole(args.output, header + yaml.safe_dump(entries, sort_keys=False, width=120))


if __name__ == "__main__":
    main()
