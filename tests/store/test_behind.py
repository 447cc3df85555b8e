"""Work behind the caller: in order, bounded, and nothing runs after a failure."""

import threading

import pytest

from sae_cli.store.behind import Behind


def test_all_work_is_done_in_order_by_one_other_thread():
    done, threads = [], set()
    with Behind(10) as behind:
        for number in range(50):
            behind.run(lambda number=number: done.append(number) or threads.add(threading.get_ident()), 3)
    assert done == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_no_more_waits_than_fits():
    held, most, free = 0, 0, threading.Semaphore(0)

    def work() -> None:
        nonlocal held
        free.acquire(timeout=10)
        held -= 4

    with Behind(10) as behind:
        for number in range(20):
            if number >= 2:
                free.release()
            behind.run(work, 4)
            held += 4
            most = max(most, held)
        free.release(2)
    assert most <= 12  # two pieces wait, and one may end after it was counted


def test_a_piece_larger_than_the_bound_runs_alone():
    done = []
    with Behind(1) as behind:
        for number in range(3):
            behind.run(lambda number=number: done.append(number), 100)
    assert done == [0, 1, 2]


def test_after_a_failure_nothing_runs_and_the_caller_learns_of_it():
    done, started = [], threading.Event()

    def fail() -> None:
        started.wait(10)
        raise ValueError("no")

    def run_all() -> None:
        with Behind(3) as behind:
            behind.run(fail, 1)
            behind.run(lambda: done.append(1), 1)
            started.set()
            for _ in range(5):
                behind.run(lambda: done.append(2), 1)

    with pytest.raises(ValueError, match="no"):
        run_all()
    assert done == []


def test_a_failure_of_the_last_piece_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), Behind(10) as behind:
        behind.run(lambda: 1 / 0, 1)


def test_an_error_of_the_caller_drops_what_waits():
    done, go = [], threading.Event()
    with pytest.raises(KeyboardInterrupt), Behind(10) as behind:  # noqa: PT012
        behind.run(lambda: go.wait(10) and done.append(0), 1)
        behind.run(lambda: done.append(1), 1)
        threading.Timer(0.1, go.set).start()
        raise KeyboardInterrupt
    assert done == [0]
