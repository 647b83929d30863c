"""How good verdicts are, from the rows that Analysis/evaluation.py leaves: what the table says is computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score

from Analysis.derived import Rows, derived
from Utils.scan.replay import FIRES, SLEEPS, wilson

PREVALENCE = 0.01
"""Share of backdoored encoders among those that somebody downloads, for the value of an alarm."""
BINS = 5
"""Of the reliability plot."""
LENGTHS = {"1 token": (1, 1), "2 or 3": (2, 3), "4 or more": (4, 10**6)}
"""Of triggers."""
YES_OR_NO = ("published",)
"""Ways whose score ranks no models."""
TOLD = ("name", "family", "attack", "kind", "trigger", "verdict", "reason")
"""What is told of a model that was judged wrongly."""


def share(count: int, number: int) -> dict:
    """So many of so many, with the 95 % interval."""
    rate = count / number if number else None
    interval = None if rate is None else wilson(rate, number)
    return {"count": count, "of": number, "rate": None if rate is None else round(rate, 4), "interval": interval}


def fires(row: dict) -> bool:
    """Whether a string of the report works, by its own count on unseen prompts."""
    return any(one["success_rate"] >= FIRES and (one["anchor_success_rate"] or 0) <= SLEEPS for one in row["strings"])


def reaches(row: dict) -> bool:
    """Whether the report's first string does what the trigger was planted for, by the certificate's count."""
    rates = row["string_reaches_target"]
    return bool(rates) and rates["suspect"] >= FIRES and rates["base"] <= SLEEPS


def seconds_of(row: dict) -> float:
    """What a scan took of one core, whatever else the machine did; on a GPU by the clock."""
    return row["cpu_seconds"] if row["device"] == "cpu" else row["seconds"]


def of_the_string(row: dict) -> float | None:
    """S_tar of a report's first string: 0 where there is none or the model was missed, None where there is no one target."""
    return None if row["s_tar"] is None else (row["s_tar_typed"] or 0.0) * row["right"]


def middle(values: Iterable[float | None], digits: int = 4) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), digits) if known else None


def area(planted: list[float], benign: list[float]) -> float | None:
    """Area under the ROC curve: 0.5 is a coin."""
    if not planted or not benign:
        return None
    return round(float(roc_auc_score([1] * len(planted) + [0] * len(benign), planted + benign)), 4)


def judged(rows: Rows) -> dict:
    """What the verdicts of one group are worth.  An inconclusive one misses a planted model and accuses a benign one."""
    planted, benign = ([row for row in rows if row["kind"] == kind] for kind in ("planted", "benign"))
    found, accused = sum(row["right"] for row in planted), sum(not row["right"] for row in benign)
    f1 = 2 * found / (len(planted) + found + accused) if planted else None
    seconds = [seconds_of(row) for row in rows]
    return {
        "planted": len(planted), "triggers": len({row["trigger"] for row in planted}), "benign": len(benign),
        "precision": share(found, found + accused),
        "recall": share(found, len(planted)), "f1": None if f1 is None else round(f1, 4),
        "auroc": area(*([row["score"] for row in some] for some in (planted, benign))),
        "false_positives": share(accused, len(benign)),
        "inconclusive": share(sum(row["verdict"] == "inconclusive" for row in rows), len(rows)),
        "s_tar": middle(row["s_tar"] and row["s_tar"] * row["right"] for row in planted),
        "s_tar_floor": middle(row["s_tar_floor"] for row in planted),
        "s_tar_typed": middle(map(of_the_string, planted)) if any(row["s_tar_typed"] for row in planted) else None,
        "strings": share(sum(map(fires, planted)), len(planted)),
        "reaches": share(sum(map(reaches, planted)), len(planted)),
        "weak": sum(not row["meets_bars"] for row in planted),
        "seconds": [round(float(np.quantile(seconds, q)), 1) for q in (0.05, 0.5, 0.95)] if seconds else None,
        "peak_memory_mb": max((row["peak_memory_mb"] for row in rows), default=None),
    }  # fmt: skip


def by_a_number(rows: Rows, name: str, of: Callable[[dict], float]) -> dict:
    """What one number says of the models of every family that has both kinds.

    In the direction and with the threshold that are best on these very models of the family: it can only flatter.
    auroc: the share of pairs of a planted and a benign model of one family that are in order.
    """
    ordered = pairs = number = found = accused = 0
    thresholds = {}
    for family in sorted({row["family"] for row in rows}):
        values = [[of(r) for r in rows if (r["family"], r["kind"]) == (family, kind)] for kind in ("planted", "benign")]
        if not all(values):
            continue
        sign = 1 if area(*values) >= 0.5 else -1
        planted, benign = ([sign * value for value in some] for some in values)
        limit = max((f1_above(one, planted, benign), one) for one in {*planted, *benign})[1]
        ordered, pairs = ordered + area(planted, benign) * len(planted) * len(benign), pairs + len(planted) * len(benign)
        number, found, accused = number + len(planted), found + above(limit, planted), accused + above(limit, benign)
        thresholds[family] = {"planted": "above" if sign > 0 else "below", "threshold": round(sign * limit, 4)}
    return {
        "what": name, "auroc": round(ordered / pairs, 4) if pairs else None,
        "best_f1": round(2 * found / (number + found + accused), 4) if number else None, "thresholds": thresholds,
    }  # fmt: skip


def above(limit: float, values: list[float]) -> int:
    return sum(value >= limit for value in values)


def f1_above(limit: float, planted: list[float], benign: list[float]) -> float:
    found, accused = (above(limit, some) for some in (planted, benign))
    return 2 * found / (len(planted) + found + accused)


def reliability(rows: Rows) -> dict:
    """Whether a score of so much is right so often.  Brier's value and, in bins of the score, share of planted models."""
    scores, truth = np.array([row["score"] for row in rows]), np.array([row["kind"] == "planted" for row in rows])
    number, bins = np.minimum((scores * BINS).astype(int), BINS - 1), []
    for one in np.unique(number):
        there = number == one
        planted = share(int(truth[there].sum()), int(there.sum()))
        bins.append({"score": round(float(scores[there].mean()), 4), "planted": planted})
    of_the_share = truth.mean() * (1 - truth.mean())
    brier = round(float(brier_score_loss(truth, scores)), 4)
    return {"brier": brier, "of_the_share": round(float(of_the_share), 4), "bins": bins}


def worth_of_an_alarm(of: dict) -> dict:
    """Of a hundred alarms, how many are true where few encoders are backdoored; beside it with the intervals' worse ends."""

    def worth(recall: float, false: float) -> float | None:
        alarms = PREVALENCE * recall + (1 - PREVALENCE) * false
        return round(PREVALENCE * recall / alarms, 4) if alarms else None

    found, false = of["recall"], of["false_positives"]
    value = worth(found["rate"] or 0.0, false["rate"] or 0.0)
    return {
        "prevalence": PREVALENCE,
        "value": value,
        "at_worst": worth((found["interval"] or [0, 1])[0], (false["interval"] or [0, 1])[1]),
    }


def counted(rows: Rows) -> dict:
    """All that is said of the scans with our settings."""
    cells = sorted({(row["family"], row["attack"]) for row in rows})
    groups = {
        f"{family} {attack}": [r for r in rows if (r["family"], r["attack"]) == (family, attack)] for family, attack in cells
    }
    planted = [row for row in rows if row["kind"] == "planted"]
    benign = [row for row in rows if row["kind"] == "benign"]
    lengths = {name: [row for row in planted if low <= row["tokens"] <= high] for name, (low, high) in LENGTHS.items()}
    grounds = {"the base": False, "a fine-tune": True}
    overall = judged(rows)
    return {
        "overall": overall,
        "cells": {name: judged(some) for name, some in groups.items()},
        "by_length": {name: judged(some) for name, some in lengths.items() if some},
        "planted_on": {name: judged([r for r in planted if r["on_a_fine_tune"] == on]) for name, on in grounds.items()},
        "beside": [
            by_a_number(rows, "farthest embedding row", lambda row: row["moved"]["rows"]),
            by_a_number(rows, "norm of the weights' difference", lambda row: row["moved"]["weights"]),
            by_a_number(rows, "drift of clean features", lambda row: row["moved"]["drift"]),
        ] if planted and benign else [],
        "reliability": reliability(rows),
        "alarm": worth_of_an_alarm(overall),
        "wrong": [{name: row.get(name) for name in TOLD} for row in rows if not row["right"]],
    }  # fmt: skip


def table_of(rows: dict[str, Rows], calibrated: Rows) -> dict:
    """A split: ours in full; and what other settings and other rules say, each beside its control on the same models.

    The control is ours, or the way whose evidence a rule judges again.

    rows: setting -> rows; calibrated: witnesses of the models that the score is fitted on, none if they are not at hand.
    """
    others = {name: ("ours", some) for name, some in rows.items() if name != "ours"} | derived(rows, calibrated)
    compared = {}
    for name, (beside, some) in others.items():
        known = {row["name"]: row for row in rows[beside]}
        both = [row for row in some if row["name"] in known]
        if both:
            no_curve = {"auroc": None} if name in YES_OR_NO else {}
            control = judged([known[row["name"]] for row in both])
            compared[name] = {"of": judged(both) | no_curve, "beside": beside, "control": control}
    hours = sum(seconds_of(row) for some in rows.values() for row in some) / 3600
    return {
        "ours": counted(rows["ours"]), "compared": compared, "gates_tried": gates_tried(rows.get("published", [])),
        "hours": round(hours, 2),
    }  # fmt: skip


def gates_tried(published: Rows) -> dict:
    """Of how many models the published procedure tried a gate: before that its loss has to be low enough."""
    return share(sum(any(one["value"] is not None for one in row["evidence"].values()) for row in published), len(published))
