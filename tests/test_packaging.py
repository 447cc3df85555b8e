"""What is declared in pyproject.toml is what is there."""

import tomllib
from importlib.resources import files
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = DECLARED["project"], DECLARED["tool"]["setuptools"]


def pins(file: str) -> dict[str, str]:
    """Return the versions of a constraints file by normalised name."""
    lines = (ROOT / file).read_text().splitlines()
    named = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in named}


def test_every_package_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "sae_cli").glob("**/__init__.py")}
    inside = {".".join(folder.parts) for folder in folders}
    assert set(SETUPTOOLS["packages"]) == inside | {"sae_cli.conf", "sae_cli.sweeps"}


def test_every_data_file_is_installed() -> None:
    mapped = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}
    covered = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = mapped.get(package, ROOT.joinpath(*package.split(".")))
        covered |= {path for pattern in patterns for path in folder.glob(pattern)}
    data = {
        path
        for top in ("sae_cli", "conf", "sweeps")
        for path in (ROOT / top).glob("**/*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert data - covered == set()


def test_groups_and_grids_are_importable_packages() -> None:
    assert files("sae_cli.conf").joinpath("config.yaml").is_file()
    assert files("sae_cli.sweeps").joinpath("smoke.yaml").is_file()


def test_constraints_keep_to_what_is_declared() -> None:
    chosen = pins("constraints.txt")
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras]):
        name = canonicalize_name(wanted.name)
        assert name not in chosen or wanted.specifier.contains(chosen[name]), wanted


def test_the_lowest_set_is_what_is_declared() -> None:
    """torch has builds of its own for each machine, so it is not in the set."""
    lowest = pins("tests/lowest.txt")
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        (bound,) = (Version(one.version) for one in wanted.specifier if one.operator == ">=")
        found = lowest.get(canonicalize_name(wanted.name), str(bound) if wanted.name == "torch" else "0")
        # the first published version of what the bound names, such as 5.0.0 for 5
        assert wanted.specifier.contains(found), line
        assert Version(found).release[: len(bound.release)] == bound.release, f"{line}: {found}"


def test_pythons_are_those_that_are_allowed() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert named == ["3", "3.11", "3.12", "3.13"]
    assert all(allowed.contains(version) for version in named[1:])
    assert not allowed.contains("3.10")
    assert DECLARED["tool"]["ruff"]["target-version"] == "py311"
