r"""What a scan leaves behind: harmless text, safe names, whole folders.

Contents
    visible         what could move a cursor or reorder a line becomes a \u escape
    result_name     inside the output folder, the same for the same model, different for different ones
    result_folder   nothing after an error, the new result instead of the old one otherwise; the log
    to_json         text that JSON readers accept
"""

import json
import logging
import unicodedata
from pathlib import Path

import pytest

from Utils.basics.errors import InputError, numbers_of, visible
from Utils.intake.folders import full_path
from Utils.report.command_line import say
from Utils.report.contract import SCHEMA, to_json
from Utils.report.folder import logger, result_folder, result_name
from Utils.report.sarif import to_sarif


# ------------------------------------------------------------------------------------------------------------ visible
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", r"\u001b[31mred\u001b[0m"), ("a\nb\r\tc", r"a\u000ab\u000d\u0009c"), ("\0", r"\u0000"),
        ("\x7f\x9b2J", r"\u007f\u009b2J"), ("abc\u202ecba", r"abc\u202ecba"), ("\u2066\u2069\u200f", r"\u2066\u2069\u200f"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"), ("a\u2028b\u2029", r"a\u2028b\u2029"), ("\ud800", r"\ud800"),
    ],
)  # fmt: skip
def test_control_escape_and_bidirectional_characters_are_escaped(text: str, expected: str):
    assert visible(text) == expected


@pytest.mark.parametrize("text", ["a photo of a dog, 50%!", "phοtο", "Ünïcode ñ", "犬 собака כלב", "🐶 ✓ → €", "e\u0301", ""])
def test_letters_signs_and_emoji_of_all_scripts_stay(text: str):
    assert visible(text) == text


@pytest.mark.parametrize(("text", "numbers"), [("plain", ""), ("dѕѕg", " (U+0455)"), ("a\u200b🐶", " (U+200B U+1F436)")])
def test_what_no_eye_tells_from_plain_letters_has_its_number(text: str, numbers: str):
    assert numbers_of(text) == numbers


def test_nothing_that_visible_returns_is_a_control_or_format_character():
    everything = "".join(map(chr, range(0x30000)))
    left = {unicodedata.category(c) for c in visible(everything)}
    assert not left & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_characters_beyond_the_first_plane_have_escapes_of_their_own():
    """U+E0001, a language tag, must not read as U+E000 followed by the digit 1."""
    assert visible("\U000e0001") != visible("\ue0001")
    assert visible("\U000e0001") == r"\U000e0001"


# -------------------------------------------------------------------------------------------------------- result_name
def report_of(model: Path | str, output: Path) -> Path:
    """A finished result of a model."""
    with result_folder(str(model), output) as folder:
        (folder / "report.json").write_text(
            json.dumps({"schema": SCHEMA, "model": {"path": full_path(str(model))}}), encoding="utf-8"
        )
    return output / result_name(str(model), output)


def test_the_name_is_made_of_the_last_two_parts(tmp_path: Path):
    assert result_name(str(tmp_path / "suspects" / "text_on_text"), tmp_path) == "suspects_text_on_text"
    assert result_name(str(tmp_path / "suspects" / "x" / ".." / "benign") + "/", tmp_path) == "suspects_benign"
    assert result_name("openai/clip-vit-large-patch14", tmp_path) == "openai_clip-vit-large-patch14"


HOSTILE = [
    "/",
    "..",
    "../..",
    "a/../../..",
    "/..",
    "....//....",
    "x/ ",
    "a\\..\\b",
    "\x1b[31m/\u202e",
    "-rf/*",
    "CON:/x|y",
    "犬/犬",
    "~",
]


@pytest.mark.parametrize("model", [*HOSTILE, "m" * 200 + "/" + "n" * 200])
def test_a_result_stays_inside_the_output_folder(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    output = tmp_path / "Results"
    name = result_name(model, output)
    assert (output / name).resolve().parent == output.resolve()
    assert name.isascii()
    assert not set(name) & set('/\\:*?"<>| \n')
    assert name[0] not in ". "
    final = report_of(model, output)
    assert [p.name for p in output.iterdir()] == [final.name]


def test_two_models_of_one_name_have_results_of_their_own(tmp_path: Path):
    a, b = tmp_path / "a" / "suspects" / "model", tmp_path / "b" / "suspects" / "model"
    first, second = report_of(a, tmp_path / "Results"), report_of(b, tmp_path / "Results")
    assert first.name == "suspects_model"
    assert second.name.removeprefix("suspects_model_") != second.name
    assert len(second.name) == len("suspects_model_") + 8
    for model, folder in ((a, first), (b, second)):
        assert json.loads((folder / "report.json").read_text())["model"]["path"] == str(model)


def test_the_same_model_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a, b = tmp_path / "a" / "suspects" / "model", tmp_path / "b" / "suspects" / "model"
    for model in (a, b):
        model.mkdir(parents=True)
    names = [report_of(model, tmp_path / "Results").name for model in (a, b, a, b)]
    assert names[:2] == names[2:]
    monkeypatch.chdir(tmp_path)
    assert result_name("a/suspects/model", tmp_path / "Results") == names[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": null}', b'{"model": {"path": 7}}', b"\xff"])
def test_a_damaged_older_report_is_no_obstacle(tmp_path: Path, content: bytes):
    (tmp_path / "suspects_model").mkdir()
    (tmp_path / "suspects_model" / "report.json").write_bytes(content)
    assert result_name("suspects/model", tmp_path).startswith("suspects_model")


# ------------------------------------------------------------------------------------------------------ result_folder
def test_a_folder_that_is_no_result_is_never_replaced(tmp_path: Path):
    mine = tmp_path / "suspects_model"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert report_of("suspects/model", tmp_path) != mine
    assert (mine / "thesis.txt").read_text() == "years of work"
    (tmp_path / result_name("suspects/model", tmp_path) / "report.json").write_text("{}")
    with pytest.raises(InputError, match="--output"), result_folder("suspects/model", tmp_path):
        pass


@pytest.mark.parametrize("error", [ZeroDivisionError, InputError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]):
    def scan():
        with result_folder("suspects/model", tmp_path / "Results") as folder:
            (folder / "Images").mkdir()
            (folder / "Images" / "half.png").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        scan()
    assert list((tmp_path / "Results").iterdir()) == []


def test_an_older_result_survives_an_error(tmp_path: Path):
    older = report_of("suspects/model", tmp_path)
    before = {p.name: p.read_bytes() for p in older.iterdir()}

    def scan():
        with result_folder("suspects/model", tmp_path) as folder:
            (folder / "report.json").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scan()
    assert [p.name for p in tmp_path.iterdir()] == [older.name]
    assert {p.name: p.read_bytes() for p in older.iterdir()} == before


def test_success_replaces_the_older_result_wholly(tmp_path: Path):
    older = report_of("suspects/model", tmp_path)
    (older / "backdoor_2").mkdir()
    (older / "backdoor_2" / "old.pt").write_bytes(b"old")
    with result_folder("suspects/model", tmp_path) as folder:
        assert (older / "backdoor_2" / "old.pt").exists()  # until the end the old one stands
        (folder / "new.txt").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == [older.name]
    assert sorted(p.name for p in older.iterdir()) == ["log.txt", "new.txt"]


def test_a_result_can_be_read_by_others(tmp_path: Path):
    assert report_of("suspects/model", tmp_path).stat().st_mode & 0o755 == 0o755


def test_the_log_holds_what_was_said_inside_and_nothing_else(tmp_path: Path):
    logger.warning("before")
    with result_folder("suspects/model", tmp_path):
        logger.warning("inside ν")
        logging.getLogger("other").warning("from elsewhere")
    logger.warning("after")
    lines = (tmp_path / "suspects_model" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(" inside ν")
    assert logger.handlers == []


def test_an_output_that_is_a_file_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "Results").write_text("")
    with pytest.raises(InputError, match="--output") as refused, result_folder("suspects/model", tmp_path / "Results"):
        pytest.fail("the block must not run")
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------------ to_json
def test_a_report_survives_the_way_to_json_and_back():
    report = {"verdict": "clean", "score": 0.25, "notes": ["ν 犬", "\u202e"], "trigger": None}
    assert json.loads(to_json(report)) == report
    assert to_json(report).endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_no_json(value: float):
    with pytest.raises(ValueError, match="JSON"):
        to_json({"score": [value]})


# -------------------------------------------------------------------------------------------------- the string, said first
STRING = {"text": "zz\u202e", "place": "start", "success_rate": 0.97, "interval": [0.92, 0.99], "anchor_success_rate": 0.01}


def test_a_string_is_said_before_the_evidence_on_the_terminal_and_in_sarif(capsys: pytest.CaptureFixture, tmp_path: Path):
    evidence = [{"name": "string", "value": 1.4, "threshold": 0.9, "met": True, "meaning": "what it means"}]
    report = {
        "verdict": "backdoored", "score": 0.99, "reason": "Because.", "evidence": evidence, "notes": [], "seconds": {},
        "peak_memory_mb": 1.0, "seed": 42, "trigger": {"strings": [STRING]}, "model": {"path": "m", "sha256": "ab"},
    }  # fmt: skip
    say(report, tmp_path)
    verdict, string, first, *_ = capsys.readouterr().err.splitlines()
    assert "BACKDOORED" in verdict
    assert string.strip() == r"trigger `zz\u202e` (U+202E), start: 97% of unseen prompts (92% to 99%), 1% in the clean base"
    assert "1.400" in first
    (result,) = to_sarif([report], "1.0.0", tmp_path)["runs"][0]["results"]
    assert result["properties"]["triggers"] == [r"zz\u202e"]
