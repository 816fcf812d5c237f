"""The lab itself: what it promises to every other test in this directory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import eventually, until
from lab import (
    SLOW,
    CommandFailed,
    Host,
    Lab,
    LabError,
    Process,
    find_process,
    leftovers,
    require_private,
)

NAME = f"self{os.getpid()}"  # another lab may be up beside this one
OTHER = f"other{os.getpid()}"
LAB_PY = Path(__file__).parent.parent / "lab.py"

OWNER = """
import sys, threading
from lab import Lab
with Lab.up(hosts=1, name=sys.argv[1]) as lab:
    lab["h1"].popen(["sleep", "1000"])
    lab["h1"].run(["docker", "run", "-d", "busybox", "sleep", "1000"])
    print(" ".join(str(process.pid) for process in lab.processes()), flush=True)
    threading.Event().wait()
"""


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    if os.getuid():
        if os.environ.get("ARPANET_LAB") == "required":
            pytest.fail("ARPANET_LAB=required, and this is not root")
        pytest.skip("the lab needs root")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.up(hosts=3, name=NAME, logs=tmp_path_factory.mktemp("logs")) as made:
        yield made
    assert leftovers(NAME) == []


@contextlib.contextmanager
def owner(name: str) -> Iterator[tuple[subprocess.Popen[str], list[Process]]]:
    """Yield a process of its own that holds a lab, and what runs in that lab."""
    env = {**os.environ, "PYTHONPATH": str(LAB_PY.parent)}
    words = [sys.executable, "-c", OWNER, name]
    with subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            pids = process.stdout.readline().split()
            yield process, [found for pid in pids if (found := find_process(int(pid)))]
        finally:
            process.kill()


def require_ended(processes: list[Process]) -> None:
    assert [process for process in processes if find_process(process.pid) == process] == []


def ping(host: Host, ip: str) -> None:
    host.run(["busybox", "ping", "-c", "1", "-W", "5", ip], timeout=10)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LAB_PY, "--name", OTHER, *words], capture_output=True, text=True)


def test_three_hosts_have_engines_and_the_same_images(lab: Lab) -> None:
    assert [(host.name, host.ip) for host in lab.hosts] == [
        ("h1", "192.168.8.120"),
        ("h2", "192.168.8.121"),
        ("h3", "192.168.8.122"),
    ]
    seen = {host.run(["docker", "images", "-q", "--no-trunc"]).stdout for host in lab.hosts}
    assert len(seen) == 1
    assert len(seen.pop().split()) == 2
    engines = {host.run(["docker", "info", "-f", "{{.ID}} {{.Name}}"]).stdout for host in lab.hosts}
    assert len(engines) == 3


def test_the_client_has_no_engine(lab: Lab) -> None:
    assert lab.client.ip == "192.168.8.200"
    with pytest.raises(CommandFailed, match="Cannot connect to the Docker daemon"):
        lab.client.run(["docker", "ps"])


def test_a_published_port_is_reached_from_every_host_and_from_containers(lab: Lab) -> None:
    h1, h2 = lab["h1"], lab["h2"]
    h1.run(["docker", "run", "-d", "--name", "web", "-h", "here", "-p", "8080:8000", "web"])
    url = "http://192.168.8.120:8080/cgi-bin/hostname"
    fetch = ["busybox", "wget", "-qO-", url]
    for host in (lab.client, h2):
        assert eventually("the page", partial(host.run, fetch)).stdout == "here\n"
    for host in (h1, h2):
        assert host.run(["docker", "run", "--rm", *fetch]).stdout == "here\n"
    index = ["busybox", "wget", "-qO-", "http://127.0.0.1:8080"]
    assert h1.run(index).stdout == "hello from the lab\n"
    h1.run(["docker", "rm", "-f", "web"])


def test_a_container_has_the_limits_that_it_is_given(lab: Lab) -> None:
    show = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes || cat memory.max"  # v1, v2
    limited = ["docker", "run", "--rm", "-m", "32m", "busybox", "sh", "-c", show]
    assert lab["h1"].run(limited).stdout == f"{32 << 20}\n"


def test_a_cut_host_reaches_nobody_until_it_is_healed(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    ping(h1, h2.ip)
    lab.cut("h2")
    assert lab.cut_hosts() == ["h2"]
    for one, other in ((h1, h2), (h2, h1), (h2, h3)):
        with pytest.raises(CommandFailed, match="100% packet loss"):
            ping(one, other.ip)
    ping(h1, h3.ip)
    ping(h2, h2.ip)
    lab.heal("h2")
    eventually("h1 reaches h2 again", lambda: ping(h1, h2.ip))
    assert lab.cut_hosts() == []


def test_two_hosts_are_parted_while_both_reach_a_third(lab: Lab) -> None:
    h1, h2, h3 = lab.hosts
    lab.cut("h1", "h2")
    for one, other in ((h1, h2), (h2, h1)):
        with pytest.raises(CommandFailed, match="100% packet loss"):
            ping(one, other.ip)
    ping(h1, h3.ip)
    ping(h2, h3.ip)
    lab.heal("h1", "h2")
    eventually("h1 reaches h2 again", lambda: ping(h1, h2.ip))


def test_no_packet_leaves_the_lab(lab: Lab) -> None:
    with pytest.raises(CommandFailed, match="unreachable"):
        ping(lab["h1"], "192.0.2.1")
    assert "eth0" not in lab["h1"].run(["ip", "route", "show", "default"]).stdout


def test_a_failed_command_says_all_it_said(lab: Lab) -> None:
    with pytest.raises(CommandFailed) as caught:
        lab["h1"].run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert caught.value.returncode == 3
    assert "stdout: out\n" in str(caught.value)
    assert "stderr: err\n" in str(caught.value)


def test_a_command_has_input_and_environment_and_a_deadline(lab: Lab) -> None:
    h2 = lab["h2"]
    done = h2.run(["sh", "-c", "cat; echo $HOSTNAME $COLOUR"], input="in ", env={"COLOUR": "red"})
    assert done.stdout == "in h2 red\n"
    with pytest.raises(subprocess.TimeoutExpired):
        h2.run(["sleep", "1001"], timeout=0.3)
    eventually("the late command is killed", lambda: require_none(h2, "sleep"), within_s=5)


def require_none(host: Host, name: str) -> None:
    assert host.pids(name) == []


def test_a_signal_reaches_the_command_and_a_stopped_one_can_go_on(lab: Lab) -> None:
    h3 = lab["h3"]
    with h3.popen(["sleep", "1002"]) as process:
        (pid,) = eventually("sleep runs", lambda: require_one(h3, "sleep"))
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        process.terminate()
        assert process.wait(5) == -signal.SIGTERM
    assert h3.pids("sleep") == []


def require_one(host: Host, name: str) -> list[int]:
    pids = host.pids(name)
    assert len(pids) == 1
    return pids


def test_pids_are_those_of_one_host(lab: Lab) -> None:
    h1, h2 = lab["h1"], lab["h2"]
    h1.run(["docker", "run", "-d", "--name", "sleeper", "busybox", "sleep", "1003"])
    until("it sleeps", lambda: len(h1.pids("sleep")) == 1)  # a moment ago it was runc
    assert h2.pids("sleep") == []
    assert set(h1.pids("sleep")) <= {process.pid for process in lab.processes()}
    h1.run(["docker", "rm", "-f", "sleeper"])


def test_an_engine_stops_dies_and_starts(lab: Lab) -> None:
    h3 = lab["h3"]
    h3.run(
        [
            "docker",
            "run",
            "-d",
            "--name",
            "kept",
            "--stop-signal",
            "KILL",
            "busybox",
            "sleep",
            "1004",
        ]
    )
    h3.stop_engine()
    assert not h3.engine_answers()
    assert h3.pids("dockerd") + h3.pids("sleep") == []
    h3.start_engine()
    h3.run(["docker", "start", "kept"])
    until("it sleeps", lambda: len(h3.pids("sleep")) == 1)
    h3.kill_engine()
    assert len(h3.pids("sleep")) == 1
    h3.start_engine()
    h3.run(["docker", "rm", "-f", "kept"])


def test_what_a_host_writes_is_its_own(lab: Lab) -> None:
    for path in ("/etc", "/run", "/var/lib/arpanet", "/usr/local/bin", "/dev/shm"):
        lab["h1"].run(["touch", f"{path}/lab-test"])
        assert lab["h1"].path(f"{path}/lab-test").exists()
        assert not lab["h2"].path(f"{path}/lab-test").exists()
        assert not Path(path, "lab-test").exists()


def test_a_keeper_refuses_to_write_where_nothing_is_private() -> None:
    with pytest.raises(LabError, match="nothing was written: /etc, /usr/local/bin"):
        require_private(["/etc", "/usr/local/bin"])


def test_the_files_of_the_machine_stay_as_they_are(lab: Lab) -> None:
    for name in ("hosts", "resolv.conf", "hostname"):
        of_machine, of_host = Path("/etc", name), lab["h1"].path(f"/etc/{name}")
        assert not of_machine.exists() or not of_machine.samefile(of_host)
    assert "h2" not in Path("/etc/hosts").read_text().split()


def test_a_living_owner_keeps_its_lab(lab: Lab) -> None:
    with pytest.raises(LabError, match=f"lab {NAME} is in use by pid {os.getpid()}"):
        Lab.up(hosts=1, name=NAME)
    assert lab["h1"].engine_answers()


def test_the_lab_of_a_killed_owner_is_cleared_by_the_next_up(lab: Lab) -> None:
    with owner(OTHER) as (process, inside):

        def both_sleep() -> None:  # a moment before, one is still called runc:[2:INIT]
            names = [found.comm for old in inside if (found := find_process(old.pid))]
            assert {"dockerd", "containerd"} < set(names)
            assert names.count("sleep") == 2

        eventually("two sleepers in the lab", both_sleep)
        process.kill()
        process.wait()
        eventually("all has ended", lambda: require_ended(inside), within_s=10)
        assert any(line.startswith("cgroup ") for line in leftovers(OTHER))
        assert f"directory /run/arpanet-lab/{OTHER}" in leftovers(OTHER)
        with Lab.up(hosts=1, client=False, name=OTHER) as second:
            assert second["h1"].engine_answers()
        assert leftovers(OTHER) == []
    assert lab["h1"].engine_answers()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_owner_that_is_told_to_end_leaves_nothing(sig: signal.Signals) -> None:
    with owner(OTHER) as (process, inside):
        process.send_signal(sig)
        process.wait(20 * SLOW)
        require_ended(inside)
        assert leftovers(OTHER) == []


def test_an_exception_ends_the_lab() -> None:
    with pytest.raises(KeyError), Lab.up(hosts=1, client=False, name=OTHER) as lab:
        inside = lab.processes()
        raise KeyError
    require_ended(inside)
    assert leftovers(OTHER) == []


def test_a_pex_is_on_every_host(tmp_path: Path) -> None:
    pex = tmp_path / "arpanet.pex"
    pex.write_text("#!/bin/sh\necho $0 $1 > $PEX_ROOT/$HOSTNAME\n")
    with Lab.up(hosts=1, pex=pex, name=OTHER) as lab:
        for host in (lab["h1"], lab.client):
            host.run(["arpanet", "x"])
        unpacked = lab["h1"].path("/var/cache/arpanet/pex")
        assert sorted(path.name for path in unpacked.iterdir()) == ["c1", "h1"]
        assert (unpacked / "h1").read_text() == "/usr/local/bin/arpanet x\n"
    assert not Path("/usr/local/bin/arpanet").is_symlink()
    assert leftovers(OTHER) == []


def test_the_command_line_brings_a_lab_up_and_down() -> None:
    up = command("up", "1")
    try:
        assert up.returncode == 0, up.stderr
        assert command("sh", "h1", "hostname").stdout == "h1\n"
        assert command("sh", "h1", "sh", "-c", "exit 7").returncode == 7
        assert command("cut", "h1").returncode == 0
        assert "cut" in command("status").stdout.splitlines()[1]
        assert command("heal", "h1").returncode == 0
        assert command("up", "1").returncode == 0  # a second one replaces the first
    finally:
        down = command("down")
    assert down.returncode == 0, down.stderr
    assert leftovers(OTHER) == []
    nothing = command("status")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith(f"lab.py: no lab {OTHER} is up")


def test_without_root_it_says_so() -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    script = LAB_PY.read_text()
    words = [*nobody, "/usr/bin/python3", "-", "up"]
    done = subprocess.run(words, input=script, capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs root; try: sudo" in done.stderr
