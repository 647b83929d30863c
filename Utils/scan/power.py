"""How much the search for strings finds, measured on models whose answer is known (Analysis/triggers.py)."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import yaml

from Utils.basics.files import ROOT
from Utils.scan.settings import TriggerConfig

POWER = ROOT / "configs" / "power.yaml"


def load_power(cfg: TriggerConfig) -> dict | None:
    """{settings, kinds: attack -> [found, planted], drift: the largest of these, whole}; None where it never was measured.

    whole: whether this very search was measured, or one that has fewer turns.  Turns come one after the other, so that
    all of the shorter search is in the longer one.
    """
    known = yaml.safe_load(POWER.read_text(encoding="utf-8"))
    of = {one["settings"]["searches"]: one for one in known if one["settings"] | {"searches": cfg.searches} == asdict(cfg)}
    measured = max((searches for searches in of if searches <= cfg.searches), default=None)
    return None if measured is None else of[measured] | {"whole": measured == cfg.searches}


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
