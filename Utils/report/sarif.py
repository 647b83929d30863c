"""What a code-scanning page is told: reports as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format)."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import constants

from Utils.basics.errors import InputError, visible
from Utils.intake.folders import full_path
from Utils.intake.hub import hub_name
from Utils.report.origin import repository_of
from Utils.report.policy import ACCEPTED, KNOWN, PASSES, Rules
from Utils.report.tool import ADDRESS, NAME, docs

SCHEMA_URI = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


@dataclass(frozen=True)
class Rule:
    """What a verdict means for whoever sees it on a code-scanning page."""

    identity: str
    level: str
    severity: float
    """0..10, as code-scanning pages sort by: from 9 on critical, from 4 on medium."""
    text: str
    """What it says."""
    meaning: str
    """The same in a sentence."""
    cure: str
    """What to do."""
    page: str
    """Of docs, with the heading where it says more."""


RULES = {
    "backdoored": Rule(
        "AMBER001", "error", 9.1, "Backdoored text encoder",
        "A trigger in the prompt makes this text encoder say what its maker wanted, whatever else the prompt says.",
        "Do not use this encoder; take the public base instead.", "report.md#trigger-strings",
    ),
    "inconclusive": Rule(
        "AMBER002", "warning", 5.0, "Text encoder not cleared",
        "Nobody can tell yet whether this text encoder carries a backdoor.",
        "Read the report; give its own base with --anchor.", "report.md#the-clean-base",
    ),
}  # fmt: skip
"""Verdict -> rule.  A clean encoder has no result, unless a policy wants more of it."""


def to_sarif(reports: list[dict], version: str, home: Path, rules: Rules | None = None) -> dict:
    """One run with a result for every encoder that is not clean, and a notification for every one not judged.

    `home` is the folder that locations are relative to, as code-scanning pages want them; rules: what reports were held
    against.
    """
    compared = rules is not None and rules.baseline is not None
    errors = [report for report in reports if report.get("error")]
    return {
        "$schema": SCHEMA_URI,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": NAME, "version": version, "semanticVersion": version, "informationUri": ADDRESS,
                "rules": [_described(rule) for rule in RULES.values()],
            }},
            "invocations": [{
                "executionSuccessful": not errors,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": plain(e["error"])}, "locations": [_place(e, home)]} for e in errors
                ],
            }],
            "versionControlProvenance": _repositories(reports),
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


def _described(rule: Rule) -> dict:
    """A rule with its help, in words, in Markdown and as a page."""
    address = docs(rule.page)
    return {
        "id": rule.identity, "name": rule.text.replace(" ", ""), "shortDescription": {"text": rule.text},
        "fullDescription": {"text": rule.meaning}, "helpUri": address,
        "help": {
            "text": f"{rule.meaning} {rule.cure} {address}",
            "markdown": f"{rule.meaning}\n\n**{rule.cure}** What a report says: [{rule.page.partition('#')[0]}]({address}).",
        },
        "defaultConfiguration": {"level": rule.level},
        "properties": {"security-severity": f"{rule.severity:.1f}", "tags": ["security", "machine-learning"]},
    }  # fmt: skip


def _repositories(reports: list[dict]) -> list[dict]:
    """The repositories of the hub that encoders were read from, each with its commit once."""
    read = [(hub, report["model"]["commit"]) for report in reports if (hub := repository_of(report["model"]))]
    pages = dict.fromkeys((f"{constants.ENDPOINT}/{hub.id}", commit) for hub, commit in read)
    return [{"repositoryUri": uri, "revisionId": commit} for uri, commit in pages]


def _result(report: dict, home: Path) -> dict:
    counted = _counted(report)
    rule = RULES[counted]
    reason = report["reason"] if counted == report["verdict"] else report["policy"]["reason"]
    return {
        "ruleId": rule.identity,
        "ruleIndex": list(RULES).index(counted),
        "level": rule.level,
        "message": {"text": plain(f"{rule.text}: {reason} (score {report['score']:.3f})")},
        "locations": [_place(report, home)],
        "partialFingerprints": {"weights/v1": report["model"]["sha256"]},
        "properties": {
            "score": report["score"],
            "seed": report["seed"],
            "sha256": report["model"]["sha256"],
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
    commit = report["model"].get("commit")
    artifact = {"uri": uri} | ({"properties": {"revision": commit}} if commit else {})
    return {"physicalLocation": {"artifactLocation": artifact, "region": {"startLine": 1}}}


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
