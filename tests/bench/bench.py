"""bench: arpanet against what people would use instead, in one run on one machine (Linux, root).

    sudo tests/bench/run                     # all rows, about ten minutes
    sudo tests/bench/run --row link-bulk-1   # one row, or several: the flag may be given again
    sudo tests/bench/run --list              # the rows
    sudo tests/bench/run --quick --json      # fewer and shorter samples; for machines
    sudo tests/bench/run --tls               # links from host to host with certificates everywhere

A row samples arpanet and its peers in turn (A B C A B C ...), so that what else the machine does
meets all of them. What is compared are medians; the spread is half of what lies between the
quartiles. Everything runs in a lab of its own (tests/lab.py): three hosts with arpanet, and h4,
whose engine is the bare one. No packet leaves the lab.

Floor plan (a section uses only the sections before it):
    Rows, World, Links, API, Scale, Faults, Table, CLI
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from lab import PATH, TLS_DIR, Host, HostProcess, Lab, LabError, Process  # noqa: E402

# ==== Rows ====================================================================
# A row is a question with a number for an answer. Its contest is a context: what is to be
# measured stands from its entry to its exit, and one sample is one call.

Sampler = Callable[[], float]
Contest = Callable[["World"], contextlib.AbstractContextManager[Mapping[str, Sampler]]]
OURS = "arpanet"
Value = TypeVar("Value")


class Row(NamedTuple):
    """What is compared. limits: peer -> ratio of our median to the peer's that is to be reached.

    A limit for OURS is one for our own figure. more: whether more is better.
    """

    name: str
    what: str  # is measured, and its unit
    contest: Contest
    limits: Mapping[str, float]
    more: bool = True
    rounds: int = 5


class Line(NamedTuple):
    """One comparison of the table: our figure, a peer's, and whether the ratio is reached."""

    row: str
    what: str
    ours: float
    ours_spread: float
    peer: str
    peers: float | None
    peers_spread: float
    ratio: float | None
    limit: float | None
    more: bool
    ok: bool


def say(text: str) -> None:
    """Tell a person how far it is."""
    sys.stderr.write(f"bench: {text}\n")


def spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles, as a part of the median."""
    if len(values) < 2:
        return 0.0
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / 2 / middle if middle else 0.0


def compare(row: Row, samples: Mapping[str, Sequence[float]]) -> list[Line]:
    """Return a line for each peer, and one for a limit of our own."""
    ours = statistics.median(samples[OURS])

    def line(peer: str, peers: float | None, ratio: float | None) -> Line:
        limit = row.limits.get(peer)
        value = ours if ratio is None else ratio
        ok = limit is None or (value >= limit if row.more else value <= limit)
        return Line(
            row.name, row.what, ours, spread(samples[OURS]), peer, peers,
            spread(samples.get(peer, ())) if peers is not None else 0.0, ratio, limit, row.more, ok,
        )  # fmt: skip

    lines = []
    for peer, values in samples.items():
        if peer != OURS:
            median = statistics.median(values)
            lines.append(line(peer, median, ours / median if median else None))
    if OURS in row.limits or not lines:
        lines.append(line(OURS, None, None))
    return lines


# ==== World ===================================================================
# The lab and what stands in it, each made when a row first needs it, all ended together.

PEERS = {"haproxy": "haproxy", "socat": "socat", "nginx": "nginx"}
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
HOSTS = ("h1", "h2", "h3")
BARE = "h4"
API_PORT = 8791
ENGINE = "/run/docker.sock"
LOAD = [sys.executable, "-I", str(ROOT / "tests" / "bench" / "load.py")]


class World:
    """The lab, with arpanet on three hosts. quick: shorter samples. tls: they have certificates."""

    def __init__(self, lab_name: str = "", *, quick: bool = False, tls: bool = False) -> None:
        self.quick, self._lab_name, self.tls = quick, lab_name, tls
        self.crowded = False  # with 1,000 hosts that are rows in etcd
        self.seconds = 0.3 if quick else 0.7
        self.is_guest = bool(lab_name)  # in a lab that stays up
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.__exit__(kind, error, trace)

    def keep(self, standing: contextlib.AbstractContextManager[Value]) -> Value:
        """Enter a context that ends with the world."""
        return self._ending.enter_context(standing)

    @functools.cached_property
    def lab(self) -> Lab:
        """Return the lab: the one that was named, with arpanet on it already, or a new one."""
        if self._lab_name:
            return Lab.open(self._lab_name)
        pex = build_pex()
        lab = self._ending.enter_context(Lab.up(4, pex=pex, name=f"bench{os.getpid()}"))
        if self.tls:
            made = self._ending.enter_context(tempfile.TemporaryDirectory())
            lab.give_certificates(make_authority(pex, lab, Path(made) / "ca"))
        lab["h1"].run(["arpanet", "master", "start", "--peers", "boot"])
        for name in HOSTS[1:]:
            lab[name].run(["arpanet", "master", "start", "--peers", lab["h1"].ip])
        for name in HOSTS:
            lab[name].run(["arpanet", "slave", "start"])
        return lab

    def api(self, *words: str, via: str = "h1", check: bool = True) -> str:
        """Return what the docker client on c1 says, asking the master on a host."""
        command = ["docker", "-H", f"tcp://{self.lab[via].ip}:{API_PORT}", *words]
        return self.lab.client.run(command, check=check, timeout=120).stdout.strip()

    def both(self, script: str) -> None:
        """Run a shell script through arpanet, on c1, and at the bare engine."""
        env = {"DOCKER_HOST": f"tcp://{self.lab['h1'].ip}:{API_PORT}"}
        self.lab.client.run(["sh", "-euc", script], env=env, timeout=300)
        self.lab[BARE].run(["sh", "-euc", script], timeout=300)

    @functools.cache  # noqa: B019 (there is one world)
    def listed(self) -> None:
        """Create 200 containers through arpanet, and as many at the bare engine."""
        lab = self.lab
        self.both("docker ps -aq --filter name=bench- | xargs -r docker rm >/dev/null")
        for host, address in ((lab.client, f"{lab['h1'].ip}:{API_PORT}"), (lab[BARE], ENGINE)):
            host.run([*LOAD, "create", address, str(LISTED)], timeout=300)

    @functools.cache  # noqa: B019
    def big(self) -> None:
        """Run a container with a file of 300 MB, big, at both; c1 and h4 have it as a tar too."""
        self.both("docker rm -f big >/dev/null 2>&1 || true")
        self.start_on("h2", "big")
        self.lab[BARE].run(["docker", "run", "-d", "--name", "big", "busybox", "sleep", "100000"])
        fill = "mkdir data; yes 0123456789abcdef | head -c 300000000 >data/big"
        pack = f"cd /run; {fill}; tar cf big.tar data; rm -r data"
        self.both(f"docker exec big sh -c '{fill}'; {pack}")

    def start_on(self, host: str, name: str, *words: str) -> None:
        """Run a container, through arpanet, on that host."""
        volume = f"on-{host}"  # a container goes where its volume is
        self.lab[host].run(["docker", "volume", "create", volume])
        wait_for(f"{volume} is known", lambda: self.api("volume", "inspect", volume))
        self.api("rm", "-f", "-v", name, check=False)  # of a row that failed
        words = ("-v", f"{volume}:/on", *words, "busybox", "sleep", "100000")
        self.api("run", "-d", "--name", name, *words)


def make_authority(pex: Path, lab: Lab, made: Path) -> Path:
    """Return a directory with a certificate for each host of the lab, and for its client."""
    machines = [["--host", host.name, "--ip", host.ip] for host in lab.hosts]
    orders = [["issue", "--ca", str(made), *who] for who in (*machines, ["--client", "c1"])]
    for order in (["init", str(made)], *orders):
        subprocess.run([str(pex), "ca", *order], check=True, stdout=subprocess.DEVNULL)
    return made


def build_pex() -> Path:
    """Return dist/arpanet.pex, built for the Python of the lab's hosts."""
    python = subprocess.check_output(["sh", "-c", "command -v python3"], env={"PATH": PATH})
    env = {**os.environ, "PYTHON": python.decode().strip()}
    subprocess.run([ROOT / "build_zipapp.sh"], env=env, check=True, stdout=sys.stderr)
    return ROOT / "dist" / "arpanet.pex"


def daemon(host: Host, role: str) -> Process:
    """Return the process of a role on a host. Raises LabError."""
    for process in host.processes():
        if "arpanet" in " ".join(process.argv) and role in process.argv:
            return process
    raise LabError(f"no {role} runs on {host.name}")


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    """Return what a process has resident; VmHWM: at most, since forget_peak()."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew. Source: proc(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process, its children that ended included."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_s(host: Host, pid: int) -> float:
    """Return the processor seconds of a process and of all that it started."""
    below, found = {pid}, [pid]
    for process in host.processes():  # a child has the higher pid
        if process.parent in below:
            below.add(process.pid)
            found.append(process.pid)
    total = 0.0
    for one in found:
        with contextlib.suppress(OSError):  # it has just ended: its parent has counted it
            total += cpu_s(one)
    return total


def wait_for(what: str, probe: Callable[[], Any], within_s: float = 30.0) -> Any:
    """Return the first true value of probe, which may fail meanwhile. Raises LabError."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError, ValueError, LookupError, subprocess.SubprocessError):
            if value := probe():
                return value
        if time.monotonic() > deadline:
            raise LabError(f"not within {within_s:g} s: {what}")
        threading.Event().wait(0.02)


def inspect(host: Host, name: str, form: str) -> str:
    """Return what a host's engine says of a container."""
    return host.run(["docker", "inspect", "-f", form, name]).stdout.strip()


def in_container(host: Host, name: str) -> list[str]:
    """Return the words before a command that make it run in a container's network."""
    return ["nsenter", "-t", inspect(host, name, "{{.State.Pid}}"), "--net", "--"]


def run_load(host: Host, *words: object, enter: Sequence[str] = ()) -> dict[str, float]:
    """Return the figures of one load from a host."""
    done = host.run([*enter, *LOAD, *map(str, words)], timeout=120)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# ==== Links ===================================================================
# A client in one container, load.py, through arpanet's link or through a peer to a server in
# another, load.py again: the kernel does the same for all of them.

ECHO, SOURCE = 8000, 8001
GATEWAY = "172.17.0.1"  # docker0, where peers listen for containers of their host
HAPROXY = """\
global
  maxconn 6000
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option splice-request
  option splice-response
"""
NGINX = """\
load_module {module};
daemon off; worker_processes auto; worker_rlimit_nofile 16000;
error_log /dev/null; pid /run/bench-nginx.pid;
events {{ worker_connections 6000; }}
stream {{ {servers} }}
"""


class Way(NamedTuple):
    """One way from a client's container to the server's: which address, and who carries it."""

    host: Host  # of the client
    enter: Sequence[str]  # the client's network
    ports: Mapping[int, tuple[str, int]]  # of the server: where to connect instead
    carriers: Sequence[tuple[Host, int]]  # pid on the machine

    def load(self, port: int, mode: str, *words: object) -> dict[str, float]:
        """Return the figures of a load from the client. Raises LabError if a connection failed."""
        address = "{}:{}".format(*self.ports[port])
        figures = run_load(self.host, mode, address, *words, enter=self.enter)
        if figures.get("failed"):
            raise LabError(f"{figures['failed']:g} connections to {address} failed")
        return figures

    def cpu_s(self) -> float:
        """Return the processor seconds of those who carry it."""
        return sum(tree_cpu_s(*carrier) for carrier in self.carriers)


class Hop(NamedTuple):
    """What a peer is to do on one host: listen, and forward."""

    host: Host
    listen: Mapping[int, tuple[str, int]]  # of the server's port: where to listen
    targets: Mapping[int, tuple[str, int]]
    tls: str = ""  # "bind" or "server": which side of it goes to the other host, by mutual TLS


def haproxy_words(hop: Hop) -> list[list[str]]:
    """Return the command of HAProxy, which splices all it can."""
    text, pem = HAPROXY, "/run/bench-haproxy.pem"
    secure = f" ssl crt {pem} ca-file {TLS_DIR}/ca.pem verify required"
    if hop.tls:
        own = [hop.host.path(f"{TLS_DIR}/{name}.pem").read_text() for name in ("cert", "key")]
        hop.host.path(pem).write_text("".join(own))
    bind, server = (secure if hop.tls == side else "" for side in ("bind", "server"))
    for port, (ip, number) in hop.listen.items():
        target = "{}:{}".format(*hop.targets[port])
        text += f"listen p{number}\n  bind {ip}:{number}{bind}\n  server s {target}{server}\n"
    path = hop.host.path("/run/bench-haproxy.cfg")
    path.write_text(text)
    return [["haproxy", "-db", "-q", "-f", "/run/bench-haproxy.cfg"]]


def nginx_words(hop: Hop) -> list[list[str]]:
    """Return the command of nginx with its stream module."""
    servers = ""
    for port, (ip, number) in hop.listen.items():
        target = "{}:{}".format(*hop.targets[port])
        servers += f"server {{ listen {ip}:{number} backlog=1024; proxy_pass {target}; }} "
    path = hop.host.path("/run/bench-nginx.conf")
    path.write_text(NGINX.format(module=STREAM_MODULE, servers=servers))
    return [["nginx", "-c", "/run/bench-nginx.conf"]]


def socat_words(hop: Hop) -> list[list[str]]:
    """Return a socat for each port, which forks for each connection."""
    return [
        ["socat", f"TCP-LISTEN:{number},bind={ip},fork,reuseaddr,backlog=1024,nodelay",
         "TCP:{}:{},nodelay".format(*hop.targets[port])]
        for port, (ip, number) in hop.listen.items()
    ]  # fmt: skip


def docker_proxy_words(hop: Hop) -> list[list[str]]:
    """Return a docker-proxy for each port, as dockerd starts it: it reports on descriptor 3."""
    commands = []
    for port, (ip, number) in hop.listen.items():
        there, its_port = hop.targets[port]
        words = f"-proto tcp -host-ip {ip} -host-port {number} -container-ip {there}"
        line = f"exec docker-proxy {words} -container-port {its_port} 3>/dev/null"
        commands.append(["sh", "-c", line])
    return commands


FORWARDERS: dict[str, Callable[[Hop], list[list[str]]]] = {
    "haproxy": haproxy_words,
    "docker-proxy": docker_proxy_words,
    "nginx": nginx_words,
    "socat": socat_words,
}


@contextlib.contextmanager
def forwarding(peer: str, hop: Hop) -> Iterator[list[tuple[Host, int]]]:
    """Run a peer on a host; yield its processes."""
    with contextlib.ExitStack() as running:
        carriers = []
        for words in FORWARDERS[peer](hop):
            process = hop.host.popen(words)
            running.callback(end, process)
            command = wait_for(f"{words[0]} starts", process.find_command)
            carriers.append((hop.host, command.pid))
        for ip, number in hop.listen.values():
            wait_for(f"{peer} listens", functools.partial(listens, hop.host, ip, number))
        yield carriers


def listens(host: Host, ip: str, port: int) -> bool:
    """Return whether somebody listens there."""
    return bool(host.run(["ss", "-Hltn", f"src {ip}:{port}"]).stdout)


def end(process: HostProcess) -> None:
    """Kill a command on a host, and reap it."""
    process.kill()
    process.wait(10)


def is_here(program: str) -> bool:
    """Return whether a peer is installed, and say so if it is not."""
    found = shutil.which(program, path=PATH) is not None
    if not found:
        say(f"{program} is not installed, and left out")
    return found


@contextlib.contextmanager
def serving(host: Host, container: str) -> Iterator[None]:
    """Run load.py as a server in a container's network."""
    words = [*in_container(host, container), *LOAD, "serve", str(ECHO)]
    server = host.popen(words, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        if not server.stdout.readline():
            raise LabError(f"no server in {container}")
        yield
    finally:
        end(server)


@functools.cache
def linked(world: World, near: Host, far: Host) -> Mapping[str, Way]:
    """Return the ways from a container on one host to a server in a container on another.

    They stand until the world ends.
    """
    client, server = f"client{near.name}{far.name}", f"server{far.name}{near.name}"
    world.keep(removing(world, server, client))
    world.start_on(far.name, server, *(f"--expose={port}" for port in (ECHO, SOURCE)))
    world.start_on(near.name, client, "--link", server)
    world.keep(serving(far, server))
    enter = in_container(near, client)
    variables = json.loads(inspect(near, client, "{{json .Config.Env}}"))
    vip = dict(line.split("=", 1) for line in variables)[f"{server.upper()}_PORT_8000_TCP_ADDR"]
    slaves = [(host, daemon(host, "slave").pid) for host in {near, far}]
    ways = {OURS: Way(near, enter, {port: (vip, port) for port in (ECHO, SOURCE)}, slaves)}
    ip = inspect(far, server, "{{.NetworkSettings.IPAddress}}")
    straight = {port: (ip, port) for port in (ECHO, SOURCE)}
    for peer in filter(is_here, ("haproxy",) if world.tls else FORWARDERS):
        ways[peer] = Way(near, enter, *hops_of(world, peer, near, far, straight))
    if near is far:
        ways["no forwarder"] = Way(near, enter, straight, ())
    return ways


def hops_of(
    world: World, peer: str, near: Host, far: Host, there: Mapping[int, tuple[str, int]]
) -> tuple[Mapping[int, tuple[str, int]], list[tuple[Host, int]]]:
    """Start a peer on one host, or on both; return where to connect, and the pids."""
    base = 9000 + 10 * list(FORWARDERS).index(peer) + (0 if near is far else 100)
    carriers: list[tuple[Host, int]] = []
    for host, ip in ((far, far.ip), (near, GATEWAY)) if near is not far else ((near, GATEWAY),):
        tls = ("bind" if host is far else "server") if world.tls else ""
        hop = Hop(host, {port: (ip, base + port - ECHO) for port in there}, there, tls)
        carriers += world.keep(forwarding(peer, hop))
        there, base = hop.listen, base + 50
    return there, carriers


@contextlib.contextmanager
def removing(world: World, *names: str) -> Iterator[None]:
    """Remove containers in the end, where they do not end with the lab."""
    try:
        yield
    finally:
        if world.is_guest:
            world.api("rm", "-f", "-v", *names, check=False)


def link_contest(
    peers: Sequence[str], hops: int, port: int, mode: str, count: int, figure: str
) -> Contest:
    """Return the contest of a link with its peers for one figure of one load."""

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        def sample(way: Way) -> float:
            if figure == "cpu_s_gb":
                before = way.cpu_s()
                gigabytes = way.load(port, mode, count, world.seconds)["bytes"] / 1e9
                return (way.cpu_s() - before) / gigabytes
            found = way.load(port, mode, count, world.seconds)
            return found[figure] * {"bytes_s": 8e-9, "median_s": 1e6}.get(figure, 1)

        ways = linked(world, world.lab["h1" if hops == 1 else "h2"], world.lab["h1"])
        wanted = (OURS, *peers, *(() if figure == "cpu_s_gb" else ("no forwarder",)))
        yield {name: functools.partial(sample, ways[name]) for name in wanted if name in ways}

    return contest


ALL_PEERS = tuple(FORWARDERS)
TWICE = ("haproxy", "docker-proxy")
QUICK = ("haproxy", "docker-proxy", "nginx")
NEARLY = {"haproxy": 0.8, "docker-proxy": 1.0}
AHEAD = dict.fromkeys(ALL_PEERS, 1.0)
LINK_ROWS = (
    Row("link-bulk-1", "link on one host, 1 stream, Gbit/s",
        link_contest(ALL_PEERS, 1, SOURCE, "bulk", 1, "bytes_s"), AHEAD),
    Row("link-bulk-8", "link on one host, 8 streams, Gbit/s",
        link_contest(ALL_PEERS, 1, SOURCE, "bulk", 8, "bytes_s"), AHEAD),
    Row("link-cpu", "link on one host, 1 stream, CPU s per GB",
        link_contest(ALL_PEERS, 1, SOURCE, "bulk", 1, "cpu_s_gb"), AHEAD, more=False),
    Row("link-ping-1", "link on one host, 64 bytes there and back, p50 µs",
        link_contest(QUICK, 1, ECHO, "ping", 1, "median_s"), {"haproxy": 1.1}, more=False),
    Row("link-ping-100", "the same, 100 at once, requests/s",
        link_contest(QUICK, 1, ECHO, "ping", 100, "rate_s"), NEARLY),
    Row("link-new-50", "link on one host, new connections/s, 50 at once",
        link_contest(QUICK, 1, ECHO, "connect", 50, "rate_s"), NEARLY),
    Row("link-new-500", "the same, 500 at once",
        link_contest(QUICK, 1, ECHO, "connect", 500, "rate_s"), NEARLY),
    Row("hosts-bulk-1", "link host to host, 1 stream, Gbit/s",
        link_contest(TWICE, 2, SOURCE, "bulk", 1, "bytes_s"), dict.fromkeys(TWICE, 1.0)),
    Row("hosts-bulk-8", "link host to host, 8 streams, Gbit/s",
        link_contest(TWICE, 2, SOURCE, "bulk", 8, "bytes_s"), dict.fromkeys(TWICE, 1.0)),
    Row("hosts-ping-1", "link host to host, 64 bytes there and back, p50 µs",
        link_contest(TWICE, 2, ECHO, "ping", 1, "median_s"), {"haproxy": 1.1}, more=False),
    Row("hosts-new-50", "link host to host, new connections/s, 50 at once",
        link_contest(TWICE, 2, ECHO, "connect", 50, "rate_s"), {"haproxy": 0.7}),
)  # fmt: skip


IDLE = 5000


@contextlib.contextmanager
def idle(world: World, on: str = "h1") -> Iterator[tuple[Way, Process]]:
    """Yield a link that carries 5,000 idle connections, and the slave that has them."""
    host = world.lab[on]
    way = linked(world, host, host)[OURS]
    words = ["hold", "{}:{}".format(*way.ports[ECHO]), str(IDLE)]
    inside = [*way.enter, *LOAD, *words]
    holder = host.popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        if json.loads(holder.stdout.readline() or "{}").get("ready") != IDLE:
            raise LabError(f"{IDLE} connections could not be opened")
        yield way, daemon(host, "slave")
    finally:
        end(holder)


@contextlib.contextmanager
def idle_threads(world: World) -> Iterator[Mapping[str, Sampler]]:
    with idle(world) as (_way, slave):
        yield {OURS: lambda: float(len(list(Path(f"/proc/{slave.pid}/task").iterdir())))}


@contextlib.contextmanager
def idle_memory(world: World) -> Iterator[Mapping[str, Sampler]]:
    with idle(world) as (_way, slave):
        yield {OURS: lambda: memory_mb(slave.pid)}


@contextlib.contextmanager
def idle_connect(world: World) -> Iterator[Mapping[str, Sampler]]:
    """Compare new connections beside idle ones with those of another host without them.

    Both hosts are new to it: once the connections that ended in the last minute have taken half of
    a host's ports, the kernel searches for a free one for milliseconds.
    """

    def sample(way: Way) -> float:
        return 1e6 / way.load(ECHO, "connect", 1, world.seconds)["rate_s"]

    calm = world.lab["h2"]
    without = linked(world, calm, calm)[OURS]
    with idle(world, "h3") as (way, _slave):
        yield {OURS: lambda: sample(way), "a slave without them": lambda: sample(without)}


IDLE_ROWS = (
    Row("idle-threads", "5,000 idle connections: threads of the slave", idle_threads,
        {OURS: 100}, more=False, rounds=1),
    Row("idle-memory", "5,000 idle connections: resident MB of the slave", idle_memory,
        {OURS: 100}, more=False, rounds=1),
    Row("idle-new", "5,000 idle connections: a new one and its echo, µs", idle_connect,
        {"a slave without them": 1.2}, more=False),
)  # fmt: skip


# ==== API =====================================================================
# What people type, through a master and at the bare engine.

LISTED = 200
LISTING = "/containers/json?all=1"


def api_of(world: World) -> str:
    return f"{world.lab['h1'].ip}:{API_PORT}"


def fetch_contest(clients: int, figure: str) -> Contest:
    """Return the contest of a listing on kept connections: arpanet's and the bare engine's."""

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        world.listed()

        def sample(host: Host, address: str) -> float:
            words = ("fetch", address, clients, world.seconds, LISTING)
            return run_load(host, *words)[figure] * (1000 if figure == "median_s" else 1)

        yield {
            OURS: functools.partial(sample, world.lab.client, api_of(world)),
            "bare engine": functools.partial(sample, world.lab[BARE], ENGINE),
        }

    return contest


def seconds_of(host: Host, *words: str, **options: Any) -> float:
    """Return how long a command takes on a host."""
    began = time.perf_counter()
    host.run(words, timeout=120, **options)
    return time.perf_counter() - began


def timed(world: World, script: str) -> Mapping[str, Sampler]:
    """Return samplers of a shell script, through arpanet and at the bare engine."""
    env = {"DOCKER_HOST": f"tcp://{api_of(world)}"}
    words = ("sh", "-euc", script)
    return {
        OURS: lambda: seconds_of(world.lab.client, *words, env=env),
        "bare engine": lambda: seconds_of(world.lab[BARE], *words),
    }


@contextlib.contextmanager
def run_contest(world: World) -> Iterator[Mapping[str, Sampler]]:
    yield timed(world, "docker run --rm --name once busybox true")


def stream_contest(script: str) -> Contest:
    """Return the contest of a script that moves 300 MB out of a container, or into it."""

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        world.big()
        yield timed(world, script)

    return contest


@contextlib.contextmanager
def flat_memory(world: World) -> Iterator[Mapping[str, Sampler]]:
    """Measure how much more memory a master takes for 300 MB that pass."""
    world.big()
    pid = daemon(world.lab["h1"], "master").pid

    def sample() -> float:
        forget_peak(pid)
        before = memory_mb(pid)
        timed(world, "docker export big >/dev/null")[OURS]()
        return memory_mb(pid, "VmHWM") - before

    yield {OURS: sample}


def start_contest(flag: str) -> Contest:
    """Return the contest of a command that only prints."""

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        host = world.lab["h1"]
        yield {
            OURS: lambda: 1000 * seconds_of(host, "arpanet", flag),
            "docker": lambda: 1000 * seconds_of(host, "docker", flag),
        }

    return contest


LIST_200 = "ps -a of 200 containers on 3 hosts, kept connection"
API_ROWS = (
    Row("list-1", f"{LIST_200}, ms", fetch_contest(1, "median_s"),
        {"bare engine": 1 / 20}, more=False),
    Row("list-20", f"{LIST_200}, 20 clients, requests/s", fetch_contest(20, "rate_s"),
        {"bare engine": 25}),
    Row("run", "docker run --rm, s", run_contest, {"bare engine": 1.1}, more=False, rounds=9),
    Row("export", "docker export of 300 MB, s",
        stream_contest("docker export big >/dev/null"), {"bare engine": 1.1}, more=False),
    Row("cp-out", "docker cp of 300 MB out, s",
        stream_contest("docker cp big:/data/big - >/dev/null"), {"bare engine": 1.1}, more=False),
    Row("cp-in", "docker cp of 300 MB in, s",
        stream_contest("docker cp - big:/tmp </run/big.tar"), {"bare engine": 1.1}, more=False),
    Row("flat-memory", "300 MB pass a master: MB that it takes more", flat_memory,
        {OURS: 50}, more=False, rounds=2),
    Row("version", "arpanet --version, ms", start_contest("--version"), {OURS: 250},
        more=False, rounds=9),
    Row("help", "arpanet --help, ms", start_contest("--help"), {OURS: 250},
        more=False, rounds=9),
)  # fmt: skip


# ==== Scale ===================================================================
# 1,000 hosts and 20,000 containers that are rows in the real etcd, copies of what a slave wrote.
# Their addresses are loopback ones of each host of the lab, where nobody listens.

MANY_HOSTS, MANY_CONTAINERS = 1000, 20_000
TABLES = ("hosts", "alive", "containers", "names")


def etcdctl(world: World, *words: str) -> str:
    """Return what etcdctl says on h1."""
    env = {"ETCDCTL_API": "3"}
    command = ["etcdctl", f"--endpoints={world.lab['h1'].ip}:2379", *words]
    return world.lab["h1"].run(command, env=env, timeout=120).stdout


def sample_row(world: World, table: str) -> dict[str, Any]:
    """Return the value of a row that a slave wrote."""
    words = ("get", "--prefix", f"/arpanet/{table}/", "--limit=1", "--print-value-only")
    value: dict[str, Any] = json.loads(etcdctl(world, *words))
    return value


def scale_rows(world: World, hosts: int, containers: int) -> Iterator[str]:
    """Yield lines of KEY JSON, in the schema of arpanet's key codec."""
    world.listed()
    host, container = sample_row(world, "hosts"), sample_row(world, "containers")
    alive = sample_row(world, "alive")
    for number in range(hosts):
        ip = f"127.1.{number // 250}.{number % 250 + 1}"
        yield f"hosts/sim{number} {json.dumps({**host, 'ip': ip, 'machine': f'm{number}'})}"
        yield f"alive/sim{number} {json.dumps({**alive, 'machine': f'm{number}'})}"
    for number in range(containers):
        host_name, name = f"sim{number % hosts}", f"sim-container-{number}"
        container_id = f"{number:064x}"
        summary = {**container["summary"], "Id": container_id, "Names": [f"/{name}"]}
        record = {**container, "name": name, "summary": summary}
        yield f"containers/{host_name}/{container_id} {json.dumps(record)}"
        yield f"names/{name} {json.dumps({'host': host_name, 'id': container_id})}"


def listed_count(world: World) -> int:
    """Return how many containers the master on h1 lists."""
    words = ["curl", "-sS", "--max-time", "30", f"http://{api_of(world)}{LISTING}"]
    return world.lab.client.run(words).stdout.count('"Id":')


def crowd(world: World, *, many: bool) -> None:
    """Write the rows, or delete them, and wait until the master on h1 lists them, or not."""
    if world.crowded == many:
        return
    hosts, containers = (50, 1000) if world.quick else (MANY_HOSTS, MANY_CONTAINERS)
    if many:
        text = "".join(f"/arpanet/{line}\n" for line in scale_rows(world, hosts, containers))
        world.lab["h1"].run([*LOAD, "fill", f"{world.lab['h1'].ip}:2379"], input=text, timeout=300)
    for table in TABLES if not many else ():
        etcdctl(world, "del", "--prefix", f"/arpanet/{table}/sim")
    world.crowded = many
    what = f"the master has {'them all' if many else 'none of them'}"
    least, most = (containers + LISTED, 2 * containers) if many else (0, 2 * LISTED)
    wait_for(what, lambda: least <= listed_count(world) <= most, 120)


@contextlib.contextmanager
def scale_listing(world: World) -> Iterator[Mapping[str, Sampler]]:
    """Compare the time for each listed container with that of three hosts and 200 containers."""
    world.listed()

    def sample(many: bool) -> float:
        crowd(world, many=many)
        figures = run_load(world.lab.client, "fetch", api_of(world), 1, 3 * world.seconds, LISTING)
        return figures["median_s"] * 1e6 / listed_count(world)

    yield {
        OURS: functools.partial(sample, True),
        "3 hosts, 200 containers": functools.partial(sample, False),
    }


@contextlib.contextmanager
def scale_memory(world: World) -> Iterator[Mapping[str, Sampler]]:
    crowd(world, many=True)
    yield {OURS: lambda: memory_mb(daemon(world.lab["h1"], "master").pid)}


def restart_contest(host: str, role: str) -> Contest:
    """Return the contest of a daemon that starts while there are 1,000 hosts."""

    def sample(world: World) -> float:
        world.lab[host].run(["arpanet", role, "stop"])
        words = ["arpanet", role, "start"]
        if role == "master":
            words += ["--peers", world.lab["h1"].ip]
        return seconds_of(world.lab[host], *words)

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        crowd(world, many=True)
        yield {OURS: functools.partial(sample, world)}

    return contest


SCALE_ROWS = (
    Row("scale-list", "ps -a of 20,000 containers on 1,000 hosts, µs for each",
        scale_listing, {"3 hosts, 200 containers": 1.0}, more=False, rounds=2),
    Row("scale-memory", "1,000 hosts, 20,000 containers: resident MB of a master", scale_memory,
        {}, more=False, rounds=1),
    Row("scale-slave", "a slave joins 1,000 hosts, s", restart_contest("h3", "slave"),
        {OURS: 5}, more=False, rounds=2),
    Row("scale-master", "a master starts with 20,000 containers, s",
        restart_contest("h2", "master"), {OURS: 5}, more=False, rounds=2),
)  # fmt: skip


# ==== Faults ==================================================================
# Until `ps` says so, and no command that is typed meanwhile may take longer.

LOST = "h3"
AT_MOST_S = 60.0


def fault_contest(strike: Callable[[World], Any], heal: Callable[[World], Any]) -> Contest:
    """Return the contest of a host that is lost while commands for its container go on."""

    def type_commands(world: World, stop: threading.Event, took: list[float]) -> None:
        env = {"DOCKER_HOST": f"tcp://{api_of(world)}"}
        for words in itertools.cycle((["ps"], ["inspect", "lost"], ["logs", "lost"], ["info"])):
            if stop.is_set():
                return
            took.append(seconds_of(world.lab.client, "docker", *words, env=env, check=False))

    def sample(world: World) -> float:
        stop, took = threading.Event(), [0.0]
        run = functools.partial(type_commands, world, stop, took)
        typing = threading.Thread(target=run)
        typing.start()
        try:
            strike(world)
            began = time.perf_counter()
            words = ("ps", "-a", "--filter", "name=lost", "--format", "{{.Status}}")
            with contextlib.suppress(LabError):  # never: that many seconds stand in the table
                wait_for("ps says so", lambda: "Host Down" in world.api(*words), AT_MOST_S)
            said = time.perf_counter() - began
        finally:
            stop.set()
            typing.join()
            heal(world)
            wait_for("it is back", lambda: world.api("start", "lost"), AT_MOST_S)
        return max(said, *took)

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        world.start_on(LOST, "lost")
        try:
            yield {OURS: functools.partial(sample, world)}
        finally:
            world.api("rm", "-f", "lost", check=False)

    return contest


FAULT_ROWS = (
    Row("engine-killed", "s until ps says so, or the longest command meanwhile",
        fault_contest(lambda w: w.lab[LOST].kill_engine(), lambda w: w.lab[LOST].start_engine()),
        {OURS: 12}, more=False, rounds=1),
    Row("host-unplugged", "s until ps says so, or the longest command meanwhile",
        fault_contest(lambda w: w.lab.cut(LOST), lambda w: w.lab.heal(LOST)),
        {OURS: 12}, more=False, rounds=1),
)  # fmt: skip


# ==== Table ===================================================================


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def figure(value: float, around: float) -> str:
    return f"{number(value)} ±{around * 100:.0f}%"


HEAD = ("row", "measured", OURS, "peer", "ratio", "to reach", "")


def cells(line: Line) -> tuple[str, ...]:
    """Return a line of the table."""
    peer = "" if line.peers is None else f"{line.peer} {figure(line.peers, line.peers_spread)}"
    sign = "≥" if line.more else "≤"
    reach = "" if line.limit is None else f"{sign} {line.limit:g}"
    verdict = "" if line.limit is None else "yes" if line.ok else "NO"
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
    return (line.row, line.what, figure(line.ours, line.ours_spread), peer, ratio, reach, verdict)


def table(lines: Sequence[Line]) -> str:
    """Return the lines as a Markdown table that can be read as it is."""
    rows = [HEAD, *map(cells, lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    texts = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)


def machine() -> str:
    """Return what the table was measured on."""
    cpus = re.findall("model name\\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = f" {cpus[0]}" if cpus else ""
    return (
        f"{len(os.sched_getaffinity(0))} cores{model}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


# ==== CLI =====================================================================

# First what a kernel full of connections that have just ended would slow down.
ROWS = (*API_ROWS, *IDLE_ROWS, *LINK_ROWS, *FAULT_ROWS, *SCALE_ROWS)


def run_row(world: World, row: Row) -> list[Line]:
    """Measure one row: all contenders in turn, several times."""
    rounds = 1 if world.quick else row.rounds
    began = time.monotonic()
    with row.contest(world) as samplers:
        samples: dict[str, list[float]] = {name: [] for name in samplers}
        for _ in range(rounds):
            for name, sampler in samplers.items():
                samples[name].append(sampler())
    lines = compare(row, samples)
    for line in lines:
        say("  ".join(filter(None, (cells(line)[0], *cells(line)[2:]))))
    say(f"{row.name} took {time.monotonic() - began:.0f} s")
    return lines


def install_peers() -> None:
    """Install what is measured against, where it is missing, as tests/run installs the lab's."""
    wanted = [f"{program}={package}" for program, package in PEERS.items()]
    wanted.append(f"{STREAM_MODULE}=libnginx-mod-stream")
    subprocess.run([ROOT / "tests" / "run", "--install", *wanted], check=True, stdout=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="arpanet and its peers")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; see --list")
    parser.add_argument("--quick", action="store_true", help="one short sample of each")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    parser.add_argument("--tls", action="store_true", help="links, with certificates on all hosts")
    parser.add_argument("--lab", metavar="NAME", default="", help="a lab that is up, with arpanet")
    return parser


def choose(names: Sequence[str] | None, tls: bool) -> list[Row]:
    """Return the rows of those names, all without; with TLS there are few. Raises LabError.

    They stay in their order: what comes late leaves the lab as others cannot use it.
    """
    known = {row.name: row for row in ROWS if not tls or row.name.startswith("hosts-")}
    if unknown := [name for name in names or () if name not in known]:
        raise LabError(f"there is no row {unknown[0]}; there are: {', '.join(known)}")
    return [row for row in known.values() if not names or row.name in names]


def measure(rows: Sequence[Row], world: World) -> list[Line]:
    """Return the lines of all rows; one that cannot be measured does not stop the others."""
    lines: list[Line] = []
    for row in rows:
        try:
            lines += run_row(world, row)
        except (LabError, OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
            say(f"{row.name} could not be measured: {error}")
    return lines


def main() -> int:
    """Run the command line; return 0 if every row was measured."""
    args = build_parser().parse_args()
    try:
        rows = choose(args.row, args.tls)
        if args.list:
            sys.stdout.write("".join(f"{row.name:16} {row.what}\n" for row in rows))
            return 0
        if os.getuid():
            raise LabError("the lab needs root: sudo tests/bench/run")
        if not args.lab:
            install_peers()
        with World(args.lab, quick=args.quick, tls=args.tls) as world:
            lines = measure(rows, world)
            if args.lab:  # it stays up
                crowd(world, many=False)
    except (LabError, subprocess.CalledProcessError) as error:
        say(str(error))
        return 1
    if args.json:
        found = {"machine": machine(), "lines": [line._asdict() for line in lines]}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        again = "sudo tests/bench/run --row NAME"
        sys.stdout.write(f"{machine()}, {date}; one row: {again}\n\n{table(lines)}\n")
    return 0 if {line.row for line in lines} == {row.name for row in rows} else 1


if __name__ == "__main__":
    sys.exit(main())
