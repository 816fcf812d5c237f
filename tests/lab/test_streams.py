"""Streams through a master: terminals, half-closed input, signals, and clients that go."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from subprocess import PIPE
from typing import Any

import pytest
from clients import Ask, Front, ask_all, engine_names, remove_containers, send_raw, terminal
from conftest import GRPC_THREADS, HOSTS, docker, eventually, line_of, output
from lab import HostProcess, Lab, read_file

SLEEP = ("busybox", "sleep", "1000")
TRAP = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
LOCAL = "unix:///run/arpanet/docker.sock"
AGENT_PORT = 8792


@pytest.fixture(autouse=True)
def clean(net: Lab) -> Iterator[None]:
    """Leave no container to the next test."""
    yield
    remove_containers(net)


def masters(net: Lab) -> dict[str, str]:
    """Return the environment that says where the masters are."""
    return {"ARPANET_MASTERS": ",".join(net[h].ip for h in HOSTS)}


@pytest.fixture(scope="module")
def local(net: Lab) -> Iterator[str]:
    """Yield the address of c1's own endpoint, which finds a master by itself."""
    net.client.run(["arpanet", "client", "start"], env=masters(net))
    yield LOCAL
    net.client.run(["arpanet", "client", "stop"])


def at(net: Lab, host: str, *words: str) -> list[str]:
    """Return the docker command line for the master on a host."""
    return ["docker", "-H", f"tcp://{net[host].ip}:8791", *words]


def start(net: Lab, *words: str, via: str = "h1") -> HostProcess:
    """Return a docker command on c1 that runs on, with pipes."""
    process: HostProcess = net.client.popen(
        at(net, via, *words), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    return process


def write_line(process: HostProcess, text: str) -> None:
    """Type a line into a command."""
    assert process.stdin
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


# ---- a terminal


def test_a_terminal_echoes_follows_its_size_and_passes_the_exit_code(net: Lab) -> None:
    command = at(net, "h1", "run", "-it", "--rm", "--name", "tty1", "busybox")
    with terminal(net, *command, rows=31, columns=99) as tty:
        tty.type("echo a$((1+1))b\n")
        assert "echo a$((1+1))b" in tty.read_until("a2b")
        eventually("the size has reached the shell", lambda: _require_size(tty, "31 99"))
        eventually("the new size has reached it", lambda: _require_new_size(tty, 41, 120))
        tty.type("exit 6\n")
        assert tty.wait() == 6
    assert engine_names(net) == []


def _require_size(tty: Any, wanted: str) -> None:
    tty.type("echo S=$(stty size).\n")
    tty.read_until("\nS=")
    assert tty.read_until(".") == f"{wanted}."


def _require_new_size(tty: Any, rows: int, columns: int) -> None:
    """Give the window that size; docker hears nothing of it until its own start is over."""
    tty.resize(rows, columns)
    _require_size(tty, f"{rows} {columns}")


def _require_sleep(net: Lab, name: str) -> None:
    """Fail until the shell has started its command, which takes Ctrl-C from then on."""
    assert "sleep 1000" in output(net, "top", name)


def test_ctrl_c_at_a_terminal_ends_the_command_in_the_container(net: Lab) -> None:
    with terminal(net, *at(net, "h2", "run", "-it", "--name", "tty1", "busybox")) as tty:
        tty.type("echo on$((1+1)); sleep 1000\n")
        tty.read_until("\non2")
        eventually("the command runs", lambda: _require_sleep(net, "tty1"))
        tty.type("\x03")
        tty.read_until("#")
        tty.type("echo =$?=; exit 3\n")
        tty.read_until("=130=")
        assert tty.wait() == 3


def test_an_exec_has_a_terminal_of_its_own(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "box", *SLEEP)
    command = at(net, "h3", "exec", "-it", "box", "sh")
    with terminal(net, *command, rows=33, columns=77) as tty:
        tty.type("tty; echo in$((1+1))\n")
        assert "/dev/pts/" in tty.read_until("in2")
        eventually("the size has reached the shell", lambda: _require_size(tty, "33 77"))
        eventually("the new size has reached it", lambda: _require_new_size(tty, 20, 50))
        tty.type("exit 4\n")
        assert tty.wait() == 4


def test_ctrl_p_ctrl_q_leaves_the_container_running(net: Lab, local: str) -> None:
    command = ["docker", "-H", local, "run", "-it", "--name", "tty1", "busybox"]
    with terminal(net, *command) as tty:
        tty.type("echo on$((1+1))\n")
        tty.read_until("on2")
        tty.type("\x10\x11")
        assert tty.wait() == 0
    assert output(net, "ps", "--format", "{{.Status}}", via="h2").startswith("Up ")
    with terminal(net, "docker", "-H", local, "attach", "tty1") as tty:
        tty.type("echo again$((1+1)); exit 3\n")
        tty.read_until("again2")
        assert tty.wait() == 3


def test_the_local_endpoint_shows_all_hosts(net: Lab, local: str) -> None:
    docker(net, "run", "-d", "--name", "box", *SLEEP)
    words = ["ps", "--format", "{{.Names}}"]
    assert net.client.run(["docker", "-H", local, *words]).stdout.split() == engine_names(net)
    found = net.client.run(["arpanet", "docker", *words], env=masters(net))
    assert found.stdout.split() == engine_names(net)
    exit_9 = ["exec", "box", "sh", "-c", "exit 9"]
    done = net.client.run(["arpanet", "docker", *exit_9], env=masters(net), check=False)
    assert done.returncode == 9


# ---- input that ends, output that is long


@pytest.mark.parametrize("bare", [True, False], ids=["bare engine", "arpanet"])
def test_the_end_of_input_reaches_the_container_and_its_answer_comes_back(
    net: Lab, bare: bool
) -> None:
    front = Front(net, bare)
    done = front.run("run", "-i", "--rm", "--name", "t1", "busybox", "cat", input="x\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")
    late = ("sh", "-c", "cat >/got; sleep 0.3; wc -c </got; exit 3")
    done = front.run("run", "-i", "--rm", "--name", "t1", "busybox", *late, input="12345")
    assert (done.returncode, done.stdout) == (3, "5\n")
    front.run("run", "-d", "--name", "t1", *SLEEP)
    done = front.run("exec", "-i", "t1", "cat", input="x\n")
    assert (done.returncode, done.stdout) == (0, "x\n")
    done = front.run("exec", "-i", "t1", *late, input="")
    assert (done.returncode, done.stdout) == (3, "0\n")
    done = front.run("exec", "-i", "t1", "sh", "-c", "cat >&2", input="error\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "error\n")


def test_5_mb_go_through_cat_byte_for_byte(net: Lab) -> None:
    client = net.client
    client.run(["sh", "-c", "head -c 5000000 /dev/urandom >/run/five"])
    wanted = client.run(["sha256sum", "/run/five"]).stdout.split()[0]
    docker(net, "run", "-d", "--name", "box", *SLEEP)
    for words in (("run", "-i", "--rm", "--name", "t1", "busybox"), ("exec", "-i", "box")):
        command = " ".join(at(net, "h2", *words, "cat"))
        got = client.run(["sh", "-c", f"{command} </run/five | sha256sum"])
        assert got.stdout.split()[0] == wanted, words
    client.run(["rm", "/run/five"])


def test_50_mb_of_output_arrive_although_the_reader_is_slow(net: Lab) -> None:
    words = ("run", "--rm", "--name", "t1", "busybox", "head", "-c", "50000000", "/dev/zero")
    command = " ".join(at(net, "h2", *words))
    reader = "dd bs=1000 count=1000 2>/dev/null | wc -c; cat | wc -c"
    got = net.client.run(["sh", "-c", f"{command} | (sleep 0.5; {reader})"])
    assert sum(map(int, got.stdout.split())) == 50_000_000


def test_start_attached_shows_output_and_exit_code(net: Lab) -> None:
    docker(net, "create", "-i", "--name", "t1", "busybox", "sh", "-c", "read x; echo =$x; exit 8")
    done = docker(net, "start", "-ai", "t1", via="h2", input="word\n", check=False)
    assert (done.returncode, done.stdout) == (8, "=word\n")


def test_attach_sees_what_comes_after_it_and_the_exit_code(net: Lab) -> None:
    docker(net, "run", "-di", "--name", "t1", "busybox", "sh", "-c", "read x; echo =$x; exit 8")
    process = start(net, "attach", "t1", via="h3")
    write_line(process, "word")
    assert line_of(process) == "=word"
    process.communicate()
    assert process.returncode == 8


def test_an_exec_made_through_one_master_starts_through_another(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "box", *SLEEP)
    body = json.dumps({"Cmd": ["sh", "-c", "echo from exec; exit 7"], "AttachStdout": True})
    (made,) = ask_all(net, Ask("POST", "/containers/box/exec", body, via="h1"))
    assert made.status == 201
    exec_id = json.loads(made.text)["Id"]
    started, seen = ask_all(
        net,
        Ask("POST", f"/exec/{exec_id}/start", '{"Detach":false,"Tty":false}', via="h2"),
        Ask("GET", f"/exec/{exec_id}/json", via="h3"),
    )
    assert (started.status, started.text[8:]) == (200, "from exec\n")
    assert json.loads(seen.text)["ExitCode"] == 7
    nobody = ask_all(net, *(Ask("POST", f"/exec/nosuch/{v}", "{}") for v in ("start", "resize")))
    assert [(a.status, a.message) for a in nobody] == [(404, "No such exec instance: nosuch")] * 2


def test_bytes_sent_along_with_the_request_reach_the_container(net: Lab) -> None:
    docker(net, "run", "-di", "--name", "t1", "busybox", "sh", "-c", "read x; read y; echo $x $y")
    head = "POST /containers/t1/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"
    head += "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    text = send_raw(net, f"{head}early\nand more\n".encode(), via="h2")
    assert text.startswith("HTTP/1.1 101 ")
    assert text.endswith("early and more\n")


# ---- signals


def test_a_signal_to_an_attached_client_reaches_the_container(net: Lab) -> None:
    process = start(net, "run", "--name", "t1", "busybox", "sh", "-c", TRAP)
    assert line_of(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert line_of(process) == "got it"
    process.communicate()
    assert process.returncode == 5


def test_a_client_that_is_killed_leaves_its_container_running(net: Lab) -> None:
    process = start(net, "run", "--name", "t1", "busybox", "sh", "-c", TRAP)
    assert line_of(process) == "ready"
    process.kill()
    process.communicate()
    assert output(net, "ps", "--format", "{{.Status}}", via="h2").startswith("Up ")


# ---- streams that the client leaves


def master_threads(net: Lab) -> int:
    """Return how many threads the master of h1 has."""
    counts = []
    for process in net["h1"].processes():
        words = process.argv
        if "master" in words and process.comm not in ("sh", "etcd"):
            status = read_file(f"/proc/{process.pid}/status")
            counts.append(int(re.findall(r"Threads:\s+(\d+)", status)[0]))
    assert counts, [p.argv for p in net["h1"].processes()]
    return max(counts)


def agent_connections(net: Lab) -> int:
    """Return how many connections to all agents are established."""
    count = 0
    for host in net.hosts:
        table = read_file(f"/proc/{host.keeper_pid}/net/tcp").splitlines()[1:]
        rows = [line.split() for line in table]
        port = f":{AGENT_PORT:04X}"
        count += sum(row[1].endswith(port) and row[3] == "01" for row in rows)
    return count


def test_clients_that_go_take_their_threads_and_connections_with_them(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "quiet", *SLEEP)
    docker(net, "run", "-d", "--name", "ready", "busybox", "sh", "-c", TRAP)

    def settled() -> tuple[int, int]:
        now = master_threads(net), agent_connections(net)
        assert now[1] == 0
        return now

    before = eventually("nobody is connected", settled)
    words = [
        *[("logs", "-f", "quiet")] * 3, ("events",), ("stats", "quiet"), ("attach", "quiet"),
        ("wait", "quiet"), ("exec", "-i", "quiet", "cat"),
    ]  # fmt: skip
    clients = [start(net, *w) for w in words]

    def connected() -> None:
        assert agent_connections(net) >= len(words) + 2  # events: one for each host
        assert master_threads(net) > before[0]

    eventually("all are connected", connected)
    for client in clients:
        client.kill()
        client.communicate()

    def gone() -> None:
        assert agent_connections(net) == 0
        assert master_threads(net) <= before[0] + 1 + GRPC_THREADS

    eventually("all have gone", gone, within_s=10)


def test_logs_are_followed_while_they_are_written(net: Lab) -> None:
    script = "read x; echo one; echo two >&2; read x; echo three"
    docker(net, "run", "-di", "--name", "t1", "busybox", "sh", "-c", script)
    follower = start(net, "logs", "-f", "t1", via="h2")
    writer = start(net, "attach", "t1", via="h3")
    write_line(writer, "")
    assert line_of(follower) == "one"
    assert follower.stderr
    assert follower.stderr.readline() == "two\n"
    write_line(writer, "")
    assert line_of(follower) == "three"
    follower.communicate()
    writer.communicate()
    assert follower.returncode == 0
