"""Pickles become safetensors: the command that the scan prints is executed as it stands, and nothing of a pickle ever is.

Contents
    cures     what the refusal prints gives a folder that scans, for a folder, a pipeline, a file, odd names
    content   what is kept, what is dropped and said: wrappers, optimizers, callbacks, embeddings, shards, tied tables
    hostile   code, bombs, lies: one sentence, exit 2, nothing left
    places    what is there already stays
"""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_closed_world import doubts
from test_loading import WEIGHTS, Bomb, as_pipeline, refusal, same_features
from test_many import QUICK

from Utils import convert
from Utils.basics.files import ROOT
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import encoders_of
from Utils.intake.files import PICKLES, free_name, pickle_sentence, what_file
from Utils.intake.pickles import read_pickle

PYTHON = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
PRINTED = re.compile(r"with `(python .*)`, then scan (.*) instead\.$")


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def typed(line: str) -> subprocess.CompletedProcess:
    """What a shell makes of a line."""
    return subprocess.run(line, shell=True, env=os.environ | PYTHON, capture_output=True, text=True, timeout=300, check=False)


def cured(sentence: str, capsys: pytest.CaptureFixture) -> tuple[Path, str]:
    """Execute the words of a refusal's command, but for the start of Python.  -> what it says to scan, what is said"""
    command, target = PRINTED.search(sentence).groups()
    python, script, *arguments = shlex.split(command)
    assert (python, Path(script).resolve()) == ("python", Path(convert.__file__).resolve())
    code, said = converted(*arguments, capsys=capsys)
    assert code == 0, said
    (name,) = shlex.split(target)
    return Path(name), said


def converted(*arguments: object, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and words of the command."""
    code = convert.main([str(one) for one in arguments])
    return code, capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- cures
def test_the_printed_command_gives_a_folder_that_scans(
    tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # not where the program lies
    folder = editable.rename(tmp_path / "it's $HOME; [v2]")
    as_pickle(folder)
    command, target = PRINTED.search(refusal(folder)).groups()
    done = typed(command)
    assert done.returncode == 0, done.stderr
    target = Path(*shlex.split(target))
    again = load_encoder(target)
    assert same_features(again, tiny, corpus_prompts)
    assert encoders_of(str(target)) == [str(target)]
    assert doubts(target) == []
    assert sorted(file.name for file in target.iterdir()) == sorted([*(f.name for f in folder.glob("*.json")), WEIGHTS])
    # what it prints last is the scan, which ends with a verdict
    scan = re.search(r"scan it: (.*)$", done.stderr.strip())[1]
    scanned = typed(f"{scan} {shlex.join([*QUICK, '--anchor', 'none', '--images', '0', '--output', str(tmp_path)])}")
    assert scanned.returncode == 3, scanned.stderr
    assert "inconclusive" in json.loads(next(tmp_path.glob("*/report.json")).read_text())["verdict"]


def test_a_pipeline_is_converted_as_a_whole(
    tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, corpus_prompts: list[str], capsys
):
    pipeline = as_pipeline(tiny_folder, tmp_path / "pipeline")
    as_pickle(pipeline / "text_encoder")
    torch.save({"conv.weight": torch.ones(2)}, pipeline / "text_encoder" / "optimizer.pt")
    (pipeline / "unet").mkdir()
    torch.save({"conv.weight": torch.ones(2)}, pipeline / "unet" / "diffusion_pytorch_model.bin")
    target, said = cured(refusal(pipeline), capsys)
    assert same_features(load_encoder(target), tiny, corpus_prompts)
    assert list(load_file(target / "unet" / "diffusion_pytorch_model.safetensors")) == ["conv.weight"]
    assert "text_encoder/optimizer.pt (a trainer's)" in said
    assert not list(target.rglob("*.pt"))


def test_a_file_alone_becomes_a_file(tmp_path: Path, capsys):
    torch.save({"a.weight": torch.arange(3.0)}, tmp_path / "clip model.ckpt")
    target, _ = cured(what_file(tmp_path / "clip model.ckpt"), capsys)
    assert target == tmp_path / "clip model.safetensors"
    assert torch.equal(load_file(target)["a.weight"], torch.arange(3.0))
    (tmp_path / "other").mkdir()
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "other" / "longclip-L.pt")
    assert "longclip-L.safetensors" in refusal(tmp_path / "other")  # no config.json: it is the file that is converted


def test_the_command_is_short_where_the_program_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert f"`python {Path('Utils', 'convert.py')} " in pickle_sentence(tmp_path / "model.bin")
    monkeypatch.chdir(tmp_path)
    assert shlex.quote(str(ROOT / "Utils" / "convert.py")) in pickle_sentence(tmp_path / "model.bin")


def test_the_place_that_is_named_is_free_and_outside_of_the_hub_s_cache(tmp_path: Path):
    (tmp_path / "a.safetensors").touch()
    assert free_name(tmp_path / "a.ckpt") == tmp_path / "a-2.safetensors"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    assert free_name(snapshot) == Path("name-safetensors")


# ------------------------------------------------------------------------------------------------------------ content
def as_trained(tensors: dict) -> dict:
    return {"state_dict": tensors, "optimizer_states": [{"state": {0: torch.ones(3)}}], "epoch": 3}


@pytest.mark.parametrize(
    ("wrap", "dropped"),
    [
        (lambda t: t, []), (as_trained, ["epoch", "optimizer_states"]), (lambda t: {"model": {"state_dict": t}}, []),
        (lambda t: t | {"step": 7, "config": {"a": 1}}, ["config", "step"]),
        (lambda t: t | {"sparse": torch.ones(2).to_sparse(), "nowhere": torch.ones(2, device="meta")}, ["nowhere", "sparse"]),
    ],
    ids=["plain", "trained", "nested", "mixed", "odd tensors"],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_kept_and_everything_else_is_named(tmp_path: Path, wrap: Callable, dropped: list[str], zipped: bool):
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5)}
    torch.save(wrap(tensors), tmp_path / "model.bin", _use_new_zipfile_serialization=zipped)
    found, left = read_pickle(tmp_path / "model.bin")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert sorted(left) == dropped


def test_what_a_trainer_keeps_beside_the_tensors_is_left_out_and_not_imported(tmp_path: Path, capsys):
    """As checkpoints of 2022 have it: a callback by its class, a score by numpy."""
    module = types.ModuleType("pytorch_lightning")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
    sys.modules["pytorch_lightning"] = module
    try:
        callback = module.ModelCheckpoint()
        callback.best = 0.5
        content = as_trained({"a": torch.ones(2)}) | {"callbacks": {module.ModelCheckpoint: callback}}
        torch.save(content, tmp_path / "model.ckpt")
    finally:
        del sys.modules["pytorch_lightning"]
    code, said = converted(tmp_path / "model.ckpt", tmp_path / "model.safetensors", capsys=capsys)
    assert code == 0, said
    assert "1 tensors; dropped: optimizer_states, epoch, callbacks" in said
    assert "pytorch_lightning" not in sys.modules


def test_an_embedding_of_a_web_ui_gets_the_name_it_has_in_safetensors(tmp_path: Path):
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 4)}, "name": "toy", "step": 3}
    torch.save(content, tmp_path / "toy.pt")
    found, dropped = read_pickle(tmp_path / "toy.pt")
    assert list(found) == ["emb_params"]
    assert sorted(dropped) == ["name", "step", "string_to_token"]


def test_tables_with_two_names_are_written_twice_and_views_on_their_own(tmp_path: Path, capsys):
    table = torch.randn(8, 4)
    torch.save({"shared.weight": table, "lm_head.weight": table, "first": table[:2], "turned": table.T}, tmp_path / "model.bin")
    assert converted(tmp_path / "model.bin", tmp_path / "new", capsys=capsys)[0] == 0
    found = load_file(tmp_path / "new" / WEIGHTS)
    assert torch.equal(found["shared.weight"], table)
    assert torch.equal(found["lm_head.weight"], table)
    assert torch.equal(found["first"], table[:2])
    assert torch.equal(found["turned"], table.T)


def test_shards_keep_their_places_under_a_new_index(
    tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts: list[str], capsys
):
    tensors = load_file(editable / WEIGHTS)
    (editable / WEIGHTS).unlink()
    names, where = sorted(tensors), {}
    for number, inside in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in inside}, editable / file)
        where |= dict.fromkeys(inside, file)
    (editable / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    target, _ = cured(refusal(editable), capsys)
    assert same_features(load_encoder(target), tiny, corpus_prompts)
    assert (target / "model.safetensors.index.json").exists()


def test_one_file_of_several_becomes_the_weights_of_a_new_folder(
    tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts: list[str], capsys
):
    as_pickle(editable)
    torch.save({"a": torch.ones(1)}, editable / "other.ckpt")
    (editable / "samples").mkdir()
    code, said = converted(editable / "pytorch_model.bin", tmp_path / "new", capsys=capsys)
    assert code == 0, said
    assert "left out: other.ckpt (other weights)" in said
    assert same_features(load_encoder(tmp_path / "new"), tiny, corpus_prompts)


def test_a_lone_pickle_of_any_name_gets_the_usual_one(
    tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts, capsys
):
    as_pickle(editable)
    (editable / "pytorch_model.bin").rename(editable / "my finetune v3.pt")
    target, _ = cured(refusal(editable), capsys)
    assert same_features(load_encoder(target), tiny, corpus_prompts)


# ------------------------------------------------------------------------------------------------------------ hostile
def bomb(file: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Bomb(file.parent / "canary")}, file)


def plain_bomb(file: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(file.parent / "canary")))


def endless(file: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 12)}, file)


def whole_model(file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), file)


def program(file: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)


def cut(file: Path) -> None:
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:-800])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (bomb, "which is code and no weights, and was not run"), (plain_bomb, "no checkpoint of plain tensors"),
        (endless, "larger than itself"), (whole_model, "which is code and no weights"), (program, "no checkpoint"),
        (cut, "no checkpoint of plain tensors"), (lambda file: torch.save([torch.ones(1)], file), "no tensors by name"),
        (lambda file: torch.save({"epoch": 3}, file), "no tensors by name"), (lambda file: file.touch(), "no checkpoint"),
        (lambda file: file.write_bytes(b"GGUF" + bytes(100)), "no checkpoint"),
    ],
    ids=["bomb", "plain bomb", "endless", "model", "program", "cut", "list", "numbers", "empty", "other"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_what_holds_no_weights_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path], object], words: str, name: str, capsys
):
    file = tmp_path / "in" / "model.bin"
    file.parent.mkdir()
    write(file)
    code, said = converted(file, tmp_path / name, capsys=capsys)
    assert code == 2
    assert words in said
    assert said.startswith("amber: ")
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in file.parent.iterdir()] == ["model.bin"]  # no canary


def test_a_bomb_stops_a_folder_and_the_control_goes_off(editable: Path, tmp_path: Path, capsys):
    as_pickle(editable)
    plain_bomb(editable / "other.pt")
    code, said = converted(editable, tmp_path / "out", capsys=capsys)
    assert code == 2
    assert "other.pt" in said
    assert not (tmp_path / "out").exists()
    assert not (editable / "canary").exists()
    pickle.loads((editable / "other.pt").read_bytes())
    assert (editable / "canary").exists()


def test_memory_and_time_are_bounded(tmp_path: Path, capsys):
    torch.save({"a": torch.zeros(300 << 18)}, tmp_path / "model.bin")  # 300 MB
    within = ["python", convert.__file__, tmp_path / "model.bin", tmp_path / "out.safetensors", "--memory", 200]
    done = typed(shlex.join(map(str, within)))  # this process may have memory to spare that other tests have left
    assert done.returncode == 2
    assert "more than 200 MB of memory" in done.stderr
    assert "raise --memory" in done.stderr
    code, said = converted(tmp_path / "model.bin", tmp_path / "out.safetensors", "--memory", 2000, capsys=capsys)
    assert code == 0, said
    os.truncate(tmp_path / "out.safetensors", 0)
    assert convert.limits_for(tmp_path / "model.bin", None, None).memory_mb == convert.BASE_MB + 4 * 300


# ------------------------------------------------------------------------------------------------------------- places
def test_what_is_there_already_stays(editable: Path, tmp_path: Path, capsys):
    as_pickle(editable)
    for name in ("out.safetensors", "out"):
        (tmp_path / name).write_text("mine")
        code, said = converted(editable / "pytorch_model.bin", tmp_path / name, capsys=capsys)
        assert code == 2
        assert "exists already; name a place where nothing is yet" in said
        assert (tmp_path / name).read_text() == "mine"
        code, said = converted(editable / "pytorch_model.bin", tmp_path / f"new_{name}", capsys=capsys)  # what it says to do
        assert code == 0, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.bin", "out"), "does not exist"), (("model", "out.safetensors"), "name a folder for what is made of it"),
        (("model/config.json", "out"), "is called like no pickle"), (("model", "model/new"), "name a place outside of it"),
        (("model", "out"), "holds no pickle"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_told(editable: Path, arguments: tuple[str, str], words: str, capsys):
    code, said = converted(*(editable.parent / name for name in arguments), capsys=capsys)
    assert code == 2
    assert words in said
    assert [path.name for path in editable.parent.iterdir()] == ["model"]


def test_a_pickle_beside_its_safetensors_form_is_left_out(editable: Path, tmp_path: Path, capsys):
    whole = (editable / WEIGHTS).read_bytes()
    torch.save({"a": torch.ones(1)}, editable / "pytorch_model.bin")
    torch.save({"a": torch.ones(1)}, editable / "head.pt")
    code, said = converted(editable, tmp_path / "out", capsys=capsys)
    assert code == 0, said
    assert "pytorch_model.bin (model.safetensors is there already)" in said
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == whole


def test_the_limits_on_the_page_are_those_of_the_code():
    page = " ".join((ROOT / "docs" / "threat_model.md").read_text(encoding="utf-8").split())
    assert f"{convert.BASE_MB:,} MB and {convert.TIMES} times the largest file" in page
    assert f"{convert.SECONDS / 60:g} minutes and a second for every {convert.RATE / 2**20:g} MB" in page
    assert all(f"`{suffix}`" in page for suffix in PICKLES)
