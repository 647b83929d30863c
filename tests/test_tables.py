"""Tables of README and docs: they say what the committed JSON holds, and the check can fail."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from Analysis import markdown, repairs, tables
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.repair.settings import RepairConfig


def test_every_table_says_what_the_committed_results_hold():
    assert tables.main(["--check"]) == 0


def test_every_table_is_on_a_page_and_every_committed_benchmark_is_in_a_table(monkeypatch):
    shown = {name for page in tables.pages() for _, name, *_ in tables.MARKED.findall(page.read_text(encoding="utf-8"))}
    assert shown == tables.TABLES.keys()
    read, seen = tables.read, set()
    monkeypatch.setattr(tables, "read", lambda file: seen.add(file) or read(file))
    for make in tables.TABLES.values():
        make()
    assert set(tables.BENCHMARK.glob("*.json")) <= seen


def test_the_tables_on_strings_are_printed_by_one_command():
    command = [sys.executable, "Analysis/benchmark.py", "--config", "configs/triggers.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("triggers", "firing", "left_out", "strings_by_model"):
        assert tables.TABLES[name]() in done.stdout


@pytest.fixture
def page(tmp_path: Path, monkeypatch) -> Path:
    """A README with one table, in a repository of its own."""
    for name in ("acceptance", "dev_clip_some"):
        (tmp_path / f"{name}.json").write_bytes((tables.BENCHMARK / f"{name}.json").read_bytes())
    monkeypatch.setattr(tables, "BENCHMARK", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- table: acceptance -->\n<!-- end of table -->\nafter\n", encoding="utf-8")
    return file


def test_a_page_is_written_anew_and_only_between_the_markers(page: Path):
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("<!-- end of table -->\nafter\n")
    assert "| planted, text-on-text | 4 of 4 (51 to 100 %) | 4 | 0 | 0 |" in text


@pytest.mark.parametrize("changed", ["the page", "the results"])
def test_the_check_fails_when_page_or_results_change(page: Path, capsys, changed: str):
    tables.main([])
    if changed == "the page":
        page.write_text(page.read_text(encoding="utf-8").replace("4 of 4", "5 of 5"), encoding="utf-8")
    else:
        file = tables.BENCHMARK / "acceptance.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        found["models"][0] |= {"verdict": "inconclusive", "right": False}
        file.write_text(json.dumps(found), encoding="utf-8")
    capsys.readouterr()
    assert tables.main(["--check"]) == 1
    assert "README.md differs" in capsys.readouterr().out.replace(":", "")


def test_a_damaged_marker_and_an_unknown_table_are_refused(page: Path):
    with pytest.raises(InputError, match="marker is damaged"):
        tables.renewed("<!-- table: acceptance -->\nno end\n")
    with pytest.raises(InputError, match="there is no table nothing"):
        tables.renewed("<!-- table: nothing -->\n<!-- end of table -->\n")
    page.write_text("<!-- table: nothing -->\n<!-- end of table -->\n", encoding="utf-8")
    assert tables.main([]) == 2


def test_a_long_command_is_broken_between_words_and_stays_one_command():
    words = [*(f"model{i}" for i in range(30)), *(f'"model {i}"' for i in range(30))]
    block = tables.command(f"python script.py --models {' '.join(words)}")
    assert max(map(len, block.splitlines())) <= markdown.WIDTH + 8
    assert re.sub(r" \\\n\s+", " ", block) == f"```\npython script.py --models {' '.join(words)}\n```"
    typed = shlex.split(block.strip("`").replace("\\\n", ""))  # as a shell reads it
    assert typed[3:] == [word.strip('"') for word in words]


def test_rates_have_wilsons_interval():
    assert tables.rate(4, 4) == "4 of 4 (51 to 100 %)"  # 1 / (1 + 1.96^2 / 4) = 0.51
    assert tables.rate(0, 4) == "0 of 4 (0 to 49 %)"


def test_the_page_on_misses_follows_the_results(tmp_path: Path, monkeypatch):
    """One model that strings miss, and the page is another."""
    text = (ROOT / "docs" / "misses.md").read_text(encoding="utf-8")
    assert tables.renewed(text) == text
    for file in tables.BENCHMARK.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(tables, "BENCHMARK", tmp_path)
    found = json.loads((tmp_path / "triggers.json").read_text(encoding="utf-8"))
    missed = next(row for row in found["models"] if row["name"] == "hidden")
    missed |= {"verdict": "clean", "right": False}
    (tmp_path / "triggers.json").write_text(json.dumps(found), encoding="utf-8")
    new = tables.renewed(text)
    assert "| assimilation held at that of clean prompts | 0 of 1 (0 to 79 %) |" in new
    assert "| `hidden` | CLIP | planted, text-on-text | strings |" in new


def test_every_added_twist_of_an_attack_has_a_row_or_is_called_never_judged():
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in tables.by_attack().splitlines()}
    assert rows.keys() >= {*tables.OPTIONS.values(), *tables.FURTHER.values(), *tables.ATTACKS.values()}
    assert "never judged" in rows["a clean fine-tuning afterwards"]
    assert "| `text_on_text_invisible` | trigger: an invisible character |" in tables.never_judged()


@pytest.mark.parametrize(
    ("repaired", "base", "told", "counted"),
    [(28, 18, "1.6", [True]), (14, 50, "0.3", [False]), (None, 56, "> 1.0", [True]), (20, None, "< 0.4", [False]),
     (50, None, "< 0.9", []), (None, None, "neither in 60", [])],
)  # fmt: skip
def test_of_what_was_not_relearned_only_a_bound_is_told(repaired: int | None, base: int | None, told: str, counted: list[bool]):
    row = {"relearning": {"most": 60, "repaired": repaired, "base": base}}
    assert tables.told_of_relearning(row) == told
    assert tables.no_faster([row]) == counted


def test_a_repair_with_earlier_settings_is_shown_and_counts_in_nothing(monkeypatch: pytest.MonkeyPatch):
    row = next(row for row in tables.ours(further=False) if row.get("skill", {}).get("own data"))
    gone, stays = ({"suspect": 1.0, "repaired": share, "base": 0.0} for share in (0.0, 1.0))
    now = {**row, "model": "new", "settings": asdict(RepairConfig()), "success": gone}
    old = {**now, "model": "old", "settings": {**now["settings"], "steps": 1}, "success": stays}
    monkeypatch.setattr(tables, "repair_rows", lambda: [now, old, {**now, "further": True}, {**old, "further": True}])
    assert "| `new` |" in tables.repairs()
    assert "| `old` (earlier settings) |" in tables.repairs()
    assert "gone in 1 of 1," in tables.repairs_line()
    assert "| true trigger at most 0.05 above the base | 90 % | 1 of 1 " in (short := tables.repairs_in_short())
    assert "| of the others |  | 1 of 1 " in short
    assert f"| of {tables.FAMILIES[row['family']]} |  | 1 of 1 " in short
    assert "chosen on" not in short
    assert "| the same, further attacks too | 24 | 2 |" in short
    monkeypatch.setattr(tables, "repair_rows", lambda: [{**now, "skill": {"base data": now["skill"]["base data"]}}])
    assert "fine-tunes" not in tables.repairs_line()
    assert "kept" not in (short := tables.repairs_in_short())
    assert "gained 5 points on its own data | half | 0 |" in short
    monkeypatch.setattr(tables, "repair_rows", lambda: [old])
    assert tables.repairs_in_short().startswith("No model has been repaired")
    assert tables.repairs_line().endswith("have not been measured.")
    monkeypatch.setattr(tables, "repair_rows", lambda: [{**now, "skill": {}}])
    assert "retrieval lost" not in tables.repairs_in_short()


def test_a_repair_with_earlier_settings_is_made_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repairs, "RESULTS", tmp_path)
    now = asdict(RepairConfig())
    for model, settings in (("now", {"settings": now}), ("old", {"settings": {**now, "steps": 1}}), ("not_found", {})):
        for method in ("unlearn", "alone", "project"):
            (tmp_path / f"{model}_{method}.json").write_text(json.dumps(settings))
    for method in ("unlearn", "alone"):
        there = [model for model in ("now", "old", "not_found", "missing") if repairs.is_there(model, method)]
        assert there == ["now", "not_found"]
    assert repairs.is_there("old", "project")  # it does not have these settings


def test_a_share_below_a_bar_is_never_told_as_the_bar():
    assert [tables.whole(share) for share in (0.7999, 0.8, 0.29, 1.0)] == ["79 %", "80 %", "29 %", "100 %"]


def test_more_than_a_fine_tune_gained_makes_up_for_no_other():
    rows = [{"skill": {"own data": {"base": 0.5, "suspect": 0.7, "repaired": after}}} for after in (0.9, 0.6)]
    assert tables.gain_kept(rows) == pytest.approx(0.75)
    assert tables.gain_kept([{"skill": {"own data": {"base": 0.5, "suspect": 0.54, "repaired": 0.9}}}]) is None
