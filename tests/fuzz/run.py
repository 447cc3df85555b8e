"""`make fuzz`: every parser on many inputs, coverage-guided too where atheris is installed.

python -m tests.fuzz.run [--inputs 10000] [--seconds 600] [--seed 0] [--only BEGINNING]

Each target is a process of its own, in which an input may take LONGEST seconds and MEMORY bytes. One that fails is kept
as `failed-input-...` and its traceback shown; the other targets go on. A target gets at most `--seconds` in each of
the two ways of making inputs, which run side by side: its line says how many it was given.
"""

import argparse
import importlib.util
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random

MEMORY = 2 << 30
"""Address space beside that of the program: an input that makes a parser ask for more is a defect."""
LONGEST = 20
"""Seconds for one input."""
GUIDED = ["sae_cli", "omegaconf", "hydra", "yaml"]
"""Packages whose coverage guides: all of torch would take minutes to instrument."""


def failed_input(name: str) -> str:
    """Return the name of the file that keeps a failed input of a target."""
    return "failed-input-" + re.sub(r"[^\w.]+", "-", name)


@contextmanager
def kept(data: bytes, name: str) -> Iterator[None]:
    """Keep an input that fails."""
    try:
        yield
    except BaseException:
        Path(failed_input(name)).write_bytes(data)
        raise


def mutate(target, folder: Path, inputs: int, name: str, seconds: float = float("inf"), seed: int = 0):
    """Parse mutated inputs and return how many were parsed and accepted; one that fails is kept."""
    from tests.fuzz.mutations import mutated
    from tests.fuzz.target import attempt

    random, accepted, end = Random(f"{name} {seed}"), 0, time.monotonic() + seconds
    signal.signal(signal.SIGALRM, _too_long)
    for number in range(inputs // target.every):
        if time.monotonic() > end:
            return number, accepted
        data = mutated(target.seeds, random)
        signal.alarm(LONGEST)
        try:
            with kept(data, name):
                accepted += attempt(target, folder, data)
        finally:
            signal.alarm(0)
    return inputs // target.every, accepted


def _too_long(*_: object) -> None:
    raise TimeoutError(f"an input took more than {LONGEST} s")


def guide(target, folder: Path, name: str, given: argparse.Namespace, corpus: Path) -> None:
    """Parse inputs that libFuzzer chooses by coverage; ends the process. One that fails is kept."""
    import atheris

    from tests.fuzz.target import attempt

    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-runs={given.inputs // target.every}", f"-max_total_time={given.seconds}", f"-seed={given.seed + 1}"]
    options += [f"-timeout={LONGEST}", "-max_len=65536", "-rss_limit_mb=0", "-verbosity=0", "-print_final_stats=1"]
    options += [f"-artifact_prefix={failed_input(name)}-"]  # of a timeout

    def parse(data: bytes) -> None:
        with kept(data, name + "-guided"):
            attempt(target, folder, data)

    atheris.Setup([sys.argv[0], *options, str(corpus)], parse)
    atheris.Fuzz()


def fuzz_one(target, name: str, given: argparse.Namespace, scratch: Path) -> None:
    """Fuzz a target in this process, under limits that end with it."""
    from tests.fuzz.target import attempt, fill

    folder = scratch / "folder"
    fill(target, folder)
    assert attempt(target, folder, target.seeds[0]), "its seed is refused"  # and what it imports late is there
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if given.guided:
        guide(target, folder, name, given, scratch / "corpus")
    print("{} inputs, {} accepted".format(*mutate(target, folder, given.inputs, name, given.seconds, given.seed)))


def in_child(target, name: str, given: argparse.Namespace) -> tuple[int, str]:
    """Fuzz a target in a child process; return its exit code and what it wrote."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = 1
            try:
                fuzz_one(target, name, given, Path(scratch))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read().decode(errors="replace")


def main() -> None:
    """Fuzz all targets, or those whose name begins with a word; exit code 1 if any input was a defect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=600, help="for a target, in each of the two ways")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other inputs")
    parser.add_argument("--only", default="")
    parser.add_argument("--guided", action="store_true", help="by coverage only; without it, both ways")
    given = parser.parse_args()
    failed, began, by_coverage = 0, time.monotonic(), None
    if given.guided:
        import atheris
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the two ways share the cores
    if not given.guided and importlib.util.find_spec("atheris"):
        by_coverage = subprocess.Popen([sys.executable, "-m", "tests.fuzz.run", "--guided", *sys.argv[1:]])
    elif not given.guided:
        print("atheris is not installed: no inputs by coverage")
    with atheris.instrument_imports(include=GUIDED) if given.guided else nullcontext():
        from tests.fuzz.targets import make_targets

        logging.disable(logging.CRITICAL)
        os.fsync = lambda descriptor: None  # what is written here need not last
        with tempfile.TemporaryDirectory() as scratch:
            targets = {n: t for n, t in make_targets(Path(scratch) / "made").items() if n.startswith(given.only)}
            for name, target in targets.items():
                start = time.monotonic()
                code, said = in_child(target, name, given)
                counted = re.search(r"number_of_executed_units: *(\d+)", said)
                told = f"{counted[1]} inputs by coverage" if counted else said.strip().rpartition("\n")[2]
                print(f"{name:<50} {f'DEFECT, exit code {code}' if code else told}, {time.monotonic() - start:.0f} s")
                failed += bool(code)
                print(said[-6000:] if code else "", end="", flush=True)
    print(f"{len(targets)} targets, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    failed += by_coverage.wait() if by_coverage else 0
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
