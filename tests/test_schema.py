"""report.json, summary.json and the statement have schemas; what is written keeps to them, and pages say the same.

Contents
    reports    of every kind; what is missing, misspelt or contradicts itself is told
    summaries  of all of them
    pages      docs/report.md has every key, in the words of the schemas
"""

import json
import re
from copy import deepcopy
from pathlib import Path

import jsonschema
import pytest
from reports import KINDS, unjudged, whole_report

from Utils.report.contract import to_json
from Utils.report.lists import plan, summarise

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "Utils" / "report" / "schemas"
SCHEMAS = {file.name.split(".")[0]: json.loads(file.read_text(encoding="utf-8")) for file in FOLDER.iterdir()}
JUDGED = SCHEMAS["report"]["$defs"]["judged"]


def fits(document: object, schema: str) -> bool:
    """Whether a document keeps to a schema."""
    return jsonschema.Draft202012Validator(SCHEMAS[schema]).is_valid(json.loads(to_json(document)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_one(name: str):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"].endswith(f"{name}.schema.json")


def open_objects(schema: object, where: str = "") -> list[str]:
    """Objects of a schema whose keys are named and that take others all the same."""
    inner = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    own = isinstance(schema, dict) and schema.get("type") == "object" and "properties" in schema
    conditional = where.endswith(("/if", "/then", "/else")) or re.search(r"/(then|else)/properties/\w+$", where)
    found = [where] if own and not conditional and schema.get("additionalProperties") is not False else []
    return found + [one for name, part in inner for one in open_objects(part, f"{where}/{name}")]


@pytest.mark.parametrize("name", SCHEMAS)
def test_where_the_structure_is_fixed_no_other_key_is_taken(name: str):
    assert open_objects(SCHEMAS[name]) == []
    assert open_objects({"a": {"type": "object", "properties": {}}}) == ["/a"]


# ------------------------------------------------------------------------------------------------------------ reports
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_every_kind_keeps_to_the_schema(kind: str):
    assert fits(KINDS[kind], "report")


@pytest.mark.parametrize("key", JUDGED["properties"])
def test_no_key_may_be_missing_or_misspelt(key: str):
    report = deepcopy(KINDS["several backdoors"])
    value = report.pop(key)
    assert not fits(report, "report")
    assert not fits(report | {f"{key}s": value}, "report")
    assert not fits(report | {key: value, f"{key}s": value}, "report")


WRONG = {
    "a verdict of another kind": {"verdict": "harmless"},
    "a score above one": {"score": 1.5},
    "a clean one that accuses": {"verdict": "clean"},
    "an accusation without a backdoor": {"backdoors": []},
    "an accusation without a trigger": {"trigger": None},
    "another version": {"schema": "amber-report/2"},
    "a digest that is none": {"read": {"files": [{"path": "x", "bytes": 1, "sha256": "x"}], "beside": []}},
    "a commit that is a branch": {"tool": {"name": "AMBER", "version": "1", "commit": "main"}},
    "a seed that is no number": {"seed": "42"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_contradicts_itself_is_no_report(wrong: str):
    assert fits(whole_report(), "report")
    assert not fits(whole_report() | WRONG[wrong], "report")


def test_an_encoder_that_was_not_judged_has_an_error_and_no_verdict():
    assert fits(unjudged(), "report")
    assert not fits(unjudged() | {"verdict": "clean"}, "report")
    assert not fits({name: value for name, value in unjudged().items() if name != "error"}, "report")


# ---------------------------------------------------------------------------------------------------------- summaries
def summary_of(reports: list[dict]) -> dict:
    return summarise(reports, plan([f"m{n}" for n in range(len(reports))], ROOT, expand=lambda model: [model]))


def test_the_summary_of_all_kinds_keeps_to_its_schema_and_says_how_each_report_came_about():
    summary = summary_of(list(KINDS.values()))
    assert fits(summary, "summary")
    assert summary["tool"]["version"] == KINDS["clean"]["tool"]["version"]
    (row,) = summary_of([KINDS["of the hub"]])["models"]
    of_the_hub = KINDS["of the hub"]
    assert (row["commit"], row["seed"], row["command"]) == (of_the_hub["model"]["commit"], 42, of_the_hub["command"])
    for key in summary:
        assert not fits({name: value for name, value in summary.items() if name != key}, "summary")
    for key in row:
        short = {name: value for name, value in row.items() if name != key}
        assert not fits(summary | {"models": [short]}, "summary")
    assert not fits(summary | {"counts": {"harmless": 1}}, "summary")


# -------------------------------------------------------------------------------------------------------------- pages
@pytest.mark.parametrize(("heading", "properties"), [
    ("report.json", JUDGED["properties"]), ("summary.json", SCHEMAS["summary"]["properties"]),
])  # fmt: skip
def test_the_page_lists_every_key_in_the_words_of_the_schema(heading: str, properties: dict):
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    table = re.search(rf"^## {re.escape(heading)}\n.*?((?:^\|[^\n]*\n)+)", page, re.MULTILINE | re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()[2:]]
    assert {key.strip("`"): said for key, said in rows} == {key: one["description"] for key, one in properties.items()}


def test_the_page_on_repairs_has_every_key_in_the_words_of_its_schema():
    page = (ROOT / "docs" / "repair.md").read_text(encoding="utf-8").partition("## Other ways")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert {key: one["description"] for key, one in SCHEMAS["repair"]["properties"].items()}.items() <= rows.items()
