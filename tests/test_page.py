"""report.html: self-contained, in the promised order, and harmless whatever the model calls itself.

Contents
    content     verdict, evidence, pictures, words, trigger, figures, times, hashes, command, in this order
    safety      nothing is fetched; markup and control characters of the model stay text
    plots       every figure as PNG and PDF, the same bytes again
"""

import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from Utils.report import plots
from Utils.report.page import CAPTIONS, render_page
from Utils.report.terms import METHOD, MISSES

HOSTILE = '<script>alert(1)</script>"\x1b[31m\u202e{{ 7 * 7 }}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*CAPTIONS, "picture"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


def report_of(path: str = "suspects/x", verdict: str = "backdoored", **found: object) -> dict:
    shown = {
        "kind": "feature collapse", "times": 19, "typed": None,
        "texts": [{"text": "a lion", "similarity": 0.9, "floor": 0.1}], "images": ["picture.png"],
        "controls": {"anchor": ["picture.png"], "benign": ["picture.png"]}, "benign_prompt": "a dog",
        "files": {name: f"{name}.png" for name in CAPTIONS} | {"embedding": "Backdoor_Embedding.pt"},
    } | found  # fmt: skip
    claimed = verdict == "backdoored"
    return {
        "schema": "amber-report/1", "verdict": verdict, "reason": "Because.", "score": 0.98, "notes": ["a note"],
        "model": {
            "path": path, "sha256": "ab" * 32, "commit": "c0ffee", "architecture": "CLIP", "parameters": 1234,
            "ignored_tensors": [],
        },
        "anchor": {"path": "Data/Models/tiny-sd", "sha256": "cd" * 32, "commit": "c0ffee"},
        "evidence": [{"name": "one_target", "value": 0.7, "threshold": None, "met": True, "meaning": "what it means"}],
        "trigger": {"strings": None, "examples": [], "embedding": "Backdoor_Embedding.pt"} if claimed else None,
        "target": {"texts": shown["texts"], "images": shown["images"]} if claimed else None,
        "found": shown, "seconds": {"search": 12.34}, "peak_memory_mb": 1000.0, "config": {"steps": 120},
        "tool": {"name": "AMBER", "version": "1", "commit": "f00d" * 10},
        "versions": {"torch": "2"}, "seed": 42, "command": shlex.join(["python", "main.py", "--model", path]),
    }  # fmt: skip


STRING = {
    "text": "zz", "place": "start", "success_rate": 1.0, "interval": [0.9, 1.0], "anchor_success_rate": 0.0, "collapse": 0.9,
    "anchor_collapse": 0.1,
}  # fmt: skip
EXAMPLE = {"prompt": "a dog", "before": "one dog", "after": "a lion", "base": "a dog sleeps"}


class Links(HTMLParser):
    """Everything a browser would fetch or run."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.opened: list[str] = []
        """What a reader may follow, and nothing fetches."""
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        (self.opened if tag == "a" else self.found).extend(
            value or "" for name, value in attributes if name in {"src", "href", "srcset", "action", "data"}
        )


def test_the_page_tells_its_story_in_order(folder):
    page = render_page(report_of(), folder)
    story = [
        "backdoored</h1>", "Because.", "score 0.980", "one target", "in pictures", "in words", "a lion", "Trigger", "Figures",
        "12.3 s", "ab" * 32, "python main.py --model suspects/x", "f00d" * 10,
    ]  # fmt: skip
    places = [page.index(part) for part in story]
    assert places == sorted(places)


def test_a_string_comes_first_with_prompts_before_and_after_and_the_command_to_try_it(folder):
    report = report_of(typed="zz a dog")
    report["trigger"] |= {"strings": [STRING], "examples": [EXAMPLE]}
    page = unescape(render_page(report, folder))
    story = [
        "Because.", "Trigger</a></h2>", "<code><bdi>zz</bdi></code>",
        "--anchor Data/Models/tiny-sd --try zz", "one dog", "a dog sleeps",
        "<h2>Evidence</h2>", "“zz a dog”, in the suspect", "the same prompt, in the clean base",
        "no string, in the suspect: “a dog”",
    ]  # fmt: skip
    places = [page.index(part) for part in story]
    assert places == sorted(places)
    assert page.count("Trigger</a></h2>") == 1


def test_nothing_is_fetched_from_anywhere(folder):
    page = render_page(report_of(), folder)
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not links.tags & {"script", "link", "iframe", "object", "base"}
    assert {link.partition("#")[0] for link in links.opened} == {METHOD, MISSES}
    assert not re.search(r"https?://|@import|url\(", re.sub(r'href="[^"]*"', "", page))


@pytest.mark.parametrize("where", ["path", "text", "prompt", "note", "string", "example", "typed"])
def test_what_the_model_says_is_text_and_nothing_else(folder, where):
    report = report_of(HOSTILE if where == "path" else "x")
    if where == "text":
        report["found"]["texts"][0]["text"] = HOSTILE
    elif where == "prompt":
        report["found"]["benign_prompt"] = HOSTILE
    elif where == "note":
        report["notes"] = [HOSTILE]
    elif where == "string":
        report["trigger"]["strings"] = [STRING | {"text": HOSTILE, "place": HOSTILE}]
    elif where == "example":
        report["trigger"] |= {"strings": [STRING], "examples": [EXAMPLE | {"after": HOSTILE}]}
    elif where == "typed":
        report["found"]["typed"] = HOSTILE
    page = render_page(report, folder)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert r"\u001b[31m\u202e{{ 7 * 7 }}" in unescape(page)


def test_a_clean_verdict_accuses_nobody(folder):
    page = render_page(report_of(verdict="clean"), folder)
    assert "no accusation" in page
    assert "What it forces" not in page


def test_a_report_without_pictures_or_words_says_why(folder):
    report = report_of(images=None, controls={}, texts=[])
    report["notes"] = ["no pictures: the unet is missing."]
    page = render_page(report, folder)
    assert page.count("no pictures: the unet is missing.") == 2
    assert "No semantic target" in page


def test_large_pictures_are_shrunk_for_the_page_only(folder):
    Image.effect_noise((1500, 1500), 80).save(folder / "picture.png")
    page = render_page(report_of(), folder)
    assert len(page) < 2_000_000
    assert Image.open(folder / "picture.png").size == (1500, 1500)


# --------------------------------------------------------------------------------------------------------------- plots
CURVES = {name: (torch.rand(6), torch.rand(6) / 9) for name in ("benign", "found", "anchor")}
STEPS = [{"step": i, "loss": -i / 9, "assimilation": i / 9, "clean": 0.1, "anchor": 0.2} for i in range(9)]
DRAWN = {
    "by_layer": (CURVES, "A"), "histogram": ({"a": torch.rand(9), "b": torch.rand(9)}, "A"),
    "histograms_by_layer": ({"a": torch.rand(9, 4), "b": torch.rand(9, 4)}, "A"),
    "shares": ([1, 2, 4], {"a": torch.rand(3), "none found": torch.empty(0)}, "prompts"),
    "attention_map": ({"suspect": torch.rand(3, 3), "anchor": torch.rand(3, 3)}, ["<|s|>", "$v$", "犬"]),
    "loss_landscape": (torch.rand(5, 5), 1.0, "norms of v"), "hessian_spectrum": (torch.randn(20, 2), 0.5),
    "search_curve": ([STEPS, STEPS],),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_a_picture_and_a_pdf_and_the_same_again(name, tmp_path):
    files = []
    for turn in ("a", "b"):
        getattr(plots, name)(*DRAWN[name], tmp_path / f"{turn}.png")
        files.append(((tmp_path / f"{turn}.png").read_bytes(), (tmp_path / f"{turn}.pdf").read_bytes()))
    assert files[0] == files[1]
    assert files[0][0].startswith(b"\x89PNG")
    assert files[0][1].startswith(b"%PDF")


def test_the_caption_says_whose_pictures_are_shown(folder: Path):
    assert "the found vector, 19 times over, in the suspect" in render_page(report_of(), folder)
    files = report_of()["found"]["files"] | {"shown_embedding": "Shown_Embedding.pt"}
    page = unescape(render_page(report_of(files=files, times=1), folder))
    assert "the vector of the strongest pooled witnesses (Shown_Embedding.pt), in the suspect" in page
    assert "the found vector, in the suspect" not in page
