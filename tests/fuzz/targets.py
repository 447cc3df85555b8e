"""Everything that is fuzzed, by name. A GGUF file is not: the only one that is read is checked by its SHA-256 first."""

from pathlib import Path

from tests.fuzz import data, saes, words
from tests.fuzz.target import Target


def make_targets(scratch: Path) -> dict[str, Target]:
    """Return the targets by name; `scratch` is an empty folder for the files that they begin with."""
    scratch.mkdir(parents=True, exist_ok=True)
    return words.targets() | data.targets(scratch) | saes.targets(scratch)
