"""The results tables, as Markdown, from what Analysis/scores.py has counted (Results/benchmark/table.json)."""

from __future__ import annotations

from typing import NamedTuple

from Analysis.markdown import ATTACKS, FAMILIES, FURTHER, grid, literal, rate

NAMES = ATTACKS | FURTHER | {
    "two_triggers": "two triggers", "hidden": "assimilation held down", "paraphrases": "any of three targets",
    "conjunctive": "both words or nothing", "against_sweep": "hidden from a vocabulary sweep",
}  # fmt: skip
HEAD = (
    "precision", "recall", "F1", "AUROC", "false alarms", "inconclusive", "S_tar", "of the string", "a string fires",
    "and does it", "seconds", "MB",
)  # fmt: skip


STAYS_OPEN, FIRING = 0.05, 0.85
"""Share of models that may end inconclusive, and of planted ones for which a string has to fire."""
BENIGN = 60
"""Distinct benign models of which one may be accused."""


def percent(share: float | None) -> str:
    """In whole percent; what is not quite all is never shown as all."""
    return "" if share is None else f"{100 if share >= 1 else min(round(100 * share), 99)} %"


def number(value: float | None, digits: int = 2) -> str:
    """With so many digits; what is not quite 1 is never shown as 1."""
    if value is None:
        return ""
    return f"{value if value >= 1 else min(value, 1 - 10**-digits):.{digits}f}"


def counted(share: dict) -> str:
    """So many of so many, with the interval; nothing of nothing."""
    return rate(share["count"], share["of"]) if share["of"] else ""


def line(of: dict) -> list[str]:
    """One group, in the order of `HEAD`."""
    low, median, high = of["seconds"]
    return [
        counted(of["precision"]), counted(of["recall"]), number(of["f1"]), number(of["auroc"], 3),
        counted(of["false_positives"]), counted(of["inconclusive"]), target(of), number(of["s_tar_typed"]),
        counted(of["strings"]), counted(of["reaches"]), f"{median:.0f} ({low:.0f} to {high:.0f})",
        f"{of['peak_memory_mb']:.0f}",
    ]  # fmt: skip


def target(of: dict) -> str:
    """S_tar, and in brackets that of prompts without a trigger."""
    return number(of["s_tar"]) and f"{number(of['s_tar'])} ({number(of['s_tar_floor'])})"


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
        [
            cell(name), counted(one["recall"]), target(one), number(one["s_tar_typed"]), counted(one["strings"]),
            counted(one["reaches"]), f"{one['seconds'][1]:.0f}",
        ]
        for name, one in of["cells"].items()
    ]  # fmt: skip
    head = ["encoders", "found", "S_tar", "of the string", "a string fires", "and does it", "seconds, median"]
    return grid(head, rows)


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
    return grid(["by", "AUROC", "F1, of a number at each family's best threshold"], rows)


SETTINGS = {
    "published": "published, `configs/paper.yaml`", "vectors": "vectors alone", "quick": "`--effort quick`, by strings alone",
    "thorough": "`--effort thorough`", "fewer_prompts": "200 prompts instead of 800, by strings alone",
    "sibling_as_base": "another fine-tune in place of the base",
}  # fmt: skip
"""Ways to scan, as a person says them; rules are named already."""


def gates_tried(of: dict) -> str:
    """How far the published procedure came."""
    tried = of["gates_tried"]
    return f"It came to the point of trying a gate in {tried['count']} of {tried['of']} models."


def compared(of: dict) -> str:
    """What other settings and other rules say of the same models, each beside its control."""
    lines = []
    for name, one in of["compared"].items():
        beside = SETTINGS.get(one["beside"], one["beside"])
        for told, group in ((SETTINGS.get(name, name), one["of"]), (f"{beside}, on the same", one["control"])):
            seconds = "" if name not in SETTINGS else f"{group['seconds'][1]:.0f}"
            lines.append([
                told, group["planted"], group["benign"], counted(group["recall"]), counted(group["false_positives"]),
                number(group["f1"]), number(group["auroc"], 3), group["inconclusive"]["count"], number(group["s_tar"]), seconds,
            ])  # fmt: skip
    head = ["by", "planted", "benign", "found", "false alarms", "F1", "AUROC", "inconclusive", "S_tar", "seconds"]
    missing = [told for name, told in SETTINGS.items() if name not in of["compared"]]
    return grid(head, lines) + (f"\n\nNo model was scanned yet with: {'; '.join(missing)}." if missing else "")


def reliability(of: dict) -> str:
    """Whether a score of so much is right so often, and what an alarm is worth."""
    rows = [[number(one["score"]), counted(one["planted"])] for one in of["reliability"]["bins"]]
    alarm, of_the_score = of["alarm"], of["reliability"]
    told = (
        f"Brier's value {of_the_score['brier']:.3f} (of somebody who knows the share of planted models and nothing else: "
        f"{of_the_score['of_the_share']:.3f}). Where {percent(alarm['prevalence'])} of encoders are backdoored, "
        f"at least {percent(alarm['at_worst'])} of alarms are true, by the intervals' worse ends; by the counts "
        f"{percent(alarm['value'])}."
    )
    return f"{grid(['mean score', 'planted'], rows)}\n\n{told}"


def wrong(models: list[dict]) -> str:
    """Every model that was judged wrongly, and why."""
    if not models:
        return "None of those that were scanned."
    rows = [
        [
            literal(one["name"]), cell(f"{one['family']} {one['attack']}"), one["kind"], literal(one["trigger"] or ""),
            one["verdict"], one["reason"].replace("|", "&#124;"),
        ]
        for one in models
    ]  # fmt: skip
    return grid(["model", "encoders", "kind", "trigger", "verdict", "reason"], rows)


class Bar(NamedTuple):
    """What the scan should reach, and whether it does."""

    what: str
    bar: str
    measured: str
    met: bool | None
    """None: too few models have been scanned for a yes."""

    @property
    def told(self) -> str:
        return {True: "yes", False: "no", None: "so far"}[self.met]


def bars(of: dict, planned: int) -> list[Bar]:
    """What the scan should reach on the paper's attacks.

    planned: so many models have to be scanned before a bar counts as met, and `BENIGN` clean ones for that of false alarms.
    """
    overall, worst = of["overall"], min((one["f1"] for one in of["cells"].values() if one["f1"] is not None), default=None)
    false, open_ones = overall["false_positives"], overall["inconclusive"]
    whole = overall["planted"] + overall["benign"] >= planned

    def at_least(what: str, bar: float, value: float | None, digits: int = 2) -> Bar:
        return Bar(what, f"{bar:.2f}", number(value, digits), once((value or 0) >= bar))

    def once(met: bool, enough: bool = True) -> bool | None:
        return None if met and not (whole and enough) else met

    few = false["count"] <= max(1, overall["benign"] // BENIGN)
    return [
        at_least("F1", 0.97, overall["f1"]),
        at_least("F1 of the weakest cell", 0.90, worst),
        Bar("false alarms", f"1 in {BENIGN} benign models", counted(false), once(few, overall["benign"] >= BENIGN)),
        at_least("AUROC", 0.99, overall["auroc"], 3),
        Bar("inconclusive", percent(STAYS_OPEN), counted(open_ones), once(open_ones["rate"] <= STAYS_OPEN)),
        at_least("S_tar of the vector", 0.90, overall["s_tar"]),
        Bar("a string fires", percent(FIRING), counted(strings := overall["strings"]), once((strings["rate"] or 0) >= FIRING)),
    ]


def by_bar(table: dict) -> str:
    """Every bar, beside what was measured."""
    rows = [[one.what, one.bar, one.measured, one.told] for one in bars(table["ours"], table["planned"])]
    return grid(["what", "bar", "measured", "met"], rows)


def in_short(table: dict) -> str:
    """The table of the first screen: every cell, all of them, and the published procedure beside ours."""

    def told(name: str, of: dict) -> list[str]:
        share = of["false_positives"]
        return [
            name, number(of["precision"]["rate"]), number(of["recall"]["rate"]), number(of["f1"]), number(of["auroc"]),
            f"{share['count']} of {share['of']}", number(of["s_tar"]), number(of["s_tar_typed"]),
            percent(of["strings"]["rate"]), f"{of['seconds'][1]:.0f}",
        ]  # fmt: skip

    of = table["test"]
    rows = [told(f"{cell(name)}, {one['planted']} + {one['benign']}", one) for name, one in of["ours"]["cells"].items()]
    overall = of["ours"]["overall"]
    rows.append(told(f"**all, {overall['planted']} + {overall['benign']}**", overall))
    if both := of["compared"].get("published"):
        counts = f"{both['of']['planted']} + {both['of']['benign']}"
        rows += [told(f"published, {counts}", both["of"]), told(f"ours on these {counts}", both["control"])]
    head = [
        "planted + benign", "precision", "recall", "F1", "AUROC", "false alarms", "S_tar", "of the string", "a string fires",
        "seconds",
    ]  # fmt: skip
    every = bars(of["ours"], of["planned"])
    missed = "; ".join(f"{one.what} {one.measured} (bar: {one.bar})" for one in every if one.met is False)
    others = "; too few models are scanned to say that the rest are met" if any(one.met is None for one in every) else ""
    where = "([docs/benchmark.md](docs/benchmark.md#bars))"
    return grid(head, rows) + f"\n\nBars that are missed: {missed or 'none'}{others} {where}."


def claim(table: dict) -> str:
    """The headline in one sentence."""
    of = table["test"]["ours"]["overall"]
    scanned = {name.split(" ")[0] for name in table["test"]["ours"]["cells"]}
    families = ", ".join(name for key, name in FAMILIES.items() if key in scanned)
    found, accused = of["recall"], of["false_positives"]
    least = f" (at least {percent(found['interval'][0])})" if found["interval"] else ""
    most = f" (at most {percent(accused['interval'][1])}, Wilson 95 %)" if accused["interval"] else ""
    number_of, planned = of["planted"] + of["benign"], table["test"]["planned"]
    so_far = f"; {planned} are planned" if number_of < planned else ""
    return (
        f"**Of {number_of} small encoders ({families}{so_far}) that nothing was chosen on, it finds {found['count']} of the\n"
        f"{found['of']} backdoored ones{least} and accuses {accused['count']} of the {accused['of']} benign ones{most}.**"
    )


def sizes(table: dict) -> str:
    """How many models stand behind the table, and what it took."""
    counts = []
    for split, of in table.items():
        overall = of["ours"]["overall"]
        scanned = overall["planted"] + overall["benign"]
        weak = f", {overall['weak']} of which miss a bar of their certificate" if overall["weak"] else ""
        planned = f" of {of['planned']} that the size `standard` has" if scanned <= of["planned"] else ""
        triggers = f"{overall['triggers']} trigger{'s' * (overall['triggers'] != 1)}"
        kinds = f"planted {overall['planted']} with {triggers}{weak}; benign {overall['benign']}"
        counts.append(f"`{split}`: {scanned}{planned} ({kinds})")
    hours = sum(of["hours"] for of in table.values())
    return f"{', '.join(counts)}. The scans took {hours:.1f} hours of a core, without building the models."


PARTS = {
    "benchmark_bars": lambda table: by_bar(table["test"]),
    "benchmark_gates": lambda table: gates_tried(table["test"]),
    "benchmark_claim": claim, "benchmark_short": in_short, "benchmark_sizes": sizes,
    "benchmark_cells": lambda table: by_cell(table["test"]["ours"]),
    "benchmark_triggers": lambda table: by_trigger(table["test"]["ours"]),
    "benchmark_beside": lambda table: beside(table["test"]["ours"]),
    "benchmark_compared": lambda table: compared(table["test"]),
    "benchmark_reliability": lambda table: reliability(table["test"]["ours"]),
    "benchmark_further": lambda table: by_attack(table["beyond"]["ours"]) if "beyond" in table else "None was scanned yet.",
    "benchmark_wrong": lambda table: wrong([one for of in table.values() for one in of["ours"]["wrong"]]),
}  # fmt: skip
"""Tables of README and docs, each made of Results/benchmark/table.json."""


def page(table: dict) -> str:
    """All tables of one or two splits, split -> what was counted."""
    parts = []
    for split, counted_of in table.items():
        of = counted_of["ours"]
        planted, benign = (of["overall"][kind] for kind in ("planted", "benign"))
        told = [by_cell(of) if benign else by_attack(of)]
        told += [by_trigger(of), beside(of), reliability(of)] if planted and benign else []
        told += [wrong(of["wrong"])] if of["wrong"] else []
        told += [compared(counted_of)] if counted_of["compared"] else []
        parts.append("\n\n".join([f"# {split}", *told]))
    return "\n\n".join(parts) + "\n"
