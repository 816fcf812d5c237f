"""Any master may die: the others go on, nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HOSTS, docker, eventually, output
from lab import Host, Lab, find_process


@pytest.fixture(autouse=True)
def healthy(net: Lab) -> Iterator[None]:
    """Begin and end each test with three masters, three hosts and no container."""
    wait_well(net)
    yield
    for name in HOSTS:
        start_master(net[name])
    wait_well(net)
    if ids := output(net, "ps", "-aq").split():
        docker(net, "rm", "-f", *ids)


def start_master(host: Host) -> None:
    if not master_pid(host):
        host.run(["arpanet", "master", "start"])


def status(net: Lab, via: str = "h1") -> dict[str, Any]:
    """Return what a master says of all of them."""
    done = net[via].run(["arpanet", "master", "status", "--json"], check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def wait_well(net: Lab) -> None:
    """Block until every master says that all masters and hosts are well."""

    def all_well() -> None:
        for via in HOSTS:
            report = status(net, via)
            assert [m["answers"] for m in report["masters"]] == [True] * 3, report
            assert [h["alive"] for h in report["hosts"]] == [True] * 3, report

    eventually("all masters and hosts are well", all_well, 60)


def leader(net: Lab) -> str:
    """Return the host whose etcd leads."""
    found = [m["name"] for m in status(net)["masters"] if m["leader"]]
    assert len(found) == 1
    return str(found[0])


def master_pid(host: Host) -> int:
    """Return the process of a host's master, 0 if none runs."""
    found = [p.pid for p in host.processes() if {"master", "start"} <= set(p.argv)]
    return min(found, default=0)


def assert_gone(pid: int) -> None:
    assert find_process(pid) is None


def kill_master(host: Host) -> None:
    """Kill a master and its etcd as a power cut does: neither can say goodbye."""
    pids = [*host.pids("etcd"), master_pid(host)]
    assert len(pids) == 2 and all(pids), pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the one may end the other
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        eventually(f"process {pid} has ended", lambda p=pid: assert_gone(p), 10)  # type: ignore[misc]


class Work:
    """A client that runs and removes containers through some masters, and keeps the record."""

    def __init__(self, net: Lab, vias: tuple[str, ...]) -> None:
        self._net, self._vias = net, vias
        self._stop = threading.Event()
        self._grown = threading.Condition()
        self.kept: dict[str, str] = {}  # acknowledged and not removed: name, id
        self.removed: set[str] = set()
        self.failures: list[str] = []
        self.done = 0
        self._thread = threading.Thread(target=self._run, name="work")

    def __enter__(self) -> Work:
        self._thread.start()
        self.wait_more(2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_more(self, count: int) -> None:
        """Block until so many more rounds are done."""
        with self._grown:
            goal = self.done + count
            assert self._grown.wait_for(lambda: self.done >= goal, 120), "the work stands still"

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            name, via = f"work-{number}", self._vias[number % len(self._vias)]
            words = ["run", "-d", "--name", name, "busybox", "sleep", "600"]
            done = docker(self._net, *words, via=via, check=False)
            if done.returncode:
                self.failures.append(f"run {name} via {via}: {done.stderr}")
            else:
                self.kept[name] = done.stdout.strip()
            if number % 2 and name in self.kept:
                done = docker(self._net, "rm", "-f", name, via=via, check=False)
                if done.returncode:
                    self.failures.append(f"rm {name} via {via}: {done.stderr}")
                else:
                    self.kept.pop(name)
                    self.removed.add(name)
            with self._grown:
                self.done += 1
                self._grown.notify_all()

    def check(self) -> None:
        """Compare what was acknowledged with what the engines have."""
        assert self.failures == []
        found: dict[str, list[str]] = collections.defaultdict(list)
        for host in self._net.hosts:
            words = ["docker", "ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.ID}}"]
            for line in host.run(words).stdout.splitlines():
                name, container_id = line.split()
                found[name].append(container_id)
        assert {n: ids for n, ids in found.items() if len(ids) > 1} == {}
        assert {n: ids[0] for n, ids in found.items()} == self.kept


def listed(net: Lab, via: str) -> list[str]:
    """Return what docker ps says there, without the ages."""
    words = ["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.State}}"]
    return sorted(output(net, *words, via=via).splitlines())


def assert_one_view(net: Lab) -> None:
    views = {via: listed(net, via) for via in HOSTS}
    assert views["h1"] == views["h2"] == views["h3"]


def lose_and_return(net: Lab, victim: str) -> None:
    """Kill a master while work goes on through the others; see it come back and catch up."""
    others = tuple(name for name in HOSTS if name != victim)
    with Work(net, others) as work:
        kill_master(net[victim])
        work.wait_more(4)
        net[victim].run(["arpanet", "master", "start"])
        work.wait_more(2)
    work.check()
    assert_one_view(net)


def test_no_command_fails_at_the_others_when_a_master_is_killed(net: Lab) -> None:
    lose_and_return(net, next(name for name in HOSTS if name != leader(net)))


def test_no_command_fails_at_the_others_when_the_leader_of_etcd_is_killed(net: Lab) -> None:
    lose_and_return(net, leader(net))


def test_a_master_starts_its_etcd_again_when_that_alone_is_killed(net: Lab) -> None:
    (old,) = net["h2"].pids("etcd")
    master = master_pid(net["h2"])
    with Work(net, ("h1", "h3")) as work:
        os.kill(old, signal.SIGKILL)

        def is_new() -> None:
            assert [pid for pid in net["h2"].pids("etcd") if pid != old]

        eventually("another etcd runs", is_new, 15)
        work.wait_more(2)
    work.check()
    assert master_pid(net["h2"]) == master
    wait_well(net)
    assert_one_view(net)


def test_a_master_may_be_stopped_and_started_while_others_work(net: Lab) -> None:
    with Work(net, ("h1", "h3")) as work:
        net["h2"].run(["arpanet", "master", "stop"])
        assert net["h2"].pids("etcd") == []
        work.wait_more(2)
        net["h2"].run(["arpanet", "master", "start"])
        work.wait_more(1)
    work.check()
    assert_one_view(net)


@pytest.mark.parametrize("order", [("h3", "h1", "h2"), ("h2", "h3", "h1")])
def test_all_masters_off_and_on_again_in_any_order(net: Lab, order: tuple[str, ...]) -> None:
    docker(net, "run", "-d", "--name", "stays", "busybox", "sleep", "600")
    before = listed(net, "h1")
    for name in HOSTS:
        net[name].run(["arpanet", "master", "stop"])
    starts = [net[name].popen(["arpanet", "master", "start"]) for name in order]
    assert [start.wait(90) for start in starts] == [0, 0, 0]
    wait_well(net)
    assert [listed(net, via) for via in HOSTS] == [before] * 3
    docker(net, "run", "-d", "--name", "after", "busybox", "sleep", "600", via=order[0])
    assert_one_view(net)


def test_without_quorum_ps_answers_with_a_warning_and_run_says_what_to_do(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "stays", "busybox", "sleep", "600")
    before = listed(net, "h1")
    for name in ("h2", "h3"):
        kill_master(net[name])

    def is_warned() -> None:
        done = net.client.run(["curl", "-si", f"http://{net['h1'].ip}:8791/containers/json?all=1"])
        head, _, body = done.stdout.partition("\n\n")
        assert "HTTP/1.1 200" in head
        assert "\nWarning:" in head
        assert "stays" in body

    eventually("ps answers with a warning", is_warned)
    assert [line.split()[1] for line in listed(net, "h1")] == [line.split()[1] for line in before]
    words = ["run", "-d", "--name", "late", "busybox", "sleep", "600"]
    done = docker(net, *words, check=False)
    assert done.returncode == 125
    assert "quorum" in done.stderr or "needs 2 of 3" in done.stderr, done.stderr
    assert "try: arpanet master" in done.stderr, done.stderr
    net["h2"].run(["arpanet", "master", "start"])
    eventually("run works again", lambda: docker(net, *words))
    net["h3"].run(["arpanet", "master", "start"])
    wait_well(net)
    assert_one_view(net)


def test_the_client_socket_moves_on_when_its_master_is_killed(net: Lab) -> None:
    client = net.client
    ips = ",".join(net[name].ip for name in HOSTS)
    client.run(["arpanet", "client", "start"], env={"ARPANET_MASTERS": ips})
    words = ["docker", "-H", "unix:///run/arpanet/docker.sock"]
    try:
        client.run([*words, "run", "-d", "--name", "stays", "busybox", "sleep", "600"])
        for victim in HOSTS:
            kill_master(net[victim])
            for _ in range(3):
                assert "stays" in client.run([*words, "ps"]).stdout
            net[victim].run(["arpanet", "master", "start"])
            wait_well(net)
    finally:
        client.run(["arpanet", "client", "stop"])
    assert not client.path("/run/arpanet/docker.sock").exists()
