"""Processes that speak through a store: here threads with one store in memory, in tests/train and above real ones."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore, TCPStore

from potstill.core import interrupt
from potstill.core.errors import InputError, Interrupted, PeerError, RecipeError
from potstill.core.world import SOLO, World, current, joined


@pytest.fixture
def worlds():
    store = HashStore()
    return [World(rank, 3, store) for rank in range(3)]


@pytest.fixture
def _stop_asked_for():
    interrupt._received.append(15)
    yield
    interrupt._received.clear()


def together(worlds, work):
    """What ``work`` gives for each world, all at once; an exception is a result."""

    def caught(world):
        try:
            return work(world)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            return error

    with ThreadPoolExecutor(len(worlds)) as pool:
        return list(pool.map(caught, worlds))


def test_alone_every_question_answers_itself():
    assert current() is SOLO
    assert SOLO.leads
    assert SOLO.sum([1, 2.5]) == [1, 2.5]
    assert SOLO.largest([0, 3]) == [0, 3]
    assert SOLO.gather("me") == ["me"]
    SOLO.tell("a word", "that nobody hears")


def test_alone_nothing_of_torch_is_imported():
    program = (
        "import sys\nfrom potstill.core.world import joined\n"
        "with joined() as world: world.gather(); world.sum([1.0])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_outside_of_a_launch_one_joins_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert world is SOLO


def test_half_an_environment_is_refused(monkeypatch):
    """A scheduler that sets WORLD_SIZE for its own ends must not make the process wait for others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RecipeError, match="RANK"), joined():
        pass


def test_all_hear_what_each_says_in_the_order_of_processes(worlds):
    """Twice, so that a second round isn't answered by the first one's words."""
    for word in ("first", "second"):
        heard = together(worlds, lambda world, word=word: world.gather(f"{word} {world.rank}"))
        assert heard == [[f"{word} {rank}" for rank in range(3)]] * 3


def test_nobody_goes_on_before_all_have_come(worlds):
    come = threading.Event()
    late = threading.Timer(0.3, lambda: (come.set(), worlds[2].gather()))
    late.start()
    assert together(worlds[:2], lambda world: (world.gather(), come.is_set())[1]) == [True, True]
    late.join()


def test_a_word_is_heard_by_all_the_others(worlds):
    worlds[0].tell("stage", "make")
    assert [world.hear("stage") for world in worlds[1:]] == ["make", "make"]


def test_who_waits_for_a_process_that_ended_ends_with_its_code(worlds):
    error = InputError("is damaged")
    assert worlds[1].end(error) is error
    for ended in together([worlds[0], worlds[2]], lambda world: world.gather() if world.leads else world.hear("x")):
        assert isinstance(ended, PeerError)
        assert ended.process_exit_code == 3
        assert "process 1 of the 3" in str(ended)


def test_of_two_that_fail_the_first_is_named_by_the_second(worlds):
    """Gloo tells a process that its peer is gone; people want to know why it went."""
    worlds[2].end(InputError("is damaged"))
    ends_with = worlds[0].end(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert isinstance(ends_with, PeerError)
    assert ends_with.process_exit_code == 3
    assert "process 2" in str(ends_with)


def test_a_process_that_was_killed_says_nothing_and_is_missed(worlds):
    ends_with = worlds[0].end(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert isinstance(ends_with, PeerError)
    assert "was killed" in str(ends_with)
    with pytest.raises(PeerError, match="was killed"):
        worlds[1].hear("anything")


def test_without_the_store_one_still_says_what_happened():
    """Torchrun, which holds the store, was killed: an error of one's own comes first, else that one is alone."""
    holder = TCPStore("127.0.0.1", 0, is_master=True)
    world = World(1, 2, TCPStore("127.0.0.1", holder.port))
    del holder
    with pytest.raises(RuntimeError) as lost:
        world.gather()
    ends_with = world.end(lost.value)
    assert isinstance(ends_with, PeerError)
    assert "can't be reached" in str(ends_with)
    own = InputError("is damaged")
    assert world.end(own) is own


def test_an_error_of_ones_own_stays_what_it_is(worlds):
    error = RuntimeError("a bug")
    assert worlds[0].end(error) is error


@pytest.mark.usefixtures("_stop_asked_for")
def test_a_signal_ends_waiting_for_a_word_but_no_common_work(worlds):
    """A checkpoint that all write is finished first; the wait for others is bounded by what a launcher grants."""
    with pytest.raises(Interrupted):
        worlds[1].hear("a word that never comes")
    assert together(worlds, lambda world: world.gather("saved")) == [["saved"] * 3] * 3


@pytest.mark.usefixtures("_stop_asked_for")
def test_nobody_waits_for_ever_for_one_that_is_gone(worlds, monkeypatch):
    monkeypatch.setattr("potstill.core.world._GRACE_S", 0.2)
    with pytest.raises(PeerError, match="can't be reached"):
        worlds[0].gather()
