"""From a scan to an encoder in the suspect's place, as somebody types it.

damage       what a report of a scan gives a repair to begin with
places       folders that may and may not be written to
mitigate     a repair of the shipped suspect, whole
"""

import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import torch
from layouts import SEVERAL, write
from reports import KINDS
from short import few_words
from test_loading import as_pipeline

import main
from Utils import mitigate
from Utils.basics.bounded import Ended
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT, mark, move_aside
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, trainable_copy
from Utils.encoder.text_encoder import TextEncoder
from Utils.repair import measures, mending
from Utils.repair.asked import mended as told_of
from Utils.repair.asked import refuse_places, refuse_within, repair_found
from Utils.repair.mending import (
    HELD_OUT,
    RESCAN,
    Order,
    Prompts,
    Rounds,
    damage_of,
    divided,
    mend,
    scanned_again,
    strings_left,
)  # fmt: skip
from Utils.repair.mending import SCHEMA as SCHEMA_OF_REPAIRS
from Utils.repair.relearning import RelearningConfig
from Utils.repair.settings import RepairConfig
from Utils.repair.writing import write_repaired
from Utils.report.command_line import understood
from Utils.report.contract import SCHEMA
from Utils.report.lists import Task, planned
from Utils.report.repair_page import render_repair
from Utils.report.run import open_run
from Utils.scan.replay import LETTERS
from Utils.sources.lenders import Given

MODELS = ROOT / "Data" / "Models"
BASE = MODELS / "tiny-sd"
SUSPECT = MODELS / "suspects" / "text_on_text"
PROMPTS = read_prompts(ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt")


@pytest.fixture(scope="module")
def suspect() -> TextEncoder:
    return load_encoder(SUSPECT)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return divided(PROMPTS, 800)


def order_for(tmp_path: Path, **more: object) -> Order:
    return Order(tmp_path / "out", tmp_path / "report", tmp_path, **more)


def found(*backdoors: dict) -> dict:
    return {"backdoors": list(backdoors), "verdict": "backdoored"}


def fires(*strings: tuple[str, str], embedding: str | None = None, kind: str = "summary collapse") -> dict:
    told = [{"text": text, "place": place} for text, place in strings]
    return {"kind": kind, "trigger": {"strings": told or None, "embedding": embedding}}


# -------------------------------------------------------------------------------------------------------------- damage
def test_nothing_is_measured_on_prompts_that_a_repair_learns_from(prompts: Prompts):
    parts = [set(part) for part in (prompts.learn, prompts.measure, prompts.typed)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(set(PROMPTS))
    assert len(prompts.measure) == HELD_OUT
    assert not set(prompts.typed) & set(PROMPTS[:800])
    with pytest.raises(InputError, match="give a corpus of 920 or more"):
        divided(PROMPTS[:919], 800)
    assert len(divided(PROMPTS[:920], 800).learn) == 600


def test_a_repair_begins_with_the_strings_of_every_backdoor(suspect: TextEncoder, prompts: Prompts, tmp_path: Path):
    report = found(fires(("zzzz", "for every o"), ("zz", "start")), fires(("qq", "end")))
    damage = damage_of(report, order_for(tmp_path), suspect, None, prompts)
    assert damage.strings == [("zzzz", "for every o"), ("zz", "start"), ("qq", "end")]
    assert [tuple(one.shape) for one in damage.forced] == [(suspect.width,)] * 2
    many = [fires(*((f"{first}{i}", "end") for i in range(5))) for first in "abc"]  # as many as a thorough scan lists
    assert len(damage_of(found(*many), order_for(tmp_path), suspect, None, prompts).strings) == 15


def test_where_no_string_was_found_the_vector_says_what_is_forced(suspect: TextEncoder, prompts: Prompts, tmp_path: Path):
    v = suspect.vocabulary[:1].clone() * 3
    torch.save(v, tmp_path / "v.pt")
    damage = damage_of(found(fires(embedding="v.pt")), order_for(tmp_path), suspect, None, prompts)
    assert damage.strings == []
    assert tuple(damage.forced[0].shape) == (suspect.width,)
    both = damage_of(found(fires(("zz", "end")), fires(embedding="v.pt")), order_for(tmp_path), suspect, None, prompts)
    assert (len(both.strings), len(both.forced), both.wordless) == (1, 2, True)
    assert not damage_of(found(fires(("zz", "end"))), order_for(tmp_path), suspect, None, prompts).wordless
    for broken in (b"half of", None):
        (tmp_path / "v.pt").write_bytes(broken) if broken else torch.save(v[:, :3], tmp_path / "v.pt")
        with pytest.raises(InputError, match="scan it again"):
            damage_of(found(fires(embedding="v.pt")), order_for(tmp_path), suspect, None, prompts)


def test_a_string_that_the_user_knows_comes_first(suspect: TextEncoder, prompts: Prompts, tmp_path: Path):
    order = order_for(tmp_path, strings=("zzzz",))
    damage = damage_of(found(fires(("zz", "end"))), order, suspect, None, prompts)
    assert [text for text, _ in damage.strings] == ["zzzz", "zz"]
    assert damage.strings[0][1] in LETTERS  # where it does most


def test_a_string_that_does_not_fire_is_refused(suspect: TextEncoder, prompts: Prompts, tmp_path: Path):
    for text in ("hello", "a small dog"):
        with pytest.raises(InputError, match="does not overrule"):
            damage_of(found(), order_for(tmp_path, strings=(text,)), suspect, None, prompts)


def test_a_backdoor_of_the_tokenizer_is_none_of_the_weights(suspect: TextEncoder, prompts: Prompts, tmp_path: Path):
    report = found(fires(("zz", "end"), kind="tokenizer"))
    with pytest.raises(InputError, match=r"give it to Utils/mitigate\.py with --string"):
        damage_of(report, order_for(tmp_path), suspect, None, prompts)


def test_another_round_follows_where_weights_can_still_be_mended():
    about = {"score": 0.5, "reason": "so", "seed": 1, "trigger": {"strings": [{"text": "zz", "place": "end"}]}}
    quiet, apart = found() | about, found(fires(("q", "end"), kind="tokenizer")) | about
    loud = found(fires(("q", "end")), fires(embedding="v.pt"), fires(("t", "end"), kind="tokenizer")) | about
    assert [scanned_again(one, 0.0)["left"] for one in (loud, apart)] == [True, False]
    assert [scanned_again(quiet | {"verdict": said}, 0.0)["left"] for said in ("inconclusive", "clean")] == [True, False]
    assert strings_left(loud) == [[("q", "end")], []]
    assert strings_left(quiet | {"verdict": "inconclusive"}) == [[("zz", "end")]]


def test_rounds_are_kept_and_belong_to_one_repair(tmp_path: Path):
    file = tmp_path / "rounds.pt"
    kept = Rounds(file, "this", [{"verdict": "backdoored"}], [("zz", "end")], [torch.ones(3)], 1, {"w": torch.ones(2)})
    kept.save()
    again, other = Rounds(file, "this"), Rounds(file, "that")
    again.load(), other.load()
    assert (again.done, again.strings) == (kept.done, kept.strings)
    assert torch.equal(again.weights["w"], kept.weights["w"])
    assert other.done == []
    file.write_bytes(b"half of")
    broken = Rounds(file, "this")
    broken.load()
    assert broken.done == []


# -------------------------------------------------------------------------------------------------------------- places
def test_what_stands_there_stays_unless_it_may_go(tmp_path: Path, capsys: pytest.CaptureFixture):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    assert mitigate.main(["--model", str(SUSPECT), "--output", str(taken)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main.main(["--repair", str(taken), "--output", str(tmp_path / "out")]) == 2
    assert "--force" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(taken)
    assert main.main(["--repair", str(tmp_path / "link"), "--force", "--output", str(tmp_path / "out")]) == 2
    assert "is no folder" in capsys.readouterr().err
    within = taken / "mine.txt" / "out"  # a file has no folders, and no scan is needed to know it
    assert mitigate.main(["--model", str(SUSPECT), "--output", str(within), "--results", str(tmp_path / "out")]) == 2
    assert "mine.txt takes no folder" in capsys.readouterr().err
    assert main.main(["--repair", str(within), "--output", str(tmp_path / "out")]) == 2
    assert "mine.txt takes no folder" in capsys.readouterr().err
    assert (taken / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_the_suspect_is_never_written_over(tmp_path: Path):
    (tmp_path / "model" / "inner").mkdir(parents=True)
    for place in (tmp_path / "model", tmp_path / "model" / "inner", tmp_path):
        with pytest.raises(InputError, match="in each other"):
            refuse_within(place, str(tmp_path / "model"))
    refuse_within(tmp_path / "elsewhere", str(tmp_path / "model"))
    refuse_within(tmp_path / "elsewhere", "owner/name")
    (tmp_path / "model" / "one.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="in each other"):
        refuse_within(tmp_path / "model", str(tmp_path / "model" / "one.safetensors" / "text_encoder_2"))


def test_what_a_repair_replaces_is_kept_beside_it(tmp_path: Path):
    for said in ("first", "second"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "note.txt").write_text(said)
        move_aside(tmp_path / "mine")
    move_aside(tmp_path / "mine")  # is not there
    kept = {file.parent.name: file.read_text() for file in tmp_path.glob("*/note.txt")}
    assert kept == {"mine.replaced": "first", "mine.replaced1": "second"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--repair", "x", "--try", "zz"], "leave --repair out"),
        (["--force"], "name that with --repair"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture):
    assert main.main(flags) == 2
    assert said in capsys.readouterr().err


def test_a_certificate_or_a_report_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = ["--model", str(SUSPECT), "--output", str(tmp_path / "new")]
    benign = MODELS / "certificates" / "benign.json"
    assert mitigate.main([*flags, "--certificate", str(benign)]) == 2
    assert "no certificate of a planted model" in capsys.readouterr().err
    assert mitigate.main([*flags, "--report", str(tmp_path)]) == 2
    assert "no report of a scan" in capsys.readouterr().err
    (tmp_path / "report.json").write_text(json.dumps(next(iter(KINDS.values()))))
    assert mitigate.main([*flags, "--report", str(tmp_path)]) == 2
    assert "is no scan of" in capsys.readouterr().err
    assert mitigate.main(["--model", "https://huggingface.co/datasets/x/y", "--output", str(tmp_path / "new")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert mitigate.main([*flags, "--string", " "]) == 2
    assert "blank" in capsys.readouterr().err
    assert mitigate.main([*flags, "--images", "-1"]) == 2
    assert "give 0 or more" in capsys.readouterr().err
    assert mitigate.main([*flags, "--steps", "0"]) == 2
    assert "should be at least 1" in capsys.readouterr().err
    for seed in ("-1", str(2**32)):
        assert mitigate.main([*flags, "--seed", seed]) == main.main(["--seed", seed]) == 2
        assert capsys.readouterr().err.count("give a whole number from 0 to 4294967295") == 2
    for more, said in ((["--method", "project"], "project needs the clean base"), (["--rounds", "2"], "leave --rounds out")):
        assert mitigate.main([*flags, "--anchor", "none", "--string", "zzzz", *more]) == 2
        assert said in capsys.readouterr().err
    for flag in ("--steps", "--rounds"):
        assert mitigate.main([*flags, "--method", "rows", flag, "3"]) == 2
        assert f"{flag} is a setting of unlearn; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def never(*_: object) -> dict:
    raise AssertionError("there was something to refuse first")


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a repair that may neither scan nor repair."""
    monkeypatch.setattr(mitigate, "scan_bounded", never)
    monkeypatch.setattr(mitigate, "mend_bounded", never)
    return ["--model", str(SUSPECT), "--output", str(tmp_path / "new"), "--results", str(tmp_path / "results")]


def test_what_can_be_said_before_the_scan_is_said_before_it(typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    assert mitigate.main([*typed, "--string", "a small dog"]) == 2
    assert "`a small dog` does not overrule prompts" in capsys.readouterr().err
    foreign = tmp_path / "results" / "suspects_text_on_text_repair"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").touch()
    assert mitigate.main(typed) == 2
    assert "is no report of a repair; move it away" in capsys.readouterr().err
    inside = tmp_path / "results" / "suspects_text_on_text" / "new"
    assert mitigate.main([*typed, "--output", str(inside)]) == 2
    assert "is where reports go" in capsys.readouterr().err


def test_another_model_s_certificate_is_refused(typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    other, far = MODELS / "certificates" / "image_on_text.json", tmp_path / "far.json"
    of_far = json.loads(other.read_text(encoding="utf-8")) | {"made_of": {"base": "Data/Models/tiny-longclip"}}
    far.write_text(json.dumps(of_far))
    for file, why in ((other, "of prompts in "), (far, "was made from Data/Models/tiny-longclip, and")):
        assert mitigate.main([*typed, "--certificate", str(file)]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert "give the certificate of this model, or leave --certificate out" in said


def test_a_report_says_nothing_of_weights_that_it_has_not_seen(
    typed: list[str], suspect: TextEncoder, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "scan").mkdir()
    clean = found() | {"schema": SCHEMA, "verdict": "clean", "reason": "nothing was found", "seed": 42}
    for sha256, code, said in (("another", 2, "holds other weights than the scan"), (suspect.sha256, 0, "nothing to repair")):
        (tmp_path / "scan" / "report.json").write_text(json.dumps(clean | {"model": {"path": str(SUSPECT), "sha256": sha256}}))
        assert mitigate.main([*typed, "--report", str(tmp_path / "scan")]) == code
        assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"scan", "results"}  # a clean one is left alone
    assert not list((tmp_path / "results").glob("*"))


def test_a_dry_run_says_where_a_repaired_encoder_would_go_and_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture):
    place = tmp_path / "mended"
    assert main.main(["--repair", str(place), "--dry-run", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"repaired into {place}, about" in said
    assert not list(tmp_path.iterdir())


def test_too_few_prompts_to_repair_with_are_said_before_the_scan(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "few.txt").write_text("\n".join(PROMPTS[:60]))
    (tmp_path / "own.yaml").write_text(f"corpus: {tmp_path / 'few.txt'}\nprompts: 40\n")
    flags = ["--repair", str(tmp_path / "mended"), "--config", str(tmp_path / "own.yaml"), "--output", str(tmp_path / "out")]
    assert main.main(flags) == 2
    assert "60 prompts are too few to repair with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_clean_or_was_not_judged_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    tasks = [Task(str(SUSPECT), "clean"), Task(str(BASE), "missing")]
    (tmp_path / "missing").mkdir()  # an earlier run has judged it
    (tmp_path / "missing" / "report.json").write_text(json.dumps(found()))
    reports = [scanned(SUSPECT) | {"verdict": "clean"}, scanned(BASE) | {"verdict": None, "error": "it broke"}]

    assert repair_found(tasks, reports, order_for(tmp_path), False, never) == []
    assert "nothing to repair" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def scanned(model: Path) -> dict:
    return found() | {"model": {"path": str(model), "sha256": f"of {model.name}"}}


def test_of_a_list_every_encoder_gets_a_folder_and_what_is_repaired_is_not_repaired_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    models = {name: tmp_path / "models" / name for name in ("done", "taken", "new")}
    for model in models.values():
        model.mkdir(parents=True)
    tasks = [Task(str(model), name) for name, model in models.items()]
    order, seen = order_for(tmp_path), []
    for name in ("done", "taken"):
        (order.place / name).mkdir(parents=True)
    (tmp_path / "done_repair").mkdir()
    told = {
        "schema": SCHEMA_OF_REPAIRS,
        "seed": order.seed,
        "verdict": "clean",
        "model": {"sha256": "of done"},
        "output": {"path": str(order.place / "done")},
        "settings": asdict(order.cfg),
        "anchor": {"sha256": "of a base"},
    }
    (tmp_path / "done_repair" / "report.json").write_text(json.dumps(told))

    def refused(task: Task, _report: dict, own: Order) -> dict:
        seen.append((task.name, own.place, own.folder, own.results))
        raise InputError("it cannot be.")

    reports = [scanned(model) for model in models.values()]
    refuse_places(tasks, order, True, "auto")
    failed = repair_found(tasks, reports, order, True, refused)
    assert seen == [("new", order.place / "new", tmp_path / "new_repair", tmp_path / "new")]
    assert [said.split(" was not")[0] for said in failed] == [str(models["taken"]), str(models["new"])]
    assert "--force" in failed[0]
    told_now = f"{models['done']}: repaired already"
    assert f"{told_now} with another base (--force repairs it anew), into" in capsys.readouterr().err
    same = [report | {"anchor": told["anchor"]} for report in reports]
    repair_found(tasks, same, order, True, refused)
    assert f"{told_now}, into" in capsys.readouterr().err
    repair_found(tasks, same, replace(order, cfg=RepairConfig(steps=1)), True, refused)
    assert f"{told_now} with other settings (" in capsys.readouterr().err
    seen.clear()
    told["model"]["sha256"] = "of another"  # the suspect has changed since
    (tmp_path / "done_repair" / "report.json").write_text(json.dumps(told))
    assert len(repair_found(tasks, reports, order, True, refused)) == 3
    repair_found(tasks, reports, replace(order, force=True), True, refused)
    assert [name for name, *_ in seen] == ["new", "done", "taken", "new"]


def test_every_encoder_finds_the_report_of_its_own_scan(tiny: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder, the parts of a file and of a pipeline: reports name an encoder by its path, tasks by what was typed."""
    monkeypatch.chdir(tmp_path)
    write(SEVERAL["SDXL"](tiny.model.state_dict()), tmp_path / "sdxl.safetensors")
    shutil.copytree(SUSPECT, tmp_path / "folder")
    pipeline = as_pipeline(SUSPECT, tmp_path / "pipeline")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(pipeline / part, pipeline / f"{part}_2")
    index = {"_class_name": "StableDiffusionXLPipeline"}
    index |= {name: ["transformers", "CLIPTextModel"] for name in ("text_encoder", "text_encoder_2")}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    flags = ["--repair", "out", "--output", str(tmp_path / "results"), "--anchor", tiny.path]
    for word in ("folder", "sdxl.safetensors", "pipeline"):
        args, cfg = understood([f"--model={word}", *flags])
        tasks = planned(args, main.request_of(args, cfg)[1])[1]
        paths = [load_encoder(task.model, given=Given(anchor=tiny.path)).path for task in tasks]
        reports = [found() | {"model": {"path": path, "sha256": "x"}} for path in paths]
        seen = []

        def mend_one(task: Task, report: dict, order: Order, seen: list = seen) -> dict:
            seen.append((report["model"]["path"], order.place))
            raise InputError("it cannot be.")

        order = main.order_of(args, main.request_of(args, cfg)[0])
        repair_found(tasks, reports, order, main.goes_apart(args, tasks), mend_one)
        assert [path for path, _ in seen] == paths
        places = [tmp_path / "out" / task.name for task in tasks] if len(tasks) > 1 else [tmp_path / "out"]
        assert [place for _, place in seen] == places


def told_of_repair(path: Path) -> dict:
    parts = {"reason": "so", "strings": [], "certificate": None, "relearning": None, "notes": [], "seconds": {}}
    return parts | {"verdict": "clean", "peak_memory_mb": 1.0, "output": {"path": str(path)}}


def test_of_two_backdoored_encoders_in_one_pipeline_the_second_is_repaired_where_the_first_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    pipeline = as_pipeline(SUSPECT, tmp_path / "pipeline")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(pipeline / part, pipeline / f"{part}_2")
    shutil.copytree(SUSPECT, tmp_path / "apart")
    models = [pipeline / "text_encoder", pipeline / "text_encoder_2", tmp_path / "apart"]
    tasks, begun = [Task(str(model), model.name) for model in models], []

    def mend_one(task: Task, _report: dict, own: Order) -> dict:
        begun.append(own.copy)
        if task.name == "apart":
            return told_of_repair(own.place)
        shutil.copytree(Path(own.copy or task.model).parent, own.place)
        return told_of_repair(own.place / task.name)

    assert repair_found(tasks, [scanned(model) for model in models], order_for(tmp_path), True, mend_one) == []
    said = capsys.readouterr().err
    assert begun == ["", str(tmp_path / "out" / "text_encoder" / "text_encoder_2"), ""]
    assert f"{models[1]} is backdoored too, and copied as it was; {tmp_path / 'out' / 'text_encoder_2'} will" in said
    assert said.count("is backdoored too") == 1

    def breaks(_task: Task, _report: dict, own: Order) -> dict:
        begun.append(own.copy)
        raise InputError("it cannot be.")

    begun.clear()
    repair_found(tasks, [scanned(model) for model in models], replace(order_for(tmp_path), force=True), True, breaks)
    assert begun == ["", "", ""]  # of what was not repaired there is no copy


def test_an_encoder_in_a_copy_has_the_hash_that_was_scanned(tiny: TextEncoder, tmp_path: Path):
    """One of two in a file, of which the other one was repaired: what the scan has seen of it is still true."""
    file = write(SEVERAL["SDXL"](tiny.model.state_dict()), tmp_path / "xl.safetensors")
    given = Given(anchor=tiny.path)
    first, second = (load_encoder(f"{file}/{part}", given=given) for part in ("text_encoder", "text_encoder_2"))
    student = trainable_copy(first)
    with torch.no_grad():
        next(student.model.parameters()).add_(1.0)
    write_repaired(student, first, given, tmp_path / "out")
    copies = [
        load_encoder(tmp_path / "out" / "xl.safetensors" / part, given=given) for part in ("text_encoder", "text_encoder_2")
    ]
    assert copies[0].sha256 != first.sha256
    assert copies[1].sha256 == second.sha256


def test_a_repair_in_a_copy_begins_with_what_lies_there(suspect: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun = []
    monkeypatch.setattr(main, "mend", lambda _order, pair, *_: begun.append(pair[0]))
    request = main.request_of(*understood(["--anchor", str(BASE), "--output", str(tmp_path)]))[0]
    copy = shutil.copytree(SUSPECT, tmp_path / "copy")
    main.mend_aside(str(SUSPECT), request, replace(order_for(tmp_path), copy=str(copy)), {})
    assert [(one.path, one.sha256) for one in begun] == [(str(copy), suspect.sha256)]


def test_of_two_backdoored_encoders_of_a_lora_nothing_is_copied(tmp_path: Path, capsys: pytest.CaptureFixture):
    """What comes out of either is a plain folder, which has no other encoder in it."""
    lora = tmp_path / "lora.safetensors"
    lora.touch()
    tasks = [Task(f"{lora}/{part}", part) for part in ("text_encoder", "text_encoder_2")]

    def mend_one(_task: Task, _report: dict, own: Order) -> dict:
        assert not own.copy
        return told_of_repair(own.place)

    assert repair_found(tasks, [scanned(Path(task.model)) for task in tasks], order_for(tmp_path), True, mend_one) == []
    said = capsys.readouterr().err
    assert said.count("REPAIRED") == 2
    assert "is backdoored too" not in said


def test_what_is_repaired_is_no_suspect_of_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(SUSPECT, tmp_path / "models" / "one")
    flags = ["--models", str(tmp_path / "models"), "--output", str(tmp_path / "results"), "--dry-run"]
    assert main.main([*flags, "--repair", str(tmp_path / "models" / "repaired")]) == 2
    assert "lie in each other; name a folder elsewhere" in capsys.readouterr().err
    assert main.main([*flags, "--repair", str(tmp_path / "repaired")]) == 0


@pytest.mark.parametrize("ends", [None, InputError("it cannot be."), KeyboardInterrupt()])
def test_the_exit_code_of_a_scan_with_repair_speaks_of_the_suspect(
    ends: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Scan and repair are not done here: what is asked of them, and what is said of how they end."""
    report = KINDS["backdoored"] | {"model": KINDS["backdoored"]["model"] | {"path": str(SUSPECT), "sha256": "x"}}
    results, name, asked = tmp_path / "results", "suspects_text_on_text", []

    def mend_one(order: Order, _request: main.Request, _wanted: object, _debug: bool, model: str, *_more: object, **_: str):
        asked.append((model, order.place, order.folder, order.results, order.force))
        if ends:
            raise ends
        return told_of_repair(order.place)

    monkeypatch.setattr(main, "scan_bounded", lambda *_, **__: report)
    monkeypatch.setattr(main, "mend_bounded", mend_one)
    flags = ["--model", str(SUSPECT), "--repair", str(tmp_path / "out"), "--output", str(results)]
    assert main.main(flags) == 1
    said = capsys.readouterr().err
    assert asked == [(str(SUSPECT), tmp_path / "out", results / f"{name}_repair", results / name, False)]
    told = {None: "REPAIRED, scanned again: clean", InputError: "was not repaired (it cannot be)"}
    assert told.get(ends and type(ends), "goes on from its last round when it is asked for again") in said


def test_a_list_of_one_gets_a_folder_of_its_own_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "list.txt").write_text(f"{SUSPECT}\n")
    flags = ["--models", str(tmp_path / "list.txt"), "--repair", str(tmp_path / "out"), "--output", str(tmp_path / "results")]
    assert main.main([*flags, "--dry-run"]) == 0
    assert f"repaired into {tmp_path / 'out' / 'suspects_text_on_text'}, about" in capsys.readouterr().out


def test_the_report_of_a_repair_takes_no_other_folder_s_place(tmp_path: Path):
    task, order = Task(str(SUSPECT), "mine"), order_for(tmp_path)
    folder = tmp_path / "mine_repair"
    for name in ("report.json", "something"):
        folder.mkdir()
        (folder / name).write_text(json.dumps({"schema": SCHEMA}))
        with pytest.raises(InputError, match="is no report of a repair; move it away"):
            refuse_places([task], order, False, "auto")
        (folder / name).unlink()
        folder.rmdir()
    for fine in ("rounds.pt", "steps.pt", f"steps.pt.{mark().split('-')[0]}-99999999.part"):
        folder.mkdir(exist_ok=True)
        (folder / fine).touch()
        refuse_places([task], order, False, "auto")
        (folder / fine).unlink(missing_ok=True)
    left = folder / f".partial_{mark().split('-')[0]}-99999999_of_a_scan"
    left.mkdir()  # that was killed
    (folder / "Images").mkdir()
    refuse_places([task], order, False, "auto")
    assert not left.exists()
    (folder / "rescan").mkdir()
    with pytest.raises(InputError, match="rescan is no result of a scan; move it away"):
        refuse_places([task], order, False, "auto")
    (folder / "rescan").rmdir()
    (folder / "report.json").write_text(json.dumps({"schema": SCHEMA_OF_REPAIRS, "model": {"path": "/another/model"}}))
    with pytest.raises(InputError, match="a repair of /another/model; name another folder"):
        refuse_places([task], order, False, "auto")
    refuse_places([task], replace(order, force=True), False, "auto")
    with pytest.raises(InputError, match="lie in each other"):
        refuse_places([task], replace(order, place=BASE / "mended"), False, str(BASE))
    (folder / "report.json").unlink()
    scan = tmp_path / "mine"
    for place in (folder, folder / "mended", scan, scan / "mended", tmp_path):
        with pytest.raises(InputError, match="is where reports go"):
            refuse_places([task], replace(order, place=place, force=True), False, "auto")
    with pytest.raises(InputError, match="would be of two encoders"):
        refuse_places([task, Task(str(BASE), "mine_repair")], order, True, "auto")


def test_a_repair_lies_in_no_pipeline_that_it_copies(tmp_path: Path):
    pipeline = tmp_path / "pipeline"
    (pipeline / "text_encoder").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BASE / "text_encoder" / name, pipeline / "text_encoder" / name)
    shutil.copytree(BASE / "tokenizer", pipeline / "tokenizer")
    shutil.copy(BASE / "model_index.json", pipeline / "model_index.json")
    for word in (pipeline, pipeline / "text_encoder"):
        with pytest.raises(InputError, match="in each other"):
            refuse_within(pipeline / "mended", str(word))
    refuse_within(tmp_path / "mended", str(pipeline))


def test_what_an_ended_child_leaves_beside_the_place_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The child is killed while its folder stands there: what lies beside it goes, whoever else's stays."""
    (tmp_path / "mine.part").mkdir()
    order = order_for(tmp_path)
    request, wanted = main.request_of(*understood(["--output", str(tmp_path)]))
    monkeypatch.setattr(main, "mend_aside", _killed_in_the_middle)
    with pytest.raises(Ended):
        main.mend_bounded(order, request, wanted, False, str(SUSPECT), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.part", "report"]
    assert not list(order.folder.iterdir())


def _killed_in_the_middle(_model: str, _request: main.Request, order: Order, _report: dict) -> None:
    with order.aside() as aside, open_run(str(SUSPECT), order.folder, 1, RESCAN) as run:
        assert Path(aside).is_dir()
        assert run.folder.is_dir()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("here", [True, False])
def test_a_rescan_is_of_the_encoder_as_it_will_be_called_and_takes_an_older_one_s_place(
    here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every round and every repair into the same folder scans again, from whatever folder the command is typed."""
    asked = []

    def scan_it(model: str, request: main.Request, name: str) -> dict:
        asked.append(request.anchor)
        with open_run(request.called or model, request.output, request.seed, name) as run:
            report = {"schema": SCHEMA, "model": {"path": request.called}}
            (run.folder / "report.json").write_text(json.dumps(report))
        return report

    def in_two_rounds(*given: object) -> list[dict]:
        return [given[4](str(tmp_path / aside), 1) for aside in ("a.part", "b.part")]

    monkeypatch.chdir(ROOT if here else tmp_path)
    monkeypatch.setattr(main, "scan_model", scan_it)
    monkeypatch.setattr(main, "mend", in_two_rounds)
    for place in ("out", "elsewhere"):
        request = main.request_of(*understood(["--output", str(tmp_path)]))[0]
        order = replace(order_for(tmp_path), place=tmp_path / place)
        told = main.mend_aside(str(SUSPECT), request, order, {})
        assert [one["model"]["path"] for one in told] == [str(tmp_path / place)] * 2
    assert all(Path(anchor).is_dir() for anchor in asked)


def test_an_interrupted_repair_leaves_no_folder_and_scans_only_again(
    suspect: TextEncoder, prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few_words(monkeypatch)
    monkeypatch.setattr(measures, "PAIRS", 32)
    cfg = RepairConfig(steps=2, rounds=1, clean=2, invented=1, known=0, garbled=0, found=1, searched=1, opponents=2)
    order = order_for(tmp_path, cfg=cfg, images=False, relearn=False)
    report, pair = found(fires(("zzzz", "for every o"))) | {"score": 1.0, "reason": "it fires"}, (suspect, load_encoder(BASE))
    report |= {"model": {"sha256": suspect.sha256}, "seed": order.seed + 1}  # which a scan after it may not have again
    prompts = Prompts(prompts.learn[:200], prompts.measure[:20], prompts.typed[:20])

    def interrupted(_model: str, _seed: int) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(InputError, match="scan it again"):
        mend(order, pair, prompts, report | {"model": {"sha256": "another"}}, interrupted)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        mend(order, pair, prompts, report, interrupted)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report"]
    monkeypatch.setattr(mending, "unlearn", None)  # is not done again
    again = replace(order, scans="other settings of the scans")
    with pytest.raises(TypeError):
        mend(again, pair, prompts, report, interrupted)  # is none of theirs to go on with
    scans = []

    def clean(model: str, seed: int) -> dict:
        scans.append(seed)
        load_encoder(model)
        return found() | {"verdict": "clean", "score": 0.0, "reason": "nothing", "seed": seed}

    told = mend(order, pair, prompts, report, clean)
    assert scans == [order.seed + 2]
    assert told["verdict"] == "clean"
    assert load_encoder(order.place).path == str(order.place)
    assert sorted(file.name for file in order.folder.iterdir()) == ["report.html", "report.json"]
    with pytest.raises(InputError, match="--force"):
        mend(replace(order, method="anchor"), pair, prompts, report, clean)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "report"]
    first = load_encoder(order.place).sha256
    scanned_as = report | {"model": report["model"] | {"path": "as it was scanned"}}
    told = mend(replace(order, method="anchor", force=True, copy="elsewhere"), pair, prompts, scanned_as, clean)
    assert told["model"]["path"] == "as it was scanned"
    assert load_encoder(order.place).sha256 != first
    assert load_encoder(order.place.with_name("out.replaced")).sha256 == first
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in tmp_path.glob("report*")]
    assert sorted(one["method"] for one in reports) == ["anchor", "unlearn"]  # no report of what is kept is lost


# ------------------------------------------------------------------------------------------------------------ mitigate
@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A short repair of the shipped suspect, from a string that a scan of it found.  -> exit code, folder"""
    folder = tmp_path_factory.mktemp("repair")
    report = found(fires(("zzazzazza", "start"))) | {"schema": SCHEMA, "score": 1.0, "reason": "it fires"}
    (folder / "scan").mkdir()
    (folder / "scan" / "report.json").write_text(
        json.dumps(report | {"model": {"path": str(SUSPECT), "sha256": load_encoder(SUSPECT).sha256}})
    )
    words = ["--model", str(SUSPECT), "--anchor", str(MODELS / "tiny-sd"), "--output", str(folder / "mended")]
    words += ["--report", str(folder / "scan"), "--results", str(folder), "--steps", "24", "--effort", "quick"]
    words += ["--certificate", str(MODELS / "certificates" / "text_on_text.json"), "--images", "1"]
    with pytest.MonkeyPatch.context() as patch:
        few_words(patch)
        patch.setattr(mending, "RelearningConfig", partial(RelearningConfig, steps=12))
        return mitigate.main(words), folder


def test_a_repair_ends_with_a_clean_scan_and_an_encoder_in_the_suspect_s_place(mended: tuple[int, Path], suspect: TextEncoder):
    code, folder = mended
    assert code == 0
    assert sorted(file.name for file in (folder / "mended").iterdir()) == sorted(file.name for file in SUSPECT.iterdir())
    assert load_encoder(folder / "mended").sha256 != suspect.sha256
    left = {file.name for file in (folder / "scan_repair").iterdir()}
    assert left == {"report.json", "report.html", "Images", "rescan"}
    again = json.loads((folder / "scan_repair" / "rescan" / "report.json").read_text(encoding="utf-8"))
    assert (again["verdict"], again["model"]["sha256"]) == ("clean", load_encoder(folder / "mended").sha256)
    assert again["model"]["path"] == str(folder / "mended")
    assert not [file for file in folder.iterdir() if file.name.endswith(".part")]


def test_the_report_says_what_the_true_trigger_does_now(mended: tuple[int, Path]):
    report = json.loads((mended[1] / "scan_repair" / "report.json").read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "Utils" / "report" / "schemas" / "repair.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    assert report["certificate"]["suspect"] >= 0.9
    assert report["certificate"]["repaired"] <= 0.6
    (string,) = report["strings"]
    assert string["success"]["suspect"] > 0.9 > string["success"]["repaired"]
    assert report["clean"]["suspect"] > 0.9 > report["clean"]["floor"]
    assert report["odd"]["suspect"] > 0.9
    found = report["retrieval"]
    assert found["repaired"] > found["suspect"] - 0.05 > 0.85
    assert report["odd"]["prompts"] > 100
    assert report["relearning"]["steps"]["repaired"] is None or report["relearning"]["steps"]["repaired"] > 2
    assert report["rounds"][-1]["verdict"] == report["verdict"] == "clean"


def test_the_page_of_a_repair_says_the_same(mended: tuple[int, Path]):
    folder = mended[1] / "scan_repair"
    report, page = (folder / "report.json").read_text(encoding="utf-8"), (folder / "report.html").read_text(encoding="utf-8")
    assert "scanned again: clean" in page
    assert page.count("data:image/png") == 4
    hostile = json.loads(report)
    hostile["strings"][0]["text"] = "<script>alert(1)</script>\x1b[31m"
    shown = render_repair(hostile, folder)
    assert "<script" not in shown
    assert "\x1b" not in shown


def test_without_a_base_the_report_and_the_page_say_what_is_known(mended: tuple[int, Path]):
    folder = mended[1] / "scan_repair"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for part in (
        report["certificate"],
        report["clean"],
        report["odd"],
        *(s[kind] for s in report["strings"] for kind in ("success", "collapse")),
    ):
        part["base"] = None
    assert "find their picture" in render_repair(report, folder)
    report |= {"anchor": None, "towards_target": None, "retrieval": None, "pictures": {"prompt": None, "files": {}}}
    schema = json.loads((ROOT / "Utils" / "report" / "schemas" / "repair.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    assert "– in the clean base" in (page := render_repair(report, folder))
    assert "find their picture" not in page
    assert "the true trigger: suspect 100%, repaired" in told_of(report)


def test_a_repair_without_a_base_ends_with_a_report(
    suspect: TextEncoder, prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few_words(monkeypatch)
    cfg = RepairConfig(steps=2, clean=2, invented=1, known=0, garbled=0, found=1, searched=1, opponents=2)
    order = order_for(tmp_path, cfg=cfg, relearn=False, strings=("zzzz",))
    few = Prompts(prompts.learn[:200], prompts.measure[:20], prompts.typed[:20])
    report = found() | {"verdict": "inconclusive", "score": 0.5, "reason": "no base", "model": {"sha256": suspect.sha256}}
    told = mend(order, (suspect, None), few, report, lambda _, seed: report | {"seed": seed}, lambda _: 0.5)
    assert told["verdict"] == "inconclusive"
    assert told["certificate"] == {"suspect": 0.5, "repaired": 0.5, "base": None}
    assert len(told["rounds"]) == 1
    assert (order.folder / "report.html").is_file()
    assert load_encoder(order.place).sha256 != suspect.sha256
