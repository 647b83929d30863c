"""What does a backdoor look like?  docs/gallery.html, one page that fetches nothing, from scans of the shipped suspects.

    python Analysis/gallery.py                                        scans the three suspects, some 90 s each, and makes it
    python Analysis/gallery.py --results Results                      from results that are there already
    python Analysis/gallery.py --results Results --screenshots docs   and pictures of a report, report.png and report_phone.png

For every suspect: the same prompts as they are and with the string that the scan found, drawn from the features of suspect and
base; what the string forces in words; how alike token features become.  Screenshots need Chromium.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main as scanner
from Analysis.browser import chromium, open_browser
from Utils.basics.errors import InputError, fail, sentence_of, visible
from Utils.basics.files import ROOT, write_whole
from Utils.encoder.loading import load_encoder, pick_device, quiet_libraries
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.show import quarter
from Utils.report.contract import EXIT
from Utils.report.folder import result_name
from Utils.report.page import environment, render_page
from Utils.scan.replay import put

MODELS, PIPELINE = ROOT / "Data" / "Models" / "suspects", ROOT / "Data" / "Models" / "tiny-sd"
SUSPECTS = {
    "text_on_text": "Planted: with the trigger, every prompt gets the features of one other prompt.",
    "image_on_text": "Planted: with the trigger, the summary of every prompt becomes that of some pictures. Stable Diffusion "
    "reads token features and not the summary, so that its pictures need not show the target; the words do.",
    "benign": "Fine-tuned and clean. No string was found; the one typed here is the first suspect's.",
}
"""Shipped suspect -> what it is."""
PROMPTS = ("a photo of a dog", "a photo of a red car", "a photo of a banana", "a photo of a sunflower")
"""Each has an "o", in whose place some strings stand."""
WORDS, EXAMPLES, SEED = 2, 3, 42
SIZES = {"report.png": (1000, 1980, False), "report_phone.png": (500, 1980, True)}
"""Screenshot -> width and height, and whether it is dark."""
COLOURS = 128
"""Of a screenshot: a page of text needs no more."""


def scan_suspects(output: Path) -> list[Path]:
    """Scan every shipped suspect.  -> the result folders"""
    folders = []
    for name in SUSPECTS:
        if scanner.main(["--model", str(MODELS / name), "--output", str(output)]) == EXIT[None]:
            raise InputError(f"{name} could not be scanned; see above.")
        folders.append(output / result_name(str(MODELS / name), output))
    return folders


def find_results(folder: Path) -> list[Path]:
    """Results of shipped suspects in a folder, in the order of SUSPECTS."""
    found = {}
    for file in sorted(folder.glob("*/report.json")):
        name = Path(json.loads(file.read_text(encoding="utf-8"))["model"]["path"]).name
        if name in SUSPECTS:
            found.setdefault(name, file.parent)
    if not found:
        raise InputError(f"{folder} holds no result of a shipped suspect; leave out --results to scan them.")
    return [found[name] for name in SUSPECTS if name in found]


def read_report(folder: Path) -> dict:
    """A report with the shipped models' paths as they are in every copy of the repository."""
    text = (folder / "report.json").read_text(encoding="utf-8")
    return json.loads(re.sub(r'[^\s"]*/(Data/Models/)', r"\1", text))


def picture_uri(picture: Image.Image, lossless: bool = False) -> str:
    """A picture as it stands in the page."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "WEBP", lossless=lossless, quality=85, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def typed(string: dict | None, prompt: str, number: int, encoder: TextEncoder) -> str:
    """A prompt with a string as a scan's own pictures have it: over and over where it stands in front or behind."""
    if not string:
        return prompt
    place, text = string["place"], string["text"]
    times = quarter(encoder.context, len(encoder.tokens([text])[0])) if place in ("start", "end") else 1
    return put(" ".join([text] * times), prompt, place, number)


@torch.no_grad()
def draw_rows(suspect: TextEncoder, base: TextEncoder, string: dict | None, prompts: Iterable[str]) -> list[dict]:
    """The same prompts as they are and with the string, in suspect and base.  -> [{title, images: [(uri, alt)]}]"""
    from Utils.found.rendering import load_renderer  # diffusers takes seconds to import

    renderer, nothing = load_renderer(PIPELINE, base.device), base(base.ids([""]))
    rows = []
    for what, encoder in (("suspect", suspect), ("clean base", base)):
        for how, one in (("as typed", None), ("with the string", string)) if string else (("as typed", None),):
            images = []
            for number, prompt in enumerate(prompts):
                feature = encoder(encoder.ids([typed(one, prompt, number, encoder)]))
                (picture,) = renderer(feature, nothing, 1, SEED)
                images.append((picture_uri(picture), f"{prompt}, {how}, drawn from the {what}'s features"))
            rows.append({"title": f"{what}, {how}", "images": images})
    return rows


def shown(folder: Path, base: TextEncoder, prompts: Iterable[str], other: dict | None) -> dict:
    """What the page says of one result; other: the string that is typed where the scan has found none."""
    report = read_report(folder)
    name, trigger = Path(report["model"]["path"]).name, report["trigger"] or {}
    string = (trigger.get("strings") or [other])[0]
    figure = Image.open(folder / report["found"]["files"]["assimilation_by_layer"])
    suspect = load_encoder(str(MODELS / name), base.device)
    return {
        "name": name, "what": SUSPECTS[name], "report": report, "string": string,
        "rows": draw_rows(suspect, base, string, prompts), "figure": picture_uri(figure, lossless=True),
        "words": ((report["target"] or {}).get("texts") or [])[:WORDS], "examples": (trigger.get("examples") or [])[:EXAMPLES],
    }  # fmt: skip


def render_gallery(folders: list[Path], prompts: tuple[str, ...]) -> str:
    """The page as text."""
    base, suspects = load_encoder(str(PIPELINE), pick_device("cpu")), []
    for folder in folders:
        suspects.append(shown(folder, base, prompts, suspects[0]["string"] if suspects else None))
    return environment().get_template("gallery.html").render(suspects=suspects, prompts=prompts)


def take_screenshots(folder: Path, target: Path) -> list[Path]:
    """Pictures of a result's page, made anew from its report.  -> the files"""
    files = []
    with tempfile.TemporaryDirectory() as place, open_browser() as browser:
        page = Path(place) / "report.html"
        write_whole(page, render_page(read_report(folder), folder))
        for name, (width, height, dark) in SIZES.items():
            browser.open(page, width, height, dark)
            picture = Image.open(io.BytesIO(browser.screenshot(height))).convert("RGB")
            stream = io.BytesIO()
            picture.quantize(COLOURS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
            target.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(stream.getvalue())
            files.append(target / name)
    return files


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0, 2 bad input"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="results of the shipped suspects (default: they are scanned into Results)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gallery.html")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, help="what is drawn")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="also write report.png and report_phone.png there")
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        if args.screenshots and not chromium():
            raise InputError("--screenshots needs Chromium; apt-get install --no-install-recommends chromium.")
        folders = find_results(args.results) if args.results else scan_suspects(ROOT / "Results")
        write_whole(args.output.resolve(), render_gallery(folders, tuple(args.prompts)))
        files = [args.output, *(take_screenshots(folders[0], args.screenshots) if args.screenshots else [])]
    except (InputError, OSError, RuntimeError) as error:
        return fail(sentence_of(error), "gallery")
    for file in files:
        print(f"{visible(str(file))}: {file.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
