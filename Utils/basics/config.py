"""How YAML and command-line values become frozen dataclasses: unknown keys and wrong types end in one sentence."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import reprlib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from Utils.basics.errors import InputError, first_line

T = TypeVar("T")


def load_config(kind: type[T], file: Path, **overrides: Any) -> T:
    """Read a YAML file into the dataclass `kind`; overrides that are None are not given.

    Those of a dataclass within have its field's name before theirs, as in `settings_of`.

    Raises:
        InputError: the file is missing, is no YAML mapping, or holds an unknown key or a value of the wrong type.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the config {file} cannot be read ({error.strerror}); give an existing YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"the config {file} is not valid YAML ({first_line(error)}).") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"the config {file} must be a list of `name: value` lines.")
    known = settings_of(kind)
    for name, value in overrides.items():
        if value is not None:
            *outer, last = known[name].path if name in known else (name,)
            where = values
            for key in outer:
                where[key] = inner if isinstance(inner := where.get(key), dict) else {}
                where = where[key]
            where[last] = value
    return from_values(kind, values, str(file))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value of a config."""

    path: tuple[str, ...]
    """Names of the fields that lead to it."""
    kind: type
    meaning: str
    """The sentence under it."""


def settings_of(kind: type) -> dict[str, Setting]:
    """Every value of a dataclass by a name of its own: those of a dataclass within have its field's name before theirs."""
    meaning, found = sentences(kind), {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            inner = settings_of(hint).items()
            found |= {f"{name}_{key}": dataclasses.replace(one, path=(name, *one.path)) for key, one in inner}
        else:
            found[name] = Setting((name,), hint, meaning.get(name, ""))
    return found


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values, as `asdict` gives them, by the names of `settings_of`."""
    found = {}
    for name, value in values.items():
        found |= {f"{name}_{key}": one for key, one in flat(value).items()} if isinstance(value, dict) else {name: value}
    return found


@functools.cache
def sentences(kind: type) -> dict[str, str]:
    """What each field of a dataclass means: the prose under it."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def from_values(kind: type[T], values: dict[str, Any], source: str) -> T:
    """A dataclass from plain values; names unknown keys and wrong types in one sentence."""
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(str(k) for k in set(values) - known):
        raise InputError(f"{source}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}.")
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _checked(value, hints[name], f"{source}: {name}") for name, value in values.items()})
    except TypeError as error:  # a key without default is missing
        raise InputError(f"{source}: {str(error).split('() ')[-1]}.") from None
    except ValueError as error:  # a __post_init__ refused a contradiction
        raise InputError(f"{source}: {error}.") from None
    except OverflowError:
        raise InputError(f"{source}: a number is too large; lower it.") from None


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value as its hint wants it: a plain type, a dataclass, or a tuple or dict of these."""
    wanted, inner = getattr(hint, "__origin__", hint), getattr(hint, "__args__", ())
    if dataclasses.is_dataclass(wanted) and type(value) is dict:
        return from_values(wanted, value, where)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is tuple and type(value) is list:
        return tuple(_checked(v, inner[0], f"{where}[{place}]") for place, v in enumerate(value))
    if wanted is dict and inner and type(value) is dict:
        return {_checked(k, inner[0], where): _checked(v, inner[1], f"{where}: {k}") for k, v in value.items()}
    if type(value) is not wanted:
        hint_text = " (write 8.0e-2, not 8e-2)" if wanted is float and isinstance(value, str) else ""
        lines = dataclasses.is_dataclass(wanted) or wanted is dict
        kind = "a list of `name: value` lines" if lines else "a list" if wanted is tuple else wanted.__name__
        raise InputError(f"{where} should be {kind}, got {reprlib.repr(value)[:200]}{hint_text}.")
    return value
