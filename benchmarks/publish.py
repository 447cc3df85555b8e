"""How a benchmark's result is written: with what it ran on."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def publish(result: dict[str, Any], out: Path | None) -> None:
    """Print the result with the kind of machine and torch's version, and write it to `out` if that is given."""
    machine = f"{platform.machine()}, {platform.system()}"
    text = json.dumps({**result, "machine": machine, "torch": version("torch")}, indent=1)
    if out:
        out.write_text(text + "\n")
    print(text)
