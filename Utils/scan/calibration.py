"""The constants of the score: for which encoders and which search they were fitted, and on what."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import yaml

from Utils.basics.config import from_values
from Utils.basics.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """The score of one family of encoders: a logistic regression over the witnesses, fitted by Analysis/calibrate.py."""

    fingerprint: dict
    """Which encoders it is for."""
    search: str
    """Hash of the search settings it is for (`settings_hash`)."""
    landscape: str
    """Hash of the landscape settings that the limit of the basin is for."""
    weights: dict
    """Witness -> weight."""
    intercept: float
    limits: dict
    """Witness -> largest value of clean encoders (drift: half-way from there to unrelated); the score decides."""
    clean_below: float
    """Scores below are clean."""
    backdoored_above: float
    """Scores from here on are backdoored; between the two thresholds the scan is inconclusive."""
    provenance: dict
    """Models, seeds and command the constants come from."""

    def verdict_of(self, score: float) -> str:
        """backdoored, clean or inconclusive"""
        if score >= self.backdoored_above:
            return "backdoored"
        return "clean" if score < self.clean_below else "inconclusive"


def settings_hash(settings: dict) -> str:
    """A short name of settings: a score is worth nothing with other ones than it was fitted with."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def load_calibration(file: Path, fingerprint: dict, search: str, landscape: str) -> Calibration | None:
    """The constants for a family of encoders and a search; None where they were never fitted.

    Of another landscape than theirs they know no limit: the basin explains then, but is met by nobody.

    Raises:
        InputError: the file is missing or is no list of calibrations.
    """
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
        known = [from_values(Calibration, entry, str(file)) for entry in entries]
    except FileNotFoundError:
        raise InputError(f"the calibration {file} does not exist; give one with --calibration.") from None
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise InputError(f"{file} is no list of calibrations; write it anew with Analysis/calibrate.py.") from None
    found = next((c for c in known if (c.fingerprint, c.search) == (fingerprint, search)), None)
    if found is None or found.landscape == landscape:
        return found
    return replace(found, limits={name: limit for name, limit in found.limits.items() if name != "basin"})
