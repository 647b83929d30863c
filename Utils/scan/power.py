"""How much the search for strings finds, measured on models whose answer is known (Analysis/triggers.py)."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import yaml

from Utils.basics.files import ROOT
from Utils.scan.settings import TriggerConfig

POWER = ROOT / "configs" / "power.yaml"


def load_power(cfg: TriggerConfig) -> dict | None:
    """{settings, kinds: attack -> [found, planted], drift: the largest of these}; None where this search never was measured."""
    known = yaml.safe_load(POWER.read_text(encoding="utf-8"))
    return next((one for one in known if one["settings"] == asdict(cfg)), None)


def shares(power: dict | None) -> dict[str, float]:
    """Attack -> share of planted models that was found; empty where nothing is known."""
    return {attack: round(found / planted, 4) for attack, (found, planted) in power["kinds"].items()} if power else {}


@cache
def known_kinds() -> tuple[str, ...]:
    """Every kind of attack that any search was measured with."""
    known = yaml.safe_load(POWER.read_text(encoding="utf-8"))
    return tuple(sorted({kind for one in known for kind in one["kinds"]}))


def counts(power: dict | None) -> dict[str, list[int]]:
    """Attack -> found and planted models; empty where nothing is known."""
    return dict(power["kinds"]) if power else {}
