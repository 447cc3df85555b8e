"""Progress on stderr: a bar on a terminal, plain lines otherwise."""

import sys
import time
from types import TracebackType
from typing import Self

from sae_cli.torchrun import rank

PLAIN_SECONDS = 5.0
"""Least time between the plain lines of a pass over rows."""


class Bar:
    """A rich bar on a terminal; elsewhere each update prints its line."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.rich = None
        if sys.stderr.isatty() and rank() == 0:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.rich = Progress(*columns, console=Console(stderr=True))
            self.task = self.rich.add_task("starting", total=total or None, completed=done)

    def __enter__(self) -> Self:
        if self.rich:
            self.rich.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.rich:
            self.rich.stop()

    def show(self, done: int, total: int, line: str, plain: str) -> None:
        """Show `line` beside the bar, or print `plain`."""
        if self.rich:
            self.rich.update(self.task, completed=done, total=total or None, description=line)
        else:
            print(plain, file=sys.stderr, flush=True)


class RowProgress(Bar):
    """Progress of a pass over rows."""

    def __init__(self, done: str = "cached") -> None:
        super().__init__(0)
        self.word = done
        self.began = self.printed = time.monotonic()
        self.first: int | None = None

    def update(self, done: int, wanted: int) -> None:
        """Show rows done of rows wanted (0: unknown) and the speed since the first call."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if not self.rich and now - self.printed < PLAIN_SECONDS and done < wanted:
            return
        self.printed = now
        speed = f"{(done - self.first) / max(now - self.began, 1e-9):,.0f} rows/s"
        self.show(
            done,
            wanted,
            speed,
            f"{self.word} {done:,} of {wanted:,} rows  {speed}" if wanted else f"{self.word} {done:,}",
        )
