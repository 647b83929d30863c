"""What a code-scanning page is told: reports as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format)."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import constants

from Utils.basics.errors import InputError, visible
from Utils.intake.folders import full_path
from Utils.intake.hub import hub_name
from Utils.report.policy import ACCEPTED, KNOWN, PASSES, Rules

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULES = {
    "backdoored": ("AMBER001", "error", "Backdoored text encoder", "Do not use this encoder; take the public base instead."),
    "inconclusive": ("AMBER002", "warning", "Text encoder not cleared", "Read the report; give its own base with --anchor."),
}  # fmt: skip
"""Verdict -> rule id, level, what it says, what to do.  A clean encoder has no result, unless a policy wants more of it."""


def to_sarif(reports: list[dict], version: str, home: Path, rules: Rules | None = None) -> dict:
    """One run with a result for every encoder that is not clean, and a notification for every one not judged.

    `home` is the folder that locations are relative to, as code-scanning pages want them; rules: what reports were held
    against.
    """
    compared = rules is not None and rules.baseline is not None
    rules = [
        {
            "id": identity, "name": text.replace(" ", ""), "shortDescription": {"text": text}, "help": {"text": cure},
            "defaultConfiguration": {"level": level},
        }
        for identity, level, text, cure in RULES.values()
    ]  # fmt: skip
    errors = [report for report in reports if report.get("error")]
    return {
        "$schema": SCHEMA_URI,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "AMBER", "version": version, "semanticVersion": version, "rules": rules}},
            "invocations": [{
                "executionSuccessful": not errors,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": plain(e["error"])}, "locations": [_place(e, home)]} for e in errors
                ],
            }],
            "results": [_result(report, home) | _held(report, compared) for report in reports if _counted(report) in RULES],
        }],
    }  # fmt: skip


def _counted(report: dict) -> str | None:
    """The verdict that a report counts for: a clean one that is not enough for the policy is inconclusive."""
    enough = not report.get("policy") or report["policy"]["outcome"] == PASSES
    return report["verdict"] if enough or report["verdict"] != "clean" else "inconclusive"


def _held(report: dict, compared: bool) -> dict:
    """What rules add to a result, compared with a baseline or not; suppressions stand at all results of a run or at none."""
    policy, more = report.get("policy"), {}
    if policy:
        accepted = policy["outcome"] == ACCEPTED
        why = visible(f"{policy['reason']} (accepted until {policy['expires']})")
        more["suppressions"] = [{"kind": "external", "status": "accepted", "justification": why}] if accepted else []
    if policy and compared:
        more["baselineState"] = "unchanged" if policy["outcome"] == KNOWN else "new"
    return more


def _result(report: dict, home: Path) -> dict:
    counted = _counted(report)
    identity, level, text, _ = RULES[counted]
    reason = report["reason"] if counted == report["verdict"] else report["policy"]["reason"]
    return {
        "ruleId": identity,
        "ruleIndex": list(RULES).index(counted),
        "level": level,
        "message": {"text": plain(f"{text}: {reason} (score {report['score']:.3f})")},
        "locations": [_place(report, home)],
        "partialFingerprints": {"weights/v1": report["model"]["sha256"]},
        "properties": {
            "score": report["score"],
            "seed": report["seed"],
            "triggers": [visible(s["text"]) for s in (report.get("trigger") or {}).get("strings") or []],
        },
    }


def _place(report: dict, home: Path) -> dict:
    """The encoder's config file, relative to `home` where it lies below; a hub id as its page."""
    path = Path(full_path(report["model"]["path"]))
    if path.is_absolute():
        with suppress(OSError):
            path = path / "config.json" if (path / "config.json").exists() else path
        inside = path.is_relative_to(home)
        uri = quote(os.fsencode(path.relative_to(home).as_posix())) if inside else path.as_uri()
    else:
        uri = _page(report["model"]["path"])
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}


def _page(name: str) -> str:
    """The page of a hub id; of what is neither there nor here, what its page would be called."""
    with suppress(InputError):
        if place := hub_name(name):
            return replace(place, path_in_repo="").to_url()  # a folder's page and a file's have different addresses
    return f"{constants.ENDPOINT}/{quote(name.encode('utf-8', 'surrogatepass'))}"


def plain(text: str) -> str:
    """A message without control characters, and without what SARIF readers take for links and placeholders."""
    harmless = visible(text).replace("\\", "\\\\")
    for sign in "[]":
        harmless = harmless.replace(sign, f"\\{sign}")
    return harmless.replace("{", "{{").replace("}", "}}")
