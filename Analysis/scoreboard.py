"""The results tables, as Markdown, from what Analysis/scores.py has counted (Results/benchmark/table.json)."""

from __future__ import annotations

from Analysis.markdown import ATTACKS, FAMILIES, FURTHER, grid, literal, rate

NAMES = ATTACKS | FURTHER | {
    "two_triggers": "two triggers", "hidden": "assimilation held down", "paraphrases": "any of three targets",
    "conjunctive": "both words or nothing", "against_sweep": "hidden from a vocabulary sweep",
}  # fmt: skip
HEAD = ("precision", "recall", "F1", "AUROC", "false alarms", "inconclusive", "S_tar", "a string fires", "seconds", "MB")


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def counted(share: dict) -> str:
    """So many of so many, with the interval; nothing of nothing."""
    return rate(share["count"], share["of"]) if share["of"] else ""


def line(of: dict) -> list[str]:
    """One group, in the order of `HEAD`."""
    low, median, high = of["seconds"]
    return [
        number(of["precision"]), counted(of["recall"]), number(of["f1"]), number(of["auroc"], 3),
        counted(of["false_positives"]), counted(of["inconclusive"]), number(of["s_tar"]), counted(of["strings"]),
        f"{median:.0f} ({low:.0f} to {high:.0f})", f"{of['peak_memory_mb']:.0f}",
    ]  # fmt: skip


def cell(name: str) -> str:
    """`family attack`, as a person says it."""
    family, attack = name.split(" ", 1)
    return f"{FAMILIES[family]}, {NAMES[attack]}"


def by_cell(of: dict) -> str:
    """Every family and attack, and all of them."""
    rows = [[cell(name), *line(one)] for name, one in of["cells"].items()]
    return grid(["encoders", *HEAD], [*rows, ["all", *line(of["overall"])]])


def by_attack(of: dict) -> str:
    """Attacks that the paper does not have; the benign models of their family are those of the table above."""
    rows = [
        [cell(name), counted(one["recall"]), number(one["s_tar"]), counted(one["strings"]), f"{one['seconds'][1]:.0f}"]
        for name, one in of["cells"].items()
    ]
    return grid(["encoders", "found", "S_tar", "a string fires", "seconds, median"], rows)


def by_trigger(of: dict) -> str:
    """By length of the trigger, and by what the backdoor was planted on."""
    rows = [[f"trigger of {name}", one] for name, one in of["by_length"].items()]
    rows += [[f"planted on {name}", one] for name, one in of["planted_on"].items() if one["planted"]]
    return grid(
        ["planted models", "found", "S_tar", "a string fires"],
        [[name, counted(one["recall"]), number(one["s_tar"]), counted(one["strings"])] for name, one in rows],
    )


def beside(of: dict) -> str:
    """What one number of the same models says, with the threshold that flatters it most."""
    rows = [["the scan, as shipped", number(of["overall"]["auroc"], 3), number(of["overall"]["f1"])]]
    rows += [[one["what"], number(one["auroc"], 3), number(one["best_f1"])] for one in of["beside"]]
    return grid(["by", "AUROC", "F1, at the best threshold but for the scan"], rows)


def published(table: dict) -> str:
    """The published procedure and ours on the same models."""
    rows = {"published, configs/paper.yaml": table["published"], "ours": table["ours on the same"]}
    return grid(["procedure", "planted", "benign", *HEAD], [
        [name, of["overall"]["planted"], of["overall"]["benign"], *line(of["overall"])] for name, of in rows.items()
    ])  # fmt: skip


def reliability(of: dict) -> str:
    """Whether a score of so much is right so often, and what an alarm is worth."""
    rows = [[number(one["score"]), counted(one["planted"])] for one in of["reliability"]["bins"]]
    alarm, brier = of["alarm"], of["reliability"]["brier"]
    told = (
        f"Brier's value {brier:.3f} (a coin: 0.25). Where {percent(alarm['prevalence'])} of encoders are backdoored, "
        f"{percent(alarm['value'])} of alarms are true; {percent(alarm['at_worst'])} at the interval's worse end."
    )
    return f"{grid(['mean score', 'planted'], rows)}\n\n{told}"


def wrong(of: dict) -> str:
    """Every model that was judged wrongly, and why."""
    rows = [
        [
            literal(one["name"]), cell(f"{one['family']} {one['attack']}"), one["kind"], literal(one["trigger"] or ""),
            one["verdict"], one["reason"].replace("|", "&#124;"),
        ]
        for one in of["wrong"]
    ]  # fmt: skip
    return grid(["model", "encoders", "kind", "trigger", "verdict", "reason"], rows)


def page(table: dict) -> str:
    """All tables of one or two splits, split -> settings -> what was counted."""
    parts = []
    for split, by_settings in table.items():
        for settings, of in by_settings.items():
            planted, benign = (of["overall"][kind] for kind in ("planted", "benign"))
            told = [by_cell(of) if benign else by_attack(of)]
            told += [by_trigger(of), beside(of), reliability(of)] if planted and benign else []
            told += [wrong(of)] if of["wrong"] else []
            parts.append("\n\n".join([f"# {split}, {settings}", *told]))
        if "published" in by_settings:
            parts.append(f"# {split}, the published procedure beside ours\n\n{published(by_settings)}")
    return "\n\n".join(parts) + "\n"
