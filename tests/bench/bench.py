"""bench: arpanet against what people would use instead, in one run on one machine (Linux, root).

    sudo tests/bench/run                     # all rows, about 12 minutes
    sudo tests/bench/run --row link-bulk-1   # one row, or several: the flag may be given again
    sudo tests/bench/run --list              # the rows
    sudo tests/bench/run --quick --json      # fewer and shorter samples; for machines

A row samples arpanet and its peers in turn (A B C A B C ...), so that what else the machine does
meets all of them. What is compared are medians; the spread is half of what lies between the
quartiles. Everything runs in a lab of its own (tests/lab.py): three hosts with arpanet, and h4,
whose engine is the bare one. No packet leaves the lab.

Floor plan (a section uses only the sections before it):
    Rows, World, Links, API, Scale, Commands, Faults, Table, CLI
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from lab import PATH, Host, HostProcess, Lab, LabError, Process  # noqa: E402

# ==== Rows ====================================================================
# A row is a question with a number for an answer. Its contest is a context: what is to be
# measured stands from its entry to its exit, and one sample is one call.

Sampler = Callable[[], float]
Contest = Callable[["World"], contextlib.AbstractContextManager[Mapping[str, Sampler]]]
OURS = "arpanet"


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


class World:
    """The lab, with arpanet on three hosts. quick: shorter samples."""

    def __init__(self, lab_name: str = "", *, quick: bool = False) -> None:
        self.quick, self._lab_name = quick, lab_name
        self.seconds = 0.3 if quick else 1.0
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

    @functools.cached_property
    def lab(self) -> Lab:
        """Return the lab: the one that was named, with arpanet on it already, or a new one."""
        if self._lab_name:
            return Lab.open(self._lab_name)
        lab = self._ending.enter_context(Lab.up(4, pex=build_pex(), name=f"bench{os.getpid()}"))
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

    def bare(self, *words: str) -> str:
        """Return what the docker client says on the host with the bare engine."""
        return self.lab[BARE].run(["docker", *words], timeout=120).stdout.strip()

    def start_on(self, host: str, name: str, *words: str) -> None:
        """Run a container, through arpanet, on that host."""
        volume = f"on-{host}"  # a container goes where its volume is
        self.lab[host].run(["docker", "volume", "create", volume])
        wait_for(f"{volume} is known", lambda: self.api("volume", "inspect", volume))
        words = ("-v", f"{volume}:/on", *words, "busybox", "sleep", "100000")
        self.api("run", "-d", "--name", name, *words)


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


# ==== Links ===================================================================
# A client in one container, load.py, through arpanet's link or through a peer to a server in
# another, load.py again: the kernel does the same for all of them.

LOAD = [sys.executable, "-I", str(ROOT / "tests" / "bench" / "load.py")]
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
    """One way from the client's container to the server's: which address, and who carries it."""

    ports: Mapping[int, tuple[str, int]]  # of the server: where to connect instead
    carriers: Sequence[tuple[Host, int]]  # pid on the machine
    client: str  # container


class Hop(NamedTuple):
    """What a peer is to do on one host: listen, and forward."""

    host: Host
    listen: Mapping[int, tuple[str, int]]  # of the server's port: where to listen
    targets: Mapping[int, tuple[str, int]]


def haproxy_words(hop: Hop) -> list[list[str]]:
    """Return the command of HAProxy, which splices all it can."""
    text = HAPROXY
    for port, (ip, number) in hop.listen.items():
        target = "{}:{}".format(*hop.targets[port])
        text += f"listen p{number}\n  bind {ip}:{number}\n  server s {target}\n"
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
def linked(world: World, peers: Sequence[str], hops: int) -> Iterator[dict[str, Way]]:
    """Yield the ways to a server on h1 from a container on h1 (one hop) or on h2 (two hops)."""
    lab = world.lab
    near, far = lab["h1" if hops == 1 else "h2"], lab["h1"]
    expose = [f"--expose={port}" for port in (ECHO, SOURCE)]
    with contextlib.ExitStack() as standing:
        standing.callback(world.api, "rm", "-f", "-v", "server", "client", check=False)
        world.start_on("h1", "server", *expose)
        world.start_on(near.name, "client", "--link", "server")
        inside = [*in_container(far, "server"), *LOAD, "serve", str(ECHO)]
        server = far.popen(inside, stdout=subprocess.PIPE)
        standing.callback(end, server)
        assert server.stdout is not None
        server.stdout.readline()
        ip = inspect(far, "server", "{{.NetworkSettings.IPAddress}}")
        variables = inspect(near, "client", "{{json .Config.Env}}")
        vip = dict(line.split("=", 1) for line in json.loads(variables))[
            "SERVER_PORT_8000_TCP_ADDR"
        ]
        slaves = [
            (host, daemon(host, "slave").pid) for host in {near.name: near, far.name: far}.values()
        ]
        ways = {OURS: Way({port: (vip, port) for port in (ECHO, SOURCE)}, slaves, "client")}
        for number, peer in enumerate(filter(is_here, peers)):
            base = 9000 + 10 * number
            there: Mapping[int, tuple[str, int]] = {port: (ip, port) for port in (ECHO, SOURCE)}
            carriers: list[tuple[Host, int]] = []
            if hops == 2:
                hop = Hop(far, {p: (far.ip, base + p - ECHO) for p in there}, there)
                carriers += standing.enter_context(forwarding(peer, hop))
                there = hop.listen
            hop = Hop(near, {p: (GATEWAY, base + p - ECHO) for p in there}, there)
            carriers += standing.enter_context(forwarding(peer, hop))
            ways[peer] = Way(hop.listen, carriers, "client")
        if hops == 1:
            ways["no forwarder"] = Way({port: (ip, port) for port in (ECHO, SOURCE)}, (), "client")
        yield ways


def inspect(host: Host, name: str, form: str) -> str:
    """Return what a host's engine says of a container."""
    return host.run(["docker", "inspect", "-f", form, name]).stdout.strip()


def in_container(host: Host, name: str) -> list[str]:
    """Return the words before a command that make it run in a container's network."""
    return ["nsenter", "-t", inspect(host, name, "{{.State.Pid}}"), "--net", "--"]


def load(enter: Sequence[str], host: Host, *words: object) -> dict[str, float]:
    """Return the figures of one load from a host."""
    done = host.run([*enter, *LOAD, *map(str, words)], timeout=120)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def link_contest(
    peers: Sequence[str], hops: int, port: int, mode: str, count: int, figure: str
) -> Contest:
    """Return the contest of a link with its peers for one figure of one load."""

    @contextlib.contextmanager
    def contest(world: World) -> Iterator[Mapping[str, Sampler]]:
        with linked(world, peers, hops) as ways:
            near = world.lab["h1" if hops == 1 else "h2"]
            enter = in_container(near, "client")

            def sample(way: Way) -> float:
                before = sum(tree_cpu_s(*carrier) for carrier in way.carriers)
                words = ("{}:{}".format(*way.ports[port]), count, world.seconds)
                found = load(enter, near, mode, *words)
                if found.get("failed"):
                    raise LabError(f"{found['failed']:g} connections failed at {words[0]}")
                spent = sum(tree_cpu_s(*carrier) for carrier in way.carriers) - before
                found["cpu_s_gb"] = spent / found.get("bytes", 1) * 1e9
                found["gbit_s"] = found.get("bytes_s", 0) * 8e-9
                found["median_us"] = found.get("median_s", 0) * 1e6
                return found[figure]

            if figure == "cpu_s_gb":
                ways = {name: way for name, way in ways.items() if way.carriers}
            yield {name: functools.partial(sample, way) for name, way in ways.items()}

    return contest


ALL_PEERS = tuple(FORWARDERS)
TWICE = ("haproxy", "docker-proxy")
QUICK = ("haproxy", "docker-proxy", "nginx")
NEARLY = {"haproxy": 0.8, "docker-proxy": 1.0}
AHEAD = dict.fromkeys(ALL_PEERS, 1.0)
LINK_ROWS = (
    Row("link-bulk-1", "link on one host, 1 stream, Gbit/s",
        link_contest(ALL_PEERS, 1, SOURCE, "bulk", 1, "gbit_s"), AHEAD),
    Row("link-bulk-8", "link on one host, 8 streams, Gbit/s",
        link_contest(ALL_PEERS, 1, SOURCE, "bulk", 8, "gbit_s"), AHEAD),
    Row("link-cpu", "link on one host, 1 stream, CPU s per GB",
        link_contest(ALL_PEERS, 1, SOURCE, "bulk", 1, "cpu_s_gb"), AHEAD, more=False),
    Row("link-ping-1", "link on one host, 64 bytes there and back, p50 µs",
        link_contest(QUICK, 1, ECHO, "ping", 1, "median_us"), {"haproxy": 1.1}, more=False),
    Row("link-ping-100", "the same, 100 at once, requests/s",
        link_contest(QUICK, 1, ECHO, "ping", 100, "rate_s"), NEARLY),
    Row("link-new-50", "link on one host, new connections/s, 50 at once",
        link_contest(QUICK, 1, ECHO, "connect", 50, "rate_s"), NEARLY),
    Row("link-new-500", "the same, 500 at once",
        link_contest(QUICK, 1, ECHO, "connect", 500, "rate_s"), NEARLY),
    Row("hosts-bulk-1", "link host to host, 1 stream, Gbit/s",
        link_contest(TWICE, 2, SOURCE, "bulk", 1, "gbit_s"), dict.fromkeys(TWICE, 1.0)),
    Row("hosts-bulk-8", "link host to host, 8 streams, Gbit/s",
        link_contest(TWICE, 2, SOURCE, "bulk", 8, "gbit_s"), dict.fromkeys(TWICE, 1.0)),
    Row("hosts-ping-1", "link host to host, 64 bytes there and back, p50 µs",
        link_contest(TWICE, 2, ECHO, "ping", 1, "median_us"), {"haproxy": 1.1}, more=False),
    Row("hosts-new-50", "link host to host, new connections/s, 50 at once",
        link_contest(TWICE, 2, ECHO, "connect", 50, "rate_s"), {"haproxy": 0.7}),
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

ROWS: tuple[Row, ...] = (*LINK_ROWS,)


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
    say(f"{row.name}: {time.monotonic() - began:.0f} s")
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
    parser.add_argument("--lab", metavar="NAME", default="", help="a lab that is up, with arpanet")
    return parser


def choose(names: Sequence[str] | None) -> list[Row]:
    """Return the rows of those names, all without. Raises LabError."""
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names or () if name not in known]:
        raise LabError(f"there is no row {unknown[0]}; there are: {', '.join(known)}")
    return [known[name] for name in names or known]


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
        rows = choose(args.row)
        if args.list:
            sys.stdout.write("".join(f"{row.name:16} {row.what}\n" for row in rows))
            return 0
        if os.getuid():
            raise LabError("the lab needs root: sudo tests/bench/run")
        if not args.lab:
            install_peers()
        with World(args.lab, quick=args.quick) as world:
            lines = measure(rows, world)
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
