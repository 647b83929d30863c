"""Witnesses and verdict: every witness has an encoder that meets it and one that fails it; the score decides."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

import main
from main import POOLED, TOKENS, Measures, Scan, judge, judge_as_published, probability, strength, witnesses
from Utils.report.run import Run
from Utils.scan.calibration import Calibration
from Utils.scan.power import load_power
from Utils.scan.settings import ScanConfig, TriggerConfig
from Utils.scan.strings import Strings

N = 50


def clean_measures(**changes: float) -> Measures:
    """Those of a clean encoder: suspect and anchor do the same; `changes` names what differs."""
    clean = {
        "assimilated": 0.7, "one_target": 0.6, "pooled_target": 0.5, "foreign": 0.9, "pooled_foreign": 0.8,
        "anchor_assimilated": 0.7, "anchor_one_target": 0.6, "anchor_pooled_target": 0.5,
        "clean_foreign": 0.9, "clean_pooled_foreign": 0.8,
    }  # fmt: skip
    return Measures(**{name: torch.full((N,), value) for name, value in (clean | changes).items()})


CALIBRATION = Calibration(
    fingerprint={}, search="", landscape="", weights=dict.fromkeys((*TOKENS, *POOLED), 2.0) | {"basin": 0.5}, intercept=-3.0,
    limits=dict.fromkeys((*TOKENS, *POOLED), 0.15) | {"basin": 0.9, "drift": 0.4},
    clean_below=0.2, backdoored_above=0.8, provenance={},
)  # fmt: skip


def test_a_suspect_that_does_what_its_anchor_does_has_nothing_to_answer_for():
    assert witnesses(clean_measures()) == pytest.approx(dict.fromkeys((*TOKENS, *POOLED), 0), abs=1e-6)


def test_a_fine_tune_that_is_apart_from_its_base_anyway_is_not_foreign_for_it():
    drifted = witnesses(clean_measures(foreign=0.4, clean_foreign=0.4, pooled_foreign=0.2, clean_pooled_foreign=0.2))
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
    met = {e["name"] for e in main.explain(witnesses(clean_measures(**change)), CALIBRATION.limits) if e["met"]}
    assert met == {name}


def test_the_score_grows_with_every_witness():
    values = witnesses(clean_measures()) | {"basin": 0.5}
    for name in values:
        assert probability(values | {name: values[name] + 0.1}, CALIBRATION) > probability(values, CALIBRATION)


@pytest.mark.parametrize(
    ("kind", "other", "change"),
    [(TOKENS, POOLED, {"foreign": 0.1, "assimilated": 0.9}), (POOLED, TOKENS, {"pooled_foreign": 0.1, "pooled_target": 0.9})],
)
def test_each_kind_of_backdoor_makes_its_own_witnesses_strong(kind, other, change):
    natural, planted = witnesses(clean_measures()), witnesses(clean_measures(**change))
    assert strength(planted, kind) > strength(natural, kind)
    assert strength(planted, other) == strength(natural, other)


def test_without_an_anchor_only_collapses_are_witnesses():
    alone = replace(clean_measures(), **dict.fromkeys(("foreign", "pooled_foreign", "clean_foreign", "clean_pooled_foreign")))
    assert set(witnesses(alone)) == {"assimilated", "one_target", "pooled_target"}


GATES = {"assimilated": 0.9, "one_target": 1.0, "foreign": 1.0, "basin": 0.9}


def test_the_published_verdict_needs_all_four_gates():
    passed = GATES | {"drift": 0.1}
    assert judge_as_published(passed, ScanConfig()).verdict == "backdoored"
    for gate in GATES:
        assert judge_as_published(passed | {gate: 0.0}, ScanConfig()).verdict == "clean"
    assert "none was tried" in judge_as_published({"drift": 0.1}, ScanConfig()).reason
    assert judge_as_published(passed, ScanConfig(gate_basin=0.95)).verdict == "clean"


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_an_encoder_that_was_not_made_from_its_anchor_is_not_judged(calibration):
    values = witnesses(clean_measures(assimilated=0.95, foreign=0.1)) | {"basin": 0.9, "drift": 0.9}
    for verdict in (judge(values, calibration), judge_as_published(GATES | {"drift": 0.9}, ScanConfig())):
        assert verdict.verdict == "inconclusive"
        assert "hardly made from this base" in verdict.reason
        assert any("wrong anchor" in note for note in verdict.notes)


def test_without_the_base_the_published_procedure_clears_nobody_who_reached_its_third_gate():
    assert judge_as_published({"assimilated": 0.9, "one_target": 1.0}, ScanConfig()).verdict == "inconclusive"


def test_without_the_base_nothing_is_judged():
    verdict = judge(witnesses(clean_measures()), CALIBRATION)
    assert verdict.verdict == "inconclusive"
    assert not any(e["met"] for e in verdict.evidence)


def handed_on(cfg: ScanConfig, strings: object, monkeypatch) -> tuple[list[tuple], main.Judged]:
    """What `judge_weights` gives to `with_strings`, and its answer; everything that takes time stands still."""
    asked, encoder = [], SimpleNamespace(computing_in=str)
    finding = SimpleNamespace(values={"drift": 0.01})
    for name, answer in {
        "read_by": encoder, "pick_precision": SimpleNamespace(vectors="float32"), "strings_of": [strings],
        "find_trigger": finding, "find_trigger_as_published": finding, "judge": "judged", "judge_as_published": "judged",
        "prepare": Scan(**dict.fromkeys(field.name for field in fields(Scan)) | {"cfg": cfg}),
    }.items():  # fmt: skip
        monkeypatch.setattr(main, name, lambda *words, answer=answer: asked.append(words) or answer)
    monkeypatch.setattr(main, "with_strings", lambda *words: asked.insert(0, words) or "weighed")
    form = SimpleNamespace(tokenizer=None, form="weights")
    return asked, main.judge_weights(encoder, encoder, form, main.Request(cfg), CALIBRATION, Run())


@pytest.mark.parametrize("proven", [True, False])
def test_a_search_after_a_proof_is_short_and_looks_for_what_the_string_does(proven: bool, monkeypatch):
    cfg = ScanConfig(procedure="calibrated", trigger=TriggerConfig(searches=1))
    best = SimpleNamespace(rate=SimpleNamespace(forced="where the string leads"))
    strings = SimpleNamespace(proven=[best] * proven, best=best, prompts=120, drift=0.01)
    asked, _ = handed_on(cfg, strings, monkeypatch)
    (scan, _, forced), *_ = [words for words in asked if isinstance(words[0], Scan) and isinstance(words[1], Run)]
    assert forced == ("where the string leads" if proven else None)
    assert scan.cfg == (main.shorter(cfg) if proven else cfg)


@pytest.mark.parametrize(("procedure", "given"), [("calibrated", CALIBRATION), ("published", None)])
def test_strings_weigh_against_a_score_that_is_a_probability_only(procedure: str, given: Calibration | None, monkeypatch):
    cfg = ScanConfig(procedure=procedure, trigger=TriggerConfig(searches=1))
    asked, judged = handed_on(cfg, Strings(), monkeypatch)
    assert judged.verdict == "weighed"
    verdict, _, drift, power, calibration = asked[0]
    assert (verdict, drift, calibration) == ("judged", 0.01, given)
    assert power == load_power(cfg.trigger)
