"""Work in a child process: its answer comes back, its death is one sentence, and nothing of it outlives the call.

Contents
    answers    values as JSON keeps them, refusals, errors without their text, computations beside threads
    limits     memory, time, processor time of reading; a busy machine costs no processor time
    deaths     signals, exits; the parent's own
    words      what a child prints is shown with --debug only, escaped
    leftovers  of dead processes are removed, those of live ones stay, an older result returns
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from Utils.basics import bounded
from Utils.basics.bounded import Ended, Limits, at_stage, progress, reading, run_bounded
from Utils.basics.errors import InputError, swallow, visible
from Utils.basics.files import is_left_over, mark, remove_parts, whole_file, whole_folder
from Utils.report.folder import SCHEMA, remove_leftovers, result_folder
from Utils.report.limits import BASE_MB, SECONDS, Wanted, limits_of

ROOT = Path(bounded.__file__).resolve().parents[2]
LIMITS = Limits(memory_mb=1500, seconds=60, reading_seconds=1)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the children of these tests end by signals")


def refusal(job, *arguments, limits: Limits = LIMITS, debug: bool = False) -> InputError:
    before = psutil.Process().children()
    with pytest.raises(InputError) as caught:
        run_bounded(job, arguments, limits, "some/model", debug)
    assert psutil.Process().children() == before
    return caught.value


# ------------------------------------------------------------------------------------------------------------ answers
def computed(n: int) -> dict:
    """A forward and a backward pass, large enough for several threads."""
    x = torch.ones(n, n, requires_grad=True)
    (x @ x).sum().backward()
    return {"gradient": x.grad[0, 0].item(), "name": "\udcff", "none": None}


def test_a_result_comes_back_though_the_parent_has_computed():
    assert run_bounded(computed, (400,), LIMITS, "m") == computed(400) == {"gradient": 800.0, "name": "\udcff", "none": None}


def test_a_fresh_process_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded, "start_method", lambda: "spawn")
    assert run_bounded(json.loads, ("[1, 2]",), LIMITS, "m") == [1, 2]


def refuses() -> None:
    raise InputError("x.json is empty; fetch it again.")


def breaks() -> None:
    at_stage("witnesses")
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\x1b[2J")


def reads_nothing() -> None:
    Path("/no/such/\x1b[2J").read_text()


def test_a_refusal_comes_back_as_it_is():
    error = refusal(refuses)
    assert str(error) == "x.json is empty; fetch it again."
    assert not isinstance(error, Ended)


def test_any_other_error_is_a_sentence_with_file_stage_and_cure_and_without_its_text():
    error = refusal(breaks)
    assert str(error).startswith("some/model: the work broke off in the stage witnesses;")
    assert "--debug" in str(error)
    assert not any(word in str(error) for word in ("mat1", "RuntimeError", "\x1b"))
    assert "/no/such/" in str(refusal(reads_nothing))
    assert "No such file" in str(refusal(reads_nothing))


# ------------------------------------------------------------------------------------------------------------- limits
def allocates() -> None:
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


def allocates_at_once() -> float:
    return torch.ones(1 << 33).sum().item()


def allocates_in_rust() -> None:
    from tokenizers import Regex, normalizers

    double = normalizers.Replace(Regex("(?=.)"), "x")
    normalizers.Sequence([double] * 45).normalize_str("a photo of a dog")


def hangs_in_reading() -> None:
    with reading():
        while True:
            pass


def sleeps_in_reading() -> str:
    with reading():
        time.sleep(1.5)
    return "awake"


def reads_often() -> None:
    for _ in range(100):
        with reading():
            began = time.process_time()
            while time.process_time() < began + 0.2:
                pass


def reads_many(texts: int) -> str:
    for _ in range(6):
        with reading(texts):
            began = time.process_time()
            while time.process_time() < began + 0.3:
                pass
    return "read"


def test_memory_without_end_is_one_sentence():
    for job in (allocates, allocates_at_once):
        error = refusal(job)
        assert isinstance(error, Ended)
        assert "more than 1500 MB of memory" in str(error)
        assert "--memory" in str(error)


def test_a_library_that_aborts_for_want_of_memory_is_told_by_its_last_words():
    error = refusal(allocates_in_rust, limits=Limits(300, 60, 60))
    assert "300 MB of memory" in str(error)


def test_the_time_limit_holds_also_without_limits_of_the_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded, "_limit_memory", lambda _: None)
    error = refusal(time.sleep, 60, limits=Limits(1500, 1, 1))
    assert "no end within 1 s" in str(error)
    assert "--timeout" in str(error)
    assert "300 MB of memory" in str(refusal(allocates, limits=Limits(300, 60, 60)))  # the parent watches


def test_reading_is_limited_in_processor_time_all_readings_together():
    for job in (hangs_in_reading, reads_often):
        error = refusal(job)
        assert isinstance(error, Ended)
        assert "more than 1 s of processor time" in str(error)
        assert "--load-timeout" in str(error)


def test_texts_that_are_read_add_to_the_time_that_reading_may_take():
    assert run_bounded(reads_many, (500,), LIMITS, "m") == "read"  # 1.8 s, and 1 s and 3,000 texts are allowed
    assert "--load-timeout" in str(refusal(reads_many, 10))


def allocates_while_it_reads(in_python: bool) -> None:
    kept = [bytearray(200 << 20)]  # what is there before is not counted
    with reading():
        kept += [bytearray(200 << 20)]
    with reading():
        allocates() if in_python else allocates_in_rust()


def allocates_behind_a_sentence() -> None:
    """As a loader does that says of every error that the files are broken."""
    with reading():
        try:
            allocates()
        except MemoryError:
            raise InputError("the files are broken; fetch them again.") from None


def allocates_after_reading() -> int:
    kept = []
    for _ in range(2):
        with reading():
            kept.append(bytearray(200 << 20))
    kept.append(torch.ones(100 << 20))
    return sum(map(len, kept)) >> 20


READING = Limits(memory_mb=3000, seconds=60, reading_seconds=60, reading_mb=300)


@pytest.mark.parametrize(
    ("job", "arguments"),
    [(allocates_while_it_reads, (True,)), (allocates_while_it_reads, (False,)), (allocates_behind_a_sentence, ())],
    ids=["Python", "Rust", "sentence"],
)
def test_reading_may_take_less_memory_than_the_rest(job, arguments: tuple):
    error = refusal(job, *arguments, limits=READING)
    assert isinstance(error, Ended)
    assert "reading its files and texts takes more than 300 MB of memory" in str(error)
    assert "--memory" in str(error)


def test_a_reading_counts_from_what_was_there_and_its_limit_ends_with_it():
    assert run_bounded(allocates_after_reading, (), READING, "m") == 500


def test_reading_is_watched_where_the_system_has_no_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded, "_limit_memory", lambda _: None)
    assert "more than 300 MB of memory" in str(refusal(allocates_while_it_reads, False, limits=READING))


def test_waiting_costs_no_processor_time():
    assert run_bounded(sleeps_in_reading, (), LIMITS, "m") == "awake"


def test_limits_follow_from_what_the_files_hold(tiny_folder: Path, editable: Path):
    usual = limits_of(str(tiny_folder), "auto", Wanted())
    assert (usual.memory_mb, usual.seconds) == (BASE_MB, SECONDS)
    with (editable / "notes.txt").open("wb") as file:
        file.truncate(1 << 40)  # promised, not held
    assert limits_of(str(editable), "auto", Wanted()) == usual
    with (editable / "model.safetensors").open("ab") as file:
        file.write(b"\1" * (41 << 20))
    larger = limits_of(str(editable), "none", Wanted())
    assert larger.memory_mb > usual.memory_mb
    assert larger.reading_seconds > usual.reading_seconds
    assert larger.reading_mb > usual.reading_mb + 4 * 41  # half precision becomes single
    nothing = limits_of("no/such\0model", "auto", Wanted())
    assert nothing.memory_mb == usual.memory_mb
    assert nothing.reading_mb <= usual.reading_mb
    assert limits_of(str(editable), "auto", Wanted(7, 8, 9)) == Limits(7, 8, 9, None)


def test_large_tokenizers_of_large_encoders_may_take_more_and_those_of_small_ones_not(
    editable: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("Utils.report.limits._on_disk", lambda file: file.st_size)
    small, large = (allowed_with_tokenizer(editable, size) for size in (1 << 20, 200 << 20))
    assert small[1].reading_seconds <= small[0].reading_seconds + 1
    assert small[1].reading_mb <= small[0].reading_mb + 20
    assert large[1].reading_seconds > large[0].reading_seconds + 35  # what such tokenizers take
    assert large[1].reading_mb > large[0].reading_mb + 1500


def allowed_with_tokenizer(folder: Path, weights: int) -> list[Limits]:
    """The limits of weights of this size with a small tokenizer and with one of 17 MB."""
    os.truncate(folder / "model.safetensors", weights)
    limits = []
    for size in (1 << 16, 17 << 20):
        (folder / "tokenizer.json").write_bytes(b" " * size)
        limits.append(limits_of(str(folder), "none", Wanted()))
    return limits


# ------------------------------------------------------------------------------------------------------------- deaths
def dies_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leaves() -> None:
    os._exit(7)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_signal_is_named(name: str):
    error = refusal(dies_by, getattr(signal, name))
    assert isinstance(error, Ended)
    assert f"by signal {name}" in str(error)


def test_an_exit_without_a_word_is_told():
    error = refusal(leaves)
    assert isinstance(error, Ended)
    assert "exit code 7" in str(error)


@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_child_does_not_outlive_its_parent(end: str, tmp_path: Path):
    script = (
        "import os, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from Utils.basics.bounded import *\n"
        "def job():\n    Path(sys.argv[2]).write_text(str(os.getpid())); time.sleep(60)\n"
        "run_bounded(job, (), Limits(1500, 60, 60), 'm')\n"
    )
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", script, str(ROOT), str(told)], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if told.exists() and told.read_text():
            break
        time.sleep(0.1)
    parent.send_signal(getattr(signal, end))
    parent.wait(30)
    for _ in range(50):
        if not psutil.pid_exists(int(told.read_text())):
            return
        time.sleep(0.1)
    pytest.fail("the child lives")


# -------------------------------------------------------------------------------------------------------------- words
def talks() -> str:
    print("\x1b]0;title\x07 from Python")
    os.write(2, b"\x1b[2J from C\nsecond \xff line\n")
    os.write(1, b"x" * 300_000)
    with progress("search", 5) as step_done:
        for _ in range(5):
            step_done()
            time.sleep(0.15)
    return "said"


def test_what_a_child_prints_is_shown_on_demand_and_escaped(capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("Utils.basics.course.FIRST", 0.0)
    assert run_bounded(talks, (), LIMITS, "m") == "said"
    out, err = capfd.readouterr()
    assert out == ""
    assert "from" not in err
    assert "search: " in err  # how far it is, told by the parent
    assert run_bounded(talks, (), LIMITS, "m", debug=True) == "said"
    out, err = capfd.readouterr()
    assert out == ""
    assert "\\u001b[2J from C" in err
    assert "from Python" in err
    assert "\x07" not in err
    assert "\x1b[2J" not in err
    assert "x" * 2000 not in err


def test_a_traceback_is_shown_on_demand_and_escaped(capfd):
    refusal(breaks, debug=True)
    err = capfd.readouterr().err
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied\\u001b[2J" in err
    assert "\x1b" not in err


def test_a_stream_that_is_full_is_let_go(tmp_path: Path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("only Linux has a device that is always full")
    with full.open("w", encoding="utf-8") as stream:
        stream.write("x")
        with pytest.raises(OSError, match="space"):
            stream.flush()
        swallow(stream)


# ---------------------------------------------------------------------------------------------------------- leftovers
@pytest.fixture
def dead() -> str:
    """The mark of a process that is no more."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return f"{mark().partition('-')[0]}-{gone.pid}"


def test_leftovers_of_the_dead_are_removed_and_of_nobody_else(tmp_path: Path, dead: str):
    mine, elsewhere = mark(), f"0badf00d-{dead.partition('-')[2]}"
    for name in (dead, mine, elsewhere):
        (tmp_path / f".partial_{name}_ab").mkdir()
        (tmp_path / f"summary.json.{name}.part").write_text("{")
    (tmp_path / f".older_{dead}_a_b").mkdir()
    (tmp_path / f".older_{dead}_a_b" / "report.json").write_text("old")
    (tmp_path / f".older_{dead}_c").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "my.part").write_text("somebody's own")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f".partial_{name}_ab" for name in (mine, elsewhere)), *(f"summary.json.{name}.part" for name in (mine, elsewhere)),
        "a_b", "c", "my.part",
    }  # fmt: skip
    assert (tmp_path / "a_b" / "report.json").read_text() == "old"
    remove_parts(tmp_path / "nowhere")


def test_names_that_only_look_like_marks_are_left_alone(dead: str):
    assert is_left_over(dead)
    assert is_left_over(f"{dead}_name")
    assert not any(map(is_left_over, ("", "a", "clip-12", mark(), f"x{dead}", "-".join([dead.partition("-")[0], "x"]))))


def test_unfinished_files_carry_the_mark_of_their_process(tmp_path: Path):
    with whole_file(tmp_path / "x.json") as partial:
        assert partial.name == f"x.json.{mark()}.part"
        partial.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("free", "raised"), [(1000, OSError), (10**9, RuntimeError)])
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_of_a_full_disk_the_file_is_told_whatever_a_library_makes_of_it(
    whole: Callable, free: int, raised: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(raised) as told, whole(tmp_path / "steps.pt"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")  # as torch.save does
    if raised is OSError:
        assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / "steps.pt"))
    with pytest.raises(InputError, match="a word of ours"), whole(tmp_path / "steps.pt"):
        raise InputError("a word of ours")
    assert not list(tmp_path.iterdir())


def old_result(model: Path, output: Path) -> Path:
    with result_folder(str(model), output) as folder:
        (folder / "report.json").write_text(json.dumps({"schema": SCHEMA, "model": {"path": str(model)}}))
    return next(output.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_is_one_sentence_and_the_older_result_stays(tmp_path: Path, number: int):
    model, output = tmp_path / "m", tmp_path / "out"
    model.mkdir()
    result = old_result(model, output)
    before = (result / "report.json").read_bytes()
    with pytest.raises(InputError, match=r"out cannot be written .*--output"), result_folder(str(model), output):
        raise OSError(number, os.strerror(number))
    assert (result / "report.json").read_bytes() == before
    assert list(output.iterdir()) == [result]


def test_an_older_result_returns_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, output = tmp_path / "m", tmp_path / "out"
    model.mkdir()
    result = old_result(model, output)
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name.startswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(InputError, match="No space left"), result_folder(str(model), output):
        pass
    assert list(output.iterdir()) == [result]
    assert (result / "report.json").exists()


def test_an_output_that_vanishes_is_one_sentence(tmp_path: Path):
    def scan() -> None:
        with result_folder("m", tmp_path / "out") as folder:
            folder.parent.rename(tmp_path / "moved")
            (folder / "report.json").write_text("{}")

    with pytest.raises(InputError, match="removed or renamed"):
        scan()


def test_a_log_that_cannot_be_written_costs_no_traceback(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    from Utils.report.folder import logger

    monkeypatch.setattr(logger, "propagate", False)  # pytest would send the lone surrogate to another process
    logger.setLevel("INFO")
    with result_folder("m\udcff", tmp_path / "out") as folder:
        logger.info("\udcff")
        for handler in logger.handlers:
            handler.setStream(open("/dev/full", "w", encoding="utf-8"))  # noqa: SIM115
        logger.info("lost")
        assert folder.exists()
    assert capfd.readouterr().err == ""
    assert visible("\udcff") == "\\udcff"
