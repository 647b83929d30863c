"""The score's constants: weights that never clear, a fit that separates, scans that are made once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.special import expit

from Analysis import calibrate
from Analysis.fitting import SCORED, WITNESSES, fit, left_out_loss, missed, regression
from Utils.scan.settings import ScanConfig

ROOT = Path(__file__).resolve().parent.parent


def row(planted: bool, value: float, **changes: float) -> dict:
    return dict.fromkeys((*WITNESSES, "drift"), value) | {"planted": planted, "name": "x", "seed": 0} | changes


def test_no_witness_clears_a_suspect():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2 == 0
    z = rng.normal(size=(40, 3)) + np.outer(y, [2.0, -2.0, 0.0])  # the second one is smaller in planted models
    weights = regression(z, y, 10.0)
    assert weights[0] > 0.5
    assert weights[1] == 0
    assert (weights[:-1] >= 0).all()


def test_the_regression_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(1)
    y = np.arange(60) < 20
    z = rng.normal(size=(60, 2)) + y[:, None]
    best = regression(z, y, 1.0)

    def loss(w: np.ndarray) -> float:
        share = np.where(y, 60 / (2 * 20), 60 / (2 * 40))
        guess = expit(z @ w[:-1] + w[-1])
        return -(share * np.log(np.where(y, guess, 1 - guess))).sum() + 0.5 * w[:-1] @ w[:-1]

    for step in np.vstack([np.eye(3), -np.eye(3)]) * 0.01:
        assert loss(best) < loss(best + step)


def test_planted_and_benign_rows_end_on_either_side_of_one_half():
    rows = [row(False, 0.0 + i / 100) for i in range(8)] + [row(True, 0.6 + i / 100) for i in range(8)]
    found = fit(rows, 0.2, 0.8)
    for r in rows:
        score = expit(found["intercept"] + sum(found["weights"][name] * r[name] for name in SCORED))
        assert (score > 0.5) == r["planted"]
    assert found["limits"]["foreign"] == pytest.approx(0.07)
    assert found["limits"]["drift"] == pytest.approx((1 + 0.07) / 2)


def test_planted_models_that_the_search_missed_do_not_teach_the_score():
    benign = [row(False, 0.01 * i) for i in range(1, 9)]
    found, passed_by = [row(True, 0.6 + i / 100) for i in range(8)], [row(True, 0.1, name="y"), row(True, 0.05)]
    assert missed([*benign, *found, *passed_by]) == passed_by
    assert missed([*benign, *found]) == []
    assert missed([*benign, row(True, 0.1, pooled_foreign=0.17)]) == []
    assert fit([*benign, *found, *passed_by], 0.2, 0.8) == fit([*benign, *found], 0.2, 0.8)


def test_left_out_scans_of_a_coin_are_worse_than_those_of_a_good_witness():
    y = np.arange(30) % 2 == 0
    coin, good = np.random.default_rng(2).normal(size=(30, 1)), np.where(y, 1.0, -1.0)[:, None]
    assert left_out_loss(good, y, 1.0) < left_out_loss(coin, y, 1.0)


def test_only_models_of_the_family_whose_backdoor_works_are_scanned(tmp_path: Path):
    certificates = {
        "good": {"kind": "planted", "meets_bars": True}, "dead": {"kind": "planted", "meets_bars": False},
        "benign": {"kind": "benign", "meets_bars": True}, "other": {"kind": "benign", "meets_bars": True, "family": "siglip"},
    }  # fmt: skip
    for name, certificate in certificates.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(certificate), encoding="utf-8")
    assert {name: planted for name, _, planted in calibrate.models(tmp_path, "clip")} == {"good": True, "benign": False}


def test_a_scan_that_was_made_is_not_made_again(tmp_path: Path, monkeypatch):
    base = ROOT / "Data" / "Models" / "tiny-clip"
    cfg = ScanConfig()
    scanned = calibrate.Scanned("the anchor itself", base, base, False, 0)
    kept = {"key": calibrate.key(scanned, cfg), **row(False, 0.5)}
    (tmp_path / "witnesses.jsonl").write_text(json.dumps(kept) + '\n{"key": "cut of', encoding="utf-8")
    monkeypatch.setattr(calibrate, "measure_model", None)
    assert calibrate.collect(tmp_path, "clip", base, cfg, [0], torch.device("cpu"), 1) == [kept]


def test_witnesses_are_kept_family_by_family(tmp_path: Path):
    file = tmp_path / "witnesses.json"
    for family, value in (("clip", 0.1), ("siglip", 0.2), ("clip", 0.3)):
        calibrate.keep_witnesses(file, family, [row(True, value), row(False, value / 2)])
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert [(one["family"], one["planted"], one["basin"]) for one in kept] == [
        ("siglip", True, 0.2), ("siglip", False, 0.1), ("clip", True, 0.3), ("clip", False, 0.15),
    ]  # fmt: skip
    assert set(kept[0]) == {*WITNESSES, "drift", "family", "name", "planted"}


def test_the_shipped_constants_say_where_they_come_from_and_clear_nobody():
    for entry in yaml.safe_load((ROOT / "configs" / "calibration.yaml").read_text(encoding="utf-8")):
        assert all(weight >= 0 for weight in entry["weights"].values())
        assert entry["provenance"]["planted_models"] >= 5
        assert entry["provenance"]["benign_models"] >= 5
