"""A parser that is fuzzed: what it reads, valid inputs to start from, and what lies beside them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sae_cli.errors import UserError
from sae_cli.files import HASH


@dataclass
class Target:
    """A parser of one file, or of one input; anything that it raises but a UserError of one line is a defect."""

    parse: Callable[[Path], object]
    """Reads the folder in which the input lies."""
    name: str
    """File that holds the input."""
    seeds: list[bytes]
    """Valid inputs."""
    around: dict[str, bytes] = field(default_factory=dict)
    """Sound files beside it."""
    writes: bool = False
    """The parser changes the folder, which is filled again for every input."""
    every: int = 1
    """Of so many inputs one is parsed: for what takes a hundred times as long as parsing does."""


def attempt(target: Target, folder: Path, data: bytes) -> bool:
    """Parse one input in a folder that `fill` filled; return whether it was accepted."""
    if target.writes:
        fill(target, folder)
    (folder / target.name).write_bytes(data)
    try:
        target.parse(folder)
    except UserError as problem:
        if len(str(problem).splitlines()) != 1:
            raise RuntimeError("an error that is not one line") from problem
        return False
    return True


def fill(target: Target, folder: Path) -> None:
    """Write what lies around a target's input, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in target.around.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / target.name).parent.mkdir(parents=True, exist_ok=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their relative names, JSON unsealed."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): unsealed(file.read_bytes()) for file in files}


def targets_of(
    prefix: str, files: dict[str, bytes], parse: Callable[[Path], object], writes: bool = False, every: int = 1
) -> dict[str, Target]:
    """Return a target for each file of a folder, the others around it."""
    return {
        f"{prefix} {name}": Target(parse, name, [content], {n: c for n, c in files.items() if n != name}, writes, every)
        for name, content in files.items()
    }


def unsealed(data: bytes) -> bytes:
    """Return a JSON file without its hashes, which whoever means harm would make anew; other files as they are."""
    if not data.startswith(b"{"):
        return data
    try:
        value = json.loads(data)
    except ValueError:  # lines of JSON
        return data
    return json.dumps({key: one for key, one in value.items() if key not in (HASH, "weights_sha256")}).encode()
