"""Work that a thread does behind its caller, in order, a bounded number of bytes late."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class Behind:
    """Runs what it is given in one thread. After a failure nothing more runs; the caller gets its error.

    most: bytes that work not done yet may hold; one piece of work may hold more. Leaving the block waits for all of
        it, or after an error for what is under way.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self.waiting: deque[tuple[Future[None], int]] = deque()
        self.pool = ThreadPoolExecutor(1, "sae-behind")

    def __enter__(self) -> Self:
        return self

    def run(self, work: Callable[[], None], size: int) -> None:
        """Have `work`, which holds `size` bytes, done after what was given before. Raises what that raised."""
        while self.waiting and (self.waiting[0][0].done() or self.held + size > self.most):
            self._wait()
        before = self.waiting[-1][0] if self.waiting else None
        self.waiting.append((self.pool.submit(_run_after, before, work), size))
        self.held += size

    def _wait(self) -> None:
        done, size = self.waiting.popleft()
        self.held -= size
        done.result()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while self.waiting and error is None:
                self._wait()
        finally:
            self.pool.shutdown(cancel_futures=True)


def _run_after(before: Future[None] | None, work: Callable[[], None]) -> None:
    if before:
        before.result()
    work()
