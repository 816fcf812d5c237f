"""A client finds a master that answers now, whatever the others do; what cannot go on is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from lab import SLOW

import arpanet
from arpanet import Busy, HostPort, MasterPing, Tunnels, dump_json, race_masters

PORT = 28791


def answer_of(quorum: bool) -> bytes:
    body = dump_json({"quorum": quorum, "masters": ["127.0.0.1"]})
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def masters() -> Iterator[dict[str, HostPort]]:
    """Yield one master of each kind: it hangs, is dead, has a majority, or has none."""
    with contextlib.ExitStack() as stack:
        found = {"dead": HostPort("127.0.0.9", PORT)}
        answers = {"hangs": b"", "lonely": answer_of(False), "good": answer_of(True)}
        for number, (kind, answer) in enumerate(answers.items(), 2):
            address = (f"127.0.0.{number}", PORT)
            listener = stack.enter_context(socket.create_server(address))
            found[kind] = HostPort(*address)
            if answer:
                arpanet.spawn(f"serve-{kind}", lambda li=listener, a=answer: serve(li, a))  # type: ignore[misc]
                stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield found


def serve(listener: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):  # the end of the test
        while True:
            with listener.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(answer)


@pytest.mark.parametrize(
    ("kinds", "chosen"),
    [
        (["hangs", "dead", "lonely", "good"], "good"),
        (["good", "hangs"], "good"),
        (["dead", "lonely"], "lonely"),
        (["dead"], None),
    ],
)
def test_the_first_that_answers_is_taken_and_one_with_a_majority_before_others(
    masters: dict[str, HostPort], kinds: list[str], chosen: str | None
) -> None:
    began = time.monotonic()
    found, causes = race_masters([masters[kind] for kind in kinds], 20.0)
    assert found == (masters[chosen] if chosen else None)
    assert chosen or "127.0.0.9:28791: [Errno 111] Connection refused" in causes
    assert time.monotonic() - began < 15, "it waited for the one that hangs"


def test_a_ping_ranks_a_master(
    masters: dict[str, HostPort], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arpanet, "MUTE_S", 2.0 * SLOW)
    pings = {kind: MasterPing(master) for kind, master in masters.items()}
    told = {kind: ping.ask() for kind, ping in pings.items()}
    ranks = {kind: ping.rank for kind, ping in pings.items()}
    assert ranks == {"good": 0, "lonely": 1, "dead": 2, "hangs": 2}
    said = {kind: report.get("masters") for kind, report in told.items()}
    assert said == {"good": ("127.0.0.1",), "lonely": ("127.0.0.1",), "dead": None, "hangs": None}


@pytest.mark.parametrize(
    ("rank", "silent_s", "others", "lost"),
    [
        (2, 1.3, [(0, 0.3)], True),
        (2, 1.3, [(2, 0.3), (1, 0.6)], True),
        (2, 1.1, [(0, 0.3)], False),  # for a moment only
        (0, 1.3, [(0, 0.3)], False),  # it is being asked; its last answer was good
        (2, 1.3, [(0, 1.2)], False),  # nobody answers: it is our own cable, or we stood still
        (2, 1.3, [(2, 0.3)], False),  # of another arpanet
        (2, 60.0, [], False),
    ],
)
def test_a_master_is_lost_when_it_is_silent_and_another_has_answered_since(
    rank: int,
    silent_s: float,
    others: list[tuple[int, float]],
    lost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The times are of a MUTE_S of 1.2 s."""

    def ping(rank: int, silent_s: float) -> MasterPing:
        made = MasterPing(HostPort("127.0.0.2", PORT))
        made.rank, made.heard_at = rank, made.heard_at - 100 * silent_s
        return made

    monkeypatch.setattr(arpanet, "MUTE_S", 120.0)  # a stall of the test is nothing beside it
    asked = ping(rank, silent_s)
    assert asked.is_lost([asked, *(ping(*other) for other in others)]) is lost


def test_the_tunnels_to_a_lost_host_end_under_their_readers() -> None:
    tunnels, ended = Tunnels(), threading.Event()
    with socket.create_server(("127.0.0.2", 0)) as listener:
        with contextlib.closing(arpanet.dial(listener.getsockname())) as sock:
            tunnels.add(sock)

            def read() -> None:
                assert sock.recv(1) == b""
                ended.set()

            arpanet.spawn("read", read)
            tunnels.cut("127.0.0.3")
            assert not ended.wait(0.1)
            tunnels.cut("127.0.0.2")
            assert ended.wait(10)
        tunnels.cut("127.0.0.2")  # closed by now: harmless


def test_a_master_that_stops_waits_for_what_it_answers() -> None:
    busy, drained = Busy(), threading.Event()
    with busy:

        def drain() -> None:
            busy.drain()
            drained.set()

        arpanet.spawn("drain", drain)
        assert not drained.wait(0.1)
    assert drained.wait(10)
