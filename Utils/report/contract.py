"""What others rely on: the program's version, the exit codes, the versions of what it writes, and how that is written."""

from __future__ import annotations

import json
from typing import Any

VERSION = "0.1.0"
EXIT = {"clean": 0, "backdoored": 1, None: 2, "inconclusive": 3}
"""Verdict -> exit code; None: nothing was judged."""
APART = ("tokenizer", "added token")
"""Kinds of backdoors that are none of the weights'."""
SCHEMA = "amber-report/1"
"""Version of report.json."""
SUMMARY_SCHEMA = "amber-summary/1"
"""Version of summary.json."""


def to_json(report: Any) -> str:
    """A report as text; everything but ASCII is escaped, and NaN, which is no JSON, is refused."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"
