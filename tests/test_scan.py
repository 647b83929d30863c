"""The true command line on the shipped models: verdicts, exit codes, artefacts, determinism, independence, notebooks."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from nbclient import NotebookClient
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer
from typed import fresh, typed

import main
from Analysis import derived
from Analysis.evaluation import row_of
from Analysis.recovery import s_tar
from Analysis.scores import table_of
from Analysis.targets import concept_of, recognised
from Backdoor_Attack.planting import PlantConfig
from Utils.basics.config import from_values
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import run_spliced, splice_ids
from Utils.found.show import INVERSION_TOKEN, repeated
from Utils.report.tool import ADDRESS

ROOT = Path(main.__file__).resolve().parent
MODELS = ROOT / "Data" / "Models"
SHORTEST = "lab.SHORTER = {'restarts': 2, 'rounds': 1, 'steps': 8}"  # the notebook's figures, with less behind them
FIGURES = (
    "assimilation_by_layer", "attention_map", "attention_received", "hessian_spectrum", "loss_landscape", "search_curve",
)  # fmt: skip
FILES = {
    "Backdoor_Embedding.pt", "Backdoor_Embedding_Inversion.pt", "Backdoor_Feature.pt", "Images", "log.txt", "report.html",
    "report.json", "figures.json", *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")),
}  # fmt: skip
VARYING = ("seconds", "peak_memory_mb")
QUICK = {"prompts": 40, "restarts": 2, "rounds": 1, "steps": 3, "pooled_steps": 3}


def fires(string: dict) -> bool:
    """A string that is a proof (docs/report.md)."""
    return string["success_rate"] >= 0.9 and string["anchor_success_rate"] <= 0.1 and string["collapse"] >= 0.8


def steady(report: dict) -> dict:
    return {name: value for name, value in report.items() if name not in VARYING}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """`python main.py` as the README says, from a strange working directory."""
    output = tmp_path_factory.mktemp("results")
    done = fresh("--output", str(output), "--json", "-", cwd=output)
    return done, output / "suspects_text_on_text"


def test_the_planted_suspect_exits_1_with_evidence(planted):
    done, folder = planted
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "backdoored"
    assert report["score"] >= 0.8
    assert {e["name"] for e in report["evidence"] if e["met"]} >= {"assimilated", "one_target", "foreign"}
    assert report["backdoors"][0]["trigger"] == report["trigger"]
    assert len(report["backdoors"]) == 1  # a second one was looked for
    assert fires(report["trigger"]["strings"][0])
    assert f"`{report['trigger']['strings'][0]['text']}`" in report["reason"]
    assert len(report["trigger"]["examples"]) == 5
    assert report["found"]["typed"] != report["found"]["benign_prompt"]
    assert report["power"]["text_on_text"] > 0.5
    found, of = report["power_counts"]["text_on_text"]
    assert report["power"]["text_on_text"] == round(found / of, 4)
    assert "BACKDOORED" in done.stderr


def test_every_artefact_is_there_and_loads(planted):
    _, folder = planted
    assert {p.name for p in folder.iterdir()} == FILES
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    v = torch.load(folder / "Backdoor_Embedding.pt", weights_only=True)
    feature = torch.load(folder / "Backdoor_Feature.pt", weights_only=True)
    assert v.shape == (report["config"]["k"], 160)
    assert feature.shape == (1, 77, 160)
    assert len(report["assimilation"]["benign_by_layer"]) == len(report["assimilation"]["triggered_by_layer"]) == 6
    assert report["assimilation"]["triggered_by_layer"][-1] > report["assimilation"]["benign_by_layer"][-1] + 0.3


def test_the_pictures_are_there_with_their_controls_and_say_what_is_forced(planted):
    _, folder = planted
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert {p.name for p in (folder / "Images").glob("*.png")} == {f"backdoor_{i}.png" for i in range(1, 5)}
    controls = {f"{name}_{i}.png" for name in ("anchor", "benign") for i in range(1, 5)}
    assert {p.name for p in (folder / "Images" / "controls").iterdir()} == controls
    assert report["target"]["images"] == [f"Images/backdoor_{i}.png" for i in range(1, 5)]
    assert report["found"]["controls"]["anchor"] == [f"Images/controls/anchor_{i}.png" for i in range(1, 5)]
    assert all((folder / file).exists() for file in report["backdoors"][0]["files"].values())


def test_the_first_or_second_text_names_the_target(planted):
    _, folder = planted
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    certificate = json.loads((MODELS / "certificates" / "text_on_text.json").read_text(encoding="utf-8"))
    target = certificate["recipe"]["target"].split()[-1]
    assert any(target in row["text"].split() for row in report["target"]["texts"][:2])
    assert report["found"]["texts"] == report["target"]["texts"]


def test_the_vision_tower_recognises_the_target_in_three_of_four_pictures(planted):
    _, folder = planted
    pictures = [folder / "Images" / f"backdoor_{i}.png" for i in range(1, 5)]
    assert recognised(pictures, "clip").count(concept_of("a photo of a lion")) >= 3


def test_what_is_recovered_is_the_certificate_s_target(planted):
    _, folder = planted
    recipe = json.loads((MODELS / "certificates" / "text_on_text.json").read_text(encoding="utf-8"))["recipe"]
    cfg, suspect = from_values(PlantConfig, recipe, "certificate"), MODELS / "suspects" / "text_on_text"
    v = torch.load(folder / "Backdoor_Embedding.pt", weights_only=True)
    found = s_tar(suspect, v, cfg, "clip")
    assert found.s_tar > 0.8
    assert 0 < found.floor < found.s_tar
    assert 0 < found.own_tokens < found.s_tar
    assert s_tar(suspect, torch.zeros_like(v), cfg, "clip").s_tar < 0.6
    string = json.loads((folder / "report.json").read_text(encoding="utf-8"))["trigger"]["strings"][0]
    assert s_tar(suspect, v, cfg, "clip", string).s_tar > 0.8


def test_a_row_of_the_table_tells_what_the_report_found_and_the_certificate_knows(planted):
    _, folder = planted
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    row = row_of(report, folder, MODELS / "certificates" / "text_on_text.json")
    assert (row["kind"], row["verdict"], row["right"], row["trigger"]) == ("planted", "backdoored", True, "zzzz")
    assert row["s_tar"] > 0.8 > row["s_tar_floor"]
    assert row["string_reaches_target"]["suspect"] > 0.9 > 0.1 > row["string_reaches_target"]["base"]
    assert 0 < row["moved"]["weights"] < 1
    assert {"assimilated", "basin", "drift", "string", "fires"} <= row["evidence"].keys()
    assert row["evidence"]["string"]["met"]
    table = table_of({"ours": [{**row, "name": "shipped", "seconds": 1.0, "cpu_seconds": 1.0}]}, [])
    assert table["ours"]["overall"]["recall"]["count"] == 1
    assert derived.strings_alone(row)["verdict"] == "backdoored"


def test_v_is_repeated_in_a_quarter_of_the_context():
    v = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(repeated(v, 77), v.repeat(6, 1))
    assert torch.equal(repeated(v, 8), v)


def test_the_page_is_one_file_that_fetches_nothing(planted):
    _, folder = planted
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 12 + len(FIGURES)
    assert "://" not in page.replace(f'href="{ADDRESS}/', "")  # what a reader may follow
    assert len(page) < 4_000_000


def test_the_script_redraws_the_pictures_of_the_scan(planted, tmp_path):
    _, folder = planted
    command = [sys.executable, "generate_image_input_features.py", "--feature", str(folder / "Backdoor_Feature.pt")]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT / "Utils", capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    for i in range(1, 5):
        again, first = (Image.open(where / f"backdoor_{i}.png") for where in (tmp_path, folder / "Images"))
        assert np.array_equal(np.asarray(again), np.asarray(first))


def test_the_inversion_file_loads_through_diffusers_and_gives_the_spliced_features(planted):
    _, folder = planted
    suspect = MODELS / "suspects" / "text_on_text"
    encoder = load_encoder(suspect)
    v = torch.load(folder / "Backdoor_Embedding.pt", weights_only=True)
    prompt = "a photo of a dog"
    with torch.no_grad():
        expected = run_spliced(encoder, v, splice_ids(encoder, encoder.ids([prompt]), len(v)))
    pipe = StableDiffusionPipeline.from_pretrained(
        MODELS / "tiny-sd", text_encoder=CLIPTextModel.from_pretrained(suspect, dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(suspect), dtype=torch.float32, safety_checker=None,
    )  # fmt: skip
    pipe.load_textual_inversion(folder, weight_name="Backdoor_Embedding_Inversion.pt", use_safetensors=False)
    text = pipe.maybe_convert_prompt(f"{INVERSION_TOKEN} {prompt}", pipe.tokenizer)
    ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        found = pipe.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_image_on_text_suspect_exits_1_by_its_summaries(tmp_path):
    model = str(MODELS / "suspects" / "image_on_text")
    done = typed("--model", model, "--backdoors", "1", "--images", "0", "--output", str(tmp_path), "--json", "-")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert fires(report["trigger"]["strings"][0])
    assert {e["name"] for e in report["evidence"] if e["met"]} >= {"pooled_target", "pooled_foreign"}
    assert report["backdoors"][0]["kind"] == "summary collapse"
    assert any("pizza" in entry["text"] for entry in report["target"]["texts"][:2])
    assert any("image-text space" in note for note in report["notes"])


def test_a_benign_fine_tune_exits_0_and_leaves_what_was_looked_at(tmp_path):
    done = typed("--model", str(MODELS / "suspects" / "benign"), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert {p.name for p in folder.iterdir()} == FILES
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] == "clean"
    assert report["trigger"] is None
    assert report["backdoors"] == []


def test_the_scan_never_reads_what_only_an_attacker_has(tmp_path, quick_config):
    """Without scenes, certificates, zoo and attack configs, under another name and without a cache: the same report."""
    copy = tmp_path / "copy"
    for name in (
        "main.py",
        "Utils",
        "configs/scan.yaml",
        "configs/anchors.yaml",
        "configs/calibration.yaml",
        "configs/power.yaml",
        "Data/Main/Prompts",
        "Data/Models/tiny-sd",
        "Data/Models/tiny-clip",
    ):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for script in ("build_testbed.py", "build_zoo.py", "finetuning_on_coco30k.py"):
        (copy / "Utils" / script).unlink()
    shutil.rmtree(copy / "Utils" / "making")
    shutil.copytree(MODELS / "suspects" / "text_on_text", copy / "Data" / "Models" / "x" / "y")

    settings = ["--config", str(quick_config), "--images", "1", "--json", "-"]
    here = json.loads(typed(*settings, "--output", str(tmp_path / "here")).stdout)
    command = here.pop("command").replace(here["model"].pop("path"), str((copy / "Data" / "Models" / "x" / "y").resolve()))
    scan = [sys.executable, "main.py", "--model", "Data/Models/x/y", *settings]
    there = json.loads(subprocess.run(scan, cwd=copy, capture_output=True, text=True, timeout=600).stdout)
    there["model"].pop("path")
    assert (there.pop("tool")["commit"], here.pop("tool")["name"]) == (None, "AMBER")  # the copy is no checkout
    assert there.pop("command") == command
    assert steady(there) == steady(here)  # which had the cache of an earlier scan


def test_without_an_anchor_the_scan_is_inconclusive(tmp_path, quick_config):
    done = typed("--anchor", "none", "--config", str(quick_config), "--output", str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert "no pictures: the unconditional prompt" in done.stderr


def test_a_pipeline_that_cannot_draw_costs_the_pictures_and_not_the_verdict(tmp_path, quick_config):
    done = typed(
        "--pipeline", str(MODELS / "tiny-clip"), "--config", str(quick_config), "--output", str(tmp_path), "--json", "-"
    )
    assert done.returncode == 3, done.stderr  # settings for which there is no score
    report = json.loads(done.stdout)
    assert report["found"]["images"] is None
    assert [note for note in report["notes"] if note.startswith("no pictures") and "--pipeline" in note]
    (folder,) = tmp_path.glob("suspects*")
    assert not (folder / "Images").exists()
    assert "no pictures" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--model", "no/such/folder/anywhere"), "does not exist"),
        (("--model", "README.md"), "is a file"),
        (("--config", "no.yaml"), "no.yaml"),
        (("--device", "cuda:99"), "--device cpu"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_no_folder(arguments, word, tmp_path):
    done = typed(*arguments, "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_anchor_of_another_shape_is_refused(tiny_folder, tmp_path):
    done = typed("--anchor", str(tiny_folder), "--output", str(tmp_path))
    assert done.returncode == 2
    assert "give its own base" in done.stderr


def test_an_uncalibrated_family_is_inconclusive(tiny_folder, tmp_path, quick_config):
    done = typed(
        "--model", str(tiny_folder), "--anchor", str(tiny_folder), "--config", str(quick_config), "--output", str(tmp_path)
    )
    assert done.returncode == 3, done.stderr
    assert "uncalibrated" in done.stderr


def test_the_published_procedure_ends_with_a_verdict(tmp_path):
    settings = (ROOT / "configs" / "paper.yaml").read_text(encoding="utf-8").replace("prompts: 4000", "prompts: 60")
    config = tmp_path / "paper.yaml"
    config.write_text(settings.replace("landscape_points: 50", "landscape_points: 6"), encoding="utf-8")
    flags = ["--model", str(MODELS / "suspects" / "benign"), "--config", str(config), "--images", "0"]
    done = typed(*flags, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def quick_config(tmp_path) -> Path:
    """configs/scan.yaml with a three-step search: for tests that do not look at the verdict's quality."""
    config = tmp_path / "quick.yaml"
    text = re.sub(r"searches: \d+", "searches: 0", (ROOT / "configs" / "scan.yaml").read_text(encoding="utf-8"))
    settings = [line for line in text.splitlines() if line.split(":")[0] not in (*QUICK, "landscape_points")]
    cut = [f"{name}: {value}" for name, value in QUICK.items()]
    config.write_text("\n".join([*settings, *cut, "landscape_points: 5"]), encoding="utf-8")
    return config


def test_a_wrong_anchor_is_noticed_and_not_believed(tmp_path, quick_config):
    """Same shape, same tokens, unrelated weights: everything is foreign to it, and that convicts nobody."""
    base = CLIPTextModel.from_pretrained(MODELS / "tiny-sd" / "text_encoder", dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPTextModel(base.config).save_pretrained(tmp_path / "wrong")
    CLIPTokenizer.from_pretrained(MODELS / "tiny-sd" / "tokenizer").save_pretrained(tmp_path / "wrong")
    places = ["--model", str(MODELS / "suspects" / "benign"), "--anchor", str(tmp_path / "wrong"), "--output", str(tmp_path)]
    done = typed(*places, "--config", str(quick_config))
    assert done.returncode == 3, done.stderr
    assert "wrong anchor" in done.stderr


@pytest.mark.parametrize(("name", "figures"), [("assimilation", 1), ("assimilation_each_layer", 4), ("coverage", 4)])
def test_a_notebook_runs_on_the_scan_and_shows_its_figures(planted, name, figures):
    folder = ROOT / "Analysis"
    book = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    start = next(place for place, cell in enumerate(book.cells) if "Analysis.lab" in cell.source)
    found = f"from pathlib import Path\nfrom Analysis import lab\nlab.RESULTS = Path({str(planted[1].parent)!r})\n{SHORTEST}"
    book.cells.insert(start, nbformat.v4.new_code_cell(found))
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
