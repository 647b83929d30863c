"""The check that a zoo does not give its planted models away: it sees a loophole where there is one, and none in chance."""

import numpy as np

from Analysis.loophole import areas


def models(leak: float) -> tuple[list[dict], list[dict]]:
    """Twenty planted and twenty benign ones; their sizes differ by `leak` standard deviations."""
    rng = np.random.default_rng(0)
    kinds = ["planted", "benign"] * 20
    rows = [{"kind": kind, "score": 1.4 if kind == "planted" else 0.2, "natural": 0.4} for kind in kinds]
    looks = [{"file size": rng.normal() + leak * (kind == "planted"), "steps": rng.normal()} for kind in kinds]
    return rows, looks


def test_a_loophole_is_seen():
    found = areas(*models(leak=6.0))
    assert found["file size"] > 0.95
    assert found["all together"] > 0.95
    assert found["effect of strings"] == 1.0


def test_chance_is_no_loophole():
    found = areas(*models(leak=0.0))
    assert found["file size"] < 0.75
    assert found["all together"] < 0.75
