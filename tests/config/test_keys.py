"""The key reference is complete, and no key is dead."""

import ast
from pathlib import Path

import sae_cli
from sae_cli.config.compose import compose
from sae_cli.config.convert import flat
from sae_cli.config.keys import keys
from sae_cli.config.schema import PER_MEMBER

UNREAD_HERE = {"schema.py", "check.py", "keys.py"}


def test_the_reference_agrees_with_the_dataclasses() -> None:
    values = flat(compose(["source=three_features"]))
    assert [key.name for key in keys()] == list(values)
    assert {key.name for key in keys() if key.per_member} == set(PER_MEMBER)
    shown = {key.name: key for key in keys()}
    assert (shown["train.batch"].type, shown["train.batch"].default) == ("int", "2048")
    assert (shown["train.resample_at"].default, shown["train.tf32"].default) == ("[]", "false")
    assert (shown["tracker.entity"].default, shown["sae.nonlinearity"].default) == ('""', None)
    assert shown["sae.nonlinearity"].shown_default == "set by sae=..."


def test_every_key_is_documented() -> None:
    assert [key.name for key in keys() if len(key.text) < 10 or not key.text.endswith((".", "]"))] == []


def test_every_key_is_read_by_the_package() -> None:
    read: set[str] = set()
    for path in Path(sae_cli.__file__).parent.glob("**/*.py"):
        if path.parent.name == "config" and path.name in UNREAD_HERE:
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        read |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    assert [key.name for key in keys() if key.name.rpartition(".")[2] not in read] == []
