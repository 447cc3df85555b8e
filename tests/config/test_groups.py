"""Shipped files are found and described."""

from pathlib import Path

import pytest

from sae_cli.config.groups import GROUPS, choices, find, grid_files, header, shipped_folder
from sae_cli.errors import UserError


def test_groups_are_the_folders_of_conf() -> None:
    assert sorted(GROUPS) == sorted({path.parent.name for path in shipped_folder().glob("*/*.yaml")})


def test_find_by_name() -> None:
    assert find("sae/prolu_ste") == choices("sae")["prolu_ste"] == find("sae/prolu_ste.yaml")
    assert find("config").name == "config.yaml"
    assert find("sweeps/smoke") == grid_files()["smoke"]
    with pytest.raises(UserError, match="Did you mean sae/relu"):
        find("sae/rellu")
    with pytest.raises(UserError, match="Did you mean sparsity"):
        find("sparsty/l1")


def test_header_skips_directives(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# @package _global_\n\n# What it is.\nname: x\n# not this\n")
    assert header(path) == "What it is."
    path.write_text("name: x\n# not this\n")
    assert header(path) == ""
