"""Items come in order and on time, whatever thread makes them."""

import threading
from itertools import count

import pytest

from sae_cli.ahead import ahead


@pytest.mark.parametrize("number", [1, 3, 20])
def test_every_item_comes_once_in_order(number):
    assert list(ahead(range(10), number)) == list(range(10))
    assert list(ahead([], number)) == []


def test_items_are_made_before_they_are_asked_for_and_no_more_than_said():
    made, enough = [], threading.Event()

    def items():
        for item in count():
            made.append(item)
            if item == 3:
                enough.set()
            yield item

    stream = ahead(items(), 3)
    assert next(stream) == 0
    assert enough.wait(10)
    assert next(stream) == 1
    stream.close()
    assert made[:4] == [0, 1, 2, 3]
    assert len(made) <= 5


def test_a_failure_comes_in_its_turn():
    def items():
        yield 1
        raise OSError("gone")

    stream = ahead(items(), 2)
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)


def test_closing_ends_the_thread():
    stream = ahead(count())
    next(stream)
    stream.close()
    assert not any(thread.name.startswith("sae-ahead") for thread in threading.enumerate())
