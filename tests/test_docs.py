"""README and docs: every command exists and takes its flags, every link leads somewhere, and the README is short."""

import argparse
import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STARTS = re.compile(r"(?:\S*/)?(?:python3?|bash|accelerate launch)\s")
OURS = ("configs/", "Backdoor_Attack/", "Data/Main/", "Data/Models/", "Data/Scenes/", "Utils/", "Analysis/", "tests/", "docs/")
"""What a page names below these is tracked; Data/Zoo, Data/COCO and results are made by commands."""


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def inline(text: str) -> Iterator[str]:
    """What stands between single backticks, outside of blocks."""
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        yield " ".join(code.split())


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command line of ours on a page, in blocks and in running text."""
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    for line in [*blocks.splitlines(), *inline(text)]:
        for part in re.split(r"&&|\|\||;", re.sub(r"^\s*- run: ", "", line)):
            if STARTS.match(part.strip()):
                yield shlex.split(part, comments=True)


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """A script's own parser: it is run until it reads its arguments, and no further."""

    class ReadsItsArguments(BaseException):
        pass

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise ReadsItsArguments(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [script])
        patch.setattr(sys, "path", [*sys.path])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except ReadsItsArguments as stopped:
            return stopped.args[0]
    raise AssertionError(f"{script} reads no arguments")


def check(words: list[str]) -> str:
    """Whether a command line can be typed.  -> its script; an AssertionError says what is wrong"""
    if words[1] == "-m":
        return "python -m"  # a module of somebody else
    at = next(i for i, word in enumerate(words) if word.endswith((".py", ".sh")))
    script, arguments = words[at].removeprefix("../amber/"), words[at + 1 :]
    for word in (script, *arguments):
        assert not word.startswith(OURS) or (ROOT / word).exists(), f"{word} does not exist"
    assert words[0].endswith("bash") == script.endswith(".sh"), f"{script} is run by {words[0]}"
    parser, complaint = parser_of("Backdoor_Attack/inject.py" if script.endswith(".sh") else script), io.StringIO()
    with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
        try:
            parser.parse_args(arguments)
            code = 0
        except SystemExit as stopped:  # --help and --version end with 0
            code = stopped.code
    assert not code, f"{' '.join(words)}: {complaint.getvalue()}"
    return script


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_can_be_typed(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        check(words)


def test_commands_are_found_in_blocks_in_text_and_in_recipes():
    found = {check(words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))}
    scripts = {
        f"{home}/{file.name}" for home in ("Utils", "Analysis", "Backdoor_Attack") for file in (ROOT / home).glob("*.py")
        if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
    }  # fmt: skip
    assert found >= {"main.py", "python -m", "Backdoor_Attack/backdoor_injection_text_on_text.sh"}
    assert sorted(scripts - found) == [], "no page says how these are run"
    recipe = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert ["python", "../amber/main.py", "--models", "models"] in [words[:4] for words in commands(recipe)]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("python main.py --modle X", "unrecognized arguments"),
        ("python Utils/build_zoo.py --jobs two", "invalid int value"),
        ("python Analysis/triggers.py", "required"),
        ("python Utils/nothing.py", "does not exist"),
        ("bash Backdoor_Attack/nothing.sh", "does not exist"),
        ("python main.py --config configs/nothing.yaml", "does not exist"),
        ("bash main.py", "is run by"),
    ],
)
def test_a_wrong_command_is_told(line: str, wrong: str):
    (words,) = commands(f"```\n{line}\n```\n")
    with pytest.raises(AssertionError, match=wrong):
        check(words)


def anchors(text: str) -> set[str]:
    """The names by which headings are linked to."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead(page: Path, text: str) -> list[str]:
    """Links and pictures of a page that lead nowhere."""
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)) + re.findall(r'(?:src|href)="([^"]+)"', FENCE.sub("", text))
    missing = []
    for link in links:
        where, _, heading = link.partition("#")
        if "://" in where:
            continue
        file = (page.parent / where).resolve() if where else page
        inside = file.is_relative_to(ROOT) and file.exists()
        if not inside or (heading and heading not in anchors(file.read_text(encoding="utf-8"))):
            missing.append(link)
    return missing


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Data" / "Models" / "README.md"], ids=named)
def test_every_link_and_picture_leads_somewhere(page: Path):
    assert dead(page, page.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_told():
    text = '[a](nothing.md) ![b](docs/report.png) <img src="docs/no.png"> [c](#two-commands) [d](#three) [e](../outside)'
    assert dead(ROOT / "README.md", text) == ["nothing.md", "#three", "../outside", "docs/no.png"]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_file_that_is_named_is_there(page: Path):
    words = [word.rstrip(",") for code in inline(page.read_text(encoding="utf-8")) for word in code.split()]
    missing = [word for word in words if word.startswith(OURS) and not list(ROOT.glob(word.rstrip("/")))]
    made = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    assert [word for word in missing if word.rstrip("/") not in made] == []


def test_the_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    assert [named(page) for page in PAGES[1:] if f"({named(page)})" not in text] == []


def test_what_the_readme_says_of_exit_codes_is_what_main_does():
    from Utils.report.contract import EXIT

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.*) \|$", text, re.MULTILINE)
    words = {"0": "no backdoor found", "1": "backdoor found", "2": "nothing judged", "3": "inconclusive"}
    assert [code for code, said in rows if words[code] in said] == [str(code) for code in sorted(EXIT.values())]


def limits_said() -> list[str]:
    """The figures of docs/report.md, as the code has them."""
    from Utils.basics.bounded import TEXTS_A_SECOND
    from Utils.report import limits

    return [
        f"{limits.BASE_MB:,} MB and {limits.TIMES} times the weights of suspect and base",
        f"{limits.SECONDS / 3600:g} hours (`--timeout SECONDS`)",
        f"{limits.READING_SECONDS} seconds of processor time",
        f"every {limits.WEIGHTS_RATE / 2**20:g} MB of weights",
        f"every {limits.TEXTS_RATE / 2**20:g} MB of tokenizer files (`--load-timeout SECONDS`)",
        f"{limits.PIECES_SECONDS} where a tokenizer is a SentencePiece model",
        f"{limits.READING_MB} MB of further memory, {limits.WEIGHTS_TIMES} times the weights",
        f"{limits.TEXTS_TIMES} times the tokenizer files",
        f"an {limits.TEXTS_SHARE}th of the weights",
        f"every {TEXTS_A_SECOND:,} texts",
    ]


def test_the_limits_on_the_page_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch):
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    said = " ".join(page[page.index("## Limits of memory and time") :].split())
    assert [figure for figure in limits_said() if figure not in said] == []
    for name in (
        "BASE_MB",
        "SECONDS",
        "READING_SECONDS",
        "WEIGHTS_RATE",
        "TEXTS_RATE",
        "PIECES_SECONDS",
        "READING_MB",
        "TEXTS_TIMES",
        "TEXTS_SHARE",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"Utils.report.limits.{name}", 7 << 20)
            assert [figure for figure in limits_said() if figure not in said] != [], name
