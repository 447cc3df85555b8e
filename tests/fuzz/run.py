"""`make fuzz`: every parser on many inputs, coverage-guided by atheris where that is installed.

python -m tests.fuzz.run [--inputs 10000] [--only NAME]
"""

import argparse
import importlib.util
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Target, attempt, fill, make_targets

MEMORY = 12 << 30
"""Address space: an input that makes a parser ask for more is a defect."""


def mutate(target: Target, folder: Path, inputs: int, name: str) -> int:
    """Parse mutated inputs and return how many were accepted; one that fails is kept as failed-input."""
    random, accepted = Random(name), 0
    for _ in range(inputs):
        data = mutated(target.seeds, random)
        try:
            accepted += attempt(target, folder, data)
        except BaseException:
            (Path.cwd() / "failed-input").write_bytes(data)
            raise
    return accepted


def guided(target: Target, folder: Path, inputs: int, corpus: Path) -> None:
    """Parse inputs that libFuzzer chooses by coverage of the package; ends the process."""
    import atheris

    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.instrument_all()
    options = [sys.argv[0], f"-runs={inputs}", "-max_len=65536", "-rss_limit_mb=12000", "-timeout=60", str(corpus)]
    atheris.Setup(options, lambda data: attempt(target, folder, data) and None)
    atheris.Fuzz()


def main() -> None:
    """Fuzz all targets, or one; exit code 1 if any input was a defect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--guided", action="store_true", help="by atheris, one target per process")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as scratch:
        targets = make_targets(Path(scratch) / "made")
        for name in [given.only] if given.only else targets:
            folder = Path(scratch) / "folder"
            fill(targets[name], folder)
            if given.guided:
                guided(targets[name], folder, given.inputs, Path(scratch) / "corpus")
            began = time.monotonic()
            accepted = mutate(targets[name], folder, given.inputs, name)
            seconds = time.monotonic() - began
            print(f"{name:<36} {given.inputs} inputs, {accepted} accepted, {seconds:.0f} s", flush=True)
    if not given.only and importlib.util.find_spec("atheris"):
        for name in targets:
            words = [sys.executable, "-m", "tests.fuzz.run", "--guided", "--only", name, "--inputs", str(given.inputs)]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
