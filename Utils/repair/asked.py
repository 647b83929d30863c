"""What a command line asks of repairs: which encoders, into which folders, within which limits, and what a person is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from Utils.basics.bounds import Limits, Wanted
from Utils.basics.course import duration
from Utils.basics.errors import InputError, named, sentence_of, tell, visible
from Utils.basics.files import refuse_taken
from Utils.intake.folders import find_parts
from Utils.intake.hub import file_and_part, is_path
from Utils.repair.mending import RESCAN, SCHEMA, UNFINISHED, Order
from Utils.report.dry_run import expected_seconds
from Utils.report.folder import model_of, remove_leftovers
from Utils.report.limits import limits_of, sizes
from Utils.report.lists import Task, whole_name

MEMORY_TIMES = 10
"""What learns is held in single precision, with its gradient and two moments: so many times the bytes of half precision."""
LONGER = 4
"""A repair of one round, its scan and its measures take so many times as long as a scan that ends clean."""
OWN = ("Images", RESCAN)
"""Folders that a repair leaves beside its report, and before it."""
ROUNDS = 4
"""A repair and its scans may take so many times as long as one scan."""


def refuse_within(place: Path, model: str) -> None:
    """Raise if the repaired encoder would lie in what is repaired, or in its place.

    Raises:
        InputError: it would.
    """
    suspect = Path(file_and_part(model)[0])
    if not suspect.exists():
        return
    read = [suspect]
    with suppress(InputError, OSError):  # what cannot be scanned is for the scan to say
        parts = find_parts(model)
        read += [] if parts.alone else [parts.root]  # of a pipeline's encoder the whole pipeline is copied
    there = place.resolve()
    if any(there.is_relative_to(one.resolve()) or one.resolve().is_relative_to(there) for one in read):
        raise InputError(f"{place} and {model} lie in each other; name a folder elsewhere, so that {model} stays as it is.")


def refuse_folder(order: Order, model: str) -> None:
    """Raise unless a repair may leave its report in its folder.

    Raises:
        InputError: something else lies there, the report of another model does, or the repaired encoder would lie in it or in
            the folder of the scan.
    """
    folder, place = order.folder, order.place.resolve()
    for reports in (folder.resolve(), order.results.resolve()):
        if reports.is_relative_to(place) or place.is_relative_to(reports):
            raise InputError(f"{place} is where reports go; name another folder for the repaired encoder.")
    remove_leftovers(folder)
    left = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""} if folder.exists() else set()
    if left - {*UNFINISHED, *OWN} and _told(folder).get("schema") != SCHEMA:
        raise InputError(f"{folder} is no report of a repair; move it away, or name another folder for reports.")
    if (folder / RESCAN).exists() and not model_of(folder / RESCAN):
        raise InputError(f"{folder / RESCAN} is no result of a scan; move it away, or name another folder for reports.")
    there = of["path"] if isinstance(of := _told(folder).get("model"), dict) and "path" in of else whole_name(model)
    if there != whole_name(model) and not order.force:
        raise InputError(f"{folder} is the report of a repair of {there}; name another folder for reports, or give --force.")


def _told(folder: Path) -> dict:
    """The report of an earlier repair; empty where there is none."""
    try:
        told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def place_of(task: Task, order: Order, apart: bool) -> Order:
    """What is ordered for all encoders, for one of them; apart: each goes into a folder of its own below the place."""
    place, results = order.place / task.name if apart else order.place, order.results / task.name
    return replace(order, place=place, folder=order.results / f"{task.name}_repair", results=results)


def refuse_places(tasks: list[Task], order: Order, apart: bool, anchor: str, listed: Path | None = None) -> None:
    """Raise, before anything is scanned, where repaired encoders and their reports would have no place of their own.

    listed: a folder in which all models are looked for; what is repaired would be among them the next time.

    Raises:
        InputError: it could not.
    """
    refuse_taken(order.place, order.force or apart)  # of several each is looked at when its turn comes
    if listed and listed.is_dir():
        refuse_within(order.place, str(listed))
    names = {task.name for task in tasks}
    for task in tasks:
        own = place_of(task, order, apart)
        for read in (task.model, anchor):
            refuse_within(own.place, read)
        refuse_folder(own, task.model)
        if own.folder.name in names:
            raise InputError(f"{own.folder} would be of two encoders; scan and repair {task.model} by itself.")


def mending_limits(model: str, anchor: str, wanted: Wanted) -> Limits:
    """What a repair may take: a scan's limits, and what learning adds."""
    limits, (weights, _) = limits_of(model, anchor, wanted), sizes(model)
    memory = min(limits.memory_mb + MEMORY_TIMES * (weights >> 20), psutil.virtual_memory().total >> 20)
    return replace(
        limits, memory_mb=wanted.memory_mb or memory, seconds=wanted.seconds or ROUNDS * limits.seconds,
        reading_seconds=wanted.reading_seconds or ROUNDS * limits.reading_seconds,
    )  # fmt: skip


def foreseen_repairs(tasks: list[Task], order: Order, apart: bool, anchor: str, wanted: Wanted) -> list[str]:
    """What --dry-run tells of --repair: where encoders would go, how long one takes and within which limits."""
    lines = []
    for task in tasks:
        limits, takes = mending_limits(task.model, anchor, wanted), LONGER * expected_seconds(task.model)
        place = place_of(task, order, apart).place
        lines.append(
            f"{task.model}: if it is backdoored, repaired into {place}, about {duration(takes)} more on two cores, at most "
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


def repair_found(
    tasks: list[Task], reports: list[dict], order: Order, apart: bool, mend_one: Callable[[Task, dict, Order], dict]
) -> list[str]:
    """Repair every backdoored encoder of a scan.  -> what failed

    order, apart: as in `place_of`; mend_one(task, report of its scan, order) repairs it.
    """
    failed, judged = [], {report["model"]["path"]: report for report in reports if report["verdict"]}
    copies: list[tuple[Task, str]] = []
    for number, task in enumerate(tasks, start=1):
        report = judged.get(whole_name(task.model))
        if not report:
            continue  # it was not judged, as the scan has said
        if report["verdict"] != "backdoored":
            tell(visible(f"{task.model}: {report['verdict']}; nothing to repair, it is left as it is{needed(report)}"))
            continue
        own = place_of(task, order, apart)
        if apart and not own.force and _is_done(own, report):  # a list that was stopped goes on
            how, told = _otherwise(own, report), _told(own.folder)
            tell(visible(f"{task.model}: repaired already{how}, into {own.place}; scanned again then: {told['verdict']}"))
        else:
            try:
                refuse_taken(own.place, own.force)
                refuse_folder(own, task.model)
                told = mend_one(task, report, replace(own, copy=_copy_of(task, copies)))
                tell(mended(told))
            except (InputError, OSError) as error:
                failed.append(f"{task.model} was not repaired ({sentence_of(error).removesuffix('.')})")
                continue
        if Path(told["output"]["path"]) == own.place:
            continue  # a plain folder has no other encoder in it
        copies.append((task, told["output"]["path"]))
        for other in tasks[number:]:
            if (judged.get(whole_name(other.model)) or {}).get("verdict") == "backdoored" and _copy_of(other, copies[-1:]):
                there = f"copied as it was; {place_of(other, order, apart).place} will have both repaired"
                tell(visible(f"  note: {other.model} is backdoored too, and {there}"))
    return failed


def _copy_of(task: Task, copies: list[tuple[Task, str]]) -> str:
    """What names an encoder in the last copy of its pipeline or file that another one was repaired into; empty: in none.

    copies: encoders, and what names them repaired.
    """
    for other, repaired in reversed(copies):
        there = str(Path(repaired).with_name(Path(task.model).name))
        if lie_together(other, task) and is_path(there):
            return there
    return ""


def _otherwise(order: Order, report: dict) -> str:
    """How an earlier repair differs from the one that is asked for; empty where it does not."""
    told = _told(order.folder)
    then, now = ((one.get("anchor") or {}).get("sha256") for one in (told, report))
    other = ["other settings"] if told.get("settings") != asdict(order.cfg) else []
    other += ["another base"] if then != now else []
    return f" with {' and '.join(other)} (--force repairs it anew)" if other else ""


def lie_together(task: Task, other: Task) -> bool:
    """Whether two are different encoders of one pipeline or file, so that a copy with one of them has the other in it."""
    (named, part), (another, second) = file_and_part(task.model), file_and_part(other.model)
    if part or second:
        return named == another and part != second
    with suppress(InputError, OSError):
        one, two = find_parts(task.model), find_parts(other.model)
        return one.root == two.root and one.weights != two.weights and (one.root / "model_index.json").is_file()
    return False


def needed(report: dict) -> str:
    """What a repair would begin with, where nothing was found because there was nothing to compare with."""
    if report["verdict"] != "inconclusive" or report.get("anchor"):
        return ""
    return "; name its clean base with --anchor, or give a string that fires to Utils/mitigate.py with --string"


def _is_done(order: Order, report: dict) -> bool:
    """Whether an earlier repair of the same weights has left its encoder at this place, as its own report says."""
    told = _told(order.folder)
    with suppress(KeyError, TypeError):
        same = told["schema"] == SCHEMA and told["model"]["sha256"] == report["model"]["sha256"]
        same = same and told["seed"] == order.seed and bool(told["verdict"])
        return same and order.place.is_dir() and Path(told["output"]["path"]).is_relative_to(order.place)
    return False
