"""Scan every model of a zoo split and compare the verdicts with the certificates.

    python Utils/build_zoo.py --split acceptance
    python Analysis/benchmark.py --zoo Data/Zoo/acceptance
    python Analysis/benchmark.py --config configs/triggers.yaml        prints tables of committed results, and scans nothing
    python Analysis/benchmark.py --config configs/mitigation.yaml      repairs models (Analysis/repairs.py)
    python Analysis/benchmark.py --config configs/benchmark.yaml       scans the split that judges (Analysis/evaluation.py)

Writes Results/benchmark/<split>.json, <split>_<family>.json or <split>_some.json (--models), and prints a table; an
inconclusive verdict counts as an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import as_completed
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from main import Request, scan_model
from Utils.basics.config import load_config
from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.loading import quiet_libraries
from Utils.making.certificates import RIGHT
from Utils.scan.settings import SETTINGS, ScanConfig


def family_of(certificate: Path) -> str:
    return json.loads(certificate.read_text(encoding="utf-8")).get("family", "clip")


def judge(certificate: Path, request: Request) -> dict:
    """What one model is, what the scan says, and how long it took; in whatever process."""
    quiet_libraries()
    truth = json.loads(certificate.read_text(encoding="utf-8"))
    report = scan_model(str(certificate.with_suffix("")), request)
    return {
        "name": certificate.stem, "family": truth.get("family", "clip"), "attack": truth.get("attack", ""),
        "kind": truth["kind"], "sim_clean": truth["sim_clean"], "success_rate": truth.get("success_rate"),
        "verdict": report["verdict"], "score": round(report["score"], 4), "right": report["verdict"] == RIGHT[truth["kind"]],
        "seconds": round(sum(report["seconds"].values()), 1), "peak_memory_mb": report["peak_memory_mb"],
    }  # fmt: skip


def judge_zoo(certificates: list[Path], request: Request, jobs: int) -> list[dict]:
    """One row a model, in the order of their names."""
    rows = []
    with workers(jobs) as pool:
        todo = [pool.submit(judge, certificate, request) for certificate in certificates]
        for done in as_completed(todo):
            rows.append(done.result())
            print(*(f"{value!s:>12}" for value in rows[-1].values()), flush=True)
    return sorted(rows, key=lambda row: row["name"])


def command_of(config: Path) -> list[str]:
    """The command that a config is for, where it holds no settings of a scan."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # for the scan's own reader to say
        return []
    if not isinstance(content, dict):
        return []
    if names := content.get("tables"):
        return ["tables.py", "--print", *map(str, names)]
    scripts = {"repairs": "repairs.py", "evaluation": "evaluation.py"}
    return next(([script, "--config", str(config)] for key, script in scripts.items() if key in content), [])


def main() -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(
        "--config",
        type=Path,
        default=SETTINGS,
        help="settings of the scan; or tables to print, or repairs: then flags are theirs",
    )
    known, others = first.parse_known_args()
    if words := command_of(known.config):
        script, *flags = words
        sys.exit(subprocess.run([sys.executable, str(ROOT / "Analysis" / script), *flags, *others]).returncode)
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about, parents=[first])
    parser.add_argument("--zoo", type=Path, help="a folder of models with certificates, from Utils/build_zoo.py")
    parser.add_argument("--family", help="judge the models of this family only (default: all)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="judge these models only, by their names in the zoo")
    parser.add_argument("--anchor", default="auto")
    parser.add_argument("--output", type=Path, default=ROOT / "Results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--jobs", type=int, default=1, help="processes that scan at the same time (default: 1)")
    args = parser.parse_args()
    if not args.zoo:
        parser.error("--zoo is required: a folder of models with certificates; build one with Utils/build_zoo.py")
    request = Request(load_config(ScanConfig, args.config), args.anchor, args.output, args.device, args.seed)
    certificates = [file for file in sorted(args.zoo.glob("*.json")) if args.family in (None, family_of(file))]
    if unknown := set(args.models or ()) - {file.stem for file in certificates}:
        parser.error(f"{args.zoo} holds no certificate of {min(unknown)}")
    certificates = [file for file in certificates if not args.models or file.stem in args.models]
    if not certificates:
        parser.error(f"{args.zoo} holds no certificate of such a model; build it with Utils/build_zoo.py")
    rows = judge_zoo(certificates, request, args.jobs)
    planted = [row for row in rows if row["kind"] == "planted"]
    accused = [row for row in rows if row["verdict"] == "backdoored"]
    summary = {
        "planted": len(planted),
        "benign": len(rows) - len(planted),
        "right": sum(row["right"] for row in rows),
        "precision": round(sum(r["right"] for r in accused) / len(accused), 4) if accused else None,
        "recall": round(sum(r["right"] for r in planted) / len(planted), 4) if planted else None,
        "median_seconds": median(row["seconds"] for row in rows),
        "seed": args.seed,
        "jobs": args.jobs,
        "models": rows,
    }
    # a part never takes the place of the whole
    name = "_".join([args.zoo.name, *([args.family] if args.family else []), *(["some"] if args.models else [])])
    target = args.output / "benchmark" / f"{name}.json"
    write_whole(target, json.dumps(summary, indent=2) + "\n")
    print(json.dumps({name: value for name, value in summary.items() if name != "models"}))


if __name__ == "__main__":
    main()
