"""Fit the score of the scan on models whose answer is known, and write configs/calibration.yaml.

    python Utils/build_zoo.py --split calibration
    python Analysis/calibrate.py --zoo Data/Zoo/calibration --anchor Data/Models/tiny-sd --seeds 0 1

The null distribution is made of benign fine-tunes and of the anchor against itself; a logistic regression over the
witnesses gives the probability.  Scans are kept in <zoo>/witnesses.jsonl, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from main import ScanConfig, Stopwatch, prepare, run_calibrated  # noqa: E402
from Utils.config import load_config  # noqa: E402
from Utils.encoders import fingerprint, load_encoder  # noqa: E402

WITNESSES = ("assimilated", "one_target", "foreign", "basin")
WRONG_ANCHOR = 4.0
"""A drift this many times the largest one of the zoo is no fine-tune of the anchor."""


def hear_model(model: Path, anchor: Path, cfg: ScanConfig, seed: int) -> dict[str, float]:
    """The witnesses on one model, and its drift."""
    scan = prepare(load_encoder(model), load_encoder(anchor), cfg, seed)
    finding = run_calibrated(scan, Stopwatch(), lambda *step: None)
    return {e["name"]: e["value"] for e in finding.verdict.evidence}


def collect(zoo: Path, anchor: Path, cfg: ScanConfig, seeds: list[int]) -> list[dict]:
    """Every model of the zoo and the anchor itself, each with every seed; goes on where an earlier run stopped."""
    kept = zoo / "witnesses.jsonl"
    # an older search's results must not be mixed in; the score's own constants do not matter here
    key = hashlib.sha256(repr(sorted(asdict(cfg).items())).encode()).hexdigest()[:12]
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()] if kept.exists() else []
    rows = [row for row in rows if row["key"] == key]
    done = {(row["name"], row["seed"]) for row in rows}
    models = {p.stem: (p.with_suffix(""), json.loads(p.read_text(encoding="utf-8"))) for p in sorted(zoo.glob("*.json"))}
    models["the anchor itself"] = (anchor, {"kind": "benign"})
    jobs = [(name, seed) for name in models for seed in seeds if (name, seed) not in done]
    for name, seed in tqdm(jobs, desc="scans"):
        folder, certificate = models[name]
        planted = certificate["kind"] == "planted"
        if planted and not certificate["meets_bars"]:
            continue
        row = {"key": key, "name": name, "seed": seed, "planted": planted, **hear_model(folder, anchor, cfg, seed)}
        rows.append(row)
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return rows


def fit(rows: list[dict], clean_below: float, backdoored_above: float) -> dict:
    """Logistic regression on standardised witnesses, written back in their own units."""
    x = np.array([[row[name] for name in WITNESSES] for row in rows])
    y = np.array([row["planted"] for row in rows])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1.0, class_weight="balanced").fit(scaler.transform(x), y)
    weights = model.coef_[0] / scaler.scale_
    limits = {name: float(x[~y, i].max()) for i, name in enumerate(WITNESSES)}
    limits["drift"] = WRONG_ANCHOR * max(row["drift"] for row in rows)
    return {
        "weights": {name: round(float(w), 4) for name, w in zip(WITNESSES, weights, strict=True)},
        "intercept": round(float(model.intercept_[0] - (weights * scaler.mean_).sum()), 4),
        "limits": {name: round(value, 4) for name, value in limits.items()},
        "clean_below": clean_below,
        "backdoored_above": backdoored_above,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=ROOT / "Data" / "Zoo" / "calibration")
    parser.add_argument("--anchor", type=Path, default=ROOT / "Data" / "Models" / "tiny-sd")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "scan.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--clean-below", type=float, default=0.2)
    parser.add_argument("--backdoored-above", type=float, default=0.8)
    parser.add_argument("--output", type=Path, default=ROOT / "configs" / "calibration.yaml")
    args = parser.parse_args()
    cfg = load_config(ScanConfig, args.config)
    rows = collect(args.zoo, args.anchor, cfg, args.seeds)
    for row in sorted(rows, key=lambda r: (r["planted"], r["foreign"])):
        print(
            "planted" if row["planted"] else "benign ",
            row["seed"],
            {n: round(row[n], 3) for n in (*WITNESSES, "drift")},
            row["name"],
        )
    planted = {row["name"] for row in rows if row["planted"]}
    entry = {
        "fingerprint": fingerprint(load_encoder(args.anchor)),
        **fit(rows, args.clean_below, args.backdoored_above),
        "provenance": {
            "command": f"python Analysis/calibrate.py --seeds {' '.join(map(str, args.seeds))}",
            "planted_models": len(planted),
            "benign_models": len({row["name"] for row in rows} - planted),
            "scans": len(rows),
        },
    }
    kept = yaml.safe_load(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
    others = [e for e in kept or [] if e["fingerprint"] != entry["fingerprint"]]
    header = "# Written by Analysis/calibrate.py: the score's constants, one entry a family of encoders.\n"
    args.output.write_text(
        header + yaml.safe_dump([*others, entry], sort_keys=False, width=120), encoding="utf-8", newline="\n"
    )


if __name__ == "__main__":
    main()
