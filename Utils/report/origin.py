"""Where an encoder of a report came from, as documents about it say that."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePath

from huggingface_hub import HfUri

from Utils.basics.errors import InputError
from Utils.intake.hub import hub_name


def repository_of(encoder: dict) -> HfUri | None:
    """The repository of the hub that a report's `model` or `anchor` was read from; None for what lay in a folder."""
    if encoder.get("commit") and not PurePath(encoder["path"]).is_absolute():
        with suppress(InputError):
            return hub_name(encoder["path"])
    return None
