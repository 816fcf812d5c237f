"""HTTP as we read, write and serve it: framing, errors, and one connection for many requests."""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from builders import container, host, view
from conftest import until
from hypothesis import given
from hypothesis import strategies as st
from lab import SLOW

import arpanet
from arpanet import (
    ApiServer,
    BadRequest,
    Body,
    EngineError,
    HangupWatch,
    Headers,
    HostPort,
    Limits,
    Lobby,
    MeshDown,
    Node,
    Pump,
    SharedRead,
    View,
    http_json,
    read_settings,
    send_request,
)

# ---- Body


def body(content: bytes, *headers: tuple[str, str]) -> Body:
    """Return the body of a request with these headers, of which that content came."""
    return Body(io.BufferedReader(io.BytesIO(content)), Headers(headers))


CHUNKED = ("Transfer-Encoding", "chunked")


def test_without_a_length_there_is_no_body() -> None:
    assert body(b"GET /next").finished
    assert body(b"GET /next").read() == b""


@pytest.mark.parametrize("length", ["5", "05"])
def test_a_body_ends_at_its_length(length: str) -> None:
    found = body(b"helloGET /next", ("Content-Length", length))
    assert not found.finished
    assert found.read() == b"hello"
    assert found.finished


def test_the_same_length_twice_is_one_length() -> None:
    assert body(b"hi", ("Content-Length", "2"), ("Content-Length", "2")).read() == b"hi"


CHUNKS = [
    (b"0\r\n\r\n", b""),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"3;name=value\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
    (b"A\r\n0123456789\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n", b"0123456789"),
    (b"0000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
]


@pytest.mark.parametrize(("content", "whole"), CHUNKS)
def test_a_chunked_body_ends_after_its_trailers(content: bytes, whole: bytes) -> None:
    reader = io.BufferedReader(io.BytesIO(content + b"GET /next"))
    found = Body(reader, Headers([("transfer-encoding", "Chunked")]))
    assert found.read() == whole
    assert found.finished
    assert reader.read() == b"GET /next"


CUT = [
    (b"hell", ("Content-Length", "5")),
    (b"", ("Content-Length", "1")),
    (b"", CHUNKED),
    (b"5\r\nhel", CHUNKED),
    (b"5\r\nhello", CHUNKED),
    (b"5\r\nhello\r\n", CHUNKED),
    (b"5", CHUNKED),
    (b"5\r\nhelloX\r\n0\r\n\r\n", CHUNKED),
    (b"-5\r\nhello\r\n0\r\n\r\n", CHUNKED),
    (b"0x5\r\nhello\r\n0\r\n\r\n", CHUNKED),
    (b"\r\nhello\r\n0\r\n\r\n", CHUNKED),
    (b"g\r\n", CHUNKED),
    (b"f" * 20 + b"\r\n", CHUNKED),
    (b"5" * 2000, CHUNKED),
    (b"5\nhello\r\n0\r\n\r\n", CHUNKED),
    (b"5;a\nhello\r\n0\r\n\r\n", CHUNKED),
    (b"5;a\rhello\r\n0\r\n\r\n", CHUNKED),
    (b"5 5\r\nhello\r\n0\r\n\r\n", CHUNKED),
    (b" 5\r\nhello\r\n0\r\n\r\n", CHUNKED),
    (b"5\r\nhello\n0\r\n\r\n", CHUNKED),
    (b"5\r\nhello\r\n0\n\r\n", CHUNKED),
    (b"5\r\nhello\r\n0\r\n\n", CHUNKED),
    (b"5\r\nhello\r\n0\r\nA: b\n\r\n", CHUNKED),
    (b"5\r\nhello\r\n0\r\n", CHUNKED),
]


@pytest.mark.parametrize(("content", "header"), CUT)
def test_a_body_that_ends_early_or_is_malformed_is_refused(
    content: bytes, header: tuple[str, str]
) -> None:
    found = body(content, header)
    with pytest.raises(BadRequest):
        found.read()
    assert not found.finished
    passed = body(content, header)
    with pytest.raises(BadRequest):
        list(passed.frames())
    assert not passed.finished
    assert passed.idle.is_set()


FRAMINGS = [
    [("Content-Length", "x")],
    [("Content-Length", "-1")],
    [("Content-Length", "+1")],
    [("Content-Length", "1_0")],
    [("Content-Length", "")],
    [("Content-Length", "²")],
    [("Content-Length", "\xa01")],
    [("Transfer-Encoding", "\x0bchunked")],
    [("Transfer-Encoding", "xchunked")],
    [("Transfer-Encoding", "chunked, identity")],
    [("Content-Length", "1, 1")],
    [("Content-Length", "9" * 5000)],
    [("Content-Length", "1"), ("Content-Length", "2")],
    [CHUNKED, ("Content-Length", "5")],
    [CHUNKED, CHUNKED],
    [("Transfer-Encoding", "gzip, chunked")],
    [("Transfer-Encoding", "identity")],
    [("Transfer-Encoding", "")],
]


class Reset(io.BytesIO):
    """What a client sent before it reset its connection."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(size) or self.fail()

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(size) or self.fail()

    def fail(self) -> bytes:
        raise ConnectionResetError


@pytest.mark.parametrize("sent", [b"", b"5\r\nabc", b"3\r\nabc\r\n"])
def test_a_body_whose_client_resets_the_connection_is_refused(sent: bytes) -> None:
    with pytest.raises(BadRequest, match="broke off"):
        Body(Reset(sent), Headers([CHUNKED])).read()


@pytest.mark.parametrize("headers", FRAMINGS)
def test_a_framing_that_can_be_read_in_two_ways_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest):
        body(b"hello", *headers)


def test_a_body_has_a_limit() -> None:
    assert body(b"x" * 10, ("Content-Length", "10")).read(limit_bytes=10) == b"x" * 10
    with pytest.raises(BadRequest, match="longer than 9 bytes"):
        body(b"x" * 10, ("Content-Length", "10")).read(limit_bytes=9)


@given(st.lists(st.binary(min_size=1, max_size=50)))
def test_what_is_written_in_chunks_is_read_again(blocks: list[bytes]) -> None:
    text = b"".join(arpanet.in_chunks(blocks))
    assert body(text, CHUNKED).read() == b"".join(blocks)


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 100))
def test_frames_are_what_came_and_leave_the_next_request(
    blocks: list[bytes], buffer_bytes: int
) -> None:
    text = b"".join(arpanet.in_chunks(blocks))
    reader = io.BufferedReader(io.BytesIO(text + b"GET / HTTP/1.1"), buffer_bytes)
    found = Body(reader, Headers([CHUNKED]))
    assert b"".join(found.frames()) == text
    assert found.finished
    assert reader.read() == b"GET / HTTP/1.1"


def test_frames_of_a_counted_body_are_its_bytes() -> None:
    found = body(b"hello, and more", ("Content-Length", "5"))
    assert b"".join(found.frames()) == b"hello"
    assert found.finished


# ---- ChunkScanner


def scan(blocks: Iterable[bytes]) -> arpanet.ChunkScanner:
    """Return a scanner that was fed with these, and was at the end after the last one alone."""
    scanner = arpanet.ChunkScanner()
    for block in blocks:
        assert not scanner.finished
        assert scanner.feed(block) == len(block)
    return scanner


def framed(chunks: list[bytes], extension: bytes, trailers: list[bytes]) -> bytes:
    heads = [b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks]
    return b"".join([*heads, b"0%s\r\n" % extension, *[t + b"\r\n" for t in trailers], b"\r\n"])


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.sampled_from([b"", b"; name=value", b' ;a="0"']),
    st.lists(st.sampled_from([b"Trailer: x", b"0: 0"]), max_size=2),
    st.data(),
)
def test_the_end_of_a_chunked_body_is_found_wherever_it_is_split(
    chunks: list[bytes], extension: bytes, trailers: list[bytes], data: st.DataObject
) -> None:
    text = framed(chunks, extension, trailers)
    for cut in range(1, len(text)):
        assert scan([text[:cut], text[cut:]]).finished
        assert not scan([text[:cut]]).finished
    assert scan(bytes([byte]) for byte in text).finished
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    assert scan(text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])).finished


MALFORMED = [
    b"\r\n", b"g\r\n", b"-1\r\n", b"0x1\r\n", b"1_0\r\n", b"f" * 16 + b"\r\n", b"1\nx\r\n",
    b"1\r\nxy\r\n0\r\n\r\n", b"1" * 5000, b"1;" + b"x" * 5000, b"0\r\n" + b"x" * 5000,
    b"1\r\nx\n\r0\r\n", b"1\r\nx\r\n0\n\r\n", b"1\r\nx0\r\n\r\n", b"1\r\nxy", b"0\r\nA: b\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_chunks_that_are_malformed_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="chunk"):
        scan([text])


def test_what_follows_a_chunked_body_is_not_its() -> None:
    scanner = arpanet.ChunkScanner()
    assert scanner.feed(b"1\r\nx\r") == 5
    assert scanner.feed(b"\n0\r\n\r\nGET /") == 6
    assert scanner.finished


# ---- send_request, http_json


def sent(method: str, target: str, headers: list[tuple[str, str]]) -> bytes:
    """Return what one request puts on the wire."""
    near, far = socket.socketpair()
    with near, far:
        send_request(near, method, target, headers, b"body")
        near.shutdown(socket.SHUT_WR)
        with far.makefile("rb") as file:
            return file.read()


def test_a_request_is_written() -> None:
    assert sent("POST", "/x?y=1", [("A", "b")]) == (
        b"POST /x?y=1 HTTP/1.1\r\nHost: docker\r\nA: b\r\n\r\nbody"
    )


@pytest.mark.parametrize(
    ("method", "target", "value"),
    [("GET\r\n", "/", ""), ("GET", "/ HTTP/1.1\r\nEvil: 1\r\n", ""), ("GET", "/", "a\nEvil: 1")],
)
def test_a_request_cannot_smuggle_lines(method: str, target: str, value: str) -> None:
    with pytest.raises(BadRequest, match="line breaks"):
        sent(method, target, [("A", value)])


@contextlib.contextmanager
def server_of(answer: bytes) -> Iterator[HostPort]:
    """Yield the address of a server that gives one client that answer, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield HostPort(*listener.getsockname())
        thread.join()


def ask(answer: bytes) -> Any:
    """Return what http_json makes of an answer."""
    with server_of(answer) as address:
        return http_json(address, "GET", "/", 10 * SLOW)


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def test_the_json_of_a_server() -> None:
    assert ask(OK + b'\r\n{"a": 1}') == {"a": 1}
    assert ask(OK + b"Content-Length: 0\r\n\r\n") is None


def test_the_words_of_a_servers_error() -> None:
    head = b"HTTP/1.1 409 Conflict\r\nConnection: close\r\n\r\n"
    for text, words in ((b'{"message":"no way"}', "no way"), (b"[]", "status 409")):
        with pytest.raises(EngineError) as caught:
            ask(head + text)
        assert (caught.value.status, str(caught.value)) == (409, words)


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-x\r\n", OK + b"\r\n<html>", OK + b"Content-Length: 9\r\n\r\n{}", b"\x15\x03"],
)
def test_a_server_that_speaks_something_else(answer: bytes) -> None:
    with pytest.raises(OSError, match=r"not HTTP|without an answer|does not speak arpanet"):
        ask(answer)


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = HostPort(*listener.getsockname())
    with pytest.raises(ConnectionRefusedError):
        http_json(address, "GET", "/", 10 * SLOW)


# ---- ApiConnection


@contextlib.contextmanager
def engine_that_says(answer: bytes) -> Iterator[arpanet.Host]:
    """Yield a host whose agent leads to an engine that gives one client that answer, and goes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                client.recv(65536)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = HostPort(*listener.getsockname())
        yield host("h1")._replace(ip=address.host, agent_port=address.port)
        thread.join()


class FakeMesh:
    """A mesh at a revision, or without quorum."""

    endpoints = ("10.0.0.7:2379",)
    mark = "ours/1"

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.waits: list[float | None] = []  # what each read was given, in seconds

    def read_revision(self, timeout_s: float | None = None) -> int:
        self.waits.append(timeout_s)
        if not self.revision:
            raise MeshDown("no quorum")
        return self.revision


class Api(NamedTuple):
    """A master's API without etcd and without an engine."""

    address: HostPort
    node: Node
    mesh: FakeMesh
    lobby: Lobby

    def talk(self, *requests: bytes) -> list[Answer]:
        """Return all that comes back for bytes on one connection, until it is closed."""
        with contextlib.closing(arpanet.dial(self.address)) as sock:
            sock.settimeout(10 * SLOW)
            sock.sendall(b"".join(requests))
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                return list(read_answers(file, [r.split(b" ")[0] for r in requests]))

    def get(self, target: str, *headers: str, method: str = "GET") -> Answer:
        """Return the answer to one request."""
        (answer,) = self.talk(request(f"{method} {target}", *headers))
        return answer


class Answer(NamedTuple):
    """One answer, its body unchunked."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """Return the words of an error, which must be JSON."""
        assert self.headers["Content-Type"] == "application/json"
        words = json.loads(self.body)
        assert set(words) == {"message"}
        return str(words["message"])


def read_answers(file: Any, methods: list[bytes]) -> Iterator[Answer]:
    """Yield the answers on a connection; the methods say which have no body."""
    while line := file.readline():
        assert line.startswith(b"HTTP/1.1 ")
        headers = {}
        while field := file.readline().strip().decode():
            name, _, value = field.partition(": ")
            headers[name] = value
        method = methods.pop(0) if methods else b"GET"
        length = 0 if method == b"HEAD" else int(headers["Content-Length"])
        yield Answer(int(line.split()[1]), headers, file.read(length))


def request(line: str, *headers: str, body: bytes = b"", version: str = "HTTP/1.1") -> bytes:
    """Return the bytes of a request."""
    return "\r\n".join([f"{line} {version}", *headers, "", ""]).encode("latin-1") + body


LIMITS = Limits(connections=50, per_ip=40, requests=20, head_s=10.0 * SLOW, stall_s=10.0 * SLOW)


@contextlib.contextmanager
def serving(watches: bool = True) -> Iterator[Api]:
    """Yield an API that serves; without watches nobody tells it of clients that go."""
    stop, mesh = threading.Event(), FakeMesh(7)
    node = Node(read_settings({}, {}, {}, "h1", "master"), mesh, stop)  # type: ignore[arg-type]
    pump, hangups, lobby = Pump(stop), HangupWatch(stop), Lobby(LIMITS, stop)
    pump.start()
    watch = hangups.run if watches else lambda: None
    watching = [arpanet.spawn("hangups", watch), arpanet.spawn("lobby", lobby.run)]
    with ApiServer(HostPort("127.0.0.1", 0), node, pump, hangups, lobby) as listener:
        accepting = arpanet.spawn("api", lambda: listener.serve_forever(0.01))
        yield Api(HostPort("127.0.0.1", listener.server_address[1]), node, mesh, lobby)
        listener.shutdown()
        accepting.join()
    stop.set()
    pump.stop()
    node.tunnels.expire(node.tunnels.KEEP_S)
    for thread in watching:
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Api]:
    """Yield an API that serves until the last test of this file."""
    with serving() as api:
        yield api


@pytest.fixture
def api(server: Api) -> Api:
    """Return the API over a fresh view of three hosts and two containers."""
    server.mesh.revision = 7
    server.node.view = view(container("web", "h1"), container("db", "h2", created=2000))
    server.node.report = dict
    server.node.silent = arpanet.Lately()
    return server


@pytest.fixture
def hasty(api: Api) -> Iterator[Api]:
    """Return the API as it is when it gives up soon who is silent."""
    api.lobby.limits = LIMITS._replace(head_s=1.0, stall_s=1.0)
    yield api
    api.lobby.limits = LIMITS


def test_ping(api: Api) -> None:
    answer = api.get("/_ping")
    assert (answer.status, answer.body) == (200, b"OK")
    assert answer.headers["Api-Version"] == "1.41"
    assert answer.headers["Ostype"] == "linux"


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAMS = [
    (b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\n", True),
    (b"", False),
    (b"5\r\nhel", False),
    (b"5\r\nhello\r\n", False),
    (b"5\r\nhello\r\n0\r\n", False),
]


@pytest.mark.parametrize(("stream", "whole"), STREAMS)
def test_a_chunked_answer_is_passed_on_as_it_is_and_broken_off_as_it_was(
    api: Api, stream: bytes, whole: bool
) -> None:
    with engine_that_says(CHUNKED_HEAD + stream) as far:
        api.node.view = view(container("web", "h1"), hosts=[far])
        with contextlib.closing(arpanet.dial(api.address)) as sock:
            sock.settimeout(10 * SLOW)
            sock.sendall(request("GET /containers/web/logs?stdout=1"))
            said = b""
            while not said.endswith(stream) or b"\r\n\r\n" not in said:
                said += sock.recv(65536) or pytest.fail(f"broke off after {said!r}")
            if whole:
                sock.sendall(request("GET /_ping"))
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\nApi-Version")
            else:
                assert sock.recv(65536) == b""
    head, _, passed = said.partition(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked" in head
    assert passed == stream


FORMS = ["busybox&tag=latest", "docker.io/library/busybox&tag=latest", "library%2Fbusybox:latest"]


@pytest.mark.parametrize("form", FORMS)
def test_a_pull_that_a_create_waits_on_goes_to_its_host_by_any_form_of_the_name(
    api: Api, form: str
) -> None:
    progress = b'{"status":"pulled"}\r\n'  # one of all hosts would be led by its host's name
    with engine_that_says(b"HTTP/1.1 200 OK\r\n\r\n" + progress) as far:
        api.node.view = view(hosts=[far])
        api.node.pull_hosts.put("busybox:latest", "h1")
        with contextlib.closing(arpanet.dial(api.address)) as sock:
            sock.settimeout(10 * SLOW)
            asked = f"POST /images/create?fromImage={form}"
            sock.sendall(request(asked, "Content-Length: 0", version="HTTP/1.0"))
            said = b"".join(iter(lambda: sock.recv(65536), b""))
    assert said.partition(b"\r\n\r\n")[2] == progress


def test_a_client_that_only_a_failed_write_tells_of_takes_its_streams_with_it() -> None:
    with serving(watches=False) as api, socket.create_server(("127.0.0.1", 0)) as listener:
        address = HostPort(*listener.getsockname())
        api.node.view = view(hosts=[host("h1")._replace(ip=address.host, agent_port=address.port)])
        with contextlib.closing(arpanet.dial(api.address)) as client:
            client.sendall(request("GET /events"))
            engine, _ = listener.accept()
            for answer in (b"HTTP/1.1 200 OK\r\n\r\n", CHUNKED_HEAD):
                assert engine.recv(65536)
                engine.sendall(answer)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        with engine:
            engine.settimeout(0.05)
            numbers = itertools.count(1000)

            def ended() -> bool:
                try:
                    engine.sendall(b'12\r\n{"timeNano":%d}\n\r\n' % next(numbers))
                    return engine.recv(1) == b""
                except TimeoutError:
                    return False
                except ConnectionError:
                    return True

            until("the engine's stream has ended", ended)


def test_a_client_of_http_1_0_gets_a_chunked_answer_without_the_chunks(api: Api) -> None:
    with engine_that_says(CHUNKED_HEAD + STREAMS[0][0]) as far:
        api.node.view = view(container("web", "h1"), hosts=[far])
        with contextlib.closing(arpanet.dial(api.address)) as sock:
            sock.sendall(request("GET /containers/web/logs", version="HTTP/1.0"))
            with sock.makefile("rb") as file:
                assert file.read().partition(b"\r\n\r\n")[2] == b"hello!"


def test_head_has_the_head_of_get_and_no_body(api: Api) -> None:
    head, get = api.get("/_ping", method="HEAD"), api.get("/_ping")
    assert head.body == b""
    assert {**head.headers, "Date": ""} == {**get.headers, "Date": ""}


@pytest.mark.parametrize(
    "target", ["/", "/nothing", "/v1.41/nothing", "/containers", "/v1.41", "x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "BREW"])
def test_an_unknown_path_is_404_in_the_engines_words(api: Api, method: str, target: str) -> None:
    answer = api.get(target, method=method)
    assert (answer.status, answer.message) == (404, "page not found")


def test_another_verb_is_404_too(api: Api) -> None:
    assert api.get("/version", method="DELETE").message == "page not found"


PATHS = [
    "/containers/json",
    "/v1.41/containers/json",
    "//containers///json",
    "//v1.41//containers/json",
    "http://h1:8791/containers/json",
    "https://h1/v1.30/containers/json?all=1",
]


@pytest.mark.parametrize("target", PATHS)
def test_a_path_has_many_forms(api: Api, target: str) -> None:
    answer = api.get(target)
    assert answer.status == 200
    assert [c["Names"] for c in json.loads(answer.body)] == [
        ["/db@h2", "/db"],
        ["/web@h1", "/web"],
    ]


TRICKS = [
    "/containers/../images/json", "/v1.41/images/x/../../containers/json", "/images/a/./json",
    "/images/%2e%2e/json", "/images/x%2F..%2F..%2Fcontainers/json", "/images/x/%2E./json",
    "http://h1/containers/web/..", "/..", "/v1.41/../_ping", "//../_ping",
]  # fmt: skip


@pytest.mark.parametrize("target", TRICKS)
def test_a_path_that_an_engine_would_read_as_another_is_refused(api: Api, target: str) -> None:
    for verb in ("GET", "DELETE", "POST"):
        (answer,) = api.talk(request(f"{verb} {target}", "Content-Length: 0", "Connection: close"))
        assert answer.status == 400, (verb, answer)
        assert "a path cannot have" in answer.message


@pytest.mark.parametrize("target", ["/images/..x/json", "/images/a..b/json", "/images/.x./json"])
def test_dots_in_a_name_are_dots(api: Api, target: str) -> None:
    assert api.get(target).status == 503  # its host was asked, where nobody listens


def test_a_listing_obeys_its_query(api: Api) -> None:
    found = json.loads(api.get('/containers/json?all=1&filters={"name":["we"]}').body)
    assert [c["Status"] for c in found] == [
        arpanet.status_text({**container().state}, arpanet.utc_now())
    ]


VERSIONS = [
    ("/v1.99", "client version 1.99 is too new. Maximum supported API version is 1.41"),
    ("/v1.5", "client version 1.5 is too old. Minimum supported API version is 1.12, please "
              "upgrade your client to a newer version"),
    ("/v999.999", "client version 999.999 is too new. Maximum supported API version is 1.41"),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "words"), VERSIONS)
def test_a_version_that_the_engines_cannot_do(api: Api, prefix: str, words: str) -> None:
    answer = api.get(f"{prefix}/containers/json")
    assert (answer.status, answer.message) == (400, words)
    assert api.get(f"{prefix}/_ping").status == 200  # a client asks here which versions there are


WRONG = [
    ("GET /containers/json?limit=x", 400, "limit must be a number, not 'x'"),
    ("GET /containers/json?filters=[]", 400, "filters must be a JSON object"),
    ("GET /containers/ghost/json", 404, "No such container: ghost"),
    ("POST /containers/ghost/start", 404, "No such container: ghost"),
    ("GET /containers/a%20%C3%A9/json", 404, "No such container: a é"),
    ("POST /swarm/init", 501, "POST /swarm/init is not supported"),
    ("GET /swarm", 501, "GET /swarm is not supported"),
    ("POST /swarm/leave?force=True", 503, "This node is not part of a swarm"),
    ("PUT /volumes/v", 501, "PUT /volumes/v is not supported"),
    ("POST /containers/create", 400, "the body is not JSON"),
]


@pytest.mark.parametrize(("line", "status", "words"), WRONG)
def test_an_error_is_json_with_its_words(api: Api, line: str, status: int, words: str) -> None:
    (answer,) = api.talk(request(line))
    assert answer.status == status
    assert words in answer.message


def test_options_are_answered_on_any_path(api: Api) -> None:
    for path in ("/", "/containers/json", "/v1.41/nosuch"):
        (answer,) = api.talk(request(f"OPTIONS {path}"))
        assert (answer.status, answer.body) == (200, b"")


CREATES: list[tuple[str, bytes, str]] = [
    ("x", b"[]", "the body must be a JSON object"),
    ("x", b"{", "the body is not JSON"),
    ("", b"{}", "a container needs a name here"),
    ("ab@", b"{}", "try: --name ab"),
    ("xx", b'{"Env": "A=1"}', "Env must be a list of strings"),
    ("xx", b'{"Env": ["ARPANET_LINK1=ghost"]}', "No such container: ghost"),
]


@pytest.mark.parametrize(("name", "content", "words"), CREATES)
def test_a_create_that_is_wrong(api: Api, name: str, content: bytes, words: str) -> None:
    length = f"Content-Length: {len(content)}"
    (answer,) = api.talk(request(f"POST /containers/create?name={name}", length, body=content))
    assert answer.status == 400
    assert words in answer.message


def test_one_connection_for_many_requests(api: Api) -> None:
    create = request(
        "POST /containers/create", "Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"
    )
    answers = api.talk(request("GET /_ping"), request("HEAD /_ping"), create, request("GET /none"))
    assert [a.status for a in answers] == [200, 200, 400, 404]
    assert all("Connection" not in a.headers for a in answers)


UNREAD = request("GET /version")


@pytest.mark.parametrize(
    "refused",
    [
        request("POST /swarm/leave", f"Content-Length: {len(UNREAD)}", body=UNREAD),
        request("POST /none", f"Content-Length: {len(UNREAD)}", body=UNREAD),
        request("GET /_ping", f"Content-Length: {len(UNREAD)}", body=UNREAD),
        request("POST /swarm/leave", "Transfer-Encoding: chunked", body=b"x" + UNREAD),
        request("POST /swarm/leave", "Content-Length: 1000000000", body=UNREAD),
    ],
)
def test_a_body_that_nobody_read_is_never_taken_for_a_request(api: Api, refused: bytes) -> None:
    assert len(api.talk(refused)) == 1


def test_a_client_that_sends_a_lot_still_reads_the_refusal(api: Api) -> None:
    head = request("POST /swarm/init", "Content-Length: 1000000")
    (answer,) = api.talk(head, b"x" * 1_000_000)
    assert answer.status == 501


def test_a_client_that_asks_first_is_told_to_go_on(api: Api) -> None:
    with contextlib.closing(arpanet.dial(api.address)) as sock:
        sock.settimeout(10 * SLOW)
        words = ("Expect: 100-continue", "Content-Length: 2", "Connection: close")
        sock.sendall(request("POST /containers/create?name=x@y", *words))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"{}")
        with sock.makefile("rb") as file:
            assert file.read().startswith(b"HTTP/1.1 400 ")


def test_http_1_0_is_one_request(api: Api) -> None:
    old = request("GET /_ping", version="HTTP/1.0")
    (answer,) = api.talk(old, old)
    assert answer.headers["Connection"] == "close"
    assert answer.body == b"OK"


def test_connection_close_is_obeyed(api: Api) -> None:
    (answer,) = api.talk(request("GET /_ping", "Connection: close"), request("GET /_ping"))
    assert answer.headers["Connection"] == "close"


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / SPDY/1.1\r\n\r\n",
    b"GET / HTTP/1.1 extra\r\n\r\n",
    request("POST /swarm/leave", "Content-Length: 1", "Content-Length: 2"),
    request("POST /swarm/leave", "Content-Length: \xb2"),
    request("POST /swarm/leave", "Content-Length: " + "9" * 5000),
    request("GET /_ping", *[f"A{n}: x" for n in range(200)]),
    request("GET /_ping", "A: " + "x" * arpanet.HEAD_LIMIT_BYTES),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_answered_in_json_and_ends_the_connection(api: Api, garbage: bytes) -> None:
    (answer,) = api.talk(garbage, request("GET /_ping"))
    assert answer.status in (400, 431, 505)
    assert answer.message
    assert answer.headers["Connection"] == "close"


def test_a_request_line_has_a_limit(api: Api) -> None:
    (answer,) = api.talk(b"GET /" + b"x" * arpanet.HEAD_LIMIT_BYTES + b"\r\n\r\n")
    assert answer.status == 431


@pytest.mark.parametrize("silence", [b"", b"\r\n", b"GET /_ping", b"GET /_ping HTTP/1.1\r\nA: b"])
def test_a_client_that_goes_in_the_middle_ends_its_thread(api: Api, silence: bytes) -> None:
    assert len(api.talk(silence)) <= 1
    assert api.get("/_ping").status == 200


def test_without_quorum_reads_are_answered_with_a_warning_and_changes_are_not(api: Api) -> None:
    api.mesh.revision = 0
    listing = api.get("/containers/json")
    assert listing.status == 200
    assert listing.headers["Warning"] == '199 arpanet "may be stale: no quorum"'
    assert "Warning" not in api.get("/_ping").headers
    change = api.get("/containers/web/start", method="POST")
    assert (change.status, change.message) == (503, "no quorum")


def test_a_listing_waits_less_once_one_has_waited_for_a_majority_in_vain(api: Api) -> None:
    api.get("/containers/json")
    api.mesh.waits.clear()
    for revision in (0, 0, 7, 7):
        api.mesh.revision = revision
        api.get("/containers/json")
    soon = arpanet.READ_NEXT_S
    assert api.mesh.waits == [arpanet.READ_S, soon, soon, arpanet.READ_S]


def test_a_refusal_for_want_of_a_majority_names_the_masters_that_are_missing(api: Api) -> None:
    rows = [("h1", True), ("h2", False), ("", False)]
    masters = [{"name": n, "ip": f"10.0.0.{i}", "answers": a} for i, (n, a) in enumerate(rows)]
    api.mesh.revision, api.node.report = 0, lambda: {"masters": masters}
    answer = api.get("/containers/web/start", method="POST")
    assert answer.message == "no quorum; missing: h2 (10.0.0.1), ? (10.0.0.2)"


def test_masters_are_asked_once_a_second_however_many_requests_fail(api: Api) -> None:
    asked: list[int] = []

    def report() -> dict[str, Any]:
        asked.append(1)
        return {"masters": [{"name": "h2", "ip": "10.0.0.1", "answers": False}]}

    api.mesh.revision, api.node.report, api.node.silent = 0, report, arpanet.Lately()
    api.node.silent.KEEP_S = 600.0
    calls = {
        str(n): functools.partial(api.get, "/containers/web/start", method="POST")
        for n in range(50)
    }
    said = {answer.message for answer in arpanet.gather(calls).values()}
    assert said == {"no quorum; missing: h2 (10.0.0.1)"}
    assert len(asked) == 1


def test_a_fan_out_starts_no_more_threads_than_it_may() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def ask(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1
        if number == 400:
            raise OSError("it is down")
        return number

    answers = arpanet.gather({str(n): functools.partial(ask, n) for n in range(500)})
    assert 1 < most[0] <= 64
    assert isinstance(answers.pop("400"), OSError)
    assert answers == {str(n): n for n in range(500) if n != 400}


def test_a_fault_in_one_question_of_a_fan_out_leaves_the_others_theirs() -> None:
    def ask(number: int) -> int:
        if number % 2:
            raise RuntimeError("a fault")
        return number

    answers = arpanet.gather({str(n): functools.partial(ask, n) for n in range(300)})
    assert all(answers[str(n)] == n for n in range(0, 300, 2))
    assert all(isinstance(answers[str(n)], arpanet.Unavailable) for n in range(1, 300, 2))


def test_a_head_with_a_password_is_not_kept() -> None:
    for field in ("X-Registry-Auth: c2VjcmV0", "x-registry-config: e30", "Authorization: Basic YQ"):
        text = f"POST /images/create HTTP/1.1\r\nHost: a\r\n{field}".encode()
        head = arpanet.read_head(text)
        assert head.headers.get(field.partition(":")[0])
        assert arpanet.read_head(text) is not head
    plain = b"GET /_ping HTTP/1.1\r\nHost: a"
    assert arpanet.read_head(plain) is arpanet.read_head(plain)


def test_a_filter_that_asks_hosts_holds_no_other_listing_up(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(*_: object) -> tuple[str, ...]:
        assert not api.node.answers._lock.locked()
        asked.append(1)
        return ()

    monkeypatch.setattr(arpanet, "find_ancestry", find)
    for word in ("ancestor", "\\u0061ncestor"):
        filters = urllib.parse.quote(f'{{"{word}":["x"]}}')
        assert api.get(f"/containers/json?filters={filters}").status == 200
    assert len(asked) == 2


def test_a_master_says_whether_it_has_a_majority(api: Api) -> None:
    api.node._quorum_due = 0.0
    well = {"quorum": True, "masters": ["10.0.0.7"], "arpanet": "ours"}
    assert json.loads(api.get("/arpanet/masters").body) == well
    api.mesh.revision, api.node._quorum_due = 0, 0.0
    assert not json.loads(api.get("/arpanet/masters").body)["quorum"]


def test_a_request_whose_client_was_told_that_it_failed_is_not_begun() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        with listener.accept()[0] as sock:
            connection = cast(arpanet.ApiConnection, types.SimpleNamespace(connection=sock))
            client.sendall(b"POST /containers/web/kill HTTP/1.1\r\n\r\n")
            client.shutdown(socket.SHUT_WR)  # one that has said all may wait for the answer
            assert not arpanet.ApiConnection._is_gone(connection)
            arpanet.reset(client)
            until("it is gone", lambda: arpanet.ApiConnection._is_gone(connection))


def test_a_host_that_is_down_is_said(api: Api) -> None:
    api.node.view = view(container("web", "h1"), down=["h1"])
    answer = api.get("/containers/web/top")
    assert answer.status == 503
    assert "host h1 (127.9.0.1) is down" in answer.message
    known = api.get("/containers/web/json")
    details = json.loads(known.body)
    assert (known.status, details["Name"], details["Host"]["Name"]) == (200, "/web", "h1")
    assert details["State"]["Status"] == "running"
    assert details["State"]["Error"].startswith("Host Down: host h1 (127.9.0.1) is down")


def test_a_fault_of_ours_says_nothing_of_its_inside(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("secret")

    api.node.report = fail
    answer = api.get("/arpanet/status")
    assert answer.status == 500
    assert answer.message == "internal error; the log of the master says more"
    assert "secret" in caplog.text
    assert api.get("/_ping").status == 200


def test_clients_are_served_at_once(api: Api) -> None:
    held = threading.Event()

    def report() -> dict[str, Any]:
        held.wait(10)
        return {}

    api.node.report = report
    answers: list[Answer] = []
    slow = arpanet.spawn("slow", lambda: answers.append(api.get("/arpanet/status")))
    assert api.get("/_ping").status == 200
    assert not answers
    held.set()
    slow.join()
    assert answers[0].status == 200


def test_the_view_has_no_part_in_the_versions_when_nobody_is_there(api: Api) -> None:
    api.node.view = View(revision=7)
    assert json.loads(api.get("/version").body)["ApiVersion"] == "1.51"
    assert json.loads(api.get("/v1.51/containers/json").body) == []


# ---- clients that do not ask, or not at once


@contextlib.contextmanager
def connections(api: Api, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Yield open connections on which no more than that was sent."""
    until("nobody there", lambda: not api.lobby._total)
    with contextlib.ExitStack() as opened:
        socks = []
        for _ in range(count):
            sock = opened.enter_context(contextlib.closing(arpanet.dial(api.address)))
            sock.settimeout(10 * SLOW)
            sock.sendall(sent)
            socks.append(sock)
        yield socks


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    with sock.makefile("rb") as file:
        return file.read()


def api_threads() -> int:
    """Return how many requests are being served."""
    return sum(thread.name.startswith("api-") for thread in threading.enumerate())


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"GET /_ping HTTP/1.1\r\nA: b", b"\x00\xff garbage"]
)
def test_a_client_that_does_not_ask_has_no_thread(api: Api, sent: bytes) -> None:
    with connections(api, 30, sent):
        assert api.get("/_ping").status == 200
        until("no thread", lambda: api_threads() == 0)
        assert api.get("/_ping").status == 200


def test_a_request_that_comes_byte_by_byte_is_served(api: Api) -> None:
    with connections(api, 1) as (sock,):
        for byte in request("GET /_ping", "Connection: close"):
            sock.sendall(bytes([byte]))
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_rests_is_served_again(api: Api) -> None:
    with connections(api, 1) as (sock,), sock.makefile("rb") as file:
        for _ in range(3):
            sock.sendall(request("GET /_ping"))
            until("an answer", lambda: file.readline().startswith(b"HTTP/1.1 200 "))
            while file.readline().strip():
                pass
            assert file.read(2) == b"OK"
            until("no thread", lambda: api_threads() == 0)


def test_half_of_the_next_request_may_come_with_the_one_before(api: Api) -> None:
    half, rest = request("GET /_ping")[:9], request("GET /_ping", "Connection: close")[9:]
    with connections(api, 1, request("GET /_ping") + half) as (sock,):
        until("no thread", lambda: api_threads() == 0)
        sock.sendall(rest)
        assert read_all(sock).count(b"HTTP/1.1 200 ") == 2


def test_a_head_that_does_not_end_is_408(hasty: Api) -> None:
    with connections(hasty, 1, b"GET /_ping HTTP/1.1\r\nA: ") as (sock,):
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"was not there within 1 s" in answer


def test_silence_ends_without_a_word(hasty: Api) -> None:
    with connections(hasty, 1) as (sock,):
        assert read_all(sock) == b""


def test_a_body_that_does_not_go_on_is_400(hasty: Api) -> None:
    head = request("POST /containers/create?name=xx", "Content-Length: 10", body=b"{}")
    with connections(hasty, 1, head) as (sock,):
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the body broke off: timed out" in answer


def test_a_body_that_is_longer_than_it_says_is_no_request(api: Api) -> None:
    first = request(
        "POST /containers/create?name=x@y", "Content-Length: 2", body=b"{}garbage\r\n\r\n"
    )
    answers = api.talk(first)
    assert [a.status for a in answers] == [400, 400]
    assert "not like 'garbage'" in answers[1].message
    assert answers[1].headers["Connection"] == "close"


def test_a_client_that_does_not_read_is_given_up(hasty: Api) -> None:
    hasty.node.view = view(*(container(f"c{n}", Labels={"a": "x" * 100_000}) for n in range(60)))
    with connections(hasty, 1, request("GET /containers/json?all=1")) as (sock,):
        assert sock.recv(1, socket.MSG_PEEK)
        until("it is given up", lambda: not hasty.lobby._total)
        with pytest.raises(ConnectionResetError):
            sock.sendall(request("GET /_ping"))
            assert len(read_all(sock)) < 6_000_000
            sock.sendall(request("GET /_ping"))


def test_a_client_that_takes_a_byte_now_and_then_is_given_up_too(hasty: Api) -> None:
    hasty.node.view = view(*(container(f"c{n}", Labels={"a": "x" * 100_000}) for n in range(60)))
    with connections(hasty, 1, request("GET /containers/json?all=1")) as (sock,):

        def is_given_up() -> bool:
            sock.recv(5000)
            return not hasty.lobby._total

        until("it is given up", is_given_up)


def test_the_kernel_ends_a_call_that_lasts_too_long() -> None:
    near, far = socket.socketpair()
    with near, far:
        arpanet.limit_waits(near, 0.01)
        with pytest.raises(BlockingIOError):
            near.recv(1)
        with pytest.raises(BlockingIOError):
            near.sendall(bytes(10_000_000))
        assert near.gettimeout() is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"connections": 4}, "no more than 4 connections: "),
        ({"per_ip": 4}, "no more than 4 connections from 127.0.0.1: "),
        ({"requests": 0}, "no more than 0 requests at once: "),
    ],
)
def test_one_too_many_is_told_so(api: Api, changed: dict[str, int], words: str) -> None:
    lobby = api.lobby
    until("nobody there", lambda: not lobby._total)
    lobby.limits = LIMITS._replace(**changed)
    try:
        with connections(api, 4) as held:
            answer = api.get("/_ping")
            assert (answer.status, answer.headers["Connection"]) == (503, "close")
            assert words in answer.message
            assert "(ARPANET_MAX_" in answer.message
            if "requests" not in changed:
                held[0].sendall(request("GET /_ping", "Connection: close"))
                assert read_all(held[0]).startswith(b"HTTP/1.1 200 ")
                until("its place is free", lambda: lobby._total < 4)
                assert api.get("/_ping").status == 200
    finally:
        lobby.limits = LIMITS
    until("nobody left", lambda: not lobby._total)


def test_heads_hold_only_so_much_memory(api: Api) -> None:
    part = b"GET /" + b"x" * (arpanet.HEAD_LIMIT_BYTES - 100_000)
    with connections(api, 1) as (sock,):
        api.lobby._held_bytes += arpanet.HEADS_BYTES - len(part) + 1
        try:
            sock.sendall(part)
            assert read_all(sock).startswith(b"HTTP/1.1 503 ")
        finally:
            until("it is gone", lambda: not api.lobby._total)
            api.lobby._held_bytes = 0


def test_the_descriptors_set_the_limit() -> None:
    settings = read_settings({}, {}, {}, "h1", "master")
    assert arpanet.decide_limits(settings, 500_000)[:2] == (10_000, 5_000)
    assert arpanet.decide_limits(settings, 1_100)[:2] == (300, 300)


OUT_OF_DESCRIPTORS = """
import os, resource, socket, threading, time
import test_http
with test_http.serving() as api, socket.socket() as client:
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, 4096))
    client.connect(api.address)
    began = time.process_time()
    threading.Event().wait(1.0)
    print(time.process_time() - began < 0.1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    client.sendall(test_http.request("GET /_ping", "Connection: close"))
    print(test_http.read_all(client)[:15])
"""


def test_without_descriptors_accept_rests_and_goes_on_later() -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here.parent.parent, here, here.parent)))
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS],
        env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60 * SLOW, check=False,
    )  # fmt: skip
    assert done.stdout == "True\nb'HTTP/1.1 200 OK'\n", done.stderr
    assert done.stderr.count("accepts no connection for now") == 1


# ---- a listing is bytes kept ready, and never stale


class SlowRead:
    """A read of the revision that is told when to end, and what it then returns."""

    def __init__(self) -> None:
        self.begun = 0
        self.ends: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def __call__(self) -> int:
        self.begun += 1
        end = self.ends.get(timeout=10)
        if isinstance(end, Exception):
            raise end
        return end


def asking(shared: SharedRead, count: int, asked: list[Any]) -> list[threading.Thread]:
    """Return threads that ask at once, once all of them have."""

    def ask_one() -> None:
        try:
            asked.append(shared.get())
        except MeshDown as e:
            asked.append(str(e))

    return [arpanet.spawn(f"ask-{number}", ask_one) for number in range(count)]


def test_who_asks_during_a_read_shares_the_next_one() -> None:
    read = SlowRead()
    shared = SharedRead(read, round_s=10)
    answers: list[Any] = []
    first = asking(shared, 1, answers)
    until("the first read", lambda: read.begun == 1)
    late = asking(shared, 20, answers)
    until("all have asked", lambda: shared.waiting == 20)
    assert read.begun == 1
    read.ends.put(1)
    first[0].join()
    until("the second read", lambda: read.begun == 2)
    assert answers == [1]
    read.ends.put(MeshDown("no quorum"))
    for thread in late:
        thread.join()
    assert answers == [1] + ["no quorum"] * 20
    assert read.begun == 2


def test_a_read_that_hangs_holds_up_the_next_one_for_a_moment_only() -> None:
    read = SlowRead()
    shared = SharedRead(read)
    answers: list[Any] = []
    threads = asking(shared, 1, answers)
    until("the first read", lambda: read.begun == 1)
    threads += asking(shared, 1, answers)
    until("the second read, beside the first", lambda: read.begun == 2)
    for _ in threads:
        read.ends.put(5)
    for thread in threads:
        thread.join()
    assert answers == [5, 5]


def test_a_head_with_credentials_is_not_kept_in_memory() -> None:
    arpanet.parse_known_head.cache_clear()
    secret = b"GET /v1.41/distribution/x/json HTTP/1.1\r\nx-registry-auth: c2VjcmV0"
    for head in (secret, b"POST /v1.41/build?buildargs=secret HTTP/1.1\r\nHost: a"):
        assert arpanet.read_head(head).target == head.split()[1].decode()
        assert arpanet.parse_known_head.cache_info().currsize == 0
    for _ in range(2):
        arpanet.read_head(b"GET /v1.41/containers/json HTTP/1.1\r\nHost: a")
    assert arpanet.parse_known_head.cache_info().hits == 1


def test_a_listing_is_made_once_for_a_view_a_query_and_a_second() -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"%d" % len(made))
        return made[-1]

    answers, now, later = arpanet.Answers(), arpanet.utc_now(), arpanet.utc_now()
    now, later = now.replace(microsecond=0), now.replace(microsecond=999_999)
    one, two = view(), view()
    assert answers.get(one, now, "a", make) is answers.get(one, later, "a", make) is made[0]
    assert answers.get(one, now, "b", make) == b"1"
    assert answers.get(two, now, "a", make) == b"2"
    assert answers.get(two, now + datetime.timedelta(seconds=1), "a", make) == b"3"
    for number in range(100):
        answers.get(two, now, str(number), make)
    assert len(answers._made) <= answers.MOST


def test_a_listing_has_what_has_just_changed(api: Api) -> None:
    for name in ("one", "two", "three"):
        api.node.view = view(container(name))
        for _ in range(2):
            (entry,) = json.loads(api.get("/containers/json?all=1").body)
            assert entry["Names"] == [f"/{name}@h1", f"/{name}"]
    api.node.view = view(container("one"), down=["h1"])
    assert json.loads(api.get("/containers/json?all=1").body)[0]["Status"] == "Host Down"


def test_a_stream_of_events_keeps_one_way_to_end_it_for_each_host_and_spares_who_refuses() -> None:
    ended: list[int] = []
    opened: list[str] = []

    class Refusing:
        def send(self, _method: str, target: str, on_cut: Callable[..., None]) -> Any:
            number = len(opened)
            opened.append(target)
            on_cut(lambda: ended.append(number))
            raise arpanet.EngineDown("gone")

    hangups: list[Callable[[], None]] = []
    node = types.SimpleNamespace(engine=lambda _: Refusing(), view=view())
    call: Any = types.SimpleNamespace(node=node, on_hangup=hangups.append)
    sources = arpanet.EventSources(call, [], "/events?type=network")
    for _ in range(5):
        with pytest.raises(arpanet.EngineDown):
            sources._open(host("h1"))
    hangups[0]()
    assert (len(opened), ended) == (5, [4])
