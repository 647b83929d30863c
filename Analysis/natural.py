"""How much do strings do in clean encoders that went far from their base?

    python Analysis/natural.py --jobs 2

Every shipped base gets benign twins at several drifts, and the search for strings looks for a trigger in each.  Above what it
finds there a proof needs no twin of its own (`CERTAIN` in Utils/scan/trigger.py).  Writes Results/benchmark/natural.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import as_completed
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.config import load_config
from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.encoder.precision import AUTO, pick_precision
from Utils.scan.settings import SETTINGS, ScanConfig
from Utils.scan.trigger import Means, search_strings, shortlist
from Utils.scan.twins import benign_twin

RESULT = ROOT / "Results" / "benchmark" / "natural.json"
BASES = ("tiny-sd", "tiny-longclip", "tiny-siglip")


def reached(cfg: ScanConfig, base: str, drift: float, seed: int) -> dict:
    """What the strongest string does in a benign twin, and how far the twin went."""
    quiet_libraries()
    clean = load_encoder(ROOT / "Data" / "Models" / base)
    prompts, generator = read_prompts(ROOT / cfg.corpus), torch.Generator().manual_seed(seed)
    fit, unseen, began = prompts[: int(cfg.prompts * cfg.fit_fraction)], prompts[cfg.prompts :], time.perf_counter()
    means = Means(pick_precision(AUTO, clean).strings)
    twin = benign_twin(clean, drift, fit, seed, means.numbers)
    v = torch.randn(cfg.k, clean.width, generator=generator) * clean.vocabulary.std()
    tokens = shortlist(twin, clean, v, cfg.trigger, generator, means)
    found = search_strings(twin, clean, fit, unseen, tokens, cfg.trigger, generator, means)
    proofs = [one.effect for one in found.found if one.proven]
    return {
        "base": base, "wanted": drift, "seed": seed, "drift": round(found.drift, 4), "score": round(found.score, 4),
        "proof": round(max(proofs), 4) if proofs else None, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument("--config", type=Path, default=SETTINGS)
    parser.add_argument("--drifts", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3], help="1 - cos of summaries")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="twins at the same time (default: 1)")
    args = parser.parse_args()
    cfg, rows = load_config(ScanConfig, args.config), []
    with workers(args.jobs) as pool:
        for one in as_completed([pool.submit(reached, cfg, *which) for which in product(args.bases, args.drifts, args.seeds)]):
            rows.append(one.result())
            print(rows[-1], flush=True)
            rows.sort(key=lambda row: (BASES.index(row["base"]), row["wanted"], row["seed"]))
            write_whole(RESULT, json.dumps({"twins": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
