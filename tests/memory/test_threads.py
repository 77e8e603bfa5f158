"""How the loop hears of what threads have done. There is no thread but the test's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio

from trioreq._protocol.fair_queue import SharedTurns
from trioreq._server.threads import Threads

# What is compiled takes no stand-in for a request.


class Carrier:
    """A transport that has something for the loop each time, until it runs out of it."""

    def __init__(self, *batches: Callable[[], object]) -> None:
        self.batches = list(batches)
        self.meanwhile: Callable[[], object] = lambda: None  # at the end of `gather`
        self.emptied = trio.Event()
        self.outbox = self

    async def receive(self, first: int = 0, before_wait: Callable[[], bool] | None = None) -> bool:
        if not self.batches:
            self.emptied.set()
            await trio.sleep_forever()
        self.batches.pop(0)()
        return False

    def gather(self, work: Callable[[], object]) -> None:
        work()
        self.meanwhile()


class Call:
    """A request; only its answer counts."""

    def __init__(self, answers: list[object]) -> None:
        self.finish = answers.append


def made(carrier: Carrier) -> Any:
    desk: Any = SimpleNamespace(carrier=carrier, turns=SharedTurns(1, 1), stop=lambda: None)
    return Threads(lambda _: b"", desk)


async def test_what_is_done_is_answered_while_there_is_always_more_to_read() -> None:
    answers: list[object] = []
    seen: list[int] = []

    def one_is_done() -> None:
        seen.append(len(answers))
        threads._pool.awake = True  # for the test there is no pause in which it could sleep
        threads._pool.done.append((Call(answers), b"x", None))
        threads._pool._tell()

    carrier = Carrier(one_is_done, one_is_done, one_is_done)
    threads = made(carrier)
    async with trio.open_nursery() as nursery:
        await nursery.start(threads.run)
        await carrier.emptied.wait()
        nursery.cancel_scope.cancel()
    assert seen == [0, 1, 2]
    assert len(answers) == 3


def test_what_is_done_just_before_the_loop_sleeps_wakes_it() -> None:
    carrier = Carrier()
    threads = made(carrier)
    woken: list[Callable[[], object]] = []
    threads._token = SimpleNamespace(run_sync_soon=woken.append)
    answers: list[object] = []

    def another_is_done() -> None:
        threads._pool.done.append((Call(answers), b"x", None))
        threads._pool._tell()

    carrier.meanwhile = another_is_done
    threads._pool.awake = True
    threads._pool.done.append((Call(answers), b"x", None))
    assert threads._before_wait()
    assert len(answers) == len(woken) == 1
    carrier.meanwhile = lambda: None
    woken[0]()
    assert len(answers) == 2
    assert not threads._before_wait()


def test_the_loop_may_sleep_on_it_that_it_has_sent_nothing() -> None:
    """What is done just after its look is told: were it answered, the send would eat the edge."""
    threads = made(Carrier())
    woken: list[Callable[[], object]] = []
    threads._token = SimpleNamespace(run_sync_soon=woken.append)
    answers: list[object] = []

    class Done(deque[Any]):
        def __bool__(self) -> bool:
            some = len(self) > 0
            if not (threads._pool.awake or looked):  # here another thread has its way
                looked.append(some)
                self.append((Call(answers), b"x", None))
                threads._pool._tell()
            return some

    looked: list[bool] = []
    threads._pool.awake = True
    threads._pool.done = Done()
    assert not threads._before_wait()
    assert (len(answers), len(woken)) == (0, 1)
    woken[0]()
    assert len(answers) == 1


def test_before_the_loop_sleeps_one_is_called_up_for_what_is_left() -> None:
    threads = made(Carrier())
    looked: list[bool] = []
    threads._pool.call_up = lambda: looked.append(threads._pool.awake)
    threads._pool.awake = True
    assert not threads._before_wait()
    assert looked == [False]  # what is left later is told


def test_one_is_called_up_for_what_others_than_the_reader_have_read() -> None:
    threads = made(Carrier())
    called: list[str] = []
    threads._spawn = lambda: called.append("spawn")
    threads._pool.call_up = lambda: called.append("call up")
    threads.start()
    assert called == ["spawn", "call up"]


def test_a_loop_that_is_awake_is_not_woken() -> None:
    threads = made(Carrier())
    threads._token = None
    threads._pool.awake = True
    threads._pool.done.append((Call([]), b"x", None))
    threads._pool._tell()
