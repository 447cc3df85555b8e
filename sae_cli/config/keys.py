"""The key reference, read from the docstrings in schema.py and schema_data.py without importing them."""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """One documented key of the configuration."""

    name: str
    """Dotted CLI key, such as `train.lr`."""
    type: str
    """str | int | float | bool | list[...]."""
    default: str | None
    """Default as one would type it; None: a file of the key's group sets it."""
    text: str
    """The field's docstring on one line."""
    per_member: bool
    """May differ between the members of one stack."""

    @property
    def shown_default(self) -> str:
        """The default, or where the value comes from."""
        return f"set by {self.name.split('.')[0]}=..." if self.default is None else self.default


@cache
def by_name() -> dict[str, Key]:
    """Return every key by its name, in the order of the schema."""
    files = (Path(__file__).with_name(name) for name in ("schema_data.py", "schema.py"))
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    constants = {ast.unparse(node.targets[0]): node.value for node in nodes if isinstance(node, ast.Assign)}
    per_member = ast.literal_eval(constants["PER_MEMBER"])

    def fields(section: ast.ClassDef, prefix: str) -> Iterator[Key]:
        for field, after in pairwise(section.body):
            if not isinstance(field, ast.AnnAssign):
                continue
            name, kind = prefix + ast.unparse(field.target), ast.unparse(field.annotation)
            if kind in classes:
                yield from fields(classes[kind], f"{name}.")
            else:
                text = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
                yield Key(name, kind, _default(field.value), " ".join(text.split()), name in per_member)

    return {key.name: key for key in fields(classes["Config"], "")}


def keys() -> tuple[Key, ...]:
    """Return every key in the order of the schema."""
    return tuple(by_name().values())


def _default(value: ast.expr | None) -> str | None:
    if value is None or ast.unparse(value) == "MISSING":
        return None
    if isinstance(value, ast.Call):
        return "[]"
    literal = ast.literal_eval(value)
    return literal if literal and isinstance(literal, str) else json.dumps(literal)
