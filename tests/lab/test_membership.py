"""Masters come, go, die and come back, and stay one cluster.

Real etcd processes on loopback addresses, no root needed. Each is a child of this process or of a
driver of its own, and dies with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import eventually, until
from lab import SLOW

import arpanet
from arpanet import (
    Conflict,
    EtcdDied,
    EtcdMember,
    MemberPlace,
    MeshDown,
    Usage,
    ask_gateway,
    is_open,
)

CLIENT_PORT, PEER_PORT = 23790, 23800


class Machine:
    """One machine: its address, its directory, the etcd on it and what that said."""

    def __init__(self, number: int, directory: Path, network: str = "127.20.1") -> None:
        self.ip, self.name = f"{network}.{number}", f"h{number}"
        root = directory / self.ip
        self.place = MemberPlace(self.ip, self.name, root, root / "log", CLIENT_PORT, PEER_PORT)
        self.said: list[str] = []
        self.restart_process()

    def restart_process(self) -> None:
        """Begin anew with what is on disk, as a new process would."""
        self.etcd = EtcdMember(self.place, stop=threading.Event(), say=self.said.append)

    def wipe_data(self) -> None:
        shutil.rmtree(self.place.data_dir)

    def is_ready(self) -> bool:
        self.etcd.step()
        return self.etcd.ready


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    directory = tmp_path_factory.mktemp("masters")
    machines = [Machine(number, directory) for number in (1, 2, 3)]
    first, second, third = machines
    try:
        assert first.etcd.boot()
        assert second.etcd.join([first.ip])
        assert third.etcd.join([second.ip, "127.20.1.99"])
        yield machines
    finally:
        for machine in machines:
            machine.etcd.stop()


@pytest.fixture
def trio(masters: list[Machine]) -> list[Machine]:
    """Three masters that are up, also after a test that failed halfway."""
    down = [machine for machine in masters if not machine.etcd.ready]
    for machine in down:
        machine.etcd.stop()
        machine.restart_process()
        others = [other.ip for other in masters if other is not machine]
        machine.etcd.join(others, wait_s=5, patience_s=1)
    for machine in down:
        until(f"{machine.ip} up again", machine.is_ready, 20)
    return masters


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Machine]:
    """A machine of its own, on another network than the trio."""
    machine = Machine(1, tmp_path, "127.20.2")
    yield machine
    machine.etcd.stop()


def find_ids(machine: Machine) -> dict[str, int]:
    return {row.ip: row.id for row in machine.etcd.status()}


def test_three_masters_are_one_cluster_of_voters(trio: list[Machine]) -> None:

    def is_cluster() -> None:
        rows = trio[2].etcd.status()
        assert sorted((row.name, row.ip) for row in rows) == [(m.name, m.ip) for m in trio]
        assert all(r.answers and not r.learner and r.version.startswith("3.") for r in rows)
        assert sum(row.leader for row in rows) == 1

    eventually("all say so", is_cluster)
    assert "joined as a learner, catching up" in trio[1].said


def test_what_etcd_keeps_is_for_nobody_else(trio: list[Machine]) -> None:
    for place in (machine.place for machine in trio):
        kept = (place.state_dir, place.data_dir, place.state_path, *place.data_dir.rglob("*.snap"))
        assert {path: path.stat().st_mode & 0o077 for path in kept} == dict.fromkeys(kept, 0)
        assert place.log_path.stat().st_mode & 0o007 == 0


def test_masters_start_again_in_any_order_and_with_any_peers(trio: list[Machine]) -> None:
    first, second, third = trio
    ids = find_ids(first)
    for machine in trio:
        machine.etcd.stop()
        machine.restart_process()
    assert not third.etcd.resume(wait_s=1.5)  # no majority yet; it goes on trying
    assert third.said[-1] == f"waiting for {first.ip}, {second.ip} to answer"
    assert first.etcd.boot(wait_s=20 * SLOW)
    until("the third is ready too", third.is_ready)
    assert second.etcd.join(["127.20.9.9"], wait_s=20 * SLOW)
    assert find_ids(first) == ids


def test_a_killed_etcd_is_started_again(trio: list[Machine]) -> None:
    child = trio[0].etcd.child
    os.kill(child.pid, signal.SIGKILL)
    child.wait(5 * SLOW)
    assert trio[0].etcd.step().endswith("starting it again")
    assert not trio[0].etcd.ready
    until("back", trio[0].is_ready, 20)


def test_a_wiped_master_comes_back_as_a_new_member(trio: list[Machine]) -> None:
    wiped = trio[1]
    before = find_ids(trio[0])
    wiped.etcd.stop()
    wiped.wipe_data()
    wiped.restart_process()
    with pytest.raises(
        Conflict, match=rf"belonged to the arpanet of .*{trio[0].ip}.*its data is gone"
    ):
        wiped.etcd.boot()
    assert wiped.etcd.join([trio[0].ip])
    after = find_ids(trio[0])
    assert after.keys() == before.keys()
    assert {ip for ip, id_ in after.items() if before[ip] != id_} == {wiped.ip}


def test_a_master_removed_while_away_joins_again(trio: list[Machine]) -> None:
    away = trio[2]
    old_id = find_ids(trio[0])[away.ip]
    away.etcd.stop()
    body = {"ID": str(old_id)}
    ask_gateway(trio[0].place.client, "cluster/member/remove", body, timeout_s=20 * SLOW)
    away.restart_process()
    assert away.etcd.resume(wait_s=40 * SLOW)
    assert find_ids(trio[0])[away.ip] not in (0, old_id)
    assert (away.place.state_dir / "etcd.old" / "member").is_dir()


def test_a_second_start_names_who_has_the_port(trio: list[Machine], tmp_path: Path) -> None:
    again = Machine(1, tmp_path)
    child = trio[0].etcd.child
    with pytest.raises(
        Conflict, match=rf"port 23790 on 127.20.1.1 is in use by etcd \(pid {child.pid}\)"
    ):
        again.etcd.boot()


def test_a_master_of_another_cluster_is_refused(trio: list[Machine], lone: Machine) -> None:
    assert lone.etcd.boot()
    lone.etcd.stop()
    lone.wipe_data()
    lone.restart_process()
    with pytest.raises(
        Conflict, match=r"127.20.1.1:23790 is of another arpanet.*remove .*master.json"
    ):
        lone.etcd.join([trio[0].ip])
    with pytest.raises(Conflict, match="had an arpanet of its own, and its data"):
        lone.etcd.boot()


def test_an_unreachable_master_is_named(lone: Machine) -> None:
    words = "no master answers at 127.20.2.9:23790: refused; check the address, or start the first"
    with pytest.raises(MeshDown, match=words):
        lone.etcd.join(["127.20.2.9"], patience_s=1)


def test_an_etcd_of_somebody_else_is_left_alone(lone: Machine, tmp_path: Path) -> None:
    client, peer = f"http://127.20.2.7:{CLIENT_PORT}", f"http://127.20.2.7:{PEER_PORT}"
    command = ["etcd", "--data-dir", str(tmp_path / "foreign"), "--initial-cluster"]
    command += [f"default={peer}", "--initial-advertise-peer-urls", peer, "--listen-peer-urls"]
    command += [peer, "--listen-client-urls", client, "--advertise-client-urls", client]
    foreign = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(Usage, match="the etcd at 127.20.2.7:23790 is not of an arpanet"):
            lone.etcd.join(["127.20.2.7"])
    finally:
        foreign.kill()
        foreign.wait()


def test_an_etcd_that_dies_at_start_is_quoted(lone: Machine) -> None:
    wal = lone.place.data_dir / "member" / "wal" / "0000000000000000-0000000000000000.wal"
    wal.parent.mkdir(parents=True)
    wal.write_bytes(b"no log")
    with pytest.raises(EtcdDied, match=r"etcd ended \(2\): panic: .*; its log is /"):
        lone.etcd.resume()


DRIVER = """
import pathlib, sys, threading
from arpanet import EtcdMember, MemberPlace
ip, name, root, peer = sys.argv[1:]
place = MemberPlace(ip, name, pathlib.Path(root), pathlib.Path(root), 23790, 23800)
etcd = EtcdMember(place, stop=threading.Event(), say=lambda text: print(text, flush=True))
print("joined", etcd.join([peer]), flush=True)
sys.stdin.read()
etcd.leave()
"""


def start_driver(number: int, directory: Path, peer: Machine) -> subprocess.Popen[bytes]:
    """Start a process that joins, and leaves when its stdin ends."""
    path = os.pathsep.join([str(Path(arpanet.__file__).parent), *filter(None, sys.path)])
    ip = f"127.20.1.{number}"
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, ip, f"h{number}", str(directory / ip), peer.ip],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("moment", ["it was added", "its etcd had started", "it was a voter"])
def test_a_join_that_is_broken_off_is_repeated(
    trio: list[Machine], tmp_path: Path, moment: str
) -> None:
    def is_there() -> bool:
        rows = [row for row in trio[0].etcd.status() if row.ip == "127.20.1.6"]
        started = [row for row in rows if row.name or moment == "it was added"]
        return any(not row.learner or moment != "it was a voter" for row in started)

    driver = start_driver(6, tmp_path, trio[0])
    try:
        until(moment, is_there, 40)
        driver.kill()  # and with it its etcd
        driver.communicate()
        ports = [f"127.20.1.6:{port}" for port in (CLIENT_PORT, PEER_PORT)]
        until("its etcd has ended", lambda: not any(map(is_open, ports)))
        assert trio[0].etcd.status()  # the others have a majority without it
        driver = start_driver(6, tmp_path, trio[0])
        until("it is a voter", lambda: count_voters(trio[0]) == 4, 40)
        driver.communicate()
        until("it has left", lambda: len(trio[0].etcd.status()) == 3, 30)
    finally:
        driver.kill()
        driver.wait()


def test_two_join_at_once_and_leave_at_once(trio: list[Machine], tmp_path: Path) -> None:
    drivers = []
    try:
        for number in (4, 5):
            drivers.append(start_driver(number, tmp_path, trio[0]))
        until("five voters", lambda: count_voters(trio[0]) == 5, 40)
        for driver in drivers:
            assert driver.stdin
            driver.stdin.close()
        until("three voters", lambda: count_voters(trio[0]) == 3, 30)
        for driver in drivers:
            assert driver.wait(20 * SLOW) == 0
    finally:
        for driver in drivers:
            driver.kill()  # its etcd goes with it
            driver.communicate()


def count_voters(machine: Machine) -> int:
    return sum(row.answers and not row.learner for row in machine.etcd.status())


def test_masters_leave_until_the_last_which_keeps_its_data(tmp_path: Path) -> None:
    first, second = (Machine(number, tmp_path, "127.20.3") for number in (1, 2))
    try:
        assert first.etcd.boot()
        assert second.etcd.join([first.ip])
        assert first.etcd.leave()
        assert not first.place.has_data() and not first.place.state_path.exists()
        assert not second.etcd.leave()
        assert second.place.has_data()
    finally:
        first.etcd.stop()
        second.etcd.stop()
