"""docs/gallery.html and the pictures of a page: made from results, small, self-contained, the same for everybody.

Contents
    made        from one small result, with pictures that are drawn here; screenshots
    shipped     what is committed
    refused     a folder without results
"""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from test_browser import PHONE, browser, wrong_with  # noqa: F401
from test_page import EXAMPLE, STRING, report_of

from Analysis import gallery
from Analysis.browser import CURE, Page, chromium
from Utils.basics.files import ROOT
from Utils.report.page import CAPTIONS

MOST, MOST_PICTURE = 600_000, 300_000
"""Bytes of the page, and of a screenshot."""
in_browser = pytest.mark.skipif(not chromium(), reason=CURE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small result, of a suspect in somebody's copy of the repository."""
    home = tmp_path_factory.mktemp("results")
    folder = home / "suspects_text_on_text"
    folder.mkdir()
    report = report_of(str(home / "somebody" / "Data" / "Models" / "suspects" / "text_on_text"))
    report["trigger"] |= {"strings": [STRING], "examples": [EXAMPLE]}
    report["assimilation"] = {"benign_by_layer": [0.2], "triggered_by_layer": [0.9]}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    for name in (*CAPTIONS, "picture"):
        Image.new("RGB", (60, 40), "white").save(folder / f"{name}.png")
    return home


@pytest.fixture(scope="module")
def made(results: Path) -> Path:
    page = results / "gallery.html"
    assert gallery.main(["--results", str(results), "--output", str(page), "--prompts", "a photo of a dog"]) == 0
    return page


# ----------------------------------------------------------------------------------------------------------------- made
def test_a_gallery_shows_a_prompt_with_and_without_the_string_in_suspect_and_base(made: Path):
    text = made.read_text(encoding="utf-8")
    story = [
        "backdoored, 0.980",
        "suspect, as typed",
        "suspect, with the string",
        "clean base, as typed",
        "clean base, with the",
    ]
    places = [text.index(part) for part in [*story, "<code><bdi>zz</bdi></code>", "a lion", "0.90 with the found vector"]]
    assert places == sorted(places)
    pictures = re.findall(r'<td><img src="data:image/webp;base64,([^"]+)"', text)
    assert len(set(pictures)) == 4  # the suspect's own picture is not quite the base's
    assert "somebody" not in text


@in_browser
def test_it_is_readable_offline_and_on_a_phone(browser: Page, made: Path):  # noqa: F811
    assert wrong_with(browser, made, PHONE) == {}
    assert wrong_with(browser, made, 1000, dark=True) == {}


@in_browser
def test_screenshots_are_of_a_page_that_names_nobody_s_folders(results: Path, tmp_path: Path):
    folder = results / "suspects_text_on_text"
    assert gallery.read_report(folder)["model"]["path"] == "Data/Models/suspects/text_on_text"
    files = gallery.take_screenshots(folder, tmp_path / "shots")
    assert [Image.open(file).size for file in files] == [size[:2] for size in gallery.SIZES.values()]
    light, dark = (Image.open(file).convert("RGB").getpixel((2, 2)) for file in files)
    assert sum(light) > 600
    assert sum(dark) < 120


def test_a_string_is_typed_as_often_as_in_a_scan_s_pictures(tiny):
    assert gallery.typed(None, "a dog", 0, tiny) == "a dog"
    assert gallery.typed({"text": "z", "place": "for every o"}, "a dog", 0, tiny) == "a dzg"
    assert gallery.typed({"text": "zz", "place": "end"}, "a dog", 0, tiny) == "a dog zz zz zz"  # 2 tokens in 24 / 4 places


# -------------------------------------------------------------------------------------------------------------- shipped
def test_the_committed_gallery_has_all_suspects_and_is_small():
    text = (ROOT / "docs" / "gallery.html").read_text(encoding="utf-8")
    assert len(text.encode()) < MOST
    assert re.findall(r'<h2 id="(\w+)">', text) == [*gallery.SUSPECTS]
    assert re.findall(r'class="tag (\w+)"', text) == ["backdoored", "backdoored", "clean"]
    assert text.count("<td><img") == 4 * len(gallery.PROMPTS) * len(gallery.SUSPECTS)
    assert not re.search(r"[\"'> ]/(home|tmp|root|work|usr|var)/", text)


@in_browser
def test_the_committed_gallery_is_readable(browser: Page):  # noqa: F811
    assert wrong_with(browser, ROOT / "docs" / "gallery.html", PHONE) == {}


@pytest.mark.parametrize("name", gallery.SIZES)
def test_the_committed_screenshots_have_their_size(name: str):
    content = (ROOT / "docs" / name).read_bytes()
    assert len(content) < MOST_PICTURE
    assert Image.open(io.BytesIO(content)).size == gallery.SIZES[name][:2]


# -------------------------------------------------------------------------------------------------------------- refused
def test_a_folder_without_results_is_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture):
    page = tmp_path / "page.html"
    assert gallery.main(["--results", str(tmp_path), "--output", str(page)]) == 2
    assert "holds no result of a shipped suspect; leave out --results" in capsys.readouterr().err
    assert not page.exists()


def test_screenshots_without_a_browser_are_refused_before_any_work(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gallery.main(["--screenshots", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    assert "apt-get install --no-install-recommends chromium" in capsys.readouterr().err
