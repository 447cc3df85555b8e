"""A Config to and from plain dictionaries and YAML, strictly."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_cli.config.groups import GROUPS
from sae_cli.config.keys import by_name
from sae_cli.config.schema import Config
from sae_cli.errors import UserError, suggest

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader, in C where PyYAML has it: ten times faster on a sweep's configurations."""
LONGEST = 1 << 24
"""Characters of values that refer to one another: a few lines could stand for more than any memory holds."""
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain dictionaries."""
    return asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """Return the values by dotted key, such as `{"sae.latents": 1024}`."""
    return dict(_leaves(asdict(config)))


def to_yaml(config: Config) -> str:
    """Return the configuration as YAML in the order of the schema."""
    odd = re.search(r"[\x85\u2028\u2029\ufeff]", "".join(map(str, flat(config).values())))  # read as line ends
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=not odd)


def from_dict(data: dict[str, Any]) -> Config:
    """Return the Config of nested dictionaries; absent keys keep their defaults.

    UserError on unknown keys, wrong types and missing values, all of them in one line.
    """
    check_references(data)
    try:
        merged = OmegaConf.merge(_schema(), data)
        problems = [f"{key} is not set: {by_name()[key].text}" for key in sorted(OmegaConf.missing_keys(merged))]
    except (OmegaConfBaseException, ValueError, OverflowError):
        # The merge stops at the first problem; leaf by leaf all of them are found.
        problems = [problem for key, value in _leaves(data) if (problem := problem_with(key, value))]
        if not problems:
            raise
    if problems:
        raise UserError("; ".join(problems))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    if problems := [problem for key, value in flat(config).items() if (problem := _nested(key, value))]:
        raise UserError("; ".join(problems))
    return config


def _nested(key: str, value: Any) -> str:
    """Return why a list cannot be the value of `key`, "" if it can: OmegaConf takes lists of lists for any list."""
    inside = isinstance(value, list) and any(isinstance(one, list | dict) for one in value)
    return f"{key}={value} has a list inside: write {key}=[...] with its values alone" if inside else ""


def parse_yaml(text: str) -> Any:
    """Return what YAML says, by the safe loader. Raises yaml.YAMLError, ValueError or RecursionError."""
    refuse_aliases(text)
    return yaml.load(text, Loader=SAFE_LOADER)


def refuse_aliases(text: str) -> None:
    """Raise ValueError for YAML with aliases: a few lines can stand for more than any memory holds."""
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=SAFE_LOADER)):
        raise ValueError("aliases (*name) are not read: write the values out")


def check_references(data: Any) -> None:
    """Raise UserError for `${...}` that calls a function, such as one that reads the environment, or that explodes."""
    length, copies = 0, 1
    for key, value in _leaves(data):
        text = str(value)
        if re.search(r"\$\{.*:", text, re.DOTALL):
            raise UserError(f"{key}: ${{function:...}} is not run, which could tell of this machine; write the value")
        length += len(text)
        copies *= max(1, text.count("${"))  # at most so often is a value in another, through all the others
        if copies > 1 and copies * length > LONGEST:
            raise UserError(f"{key}: too many references (${{...}}) to values with references; write them out")


def load_config(path: Path) -> Config:
    """Return the Config of a run's config.yaml. UserError names the file."""
    try:
        data = parse_yaml(path.read_text())
        if not isinstance(data, dict):
            raise UserError("is not a mapping of sections")
        return from_dict(data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not a number that is one
        raise UserError(f"{path}: not valid YAML ({one_line(error)})") from error
    except UserError as error:
        newer = "; a newer sae-cli may have written it: pip install -U sae-cli" if "unknown key" in str(error) else ""
        raise UserError(f"{path}: {error}{newer}") from error


def load_flat(path: Path) -> dict[str, Any]:
    """Return `flat(load_config(path))`, at a tenth of the time for many files: an equal value is checked once."""
    try:
        given = dict(_leaves(parse_yaml(path.read_text())))
        values = _defaults() | {key: _typed(key, json.dumps(value)) for key, value in given.items()}
        if MISSING not in values.values():
            return values
    except Exception:
        pass  # load_config says what is wrong
    return flat(load_config(path))


def problem_with(key: str, value: Any) -> str:
    """Return why `key` cannot hold `value`: unknown key or wrong type; an empty string if it can."""
    if key not in by_name():
        return unknown_key(key)
    try:
        OmegaConf.update(_scratch(), key, value)
    except (OmegaConfBaseException, ValueError, OverflowError):  # the last: of a float with thousands of digits
        kind = by_name()[key].type.removesuffix(" | None")
        whole = kind == "int" and isinstance(value, float) and value.is_integer()
        wanted = KINDS.get(kind, f"a list, such as {key}=[0.25,0.5]")
        return f"{key}={value} is not {wanted}" + (f": write {key}={int(value)}" if whole else "")
    return _nested(key, value)


def unknown_key(key: str) -> str:
    """Return the line for a key that does not exist, with the nearest keys and groups."""
    names = list(by_name())
    if inside := [name for name in names if name.startswith(f"{key}.")]:
        return f"{key} is a section: set one of its keys, such as {inside[0]}"
    return f"unknown key {key}.{suggest(key, [*names, *GROUPS]) or ' `sae config keys` lists all keys'}"


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())


@cache
def _schema() -> Any:
    """Return the typed config with its defaults; merging copies it."""
    return OmegaConf.structured(Config)


@cache
def _scratch() -> Any:
    """Return a typed config to try values on; what it holds does not matter."""
    return OmegaConf.structured(Config)


@cache
def _typed(key: str, value: str) -> Any:
    """Return a JSON value as the field `key` holds it; any exception if it cannot."""
    if "${" in value or _nested(key, json.loads(value)):  # refers to other keys, or is none
        raise ValueError(value)
    OmegaConf.update(_scratch(), by_name()[key].name, json.loads(value))
    held = OmegaConf.select(_scratch(), key)
    return OmegaConf.to_object(held) if OmegaConf.is_config(held) else held


@cache
def _defaults() -> dict[str, Any]:
    return dict(_leaves(asdict(Config())))


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
