"""What makes a repair short in tests that look at something else."""

import pytest

from Utils.repair import taught


def few_words(patch: pytest.MonkeyPatch) -> None:
    """Words that were taught are made of few tokens, and few nouns are tried."""
    patch.setattr(taught, "TOKENS", 12)
    patch.setattr(taught, "NOUNS_TRIED", 40)
    patch.setattr(taught, "NOUNS", 10)
