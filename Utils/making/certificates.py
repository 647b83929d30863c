"""What is proved of a made model, as a file beside its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from Utils.basics.files import write_whole

RIGHT = {"planted": "backdoored", "benign": "clean"}
"""Kind of a model -> the verdict that is right."""


def write_certificate(report: dict, file: Path, model: Path) -> None:
    """Write the certificate of a model that is about to take its folder `model`.

    The old model goes first: no folder ever stands beside the certificate of another one.
    """
    shutil.rmtree(model, ignore_errors=True)
    write_whole(file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
