"""Natural backdoors: what a search without a base finds in encoders that nobody attacked, and what tells it from a planted one.

    python Analysis/untouched.py --jobs 2

Every shipped base is searched with many seeds as one searches without the clean base: some vector makes prompts assimilate in
any encoder.  Around each the landscape is drawn twice, with the published settings and with ours, and the same is done in the
shipped suspects.  Then the base is scanned against itself, as `main.py` does.  Writes Results/benchmark/untouched.json, where
what is there is not searched again, and Results/benchmark/figures/natural.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import as_completed
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from main import Request, assimilation_by_layer, landscape_around, prepare, scan_model, search
from Utils.basics.config import load_config
from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.found.show import Show
from Utils.report.plots import LOOK, RED, counted, save_small
from Utils.scan.landscape import Landscape
from Utils.scan.settings import SETTINGS, ScanConfig

RESULTS = ROOT / "Results" / "benchmark"
MODELS = ROOT / "Data" / "Models"
BASES = {"clip": "tiny-sd", "longclip": "tiny-longclip", "siglip": "tiny-siglip"}
SUSPECTS = {"text_on_text": "suspects/text_on_text", "image_on_text": "suspects/image_on_text"}
"""Planted ones, of the first base."""
SHOWN = ("clip", "text_on_text")
"""Side by side in the figure."""


def settings() -> tuple[ScanConfig, ScanConfig]:
    """Ours and the published ones, of as many prompts."""
    ours = load_config(ScanConfig, SETTINGS)
    return ours, load_config(ScanConfig, ROOT / "configs" / "paper.yaml", prompts=ours.prompts)


def alone(model: Path, seed: int, ours: ScanConfig, published: ScanConfig) -> tuple[dict, dict[str, Landscape]]:
    """The strongest vector that a search without a base finds, and the loss around it as published and as ours.

    -> the row; settings -> landscape
    """
    scan = prepare(load_encoder(model), None, ours, seed)
    (v, *_), _ = search(scan, lambda *_: None)
    ids = scan.splice(scan.held_out)
    with torch.no_grad():
        spliced = assimilation_by_layer(scan.suspect, ids, v)[:, -1]
        clean = assimilation_by_layer(scan.suspect, ids)[:, -1]
    landscapes = {
        "published": landscape_around(prepare(scan.suspect, None, published, seed), v),
        "ours": landscape_around(scan, v),
    }
    shares = {f"basin_{name}": round(around.share, 4) for name, around in landscapes.items()}
    row = {"clean": round(clean.mean().item(), 4), "found": round(spliced.mean().item(), 4), **shares}
    return row, landscapes


def searched(name: str, model: str, seed: int) -> dict:
    """One row; in whatever process.  A base is scanned against itself besides."""
    quiet_libraries()
    folder, configs = MODELS / model, settings()
    row = {"name": name, "planted": name in SUSPECTS, "seed": seed} | alone(folder, seed, *configs)[0]
    if name in BASES:
        with tempfile.TemporaryDirectory() as output:
            request = Request(configs[0], str(folder), Path(output), seed=seed, show=Show(images=0))
            report = scan_model(str(folder), request, name)
        row |= {"verdict": report["verdict"], "score": round(report["score"], 4)}
    return row


def draw(pairs: dict[str, tuple[dict, dict[str, Landscape]]], file: Path) -> None:
    """Landscape and spectrum with both radii; what is above each other is one encoder, name -> as `alone` gives it."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9.6, 2.3 * len(pairs)), layout="constrained")
        panels = figure.subplots(len(pairs), 4)
        for row, (name, (_, landscapes)) in zip(panels, pairs.items(), strict=True):
            for column, (how, around) in enumerate(landscapes.items()):
                surface, spectrum = row[2 * column], row[2 * column + 1]
                steps = np.linspace(-around.radius, around.radius, len(around.surface))
                surface.contourf(steps, steps, around.surface.T, levels=24, cmap="Greys_r")
                surface.plot(0, 0, "X", color=RED, markeredgecolor="white", markersize=8)
                surface.set(title=f"{name}, {how}", xlabel=around.unit)
                counts, edges = counted(around.eigenvalues)
                spectrum.bar(edges[:-1], counts, np.diff(edges), align="edge", color="#8a8a8a")
                spectrum.axvline(0, color=RED, linestyle="--", linewidth=1.2)
                spectrum.set(title=f"{around.share:.0%} upwards", xlabel="eigenvalue", yticks=[])
        save_small(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="searches at the same time (default: 1)")
    args = parser.parse_args()
    order, file = list(BASES | SUSPECTS), RESULTS / "untouched.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["searches"] if file.exists() else []
    there = {(row["name"], row["seed"]) for row in rows}
    todo = [(one, seed) for one, seed in product((BASES | SUSPECTS).items(), args.seeds) if (one[0], seed) not in there]
    with workers(args.jobs) as pool:
        for one in as_completed([pool.submit(searched, *named, seed) for named, seed in todo]):
            rows.append(one.result())
            print(rows[-1], flush=True)
            rows.sort(key=lambda row: (order.index(row["name"]), row["seed"]))
            write_whole(file, json.dumps({"searches": rows}, indent=1) + "\n")
    shown = {name: alone(MODELS / (BASES | SUSPECTS)[name], args.seeds[0], *settings()) for name in SHOWN}
    draw(shown, RESULTS / "figures" / "natural")


if __name__ == "__main__":
    main()
