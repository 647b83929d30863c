"""The figures of the results table: ROC curves and the reliability of the score, from the rows of Analysis/evaluation.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from sklearn.metrics import roc_curve

from Analysis.markdown import FAMILIES
from Analysis.scores import Rows, judged, reliability
from Utils.report.plots import LOOK, RED, STYLES, canvas, save_small

NUMBERS = {"rows": "farthest embedding row", "weights": "norm of the difference", "drift": "drift of clean features"}
"""What the weights alone say, by its name in a row."""


def both_kinds(rows: Rows) -> bool:
    return len({row["kind"] for row in rows}) == 2


def roc(rows: dict[str, Rows], file: Path) -> None:
    """Found against false alarms, by threshold: our score by family, and beside it single numbers of the same models.

    A procedure that knows yes and no only is a point.
    """
    ours = rows["ours"]
    with matplotlib.rc_context(LOOK):
        figure, (by_family, by_number) = canvas(7.6, 3.5, columns=2)
        groups = {"all": ours} | {FAMILIES[name]: [r for r in ours if r["family"] == name] for name in FAMILIES}
        for (name, some), (colour, line, _) in zip([one for one in groups.items() if both_kinds(one[1])], STYLES, strict=False):
            curve(by_family, some, [row["score"] for row in some], f"{name}, {len(some)}", colour, line)
        curve(by_number, ours, [row["score"] for row in ours], "the scan's score", *STYLES[0][:2])
        for (name, told), (colour, line, _) in zip(NUMBERS.items(), STYLES[1:], strict=True):
            curve(by_number, ours, [row["moved"][name] for row in ours], told, colour, line)
        if both_kinds(published := rows.get("published", [])):
            of = judged(published)
            place = of["false_positives"]["rate"], of["recall"]["rate"]
            by_number.plot(*place, "X", color=RED, markersize=8, clip_on=False, label=f"published, on {len(published)}")
        for axes in (by_family, by_number):
            axes.plot((0, 1), (0, 1), color="#bbbbbb", linewidth=0.7)
            axes.set(xlabel="benign models accused", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axes.legend(loc="lower right")
        by_family.set(ylabel="planted models found", title="the scan, by family")
        by_number.set(title="the scan beside single numbers")
        save_small(figure, file)


def curve(axes: matplotlib.axes.Axes, rows: Rows, values: list[float], label: str, colour: str, line: str) -> None:
    """One ROC curve."""
    accused, found, _ = roc_curve([row["kind"] == "planted" for row in rows], values, drop_intermediate=False)
    axes.plot(accused, found, line, color=colour, label=label)


def reliable(rows: Rows, file: Path) -> None:
    """Share of planted models among those of about one score, with its interval; a reliable score lies on the diagonal."""
    with matplotlib.rc_context(LOOK):
        figure, (axes,) = canvas(3.8, 3.5)
        axes.plot((0, 1), (0, 1), color="#bbbbbb", linewidth=0.7)
        for one in reliability(rows)["bins"]:
            share = one["planted"]
            low, high = share["interval"]
            axes.plot((one["score"],) * 2, (low, high), color=STYLES[0][0])
            axes.plot(one["score"], share["rate"], "o", color=RED, clip_on=False)
            axes.annotate(str(share["of"]), (one["score"], share["rate"]), xytext=(5, 0), textcoords="offset points")
        axes.set(xlabel="mean score of a bin", ylabel="share of planted models", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set(aspect="equal", title="with 95 % interval and number of models")
        save_small(figure, file)


def draw(rows: dict[str, Rows], folder: Path) -> None:
    """All figures of one split; none while one kind of models is missing."""
    if both_kinds(rows.get("ours", [])):
        folder.mkdir(parents=True, exist_ok=True)
        roc(rows, folder / "roc")
        reliable(rows["ours"], folder / "reliability")
