"""report.html and summary.html as people meet them, in a real Chromium: silent, offline, narrow, printed, dark, by keyboard.

Contents
    every page      no complaint, no request, no overflow, names for screen readers, contrast, whatever a model calls itself
    print           nothing cut, no dark ground
    keyboard        focus can be seen
    summary         500 rows: filter, sort, without script, a row opens its report
    the checks      they can fail
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from Analysis.browser import CURE, Page, chromium, open_browser
from Utils.report.lists import Task, summarise, write_summary
from Utils.report.numbers import Table, write_numbers
from Utils.report.page import CAPTIONS, write_page
from Utils.report.tool import this_tool

pytestmark = pytest.mark.skipif(not chromium(), reason=CURE)
SCRIPT = (Path(__file__).parent / "pages.js").read_text(encoding="utf-8")
PHONE, DESK, PAPER = 360, 1000, 794
HOSTILE = ["models/" + "x" * 300, "מודל/שלום־עולם " * 8 + "👩‍👩‍👧‍👦🐶" * 40, "<b>&amp;\u202egnp.exe" + "W" * 120]
"""Names of models and strings; what is 300 long has no space."""
HASH = "ab" * 32


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_browser() as page:
        yield page


def report_of(name: str, verdict: str) -> dict:
    """A report whose every text is `name`."""
    files = {figure: f"{figure}.png" for figure in CAPTIONS} | {"embedding": "Backdoor_Embedding.pt", "numbers": "figures.json"}
    string = {
        "text": name, "place": "for every o", "success_rate": 1.0, "interval": [0.97, 1.0], "anchor_success_rate": 0.0,
        "collapse": 0.9, "anchor_collapse": None,
    }  # fmt: skip
    example, texts = (
        dict.fromkeys(("prompt", "before", "after", "base"), name),
        [{"text": name, "similarity": 0.9, "floor": 0.1}],
    )
    found = {
        "kind": "feature collapse", "times": 1, "typed": None, "texts": texts, "images": ["picture.png"] * 4,
        "controls": {"anchor": ["picture.png"] * 4, "benign": ["picture.png"] * 4}, "benign_prompt": name, "files": files,
    }  # fmt: skip
    held = {"path": name, "sha256": HASH, "outcome": "accepted", "code": 0, "reason": name, "expires": "2030-12-31"}
    witness = {
        "name": "one_target",
        "value": -0.123,
        "threshold": 0.456,
        "met": True,
        "meaning": "how much more alike they are",
    }
    claimed = verdict == "backdoored"
    trigger = {"strings": [string] * 2, "examples": [example] * 2, "embedding": "Backdoor_Embedding.pt"} if claimed else None
    return {
        "schema": "amber-report/1", "verdict": verdict, "reason": f"Because of {name}.", "score": 0.98, "notes": [name],
        "model": {
            "path": name, "sha256": "ab" * 32, "commit": None, "architecture": "CLIP", "parameters": 1, "ignored_tensors": [],
        },
        "anchor": {"path": name, "sha256": "cd" * 32, "commit": "ef" * 20}, "trigger": trigger,
        "evidence": [witness, witness | {"name": "drift", "met": False}], "backdoors": [],
        "target": {"texts": texts, "images": None} if claimed else None, "found": found, "seconds": {"search": 12.34},
        "readings": [{"examples": [{"text": name, "read_as": name}]}], "peak_memory_mb": 1000.0,
        "config": {"procedure": "calibrated", "trigger": {"near": 0.02, "searches": 6}}, "versions": {"torch": "2"}, "seed": 42,
        "command": f"python main.py --model {name}", "tool": this_tool(),
        "power_counts": {"text_on_text": [3, 4], "attribute": [1, 1]},
        "policy": held if claimed else None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of page -> its file: reports and a summary, with ordinary and with hostile names."""
    home = tmp_path_factory.mktemp("pages")
    short, long = (
        Table("suspect", ["looking", *(f"<|token {i}|>" for i in range(n))], [["a", *[0.1234] * n]] * n) for n in (9, 90)
    )
    files = {}
    for kind, name, verdict in [
        ("backdoored", "suspects/lion", "backdoored"), ("clean", "suspects/lamb", "clean"),
        *((f"hostile {i}", name, "backdoored" if i % 2 else "clean") for i, name in enumerate(HOSTILE)),
    ]:  # fmt: skip
        folder = home / kind.replace(" ", "_")
        folder.mkdir()
        for figure in (*CAPTIONS, "picture"):
            Image.new("RGB", (900, 400), "white").save(folder / f"{figure}.png")
        write_numbers({figure: [short] for figure in CAPTIONS} | ({LARGE: [long]} if kind == "clean" else {}), folder)
        write_page(report_of(name, verdict), folder)
        files[kind] = folder / "report.html"
    reports = [report_of(name, verdict) for name in HOSTILE for verdict in ("clean", "backdoored")]
    reports += [{"verdict": None, "error": HOSTILE[0], "model": {"path": HOSTILE[0]}}]
    write_summary(summarise(reports, [Task(r["model"]["path"], f"m{i}") for i, r in enumerate(reports)]), home)
    return files | {"summary": home / "summary.html"}


LARGE = "loss_landscape"
"""The figure with more numbers than a page shows."""
KINDS = ["backdoored", "clean", *(f"hostile {i}" for i in range(len(HOSTILE))), "summary"]


def ask(page: Page, question: str) -> list[str]:
    """What tests/pages.js finds wrong."""
    return page.run(f"(() => {{ {SCRIPT}; return {question}(); }})()")


def wrong_with(page: Page, file: Path, width: int, **how: object) -> dict[str, list[str]]:
    """Everything that is wrong with a page on such a screen, by check."""
    page.open(file, width, **how)
    ask(page, "unfold")
    found = {name: ask(page, name) for name in ("structure", "contrast", "overflow")}
    found |= {"requests": [url for url in page.requests() if url != file.as_uri()], "complaints": page.complaints()}
    return {name: some for name, some in found.items() if some}


# ---------------------------------------------------------------------------------------------------------- every page
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_silent_offline_readable_and_fits(browser: Page, pages: dict[str, Path], kind: str):
    for width, dark in ((PHONE, False), (PHONE, True), (DESK, False)):
        assert wrong_with(browser, pages[kind], width, dark=dark) == {}, f"{width} pixels, {'dark' if dark else 'light'}"


def test_pages_are_dark_where_the_screen_is(browser: Page, pages: dict[str, Path]):
    grounds = []
    for dark in (False, True):
        browser.open(pages["clean"], dark=dark)
        grounds.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(246, 245, 242)", "rgb(21, 23, 27)"]


def test_the_numbers_behind_a_figure_are_under_it_and_thinned(browser: Page, pages: dict[str, Path]):
    browser.open(pages["clean"])
    assert browser.run("document.querySelectorAll('figure').length") == len(CAPTIONS)
    rows = browser.run("[...document.querySelectorAll('figure')].map((one) => one.querySelector('details table').rows.length)")
    assert rows == [46 if name == LARGE else 10 for name in CAPTIONS]  # every second of 90, and the head
    said = browser.run("[...document.querySelectorAll('figure')].map((one) => one.textContent.includes('One in 2 is shown'))")
    assert said == [name == LARGE for name in CAPTIONS]


# ---------------------------------------------------------------------------------------------------------------- print
@pytest.mark.parametrize("kind", ["backdoored", "hostile 0", "hostile 1", "summary"])
def test_on_paper_nothing_is_cut_and_nothing_is_dark(browser: Page, pages: dict[str, Path], kind: str):
    browser.open(pages[kind], PAPER, dark=True, medium="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert {name: some for name in ("overflow", "cut", "contrast") if (some := ask(browser, name))} == {}
    if kind != "summary":  # what is folded on a screen is told on paper, but for the numbers of figures
        assert browser.run(
            "[...document.querySelectorAll('details dl')].map((one) => one.getBoundingClientRect().height > 9)"
        ) == [
            True,
            True,
        ]
        assert browser.run("document.querySelector('.numbers').checkVisibility()") is False


def test_a_page_prints(browser: Page, pages: dict[str, Path]):
    browser.open(pages["backdoored"], dark=True)
    assert browser.pdf().startswith(b"%PDF")


# ------------------------------------------------------------------------------------------------------------- keyboard
@pytest.mark.parametrize("kind", ["backdoored", "summary"])
def test_what_the_keyboard_reaches_can_be_seen(browser: Page, pages: dict[str, Path], kind: str):
    browser.open(pages[kind])
    reached = set()
    for _ in range(12):
        browser.press("Tab", 9)
        name, style, width = browser.run(
            "(() => { const node = document.activeElement, look = getComputedStyle(node);"
            " return [node.tagName + node.className, look.outlineStyle, parseFloat(look.outlineWidth)]; })()"
        )
        assert style == "solid", name
        assert width >= 2, name
        reached.add(name)
    assert reached >= ({"INPUT", "SELECT", "BUTTON", "A"} if kind == "summary" else {"Aterm", "DIVcard wide"})


# -------------------------------------------------------------------------------------------------------------- summary
MANY = 500


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A summary of 500 encoders, every tenth backdoored."""
    reports = [
        {
            "verdict": "clean" if i % 10 else "backdoored", "score": i / MANY, "reason": f"Reason {i}.", "trigger": None,
            "target": None, "model": {"path": f"models/encoder {i}", "sha256": "0" * 64},
        }
        for i in range(MANY)
    ]  # fmt: skip
    write_summary(summarise(reports, [Task(r["model"]["path"], f"encoder_{i} #") for i, r in enumerate(reports)]), tmp_path)
    return tmp_path / "summary.html"


def left(page: Page) -> int:
    return page.run("[...document.querySelectorAll('tbody tr')].filter((row) => row.checkVisibility()).length")


def told(page: Page) -> str:
    return page.run("document.querySelector('[aria-live=polite]').textContent")


def test_a_table_of_500_is_filtered_by_text_and_verdict_in_no_time(browser: Page, many: Path):
    browser.open(many)
    assert (left(browser), told(browser)) == (MANY, "500 of 500 encoders shown")
    browser.run("document.getElementById('find').focus()")
    browser.press("7", 55, "7")
    assert told(browser) == f"{left(browser)} of 500 encoders shown"
    assert left(browser) == len([i for i in range(MANY) if "7" in f"encoder {i} {i / MANY:.3f}"])
    took = browser.run(
        "Math.min(...['encoder 4', 'x', 'Reason', ''].map((text) => { const began = performance.now();"
        " document.getElementById('find').value = text; document.getElementById('find').dispatchEvent(new Event('input'));"
        " document.body.offsetHeight; return performance.now() - began; }))"
    )
    assert took < 100
    browser.run("document.getElementById('only').value = 'backdoored'")
    browser.run("document.getElementById('only').dispatchEvent(new Event('change'))")
    assert (left(browser), told(browser)) == (50, "50 of 500 encoders shown")
    assert browser.complaints() == []


def test_columns_are_sorted_by_keys_pressed_on_their_heads(browser: Page, many: Path):
    browser.open(many)
    column = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[{}].innerText)"
    browser.run("document.querySelectorAll('thead button')[2].focus()")
    for way, first in (("ascending", "0.000"), ("descending", "0.998")):
        browser.press("Enter", 13, "\r")
        assert browser.run("document.querySelectorAll('thead th')[2].ariaSort") == way
        scores = browser.run(column.format(2))
        assert scores[0] == first
        assert scores == sorted(scores, reverse=way == "descending")
    browser.run("document.querySelectorAll('thead button')[0].focus()")
    browser.press(" ", 32, " ")
    assert browser.run(column.format(0))[:3] == ["models/encoder 0", "models/encoder 1", "models/encoder 2"]
    assert browser.run("[...document.querySelectorAll('thead th')].map((head) => head.ariaSort)") == [
        "ascending",
        None,
        None,
        None,
    ]


def test_without_script_it_is_a_plain_table(browser: Page, many: Path):
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(many)
        assert left(browser) == MANY
        assert not browser.run("document.getElementById('tools').checkVisibility()")
        assert browser.run("document.querySelectorAll('button').length") == 0
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_a_row_opens_its_report(browser: Page, many: Path):
    report = many.parent / "encoder_490 #" / "report.html"
    report.parent.mkdir()
    report.write_text("<!doctype html><title>490</title>", encoding="utf-8")
    browser.open(many)
    x, y = browser.run(
        "(() => { const row = [...document.querySelectorAll('tbody tr')].find((r) => r.textContent.includes('encoder 490'));"
        " const box = row.cells[3].getBoundingClientRect(); return [box.x + 5, box.y + 5]; })()"
    )
    browser.events.clear()
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.wait_for("Page.loadEventFired")
    assert browser.run("document.title") == "490"


def test_no_other_script_runs_in_a_summary(browser: Page, many: Path):
    many.write_text(many.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'mine'</script></main>"))
    browser.open(many)
    assert browser.run("document.title") == f"AMBER: {MANY} encoders"
    assert any("Content Security Policy" in one for one in browser.complaints())


# ----------------------------------------------------------------------------------------------------------- the checks
BAD = """<!doctype html><html><body style="margin: 0"><h1>a</h1><h3>b</h3><img src="https://example.org/x.png">
<table><tr><td>1</td></tr></table><input><p style="color: #999">faint</p>
<p style="width: 900px; overflow: hidden; height: 3px">cut</p><script>console.error("no"); undefined.x</script></body></html>"""


def test_a_page_with_every_fault_is_told(browser: Page, tmp_path: Path):
    (tmp_path / "bad.html").write_text(BAD, encoding="utf-8")
    found = wrong_with(browser, tmp_path / "bad.html", PHONE)
    assert set(found) == {"structure", "contrast", "overflow", "requests", "complaints"}
    assert set(found["structure"]) >= {
        "no language", "H3 after h1", "no main", "picture without words", "table without caption", "row without head",
        "INPUT without label",
    }  # fmt: skip
    assert [one for one in found["contrast"] if re.match(r"2\.8\d: faint", one)]
    assert found["requests"] == ["https://example.org/x.png"]
    assert ask(browser, "cut") != []
