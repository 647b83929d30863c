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


SETTINGS = {
    "published": "published, `configs/paper.yaml`", "vectors": "vectors alone", "quick": "`--effort quick`",
    "thorough": "`--effort thorough`", "fewer_prompts": "200 prompts instead of 800",
    "sibling_as_base": "another fine-tune in place of the base",
}  # fmt: skip
"""Ways to scan, as a person says them; rules are named already."""


def compared(of: dict) -> str:
    """What other settings and other rules say of the same models, each beside ours."""
    lines = []
    for name, one in of["compared"].items():
        for told, group in ((SETTINGS.get(name, name), one["of"]), ("ours, on the same", one["ours"])):
            seconds = "" if name not in SETTINGS else f"{group['seconds'][1]:.0f}"
            lines.append([
                told, group["planted"], group["benign"], counted(group["recall"]), counted(group["false_positives"]),
                number(group["f1"]), number(group["auroc"], 3), group["inconclusive"]["count"], seconds,
            ])  # fmt: skip
    head = ["by", "planted", "benign", "found", "false alarms", "F1", "AUROC", "inconclusive", "seconds"]
    return grid(head, lines)


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
    """All tables of one or two splits, split -> what was counted."""
    parts = []
    for split, counted_of in table.items():
        of = counted_of["ours"]
        planted, benign = (of["overall"][kind] for kind in ("planted", "benign"))
        told = [by_cell(of) if benign else by_attack(of)]
        told += [by_trigger(of), beside(of), reliability(of)] if planted and benign else []
        told += [wrong(of)] if of["wrong"] else []
        told += [compared(counted_of)] if counted_of["compared"] else []
        parts.append("\n\n".join([f"# {split}", *told]))
    return "\n\n".join(parts) + "\n"
