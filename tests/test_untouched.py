"""What a search finds in encoders that nobody attacked: the row, and the figure beside a planted one."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from Analysis import untouched

PAIR = {name: (untouched.BASES | untouched.SUSPECTS)[name] for name in untouched.SHOWN}


def test_both_landscapes_are_drawn_around_what_a_search_without_a_base_finds(tmp_path: Path):
    ours, published = (replace(cfg, prompts=40, landscape_points=5) for cfg in untouched.settings())
    ours = replace(ours, restarts=2, rounds=1, steps=8)
    assert (published.procedure, published.landscape_radius) == ("published", 10.0)
    found = {name: untouched.alone(untouched.MODELS / folder, 0, ours, published) for name, folder in PAIR.items()}
    for row, landscapes in found.values():
        assert 0 < row["clean"] < row["found"] <= 1
        assert {name: around.radius for name, around in landscapes.items()} == {"published": 10.0, "ours": 0.5}
        assert [row[f"basin_{name}"] for name in landscapes] == [round(one.share, 4) for one in landscapes.values()]
        assert len(landscapes["ours"].eigenvalues) == 3 * len(landscapes["published"].eigenvalues)  # as many planes
    untouched.draw(found, tmp_path / "natural")
    assert {file.suffix for file in tmp_path.iterdir()} == {".png"}


def test_a_base_is_scanned_against_itself_and_a_suspect_is_not(monkeypatch):
    ours, published = (replace(cfg, prompts=40, landscape_points=5) for cfg in untouched.settings())
    monkeypatch.setattr(untouched, "settings", lambda: (replace(ours, restarts=2, rounds=1, steps=8), published))
    asked = []

    def scan(model: str, request: untouched.Request, name: str) -> dict:
        asked.append((model, request.anchor, request.seed, name))
        return {"verdict": "clean", "score": 0.01}

    monkeypatch.setattr(untouched, "scan_model", scan)
    base, suspect = (untouched.searched(*named, 3) for named in PAIR.items())
    assert asked == [(str(untouched.MODELS / "tiny-sd"), str(untouched.MODELS / "tiny-sd"), 3, "clip")]
    assert (base["planted"], base["verdict"], base["seed"]) == (False, "clean", 3)
    assert suspect["planted"]
    assert "verdict" not in suspect
    assert {"clean", "found", "basin_published", "basin_ours"} <= suspect.keys() & base.keys()


def test_a_stopped_run_goes_on_and_loses_nothing(tmp_path: Path, monkeypatch):
    asked, stopped = [], []

    def row(name: str, model: str, seed: int) -> dict:
        if len(asked) == 7 and not stopped:
            stopped.append(seed)
            raise KeyboardInterrupt
        asked.append((name, seed))
        return {"name": name, "seed": seed}

    monkeypatch.setattr(untouched, "RESULTS", tmp_path)
    monkeypatch.setattr(untouched, "workers", lambda jobs: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(untouched, "searched", row)
    monkeypatch.setattr(untouched, "alone", lambda *_: ({}, {}))
    monkeypatch.setattr(untouched, "draw", lambda pairs, file: None)
    monkeypatch.setattr(sys, "argv", ["untouched.py", "--seeds", "0", "1"])
    with pytest.raises(KeyboardInterrupt):
        untouched.main()
    untouched.main()
    every = [(name, seed) for name in untouched.BASES | untouched.SUSPECTS for seed in (0, 1)]
    rows = json.loads((tmp_path / "untouched.json").read_text())["searches"]
    assert [(one["name"], one["seed"]) for one in rows] == every
    assert stopped
    untouched.main()
    assert json.loads((tmp_path / "untouched.json").read_text())["searches"] == rows
