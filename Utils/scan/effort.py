"""How much a scan searches, in one word."""

from __future__ import annotations

from pathlib import Path

from Utils.basics.config import flat, load_config, settings_of
from Utils.basics.errors import InputError
from Utils.scan.power import load_power

USUAL = "standard"
EFFORTS = {
    "quick": {"restarts": 4, "steps": 60, "pooled_steps": 40, "landscape_planes": 1, "trigger_searches": 2, "backdoors": 1},
    USUAL: {},
    "thorough": {"trigger_searches": 12, "backdoors": 3},
}
"""Word -> what differs from the config, the least first.  The calibrated score is of the usual search for vectors, which
thorough has too; quick leaves the verdict to the strings."""
OWN = ("corpus", "calibration")
"""Settings that name a user's own files; they say nothing of how much is searched."""


def config_of(kind: type, file: Path, effort: str, given: dict):
    """The config in a file with an effort, and what the user gives beside it, which counts more.

    Raises:
        InputError: the published procedure is asked for with an effort; it has one only.
    """
    if effort != USUAL and load_config(kind, file).procedure == "published":
        raise InputError(f"--effort {effort} is for the calibrated procedure; leave it out with {file}.")
    wanted = EFFORTS[effort] | {name: given[name] for name in settings_of(kind) if given.get(name) is not None}
    return load_config(kind, file, **wanted)


def recall_of(kind: type, file: Path, effort: str) -> str:
    """What share of planted models the search for strings found with an effort, in words."""
    power = load_power(config_of(kind, file, effort, {}).trigger)
    if not power:
        return "never measured"
    found, planted = (sum(column) for column in zip(*power["kinds"].values(), strict=True))
    return f"found {'' if power['whole'] else 'at least '}{found} of {planted} planted models"


def effort_of(config: dict, usual: dict) -> str | None:
    """The most thorough effort that a config reaches, whatever it was called; None where it is below all, or of another kind.

    config, usual: as `asdict` gives them; usual: the config of a scan without flags.
    """
    config, usual = flat(config), flat(usual)
    amounts = {name for differs in EFFORTS.values() for name in differs}
    if any(config.get(name) != value for name, value in usual.items() if name not in (*amounts, *OWN)):
        return None
    reached = [word for word, differs in EFFORTS.items() if all(config[n] >= (usual | differs)[n] for n in amounts)]
    return reached[-1] if reached else None
