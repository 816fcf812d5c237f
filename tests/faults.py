"""Faults of a lab, clients that work meanwhile, and what they were told compared with what is.

A fault is a kind (kill, pause, cut, slow, restart, jump) and the thing on one host that it befalls.
Each client runs commands one after another and keeps the record of what it was told.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from conftest import HOSTS, etcdctl, eventually, until
from lab import SLOW, Host, Lab, find_process

THINGS = ("master", "etcd", "slave", "engine", "machine")
PORTS = {"master": (8791,), "etcd": (2379, 2380), "slave": (8792,)}
CLOCK = "/run/clock"  # how far a host's wall clock is off, for what has libfaketime between
AWAY = "cannot be reached: timed out"  # of a slave, which a busy machine may let stand still
SLOW_RATE = "400kbit"
LOSS = "0.25"  # of the packets to and from a thing's ports
COMMAND_S = 20.0  # then a command counts as failed
SETTLE_S = 90.0  # what may or may not have been made keeps its name for a minute


# ---- one host and what runs there


def find_pids(host: Host, thing: str) -> list[int]:
    """Return the processes of a thing on a host: its own, or all of a machine."""
    if thing == "machine":
        return [process.pid for process in host.processes()]
    if thing in ("master", "slave"):
        argv = {thing, "start"}
        return sorted(p.pid for p in host.processes() if argv <= set(p.argv))[:1]
    return host.pids({"etcd": "etcd", "engine": "dockerd"}[thing])


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the end of one may be another's
            os.kill(pid, number)


def kill(host: Host, thing: str) -> None:
    """End a thing as the lack of memory does: it can say no goodbye."""
    pids = find_pids(host, thing)
    assert pids, f"no {thing} runs on {host.name}"
    signal_all(pids, signal.SIGKILL)
    until(f"the {thing} of {host.name} has ended", lambda: not any(map(find_process, pids)))
    if thing == "master":
        until(f"etcd on {host.name} has ended with it", lambda: not host.pids("etcd"))


def start_master(host: Host) -> None:
    if not find_pids(host, "master"):
        host.run(["arpanet", "master", "start"])


def start_slave(host: Host) -> None:
    if not find_pids(host, "slave"):
        host.run(["arpanet", "slave", "start"])


def start_engine(host: Host) -> None:
    if not find_pids(host, "engine"):
        host.start_engine()


def start(host: Host, thing: str) -> None:
    """Start again what was ended; an etcd is its master's care."""
    if thing in ("engine", "machine"):
        start_engine(host)
    if thing in ("master", "machine"):
        start_master(host)
    if thing in ("slave", "machine"):
        start_slave(host)


def stop(host: Host, thing: str) -> None:
    """End a thing as a service manager does."""
    if thing in ("slave", "machine"):
        host.run(["arpanet", "slave", "stop"])
    if thing in ("master", "machine"):
        host.run(["arpanet", "master", "stop"])
    if thing in ("engine", "machine"):
        host.stop_engine()
    if thing == "etcd":
        signal_all(find_pids(host, "etcd"), signal.SIGTERM)


def filter_ports(host: Host, thing: str, change: str, *how: str) -> None:
    """Add (-I) or delete (-D) rules that drop what goes to or from a thing's ports."""
    for port in PORTS[thing]:
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            for direction in ("--dport", "--sport"):
                match = [side, "eth0", "-p", "tcp", direction, str(port), *how]
                host.run(["iptables", "-w", change, chain, *match, "-j", "DROP"])


def set_rate(lab: Lab, name: str, rate: str) -> None:
    """Let a host's cable carry so much each way, or with "" all that it can."""
    ends = ((lab[name].enter(), "eth0"), (lab._enter_switch(), f"port-{name}"))
    for enter, device in ends:
        words = ["tc", "qdisc", "replace" if rate else "del", "dev", device, "root"]
        if rate:
            words += ["tbf", "rate", rate, "burst", "16kb", "latency", "400ms"]
        done = subprocess.run([*enter, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# ---- faults


class Fault(NamedTuple):
    """A kind of fault and the thing that it befalls."""

    kind: str
    thing: str

    def inject(self, lab: Lab, name: str) -> None:
        """Let it happen on a host."""
        host, thing = lab[name], self.thing
        if self.kind == "kill":
            if thing == "machine":
                lab.cut(name)  # a machine without power sends nothing
            kill(host, thing)
        elif self.kind == "pause":
            signal_all(find_pids(host, thing), signal.SIGSTOP)
        elif self.kind == "jump":
            host.path(CLOCK).write_text("-1h")
        elif self.kind == "restart":
            stop(host, thing)
            start(host, thing)
        elif thing == "machine":
            lab.cut(name) if self.kind == "cut" else set_rate(lab, name, SLOW_RATE)
        else:
            filter_ports(host, thing, "-I", *self._how())

    def heal(self, lab: Lab, name: str) -> None:
        """Undo it, as a person would."""
        host, thing = lab[name], self.thing
        if self.kind == "kill":
            if thing == "machine":
                lab.heal(name)
            start(host, thing)
        elif self.kind == "pause":
            signal_all(find_pids(host, thing), signal.SIGCONT)
        elif self.kind == "jump":
            host.path(CLOCK).write_text("+0")
        elif self.kind in ("cut", "slow"):
            if thing != "machine":
                filter_ports(host, thing, "-D", *self._how())
            elif self.kind == "cut":
                lab.heal(name)
            else:
                set_rate(lab, name, "")

    def _how(self) -> list[str]:
        loss = ["-m", "statistic", "--mode", "random", "--probability", LOSS]
        return loss if self.kind == "slow" else []

    def __str__(self) -> str:
        return f"{self.kind} {self.thing}"


# an engine has no cable: it is reached through a unix socket
FAULTS = tuple(
    Fault(kind, thing)
    for kind in ("kill", "pause", "cut", "slow", "restart")
    for thing in THINGS
    if (kind, thing) not in (("cut", "engine"), ("slow", "engine"))
)


# ---- all is well


def status(lab: Lab, via: str = "h1") -> dict[str, Any]:
    """Return what a master says of all of them."""
    done = lab[via].run(["arpanet", "master", "status", "--json"], check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def wait_well(lab: Lab) -> None:
    """Block until every master says that all masters and hosts are well."""

    def all_well() -> None:
        for via in HOSTS:
            report = status(lab, via)
            assert [m["answers"] for m in report["masters"]] == [True] * 3, report
            assert [h["trouble"] for h in report["hosts"]] == [""] * 3, report

    eventually("all masters and hosts are well", all_well, 60)


# ---- clients, and what they were told


class Told(NamedTuple):
    """One command: what was asked and what the client was told. Times: time.monotonic()."""

    verb: str
    name: str
    began: float
    ended: float
    well: bool
    said: str  # the id of a container that was made, or the error

    def __str__(self) -> str:
        times = f"{self.began:.2f}-{self.ended:.2f}"
        return f"{times} {self.verb} {self.name}: {'well' if self.well else self.said!r}"


class Client:
    """Makes, starts, links and removes containers, one command after another, in a thread.

    words: the docker client with its options, run on the lab's c1.
    """

    within_s = COMMAND_S

    def __init__(self, lab: Lab, label: str, words: Sequence[str], env: Mapping[str, str]) -> None:
        self._lab, self.label, self._words, self._env = lab, label, words, env
        self._ending = threading.Event()
        self.history: list[Told] = []
        self._thread = threading.Thread(target=self._run, name=label)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the command that runs."""
        self._ending.set()
        self._thread.join()

    def ask(self, verb: str, name: str, *words: str) -> bool:
        """Run a command and note what it said; return whether it went well."""
        began = time.monotonic()
        command = [*self._words, verb, *words]
        try:
            done = self._lab.client.run(command, check=False, env=self._env, timeout=self.within_s)
            well, said = done.returncode == 0, (done.stdout if not done.returncode else done.stderr)
        except subprocess.TimeoutExpired:
            well, said = False, f"no answer in {self.within_s * SLOW:.0f} s"
        self.history.append(Told(verb, name, began, time.monotonic(), well, said.strip()))
        return well

    def run_one(self, label: str) -> bool:
        """Run one container; return whether it went well."""
        name = f"{self.label}-{label}"
        return self.ask("run", name, "-d", "--name", name, "busybox", "true")

    def _run(self) -> None:
        number, last = 0, ""
        while not self._ending.is_set():
            number += 1
            name = f"{self.label}-{number}"
            link = ["--link", f"{last}:db"] if last else []
            volume = ["-e", "ARPANET_VOLUME1=/data"] if number % 3 == 0 else []
            made = self.ask("create", name, "--name", name, *link, *volume, "busybox", "sleep", "9")
            if made and not self._ending.is_set():
                self.ask("start", name, name)
            if last and number % 2 and not self._ending.is_set():
                self.ask("rm", last, "-f", last)
            last = name if made else ""
        if not self.history:
            self.ask("ps", "")


class World(NamedTuple):
    """What the engines have, and what etcd says of it."""

    engines: Mapping[str, Mapping[str, str]]  # host: container id: name
    volumes: Mapping[str, frozenset[str]]  # host: its named volumes
    tables: Mapping[str, Any]  # key below /arpanet/: its row


def read_world(lab: Lab) -> World:
    """Return all that is there now."""
    engines, volumes = {}, {}
    for host in lab.hosts:
        words = [
            "docker",
            "ps",
            "-a",
            "--no-trunc",
            "--format",
            '{{.ID}} {{index (split .Names ",") 0}}',
        ]
        rows = [line.split() for line in host.run(words).stdout.splitlines()]
        engines[host.name] = {row[0]: row[-1].split(",")[0] for row in rows}
        words = ["docker", "volume", "ls", "--format", "{{.Name}}"]
        volumes[host.name] = frozenset(host.run(words).stdout.split())
    words = etcdctl(lab["h1"], "get", "--prefix", "/arpanet/")
    lines = lab["h1"].run(words).stdout.splitlines()
    texts = dict(
        zip((key.removeprefix("/arpanet/") for key in lines[::2]), lines[1::2], strict=True)
    )
    del texts["format"]  # which alone holds no JSON
    return World(engines, volumes, {key: json.loads(text) for key, text in texts.items()})


class Findings(NamedTuple):
    """What is wrong: sentences, none of which there may be."""

    lost: list[str]
    doubled: list[str]
    half: list[str]


def compare(history: Sequence[Told], world: World) -> Findings:
    """Return what the world lacks of what was acknowledged, and what it has too much or half."""
    there = {i: name for rows in world.engines.values() for i, name in rows.items()}
    made = {t.name: t.said.split()[-1] for t in history if t.verb == "create" and t.well}
    asked = {t.name for t in history if t.verb == "rm"}
    gone = {t.name for t in history if t.verb == "rm" and t.well}
    lost = [f"{n} was made and is not there" for n in made.keys() - asked if made[n] not in there]
    lost += [f"{n} was removed and is there" for n in gone if made.get(n) in there]
    counts = collections.Counter([*there.values(), *(v for s in world.volumes.values() for v in s)])
    doubled = [f"{name} is there {count} times" for name, count in counts.items() if count > 1]
    return Findings(lost, doubled, find_half(there, world))


def find_half(there: Mapping[str, str], world: World) -> list[str]:
    """Return where etcd and the engines differ: what was begun and never ended."""
    rows = {
        table: {
            k.removeprefix(f"{table}/"): v
            for k, v in world.tables.items()
            if k.startswith(f"{table}/")
        }
        for table in ("names", "containers", "volumes")
    }
    names = {name: row["id"] for name, row in rows["names"].items()}
    listed = {key.partition("/")[2]: row["name"] for key, row in rows["containers"].items()}
    pins = {(row["host"], name) for name, row in rows["volumes"].items() if "token" not in row}
    kept = {(host, name) for host, found in world.volumes.items() for name in found}
    half = []
    if listed != there:
        half.append(
            f"containers in etcd and not on an engine, or not so: {listed.items() ^ there.items()}"
        )
    if names != {name: i for i, name in there.items()}:
        differ = names.items() ^ {(name, i) for i, name in there.items()}
        half.append(f"names that are not those of the containers: {differ}")
    if pins != kept:
        half.append(f"volumes and their hosts differ: {pins ^ kept}")
    return half


class Row(NamedTuple):
    """What one fault did; gap_s: the longest time that one client went without an answer."""

    fault: str
    host: str
    tried: int
    failed: int
    gap_s: float
    lost: int
    doubled: int

    def __str__(self) -> str:
        return ROW.format(*self._replace(gap_s=round(self.gap_s, 1)))


ROW = "{:<16} {:<5} {:>6} {:>7} {:>6} {:>5} {:>8}"


def longest_gap(history: Sequence[Told], began: float, ended: float) -> float:
    """Return the longest time in which no command of a client went well, in seconds."""
    instants = [began, *(t.ended for t in history if t.well and began < t.ended < ended), ended]
    return max(later - sooner for sooner, later in zip(instants, instants[1:], strict=False))


class Trial:
    """Three clients at work on a lab that is well, while something is lost and comes back."""

    def __init__(self, lab: Lab, fault: Fault, victim: str) -> None:
        self._lab, self._fault, self._victim = lab, fault, victim
        other = HOSTS[(HOSTS.index(victim) + 1) % len(HOSTS)]
        ips = ",".join(lab[name].ip for name in HOSTS)
        self.clients = [
            Client(lab, "finds", ["arpanet", "docker"], {"ARPANET_MASTERS": ips}),
            Client(lab, "socket", ["docker", "-H", "unix:///run/arpanet/docker.sock"], {}),
            Client(lab, "fixed", ["docker", "-H", f"tcp://{lab[other].ip}:8791"], {}),
        ]

    def run(self, fault_s: float, after_s: float, during: Callable[[], None] | None = None) -> Row:
        """Return what happened. Raises AssertionError when something is lost, doubled or half."""
        for client in self.clients:
            client.start()
        try:
            for client in self.clients:
                until(f"{client.label} works", lambda c=client: c.history, COMMAND_S)  # type: ignore[misc]
            began = time.monotonic()
            self._fault.inject(self._lab, self._victim)
            try:
                if during:
                    during()
                threading.Event().wait(max(0.0, began + fault_s - time.monotonic()))
            finally:
                self._fault.heal(self._lab, self._victim)
            threading.Event().wait(after_s)
            ended = time.monotonic()
        finally:
            for client in self.clients:
                client.stop()
        wait_well(self._lab)
        return self._judge(began, ended)

    def _judge(self, began: float, ended: float) -> Row:
        history = [told for client in self.clients for told in client.history]

        def settled() -> Findings:
            findings = compare(history, read_world(self._lab))
            assert not any(findings), findings
            return findings

        try:
            findings = eventually("all is as it was told", settled, SETTLE_S)
        except AssertionError:
            findings = compare(history, read_world(self._lab))
        row = Row(
            str(self._fault), self._victim, len(history), sum(not t.well for t in history),
            max(longest_gap(c.history, began, ended) for c in self.clients),
            len(findings.lost), len(findings.doubled),
        )  # fmt: skip
        failed = "\n".join(f"{t.verb} {t.name}: {t.said}" for t in history if not t.well)
        assert not any(findings), f"{row}\n{findings}\nwhat failed:\n{failed}"
        print(f"{row}\n{failed}".strip(), flush=True)  # noqa: T201
        return row
