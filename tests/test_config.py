"""Configs: YAML and flags become a frozen dataclass, or one sentence says why not.

Contents
    values      defaults, file, overrides, conversions, configs inside configs
    refusals    every wrong file, key, type or contradiction is an InputError of one line
    contracts   the scan's and the attack's own contradictions
    the hash    what the score is fitted with, and nothing else
"""

from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from Backdoor_Attack.inject import Injection
from Backdoor_Attack.planting import PlantConfig
from Utils.basics.config import from_values, load_config, sentences
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.making.finetuning import FinetuneConfig
from Utils.making.testbed import TinyModels
from Utils.making.zoo import Cell, Family, Model, Split, Zoo
from Utils.scan.calibration import load_calibration
from Utils.scan.settings import SEARCH_SETTINGS, SETTINGS, ScanConfig, landscape_settings, search_settings
from Utils.scan.strings import TriggerConfig


@dataclass(frozen=True)
class Shape:
    name: str
    sides: int = 4
    length: float = 1.0
    filled: bool = False
    colours: tuple[str, ...] = ("red",)

    def __post_init__(self):
        if self.sides < 3:
            raise ValueError("a shape has at least three sides")


def load(folder: Path, text: str | bytes, **overrides) -> Shape:
    file = folder / "shape.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(Shape, file, **overrides)


def refusal(folder: Path, text: str | bytes, **overrides) -> str:
    """What the refusal says; it is one sentence that names the file."""
    with pytest.raises(InputError) as refused:
        load(folder, text, **overrides)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert "shape.yaml" in message
    return message


# ------------------------------------------------------------------------------------------------------------- values
def test_what_the_file_leaves_out_keeps_its_default(tmp_path: Path):
    assert load(tmp_path, "name: square\nlength: 2.5\n") == Shape("square", 4, 2.5)


def test_a_flag_beats_the_file_and_a_flag_not_given_does_not(tmp_path: Path):
    assert load(tmp_path, "name: a\nsides: 5\nlength: 3.0", sides=6, length=None) == Shape("a", 6, 3.0)


def test_an_empty_file_is_all_defaults(tmp_path: Path):
    assert load(tmp_path, "", name="square") == Shape("square")
    assert load(tmp_path, "# nothing but a comment\n", name="square") == Shape("square")


def test_a_whole_number_serves_as_a_real_one_and_a_list_as_a_tuple(tmp_path: Path):
    shape = load(tmp_path, "name: a\nlength: 2\ncolours: [red, blue]")
    assert (shape.length, type(shape.length), shape.colours) == (2.0, float, ("red", "blue"))


def test_a_config_cannot_be_changed(tmp_path: Path):
    with pytest.raises(FrozenInstanceError):
        load(tmp_path, "name: a").sides = 5


@dataclass(frozen=True)
class Drawing:
    paper: Shape
    shapes: tuple[Shape, ...] = ()
    named: dict[str, Shape] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)


def test_a_config_may_hold_others_alone_in_lists_and_by_name(tmp_path: Path):
    file = tmp_path / "drawing.yaml"
    file.write_text("paper: {name: a}\nshapes: [{name: b}, {name: c, sides: 5}]\nnamed: {x: {name: d}}\nsizes: {x: 2}")
    assert load_config(Drawing, file) == Drawing(Shape("a"), (Shape("b"), Shape("c", 5)), {"x": Shape("d")}, {"x": 2.0})


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("paper: a4", "paper should be a list of `name: value` lines, got 'a4'"), ("paper: {}", "paper: missing"),
        ("shapes: [{name: b, sizes: 1}]", "shapes[0]: unknown key 'sizes'"), ("shapes: {name: b}", "shapes should be a list"),
        ("named: {x: {name: 1}}", "named: x: name should be str, got 1"), ("named: {x: {name: a, sides: 2}}", "x: a shape"),
        ("named: {1: {name: a}}", "named should be str, got 1"), ("sizes: {x: big}", "sizes: x should be float, got 'big'"),
    ],
)  # fmt: skip
def test_what_is_wrong_inside_is_named_with_its_place(tmp_path: Path, line: str, wanted: str):
    file = tmp_path / "drawing.yaml"
    file.write_text(line if line.startswith("paper") else f"paper: {{name: a}}\n{line}")
    with pytest.raises(InputError) as refused:
        load_config(Drawing, file)
    assert wanted in str(refused.value)
    assert "\n" not in str(refused.value)


# ----------------------------------------------------------------------------------------------------------- refusals
def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path):
    message = refusal(tmp_path, "name: a\nsizes: 4")
    assert "unknown key 'sizes'" in message
    assert "colours, filled, length, name, sides" in message


def test_an_unknown_flag_is_an_unknown_key(tmp_path: Path):
    assert "unknown key 'sizes'" in refusal(tmp_path, "name: a", sizes=4)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("sides: four", "sides should be int, got 'four'"), ("sides: 4.0", "sides should be int, got 4.0"),
        ("sides: true", "sides should be int, got True"), ("sides:", "sides should be int, got None"),
        ("filled: 1", "filled should be bool, got 1"), ("length: [1]", "length should be float, got [1]"),
        ("length: true", "length should be float, got True"), ("name: 7", "name should be str, got 7"),
        ("colours: red", "colours should be a list, got 'red'"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, line: str, wanted: str):
    text = line if line.startswith("name") else f"name: a\n{line}"
    assert wanted in refusal(tmp_path, text)


def test_a_list_of_the_wrong_things_is_refused(tmp_path: Path):
    assert "colours" in refusal(tmp_path, "name: a\ncolours: [1, [2]]")


def test_a_number_that_yaml_reads_as_text_gets_a_hint(tmp_path: Path):
    message = refusal(tmp_path, "name: a\nlength: 8e-2")
    assert "length should be float, got '8e-2'" in message
    assert "write 8.0e-2, not 8e-2" in message
    assert load(tmp_path, "name: a\nlength: 8.0e-2").length == 0.08


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read .*\.$"):
        load_config(Shape, tmp_path / "nowhere.yaml")


def test_a_folder_is_no_config(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(Shape, tmp_path)


@pytest.mark.parametrize("text", ["name: [", "name: a\n\tsides: 4", "{1: 2", "? [a]\n: b", b"name: \xff", "name: 2001-99-99"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str | bytes):
    assert "not valid YAML" in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["- name", "square", "7", "[]"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str):
    assert "`name: value`" in refusal(tmp_path, text, name="square")


def test_a_missing_value_without_default_is_named(tmp_path: Path):
    assert "'name'" in refusal(tmp_path, "sides: 4")


def test_a_contradiction_is_refused_in_the_configs_own_words(tmp_path: Path):
    assert "a shape has at least three sides" in refusal(tmp_path, "name: a\nsides: 2")


def test_a_yaml_file_builds_no_python_objects(tmp_path: Path):
    canary = tmp_path / "canary"
    assert "not valid YAML" in refusal(tmp_path, f"name: !!python/object/apply:os.mkdir ['{canary.as_posix()}']")
    assert not canary.exists()


# ---------------------------------------------------------------------------------------------------------- contracts
@pytest.mark.parametrize(
    ("kind", "values", "word"),
    [
        (ScanConfig, {"procedure": "guessed"}, "procedure"), (ScanConfig, {"positions": "some"}, "positions"),
        (ScanConfig, {"init": "zero"}, "init"), (ScanConfig, {"k": 0}, "k should be at least 1"),
        (ScanConfig, {"steps": 0}, "steps"), (ScanConfig, {"batch": -1}, "batch"),
        (ScanConfig, {"prompts": 0}, "prompts"), (ScanConfig, {"fit_fraction": 1.0}, "either side"),
        (ScanConfig, {"fit_fraction": 0.0}, "either side"), (ScanConfig, {"prompts": 4, "fit_fraction": 0.9}, "either side"),
        (ScanConfig, {"landscape_points": 2}, "landscape_points"),
        (PlantConfig, {"trigger": "", "target": "a dog"}, "trigger is empty"),
        (PlantConfig, {"trigger": " ", "target": "a dog"}, "trigger is empty"),
        (PlantConfig, {"trigger": "o", "target": "a dog"}, "target prompt holds the trigger"),
        (PlantConfig, {"trigger": "x", "target": "a dog", "place": "middle"}, "start, end or random"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(kind: type, values: dict, word: str):
    with pytest.raises(InputError, match=word) as refused:
        from_values(kind, values, "a flag")
    assert "\n" not in str(refused.value)


def test_the_defaults_contradict_nothing():
    assert from_values(ScanConfig, {}, "defaults") == ScanConfig()


@pytest.mark.parametrize(
    "kind", [ScanConfig, TriggerConfig, PlantConfig, Injection, FinetuneConfig, Zoo, Split, Cell, Model, Family, TinyModels]
)
def test_every_setting_has_a_sentence(kind: type):
    assert set(sentences(kind)) == {each.name for each in fields(kind)}
    assert all(sentences(kind).values())


# ----------------------------------------------------------------------------------------- what the score is fitted with
def changed(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, dict):
        return {name: changed(one) for name, one in value.items()}
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1


def test_a_new_setting_leaves_the_calibration_alone():
    extended = make_dataclass("Extended", [("new_setting", int, 5)], bases=(ScanConfig,), frozen=True)
    assert search_settings(extended()) == search_settings(ScanConfig())
    assert search_settings(extended(new_setting=6)) == search_settings(ScanConfig())


@pytest.mark.parametrize("name", [each.name for each in fields(ScanConfig)])
def test_the_calibration_holds_for_every_setting_that_the_search_reads_and_for_no_other(name: str):
    values = asdict(ScanConfig())
    moved = search_settings(SimpleNamespace(**values | {name: changed(values[name])})) != search_settings(ScanConfig())
    assert moved == (name in SEARCH_SETTINGS)


def test_the_shipped_calibrations_are_of_the_shipped_settings():
    shipped = search_settings(load_config(ScanConfig, SETTINGS))
    entries = yaml.safe_load((ROOT / "configs" / "calibration.yaml").read_text(encoding="utf-8"))
    assert [entry["search"] for entry in entries] == [shipped] * 3
    for points, names in ((11, {"basin"}), (50, set())):
        cfg = load_config(ScanConfig, SETTINGS, landscape_points=points)
        for entry in entries:
            known = load_calibration(
                ROOT / cfg.calibration, entry["fingerprint"], search_settings(cfg), landscape_settings(cfg)
            )
            assert known.limits.keys() & {"basin"} == names


def test_a_value_that_has_no_end_is_refused_in_a_short_sentence(tmp_path: Path):
    laughs = ["procedure:", "  - &a [x,x,x,x,x,x,x,x,x,x]"]
    laughs += [f"  - &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(8)]
    for name, text in (("laughs", "\n".join(laughs)), ("large", "prompts: 0x" + "f" * 5000)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=name) as caught:
            load_config(ScanConfig, file)
        assert len(str(caught.value)) < 600
