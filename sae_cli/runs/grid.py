"""Grid files that both `sae sweep FILE` and `wandb sweep FILE` accept."""

import itertools
import math
from pathlib import Path
from typing import Any

import yaml

from sae_cli.config.compose import refuse_too_many
from sae_cli.config.convert import parse_yaml
from sae_cli.config.groups import grid_files
from sae_cli.errors import UserError, suggest

KNOWN = ("program", "method", "parameters", "command", "name", "description", "project", "entity", "metric")
"""Top-level keys of a W&B sweep file that do not change which points are run."""


def find_grid_file(word: str) -> Path:
    """Return the grid file: a path, or the name of one that ships with the package (`sweeps/` before it or not)."""
    path = Path(word)
    if path.is_file():
        return path
    shipped = grid_files()
    name = path.name.removesuffix(".yaml")
    if str(path.parent) in (".", "sweeps") and name in shipped:
        return shipped[name]
    raise UserError(f"{word}: no such grid file; shipped ones: {', '.join(shipped)}.{suggest(path.stem, shipped)}")


def read_grid_file(path: Path) -> list[list[str]]:
    """Return the overrides of each point of a W&B grid file.

    Values become `key=value` as W&B's agent writes them, so both runners make the same points.
    Raises UserError, naming file and key, on anything that a grid does not have.
    """
    try:
        data = parse_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as problem:  # ValueError: a date that is none
        raise UserError(f"{path}: not valid YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys `method: grid` and `parameters:`")
    for key in data:
        if key not in KNOWN:
            raise UserError(f"{path}: {key}: not a key of a grid file.{suggest(str(key), KNOWN)}")
    if data.get("method") != "grid":
        raise UserError(f"{path}: method: only `grid` is run by sae sweep, got {data.get('method')!r}")
    parameters = data.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{path}: parameters: expected `key: {{values: [...]}}` entries")
    axes = [_words(f"{path}: parameters.{key}", key, entry) for key, entry in parameters.items()]
    refuse_too_many(math.prod(map(len, axes)), f"{path}: parameters")
    return [list(point) for point in itertools.product(*axes)]


def join_grids(outer: list[list[str]], inner: list[list[str]]) -> list[list[str]]:
    """Return every pair of points; a key of `inner` replaces the same key of `outer`."""
    points = []
    for left, right in itertools.product(outer, inner):
        given = {key_of(word) for word in right}
        point = [word for word in left if key_of(word) not in given] + right
        if point not in points:
            points.append(point)
    return points


def key_of(override: str) -> str:
    """Return the key of a Hydra override."""
    return override.lstrip("+~").partition("=")[0]


def _words(place: str, key: str, entry: Any) -> list[str]:
    """Return the overrides of one entry of `parameters`."""
    if not isinstance(entry, dict) or list(entry) not in (["value"], ["values"]):
        raise UserError(f"{place}: expected `values: [...]` or `value: ...`, nothing else")
    values = entry.get("values", [entry.get("value")])
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}.values: expected a list with at least one value")
    if any(isinstance(value, dict) for value in values):
        raise UserError(f"{place}: a value must be a number, a word or a list; nest with dots")
    return [f"{key}={'null' if value is None else value}" for value in values]
