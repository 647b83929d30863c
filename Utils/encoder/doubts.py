"""Could somebody load another encoder from the same place than the one that was judged?"""

from __future__ import annotations

from Utils.encoder.numbers import disagreements
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import other_weights
from Utils.intake.inventory import Beside, look_around


def doubts_about(encoder: TextEncoder, prompts: list[str], only: bool) -> tuple[list[Beside], list[str]]:
    """What lies beside the judged files, and one sentence for everything that a loader could make another encoder of.

    prompts: to compare number formats with; only: the user has named the weights that count.
    """
    files = encoder.files
    named = only or files.parts.file is not None
    judged = set() if named else {file for one in other_weights(files.parts) for file in one.files}
    beside = look_around(files.parts, {file["path"] for file in files.read}, judged, named)
    doubts = [f"{b.path} ({b.kind}) lies there and was not judged" for b in beside if b.doubt]
    return beside, [*doubts, *files.doubts, *disagreements(encoder, prompts, files.dtypes)]
