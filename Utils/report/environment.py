"""Flags from the environment: AMBER_SEED is --seed, for every flag of a scan that a parser has.  A flag beats its variable."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

PREFIX = "AMBER_"
SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
"""What the variable of a flag without a value may say."""
BY_HAND = ("--doctor", "--dry-run", "--try", "--repair", "--force")
"""Flags that scan nothing, or that write encoders."""
_NOT_GIVEN = object()


def variables_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Variable -> the flag that it stands for.

    What scans nothing has none, as a variable that somebody forgot would let every encoder pass; nor has what replaces folders.
    """
    flags = [action for action in parser._actions if action.option_strings and action.default is not argparse.SUPPRESS]
    flags = [action for action in flags if flag_of(action) not in BY_HAND]
    return {PREFIX + flag_of(action)[2:].replace("-", "_").upper(): action for action in flags}


def flag_of(action: argparse.Action) -> str:
    """The name of a flag as it is typed in full."""
    return next(name for name in action.option_strings if name.startswith("--"))


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """What the user wants: by flags, else by variables, else as the parser has it.  An empty variable is none.

    `variables` of what comes back says which flags came from which variables.  A value that the flag would not take and a
    variable that is none end as a wrong flag does.
    """
    defaults = {action.dest: action.default for action in parser._actions if action.default is not argparse.SUPPRESS}
    typed = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, _NOT_GIVEN))))
    typed = {name: value for name, value in typed.items() if value is not _NOT_GIVEN}
    known, said = variables_of(parser), {}
    for name in sorted(name for name, text in environment.items() if name.startswith(PREFIX) and text):
        if name not in known:
            near = get_close_matches(name, known, 1)
            parser.error(f"variable {name}: no flag is called so; {f'write {near[0]}' if near else 'rename'} or unset it")
        said[known[name].dest] = (name, _value(parser, name, known[name], environment[name]))
    said = {dest: one for dest, one in said.items() if dest not in typed}
    for group in parser._mutually_exclusive_groups:
        inside = [action.dest for action in group._group_actions]
        names = [said[dest][0] for dest in inside if dest in said]
        if any(dest in typed for dest in inside):
            said = {dest: one for dest, one in said.items() if dest not in inside}
        elif len(names) > 1:
            parser.error(f"variable {names[1]}: not allowed with variable {names[0]}")
    flags = {flag_of(known[name]): name for name, _ in said.values()}
    return argparse.Namespace(**defaults | {dest: value for dest, (_, value) in said.items()} | typed, variables=flags)


def _value(parser: argparse.ArgumentParser, name: str, action: argparse.Action, text: str) -> Any:
    """A variable's text as its flag reads it."""
    if action.nargs == 0:
        if text.strip().lower() not in SWITCH:
            parser.error(f"variable {name}: {text!r} is neither 1 nor 0")
        return SWITCH[text.strip().lower()]
    parser.exit_on_error = False
    try:
        return getattr(parser.parse_args([f"{flag_of(action)}={text}"]), action.dest)
    except argparse.ArgumentError as error:
        parser.error(f"variable {name}: {error.message}")
    finally:
        parser.exit_on_error = True


def as_given(sentence: str, args: argparse.Namespace) -> str:
    """A sentence about flags or settings of `args`, with the names of the variables that they came from."""
    sentence = re.sub(r"--[a-z][a-z-]*", lambda flag: args.variables.get(flag[0], flag[0]), sentence)
    if not sentence.startswith(f"{args.config}: "):
        return sentence
    words = sentence.replace(": ", "_")  # a setting within another is `outer: name` there
    settings = {name: flag[2:].replace("-", "_") for flag, name in args.variables.items()}
    meant = [name for name, setting in settings.items() if re.search(rf"(?<![a-z]){setting}(?![a-z])", words)]
    return f"{sentence.removesuffix('.')} ({' and '.join(meant)})." if meant else sentence
