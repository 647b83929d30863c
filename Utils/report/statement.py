"""What somebody may sign: reports as one in-toto Statement v1, whose subjects are the files that were read.

The same reports give the same bytes: times and memory are left out, and nothing here knows a key.
"""

from __future__ import annotations

from typing import Any

from Utils.basics.errors import InputError, visible
from Utils.report.tool import ADDRESS, tool_of

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = f"{ADDRESS}/scan/v1"
"""What the predicate is; another structure gets another number."""
WORST_FIRST = ("backdoored", "inconclusive", None, "clean")
"""Of several encoders the worst verdict stands for all; None: one was not judged."""
SAID = (
    "verdict", "reason", "score", "evidence", "backdoors", "notes", "power", "seed", "device", "command", "config", "given",
    "versions",
)  # fmt: skip
"""What is taken from a report as it is."""


def to_statement(reports: list[dict]) -> dict:
    """The statement that these scans ended so.

    Raises:
        InputError: nothing was judged, and a statement has to be about something.
    """
    if not any(report["verdict"] for report in reports):
        raise InputError("no encoder was judged, so that there is nothing to sign")
    named = _subjects(reports)
    subject = {(name, digest): {"name": name, "digest": {"sha256": digest}} for names in named for name, digest in names}
    verdict = min((report["verdict"] for report in reports), key=WORST_FIRST.index)
    scans = [_scan(report, names) for report, names in zip(reports, named, strict=True)]
    predicate = {"verdict": verdict, "scans": scans}
    return {"_type": STATEMENT, "subject": list(subject.values()), "predicateType": PREDICATE, "predicate": predicate}


def _subjects(reports: list[dict]) -> list[list[tuple[str, str]]]:
    """Name and digest of the files of every report.

    Files are called as they lie in their model.  Where those of two models are called alike every name has the model in front,
    and what is called alike all the same has its digest behind it.
    """
    alone = [[(visible(one["path"]), one["sha256"]) for one in _read(report)] for report in reports]
    pairs = {pair for names in alone for pair in names}
    if len({name for name, _ in pairs}) == len(pairs):
        return alone
    taken: dict[str, str] = {}
    named = []
    for report, names in zip(reports, alone, strict=True):
        longer = [(f"{visible(report['model']['path'])}#{name}", digest) for name, digest in names]
        named.append([(n if taken.setdefault(n, digest) == digest else f"{n}#{digest}", digest) for n, digest in longer])
    return named


def _read(report: dict) -> list[dict]:
    return report["read"]["files"] if report["verdict"] else []


def _scan(report: dict, names: list[tuple[str, str]]) -> dict:
    """One report without what differs from run to run, harmless for whoever prints it."""
    if not report["verdict"]:
        return shown({"verdict": None, "error": report["error"], "model": {"path": report["model"]["path"]}, "subjects": []})
    model, anchor = report["model"], report["anchor"]
    said = {name: report[name] for name in SAID}
    said["backdoors"] = [
        {"kind": one["kind"], "triggers": [s["text"] for s in (one["trigger"] or {}).get("strings") or []]}
        for one in said["backdoors"]
    ]
    return shown({
        **said, "tool": tool_of(report), "model": {name: model[name] for name in ("path", "sha256", "commit")},
        "anchor": anchor and {"files": []} | anchor, "beside": report["read"]["beside"],
        "subjects": [name for name, _ in names],
    })  # fmt: skip


def shown(value: Any) -> Any:
    """The same with every text made harmless, keys too: names and triggers are a stranger's."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(name): shown(one) for name, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, list) else value
