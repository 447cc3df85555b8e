"""What is declared in pyproject.toml is what is there."""

import tomllib
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


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
