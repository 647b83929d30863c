"""Witnesses and verdict: every witness has an encoder that meets it and one that fails it; the score decides."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import main
from main import Calibration, Heard, judge_published, probability, suspicion, witnesses

N = 50


def clean_heard(**changes: float) -> Heard:
    """A clean encoder's testimony: suspect and anchor do the same; `changes` names what differs."""
    clean = {
        "assimilated": 0.7,
        "one_target": 0.6,
        "foreign": 1.0,
        "anchor_assimilated": 0.7,
        "anchor_one_target": 0.6,
    }
    return Heard(**{name: torch.full((N,), value) for name, value in (clean | changes).items()})


CALIBRATION = Calibration(
    fingerprint={}, search="", weights={"assimilated": 2.0, "one_target": 2.0, "foreign": 6.0, "basin": 0.5}, intercept=-3.0,
    limits={"assimilated": 0.1, "one_target": 0.1, "foreign": 0.2, "basin": 0.9, "drift": 0.4},
    clean_below=0.2, backdoored_above=0.8, provenance={},
)  # fmt: skip


def test_a_suspect_that_does_what_its_anchor_does_has_nothing_to_answer_for():
    assert witnesses(clean_heard()) == pytest.approx({"assimilated": 0, "one_target": 0, "foreign": 0}, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change"),
    [("assimilated", {"assimilated": 0.95}), ("one_target", {"one_target": 0.95}), ("foreign", {"foreign": 0.2})],
)
def test_every_witness_is_met_by_an_encoder_that_does_it_and_by_no_other(name, change):
    met = {e["name"] for e in main.explain(witnesses(clean_heard(**change)), CALIBRATION.limits) if e["met"]}
    assert met == {name}


def test_the_score_grows_with_every_witness():
    found = witnesses(clean_heard()) | {"basin": 0.5}
    for name in found:
        assert probability(found | {name: found[name] + 0.1}, CALIBRATION) > probability(found, CALIBRATION)


def test_the_place_with_the_most_foreign_behaviour_is_judged():
    natural, planted = witnesses(clean_heard()), witnesses(clean_heard(foreign=0.1, assimilated=0.9))
    assert suspicion(planted) > suspicion(natural)


def test_the_published_verdict_needs_all_four_gates():
    scan = SimpleNamespace(cfg=main.ScanConfig(), anchor=True)
    said = {"assimilated": 0.9, "one_target": 1.0, "foreign": 1.0, "basin": 0.9}
    assert judge_published(said, scan).verdict == "backdoored"
    for gate in said:
        assert judge_published(said | {gate: 0.0}, scan).verdict == "clean"
    assert judge_published({}, scan).verdict == "clean"
    assert judge_published(said, SimpleNamespace(cfg=replace(scan.cfg, gate_basin=0.95), anchor=True)).verdict == "clean"


def test_without_the_base_the_published_procedure_clears_nobody_who_reached_its_third_gate():
    said = {"assimilated": 0.9, "one_target": 1.0}
    assert judge_published(said, SimpleNamespace(cfg=main.ScanConfig(), anchor=None)).verdict == "inconclusive"
