"""Many encoders: one report each and a summary of all.

What is finished is not done again, what is broken does not stop the rest, and several processes share one list.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path

import torch

from Utils.basics.bounded import Ended, reading, run_bounded
from Utils.basics.bounds import Limits, Wanted
from Utils.basics.course import duration
from Utils.basics.errors import InputError, OutOfScope, sentence_of, tell, visible
from Utils.basics.files import ROOT, text_digest, write_whole
from Utils.intake.config import is_encoder_config
from Utils.intake.folders import find_parts, full_path
from Utils.intake.hub import as_named, file_and_part, is_path, snapshot_of
from Utils.intake.tree import Skipped, Tree, look_through
from Utils.report.command_line import say
from Utils.report.contract import EXIT, SCHEMA, SUMMARY_SCHEMA, to_json
from Utils.report.folder import remove_leftovers, result_name
from Utils.report.limits import limits_of, sizes
from Utils.report.page import render_summary, write_page
from Utils.report.policy import Rules, code_of, policy_line
from Utils.report.report import versions
from Utils.report.tool import this_tool
from Utils.sources.find import encoders_of, source_digest
from Utils.sources.lenders import Given, is_file_name
from Utils.sources.registry import REGISTRY, at_hand, known_anchors

JOURNAL = ".summary"
"""Folder inside the output that says which encoders are done; no result can have this name."""
WORST_FIRST = (1, 3, 2, 0)
"""Exit codes: a backdoor outweighs a doubt, a doubt an error, an error a clean model."""
LISTED = 200
"""Paths that the summary names for each reason to leave something out."""
LONGEST_LIST = 64 << 20
"""Bytes; a line has some hundreds."""
FIXED = 25 << 20
"""A scan takes this much longer than its weights do, in bytes of them: 65 s at 4 MB, ten minutes at 240 MB."""
WAIT = timedelta(days=30)
"""How long a process that is done waits for the others: a share of a long list may take days."""


@dataclass(frozen=True)
class Task:
    """One encoder of a list, and the name of its result folder."""

    model: str
    name: str


# ---------------------------------------------------------------------------------------------------------- the list
def read_list(where: Path) -> list[str]:
    """Models named by a text file, one a line (" #" begins a comment where no path has it), or all that lie in a folder.

    A line is a path, relative to the file's folder or the working directory, a hub id or the address of its page.
    """
    return named_in(where).models


def named_in(where: Path, look: Callable[[Path], Tree] = look_through) -> Tree:
    """`read_list`, and what of a folder was left out; look: finds the models in a folder."""
    try:
        tree = look(_no_model(where)) if where.is_dir() else Tree(_lines(where))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{where} cannot be read ({reason}); give a text file with a model a line, or a folder.") from None
    if not tree.models:
        left = f" ({'; '.join(said_of(left_out(tree)))})" if tree.skipped else ""
        raise InputError(f"{where} names no model{left}; write one a line, or put model folders there.")
    tree.models = list({whole_name(model): model for model in tree.models}.values())  # named twice is scanned once
    return tree


def _lines(file: Path) -> list[str]:
    """What a list names.  Names are bytes: those that are no UTF-8 are kept as Python keeps names of files."""
    if file.stat().st_size > LONGEST_LIST:
        raise ValueError("it is too long for a list")
    lines = [line.strip() for line in _decoded(file.read_bytes()).split("\n")]
    return [_model_of(line, file.parent) for line in lines if line and not line.startswith("#")]


def _decoded(content: bytes) -> str:
    """A list as text: shells write UTF-8, with a mark in front or without, and UTF-16 with one."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise ValueError("it begins as UTF-16 does and is none") from None
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _model_of(line: str, folder: Path) -> str:
    """What a line names: the path that it is as a whole, or without a shell's quotes, or without the comment behind it."""
    text, _, comment = line.partition(" #")
    texts = (line, _unquoted(line), text.strip(), _unquoted(text.strip()))
    for text in texts if comment else texts[:2]:
        if is_path(str(folder / text)):
            return str(folder / text)
        if is_path(text):
            return text
    try:
        return as_named(texts[-1])
    except InputError:  # a page of no model: that is for the scan to say
        return texts[-1]


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text


def whole_name(model: str) -> str:
    """`full_path`, or the word itself where it can be no path."""
    try:
        return full_path(model)
    except (OSError, RuntimeError):  # a folder without rights, links in a circle: that is for the scan to say
        return model


def _no_model(folder: Path) -> Path:
    """A folder of models; one that is a model is refused."""
    inner = snapshot_of(folder)
    if (inner / "model_index.json").exists() or is_encoder_config(inner / "config.json"):
        raise InputError(f"{folder} is a model itself; scan it with --model.")
    return folder


def tree_within(folder: Path, wanted: Wanted) -> Tree:
    """`look_through` in a child process: the headers of a thousand files are read there."""
    found = run_bounded(_look_through, (str(folder),), limits_of(str(folder), "none", wanted), str(folder))
    return Tree(found["models"], [Skipped(*one) for one in found["skipped"]], found["others"])


def _look_through(folder: str) -> dict:
    tree = look_through(Path(folder))
    return {"models": tree.models, "skipped": [(one.path, one.reason) for one in tree.skipped], "others": tree.others}


def plan(models: Iterable[str], output: Path, expand: Callable[[str], list[str]] = encoders_of) -> list[Task]:
    """One task an encoder: pipelines with several are taken apart, and no two results get one name."""
    encoders = []
    for model in models:
        try:
            encoders += expand(model)
        except Exception:  # the scan will say the same, and then it is in the summary
            encoders.append(model)
    names = Counter(result_name(model, output) for model in encoders)
    crowded = {name for name, times in names.items() if times > 1}
    return [Task(model, result_name(model, output, crowded)) for model in encoders]


# ---------------------------------------------------------------------------------------------------------- the scans
@dataclass(frozen=True)
class Work:
    """What is done with every task of a list; a fleet pickles it for its workers."""

    scan: Callable[..., dict]
    """As in `scan_named`."""
    output: Path
    request: dict
    """Everything else that a report depends on."""
    resume: bool
    wanted: Wanted = field(default_factory=Wanted)
    """Limits that the user has set."""

    @property
    def anchor(self) -> str:
        return self.request.get("anchor", "auto")


def see_to(task: Task, work: Work, device: str | None = None, process: int | str = 0) -> bool:
    """Scan one encoder, unless an earlier run has finished it, and record how it ended and which process has seen to it.

    -> whether it had to be scanned

    Raises:
        OSError: the record cannot be written; nothing that comes after could be kept either.
    """
    limits = limits_of(task.model, work.anchor, work.wanted)
    died_at = _died_at(task, work.request, limits)
    if work.resume and _died(task, work.output, died_at):
        return False
    key, done = None, _Done()
    try:
        key = _key(task, work.request, limits)
    except Ended as error:
        done = _Done(sentence_of(error), died_at)
    if key is not None and work.resume and _finished(task, work.output, key, work.request):
        return False
    done = done if done.error else _attempt(work.scan, task, device, died_at)
    _record(task, work.output, key, done, process)
    if done.died_at:
        remove_leftovers(work.output)
    return True


class Told:
    """How far a list is: a line for each encoder, with the time that those take that are left."""

    def __init__(self, tasks: Collection[Task], output: Path):
        self.output, self.ended, self.began = output, 0, time.monotonic()
        self.costs = {task: FIXED + sizes(task.model)[0] for task in tasks}
        self.left, self.paid = sum(self.costs.values()), 0

    def about(self, task: Task, scanned: bool) -> None:
        """One is at its end; scanned: and was not finished before."""
        self.ended += 1
        self.left -= self.costs[task]
        self.paid += self.costs[task] if scanned else 0
        if len(self.costs) == 1:
            return
        report = _report(task, self.output)
        verdict = report["verdict"] or "not judged"
        line = f"{self.ended} of {len(self.costs)}: {task.name}: {verdict}" + ("" if scanned else ", as it was before")
        if self.left and self.paid:
            line += f"; about {duration((time.monotonic() - self.began) * self.left / self.paid)} left"
        tell(visible(line))


def unwritable(output: Path, failure: OSError) -> str:
    """Why a list breaks off where `see_to` raises this."""
    return f"{output} cannot be written ({failure.strerror}); see to it, or choose another with --output."


def scan_many(
    tasks: list[Task], scan: Callable[..., dict], output: Path, request: dict, resume: bool, wanted: Wanted | None = None
) -> list[dict]:
    """Scan this process's share of the tasks, wait for the others, and read what all have found.  -> a report a task

    Arguments as in `Work`.  Under accelerate launch the list is split by accelerate's process state, so that no encoder is
    scanned twice.
    """
    from accelerate import PartialState  # half a second that a single scan does not need

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    state.wait_for_everyone()  # names were given by what lay in the output: nobody writes before all have planned
    device = str(state.device) if state.num_processes > 1 and request["device"] == "auto" else None
    work, broken_off = Work(scan, output, request, resume, wanted or Wanted()), None
    with state.split_between_processes(tasks) as share:
        told = Told(share, output)
        for task in share:
            try:
                told.about(task, see_to(task, work, device, state.process_index))
            except OSError as failure:
                broken_off = unwritable(output, failure)
                if state.num_processes > 1:
                    raise InputError(broken_off) from None
                break
    state.wait_for_everyone()
    return reports_of(tasks, output, tasks[tasks.index(task) :] if broken_off else (), broken_off)


def reports_of(tasks: list[Task], output: Path, left: Collection[Task] = (), broken_off: str | None = None) -> list[dict]:
    """What the journal and the result folders say of every task; of those that are left, why the list broke off."""
    return [_unjudged(task, broken_off) if task in left else _report(task, output) for task in tasks]


def is_first_process() -> bool:
    """Whether this process speaks for all that accelerate launched."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class _Done:
    """How the scan of one encoder ended: why it could not be judged, and what it did not survive (`_died_at`)."""

    error: str | None = None
    died_at: str | None = None
    outside: bool = False
    """There is nothing in it that a scan judges."""


def _attempt(scan: Callable[..., dict], task: Task, device: str | None, died_at: str) -> _Done:
    """Scan one encoder."""
    try:
        scan(task.model, task.name, device)
    except Ended as error:
        return _Done(sentence_of(error), died_at)
    except Exception as error:  # whatever is wrong with one model, the others are scanned
        return _Done(sentence_of(error), outside=isinstance(error, OutOfScope))
    return _Done()


def _key(task: Task, request: dict, limits: Limits) -> str | None:
    """A hash of everything a report depends on: settings, and the files of the encoder; None where they cannot be read.

    Raises:
        Ended: reading them takes more than the limits.
    """
    try:
        given = Given(request.get("tokenizer", ""), request.get("anchor", "auto"), request.get("lora_scale", 1.0))
        files = run_bounded(_files_digest, (task.model, given), limits, task.model)
    except Ended:
        raise
    except (InputError, OSError):
        return None
    return text_digest(json.dumps([request, task.model, files], sort_keys=True))


def _files_digest(model: str, given: Given) -> str:
    with reading():
        return source_digest(model, given)


def _died_at(task: Task, request: dict, limits: Limits) -> str:
    """A hash of what a scan may die of: settings, limits and files, which are looked at from outside only."""
    files = []
    with suppress(Exception):  # where the files cannot be looked at, the scan says so
        if is_file_name(task.model):
            stat = os.stat(file_and_part(task.model)[0])
            files, folders = [(task.model, stat.st_size, stat.st_mtime_ns)], []
        else:
            parts = find_parts(task.model)
            folders = sorted({parts.weights, parts.tokenizer})
        for folder in folders:
            with os.scandir(folder) as entries:
                looked_at = [(entry.name, entry.stat()) for entry in islice(entries, 10_000)]
            files += sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in looked_at)
    return text_digest(json.dumps([request, task.model, asdict(limits), files], sort_keys=True))


def planned(args: argparse.Namespace, wanted: Wanted) -> tuple[Tree, list[Task]]:
    """What the command line names, and a task for every encoder in it."""
    expand = partial(encoders_within, only=args.only, anchor=args.anchor, wanted=wanted)
    if args.models:
        tree = named_in(args.models, partial(tree_within, wanted=wanted))
        return tree, plan(tree.models, args.output, expand)
    return Tree([args.model]), plan(expand(args.model), args.output, lambda encoder: [encoder])


def scan_named(
    args: argparse.Namespace,
    scan: Callable[..., dict],
    request: dict,
    files: Iterable[Path],
    wanted: Wanted,
    scan_all: Callable[..., list[dict]] = scan_many,
) -> tuple[list[dict], list[str]]:
    """Scan every encoder that the command line names and show the verdicts.  -> their reports, and what could not be written

    scan(model, name, device) makes one report, in a result folder of that name, on another device than asked for if one is
    given; request and files: what reports depend on beside the suspects and the anchors; scan_all: as `scan_many`.
    """
    for folder in (args.output, args.output / JOURNAL):
        remove_leftovers(folder)
    if is_first_process():
        for line in args.rules.said():
            tell(visible(line))
    tree, tasks = planned(args, wanted)
    if not args.models and len(tasks) == 1:
        try:
            report = scan(tasks[0].model)
        finally:
            remove_leftovers(args.output)  # of a child that was ended
        folder = args.output / tasks[0].name
        unwritten = hold_against(args.rules, [report], [folder])
        say(report, folder)
        return [report], unwritten
    request |= {"files": inputs_digest(args.anchor, files, args.tokenizer), "versions": versions()}
    reports = scan_all(tasks, scan, args.output, request, bool(args.models), wanted)
    unwritten = hold_against(args.rules, reports, [args.output / task.name for task in tasks])
    if is_first_process():
        summary = summarise(reports, tasks, tree, args.rules)
        tell(table(summary))
        if args.models:
            try:
                write_summary(summary, args.output)
            except OSError as error:
                unwritten.append(f"the summary could not be written ({sentence_of(error)})")
    return reports, unwritten


def hold_against(rules: Rules, reports: list[dict], folders: list[Path]) -> list[str]:
    """Let every report say what the rules make of it, here and in its folder.  -> what could not be written"""
    failed = []
    for report, folder in zip(reports, folders, strict=True):
        before, report["policy"] = report.get("policy"), rules.outcome(report)
        if report["policy"] != before and report["verdict"] and is_first_process():
            try:
                write_whole(folder / "report.json", to_json(report))
                if (folder / "report.html").is_file():
                    write_page(report, folder)
            except OSError as error:
                failed.append(f"what the policy makes of {report['model']['path']} could not be kept ({sentence_of(error)})")
    return failed


def encoders_within(model: str, only: str, anchor: str, wanted: Wanted) -> list[str]:
    """`encoders_of` in a child process: weights that lie side by side are compared there."""
    return run_bounded(_encoders_of, (model, only), limits_of(model, anchor, wanted), model)


def _encoders_of(model: str, only: str) -> list[str]:
    with reading():
        return encoders_of(model, only)


def inputs_digest(anchor: str, files: Iterable[Path], tokenizer: str = "") -> str:
    """One hash of what reports depend on beside suspect and settings: these files, the registry and the anchors at hand."""
    known = known_anchors() if anchor == "auto" else []
    named = [str(ROOT / entry["path"]) for entry in known if "path" in entry] if anchor == "auto" else [anchor]
    digests = [str(at_hand(entry)) for entry in known if "hub" in entry]  # a snapshot's name is the hash of what is in it
    for name in named if anchor != "none" else ():
        try:
            digests += [source_digest(encoder, Given(tokenizer)) for encoder in encoders_of(name)]
        except Exception as error:  # the scan will say the same
            digests.append(str(error))
    digests += [sha256(file.read_bytes()).hexdigest() for file in (*files, REGISTRY) if file.is_file()]
    return text_digest(" ".join(digests))


def _journal(task: Task, output: Path) -> Path:
    return output / JOURNAL / f"{text_digest(whole_name(task.model))[:32]}.json"


def record_error(task: Task, output: Path, error: str) -> None:
    """Say that nobody could see to a task; the next run tries it again."""
    _record(task, output, None, _Done(error), "none")


def _record(task: Task, output: Path, key: str | None, done: _Done, process: int | str) -> None:
    """Say that a task is done, and by which process, in a file that is there whole or not at all."""
    entry = {"key": key, "name": task.name, "error": done.error, "process": process, "report": _report_digest(task, output)}
    write_whole(_journal(task, output), to_json(entry | {"died_at": done.died_at, "outside": done.outside}))


def _read(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _died(task: Task, output: Path, died_at: str) -> bool:
    """Whether an earlier run did not survive these files with these settings and limits: this one would not either."""
    entry = _read(_journal(task, output))
    return entry.get("died_at") == died_at and entry.get("name") == task.name


def _finished(task: Task, output: Path, key: str, request: dict) -> bool:
    """Whether an earlier run with the same settings left this report of these files; errors are tried again.

    So is a scan that found no anchor: a base of the hub may be in reach now.
    """
    entry, report = _read(_journal(task, output)), _read(output / task.name / "report.json")
    same = entry.get("key") == key and entry.get("name") == task.name and entry.get("error") is None
    whole = report.get("schema") == SCHEMA and entry.get("report") == _report_digest(task, output)
    return same and whole and bool(report.get("anchor") or request.get("anchor") == "none")


def _report_digest(task: Task, output: Path) -> str | None:
    """SHA-256 of a task's report, to tell it from one that another command put in its place; None where there is none.

    Of what the scan says: what a policy makes of it may change without one.
    """
    report = _read(output / task.name / "report.json")
    return text_digest(json.dumps(report | {"policy": None}, indent=2) + "\n") if report else None


def _report(task: Task, output: Path) -> dict:
    """A task's report; where nothing could be judged, `error` says why."""
    entry = _read(_journal(task, output))
    error = entry.get("error")
    found = {} if error else _read(output / task.name / "report.json")
    gone = f"{output / task.name}: its report is gone; scan it again."
    return found or _unjudged(task, error or gone, bool(entry.get("outside")))


def _unjudged(task: Task, error: str, outside: bool = False) -> dict:
    unjudged = {"schema": SCHEMA, "verdict": None, "error": error, "model": {"path": task.model}}
    return unjudged | ({"outside": True} if outside else {})


# -------------------------------------------------------------------------------------------------------- the summary
def exit_code(reports: list[dict]) -> int:
    """The exit code of many: the worst of theirs."""
    return worst(map(code_of, reports))


def worst(codes: Iterable[int]) -> int:
    """1 before 3 before 2 before 0."""
    return min(codes, key=WORST_FIRST.index)


def left_out(tree: Tree) -> list[dict]:
    """What of a folder has no text encoder, by reason, the most frequent first.  -> {reason, count, paths}"""
    reasons: dict[str, list[str]] = {}
    for one in tree.skipped:
        reasons.setdefault(one.reason, []).append(one.path)
    ordered = sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return [{"reason": reason, "count": len(paths), "paths": sorted(paths)[:LISTED]} for reason, paths in ordered]


def said_of(reasons: list[dict]) -> list[str]:
    """The same in words, a line each."""
    return [f"left out: {one['count']} {visible(one['reason'])}" for one in reasons]


def first_to_look_at(row: dict) -> tuple:
    """What to look at first: what fails, a backdoor before a doubt, a doubt before what was not judged, the higher score."""
    verdict = EXIT[row["verdict"]]
    counts = row["policy"]["code"] if row["policy"] else verdict
    return WORST_FIRST.index(counts), WORST_FIRST.index(verdict), -(row["score"] or 0.0)


def summarise(reports: list[dict], tasks: list[Task], tree: Tree | None = None, rules: Rules | None = None) -> dict:
    """What summary.json says: one row an encoder, what to look at first in front; nothing in it differs from run to run."""
    rows = []
    for report, task in zip(reports, tasks, strict=True):
        target = (report.get("target") or {}).get("texts") or []
        strings = (report.get("trigger") or {}).get("strings") or []
        rows.append({
            "model": report["model"]["path"], "sha256": report["model"].get("sha256"), "verdict": report["verdict"],
            "score": report.get("score"), "reason": report.get("reason"), "error": report.get("error"),
            "triggers": [s["text"] for s in strings], "targets": [t["text"] for t in target],
            "kinds": [b["kind"] for b in report.get("backdoors", [])],
            "commit": report["model"].get("commit"), "seed": report.get("seed"), "command": report.get("command"),
            "report": None if report.get("error") else f"{task.name}/report.json",
            "contents": report["model"].get("contents"), "policy": report.get("policy"),
        })  # fmt: skip
    counts = Counter(row["verdict"] or "not judged" for row in rows)
    tree = tree or Tree()
    return {
        "schema": SUMMARY_SCHEMA, "tool": this_tool(), "exit_code": exit_code(reports), "counts": dict(sorted(counts.items())),
        "models": sorted(rows, key=first_to_look_at), "skipped": left_out(tree), "other_files": tree.others,
        **(rules or Rules()).about(reports),
    }  # fmt: skip


def write_summary(summary: dict, output: Path) -> None:
    """summary.json and summary.html beside the result folders."""
    write_whole(output / "summary.json", to_json(summary))
    write_whole(output / "summary.html", render_summary(summary))


def table(summary: dict) -> str:
    """The summary for a terminal."""
    lines = []
    for row in summary["models"]:
        score = f"{row['score']:.3f}" if row["score"] is not None else "-"
        lines.append(f"{(row['verdict'] or 'not judged').upper():<13} {score:>6}  {visible(row['model'])}")
        lines += [f"{'':22}{visible(line)}" for line in (row["error"], policy_line(row["policy"])) if line]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary["counts"].items())
    lines += said_of(summary["skipped"]) + (
        [f"left out: {n} files that are no models"] if (n := summary["other_files"]) else []
    )
    return "\n".join([*lines, f"{len(summary['models'])} encoders: {counts}"])
