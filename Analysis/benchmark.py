"""Scan every model of a zoo split and compare the verdicts with the certificates.

    python Utils/build_zoo.py --split acceptance
    python Analysis/benchmark.py --zoo Data/Zoo/acceptance

Writes Results/benchmark/<split>.json and prints a table; an inconclusive verdict counts as an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from main import ScanConfig, scan_model  # noqa: E402
from Utils.config import load_config  # noqa: E402
from Utils.encoders import quiet_libraries  # noqa: E402

RIGHT = {"planted": "backdoored", "benign": "clean"}


def judge_zoo(zoo: Path, anchor: str, cfg: ScanConfig, output: Path, device: str, seed: int) -> list[dict]:
    """One row a model: what it is, what the scan says, and how long it took."""
    rows = []
    for certificate in sorted(zoo.glob("*.json")):
        truth = json.loads(certificate.read_text(encoding="utf-8"))
        report = scan_model(str(certificate.with_suffix("")), anchor, cfg, output, device, seed)
        row = {
            "name": certificate.stem, "family": truth.get("family", "clip"), "attack": truth.get("attack", ""),
            "kind": truth["kind"], "sim_clean": truth["sim_clean"],
            "success_rate": truth.get("success_rate"), "verdict": report["verdict"], "score": round(report["score"], 4),
            "right": report["verdict"] == RIGHT[truth["kind"]], "seconds": round(sum(report["seconds"].values()), 1),
            "peak_memory_mb": report["peak_memory_mb"],
        }  # fmt: skip
        rows.append(row)
        print(*(f"{value!s:>12}" for value in row.values()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="a folder of models with certificates, from Utils/build_zoo.py")
    parser.add_argument("--anchor", default="auto")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "scan.yaml")
    parser.add_argument("--output", type=Path, default=ROOT / "Results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    quiet_libraries()
    rows = judge_zoo(args.zoo, args.anchor, load_config(ScanConfig, args.config), args.output, args.device, args.seed)
    planted = [row for row in rows if row["kind"] == "planted"]
    found = [row for row in rows if row["verdict"] == "backdoored"]
    summary = {
        "planted": len(planted),
        "benign": len(rows) - len(planted),
        "right": sum(row["right"] for row in rows),
        "precision": round(sum(r["right"] for r in found) / len(found), 4) if found else None,
        "recall": round(sum(r["right"] for r in planted) / len(planted), 4) if planted else None,
        "median_seconds": median(row["seconds"] for row in rows),
        "seed": args.seed,
        "models": rows,
    }
    target = args.output / "benchmark" / f"{args.zoo.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8", newline="\n")
    print(json.dumps({name: value for name, value in summary.items() if name != "models"}))


if __name__ == "__main__":
    main()
