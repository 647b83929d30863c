"""What the work on one encoder may take: the limits, and those that hold where the user sets none."""

from __future__ import annotations

from dataclasses import dataclass

BASE_MB, TIMES = 4096, 12
"""Memory of a scan: so much for libraries and corpus, and the weights' bytes so many times over (one tiny scan takes 1.1 GB,
one of CLIP-L 4 GB)."""
SECONDS = 6 * 3600
"""A scan of a large encoder takes an hour on a slow CPU."""
READING_SECONDS = 4
"""Processor time to read files and texts, at least; a tiny scan takes 1 s."""


@dataclass(frozen=True)
class Limits:
    """What the work on one encoder may take."""

    memory_mb: int
    seconds: int
    reading_seconds: int
    """Processor time while files are read and texts are tokenised: a machine that is busy with other things costs none."""
    reading_mb: int | None = None
    """Memory that one reading may add to what is there when it begins; None: as much as the whole work may."""


@dataclass(frozen=True)
class Wanted:
    """Limits that the user has set; None where they follow from the files."""

    memory_mb: int | None = None
    seconds: int | None = None
    reading_seconds: int | None = None
