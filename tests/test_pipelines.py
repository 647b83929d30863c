"""Where scans run: the action's steps as plain shell, the hook, the image's tree, a notebook's cell, a table in Markdown."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from reports import string, unjudged, whole_report
from test_many import QUICK as SHORT

import main
from Utils import scan_changed
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.report.markdown import to_markdown
from Utils.report.notebook import words_of

QUICK = (*SHORT, "--images", "0")
PYTHON = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------------- Markdown
def test_a_table_has_a_line_for_every_encoder_and_nothing_from_a_model_is_markup():
    hostile = "www.x.example a@x.example x|y [a](javascript:b) &copy; $1$ <img src=x> ``c`` \x1b[2J\n# d"
    fired = whole_report(path=hostile, backdoors=[])
    fired["trigger"] = {"strings": [string("z|z")], "examples": [], "embedding": "v.pt"}
    table = to_markdown([fired, whole_report("clean"), unjudged()])
    head, rule, *rows = table.splitlines()[:5]
    assert (head.count("|"), rule.count("|")) == (5, 5)
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [5, 5, 5]
    shown = MarkdownIt("commonmark").enable("table").render(table)
    assert shown.count("<tr>") == 4
    assert not re.search(r"<(?!/?(table|thead|tbody|tr|th|td|p|code)\b)", shown)  # no link, picture or heading
    assert "<code>www.x.example a@x.example x|y [a](javascript:b) &amp;copy; $1$ &lt;img src=x&gt; ``c``" in shown
    assert "\x1b" not in table
    assert table.endswith("\n1 clean, 1 backdoored, 1 not judged\n")


# ------------------------------------------------------------------------------------------------------------- action
@pytest.fixture
def store(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder with one model in it."""
    shutil.copytree(tiny_folder, tmp_path / "models" / "one")
    return tmp_path / "models"


def steps_of(inputs: dict[str, str], outputs: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The action's own steps as a runner hands them to bash: script, and environment."""
    known = {f"inputs.{name}": value for name, value in inputs.items()} | outputs

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda name: known[name[1]], text)

    steps = [step for step in ACTION["runs"]["steps"] if "run" in step]
    assert all(step["shell"] == "bash" for step in steps)
    return [(step["run"], {name: filled(text) for name, text in step.get("env", {}).items()}) for step in steps]


def test_the_action_scans_tells_and_ends_with_the_exit_code(store: Path, tiny_folder: Path, tmp_path: Path):
    out, policy = tmp_path / "amber", tmp_path / "our rules.yaml"
    policy.write_text("fail_on: [backdoored, inconclusive]")
    flags = f"{' '.join(QUICK)}\n--policy '{policy}'\n"  # as YAML writes several lines
    given = {"models": str(store), "anchor": str(tiny_folder), "flags": flags}
    inputs = {name: one.get("default", "") for name, one in ACTION["inputs"].items()} | given
    files = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    runner = os.environ | PYTHON | files | {"GITHUB_ACTION_PATH": str(ROOT), "RUNNER_TEMP": str(tmp_path)}
    codes = []
    for script, own in steps_of(inputs, {"steps.scan.outputs.exit-code": "3"}):
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        codes.append(subprocess.run(bash, cwd=tmp_path, env=runner | own, capture_output=True, timeout=300).returncode)
    assert codes == [0, 0, 3]  # installed, scanned, and the verdict
    assert (tmp_path / "GITHUB_OUTPUT").read_text() == f"exit-code=3\nsarif={out}/amber.sarif\n"
    assert "| inconclusive |" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert json.loads((out / "summary.json").read_text())["policy"]["path"] == str(policy)
    script, own = steps_of(inputs, {"steps.scan.outputs.exit-code": "3"})[1]
    again = subprocess.run(["bash", "-eo", "pipefail", "-c", script], env=runner | own, capture_output=True, text=True)
    assert (again.returncode, "is not empty" in again.stdout) == (2, True)  # reports that lie there are not believed


def test_the_page_lists_the_action_s_inputs():
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    for name, one in ACTION["inputs"].items():
        last = "required" if one.get("required") else one["default"] or {"output": "a temporary one"}.get(name, "")
        assert re.search(rf"^\| {name} \| .+ \| {re.escape(last)} ?\|$", page, re.MULTILINE), name
    pinned = [step["uses"] for step in ACTION["runs"]["steps"] if "uses" in step]
    assert [bool(re.search(r"@[0-9a-f]{40}$", one)) for one in pinned] == [True, False]
    assert pinned[1] in page


# --------------------------------------------------------------------------------------------------------------- hook
def test_the_hook_scans_the_encoders_whose_weights_have_changed(store: Path, tiny_folder: Path, tmp_path: Path):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert os.access(ROOT / hook["entry"], os.X_OK)
    changed = store / "one" / "model.safetensors"
    assert re.search(hook["files"], changed.as_posix())
    (flags,) = hook["args"]
    given = f"{flags.replace('.amber', str(tmp_path / 'out'))} --anchor {tiny_folder} {' '.join(QUICK)}"
    assert scan_changed.main([given, str(changed)]) == 3
    assert (tmp_path / "out" / "summary.json").exists()
    assert scan_changed.main([flags]) == 0  # a commit without weights


def test_the_hook_names_what_a_changed_file_belongs_to(tmp_path: Path, capsys: pytest.CaptureFixture):
    files = ("pipe/model_index.json", "pipe/unet/x.safetensors", "pipe/text_encoder/config.json", "clip/config.json",
             "clip/model-00001-of-00002.safetensors", "web/config.json", "lora.safetensors")  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    models = [scan_changed.model_of(tmp_path / name) for name in files]
    wanted = ["pipe", "pipe", "pipe", "clip", "clip", None, "lora.safetensors"]
    assert models == [name and tmp_path / name for name in wanted]
    pattern = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))[0]["files"]
    assert all(re.search(pattern, name) for name in (*files, "clip/tokenizer.json", "clip/merges.txt"))
    assert not re.search(pattern, "package.json")


@pytest.mark.parametrize(
    ("flags", "name", "words"),
    [
        ("--anchor 'base", "x.safetensors", "cannot be read"),
        ("", "good\n#.safetensors", "a name of two lines"),
        ("--output docs", "x.safetensors", "docs is in the repository"),
    ],
)
def test_the_hook_refuses_what_would_let_an_encoder_pass(flags: str, name: str, words: str, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        scan_changed.main([f"--flags={flags}", name])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- image
def test_the_image_holds_what_a_scan_needs(tiny_folder: Path, tmp_path: Path):
    """Dockerfile's steps as plain shell: what it copies is all that there is."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    image, copied = tmp_path / "amber", [line.split()[1:] for line in lines if line.startswith("COPY")]
    image.mkdir()
    for *sources, target in copied:
        for source in sources:
            place = image / target / (source if len(sources) > 1 else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, image / target)
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {source for *sources, _ in copied for source in sources} == {line[1:] for line in kept if line.startswith("!")}
    (entry,) = (line[len("ENTRYPOINT ") :] for line in lines if line.startswith("ENTRYPOINT"))
    words = [word.replace("/amber", str(image)).replace("/results", str(tmp_path / "out")) for word in yaml.safe_load(entry)]
    command = [sys.executable, *words[1:], "--model", str(tiny_folder), "--anchor", str(tiny_folder), *QUICK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    assert list((tmp_path / "out").glob("*/report.html"))


# ----------------------------------------------------------------------------------------------------------- notebook
def test_a_cell_gets_the_report_and_shows_its_page(tiny_folder: Path, tmp_path: Path):
    flags = dict(zip([word[2:].replace("-", "_") for word in QUICK[::2]], QUICK[1::2], strict=True))
    written = tmp_path / "x.json"
    report = main.scan(tiny_folder, anchor=tiny_folder, output=tmp_path, quiet=True, json=written, **flags)
    assert json.loads(written.read_text()) == report
    assert report["verdict"] == "inconclusive"
    shown = report._repr_html_()
    assert shown.startswith('<iframe title="report" sandbox srcdoc="&lt;!')
    assert "<script" not in shown


def test_a_cell_is_told_what_a_command_line_is_told(tiny_folder: Path):
    with pytest.raises(InputError, match="does not exist"):
        main.scan("no/such/folder")
    with pytest.raises(InputError, match="invalid choice: 'much'"):
        main.scan(tiny_folder, effort="much")
    with pytest.raises(InputError, match="unrecognized arguments: --colour=red"):
        main.scan(tiny_folder, colour="red")
    with pytest.raises(InputError, match=r"knows no dry_run; type python main\.py --dry-run"):
        main.scan(tiny_folder, dry_run=True)


def test_keywords_are_flags():
    assert list(words_of({"images": 0, "bound": False, "quiet": True, "debug": False, "policy": None})) == [
        "--images=0", "--no-bound", "--quiet",
    ]  # fmt: skip
