"""The pump moves every byte, keeps half-closes apart, and no connection harms another."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import select
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from lab import SLOW
from tls import FILES, Authority

import arpanet as links
from arpanet import (
    AGENT_OK,
    CertificateFiles,
    Conflict,
    Identity,
    LinkListener,
    NotFound,
    Pump,
    Target,
    TlsSocket,
    UnixListener,
)

ROOT = Path(__file__).resolve().parents[2]

Pair = tuple[socket.socket, socket.socket]
BOUNDARIES = (0, 1, 65535, 65536, 65537, (1 << 20) + 1, 5_000_003)
WAIT_S = 5.0 * SLOW
MORE_S = 0.2  # so long the kernel holds back what is sent with MSG_MORE; see tcp(7), TCP_CORK
TRIES = 40  # of what a busy machine may delay


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_internal_error(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    yield
    if "expects_a_bug" not in request.fixturenames:
        assert "internal error" not in caplog.text


@pytest.fixture
def expects_a_bug() -> None:
    """Say that this test provokes an internal error."""


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    # The pump and the stack of sockets are closed after this one, being requested after it.
    until("descriptors closed", lambda: open_fds() <= before)


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    mine.settimeout(WAIT_S)
    return mine, theirs


def unix_pair() -> Pair:
    mine, theirs = socket.socketpair()
    mine.settimeout(WAIT_S)
    return mine, theirs


def identity_at(directory: Path) -> Identity:
    return Identity(CertificateFiles(*(str(directory / file) for file in FILES)))


class Outside:
    """The TLS of clients and servers: a pump of their own, and the certificate of a machine."""

    pump = Pump(threading.Event())
    own: Identity


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Outside]]:
    Outside.own = identity_at(Authority("ours").issue_machine(tmp_path_factory.mktemp("tls"), "h1"))
    Outside.pump.start()
    yield Outside
    Outside.pump.stop()


def shaken(own: Identity, kind: str = "tcp") -> tuple[TlsSocket, TlsSocket]:
    """Return the two ends of a connection that have agreed."""
    mine, theirs = PAIRS[kind]()
    client = TlsSocket(mine, own.client_context(), "127.0.0.1")
    server = TlsSocket(theirs, own.server_context())
    thread = in_thread(server.handshake)
    client.handshake()
    thread.join()
    return client, server


def tls_pair() -> Pair:
    """Return a plain end, behind a TLS that is not the tested pump's, and one that speaks TLS."""
    client, server = shaken(Outside.own)
    mine = Outside.pump.bridge(client)
    mine.settimeout(WAIT_S)
    return mine, server


PAIRS: dict[str, Callable[[], Pair]] = {"tcp": tcp_pair, "unix": unix_pair, "tls": tls_pair}


def joined(
    pump: Pump, keep: contextlib.ExitStack, kind: str = "tcp", to_far: bytes = b"",
    to_near: bytes = b"", counters: links.LinkCounters | None = None,
) -> Pair:  # fmt: skip
    """Return the two outer ends of a joined connection."""
    client, near = PAIRS[kind]()
    server, far = PAIRS[kind]()
    pump.join(near, far, early_to_far=to_far, early_to_near=to_near, counters=counters)
    keep.enter_context(client)
    keep.enter_context(server)
    return client, server


def read_all(sock: socket.socket, piece: int = 1 << 18) -> bytes:
    parts = []
    while part := sock.recv(piece):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def in_thread(run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def send_and_end(sock: socket.socket, data: bytes, chunks: random.Random | None = None) -> None:
    at = 0
    while at < len(data):
        size = chunks.choice((1, 100, 65535, 65536, 65537, 300_000)) if chunks else len(data)
        sock.sendall(data[at : at + size])
        at += size
    sock.shutdown(socket.SHUT_WR)


def hard_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def was_reset(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) != b"" and False
    except ConnectionResetError:
        return True


def server_of(
    keep: contextlib.ExitStack, serve: Callable[[socket.socket], None]
) -> tuple[str, int]:
    """Return the address of a server that calls serve for each connection, in a thread."""
    listener = keep.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(WAIT_S)
            serve(sock)

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                in_thread(lambda sock=sock: one(sock))  # type: ignore[misc]

    thread = in_thread(run)
    keep.callback(thread.join)
    keep.callback(listener.shutdown, socket.SHUT_RDWR)
    host, port = listener.getsockname()
    return str(host), int(port)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def closed_port() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
    return str(host), int(port)


def link_to(pump: Pump, target: Target, **options: object) -> LinkListener:
    """Return a listener whose connections are dialled to the target."""

    def accepted(sock: socket.socket, _peer: links.Address, link: LinkListener) -> None:
        pump.dial(sock, target, counters=link.counters, **options)  # type: ignore[arg-type]

    listener = LinkListener(("127.0.0.1", 0), accepted)
    pump.listen(listener)
    return listener


def agent_on(pump: Pump, on_head: links.OnHead) -> LinkListener:
    listener = LinkListener(
        ("127.0.0.1", 0),
        lambda sock, peer, _link: pump.read_head(sock, peer, on_head),
        speaks_first=True,
    )
    pump.listen(listener)
    return listener


def dialling_agent(pump: Pump, target: links.Address) -> LinkListener:
    def on_head(sock: socket.socket, _peer: links.Address, head: bytes, rest: bytes) -> None:
        assert head.endswith(b"\r\n\r\n")
        pump.dial(sock, Target(target), answer=AGENT_OK, early=rest)

    return agent_on(pump, on_head)


def connect(keep: contextlib.ExitStack, address: object) -> socket.socket:
    sock = socket.create_connection(address, timeout=WAIT_S)  # type: ignore[arg-type]
    return keep.enter_context(sock)


def is_refused(keep: contextlib.ExitStack, link: LinkListener, said: bytes = b"") -> bool:
    """Return whether a new connection is reset, be it before connect() has returned or after.

    said: what it sends, if it comes to that.
    """
    try:
        client = connect_to(keep, link)
        client.sendall(said)
        return was_reset(client)
    except ConnectionResetError:
        return True


def connect_to(keep: contextlib.ExitStack, link: LinkListener) -> socket.socket:
    return connect(keep, link.server_address)


# ---- bytes


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("size", BOUNDARIES)
def test_every_byte_arrives_both_ways_at_once(
    pump: Pump, keep: contextlib.ExitStack, kind: str, size: int
) -> None:
    chunks = random.Random(size)
    there, back = chunks.randbytes(size), chunks.randbytes(size)
    counters = links.LinkCounters()
    client, server = joined(pump, keep, kind, counters=counters)
    got: list[bytes] = []
    threads = [
        in_thread(lambda: send_and_end(client, there, chunks)),
        in_thread(lambda: send_and_end(server, back, chunks)),
        in_thread(lambda: got.append(read_all(server))),
    ]
    assert read_all(client) == back
    for thread in threads:
        thread.join()
    assert got == [there]
    until("counted", lambda: counters.active == 0)
    assert (counters.to_target.bytes, counters.to_client.bytes) == (size, size)
    assert (counters.total, counters.failed) == (1, 0)
    if size > 1 << 20 and kind != "tls":
        until("moved by splice", lambda: pump._pipes)


class Waits(threading.Event):
    """An event that knows for how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        return super().wait(timeout)


def test_bulk_is_left_to_gather_and_small_messages_are_not(keep: contextlib.ExitStack) -> None:
    stop = Waits()
    pump = Pump(stop)
    pump.start()
    keep.callback(pump.stop)
    client, server = joined(pump, keep, "tcp")
    for _ in range(10):
        client.sendall(b"x")
        assert server.recv(9) == b"x"
    assert not stop.waited
    sender = in_thread(lambda: client.sendall(bytes(4 << 20)))
    assert len(read_exactly(server, 4 << 20)) == 4 << 20
    sender.join()
    until("the turn with bulk is over", lambda: stop.waited)
    assert set(stop.waited) == {links.GATHER_S}


def test_the_pump_goes_before_what_it_carries_bytes_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr("os.setpriority", lambda *words: asked.append(words))
    pump = Pump(threading.Event())
    pump.start()
    threads: list[int] = []
    pump._call(lambda: threads.append(threading.get_native_id()))
    until("the call", lambda: threads)
    pump.stop()
    assert asked == [(os.PRIO_PROCESS, threads[0], links.NICENESS)]


def test_a_message_that_its_sink_takes_in_parts_arrives_whole(
    pump: Pump, keep: contextlib.ExitStack
) -> None:
    client, near = unix_pair()
    server, far = unix_pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    pump.join(near, far)
    keep.enter_context(client)
    keep.enter_context(server)
    message = os.urandom(60_000)  # less than the buffer: it is copied
    client.sendall(message)
    threading.Event().wait(0.02)
    assert read_exactly(server, len(message)) == message


def test_what_tls_has_taken_is_sent_when_there_is_room(
    pump: Pump, keep: contextlib.ExitStack
) -> None:
    client, near = tcp_pair()
    server, far = map(keep.enter_context, shaken(Outside.own, "unix"))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    server.settimeout(WAIT_S)
    pump.join(near, far)
    keep.enter_context(client)
    message = os.urandom(60_000)
    client.sendall(message)
    until("the socket is full", lambda: far.unsent)
    assert read_exactly(server, len(message)) == message


@pytest.mark.parametrize("size", [5, *range(140_000, 400_000, 20_000)])
def test_an_end_that_comes_along_with_the_last_bytes_is_an_end_although_tcp_goes_on(
    pump: Pump, keep: contextlib.ExitStack, size: int
) -> None:
    """As docker does it, or anything in Go: CloseWrite sends a close_notify and no FIN."""
    client, near = map(keep.enter_context, shaken(Outside.own))
    server, far = tcp_pair()
    keep.enter_context(server)
    data = os.urandom(size)
    client.settimeout(WAIT_S)
    client.sendall(data[:-5])
    client._tls.write(data[-5:])
    client._say_end()
    client.flush()
    pump.join(near, far)  # so all of it is there
    assert read_all(server) == data
    server.sendall(b"answer")
    assert read_exactly(client, 6) == b"answer"


def test_a_reset_frees_what_a_slow_reader_left(pump: Pump, keep: contextlib.ExitStack) -> None:
    client, server = joined(pump, keep)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.send(b"x" * 1_000_000)
            select.select([], [client], [], 0.1)
    hard_reset(client)
    until("closed", lambda: len(pump.watchers) == 1)
    with pytest.raises(ConnectionResetError):
        read_all(server)


def test_unread_bytes_do_not_spoil_the_last_words() -> None:
    peer, sock = unix_pair()
    with peer:
        peer.sendall(b"unread")
        links.say_and_close(sock, b"last words")
        assert read_all(peer) == b"last words"


def test_random_chunks_with_pauses_arrive_in_order(pump: Pump, keep: contextlib.ExitStack) -> None:
    chunks = random.Random(7)
    client, server = joined(pump, keep)
    for _ in range(60):
        for source, sink in ((client, server), (server, client)):
            data = chunks.randbytes(chunks.choice((1, 64, 65535, 65536, 65537, 200_000)))
            sender = in_thread(lambda source=source, data=data: source.sendall(data))  # type: ignore[misc]
            assert read_exactly(sink, len(data)) == data
            sender.join()


@pytest.mark.parametrize("kind", PAIRS)
def test_early_bytes_of_a_join_come_first(
    pump: Pump, keep: contextlib.ExitStack, kind: str
) -> None:
    early = os.urandom(400_000)  # more than a unix socket takes at once
    client, server = joined(pump, keep, kind, to_far=b"req" + early, to_near=b"ans" + early)
    assert read_exactly(server, 400_003) == b"req" + early
    assert read_exactly(client, 400_003) == b"ans" + early
    client.sendall(b"1")
    server.sendall(b"2")
    assert (server.recv(9), client.recv(9)) == (b"1", b"2")


def test_a_joined_socket_survives_the_close_of_its_old_object(pump: Pump) -> None:
    client, near = tcp_pair()
    server, far = tcp_pair()
    reader = near.makefile("rb")
    pump.join(near, far)
    reader.close()
    near.close()
    with client, server:
        client.sendall(b"still there")
        server.settimeout(WAIT_S)
        assert read_exactly(server, 11) == b"still there"


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("first", ("client", "server"))
def test_the_end_of_one_direction_leaves_the_other_open(
    pump: Pump, keep: contextlib.ExitStack, kind: str, first: str
) -> None:
    client, server = joined(pump, keep, kind)
    early, late = (client, server) if first == "client" else (server, client)
    send_and_end(early, b"done")
    assert read_all(late) == b"done"
    answer = os.urandom(3_000_000)
    sender = in_thread(lambda: send_and_end(late, answer))
    assert read_all(early) == answer
    sender.join()


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_slow_reader_stops_the_sender_and_loses_nothing(
    pump: Pump, keep: contextlib.ExitStack, kind: str
) -> None:
    client, server = joined(pump, keep, kind)
    server.settimeout(WAIT_S)
    data = os.urandom(1 << 20)
    client.setblocking(False)
    sent = 0

    def is_stopped() -> bool:
        """Send what there is room for; return whether then nothing goes on, nor the pump spins."""
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += client.send(data[sent % len(data) :])
        turns = pump.turns
        return not select.select([], [client], [], 0.1)[1] and pump.turns - turns < 5

    until("it is pushed back", is_stopped)
    assert sent < 64 << 20
    size, at = 0, 0
    while size < sent:
        part = server.recv(1 << 20)
        at = size % len(data)
        assert part == (data + data)[at : at + len(part)]
        size += len(part)
    in_thread(lambda: client.shutdown(socket.SHUT_WR)).join()
    assert server.recv(1) == b""


def test_what_came_before_a_reset_is_delivered(pump: Pump, keep: contextlib.ExitStack) -> None:
    client, server = joined(pump, keep)
    client.sendall(b"x")
    assert read_exactly(server, 1) == b"x"
    busy, gate = threading.Event(), threading.Event()

    def block(sock: socket.socket, _peer: links.Address, _link: LinkListener) -> None:
        busy.set()
        gate.wait(WAIT_S)
        sock.close()

    blocker = LinkListener(("127.0.0.1", 0), block)
    pump.listen(blocker)
    connect_to(keep, blocker)
    assert busy.wait(WAIT_S)  # the pump looks at nothing until the gate is open
    server.sendall(b"413 too large")
    hard_reset(server)
    gate.set()
    assert read_exactly(client, 13) == b"413 too large"
    assert was_reset(client)


# ---- link listeners


def test_a_link_reaches_its_target_and_counts(pump: Pump, keep: contextlib.ExitStack) -> None:
    link = link_to(pump, Target(server_of(keep, echo)))
    with connect_to(keep, link) as client:
        send_and_end(client, b"hello")
        assert read_all(client) == b"hello"
    until("closed", lambda: link.counters.active == 0)
    assert (link.counters.total, link.counters.failed) == (1, 0)
    assert (link.counters.to_target.bytes, link.counters.to_client.bytes) == (5, 5)


@pytest.mark.parametrize("how", ("reset", "error"))
def test_refusing_is_a_reset(pump: Pump, keep: contextlib.ExitStack, how: str) -> None:
    def accepted(sock: socket.socket, peer: links.Address, _link: LinkListener) -> None:
        assert peer[0] == "127.0.0.1"
        if how == "error":
            raise Conflict("not your link")
        links.reset(sock)

    listener = LinkListener(("127.0.0.1", 0), accepted)
    pump.listen(listener)
    assert is_refused(keep, listener)


def test_a_target_that_refuses_is_a_reset(pump: Pump, keep: contextlib.ExitStack) -> None:
    link = link_to(pump, Target(closed_port()))
    assert is_refused(keep, link)
    assert (link.counters.active, link.counters.failed) == (0, 1)


def test_another_thread_may_decide(pump: Pump, keep: contextlib.ExitStack) -> None:
    target = Target(server_of(keep, echo))

    def look_up(sock: socket.socket) -> None:
        sock.settimeout(1)  # as a thread would
        pump.dial(sock, target)

    listener = LinkListener(
        ("127.0.0.1", 0), lambda sock, _peer, _link: in_thread(lambda: look_up(sock)).join()
    )
    pump.listen(listener)
    client = connect_to(keep, listener)
    send_and_end(client, b"found")
    assert read_all(client) == b"found"


def test_five_hundred_connections_at_once(pump: Pump, keep: contextlib.ExitStack) -> None:
    link = link_to(pump, Target(dialled_echo(keep)))
    clients = [connect_to(keep, link) for _ in range(500)]
    for number, client in enumerate(clients):
        client.sendall(struct.pack("I", number))
    for number, client in enumerate(clients):
        assert read_exactly(client, 4) == struct.pack("I", number)
    assert link.counters.active == 500
    for client in clients:
        client.close()
    until("all closed", lambda: link.counters.active == 0)


def echo_turn(selector: selectors.BaseSelector, sock: socket.socket, listening: bool) -> None:
    """Serve one event of an echo that needs no thread for each connection."""
    if listening:
        selector.register(sock.accept()[0], selectors.EVENT_READ)
        return
    try:
        data = sock.recv(65536)
    except ConnectionResetError:
        data = b""
    if data:
        sock.sendall(data)
    else:
        selector.unregister(sock)
        sock.close()


def dialled_echo(keep: contextlib.ExitStack) -> tuple[str, int]:
    """Return the address of an echo that has one thread for all its connections."""
    listener = keep.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
    selector, ended = selectors.DefaultSelector(), threading.Event()
    selector.register(listener, selectors.EVENT_READ)

    def run() -> None:
        while not ended.is_set():
            for key, _ in selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                echo_turn(selector, key.fileobj, key.fileobj is listener)
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        selector.close()

    thread = in_thread(run)
    keep.callback(thread.join)
    keep.callback(ended.set)
    host, port = listener.getsockname()
    return str(host), int(port)


def test_an_address_can_be_bound_anew_at_once(pump: Pump, keep: contextlib.ExitStack) -> None:
    target = Target(server_of(keep, echo))
    link = link_to(pump, target)
    client = connect_to(keep, link)
    client.sendall(b"1")
    assert read_exactly(client, 1) == b"1"
    address = ("127.0.0.1", int(link.server_address[1]))
    for _ in range(20):
        pump.unlisten(link)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        again = LinkListener(address, lambda sock, _p, _l: pump.dial(sock, target))
        pump.listen(again)
        other = connect_to(keep, again)
        other.sendall(b"2")
        assert read_exactly(other, 1) == b"2"
        link = again
    client.sendall(b"3")
    assert read_exactly(client, 1) == b"3"


def test_cut_resets_the_connections_to_a_dead_host(pump: Pump, keep: contextlib.ExitStack) -> None:
    link = link_to(pump, Target(server_of(keep, echo)))
    client = connect_to(keep, link)
    client.sendall(b"1")
    assert read_exactly(client, 1) == b"1"
    told: list[int] = []
    pump.cut("127.0.0.2", told.append)
    client.sendall(b"2")
    assert read_exactly(client, 1) == b"2"
    pump.cut("127.0.0.1", told.append)
    assert was_reset(client)
    until("it is told how many there were", lambda: told == [1])


def test_cut_of_no_address_resets_what_leads_to_a_unix_socket(
    pump: Pump, keep: contextlib.ExitStack, tmp_path: Path
) -> None:
    path = str(tmp_path / "engine.sock")
    listener = keep.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen()
    tcp = connect_to(keep, link_to(pump, Target(server_of(keep, echo))))
    unix = connect_to(keep, link_to(pump, Target(path)))
    keep.enter_context(listener.accept()[0]).sendall(b"1")
    assert read_exactly(unix, 1) == b"1"
    pump.cut("")
    assert was_reset(unix)
    tcp.sendall(b"2")
    assert read_exactly(tcp, 1) == b"2"


# ---- through an agent


def fake_agent(
    keep: contextlib.ExitStack, answers: list[bytes], heard: list[bytes]
) -> tuple[str, int]:
    def serve(sock: socket.socket) -> None:
        heard.append(sock.recv(1000))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for answer in answers:
            sock.sendall(answer)
            threading.Event().wait(0.001)
        echo(sock)

    return server_of(keep, serve)


def test_early_bytes_ride_with_the_preamble(pump: Pump, keep: contextlib.ExitStack) -> None:
    heard: list[bytes] = []
    preamble = b"CONNECT db:5432 HTTP/1.1\r\n\r\n"
    target = Target(fake_agent(keep, [AGENT_OK], heard), preamble)

    def accepted(sock: socket.socket, _peer: links.Address, link: LinkListener) -> None:
        pump.dial(sock, target, early=b"SEL", counters=link.counters)

    listener = LinkListener(("127.0.0.1", 0), accepted, speaks_first=True)
    pump.listen(listener)
    client = connect_to(keep, listener)
    client.sendall(b"ECT")
    first = until("heard", lambda: heard)[0]
    assert first.startswith(preamble + b"SEL")
    client.sendall(b"more")
    echoed = (preamble + b"SELECTmore")[len(first) :]  # the rest of it may come by itself
    assert read_exactly(client, len(echoed)) == echoed
    assert listener.counters.to_target.bytes == 10


def test_an_ok_byte_by_byte_is_an_ok(pump: Pump, keep: contextlib.ExitStack) -> None:
    answers = [AGENT_OK[at : at + 1] for at in range(len(AGENT_OK))]
    address = fake_agent(keep, [*answers[:-1], answers[-1] + b"first"], [])
    client = connect_to(keep, link_to(pump, Target(address, b"CONNECT x:1 HTTP/1.1\r\n\r\n")))
    assert read_exactly(client, 5) == b"first"


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 403 no\r\n\r\n", b"HTTP/1.1 404 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n", b""],
)
def test_another_answer_than_ok_is_a_reset(
    pump: Pump, keep: contextlib.ExitStack, answer: bytes
) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(answer)

    link = link_to(pump, Target(server_of(keep, serve), b"CONNECT x:1 HTTP/1.1\r\n\r\n"))
    assert is_refused(keep, link)
    assert (link.counters.active, link.counters.failed) == (0, 1)


def test_a_silent_agent_is_a_reset(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "ANSWER_S", 0.05)
    monkeypatch.setattr(links, "TICK_S", 0.02)
    link = link_to(pump, Target(fake_agent(keep, [], []), b"CONNECT x:1 HTTP/1.1\r\n\r\n"))
    assert is_refused(keep, link)
    assert link.counters.failed == 1


def test_a_client_that_leaves_before_the_ok_is_no_failure(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "TICK_S", 0.02)
    link = link_to(pump, Target(fake_agent(keep, [], []), b"CONNECT x:1 HTTP/1.1\r\n\r\n"))
    client = connect_to(keep, link)
    until("connected", lambda: len(pump.watchers) == 4)
    hard_reset(client)
    until("closed", lambda: link.counters.active == 0 and not pump.due)
    assert link.counters.failed == 0


def test_a_listener_hands_its_options_on(pump: Pump, keep: contextlib.ExitStack) -> None:
    seen: list[tuple[int, int, int]] = []

    def accepted(sock: socket.socket, _peer: links.Address, _link: LinkListener) -> None:
        nodelay = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        seen.append((nodelay, keepalive, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))
        sock.close()

    listener = LinkListener(("127.0.0.1", 0), accepted, speaks_first=True)
    pump.listen(listener)
    connect_to(keep, listener).sendall(b"x")
    assert until("accepted", lambda: seen) == [(1, 1, 15)]
    assert listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0


def test_a_dialled_connection_notices_a_dead_far_end(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "TICK_S", 0.02)
    client = connect_to(keep, link_to(pump, Target(server_of(keep, echo))))
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    [half] = [w for w in pump.watchers.values() if isinstance(w, links.Half)][:1]

    def option(level: int, name: int) -> int:
        return half.connection.far.getsockopt(level, name)

    assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    until("it is kept alive", lambda: option(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    until("so soon", lambda: option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15)


def test_a_target_that_never_connects_is_given_up(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "CONNECT_S", 0.05)
    monkeypatch.setattr(links, "TICK_S", 0.02)
    full = keep.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    connect(keep, full.getsockname())  # its queue is full: a SYN is left without an answer
    link = link_to(pump, Target(full.getsockname()))
    assert is_refused(keep, link)
    assert (link.counters.active, link.counters.failed) == (0, 1)


def test_two_hops_carry_every_byte(pump: Pump, keep: contextlib.ExitStack) -> None:
    agent = dialling_agent(pump, server_of(keep, echo))
    assert isinstance(agent.server_address, tuple)
    target = Target(("127.0.0.1", int(agent.server_address[1])), b"CONNECT x:1 HTTP/1.1\r\n\r\n")
    client = connect_to(keep, link_to(pump, target))
    data = os.urandom(3_000_000)
    sender = in_thread(lambda: send_and_end(client, data))
    assert read_all(client) == data
    sender.join()


# ---- the agent's side


def ask(keep: contextlib.ExitStack, agent: LinkListener, *parts: bytes) -> socket.socket:
    sock = connect_to(keep, agent)
    for part in parts:
        sock.sendall(part)
        threading.Event().wait(0.002)
    return sock


def test_ok_comes_at_once_to_somebody_who_waits_for_it(
    pump: Pump, keep: contextlib.ExitStack, tmp_path: Path
) -> None:
    engine = keep.enter_context(socket.socket(socket.AF_UNIX))
    engine.bind(str(tmp_path / "engine.sock"))
    engine.listen()
    agent = dialling_agent(pump, str(tmp_path / "engine.sock"))
    took = []
    for _ in range(TRIES):
        began = time.monotonic()
        master = ask(keep, agent, b"CONNECT engine HTTP/1.1\r\n", b"\r\n")
        assert read_exactly(master, len(AGENT_OK)) == AGENT_OK
        took.append(time.monotonic() - began)
        if took[-1] < MORE_S:
            break
        engine.accept()[0].close()
    assert took[-1] < MORE_S, f"held back by MSG_MORE: {took}"
    conn = keep.enter_context(engine.accept()[0])
    master.sendall(b"GET /_ping")
    conn.settimeout(WAIT_S)
    assert read_exactly(conn, 10) == b"GET /_ping"
    send_and_end(conn, b"pong")
    assert read_all(master) == b"pong"


def test_ok_rides_with_the_answer_to_what_was_asked_already(
    pump: Pump, keep: contextlib.ExitStack
) -> None:
    def ponder(sock: socket.socket) -> None:
        data = sock.recv(1000)
        threading.Event().wait(0.05)
        sock.sendall(data)

    agent = dialling_agent(pump, server_of(keep, ponder))
    answers: list[bytes] = []
    while len(answers) < TRIES and AGENT_OK + b"question" not in answers:
        master = ask(keep, agent, b"CONNECT x:1 HTTP/1.1\r\n\r\nquestion")
        answers.append(master.recv(1000))
    assert answers[-1] == AGENT_OK + b"question"


def test_a_dial_that_fails_is_a_502(pump: Pump, keep: contextlib.ExitStack) -> None:
    agent = dialling_agent(pump, closed_port())
    master = ask(keep, agent, b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"more")
    assert read_all(master) == b"HTTP/1.1 502 Connection refused\r\n\r\n"


def test_a_missing_engine_is_a_502(pump: Pump, keep: contextlib.ExitStack, tmp_path: Path) -> None:
    agent = dialling_agent(pump, str(tmp_path / "none.sock"))
    master = ask(keep, agent, b"CONNECT engine HTTP/1.1\r\n\r\n")
    assert read_all(master) == b"HTTP/1.1 502 No such file or directory\r\n\r\n"


def test_a_thread_may_take_the_socket_and_answer(pump: Pump, keep: contextlib.ExitStack) -> None:
    def answer(sock: socket.socket, rest: bytes) -> None:
        with sock:
            sock.settimeout(WAIT_S)
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + rest)

    agent = agent_on(pump, lambda sock, _p, _h, rest: in_thread(lambda: answer(sock, rest)).join())
    master = ask(keep, agent, b"POST /publish/1 HTTP/1.1\r\n\r", b"\nbody")
    assert read_all(master) == b"HTTP/1.1 200 OK\r\n\r\nbody"


def test_an_error_of_the_callback_is_the_answer(pump: Pump, keep: contextlib.ExitStack) -> None:
    def on_head(*_: object) -> None:
        raise NotFound("No such\r\ncontainer: x")

    master = ask(keep, agent_on(pump, on_head), b"CONNECT x:1 HTTP/1.1\r\n\r\n")
    assert read_all(master) == b"HTTP/1.1 404 No such container: x\r\n\r\n"


def never(*_: object) -> None:
    raise AssertionError("not to be called")


@pytest.mark.parametrize("head", [b"x" * 8192, b"x" * 8189 + b"\r\n\r\n"])
def test_a_head_that_is_too_long_is_a_431(
    pump: Pump, keep: contextlib.ExitStack, head: bytes
) -> None:
    agent = agent_on(pump, never)
    assert read_all(ask(keep, agent, head[:8000], head[8000:])).startswith(b"HTTP/1.1 431 ")


def readers(pump: Pump) -> list[links.HeadReader]:
    """Return what reads the heads of connections."""
    return [w for w in list(pump.watchers.values()) if isinstance(w, links.HeadReader)]


def test_a_head_of_8_kib_is_read_whole(pump: Pump, keep: contextlib.ExitStack) -> None:
    heads: list[tuple[bytes, bytes]] = []

    def on_head(sock: socket.socket, _peer: links.Address, head: bytes, rest: bytes) -> None:
        heads.append((head, rest))
        sock.close()

    head = b"x" * 8188 + b"\r\n\r\n"
    peer = ask(keep, agent_on(pump, on_head), head[:8190])
    until("it is read", lambda: any(len(h.got) == 8190 for h in readers(pump)))
    peer.sendall(head[8190:] + b"rest")
    read_all(peer)
    assert heads == [(head, b"rest")]


def test_a_head_that_never_ends_is_a_408(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_on(pump, never)
    monkeypatch.setattr(links, "HEAD_S", 0.05)
    monkeypatch.setattr(links, "TICK_S", 0.02)
    assert read_all(ask(keep, agent, b"CONNECT x")).startswith(b"HTTP/1.1 408 ")


def test_garbage_that_ends_is_closed(pump: Pump, keep: contextlib.ExitStack) -> None:
    peer = ask(keep, agent_on(pump, never), b"\x16\x03\x01\x00")
    peer.shutdown(socket.SHUT_WR)
    assert read_all(peer) == b""


# ---- the client's listener


def test_a_client_finds_the_master_that_lives(
    pump: Pump, keep: contextlib.ExitStack, tmp_path: Path
) -> None:
    masters = iter([Target(closed_port()), Target(server_of(keep, echo)), Target(("0.0.0.0", 1))])
    path = str(tmp_path / "docker.sock")
    pump.listen(
        UnixListener(
            path, lambda sock, _p, _l: pump.dial(sock, Target(closed_port()), others=masters)
        )
    )
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.settimeout(WAIT_S)
        send_and_end(client, b"GET /")
        assert read_all(client) == b"GET /"
    assert len(list(masters)) == 1, "asked for more than was needed"


def test_a_client_is_told_when_no_master_lives(pump: Pump, tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    told: list[str] = []

    def on_head(sock: socket.socket, *_: object) -> None:
        links.say_and_close(sock, links.status_line(503, "no master"))

    def on_refusal(sock: socket.socket, why: str) -> None:
        told.append(why)
        pump.read_head(sock, path, on_head)  # a client that has not asked yet would miss the answer

    def accepted(sock: socket.socket, _peer: links.Address, _link: LinkListener) -> None:
        others = [Target(closed_port())]
        pump.dial(sock, Target(closed_port()), others=others, on_refusal=on_refusal)

    pump.listen(UnixListener(path, accepted))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        until("refused", lambda: told)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_all(client) == b"HTTP/1.1 503 no master\r\n\r\n"
    assert told == ["Connection refused"]


def test_a_full_unix_queue_is_waited_for(
    pump: Pump, keep: contextlib.ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "TICK_S", 0.02)
    engine = keep.enter_context(socket.socket(socket.AF_UNIX))
    engine.bind(str(tmp_path / "engine.sock"))
    engine.listen(0)
    first = keep.enter_context(socket.socket(socket.AF_UNIX))
    first.connect(str(tmp_path / "engine.sock"))
    link = link_to(pump, Target(str(tmp_path / "engine.sock")))
    client = connect_to(keep, link)
    client.sendall(b"x")
    until("dialled", lambda: link.counters.active)
    keep.enter_context(engine.accept()[0])
    conn = keep.enter_context(engine.accept()[0])
    assert conn.recv(1) == b"x"


def test_a_left_over_unix_socket_is_replaced_and_a_living_one_is_not(
    pump: Pump, tmp_path: Path
) -> None:
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    pump.listen(UnixListener(path, lambda sock, _peer, _link: sock.close()))
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        UnixListener(path, never)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        UnixListener(str(tmp_path / "file"), never)
    assert (tmp_path / "file").read_text() == "kept"


# ---- harm


def test_stop_closes_everything_and_ends_the_thread(keep: contextlib.ExitStack) -> None:
    before = open_fds()
    pump = Pump(threading.Event())
    pump.start()
    link = link_to(pump, Target(server_of(keep, echo)))
    stuck = ask(keep, agent_on(pump, never), b"half a head")
    client = connect_to(keep, link)
    client.sendall(b"1")
    assert read_exactly(client, 1) == b"1"
    pump.stop()
    assert was_reset(client)
    assert stuck.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(link.server_address)  # type: ignore[arg-type]
    assert pump._thread
    assert not pump._thread.is_alive()
    late, near = tcp_pair()
    pump.dial(near, Target(("127.0.0.1", 1)))
    with late:
        assert was_reset(late)
    pump.stop()
    keep.close()
    until("descriptors closed", lambda: open_fds() <= before)


def test_a_pump_that_never_started_can_stop() -> None:
    before = open_fds()
    pump = Pump(threading.Event())
    link_to(pump, Target(("127.0.0.1", 1)))
    pump.stop()
    assert open_fds() <= before  # what a test before has left may be closed meanwhile


@pytest.mark.usefixtures("expects_a_bug")
def test_a_bug_in_a_callback_harms_one_connection(
    pump: Pump, keep: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    other, server = joined(pump, keep)
    listener = LinkListener(("127.0.0.1", 0), broken)
    pump.listen(listener)
    assert is_refused(keep, listener)
    master = ask(keep, agent_on(pump, broken), b"GET / HTTP/1.1\r\n\r\n")
    assert read_all(master) == b"HTTP/1.1 500 internal error\r\n\r\n"
    wrong = link_to(pump, Target(("127.0.0.1", 70000)))  # connect_ex raises OverflowError
    assert is_refused(keep, wrong)
    other.sendall(b"alive")
    assert read_exactly(server, 5) == b"alive"
    assert caplog.text.count("Traceback") == 3
    assert wrong.counters.active == 0


@pytest.mark.usefixtures("expects_a_bug")
def test_a_bug_in_a_connection_harms_only_that(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    client, server = joined(pump, keep)
    other, far = joined(pump, keep)
    with monkeypatch.context() as patch:
        patch.setattr(links.Half, "_copy", never)
        client.sendall(b"x")
        assert was_reset(client)
        assert was_reset(server)
    assert caplog.text.count("Traceback") == 1
    other.sendall(b"alive")
    assert read_exactly(far, 5) == b"alive"


def test_resets_in_the_middle_leak_nothing(pump: Pump, keep: contextlib.ExitStack) -> None:
    def warm(kind: str) -> None:
        client, server = joined(pump, keep, kind)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(b"x" * 1_000_000)
        assert read_exactly(server, 100_000)
        hard_reset(server if random.random() < 0.5 else client)
        client.close()
        server.close()

    warm("tcp")
    until("first closed", lambda: len(pump.watchers) == 1)
    before = open_fds()
    for _ in range(15):
        for kind in PAIRS:
            warm(kind)
    until("all closed", lambda: len(pump.watchers) == 1)
    until("descriptors closed", lambda: open_fds() <= before + 2 * links.SPARE_PIPES)
    assert {pipe_bytes(fd) for pipe in pump._pipes for fd in pipe} <= {0}


def pipe_bytes(fd: int) -> int:
    import fcntl
    import termios

    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0])


@pytest.mark.parametrize("kind", PAIRS)
def test_a_half_closed_idle_connection_does_not_spin(
    pump: Pump, keep: contextlib.ExitStack, kind: str
) -> None:
    client, server = joined(pump, keep, kind)
    send_and_end(client, b"x")
    assert read_all(server) == b"x"
    if kind == "unix":
        client.close()  # a hang-up, not only an end

    def rests() -> bool:
        turns = pump.turns
        threading.Event().wait(0.1)
        return pump.turns - turns < 5

    until("it rests", rests)


def test_out_of_descriptors_heals() -> None:
    """In a process of its own, for its limit is the process's."""
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import test_pump; test_pump.run_out_of_descriptors()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("accepts no connection") == 1, done.stderr
    assert "Traceback" not in done.stderr


def run_out_of_descriptors() -> None:
    links.TICK_S = 0.1
    with contextlib.ExitStack() as keep:
        pump = Pump(threading.Event())
        pump.start()
        link = link_to(pump, Target(dialled_echo(keep)))
        first = connect_to(keep, link)
        first.sendall(b"x")
        assert read_exactly(first, 1) == b"x"
        waiting = keep.enter_context(socket.socket())
        waiting.settimeout(WAIT_S)
        highest = waiting.fileno()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        gaps = []
        with contextlib.suppress(OSError):
            while True:
                gaps.append(os.open("/dev/null", os.O_RDONLY))
        turns = pump.turns
        waiting.connect(link.server_address)
        waiting.sendall(b"y")
        data = os.urandom(1 << 20)  # bulk without a descriptor for a pipe
        sender = in_thread(lambda: first.sendall(data))
        assert read_exactly(first, len(data)) == data
        sender.join()
        assert not select.select([waiting], [], [], 0.25)[0]
        busy, began = pump.turns, time.monotonic()
        assert not select.select([waiting], [], [], 0.25)[0]
        allowed = 20 + 40 * (time.monotonic() - began)  # two in each tick
        assert pump.turns - busy < allowed, f"spins: {pump.turns - turns}"
        for fd in gaps:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert read_exactly(waiting, 1) == b"y"
        pump.stop()
