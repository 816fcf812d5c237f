"""The etcd of masters that have certificates: who gets in, and how certificates are renewed.

Real etcd processes on loopback addresses, no root needed. Each is a child of this process.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import until
from lab import SLOW
from tls import Authority, put

import arpanet
from arpanet import (
    CertificateFiles,
    Conflict,
    EtcdMember,
    GatewayDown,
    HostPort,
    Identity,
    MemberPlace,
    Mesh,
    MeshDown,
    NearRevision,
    ask_gateway,
    encode_text,
    end_turn,
    fetch_members,
    load_etcd3,
    make_key,
    recover_member,
    save_snapshot,
    take_turn,
    use_identity,
)

CLIENT_PORT, PEER_PORT = 23790, 23800
NETWORK = "127.20.4"
IPS = tuple(f"{NETWORK}.{number}" for number in (1, 2, 3))


def files_of(directory: Path) -> CertificateFiles:
    return CertificateFiles(*(str(directory / f"{name}.pem") for name in ("ca", "cert", "key")))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("machines")


@pytest.fixture(scope="module")
def certificate(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One certificate for all: the three machines are one process here."""
    return authority.issue_machine(tmp_path_factory.mktemp("tls"), "h1", *IPS)


@pytest.fixture
def own(certificate: Path) -> Iterator[Identity]:
    identity = Identity(files_of(certificate))
    use_identity(identity)
    yield identity
    use_identity(None)


class Machine:
    """One machine: its address, its directory, the etcd on it and what that said."""

    def __init__(self, number: int, directory: Path, network: str = NETWORK) -> None:
        self.ip = f"{network}.{number}"
        root = directory / self.ip
        self.place = MemberPlace(self.ip, f"h{number}", root, root, CLIENT_PORT, PEER_PORT)
        self.said: list[str] = []
        self.restart_process()

    def restart_process(self) -> None:
        self.etcd = EtcdMember(self.place, stop=threading.Event(), say=self.said.append)


@pytest.fixture(scope="module")
def masters(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    directory = tmp_path_factory.mktemp("masters")
    machines = [Machine(number, directory) for number in (1, 2, 3)]
    use_identity(Identity(files_of(certificate)))
    try:
        assert machines[0].etcd.boot()
        for machine in machines[1:]:
            assert machine.etcd.join([machines[0].ip])
        yield machines
    finally:
        for machine in machines:
            machine.etcd.stop()
        use_identity(None)


@pytest.mark.usefixtures("own")
def test_masters_with_certificates_are_one_cluster(masters: list[Machine], tmp_path: Path) -> None:
    until("all are masters", lambda: is_cluster(masters[2]))
    stop = threading.Event()
    mesh = Mesh([masters[0].place.client], stop=stop)
    try:
        revision = mesh.write("/arpanet/test/a", b"{}")
        near = NearRevision(HostPort(masters[1].ip, CLIENT_PORT), load_etcd3())
        until("it is asked", lambda: near.read(mesh.cluster_id) >= revision)
        near.close()
    finally:
        stop.set()
        mesh.close()
    assert save_snapshot(masters[1].place.client, str(tmp_path / "snapshot"))["totalKey"] > 0


STRANGERS = ("plain", "no certificate", "a user", "expired", "another authority")


@pytest.fixture(scope="module")
def strangers(
    authority: Authority, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    directory, other = tmp_path_factory.mktemp("strangers"), Authority("others")
    ours = authority.pem
    return {
        "no certificate": certificate,
        "a user": Authority("users").issue(directory / "user", "anna", trusted=ours),
        "expired": authority.issue_machine(directory / "old", "h1", IPS[0], days=-1),
        "another authority": other.issue_machine(directory / "o", "h1", IPS[0], trusted=ours),
    }


@pytest.mark.parametrize("port", [CLIENT_PORT, PEER_PORT])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_gets_nothing_from_etcd(
    masters: list[Machine], strangers: dict[str, Path], stranger: str, port: int
) -> None:
    ip, log = masters[0].ip, masters[0].place.log_path
    context = ssl.create_default_context()
    before = log.read_text().count("rejected connection")
    if stranger == "plain":
        connection = http.client.HTTPConnection(ip, port, timeout=5)
    else:
        files = files_of(strangers[stranger])
        context.load_verify_locations(files.ca)
        if stranger != "no certificate":
            context.load_cert_chain(files.cert, files.key)
        connection = http.client.HTTPSConnection(ip, port, timeout=5, context=context)
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.request("POST", "/v3/kv/range", json.dumps({"key": "AA=="}))
            pytest.fail(f"it was answered: {connection.getresponse().read()!r}")
    finally:
        connection.close()
    until("it is logged", lambda: log.read_text().count("rejected connection") > before)


@pytest.mark.parametrize(
    ("name", "ip"), [("arpanet", "127.20.4.9"), ("h9", "127.0.0.1")], ids=["address", "kind"]
)
def test_a_machine_of_another_address_or_kind_is_no_peer(
    masters: list[Machine], authority: Authority, tmp_path: Path, name: str, ip: str
) -> None:
    files = files_of(authority.issue(tmp_path, "h9", (name,), (ip,)))
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    connection = http.client.HTTPSConnection(masters[0].ip, PEER_PORT, timeout=5, context=context)
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.request("GET", "/members")
            pytest.fail(f"it was answered: {connection.getresponse().read()!r}")
    finally:
        connection.close()


def is_cluster(machine: Machine) -> bool:
    """Return whether a master says that there are three, and each answers."""
    return [r.answers and not r.learner for r in machine.etcd.status()] == [True] * 3


def test_why_an_etcd_is_not_understood_is_said(
    masters: list[Machine],
    strangers: dict[str, Path],
    own: Identity,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arpanet, "STATUS_S", 10.0 * SLOW)
    client = masters[0].place.client
    use_identity(None)
    with pytest.raises(GatewayDown, match="without a word; it may want TLS"):
        arpanet.fetch_status(client)
    refused = "it refuses this machine's certificate|it ended TLS without a word"
    use_identity(Identity(files_of(strangers["expired"])))
    with pytest.raises(GatewayDown, match=refused):
        arpanet.fetch_status(client)
    use_identity(own)
    with http_server(IPS[0]) as port, pytest.raises(GatewayDown, match="it does not speak TLS"):
        arpanet.fetch_status(f"{IPS[0]}:{port}")
    foreign = Authority("others").issue(certificate.parent / "foreign", "h1", ("h1",), (IPS[0],))
    use_identity(Identity(own.paths._replace(ca=str(foreign / "ca.pem"))))
    with pytest.raises(GatewayDown, match="its certificate is not to be trusted: unable to get"):
        arpanet.fetch_status(client)


@contextlib.contextmanager
def http_server(ip: str) -> Iterator[int]:
    """Give the port of a server that knows no TLS."""
    with socketserver.TCPServer((ip, 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_address[1]
        thread.join()


def test_authorities_and_certificates_are_replaced_while_masters_work(
    masters: list[Machine],
    authority: Authority,
    certificate: Path,
    own: Identity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    following = Authority("machines, the next ones")
    stop = threading.Event()
    mesh = Mesh([masters[0].place.client], stop=stop)
    until("it knows all masters", lambda: len(mesh.endpoints) == 3)
    monkeypatch.setattr(arpanet, "MEMBERS_S", 600.0)  # a renewed certificate does not wait for it
    written, faults = list[int](), list[str]()

    def work() -> None:
        while not stop.wait(0.01):
            try:
                written.append(mesh.write("/arpanet/test/work", b"%d" % len(written)))
            except MeshDown as error:
                faults.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    pids = {m.etcd.child.pid for m in masters}
    try:
        for trusted, issuer in (
            (authority.pem + following.pem, None),
            (authority.pem + following.pem, following),
            (following.pem, None),
        ):
            put(certificate / "ca.pem", trusted)
            if issuer:
                issuer.issue_machine(certificate, "h1", *IPS, trusted=trusted)
            until("calls show it", lambda: mesh._wire.stamp == own.stamp())
            until("etcd trusts them", lambda: step_all(masters), 60)
            count = len(written)
            until("the work goes on", lambda n=count: len(written) > n + 20)  # type: ignore[misc]
    finally:
        stop.set()
        worker.join()
        mesh.close()
    assert faults == []
    assert not pids & {m.etcd.child.pid for m in masters}
    context = ssl.create_default_context(cafile=own.paths.ca)
    context.load_cert_chain(own.paths.cert, own.paths.key)
    with context.wrap_socket(
        socket.create_connection((IPS[0], CLIENT_PORT), 5), server_hostname=IPS[0]
    ) as sock:
        assert "machines, the next ones" in str((sock.getpeercert() or {})["issuer"])


def step_all(masters: list[Machine]) -> bool:
    """Let each master do what is due; say whether all trust what is trusted now."""
    for machine in masters:
        machine.etcd.step()
        down = [m.ip for m in masters if m.etcd.child.find_exit() is not None]
        assert len(down) < 2, down
    return all(m.etcd.ready and not m.etcd.child.outdated for m in masters)


def test_only_one_master_at_a_time_starts_its_etcd_anew(
    masters: list[Machine], certificate: Path, own: Identity
) -> None:
    client = masters[0].place.client
    lease = take_turn(client)
    assert lease and take_turn(masters[1].place.client) == ""
    pids = [m.etcd.child.pid for m in masters]
    put(certificate / "ca.pem", own.read().ca + b"\n")
    for machine in masters:
        assert machine.etcd.step() == ""
    assert [m.etcd.child.pid for m in masters] == pids
    end_turn(client, lease)
    masters[2].etcd.stop()
    said = "other authorities are trusted now; waiting for h3 to answer"
    until("it is said", lambda: masters[0].etcd.step() == said)
    masters[2].restart_process()
    assert masters[2].etcd.resume()
    until("all trust them", lambda: step_all(masters), 60)


@pytest.mark.usefixtures("own")
def test_an_etcd_that_does_not_understand_us_is_started_anew_at_once(
    masters: list[Machine], certificate: Path
) -> None:
    following = Authority("machines, all at once")
    following.issue_machine(certificate, "h1", *IPS)  # all of it at once: nobody is understood
    until("all trust them", lambda: step_all(masters), 90)
    until("all are masters", lambda: is_cluster(masters[0]))


def test_an_arpanet_goes_from_the_clear_to_certificates(
    tmp_path: Path, authority: Authority
) -> None:
    machine = Machine(1, tmp_path, "127.20.5")
    try:
        assert machine.etcd.boot()
        leave_note(machine)
        machine.etcd.stop()
        files = files_of(authority.issue_machine(tmp_path / "tls", "h1", machine.ip))
        use_identity(Identity(files))
        machine.restart_process()
        with pytest.raises(Conflict, match="is of an arpanet without TLS; to go on with: stop all"):
            machine.etcd.resume()
        recover_member(machine.place, "")
        machine.restart_process()
        assert machine.etcd.resume()
        assert read_note(machine) == "kept"
        assert fetch_members(machine.place.client).members[0].peer_url.startswith("https://")
        machine.etcd.stop()
        use_identity(None)
        machine.restart_process()
        with pytest.raises(Conflict, match="is of an arpanet with TLS; to go on without: stop all"):
            machine.etcd.resume()
    finally:
        machine.etcd.stop()
        use_identity(None)


def leave_note(machine: Machine) -> None:
    assert make_key(machine.place.client, "/arpanet/test/note", "kept")


def read_note(machine: Machine) -> str:
    body = {"key": encode_text("/arpanet/test/note")}
    found = ask_gateway(machine.place.client, "kv/range", body)["kvs"]
    return base64.b64decode(found[0]["value"]).decode()
