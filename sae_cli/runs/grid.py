"""Grid files that both `sae sweep FILE` and `wandb sweep FILE` accept."""

import itertools
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sae_cli.errors import UserError, suggest

KNOWN = ("program", "method", "parameters", "command", "name", "description", "project", "entity", "metric")
"""Top-level keys of a W&B sweep file that do not change which points are run."""


def find_grid_file(word: str) -> Path:
    """Return the grid file: a path, or the name of one that ships with the package (`sweeps/` before it or not)."""
    path = Path(word)
    if path.is_file():
        return path
    shipped = {entry.name: entry for entry in resources.files("sae_cli.sweeps").iterdir() if entry.name[-5:] == ".yaml"}
    name = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    if str(path.parent) in (".", "sweeps") and name in shipped:
        return Path(str(shipped[name]))
    names = [entry[:-5] for entry in sorted(shipped)]
    raise UserError(f"{word}: no such grid file; shipped ones: {', '.join(names)}.{suggest(path.stem, names)}")


def read_grid_file(path: Path) -> list[list[str]]:
    """Return the overrides of each point of a W&B grid file.

    Values become `key=value` as W&B's agent writes them, so both runners make the same points.
    Raises UserError, naming file and key, on anything that a grid does not have.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from None
    except yaml.YAMLError as problem:
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
    axes = [
        [f"{key}={_word(path, key, value)}" for value in _values(path, str(key), entry)]
        for key, entry in parameters.items()
    ]
    return [list(point) for point in itertools.product(*axes)]


def join_grids(outer: list[list[str]], inner: list[list[str]]) -> list[list[str]]:
    """Return every pair of points; a key of `inner` replaces the same key of `outer`."""
    points = []
    for left in outer:
        for right in inner:
            given = {key_of(word) for word in right}
            point = [word for word in left if key_of(word) not in given] + right
            if point not in points:
                points.append(point)
    return points


def key_of(override: str) -> str:
    """Return the key of a Hydra override."""
    return override.lstrip("+~").partition("=")[0]


def _values(path: Path, key: str, entry: Any) -> list[Any]:
    if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in ("value", "values"):
        raise UserError(f"{path}: parameters.{key}: expected `values: [...]` or `value: ...`, nothing else")
    if "value" in entry:
        return [entry["value"]]
    if not isinstance(entry["values"], list) or not entry["values"]:
        raise UserError(f"{path}: parameters.{key}.values: expected a list with at least one value")
    return entry["values"]


def _word(path: Path, key: str, value: Any) -> str:
    if isinstance(value, dict):
        raise UserError(f"{path}: parameters.{key}: a value must be a number, a word or a list; nest with dots")
    return "null" if value is None else str(value)
