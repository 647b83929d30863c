"""What a notebook starts from: a model with its scan, and figures as cell outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from IPython.display import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from main import Request, Scan, objective, pooled_objective, prepare, scan_model, search
from Utils.basics.config import load_config
from Utils.basics.files import ROOT
from Utils.encoder.loading import load_encoder, pick_device, quiet_libraries
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.show import Show
from Utils.report.contract import SCHEMA
from Utils.report.folder import result_name
from Utils.scan.settings import SETTINGS, ScanConfig

RESULTS = ROOT / "Results"
NOTEBOOKS = RESULTS / "notebooks"
"""Where a notebook's own scans go: somebody's result under Results, made with other settings, stays what it is."""
SEED = 42
SHORTER = {"restarts": 4, "rounds": 2, "steps": 60}
"""Settings of the searches that notebooks make beside the scan's own."""


@dataclass(frozen=True)
class Case:
    """A model, its anchor and what the scan found."""

    scan: Scan
    v: Tensor
    """(k, d)"""
    report: dict

    @property
    def ids(self) -> Tensor:
        """Held-out prompts, (n, T)."""
        return self.scan.held_out_ids

    @property
    def spliced_ids(self) -> Tensor:
        """The same with room for v."""
        return self.scan.spliced_ids(self.v)


def open_case(model: str, device: str = "auto") -> Case:
    """The scan of a model with configs/scan.yaml: the one under Results where there is one of these weights, or a new one."""
    quiet_libraries()
    model = str(ROOT / model) if (ROOT / model).exists() else model
    cfg, where = load_config(ScanConfig, SETTINGS), pick_device(device)
    suspect, wanted = load_encoder(model, where), {"config": json.loads(json.dumps(asdict(cfg))), "seed": SEED}
    for results in (RESULTS, NOTEBOOKS):
        folder = results / result_name(model, results)
        report = read_report(folder)
        known = {name: report.get(name) for name in wanted} == wanted and report["model"]["sha256"] == suspect.sha256
        if known and report["anchor"]:
            break
    else:
        report = scan_model(model, Request(cfg, "auto", NOTEBOOKS, device, SEED, Show(images=0)))
    if not report["anchor"]:
        raise SystemExit(f"{model} has no known clean base; add one to configs/anchors.yaml.")
    path = report["anchor"]["path"]
    anchor = load_encoder(ROOT / path if (ROOT / path).exists() else path, where)
    v = torch.load(folder / "Backdoor_Embedding.pt", map_location=where, weights_only=True)
    return Case(prepare(suspect, anchor, cfg, SEED), v, report)


def read_report(folder: Path) -> dict:
    """report.json of a result; {} where there is none of this version."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) and report.get("schema") == SCHEMA and "found" in report else {}


def quick_search(case: Case, encoder: TextEncoder, prompts: int) -> Tensor:
    """v (k, d) of a shorter search in an encoder that sees only so many prompts; in the anchor itself nothing is foreign."""
    cfg = replace(case.scan.cfg, **SHORTER, batch=min(case.scan.cfg.batch, prompts))
    anchor = case.scan.anchor if encoder is case.scan.suspect else None
    corpus = case.scan.corpus if anchor else case.scan.anchor_corpus
    kind = objective if case.report["found"]["kind"] == "feature collapse" else pooled_objective
    generator = torch.Generator().manual_seed(SEED)
    few = case.scan.fit[torch.randperm(len(case.scan.fit), generator=generator)[:prompts]]
    scan = replace(
        case.scan, suspect=encoder, anchor=anchor, corpus=corpus, anchor_corpus=None, fit=few, cfg=cfg, generator=generator
    )
    return search(scan, lambda *_: None, kind)[0][0]


def show(draw: Callable[..., None], *arguments: object, **options: object) -> Image:
    """A figure of Utils/report/plots.py as the output of a cell."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figure.png"
        draw(*arguments, file, **options)
        return Image(data=file.read_bytes())
