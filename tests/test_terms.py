"""What the words mean, what a clean verdict is worth, and the numbers behind the figures: pages, docs and code say the same.

Contents
    terms       every sentence stands in docs/method.md under its anchor; every link of a page leads to one
    power       a clean verdict tells what such a scan finds, a line a kind, on terminal and page
    numbers     figures.json holds what was drawn
"""

import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch
from test_docs import FENCE, anchors
from test_page import EXAMPLE, STRING, Links, folder, report_of  # noqa: F401

import main
from Utils.basics.files import ROOT
from Utils.report import numbers, plots
from Utils.report.command_line import say
from Utils.report.page import CAPTIONS, render_page, render_summary
from Utils.report.power import KINDS
from Utils.report.terms import METHOD, MISSES, TERMS, term_of
from Utils.report.tool import docs

TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def paragraphs(text: str) -> dict[str, str]:
    """Anchor -> the first paragraph under its heading."""
    parts = re.findall(r"^#+ (.*)\n((?:[^#\n].*\n)*)", FENCE.sub("", text), re.MULTILINE)
    return {next(iter(anchors(f"# {title}"))): " ".join(first.split()) for title, first in parts}


# ---------------------------------------------------------------------------------------------------------------- terms
def test_every_word_has_its_sentence_in_the_docs():
    said = paragraphs(TEXT)
    assert {anchor: said.get(anchor) for anchor in TERMS} == TERMS


def test_a_sentence_that_differs_or_has_gone_is_told():
    assert paragraphs(TEXT.replace("### Basin", "### Bowl")).get("basin") is None
    assert paragraphs(TEXT.replace("the median over planes", "the mean over planes"))["basin"] != TERMS["basin"]


@pytest.mark.parametrize("verdict", ["backdoored", "clean"])
def test_every_link_of_a_page_leads_to_a_sentence_that_the_page_has_too(folder: Path, verdict: str):  # noqa: F811
    report = report_of(verdict=verdict)
    if verdict == "backdoored":
        report["trigger"] |= {"strings": [STRING], "examples": [EXAMPLE]}
    summary = {"models": [], "counts": {}, "skipped": [], "other_files": 0, "policy": None, "notes": []}
    for page in (render_page(report, folder), render_summary(summary)):
        links = Links()
        links.feed(page)
        anchored = {link.removeprefix(f"{METHOD}#") for link in links.opened if "#" in link}
        assert anchored
        assert anchored <= TERMS.keys() & anchors(TEXT)
        assert [name for name in anchored if TERMS[name] not in unescape(page)] == []
    for page in (METHOD, MISSES):
        assert (ROOT / "docs" / page.removeprefix(docs(""))).is_file()


def test_every_witness_has_a_sentence():
    for witness in (*main.MEANING, "string", "fires"):
        assert term_of(witness, published=False) in TERMS
        assert term_of(witness, published=True) in TERMS
    assert term_of("basin", published=True) == "published-gates"


# ---------------------------------------------------------------------------------------------------------------- power
COUNTS = {"text_on_text": [32, 32], "remapping": [1, 2], "of tomorrow": [0, 3]}


def clean_report(**more: object) -> dict:
    drift = {"name": "drift", "value": 0.05, "threshold": 0.6, "met": False, "meaning": "far"}
    report = report_of(verdict="clean") | {"evidence": [drift], "config": {"trigger": {"near": 0.02}}}
    return report | {"power_counts": COUNTS} | more


def test_a_clean_verdict_says_what_such_a_scan_finds(folder: Path, capsys: pytest.CaptureFixture):  # noqa: F811
    say(clean_report(), folder)
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    limit = "up to a drift of 0.02: not where this one is, 0.050"
    told = [
        "text on text 32 of 32 (89 to 100 %)", f"remapping 1 of 2 (9 to 91 %), {limit}",
        "of tomorrow 0 of 3 (0 to 56 %)",
    ]  # fmt: skip
    assert lines[lines.index(told[0]) : lines.index(told[0]) + 3] == told
    page = unescape(re.sub(r"<[^>]+>", " ", render_page(clean_report(), folder)))
    for part in ("32 of 32 (89 to 100 %)", limit, KINDS["remapping"], "docs/misses.md"):
        assert part in page


def test_a_limit_that_this_encoder_does_not_reach_is_told_as_one(folder: Path):  # noqa: F811
    report = clean_report()
    report["evidence"][0]["value"] = 0.01
    page = render_page(report, folder)
    assert "up to a drift of 0.02<" in page
    assert "not where this one is" not in page


def test_a_clean_verdict_of_unmeasured_settings_says_so(folder: Path, capsys: pytest.CaptureFixture):  # noqa: F811
    report = clean_report(power_counts={})
    say(report, folder)
    assert "never measured with these settings" in capsys.readouterr().err
    assert "never measured with these settings" in render_page(report, folder)


def test_an_accusation_says_nothing_of_it(folder: Path, capsys: pytest.CaptureFixture):  # noqa: F811
    report = clean_report(verdict="backdoored")
    say(report, folder)
    assert "32 of 32" not in capsys.readouterr().err + render_page(report, folder)


# -------------------------------------------------------------------------------------------------------------- numbers
def test_numbers_are_what_was_drawn(tmp_path: Path):
    mean, spread = torch.tensor([0.25, 0.123456]), torch.tensor([0.5, float("nan")])
    surface, values = torch.arange(9.0).reshape(3, 3), torch.tensor([[-1.0, 0.0], [0.0, 2.0]])
    steps = [{"step": i, "loss": -i / 3, "assimilation": 0.5} for i in range(2)]
    tables = {
        "assimilation_by_layer": numbers.of_layers({"benign": (mean, spread), "none": (torch.empty(0), torch.empty(0))}),
        "attention_map": numbers.of_maps({"suspect": surface[:2, :2]}, ["v", "v"]), "search_curve": numbers.of_search([steps]),
        "loss_landscape": numbers.of_surface(surface, 1.0, "norms of v"), "hessian_spectrum": numbers.of_spectrum(values),
    }  # fmt: skip
    read = numbers.read_numbers(tmp_path / numbers.write_numbers(tables, tmp_path))
    assert read["assimilation_by_layer"] == [
        {"title": "", "columns": ["layer", "benign", "± one standard deviation"], "rows": [[1, 0.25, 0.5], [2, 0.1235, None]]}
    ]
    assert read["attention_map"][0] == {
        "title": "suspect",
        "columns": ["looking", "v", "v"],
        "rows": [["v", 0, 1], ["v", 3, 4]],
    }
    assert read["search_curve"][0]["columns"] == ["step", "loss L", "assimilation A"]
    assert read["search_curve"][0]["rows"][1] == [1, -0.3333, 0.5]
    assert [row[0] for row in read["loss_landscape"][0]["rows"]] == [-1, 0, 1]
    counts, edges = plots.counted(values)
    assert [row[2] for row in read["hessian_spectrum"][0]["rows"]] == [n for n in counts.tolist() if n] == [1, 2, 1]
    assert read["hessian_spectrum"][0]["rows"][0][0] == pytest.approx(edges[0], rel=1e-3)


def test_names_of_tokens_are_text_on_the_page(folder: Path):  # noqa: F811
    hostile = "<script>\x1b"
    tables = {name: [numbers.Table(hostile, [hostile], [[hostile]])] for name in CAPTIONS}
    report = report_of()
    report["found"]["files"]["numbers"] = numbers.write_numbers(tables, folder)
    page = render_page(report, folder)
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;\\u001b") >= 3 * len(CAPTIONS)
    assert json.loads((folder / numbers.FILE).read_text())["attention_map"][0]["title"] == hostile
