"""What a command line asks of repairs: which encoders, into which folders, within which limits, and what a person is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from Utils.basics.bounds import Limits, Wanted
from Utils.basics.course import duration
from Utils.basics.errors import InputError, named, tell, visible
from Utils.basics.files import refuse_taken
from Utils.intake.hub import file_and_part
from Utils.repair.mending import Order
from Utils.report.dry_run import expected_seconds
from Utils.report.limits import limits_of, sizes
from Utils.report.lists import Task

MEMORY_TIMES = 10
"""What learns is held in single precision, with its gradient and two moments: so many times the bytes of half precision."""
LONGER = 2.5
"""A repair of one round, its scan and its measures take so many times as long as a scan that ends clean."""
ROUNDS = 4
"""A repair and its scans may take so many times as long as one scan."""


def refuse_within(place: Path, model: str) -> None:
    """Raise if the repaired encoder would lie in what is repaired, or in its place.

    Raises:
        InputError: it would.
    """
    suspect, there = Path(file_and_part(model)[0]), place.resolve()
    if suspect.exists() and (there.is_relative_to(suspect.resolve()) or suspect.resolve().is_relative_to(there)):
        raise InputError(f"{place} and {model} lie in each other; name a folder elsewhere, so that the suspect stays as it is.")


def mending_limits(model: str, anchor: str, wanted: Wanted) -> Limits:
    """What a repair may take: a scan's limits, and what learning adds."""
    limits, (weights, _) = limits_of(model, anchor, wanted), sizes(model)
    memory = min(limits.memory_mb + MEMORY_TIMES * (weights >> 20), psutil.virtual_memory().total >> 20)
    return replace(
        limits, memory_mb=wanted.memory_mb or memory, seconds=wanted.seconds or ROUNDS * limits.seconds,
        reading_seconds=wanted.reading_seconds or ROUNDS * limits.reading_seconds,
    )  # fmt: skip


def foreseen_repairs(tasks: list[Task], place: Path, anchor: str, wanted: Wanted) -> list[str]:
    """What --dry-run tells of --repair: where encoders would go, how long one takes and within which limits."""
    lines = []
    for task in tasks:
        limits, takes = mending_limits(task.model, anchor, wanted), LONGER * expected_seconds(task.model)
        there = place / task.name if len(tasks) > 1 else place
        lines.append(
            f"{task.model}: if it is backdoored, repaired into {there}, about {duration(takes)} more on two cores, at most "
            f"{limits.memory_mb} MB and {duration(limits.seconds)}"
        )
    return [visible(line) for line in lines]


def mended(told: dict) -> str:
    """What a person is told of a repair."""
    lines = [f"REPAIRED, scanned again: {told['verdict']}.  {told['reason']}"]
    for one in told["strings"]:
        before, after = one["success"]["suspect"], one["success"]["repaired"]
        lines.append(f"  {named(one['text'])}, {one['place']}: {before:.0%} of unseen prompts before, {after:.0%} after")
    if certificate := told["certificate"]:
        said = ", ".join(f"{name} {rate:.0%}" for name, rate in certificate.items() if rate is not None)
        lines.append(f"  the true trigger: {said}")
    if relearning := told["relearning"]:
        most = relearning["most"]
        said = ", ".join(f"{n} {f'more than {most}' if s is None else s}" for n, s in relearning["steps"].items())
        lines.append(f"  steps of poisoned training until it is back: {said}")
    lines += [f"  note: {note}" for note in told["notes"]]
    lines.append(
        f"  {sum(told['seconds'].values()):.0f} s, {told['peak_memory_mb']:.0f} MB; the encoder is {told['output']['path']}"
    )
    return "\n".join(visible(line) for line in lines)


def repair_found(tasks: list[Task], order: Order, mend_one: Callable[[Task, dict, Order], dict]) -> list[str]:
    """Repair every backdoored encoder of a scan; each of several goes into a folder of its own below.  -> what failed

    order: of one encoder, `results` being the folder of all results; mend_one(task, report of its scan, order) repairs it.
    """
    failed = []
    for task in tasks:
        results = order.results / task.name
        try:
            report = json.loads((results / "report.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # it was not judged, as the scan has said
        if report["verdict"] != "backdoored":
            tell(visible(f"{task.model}: {report['verdict']}; nothing to repair, it is left as it is"))
            continue
        place = order.place / task.name if len(tasks) > 1 else order.place
        if len(tasks) > 1 and place.is_dir() and not order.force:  # a list that was stopped goes on
            tell(visible(f"{task.model}: {place} is there already"))
            continue
        own = replace(order, place=place, folder=order.results / f"{task.name}_repair", results=results)
        try:
            refuse_within(place, task.model)
            refuse_taken(place, order.force)
            told = mend_one(task, report, own)
            tell(mended(told))
        except InputError as error:
            failed.append(f"{task.model} was not repaired ({str(error).removesuffix('.')})")
    return failed
