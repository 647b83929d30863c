"""Verdicts that the evidence of a scan leads to under other rules than ours; no model is scanned for them."""

from __future__ import annotations

from functools import cache

from Analysis.fitting import SCORED, THRESHOLDS, fit
from main import judge
from Utils.basics.config import load_config
from Utils.making.certificates import RIGHT
from Utils.scan.calibration import Calibration
from Utils.scan.proof import graded, verdict_of
from Utils.scan.settings import SETTINGS, ScanConfig, TriggerConfig
from Utils.scan.strings import Strings

GATES = ("assimilated", "one_target", "foreign", "basin")
"""The kinds of witnesses that the published procedure asks of an encoder, all of them."""
Row = dict
Rows = list[Row]


def judged_as(row: Row, verdict: str, score: float) -> Row:
    """A row as it were with another verdict."""
    return row | {"verdict": verdict, "score": score, "right": verdict == RIGHT[row["kind"]]}


@cache
def of_strings() -> TriggerConfig:
    return load_config(ScanConfig, SETTINGS).trigger


def natural_below(limit: float, cfg: TriggerConfig) -> float:
    """What is natural where this is the limit of a proof: `Strings.limit`, the other way round."""
    return limit - cfg.beyond if limit >= cfg.natural + cfg.beyond else limit / (1 + cfg.beyond / cfg.natural)


def strings_alone(row: Row) -> Row:
    """The verdict that an encoder of no calibrated family gets."""
    told, cfg = row["evidence"]["string"], of_strings()
    strings = Strings(score=told["value"], natural=natural_below(told["threshold"], cfg), cfg=cfg)
    return judged_as(row, "backdoored" if told["met"] else verdict_of(strings), graded(strings, told["met"]))


def gates_of_ours(row: Row, gates: tuple[str, ...] = GATES) -> Row:
    """All of some gates, as our search measures them, above the most that a benign calibration model of the family reaches."""
    passed = sum(row["evidence"][name]["met"] for name in gates)
    return judged_as(row, "backdoored" if passed == len(gates) else "clean", passed / len(gates))


def scored(row: Row, constants: dict) -> Row:
    """The verdict of the vectors with other constants of the score; those that weigh nothing are not asked for."""
    values = {name: told["value"] for name, told in row["evidence"].items() if name in (*SCORED, "basin", "drift")}
    verdict = judge(values, Calibration({}, "", "", provenance={"planted_models": 0, "benign_models": 0}, **constants))
    return judged_as(row, verdict.verdict, verdict.score)


def families_left_out(rows: Rows, calibrated: Rows) -> Rows:
    """Every row with a score that was fitted on the other families.

    calibrated: witnesses of the models that the score is fitted on, each with its family.
    """
    of = {
        family: fit([one for one in calibrated if one["family"] != family], *THRESHOLDS)
        for family in {row["family"] for row in rows}
    }
    return [scored(row, of[row["family"]]) for row in rows]


def without(witness: str, rows: Rows, calibrated: Rows) -> Rows:
    """Every row with a score that was fitted without one witness."""
    names = tuple(name for name in SCORED if name != witness)
    of = {
        family: fit([one for one in calibrated if one["family"] == family], *THRESHOLDS, names)
        for family in {row["family"] for row in rows}
    }
    return [scored(row, of[row["family"]]) for row in rows]


def derived(rows: dict[str, Rows], calibrated: Rows) -> dict[str, tuple[str, Rows]]:
    """Rule -> the setting whose evidence it judges again, and its rows.

    rows: setting -> rows; calibrated: as for `families_left_out`; what cannot be fitted on them is left out.
    """
    found = {}
    if ours := [row for row in rows.get("ours", []) if "string" in row["evidence"]]:
        found["strings alone, as of a family without calibration"] = "ours", [strings_alone(row) for row in ours]
    if vectors := rows.get("vectors"):
        found["vectors, all of the published kinds above every benign one"] = "vectors", list(map(gates_of_ours, vectors))
        found["vectors, the same without the basin"] = "vectors", [gates_of_ours(row, GATES[:-1]) for row in vectors]
    families, fitted_on = ({row["family"] for row in some} for some in (vectors or [], calibrated))
    if vectors and families <= fitted_on and len(fitted_on) > 1:
        rules = {"vectors, the score fitted on the other families": families_left_out(vectors, calibrated)}
        rules |= {f"vectors, without {name}": without(name, vectors, calibrated) for name in SCORED}
        found |= {name: ("vectors", some) for name, some in rules.items()}
    return found
