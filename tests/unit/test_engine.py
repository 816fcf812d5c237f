"""Connections to engines are used again, and only where that can do no harm."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from builders import host

import arpanet
from arpanet import AGENT_OK, Engine, EngineDown, HostPort, Tunnels

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntrue\r\n0\r\n\r\n"


class Agent(NamedTuple):
    """An agent whose engine gives set answers, to show faults that a real one has rarely."""

    engine: Engine
    connections: list[list[bytes]]  # the requests that came on each


@contextlib.contextmanager
def agent_of(*answers: bytes, tunnels: Tunnels | None = None) -> Iterator[Agent]:
    """Yield an agent that answers in turn; after an empty answer it closes the connection."""
    seen: list[list[bytes]] = []
    left = list(answers)
    kept = tunnels or Tunnels()
    kept.KEEP_S = 600.0  # a test may stand still

    def serve() -> None:
        while left:
            client, _ = listener.accept()
            with client:
                assert client.recv(1000).startswith(b"CONNECT engine ")
                client.sendall(AGENT_OK)
                seen.append([])
                while left and (asked := client.recv(10_000)):
                    seen[-1].append(asked)
                    answer = left.pop(0)
                    client.sendall(answer)
                    if not answer:
                        break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        address = HostPort(*listener.getsockname())
        there = host(ip=address.host)._replace(agent_port=address.port)
        yield Agent(Engine(there, kept), seen)
        kept.expire(kept.KEEP_S)
        thread.join()


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED, ANSWER.replace(b"200", b"404")])
def test_after_a_whole_answer_the_connection_is_used_again(answer: bytes) -> None:
    with agent_of(answer, answer, answer) as agent:
        for method in ("GET", "POST", "GET"):
            with contextlib.suppress(arpanet.EngineError):
                assert agent.engine.fetch(method, "/x") is True
        assert [len(requests) for requests in agent.connections] == [3]
        assert b"Connection: close" not in agent.connections[0][0]


@pytest.mark.parametrize(
    "answer",
    [ANSWER.replace(b"true", b"tru"), ANSWER.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
     b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"],
)  # fmt: skip
def test_after_half_an_answer_or_a_stream_it_is_not(answer: bytes) -> None:
    with agent_of(answer, ANSWER) as agent:
        reply = agent.engine.send("POST", "/x", timeout_s=30.0)
        if reply.response.will_close and not reply.is_hijack:
            reply.read()
        reply.close()
        assert agent.engine.fetch("GET", "/x") is True
        assert len(agent.connections) == 2


def test_a_read_whose_connection_was_closed_meanwhile_is_sent_again() -> None:
    with agent_of(ANSWER, b"", ANSWER) as agent:
        for _ in range(2):
            assert agent.engine.fetch("GET", "/x") is True
        assert [len(requests) for requests in agent.connections] == [2, 1]


def test_an_engine_that_is_silent_is_waited_for_once() -> None:
    silence = b"HTTP/1.1 200"  # and no more
    with agent_of(ANSWER, silence, ANSWER, ANSWER) as agent:
        assert agent.engine.fetch("GET", "/x") is True
        with pytest.raises(EngineDown, match="timed out"):
            agent.engine.fetch("GET", "/slow", timeout_s=0.2)
        assert [len(requests) for requests in agent.connections] == [2]
        for _ in range(2):
            assert agent.engine.fetch("GET", "/x") is True


def test_a_change_is_never_sent_twice() -> None:
    with agent_of(ANSWER, b"", ANSWER) as agent:
        assert agent.engine.fetch("GET", "/x") is True
        with pytest.raises(EngineDown, match="cannot be reached"):
            agent.engine.fetch("POST", "/x")
        assert agent.engine.fetch("GET", "/x") is True
        assert [len(requests) for requests in agent.connections] == [2, 1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"", "the connection was closed without an answer; "), (b"no\r\n\r\n", "not HTTP: 'no'; ")],
)
def test_what_is_no_answer_is_told_in_words(answer: bytes, words: str) -> None:
    with agent_of(answer) as agent, pytest.raises(EngineDown, match=re.escape(words)):
        agent.engine.send("POST", "/x", timeout_s=30.0)


def test_who_cut_a_request_does_not_cut_the_next_one() -> None:
    with agent_of(ANSWER, ANSWER) as agent:
        reply = agent.engine.send("GET", "/x")
        reply.read()
        reply.cut()
        assert agent.engine.fetch("GET", "/x") is True
        assert len(agent.connections) == 1


def test_what_waits_is_bounded_in_number_and_time_and_is_open() -> None:
    tunnels, agent = Tunnels(), HostPort("127.0.0.1", 1)
    with contextlib.ExitStack() as opened:
        pairs = [socket.socketpair() for _ in range(tunnels.MOST + 3)]
        for near, far in pairs:
            opened.enter_context(far)
            tunnels.give(agent, near)
        assert [near.fileno() < 0 for near, _ in pairs] == [True] * 3 + [False] * tunnels.MOST
        pairs[-1][1].close()
        pairs[-2][1].sendall(b"what nobody asked for")
        assert tunnels.take(agent) is pairs[-3][0]
        assert pairs[-1][0].fileno() == pairs[-2][0].fileno() == -1
        assert tunnels.take(HostPort("127.0.0.1", 2)) is None
        tunnels.give(agent, pairs[-3][0])
        tunnels.expire()
        assert pairs[-3][0].fileno() >= 0
        tunnels.expire(tunnels.KEEP_S)
        assert [near.fileno() for near, _ in pairs] == [-1] * len(pairs)
