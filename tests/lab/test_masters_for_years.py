"""Masters come, leave, are lost and recovered, run full, and the arpanet stays what it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HOSTS, docker, etcdctl, eventually, output, remove_all, start_all, until
from faults import AWAY, Client, compare, find_pids, kill, read_world, wait_well
from lab import Host, Lab

STATE = "/var/lib/arpanet"
BACKUP = f"{STATE}/backup"


class Patient(Client):
    """One that waits while two masters become one, on a busy machine too."""

    within_s = 90.0


class Work:
    """Clients at work, each through one master; none of their commands may fail by its fault."""

    def __init__(self, net: Lab, vias: tuple[str, ...]) -> None:
        self._net = net
        self._clients = [
            Patient(net, f"work-{via}", ["docker", "-H", f"tcp://{net[via].ip}:8791"], {})
            for via in vias
        ]

    def __enter__(self) -> Work:
        for client in self._clients:
            client.start()
        self.wait_more(3)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stop()

    def wait_more(self, count: int) -> None:
        """Block until each has done so many more commands."""
        goals = [len(client.history) + count for client in self._clients]
        for client, goal in zip(self._clients, goals, strict=True):
            until("the work goes on", lambda c=client, g=goal: len(c.history) >= g, 120)  # type: ignore[misc]

    def check(self) -> None:
        """Compare what was acknowledged with what is there."""
        history = [told for client in self._clients for told in client.history]
        by_masters = [told for told in history if not told.well and AWAY not in told.said]
        assert by_masters == []

        def settled() -> None:
            findings = compare(history, read_world(self._net))
            assert not any(findings), findings

        eventually("all is as it was told", settled, 20)


QUOTA_MB = 32


@pytest.fixture(scope="module")
def net(lab: Lab) -> Lab:
    """Return the lab with masters whose etcd is full soon, and slaves."""
    for host in lab.hosts:
        host.path("/etc/arpanet/arpanet.env").write_text(f"ARPANET_ETCD_QUOTA_MB={QUOTA_MB}\n")
    start_all(lab)
    return lab


@pytest.fixture(autouse=True)
def healthy(net: Lab) -> Iterator[None]:
    """Begin and end each test with three masters, three hosts and no container."""
    for host in net.hosts:
        if not find_pids(host, "master"):
            others = ",".join(other.ip for other in net.hosts if other is not host)
            host.run(["arpanet", "master", "start", "--peers", others])
    wait_well(net)
    eventually("all know all masters", lambda: assert_all_known(net))
    yield
    remove_all(net, via="h2")


def assert_all_known(net: Lab) -> None:
    """Check that each machine knows where to look when two masters are lost."""
    for host in net.hosts:
        assert len(json.loads(host.path(f"{STATE}/masters.json").read_text())) == len(HOSTS)


def master(host: Host, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Type `arpanet master ...` on a host."""
    done: subprocess.CompletedProcess[str] = host.run(["arpanet", "master", *words], **options)
    return done


def refuse(host: Host, *words: str, code: int, said: str) -> None:
    """Check that a command ends with that code and one sentence that fits said."""

    def is_refused() -> None:  # a busy machine may have no leader for a moment
        done = master(host, *words, check=False)
        assert done.returncode == code, done
        assert done.stdout == ""
        assert re.fullmatch(f".*({said}).*\n", done.stderr), done.stderr

    eventually("it is refused", is_refused)


def report(host: Host) -> dict[str, Any]:
    done = master(host, "status", "--json", check=False)
    assert done.stdout, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_masters(host: Host, names: set[str]) -> None:
    """Check which masters a host's master knows of."""
    assert {row["name"] for row in report(host)["masters"]} == names


def forget_all(host: Host, *files: str) -> None:
    """Lose a master's disk, or some files on it."""
    paths = [f"{STATE}/{name}" for name in files or ("etcd", "etcd.old", "master.json")]
    host.run(["rm", "-rf", *paths])


def test_a_master_leaves_and_comes_back_while_others_work(net: Lab) -> None:
    with Work(net, ("h1", "h3")) as work:
        done = master(net["h2"], "leave")
        assert "master h2 has left; masters now: h1, h3; with fewer than three" in done.stdout
        assert net["h2"].pids("etcd") == []
        eventually("two are left", lambda: assert_masters(net["h1"], {"h1", "h3"}))
        work.wait_more(2)
        refuse(net["h2"], "leave", code=1, said="no data of a master.*remove h2")
        master(net["h2"], "start", "--peers", net["h3"].ip)
        work.wait_more(1)
    work.check()


def test_masters_leave_until_the_last_and_two_join_it_at_once(net: Lab) -> None:
    master(net["h1"], "leave")
    master(net["h3"], "stop")  # one that does not run can leave too; until it does, no majority
    eventually("h3 leaves", lambda: master(net["h3"], "leave"))
    eventually("h2 is the last", lambda: assert_masters(net["h2"], {"h2"}))
    with Work(net, ("h2",)) as work:
        work.wait_more(1)
        refuse(net["h2"], "leave", code=1, said="the last master, .*/etcd. stays .*--peers")
        starts = [
            net[name].popen(["arpanet", "master", "start", "--peers", net["h2"].ip])
            for name in ("h1", "h3")
        ]
        assert [start.wait(90) for start in starts] == [0, 0]
        eventually("all are masters", lambda: assert_masters(net["h1"], set(HOSTS)))
        work.wait_more(1)
    work.check()


def test_only_a_dead_master_is_removed_and_its_machine_joins_again_without_its_disk(
    net: Lab,
) -> None:
    refuse(net["h1"], "remove", "h3", code=1, said="h3 lives.*on it: arpanet master leave")
    refuse(net["h1"], "remove", "h9", code=1, said="no master h9; there are: h1, h2, h3")
    with Work(net, ("h1", "h2")) as work:
        kill(net["h3"], "master")

        def is_removed() -> None:  # its lease runs for another 10 s
            master(net["h1"], "remove", "h3")

        eventually("h3 is removed", is_removed)
        eventually("two are left", lambda: assert_masters(net["h2"], {"h1", "h2"}))
        forget_all(net["h3"], "etcd")
        said = f"belonged to the arpanet of .*{net['h1'].ip}.*its data is gone; try: arpanet master"
        done = master(net["h3"], "start", "--peers", "boot", check=False)
        assert done.returncode == 1
        assert re.search(said + "|an arpanet answers at", done.stderr), done.stderr
        master(net["h3"], "start", "--peers", net["h1"].ip)
        work.wait_more(1)
    work.check()


def test_a_second_arpanet_by_mistake_is_refused_or_said_when_they_meet(net: Lab) -> None:
    master(net["h3"], "leave")
    before = net["h3"].run(["cat", f"{STATE}/masters.json"]).stdout
    said = f"an arpanet answers at {net['h1'].ip}; to join it: .*--peers {net['h1'].ip}"
    env = {"ARPANET_MASTERS": net["h1"].ip}
    done = master(net["h3"], "start", "--peers", "boot", env=env, check=False)
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    net["h3"].run(["arpanet", "slave", "stop"])
    forget_all(net["h3"], "masters.json")
    master(net["h3"], "start", "--peers", "boot")  # it cannot know
    try:
        both = {"ARPANET_MASTERS": f"{net['h1'].ip},{net['h3'].ip}"}

        def is_said() -> None:
            done = master(net["h1"], "status", env=both, check=False)
            assert done.returncode == 1
            assert f"the master at {net['h3'].ip} is of another arpanet" in done.stderr

        eventually("it is said", is_said)
        words = ["docker", "-H", "unix:///run/arpanet/docker.sock", "info", "-f", "{{.Name}}"]

        def is_not_used() -> None:  # the client is of the first that answers when it starts
            net.client.run(["arpanet", "client", "stop"])
            net.client.run(["arpanet", "client", "start"], env=both)
            assert net.client.run(words).stdout
            log = net.client.path("/var/log/arpanet/client.log").read_text()
            assert f"the master at {net['h3'].ip}:8791 is of another arpanet" in log

        eventually("it is not used", is_not_used)
    finally:
        net.client.run(["arpanet", "client", "stop"])
        master(net["h3"], "stop")
        forget_all(net["h3"])
        net["h3"].path(f"{STATE}/masters.json").write_text(before)
        net["h3"].run(["arpanet", "slave", "start"])


def make_things(net: Lab) -> list[str]:
    """Make a container on each host, a link and a volume; return what docker ps says of them."""
    docker(net, "run", "-d", "--name", "web1", "-v", "kept:/kept", "web", via="h2")
    docker(net, "run", "-d", "--name", "web2", "--link", "web1:web", "web", via="h3")
    docker(net, "run", "-d", "--name", "web3", "web")
    return listed(net, "h3")


def listed(net: Lab, via: str) -> list[str]:
    words = [
        "ps",
        "-a",
        "--no-trunc",
        "--format",
        '{{.ID}} {{index (split .Names ",") 0}} {{.State}}',
    ]
    return sorted(output(net, *words, via=via).splitlines())


def assert_all_there(net: Lab, things: list[str], via: str) -> None:
    """Check names, containers, link and volume, through the one master that there is."""

    def is_listed() -> None:
        assert listed(net, via) == things

    eventually("all containers are listed", is_listed)

    def is_linked() -> None:
        words = ["exec", "web2", "wget", "-qO-", "http://web:8000/"]
        assert output(net, *words, via=via) == "hello from the lab"

    eventually("the link works", is_linked)
    done = docker(net, "create", "--name", "web1", "web", via=via, check=False)
    assert 'name "/web1" is already in use' in done.stderr
    host = next(line for line in things if "web1@" in line).split()[1].partition("@")[2]
    words = ["create", "--name", "same", "-v", "kept:/kept", "web"]
    eventually("the volume's host can be reached", lambda: docker(net, *words, via=via))
    assert f"same@{host}" in output(net, "ps", "-a", "--format", "{{.Names}}", via=via)
    docker(net, "rm", "same", via=via)


def test_the_last_of_three_masters_goes_on_alone_and_the_others_join_it(net: Lab) -> None:
    things = make_things(net)
    refuse(net["h3"], "recover", code=1, said="have a majority .*nothing to recover")
    for name in ("h1", "h2"):
        kill(net[name], "master")

    def has_no_majority() -> None:
        done = master(net["h3"], "status", check=False)
        assert "no majority (h1, h2 do not answer); start them: " in done.stderr, done.stderr
        assert "arpanet master recover" in done.stderr

    eventually("h3 says what to do", has_no_majority)
    refuse(net["h3"], "leave", code=3, said="no majority .h1, h2 do not answer")
    refuse(net["h3"], "remove", "h1", code=3, said="no majority .h1, h2 do not answer")
    assert "h3 is the only master now" in master(net["h3"], "recover").stdout
    master(net["h3"], "start")
    eventually("h3 is alone", lambda: assert_masters(net["h3"], {"h3"}))
    assert_all_there(net, things, "h3")
    for name in ("h1", "h2"):  # with their old data, of which they must let go
        master(net[name], "start")
    eventually("all are masters", lambda: assert_masters(net["h3"], set(HOSTS)))
    wait_well(net)
    assert [listed(net, via) for via in HOSTS] == [things] * 3


def test_all_masters_are_lost_and_one_begins_again_with_a_backup(net: Lab) -> None:
    things = make_things(net)
    said = master(net["h2"], "backup", BACKUP).stdout
    assert re.fullmatch(rf"saved revision \d+ \(\d+ keys, \d+ bytes\) in {BACKUP}\n", said)
    saved = net["h2"].path(BACKUP)
    assert saved.stat().st_mode & 0o777 == 0o600
    content = saved.read_bytes()
    refuse(net["h2"], "backup", BACKUP, code=1, said="is there already; .*--overwrite")
    master(net["h2"], "backup", "--overwrite", BACKUP)
    refuse(net["h2"], "backup", "/nowhere/x", code=2, said="cannot write /nowhere/x: No such file")
    assert not net["h2"].path(f"{BACKUP}.new").exists()
    net["h2"].path(f"{BACKUP}.bad").write_bytes(content[:-100])
    docker(net, "run", "-d", "--name", "later", "web")
    things = listed(net, "h1")  # later is not in the backup: its slave tells it anew
    refuse(
        net["h2"], "recover", "--from", BACKUP, code=1, said="stop them all: arpanet master stop"
    )
    for host in net.hosts:
        kill(host, "master")
        forget_all(host, *(["etcd.old"] if host.name == "h3" else []))
    refuse(net["h2"], "recover", code=1, said="no data of a master to recover.*--from FILE")
    refuse(net["h2"], "recover", "--from", "/x", code=1, said="there is no file /x")
    old = net["h2"].path("/var/lib/arpanet/etcd.old/member")
    old.mkdir(parents=True, exist_ok=True)
    refuse(net["h2"], "recover", "--from", f"{BACKUP}.bad", code=1, said="etcdctl .* failed: ")
    assert old.exists()  # what was kept from before goes only when there is something newer
    master(net["h2"], "recover", "--from", BACKUP)
    master(net["h2"], "start")
    assert_all_there(net, things, "h2")  # the slaves notice by themselves
    done = master(net["h3"], "start", "--peers", net["h2"].ip, check=False)
    assert done.returncode == 1
    assert "another arpanet than the data here, or was recovered from a backup" in done.stderr
    forget_all(net["h3"])
    for name in ("h1", "h3"):
        master(net[name], "start", "--peers", net["h2"].ip)
    wait_well(net)
    assert [listed(net, via) for via in HOSTS] == [things] * 3


def put(host: Host, key: str, size_kb: int) -> str:
    """Write a key straight into etcd; return what etcdctl says when it fails."""
    ask = " ".join(etcdctl(host, "put", key))
    command = f"head -c {size_kb}k /dev/zero | tr '\\0' x | {ask}"
    return host.run(["sh", "-c", command], check=False).stderr


def test_a_master_waits_for_the_program_etcd_that_is_gone_for_a_moment(net: Lab) -> None:
    host = net["h2"]
    before = find_pids(host, "master")
    host.run(["mount", "--bind", "/dev/null", "/usr/bin/etcd"])
    try:
        (pid,) = host.pids("etcd")
        os.kill(pid, signal.SIGKILL)
        words = ["grep", "etcd is not installed; .*; trying on", "/var/log/arpanet/master.log"]
        eventually("the log says why", lambda: host.run(words))
    finally:
        host.run(["umount", "/usr/bin/etcd"])
    wait_well(net)
    assert find_pids(host, "master") == before


def delete(host: Host, prefix: str) -> None:
    """Delete keys straight from etcd."""
    host.run(etcdctl(host, "del", "--prefix", prefix))


def test_a_full_disk_stops_one_master_alone_and_heals_once_there_is_room(net: Lab) -> None:
    host = net["h3"]
    master(host, "leave")
    host.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", "/mnt"])
    env = {"ARPANET_STATE_DIR": "/mnt/state", "ARPANET_LOG_DIR": "/mnt/log"}
    try:
        master(host, "start", "--peers", net["h1"].ip, env=env)
        with Work(net, ("h1", "h2")) as work:
            (old,) = host.pids("etcd")  # its data is small as yet, and has no room in it
            host.run(["dd", "if=/dev/zero", "of=/mnt/fill", "bs=64k"], check=False)
            for number in range(6):
                put(net["h1"], f"fill{number}", 1000)
            eventually("etcd has ended", lambda: assert_not_among(old, host.pids("etcd")), 20)
            work.wait_more(2)
            assert find_pids(host, "master")
            host.run(["rm", "/mnt/fill"])
            eventually("h3 is well", lambda: assert_well(net["h1"]), 90)
        work.check()
        master(host, "leave", env=env)
        host.run(["dd", "if=/dev/zero", "of=/mnt/fill", "bs=64k"], check=False)
        done = master(host, "start", "--peers", net["h1"].ip, env=env, check=False)
        assert done.returncode == 1
        assert "o space left on device" in done.stderr.splitlines()[-1], done.stderr
        faults = "grep -E 'Traceback|internal error' /mnt/log/master.log"
        assert host.run(["sh", "-c", faults], check=False).stdout == ""
    finally:
        delete(net["h1"], "fill")
        master(host, "stop", env=env)
        host.run(["umount", "-l", "/mnt"])


def test_a_full_etcd_refuses_changes_with_words_and_heals_once_there_is_room(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "before", "web")
    try:
        said = (put(net["h1"], f"junk{number}", 1000) for number in range(3 * QUOTA_MB))
        assert any("database space exceeded" in words for words in said)
        done = docker(net, "run", "-d", "--name", "late", "web", via="h2", check=False)
        assert done.returncode == 125
        said_so = "etcd is full and refuses changes; .*--etcd-quota-mb"
        assert re.search(said_so, done.stderr), done.stderr
        assert "before@" in output(net, "ps", "--format", "{{.Names}}", via="h3")

        def is_told() -> None:
            done = master(net["h2"], "status", check=False)
            assert done.returncode == 1
            assert re.search(r"(?m)^h\d .* full ", done.stdout), done.stdout
            assert re.search(f"etcd on h. {said_so.removeprefix('etcd ')}", done.stderr)

        eventually("it is in the status", is_told)
    finally:
        delete(net["h1"], "junk")

    def has_room() -> None:
        rows = report(net["h1"])["masters"]
        assert [row["alarms"] for row in rows] == [[]] * 3, rows
        docker(net, "rm", "-f", "late", via="h2", check=False)
        docker(net, "run", "-d", "--name", "late", "web", via="h2")

    eventually("there is room again", has_room, 60)
    wait_well(net)


def assert_not_among(pid: int, pids: list[int]) -> None:
    assert pid not in pids


def assert_well(host: Host) -> None:
    assert all(row["answers"] for row in report(host)["masters"])
