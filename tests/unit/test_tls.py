"""What speaks TLS: who is let in and who is not, that nothing is lost, and that waiting is free."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
import ssl
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import test_http
from builders import container, view
from conftest import until
from lab import SLOW
from test_pump import (
    WAIT_S,
    connect_to,
    echo,
    hard_reset,
    identity_at,
    in_thread,
    is_refused,
    link_to,
    read_all,
    read_exactly,
    server_of,
    was_reset,
)
from tls import Authority

import arpanet
from arpanet import (
    Agent,
    HostPort,
    Identity,
    LinkListener,
    Pump,
    Target,
    TlsSocket,
    Tunnels,
    dial_agent,
    dial_member,
    http_json,
    use_identity,
)

HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Identity]:
    """Return the identities of machines and of others, by what they are."""
    ours, at = Authority("ours"), tmp_path_factory.mktemp("people")
    made = {
        "machine": ours.issue_machine(at / "h1", "h1"),
        "wrong host": ours.issue(at / "h2", "h2", ("h2", "arpanet"), ("192.168.8.121",)),
        "user": ours.issue(at / "eve", "eve"),
        "of another CA": Authority("theirs").issue_machine(at / "h3", "h1"),
        "expired": ours.issue_machine(at / "h4", "h1", days=-1),
    }
    return {who: identity_at(directory) for who, directory in made.items()}


@pytest.fixture(scope="module", autouse=True)
def own(people: Mapping[str, Identity]) -> Iterator[Identity]:
    """Make this process a machine."""
    use_identity(people["machine"])
    yield people["machine"]
    use_identity(None)


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "arpanet")
    before = len(os.listdir("/proc/self/fd"))
    yield
    until("descriptors closed", lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert "internal error" not in caplog.text


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def agree(own: Identity) -> tuple[TlsSocket, TlsSocket]:
    """Return a client and a server that have agreed."""
    mine, theirs = arpanet.tcp_pair()
    client = TlsSocket(mine, own.client_context(), HERE)
    server = TlsSocket(theirs, own.server_context())
    thread = in_thread(server.handshake)
    with contextlib.suppress(ssl.SSLError):
        client.settimeout(WAIT_S)
        client.handshake()
    thread.join()
    server.settimeout(WAIT_S)
    return client, server


def read_to_the_end(sock: socket.socket) -> bytes:
    with sock:
        return read_all(sock)


# ---- the socket


@pytest.fixture
def ends(own: Identity, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TlsSocket, TlsSocket]]:
    """Yield two ends that dial each other at the address of the pair."""
    monkeypatch.setattr(arpanet, "PAIR_IP", HERE)
    client, server = agree(own)
    with client, server:
        yield client, server


def test_an_end_loses_nothing_that_is_unread(ends: tuple[TlsSocket, TlsSocket]) -> None:
    client, server = ends
    client.sendall(b"a" * 40_000)
    assert read_exactly(server, 10) == b"a" * 10  # the rest is decrypted, or waits
    client.sendall(b"b" * 10)
    server.sendall(b"answer")
    server.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"answer"
    client.sendall(b"late")
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == b"a" * 39_990 + b"b" * 10 + b"late"
    assert server.recv(1) == b""  # an end stays an end


def test_what_breaks_off_is_no_end(ends: tuple[TlsSocket, TlsSocket]) -> None:
    client, server = ends
    client.sendall(b"half")
    client.close()  # without a word
    assert read_exactly(server, 4) == b"half"
    for _ in range(2):
        with pytest.raises(ConnectionError, match="without a word"):
            server.recv(1)


def test_a_full_socket_takes_no_more_and_an_end_waits_for_it(
    ends: tuple[TlsSocket, TlsSocket],
) -> None:
    client, server = ends
    client.setblocking(False)
    data, sent = os.urandom(100_000), 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += client.send(data)
    assert client.unsent
    with pytest.raises(BlockingIOError):
        client.shutdown(socket.SHUT_WR)
    got: list[bytes] = []
    reader = in_thread(lambda: got.append(read_all(server)))
    client.settimeout(WAIT_S)
    client.shutdown(socket.SHUT_WR)
    reader.join()
    assert got == [data * (sent // len(data))]


def test_a_blocking_read_has_its_timeout(ends: tuple[TlsSocket, TlsSocket]) -> None:
    client, _ = ends
    client.settimeout(0.02)
    with pytest.raises(TimeoutError):
        client.recv(1)


# ---- the agent: who is let in


@pytest.fixture
def agent(pump: Pump, keep: contextlib.ExitStack, tmp_path: Path) -> LinkListener:
    """Return the listener of an agent whose engine echoes."""
    engine = keep.enter_context(socket.socket(socket.AF_UNIX))
    engine.bind(str(tmp_path / "engine.sock"))
    engine.listen()

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            echo(sock)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                in_thread(functools.partial(one, engine.accept()[0]))

    thread = in_thread(serve)
    keep.callback(thread.join)
    keep.callback(engine.shutdown, socket.SHUT_RDWR)
    flags = {"ip": HERE, "docker_host": f"unix://{tmp_path}/engine.sock"}
    settings = arpanet.read_settings(flags, {}, {}, "h1", "slave")
    node = types.SimpleNamespace(settings=settings, view=view(container("web", "h1")))
    router = types.SimpleNamespace(find=lambda *_: None)
    links = types.SimpleNamespace(router=router)
    slave: Any = types.SimpleNamespace(
        pump=pump, node=node, links=links, trouble="", report=lambda: {"host": "h1"}
    )
    listener = LinkListener((HERE, 0), Agent(slave)._accepted, speaks_first=True)
    pump.listen(listener)
    return listener


def address_of(listener: LinkListener) -> HostPort:
    assert isinstance(listener.server_address, tuple)
    return HostPort(HERE, int(listener.server_address[1]))


def is_served(agent: LinkListener) -> bool:
    """Return whether a machine gets through to the engine."""
    with dial_agent(address_of(agent), "engine", WAIT_S, "h1") as sock:
        sock.settimeout(WAIT_S)
        sock.sendall(b"GET /_ping")
        return read_exactly(sock, 10) == b"GET /_ping"


def test_a_machine_gets_through_to_the_engine(agent: LinkListener) -> None:
    assert is_served(agent)
    assert http_json(address_of(agent), "GET", "/status", WAIT_S, name="h1") == {"host": "h1"}


UNTRUSTED = "its certificate is not to be trusted"
REFUSALS = {
    "user": "its certificate (eve) is not that of a machine at 127.0.0.1",
    "wrong host": "its certificate (h2) is not that of a machine at 127.0.0.1",
    "of another CA": f"{UNTRUSTED}: self-signed certificate in certificate chain",
    "expired": f"{UNTRUSTED}: certificate has expired",
}


@pytest.mark.parametrize("who", REFUSALS)
def test_a_certificate_that_is_not_good_for_it_opens_no_agent(
    agent: LinkListener,
    people: Mapping[str, Identity],
    who: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = people[who].client_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for _ in range(3):
        with pytest.raises((ConnectionError, ssl.SSLError)), connected(agent, context) as sock:
            sock.sendall(b"CONNECT engine HTTP/1.1\r\n\r\n")
            assert b" 403 " in sock.recv(1000)
            raise ConnectionError
    words = [f"refused {HERE}: {REFUSALS[who]}"]
    until("logged", lambda: warnings_of(caplog) == words)
    assert is_served(agent)


NO_MACHINE = "this machine's certificate ({}) is not that of a machine at 127.0.0.1"
TOLD = {
    "user": NO_MACHINE.format("eve"),
    "wrong host": NO_MACHINE.format("h2"),
    "of another CA": "it refuses this machine's certificate, {cert}: unknown ca",
    "expired": "it refuses this machine's certificate, {cert}: certificate expired",
}


@pytest.mark.parametrize("who", TOLD)
def test_who_is_refused_learns_why_and_what_to_do(
    agent: LinkListener, pump: Pump, keep: contextlib.ExitStack, own: Identity,
    people: Mapping[str, Identity], who: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    dialling = people[who].client_context()
    dialling.load_verify_locations(own.paths.ca)
    refused: Any = types.SimpleNamespace(
        paths=people[who].paths,
        client_context=lambda _grpc=False: dialling,
        server_context=own.server_context,
    )
    words = f"{TOLD[who].format(cert=people[who].paths.cert)}; try: arpanet doctor"
    address = address_of(agent)
    link = link_to(pump, Target(address, b"CONNECT engine HTTP/1.1\r\n\r\n", "h1"))
    keep.callback(use_identity, own)
    use_identity(refused)
    with pytest.raises(OSError, match=re.escape(words)):
        dial_agent(address, "engine", WAIT_S, "h1")
    with pytest.raises((OSError, arpanet.EngineError), match=re.escape(words)):
        http_json(address, "GET", "/status", WAIT_S)
    assert is_refused(keep, link)
    if "refuses" in words:
        assert f"refused {HERE}: {words}" in warnings_of(caplog)


def connected(listener: LinkListener, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return a connection as the standard library makes it."""
    sock = socket.create_connection(address_of(listener), timeout=WAIT_S)
    try:
        return context.wrap_socket(sock, server_hostname=HERE)
    except BaseException:
        sock.close()
        raise


STRANGERS = {
    "plain HTTP": (b"GET /status HTTP/1.1\r\n\r\n", "it does not speak TLS (http_request)"),
    "garbage": (b"\0\1\2" * 1000, "it does not speak TLS"),
    "garbage that begins well": (b"\x16\x03\x01\x02\x00" + b"x" * 512, "it does not speak TLS"),
    "half of it": (b"\x16\x03\x01", "no certificate within"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_whoever_speaks_otherwise_is_refused_in_time_and_logged_once(
    agent: LinkListener,
    keep: contextlib.ExitStack,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(arpanet, "SHAKE_S", 1.0 * SLOW)
    monkeypatch.setattr(arpanet, "TICK_S", 0.02)
    assert is_served(agent)  # and the pump has gone round
    threads = threading.active_count()
    said, why = STRANGERS[what]
    strangers = [connect_to(keep, agent) for _ in range(20)]
    for sock in strangers:
        sock.sendall(said)
    assert threading.active_count() <= threads, "a stranger has a thread"
    assert is_served(agent)
    for sock in strangers:
        with contextlib.suppress(ConnectionResetError):
            answer = read_all(sock)
            assert (b"HTTPS" in answer) == (what == "plain HTTP")
    assert len(warnings_of(caplog)) == 1
    assert warnings_of(caplog)[0].startswith(f"refused {HERE}: {why}")


def test_who_only_knocks_is_not_worth_a_word(
    agent: LinkListener, keep: contextlib.ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    connect_to(keep, agent).close()
    assert is_served(agent)
    assert warnings_of(caplog) == []


# ---- who dials


def test_a_link_goes_through_tls_to_an_agent_and_ends_as_it_should(
    pump: Pump, keep: contextlib.ExitStack, agent: LinkListener
) -> None:
    target = Target(address_of(agent), b"CONNECT engine HTTP/1.1\r\n\r\n", "h1")
    link = link_to(pump, target)
    for size in (0, 1, 16_384, 65_537, 3_000_000):
        data = os.urandom(size)
        client = connect_to(keep, link)
        sender = in_thread(lambda client=client, data=data: client.sendall(data))  # type: ignore[misc]
        assert read_exactly(client, size) == data
        sender.join()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    until("ended", lambda: link.counters.active == 0)
    assert link.counters.failed == 0


@pytest.mark.parametrize(
    ("who", "name", "why"),
    [
        ("machine", "h2", "its certificate (h1) is not h2's"),
        ("wrong host", "h2", "its certificate is not to be trusted: IP address mismatch"),
        ("user", "", "its certificate is not to be trusted: "),
        ("of another CA", "h1", "its certificate is not to be trusted: self-signed"),
        ("in the clear", "h1", "it does not speak TLS"),
    ],
)
def test_a_member_that_is_not_who_was_dialled_gets_nothing(
    pump: Pump,
    keep: contextlib.ExitStack,
    people: Mapping[str, Identity],
    who: str,
    name: str,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[bytes] = []

    def impostor(sock: socket.socket) -> None:
        if who == "in the clear":
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        tls = TlsSocket(sock, people[who].server_context())
        with tls:
            tls.handshake()
            heard.append(tls.recv(1000))

    address = HostPort(*server_of(keep, impostor))
    link = link_to(pump, Target(address, b"CONNECT web:80 HTTP/1.1\r\n\r\n", name))
    for _ in range(2):
        assert is_refused(keep, link, b"secret")
    assert [w for w in warnings_of(caplog) if w.startswith(f"refused {HERE}: {why}")]
    assert len(warnings_of(caplog)) == 1
    with pytest.raises(OSError, match=r"certificate|TLS"):
        dial_member(address, WAIT_S, name)
    assert b"".join(heard) == b""


def test_a_silent_member_is_given_up(
    pump: Pump, keep: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arpanet, "CONNECT_S", 0.1)
    monkeypatch.setattr(arpanet, "TICK_S", 0.02)
    with socket.create_server((HERE, 0)) as silent:
        link = link_to(pump, Target(HostPort(*silent.getsockname()), member=""))
        assert is_refused(keep, link)
        assert link.counters.failed == 1
        with pytest.raises(TimeoutError):
            dial_member(HostPort(*silent.getsockname()), 0.1)


def test_what_breaks_off_is_broken_off_on_the_other_side(
    pump: Pump, keep: contextlib.ExitStack, own: Identity
) -> None:
    near, far = arpanet.tcp_pair()
    near.settimeout(WAIT_S)
    keep.enter_context(near)

    def settled(tls: TlsSocket | None) -> None:
        assert tls
        pump.join(tls, far)

    def accepted(sock: socket.socket, peer: Any, _link: LinkListener) -> None:
        pump.shake(sock, peer, own.server_context(), settled)

    listener = LinkListener((HERE, 0), accepted)
    pump.listen(listener)
    with dial_member(address_of(listener), WAIT_S) as client:
        client.sendall(b"half of it")
        assert read_exactly(near, 10) == b"half of it"
    assert was_reset(near)  # for there was no close_notify


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_word_of_who_broke_off_is_heard_when_it_is_too_late_to_send(
    people: Mapping[str, Identity], own: Identity, version: ssl.TLSVersion
) -> None:
    mine, theirs = arpanet.tcp_pair()
    context = people["expired"].client_context()
    context.check_hostname, context.maximum_version = False, version
    server = TlsSocket(theirs, own.server_context())

    def refuse() -> None:
        with pytest.raises(ConnectionError, match="has expired"):
            server.handshake()
        hard_reset(server)

    with TlsSocket(mine, context, HERE) as client:
        refusal = in_thread(refuse)
        with pytest.raises(ConnectionError, match=r"cert\.pem: certificate expired"):
            client.handshake()  # of TLS 1.3 it is over before the other side looks
            refusal.join()
            client.sendall(b"secret")
        refusal.join()


def test_who_breaks_off_while_it_agrees_is_said_in_words(own: Identity) -> None:
    mine, theirs = arpanet.tcp_pair()
    with TlsSocket(theirs, own.server_context()) as server:
        hard_reset(mine)
        with pytest.raises(ConnectionError, match="^it ended TLS without a word"):
            server.handshake()


# ---- what threads use in its place


def test_a_bridge_is_a_plain_socket_for_any_thread(pump: Pump, agent: LinkListener) -> None:
    tunnels = Tunnels()
    tunnels.bridge = pump.bridge
    sock = tunnels.add(dial_agent(address_of(agent), "engine", WAIT_S, "h1"))
    assert type(sock) is socket.socket
    with sock:
        sock.settimeout(WAIT_S)
        data = os.urandom(2_000_000)
        sender = in_thread(lambda: sock.sendall(data))
        assert read_exactly(sock, len(data)) == data
        sender.join()
        assert arpanet.is_quiet(sock)
        pump.cut(HERE)  # the host is lost
        sock.settimeout(WAIT_S)
        assert was_reset(sock)


def test_a_bridge_tells_an_end_from_a_break(
    pump: Pump, keep: contextlib.ExitStack, own: Identity
) -> None:
    def serve(sock: socket.socket) -> None:
        with TlsSocket(sock, own.server_context()) as tls:
            tls.handshake()
            if tls.recv(1) == b"e":
                tls.shutdown(socket.SHUT_WR)
                tls.recv(1)

    address = HostPort(*server_of(keep, serve))
    for words in (b"e", b"b"):
        with pump.bridge(dial_member(address, WAIT_S)) as sock:
            sock.settimeout(WAIT_S)
            sock.sendall(words)
            assert was_reset(sock) == (words == b"b")


# ---- the API


@pytest.fixture(scope="module")
def api() -> Iterator[test_http.Api]:
    with test_http.serving() as made:
        made.node.view = view(container("web", "h1"))
        made.node.report = dict
        yield made


def test_the_api_answers_who_has_a_certificate(
    api: test_http.Api, people: Mapping[str, Identity]
) -> None:
    masters = http_json(api.address, "GET", "/arpanet/masters", WAIT_S)
    assert masters["quorum"]
    context = people["user"].client_context()
    until("it has left", lambda: not api.lobby._guests)
    with (
        socket.create_connection(api.address, WAIT_S, ("127.0.0.9", 0)) as sock,
        context.wrap_socket(sock, server_hostname=HERE) as client,
    ):
        for _ in range(3):  # one connection, many requests
            client.sendall(test_http.request("GET /_ping"))
            assert client.recv(4000).endswith(b"OK")
            assert list(api.lobby._guests) == ["127.0.0.9"], "the address is the client's own"


def test_strangers_get_nothing_of_the_api_and_wait_in_no_thread(
    api: test_http.Api,
    keep: contextlib.ExitStack,
    people: Mapping[str, Identity],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert http_json(api.address, "GET", "/arpanet/masters", WAIT_S)
    threads = threading.active_count()
    silent = [keep.enter_context(socket.create_connection(api.address)) for _ in range(20)]
    for who in ("of another CA", "expired", "nobody"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if who != "nobody":
            context = people[who].client_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = keep.enter_context(socket.create_connection(api.address, WAIT_S))
        with pytest.raises(OSError), context.wrap_socket(sock) as tls:  # noqa: PT011
            tls.sendall(test_http.request("GET /_ping"))
            assert tls.recv(100) == b"nothing"
    plain = keep.enter_context(socket.create_connection(api.address, WAIT_S))
    plain.sendall(test_http.request("GET /_ping"))
    assert b"Client sent an HTTP request to an HTTPS server." in read_all(plain)
    assert threading.active_count() <= threads + 1  # one that has just answered
    assert len(warnings_of(caplog)) == 4
    assert len(silent) == 20
    assert http_json(api.address, "GET", "/arpanet/masters", WAIT_S)


def test_who_is_one_too_many_is_told_so_and_counted_out(
    api: test_http.Api, people: Mapping[str, Identity], keep: contextlib.ExitStack
) -> None:
    context = people["user"].client_context()
    api.lobby.limits = test_http.LIMITS._replace(per_ip=4, head_s=WAIT_S)  # time for all to come in
    keep.callback(setattr, api.lobby, "limits", test_http.LIMITS)

    def client() -> ssl.SSLSocket:
        sock = socket.create_connection(api.address, WAIT_S)
        return keep.enter_context(context.wrap_socket(sock, server_hostname=HERE))

    clients = [client() for _ in range(5)]
    clients[-1].sendall(test_http.request("GET /_ping"))
    assert b" 4 connections from 127.0.0.1" in clients[-1].recv(4000)
    for one in clients:
        hard_reset(one)
    until("all have left", lambda: api.lobby._total == 0)


def test_in_the_clear_one_is_told_that_there_is_tls(keep: contextlib.ExitStack) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(arpanet.NOT_IN_THE_CLEAR)

    address = HostPort(*server_of(keep, serve))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arpanet.Own, "identity", None)
        with pytest.raises(OSError, match="Client sent an HTTP request to an HTTPS server"):
            http_json(address, "GET", "/arpanet/masters", WAIT_S)
