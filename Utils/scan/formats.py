"""What a report says of the number formats that an encoder is run in."""

from __future__ import annotations

from Utils.encoder.numbers import Format
from Utils.scan.finding import Verdict, severity


def about_formats(formats: list[Format], judged: list[tuple[str, Verdict]]) -> tuple[list[dict], list[str]]:
    """judged: (format, verdict) of every judgement.  -> {format, agreement, verdict, score} a format, and notes

    The verdict is None where a format says what single precision says, or was not judged.
    """
    rows, notes = [], []
    for one in [Format("float32", 1.0), *formats]:
        verdicts = [verdict for name, verdict in judged if name == one.name]
        worst = max(verdicts, key=severity, default=None)
        said = {"verdict": worst and worst.verdict, "score": worst and worst.score}
        rows.append({"format": one.name, "agreement": round(one.near, 4)} | said)
        if one.rounded:
            notes.append(
                f"in {one.name} the encoder says something else than in float32 (cos {one.near:.2f}); "
                f"judged there as well, it is {worst.verdict}, score {worst.score:.3f}"
            )
    return rows, notes
