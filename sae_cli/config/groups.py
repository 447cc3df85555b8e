"""The Hydra groups and their YAML files, shipped and the user's own; no Hydra needed to list them."""

import os
from importlib.resources import files
from pathlib import Path

from sae_cli.errors import UserError, suggest
from sae_cli.files import user_path

GROUPS = ("model", "text", "source", "sae", "sparsity", "orthogonality", "train", "tracker", "eval", "experiment")


def shipped_folder(package: str = "sae_cli.conf") -> Path:
    """Return the folder of the shipped YAML files, in a checkout as in an installation."""
    return Path(str(files(package)))


def user_folder(config_dir: str) -> Path:
    """Return the user's folder of groups, absolute. UserError if it is not a folder that holds a known group."""
    folder = Path(os.path.realpath(user_path(config_dir)))  # resolve() stops at links that lead in a circle
    if not folder.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")
    if not any((folder / group).is_dir() for group in GROUPS) and not (folder / "config.yaml").is_file():
        raise UserError(f"--config-dir {config_dir}: holds no group folder (one of {', '.join(GROUPS)})")
    return folder


def choices(group: str, config_dir: str | None = None) -> dict[str, Path]:
    """Return the files of a group, or of `sweeps`, by name; the user's own replace shipped ones of the same name."""
    if group == "sweeps":
        return grid_files()
    folders = [shipped_folder()] + ([user_folder(config_dir)] if config_dir else [])
    found = {path.stem: path for folder in folders for path in sorted((folder / group).glob("*.yaml"))}
    return dict(sorted(found.items()))


def find(name: str) -> Path:
    """Return the shipped file of `group/choice`, `sweeps/file` or `config`. UserError names the near ones."""
    group, _, choice = name.removesuffix(".yaml").partition("/")
    if (group, choice) == ("config", ""):
        return shipped_folder() / "config.yaml"
    options = choices(group) if group in (*GROUPS, "sweeps") else {}
    if choice in options:
        return options[choice]
    if options:
        names = [f"{group}/{option}" for option in options]
        raise UserError(f"{name}: no such file.{suggest(name, names)} There are: {', '.join(names)}")
    raise UserError(f"{name}: no such group.{suggest(group, [*GROUPS, 'sweeps'])} Write GROUP/NAME, such as sae/relu")


def grid_files() -> dict[str, Path]:
    """Return the shipped grid files by name."""
    return {path.stem: path for path in sorted(shipped_folder("sae_cli.sweeps").glob("*.yaml"))}


def header(path: Path) -> str:
    """Return the first comment of a YAML file that is not a Hydra directive: its one-line description."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
        if line and not line.startswith("#"):
            break
    return ""
