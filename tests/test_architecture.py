"""Rooms and arrows: who imports whom, read from the code, is what docs/architecture.md says, and goes one way."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOMES = ("Utils", "Backdoor_Attack", "Analysis")
FILES = {"main.py": (ROOT / "main.py").read_text(encoding="utf-8")} | {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for home in HOMES
    for file in sorted((ROOT / home).rglob("*.py"))
}
"""Every module of ours, by its path, but for the tests."""


def room(file: str) -> str:
    """The room a module stands in; commands of Utils share one."""
    parts = file.split("/")
    if parts[0] == "Utils":
        return parts[1] if len(parts) > 2 else "commands"
    return parts[0]


def is_command(file: str, files: dict[str, str]) -> bool:
    """Whether a module has a command line; main.py may be imported all the same: it is the method."""
    return file != "main.py" and 'if __name__ == "__main__"' in files[file]


def imported(file: str, files: dict[str, str]) -> set[str]:
    """The modules of ours that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(files[file])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {path for name in names if (path := f"{name.replace('.', '/')}.py") in files} - {file}


def arrows(files: dict[str, str]) -> dict[str, set[str]]:
    """Room -> the rooms that it imports."""
    found = {room(file): set() for file in files}
    for file in files:
        found[room(file)] |= {room(other) for other in imported(file, files)} - {room(file)}
    return found


def test_rooms_import_each_other_one_way():
    tuple(TopologicalSorter(arrows(FILES)).static_order())


def test_libraries_import_neither_main_nor_attacks_nor_commands():
    above = {"main.py", "commands", "Backdoor_Attack", "Analysis"}
    wrong = {name: rooms & above for name, rooms in arrows(FILES).items() if name not in above and rooms & above}
    assert not wrong


def test_no_command_is_imported():
    commands = {file for file in FILES if is_command(file, FILES)}
    assert not {file: wrong for file in FILES if (wrong := imported(file, FILES) & commands)}


def test_the_page_lists_every_room_with_its_arrows():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"\| room \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text)[1]
    said = {}
    for line in table.splitlines():
        name, _, imports = (cell.strip() for cell in line.strip("|").split("|"))
        said[name.strip("`")] = {other for other in imports.split(", ") if other}
    assert said == arrows(FILES)
    drawing = text[text.index("## Rooms") : text.index("| room |")]
    assert [name for name in said if name != "commands" and name not in drawing] == []


def test_the_checks_can_fail():
    wrong = FILES | {"Utils/basics/files.py": "from Utils.report import page\n"}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(arrows(wrong)).static_order())
    assert "report" in arrows(wrong)["basics"]
    upwards = FILES | {"Utils/making/coco.py": "def late():\n    import main\n"}
    assert "main.py" in arrows(upwards)["making"]
    assert imported("Analysis/lab.py", FILES | {"Analysis/lab.py": "from Utils import build_zoo\n"}) == {"Utils/build_zoo.py"}
    assert is_command("Utils/build_zoo.py", FILES)


def test_every_public_module_begins_with_what_it_answers():
    silent = [file for file, text in FILES.items() if text and not (ast.get_docstring(ast.parse(text)) or "").strip()]
    assert not silent
