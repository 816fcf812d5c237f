"""Streams that are long, and streams that are left: bytes exact, memory flat, nothing left behind.

What speaks HTTP by hand runs on the lab's client: this file is the test here, the program there.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GRPC_THREADS, HOSTS, docker, eventually, output
from lab import Lab
from reach import reach

SIZE_BYTES = 200 << 20
LINES = 300_000  # of a few bytes, each of which an engine sends as a chunk of its own
ROOM_KB = 50 << 10  # how much more memory a master may take for a stream
TIMES, AT_ONCE, IDLE = 1000, 100, 200


def pids(lab: Lab, host: str, role: str) -> list[int]:
    """Return the pids of a daemon on a host, as the machine sees them."""
    found = [
        process.pid
        for process in lab[host].processes()
        if "arpanet" in " ".join(process.argv) and role in process.argv
    ]
    assert found, f"no {role} on {host}"
    return found


def memory_kb(pid: int, what: str) -> int:
    match = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1])


@contextlib.contextmanager
def flat_memory(lab: Lab, host: str = "h1") -> Iterator[None]:
    """Check that the master takes hardly more memory at any time of the block than before it."""
    [pid] = pids(lab, host, "master")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew; proc(5)
    before = memory_kb(pid, "VmRSS")
    yield
    assert memory_kb(pid, "VmHWM") - before < ROOM_KB


def shell(lab: Lab, script: str, via: str = "h1") -> str:
    """Return what a shell on the client says, with DOCKER_HOST set to a master."""
    env = {"DOCKER_HOST": f"tcp://{lab[via].ip}:8791"}
    return lab.client.run(["sh", "-euc", script], env=env, timeout=120).stdout.strip()


@pytest.fixture(scope="module")
def digest(net: Lab) -> str:
    """Return the SHA-256 of /tmp/big in container big, which is on another host than h1."""
    for name in ("small", "big"):
        docker(net, "run", "-d", "--init", "--name", name, "busybox", "sleep", "10000")
    assert output(net, "inspect", "-f", "{{.Host.Name}}", "big") == "h2"
    fill = f"head -c {SIZE_BYTES} /dev/urandom >/tmp/big; sha256sum </tmp/big"
    return output(net, "exec", "big", "sh", "-c", fill).split()[0]


def test_cp_out_and_in_is_exact(net: Lab, digest: str) -> None:
    with flat_memory(net):
        assert shell(net, "docker cp big:/tmp/big - | tar xO | sha256sum").split()[0] == digest
        shell(net, "docker cp big:/tmp/big - | docker cp - small:/tmp")
    assert output(net, "exec", "small", "sha256sum", "/tmp/big", via="h3").split()[0] == digest
    docker(net, "exec", "small", "rm", "/tmp/big")


def test_export_is_exact(net: Lab, digest: str) -> None:
    with flat_memory(net):
        said = shell(net, "docker export big | tar xO tmp/big | sha256sum")
    assert said.split()[0] == digest


def test_save_and_load_are_exact_and_so_is_the_way_to_another_host(net: Lab, digest: str) -> None:
    docker(net, "commit", "big", "heavy")
    with flat_memory(net):
        shell(
            net, "docker save heavy >/run/heavy.tar; docker rmi heavy; docker load </run/heavy.tar"
        )
        for number in range(3):
            docker(net, "run", "--name", f"heavy{number}", "heavy", "sha256sum", "/tmp/big")
    names = [f"heavy{number}" for number in range(3)]
    assert {output(net, "logs", name).split()[0] for name in names} == {digest}
    assert len({output(net, "inspect", "-f", "{{.Host.Name}}", n) for n in names}) == 3
    docker(net, "rm", *names)
    docker(net, "rmi", "heavy")
    net.client.path("/run/heavy.tar").unlink()


def test_attach_is_exact_in_both_directions(net: Lab, digest: str) -> None:
    there_and_back = (
        "docker exec big cat /tmp/big | "
        "docker run -i --rm --log-driver none --name mirror busybox cat | sha256sum"
    )
    with flat_memory(net):
        assert shell(net, there_and_back).split()[0] == digest
        into = "docker exec big cat /tmp/big | docker exec -i small sha256sum"
        assert shell(net, into).split()[0] == digest


def test_logs_are_exact(net: Lab, digest: str) -> None:
    assert digest
    long = f"yes {'x' * 4000} | busybox head -n {SIZE_BYTES // 4000} | busybox cat -n"
    script = f"{long}; yes y | busybox head -n {LINES} | busybox cat -n"
    docker(net, "run", "-d", "--name", "talker", "busybox", "sh", "-c", script)
    docker(net, "wait", "talker")
    with flat_memory(net):
        said = shell(net, "docker logs talker | sha256sum", via="h1")
    assert said == shell(net, f"({script}) | sha256sum")
    docker(net, "rm", "talker")


# ---- clients that go


def level(lab: Lab) -> dict[str, int]:
    """Return how many threads, files and connections are in use on all hosts."""
    found: dict[str, int] = {}
    for host in HOSTS:
        for role in ("master", "slave"):
            [pid] = pids(lab, host, role)
            found[f"threads of the {role} on {host}"] = len(
                list(Path(f"/proc/{pid}/task").iterdir())
            )
            found[f"files of the {role} on {host}"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        ports = ["( sport = :8791 or sport = :8792 )"]
        rows = lab[host].run(["ss", "-Htn", *ports]).stdout.splitlines()
        found[f"connections to {host}"] = sum(not row.startswith("TIME-WAIT") for row in rows)
        rows = lab[host].run(["ss", "-Hxn"]).stdout.splitlines()
        found[f"requests at the engine of {host}"] = sum("docker.sock" in row for row in rows)
    return found


@contextlib.contextmanager
def nothing_left(lab: Lab, besides: str = "nothing") -> Iterator[None]:
    """Check that after the block all goes back to the level before it."""
    before = level(lab)
    yield

    def compare() -> None:
        now = level(lab)
        more = {
            key: f"{before[key]} -> {now[key]}"
            for key in now
            if now[key] > before[key] + GRPC_THREADS * key.startswith("threads")
        }
        more = {key: words for key, words in more.items() if besides not in key}
        assert not more, more

    eventually("all is as it was before", compare, within_s=60)


def abandon(
    lab: Lab,
    verb: str,
    path: str,
    times: int = TIMES,
    at_once: int = AT_ONCE,
    upgrade: bool = False,
) -> None:
    """Have the client begin that request so many times, read its head, and go."""
    words = [lab["h1"].ip, verb, path, str(times), str(at_once), "upgrade" if upgrade else ""]
    path = f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"
    command = [sys.executable, __file__, "abandon", *words]
    lab.client.run(command, env={"PYTHONPATH": path}, timeout=240)


STREAMS = [
    ("GET", "/containers/{id}/logs?follow=1&stdout=1&stderr=1", False),
    ("GET", "/events", False),
    ("GET", "/containers/{id}/stats", False),
    ("POST", "/containers/{id}/wait", False),
    ("POST", "/containers/{id}/attach?stream=1&stdout=1&stdin=1", True),
]


@pytest.fixture(scope="module")
def quiet(net: Lab) -> str:
    """Return the id of a container that says one line and then only listens, not on h1."""
    for name in ("small", "quiet"):  # h1 is the first to get one
        if not output(net, "ps", "-q", "--filter", f"name={name}"):
            command = ["sh", "-c", "echo head; exec cat"]
            docker(net, "run", "-di", "--name", name, "busybox", *command)
    assert output(net, "inspect", "-f", "{{.Host.Name}}", "quiet") != "h1"
    return output(net, "inspect", "-f", "{{.ID}}", "quiet")


@pytest.mark.parametrize("row", STREAMS, ids=["logs", "events", "stats", "wait", "attach"])
def test_a_client_that_goes_in_the_middle_of_a_stream_leaves_nothing_behind(
    net: Lab, quiet: str, row: tuple[str, str, bool]
) -> None:
    verb, path, upgrade = row
    path = path.format(id=quiet)
    abandon(net, verb, path, 3, upgrade=upgrade)  # what is made once and kept is made now
    # a bare engine too leaves what was attached to its garbage collector
    with nothing_left(net, besides="requests at the engine" if upgrade else "nothing"):
        abandon(net, verb, path, upgrade=upgrade)


def test_a_client_that_goes_before_an_answer_begins_leaves_nothing_behind(net: Lab) -> None:
    words = [sys.executable, "-c", (
        "import socket, time; s = socket.create_server(('', 5000), backlog=9999); print('up');"
        "kept = []\nwhile True: kept.append(s.accept())")]  # fmt: skip
    registry = net.client.popen([*words[:1], "-u", *words[1:]], stdout=-1)
    assert registry.stdout is not None
    assert registry.stdout.readline() == "up\n"
    try:
        path = f"/images/create?fromImage={net.client.ip}:5000/slow&tag=v1"
        with nothing_left(net):
            abandon(net, "POST", path)
    finally:
        registry.kill()
        registry.communicate()


def test_a_client_that_goes_while_it_sends_leaves_nothing_behind(net: Lab) -> None:
    abandon(net, "POST", "/build?t=never", 3)  # what is made once and kept is made now
    with nothing_left(net):  # an engine starts a process for each
        abandon(net, "POST", "/build?t=never", TIMES // 10, at_once=AT_ONCE // 20)
    assert output(net, "images", "-q", "never") == ""


# ---- clients that stay


def test_idle_connections_do_not_hinder_others(net: Lab) -> None:
    path = f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"
    idle = net.client.popen(
        [sys.executable, __file__, "stay", net["h1"].ip, str(IDLE)],
        env={"PYTHONPATH": path}, stdin=-1, stdout=-1,
    )  # fmt: skip
    assert idle.stdin is not None
    assert idle.stdout is not None
    assert idle.stdout.readline() == f"{IDLE} idle\n"
    assert level(net)["connections to h1"] >= IDLE
    for number in range(3):
        words = ["run", "--rm", "--name", f"busy{number}", "busybox", "echo", "hi"]
        assert output(net, *words, timeout=10) == "hi"
    with nothing_left(net):
        idle.stdin.write("\n")
        idle.stdin.flush()
        assert idle.stdout.readline() == f"{IDLE} served\n"
        assert idle.wait(20) == 0
    assert level(net)["threads of the master on h1"] < IDLE
    idle.stdin.close()
    idle.stdout.close()


# ---- the program on the client


def begin(address: str, verb: str, path: str, upgrade: str) -> socket.socket:
    """Return a connection on which a request has been sent."""
    sock = reach(address)
    lines = [f"{verb} /v1.41{path} HTTP/1.1", "Host: arpanet"]
    if upgrade:
        lines += ["Connection: Upgrade", "Upgrade: tcp", "Content-Length: 0"]
    elif "/build" in path:
        lines += ["Content-Type: application/x-tar", "Transfer-Encoding: chunked"]
    elif verb == "POST":
        lines += ["Content-Length: 0"]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    if "/build" in path:
        sock.sendall(b"1000\r\n" + bytes(0x800))  # half a chunk
    return sock


def has_begun(sock: socket.socket) -> bool:
    """Return whether the answer has begun; an engine may be too slow on a busy machine."""
    sock.settimeout(60)
    head = sock.recv(12)
    assert head in (b"HTTP/1.1 200", b"HTTP/1.1 101", b"HTTP/1.1 503"), head
    return head != b"HTTP/1.1 503"


def run_abandon(address: str, verb: str, path: str, times: str, at_once: str, upgrade: str) -> None:
    """Begin so many requests, read the head of each if one comes, and go: half by a reset."""
    has_head = "/build" not in path and "/images" not in path
    for first in range(0, int(times), int(at_once)):
        count = min(int(at_once), int(times) - first)
        socks = [begin(address, verb, path, upgrade) for _ in range(count)]
        for number in range(count):
            while has_head and not has_begun(socks[number]):
                socks[number] = begin(address, verb, path, upgrade)
        if not has_head:
            threading.Event().wait(1)  # until it is with the engines; nothing says so
        for number, sock in enumerate(socks):
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def ask_ping(sock: socket.socket) -> None:
    sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: arpanet\r\n\r\n")
    said = b""
    while not said.endswith(b"\r\n\r\nOK"):
        said += sock.recv(4096)


def run_stay(address: str, times: str) -> None:
    """Hold so many connections that are used, idle, and used again when a line comes."""
    socks = [reach(address) for _ in range(int(times))]
    for word in ("idle", "served"):
        for sock in socks:
            ask_ping(sock)
        print(len(socks), word, flush=True)  # noqa: T201
        if word == "idle":
            sys.stdin.readline()


if __name__ == "__main__":
    {"abandon": run_abandon, "stay": run_stay}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
