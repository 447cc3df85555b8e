"""The key reference, read from the docstrings in schema.py without importing it."""

import ast
from dataclasses import dataclass
from functools import cache
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
def keys() -> tuple[Key, ...]:
    """Return every key in the order of the schema."""
    tree = ast.parse(Path(__file__).with_name("schema.py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    per_member: tuple[str, ...] = ()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PER_MEMBER":
            per_member = ast.literal_eval(node.value)
    return tuple(_fields("", classes["Config"], classes, per_member))


def _fields(
    prefix: str, node: ast.ClassDef, classes: dict[str, ast.ClassDef], per_member: tuple[str, ...]
) -> list[Key]:
    found: list[Key] = []
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        name, kind = prefix + field.target.id, ast.unparse(field.annotation)
        if kind in classes:
            found += _fields(f"{name}.", classes[kind], classes, per_member)
            continue
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        found.append(Key(name, kind, _default(field.value), text, name in per_member))
    return found


def _default(value: ast.expr | None) -> str | None:
    if value is None or ast.unparse(value) == "MISSING":
        return None
    if isinstance(value, ast.Call):
        return "[]"
    literal = ast.literal_eval(value)
    if isinstance(literal, bool):
        return str(literal).lower()
    return '""' if literal == "" else str(literal)
