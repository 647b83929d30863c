"""Which verdicts fail: a team's policy (amber.yaml) and an earlier summary (--baseline), held against reports.

A verdict is never rewritten.  What the rules make of it stands under `policy` in report.json, and the exit code follows that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import yaml

from Utils.basics.config import from_values
from Utils.basics.errors import InputError, OutOfScope, first_line
from Utils.report.contract import APART, EXIT, SUMMARY_SCHEMA
from Utils.report.placing import Place, policy_beside
from Utils.scan.effort import EFFORTS
from Utils.scan.power import known_kinds

ERROR = "error"
"""In a policy: what could not be judged."""
FAILING = ("backdoored", "inconclusive", ERROR)
EVERY = ""
"""In `least_power`: every kind that a report names."""
LONGEST, LONGEST_SUMMARY = 1 << 20, 64 << 20
"""Bytes of a policy and of a summary."""
PASSES, ACCEPTED, KNOWN, FAILS = "passes", "accepted", "known", "fails"
"""What becomes of a verdict."""
NONE = "none"
"""In place of a policy's name: take none, whatever lies beside the models."""


# ------------------------------------------------------------------------------------------------------------ the policy
def _weights(text: str, what: str) -> str:
    """A hash as reports have it."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError(f"{what} should be a whole sha256, 64 hexadecimal digits as in report.json, not {text[:80]!r}")
    return text.lower()


def _day(text: str) -> date:
    """YYYY-MM-DD and nothing else: what 01/02/2030 means depends on who reads it."""
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text)
    except ValueError:  # no month has a 31st of that name
        pass
    raise ValueError(f"expires should be a day such as 2030-12-31, not {text[:40]!r}")


@dataclass(frozen=True)
class Acceptance:
    """A finding that a human has looked at and lets pass for a while."""

    sha256: str
    """Of the weights (model.sha256 in report.json), or of everything that was read (model.contents)."""
    reason: str
    """Why it may pass."""
    expires: str
    """YYYY-MM-DD, the last day on which it holds, UTC."""

    def __post_init__(self):
        object.__setattr__(self, "sha256", _weights(self.sha256, "sha256"))
        if not self.reason.strip():
            raise ValueError("reason is empty; say why the finding may pass")
        object.__setattr__(self, "expires", _day(self.expires).isoformat())

    def is_over(self, today: date) -> bool:
        return date.fromisoformat(self.expires) < today


@dataclass(frozen=True)
class Policy:
    """What a team wants; without one everything but a clean verdict fails."""

    fail_on: tuple[str, ...] = FAILING
    """Verdicts that fail; error: what could not be judged."""
    anchors: tuple[str, ...] = ()
    """Hashes of the only bases that a clean verdict may rest on; none: any."""
    accept: tuple[Acceptance, ...] = ()
    """Findings that do not fail."""
    least_power: dict[str, float] = field(default_factory=dict)
    """Kind of attack -> share of planted models that the search for strings must find; EVERY: of all kinds in the report."""
    least_effort: str = ""
    """What a scan must have searched at least."""

    def __post_init__(self):
        object.__setattr__(self, "anchors", tuple(_weights(one, "anchors") for one in self.anchors))
        for verdict in self.fail_on:
            if verdict not in FAILING:
                raise ValueError(f"fail_on knows {', '.join(FAILING)}, not {verdict[:40]!r}")
        hashes = [one.sha256 for one in self.accept]
        if twice := next((one for one in hashes if hashes.count(one) > 1), None):
            raise ValueError(f"accept names {twice} twice; leave one of them")
        if self.least_effort and self.least_effort not in EFFORTS:
            raise ValueError(f"least_effort should be one of {', '.join(EFFORTS)}, not {self.least_effort[:40]!r}")
        for kind, share in self.least_power.items():
            if not 0 <= share <= 1:
                raise ValueError(f"least_power is a share from 0 to 1, not {share}")
            if kind not in (EVERY, *known_kinds()):
                raise ValueError(f"least_power knows no attack {kind[:40]!r}; reports name {', '.join(known_kinds())}")
        asked = [name for name in ("anchors", "least_power", "least_effort") if getattr(self, name)]
        if asked and "inconclusive" not in self.fail_on:
            raise ValueError(
                f"{asked[0]} makes clean verdicts inconclusive, which pass by this fail_on; add inconclusive there or "
                f"leave {asked[0]} out"
            )


class _Plain(yaml.SafeLoader):
    """YAML without aliases, which make a short file a huge one, without keys that stand twice, and with days as text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":merge"))]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value if isinstance(key, yaml.ScalarNode) else "?" for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1 or key == "?"), None):
            raise yaml.YAMLError(f"the key {twice[:40]!r} stands twice" if twice != "?" else "a key is no plain text")
        return super().construct_mapping(node, deep)


def read_policy(content: bytes, source: str, today: date) -> Policy:
    """A policy from the bytes of its file.

    Raises:
        InputError: it is no such YAML, contradicts itself, or lets something pass that it may no longer; nothing of it is used.
    """
    if len(content) > LONGEST:
        raise InputError(f"the policy {source} is longer than {LONGEST >> 20} MB; give a YAML file of a few lines.")
    try:
        values = yaml.load(content.decode("utf-8-sig"), _Plain)
    except UnicodeDecodeError:
        raise InputError(f"the policy {source} is not UTF-8; save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"the policy {source} is not valid YAML ({first_line(error)}); correct it.") from None
    if not isinstance(values, dict) or not values:
        raise InputError(f"the policy {source} holds no rule; write at least one, such as fail_on: [{', '.join(FAILING)}].")
    for name in ("anchors", "accept", "least_power", "least_effort"):
        if name in values and values[name] in ([], {}, ""):
            raise InputError(f"the policy {source}: {name} is empty; leave it out or fill it.")
    if type(values.get("least_power")) in (int, float):
        values["least_power"] = {EVERY: values["least_power"]}
    policy = from_values(Policy, values, f"the policy {source}")
    for one in policy.accept:
        if one.is_over(today):
            raise InputError(
                f"the policy {source} accepts {one.sha256} until {one.expires}, which is over; look at the finding again, and "
                "set a later day or take the acceptance out."
            )
    return policy


# ---------------------------------------------------------------------------------------------------------- the baseline
@dataclass(frozen=True)
class Known:
    """A finding of an earlier summary."""

    verdict: str
    kinds: frozenset[str]
    """Of backdoors."""
    contents: str | None
    """Of everything that was read; None: the summary is older than that key."""


def read_baseline(content: bytes, source: str) -> dict[str, list[Known]]:
    """Weights' hash -> what an earlier summary says of them.

    Of a summary that had a baseline itself only what was known there is known: else the second of two runs would let pass what
    failed in the first, and a finding that was accepted for a while would be for good.

    Raises:
        InputError: it is no summary of this version.
    """
    cure = "give the summary.json of a run of --models with this version"
    if len(content) > LONGEST_SUMMARY:
        raise InputError(f"the baseline {source} is longer than {LONGEST_SUMMARY >> 20} MB; {cure}.")
    try:
        summary = json.loads(content.decode("utf-8-sig"))
        if summary["schema"] != SUMMARY_SCHEMA:
            schema = repr(str(summary["schema"])[:40])
            raise InputError(f"the baseline {source} is of schema {schema}, not {SUMMARY_SCHEMA}; {cure}.")
        rows, compared = summary["models"], summary.get("baseline") is not None
        found: dict[str, list[Known]] = {}
        for row in rows:
            stays = not compared or (row["policy"] or {}).get("outcome") == KNOWN
            if row["verdict"] not in EXIT or (row["verdict"] and not re.fullmatch(r"[0-9a-f]{64}", row["sha256"])):
                raise ValueError("a row is none")
            if row["verdict"] and stays:
                one = Known(row["verdict"], frozenset(row["kinds"]), row.get("contents"))
                found.setdefault(row["sha256"], []).append(one)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"the baseline {source} is no summary of a scan; {cure}.") from None
    return found


# ------------------------------------------------------------------------------------------------------------- the rules
@dataclass(frozen=True)
class Rules:
    """What verdicts are held against in one run."""

    policy: Policy = field(default_factory=Policy)
    file: dict[str, str] | None = None
    """{path, sha256} of the policy."""
    known: dict[str, list[Known]] = field(default_factory=dict)
    """As `read_baseline` gives it."""
    baseline: dict[str, str] | None = None
    """{path, sha256} of the summary."""
    notes: tuple[str, ...] = ()
    """What a person should know of policies that were not taken."""

    @property
    def in_force(self) -> bool:
        return self.file is not None or self.baseline is not None

    @cached_property
    def accepted(self) -> dict[str, Acceptance]:
        """By hash."""
        return {one.sha256: one for one in self.policy.accept}

    def said(self) -> list[str]:
        """The same in words, a line each."""
        lines = [f"note: {note}" for note in self.notes]
        if self.file:
            fails = ", ".join(self.policy.fail_on) or "nothing"
            accepted = f"; {n} accepted" if (n := len(self.policy.accept)) else ""
            lines.insert(0, f"policy: {self.file['path']} (sha256 {self.file['sha256'][:12]}); fails on {fails}{accepted}")
        if self.baseline:
            lines.append(f"baseline: {self.baseline['path']} (sha256 {self.baseline['sha256'][:12]})")
        return lines

    def outcome(self, report: dict) -> dict | None:
        """What the rules make of a report.  -> {path, sha256, outcome, code, reason, expires}, None where there are no rules

        outcome: passes, accepted, known or fails; code: the exit code that the report counts for; reason: why, where the
        verdict alone does not say it; expires: the last day of an acceptance.
        """
        if not self.in_force:
            return None
        about = {"path": None, "sha256": None} | (self.file or {})
        return about | asdict(self._ending(report))

    def _ending(self, report: dict) -> _Ending:
        kind, code, why = report["verdict"] or ERROR, _code_of(report), None
        if kind == "clean":
            if (why := self._shortfall(report)) is None:
                return _Ending(PASSES)
            code = EXIT["inconclusive"]
        model = report["model"]
        if one := kind != ERROR and self.accepted.get(model.get("contents")):
            return _Ending(ACCEPTED, 0, one.reason, one.expires)
        if one := kind != ERROR and self.accepted.get(model.get("sha256")):
            beyond = beyond_weights(report)
            if beyond is None:
                return _Ending(ACCEPTED, 0, one.reason, one.expires)
            why = f"its weights are accepted, but {beyond}; accept model.contents of its report instead, if you mean it"
        if kind not in ("clean", *self.policy.fail_on):
            return _Ending(PASSES, 0, f"fail_on of the policy does not name {kind}")
        if kind not in ("clean", ERROR) and self._is_known(report):
            return _Ending(KNOWN, 0, "it is in the baseline")
        return _Ending(FAILS, code, why)

    def _shortfall(self, report: dict) -> str | None:
        """Why a clean verdict is not enough; None where it is."""
        policy, power = self.policy, report.get("power") or {}
        anchor = (report.get("anchor") or {}).get("sha256")
        if policy.anchors and anchor not in policy.anchors:
            return f"anchor not allowed: {anchor or 'none was compared with'}; give one of the policy's with --anchor"
        for kind, least in policy.least_power.items():
            shares = power if kind == EVERY else {kind: power[kind]} if kind in power else {}
            if not shares:
                return f"too little power: nobody has measured what such a search finds{f' of {kind}' if kind else ''}"
            weakest = min(shares, key=shares.get)
            if shares[weakest] < least:
                return f"too little power: such a search finds {shares[weakest]:.0%} of {weakest}, and {least:.0%} are wanted"
        if policy.least_effort:
            effort, wanted = report.get("effort"), list(EFFORTS)
            if effort not in EFFORTS or wanted.index(effort) < wanted.index(policy.least_effort):
                reached = effort or "less than any, or of another kind"
                return f"too little effort: {reached}; scan with --effort {policy.least_effort} and no setting that lowers it"
        return None

    def _is_known(self, report: dict) -> bool:
        model, kinds = report["model"], {one["kind"] for one in report.get("backdoors", [])}
        return any(
            one.verdict == report["verdict"] and kinds <= one.kinds and one.contents in (None, model.get("contents"))
            for one in self.known.get(model.get("sha256"), ())
        )

    def about(self, reports: Iterable[dict]) -> dict:
        """What a summary says of the rules: `policy`, with the outcome of all, `baseline` and what `said` notes."""
        failed = any((report.get("policy") or {}).get("outcome") == FAILS for report in reports)
        policy = {"path": None, "sha256": None} | (self.file or {}) | {"outcome": FAILS if failed else PASSES}
        policy = policy if self.in_force else None
        return {"policy": policy, "baseline": self.baseline, "notes": list(self.notes)}


@dataclass(frozen=True)
class _Ending:
    """What becomes of one verdict."""

    outcome: str
    code: int = 0
    reason: str | None = None
    expires: str | None = None


def _code_of(report: dict) -> int:
    """The exit code of a verdict by itself."""
    return OutOfScope.code if report.get("outside") else EXIT[report["verdict"]]


def code_of(report: dict) -> int:
    """The exit code that a report counts for: what the rules made of it, or its verdict's."""
    return report["policy"]["code"] if report.get("policy") else _code_of(report)


def beyond_weights(report: dict) -> str | None:
    """What of a finding is not in the weights, so that their hash does not name it; None where there is nothing."""
    apart = [one["kind"] for one in report.get("backdoors", []) if one["kind"] in APART]
    beside = [one["path"] for one in report.get("read", {}).get("beside", []) if one["doubt"]]
    if apart:
        return f"this is a backdoor of the kind {apart[0]}"
    if any(reading["differs_on"] for reading in report.get("readings", [])):
        return "its tokenizer reads texts otherwise than the base's"
    return f"{beside[0]} lies beside them" if beside else None


def policy_line(policy: dict | None) -> str | None:
    """The outcome of one report for a person; None where its verdict says it all."""
    if not policy or not policy["reason"]:
        return None
    until = f" until {policy['expires']}" if policy["expires"] else ""
    return f"policy: {policy['outcome']}{until}: {policy['reason']}"


# ----------------------------------------------------------------------------------------------------- the command line
def rules_of(policy: str | None, baseline: str | None, place: Place) -> Rules:
    """The rules that flags name, or that lie beside the models; read once, before any work.

    Raises:
        InputError: they cannot be followed as a whole.
    """
    file, notes = policy_beside(place) if policy is None else (None if policy == NONE else Path(policy), ())
    rules: dict[str, Any] = {"notes": notes}
    if file is not None:
        content = _content(file, LONGEST, "policy")
        rules |= {"policy": read_policy(content, str(file), datetime.now(UTC).date()), "file": _named(file, content)}
    if baseline is not None:
        content = _content(Path(baseline), LONGEST_SUMMARY, "baseline")
        rules |= {"known": read_baseline(content, baseline), "baseline": _named(Path(baseline), content)}
    return Rules(**rules)


def _content(file: Path, longest: int, what: str) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(longest + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file has such a name"
        raise InputError(f"the {what} {file} cannot be read ({reason}); give an existing file.") from None


def _named(file: Path, content: bytes) -> dict[str, str]:
    return {"path": str(file.absolute()), "sha256": sha256(content).hexdigest()}
