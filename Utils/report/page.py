"""What a person sees: report.json as report.html and summary.json as summary.html, whole files that fetch nothing."""

from __future__ import annotations

import base64
import io
import shlex
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from Utils.basics.errors import numbers_of, visible
from Utils.basics.files import write_whole
from Utils.report.contract import APART
from Utils.report.numbers import FILE, read_numbers
from Utils.report.policy import policy_line
from Utils.report.power import NEVER, kinds_of
from Utils.report.terms import METHOD, MISSES, TERMS, term_of

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
SHAPES = {
    "assimilation_by_layer": "line chart from the first layer to the last: benign prompts, prompts with the found vector, and "
    "the same in the clean base",
    "attention_received": "line chart from the first layer to the last, suspect and clean base",
    "attention_map": "two squares of grey cells, suspect and clean base; each row is a token that looks",
    "search_curve": "line chart over the steps of the search",
    "loss_landscape": "contour map, the found vector in the middle",
    "hessian_spectrum": "histogram of eigenvalues, zero marked by a line",
}
"""What somebody sees who cannot see the figure; its numbers stand below it."""
ANCHORS = {"assimilation_by_layer": "assimilation"}
"""Figures whose definition has another name than theirs."""
WIDE = ("attention_map", "search_curve")
MOST = 60
"""Rows and columns of numbers that the page shows under a figure."""


def write_page(report: dict, folder: Path) -> None:
    """Write report.html into a result folder; figures and pictures are read from there."""
    write_whole(folder / "report.html", render_page(report, folder))


def render_page(report: dict, folder: Path) -> str:
    """The page as text.  Whatever comes from the model is escaped, and its control characters are shown as escapes."""
    found = report["found"]
    backdoors = report.get("backdoors") or [{"kind": found["kind"], "trigger": report["trigger"]}]
    rows = [(f"{what_is_shown(found)}, in the suspect", found["images"] or [])]
    rows += [
        (f"“{b['typed']}”, in the suspect: another backdoor", b["target"]["images"] or []) for b in backdoors if "typed" in b
    ]
    rows += [(control_title(name, found), files) for name, files in found["controls"].items()]
    published = report["config"].get("procedure") == "published"
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            found=found,
            pictures=[(title, [data_uri(folder / file) for file in files]) for title, files in rows if files],
            figures=figures_of(found["files"], folder),
            try_command=try_command(report),
            strings=[s for b in backdoors for s in (b["trigger"] or {}).get("strings") or []],
            numbers_of=numbers_of,
            examples=(report["trigger"] or {}).get("examples") or [],
            readings=[r for r in report.get("readings", []) if r["examples"]],
            claimed=any(b["kind"] not in APART for b in backdoors if b["trigger"]),
            power=kinds_of(report),
            never=NEVER,
            term_of=partial(term_of, published=published),
            no_pictures=next((note for note in report["notes"] if note.startswith("no pictures")), None),
        )
    )


def environment() -> Environment:
    """Templates of both pages: what is not said to be safe is escaped, and an unknown name is an error."""
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=harmless,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters["policy_line"] = policy_line
    pages.globals |= {"terms": TERMS, "method": METHOD, "misses": MISSES}
    return pages


def render_summary(summary: dict) -> str:
    """summary.html as text: a plain table, which a script of its own sorts and filters; no other script can run in it."""
    script = (TEMPLATES / "summary.js").read_text(encoding="utf-8")
    digest = base64.b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")
    page = environment().get_template("summary.html")
    return page.render(summary=summary, script=Markup(script), script_hash=digest)


@dataclass(frozen=True)
class Shown:
    """A figure on the page."""

    anchor: str
    """Of its definition."""
    caption: str
    alt: str
    image: str
    broad: bool
    tables: list[dict]
    """{title, columns, rows, thinned}; none in results of versions that kept no numbers."""


def figures_of(files: dict[str, str], folder: Path) -> list[Shown]:
    """Every figure with the numbers behind it; files: name -> file of the result."""
    numbers = read_numbers(folder / files["numbers"]) if "numbers" in files else {}
    return [
        Shown(
            ANCHORS.get(name, name).replace("_", "-"), caption, f"{caption[:-1]}: {SHAPES[name]}.",
            data_uri(folder / files[name], 0), name in WIDE, [thinned(table) for table in numbers.get(name, [])],
        )
        for name, caption in CAPTIONS.items()
    ]  # fmt: skip


def thinned(table: dict, most: int = MOST) -> dict:
    """A table of numbers {title, columns, rows} that nobody reads to its end: every so many rows, and columns of squares."""
    down, across = (-(-n // most) for n in (len(table["rows"]), len(table["columns"])))
    columns = [0, *range(1, len(table["columns"]), across)]
    rows = [[row[i] for i in columns] for row in table["rows"][::down]]
    left_out = down > 1 or across > 1
    said = f"One in {max(down, across)} is shown; all are in {FILE} beside this page." if left_out else ""
    return {"title": table["title"], "columns": [table["columns"][i] for i in columns], "rows": rows, "thinned": said}


def try_command(report: dict) -> str:
    """What a user types to see the first string at work."""
    strings = (report["trigger"] or {}).get("strings") or [{"text": "STRING"}]
    words = ["python", "main.py", "--model", report["model"]["path"]]
    words += ["--anchor", report["anchor"]["path"]] if report["anchor"] else []
    return shlex.join([*words, "--try", strings[0]["text"]])


def harmless(value: Any) -> Any:
    """What is put into a page: control characters are shown as escapes; markup of ours stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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
