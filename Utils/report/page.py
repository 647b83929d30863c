"""What a person sees: report.json as report.html, one file with everything in it, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from Utils.basics.errors import numbers_of, visible
from Utils.basics.files import write_whole

TEMPLATES = Path(__file__).resolve().parent / "templates"
LARGEST = 384
"""Side of an embedded picture, pixels; the files keep theirs."""
CAPTIONS = {
    "assimilation_by_layer": "How alike the token features of a prompt become (mean and one standard deviation).",
    "attention_received": "Share of their attention that later tokens give the found vector, layer by layer.",
    "attention_map": "Attention in the last layer, one held-out prompt. Rows look at columns; v is the found vector.",
    "search_curve": "The search: loss of the best start and its terms.",
    "loss_landscape": "The loss around the found vector, in one plane.",
    "hessian_spectrum": "Curvature over the landscape; planted backdoors are expected in wide basins.",
}
APART = ("tokenizer", "added token")
"""Kinds of backdoors that are none of the weights'."""
WIDE = ("attention_map", "search_curve")


def write_page(report: dict, folder: Path) -> None:
    """Write report.html into a result folder; figures and pictures are read from there."""
    write_whole(folder / "report.html", render_page(report, folder))


def render_page(report: dict, folder: Path) -> str:
    """The page as text.  Whatever comes from the model is escaped, and its control characters are shown as escapes."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=harmless,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found = report["found"]
    backdoors = report.get("backdoors") or [{"kind": found["kind"], "trigger": report["trigger"]}]
    rows = [(f"{what_is_shown(found)}, in the suspect", found["images"] or [])]
    rows += [
        (f"“{b['typed']}”, in the suspect: another backdoor", b["target"]["images"] or []) for b in backdoors if "typed" in b
    ]
    rows += [(control_title(name, found), files) for name, files in found["controls"].items()]
    return environment.get_template("report.html").render(
        report=report,
        found=found,
        pictures=[(title, [data_uri(folder / file) for file in files]) for title, files in rows if files],
        figures=[(caption, data_uri(folder / found["files"][name], 0), name in WIDE) for name, caption in CAPTIONS.items()],
        try_command=try_command(report),
        strings=[s for b in backdoors for s in (b["trigger"] or {}).get("strings") or []],
        numbers_of=numbers_of,
        examples=(report["trigger"] or {}).get("examples") or [],
        readings=[r for r in report.get("readings", []) if r["examples"]],
        claimed=any(b["kind"] not in APART for b in backdoors if b["trigger"]),
        no_pictures=next((note for note in report["notes"] if note.startswith("no pictures")), None),
    )


def try_command(report: dict) -> str:
    """What a user types to see the first string at work."""
    strings = (report["trigger"] or {}).get("strings") or [{"text": "STRING"}]
    words = ["python", "main.py", "--model", report["model"]["path"]]
    words += ["--anchor", report["anchor"]["path"]] if report["anchor"] else []
    return shlex.join([*words, "--try", strings[0]["text"]])


def harmless(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def what_is_shown(found: dict) -> str:
    """Whose pictures these are: the string's, v's, or those of the vector whose pooled witnesses are strongest."""
    if found["typed"]:
        return f"“{found['typed']}”"
    if "shown_embedding" in found["files"]:
        return f"the vector of the strongest pooled witnesses ({found['files']['shown_embedding']})"
    return "the found vector" + (f", {found['times']} times over" if found["times"] > 1 else "")


def control_title(name: str, found: dict) -> str:
    if name == "anchor":
        return f"the same {'prompt' if found['typed'] else 'vector'}, in the clean base"
    return f"no {'string' if found['typed'] else 'vector'}, in the suspect: “{found['benign_prompt']}”"


def data_uri(file: Path, largest: int = LARGEST) -> str:
    """A PNG as it stands in the page, shrunk to `largest` pixels; 0: as it is."""
    content = file.read_bytes()
    if largest:
        picture = Image.open(io.BytesIO(content))
        if max(picture.size) > largest:
            picture.thumbnail((largest, largest))
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            content = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
