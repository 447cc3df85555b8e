"""From Hydra groups and overrides to one typed, checked Config."""

import itertools
import math
import re
from typing import IO, Any, cast

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_cli.config.check import check, value_problems
from sae_cli.config.convert import check_references, from_dict, one_line, problem_with, refuse_aliases, unknown_key
from sae_cli.config.groups import GROUPS, choices, shipped_folder, user_folder
from sae_cli.config.schema import Config
from sae_cli.errors import UserError, suggest

VERSION_BASE = "1.3"

# config.yaml begins with `schema`, so Hydra knows every key and its type, and overrides need no `+`.
ConfigStore.instance().store("schema", Config)
# Hydra looks for the primary config before it reads hydra.searchpath; a user's folder has none of its own, as a rule.
ConfigStore.instance().store("shipped", yaml.safe_load((shipped_folder() / "config.yaml").read_text()))

MOST_POINTS = 100_000
"""Points of one grid: more are a mistake, and would fill the memory."""


def compose(overrides: list[str], config_dir: str | None = None) -> Config:
    """Return the Config of Hydra overrides such as `["sae=prolu_ste", "train.lr=3e-4"]`.

    config_dir: the user's own folder of groups, searched before the shipped one.
    UserError lists all problems of the overrides and of the resulting values in one line.
    """
    problems = {word: problem for word in overrides if (problem := _problem(word, config_dir))}
    try:
        config = from_dict(_compose([word for word in overrides if word not in problems], config_dir))
    except UserError as error:
        raise UserError("; ".join([*problems.values(), str(error)])) from error
    if problems:
        # Combinations are not judged here: they may only look wrong because an override was left out.
        raise UserError("; ".join([*problems.values(), *value_problems(config)]))
    check(config)
    return config


def expand(overrides: list[str], config_dir: str | None = None) -> list[list[str]]:
    """Return the grid of overrides in Hydra's grammar: `["a=1,2", "b=3"]` gives `[["a=1", "b=3"], ["a=2", "b=3"]]`.

    Choices (`1,2`, `choice(..)`), `range(..)` and `glob(..)` over a group are expanded; the last key varies fastest.
    Raises UserError for a grid without points, or with more than MOST_POINTS.
    """
    axes = [_values(word, config_dir) for word in overrides]
    for word, values in zip(overrides, axes, strict=True):
        if not values:
            raise UserError(f"{word}: no value; a range needs a stop beyond its start, a glob a choice that it matches")
    refuse_too_many(math.prod(map(len, axes)), "the grid")
    return [list(point) for point in itertools.product(*axes)]


def refuse_too_many(points: int, place: str) -> None:
    """Raise UserError if a grid would have more than MOST_POINTS."""
    if points > MOST_POINTS:
        raise UserError(f"{place}: more than {MOST_POINTS} points; give fewer values")


def _values(word: str, config_dir: str | None) -> list[str]:
    override = _parse(word)
    if not override.is_sweep_override():
        return [word]
    if override.is_interval_sweep():
        raise UserError(f"{word}: an interval has no grid; write range(start,stop,step) or the values")
    value: Any = override.value()
    if isinstance(value, Glob):
        values = value.filter(list(choices(override.key_or_group, config_dir)))
    else:
        if isinstance(value, RangeSweep) and not _is_countable(value):
            raise UserError(f"{word}: a range needs a finite start, stop and step, and a step that is not 0")
        values = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    return [f"{override.get_key_element()}={value}" for value in values]


def _is_countable(given: RangeSweep) -> bool:
    numbers = (given.start, given.stop, given.step)  # an integer too large for a float is finite
    return all(isinstance(x, int) or (x is not None and math.isfinite(x)) for x in numbers) and given.step != 0


def _parse(word: str) -> Override:
    if "=" not in word and not word.startswith("~"):
        raise UserError(f"{word}: overrides are written key=value")
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        reason = str(error).splitlines()[0].split(" expecting ")[0]
        hint = "quote special characters, as in \"key='a, b'\""
        raise UserError(f"{word}: not a valid override ({reason}); {hint}") from error


def _problem(word: str, config_dir: str | None) -> str:
    """Return what is wrong with an override, or an empty string."""
    try:
        override = _parse(word)
    except UserError as error:
        return str(error)
    key, value = override.key_or_group, override.value()
    if override.package is not None:
        return f"{override.input_line}: packages (@) are not supported"
    if key.startswith(("hydra.", "hydra/")):
        return f"{key}: settings of Hydra go with `sae sweep --launcher`"
    if override.is_sweep_override():
        values = override.get_value_string()
        if not problem_with(key, []):
            return f"{key}={values}: a list is written {key}=[{values}]"
        return f"{key}={values} has several values: use `sae sweep`"
    if key in GROUPS:
        options = choices(key, config_dir)
        if value is None or (isinstance(value, str) and (override.is_delete() or value in options)):
            return ""
        return f"{key}={value}: no such choice.{suggest(str(value), options)} There are: {', '.join(options)}"
    if override.is_delete():
        return f"~{key}: only groups can be taken out"
    if isinstance(value, str) and "${" in value:
        return unknown_key(key) if problem_with(key, "???") else ""
    return problem_with(key, value)


def _compose(overrides: list[str], config_dir: str | None) -> dict[str, Any]:
    # The user's folder is the primary one, so that a copied and edited file wins over the shipped one.
    folder = user_folder(config_dir) if config_dir else shipped_folder()
    primary = "config" if (folder / "config.yaml").exists() else "shipped"
    outer, load = GlobalHydra.instance().hydra, OmegaConf.load
    GlobalHydra.instance().clear()

    def load_plain(file: IO[str]) -> Any:  # Hydra's sources hand over what they have opened
        try:
            refuse_aliases(file.read())
        except yaml.YAMLError:
            pass  # `load` says it with the file's name
        except ValueError as error:
            raise UserError(f"{getattr(file, 'name', folder)}: {error}") from error
        file.seek(0)
        return load(file)

    try:
        OmegaConf.load = load_plain  # type: ignore[method-assign, assignment]
        with hydra.initialize_config_dir(str(folder), version_base=VERSION_BASE):
            composed = hydra.compose(primary, [*overrides, "hydra.searchpath=[pkg://sae_cli.conf]"])
            check_references(OmegaConf.to_container(composed))
            return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except UserError:
        raise
    except Exception as error:  # what Hydra raises for a file that is not sound shares no base class
        reason = "" if isinstance(error, AssertionError) else _reason(error)  # Hydra's own, of a group without a name
        unknown = f"{folder}: a file that was chosen has a defaults list that Hydra cannot read"
        raise UserError(reason or unknown) from error
    finally:
        # A job of a Hydra application may compose too, and its own state must survive.
        GlobalHydra.instance().hydra, OmegaConf.load = outer, load  # type: ignore[method-assign]


def _reason(error: BaseException) -> str:
    """Return the innermost reason on one line, with the file and the key if they are known."""
    place = re.search(r"In '([^']+)'", str(error))
    where = f"{place[1]}.yaml: " if place else ""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            if "not in" in str(link):
                return where + unknown_key(str(link.full_key))
            return f"{where}{link.full_key}: {str(link).splitlines()[0]}"
    return where + one_line(chain[-1] if isinstance(chain[-1], yaml.YAMLError) else error)
