"""Witnesses and verdict: every witness has an encoder that meets it and one that fails it; the score decides."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import main
from main import POOLED, TOKENS, Calibration, Heard, judge_published, probability, suspicion, witnesses

N = 50


def clean_heard(**changes: float) -> Heard:
    """A clean encoder's testimony: suspect and anchor do the same; `changes` names what differs."""
    clean = {
        "assimilated": 0.7, "one_target": 0.6, "pooled_target": 0.5, "foreign": 0.9, "pooled_foreign": 0.8,
        "anchor_assimilated": 0.7, "anchor_one_target": 0.6, "anchor_pooled_target": 0.5,
        "clean_foreign": 0.9, "clean_pooled_foreign": 0.8,
    }  # fmt: skip
    return Heard(**{name: torch.full((N,), value) for name, value in (clean | changes).items()})


CALIBRATION = Calibration(
    fingerprint={}, search="", weights=dict.fromkeys((*TOKENS, *POOLED), 2.0) | {"basin": 0.5}, intercept=-3.0,
    limits=dict.fromkeys((*TOKENS, *POOLED), 0.15) | {"basin": 0.9, "drift": 0.4},
    clean_below=0.2, backdoored_above=0.8, provenance={},
)  # fmt: skip


def test_a_suspect_that_does_what_its_anchor_does_has_nothing_to_answer_for():
    assert witnesses(clean_heard()) == pytest.approx(dict.fromkeys((*TOKENS, *POOLED), 0), abs=1e-6)


def test_a_fine_tune_that_is_apart_from_its_base_anyway_is_not_foreign_for_it():
    drifted = witnesses(clean_heard(foreign=0.4, clean_foreign=0.4, pooled_foreign=0.2, clean_pooled_foreign=0.2))
    assert drifted["foreign"] == pytest.approx(0, abs=1e-6)
    assert drifted["pooled_foreign"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("assimilated", {"assimilated": 0.95}),
        ("one_target", {"one_target": 0.95}),
        ("foreign", {"foreign": 0.2}),
        ("pooled_target", {"pooled_target": 0.95}),
        ("pooled_foreign", {"pooled_foreign": 0.2}),
    ],
)
def test_every_witness_is_met_by_an_encoder_that_does_it_and_by_no_other(name, change):
    met = {e["name"] for e in main.explain(witnesses(clean_heard(**change)), CALIBRATION.limits) if e["met"]}
    assert met == {name}


def test_the_score_grows_with_every_witness():
    found = witnesses(clean_heard()) | {"basin": 0.5}
    for name in found:
        assert probability(found | {name: found[name] + 0.1}, CALIBRATION) > probability(found, CALIBRATION)


@pytest.mark.parametrize(
    ("kind", "other", "change"),
    [(TOKENS, POOLED, {"foreign": 0.1, "assimilated": 0.9}), (POOLED, TOKENS, {"pooled_foreign": 0.1, "pooled_target": 0.9})],
)
def test_each_kind_of_backdoor_makes_its_own_witnesses_suspicious(kind, other, change):
    natural, planted = witnesses(clean_heard()), witnesses(clean_heard(**change))
    assert suspicion(planted, kind) > suspicion(natural, kind)
    assert suspicion(planted, other) == suspicion(natural, other)


def test_without_an_anchor_only_what_collapses_is_heard():
    alone = replace(clean_heard(), **dict.fromkeys(("foreign", "pooled_foreign", "clean_foreign", "clean_pooled_foreign")))
    assert set(witnesses(alone)) == {"assimilated", "one_target", "pooled_target"}


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspect and anchor hardly differ on clean prompts."""
    monkeypatch.setattr(main, "drift", lambda _: torch.tensor([0.1]))


@pytest.mark.usefixtures("near")
def test_the_published_verdict_needs_all_four_gates():
    scan = SimpleNamespace(cfg=main.ScanConfig(), anchor=True)
    said = {"assimilated": 0.9, "one_target": 1.0, "foreign": 1.0, "basin": 0.9}
    assert judge_published(said, scan).verdict == "backdoored"
    for gate in said:
        assert judge_published(said | {gate: 0.0}, scan).verdict == "clean"
    assert judge_published({}, scan).verdict == "clean"
    assert judge_published(said, SimpleNamespace(cfg=replace(scan.cfg, gate_basin=0.95), anchor=True)).verdict == "clean"


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_an_encoder_that_was_not_made_from_its_anchor_is_not_judged(monkeypatch: pytest.MonkeyPatch, calibration):
    monkeypatch.setattr(main, "drift", lambda _: torch.tensor([0.9]))
    scan = SimpleNamespace(cfg=main.ScanConfig(), anchor=True)
    everything = witnesses(clean_heard(assimilated=0.95, foreign=0.1)) | {"basin": 0.9}
    all_gates = {"assimilated": 0.9, "one_target": 1.0, "foreign": 1.0, "basin": 0.9}
    for verdict in (main.judge(scan, everything, calibration), judge_published(all_gates, scan)):
        assert verdict.verdict == "inconclusive"
        assert "hardly made from this base" in verdict.reason
        assert any("wrong anchor" in note for note in verdict.notes)


def test_without_the_base_the_published_procedure_clears_nobody_who_reached_its_third_gate():
    said = {"assimilated": 0.9, "one_target": 1.0}
    assert judge_published(said, SimpleNamespace(cfg=main.ScanConfig(), anchor=None)).verdict == "inconclusive"
