"""Take items ahead of their use, in a thread."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int = 1) -> Generator[T, None, None]:
    """Yield `items`, of which a thread makes up to `count` ahead; what it raises is raised here, in its turn.

    Closing waits for the item that is being made.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "sae-ahead") as pool:
        made: deque[Any] = deque(pool.submit(next, iterator, end) for _ in range(count))
        try:
            while (item := made.popleft().result()) is not end:
                made.append(pool.submit(next, iterator, end))
                yield item
        finally:
            for item in made:
                item.cancel()
