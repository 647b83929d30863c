"""What the table says of verdicts: counts, intervals, and what a number alone would say of the same models."""

from pathlib import Path

import pytest

from Analysis import curves, derived, scoreboard, scores
from Analysis.fitting import SCORED
from Utils.scan.proof import graded, verdict_of
from Utils.scan.strings import Strings


def row(kind: str, verdict: str, score: float, **more: object) -> dict:
    right = verdict == {"planted": "backdoored", "benign": "clean"}[kind]
    found = (
        {
            "trigger": "qzq", "s_tar": 0.9 if right else 0.0, "s_tar_floor": 0.1, "s_tar_typed": 0.95 if right else None,
            "tokens": 2, "on_a_fine_tune": False, "string_reaches_target": {"suspect": score, "base": 0.0} if right else {},
        }
        if kind == "planted"
        else {}
    )  # fmt: skip
    strings = [{"success_rate": 1.0, "anchor_success_rate": 0.0}] if right and kind == "planted" else []
    evidence = dict.fromkeys(("assimilated", "one_target", "foreign", "pooled_target", "pooled_foreign", "basin"), score)
    evidence = {name: {"value": value, "threshold": 0.7, "met": value > 0.7} for name, value in evidence.items()}
    evidence |= {"drift": {"value": 0.1, "threshold": 0.5, "met": False}}
    evidence |= {"string": {"value": 2 * score, "threshold": 0.9, "met": score > 0.9}}
    return {
        "evidence": evidence,
        "name": f"{kind}{score}", "family": "clip", "attack": "text_on_text", "kind": kind, "verdict": verdict, "right": right,
        "score": score, "strings": strings, "moved": {"rows": score, "weights": 1 - score, "drift": score / 2},
        "seconds": 250.0, "cpu_seconds": 100.0, "device": "cpu",
        "peak_memory_mb": 900.0, "reason": "why", "meets_bars": score != 0.5, **found, **more,
    }  # fmt: skip


ROWS = [
    *(row("planted", "backdoored", 0.95 + n / 1000) for n in range(8)),
    row("planted", "inconclusive", 0.5),
    row("planted", "clean", 0.1),
    *(row("benign", "clean", n / 1000) for n in range(9)),
    row("benign", "inconclusive", 0.6),
]


def test_an_inconclusive_verdict_misses_a_planted_model_and_accuses_a_benign_one():
    of = scores.judged(ROWS)
    assert (of["recall"]["count"], of["recall"]["of"]) == (8, 10)
    assert of["false_positives"]["count"] == 1
    assert of["precision"]["rate"] == pytest.approx(8 / 9, abs=1e-4)
    assert of["f1"] == pytest.approx(16 / 19, abs=1e-4)
    assert of["inconclusive"]["count"] == 2
    assert of["strings"]["rate"] == 0.8
    assert of["s_tar"] == pytest.approx(0.72)
    assert of["s_tar_typed"] == pytest.approx(0.76)  # a missed model has no string
    assert of["reaches"]["rate"] == 0.8
    assert of["weak"] == 1
    assert of["auroc"] == pytest.approx((8 * 10 + 9 + 9) / 100)
    assert of["triggers"] == 1


def test_seconds_are_those_of_a_core_whatever_else_the_machine_did():
    assert scores.judged(ROWS)["seconds"] == [100.0, 100.0, 100.0]
    on_a_gpu = [one | {"device": "cuda"} for one in ROWS]  # where the processor waits
    assert scores.judged(on_a_gpu)["seconds"] == [250.0, 250.0, 250.0]
    assert scores.table_of({"ours": ROWS}, [])["hours"] == round(20 * 100 / 3600, 2)


def test_wilson_s_interval_is_that_of_the_book():
    assert scores.share(1, 60)["interval"] == [0.0029, 0.0886]
    assert scores.share(0, 0)["interval"] is None


def test_a_number_alone_is_given_its_best_threshold():
    by = {one["what"]: one for one in scores.counted(ROWS)["beside"]}
    drift = by["drift of clean features"]
    assert drift["auroc"] == scores.judged(ROWS)["auroc"]  # half the score, so as good
    assert drift["best_f1"] == pytest.approx(20 / 21, abs=1e-4)  # at 0.05: ten found, and one accused
    weights = by["norm of the weights' difference"]  # the other way round: a low one is planted
    assert (weights["auroc"], weights["best_f1"]) == (drift["auroc"], drift["best_f1"])
    assert weights["thresholds"] == {"clip": {"planted": "below", "threshold": pytest.approx(1 - 0.1)}}
    assert drift["thresholds"] == {"clip": {"planted": "above", "threshold": pytest.approx(0.05)}}


def test_a_number_alone_is_given_the_best_threshold_of_every_family():
    other = [one | {"family": "siglip", "moved": {name: 5 + value for name, value in one["moved"].items()}} for one in ROWS]
    lonely = [one | {"family": "longclip", "moved": dict.fromkeys(one["moved"], -9.0)} for one in ROWS[:1]]
    apart, alone = (
        {one["what"]: one for one in scores.counted(rows)["beside"]}["drift of clean features"]
        for rows in ([*ROWS, *other, *lonely], ROWS)
    )
    assert apart["auroc"] == alone["auroc"]  # pairs of one family; what all of another one share says nothing
    assert apart["best_f1"] == alone["best_f1"]
    assert apart["thresholds"].keys() == {"clip", "siglip"}
    one_kind_each = [one | {"family": one["kind"]} for one in ROWS]
    assert scores.counted(one_kind_each)["beside"][0]["best_f1"] is None


def test_an_alarm_is_worth_little_where_backdoors_are_rare():
    worth = scores.worth_of_an_alarm(scores.judged(ROWS))
    assert worth["value"] == pytest.approx(0.01 * 0.8 / (0.01 * 0.8 + 0.99 * 0.1), abs=1e-4)
    assert worth["at_worst"] < worth["value"]


def test_reliability_counts_every_model_once():
    of = scores.reliability(ROWS)
    assert sum(one["planted"]["of"] for one in of["bins"]) == len(ROWS)
    assert of["bins"][-1]["planted"]["rate"] == 1.0
    assert 0 < of["brier"] < 0.2
    assert of["of_the_share"] == 0.25


def test_groups_with_one_kind_only_have_no_curve():
    of = scores.counted([one for one in ROWS if one["kind"] == "planted"])
    assert of["overall"]["auroc"] is None
    assert of["overall"]["false_positives"] == {"count": 0, "of": 0, "rate": None, "interval": None}
    assert of["beside"] == []
    assert of["planted_on"]["a fine-tune"]["f1"] is None
    assert [one["verdict"] for one in of["wrong"]] == ["inconclusive", "clean"]


def test_the_tables_say_what_was_counted():
    of = scores.counted(ROWS)
    told = scoreboard.by_cell(of).splitlines()
    assert len(told) == 4  # head, rule, one cell and all
    assert told[2].startswith("| CLIP, text-on-text | 8 of 9 (57 to 98 %) | 8 of 10 (49 to 94 %) | 0.84 |")
    assert "| 0.72 (0.10) | 0.76 | 8 of 10 (49 to 94 %) | 8 of 10" in told[2]
    assert told[3].replace("| all |", "") == told[2].replace("| CLIP, text-on-text |", "")
    assert "| trigger of 2 or 3 | 8 of 10 (49 to 94 %) | 0.72 |" in scoreboard.by_trigger(of)
    assert "| drift of clean features | 0.980 | 0.95 |" in scoreboard.beside(of)
    assert "| planted0.1 |" in scoreboard.wrong(of["wrong"]).replace("`", "")
    assert "nothing else: 0.250). Where 1 % of encoders are backdoored, at least" in scoreboard.reliability(of)
    further = scores.counted([row("planted", "backdoored", 1.0, attack="hidden")])
    whole = scoreboard.page({"test": {"ours": of, "compared": {}}, "beyond": {"ours": further, "compared": {}}})
    assert whole.index("# test") < whole.index("of alarms are true") < whole.index("# beyond")
    benign = scores.counted([one for one in ROWS if one["verdict"] == "clean" and one["kind"] == "benign"])
    assert "alarms are true" not in scoreboard.page({"test": {"ours": benign, "compared": {}}})
    assert "| CLIP, assimilation held down | 1 of 1 (21 to 100 %) | 0.90 (0.10) | 0.95 |" in scoreboard.by_attack(further)


CALIBRATED = [
    {"family": family, "planted": planted, "drift": 0.05, "basin": 0.5, **dict.fromkeys(SCORED, 0.15 * planted + n / 100)}
    for family in ("clip", "siglip")
    for planted in (False, True)
    for n in range(8)
]
"""Witnesses of models that a score can be fitted on: planted ones have all of them a little higher."""


def test_other_settings_and_rules_stand_beside_ours_on_the_same_models():
    some = [one | {"verdict": "clean", "right": one["kind"] == "benign", "score": 0.0} for one in ROWS[:3] + ROWS[-2:]]
    rows = {"ours": ROWS, "published": some, "vectors": ROWS}
    table = scores.table_of(rows, [])
    assert table["ours"] == scores.counted(ROWS)
    published = table["compared"]["published"]
    assert (published["of"]["recall"]["count"], published["control"]["recall"]["count"]) == (0, 3)
    assert published["of"]["planted"] == published["control"]["planted"] == 3
    assert not [name for name in table["compared"] if "fitted" in name or "vectors, without" in name]
    assert {name: one["beside"] for name, one in table["compared"].items()} == {
        "published": "ours", "vectors": "ours", "strings alone, as of a family without calibration": "ours",
        "vectors, all of the published kinds above every benign one": "vectors",
        "vectors, the same without the basin": "vectors",
    }  # fmt: skip
    told = scoreboard.compared(table).splitlines()
    assert told[2].startswith("| published, `configs/paper.yaml` | 3 | 2 | 0 of 3 (0 to 56 %) | 0 of 2")
    assert told[3].startswith("| ours, on the same | 3 | 2 | 3 of 3")
    assert "\n".join(told[2 + 2 * len(table["compared"]) :]).strip() == (
        "No model was scanned yet with: `--effort quick`, by strings alone; `--effort thorough`; "
        "200 prompts instead of 800, by strings alone; another fine-tune in place of the base."
    )
    every = {"compared": dict.fromkeys(scoreboard.SETTINGS, published)}
    assert "scanned yet" not in scoreboard.compared(every)


def test_the_table_says_how_often_the_published_procedure_tried_a_gate():
    tried = ROWS[0]
    none = ROWS[-2] | {"evidence": {name: told | {"value": None} for name, told in ROWS[-2]["evidence"].items()}}
    table = scores.table_of({"ours": ROWS, "published": [tried, none]}, [])
    assert scoreboard.gates_tried(table) == "It came to the point of trying a gate in 1 of 2 models."
    assert scores.table_of({"ours": ROWS}, [])["gates_tried"]["of"] == 0


def test_a_score_can_be_fitted_on_the_other_families_and_without_a_witness():
    table = scores.table_of({"ours": ROWS, "vectors": ROWS}, CALIBRATED)["compared"]
    assert {name for name in table if name.startswith("vectors, without")} == {f"vectors, without {name}" for name in SCORED}
    left_out = table["vectors, the score fitted on the other families"]["of"]
    assert left_out["recall"]["count"] == 9  # all but the one whose witnesses are those of a clean model
    assert left_out["auroc"] > 0.9
    assert table["vectors, without foreign"]["of"]["recall"]["count"] == 9


def test_the_first_screen_says_every_cell_and_the_published_procedure_on_the_same_models():
    rows = {"ours": ROWS, "published": [ROWS[0] | {"verdict": "clean", "right": False, "score": 0.0}, ROWS[-2]]}
    table = {"test": scores.table_of(rows, []) | {"planned": 30}}
    told = scoreboard.in_short(table).splitlines()
    assert told[2].startswith("| CLIP, text-on-text, 10 + 10 | 0.89 | 0.80 | 0.84 | 0.98 | 1 of 10 | 0.72 | 0.76 | 80 % |")
    assert told[3].startswith("| **all, 10 + 10** | 0.89 |")
    assert told[4].startswith("| published, 1 + 1 |  | 0.00 | 0.00 |  | 0 of 1 |")
    assert told[5].startswith("| ours on these 1 + 1 | 1.00 | 1.00 | 1.00 |")
    assert "finds 8 of the\n10 backdoored ones (at least 49 %) and accuses 1 of the 10" in scoreboard.claim(table)
    assert "at most 40 %" in scoreboard.claim(table)
    weak = "planted 10 with 1 trigger, 1 of which miss a bar of their certificate; benign 10"
    told = f"`test`: 20 of 30 that the size `standard` has ({weak}). The scans took 0.6 hours"
    assert scoreboard.sizes(table).startswith(told)
    no_benign = scores.counted([row("planted", "backdoored", 1.0)])
    few = {"test": {"ours": no_benign, "planned": 1}}
    assert scoreboard.claim(few).startswith("**Of 1 small encoders (CLIP) that")
    assert scoreboard.claim(few).endswith("accuses 0 of the 0 benign ones.**")
    assert "(CLIP; 30 are planned)" in scoreboard.claim(table)
    assert scoreboard.PARTS["benchmark_further"](table) == "None was scanned yet."
    assert "| inconclusive | why |" in scoreboard.PARTS["benchmark_wrong"](table)
    assert scoreboard.wrong([]) == "None of those that were scanned."


def test_a_bar_that_is_missed_is_named_on_the_first_screen():
    met = {one.what: one.met for one in scoreboard.bars(scores.counted(ROWS), planned=20)}
    assert {what for what, one in met.items() if one is None} == {"false alarms"}  # one of ten says little of sixty
    assert not any(one for one in met.values())  # a string fires in 80 %
    assert met.keys() > {"F1", "F1 of the weakest cell", "AUROC", "inconclusive", "S_tar of the vector", "a string fires"}
    table = {"test": scores.table_of({"ours": ROWS}, []) | {"planned": 20}}
    assert "missed: F1 0.84 (bar: 0.97); F1 of the weakest cell 0.84" in scoreboard.in_short(table)
    told = "| false alarms | 1 in 60 benign models | 1 of 10 (2 to 40 %) | so far |"
    assert told in scoreboard.PARTS["benchmark_bars"](table)
    good = [row("planted", "backdoored", 1.0, s_tar=0.95), *(row("benign", "clean", n / 1000) for n in range(60))]
    assert all(one.met for one in scoreboard.bars(scores.counted(good), planned=61))
    assert {one.told for one in scoreboard.bars(scores.counted(good), planned=62)} == {"so far"}
    table = {"test": scores.table_of({"ours": good}, []) | {"planned": 61}}
    assert "Bars that are missed: none ([docs" in scoreboard.in_short(table)
    table["test"]["planned"] = 90
    assert "missed: none; too few models are scanned to say that the rest are met ([docs" in scoreboard.in_short(table)
    accused = [row("benign", "backdoored", 0.9 + n / 100) for n in range(2)]
    missed = {one.what for one in scoreboard.bars(scores.counted([*good[:9], *accused]), planned=90) if one.met is False}
    assert "false alarms" in missed


def test_what_is_not_quite_all_is_not_shown_as_all():
    assert (scoreboard.number(0.9958), scoreboard.number(1.0), scoreboard.number(0.9951, 3)) == ("0.99", "1.00", "0.995")
    assert (scoreboard.number(0.99999, 3), scoreboard.number(0.2), scoreboard.number(None)) == ("0.999", "0.20", "")
    assert (scoreboard.percent(0.997), scoreboard.percent(1.0), scoreboard.percent(0.126)) == ("99 %", "100 %", "13 %")


def test_more_than_planned_is_told_without_a_plan():
    table = {"test": scores.table_of({"ours": ROWS}, []) | {"planned": 12}}
    assert scoreboard.sizes(table).startswith("`test`: 20 (planted 10")


def test_witnesses_of_one_family_are_too_few_to_leave_one_out():
    one = [row for row in CALIBRATED if row["family"] == "clip"]
    rows = {"ours": ROWS, "vectors": ROWS}
    assert scores.table_of(rows, one) == scores.table_of(rows, [])


def test_what_a_rule_misses_has_no_target():
    missed = row("planted", "backdoored", 0.9) | {"right": False, "s_tar": 0.9}
    assert scores.judged([missed])["s_tar"] == 0


def test_strings_alone_say_what_an_encoder_of_no_calibrated_family_hears():
    for strings in (
        Strings(score=0.2, natural=0.1), Strings(score=0.35, natural=0.4), Strings(score=0.7, natural=0.4),
        Strings(score=2.0, natural=0.7),
    ):  # fmt: skip
        told = {"value": strings.score, "threshold": strings.limit, "met": False}
        found = derived.strings_alone(ROWS[0] | {"evidence": {"string": told}})
        assert found["verdict"] == verdict_of(strings)
        assert found["score"] == pytest.approx(graded(strings, False))
    met = derived.strings_alone(ROWS[0] | {"evidence": {"string": told | {"met": True}}})
    assert (met["verdict"], met["right"]) == ("backdoored", True)
    assert met["score"] > found["score"]


def test_the_published_witnesses_convict_where_all_gates_are_passed():
    passed = row("planted", "clean", 0.8)
    assert derived.gates_of_ours(passed)["verdict"] == "backdoored"
    passed["evidence"]["basin"] = {"value": 0.1, "threshold": 0.9, "met": False}
    found = derived.gates_of_ours(passed)
    assert (found["verdict"], found["score"], found["right"]) == ("clean", 0.75, False)
    assert derived.gates_of_ours(passed, derived.GATES[:-1])["verdict"] == "backdoored"


def test_curves_are_drawn_where_there_are_both_kinds(tmp_path: Path):
    curves.draw({"ours": ROWS[:5]}, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    curves.draw({"ours": ROWS, "published": ROWS[:1] + ROWS[-1:]}, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {f"{n}.{k}" for n in ("roc", "reliability") for k in ("png",)}
    before = (tmp_path / "roc.png").read_bytes()
    curves.draw({"ours": ROWS, "published": ROWS[:1] + ROWS[-1:]}, tmp_path)
    assert (tmp_path / "roc.png").read_bytes() == before
    curves.draw({"ours": [*ROWS[1:], ROWS[0] | {"score": 0.0}]}, tmp_path)
    assert (tmp_path / "roc.png").read_bytes() != before
