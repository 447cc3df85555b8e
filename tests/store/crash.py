"""Kill the cache writer again and again and compare what it ends with.

    python -m tests.store.crash FOLDER random|steps PARTS

With several parts each has a writer, and all are killed at once. One process imports torch and forks the writers, so
that hundreds of kills take seconds.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from sae_cli.files import sha256_of
from sae_cli.store.find import cache_fingerprint, verify
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, small_cache

WIDTHS = {"a": 8, "b": 5}
"""Different widths, so that the hooks' blocks end at different rows."""


PARTS = int(sys.argv[3]) if len(sys.argv) > 3 else 1
CACHE = small_cache(tokens=250, validation_tokens=30, shuffle_bytes=1000, parts=PARTS)


def write(root: Path, pause: float, shares: Iterable[int] = range(PARTS)) -> None:
    """Write both hooks' caches under `root`, or go on with them."""
    for share in shares:
        folders = {hook: folder(root, hook) for hook in WIDTHS}
        write_caches(FakeRows(WIDTHS, pause=pause), CACHE, folders, share=share)


def folder(root: Path, hook: str) -> Path:
    return root / f"fake-{hook}-{cache_fingerprint(FakeRows(WIDTHS).fingerprint(hook), CACHE)}"


def content(root: Path) -> dict[str, str]:
    """Return the hash of every file."""
    return {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*")) if path.is_file()}


def fork_writer(root: Path, pause: float = 0.0, die_at: int | None = None, shares: Iterable[int] = range(PARTS)) -> int:
    """Start a writer in a child; with `die_at` it kills itself at that rename or removal."""
    child = os.fork()
    if child:
        return child
    try:
        if die_at is not None:
            moments = iter(range(10**9))

            def deadly(step):
                def run(*arguments, **options):
                    if next(moments) == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return step(*arguments, **options)

                return run

            Path.replace, Path.unlink = deadly(Path.replace), deadly(Path.unlink)
        write(root, pause, shares)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def killed(child: int) -> bool:
    """Wait for a child; return whether it was killed rather than done."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit("the writer failed")
    return False


def has_ended(child: int) -> bool:
    """Return whether a child has ended; `killed` can still ask how."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def stored(place: Path) -> int:
    """Return how many files of rows and tokens there are."""
    return len(list(place.rglob("*.safetensors")))


def at_random(root: Path, wanted: dict[str, str], times: int) -> dict:
    """SIGKILL at random moments until `times` kills hit a writer at work; every cache that ends must be equal."""
    draw, hits, caches, stages, equal = random.Random(0), 0, 0, set(), True
    while hits < times:
        place = root / f"random-{caches}"
        children = [fork_writer(place, pause=0.006, shares=[share]) for share in range(PARTS)]
        # A moment of its progress, not of the clock: what a writer gets done in a second depends on the machine.
        some = stored(place) + draw.randrange(6)
        while stored(place) < some and not all(map(has_ended, children)):
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.01))
        for child in children:
            os.kill(child, signal.SIGKILL)
        if hit := sum(map(killed, children)):
            hits += hit
            stages.add(stored(place))
        else:
            equal, caches = equal and content(place) == wanted, caches + 1
    killed(fork_writer(place))
    equal = equal and content(place) == wanted
    problems = [line for hook in WIDTHS for line in verify(folder(place, hook))]
    return {"kills": hits, "stages": len(stages), "equal": equal, "problems": problems}


def at_every_step(root: Path, wanted: dict[str, str]) -> dict:
    """Die just before each rename and removal, when all before it is done, then end in one go."""
    unequal, moment = [], 0
    while killed(fork_writer(root / str(moment), die_at=moment)):
        killed(fork_writer(root / str(moment)))
        if content(root / str(moment)) != wanted:
            unequal.append(moment)
        moment += 1
    return {"kills": moment, "unequal": unequal}


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # What a killed process wrote stays with the system: this only saves time.
    base = Path(sys.argv[1])
    write(base / "whole", 0.0)
    expected = content(base / "whole")
    outcome = at_random(base, expected, 25) if sys.argv[2] == "random" else at_every_step(base, expected)
    print(json.dumps(outcome))
