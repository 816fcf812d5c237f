"""The mesh: what etcd said yes to is kept, once and in order, whichever master dies.

Real etcd processes on loopback addresses, no root needed. Ended by pid, on failure too.
"""

from __future__ import annotations

import functools
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, until
from lab import SLOW

import arpanet
from arpanet import (
    FIRST_TRY_S,
    HASTE_S,
    TRY_S,
    Check,
    Claim,
    Conflict,
    Entry,
    Event,
    Fault,
    HostPort,
    Lease,
    LostClaim,
    Mesh,
    MeshDown,
    Put,
    Transaction,
    Unsure,
    Wire,
    choose_try_s,
    load_etcd3,
)

CLIENT_PORT, PEER_PORT = 23790, 23800
IPS = ("127.20.0.1", "127.20.0.2", "127.20.0.3")
ONLY_IP = "127.20.0.4"


class EtcdProcess:
    """One real etcd that can be killed, hung and started again on its data."""

    def __init__(self, ip: str, directory: Path, cluster: Sequence[str] = IPS) -> None:
        self.ip, self.client = ip, f"{ip}:{CLIENT_PORT}"
        self._log = directory / f"{ip}.log"
        peer, client = f"http://{ip}:{PEER_PORT}", f"http://{self.client}"
        initial = ",".join(f"{other}=http://{other}:{PEER_PORT}" for other in cluster)
        self._command = ["etcd", "--name", ip, "--data-dir", str(directory / ip)]
        self._command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        self._command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        self._command += ["--initial-cluster", initial, "--initial-cluster-token", "test-mesh"]
        self._command += ["--grpc-keepalive-min-time", "1s", "--logger", "zap"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def hang(self) -> None:
        """Stop the process without its noticing, and wait until it has stopped."""
        assert self.process
        self.signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        until(f"{self.ip} stopped", lambda: stat.read_text().rpartition(")")[2][1] == "T")

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(self.ip, CLIENT_PORT, timeout=2 * SLOW)
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        finally:
            connection.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection(self.ip, CLIENT_PORT, timeout=10 * SLOW)
        try:
            connection.request("POST", f"/v3/{path}", json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            return json.loads(text)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EtcdProcess]]:
    directory = tmp_path_factory.mktemp("etcd")
    processes = [EtcdProcess(ip, directory) for ip in IPS]
    try:
        for process in processes:
            process.start()
        for process in processes:
            until(f"etcd on {process.ip}", process.is_healthy, 20)
        yield processes
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def make_mesh(etcds: list[EtcdProcess], stop: threading.Event) -> Iterator[Callable[[int], Mesh]]:
    """Make meshes that know one master each and have learnt the others."""
    made: list[Mesh] = []

    def make(first: int = 0) -> Mesh:
        mesh = Mesh([etcds[first].client], stop=stop)
        made.append(mesh)
        until("all masters learnt", lambda: len(mesh.endpoints) == 3)
        return mesh

    yield make
    stop.set()
    for mesh in made:
        mesh.close()


@pytest.fixture
def mesh(make_mesh: Callable[..., Mesh]) -> Mesh:
    mesh = make_mesh()
    mesh.delete_prefix("/t/")
    return mesh


class Seen:
    """What a watch has told, in order."""

    def __init__(self) -> None:
        self.resets: list[tuple[int, list[Entry]]] = []
        self.batches: list[tuple[int, list[Event]]] = []

    def on_reset(self, revision: int, entries: list[Entry]) -> None:
        self.resets.append((revision, entries))

    def on_events(self, revision: int, events: list[Event]) -> None:
        self.batches.append((revision, events))

    def has_read(self) -> bool:
        return bool(self.resets)

    def is_at(self, revision: int) -> bool:
        return bool(self.batches) and self.batches[-1][0] >= revision

    def list_events(self) -> list[Event]:
        return [event for _, events in self.batches for event in events]


def test_a_claim_race_has_exactly_one_winner(make_mesh: Callable[..., Mesh], mesh: Mesh) -> None:
    rivals = [mesh, make_mesh(1)]
    barrier = threading.Barrier(2)
    claims: list[list[Claim | None]] = [[], []]

    def race(number: int) -> None:
        for round_number in range(50):
            barrier.wait(20 * SLOW)
            value = f"rival {number} round {round_number}".encode()
            claims[number].append(rivals[number].claim(f"/t/race/{round_number:02}", value))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for round_number, pair in enumerate(zip(*claims, strict=True)):
        winners = [number for number, claim in enumerate(pair) if claim]
        assert len(winners) == 1, (round_number, pair)
        entry = mesh.read(f"/t/race/{round_number:02}")
        assert entry and entry.value == f"rival {winners[0]} round {round_number}".encode()


def test_a_claim_asked_again_recognises_its_own(mesh: Mesh) -> None:
    claim = mesh.claim("/t/a", b"mine")
    assert claim and mesh.claim("/t/a", b"mine") == claim
    assert mesh.claim("/t/a", b"theirs") is None


def test_claim_all_makes_all_or_none(mesh: Mesh) -> None:
    assert mesh.claim_all({"/t/a": b"1", "/t/b": b"1"})
    assert mesh.claim_all({"/t/a": b"1", "/t/b": b"1"})  # its own, after a lost answer
    assert not mesh.claim_all({"/t/b": b"2", "/t/c": b"2"})
    assert mesh.read("/t/c") is None


def test_a_fence_stops_the_holder_of_a_lost_claim(mesh: Mesh) -> None:
    claim = mesh.claim("/t/a", b"1")
    assert claim
    mesh.write("/t/a", b"2", fence=claim)
    assert mesh.delete("/t/a", value=b"1") == 0
    assert mesh.delete("/t/a", fence=claim) > claim.revision
    assert mesh.delete("/t/a") == 0
    mesh.write("/t/a", b"somebody else")
    with pytest.raises(LostClaim, match="/t/a is not ours"):
        mesh.write("/t/a", b"3", fence=claim)
    assert mesh.delete("/t/a", fence=claim) == 0
    entry = mesh.read("/t/a")
    assert entry and entry.value == b"somebody else"


def test_a_commit_does_all_or_nothing(mesh: Mesh) -> None:
    revision = mesh.commit([Check("/t/a", create_revision=0)], [Put("/t/a", b"1")])
    assert revision
    checks = [Check("/t/a", mod_revision=revision - 1)]
    assert mesh.commit(checks, [Put("/t/b", b"1")], ["/t/a"]) is None
    assert mesh.commit([Check("/t/a", mod_revision=revision)], [Put("/t/b", b"1")], ["/t/a"])
    assert [entry.key for entry in mesh.read_prefix("/t/")[1]] == ["/t/b"]


def test_a_write_goes_through_after_somebody_elses(
    make_mesh: Callable[..., Mesh], mesh: Mesh
) -> None:
    other = make_mesh(1)
    for number in range(5):
        mesh.write("/t/a", b"ours %d" % number)
        other.write("/t/a", b"theirs %d" % number)
    entry = mesh.read("/t/a")
    assert entry and (entry.value, entry.version) == (b"theirs 4", 10)


def test_a_try_that_arrives_late_changes_nothing(mesh: Mesh) -> None:
    late = Transaction([], [Put("/t/a", b"old")], [], seen=mesh.read_revision())
    mesh.write("/t/a", b"new")
    answer = mesh._call(late.send)
    assert not answer.succeeded
    entry = mesh.read("/t/a")
    assert entry and entry.value == b"new"


def test_a_lost_answer_is_found_out(mesh: Mesh) -> None:
    seen = mesh.read_revision()
    change = Transaction([Check("/t/a", create_revision=0)], [Put("/t/a", b"mine")], [], seen)
    first = change.send(mesh._wire, 10)
    assert first.succeeded  # and say the answer was lost:
    change.note_fault(Fault(transient=True, maybe_done=True, text="Socket closed"))
    again = change.read_answer(change.send(mesh._wire, 10))
    assert again and again.done and again.revision == first.header.revision


def test_a_long_prefix_is_read_whole(mesh: Mesh) -> None:
    keys = [f"/t/{number:05}" for number in range(2100)]
    for start in range(0, len(keys), 60):
        mesh.commit([], [Put(key, b"x") for key in keys[start : start + 60]])
    _, entries = mesh.read_prefix("/t/")
    assert [entry.key for entry in entries] == keys
    mesh.delete_prefix("/t/")
    assert mesh.read_prefix("/t/")[1] == []


def list_learners(mesh: Mesh) -> list[str]:
    return [member.peer_url for member in mesh.members() if member.learner]


def test_a_learner_is_known_as_one_and_not_asked(etcds: list[EtcdProcess], mesh: Mesh) -> None:
    body = {"peerURLs": ["http://127.20.0.9:23800"], "isLearner": True}
    added = etcds[0].post("cluster/member/add", body)
    try:
        listed = functools.partial(list_learners, mesh)  # of a member that may learn of it later
        assert until("learner listed", listed, 15) == body["peerURLs"]
    finally:
        etcds[0].post("cluster/member/remove", {"ID": added["member"]["ID"]})


def test_a_key_goes_with_its_lease(mesh: Mesh, stop: threading.Event) -> None:
    seen = Seen()
    mesh.watch("/t/", seen.on_reset, seen.on_events, stop)
    until("watching", seen.has_read)
    mesh.write("/t/a", b"1", lease=mesh.grant(5))
    gone = until("deletion seen", lambda: [e for e in seen.list_events() if e.entry is None], 30)
    assert gone[0].key == "/t/a" and mesh.read("/t/a") is None


def test_a_lease_is_published_again_and_ends_with_stop(mesh: Mesh, stop: threading.Event) -> None:
    lease = Lease(mesh, {"/t/alive": b"me 1"}, stop=stop)
    lease.publish()
    lease.start()
    first = lease.lease
    assert lease.alive
    eventually("it is revoked", lambda: mesh.revoke(first))  # as if it had run out during a cut
    until("a new lease", lambda: lease.lease != first and lease.alive, 8)
    lease.update({"/t/alive": b"me 2"})
    until("update", lambda: (e := mesh.read("/t/alive")) and e.value == b"me 2")
    lease.stop()
    assert (lease.alive, mesh.read("/t/alive")) == (False, None)


def test_a_lease_leaves_another_machines_key_alone(mesh: Mesh, stop: threading.Event) -> None:
    mesh.write("/t/alive", b'{"machine":"h2"}', lease=mesh.grant(60))
    now = b'{"machine":"h2","now":1}'
    stranger, heir = (
        Lease(mesh, {"/t/alive": value}, stop=stop) for value in (b'{"machine":"h3"}', now)
    )
    with pytest.raises(Conflict, match='held by another machine: {"machine":"h2"}'):
        stranger.publish()
    assert not stranger.alive
    heir.publish()
    entry = mesh.read("/t/alive")
    assert heir.alive and entry and (entry.value, entry.lease) == (now, heir.lease)
    heir.stop()
    stranger.stop()


def write_until(stop: threading.Event, mesh: Mesh, done: dict[str, int], unsure: set[str]) -> None:
    """Claim /t/w/N for N = 0, 1, …; note what was acknowledged, and what nobody knows."""
    number = 0
    while not stop.wait(0.005):
        key, number = f"/t/w/{number:06}", number + 1
        try:
            claim = mesh.claim(key, f"value {number}".encode())
            assert claim, key
            done[key] = claim.revision
        except Unsure:
            unsure.add(key)
        except MeshDown:
            pass


def test_a_watch_loses_nothing_while_each_master_dies_or_hangs(
    make_mesh: Callable[..., Mesh], mesh: Mesh, etcds: list[EtcdProcess], stop: threading.Event
) -> None:
    reader, written = make_mesh(1), threading.Event()
    seen = [Seen() for _ in etcds]  # one stream on each master
    done: dict[str, int] = {}
    unsure: set[str] = set()
    for one in seen:
        reader.watch("/t/w/", one.on_reset, one.on_events, stop)
        until("watching", one.has_read)
    writer = threading.Thread(target=write_until, args=(written, mesh, done, unsure))
    writer.start()
    try:
        for etcd in etcds:
            etcd.kill()
            threading.Event().wait(1)
            etcd.start()
            until(f"{etcd.ip} back", etcd.is_healthy, 20)
            etcd.hang()
            threading.Event().wait(4.5)  # longer than the keepalive: its watch moves
            etcd.signal(signal.SIGCONT)
            until(f"{etcd.ip} awake", etcd.is_healthy, 20)
        until("enough is written", lambda: len(done) > 100, 60)
    finally:
        written.set()
        writer.join()
    last = mesh.read_revision()
    mesh.write("/t/w/end", b"")
    for one in seen:
        until("the end seen", functools.partial(one.is_at, last + 1), 15)
        require_all_told(one, done, unsure)


def require_all_told(seen: Seen, done: dict[str, int], unsure: set[str]) -> None:
    """Compare what was acknowledged with what one watch told: each once, in order."""
    events = [event for event in seen.list_events() if event.key != "/t/w/end"]
    told = {event.key: event.revision for event in events}
    assert len(seen.resets) == 1 and len(told) == len(events)
    assert [event.revision for event in events] == sorted(told.values())
    assert {key: told.get(key) for key in done} == done
    assert set(told) <= set(done) | unsure


def test_a_compaction_missed_by_a_watch_gives_a_whole_read(
    mesh: Mesh, etcds: list[EtcdProcess], stop: threading.Event
) -> None:
    seen, held, go_on = Seen(), threading.Event(), threading.Event()

    def hold(revision: int, events: list[Event]) -> None:
        seen.on_events(revision, events)
        held.set()
        go_on.wait(60 * SLOW)

    mesh.watch("/t/", seen.on_reset, hold, stop)
    until("watching", seen.has_read)
    mesh.write("/t/a", b"1")
    assert held.wait(5 * SLOW)
    for etcd in etcds:
        etcd.kill()
    for etcd in etcds:
        etcd.start()
    for etcd in etcds:
        until(f"{etcd.ip} back", etcd.is_healthy, 20)
    mesh.write("/t/b", b"1")
    mesh.delete("/t/a")
    revision = mesh.write("/t/c", b"1")
    etcds[0].post("kv/compaction", {"revision": str(revision), "physical": True})
    go_on.set()
    until("a second whole read", lambda: len(seen.resets) == 2)
    assert [entry.key for entry in seen.resets[1][1]] == ["/t/b", "/t/c"]
    mesh.write("/t/d", b"1")
    until("events after it", lambda: seen.list_events()[-1].key == "/t/d")


def test_without_quorum_calls_fail_in_time_and_say_why(
    mesh: Mesh, etcds: list[EtcdProcess]
) -> None:
    for etcd in etcds[:2]:
        etcd.hang()
    try:
        began = time.monotonic()
        with pytest.raises(MeshDown, match="needs 2 of 3.*try: arpanet master status"):
            mesh.read_revision(3)
        assert time.monotonic() - began < 4 * SLOW
        mesh.timeout_s = 2
        with pytest.raises((MeshDown, Unsure)):
            mesh.write("/t/a", b"1")
        assert time.monotonic() - began < 8 * SLOW
    finally:
        for etcd in etcds[:2]:
            etcd.signal(signal.SIGCONT)
    until("quorum again", mesh.read_revision, 20)


@pytest.fixture
def neighbour(etcds: list[EtcdProcess], stop: threading.Event) -> Iterator[Mesh]:
    """Yield the mesh as a master on the first machine has it, which knows the cluster."""
    near = HostPort(etcds[0].ip, CLIENT_PORT)
    mesh = Mesh([e.client for e in etcds], stop=stop, near=near)
    until("the cluster", lambda: mesh.members() and mesh.cluster_id)
    yield mesh
    mesh.close()


def near_sockets(mesh: Mesh) -> int:
    """Return how many connections to the near etcd wait to be used again."""
    assert mesh._near
    return len(mesh._near._idle)


def test_the_near_etcd_says_the_revision_and_is_never_behind(mesh: Mesh, neighbour: Mesh) -> None:
    for number in range(100):
        written = mesh.write("/t/a", b"%d" % number)
        assert neighbour.read_revision() == written
    until("it is kept", lambda: neighbour.read_revision() and near_sockets(neighbour) == 1)


def test_a_near_etcd_that_hangs_is_gone_past(
    mesh: Mesh, neighbour: Mesh, etcds: list[EtcdProcess]
) -> None:
    neighbour.read_revision()
    etcds[0].hang()
    try:
        written = mesh.write("/t/a", b"1")
        began = time.monotonic()
        assert neighbour.read_revision() == written
        assert time.monotonic() - began < 5 * SLOW
        assert near_sockets(neighbour) == 0
    finally:
        etcds[0].signal(signal.SIGCONT)
    until("asked again", lambda: neighbour.read_revision() and near_sockets(neighbour) == 1)


def test_a_near_etcd_without_quorum_says_nothing(neighbour: Mesh, etcds: list[EtcdProcess]) -> None:
    neighbour.read_revision()
    for etcd in etcds[1:]:
        etcd.hang()
    try:
        with pytest.raises(MeshDown):
            neighbour.read_revision(1)
    finally:
        for etcd in etcds[1:]:
            etcd.signal(signal.SIGCONT)
    until("quorum again", neighbour.read_revision, 20)


def test_a_near_etcd_of_another_cluster_is_not_believed(neighbour: Mesh) -> None:
    assert neighbour._near
    near = neighbour._near
    until("it is asked", lambda: near.read(neighbour.cluster_id) > 0)
    assert neighbour._near.read(neighbour.cluster_id + 1) == 0


def test_a_try_is_as_long_as_answers_take_at_the_moment(mesh: Mesh) -> None:
    tries = list[float]()

    def send(wire: Wire, try_s: float) -> Any:
        tries.append(try_s)
        return wire.range(try_s, key=b"\0", count_only=True)

    mesh._took_s = 9.0
    mesh._call(send)
    assert tries[0] == TRY_S
    until("it is quick", lambda: mesh._call(send) and tries[-1] == FIRST_TRY_S)


def test_who_is_slow_and_who_has_waited_long_is_given_more_time() -> None:
    assert choose_try_s(0, 0.002) == FIRST_TRY_S
    assert FIRST_TRY_S < choose_try_s(0, 0.2) < TRY_S
    assert choose_try_s(0, 9) == TRY_S
    assert choose_try_s(HASTE_S + 0.1, 0.002) == TRY_S < choose_try_s(5, 0.002) < 5


@pytest.fixture
def only(tmp_path: Path) -> Iterator[EtcdProcess]:
    """Yield an etcd that is alone in its cluster."""
    etcd = EtcdProcess(ONLY_IP, tmp_path, (ONLY_IP,))
    etcd.start()
    yield etcd
    etcd.kill()


def test_the_only_master_is_waited_for(
    only: EtcdProcess, stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be busy, and to begin again would only make it more so."""
    caplog.set_level(logging.INFO)
    mesh, seen = Mesh([only.client], stop=stop), Seen()
    try:
        mesh.watch("/t/", seen.on_reset, seen.on_events, stop)
        until("watching", seen.has_read)
        only.hang()
        late = threading.Timer(4, only.signal, [signal.SIGCONT])  # one of many is left by then
        late.start()
        written = mesh.write("/t/a", b"1")
        late.join()
        until("it is told", functools.partial(seen.is_at, written))
        assert "watch broke" not in caplog.text
    finally:
        mesh.close()


def test_an_unreachable_master_is_named() -> None:
    mesh = Mesh(["127.20.0.7:23790"], stop=threading.Event())
    try:
        with pytest.raises(MeshDown, match=r"in 1 s \(tried 127.20.0.7:23790\): refused; try:"):
            mesh.read_revision(1)
    finally:
        mesh.close()


def test_importing_the_module_loads_no_grpc() -> None:
    program = "import sys, arpanet; print({'grpc', 'google.protobuf'} & set(sys.modules))"
    path = {"PYTHONPATH": str(Path(arpanet.__file__).parent), "PATH": os.defpath}
    done = subprocess.run(
        [sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_etcds_messages_are_compiled() -> None:
    descriptor = load_etcd3().rpc.TxnRequest.DESCRIPTOR
    assert type(descriptor).__module__ == "google._upb._message", "in pure Python: 20 times slower"


def test_another_etcd3_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "etcd3" / "etcdrpc"
    package.mkdir(parents=True)
    (tmp_path / "etcd3" / "__init__.py").write_text("")
    (package / "kv_pb2.py").write_text("DESCRIPTOR = _descriptor_pool.Default()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="kv_pb2 of etcd3 is not that of version 0.12.0"):
        load_etcd3()
