"""Hub ids as people write them: names, pages, folders in them; the local cache first, then the network with the user's login.

The hub is a server of the test's own on this machine.

Contents
    names     every way of writing one, and what is none
    cache     what is there is taken and nothing asked; half of it is not enough
    fetching  revisions, folders, variants, pickles; private and gated models; sentences when it cannot be
    scans     the commit and the command in the report, a list, weights that were not fetched
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hub import TOKEN, Hub, cached, commit_for, serving, use_cache, use_hub
from test_closed_world import doubts
from test_convert import PRINTED, PYTHON, as_pickle
from test_intake import two_encoders  # noqa: F401  (a fixture)
from test_loading import WEIGHTS, as_pipeline, refusal, rewrite, same_features
from test_many import QUICK

import main
from Utils import convert
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import encoders_of
from Utils.intake.folders import matching_part
from Utils.intake.hub import as_named, commit_of, hub_name, pinned
from Utils.report.lists import read_list
from Utils.report.report import reproduce
from Utils.report.sarif import to_sarif


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache of the hub."""
    return use_cache(monkeypatch, tmp_path / "hub")


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub without models, which this process asks."""
    with serving(Hub()) as one:
        use_hub(monkeypatch, one)
        yield one


# -------------------------------------------------------------------------------------------------------------- names
PAGE = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("org/name", "org/name"), ("org/name@v1.0", "org/name@v1.0"), ("org/name@refs/pr/3", "org/name@refs/pr/3"),
        (f"{PAGE}/org/name", "org/name"), (f"{PAGE}/org/name/", "org/name"), ("huggingface.co/org/name", "org/name"),
        ("https://hf.co/org/name?library=transformers#usage", "org/name"), ("hf://org/name@v1", "org/name@v1"),
        (f"{PAGE}/org/name/tree/main", "org/name@main"), (f"{PAGE}/org/name/tree/v1/text_encoder", "org/name@v1/text_encoder"),
        (f"{PAGE}/org/name/blob/main/model.safetensors", "org/name@main/model.safetensors"),
        (f"{PAGE}/org/name/resolve/main/a%20b/model.safetensors?download=true", "org/name@main/a b/model.safetensors"),
        (f"{PAGE}/org/name/tree/feature%2Fx", "org/name@feature%2Fx"),
        ("org/name/text_encoder_2", "org/name@main/text_encoder_2"),
        ("auto", "auto"), ("none", "none"), ("./org/name", "./org/name"), ("models/org/name", "models/org/name"),
        ("a/b/c", "a/b/c"),
    ],
)  # fmt: skip
def test_a_name_is_understood_however_it_is_written(text: str, named: str):
    assert as_named(text) == named
    assert as_named(named) == named  # and stays what it is


def test_a_folder_within_is_named_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert as_named("org/name", "text_encoder_2") == "org/name@main/text_encoder_2"
    assert as_named("org/name@v1", "deep/er") == "org/name@v1/deep/er"
    assert as_named(f"{PAGE}/org/name/tree/v1/a", "b") == "org/name@v1/a/b"
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    assert as_named("org/name", "text_encoder") == str(Path("org/name/text_encoder"))  # what lies here comes first
    assert as_named("org/name") == "org/name"


def test_a_name_with_its_commit_names_the_same_files(tmp_path: Path):
    commit = commit_for("org/name")
    assert pinned("org/name", commit) == f"org/name@{commit}"
    assert pinned("org/name@v1/text_encoder_2", commit) == f"org/name@{commit}/text_encoder_2"
    assert pinned(str(tmp_path), commit) == str(tmp_path)
    assert pinned("org/name", None) == "org/name"


@pytest.mark.parametrize(
    "text", ["", "name", "../name", "~/name", "a\0b", "x" * 3000, "org/name@../../x", "org/..", "C:\\models\\x", "org/na me"]
)
def test_what_is_no_name_is_none(text: str):
    assert hub_name(text) is None


@pytest.mark.parametrize("page", ["datasets/org/name", "spaces/org/name", "org", "org/name/discussions/3", ""])
def test_a_page_of_no_model_is_refused(page: str):
    message = refusal(f"{PAGE}/{page}")
    assert "model" in message
    assert f"{PAGE}/{page}" in message
    refusal("https://example.org/org/name")


# -------------------------------------------------------------------------------------------------------------- cache
def test_what_is_in_the_cache_is_taken_and_nothing_is_asked(
    tiny: TextEncoder, tiny_folder: Path, cache: Path, hub: Hub, corpus_prompts: list[str]
):
    hub.models["org/name", "main"] = tiny_folder
    snapshot = cached(cache, "org/name", tiny_folder)
    encoder = load_encoder("org/name")
    assert same_features(encoder, tiny, corpus_prompts)
    assert (encoder.path, encoder.files.parts.root) == ("org/name", snapshot)
    assert commit_of(encoder.files.parts.root) == commit_for("org/name")
    assert hub.asked == []


@pytest.mark.parametrize("missing", [WEIGHTS, "tokenizer"])
def test_half_a_model_in_the_cache_is_fetched_anew(tiny, tiny_folder, editable, cache, hub, corpus_prompts, missing: str):
    for file in editable.glob(f"{missing}*"):
        file.unlink()
    cached(cache, "org/name", editable)
    hub.models["org/name", "main"] = tiny_folder
    assert same_features(load_encoder("org/name"), tiny, corpus_prompts)


def test_a_folder_of_the_cache_is_the_snapshot_in_it(tiny: TextEncoder, tiny_folder: Path, cache: Path, corpus_prompts):
    snapshot = cached(cache, "org/name", tiny_folder)
    cached(cache, "org/name", tiny_folder, "older")
    encoder = load_encoder(cache / "models--org--name")
    assert same_features(encoder, tiny, corpus_prompts)
    assert encoder.files.parts.root == snapshot
    assert encoders_of(str(cache / "models--org--name")) == [str(cache / "models--org--name")]
    assert read_list(cache) == [str(cache / "models--org--name")]
    (cache / "models--org--name" / "refs" / "main").write_text("../../../../etc")  # what is no commit leads nowhere
    assert load_encoder(cache / "models--org--name").files.parts.root.parent == snapshot.parent


# ----------------------------------------------------------------------------------------------------------- fetching
def test_a_model_is_fetched_by_name_revision_and_page(tiny, editable, tiny_folder, hub, corpus_prompts):
    rewrite(editable, lambda tensors: {name: tensor * 1.5 for name, tensor in tensors.items()})
    hub.models |= {("org/name", "main"): tiny_folder, ("org/name", "v1"): editable}
    assert same_features(load_encoder("org/name"), tiny, corpus_prompts)
    other = load_encoder("org/name@v1")
    assert not same_features(other, tiny, corpus_prompts)
    assert commit_of(other.files.parts.root) == commit_for("org/name", "v1")
    asked = len(hub.asked)
    for again in (f"{hub.address}/org/name/tree/v1", pinned("org/name", commit_for("org/name", "v1"))):
        assert load_encoder(again).sha256 == other.sha256
    assert len(hub.asked) == asked  # it is in the cache now


def test_an_encoder_in_a_folder_is_fetched_with_its_tokenizer(tiny, two_encoders, hub, cache, corpus_prompts):  # noqa: F811
    (two_encoders / "unet").mkdir()
    (two_encoders / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(100))
    hub.models["org/xl", "main"] = two_encoders
    second = as_named("org/xl", "text_encoder_2")
    assert same_features(load_encoder(second), tiny, corpus_prompts)
    fetched = {path for path in hub.asked if path.endswith(".safetensors")}
    assert {Path(path).parent.name for path in fetched} == {"text_encoder_2"}
    shutil.rmtree(cache)
    assert encoders_of("org/xl") == ["org/xl/text_encoder", "org/xl/text_encoder_2"]
    assert encoders_of("org/xl@main") == ["org/xl@main/text_encoder", "org/xl@main/text_encoder_2"]
    assert same_features(load_encoder("org/xl@main/text_encoder_2"), tiny, corpus_prompts)
    assert matching_part("org/xl", "x/text_encoder_2") == "org/xl/text_encoder_2"
    assert not [path for path in hub.asked if "unet" in path]


def test_a_file_that_is_named_is_the_one_that_is_read(tiny, editable, hub, corpus_prompts):
    shutil.copy(editable / WEIGHTS, editable / "other.safetensors")
    rewrite(editable, lambda tensors: {name: tensor * 1.5 for name, tensor in tensors.items()})
    hub.models["org/name", "main"] = editable
    assert same_features(load_encoder(f"{hub.address}/org/name/blob/main/other.safetensors"), tiny, corpus_prompts)


def test_half_precision_is_fetched_where_there_is_nothing_else(editable: Path, hub: Hub):
    (editable / WEIGHTS).rename(editable / "model.fp16.safetensors")
    hub.models["org/name", "main"] = editable
    load_encoder("org/name")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "their own.pt"])
def test_pickles_of_the_hub_are_converted_by_the_command_that_is_printed(
    tiny: TextEncoder, editable: Path, tmp_path: Path, hub: Hub, corpus_prompts: list[str], name: str, monkeypatch, capsys
):
    as_pickle(editable)
    (editable / "pytorch_model.bin").rename(editable / name)
    hub.models["org/name", "main"] = editable
    monkeypatch.chdir(tmp_path)
    command, target = PRINTED.search(refusal("org/name")).groups()
    assert convert.main(shlex.split(command)[2:]) == 0, capsys.readouterr().err
    assert same_features(load_encoder(target), tiny, corpus_prompts)
    code = convert.main([f"{hub.address}/org/name/blob/main/{name.replace(' ', '%20')}", "one.safetensors"])
    assert code == 0, capsys.readouterr().err


def test_private_and_gated_models_ask_for_the_user_s_own_login(tiny_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    for name, kind in (("org/private", hub.private), ("org/gated", hub.gated)):
        hub.models[name, "main"] = tiny_folder
        kind.add(name)
    assert "org/private is not on the hub, or is private; check its name, or log in with `hf auth login`" in refusal(
        "org/private"
    )
    assert f"org/gated is gated; accept its terms on {hub.address}/org/gated" in refusal("org/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load_encoder("org/private")
    load_encoder("org/gated")


def test_logging_in_as_the_sentence_says_opens_a_private_model(tiny_folder: Path, tmp_path: Path):
    with serving(Hub({("org/name", "main"): tiny_folder}, private={"org/name"})) as one:
        line = (
            f"hf auth login --token {TOKEN} && python -c 'from Utils.intake.hub import located; print(located(\"org/name\"))'"
        )
        env = os.environ | PYTHON | one.environment(tmp_path)
        done = subprocess.run(line, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert commit_for("org/name") in done.stdout


def test_what_the_hub_does_not_have_is_told(tiny_folder: Path, hub: Hub):
    hub.models["org/name", "main"] = tiny_folder
    assert "org/other is not on the hub, or is private" in refusal("org/other")
    assert f"has no revision v9; give one of {hub.address}/org/name/refs, or none for the newest" in refusal("org/name@v9")
    assert f"holds no deep/er; its files are listed on {hub.address}/org/name/tree/main" in refusal("org/name@main/deep/er")
    load_encoder("org/name")  # none for the newest


def test_without_a_network_the_sentence_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch):
    assert "could not be fetched from the hub (HF_HUB_OFFLINE is set: unset it, or give a folder)" in refusal("org/name")
    with serving(Hub()) as gone:
        use_hub(monkeypatch, gone)
    assert "(it cannot be reached: try again with a network, or give a folder)" in refusal("org/name")


# -------------------------------------------------------------------------------------------------------------- scans
def test_the_commit_is_in_the_report_and_its_command_names_it(tiny_folder: Path, tmp_path: Path, cache: Path, capsys):
    pipeline = as_pipeline(tiny_folder, tmp_path / "pipeline")
    cached(cache, "org/name", pipeline)
    cached(cache, "org/base", tiny_folder, "v1")
    scan = ["--model", f"{PAGE}/org/name", "--subfolder", "text_encoder", "--anchor", "org/base@v1", *QUICK, "--images", "0"]
    assert main.main([*scan, "--output", str(tmp_path / "out"), "--quiet"]) == 3, capsys.readouterr().err
    (folder,) = (tmp_path / "out").glob("[!.]*")
    assert folder.name == "name_main_text_encoder"
    report = json.loads((folder / "report.json").read_text())
    commits = commit_for("org/name"), commit_for("org/base", "v1")
    assert (report["model"]["path"], report["model"]["commit"]) == ("org/name@main/text_encoder", commits[0])
    assert (report["anchor"]["path"], report["anchor"]["commit"]) == ("org/base@v1", commits[1])
    assert f"--model org/name@{commits[0]}/text_encoder --anchor org/base@{commits[1]}" in report["command"]
    assert commits[0] in (folder / "report.html").read_text()
    (found,) = to_sarif([report], "1", tmp_path)["runs"][0]["results"]
    place = found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert place == f"{PAGE}/org/name/tree/main"
    assert reproduce(report | {"model": {"path": "x"}, "anchor": None}, report["config"]).startswith("python main.py --model x")


def test_a_list_names_models_of_the_hub_and_goes_on_behind_a_page_of_none(tiny_folder: Path, tmp_path: Path, cache: Path):
    lines = [f"{PAGE}/org/name/tree/main", "org/name@v1", f"{PAGE}/datasets/org/name"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert read_list(tmp_path / "list.txt") == ["org/name@main", "org/name@v1", lines[2]]


def test_weights_that_were_left_on_the_hub_are_doubts(tiny_folder: Path, editable: Path, tmp_path: Path, hub: Hub):
    torch.save({"a": torch.ones(1)}, editable / "pytorch_model.bin")
    torch.save({"a": torch.ones(1)}, editable / "optimizer.pt")
    shutil.copy(editable / WEIGHTS, editable / "model.fp16.safetensors")
    (editable / "README.md").write_text("# a model")
    hub.models |= {("org/name", "main"): editable, ("org/plain", "main"): tiny_folder}
    assert doubts("org/name") == [
        "model.fp16.safetensors (weights on the hub, not fetched) lies there and was not judged",
        "pytorch_model.bin (a pickle on the hub, not fetched) lies there and was not judged",
    ]
    assert doubts("org/name", only=True) == []
    assert doubts("org/plain") == []


def test_a_folder_is_for_one_model(tmp_path: Path, capsys):
    (tmp_path / "list.txt").write_text("org/name\n")
    assert main.main(["--models", str(tmp_path / "list.txt"), "--subfolder", "x"]) == 2
    assert "write it behind the names of the list: owner/name@main/FOLDER" in capsys.readouterr().err
    assert as_named("owner/name@main/FOLDER") == "owner/name@main/FOLDER"
    with pytest.raises(InputError, match="could not be fetched"):
        encoders_of("owner/name@main/FOLDER")
