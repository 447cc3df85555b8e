"""Shell completion of overrides: groups, keys, their values, and the shipped grids."""

import os

import typer

from sae_cli.config.groups import GROUPS, choices, grid_files
from sae_cli.config.keys import by_name
from sae_cli.errors import UserError

DATA = ("eval", "model", "text", "source", "cache", "experiment")
"""Groups and sections whose overrides follow the paths of `sae eval` and `sae dashboard`."""


def complete(context: typer.Context, incomplete: str) -> list[str]:
    """Return the completions of an unfinished override; none where a path is meant, which shells complete themselves.

    Where one name is left its values come with it, since a shell puts a space behind a single candidate.
    """
    word, kept = _typed(incomplete)
    key, equals, start = word.partition("=")
    if equals:
        begun = f"{key}={start[: start.rfind(',') + 1]}"
        found = [begun + value for value in _values(key, context)]
    else:
        names = [name for name in (*GROUPS, *by_name()) if name.startswith(word)]
        if context.info_name in ("eval", "dashboard"):
            names = [name for name in names if word and name.split(".")[0] in DATA]
        found = [f"{name}=" for name in names]
        if context.info_name == "sweep":
            found += [name for name in grid_files() if name.startswith(word)]
        if len(names) == len(found) == 1:
            values = _values(names[0], context)
            hint = values or [by_name()[names[0]].type.split("[")[0].upper()]
            found = [found[0] + value for value in (hint if len(hint) > 1 else ["", *hint])]
    return [one[len(kept) :] for one in found if one.startswith(word)]


def _typed(incomplete: str) -> tuple[str, str]:
    """Return the word before the cursor and which part of it stays: bash breaks words at `=` and `:`."""
    words = os.environ.get("COMP_WORDS", "").split("\n")[: int(os.environ.get("COMP_CWORD", 0)) + 1]
    if len(words) < 2:
        return incomplete, ""
    first = last = len(words) - 1
    while first > 1 and not {words[first], words[first - 1]}.isdisjoint("=:"):
        first -= 1
    kept = "".join(words[first : last + (words[last] in "=:")])
    return "".join(words[first:]), kept


def _values(key: str, context: typer.Context) -> list[str]:
    """Return the values of a group or a key that has a list of them, else its default, if there is one to type."""
    if key in GROUPS:
        try:
            return list(choices(key, context.params.get("config_dir")))
        except UserError:  # --config-dir is not there
            return list(choices(key))
    from sae_cli.config.check import ALLOWED

    if key in ALLOWED:
        return list(ALLOWED[key])
    known = by_name().get(key)
    if known and known.type == "bool":
        return ["true", "false"]
    return [known.default] if known and known.default not in (None, "", '""', "[]", "null") else []
