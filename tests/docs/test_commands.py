"""Every command of every document: a shell reads it, and what it says to `sae` is parsed and composed."""

import ast
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import hydra
import pytest
from typer.main import get_command

from sae_cli.cli import app
from sae_cli.commands_eval import folders_and_words
from sae_cli.config.compose import VERSION_BASE, compose
from sae_cli.config.keys import by_name
from sae_cli.interop.writing import WRITERS
from sae_cli.runs.grid import read_grid_file
from sae_cli.runs.launch import OPEN
from sae_cli.runs.sweep import check_launcher, read_points
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, RUN, Block, blocks_of, identify, prose_of
from tests.docs.shell import recorded

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
SECTIONS = {name.partition(".")[0] for name in by_name() if "." in name}
FILES = ("json", "safetensors", "yaml", "md", "py")


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: {block.language!r} is not one of {', '.join(LANGUAGES)}"
    assert not re.search("^ *(```|~~~)", prose_of(page), re.MULTILINE), "a fence that is indented or not closed"


@pytest.mark.parametrize("block", COMMANDS, ids=identify)
def test_a_command_is_one(block: Block, tmp_path: Path) -> None:
    changed = block.page in RUN and any(one.title or one.language == "diff" for one in blocks_of(block.page))
    for program, *words in recorded(block.text, tmp_path):
        words = [word for word in words if word != "..."]
        if program == "sae":
            check_sae(words, composed=not changed)
        elif program == "torchrun":
            assert words[(at := words.index("-m")) + 1] == "sae_cli"
            check_sae(words[at + 2 :])
        elif program.startswith("python") and words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words[1]
        elif program.startswith("python"):
            assert changed or (ROOT / words[0]).is_file(), words[0]
        elif program == "make":
            assert {word for word in words if "=" not in word} <= set(TARGETS), words
        elif program == "pip":
            assert {name for word in words for name in re.findall(r"sae-cli\[(\w+)\]", word)} <= EXTRAS.keys(), words
        elif program == "wandb":
            assert words[0] in ("agent", "login", "sweep", "sync"), words
            for word in words:
                if word.endswith(".yaml") and not changed:
                    read_grid_file(ROOT / word)


def check_sae(words: list[str], composed: bool = True) -> None:
    """Fail if `sae WORDS` would be refused before it looks at files."""
    name, values = parsed(words)
    overrides = values.get("overrides") or values.get("paths") or []
    options = [word for word in overrides if str(word).startswith("hydra.")]
    overrides = [str(word) for word in overrides if word not in options]
    if options or values.get("launcher"):
        check_launcher(values["launcher"], options)
        with hydra.initialize_config_module("sae_cli.conf", version_base=VERSION_BASE):
            settings = [re.sub(OPEN, r"++\1", option) for option in options]
            hydra.compose(overrides=[f"hydra/launcher={values['launcher']}", *settings], return_hydra_config=True)
    if name == "export":
        assert values["to"] in WRITERS
    if not composed or values.get("config_dir"):
        return
    if name == "sweep":
        points = read_points(overrides)
        for point in {tuple(points[0]), tuple(points[-1])}:
            compose(list(point))
    elif name in ("eval", "dashboard"):
        compose(folders_and_words(overrides)[1])
    elif name in ("cache", "train", "bench", "config show") and overrides[:1] != ["verify"]:
        compose(overrides)


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the command that `sae WORDS` names, and its arguments. Raises what the parser raises."""
    command, context, names = get_command(app), None, []
    while True:
        context = command.make_context("sae", list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return " ".join(names), context.params
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name)


@pytest.mark.parametrize("block", PYTHON, ids=identify)
def test_python_is_python_and_its_imports_are_there(block: Block) -> None:
    own = {Path(one.title).with_suffix("").as_posix().replace("/", ".") for one in blocks_of(block.page) if one.title}
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module not in own:
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_keys_and_options_in_the_text_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose_of(page)):
        for section, key in re.findall(r"(?<![\w./-])([a-z]+)\.([a-z][a-z0-9_]*)(?![\w.]*[/(])", code):
            if section in SECTIONS and key not in FILES:
                assert f"{section}.{key}" in by_name(), code
        if code.startswith("sae "):
            name, *rest = code.split()[1:]
            command = get_command(app).commands.get(name)  # type: ignore[attr-defined]
            assert command or name.startswith("-") or name == "COMMAND", code
            options = {
                option for param in getattr(command, "params", []) for option in (*param.opts, *param.secondary_opts)
            }
            assert {word for word in rest if word.startswith("--")} <= options | {"--help"}, code
