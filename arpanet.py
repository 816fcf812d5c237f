#!/usr/bin/env python3
"""arpanet: many Docker hosts, one Docker API.

Floor plan (a section uses only the sections before it):
    Errors, Settings, Helpers, Model, Mesh, Engine, Node, Links, API, Member, Doctor,
    Supervisors, Authority, CLI

Threads (name, what it owns, what ends it):
    main         signals, etcd, the order of starting and stopping; a signal
    watch        node.view; stop
    rescue       the containers of hosts that stay down; stop
    move         one container that is moved by hand; its end
    members      the list of masters that the mesh talks to; stop
    lease        renewal of this process's lease; stop
    pump         every link, tunnel and hijacked stream; stop
    accept-IP    one listener of the Docker API; stop
    lobby        the clients of the Docker API that have not asked yet; stop
    api-N        a client's requests that follow each other closely; the replies
    reach        whether the agents that this master waits for are reached; stop
    claims       the claims that came to nothing, or are over; stop
    hangup       the clients that wait for a stream, to tell when one goes; stop
    ask-HOST     one question to one host, when several are asked at once; the answer
    merge-HOST   one host's part of a merged stream; the end of the stream
    ending       what a container that removes itself says, or returns; its end, or WATCH_S
    upload       one body on its way to an engine; the end of the body
    publish-N    a share of this host's containers, on their way to the mesh; stop
    images       what names this host's engine gave to images; stop
    events       the engine's events; stop
    links        the listeners of this host's links; stop
    names        names on networks that were made through arpanet; stop
    names-N      names that the host's own resolvers are asked for; stop
    close        one channel to etcd that was replaced; the end of the calls on it
    askers       connections to links from addresses not known yet; stop
    agent-N      one request to the agent that may block; the answer
    carry        one client's connection, until a master is found for it; the answer
    docker       the end of the docker client that this process carries for; that
    ping-IP      whether one master, which a client may use, answers; stop
    engine       whether this host's engine answers; stop
"""

from __future__ import annotations

import argparse
import ast
import base64
import collections
import contextlib
import dataclasses
import datetime
import email.utils
import errno
import fcntl
import fnmatch
import functools
import hashlib
import heapq
import http.client
import http.server
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import operator
import os
import platform
import queue
import random
import re
import resource
import secrets
import select
import shutil
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.parse
import uuid
import weakref
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from concurrent import futures
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, NamedTuple, NoReturn, Protocol, TypeVar

if TYPE_CHECKING:
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__version__ = "0.1.0"

log = logging.getLogger("arpanet")


# ==== Errors =================================================================
# Each failure is one type with its HTTP status, its exit code and its wording;
# answer() turns it into an HTTP body and main() into an exit code, nobody else.


class ArpanetError(Exception):
    """A failure that a person is told about in one sentence: what, on which thing, what to do."""

    status = 500
    exit_code = 1


class BadRequest(ArpanetError):
    """A parameter is wrong; nothing was done."""

    status, exit_code = 400, 2


class HeadTooLarge(BadRequest):
    """The head of a request is longer than any client needs."""

    status = 431


class TooSlow(BadRequest):
    """A client began a request and did not go on."""

    status = 408


class Usage(BadRequest):
    """A command line or a setting is wrong; nothing was done."""


class NotFound(ArpanetError):
    """What was asked for is not there."""

    status = 404


class Conflict(ArpanetError):
    """The state of the thing does not allow this."""

    status = 409


class NotSupported(ArpanetError):
    """arpanet does not offer this (yet)."""

    status = 501


class EngineError(ArpanetError):
    """An engine answered with an error; its words and status are passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(ArpanetError):
    """Something that is needed does not answer."""

    status = 503


class EngineDown(Unavailable):
    """A host or its engine does not answer."""

    exit_code = 4


class EngineAway(EngineDown):
    """A host could not be reached: nothing was sent to its engine."""


class MeshDown(Unavailable):
    """etcd does not answer, or has no quorum."""

    exit_code = 3


class LostClaim(Unavailable):
    """A name was claimed, and somebody else has it now."""

    exit_code = 3


class Renewed(Unavailable):
    """The arpanet was recovered: what this process knows may be undone, so it begins anew."""


class Forbidden(ArpanetError):
    """Somebody who is not of this arpanet asked."""

    status = 403


class NoRoom(Unavailable):
    """No host can take the container."""

    exit_code = 3


class Unsure(Unavailable):
    """A change was sent and its answer was lost: it may or may not have happened."""

    exit_code = 5


NO_HOST = "no host is up; on each Docker host type: arpanet slave start"


def no_such_container(name: str) -> NotFound:
    """Return Docker's own words for a container that is not there."""
    return NotFound(f"No such container: {name}")


def master_name_taken(name: str, ip: str) -> Conflict:
    """Return what a new master is told whose name another one has."""
    return Conflict(
        f"the name {name} is taken by the master at {ip}; give this machine another one: "
        "HOSTNAME=NAME arpanet master start"
    )


def name_taken(name: str, container_id: str) -> Conflict:
    """Return Docker's own words for a name that is in use. Source: engine 20.10, POST create."""
    return Conflict(
        f'Conflict. The container name "/{name}" is already in use by container "{container_id}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


# ==== Settings ===============================================================
# One row gives the flag, the variable, the help line and the README line.
# Flag beats environment beats /etc/arpanet/arpanet.env beats default.

ENV_FILE = "/etc/arpanet/arpanet.env"
LABEL_KEY = "[A-Za-z0-9_][A-Za-z0-9_./-]*"
PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)


def parse_text(text: str) -> str:
    """Return the text as it is."""
    return text


def parse_port(text: str) -> int:
    """Return a TCP port. Raises ValueError."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)


def parse_seconds(text: str) -> float:
    """Return a positive number of seconds. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ValueError("a number of seconds is needed, like 10 or 2.5")
    return seconds


def parse_count(text: str) -> int:
    """Return how many of something there may be. Raises ValueError."""
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise ValueError("a number from 1 to 9999999 is needed")
    return int(text)


def parse_megabytes(text: str) -> int:
    """Return a number of megabytes. Raises ValueError."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 16 <= int(text) <= 16384:
        raise ValueError("a number of megabytes from 16 to 16384 is needed")
    return int(text)


def parse_flag(text: str) -> bool:
    """Return a yes or no. Raises ValueError."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("say 1 or 0")


def parse_ip(text: str) -> str:
    """Return an IPv4 address in its usual form, "" for none. Raises ValueError."""
    if not text:
        return ""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("an IPv4 address is needed, like 192.168.8.120") from None


def parse_ips(text: str) -> tuple[str, ...]:
    """Return addresses that stand between commas. Raises ValueError."""
    return tuple(parse_ip(part.strip()) for part in text.split(",") if part.strip())


def parse_path(text: str) -> str:
    """Return a path that holds in any working directory, "" for none."""
    return os.path.abspath(text) if text else ""


def parse_peers(text: str) -> tuple[str, ...]:
    """Return ("boot",), addresses, or () when nothing was said. Raises ValueError."""
    if text == "boot":
        return ("boot",)
    try:
        return parse_ips(text)
    except ValueError:
        raise ValueError(
            "say boot, or the addresses of masters: 192.168.8.120,192.168.8.121"
        ) from None


def parse_subnet(text: str) -> str:
    """Return an IPv4 network in its usual form. Raises ValueError."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        raise ValueError("a network is needed, like 198.18.0.0/16") from None
    if network.prefixlen > 24:
        raise ValueError("the network must have room for many links: /24 or larger")
    return str(network)


def parse_hostname(text: str) -> str:
    """Return a host name that can stand behind an @. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})", text):
        raise ValueError("a name of letters, digits, dots and dashes is needed, like h1")
    return text


def parse_docker_host(text: str) -> str:
    """Return the path of the engine's unix socket. Raises ValueError."""
    path = text.removeprefix("unix://")
    if not path.startswith("/"):
        raise ValueError(
            "the engine is spoken to on its unix socket, like unix:///var/run/docker.sock"
        )
    return path


def parse_overcommit(text: str) -> float:
    """Return the share of a host that is given away beyond what it has. Raises ValueError."""
    with contextlib.suppress(ValueError):
        if -1 < float(text) <= 100:
            return float(text)
    raise ValueError("a share is needed, like 0.05 for 5 % more than a host has")


def parse_strategy(text: str) -> str:
    """Return how masters choose among hosts. Raises ValueError."""
    if text not in ("spread", "binpack", "random"):
        raise ValueError("say spread, binpack or random")
    return text


def parse_labels(text: str) -> Mapping[str, str]:
    """Return the labels of KEY=VALUE texts between commas. Raises ValueError."""
    labels = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = part.partition("=")
        if not separator or not re.fullmatch(LABEL_KEY, key):
            raise ValueError("labels are needed like zone=b,disk=ssd")
        labels[key] = value
    return MappingProxyType(labels)


def parse_level(text: str) -> str:
    """Return a level of the logging module. Raises ValueError."""
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("say debug, info, warning or error")
    return text.upper()


class Setting(NamedTuple):
    """One setting: its flag is --name with dashes."""

    name: str
    variable: str
    default: str
    parse: Callable[[str], Any]
    metavar: str  # "": the flag alone says yes
    roles: str  # who reads it
    help: str

    @property
    def flag(self) -> str:
        """Return the flag of the command line."""
        return "--" + self.name.replace("_", "-")


def setting(
    default: str, parse: Callable[[str], Any], metavar: str, roles: str, help: str, also: str = ""
) -> Any:
    """Return a field of Settings, which has the name of the setting.

    also: its variable, where that is not ARPANET_ and the name.
    """
    row = Setting("", also, default, parse, metavar, roles, help)
    return dataclasses.field(metadata={"row": row})


DAEMONS, ALL = "master slave", "master slave client"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one run; each field is a row of SETTINGS."""

    # fmt: off
    hostname: str = setting("", parse_hostname, "NAME", DAEMONS,
        "This host's name in arpanet (default: the machine's)", also="HOSTNAME")
    ip: str = setting("", parse_ip, "IP", DAEMONS,
        "This machine's address for the others (default: its one private address)")
    masters: tuple[str, ...] = setting("", parse_ips, "IP[,IP…]", ALL,
        "Addresses of some masters (default: the master on this machine, and those met before)")
    peers: tuple[str, ...] = setting("", parse_peers, "boot|IP[,IP…]", "master",
        "For master start: boot for the first master, else addresses of masters that are there")
    api_port: int = setting("8791", parse_port, "PORT", ALL,
        "Port of the Docker API on masters")
    agent_port: int = setting("8792", parse_port, "PORT", "slave",
        "Port of the agent on slaves")
    etcd_port: int = setting("2379", parse_port, "PORT", DAEMONS,
        "Port of etcd for clients, the same on all masters")
    etcd_peer_port: int = setting("2380", parse_port, "PORT", "master",
        "Port of etcd for its peers, the same on all masters")
    etcd_quota_mb: int = setting("2048", parse_megabytes, "MB", "master",
        "Megabytes that etcd may take on disk, the same on all masters")
    link_subnet: str = setting("198.18.0.0/16", parse_subnet, "NET", DAEMONS,
        "Network of the virtual addresses of links, the same on all machines")
    docker_host: str = setting("/var/run/docker.sock", parse_docker_host, "SOCKET", "slave",
        "Unix socket of this machine's Docker Engine", also="DOCKER_HOST")
    socket: str = setting("/run/arpanet/docker.sock", parse_text, "PATH", "client",
        "For client start: the unix socket to offer")
    auto_name: bool = setting("0", parse_flag, "0|1", "master",
        "Whether masters give a name to a container that has none")
    strategy: str = setting("spread", parse_strategy, "NAME", "master",
        "How masters choose among hosts: spread, binpack or random, the same on all masters")
    overcommit: float = setting("0.05", parse_overcommit, "SHARE", "master",
        "Share of CPUs and memory that is given away beyond what a host has")
    grace_s: float = setting("30", parse_seconds, "S", "master",
        "Seconds that a host is silent before ARPANET_RESCHEDULE makes its containers elsewhere")
    label: Mapping[str, str] = setting("", parse_labels, "KEY=VALUE[,…]", "slave",
        "Labels of this host, for constraints; the flag may be given several times")
    lease_s: float = setting("10", parse_seconds, "S", DAEMONS,
        "Seconds after which a silent host counts as down (10 or more)")
    max_connections: int = setting("10000", parse_count, "N", "master",
        "Connections of clients that a master holds; those beyond get 503")
    max_connections_per_ip: int = setting("5000", parse_count, "N", "master",
        "The same, from one address")
    max_requests: int = setting("2000", parse_count, "N", "master",
        "Requests that a master serves at once; those beyond get 503")
    head_s: float = setting("10", parse_seconds, "S", "master",
        "Seconds that a client has to send the head of a request")
    stall_s: float = setting("60", parse_seconds, "S", "master",
        "Seconds after which a body or an answer of JSON that stands still is given up")
    tls: bool = setting("0", parse_flag, "", ALL,
        "TLS on every port, and the Docker API for clients without a certificate too")
    tlsverify: bool = setting("0", parse_flag, "", ALL,
        "TLS on every port, and who calls shows a certificate; any path given here means it too",
        also="ARPANET_TLS_VERIFY")
    tlscacert: str = setting("", parse_path, "FILE", ALL,
        "Certificates of the authorities that are trusted (default: ca.pem of that directory)",
        also="ARPANET_TLS_CACERT")
    tlscert: str = setting("", parse_path, "FILE", ALL,
        "This machine's certificate, for all its ports (default: cert.pem of that directory)",
        also="ARPANET_TLS_CERT")
    tlskey: str = setting("", parse_path, "FILE", ALL,
        "The key of that certificate (default: key.pem of that directory)", also="ARPANET_TLS_KEY")
    cert_path: str = setting("", parse_path, "DIR", ALL,
        "Directory of ca.pem, cert.pem and key.pem (default with TLS: /etc/arpanet/tls)")
    state_dir: str = setting("/var/lib/arpanet", parse_text, "DIR", ALL,
        "Where the state of this machine is kept")
    run_dir: str = setting("/run/arpanet", parse_text, "DIR", ALL,
        "Where lock files and sockets are kept")
    log_dir: str = setting("/var/log/arpanet", parse_text, "DIR", ALL,
        "Where daemons write their logs")
    log_level: str = setting("info", parse_level, "LEVEL", ALL,
        "What is logged: debug, info, warning or error, and what is worse")
    # fmt: on


SETTINGS: tuple[Setting, ...] = tuple(
    row._replace(name=field.name, variable=row.variable or f"ARPANET_{field.name.upper()}")
    for field in dataclasses.fields(Settings)
    for row in [field.metadata["row"]]
)


def read_env_file(path: str = ENV_FILE) -> dict[str, str]:
    """Return a file's NAME=VALUE lines, {} when there is none. Raises Usage on any other line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise Usage(f"cannot read {path}: {e}") from e
    found = {}
    for number, raw in enumerate(lines, 1):
        line = raw.strip().removeprefix("export ")
        if line and not line.startswith("#"):
            name, separator, value = line.partition("=")
            if not separator:
                raise Usage(f"{path} line {number}: NAME=VALUE is needed, not {line!r}")
            found[name.strip()] = value.strip().strip("\"'")
    return found


def docker_tls(environment: Mapping[str, str]) -> dict[str, str]:
    """Return our variables for what Docker's own say of TLS, for where ours say nothing."""
    if not environment.get("DOCKER_TLS_VERIFY"):
        return {}
    usual = os.path.join(environment.get("HOME", "/root"), ".docker")
    path = environment.get("DOCKER_CERT_PATH") or usual
    return {"ARPANET_TLS_VERIFY": "1", "ARPANET_CERT_PATH": path}


def read_settings(
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    file: Mapping[str, str],
    machine_name: str,
    role: str,
) -> Settings:
    """Return the settings; flags holds texts by setting name, None where not given.

    What the role does not read keeps its default, whatever the environment says.
    Raises Usage that names the flag and the variable of the bad value.
    """
    values: dict[str, Any] = {}
    for row in SETTINGS:
        text = machine_name if row.name == "hostname" else row.default
        if role in row.roles:
            given = (flags.get(row.name), environment.get(row.variable), file.get(row.variable))
            text = next((g for g in given if g is not None), text)
        try:
            values[row.name] = row.parse(text)
        except ValueError as e:
            raise Usage(f"{row.flag} ({row.variable}) cannot be {text!r}: {e}") from e
    return Settings(**values)


def settings_table() -> str:
    """Return the README's table of settings."""
    rows = [
        f"| `{s.flag}` | `{s.variable}` | {f'`{s.default}`' if s.default else ''} | {s.help} |"
        for s in SETTINGS
    ]
    head = ["| flag | variable | default | what it sets |", "|---|---|---|---|"]
    return "\n".join(head + rows)


def local_addresses() -> dict[str, str]:
    """Return the IPv4 address of each interface of this machine. Source: ioctl SIOCGIFADDR."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, interface in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(
                    probe.fileno(), 0x8915, struct.pack("256s", interface.encode()[:15])
                )
            except OSError:
                continue  # an interface without an address
            found[interface] = socket.inet_ntoa(answer[20:24])
    return found


def is_local_ip(ip: str) -> bool:
    """Return whether this machine can listen at an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def choose_ip(wanted: str, interfaces: Mapping[str, str]) -> str:
    """Return ARPANET_IP: the wanted one if it is this machine's, else its one private address.

    Raises Usage that lists the candidates.
    """
    mine = [
        address
        for name, address in interfaces.items()
        if name != "lo" and not re.match(r"docker\d|br-[0-9a-f]{12}$|veth|virbr", name)
    ]
    if wanted:
        if wanted in interfaces.values() or is_local_ip(wanted):
            return wanted
        raise Usage(
            f"--ip (ARPANET_IP) {wanted} is not an address of this machine; "
            f"it has: {', '.join(mine) or 'none'}"
        )
    private = [a for a in mine if any(ipaddress.ip_address(a) in n for n in PRIVATE_NETWORKS)]
    if len(private) == 1:
        return private[0]
    raise Usage(
        f"this machine has {'several' if private else 'no'} private addresses; say which address "
        f"the others reach it at: ARPANET_IP=IP "
        f"(candidates: {', '.join(private or mine) or 'none; 127.0.0.1 for one machine alone'})"
    )


# ==== Helpers ================================================================
# Threads, waiting, addresses, and HTTP over any stream. Nothing here knows what
# a container is.

BLOCK_BYTES = 64 * 1024
BULK_BYTES = 256 * 1024  # at most at a time, of a stream that is passed on
HEAD_LIMIT_BYTES = 1024 * 1024


class HostPort(NamedTuple):
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Value = TypeVar("Value")
Address = HostPort | tuple[str, int] | str  # a str is the path of a unix socket


Thread = threading.Thread  # noqa: TID251 (for annotations; spawn() alone starts one)


def spawn(name: str, run: Callable[[], None], stop: threading.Event | None = None) -> Thread:
    """Start and return a named thread; its death by an exception is logged, and sets stop."""

    def guarded() -> None:
        try:
            run()
        except Exception:
            log.exception("thread %s ended by a fault", name)
            if stop is not None:
                stop.set()

    thread = Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread


class Backoff:
    """Growing pauses with jitter between tries; reset() after a success."""

    def __init__(self, first_s: float = 0.2, most_s: float = 5.0) -> None:
        self.first_s, self.most_s = first_s, most_s
        self._next_s = first_s

    def reset(self) -> None:
        self._next_s = self.first_s

    def wait(self, stop: threading.Event) -> bool:
        """Return True if stop was set; else after the pause."""
        pause_s = self._next_s * random.uniform(0.7, 1.3)
        self._next_s = min(self._next_s * 2, self.most_s)
        return stop.wait(pause_s)


def utc_now() -> datetime.datetime:
    """Return the wall clock; for ages that people see, and for what nobody saw happen."""
    return datetime.datetime.now(datetime.timezone.utc)


def dump_json(value: Any) -> bytes:
    """Return compact JSON with sorted keys: equal values are equal bytes."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def dump_plain(value: Any) -> bytes:
    """Return compact JSON with the keys in their own order, as an engine's answers have them."""
    return json.dumps(value, separators=(",", ":")).encode()


def load_object(text: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object. Raises BadRequest that says what is malformed."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair fits no UTF-8
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"{what} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object")
    return value


def raise_descriptors() -> int:
    """Return how many files this process may have open, which is as many as it may allow itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def tune_socket(sock: socket.socket) -> None:
    """Send small messages at once, and notice a dead far end after about half a minute."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)


def keep_alive(sock: socket.socket) -> None:
    """Notice a dead far end after about half a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def dial(address: Address, timeout_s: float = 5.0) -> socket.socket:
    """Return a connected socket, without a timeout from then on. Raises OSError."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        sock.settimeout(None)
        tune_socket(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def send_request(
    sock: socket.socket,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]],
    body: bytes = b"",
) -> None:
    """Write an HTTP/1.1 request. Raises OSError, BadRequest on characters no head can hold."""
    lines = [f"{method} {target} HTTP/1.1", "Host: docker"] + [f"{n}: {v}" for n, v in headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise BadRequest("a request head cannot hold line breaks")
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)


def read_response(sock: socket.socket, method: str) -> http.client.HTTPResponse:
    """Return the response once its head is there. Raises OSError."""
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
    except http.client.RemoteDisconnected as e:
        response.close()
        raise OSError("the connection was closed without an answer") from e
    except (http.client.HTTPException, ValueError) as e:
        response.close()
        raise OSError(f"the answer is not HTTP: {str(e).strip()[:80]!r}") from e
    except OSError:
        response.close()
        raise
    return response


class Headers:
    """The fields of a request's head, in order; names in any case."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._fields = tuple(fields)
        self._values: dict[str, list[str]] = {}  # by name in lower case
        for name, value in self._fields:
            self._values.setdefault(name.lower(), []).append(value)

    def items(self) -> tuple[tuple[str, str], ...]:
        return self._fields

    def get_all(self, name: str) -> list[str]:
        """Return the values of a field, in order."""
        return self._values.get(name.lower(), [])

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of a field."""
        return self._values.get(name.lower(), [default])[0]


class Head(NamedTuple):
    """The head of a request."""

    method: str
    target: str
    minor: int  # of HTTP/1.minor
    headers: Headers


HEAD_END = re.compile(rb"\r?\n\r?\n")
HEAD_LINES = 100
TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rf"({TOKEN}) ([^\x00-\x20\x7f]+) HTTP/1\.([01])")
FIELD_LINE = re.compile(rf"({TOKEN}):[ \t]*([^\x00\r\n]*?)[ \t]*")


def parse_head(head: bytes) -> Head:
    """Return a request's head, given without its empty last line.

    Raises BadRequest, HeadTooLarge. Source: RFC 9112, 3 and 5; a line may end in a bare LF, and
    what can be read in two ways (a folded line, a space before the colon) is refused.
    """
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    if len(rest) > HEAD_LINES:
        raise HeadTooLarge(f"the head of a request has at most {HEAD_LINES} lines")
    line = REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequest(f"a request begins like GET /_ping HTTP/1.1, not like {first[:100]!r}")
    fields = []
    for number, text in enumerate(rest, 2):
        field = FIELD_LINE.fullmatch(text)
        if field is None:
            raise BadRequest(f"line {number} of a head is not like Name: value")  # may be secret
        fields.append((field[1], field[2]))
    return Head(line[1], line[2], int(line[3]), Headers(fields))


KNOWN_HEAD_BYTES = 2048
SECRET_FIELD = re.compile(rb"\n(X-Registry-|Authorization:|Cookie:)", re.IGNORECASE)
parse_known_head = functools.lru_cache(maxsize=256)(parse_head)  # clients repeat themselves


def read_head(head: bytes) -> Head:
    """Return what parse_head() does; only heads of GET without credentials are kept in memory."""
    known = len(head) <= KNOWN_HEAD_BYTES and head.startswith(b"GET ")
    return (parse_known_head if known and not SECRET_FIELD.search(head) else parse_head)(head)


class Ahead(io.RawIOBase):
    """What a socket sends, after what was read from it before."""

    def __init__(self, sock: socket.socket, early: bytes) -> None:
        self._sock, self._early = sock, early

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Fill a buffer. Raises OSError; None: the socket does not block and nothing is there."""
        if self._early:
            size = min(len(buffer), len(self._early))
            buffer[:size], self._early = self._early[:size], self._early[size:]
            return size
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            return None


@functools.lru_cache(maxsize=4)
def http_date(second: int) -> str:
    """Return an instant of the wall clock as a head's Date has it."""
    return email.utils.formatdate(second, usegmt=True)


def buffered_bytes(reader: Any) -> bytes:
    """Return and consume what a buffered reader has read ahead, without waiting for more.

    reader: a BufferedReader over a non-blocking socket.
    """
    ahead = reader.peek()
    return bytes(reader.read1(len(ahead))) if ahead else b""


class Recent(Generic[Value]):
    """A map that forgets its oldest rows; safe for threads."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._rows: dict[str, Value] = {}
        self._lock = threading.Lock()  # guards _rows

    def put(self, key: str, value: Value) -> None:
        with self._lock:
            self._rows.pop(key, None)
            self._rows[key] = value
            while len(self._rows) > self._most:
                del self._rows[next(iter(self._rows))]

    def get(self, key: str) -> Value | None:
        with self._lock:
            return self._rows.get(key)

    def pop(self, key: str) -> Value | None:
        with self._lock:
            return self._rows.pop(key, None)

    def values(self) -> list[Value]:
        with self._lock:
            return [*self._rows.values()]


def take_all(waiting: queue.SimpleQueue[Value], timeout_s: float) -> list[Value]:
    """Return what waits in a queue, or what comes first; nothing after the time."""
    taken: list[Value] = []
    with contextlib.suppress(queue.Empty):
        taken.append(waiting.get(timeout=timeout_s))
        while True:
            taken.append(waiting.get_nowait())
    return taken


CHUNK_LINE = rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n"
CHUNK_HEAD, NEXT_CHUNK_HEAD = re.compile(CHUNK_LINE), re.compile(rb"\r\n" + CHUNK_LINE)
TRAILER = re.compile(rb"[^\r\n]*\r\n")
CHUNK_HEAD_BYTES = 4096


class Body:
    """The body of a request that is being read: by length, or in chunks.

    on_stream: is called before blocks() are read, which may pause for as long as they like.
    Raises BadRequest on framing that is malformed, or that some server reads in another way: a
    chunk's line that ends in a bare LF, say. Source: RFC 9112, 6 and 7; CVE-2025-22871.
    """

    def __init__(
        self, reader: Any, headers: Headers, on_stream: Callable[[], None] = lambda: None
    ) -> None:
        self._reader, self._on_stream = reader, on_stream
        self.chunked = bool(headers.get_all("Transfer-Encoding"))
        lengths = headers.get_all("Content-Length")
        if self.chunked:
            codings = ",".join(headers.get_all("Transfer-Encoding")).lower()
            if codings != "chunked" or lengths:
                raise BadRequest("a body is either chunked or has one Content-Length")
        if len(set(lengths)) > 1 or any(not re.fullmatch("[0-9]{1,18}", x) for x in lengths):
            raise BadRequest(f"Content-Length cannot be {', '.join(lengths)!r}")
        self.length = int(lengths[0]) if lengths else 0
        self.finished = not self.chunked and self.length == 0
        self.idle = threading.Event()  # cleared while somebody reads: there can be but one
        self.idle.set()

    def blocks(self) -> Iterator[bytes]:
        """Return the body as it comes; blocks. Raises BadRequest when it ends early."""
        return self._stream(self._plain_blocks())

    def frames(self) -> Iterator[bytes]:
        """Return the body as it is on the wire, chunks with their framing. Else as blocks()."""
        return self._stream(self._framed_blocks() if self.chunked else self._plain_blocks())

    def _stream(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        self._on_stream()
        self.idle.clear()
        return self._read_all(blocks)

    def _read_all(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from blocks
            self.finished = True
        except (OSError, ValueError) as e:  # ValueError: the file was closed
            raise BadRequest(f"the body broke off: {e}") from e
        finally:
            self.idle.set()

    def read(self, limit_bytes: int = 16 * 1024 * 1024) -> bytes:
        """Return the whole body. Raises BadRequest when it passes the limit or ends early."""
        found: list[bytes] = []
        size = 0
        for block in self._read_all(self._plain_blocks()) if not self.finished else ():
            size += len(block)
            if size > limit_bytes:
                raise BadRequest(f"the body is longer than {limit_bytes} bytes")
            found.append(block)
        return b"".join(found)

    def _plain_blocks(self) -> Iterator[bytes]:
        return self._chunked_blocks() if self.chunked else self._counted_blocks(self.length)

    def _framed_blocks(self) -> Iterator[bytes]:
        scanner = ChunkScanner()
        while not scanner.finished:
            ahead = self._reader.peek()  # what follows the body is the next request's
            if not ahead:
                raise BadRequest("the chunked body ended early")
            yield self._reader.read(scanner.feed(ahead))

    def _counted_blocks(self, length: int) -> Iterator[bytes]:
        left = length
        while left:
            block = self._reader.read1(min(left, BULK_BYTES))
            if not block:
                raise BadRequest(f"the body ended after {length - left} of {length} bytes")
            left -= len(block)
            yield block

    def _chunked_blocks(self) -> Iterator[bytes]:
        while True:
            head = CHUNK_HEAD.fullmatch(self._reader.readline(CHUNK_HEAD_BYTES))
            if head is None:
                raise BadRequest("the chunked body is malformed or ended early")
            size = int(head[1], 16)
            if size == 0:
                break
            yield from self._counted_blocks(size)
            if self._reader.readline(3) != b"\r\n":
                raise BadRequest("the chunked body is malformed")
        for _ in range(HEAD_LINES):  # trailers
            line = self._reader.readline(BLOCK_BYTES)
            if line == b"\r\n":
                return
            if not line.endswith(b"\r\n"):
                raise BadRequest("the trailers of a chunked body are malformed")
        raise BadRequest(f"a chunked body has at most {HEAD_LINES} lines of trailers")


class ChunkScanner:
    """Finds the end of a chunked body that is passed on as it is, framing and all."""

    def __init__(self) -> None:
        self.finished = False
        self._line = CHUNK_HEAD  # what comes after the bytes to skip
        self._skip = 0  # bytes of the chunk that are to come
        self._partial = b""  # a line whose end is to come

    def feed(self, block: bytes) -> int:
        """Return how many of the next bytes are the body's: all, but at its end.

        Raises ValueError when they are malformed.
        """
        known = len(self._partial)
        if known:
            block, self._partial = self._partial + block, b""
        position, end = self._skip, len(block)
        while position < end and not self.finished:
            line = self._line.match(block, position)
            if line is None:
                self._keep(block[position:])
                position = end
            elif self._line is TRAILER:
                self.finished, position = line[0] == b"\r\n", line.end()
            else:
                size = int(line[1], 16)
                self._line = NEXT_CHUNK_HEAD if size else TRAILER
                position = line.end() + size
        self._skip = max(position - end, 0)
        return min(position, end) - known

    def _keep(self, rest: bytes) -> None:
        """Take a line that is not whole, if it can become one."""
        begins = 2 if self._line is NEXT_CHUNK_HEAD else 0
        ends = b"\n" in rest[begins:] or len(rest) > CHUNK_HEAD_BYTES
        if ends or not b"\r\n"[:begins].startswith(rest[:begins]):
            raise ValueError("malformed chunk")
        self._partial = rest


def in_chunks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Return a chunked body of these blocks, none of which is empty."""
    for block in blocks:
        yield b"%x\r\n%s\r\n" % (len(block), block)
    yield b"0\r\n\r\n"


def write_file(path: str, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, safe on disk when this returns. Raises OSError."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.new"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def open_log_file(path: str) -> int:
    """Return the descriptor of a log, made where there is none. Raises OSError."""
    os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def read_file(path: str) -> bytes:
    """Return a file's content, b"" when there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn what a disk refuses, because it is full say, into Unavailable."""
    try:
        yield
    except OSError as e:
        raise Unavailable(f"cannot write {e.filename or path}: {e.strerror}") from e


GATHER_THREADS = 64  # of one gather() at most


def gather(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return each call's result, or the ArpanetError or OSError it raised.

    GATHER_THREADS of them run at once; as soon as one is over the next begins.
    """
    results: dict[str, Any] = {}
    room = threading.Semaphore(GATHER_THREADS)

    def run(name: str, call: Callable[[], Any]) -> None:
        try:
            results[name] = call()
        except (ArpanetError, OSError) as e:
            results[name] = e
        finally:
            room.release()

    threads = []
    for name, call in calls.items():
        room.acquire()
        threads.append(spawn(f"ask-{name}", functools.partial(run, name, call)))
    for thread in threads:
        thread.join()
    return {name: results.get(name, Unavailable("no answer")) for name in calls}


# ---- the certificate of a process, and TLS with it

TLS_DIR = "/etc/arpanet/tls"
MACHINE = "arpanet"  # the name in a certificate that makes it a machine's
CLIENTS_CA = "clients-ca.pem"  # beside ca.pem: who signs certificates that open the API alone


class PeerCertificate(NamedTuple):
    """What a certificate says of who shows it."""

    names: tuple[str, ...]
    ips: tuple[str, ...]
    machine: bool  # of a host of this arpanet, not merely of one of its users
    common_name: str = ""  # for people


def read_peer(cert: Mapping[str, Any] | None) -> PeerCertificate:
    """Return what SSLSocket.getpeercert() has; without a certificate it is nobody's."""
    found = (cert or {}).get("subjectAltName", ())
    names = tuple(value for kind, value in found if kind == "DNS")
    ips = tuple(value for kind, value in found if kind == "IP Address")
    subject = dict(pair for pairs in (cert or {}).get("subject", ()) for pair in pairs)
    return PeerCertificate(names, ips, MACHINE in names, subject.get("commonName", ""))


class CertificateFiles(NamedTuple):
    """The authorities that are trusted, a certificate and its key: their paths, or their PEM."""

    ca: Any
    cert: Any
    key: Any


class Credentials(NamedTuple):
    """What was made of the files of a certificate."""

    pem: CertificateFiles
    server: ssl.SSLContext
    guests: ssl.SSLContext
    client: ssl.SSLContext
    grpc: ssl.SSLContext


def make_context(
    paths: CertificateFiles, server: bool, trusting: bool = False, also: str = ""
) -> ssl.SSLContext:
    """Return a context that demands a certificate of the other side, unless it is trusting.

    also: the path of more authorities that are trusted, where it exists.
    Raises ValueError. There are no tickets: what has expired is not to be resumed.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    # which some Pythons set: what breaks off would be taken for what has ended
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    if server:
        context.num_tickets = 0
    context.check_hostname = not (server or trusting)
    context.verify_mode = ssl.CERT_NONE if trusting else ssl.CERT_REQUIRED
    for path in () if trusting else (paths.ca, *([also] if os.path.exists(also) else [])):
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as e:
            raise ValueError(f"{path} holds no certificates") from e
    try:
        if not trusting or os.path.exists(paths.cert):
            context.load_cert_chain(paths.cert, paths.key, password=b"")
    except ssl.SSLError as e:
        pair = f"{paths.cert} and {paths.key}"
        raise ValueError(f"{pair} are not a certificate and its key, without a password") from e
    return context


class Identity:
    """The certificate of this process; when its files were renewed it is made anew.

    guests: the Docker API takes clients without a certificate, too.
    trusting: whoever answers is believed. Thread: any. Raises Usage on files that will not do.
    """

    def __init__(
        self, paths: CertificateFiles, guests: bool = False, trusting: bool = False
    ) -> None:
        self.paths = paths
        self.fault = ""  # why the files as they are now are not used
        self._clients_ca = os.path.join(os.path.dirname(paths.ca), CLIENTS_CA)
        self._guests, self._trusting = guests, trusting
        self._reading = threading.Lock()  # held by whoever reads renewed files; no one waits
        self._stamp = self._seen = self._look()
        try:
            self._credentials = self._load(self._seen)
        except PermissionError as e:
            own = "where your own are: ARPANET_CERT_PATH=DIR"
            raise Usage(f"cannot read {e.filename}; use sudo, or say {own}") from e
        except (OSError, ValueError) as e:
            raise Usage(f"cannot use the certificate for TLS: {e}") from e

    def server_context(self, guests: bool = False) -> ssl.SSLContext:
        """Return the context of a port; guests: of the Docker API's, which clients use too."""
        now = self._refresh()
        return now.guests if guests else now.server

    def client_context(self, grpc: bool = False) -> ssl.SSLContext:
        """Return the context to dial with; server_hostname is to be the address dialled.

        grpc: to speak it there.
        """
        now = self._refresh()
        return now.grpc if grpc else now.client

    def read(self) -> CertificateFiles:
        """Return the PEM of authorities, certificate and key, which fit together."""
        return self._refresh().pem

    def stamp(self) -> tuple[Any, ...]:
        """Return what is another one when the files were renewed."""
        self._refresh()
        return self._stamp

    def show(self, host: str) -> dict[str, Any]:
        """Return this certificate as it is seen by itself. Raises OSError where it is refused.

        host: what it must be for.
        """
        import ssl

        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        now = self._refresh()
        client = now.client.wrap_bio(to_client, to_server, server_hostname=host)
        server = now.server.wrap_bio(to_server, to_client, server_side=True)
        for end in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        return client.getpeercert() or {}

    def _look(self) -> tuple[Any, ...]:
        found: list[Any] = []
        for path in (*self.paths, self._clients_ca):
            try:
                status = os.stat(path)
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError as e:
                found.append(e.errno)
        return tuple(found)

    def _refresh(self) -> Credentials:
        if self._look() != self._seen and self._reading.acquire(blocking=False):
            try:
                self._read_renewed()
            finally:
                self._reading.release()
        return self._credentials

    def _read_renewed(self) -> None:
        self._seen = seen = self._look()
        try:
            self._credentials, self._stamp, self.fault = self._load(seen), seen, ""
            log.info("took the renewed certificate of %s", self.paths.cert)
        except (OSError, ValueError) as e:
            self.fault = str(e)
            log.warning("kept the certificate of before: %s", e)

    def _load(self, seen: tuple[Any, ...]) -> Credentials:
        """Raises OSError and ValueError on files that are not there, broken or half renewed."""
        import ssl

        pem = CertificateFiles(*(read_file(path) for path in self.paths))
        empty = [path for path, content in zip(self.paths, pem, strict=True) if not content]
        if empty and not self._trusting:
            raise ValueError(f"{empty[0]} is missing or empty")
        client, grpc = (make_context(self.paths, False, self._trusting) for _ in range(2))
        grpc.set_alpn_protocols(["h2"])
        if self._trusting:
            return Credentials(pem, client, client, client, grpc)
        server = make_context(self.paths, True)
        guests = make_context(self.paths, True, also=self._clients_ca)
        if self._guests:
            guests.verify_mode = ssl.CERT_OPTIONAL
        if self._look() != seen:
            raise ValueError(f"{self.paths.cert} is being renewed")
        return Credentials(pem, server, guests, client, grpc)


class Own:
    """What there is one of in a process; main() sets it before any thread starts."""

    identity: Identity | None = None


def use_identity(identity: Identity | None) -> None:
    """Speak TLS with this certificate from now on, on every port; None: in the clear."""
    Own.identity = identity


def identity() -> Identity | None:
    """Return the certificate of this process; None: it speaks in the clear."""
    return Own.identity


def identity_stamp() -> tuple[Any, ...]:
    """Return what is another one when the certificate of this process was renewed."""
    own = identity()
    return own.stamp() if own else ()


def find_tls_reason(error: OSError) -> str:
    """Return why TLS failed, in a few words, "" where it is not TLS that did."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if not isinstance(error, ssl.SSLError):
        return ""
    reason = error.reason or str(error)
    own = identity()
    if "ALERT" in reason:
        mine = f"this machine's certificate{f', {own.paths.cert}' if own else ''}"
        what = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"it refuses {mine}: {what}; try: arpanet doctor"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it has no certificate"
    ended = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    if ended or error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return TLS_BROKEN
    return f"it does not speak TLS ({reason.lower()})"


def make_identity(settings: Settings, role: str) -> Identity | None:
    """Return the certificate that the settings name, None for none. Raises Usage if it is no good.

    Source: docker's --tls alone verifies nobody; here machines verify each other all the same.
    """
    named = (settings.tlscacert, settings.tlscert, settings.tlskey)
    if not (settings.tls or settings.tlsverify or settings.cert_path or any(named)):
        return None
    directory = settings.cert_path or TLS_DIR
    usual = (os.path.join(directory, name) for name in ("ca.pem", "cert.pem", "key.pem"))
    paths = CertificateFiles(*(n or u for n, u in zip(named, usual, strict=True)))
    alone = settings.tls and not settings.tlsverify
    return Identity(paths, guests=alone, trusting=alone and role not in ("master", "slave"))


class TlsSocket(socket.socket):
    """A connected socket that speaks TLS, and else behaves like any other, blocking or not.

    The end of what the other side says is its close_notify; without one it is a break, an OSError.
    The library works on memory and never waits; what the socket has not taken yet is in unsent.
    Thread: one at a time. Source: SSLSocket cannot end one direction, as its unwrap() loses what
    is unread, and it reads each record with two calls of the system.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str = "") -> None:
        """Take over a plain socket; host: that was dialled, "" for the side that accepted."""
        import ssl

        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, not host, host or None)
        self._hungry, self._fault = ssl.SSLWantReadError, ssl.SSLError
        timeout_s = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.settimeout(timeout_s)
        self.unsent = b""
        self.heard = False  # a byte from the other side
        self._ahead = b""  # that was decrypted before anybody asked
        self.ended = self._told = False  # the other side has said its last; we have

    def handshake(self) -> None:
        """Agree. Raises BlockingIOError while the other side has to speak, OSError if it fails."""
        try:
            while not self._agree():
                self._feed()
        except (ConnectionResetError, BrokenPipeError) as e:
            raise ConnectionError(TLS_BROKEN) from e

    def require_machine(self, name: str = "") -> None:
        """Raise OSError unless the certificate of the other side is a machine's, of that name.

        The address was looked at already; who trusts anybody sees no certificate.
        """
        if self._tls.context.verify_mode:
            peer = self.read_peer()
            if not peer.machine or (name and name not in peer.names):
                whose = f"{name}'s" if name else "a machine's"
                raise ConnectionError(f"its certificate ({peer.common_name}) is not {whose}")

    def read_peer(self) -> PeerCertificate:
        """Return what the certificate of the other side says."""
        return read_peer(self._tls.getpeercert())

    def send(self, data: Any, flags: int = 0) -> int:
        """Take all of the data; raises BlockingIOError while what was taken before is unsent."""
        if self.unsent:
            self.flush()
            if self.unsent:
                raise BlockingIOError
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        self.flush(flags)
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send, block by block."""
        view = memoryview(data)
        for start in range(0, len(view), BLOCK_BYTES):
            self.send(view[start : start + BLOCK_BYTES], flags)

    def flush(self, flags: int = 0) -> None:
        """Send what the socket takes."""
        if self._out.pending:
            self.unsent += self._out.read()
        while self.unsent:
            try:
                sent = super().send(self.unsent, flags)
            except BlockingIOError:
                return
            except ConnectionError:
                self._hear_why()
                raise
            self.unsent = self.unsent[sent:]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Fill the buffer with what is there; if it is not full, then nothing more was there.

        One of BLOCK_BYTES is never filled: what epoll cannot tell of is all in it.
        """
        del flags
        view = memoryview(buffer)[: nbytes or None]
        got = min(len(self._ahead), len(view))
        view[:got], self._ahead = self._ahead[:got], self._ahead[got:]
        while got < len(view) and not self.ended:
            if not (self._in.pending or self._tls.pending()):
                if got:
                    break
                self._feed()
            got += self._decrypt(view[got:])
        return got

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Return what is there."""
        buffer = bytearray(bufsize)
        return bytes(buffer[: self.recv_into(buffer, bufsize, flags)])

    def shutdown(self, how: int) -> None:
        """End what we say by a close_notify; raises BlockingIOError until it is out: call again."""
        if not self._told:
            self._told = True
            self._say_end()
        self.flush()
        if self.unsent:
            raise BlockingIOError
        super().shutdown(how)

    def _agree(self) -> bool:
        """Return whether all is agreed on with what is there."""
        agreed = True
        try:
            self._tls.do_handshake()
        except self._hungry:
            agreed = False
        except self._fault as e:
            with contextlib.suppress(OSError):  # it may be gone: the alert that tells it why
                self.flush()
            raise ConnectionError(find_tls_reason(e)) from e
        self.flush()
        return agreed

    def _feed(self) -> None:
        part = super().recv(TLS_PART_BYTES)
        if part:
            self.heard = True
            self._in.write(part)
        else:
            self._in.write_eof()

    def _hear_why(self) -> None:
        """Raise ConnectionError with what was said by who broke off, if anything."""
        with contextlib.suppress(OSError):  # that was all
            while part := super().recv(TLS_PART_BYTES, socket.MSG_DONTWAIT):
                self._in.write(part)
        try:
            self._tls.read(1)
        except self._fault as e:
            if "ALERT" in (e.reason or ""):
                raise ConnectionError(find_tls_reason(e)) from e

    def _decrypt(self, view: memoryview) -> int:
        size: Any = 0
        try:
            size = self._tls.read(len(view), view)
        except self._hungry:
            return 0
        except self._fault as e:
            if e.args[0] != TLS_ENDED:
                raise ConnectionError(find_tls_reason(e)) from e
        finally:
            self.flush()  # new keys are answered
        self.ended = not size
        return int(size)

    def _say_end(self) -> None:
        """Write the close_notify; what is unread is kept from the library, which would drop it."""
        while size := self._tls.pending():
            self._ahead += self._tls.read(size)
        unread = self._in.read()
        with contextlib.suppress(self._fault):  # it waits for the other side's; or all is broken
            self._tls.unwrap()
        if unread:
            self._in.write(unread)


TLS_PART_BYTES = BLOCK_BYTES - 17 * 1024  # after the begin of a record, which has 16 KiB and a bit
TLS_ENDED = 6  # SSL_ERROR_ZERO_RETURN
TLS_BROKEN = "it ended TLS without a word; it may refuse this machine's certificate"


MEMBER_S = 5.0  # to reach a member of this arpanet


def limit_waits(sock: socket.socket, wait_s: float) -> None:
    """Have each call on a blocking socket end by BlockingIOError after wait_s; 0: never.

    The kernel looks after it: with a timeout of Python's own there is a poll before each call.
    """
    if isinstance(sock, TlsSocket):
        sock.settimeout(wait_s or None)
        return
    second, fraction = divmod(wait_s, 1)
    limit = struct.pack("ll", int(second), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def dial_member(
    address: Address, timeout_s: float = MEMBER_S, name: str = "", *, grpc: bool = False
) -> socket.socket:
    """Return a connection to a member of this arpanet, or with a path to this machine's engine.

    With a certificate of ours it is a TlsSocket, and the other one has shown that of a machine,
    of that HOSTNAME where one is given. It has no timeout from then on. grpc: to speak it there.
    Raises OSError.
    """
    sock, own = dial(address, timeout_s), identity()
    if own is None or isinstance(address, str):
        return sock
    try:
        sock.settimeout(timeout_s)
        sock = tls = TlsSocket(sock, own.client_context(grpc), address[0])
        tls.handshake()
        tls.require_machine(name)
        tls.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return tls


@contextlib.contextmanager
def http_answer(
    address: Address,
    method: str,
    path: str,
    timeout_s: float | None,
    body: Any = None,
    name: str = "",
) -> Iterator[http.client.HTTPResponse]:
    """Give the answer of a member of this arpanet, its head read. Raises OSError.

    body: None for none, else it goes as JSON. name: the HOSTNAME of who is to answer, where it
    is known.
    """
    payload = b"" if body is None else dump_json(body)
    headers = [("Connection", "close"), ("Content-Length", str(len(payload)))]
    reach_s = min(timeout_s or MEMBER_S, MEMBER_S)
    with contextlib.closing(dial_member(address, reach_s, name)) as sock:
        sock.settimeout(timeout_s)
        send_request(sock, method, path, headers, payload)
        with contextlib.closing(read_response(sock, method)) as response:
            yield response


def http_json(address: Address, method: str, path: str, timeout_s: float, name: str = "") -> Any:
    """Return the JSON that a server of ours answers. Raises OSError, EngineError with its words.

    name: the HOSTNAME of who is to answer, where it is known.
    """
    with http_answer(address, method, path, timeout_s, name=name) as response:
        text = b""
        try:
            text = response.read()
            answer = json.loads(text or b"null")
        except (http.client.HTTPException, ValueError, RecursionError) as e:
            said = ascii(text[:100].decode("latin-1")) if text else repr(e)
            raise OSError(f"{address} does not speak arpanet: {said}") from e
        if response.status >= 400:
            message = answer.get("message", "") if isinstance(answer, dict) else ""
            raise EngineError(response.status, message or f"status {response.status}")
    return answer


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection within this machine; unlike a socketpair() it can be reset.

    The second one has PAIR_IP for its peer. Raises OSError.
    """
    with socket.create_server((PAIR_IP, 0)) as listener:
        dialled = dial(listener.getsockname())
        try:
            while True:
                accepted, peer = listener.accept()
                if peer == dialled.getsockname():
                    tune_socket(accepted)
                    return accepted, dialled
                accepted.close()  # who else has found the port
        except BaseException:
            dialled.close()
            raise


PAIR_IP = "127.1.0.1"  # of no member


# ==== Model ==================================================================
# What is known, as values that are never changed, and every decision about it.
# No I/O, no clock, no lock: most tests need nothing but this section.
# All keys of the mesh sit under PREFIX and hold JSON.

PREFIX = "/arpanet/"
LABEL_LINKS = "arpanet.links"
LABEL_VOLUMES = "arpanet.volumes"
LABEL_PLACED = "arpanet.placed"
LABEL_MADE = "arpanet.made-again"
NEWEST_API = (1, 51)
NAME_RULE = "[a-zA-Z0-9][a-zA-Z0-9_.-]"


class Host(NamedTuple):
    """One Docker host, as its slave registered it (hosts/NAME)."""

    name: str
    ip: str
    agent_port: int
    machine: str
    version: str
    engine: Mapping[str, Any]  # facts that its slave wrote, see engine_facts()
    labels: Mapping[str, str] = MappingProxyType({})  # as its slave was told
    declares: bool = True  # what its containers declared has rows: its slave has seen to it

    @property
    def agent(self) -> HostPort:
        return HostPort(self.ip, self.agent_port)


class Order(NamedTuple):
    """What people said of a host (orders/NAME); its slave does not know of it."""

    state: str = ""  # "cordoned", "drained"
    labels: Mapping[str, str | None] = MappingProxyType({})  # None: the host's own does not count


class MasterInfo(NamedTuple):
    """One living master (masters/NAME)."""

    name: str
    ip: str
    api_port: int
    version: str


class VolumePin(NamedTuple):
    """The host of a volume (volumes/NAME); settled once a container that uses it is made."""

    host: str
    settled: bool


class ImageEntry(NamedTuple):
    """The image that a name means on all hosts (images/NAME); each write has a token of its own."""

    id: str
    token: str
    given: str = ""  # when, by the clock of who wrote it


def image_row(entry: ImageEntry) -> bytes:
    """Return the row of what an image's name means; older ones have no "given"."""
    return dump_json({key: value for key, value in entry._asdict().items() if value})


def new_meaning(image_id: str) -> bytes:
    """Return the row of a name that is given to an image now."""
    return image_row(ImageEntry(image_id, secrets.token_hex(8), utc_now().isoformat()))


class Needs(NamedTuple):
    """What a container takes of its host; 0 where it said nothing."""

    memory_bytes: int = 0
    nano_cpus: int = 0  # thousand millions are one CPU
    bindings: tuple[str, ...] = ()  # host ports: "8080/tcp", "10.0.0.1:8080/tcp"


NOTHING = Needs()


class NameEntry(NamedTuple):
    """Who holds a container name (names/NAME); the id is "" until the engine has made it."""

    host: str
    id: str
    needs: Needs = NOTHING
    revision: int = 0  # at which it was claimed


class Recipe(NamedTuple):
    """What a container was made of that may be made again elsewhere (recipes/ID)."""

    host: str
    query: str
    body: Mapping[str, Any]


class Chore(NamedTuple):
    """What the slave of a host does when a move is over, unless its last step changed this row.

    chores/HOST/ID: with a container; chores/HOST/TOKEN: with all that this move has made there.
    """

    name: str
    token: str  # of the move
    verb: str  # "remove" or "start"
    volumes: tuple[str, ...] = ()  # that go with the container


STANDARD_NETWORKS = ("bridge", "host", "none")


class NetworkEntry(NamedTuple):
    """A network that was made through arpanet (networks/NAME)."""

    id: str  # in all answers, whatever the engine of each host calls it
    create: Mapping[str, Any]  # what each engine is asked to make


def network_id(name: str, made: str = "") -> str:
    """Return the id of a network that all hosts have, by its name and what tells its making."""
    return hashlib.sha256(f"{name} {made}".encode()).hexdigest()


STANDARD_IDS = MappingProxyType({name: network_id(name) for name in STANDARD_NETWORKS})


def shared_ids(networks: Mapping[str, NetworkEntry]) -> Mapping[str, str]:
    """Return the id of each network that all hosts have, by its name."""
    return {**STANDARD_IDS, **{name: entry.id for name, entry in networks.items()}}


class Cargo(NamedTuple):
    """A volume that goes along with its container, and where it is mounted."""

    name: str
    path: str
    labels: Mapping[str, str] = MappingProxyType({})


class Link(NamedTuple):
    """A link that a container declared: what it calls alias is container target, at address vip."""

    target: str
    alias: str
    vip: str


class Declared(NamedTuple):
    """What was asked of arpanet for a container when it was made (declared/ID).

    This alone opens links and places the container again: its labels may be those of its image.
    """

    host: str
    links: tuple[Link, ...] = ()
    labels: Mapping[str, str] = MappingProxyType({})  # its rules
    env: tuple[str, ...] = ()  # names of the variables that its links gave it

    @property
    def row(self) -> bytes:
        return dump_json({**self._asdict(), "labels": dict(self.labels)})


@dataclasses.dataclass(frozen=True)
class Container:
    """One container, as its slave published it (containers/HOST/ID)."""

    host: str
    id: str
    name: str
    summary: Mapping[str, Any]  # the engine's entry of GET /containers/json, less Status
    state: Mapping[str, Any]  # of the engine's inspect: Status, ExitCode, StartedAt, ...
    expose: tuple[str, ...]  # "5432/tcp"
    needs: Needs
    created: str  # in UTC, to the nanosecond; as text these are in the order of time
    # network: its names there, and "TARGET:ALIAS", what it calls others there
    aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    calls: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # name: id, of the networks that all hosts have
    network_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)
    auto_remove: bool = False  # --rm

    @functools.cached_property
    def listed(self) -> bytes:
        """Return its entry of GET /containers/json up to its Status."""
        return self.list_as(list_names(self.name, self.host))

    def list_as(self, names: Sequence[str]) -> bytes:
        """Return the same by other names."""
        entry = {k: v for k, v in self.summary.items() if k != "Status"}
        entry["Names"] = names
        entry = with_network_ids(entry, self.network_ids)
        return dump_plain(entry)[:-1] + b',"Status":'

    @property
    def full_name(self) -> str:
        """Return NAME@HOST."""
        return f"{self.name}@{self.host}"

    @property
    def running(self) -> bool:
        return bool(self.state.get("Running"))

    @property
    def published(self) -> tuple[str, ...]:
        """Return the host ports that it has while it runs, those that the engine chose too."""
        return tuple(
            binding_key(port.get("IP"), port["PublicPort"], port.get("Type"))
            for port in self.summary.get("Ports") or ()
            if port.get("PublicPort")
        )

    @property
    def networks(self) -> Mapping[str, Any]:
        return (self.summary.get("NetworkSettings") or {}).get("Networks") or {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return its addresses on its host's networks, none while it does not run."""
        found = [n.get("IPAddress") for n in self.networks.values()]
        return tuple(ip for ip in found if ip) if self.running else ()


@dataclasses.dataclass(frozen=True)
class View:
    """All that the mesh says, as of one revision."""

    revision: int = 0
    hosts: Mapping[str, Host] = dataclasses.field(default_factory=dict)
    orders: Mapping[str, Order] = dataclasses.field(default_factory=dict)  # by host
    # living host: what ails its engine, "" while it is well
    alive: Mapping[str, str] = dataclasses.field(default_factory=dict)
    masters: Mapping[str, MasterInfo] = dataclasses.field(default_factory=dict)
    containers: Mapping[str, Container] = dataclasses.field(default_factory=dict)  # by id
    names: Mapping[str, NameEntry] = dataclasses.field(default_factory=dict)
    volumes: Mapping[str, VolumePin] = dataclasses.field(default_factory=dict)
    networks: Mapping[str, NetworkEntry] = dataclasses.field(default_factory=dict)
    images: Mapping[str, ImageEntry] = dataclasses.field(default_factory=dict)
    recipes: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)  # by container id
    declared: Mapping[str, Declared] = dataclasses.field(default_factory=dict)  # by container id
    # name: its next host; the id is the token of the move
    moves: Mapping[str, NameEntry] = dataclasses.field(default_factory=dict)
    chores: Mapping[str, Chore] = dataclasses.field(default_factory=dict)  # HOST/ID, HOST/TOKEN
    vips: Mapping[str, str] = dataclasses.field(default_factory=dict)  # container name: address
    addresses: Mapping[str, str] = dataclasses.field(default_factory=dict)  # address: name
    # id, and name, of a container that removed itself just now: what it left (class Ending)
    ended: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def members(self) -> frozenset[str]:
        """Return the addresses of all machines of this arpanet."""
        return frozenset(
            [m.ip for m in self.masters.values()] + [h.ip for h in self.hosts.values()]
        )

    def declared_of(self, container: Container) -> Declared:
        """Return what was declared for a container."""
        return self.declared.get(container.id) or Declared(container.host)

    def trouble(self, host: str) -> str:
        """Return why a host cannot be asked for anything, "" if it can."""
        return self.alive.get(host, "the host is down")

    @functools.cached_property
    def nicknamed(self) -> Mapping[str, Container]:
        """Return the holder of its name for each container, by id, whose name another one holds."""
        found = {}
        for c in self.containers.values():
            entry = self.names.get(c.name)
            if entry and entry.id != c.id and entry.id in self.containers:
                found[c.id] = self.containers[entry.id]
        return found

    @functools.cached_property
    def network_ids(self) -> Mapping[str, str]:
        """Return the id of each network that all hosts have, by its name."""
        return shared_ids(self.networks)

    @functools.cached_property
    def newest_first(self) -> tuple[Container, ...]:
        """Return all containers in the order of a listing."""
        by_id = sorted(self.containers.values(), key=operator.attrgetter("id"))
        return tuple(sorted(by_id, key=operator.attrgetter("created"), reverse=True))

    @functools.cached_property
    def api(self) -> ApiRange:
        """Return the API versions that are offered."""
        return api_range(self)

    def living_hosts(self) -> list[Host]:
        """Return the hosts whose slaves are alive and whose engines answer, by name."""
        return [self.hosts[name] for name in sorted(self.hosts) if not self.trouble(name)]

    def narrowed(self, names: Collection[str]) -> View:
        """Return a view of only these hosts."""
        return dataclasses.replace(self, hosts={n: self.hosts[n] for n in self.hosts if n in names})


class Change(NamedTuple):
    """A key that was written, or deleted (value None)."""

    key: str
    value: bytes | None
    created: int = 0  # the revision at which the key was made


def key_of(table: str, *parts: str) -> str:
    """Return the mesh key of a row."""
    return PREFIX + "/".join((table, *parts))


def needs_of(row: Mapping[str, Any]) -> Needs:
    """Return what a row of containers or names says that its container takes."""
    memory, cpus = (row.get(field) or 0 for field in ("memory_bytes", "nano_cpus"))
    return Needs(memory, cpus, tuple(row.get("bindings") or ()))


class Maybe(NamedTuple):
    """The shape of what may also be null, or not there."""

    shape: Any


STRINGS = MappingProxyType({str: str})  # a map of texts by any name
NEEDS = {"memory_bytes": Maybe(int), "nano_cpus": Maybe(int), "bindings": Maybe([str])}
SHAPES: Mapping[str, Mapping[Any, Any]] = {  # of the JSON in each table, as far as it is read
    "hosts": {
        "ip": str,
        "agent_port": int,
        "machine": str,
        "version": str,
        "engine": {
            **dict.fromkeys(("version", "api", "min_api", "arch", "kernel"), Maybe(str)),
            **dict.fromkeys(("cpus", "memory_bytes"), Maybe(int)),
            **dict.fromkeys(("labels", "resolvers"), Maybe([str])),
            "build": Maybe(STRINGS),
        },
        "labels": Maybe(STRINGS),
        "declares": Maybe(bool),
    },
    "orders": {"state": str, "labels": {str: Maybe(str)}},
    "alive": {"machine": str, "trouble": Maybe(str)},
    "masters": {"ip": str, "api_port": int, "version": str},
    "containers": {
        "summary": {
            **dict.fromkeys(("Image", "ImageID"), Maybe(str)),
            "Labels": Maybe(STRINGS),
            "Ports": Maybe([{"PublicPort": Maybe(int), "Type": Maybe(str)}]),
            "Mounts": Maybe([dict.fromkeys(("Name", "Source", "Destination"), Maybe(str))]),
            "HostConfig": Maybe({"NetworkMode": Maybe(str)}),
            "NetworkSettings": Maybe(
                {"Networks": Maybe({str: dict.fromkeys(("IPAddress", "NetworkID"), Maybe(str))})}
            ),
        },
        "name": str,
        "state": dict.fromkeys(("Status", "StartedAt", "FinishedAt", "Health"), Maybe(str)),
        "expose": [str],
        "created": str,
        "aliases": {str: [str]},
        "calls": Maybe({str: [str]}),
        "auto_remove": Maybe(bool),
        **NEEDS,
    },
    **dict.fromkeys(("names", "moves"), {"host": str, "id": str, **NEEDS}),
    "recipes": {"host": str, "query": str, "body": {}},
    "declared": {"host": str, "links": [[str]], "labels": STRINGS, "env": [str]},
    "chores": {"name": str, "token": str, "verb": str, "volumes": [str]},
    "volumes": {"host": str},
    "networks": {"create": {"Name": Maybe(str)}},
    "images": {"id": str, "token": str, "given": Maybe(str)},
    "vips": {"ip": str},
    "addresses": {"name": str},
    "ended": {"code": int, "output": Maybe(str), "details": {}},
}


def fits(value: Any, shape: Any) -> bool:
    """Return whether a JSON value has a shape: a type, [shape], {name: shape} or {str: shape}."""
    if isinstance(shape, Maybe):
        return value is None or fits(value, shape.shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(v, shape[0]) for v in value)
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(fits(v, shape[str]) for v in value.values())
        return all(fits(value.get(name), part) for name, part in shape.items())
    return isinstance(value, shape)


def host_of(name: str, value: dict[str, Any]) -> Host:
    """Return the host that a slave registered. Raises ValueError."""
    engine, port = value["engine"], parse_port(str(value["agent_port"]))
    for version in ("api", "min_api"):
        parse_api(engine.get(version) or "1.41")
    machine, version, labels = value["machine"], value["version"], value.get("labels") or {}
    declares = bool(value.get("declares"))
    return Host(name, parse_ip(value["ip"]), port, machine, version, engine, labels, declares)


def declared_of(_: str, value: dict[str, Any]) -> Declared:
    """Return what was declared for a container. Raises ValueError."""
    links = tuple(Link(target, alias, parse_ip(vip)) for target, alias, vip in value["links"])
    return Declared(value["host"], links, value["labels"], tuple(value["env"]))


def master_of(name: str, value: dict[str, Any]) -> MasterInfo:
    """Return a living master. Raises ValueError."""
    port = parse_port(str(value["api_port"]))
    return MasterInfo(name, parse_ip(value["ip"]), port, value["version"])


def chore_of(name: str, value: dict[str, Any]) -> Chore:
    """Return what a slave has to do. Raises ValueError: nothing is done by a name."""
    if not re.fullmatch("([0-9a-f]{16}|[0-9a-f]{64})", split_key(name)[1]):
        raise ValueError("neither a container's id nor a token")
    if value["verb"] not in ("remove", "start"):
        raise ValueError("no such verb")
    return Chore(value["name"], value["token"], value["verb"], tuple(value["volumes"]))


def network_of(name: str, value: dict[str, Any]) -> NetworkEntry:
    """Return a network of all hosts; every master finds the same id in its row."""
    made = value.get("token") or dump_json(value["create"]).decode()  # rows of old had no token
    return NetworkEntry(network_id(name, str(made)), value["create"])


def split_key(name: str) -> tuple[str, str]:
    """Return the host and the id in the key of a container or a chore."""
    host, _, container_id = name.partition("/")
    return host, container_id


ROWS: Mapping[str, Callable[[str, dict[str, Any]], Any]] = {
    "hosts": host_of,
    "orders": lambda _, value: Order(value["state"], value["labels"]),
    "alive": lambda _, value: value.get("trouble") or "",
    "masters": master_of,
    "containers": lambda name, value: container_of(*split_key(name), value),
    **dict.fromkeys(
        ("names", "moves"),
        lambda _, value: NameEntry(value["host"], value["id"], needs_of(value)),
    ),
    "recipes": lambda _, value: Recipe(value["host"], value["query"], value["body"]),
    "declared": declared_of,
    "chores": chore_of,
    "volumes": lambda _, value: VolumePin(value["host"], "token" not in value),
    "networks": network_of,
    "images": lambda _, value: ImageEntry(value["id"], value["token"], value.get("given") or ""),
    "vips": lambda _, value: parse_ip(value["ip"]),
    "addresses": lambda _, value: value["name"],
    "ended": lambda _, value: value,
}


def read_value(text: bytes) -> dict[str, Any]:
    """Return the JSON object of a row, {} when it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def holder_of(text: bytes) -> NameEntry:
    """Return who holds a name by the value of its row, nobody where it is not of our making."""
    value = read_value(text)
    return NameEntry(str(value.get("host", "")), str(value.get("id", "")))


def name_row(host: str, container_id: str, needs: Needs, **token: str) -> bytes:
    """Return the row of a name: who holds it, and what that takes until it is in every view."""
    return dump_json({"host": host, "id": container_id, **needs._asdict(), **token})


def row_of(table: str, name: str, text: bytes) -> Any:
    """Return the value that a View holds for a row. Raises ValueError: it is not of our making."""
    value = read_value(text)
    if not fits(value, SHAPES[table]):
        raise ValueError("a field is missing, or of another kind")
    if (table in ("containers", "chores")) != ("/" in name) and table != "images":
        raise ValueError("the key is of another kind")
    return ROWS[table](name, value)


def apply_changes(view: View, revision: int, changes: Iterable[Change]) -> View:
    """Return the view after the changes; keys and rows that cannot be read are left out."""
    tables: dict[str, dict[str, Any]] = {}
    for change in changes:
        table, _, name = change.key.removeprefix(PREFIX).partition("/")
        if table not in SHAPES or not name or not change.key.startswith(PREFIX):
            continue
        if table not in tables:
            tables[table] = dict(getattr(view, table))
        rows = tables[table]
        index = name.partition("/")[2] if table == "containers" else name
        if change.value is None:
            rows.pop(index, None)
            continue
        try:
            row = row_of(table, name, change.value)
            claimed = table in ("names", "moves")
            rows[index] = row._replace(revision=change.created) if claimed else row
        except ValueError as e:
            log.warning("left out %r, which cannot be read: %s", change.key, e)
            rows.pop(index, None)
    identify_networks(view, tables)
    return dataclasses.replace(view, revision=revision, **tables)


def identify_networks(view: View, tables: dict[str, dict[str, Any]]) -> None:
    """Give the containers in changed tables the ids of the networks that all hosts have."""
    if "networks" in tables:
        rows = tables.setdefault("containers", dict(view.containers))
        changed = [*rows]
    else:
        rows = tables.get("containers", {})
        changed = [key for key, c in rows.items() if view.containers.get(key) is not c]
    ids = shared_ids(tables.get("networks", view.networks))
    for key in changed:
        own = {name: ids[name] for name in rows[key].networks if name in ids}
        if own != rows[key].network_ids:
            rows[key] = dataclasses.replace(rows[key], network_ids=own)


# ---- networks: what has one name on all hosts has one id, though each engine has its own


def with_network_ids(details: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Return what an engine says of a container, listed or inspected, with networks' one id.

    An engine gives no id for a network that the container has not been on yet.
    """
    found = (details.get("NetworkSettings") or {}).get("Networks") or {}
    shared = {name: n for name, n in found.items() if n.get("NetworkID") and name in ids}
    if not shared:
        return dict(details)
    named = {name: dict(n, NetworkID=ids[name]) for name, n in shared.items()}
    settings = dict(details["NetworkSettings"], Networks={**found, **named})
    changed = dict(details, NetworkSettings=settings)
    known = {n["NetworkID"]: ids[name] for name, n in shared.items()}
    mode = (details.get("HostConfig") or {}).get("NetworkMode")
    if mode in known:
        changed["HostConfig"] = dict(details["HostConfig"], NetworkMode=known[mode])
    return changed


def with_network_id(network: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Return what an engine says of a network, listed or inspected, with its one id."""
    return dict(network, Id=ids.get(network["Name"], network["Id"]))


def network_named(ids: Mapping[str, str], reference: str) -> str:
    """Return the name of the network of all hosts that a name or a whole id means, "" if none."""
    if reference in ids:
        return reference
    return next((name for name, known in ids.items() if known == reference), "")


def network_begun(ids: Mapping[str, str], start: str) -> str:
    """Return the name of the network of all hosts whose id begins so, "" if none.

    Raises BadRequest in the engine's words when there are several.
    """
    found = [name for name, known in ids.items() if start and known.startswith(start)]
    if len(found) > 1:
        raise BadRequest(
            f"network {start} is ambiguous ({len(found)} matches found based on ID prefix)"
        )
    return "".join(found)


# ---- containers


def container_record(summary: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a slave publishes: from the engine's list entry and its inspect."""
    state = details.get("State") or {}
    kept = (
        "Status", "Running", "Paused", "Restarting", "Dead", "ExitCode", "StartedAt", "FinishedAt",
    )  # fmt: skip
    host_config = details.get("HostConfig") or {}
    networks = (details.get("NetworkSettings") or {}).get("Networks") or {}
    return {
        "summary": {k: v for k, v in summary.items() if k != "Status"},
        "name": (details.get("Name") or "").lstrip("/"),
        "state": {k: state.get(k) for k in kept}
        | {"Health": (state.get("Health") or {}).get("Status", "none")},
        "created": (details.get("Created") or "").rstrip("Z"),
        "aliases": {name: sorted(n.get("Aliases") or ()) for name, n in networks.items()},
        "calls": {name: sorted(n.get("Links") or ()) for name, n in networks.items()},
        "expose": sorted((details.get("Config") or {}).get("ExposedPorts") or {}),
        "auto_remove": bool(host_config.get("AutoRemove")),
        **asked_needs(host_config)._asdict(),
    }


SHARES = 1024  # of --cpu-shares stand for one CPU


def asked_needs(host_config: Mapping[str, Any]) -> Needs:
    """Return what a HostConfig takes of its host: -m, --cpus or else --cpu-shares, -p."""
    memory, nano_cpus, shares = (
        value if isinstance(value, int) and value > 0 else 0
        for value in map(host_config.get, ("Memory", "NanoCpus", "CpuShares"))
    )
    bindings = sorted(binding_keys(host_config.get("PortBindings") or {}))
    return Needs(memory, nano_cpus or shares * 10**9 // SHARES, tuple(bindings))


def binding_keys(port_bindings: Mapping[str, Any]) -> Iterator[str]:
    """Yield "8080/tcp" or "IP:8080/tcp" for each fixed host port of a HostConfig.PortBindings."""
    for port, bindings in port_bindings.items():
        protocol = port.partition("/")[2] or "tcp"
        for binding in bindings or ():
            number = str(binding.get("HostPort") or "")
            if number.isdecimal() and number != "0":  # of 8000-8010 the engine takes a free one
                yield binding_key(binding.get("HostIp"), number, protocol)


def binding_key(ip: str | None, number: int | str, protocol: str | None) -> str:
    """Return "8080/tcp" or "IP:8080/tcp"."""
    everywhere = ip in (None, "", "0.0.0.0", "::")
    return f"{'' if everywhere else f'{ip}:'}{number}/{protocol or 'tcp'}"


def container_of(host: str, container_id: str, record: Mapping[str, Any]) -> Container:
    """Return the container that a slave published. Raises KeyError, TypeError, ValueError."""
    summary = record["summary"]
    return Container(
        host,
        container_id,
        record["name"],
        summary,
        record["state"],
        tuple(record["expose"]),
        needs_of(record),
        record["created"],
        {network: tuple(names) for network, names in record["aliases"].items()},
        {network: tuple(links) for network, links in record.get("calls", {}).items()},
        auto_remove=bool(record.get("auto_remove")),
    )


def read_links_label(labels: Mapping[str, str]) -> tuple[Link, ...]:
    """Return the links that a label of an older arpanet records, () when it was tampered with."""
    try:
        rows = json.loads(labels.get(LABEL_LINKS, "[]"))
        return tuple(Link(str(to), str(alias), parse_ip(vip)) for to, alias, vip in rows)
    except (ValueError, TypeError, RecursionError):
        return ()


def nickname(container: Container) -> str:
    """Return what a container is shown as while another one holds its name."""
    return f"{container.name}-{container.id[:6]}"


def plain_name(view: View, container: Container) -> str:
    """Return NAME, or its nickname for one that shares its name with an older one."""
    return nickname(container) if container.id in view.nicknamed else container.name


def shown_name(view: View, container: Container) -> str:
    """Return NAME@HOST, with a nickname for one that shares its name with an older one."""
    return f"{plain_name(view, container)}@{container.host}"


def list_names(name: str, host: str, plain_first: bool = False) -> list[str]:
    """Return a container's names in a listing: one for people, and one for whom it is an engine's.

    Source: docker CLI 20.10 and 28 show the first; programs look for /NAME among them.
    """
    names = [f"/{name}@{host}", f"/{name}"]
    return names[::-1] if plain_first else names


def deserves_name(view: View, container: Container, entry: NameEntry | None) -> bool:
    """Return whether a container has the right to its name, which is another's or nobody's yet.

    On one host the engine has decided; of two hosts' containers the older keeps the name. Never
    one that was made again elsewhere, or is in the making there.
    """
    if entry is None or entry.host == container.host:
        deserving = entry is None or entry.id != container.id
    else:
        other = view.containers.get(entry.id)
        deserving = other is not None and container.created < other.created
    return deserving and not is_doomed(view, container)


def declared_before(view: View, details: Mapping[str, Any], image: Mapping[str, str]) -> Declared:
    """Return what was declared for a container by an older arpanet, which only labelled it.

    What its image says alike was not: declared are the other rules, and links to an address that
    the target has. details: of the engine; image: the labels of the image.
    """
    config = details["Config"]
    own = {k: v for k, v in (config.get("Labels") or {}).items() if image.get(k) != v}
    links = tuple(k for k in read_links_label(own) if view.vips.get(k.target) == k.vip)
    names = [line.partition("=")[0] for line in config.get("Env") or ()]
    given = "|".join(re.escape(variable_prefix(link)) for link in links)
    pattern = f"({given})_(NAME|PORT|PORT_.*|ENV_.*)"
    env = tuple(name for name in names if links and re.fullmatch(pattern, name))
    return Declared("", links, {k: v for k, v in own.items() if is_rule(k)}, env)


def token_of(container: Container) -> str:
    """Return the token of the move that made a container, "" for none."""
    return str((container.summary.get("Labels") or {}).get(LABEL_MADE) or "")


def is_doomed(view: View, container: Container) -> bool:
    """Return whether a container is to be removed, now or if its move comes to nothing."""
    own = view.chores.get(f"{container.host}/{container.id}")
    half = view.chores.get(f"{container.host}/{token_of(container)}")
    chores = (own, half if half and half.name == container.name else None)  # no image's token
    return any(chore is not None and chore.verb == "remove" for chore in chores)


def decide_names(view: View, host: str) -> list[Container]:
    """Return the containers of a host that lack the name that they have a right to."""
    return [
        c
        for c in view.containers.values()
        if c.host == host and deserves_name(view, c, view.names.get(c.name))
    ]


def decide_leftovers(view: View, given_up: Iterable[tuple[str, bytes]]) -> dict[str, set[bytes]]:
    """Return the keys where one of the claims that were given up may be, each with their values."""
    found = dict[str, set[bytes]]()
    for key, value in given_up:
        table, _, name = key.removeprefix(PREFIX).partition("/")
        holder = view.names.get(name) if table == "names" else None
        pin = view.volumes.get(name) if table == "volumes" else None
        if (holder and not holder.id) or (pin and not pin.settled):
            found.setdefault(key, set()).add(value)
    return found


def list_conflicts(view: View, host: str = "") -> list[str]:
    """Return a sentence for each container, of a host or of all, that cannot have its name."""
    found = []
    for container_id, holder in view.nicknamed.items():
        c = view.containers[container_id]
        if host in ("", c.host) and not is_doomed(view, c):
            shown = shown_name(view, c)
            found.append(
                f"{c.name} on {c.host} is shown as {shown}: {holder.full_name} is older and keeps "
                f"the name; try: docker rename {shown} OTHER"
            )
    return sorted(found)


def find_by_name(view: View, name: str) -> Container | None:
    """Return the container that holds a name, or the one at NAME@HOST; nicknames too."""
    plain, _, host = name.partition("@")
    entry = view.names.get(plain)
    if name.endswith("@"):
        return None
    if entry and entry.id in view.containers and host in ("", entry.host):
        return view.containers[entry.id]
    named = [
        c
        for c in view.containers.values()
        if plain.startswith(c.name) and plain in (c.name, nickname(c)) and host in ("", c.host)
    ]
    return named[0] if len(named) == 1 else None


def find_container(view: View, reference: str) -> Container | None:
    """Return the container with that id, NAME, NAME@HOST or unambiguous id prefix, in this order.

    Raises EngineError 500 in Docker's words on an ambiguous prefix.
    """
    reference = reference.removeprefix("/")
    found = view.containers.get(reference) or find_by_name(view, reference)
    if found or not re.fullmatch("[0-9a-f]{1,63}", reference):
        return found
    fitting = [c for i, c in view.containers.items() if i.startswith(reference)]
    if len(fitting) > 1:
        raise EngineError(500, f"Multiple IDs found with provided prefix: {reference}")
    return fitting[0] if fitting else None


def require_container(view: View, reference: str) -> Container:
    """Return the container. Raises NotFound in Docker's words, EngineAway if it is unpublished."""
    found = find_container(view, reference)
    if found is None:
        refuse_unpublished(view, reference)
        raise no_such_container(reference)
    return found


def refuse_unpublished(view: View, reference: str) -> None:
    """Raise EngineAway for a container whose slave ended before it published it.

    To say that it is not there would let docker rm -f call it removed.
    """
    name, _, host = reference.removeprefix("/").partition("@")
    named = view.names.get(name, NameEntry("", ""))
    held = [named, *(e for e in view.names.values() if e.id == reference)]
    for entry in held:
        if entry.id and entry.id not in view.containers and host in ("", entry.host):
            raise EngineAway(
                f"{reference} is on {entry.host}, whose slave has not told of it yet; "
                f"if that lasts, on {entry.host} type: arpanet slave start"
            )


# ---- listing


@functools.lru_cache(maxsize=100_000)
def parse_time(text: str) -> datetime.datetime | None:
    """Return an instant of the engine, None for its zero."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?", text or "")
    if not match or text.startswith("0001-"):
        return None
    whole = datetime.datetime.fromisoformat(match[1])
    microsecond = int((match[2] or "0").ljust(6, "0"))
    return whole.replace(microsecond=microsecond, tzinfo=datetime.timezone.utc)


AGES = (  # below so many seconds: its words, and the seconds of one unit
    (1, "Less than a second", 0),
    (2, "1 second", 0),
    (60, "{} seconds", 1),
    (120, "About a minute", 0),
    (3600, "{} minutes", 60),
)
LONG_AGES = (
    (48, "{} hours", 1),
    (336, "{} days", 24),
    (1440, "{} weeks", 168),
    (17520, "{} months", 720),
)


HEALTH_WORDS = {
    "starting": " (health: starting)",
    "healthy": " (healthy)",
    "unhealthy": " (unhealthy)",
}


def human_age(seconds: float) -> str:
    """Return an age in the words of docker ps. Source: observed of engine 20.10."""
    for below, words, unit_s in AGES:
        if seconds < below:
            return words.format(int(seconds // unit_s) if unit_s else "")
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for below, words, unit in LONG_AGES:
        if hours < below:
            return words.format(hours // unit)
    return f"{hours // 8760} years"


def age_text(state: Mapping[str, Any], event: str, now: datetime.datetime) -> str:
    """Return how long ago a container's StartedAt or FinishedAt was, "" if it never was."""
    since = parse_time(state.get(event) or "")
    return human_age((now - since).total_seconds()) if since else ""


def status_text(state: Mapping[str, Any], now: datetime.datetime) -> str:
    """Return the STATUS column of docker ps."""
    code = state.get("ExitCode", 0)
    if state.get("Running"):
        if state.get("Restarting"):
            return f"Restarting ({code}) {age_text(state, 'FinishedAt', now)} ago"
        up = age_text(state, "StartedAt", now)
        if state.get("Paused"):
            return f"Up {up} (Paused)"
        return f"Up {up}{HEALTH_WORDS.get(state.get('Health') or '', '')}"
    if state.get("Status") == "removing":
        return "Removal In Progress"
    if state.get("Dead"):
        return "Dead"
    if not parse_time(state.get("StartedAt") or ""):
        return "Created"
    ago = age_text(state, "FinishedAt", now)
    return f"Exited ({code}) {ago} ago" if ago else ""


@functools.lru_cache(maxsize=1000)
def quoted(text: str) -> bytes:
    """Return a text as JSON; one of few."""
    return dump_plain(text)


def list_entry(
    view: View, container: Container, now: datetime.datetime, plain_first: bool = False
) -> bytes:
    """Return the container's entry of GET /containers/json."""
    if container.host not in view.alive:
        status = "Host Down"
    elif view.alive[container.host]:
        status = "Host Down (engine)"
    else:
        status = status_text(container.state, now)
    if plain_first or container.id in view.nicknamed:
        name = plain_name(view, container)
        listed = container.list_as(list_names(name, container.host, plain_first))
    else:
        listed = container.listed
    return listed + quoted(status) + b"}"


def matches(pattern: str, *texts: str) -> bool:
    """Return whether a pattern is one of the texts, or a regular expression that fits one."""
    try:
        return any(t == pattern or re.search(pattern, t) for t in texts)
    except re.error:
        return False


def match_ancestor(container: Container, value: str) -> bool:
    image, image_id = container.summary.get("Image", ""), container.summary.get("ImageID", "")
    plain = image_id.removeprefix("sha256:")
    short = value.removeprefix("sha256:")
    return (
        value in (image, image_id)
        or image_name(value) == image_name(image)
        or (len(short) >= 4 and plain.startswith(short))
    )


def with_tag(reference: str) -> str:
    """Return an image reference with its tag: busybox is busybox:latest."""
    last = reference.rpartition("/")[2]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def image_name(reference: str) -> str:
    """Return the one name that an image's name in any of its forms stands for."""
    return re.sub("^((index[.])?docker[.]io/)?(library/)?", "", with_tag(reference))


def join_tag(name: str, tag: str) -> str:
    """Return the reference of a repository and a tag or digest, which may be in the name too."""
    return f"{name}{'@' if ':' in tag else ':'}{tag}" if tag else name


def meant_image(view: View, image: str, ids: Mapping[str, str]) -> str:
    """Return the id of the image that a name means, "" when no host has one.

    ids: host: the image's id there. It means what it was given last; when no host has that any
    more, what the first host has.
    """
    entry = view.images.get(image_name(image))
    first = ids[min(ids)] if ids else ""
    return entry.id if entry and entry.id in ids.values() else first


def mean_images(view: View, image: str, ids: Mapping[str, str]) -> list[str]:
    """Return those of the hosts with an image of that name whose image is the one that it means."""
    meant = meant_image(view, image, ids)
    return sorted(host for host in ids if ids[host] == meant)


def has_label(labels: Mapping[str, str], value: str) -> bool:
    """Return whether NAME or NAME=VALUE is among the labels."""
    name, separator, wanted = value.partition("=")
    return name in labels and (not separator or labels[name] == wanted)


def match_label(container: Container, value: str) -> bool:
    return has_label(container.summary.get("Labels") or {}, value)


def parse_ports(text: str) -> range:
    """Return the ports of 80 or 8000-8080. Raises ValueError in the engine's words."""
    ends = [part for part in text.split("-", 1) if part]
    for end in ends:
        if not end.isdecimal() or int(end) > 65535:
            why = "value out of range" if end.isdecimal() else "invalid syntax"
            raise ValueError(f'strconv.ParseUint: parsing "{end}": {why}')
    if not ends or int(ends[-1]) < int(ends[0]):
        raise ValueError(f"Invalid range specified for the Port: {text}")
    return range(int(ends[0]), int(ends[-1]) + 1)


def match_port(ports: Iterable[str], value: str) -> bool:
    """Return whether "80", "80/udp" or "8000-8080/tcp" covers one of the ports."""
    span, _, protocol = value.partition("/")
    covered = {f"{number}/{protocol or 'tcp'}" for number in parse_ports(span)}
    return any(port in covered for port in ports)


def published_ports(container: Container) -> list[str]:
    ports = container.summary.get("Ports") or ()
    return [f"{p['PublicPort']}/{p.get('Type', 'tcp')}" for p in ports if p.get("PublicPort")]


def match_name(container: Container, value: str) -> bool:
    """Return whether a pattern fits the name; with an @ it may speak of the host too."""
    names = [container.name, container.full_name] if "@" in value else [container.name]
    return any(matches(value, name, f"/{name}") for name in names)


def match_network(container: Container, value: str) -> bool:
    """Return whether a container is on a network of that name or id; engines' own ids do too."""
    return any(
        value == name
        or (n.get("NetworkID") or "").startswith(value)
        or container.network_ids.get(name, "").startswith(value or "-")
        for name, n in container.networks.items()
    )


def match_volume(container: Container, value: str) -> bool:
    mounts = container.summary.get("Mounts") or ()
    return any(value in (m.get("Name"), m.get("Source"), m.get("Destination")) for m in mounts)


FILTERS: Mapping[str, Callable[[Container, str], bool]] = {
    "ancestor": match_ancestor,
    "exited": lambda c, v: (
        not c.running
        and str(c.state.get("ExitCode")) == v
        and parse_time(c.state.get("StartedAt") or "") is not None
    ),
    "expose": lambda c, v: match_port(c.expose, v),
    "health": lambda c, v: (c.state.get("Health") or "none") == v,
    "host": lambda c, v: c.host == v,
    "id": lambda c, v: matches(v, c.id),
    "is-task": lambda _, v: v == "false",
    "label": match_label,
    "name": match_name,
    "network": match_network,
    "node": lambda c, v: c.host == v,  # Swarm's word for it
    "publish": lambda c, v: match_port(published_ports(c), v),
    "status": lambda c, v: c.state.get("Status") == v,
    "volume": match_volume,
}
HEALTHS = ("none", "starting", "healthy", "unhealthy")
STATUSES = ("created", "dead", "exited", "paused", "removing", "restarting", "running")


class Listing(NamedTuple):
    """What GET /containers/json was asked for."""

    all: bool
    limit: int
    filters: Mapping[str, tuple[str, ...]]


def parse_filters(text: str) -> dict[str, tuple[str, ...]]:
    """Return filters from {"label": ["a"]} or {"label": {"a": true}}. Raises BadRequest."""
    filters = load_object(text.encode(), "filters") if text.strip() not in ("", "null") else {}
    found = {}
    for name, values in filters.items():
        if not isinstance(values, (list, dict, type(None))):
            raise BadRequest(f"filters: {name} must hold a list of values")
        found[name] = tuple(str(v) for v in values or ())
    return found


PRUNE_FILTERS = ("label", "label!", "until")
AGE_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
AGE_PART = r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)"


def parse_until(text: str, now: datetime.datetime) -> datetime.datetime:
    """Return the instant of "24h", of seconds since 1970, or of a date. Raises ValueError."""
    if re.fullmatch(f"(?:{AGE_PART})+", text):
        ages = [float(n) * AGE_UNITS[unit] for n, unit in re.findall(AGE_PART, text)]
        return now - datetime.timedelta(seconds=sum(ages))
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return datetime.datetime.fromtimestamp(float(text), datetime.timezone.utc)
    return parse_date(text)


def parse_date(text: str) -> datetime.datetime:
    """Return the instant of a date, of this machine's zone if it names none. Raises ValueError."""
    match = re.fullmatch(r"(.+?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", text)
    base, fraction, zone = match.groups() if match else (text, "", "")
    instant = datetime.datetime.fromisoformat(base + (zone or "").replace("Z", "+00:00"))
    instant = instant.replace(microsecond=int((fraction or "0")[:6].ljust(6, "0")))
    return instant if instant.tzinfo else instant.astimezone()


class PruneRule(NamedTuple):
    """What a prune takes: what has all these labels, not all of those, and is older."""

    labels: tuple[str, ...]
    without: tuple[str, ...]
    before: datetime.datetime | None = None

    def takes(self, thing: Mapping[str, Any]) -> bool:
        """Return whether an engine's network or volume is pruned, if nothing uses it."""
        labels = thing.get("Labels") or {}
        created = parse_date(thing["Created"]) if self.before and thing.get("Created") else None
        return (
            all(has_label(labels, v) for v in self.labels)
            and not (self.without and all(has_label(labels, v) for v in self.without))
            and not (self.before and created and created > self.before)
        )


def parse_prune(filters: Mapping[str, tuple[str, ...]], now: datetime.datetime) -> PruneRule:
    """Return what a prune of networks takes. Raises BadRequest in the engine's words."""
    for name in filters:
        if name not in PRUNE_FILTERS:
            raise BadRequest(f"Invalid filter '{name}'")
    until = filters.get("until", ())
    if len(until) > 1:
        raise BadRequest("more than one until filter specified")
    try:
        before = [parse_until(text, now) for text in until]
    except (ValueError, OverflowError) as e:
        raise BadRequest(f"Invalid filter 'until={until[0]}'") from e
    return PruneRule(filters.get("label", ()), filters.get("label!", ()), *before)


def check_filter(name: str, value: str) -> None:
    """Raise BadRequest in the engine's words for a value that a filter cannot have."""
    if name == "status" and value not in STATUSES:
        raise BadRequest(f"Invalid filter 'status={value}'")
    if name == "is-task" and value not in ("true", "false"):
        raise BadRequest(f"Invalid filter 'is-task=[{value}]'")
    if name == "health" and value not in HEALTHS:
        raise BadRequest(f"Unrecognised filter value for health: {value}")
    if name == "exited" and not re.fullmatch(r"[+-]?\d+", value):
        raise BadRequest(f'strconv.Atoi: parsing "{value}": invalid syntax')
    if name in ("publish", "expose"):
        try:
            parse_ports(value.partition("/")[0])
        except ValueError as e:
            raise BadRequest(f"error while looking up for {name} {value}: {e}") from e


def check_filters(filters: Mapping[str, tuple[str, ...]]) -> None:
    """Raise BadRequest in the engine's words for a filter that is not there, or a bad value."""
    for name, values in filters.items():
        if name not in FILTERS and name not in ("before", "since"):
            raise BadRequest(f"Invalid filter '{name}'")
        for value in values:
            check_filter(name, value)


def require_bound(view: View, reference: str) -> Container:
    """Return the container of before or since. Raises NotFound in the engine's words for that."""
    found = find_container(view, reference)
    if found is None:
        raise NotFound(f"no such container {reference}")
    return found


def list_containers(view: View, listing: Listing) -> list[Container]:
    """Return the containers that are listed, newest first. Raises BadRequest, NotFound."""
    check_filters(listing.filters)
    before, since = (
        [require_bound(view, v).created for v in listing.filters.get(side, ())]
        for side in ("before", "since")
    )
    everything = listing.all or listing.limit > 0 or "status" in listing.filters
    tests = [(name, listing.filters[name]) for name in FILTERS if name in listing.filters]

    def is_wanted(c: Container) -> bool:
        return (
            (everything or c.running)
            and all(c.created < bound for bound in before)
            and all(c.created > bound for bound in since)
            and all(passes(c, name, values) for name, values in tests)
        )

    found = filter(is_wanted, view.newest_first)
    return list(itertools.islice(found, listing.limit if listing.limit > 0 else None))


def passes(container: Container, name: str, values: Sequence[str]) -> bool:
    """Return whether a container passes a filter: one value of it, but every label; none is all."""
    return not values or (all if name == "label" else any)(
        FILTERS[name](container, v) for v in values
    )


# ---- what a create asks for


class LinkWish(NamedTuple):
    """A link as it was typed: reference is NAME, NAME@HOST, an id or its prefix."""

    reference: str
    alias: str


class Rule(NamedTuple):
    """KEY==VALUE or KEY!=VALUE, of a host or of what is on it; with ~ before VALUE if it can be."""

    key: str
    negated: bool
    soft: bool
    value: str  # as it is, with * for anything, or /a regular expression/

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.negated else '=='}{'~' * self.soft}{self.value}"

    @property
    def pattern(self) -> str:
        """Return the regular expression of the value."""
        if re.fullmatch("/.*/", self.value):
            return self.value[1:-1]
        return rf"\A{fnmatch.translate(self.value)}"

    def allows(self, texts: Iterable[str]) -> bool:
        """Return whether the rule holds where these are all the values of its key."""
        return any(re.search(self.pattern, text) for text in texts) is not self.negated


def parse_rule(text: str) -> Rule:
    """Return a constraint or an affinity. Raises BadRequest. Source: Swarm's filters."""
    match = re.fullmatch(f"({LABEL_KEY})(==|!=)(~?)(.+)", text.strip())
    if not match:
        raise BadRequest(f"KEY==VALUE or KEY!=VALUE is needed, not {text!r}")
    key, operator, soft, value = match.groups()
    rule = Rule(key, operator == "!=", bool(soft), value)
    try:
        re.compile(rule.pattern)
    except re.error as e:
        raise BadRequest(f"{text!r} holds no regular expression: {e}") from e
    return rule


class CreateWish(NamedTuple):
    """What a POST /containers/create asks of the cluster."""

    name: str
    image: str
    env: tuple[str, ...]  # less what arpanet takes
    links: tuple[LinkWish, ...]
    binds: tuple[str, ...]  # of the user and of ARPANET_VOLUMEn
    volumes: tuple[str, ...]  # named volumes, which fix the host
    companions: tuple[str, ...]  # containers on whose host it must be
    needs: Needs
    networks: tuple[str, ...]
    constraints: tuple[Rule, ...] = ()
    affinities: tuple[Rule, ...] = ()
    labels: Mapping[str, str] = MappingProxyType({})  # record them, and the next
    reschedule: bool = False  # when its host is down


def check_new_name(name: str) -> str:
    """Return a name that a container may get. Raises BadRequest that says what to type."""
    name = name.removeprefix("/")
    if not name:
        raise BadRequest("a container needs a name here: docker run --name NAME …")
    if not re.fullmatch(NAME_RULE + "+", name):
        raise BadRequest(f"Invalid container name ({name}), only {NAME_RULE} are allowed")
    return name


LISTS = {
    "constraint": "com.docker.swarm.constraints",
    "affinity": "com.docker.swarm.affinities",
    "reschedule": "com.docker.swarm.reschedule-policies",
}
WISHES = "host|reschedule|(?:constraint|affinity)[0-9]*"
SWARM = "(constraint|affinity|reschedule):(.*)"
RESCHEDULE = {"on-host-failure": True, "on-node-failure": True, "off": False}
VARIABLES = (
    "ARPANET_LINK1=NAME:ALIAS, ARPANET_VOLUME1=/PATH, ARPANET_CONSTRAINT1=KEY==VALUE and "
    "ARPANET_AFFINITY1=container==NAME (any number of each), ARPANET_HOST=HOST, and "
    "ARPANET_RESCHEDULE=on-host-failure"
)


class EnvWish(NamedTuple):
    """A container's environment, with arpanet's own variables taken out of it."""

    rest: tuple[str, ...]
    links: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: Mapping[str, str]  # what stands for the others
    lists: Mapping[str, tuple[str, ...]]  # Swarm's constraint:… and affinity:…


def split_env(env: Iterable[str]) -> EnvWish:
    """Return arpanet's wishes and the rest. Raises BadRequest on an unknown ARPANET_ variable."""
    rest: list[str] = []
    labels: dict[str, str] = {}
    found: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
    for line in env:
        name, _, value = line.partition("=")
        swarm = re.fullmatch(SWARM, line)
        if swarm:
            found[swarm[1]].append((0, swarm[2]))
        if swarm or not name.startswith("ARPANET_"):
            rest += [] if swarm else [line]
            continue
        match = re.fullmatch(rf"ARPANET_(?:(LINK|VOLUME)(\d*)|({WISHES.upper()}))", name)
        if not match:
            raise BadRequest(f"{name} means nothing for a container; there are {VARIABLES}")
        if not value:
            raise BadRequest(f"{name} is empty; give it a value, or leave it out")
        if match[3]:
            labels[f"arpanet.{match[3].lower()}"] = value
        else:
            found[match[1]].append((int(match[2] or 0), value))
    lists = {kind: tuple(v for _, v in sorted(rows)) for kind, rows in found.items()}
    return EnvWish(tuple(rest), lists.pop("LINK", ()), lists.pop("VOLUME", ()), labels, lists)


def is_wish(line: str) -> bool:
    """Return whether a variable is a wish to arpanet, when the user gives it."""
    return line.startswith("ARPANET_") or re.fullmatch(SWARM, line) is not None


def is_rule(label: str) -> bool:
    """Return whether a label is a rule, when the user gives it."""
    return label in LISTS.values() or re.fullmatch(rf"arpanet\.({WISHES})", label) is not None


class Rules(NamedTuple):
    """What is asked of a container's host, and the labels that record it."""

    constraints: tuple[Rule, ...]
    affinities: tuple[Rule, ...]
    labels: Mapping[str, str]
    reschedule: bool


def read_rules(env: EnvWish, given: Mapping[str, Any], host: str) -> Rules:
    """Return the rules of environment, labels and NAME@HOST. Raises BadRequest."""
    labels = {k: str(v) for k, v in given.items() if re.fullmatch(rf"arpanet\.({WISHES})", k)}
    labels |= {**env.labels, **({"arpanet.host": host} if host else {})}
    texts: dict[str, list[str]] = {kind: [] for kind in LISTS}
    for key in sorted(labels):
        if key == "arpanet.host":
            texts["constraint"].append(f"host=={labels[key]}")
        else:
            texts[key.removeprefix("arpanet.").rstrip("0123456789")].append(labels[key])
    for kind, label in LISTS.items():
        rows = [*swarm_list(label, given.get(label) or "[]"), *env.lists.get(kind, ())]
        labels |= {label: json.dumps(rows)} if rows else {}
        texts[kind] += rows
    wrong = [text for text in texts["reschedule"] if text not in RESCHEDULE]
    if wrong:
        raise BadRequest(f"a container is rescheduled on-host-failure, or off, not {wrong[0]!r}")
    constraints, affinities = (
        tuple(rule for rule in map(parse_rule, texts[kind]) if rule.key != "health")
        for kind in ("constraint", "affinity")
    )
    return Rules(
        constraints, affinities, labels, any(RESCHEDULE[text] for text in texts["reschedule"])
    )


def swarm_list(label: str, text: str) -> list[str]:
    """Return the texts of a label of Swarm. Raises BadRequest."""
    try:
        rows = json.loads(text)
    except (ValueError, TypeError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise BadRequest(f"label {label} must be a JSON list of strings, not {text!r}")
    return rows


def link_wish(text: str) -> LinkWish:
    """Return a link from TARGET or TARGET:ALIAS. Raises BadRequest."""
    reference, _, alias = text.removeprefix("/").partition(":")
    alias = (alias or reference).rpartition("/")[2].partition("@")[0]
    if not reference or not re.fullmatch(NAME_RULE + "*", alias):
        raise BadRequest(f"a link is NAME or NAME:ALIAS, not {text!r}")
    return LinkWish(reference, alias)


def is_anonymous(volume: str) -> bool:
    """Return whether an engine invented a volume's name, which no volume ever has again."""
    return bool(re.fullmatch("[0-9a-f]{64}", volume))


def volume_name(container: str, path: str) -> str:
    """Return the volume of a container and a path: readable, and no two share one."""
    readable = re.sub("[^a-zA-Z0-9_.-]+", "-", path.strip("/"))[:64] or "root"
    digest = hashlib.sha256(f"{container}\0{path.rstrip('/')}".encode()).hexdigest()[:8]
    return f"{container}_{readable}_{digest}"


def bind_of(container: str, text: str) -> str:
    """Return the bind that an ARPANET_VOLUMEn means. Raises BadRequest."""
    source, _, rest = text.partition(":")
    if source.startswith("/") and not rest.startswith("/"):  # /data, /data:ro
        path = os.path.normpath("/" + source.lstrip("/"))  # it would keep two slashes in front
        return f"{volume_name(container, path)}:{path}{':' + rest if rest else ''}"
    if not rest.startswith("/") or not source:
        raise BadRequest(f"a volume is /PATH, NAME:/PATH or /DIR:/PATH, not {text!r}")
    return text


def destination_of(bind: str) -> str:
    """Return where a bind is mounted in the container."""
    parts = bind.split(":")
    return parts[1].rstrip("/") if len(parts) > 1 else parts[0].rstrip("/")


def strings_of(body: Mapping[str, Any], field: str, what: str) -> tuple[str, ...]:
    """Return a list of strings of a JSON body. Raises BadRequest."""
    value = body.get(field) or []
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise BadRequest(f"{what} must be a list of strings")
    return tuple(value)


def object_of(body: Mapping[str, Any], field: str, what: str) -> dict[str, Any]:
    """Return an object of a JSON body. Raises BadRequest."""
    value = body.get(field)
    if not isinstance(value, (dict, type(None))):
        raise BadRequest(f"{what} must be an object")
    return value or {}


def needs_asked(host_config: Mapping[str, Any]) -> Needs:
    """Return what a create takes of its host. Raises BadRequest."""
    ports = object_of(host_config, "PortBindings", "HostConfig.PortBindings")
    rows = [row for row in ports.values() if row is not None]
    if not all(isinstance(row, list) and all(isinstance(b, dict) for b in row) for row in rows):
        raise BadRequest("HostConfig.PortBindings must hold lists of objects")
    return asked_needs(host_config)


def mounts_of(host_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return HostConfig.Mounts. Raises BadRequest."""
    mounts = host_config.get("Mounts") or []
    if not isinstance(mounts, list) or not all(isinstance(m, dict) for m in mounts):
        raise BadRequest("HostConfig.Mounts must be a list of objects")
    if not all(isinstance(m.get("Source") or "", str) for m in mounts):
        raise BadRequest("the Source of HostConfig.Mounts must be a string")
    return mounts


def read_create(name: str, body: Mapping[str, Any]) -> CreateWish:
    """Return what a create asks for; NAME@HOST asks for a host. Raises BadRequest."""
    name, at, host = name.partition("@")
    name = check_new_name(name)
    if at and not host:
        raise BadRequest(f"{name}@ names no host; try: --name {name}, or --name {name}@HOST")
    host_config = object_of(body, "HostConfig", "HostConfig")
    env = split_env(strings_of(body, "Env", "Env"))
    binds = strings_of(host_config, "Binds", "HostConfig.Binds")
    mounts = mounts_of(host_config)
    taken = {destination_of(b) for b in binds} | {str(m.get("Target")).rstrip("/") for m in mounts}
    own = [bind_of(name, text) for text in env.volumes]
    binds += tuple(b for b in own if destination_of(b) not in taken)
    named = [b.partition(":")[0] for b in binds if ":" in b and not b.startswith("/")]
    named += [str(m["Source"]) for m in mounts if m.get("Type") == "volume" and m.get("Source")]
    links = env.links + strings_of(host_config, "Links", "HostConfig.Links")
    rules = read_rules(env, object_of(body, "Labels", "Labels"), host)
    return CreateWish(
        name,
        str(body.get("Image") or ""),
        env.rest,
        tuple(link_wish(text) for text in links),
        binds,
        tuple(dict.fromkeys(named)),
        tuple(companions_of(host_config)),
        needs_asked(host_config),
        tuple(networks_of(body, host_config)),
        *rules,
    )


def networks_of(body: Mapping[str, Any], host_config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the networks that a create names. Raises BadRequest."""
    yield str(host_config.get("NetworkMode") or "default")
    networking = object_of(body, "NetworkingConfig", "NetworkingConfig")
    yield from object_of(networking, "EndpointsConfig", "NetworkingConfig.EndpointsConfig")


MODES = ("NetworkMode", "IpcMode", "PidMode")


def companions_of(host_config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the containers whose host a HostConfig needs."""
    for reference in strings_of(host_config, "VolumesFrom", "HostConfig.VolumesFrom"):
        yield reference.partition(":")[0]
    for mode in MODES:
        kind, _, reference = str(host_config.get(mode) or "").partition(":")
        if kind == "container" and reference:
            yield reference


# ---- placement


def require_link_targets(view: View, wish: CreateWish) -> list[Container]:
    """Return the target of each link. Raises BadRequest: on a 404 the docker client would pull."""
    if wish.links and "host" in wish.networks:
        raise BadRequest(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    found = []
    for link in wish.links:
        target = find_container(view, link.reference)
        if target is None:
            raise BadRequest(
                f"could not get container for {link.reference}: No such container: {link.reference}"
            )
        found.append(target)
    return found


def user_of(view: View, volume: str) -> str:
    """Return the host of a container that has a volume, "" if none has: its pin may be to come."""
    users = (
        c.host
        for c in view.containers.values()
        if any(mount.get("Name") == volume for mount in c.summary.get("Mounts") or ())
    )
    return min(users, default="")


def pins_of(view: View, wish: CreateWish) -> dict[str, str]:
    """Return the hosts that the wish is bound to, each with the reason. Raises BadRequest."""
    pins: dict[str, str] = {}
    for volume in wish.volumes:
        host = view.volumes[volume].host if volume in view.volumes else user_of(view, volume)
        if host:
            pins.setdefault(host, f"volume {volume} is on {host}")
    for reference in wish.companions:
        companion = find_container(view, reference)
        if companion is None:
            raise BadRequest(f"No such container: {reference}")
        pins.setdefault(companion.host, f"container {reference} is on {companion.host}")
    return pins


class Policy(NamedTuple):
    """How masters choose among the hosts that can take a container."""

    strategy: str = "spread"
    overcommit: float = 0.0


SPREAD = Policy()


class Load(NamedTuple):
    """What containers, there or in the making, take of each host."""

    containers: collections.Counter[str]
    memory_bytes: collections.Counter[str]
    nano_cpus: collections.Counter[str]
    bindings: Mapping[str, Set[str]]


def takers_of(
    view: View, making: Mapping[str, NameEntry], until: int | None = None
) -> list[Container | NameEntry]:
    """Return all containers, and the claims on names of others; until: claimed by that revision."""
    there = {c.name for c in view.containers.values()}
    soon = {**making, **view.names}
    claims = [e for name, e in soon.items() if name not in there]
    if view.moves:
        made = {(c.name, token_of(c)) for c in view.containers.values()}
        claims += [e for name, e in view.moves.items() if (name, e.id) not in made]
    return [
        *view.containers.values(),
        *(e for e in claims if until is None or e.revision <= until),
    ]


def taken_by(taker: Container | NameEntry, since: str) -> Needs:
    """Return what it takes now: what does not run takes nothing, unless it was just made.

    since: who made it after that is about to start it.
    """
    if isinstance(taker, NameEntry):
        return taker.needs
    if taker.running:
        return taker.needs._replace(bindings=taker.needs.bindings + taker.published)
    just_made = taker.state.get("Status") == "created" and taker.created >= since
    return taker.needs if just_made else NOTHING


def load_of(takers: Iterable[Container | NameEntry], since: str) -> Load:
    """Add up what they take of their hosts."""
    count, memory, cpus = (collections.Counter[str]() for _ in range(3))
    bindings: dict[str, set[str]] = {}
    for taker in takers:
        count[taker.host] += 1
        needs = taken_by(taker, since)
        if any(needs):
            memory[taker.host] += needs.memory_bytes
            cpus[taker.host] += needs.nano_cpus
            bindings.setdefault(taker.host, set()).update(needs.bindings)
    return Load(count, memory, cpus, bindings)


def without_replaced(view: View, wish: CreateWish) -> View:
    """Return a view less the container in whose place a new one is made.

    Compose makes it beside the old one, as ID_NAME, before it removes that and gives it its name.
    """
    short_id, _, name = wish.name.partition("_")
    old = view.names.get(name)
    if old is None or len(short_id) != 12 or not old.id.startswith(short_id):
        return view
    containers = {i: c for i, c in view.containers.items() if i != old.id}
    names = {n: entry for n, entry in view.names.items() if n != name}
    return dataclasses.replace(view, containers=containers, names=names)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One container, and all that its place depends on."""

    view: View
    wish: CreateWish
    pins: Mapping[str, str]
    policy: Policy
    load: Load
    found: Mapping[Rule, Mapping[str, Set[str]]]  # of each affinity's key: host: its values

    def values(self, rule: Rule, host: Host) -> Set[str]:
        """Return the values that a host has for a rule's key."""
        if rule in self.found:
            return self.found[rule].get(host.name, frozenset())
        return facts_of(self.view, host).get(rule.key, frozenset())

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.wish.constraints + self.wish.affinities

    @functools.cached_property
    def most_nano_cpus(self) -> int:
        """Return the CPUs of the largest host; to who asks for more the engine says it best."""
        cpus = (host.engine.get("cpus", 0) for host in self.view.hosts.values())
        return max(cpus, default=0) * 10**9

    @functools.cached_property
    def volumes(self) -> Mapping[str, int]:
        return collections.Counter(pin.host for pin in self.view.volumes.values())


def labels_of(view: View, host: Host) -> dict[str, str]:
    """Return a host's labels: the engine's, those of its slave, and what people said since."""
    engine = (text.partition("=") for text in host.engine.get("labels") or ())
    said = view.orders.get(host.name, Order()).labels
    labels = {**{key: value for key, _, value in engine}, **host.labels, **said}
    return {key: value for key, value in labels.items() if value is not None}


FACTS = {
    "architecture": "arch",
    "engineversion": "version",
    "kernelversion": "kernel",
    "operatingsystem": "os",
    "storagedriver": "driver",
}


def facts_of(view: View, host: Host) -> dict[str, frozenset[str]]:
    """Return what constraints can ask of a host."""
    facts = {key: frozenset([value]) for key, value in labels_of(view, host).items()}
    known = {key: str(host.engine[fact]) for key, fact in FACTS.items() if fact in host.engine}
    facts |= {key: frozenset([value]) for key, value in known.items()}
    own = frozenset([host.name])
    return facts | {"host": own, "node": own | {str(host.engine.get("id", ""))}}


def decide_order(view: View, host: Host, change: Mapping[str, Any]) -> Order:
    """Return what is said of a host after a change of its state or its labels. Raises BadRequest.

    change: state; labels, None to take one away.
    """
    known = view.orders.get(host.name, Order())
    state, labels = change.get("state", known.state), object_of(change, "labels", "labels")
    if state not in STATES:
        raise BadRequest(f"state must be one of {', '.join(map(repr, STATES))}, not {state!r}")
    for key, value in labels.items():
        if not re.fullmatch(LABEL_KEY, key) or not isinstance(value, (str, type(None))):
            raise BadRequest(f"a label is KEY=VALUE, not {key}={value}")
    own = labels_of(dataclasses.replace(view, orders={}), host)
    said = {**known.labels, **labels}
    return Order(state, {k: v for k, v in said.items() if v is not None or k in own})


STATES = ("", "cordoned", "drained")


def describe_hosts(view: View, hosts: Iterable[Host], since: str) -> list[dict[str, Any]]:
    """Return what people want to know of hosts; since: as for taken_by()."""
    load = load_of(takers_of(view, {}), since)
    running = collections.Counter(c.host for c in view.containers.values() if c.running)
    return [
        {
            "name": host.name,
            "ip": host.ip,
            "alive": host.name in view.alive,
            "state": view.orders.get(host.name, Order()).state,
            "version": host.version,
            "labels": labels_of(view, host),
            "engine": dict(host.engine),
            "containers": load.containers[host.name],
            "running": running[host.name],
            "memory_taken_bytes": load.memory_bytes[host.name],
            "nano_cpus_taken": load.nano_cpus[host.name],
        }
        for host in hosts
    ]


def find_values(rule: Rule, view: View, images: Mapping[str, Set[str]]) -> Mapping[str, Set[str]]:
    """Return what each host has of an affinity's key: containers, images, or a label's values."""
    if rule.key == "image":
        return images
    found: dict[str, set[str]] = collections.defaultdict(set)
    if rule.key == "container":  # those in the making too
        for name, entry in view.names.items():
            found[entry.host] |= {name, f"{name}@{entry.host}"}
    for c in view.containers.values():
        labels = c.summary.get("Labels") or {}
        if rule.key == "container":
            found[c.host] |= {c.name, c.full_name, c.id, c.id[:12]}
        elif rule.key in labels:
            found[c.host].add(labels[rule.key])
    return found


def check_pins(choice: Choice, host: Host) -> str:
    return next((why for pin, why in choice.pins.items() if pin != host.name), "")


def check_state(choice: Choice, host: Host) -> str:
    """Return why a host takes nothing; a cordoned one takes what belongs there or names it."""
    state = choice.view.orders.get(host.name, Order()).state
    named = any(rule == Rule("host", False, False, host.name) for rule in choice.rules)
    if choice.view.trouble(host.name):
        return choice.view.trouble(host.name)
    if state == "drained" or (state and not named and host.name not in choice.pins):
        return f"the host is {state}"
    return ""


def check_rules(choice: Choice, host: Host) -> str:
    for rule in choice.rules:
        values = choice.values(rule, host)
        if not rule.soft and not rule.allows(values):
            there = ", ".join(sorted(values)) if rule in choice.wish.constraints else ""
            return f"{rule} does not hold" + (f": it is {there}" if there else "")
    return ""


def check_ports(choice: Choice, host: Host) -> str:
    held = choice.load.bindings.get(host.name, ())
    taken = (b for b in choice.wish.needs.bindings if any(collide(b, other) for other in held))
    return next((f"port {binding} is taken" for binding in taken), "")


def check_room(choice: Choice, host: Host) -> str:
    needs, load = choice.wish.needs, choice.load
    over = 1 + choice.policy.overcommit
    memory = int(host.engine.get("memory_bytes", 0) * over)
    left = memory - load.memory_bytes[host.name]
    if needs.memory_bytes and memory > 0 and left < needs.memory_bytes:
        return f"{mib(max(0, left))} of {mib(memory)} of memory are left"
    cpus = int(host.engine.get("cpus", 0) * 10**9 * over)
    left = cpus - load.nano_cpus[host.name]
    if 0 < needs.nano_cpus <= choice.most_nano_cpus and left < needs.nano_cpus:
        return f"{max(0, left) / 1e9:g} of {cpus / 1e9:g} CPUs are left"
    return ""


def mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


CHECKS = (check_pins, check_state, check_rules, check_room)


def collide(binding: str, other: str) -> bool:
    """Return whether one host cannot give away both: without an address is at all addresses."""
    ip, _, port = binding.rpartition(":")
    other_ip, _, other_port = other.rpartition(":")
    return port == other_port and (ip == other_ip or not ip or not other_ip)


def rank(choice: Choice, host: Host) -> tuple[Any, ...]:
    """Return what the best host has least of: the same on every master, and never a tie."""
    name, needs, load = host.name, choice.wish.needs, choice.load
    missed = sum(r.soft and not r.allows(choice.values(r, host)) for r in choice.rules)
    memory = (load.memory_bytes[name] + needs.memory_bytes) / (host.engine.get("memory_bytes") or 1)
    cpus = (load.nano_cpus[name] + needs.nano_cpus) / (host.engine.get("cpus") or 1) / 1e9
    full = memory * (needs.memory_bytes > 0) + cpus * (needs.nano_cpus > 0)
    if choice.policy.strategy == "random":
        return missed, hashlib.sha256(f"{choice.wish.name} {name}".encode()).digest(), name
    if choice.policy.strategy == "binpack":
        return missed, -full, -load.containers[name], name
    return missed, full, load.containers[name], choice.volumes[name], name


class Placement(NamedTuple):
    """Where a container goes, and why."""

    host: str
    asked: str  # what it asked for, and gets there; "" when any host would have done
    chosen: str  # how it was chosen of those that could take it
    refused: Mapping[str, str]  # why each other host could not
    taken: str = ""  # the port that somebody has there, when it is so on all that could take it

    @property
    def reason(self) -> str:
        return "; ".join(filter(None, (self.asked, self.chosen)))


TOGETHER = (
    "; they are apart because nothing said that they belong together: make one of them anew with "
    "-e ARPANET_AFFINITY1=container==NAME of the other, or type: "
    "arpanet move --with-volumes NAME HOST"
)


def place(
    view: View,
    wish: CreateWish,
    pins: Mapping[str, str],
    making: Mapping[str, NameEntry] = MappingProxyType({}),
    images: Mapping[str, Set[str]] = MappingProxyType({}),
    policy: Policy = SPREAD,
    shunned: Collection[str] = (),
    since: str = "",
) -> Placement:
    """Return the host for a container: of those that can take it, the best by the policy.

    making: names that this master is making. images: of each host, for affinities to images.
    shunned: hosts that did not answer a moment ago, taken when there is no other, as are those
    where its port is taken: only its start needs it. since: as for taken_by().
    Raises NoRoom with the reason of each host.
    """
    if not view.hosts:
        raise NoRoom("no host has joined yet; on each Docker host type: arpanet slave start")
    unknown = [reason for pin, reason in pins.items() if pin not in view.hosts]
    if unknown:
        raise NoRoom(f"{unknown[0]}, which is not known here")
    found = {rule: find_values(rule, view, images) for rule in wish.affinities}
    load = load_of(takers_of(without_replaced(view, wish), making), since)
    choice = Choice(view, wish, pins, policy, load, found)
    refused = {name: obstacle(choice, view.hosts[name]) for name in sorted(view.hosts)}
    fitting = [name for name, reason in refused.items() if not reason]
    if not fitting:
        told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        told += TOGETHER if len(pins) > 1 else ""
        raise NoRoom(f"no host can take {wish.name}: {told}")
    ports = {name: check_ports(choice, view.hosts[name]) for name in fitting}
    best = min(fitting, key=lambda h: (h in shunned, ports[h] != "", rank(choice, view.hosts[h])))
    if not ports[best]:
        refused |= ports
    others = [name for name in fitting if ports[best] or not ports[name]]
    placed = explain(choice, view.hosts[best], others)
    refused = {name: reason for name, reason in refused.items() if reason}
    return placed._replace(refused=refused, taken=ports[best])


def obstacle(choice: Choice, host: Host) -> str:
    """Return why a host cannot take a container, "" if it can."""
    return next(filter(None, (check(choice, host) for check in CHECKS)), "")


def explain(choice: Choice, host: Host, fitting: Sequence[str]) -> Placement:
    """Return the placement on a host: what was asked for, and how it was chosen."""
    rules = [str(rule) for rule in choice.rules if rule.allows(choice.values(rule, host))]
    asked, needs = ", ".join([*choice.pins.values(), *rules]), choice.wish.needs
    chosen = choice.policy.strategy
    chosen += f" over {', '.join(fitting)}" if len(fitting) < len(choice.view.hosts) else ""
    chosen += f", {mib(needs.memory_bytes)} of memory" if needs.memory_bytes else ""
    chosen += f", {needs.nano_cpus / 1e9:g} CPUs" if needs.nano_cpus else ""
    chosen += f", {choice.load.containers[host.name]} containers were there"
    return Placement(host.name, asked, chosen, {})


def has_room(
    view: View, wish: CreateWish, placed: Placement, claimed: int, policy: Policy, since: str = ""
) -> str:
    """Return why its host has no room for a name claimed at a revision, "" if it has.

    All that were claimed before it count, whoever makes them, and none that came after: so of
    two masters that take the last room at once, the first keeps it, and the other sees it.
    """
    names, moves = (
        {name: entry for name, entry in table.items() if name != wish.name}
        for table in (view.names, view.moves)
    )
    view = dataclasses.replace(view, names=names, moves=moves)
    load = load_of(takers_of(without_replaced(view, wish), {}, claimed), since)
    choice, host = Choice(view, wish, {}, policy, load, {}), view.hosts[placed.host]
    return check_room(choice, host) or ("" if placed.taken else check_ports(choice, host))


# ---- containers that are made again elsewhere


def decide_rescues(view: View, host: str) -> list[Container]:
    """Return the containers of a dead host that are to be made elsewhere."""
    return [
        c
        for c in view.containers.values()
        if c.host == host
        and c.id in view.recipes
        and c.name not in view.moves
        and holds_name(view, c)
    ]


def holds_name(view: View, container: Container) -> bool:
    """Return whether a container is the one that its name means."""
    entry = view.names.get(container.name)
    return entry is not None and (entry.host, entry.id) == (container.host, container.id)


def decide_chores(view: View, host: str) -> dict[str, Chore]:
    """Return what a host has to do now, by container id or token: of moves that are over."""
    rows = {split_key(key): chore for key, chore in view.chores.items()}
    return {
        what: chore
        for (on, what), chore in rows.items()
        if on == host and view.moves.get(chore.name, NameEntry("", "")).id != chore.token
    }


def has_run(view: View, container: Container) -> bool:
    """Return whether a container runs, or would but for a move that came to nothing."""
    chore = view.chores.get(f"{container.host}/{container.id}")
    return container.running or (chore is not None and chore.verb == "start")


def decide_cargo(container: Container, details: Mapping[str, Any], allowed: bool) -> list[Cargo]:
    """Return the volumes that go along. Raises Conflict when something cannot go.

    allowed: whether volumes may; details: of the engine.
    """
    name, host, cargo = container.name, container.host, []
    if details["HostConfig"].get("AutoRemove"):
        raise Conflict(f"{name} was run with --rm, and would be gone when it is stopped")
    for mount in details.get("Mounts") or ():
        path = mount["Destination"]
        if mount.get("Type") == "volume" and not allowed:
            raise Conflict(
                f"{name} has a volume at {path}, whose data stays on {host}, and {name} with it; "
                f"to copy it try: arpanet move --with-volumes {name}"
            )
        if mount.get("Type") == "volume":
            if mount.get("Driver", "local") != "local" or not mount.get("RW", True):
                raise Conflict(
                    f"{name} cannot write to its volume at {path}, or the volume is none of the "
                    "driver local: such a one cannot be copied"
                )
            cargo.append(Cargo(mount["Name"], path))
        elif mount.get("Type") != "tmpfs":
            raise Conflict(
                f"{name} has {mount.get('Source')} of {host} at {path}, which does not go along: "
                "only volumes can be moved"
            )
    return sorted(cargo, key=operator.attrgetter("path"))


NOT_DECLARED = Declared("")


def body_again(
    details: Mapping[str, Any], cargo: Sequence[Cargo] = (), declared: Declared = NOT_DECLARED
) -> dict[str, Any]:
    """Return the body that makes a container like the one an engine describes.

    Its links are in it as the host entries and variables that came of them. What its image says to
    arpanet is not, and comes of the image again. What that has where a volume is mounted is not to
    be mixed with the data that comes.
    """
    config, short = details["Config"], details["Id"][:12]
    found = (details.get("NetworkSettings") or {}).get("Networks") or {}
    networks = {
        name: {"Aliases": [alias for alias in endpoint.get("Aliases") or () if alias != short]}
        for name, endpoint in found.items()
        if name not in STANDARD_NETWORKS
    }
    body = {k: v for k, v in config.items() if k != "MacAddress" and v != short}
    records = (LABEL_LINKS, LABEL_VOLUMES, LABEL_PLACED, LABEL_MADE)
    said = config.get("Labels") or {}
    labels = {k: v for k, v in said.items() if k not in records and not is_rule(k)}
    labels |= {**declared.labels, **links_label(declared.links)}
    env = [line for line in config.get("Env") or () if not is_wish(line)]
    network = {"EndpointsConfig": networks}
    host_config = dict(details["HostConfig"])
    if cargo:
        mounts = [m for m in host_config.get("Mounts") or () if m.get("Type") != "volume"]
        binds = [f"{volume.name}:{volume.path}:nocopy" for volume in cargo]
        host_config.update(Binds=binds, Mounts=mounts, VolumesFrom=None)
    again = {"Env": env, "Labels": labels, "HostConfig": host_config}
    return {**body, **again, "NetworkingConfig": network}


def fixed_addresses(details: Mapping[str, Any]) -> dict[str, str]:
    """Return the address that was asked for (--ip, --ip6) on each network of a container."""
    found = (details.get("NetworkSettings") or {}).get("Networks") or {}
    wanted = {name: endpoint.get("IPAMConfig") or {} for name, endpoint in found.items()}
    asked = {n: w.get("IPv4Address") or w.get("IPv6Address") or "" for n, w in wanted.items()}
    return {name: ip for name, ip in asked.items() if ip}


def decide_move(container: Container, body: Mapping[str, Any], host: str) -> CreateWish:
    """Return what a container that is moved asks for: a host, if one is named, or any other."""
    wish = read_create(container.name, body)
    if not host:
        other = Rule("host", True, False, container.host)
        return wish._replace(constraints=(*wish.constraints, other))
    kept = tuple(r for r in wish.constraints if r.key not in ("host", "node"))
    labels = {**wish.labels, **({"arpanet.host": host} if "arpanet.host" in wish.labels else {})}
    return wish._replace(constraints=(*kept, Rule("host", False, False, host)), labels=labels)


# ---- links


def resolver_of(subnet: str) -> str:
    """Return the address at which slaves answer for names: the first of the links' network."""
    return str(ipaddress.IPv4Network(subnet)[1])


def choose_vip(view: View, subnet: str, name: str) -> str:
    """Return the name's virtual address, or a free one: the same on every master. Raises NoRoom."""
    if name in view.vips:
        return view.vips[name]
    network = ipaddress.IPv4Network(subnet)
    room = network.num_addresses - 3  # less both ends, and the resolver
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % room
    for step in range(room):
        address = str(network[2 + (first + step) % room])
        if address not in view.addresses:
            return address
    raise NoRoom(f"all {room} addresses of the links' network {subnet} are taken")


def variable_prefix(link: Link) -> str:
    """Return what the variables of a link begin with."""
    return link.alias.upper().replace("-", "_")


def decide_free(view: View) -> dict[str, str]:
    """Return the addresses that nobody needs, and whose they were.

    Needed are those of names that somebody has, and of links, also to a name that nobody has now.
    None is free while a host may have links that are not recorded yet.
    """
    if not all(host.declares for host in view.hosts.values()):
        return {}
    linked = {link.vip for declared in view.declared.values() for link in declared.links}
    there = {c.name for c in view.containers.values()} | view.names.keys()
    return {
        ip: name
        for ip, name in view.addresses.items()
        if ip not in linked and (name not in there or view.vips.get(name) != ip)
    }


def link_environment(
    consumer: str, link: Link, expose: Sequence[str], env: Sequence[str]
) -> list[str]:
    """Return the variables that Docker's own links give. Source: engine 20.10, observed.

    expose: "5432/tcp"; env: the target's variables.
    """
    prefix = variable_prefix(link)
    ports = sorted(parse_expose(expose))
    lines = []
    if ports:
        lines.append(f"{prefix}_PORT={ports[0].protocol}://{link.vip}:{ports[0].number}")
    for row in port_rows(ports):
        lines += row_environment(prefix, link.vip, row)
    for port in ports:
        lines += port_environment(prefix, link.vip, port)
    lines.append(f"{prefix}_NAME=/{consumer}/{link.alias}")
    for line in env:
        name, separator, _ = line.partition("=")
        if separator and name not in ("HOME", "PATH"):
            lines.append(f"{prefix}_ENV_{line}")
    return lines


class ExposedPort(NamedTuple):
    """A port that a container exposes."""

    number: int
    protocol: str


def parse_expose(expose: Iterable[str]) -> list[ExposedPort]:
    """Return the ports of "5432/tcp" texts."""
    split = [text.partition("/") for text in expose]
    return [ExposedPort(int(n), protocol or "tcp") for n, _, protocol in split if n.isdecimal()]


def port_environment(alias: str, vip: str, port: ExposedPort) -> list[str]:
    """Return the variables of one exposed port."""
    prefix = f"{alias}_PORT_{port.number}_{port.protocol.upper()}"
    return [
        f"{prefix}={port.protocol}://{vip}:{port.number}",
        f"{prefix}_ADDR={vip}",
        f"{prefix}_PORT={port.number}",
        f"{prefix}_PROTO={port.protocol}",
    ]


class PortRow(NamedTuple):
    """Consecutive ports of one protocol."""

    first: ExposedPort
    last: ExposedPort


def port_rows(ports: Iterable[ExposedPort]) -> list[PortRow]:
    """Return the rows of three or more consecutive ports."""
    rows: list[PortRow] = []
    for port in sorted(ports, key=lambda p: (p.protocol, p.number)):
        if rows and rows[-1].last == ExposedPort(port.number - 1, port.protocol):
            rows[-1] = PortRow(rows[-1].first, port)
        else:
            rows.append(PortRow(port, port))
    return [row for row in rows if row.last.number - row.first.number >= 2]


def row_environment(alias: str, vip: str, row: PortRow) -> list[str]:
    """Return what a row of ports has besides the variables of each port."""
    first, last = row.first.number, row.last.number
    prefix = f"{alias}_PORT_{first}_{row.first.protocol.upper()}"
    return [
        f"{prefix}_START={row.first.protocol}://{vip}:{first}",
        f"{prefix}_PORT_START={first}",
        f"{prefix}_END={row.first.protocol}://{vip}:{last}",
        f"{prefix}_PORT_END={last}",
    ]


class LinkTarget(NamedTuple):
    """A linked container, and the host entries and variables that point to it."""

    link: Link
    hostname: str
    expose: tuple[str, ...]
    env: tuple[str, ...]


def links_label(links: Sequence[Link]) -> dict[str, str]:
    """Return the label that tells people of a container's links."""
    return {LABEL_LINKS: json.dumps([list(link) for link in links])} if links else {}


def link_variables(wish: CreateWish, targets: Sequence[LinkTarget]) -> list[str]:
    """Return the variables that its links give a container, less those that the user gives."""
    own = {line.partition("=")[0] for line in wish.env}  # of two, most programs see the first
    env = [line for t in targets for line in link_environment(wish.name, t.link, t.expose, t.env)]
    return [line for line in env if line.partition("=")[0] not in own]


def declare_new(host: str, wish: CreateWish, targets: Sequence[LinkTarget]) -> Declared:
    """Return what a create declares."""
    env = dict.fromkeys(line.partition("=")[0] for line in link_variables(wish, targets))
    return Declared(host, tuple(t.link for t in targets), wish.labels, tuple(env))


def create_body(
    body: Mapping[str, Any],
    wish: CreateWish,
    targets: Sequence[LinkTarget],
    resolvers: Sequence[str],
    reason: str = "",
) -> dict[str, Any]:
    """Return the body that the engine gets: links and volumes made of what one engine has.

    resolvers: who is asked for names, if the user does not say; none: whom the engine asks.
    """
    host_config = dict(body.get("HostConfig") or {})
    env = link_variables(wish, targets)
    hosts = strings_of(host_config, "ExtraHosts", "HostConfig.ExtraHosts")
    given = {entry.partition(":")[0] for entry in hosts}
    for t in targets:
        names = dict.fromkeys((t.link.alias, t.hostname, t.link.target))
        entries = [f"{n}:{t.link.vip}" for n in names if n and n not in given]
        hosts += tuple(entry for entry in entries if entry not in hosts)
    labels = dict(object_of(body, "Labels", "Labels"))
    labels.update(links_label([t.link for t in targets]))
    labels.update({LABEL_VOLUMES: ",".join(wish.volumes)} if wish.volumes else {})
    labels.update(wish.labels)
    labels.update({LABEL_PLACED: reason} if reason else {})
    host_config.update(
        Links=None,
        Binds=list(wish.binds) or None,
        ExtraHosts=list(hosts) or None,
        Dns=host_config.get("Dns") or list(resolvers) or host_config.get("Dns"),
        **plain_references(host_config),
    )
    return dict(body, Env=env + list(wish.env), Labels=labels, HostConfig=host_config)


def plain_references(host_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that name containers, with @HOST cut off."""
    fields: dict[str, Any] = {}
    for mode in MODES:
        value = host_config.get(mode)
        if isinstance(value, str) and value.startswith("container:"):
            fields[mode] = value.partition("@")[0]
    if host_config.get("VolumesFrom"):
        fields["VolumesFrom"] = [re.sub("@[^:]*", "", v) for v in host_config["VolumesFrom"]]
    return fields


class LinkRoute(NamedTuple):
    """Where a link's traffic goes: straight to an address, or through another host's agent."""

    address: HostPort
    target: str  # NAME:PORT when address is an agent's, else ""
    host: str = ""  # of that agent


@dataclasses.dataclass(frozen=True)
class LinkTable:
    """What one host's slave must listen on and let through, as of one revision."""

    revision: int
    listeners: Mapping[HostPort, str]  # VIP:PORT -> target container's name
    allowed: frozenset[tuple[str, str]]  # (address of a container here, target)
    consumers: Mapping[str, str]  # address of a container here: its id


def neighbours_of(view: View, consumer: Container) -> list[Container]:
    """Return the containers on the networks, made through arpanet, that a container is on."""
    shared = consumer.networks.keys() & view.networks.keys()
    if not shared:
        return []
    return [c for c in view.containers.values() if shared & c.networks.keys()]


def targets_of(view: View, consumer: Container) -> dict[str, str]:
    """Return whom a container may reach by a virtual address: names, and their addresses."""
    neighbours = {c.name for c in neighbours_of(view, consumer)}
    reach = {name: view.vips[name] for name in neighbours & view.vips.keys()}
    return reach | {link.target: link.vip for link in view.declared_of(consumer).links}


def decide_links(view: View, host: str) -> LinkTable:
    """Return the listeners for what containers on a host may reach."""
    listeners: dict[HostPort, str] = {}
    allowed: set[tuple[str, str]] = set()
    consumers: dict[str, str] = {}
    for consumer in (c for c in view.containers.values() if c.host == host):
        consumers.update(dict.fromkeys(consumer.addresses, consumer.id))
        for name, vip in targets_of(view, consumer).items():
            allowed.update((ip, name) for ip in consumer.addresses)
            target = find_by_name(view, name)
            for port in parse_expose(target.expose if target else ()):
                if port.protocol == "tcp":
                    listeners[HostPort(vip, port.number)] = name
    return LinkTable(view.revision, listeners, frozenset(allowed), consumers)


def find_vips(view: View, consumer: Container, name: str) -> list[str] | None:
    """Return the addresses that a name means for a container, None if it means nothing there.

    A name is a container's, or an alias that it has on a network, or that the asking container
    gave it there (a link of a network's own kind), with or without .NETWORK.
    """
    plain = name.rstrip(".").lower()
    found = []
    for c in neighbours_of(view, consumer):
        for network in consumer.networks.keys() & c.networks.keys() & view.networks.keys():
            names = names_on(network, c, consumer)
            if (plain in names or plain.removesuffix(f".{network.lower()}") in names) and c.running:
                found.append(view.vips.get(c.name, ""))
    return sorted({vip for vip in found if vip}) or None


def names_on(network: str, container: Container, consumer: Container) -> set[str]:
    """Return what a container is called on a network by a consumer there, in lower case."""
    names = {n.lower() for n in (container.name, *container.aliases.get(network, ()))}
    calls = [call.lower().partition(":") for call in consumer.calls.get(network, ())]
    return names | {alias for target, _, alias in calls if target in names}


# ---- names, as DNS has them. Source: RFC 1035, 4.1

A_RECORD, INTERNET, NAME_TTL_S = 1, 1, 1


class Question(NamedTuple):
    """What a DNS query asks for."""

    id: int
    flags: int
    name: str
    kind: int
    section: bytes  # the question as it came


def read_question(packet: bytes) -> Question | None:
    """Return the one question of a query, None if it is something else or malformed."""
    try:
        number, flags, questions = struct.unpack_from(">HHH", packet)
        position, labels = 12, []
        while length := packet[position]:
            labels.append(packet[position + 1 : position + 1 + length].decode("ascii"))
            position += 1 + length
        kind, family = struct.unpack_from(">HH", packet, position + 1)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    if flags & 0xF800 or questions != 1 or family != INTERNET or len(labels) > 127:
        return None
    return Question(number, flags, ".".join(labels), kind, packet[12 : position + 5])


def name_reply(question: Question, addresses: Sequence[str], failed: bool = False) -> bytes:
    """Return the packet that answers a question; without addresses: there are none of that kind."""
    given = addresses if question.kind == A_RECORD else ()
    flags = 0x8080 | question.flags & 0x0100 | (2 if failed else 0)
    head = struct.pack(">HHHHHH", question.id, flags, 1, len(given), 0, 0)
    records = [
        struct.pack(">HHHIH4s", 0xC00C, A_RECORD, INTERNET, NAME_TTL_S, 4, socket.inet_aton(ip))
        for ip in given
    ]
    return head + question.section + b"".join(records)


def find_address(view: View, container: Container) -> str | None:
    """Return where a container is reached from its own host, None while it does not run."""
    mode = str((container.summary.get("HostConfig") or {}).get("NetworkMode") or "")
    if not container.running:
        return None
    if mode == "host":
        return "127.0.0.1"
    if mode.startswith("container:"):
        other = find_container(view, mode.partition(":")[2])
        return find_address(view, other) if other and other.id != container.id else None
    return container.addresses[0] if container.addresses else None


def find_route(view: View, host: str, name: str, port: int) -> LinkRoute | None:
    """Return how a host reaches port of a container now, None while it cannot be reached."""
    target = find_by_name(view, name)
    if target is None:
        return None
    if target.host == host:
        address = find_address(view, target)
        return LinkRoute(HostPort(address, port), "") if address else None
    far = view.hosts.get(target.host)
    if far is None or target.host not in view.alive:
        return None
    return LinkRoute(far.agent, f"{name}:{port}", target.host)


# ---- API versions


def parse_api(text: str) -> tuple[int, int]:
    """Return (1, 41) of "1.41". Raises ValueError."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


class ApiRange(NamedTuple):
    """The API versions that every engine of the cluster can do."""

    oldest: str
    newest: str


def api_range(view: View) -> ApiRange:
    """Return what all living engines have in common with this arpanet."""
    engines = [h.engine for h in view.living_hosts() or view.hosts.values()]
    newest = min([parse_api(e.get("api", "1.41")) for e in engines] + [NEWEST_API])
    oldest = max([parse_api(e.get("min_api", "1.12")) for e in engines] + [(1, 12)])
    return ApiRange(".".join(map(str, oldest)), ".".join(map(str, newest)))


# ==== Mesh ===================================================================
# etcd, through gRPC and what etcd3 says of etcd's messages, and nothing else of it: its watcher,
# its single endpoint and its defaults lose events and hang. etcd is the truth for names, links,
# volumes and who is alive; a change is one transaction, made so that repeating it after a lost
# answer is harmless (class Transaction). Nobody outside this section knows gRPC.

MARK = PREFIX + "format"  # "NAME/WORD": which arpanet this is for ever, and how it was recovered
DEADLINE_S = 10.0
FIRST_TRY_S, TRY_S = 0.5, 1.5
HASTE_S = 2.0  # so long after its begin a call is tried in haste: an election takes that
MEMBERS_S = 5.0  # between two looks at the member list
PAGE = 1000
CHANNEL_OPTIONS = (
    ("grpc.lb_policy_name", "round_robin"),  # a dead or hung master leaves the rotation
    ("grpc.keepalive_time_ms", 1200),  # wants etcd --grpc-keepalive-min-time=1s, else GOAWAY
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),  # the default, 120 s, leaves a healed master alone
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
PING_MS, ONLY_PING_MS = 1200, 5000  # until a silent connection is broken off; to the only master
LEADER = (("hasleader", "true"),)  # a master without leader answers at once instead of hanging
TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "CANCELLED", "INTERNAL")
NEVER_SENT = re.compile(
    r"failed to connect|connections to all backends failing|empty address list|no leader"
    r"|not supported for learner|channel closed|closed channel|too many requests",
    re.IGNORECASE,
)


class Entry(NamedTuple):
    """One key as it stood at one revision; lease 0 is none."""

    key: str
    value: bytes
    version: int
    mod_revision: int
    create_revision: int
    lease: int


class Event(NamedTuple):
    """One change of one key; entry is None when the key was deleted."""

    key: str
    entry: Entry | None
    revision: int


class Claim(NamedTuple):
    """A key that we made: ours as long as its create_revision is this revision."""

    key: str
    revision: int
    value: bytes = b""


class Check(NamedTuple):
    """What must hold for a commit: the key's create (0: absent) or its last change."""

    key: str
    create_revision: int | None = None
    mod_revision: int | None = None


class Put(NamedTuple):
    """One key to write; lease 0 is none."""

    key: str
    value: bytes
    lease: int = 0


class Member(NamedTuple):
    """One etcd member; name is "" until it has started once, client then "" too ("ip:port")."""

    id: int
    name: str
    peer_url: str
    client: str
    learner: bool


class Fault(NamedTuple):
    """Why one try failed: may another follow, and can it have reached etcd all the same."""

    transient: bool
    maybe_done: bool
    text: str


class Outcome(NamedTuple):
    """What a transaction came to: the revision if it was done, else 0, and what was found."""

    done: bool
    revision: int
    found: Mapping[str, Entry]
    lost: bool


MORE_ROOM = "give it more: on each master, arpanet master stop, then start with --etcd-quota-mb MB"


def encode_key(key: str) -> bytes:
    """Return the key as etcd holds it; the inverse of decode_key for any bytes."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """Return the key as text; bytes that are not UTF-8 survive."""
    return key.decode("utf-8", "surrogateescape")


def find_prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that begin with prefix. Source: etcd range_end."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def build_entry(kv: Any) -> Entry:
    """Return etcd's KeyValue as a value of ours."""
    return Entry(
        key=decode_key(kv.key),
        value=kv.value,
        version=kv.version,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        lease=kv.lease,
    )


def build_member(member: Any) -> Member:
    """Return etcd's Member; isLearner is field 5, newer than etcd3's protobuf and kept there."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    clients = [url.partition("://")[2] for url in member.clientURLs]
    public = [client for client in clients if not client.startswith("127.0.0.1:")]
    learner = any(f.field_number == 5 and bool(f.data) for f in UnknownFieldSet(member))
    return Member(
        id=member.ID,
        name=member.name,
        peer_url=next(iter(member.peerURLs), ""),
        client=next(iter(public or clients), ""),
        learner=learner,
    )


def find_cause(text: str) -> str:
    """Return the few words that matter of a gRPC error text."""
    known = {
        "no leader": "no quorum",
        "onnection refused": "refused",
        "onnection reset": "connection reset",
        "o route to host": "no route to host",
        "eadline": "no answer in time",
    }
    plain = next((cause for sign, cause in known.items() if sign in text), "")
    return plain or text.rpartition("last error: ")[2] or "no reason given"


def read_fault(error: Exception) -> Fault:
    """Return what an error of gRPC means; a ValueError is a channel that was closed meanwhile."""
    if isinstance(error, ValueError):
        if "hannel" not in str(error):
            raise error
        return Fault(transient=True, maybe_done=False, text=str(error))
    code = getattr(error, "code", lambda: None)()
    details = getattr(error, "details", lambda: None)() or str(error)
    name = code.name if code else "UNKNOWN"
    transient = name in TRANSIENT or "too many requests" in details
    text = details if transient else f"{name}: {details}"
    return Fault(transient, not NEVER_SENT.search(details), text)


class Etcd3(NamedTuple):
    """etcd's messages and services by name, and how gRPC calls them; untyped, so Any."""

    grpc: Any
    rpc: Any
    services: Mapping[str, Any]
    make_class: Callable[[Any], Any]
    errors: tuple[type[Exception], ...]
    garbled: type[Exception]  # of what is no message


def load_etcd3() -> Etcd3:
    """Import gRPC and etcd's messages: takes 0.1 s, so only a process that needs them does it.

    The code that etcd3 has for its messages is of 2019 and runs with a protobuf of pure Python
    alone, which takes twenty times as long; what it was generated from serves any protobuf.
    """
    if os.getenv("GRPC_VERBOSITY") is None:
        os.putenv("GRPC_VERBOSITY", "ERROR")  # read by its C core when it is first loaded
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import DecodeError
    from google.protobuf.message_factory import GetMessageClass

    pool = DescriptorPool()
    for name in ("kv", "auth", "rpc"):
        pool.AddSerializedFile(read_definitions(name))
    file = pool.FindFileByName("rpc.proto")
    messages = {n: GetMessageClass(m) for n, m in file.message_types_by_name.items()}
    errors = (grpc.RpcError, ValueError)
    rpc, services = SimpleNamespace(**messages), file.services_by_name
    return Etcd3(grpc, rpc, services, GetMessageClass, errors, DecodeError)


def read_definitions(name: str) -> bytes:
    """Return the FileDescriptorProto of NAME.proto, which etcd3's NAME_pb2.py holds as a literal.

    Raises ImportError. Source: etcd3 0.12.0, its last release.
    """
    package = importlib.util.find_spec("etcd3")
    if package is None:
        raise ImportError("No module named 'etcd3'")
    directory = next(iter(package.submodule_search_locations or [""]))
    code = read_file(os.path.join(directory, "etcdrpc", f"{name}_pb2.py")).decode()
    literal = re.search(r"serialized_pb=_b\(('.*')\)\n", code)
    if literal is None:
        raise ImportError(f"{name}_pb2 of etcd3 is not that of version 0.12.0")
    return str(ast.literal_eval(literal[1])).encode("latin-1")


def build_stub(etcd3: Etcd3, channel: Any, service: str) -> Any:
    """Return what calls the methods of one of etcd's services, by their names."""

    def bind(method: Any) -> Any:
        make = channel.stream_stream if method.client_streaming else channel.unary_unary
        asked, answer = map(etcd3.make_class, (method.input_type, method.output_type))
        path = f"/{method.containing_service.full_name}/{method.name}"
        return make(path, asked.SerializeToString, answer.FromString)

    methods = etcd3.services[service].methods
    return SimpleNamespace(**{method.name: bind(method) for method in methods})


def choose_channel_options(masters: int) -> tuple[tuple[str, Any], ...]:
    """Return gRPC's options for a channel to so many masters.

    Where there is another master, one that is silent is left soon. The only one may be busy.
    """
    ping_ms = PING_MS if masters > 1 else ONLY_PING_MS
    return (
        *CHANNEL_OPTIONS,
        ("grpc.keepalive_timeout_ms", ping_ms),
        ("grpc.http2.ping_timeout_ms", ping_ms),  # the one that acts; its default is 60 s
    )


class Wire:
    """One gRPC channel to all masters, with the certificate of now, and etcd's services."""

    def __init__(self, etcd3: Etcd3, endpoints: Sequence[str]) -> None:
        target = "ipv4:" + ",".join(endpoints)  # gRPC's syntax for many addresses
        own, self.stamp = identity(), identity_stamp()
        options = choose_channel_options(len(endpoints))
        if own:
            ca, cert, key = own.read()
            credentials = etcd3.grpc.ssl_channel_credentials(ca, key, cert)
            # one name for many addresses, which every machine's certificate has
            options += (("grpc.ssl_target_name_override", MACHINE),)
            self._channel: Any = etcd3.grpc.secure_channel(target, credentials, options)
        else:
            self._channel = etcd3.grpc.insecure_channel(target, options)
        self.rpc, self.errors = etcd3.rpc, etcd3.errors
        self.kv, self.lease, self.cluster, self.watch = (
            build_stub(etcd3, self._channel, name) for name in ("KV", "Lease", "Cluster", "Watch")
        )

    def range(self, timeout_s: float, **fields: Any) -> Any:
        """Return etcd's answer to a RangeRequest; raises what gRPC raises."""
        return self.kv.Range(self.rpc.RangeRequest(**fields), timeout_s, metadata=LEADER)

    def close(self) -> None:
        self._channel.close()


def compare(rpc: Any, key: str, result: Any, **revision: int) -> Any:
    """Return what etcd is to compare of a key: its create_revision or its mod_revision."""
    target = rpc.Compare.CREATE if "create_revision" in revision else rpc.Compare.MOD
    return rpc.Compare(key=encode_key(key), target=target, result=result, **revision)


class Transaction:
    """One change, repeatable after a lost answer.

    Each key that is written or deleted also gets a guard: nobody changed it since `seen`, the
    newest revision this process knew when it began. So a try that was given up on, and arrives
    late, changes nothing once a later one went through; unless its key was deleted since, which
    leaves nothing to compare: a claim of that kind is deleted when it is seen (Node.give_up). A
    guard that fails where the checks hold is no answer: the next try knows the newer revision.
    After a lost answer, finding its own values with one mod_revision (or its keys deleted) means
    that the lost try did it; values must therefore be unique to the caller where the checks are
    to decide a race.
    Source: etcd Txn; mod_revision and create_revision of an absent key are 0.
    """

    def __init__(
        self, checks: Sequence[Check], puts: Sequence[Put], deletes: Sequence[str], seen: int
    ) -> None:
        self._checks, self._puts, self._deletes = tuple(checks), tuple(puts), tuple(deletes)
        self._written = [*(put.key for put in puts), *deletes]
        self._seen = seen
        self.lost = False  # a try was sent and its answer never came

    def send(self, wire: Wire, timeout_s: float) -> Any:
        """Return etcd's answer to one try; raises what gRPC raises."""
        rpc = wire.rpc
        request = rpc.TxnRequest(
            compare=[*self._build_checks(rpc), *self._build_guards(rpc)],
            success=[*self._build_puts(rpc), *self._build_deletes(rpc)],
            failure=[
                rpc.RequestOp(request_range=rpc.RangeRequest(key=encode_key(key)))
                for key in dict.fromkeys([*(check.key for check in self._checks), *self._written])
            ],
        )
        return wire.kv.Txn(request, timeout_s, metadata=LEADER)

    def note_fault(self, fault: Fault) -> None:
        """Remember that a try may have been done."""
        self.lost = self.lost or fault.maybe_done

    def read_answer(self, answer: Any) -> Outcome | None:
        """Return the outcome, or None when only a guard failed and the next try may do it."""
        if answer.succeeded:
            return Outcome(True, answer.header.revision, {}, self.lost)
        entries = [build_entry(kv) for op in answer.responses for kv in op.response_range.kvs]
        found = {entry.key: entry for entry in entries}
        if self.lost and self._is_ours(found):
            revision = found[self._puts[0].key].mod_revision if self._puts else 0
            return Outcome(True, revision or answer.header.revision, found, True)
        if not all(self._holds(check, found) for check in self._checks):
            return Outcome(False, 0, found, self.lost)
        self._seen = answer.header.revision
        return None

    def _build_checks(self, rpc: Any) -> Iterator[Any]:
        for key, created, changed in self._checks:
            if created is not None:
                yield compare(rpc, key, rpc.Compare.EQUAL, create_revision=created)
            if changed is not None:
                yield compare(rpc, key, rpc.Compare.EQUAL, mod_revision=changed)

    def _build_guards(self, rpc: Any) -> Iterator[Any]:
        for key in self._written:
            yield compare(rpc, key, rpc.Compare.LESS, mod_revision=self._seen + 1)

    def _build_puts(self, rpc: Any) -> Iterator[Any]:
        for put in self._puts:
            request = rpc.PutRequest(key=encode_key(put.key), value=put.value, lease=put.lease)
            yield rpc.RequestOp(request_put=request)

    def _build_deletes(self, rpc: Any) -> Iterator[Any]:
        for key in self._deletes:
            request = rpc.DeleteRangeRequest(key=encode_key(key))
            yield rpc.RequestOp(request_delete_range=request)

    def _is_ours(self, found: Mapping[str, Entry]) -> bool:
        entries = [found.get(put.key) for put in self._puts]
        values = [entry.value if entry else None for entry in entries]
        revisions = {entry.mod_revision for entry in entries if entry}
        return (
            values == [put.value for put in self._puts]
            and len(revisions) <= 1
            and not any(key in found for key in self._deletes)
        )

    @staticmethod
    def _holds(check: Check, found: Mapping[str, Entry]) -> bool:
        entry = found.get(check.key)
        created, changed = (entry.create_revision, entry.mod_revision) if entry else (0, 0)
        return check.create_revision in (None, created) and check.mod_revision in (None, changed)


FRAME_HEAD_BYTES, FRAME_BYTES = 9, 16384  # a frame's content is not longer, as we ask for no more
ANSWER_FRAMES = 64  # an answer has three, and there may be pings and settings between


class Frame:
    """The kinds of HTTP/2's frames, and their flags. Source: RFC 9113, section 6."""

    DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
    END_STREAM = ACK = 1
    END_HEADERS = 4


def pack_frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Return one frame."""
    high, low = divmod(len(content), 256)
    return struct.pack(">HBBBI", high, low, kind, flags, stream) + content


def pack_fields(fields: Mapping[bytes, bytes]) -> bytes:
    """Return header fields, none longer than 126 bytes, for no table. Source: RFC 7541, 6.2.2."""
    return b"".join(b"\0%c%b%c%b" % (len(n), n, len(v), v) for n, v in fields.items())


class GrpcCaller:
    """Makes one and the same call again and again, on a connection of its own.

    With a fifth of the work that gRPC's library has, and no other thread to wait for. Thread: one
    at a time. Source: gRPC over HTTP/2.
    """

    CALLS = 1 << 20  # then ids of streams and the window for answers are still far from their ends
    ECHO_S = 1.0  # etcd answers an echo by another ping: not more often than this
    BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + pack_frame(Frame.SETTINGS, 0, 0, b"")
    BEGIN += pack_frame(Frame.WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - (1 << 16)))

    def __init__(self, sock: socket.socket, method: bytes, message: bytes) -> None:
        """Take over a connection. method: b"/etcdserverpb.KV/Range". Raises OSError."""
        self._sock, self._ahead = sock, b""
        self._echoes, self._echo_at = b"", 0.0
        fields = {
            b":method": b"POST", b":scheme": b"http", b":path": method, b":authority": b"etcd",
            b"content-type": b"application/grpc", b"te": b"trailers", b"hasleader": b"true",
        }  # fmt: skip
        self._head, self._body = pack_fields(fields), struct.pack(">BI", 0, len(message)) + message
        self.calls = 0
        sock.sendall(self.BEGIN)

    def call(self) -> bytes:
        """Return the message of the answer, b"" if there is none. Raises OSError."""
        stream, answer = 2 * self.calls + 1, b""
        self.calls += 1
        head = pack_frame(Frame.HEADERS, Frame.END_HEADERS, stream, self._head)
        body = pack_frame(Frame.DATA, Frame.END_STREAM, stream, self._body)
        self._sock.sendall(self._take_echoes() + head + body)
        for _ in range(ANSWER_FRAMES):
            kind, flags, of, content = self._read_frame()
            if kind in (Frame.RST_STREAM, Frame.GOAWAY):
                raise ConnectionError("the call was ended")
            if kind in (Frame.SETTINGS, Frame.PING) and not flags & Frame.ACK:
                echo = content if kind == Frame.PING else b""
                self._echoes += pack_frame(kind, Frame.ACK, 0, echo)
            if of == stream and kind == Frame.DATA:
                answer += content
            if of == stream and kind in (Frame.DATA, Frame.HEADERS) and flags & Frame.END_STREAM:
                return answer[5:]
        raise ConnectionError("the answer does not end")

    def close(self) -> None:
        self._sock.close()

    def _take_echoes(self) -> bytes:
        """Return what is due of what pings and settings are answered by."""
        if not self._echoes or time.monotonic() < self._echo_at:
            return b""
        self._echo_at = time.monotonic() + self.ECHO_S
        due, self._echoes = self._echoes, b""
        return due

    def _read_frame(self) -> tuple[int, int, int, bytes]:
        """Return kind, flags, stream and content of the next frame."""
        head = self._read(FRAME_HEAD_BYTES)
        size = int.from_bytes(head[:3], "big")
        if size > FRAME_BYTES:
            raise ConnectionError("this is no HTTP/2")
        kind, flags, stream = struct.unpack(">xxxBBI", head)
        return kind, flags, stream, self._read(size)

    def _read(self, size: int) -> bytes:
        while len(self._ahead) < size:
            part = self._sock.recv(FRAME_BYTES)
            if not part:
                raise ConnectionError("the connection was ended")
            self._ahead += part
        read, self._ahead = self._ahead[:size], self._ahead[size:]
        return read


class NearRevision:
    """The current revision by a quorum read, asked of one etcd.

    In two thirds of the time that gRPC's library takes. What goes wrong is left for that to find
    out, for a moment also without asking here. Safe for threads.
    """

    TRY_S, PAUSE_S = 0.5, 1.0

    def __init__(self, etcd: HostPort, etcd3: Etcd3) -> None:
        self._etcd, self._etcd3 = etcd, etcd3
        self._message = etcd3.rpc.RangeRequest(key=b"\0", count_only=True).SerializeToString()
        self._idle: list[GrpcCaller] = []  # append and pop are atomic
        self._again = 0.0

    def read(self, cluster_id: int) -> int:
        """Return the revision, 0 when it cannot be said so, or is another cluster's."""
        if time.monotonic() < self._again:
            return 0
        caller = None
        try:
            caller = self._idle.pop() if self._idle else self._dial()
            header = self._etcd3.rpc.RangeResponse.FromString(caller.call()).header
            revision = int(header.revision) if header.cluster_id == cluster_id else 0
        except (OSError, self._etcd3.garbled):
            revision = 0
        if caller and revision and caller.calls < caller.CALLS and not self._idle:
            self._idle.append(caller)
        elif caller:  # used up, or that of a read which ours was not to wait for; one is enough
            caller.close()
        if not revision:
            self._again = time.monotonic() + self.PAUSE_S
        return revision

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _dial(self) -> GrpcCaller:
        sock = dial_member(self._etcd, self.TRY_S, grpc=True)
        limit_waits(sock, self.TRY_S)
        try:
            return GrpcCaller(sock, b"/etcdserverpb.KV/Range", self._message)
        except OSError:
            sock.close()
            raise


def choose_try_s(waited_s: float, took_s: float) -> float:
    """Return the seconds for one try of a call, after which another master is asked.

    A silent master delays little, and masters that are slow to answer are not asked twice.
    waited_s: since the call began; the longer, the more patient. took_s: what answers take at the
    moment.
    """
    if waited_s > HASTE_S:
        return max(TRY_S, waited_s / 2)
    return min(TRY_S, max(FIRST_TRY_S, 5 * took_s))


class Masters:
    """etcd as gRPC reaches it: calls and streams, on whichever of the masters answers.

    endpoints: "ip:port" of masters to begin with; the others are learnt from the member list.
    Every call blocks up to timeout_s (10 s), 0.5 s or more per try where there is another master
    to try, and raises MeshDown when no master answered. Thread 'members' follows the member list;
    on_members is called there with each new one.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        stop: threading.Event,
        on_members: Callable[[tuple[str, ...]], None] | None = None,
    ) -> None:
        self.timeout_s = DEADLINE_S
        self._stop, self._closed, self._on_members = stop, threading.Event(), on_members
        self._seeds = tuple(sorted(set(endpoints)))
        self._lock = threading.Lock()  # guards _retired and _streams
        self._retired: list[tuple[float, Wire]] = []
        self._streams: set[Any] = set()
        self._seen = 0  # a racing older value costs one more try of a transaction, no more
        self._took_s = 0.0  # what the slowest of the latest answers took
        self.cluster_id = 0  # of the cluster we follow, 0 before the first answer
        self._voters = 0
        self.mark = ""  # what MARK says, "" until it was read; written by thread 'members'
        self.renewed = False  # MARK has another word by now: what we saw may be undone
        self.endpoints = self._seeds
        self._etcd3 = load_etcd3()
        self._wire = Wire(self._etcd3, self._seeds)
        spawn("members", self._follow_members, stop)

    def members(self) -> list[Member]:
        """Return etcd's members, learners and unstarted ones too. Needs no quorum."""
        answer = self._call(
            lambda wire, try_s: wire.cluster.MemberList(wire.rpc.MemberListRequest(), try_s)
        )
        found = [build_member(member) for member in answer.members]
        self._voters = sum(not member.learner for member in found)
        return found

    def read_mark(self, timeout_s: float | None = None) -> None:
        """Read MARK and notice a recovery, by which the cluster id may be another. Blocks."""
        key = encode_key(MARK)
        answer = self._call(lambda wire, try_s: wire.range(try_s, key=key), timeout_s, noted=False)
        mark = next((kv.value.decode("utf-8", "replace") for kv in answer.kvs), "")
        self.mark = self.mark or mark
        if mark != self.mark and mark.partition("/")[0] == self.mark.partition("/")[0]:
            self.renewed = True

    def stream(self, prefix: str, start_revision: int) -> Any:
        """Yield the answers of a watch call, from a revision on; raises MeshDown when it breaks.

        It is a generator, whose close() ends the call.
        """
        wire, key = self._wire, encode_key(prefix)
        create = wire.rpc.WatchCreateRequest(
            key=key or b"\0", range_end=find_prefix_end(key), start_revision=start_revision
        )
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(wire.rpc.WatchRequest(create_request=create))
        stream: Any = None
        try:
            stream = wire.watch.Watch(iter(requests.get, None), metadata=LEADER)
            with self._lock:
                self._streams.add(stream)
            if self.closed:
                stream.cancel()
            for answer in stream:
                self._note(answer.header)
                yield answer
        except wire.errors as error:
            raise self._build_down(read_fault(error).text, 0) from error
        finally:
            requests.put(None)  # ends gRPC's thread that reads the requests
            if stream is not None:
                stream.cancel()
            with self._lock:
                self._streams.discard(stream)

    @property
    def closed(self) -> bool:
        """Say whether close() was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """End threads 'members' and 'watch', and the channels. Calls then raise MeshDown."""
        self._closed.set()
        self._cancel_streams()
        with self._lock:
            wires = [self._wire, *(wire for _, wire in self._retired)]
            self._retired.clear()
        for wire in wires:
            wire.close()

    # ---- private

    def _call(
        self,
        send: Callable[[Wire, float], Any],
        timeout_s: float | None = None,
        on_fault: Callable[[Fault], None] | None = None,
        *,
        noted: bool = True,
    ) -> Any:
        """Return the answer of whichever master gives one first; each try is a new choice.

        noted: an answer of another cluster than before raises MeshDown.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        began, pause = time.monotonic(), 0.02
        deadline = began + timeout_s
        while True:
            asked, wire = time.monotonic(), self._wire
            alone = len(self.endpoints) == 1
            try_s = timeout_s if alone else choose_try_s(asked - began, self._took_s)
            try:
                answer = send(wire, max(0.05, min(try_s, deadline - asked)))
                self._took_s = max(time.monotonic() - asked, 0.9 * self._took_s)
                if noted:
                    self._note(answer.header)
                return answer
            except wire.errors as error:
                fault = read_fault(error)
                if not fault.transient:
                    raise self._build_refusal(fault.text) from error
                if on_fault:
                    on_fault(fault)
                if self.closed or time.monotonic() + pause > deadline:
                    raise self._build_down(fault.text, timeout_s) from error
            self._closed.wait(pause)
            pause = min(pause * 2, 0.2)

    def _note(self, header: Any) -> None:
        if self.cluster_id and header.cluster_id != self.cluster_id:
            raise MeshDown(
                f"a master in {', '.join(self.endpoints)} belongs to another arpanet (cluster "
                f"{header.cluster_id:x}, ours is {self.cluster_id:x}); try: arpanet master status"
            )
        self.cluster_id = header.cluster_id
        self._seen = max(self._seen, header.revision)

    def _build_down(self, text: str, timeout_s: float) -> MeshDown:
        cause, tried = find_cause(text), ", ".join(self.endpoints)
        if self.closed:
            return MeshDown("the connection to the masters was closed")
        quorum = f"; needs {self._voters // 2 + 1} of {self._voters}" if self._voters > 1 else ""
        within = f" in {timeout_s:.0f} s" if timeout_s else ""
        return MeshDown(
            f"no master answered{within} (tried {tried}{quorum}): {cause}; "
            "try: arpanet master status"
        )

    def _build_refusal(self, text: str) -> MeshDown | LostClaim:
        if "lease not found" in text:
            return LostClaim("the lease has run out, and what was held on it is gone")
        if "database space exceeded" in text:
            return MeshDown(
                "etcd is full and refuses changes; its history is dropped to make room, which may "
                f"take a moment; if it stays full, {MORE_ROOM}"
            )
        return MeshDown(f"etcd refused: {text}")

    def _follow_members(self) -> None:
        due = 0.0
        while not (self._stop.is_set() or self._closed.wait(0.5)):
            self._close_retired()
            self._adopt(self.endpoints)  # with the certificate of now
            if len(self.endpoints) > 1 and time.monotonic() < due:
                continue
            due = time.monotonic() + MEMBERS_S
            try:
                self.read_mark(TRY_S)
                self._adopt([m.client for m in self.members() if m.client and not m.learner])
            except MeshDown as error:
                if not self.closed:
                    log.debug("member list: %s", error)
                    self._adopt([*self.endpoints, *self._seeds])
        self._cancel_streams()

    def _adopt(self, endpoints: Iterable[str]) -> None:
        """Thread: members. Watches on the old channel resume on the new one when it is closed."""
        known = tuple(sorted(set(endpoints)))
        good = known == self.endpoints and self._wire.stamp == identity_stamp()
        if not known or good or self.closed:
            return
        wire = Wire(self._etcd3, known)
        with self._lock:
            self._retired.append((time.monotonic() + 2 * TRY_S, self._wire))
            self._wire, self.endpoints = wire, known
        log.info("masters are now %s", " ".join(known))
        if self._on_members:
            self._on_members(known)

    def _close_retired(self) -> None:
        now = time.monotonic()
        with self._lock:
            old = [wire for due, wire in self._retired if due <= now]
            self._retired = [(due, wire) for due, wire in self._retired if due > now]
        for wire in old:
            spawn("close", wire.close)  # it waits for the calls on it to end

    def _cancel_streams(self) -> None:
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()


class Mesh(Masters):
    """The keys of an arpanet: reading, changing and following them, and leases to hold them on.

    near: this machine's own etcd, if it has one: the quickest to say which revision it is.
    A call raises Unsure when a change was sent and nobody knows whether it was done.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        stop: threading.Event,
        on_members: Callable[[tuple[str, ...]], None] | None = None,
        near: HostPort | None = None,
    ) -> None:
        super().__init__(endpoints, stop=stop, on_members=on_members)
        self._near = NearRevision(near, self._etcd3) if near else None

    def close(self) -> None:
        """Close what is open; calls then raise MeshDown."""
        super().close()
        if self._near:
            self._near.close()

    # ---- reading

    def read(self, key: str) -> Entry | None:
        """Return the key as it is now, or None. Blocks; raises MeshDown without quorum."""
        return next(map(build_entry, self._range(key=encode_key(key)).kvs), None)

    def read_prefix(self, prefix: str) -> tuple[int, list[Entry]]:
        """Return the revision and all entries under prefix as of it, in key order.

        "" is every key. Read in pages, all at the first page's revision; the deadline is per page.
        Source: etcd3's own get_prefix ignores limit and revision.
        """
        key, end = encode_key(prefix) or b"\0", find_prefix_end(encode_key(prefix))
        revision, entries = 0, list[Entry]()
        while True:
            answer = self._range(key=key, range_end=end, limit=PAGE, revision=revision)
            revision = revision or answer.header.revision
            entries.extend(build_entry(kv) for kv in answer.kvs)
            if not answer.more:
                return revision, entries
            key = answer.kvs[-1].key + b"\0"

    def read_revision(self, timeout_s: float | None = None) -> int:
        """Return the current revision of the whole store, by one quorum read (about 1 ms).

        Blocks up to timeout_s; raises MeshDown without quorum.
        """
        near = self._near.read(self.cluster_id) if self._near and self.cluster_id else 0
        return near or int(self._range(timeout_s, key=b"\0", count_only=True).header.revision)

    # ---- changing

    def commit(
        self, checks: Sequence[Check], puts: Sequence[Put], deletes: Sequence[str] = ()
    ) -> int | None:
        """Do all puts and deletes in one transaction if all checks hold; return its revision.

        None: a check did not hold and nothing was done. Repeats itself after a lost answer
        (class Transaction). At most about 500 keys. Raises MeshDown; LostClaim when a lease named
        by a put has run out; Unsure when an answer was lost and what is there does not tell.
        """
        outcome = self._transact(checks, puts, deletes)
        if outcome.done:
            return outcome.revision
        if outcome.lost:
            raise self._build_unsure(puts, deletes, "and it has been changed again since")
        return None

    def write(self, key: str, value: bytes, *, lease: int = 0, fence: Claim | None = None) -> int:
        """Write the key and return the revision.

        fence: a claim (of this key or another) that must still be ours, else LostClaim.
        Repeats itself after a lost answer: the last writer wins, an older try never does.
        """
        checks = [Check(fence.key, create_revision=fence.revision)] if fence else []
        outcome = self._transact(checks, [Put(key, value, lease)], [])
        if not outcome.done and fence:
            raise LostClaim(f"{fence.key} is not ours any more (claimed at {fence.revision})")
        return outcome.revision

    def claim(self, key: str, value: bytes, *, lease: int = 0) -> Claim | None:
        """Make the key and return the claim; None if it is there and is not our own.

        value: must be unique to this attempt; by it a retry after a lost answer knows its own.
        """
        outcome = self._transact([Check(key, create_revision=0)], [Put(key, value, lease)], [])
        if outcome.done:
            return Claim(key, outcome.revision, value)
        found = outcome.found.get(key)
        if found and found.value == value:
            return Claim(key, found.create_revision, value)
        return None

    def claim_all(self, values: Mapping[str, bytes], lease: int = 0) -> bool:
        """Make all these keys at once if none is there; say whether. Values as for claim()."""
        checks = [Check(key, create_revision=0) for key in values]
        puts = [Put(key, value, lease) for key, value in values.items()]
        outcome = self._transact(checks, puts, [])
        ours = [key in outcome.found and outcome.found[key].value == values[key] for key in values]
        return outcome.done or all(ours)

    def delete(self, key: str, *, fence: Claim | None = None, value: bytes | None = None) -> int:
        """Delete the key if it is there, and is still the fence's and has this value.

        Return the revision by which it was gone, 0 when nothing was there or it was not that one.
        Repeats itself after a lost answer.
        """
        created = fence.revision if fence else 0
        while True:
            found = self.read(key)
            if not found or (value is not None and found.value != value):
                return 0
            if created and found.create_revision != created:
                return 0  # also after a lost answer: what stands there now is somebody's new key
            created = found.create_revision
            check = Check(key, mod_revision=found.mod_revision)
            outcome = self._transact([check], [], [key])
            if outcome.done:
                return outcome.revision

    def delete_prefix(self, prefix: str) -> int:
        """Delete every key under prefix; return the revision by which they were gone.

        Many keys go in several transactions; a key written meanwhile goes too.
        """
        while True:
            revision, entries = self.read_prefix(prefix)
            if not entries:
                return revision
            for start in range(0, len(entries), 100):
                chunk = entries[start : start + 100]
                self._transact([], [], [entry.key for entry in chunk])

    # ---- leases

    def grant(self, ttl_s: int) -> int:
        """Return a new lease that ends ttl_s seconds after its last refresh.

        A lost answer leaves a lease that nobody has, which ends by itself.
        """

        def send(wire: Wire, timeout_s: float) -> Any:
            request = wire.rpc.LeaseGrantRequest(TTL=ttl_s)
            return wire.lease.LeaseGrant(request, timeout_s, metadata=LEADER)

        return int(self._call(send).ID)

    def refresh(self, lease: int, timeout_s: float) -> int:
        """Keep the lease for another ttl; return that in seconds, 0 when it has run out."""

        def send(wire: Wire, timeout_s: float) -> Any:
            requests = iter([wire.rpc.LeaseKeepAliveRequest(ID=lease)])
            return next(iter(wire.lease.LeaseKeepAlive(requests, timeout_s, metadata=LEADER)))

        return int(self._call(send, timeout_s).TTL)

    def revoke(self, lease: int) -> None:
        """End the lease, and with it its keys; one that has run out is fine. Blocks up to 3 s."""

        def send(wire: Wire, timeout_s: float) -> Any:
            request = wire.rpc.LeaseRevokeRequest(ID=lease)
            return wire.lease.LeaseRevoke(request, timeout_s, metadata=LEADER)

        try:
            self._call(send, 3.0)
        except LostClaim:
            log.debug("lease %x had run out before it was revoked", lease)

    # ---- watching

    def watch(
        self,
        prefix: str,
        on_reset: Callable[[int, list[Entry]], None],
        on_events: Callable[[int, list[Event]], None],
        stop: threading.Event,
    ) -> Thread:
        """Start thread 'watch', which calls on_reset and on_events in order, one at a time.

        on_reset gets the whole prefix and its revision: first, after a compaction, and when etcd
        went back behind what we saw. on_events gets all changes of one or more whole revisions.
        None is lost or repeated while masters come and go. Ends when stop is set (within 0.5 s if
        it is also the mesh's, else at the next event) or at close().
        """
        follower = Follower(self, prefix, on_reset, on_events, stop)
        return spawn("watch", follower.run, stop)

    # ---- private

    def _range(self, timeout_s: float | None = None, **fields: Any) -> Any:
        return self._call(lambda wire, try_s: wire.range(try_s, **fields), timeout_s)

    def _transact(
        self, checks: Sequence[Check], puts: Sequence[Put], deletes: Sequence[str]
    ) -> Outcome:
        deadline = time.monotonic() + self.timeout_s
        change = Transaction(checks, puts, deletes, self._seen)
        while True:
            try:
                left = max(0.05, deadline - time.monotonic())
                answer = self._call(change.send, left, change.note_fault)
            except MeshDown as error:
                if change.lost:
                    raise self._build_unsure(puts, deletes, str(error)) from error
                raise
            outcome = change.read_answer(answer)
            if outcome:
                return outcome
            if time.monotonic() > deadline:
                raise self._build_down("the keys are changed all the time", self.timeout_s)

    def _build_unsure(self, puts: Sequence[Put], deletes: Sequence[str], why: str) -> Unsure:
        keys = ", ".join([*(put.key for put in puts), *deletes])
        return Unsure(f"the change of {keys} was sent and may or may not have been done: {why}")


class Follower:
    """One watch, from a whole read through every change after it. Thread: watch."""

    def __init__(
        self,
        mesh: Mesh,
        prefix: str,
        on_reset: Callable[[int, list[Entry]], None],
        on_events: Callable[[int, list[Event]], None],
        stop: threading.Event,
    ) -> None:
        self._mesh, self._prefix, self._stop = mesh, prefix, stop
        self._on_reset, self._on_events = on_reset, on_events
        self._revision: int | None = None  # all up to it was handed on; None: read all first
        self._broken = False

    def run(self) -> None:
        """Follow until stop or close(); every break is healed by asking again."""
        while not (self._stop.is_set() or self._mesh.closed):
            try:
                if self._revision is None:
                    revision, entries = self._mesh.read_prefix(self._prefix)
                    self._on_reset(revision, entries)
                    self._revision = revision
                self._follow(self._revision)
            except MeshDown as error:
                if not self._broken and not self._stop.is_set() and not self._mesh.closed:
                    log.info("watch broke at revision %s: %s", self._revision, error)
                self._broken = True
                self._stop.wait(0.1)

    def _follow(self, revision: int) -> None:
        with contextlib.closing(self._mesh.stream(self._prefix, revision + 1)) as answers:
            for answer in answers:
                if self._stop.is_set() or not self._take(answer, revision):
                    return

    def _take(self, answer: Any, start: int) -> bool:
        """Hand one answer on; False when the stream is to be opened again."""
        if answer.compact_revision:
            log.warning("revision %d is compacted, reading all again", start)
            self._revision = None
        elif answer.canceled:
            raise MeshDown(f"etcd ended the watch: {answer.cancel_reason or 'no reason given'}")
        elif answer.created:
            return self._check_history(answer.header.revision, start)
        elif answer.events:
            changes = [self._build_event(event) for event in answer.events]
            self._revision = changes[-1].revision  # etcd never splits a revision over answers
            self._on_events(self._revision, changes)
        return self._revision is not None

    def _check_history(self, server_revision: int, start: int) -> bool:
        """Find out whether etcd lost revisions that we saw (a restore); then all is read again."""
        if self._broken:
            log.info("watch goes on after revision %d", start)
        self._broken = False
        # a master that is only behind has the rest soon; a quorum read is never behind
        if server_revision < start and self._mesh.read_revision() < start:
            log.warning("etcd went back behind revision %d, reading all again", start)
            self._revision = None
        return self._revision is not None

    @staticmethod
    def _build_event(event: Any) -> Event:
        entry = None if event.type == event.DELETE else build_entry(event.kv)
        return Event(decode_key(event.kv.key), entry, event.kv.mod_revision)


def same_machine(mine: bytes, found: bytes) -> bool:
    """Return whether two rows were written by one machine."""
    return bool(read_value(mine)["machine"] == read_value(found).get("machine"))


RENEW_S = 3.0
NO_LEASE = "this master has no lease in etcd at the moment; try: arpanet master status"


class Lease:
    """Keeps keys there for as long as this process lives, on one lease of ttl_s seconds.

    The lease is refreshed each ttl_s/3; one that ran out (a long cut) is granted again and the
    keys are published again. A key of the same owner (an earlier process of this machine) is
    taken over; another owner's is left alone: publish() raises Conflict, and the thread tries
    again, for the other may go.

    keys: key -> value, JSON that says of which machine it is.
    ttl_s: 10 at least (an election and two lost tries take 5). Thread: lease.
    """

    def __init__(
        self,
        mesh: Mesh,
        keys: Mapping[str, bytes],
        *,
        stop: threading.Event,
        ttl_s: float = 0,
    ) -> None:
        self._mesh, self._stop, self.ttl_s = mesh, stop, max(10, int(ttl_s))
        self._lock = threading.Lock()  # guards _keys
        self._keys = dict(keys)
        self._ended, self._wake = threading.Event(), threading.Event()
        self._thread: Thread | None = None
        self.lease = 0  # its id; written by publish() before start(), then by thread 'lease'
        self._good_until = 0.0  # time.monotonic() up to which etcd surely keeps the lease
        self._published = False

    @property
    def alive(self) -> bool:
        """Say whether all keys are there and the lease cannot have run out."""
        return self._published and time.monotonic() < self._good_until

    def publish(self) -> None:
        """Grant the lease if need be and write the keys. Blocks.

        Raises MeshDown; Conflict when another owner has a key. Thread: main before start(), or
        lease.
        """
        if not self.lease:
            asked = time.monotonic()
            self.lease = self._mesh.grant(self.ttl_s)
            self._good_until = asked + self.ttl_s
        with self._lock:
            keys = dict(self._keys)
        self._published = False
        for key, value in keys.items():
            self._publish_key(key, value)
        self._published = True

    def start(self) -> Thread:
        """Start thread 'lease'; it publishes first if publish() was not called before."""
        self._thread = spawn("lease", self.run, self._stop)
        return self._thread

    def update(self, keys: Mapping[str, bytes]) -> None:
        """Replace values or add keys; thread 'lease' writes them soon."""
        with self._lock:
            self._keys.update(keys)
        self._wake.set()

    def renew(self, lost: int) -> None:
        """Have another lease than one that was lost. Blocks; raises MeshDown. Thread: any."""
        self._wake.set()
        deadline = time.monotonic() + RENEW_S
        while self.lease in (0, lost):
            if self._ended.wait(0.02) or time.monotonic() > deadline:
                raise MeshDown(NO_LEASE)

    def stop(self) -> None:
        """End thread 'lease' and revoke the lease: the keys go at once. Blocks up to 8 s."""
        self._ended.set()
        self._wake.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(5)
        self._published = False
        if not self.lease:
            return
        try:
            self._mesh.revoke(self.lease)
        except MeshDown as error:
            log.warning("lease ends by itself in %d s: %s", self.ttl_s, error)

    def run(self) -> None:
        """Keep the keys until stop(). Thread: lease."""
        while not self._ended.is_set():
            pause = self._keep()
            self._wake.wait(pause)
            self._wake.clear()

    def _keep(self) -> float:
        """Refresh, look, publish what is missing; return the seconds to the next time."""
        try:
            if self.lease and not self._refresh():
                log.warning("the lease ran out; publishing again")
                self.lease, self._published = 0, False
            if not self.lease or not self._is_there():
                self.publish()
            return self.ttl_s / 3
        except Conflict as error:
            log.debug("%s", error)
            return self.ttl_s / 3
        except LostClaim:  # it ran out between refresh and write
            self.lease, self._published = 0, False
            return 0.0
        except (MeshDown, Unsure) as error:
            if not self._ended.is_set():
                log.warning("cannot keep this host's keys: %s", error)
            return 0.3

    def _refresh(self) -> bool:
        asked = time.monotonic()
        ttl_s = self._mesh.refresh(self.lease, self.ttl_s / 3)
        if ttl_s:
            self._good_until = asked + ttl_s
        return ttl_s > 0

    def _is_there(self) -> bool:
        with self._lock:
            keys = dict(self._keys)
        entries = [self._mesh.read(key) for key in keys]
        return all(
            entry is not None and entry.lease == self.lease and entry.value == keys[entry.key]
            for entry in entries
        )

    def _publish_key(self, key: str, value: bytes) -> None:
        """Make the key or take it over from our own past; a lost race is looked at again."""
        while True:
            found = self._mesh.read(key)
            if found and found.lease == self.lease and found.value == value:
                return
            mine = not found or found.lease == self.lease
            if found and not mine and not same_machine(value, found.value):
                raise Conflict(f"{key} is held by another machine: {found.value.decode()}")
            check = Check(key, mod_revision=found.mod_revision if found else 0)
            if self._mesh.commit([check], [Put(key, value, self.lease)]):
                return


# ==== Engine =================================================================
# One host's Docker Engine, reached through that host's agent. The engine is the
# truth about a container's state, its images and its volumes' contents; etcd is
# the truth about names, placements, links and volume pins.

HOP_HEADERS = frozenset((
    "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "host",
    "proxy-connection", "content-length",
))  # fmt: skip
# An engine packs an archive for who takes it packed, which takes longer than a LAN to carry it. At
# its own unix socket docker does not ask for it either.
NOT_FOR_ENGINES = HOP_HEADERS | {"accept-encoding"}
STREAM_TYPES = tuple(f"application/vnd.docker.{kind}-stream" for kind in ("raw", "multiplexed"))
OnCut = Callable[[Callable[[], None]], None]  # is given what ends a request
REACH_S, TRY_REACH_S = 3.0, 1.2  # to reach an engine: the one that is needed, or one of several


def cut_socket(sock: socket.socket) -> None:
    """End a connection under the thread that reads from it. Thread: any."""
    with contextlib.suppress(OSError):  # it may have ended already
        sock.shutdown(socket.SHUT_RDWR)


class Tunnels:
    """The connections to engines: some wait a moment to be used again; safe for threads.

    For a moment only: one to a host that died unnoticed would hang where a new one is refused.
    """

    KEEP_S, MOST = 3.0, 8  # of each host

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._idle: dict[HostPort, list[tuple[float, socket.socket]]] = {}
        self.bridge: Callable[[socket.socket], socket.socket] = lambda sock: sock  # past TLS
        # address: of an agent
        self._open: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()

    def add(self, sock: socket.socket) -> socket.socket:
        """Note a new connection; return what any thread may use in its place. Raises OSError."""
        ip = sock.getpeername()[0]
        sock = self.bridge(sock)
        with self._lock:
            self._open[sock] = ip
        return sock

    def ips(self) -> set[str]:
        """Return the addresses to which there are connections."""
        with self._lock:
            return {ip for sock, ip in self._open.items() if sock.fileno() >= 0}

    def cut(self, ip: str) -> None:
        """End the connections to an address under the threads that read from them."""
        with self._lock:
            socks = [sock for sock, other in self._open.items() if other == ip]
        for sock in socks:
            with contextlib.suppress(OSError):  # closed, or handed over to the pump
                cut_socket(sock)

    def take(self, agent: HostPort) -> socket.socket | None:
        """Return a connection that is still open and on which nothing has come since."""
        with self._lock:
            rows, now = self._idle.get(agent, []), time.monotonic()
            while rows:
                due, sock = rows.pop()
                if due > now and is_quiet(sock):
                    return sock
                sock.close()
        return None

    def give(self, agent: HostPort, sock: socket.socket) -> None:
        """Take a connection back after a whole answer."""
        with self._lock:
            rows = self._idle.setdefault(agent, [])
            rows.append((time.monotonic() + self.KEEP_S, sock))
            if len(rows) > self.MOST:
                rows.pop(0)[1].close()

    def expire(self, wait_s: float = 0.0) -> None:
        """Close those that have waited for their time, or will have in wait_s."""
        with self._lock:
            latest = time.monotonic() + wait_s
            for agent, rows in list(self._idle.items()):
                while rows and rows[0][0] <= latest:
                    rows.pop(0)[1].close()
                if not rows:
                    del self._idle[agent]


def is_quiet(sock: socket.socket) -> bool:
    """Return whether a connection is open and has nothing to be read."""
    sock.setblocking(False)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Turn:
    """A connection to an engine for as long as one request has it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()  # guards _ours: another request may have it next
        self._ours = True

    def cut(self) -> None:
        """End the connection under the thread that reads from it. Thread: any."""
        with self._lock:
            if self._ours:
                cut_socket(self.sock)

    def let_go(self) -> socket.socket:
        """Return the connection, which cut() then leaves alone."""
        with self._lock:
            self._ours = False
            return self.sock


class EngineReply:
    """An engine's answer: its head is there, its body comes as it comes.

    on_spent: gets the connection once the whole answer was read from it and another may follow.
    """

    def __init__(
        self, host: str, method: str, turn: Turn, on_spent: Callable[[socket.socket], None] | None
    ) -> None:
        self.host, self.method, self._turn, self._on_spent = host, method, turn, on_spent
        self.sock = turn.sock
        self.response = read_response(self.sock, method)
        self.status = self.response.status
        self.headers = self.response.getheaders()

    @property
    def is_hijack(self) -> bool:
        """Return whether the connection is a raw stream from here on."""
        kind = (self.response.getheader("Content-Type") or "").partition(";")[0]
        framed = self.response.chunked or self.response.getheader("Content-Length") is not None
        raw = self.method == "POST" and self.status == 200 and not framed and kind in STREAM_TYPES
        return self.status == 101 or raw

    def blocks(self) -> Iterator[bytes]:
        """Yield the body as it comes; blocks. Raises EngineDown when it ends early."""
        try:
            while block := self.response.read1(BULK_BYTES):
                yield block
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise self._broken(repr(e)) from e
        if self.response.length:
            raise self._broken("its end is missing")

    def chunks(self) -> Iterator[bytes]:
        """Yield a chunked body with its framing, many chunks at a time. Raises as blocks() does."""
        scanner = ChunkScanner()
        try:
            while not scanner.finished:
                block = self.response.fp.read1(BULK_BYTES)
                if not block:
                    raise ValueError("the end is missing")
                if scanner.feed(block) < len(block):
                    raise ValueError("bytes after the end of a chunked body")
                yield block
        except (OSError, ValueError) as e:
            raise self._broken(repr(e)) from e

    def _broken(self, why: str) -> EngineDown:
        self._on_spent = None  # nothing else may come this way
        return EngineDown(f"the answer of the engine on {self.host} broke off: {why}")

    def read(self) -> bytes:
        """Return the whole body and close. Raises EngineDown."""
        try:
            return b"".join(self.blocks())
        finally:
            self.close()

    def read_json(self) -> Any:
        """Return the JSON of the body and close. Raises EngineDown, EngineError for a failure."""
        text = self.read()
        try:
            value = json.loads(text or b"null")
        except ValueError as e:
            raise EngineDown(f"the engine on {self.host} does not answer in JSON: {e}") from e
        if self.status >= 400:
            message = value.get("message") if isinstance(value, dict) else None
            raise EngineError(self.status, message or f"the engine on {self.host}: {self.status}")
        return value

    def early_bytes(self) -> bytes:
        """Return the bytes of a hijacked stream that came along with the head."""
        self.sock.setblocking(False)
        return buffered_bytes(self.response.fp)

    def cut(self) -> None:
        """End the connection under the thread that reads from it. Thread: any."""
        self._turn.cut()

    def close(self) -> None:
        """End the connection, or let it be used again. Thread: the one that reads from it."""
        sock, response = self._turn.let_go(), self.response
        spent = (response.isclosed() or response.length == 0) and not response.will_close
        response.close()
        if spent and self._on_spent and not self.is_hijack:
            self._on_spent(sock)
        else:
            sock.close()


class Upload:
    """A body on its way to an engine, sent by a thread of its own while the answer is read."""

    def __init__(self, sock: socket.socket, body: Iterable[bytes] | Body) -> None:
        self._from_client = isinstance(body, Body)
        self._frames = body.frames() if isinstance(body, Body) else in_chunks(body)
        self._sock = sock
        self.fault: ArpanetError | None = None
        self.thread = spawn("upload", self._run)

    def _run(self) -> None:
        try:
            for block in self._frames:
                self._sock.sendall(block)
        except ArpanetError as e:
            self.fault = e  # the client's body broke off: the engine must not take it for whole
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # the engine has answered early; its answer says why
            with contextlib.suppress(ArpanetError):
                while self._from_client and next(self._frames, b""):
                    pass  # a client may hear the answer only when it has sent all


def dial_agent(agent: HostPort, what: str, timeout_s: float, name: str = "") -> socket.socket:
    """Return a tunnel to "engine" or "NAME:PORT" on an agent's host, of that name.

    Raises OSError.
    """
    sock = dial_member(agent, timeout_s, name)
    try:
        sock.settimeout(timeout_s)
        sock.sendall(f"CONNECT {what} HTTP/1.1\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            block = sock.recv(1024)
            if not block or len(head) > 4096:
                raise OSError(f"the agent hung up: {head.decode('latin-1').strip()}")
            head += block
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise OSError(read_refusal(head))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def read_refusal(answer: bytes) -> str:
    """Return the words of an agent that says no, or else its status."""
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        return str(json.loads(body)["message"])
    except (ValueError, LookupError, TypeError):  # it gave none
        return head.partition(b"\r\n")[0].partition(b" ")[2].decode("latin-1")


class Engine:
    """One host's engine. Every call raises EngineDown when it cannot be reached.

    tunnels: where connections wait to be used again, and are ended when the host is lost.
    """

    def __init__(self, host: Host, tunnels: Tunnels | None = None) -> None:
        self.host, self._tunnels = host, tunnels

    def send(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | Body | Iterable[bytes] = b"",
        timeout_s: float | None = None,
        on_cut: OnCut | None = None,
        reach_s: float = REACH_S,
    ) -> EngineReply:
        """Return the answer as soon as its head is there.

        timeout_s: for each wait of head and body, None for streams. on_cut: is given, before the
        head is waited for, what ends the request. reach_s: to get through to the engine.
        Raises EngineAway when nothing was sent, EngineDown when the answer does not come, and
        BadRequest when the given body breaks off.
        """
        ask = functools.partial(self._ask, method, target, list(headers), body, timeout_s, on_cut)
        empty = body.finished if isinstance(body, Body) else body == b""
        waiting = self._tunnels.take(self.host.agent) if self._tunnels else None
        if waiting:
            try:
                return ask(Turn(waiting))
            except EngineDown as e:
                # closed just now, not silent: a request that may be done twice is sent anew
                silent = isinstance(e.__cause__, TimeoutError)
                if silent or method not in ("GET", "HEAD") or not empty:
                    raise
        try:
            sock = dial_agent(self.host.agent, "engine", reach_s, self.host.name)
            if self._tunnels:
                sock = self._tunnels.add(sock)
        except OSError as e:
            raise EngineAway(self._why(e)) from e
        return ask(Turn(sock))

    def _ask(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes | Body | Iterable[bytes],
        timeout_s: float | None,
        on_cut: OnCut | None,
        turn: Turn,
    ) -> EngineReply:
        upload = None
        try:
            turn.sock.settimeout(timeout_s)
            upload = self._send(turn.sock, method, target, headers, body)
            if on_cut:
                on_cut(turn.cut)
            return EngineReply(self.host.name, method, turn, None if upload else self._keep)
        except OSError as e:
            turn.let_go().close()
            if upload and upload.fault:
                raise upload.fault from e
            raise EngineDown(self._why(e)) from e
        except BaseException:
            turn.let_go().close()
            raise

    def _keep(self, sock: socket.socket) -> None:
        if self._tunnels:
            self._tunnels.give(self.host.agent, sock)
        else:
            sock.close()

    def fetch(self, method: str, target: str, body: Any = None, timeout_s: float = 30.0) -> Any:
        """Return the JSON that an engine answers. Raises EngineError with its words, EngineDown."""
        payload = b"" if body is None else dump_json(body)
        headers = [("Content-Type", "application/json")] if payload else []
        return self.send(method, target, headers, payload, timeout_s).read_json()

    def _send(
        self,
        sock: socket.socket,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        body: bytes | Body | Iterable[bytes],
    ) -> Upload | None:
        if not self._tunnels and not any(name.lower() == "upgrade" for name, _ in headers):
            headers = [*headers, ("Connection", "close")]
        if isinstance(body, Body) and not body.chunked and body.length <= HEAD_LIMIT_BYTES:
            body = body.read()
        if isinstance(body, bytes):
            if body or method in ("POST", "PUT"):
                headers = [*headers, ("Content-Length", str(len(body)))]
            send_request(sock, method, target, headers, body)
            return None
        counted = isinstance(body, Body) and not body.chunked
        length = body.length if isinstance(body, Body) else 0
        framing = ("Content-Length", str(length)) if counted else ("Transfer-Encoding", "chunked")
        send_request(sock, method, target, [*headers, framing])
        return Upload(sock, body)

    def _why(self, cause: OSError) -> str:
        return (
            f"the engine on {self.host.name} ({self.host.ip}) cannot be reached: {cause}; "
            f"what runs on other hosts goes on; on {self.host.name} try: arpanet slave status"
        )


WATCH_S = 5.0  # for as long a container that removes itself is watched from its start on
ENDED_S = 10  # for as long what it said and returned is kept then
ENDED_BYTES = 64 * 1024  # of its output; of one that says more, the output is not kept


class Ending:
    """What a container that removes itself says and returns, kept for who asks for it too late.

    To be made before it starts. Of one that runs for longer than WATCH_S nothing is kept: who
    asks then is no later than at one engine. Raises EngineDown, EngineError.
    """

    def __init__(
        self, mesh: Mesh, engine: Engine, container: Container, details: Mapping[str, Any]
    ) -> None:
        self._mesh, self._container, self._details = mesh, container, details
        path = f"/containers/{container.id}"
        self._said = engine.send(
            "POST", f"{path}/attach?stream=1&stdout=1&stderr=1", timeout_s=WATCH_S
        )
        try:
            self._wait = engine.send("POST", f"{path}/wait?condition=next-exit", timeout_s=WATCH_S)
        except BaseException:
            self._said.close()
            raise
        self._output: bytes | None = None
        self._begun = utc_now()
        self._due = time.monotonic() + WATCH_S
        self._ended = threading.Event()  # it ends, or is not watched any more
        self._reader = spawn("ending", self._read)
        self._writer = spawn("ending", self._keep)

    def settle(self) -> None:
        """Wait until what it left can be read by all, if it has ended."""
        if self._ended.is_set():
            self._writer.join(WATCH_S)

    def wait(self) -> None:
        """Wait until what it left can be read by all: the engine says that it is gone."""
        self._writer.join(WATCH_S)

    def give_up(self) -> None:
        """Watch no more: it did not start."""
        self._wait.cut()
        self._said.cut()

    def _read(self) -> None:
        blocks = []
        try:
            for block in self._said.blocks():
                blocks.append(block)
                if sum(map(len, blocks)) > ENDED_BYTES or time.monotonic() > self._due:
                    return
            self._output = b"".join(blocks)
        except EngineDown:  # it says nothing for long, or was not started
            pass
        finally:
            self._said.close()

    def _keep(self) -> None:
        try:
            code = int(self._wait.read_json()["StatusCode"])
            self._ended.set()
            self._reader.join(1.0)
            now = utc_now()
            output = self._output
            state = {
                **self._details["State"],
                "Status": "exited",
                "ExitCode": code,
                "StartedAt": self._begun.isoformat().replace("+00:00", "Z"),
                "FinishedAt": now.isoformat().replace("+00:00", "Z"),
            }
            row = dump_json(
                {
                    "code": code,
                    "output": None if output is None else base64.b64encode(output).decode(),
                    "details": {**self._details, "State": state},
                }
            )
            lease = self._mesh.grant(ENDED_S)
            names = (self._container.id, self._container.name)
            puts = [Put(key_of("ended", name), row, lease) for name in names]
            self._mesh.commit([], puts)
        except (ArpanetError, KeyError, TypeError, ValueError) as e:
            log.debug("kept nothing of %s: %s", self._container.id[:12], e)
        finally:
            self._ended.set()
            self._said.cut()


# ==== Node ===================================================================
# The one changing object of a process: settings, mesh, the view, stop. Only the
# thread "watch" replaces the view; a request takes it once and uses that.

SYNC_S = 5.0
READ_S = 2.0  # how long a listing waits for the masters' majority before it goes without
READ_NEXT_S = 0.5  # and those that come after it, until one gets an answer
SHUN_S = 10.0
QUORUM_S = 0.5
UNSURE_S = 60  # how long a name waits for what an engine may still make
START_S = 60  # how long room is kept for a container that was made, and not started


def start_awaited_since() -> str:
    """Return since when what was made is taken to be started yet, as an engine writes times."""
    return (utc_now() - datetime.timedelta(seconds=START_S)).strftime("%Y-%m-%dT%H:%M:%S")


class Making:
    """The containers that this master is making, so that those asked for at once spread too.

    Also the hosts that did not answer, which get no new ones for SHUN_S unless there is no other:
    a machine that has died is known to be down only when its lease has run out.
    """

    def __init__(self) -> None:
        self._claims: dict[str, NameEntry] = {}
        self._shunned: dict[str, float] = {}  # host: until when
        self._lock = threading.Lock()  # guards both

    def place(
        self,
        view: View,
        wish: CreateWish,
        pins: Mapping[str, str],
        images: Mapping[str, Set[str]] = MappingProxyType({}),
        policy: Policy = SPREAD,
    ) -> Placement:
        """Return the host for a container, which is in the making from now on. Raises NoRoom."""
        now, since = time.monotonic(), start_awaited_since()
        with self._lock:
            shunned = {host for host, until in self._shunned.items() if until > now}
            self._claims.pop(wish.name, None)  # it may come again, when others were first
            placed = place(view, wish, pins, self._claims, images, policy, shunned, since)
            self._claims[wish.name] = NameEntry(placed.host, "", wish.needs)
            return placed

    def shun(self, name: str) -> str:
        """Note that the host of a name did not answer; return that host."""
        with self._lock:
            host = self._claims[name].host
            self._shunned[host] = time.monotonic() + SHUN_S
        return host

    def done(self, name: str) -> None:
        """Forget a name: its container is in the view, or will never be."""
        with self._lock:
            self._claims.pop(name, None)


class Answers:
    """Listings as they are sent, of one view and one second: ages are told in seconds."""

    MOST = 16

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._of: tuple[View, int] | None = None
        self._made: dict[Hashable, bytes] = {}  # by what was asked

    def get(
        self, view: View, now: datetime.datetime, asked: Hashable, make: Callable[[], bytes]
    ) -> bytes:
        """Return what make() made for what was asked, as of this view and this second."""
        second = int(now.timestamp())
        with self._lock:
            if self._of is None or self._of[0] is not view or self._of[1] != second:
                self._of, self._made = (view, second), {}
            if asked not in self._made:
                if len(self._made) >= self.MOST:
                    self._made = {}
                self._made[asked] = make()
            return self._made[asked]


class Lately:
    """What was found out no longer than a second ago; who asks meanwhile waits for it."""

    KEEP_S = 1.0

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._text, self._due = "", 0.0

    def get(self, make: Callable[[], str]) -> str:
        """Return what make() returned lately, or returns now; it is made by one at a time."""
        with self._lock:
            if time.monotonic() >= self._due:
                self._text = make()
                self._due = time.monotonic() + self.KEEP_S
            return self._text


class Round:
    """One read that is shared: who waits for it, and what it came to."""

    def __init__(self) -> None:
        self.gates: list[threading.Lock] = []  # a waiter's each; to be told by one costs the least
        self.value = 0
        self.error: BaseException | None = None


class SharedRead:
    """One read for all who ask while the one before is on its way.

    Each gets what a read returned, or raised, that began after it asked; a read that hangs holds
    the next one up for round_s.
    """

    def __init__(self, read: Callable[[], int], round_s: float = 0.05) -> None:
        self._read, self._round_s = read, round_s
        self._reading = threading.Lock()  # held by the thread that reads
        self._lock = threading.Lock()  # guards what follows
        self._next: Round | None = None  # that has not begun

    @property
    def waiting(self) -> int:
        """Return how many wait for the read that has not begun."""
        with self._lock:
            return 1 + len(self._next.gates) if self._next else 0

    def get(self) -> int:
        """Return what was read. Raises what read() raises."""
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            mine, first = self._next or Round(), self._next is None
            self._next = mine
            if not first:
                mine.gates.append(gate)
        if first:
            self._run(mine)
        else:
            gate.acquire()
        if mine.error:
            raise mine.error
        return mine.value

    def _run(self, mine: Round) -> None:
        alone = self._reading.acquire(timeout=self._round_s)
        with self._lock:
            self._next = None
        try:
            mine.value = self._read()
        except ArpanetError as e:
            mine.error = e
        except BaseException as e:
            mine.error = e
            raise
        finally:
            if alone:
                self._reading.release()
            for gate in mine.gates:
                gate.release()


class Build(NamedTuple):
    """A stream to the BuildKit of a host, which gives names that nobody sees on the way."""

    key: str
    host: str
    is_open: Callable[[], object]


class Node:
    """What the threads of a master or slave share."""

    def __init__(self, settings: Settings, mesh: Mesh, stop: threading.Event) -> None:
        self.settings, self.mesh, self.stop = settings, mesh, stop
        self.view = View()
        self.exec_hosts: Recent[str] = Recent()  # exec id: host
        self.endings: Recent[Ending] = Recent(1000)  # by a container's id, and by its name
        self.waited: Recent[bool] = Recent(1000)  # ids of containers that somebody waited for here
        self.pull_hosts: Recent[str] = Recent(1000)  # its image_name(): host that a create waits on
        self.builds: Recent[Build] = Recent(1000)
        self.settled: Recent[ImageEntry] = Recent()  # "HOST NAME": what the name was seen to mean
        self.making = Making()
        self.given_up: Recent[tuple[str, bytes]] = Recent(1000)  # claims: their keys and values
        self.tunnels = Tunnels()
        self.answers = Answers()
        self.silent = Lately()  # which masters do not answer, in words
        self._revision = SharedRead(mesh.read_revision)
        self._revision_soon = SharedRead(self._read_soon)
        self._read_s = READ_S
        self.presence: Lease | None = None
        self.report: Callable[[], dict[str, Any]] = dict
        self.facts: Callable[[], dict[str, Any]] = dict
        self.host_facts: Callable[[], dict[str, Any]] = dict
        self.on_lost: Callable[[str], None] = lambda _ip: None  # a host is down, which lived
        self._moved = threading.Condition()  # guards the replacement of view, for waiters
        self._quorum, self._quorum_due = True, 0.0  # a race of two askers costs one more read

    @property
    def policy(self) -> Policy:
        """Return how this master places."""
        return Policy(self.settings.strategy, self.settings.overcommit)

    def give_up(self, key: str, value: bytes) -> None:
        """Have a claim deleted should it be there, now or later: tries of it may come late."""
        self.given_up.put(f"{key} {value!r}", (key, value))

    def lease_id(self) -> int:
        """Return this process's lease. Raises MeshDown while it has none."""
        if self.presence is None or not self.presence.lease:
            raise MeshDown(NO_LEASE)
        return self.presence.lease

    def renew_lease(self, lost: int) -> None:
        """Have another lease than one that ran out. Blocks; raises MeshDown."""
        if self.presence:
            self.presence.renew(lost)

    def require_current(self) -> None:
        """Raise Renewed when the arpanet was recovered since this process began."""
        if self.mesh.renewed:
            raise Renewed("the arpanet was recovered; this process begins anew")

    def follow(self) -> None:
        """Keep the view as the mesh is, from now on; returns when the first read is in it.

        All keys are followed: somebody else's change must move the view's revision on too.
        """
        self.mesh.watch("", self._read_anew, self._read_events, self.stop)
        with self._moved:
            if not self._moved.wait_for(lambda: self.view.revision > 0, SYNC_S * 2):
                known = ", ".join(self.mesh.endpoints)
                raise MeshDown(f"no master answers ({known}); try: arpanet master status")

    def _read_anew(self, revision: int, entries: Sequence[Entry]) -> None:
        changes = [Change(e.key, e.value, e.create_revision) for e in entries]
        self._set_view(apply_changes(View(), revision, changes))

    def _read_events(self, revision: int, events: Sequence[Event]) -> None:
        changes = [
            Change(key, entry.value, entry.create_revision) if entry else Change(key, None)
            for key, entry, _ in events
        ]
        self._set_view(apply_changes(self.view, revision, changes))

    def _set_view(self, view: View) -> None:
        before = self.view
        with self._moved:
            self.view = view
            self._moved.notify_all()
        if view.alive is before.alive:
            return
        for name in before.alive.keys() - view.alive.keys():
            if name in before.hosts:
                log.warning("host %s is down", name)
                self.tunnels.cut(before.hosts[name].ip)
                self.on_lost(before.hosts[name].ip)

    def wait_view(self, revision: int, timeout_s: float = SYNC_S) -> View:
        """Return the view once it is as of a revision or later. Raises MeshDown."""
        view = self.view
        if view.revision >= revision:
            return view
        with self._moved:
            if not self._moved.wait_for(lambda: self.view.revision >= revision, timeout_s):
                raise MeshDown(
                    f"the mesh is at revision {revision}, and its news do not come here "
                    f"(at {self.view.revision}); try: arpanet master status"
                )
            return self.view

    def wait_change(self, view: View, timeout_s: float) -> View:
        """Return the view when it is another than the given one, or after the time."""
        with self._moved:
            self._moved.wait_for(lambda: self.view is not view or self.stop.is_set(), timeout_s)
            return self.view

    def sync_view(self, *, patient: bool = True) -> View:
        """Return a view that holds all that was acknowledged before this call.

        patient: wait for a majority as long as a change does. Raises MeshDown.
        """
        return self.wait_view((self._revision if patient else self._revision_soon).get())

    def _read_soon(self) -> int:
        """Return the revision, or raise MeshDown in time for a listing."""
        try:
            revision = self.mesh.read_revision(self._read_s)
        except MeshDown:
            self._read_s = READ_NEXT_S
            raise
        self._read_s = READ_S
        return revision

    def has_quorum(self) -> bool:
        """Return whether etcd answered just now; it is asked twice a second at most."""
        now = time.monotonic()
        if now > self._quorum_due:
            self._quorum_due = now + QUORUM_S
            try:
                self.mesh.read_revision(QUORUM_S)
                self._quorum = True
            except MeshDown:
                self._quorum = False
        return self._quorum

    @property
    def arpanet(self) -> str:
        """Return the name that tells this arpanet from others, "" until it was read."""
        return self.mesh.mark.partition("/")[0]

    def master_ips(self) -> list[str]:
        return [endpoint.rpartition(":")[0] for endpoint in self.mesh.endpoints]

    def engine(self, host: Host) -> Engine:
        """Return a host's engine; what waits for it is ended when the host is lost."""
        return Engine(host, self.tunnels)

    def require_engine(self, view: View, name: str) -> Engine:
        """Return a living host's engine. Raises EngineAway."""
        host = view.hosts.get(name)
        where = f"{name} ({host.ip})" if host else name
        if host is None or name not in view.alive:
            raise EngineAway(
                f"host {where} is down; its containers stay listed until it is back, "
                f"or until someone types there: arpanet slave leave"
            )
        if view.alive[name]:
            raise EngineAway(
                f"host {where} cannot be used: {view.alive[name]}; on {name} "
                "try: systemctl restart docker"
            )
        return self.engine(host)


def publish(node: Node, host: str, container_id: str) -> None:
    """Have a host's slave write a container to the mesh, and wait until it is in our view.

    A slave that does not answer is only logged: its own events bring the news later.
    """
    path = f"/publish/{container_id}?revision={node.view.revision}"
    try:
        agent = node.view.hosts[host].agent
        answer = http_json(agent, "POST", path, SYNC_S * 2, name=host)
        node.wait_view(int(answer["revision"]))
    except (OSError, ArpanetError, KeyError, TypeError, ValueError) as e:
        log.warning(
            "could not have container %s published, host=%s: %s", container_id[:12], host, e
        )


# ==== Links ==================================================================
# Moves bytes from socket to socket and never looks inside them. One thread, "pump", owns every
# connection and alone changes the objects below; other threads hand sockets over with a method
# of Pump. An idle connection is two descriptors. The end of one direction closes that direction.
# Small messages are copied through one shared buffer; a direction that fills it is moved by
# splice(2) through a borrowed pipe, so what a slow reader leaves waiting is bounded. TLS is spoken
# here for the whole daemon: a TlsSocket takes the place of a socket, and goes through the buffer.

CONNECT_S = 5.0  # to reach a target
SHAKE_S = 5.0  # for a peer to show its certificate
ANSWER_S = 5.0  # for a far agent to answer CONNECT
HEAD_S = 5.0  # for a peer to say what it wants
TICK_S = 1.0  # how often deadlines are looked at
HEAD_BYTES = 8192
BUFFER_BYTES = 1 << 16
PIPE_BYTES = 1 << 20
SPARE_PIPES = 8
SPLICES_PER_TURN = 4  # then the other connections have their turn
GATHER_S = 0.0002  # after a turn with bulk: what comes meanwhile costs one splice, not many
NICENESS = -10  # of the thread: containers that are busy must not keep their own bytes waiting
COPIES_PER_TURN = 4  # with TLS
ACCEPTS_PER_TURN = 16
EVENTS_PER_TURN = 256

STREAM = int(socket.SOCK_STREAM)  # not the enum: it costs as much as a small system call
AGENT_OK = b"HTTP/1.1 200 OK\r\n\r\n"
NOT_IN_THE_CLEAR = (  # in the words of dockerd
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)
READABLE = select.EPOLLIN | select.EPOLLRDHUP
WRITABLE, BROKEN = select.EPOLLOUT, select.EPOLLERR
HANG_UP_ONCE = select.EPOLLET  # level-triggered, a half-closed socket would be reported for ever
SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
LINGER_0 = struct.pack("ii", 1, 0)
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

OnAccept = Callable[[socket.socket, Address, "LinkListener"], None]
OnHead = Callable[[socket.socket, Address, bytes, bytes], None]
OnRefusal = Callable[[socket.socket, str], None]  # gets the near socket back, and why
OnShaken = Callable[["TlsSocket | None"], None]  # gets None when the peer was refused


class Target(NamedTuple):
    """Where to dial; with a preamble it is an agent, which must answer AGENT_OK to it.

    member: the HOSTNAME of the member of this arpanet that is dialled, "" if it is not known;
    None: no member, so there is no TLS.
    """

    address: Address
    preamble: bytes = b""
    member: str | None = None


class Tally:
    """The bytes that went one way."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class LinkCounters:
    """What went through one link. Thread: pump writes, any thread reads."""

    __slots__ = ("total", "active", "failed", "to_target", "to_client")

    def __init__(self) -> None:
        self.total = self.active = self.failed = 0
        self.to_target, self.to_client = Tally(), Tally()


class Pipe(NamedTuple):
    """The two descriptors of a pipe."""

    read_fd: int
    write_fd: int

    def close(self) -> None:
        """Close both ends, and drop what is in between."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class Watcher:
    """What the pump calls when a descriptor has events or a deadline has passed."""

    __slots__ = ()

    def event(self, events: int) -> None:
        """Do what the events allow, without blocking."""

    def expire(self) -> None:
        """Give up."""

    def abort(self) -> None:
        """Close at once whatever is held; must not raise."""


class Waiter(Watcher):
    """A watcher of one descriptor, from when there is something to wait for until leave()."""

    __slots__ = ("pump", "watched")  # what of it, as epoll has it; 0: it is not registered

    def __init__(self, pump: Pump) -> None:
        self.pump, self.watched = pump, 0

    def watch(self, fd: int, mask: int) -> None:
        """Be called on these events, and no others."""
        if not self.watched:
            self.pump.watchers[fd] = self
            self.pump.epoll.register(fd, mask)
        elif mask != self.watched:
            self.pump.epoll.modify(fd, mask)
        self.watched = mask

    def leave(self, fd: int) -> None:
        """Be called no more; the deadline is gone too."""
        self.pump.due.pop(self, None)
        if self.watched:
            del self.pump.watchers[fd]
            self.pump.epoll.unregister(fd)
            self.watched = 0


def set_linger_0(sock: socket.socket) -> None:
    """Let the close of a socket be a reset: its peer learns at once that bytes may be lost."""
    with contextlib.suppress(OSError):  # closed already: there is nobody to tell
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)


def reset(sock: socket.socket) -> None:
    """Refuse or break off a connection. Thread: any that holds the socket."""
    set_linger_0(sock)
    sock.close()


def say_and_close(sock: socket.socket, words: bytes) -> None:
    """Send a last answer and close. Never blocks, never raises an OSError."""
    with contextlib.suppress(OSError):  # a peer that is gone misses nothing
        sock.setblocking(False)
        sock.send(words)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(BUFFER_BYTES)  # what is left unread turns the close into a reset
    sock.close()


def status_line(status: int, why: str) -> bytes:
    """Return a whole HTTP answer without a body; why may be any text."""
    return f"HTTP/1.1 {status} {' '.join(why.split())}\r\n\r\n".encode("latin-1", "replace")


def refuse_link(sock: socket.socket, _why: str) -> None:
    """Reset: a client sees what it would see from a target that is not there."""
    reset(sock)


def refuse_connect(sock: socket.socket, why: str) -> None:
    """Answer a CONNECT whose target does not answer."""
    say_and_close(sock, status_line(502, why))


def adopt(sock: socket.socket) -> socket.socket:
    """Return a new owner of the socket; whoever still has the old object can close it harmlessly.

    Source: http.server and socketserver shut down and close what they have handed out.
    """
    if isinstance(sock, TlsSocket):
        return sock  # which neither of them has
    owned = socket.socket(fileno=sock.detach())
    if owned.family != socket.AF_UNIX:
        tune_socket(owned)
    return owned


class LinkListener(socketserver.TCPServer):
    """A bound TCP listener that a pump accepts from, and the counters of what came that way.

    accepted(sock, peer, listener) runs in the pump and must not block: it calls pump.dial() or
    pump.read_head(), hands sock (non-blocking) to a thread that will, or refuses it by reset()
    or an ArpanetError. speaks_first: the peer does, so accept waits for its first bytes.
    Raises OSError if the address cannot be bound.
    """

    request_queue_size = 1024
    allow_reuse_address = True

    def __init__(self, address: Address, accepted: OnAccept, *, speaks_first: bool = False) -> None:
        self.accepted, self.speaks_first, self.counters = accepted, speaks_first, LinkCounters()
        self.address = address
        super().__init__(address, socketserver.BaseRequestHandler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind, with the options that accepted sockets inherit."""
        self.socket.setblocking(False)
        if self.address_family == socket.AF_INET:
            tune_socket(self.socket)
        if self.speaks_first:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(HEAD_S))
        super().server_bind()

    def process_request(self, request: object, client_address: Address) -> None:
        """Let accepted() decide; a socket that nobody wants is reset."""
        assert isinstance(request, socket.socket)
        try:
            self.accepted(request, client_address, self)
        except ArpanetError as refusal:
            log.debug("refused %s: %s", client_address, refusal)
            self.counters.failed += 1
            reset(request)
        except Exception:
            log.exception("internal error while accepting from %s", client_address)
            reset(request)


class UnixListener(LinkListener):
    """A bound unix socket listener; takes the place of a socket file that nobody listens on."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Bind. Raises OSError (EADDRINUSE) if the path is another listener's, or another thing."""
        path = str(self.server_address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            refused = probe.connect_ex(path) == errno.ECONNREFUSED
        if refused and stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
        super().server_bind()


class Acceptor(Watcher):
    """Accepts in bursts for one listener; without descriptors it looks away for a tick."""

    __slots__ = ("pump", "listener", "family", "fd", "resting")

    def __init__(self, pump: Pump, listener: LinkListener) -> None:
        self.pump, self.listener, self.fd = pump, listener, listener.fileno()
        self.family = int(listener.address_family)
        self.resting = False  # since the last time that accept worked

    def event(self, _events: int) -> None:
        """Accept what has queued up, and let the listener decide about each."""
        accept = self.listener.socket._accept  # type: ignore[attr-defined] # accept() less its enums
        for _ in range(ACCEPTS_PER_TURN):
            try:
                fd, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._rest(error)
                return
            self.resting = False
            sock = socket.socket(self.family, STREAM, 0, fd)
            sock.setblocking(False)
            self.listener.process_request(sock, peer)

    def _rest(self, error: OSError) -> None:
        if error.errno in OUT_OF_DESCRIPTORS:  # the queue stays readable: epoll would spin
            if not self.resting:
                log.warning("accepts no connection for now: %s", error)
            self.resting = True
            self.pump.epoll.modify(self.fd, 0)
            self.pump.next_tick.append(self._look_again)

    def _look_again(self) -> None:
        if self.pump.watchers.get(self.fd) is self:
            self.pump.epoll.modify(self.fd, select.EPOLLIN)

    def abort(self) -> None:
        """Stop listening."""
        if self.pump.watchers.get(self.fd) is self:
            del self.pump.watchers[self.fd]
            self.pump.bury(self.listener.socket)


class Half(Watcher):
    """One direction of a connection: what arrives on source goes to sink.

    left and piped are read and not yet taken by the sink; while there are any the half is
    stalled: nothing more is read, and the sink is watched until it can be written.
    """

    __slots__ = (
        "source", "sink", "connection", "pump", "tally", "reverse", "left", "pipe", "piped",
        "bulk", "ended", "done", "stalled", "mask",
    )  # fmt: skip
    reverse: Half

    def __init__(
        self, connection: Connection, source: socket.socket, sink: socket.socket, tally: Tally
    ) -> None:
        self.connection, self.pump = connection, connection.pump
        self.source, self.sink, self.tally = source, sink, tally
        self.left = b""
        self.pipe: Pipe | None = None
        self.piped = 0  # bytes in the pipe
        self.bulk = False  # by splice, not through the buffer
        self.ended = False  # the source has said its last
        self.done = False  # and so has the sink been told
        self.stalled = False
        self.mask = 0  # of the source, as epoll has it; 0 = not registered

    def event(self, events: int) -> None:
        """Act on events of the source: it is readable, or takes more of the other half."""
        if events & WRITABLE:
            self.reverse.move()
        if events & ~WRITABLE and self.connection.open:
            if not (self.ended or self.stalled):
                self.move()  # broken or not: what came before the break is delivered
            elif events & BROKEN:
                self.connection.close(broken=True)

    def abort(self) -> None:
        """Break the connection off."""
        self.connection.close(broken=True)

    def begin(self, early: bytes, flags: int = 0) -> None:
        """Send what was read before there was a sink. Raises OSError."""
        if early:
            try:
                self.left = early[self.sink.send(early, flags) :]
            except BlockingIOError:
                self.left = early
            self.stalled = bool(self.left)

    def move(self) -> None:
        """Pass on what is there, as far as the sink takes it. Never blocks."""
        try:
            if self.left:
                self.left = self.left[self.sink.send(self.left) :]
            if not (self.left or self.bulk or self.piped or self.ended):
                self._copy()
                if not (self.left or self.bulk or self.ended or self.stalled):
                    return  # a small message, the common case: nothing else changes
            if (self.bulk or self.piped) and not self.left:
                self._splice()
        except BlockingIOError:
            pass  # nothing to read, or no room: left and piped say which
        except OSError:
            self.connection.close(broken=True)
            return
        self._settle()

    def _copy(self) -> None:
        """Pass one message through the shared buffer; one that fills it is the start of bulk."""
        size = self.source.recv_into(self.pump.buffer)
        if not size:
            self.ended = True
            return
        self.tally.bytes += size
        try:
            sent = self.sink.send(self.pump.view[:size])
        except BlockingIOError:
            sent = 0
        if sent < size:
            self.left = bytes(self.pump.view[sent:size])
        self.bulk = size == BUFFER_BYTES

    def _splice(self) -> None:
        """Pass a few pipes full. Raises BlockingIOError when the sink takes no more."""
        moved, sink_fd = 0, self.sink.fileno()
        for _ in range(SPLICES_PER_TURN):
            pipe = self.pipe or self.pump.borrow_pipe()
            if pipe is None:  # out of descriptors: the buffer does it too
                break
            self.pipe = pipe
            if not self.piped:
                if not self._fill(pipe):
                    break
                moved += self.piped
            self.piped -= os.splice(pipe.read_fd, sink_fd, self.piped, flags=SPLICE)
        self.pump.had_bulk = True
        if moved < BUFFER_BYTES // 2 and not self.piped:
            self.bulk = False  # back to small messages

    def _fill(self, pipe: Pipe) -> bool:
        """Return True if bytes came from the source into the (empty) pipe."""
        try:
            self.piped = os.splice(self.source.fileno(), pipe.write_fd, PIPE_BYTES, flags=SPLICE)
        except BlockingIOError:
            return False
        self.tally.bytes += self.piped
        self.ended = not self.piped
        return not self.ended

    def _settle(self) -> None:
        """Give the pipe back, pass an end on, and watch for what is needed now."""
        if self.pipe is not None and not self.piped:
            self.pump.return_pipe(self.pipe)
            self.pipe = None
        self.stalled = bool(self.left or self.piped)
        if self.ended and not self.stalled and not self.done:
            self.done = True
            if self.reverse.done:
                self.connection.close()
                return
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError:  # reset in this instant
                self.connection.close(broken=True)
                return
        self.connection.rearm()


class TlsHalf(Half):
    """A direction with TLS at one end or at both: all goes through the buffer, nothing by splice.

    What was decrypted is passed on to its end, as epoll does not tell of it.
    """

    __slots__ = ()

    def begin(self, early: bytes, flags: int = 0) -> None:
        """Send what was read before there was a sink. Raises OSError."""
        super().begin(early, flags)
        self.stalled = self._is_stalled()

    def move(self) -> None:
        """Pass on what is there, as far as the sink takes it. Never blocks."""
        try:
            if self.stalled:
                self.left = self.left[self.sink.send(self.left) :]
            for _ in range(COPIES_PER_TURN):
                if self.ended or self._is_stalled():
                    break
                before = self.tally.bytes
                self._copy()
                self.bulk = False
                if isinstance(self.source, TlsSocket):  # its end need not be TCP's, too
                    self.ended = self.source.ended
                if self.tally.bytes - before < BUFFER_BYTES // 2:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            log.debug("broken off: %s", error)
            self.connection.close(broken=True)
            return
        self._settle()

    def _is_stalled(self) -> bool:
        return bool(self.left or (isinstance(self.sink, TlsSocket) and self.sink.unsent))

    def _settle(self) -> None:
        """Pass an end on, and watch for what is needed now."""
        self.stalled = self._is_stalled()
        if self.ended and not self.stalled and not self.done:
            try:
                self.sink.shutdown(socket.SHUT_WR)
                self.done = True
            except BlockingIOError:
                self.stalled = True
            except OSError:  # reset in this instant
                self.connection.close(broken=True)
                return
            if self.done and self.reverse.done:
                self.connection.close()
                return
        self.connection.rearm()


class Connection:
    """Two connected sockets: near came in, far was dialled (or both were there: join)."""

    __slots__ = ("pump", "near", "far", "near_fd", "far_fd", "counters", "forth", "back", "open")

    def __init__(
        self, pump: Pump, near: socket.socket, far: socket.socket, counters: LinkCounters
    ) -> None:
        self.pump, self.near, self.far, self.counters = pump, near, far, counters
        self.near_fd, self.far_fd = near.fileno(), far.fileno()
        plain = type(near) is type(far) is socket.socket
        make = Half if plain else TlsHalf
        self.forth = make(self, near, far, counters.to_target)
        self.back = make(self, far, near, counters.to_client)
        self.forth.reverse, self.back.reverse = self.back, self.forth
        self.open = True

    def start(self, early_to_far: bytes, early_to_near: bytes, flags_to_near: int = 0) -> None:
        """Pass on what was read already, and watch both sides."""
        watchers = self.pump.watchers
        watchers[self.near_fd] = self.forth
        watchers.setdefault(self.far_fd, self.back)  # unless an AgentAnswer is awaited first
        try:
            self.back.begin(early_to_near, flags_to_near)
            self.forth.begin(early_to_far)
        except OSError:
            self.close(broken=True)
            return
        self.rearm()
        for half, fd in ((self.forth, self.near_fd), (self.back, self.far_fd)):
            if isinstance(half, TlsHalf) and watchers.get(fd) is half:
                half.move()  # what was decrypted already

    def join(self, early_to_far: bytes, early_to_near: bytes) -> None:
        """Start with two sockets that somebody has read from already."""
        self.counters.total += 1
        self.counters.active += 1
        self.counters.to_target.bytes += len(early_to_far)
        self.counters.to_client.bytes += len(early_to_near)
        self.start(early_to_far, early_to_near)

    def has_reached(self, host: str) -> bool:
        """Return whether the far side is at this IP, or with "" at a unix socket."""
        try:
            peer = self.far.getpeername()
        except OSError:  # closed
            return False
        return bool(host == (peer[0] if isinstance(peer, tuple) else ""))

    def rearm(self) -> None:
        """Tell epoll what is waited for, where that changed."""
        for half, fd in ((self.forth, self.near_fd), (self.back, self.far_fd)):
            mask = 0 if half.ended or half.stalled else READABLE
            if half.reverse.stalled:
                mask |= WRITABLE
            mask = mask or HANG_UP_ONCE
            if mask == half.mask:
                continue
            if half.mask:
                self.pump.epoll.modify(fd, mask)
            else:
                self.pump.epoll.register(fd, mask)
            half.mask = mask

    def abort(self) -> None:
        """Break the connection off."""
        self.close(broken=True)

    def close(self, *, broken: bool = False) -> None:
        """Close both sides, by a reset if bytes may be lost."""
        if not self.open:
            return
        self.open = False
        self.counters.active -= 1
        for half, fd in ((self.forth, self.near_fd), (self.back, self.far_fd)):
            watcher = self.pump.watchers.pop(fd, half)
            self.pump.due.pop(watcher, None)  # of an AgentAnswer
            if half.pipe is not None:
                half.pipe.close()  # it may hold bytes: never for reuse
                half.pipe = None
            self.pump.bury(half.source, broken=broken)


class AgentAnswer(Watcher):
    """Stands in for the back half of a connection until the far agent has said OK."""

    __slots__ = ("connection", "agent", "missing")

    def __init__(self, connection: Connection, agent: Address) -> None:
        self.connection, self.agent, self.missing = connection, agent, AGENT_OK

    def event(self, events: int) -> None:
        """Read no byte more than the answer; what follows is for the near side."""
        connection = self.connection
        if events & WRITABLE:
            connection.forth.move()
        if not events & ~WRITABLE or not connection.open:
            return
        try:
            part = connection.far.recv(len(self.missing))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno is None:  # of TLS 1.3 this is where one is told of a refusal
                connection.pump.note_refusal(self.agent, str(error))
            self._fail(str(error))
            return
        if not part or not self.missing.startswith(part):
            self._fail(f"the agent answered {part!r}")
            return
        self.missing = self.missing[len(part) :]
        if not self.missing:
            del connection.pump.due[self]
            connection.pump.watchers[connection.far_fd] = connection.back
            connection.back.move()

    def expire(self) -> None:
        """Give up: the agent is silent."""
        self._fail(f"the agent did not answer within {ANSWER_S} s")

    def _fail(self, why: str) -> None:
        log.debug("link failed: %s", why)
        self.connection.counters.failed += 1
        self.abort()

    def abort(self) -> None:
        """Break the connection off."""
        self.connection.close(broken=True)


class Dial(Waiter):
    """A near socket that waits for its target to be reached."""

    __slots__ = (
        "near", "targets", "counters", "answer", "early", "on_refusal", "far", "connection",
        "failed", "target",
    )  # fmt: skip
    target: Target

    def __init__(
        self, pump: Pump, near: socket.socket, targets: Iterable[Target], answer: bytes,
        early: bytes, counters: LinkCounters, on_refusal: OnRefusal,
    ) -> None:  # fmt: skip
        super().__init__(pump)
        self.near, self.targets, self.counters = near, iter(targets), counters
        self.answer, self.early, self.on_refusal = answer, early, on_refusal
        self.far: socket.socket | None = None
        self.connection: Connection | None = None
        self.failed = False

    def start(self) -> None:
        """Dial the first target."""
        self.counters.total += 1
        self.counters.active += 1
        self._dial_next("no target")

    def _dial_next(self, why: str) -> None:
        """Dial the next target; without one give up and say why the last did not answer."""
        self._hang_up()
        target = next(self.targets, None)
        if target is None:
            self._fail(why)
            return
        self.target = target
        unix = isinstance(target.address, str)
        try:
            family = socket.AF_UNIX if unix else socket.AF_INET
            self.far = socket.socket(family, STREAM | socket.SOCK_NONBLOCK)
            if not unix:
                self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.pump.untuned.append(self.far)
            error = self.far.connect_ex(target.address)
        except OSError as failure:
            self._dial_next(str(failure))
            return
        if error == errno.EINPROGRESS and not target.preamble:
            error = self.far.connect_ex(target.address)  # on this host: it is there already
        self._advance(self.far, error)

    def event(self, _events: int) -> None:
        """See how far the dial is: connect() again tells, and a stray event does no harm."""
        if isinstance(self.far, TlsSocket):
            self._shake(self.far)
        elif self.far is not None:
            self._advance(self.far, self.far.connect_ex(self.target.address))

    def _advance(self, far: socket.socket, error: int) -> None:
        own = None if self.target.member is None else identity()
        if error in (0, errno.EISCONN) and own:
            self.far = TlsSocket(far, own.client_context(), self.target.address[0])
            self.pump.untuned.append(self.far)
            self._shake(self.far)
        elif error in (0, errno.EISCONN):
            self._connected(far)
        elif error == errno.EAGAIN:  # the queue of a unix listener is full: nothing to wait on
            self.pump.due.setdefault(self, time.monotonic() + CONNECT_S)
            self.pump.next_tick.append(functools.partial(self._try_again, far))
        elif error not in (errno.EINPROGRESS, errno.EALREADY):
            self._dial_next(os.strerror(error))
        elif not self.watched:
            self._watch(far, WRITABLE)

    def _shake(self, far: TlsSocket) -> None:
        """Agree on TLS as far as the other side has answered."""
        try:
            far.handshake()
            far.require_machine(self.target.member or "")
        except BlockingIOError:
            self._watch(far, READABLE | (WRITABLE if far.unsent else 0))
        except OSError as error:
            self.pump.note_refusal(self.target.address, str(error), news=error.errno is None)
            self._dial_next(f"{self.target.address}: {error}")
        else:
            self._connected(far)

    def _watch(self, far: socket.socket, mask: int) -> None:
        if not self.watched:
            self.pump.due[self] = time.monotonic() + CONNECT_S
        self.watch(far.fileno(), mask)

    def _try_again(self, far: socket.socket) -> None:
        if self.far is far:
            self.event(0)

    def _connected(self, far: socket.socket) -> None:
        """Make the connection; what the near side has sent by now rides with the preamble."""
        pump, asked = self.pump, self.early
        self._leave()
        self.far = None
        self.connection = connection = Connection(pump, self.near, far, self.counters)
        try:
            asked = asked or self.near.recv(BUFFER_BYTES // 4)
        except BlockingIOError:
            pass
        except OSError:
            connection.close(broken=True)
            return
        connection.back.mask = self.watched
        if self.target.preamble:
            answer = AgentAnswer(connection, self.target.address)
            pump.watchers[far.fileno()] = answer
            pump.due[answer] = time.monotonic() + ANSWER_S
        self.counters.to_target.bytes += len(asked)
        # Somebody who has asked already will be answered: our OK rides with that (or after 0.2 s)
        # in one packet. Somebody who has not may be waiting for the OK.
        flags = socket.MSG_MORE if asked else 0
        connection.start(self.target.preamble + asked, self.answer, flags)

    def expire(self) -> None:
        """Give this target up."""
        self._dial_next("timed out")

    def _leave(self) -> None:
        self.pump.due.pop(self, None)
        if self.watched and self.far is not None:
            del self.pump.watchers[self.far.fileno()]

    def _hang_up(self) -> None:
        if self.far is not None:
            self._leave()
            self.pump.bury(self.far)
            self.far, self.watched = None, 0

    def _fail(self, why: str) -> None:
        log.debug("dial failed: %s", why)
        self.failed = True
        self.counters.failed += 1
        self.counters.active -= 1
        self.on_refusal(self.near, why)

    def abort(self) -> None:
        """Break off what has been begun."""
        if self.connection is not None:
            self.connection.close(broken=True)
            return
        self._hang_up()
        reset(self.near)
        if not self.failed:
            self.counters.active -= 1


class Handshake(Waiter):
    """Agrees on TLS with a peer that has connected, then hands the TlsSocket over.

    settled() gets it, or None: then the peer was refused, and why is logged once.
    """

    __slots__ = ("sock", "fd", "peer", "settled")

    def __init__(self, pump: Pump, sock: TlsSocket, peer: Address, settled: OnShaken) -> None:
        super().__init__(pump)
        self.sock, self.fd, self.peer, self.settled = sock, sock.fileno(), peer, settled

    def start(self) -> None:
        """Begin as soon as something is there: until then the library would hold 20 KB for it."""
        self.pump.due[self] = time.monotonic() + SHAKE_S
        self.watch(self.fd, READABLE)

    def event(self, _events: int) -> None:
        """Go on, as far as the peer has answered."""
        try:
            self.sock.handshake()
        except BlockingIOError:
            self.watch(self.fd, READABLE | (WRITABLE if self.sock.unsent else 0))
        except OSError as error:
            self._refuse(str(error), getattr(error.__cause__, "reason", ""))
        else:
            self.leave(self.fd)
            self.settled(self.sock)

    def expire(self) -> None:
        """Give up: the peer is silent."""
        self._refuse(f"no certificate within {SHAKE_S:g} s")

    def _refuse(self, why: str, reason: str = "") -> None:
        self.leave(self.fd)
        self.pump.note_refusal(self.peer, why, news=self.sock.heard)  # a knock is none
        if reason == "HTTP_REQUEST":
            plain = socket.socket(fileno=self.sock.detach())
            say_and_close(plain, NOT_IN_THE_CLEAR)
        self.sock.close()
        self.settled(None)

    def abort(self) -> None:
        """Close without a word."""
        self.leave(self.fd)
        self.sock.close()
        self.settled(None)


class HeadReader(Waiter):
    """Reads one HTTP request head, then hands the socket over."""

    __slots__ = ("sock", "fd", "peer", "on_head", "got")

    def __init__(self, pump: Pump, sock: socket.socket, peer: Address, on_head: OnHead) -> None:
        super().__init__(pump)
        self.sock, self.fd, self.peer, self.on_head = sock, sock.fileno(), peer, on_head
        self.got = b""

    def start(self) -> None:
        """Read what is there: where the peer speaks first (TCP_DEFER_ACCEPT), all of it."""
        self.pump.due[self] = time.monotonic() + HEAD_S
        self.event(0)
        if self in self.pump.due:
            self.watch(self.fd, READABLE)

    def event(self, _events: int) -> None:
        """Read on; at the end of the head let on_head() have the socket."""
        try:
            part = self.sock.recv(HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self.got += part
        head, end, rest = self.got.partition(b"\r\n\r\n")
        if end and len(head) + len(end) <= HEAD_BYTES:
            self._hand_over(head + end, rest)
        elif end or len(self.got) >= HEAD_BYTES:
            self._refuse(status_line(431, f"the head is longer than {HEAD_BYTES} bytes"))
        elif not part:
            self.abort()

    def _hand_over(self, head: bytes, rest: bytes) -> None:
        self.leave(self.fd)
        try:
            self.on_head(self.sock, self.peer, head, rest)
        except ArpanetError as refusal:
            say_and_close(self.sock, status_line(refusal.status, str(refusal)))
        except Exception:
            log.exception("internal error while answering %s", self.peer)
            say_and_close(self.sock, status_line(500, "internal error"))

    def expire(self) -> None:
        """Give up: the head does not end."""
        self._refuse(status_line(408, f"no request within {HEAD_S} s"))

    def _refuse(self, words: bytes) -> None:
        self.leave(self.fd)
        say_and_close(self.sock, words)

    def abort(self) -> None:
        """Close without a word."""
        self.leave(self.fd)
        self.sock.close()


class Mailbox(Watcher):
    """Calls that other threads leave for the pump, and the descriptor that wakes it for them."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # guards _calls and _open
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._open = True

    def post(self, call: Callable[[], None]) -> bool:
        """Return True if the pump will run the call, False if it has ended."""
        with self._lock:
            if not self._open:
                return False
            if not self._calls:
                os.eventfd_write(self.fd, 1)
            self._calls.append(call)
        return True

    def event(self, _events: int) -> None:
        """Run what was left, one by one: none stands in the way of the next."""
        os.eventfd_read(self.fd)
        with self._lock:
            calls, self._calls = self._calls, collections.deque()
        for call in calls:
            run_guarded(call)

    def close(self) -> None:
        """Take no more calls; those that are in it are run: they find the pump ended."""
        with self._lock:
            self._open = False
            os.close(self.fd)
        for call in self._calls:
            run_guarded(call)


def run_guarded(call: Callable[[], None]) -> None:
    """Run the call; an exception is a bug that is logged and ends nothing else."""
    try:
        call()
    except Exception:
        log.exception("internal error in the pump")


class Pump:
    """The thread that owns the connections. Its methods may be called from any thread.

    A socket that is given away must not be touched again. After stop() sockets that are handed
    over are reset. stop: is set if the thread dies, which only a bug can do.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._thread: Thread | None = None
        self._thread_id = 0
        self._running = True
        self._mailbox = Mailbox()
        self._buried: list[socket.socket] = []
        self._pipes: list[Pipe] = []
        self._tick_at = 0.0
        self._refused: Recent[bool] = Recent(1000)  # "IP: why" of those that were logged
        self.turns = 0
        # From here on: for the objects of this section, in the pump's thread alone.
        self.epoll = select.epoll()
        self.watchers: dict[int, Watcher] = {self._mailbox.fd: self._mailbox}
        self.due: dict[Watcher, float] = {}  # deadlines
        self.next_tick: list[Callable[[], None]] = []
        self.untuned: list[socket.socket] = []  # most connections end before it matters to them
        self.had_bulk = False  # in this turn
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.epoll.register(self._mailbox.fd, select.EPOLLIN)

    def start(self) -> None:
        """Start the thread; what was asked for before is done now."""
        self._thread = spawn("pump", self._run, self._stop)

    def stop(self) -> None:
        """Close the listeners, reset the connections, end the thread. Blocks until it has ended."""
        if self._mailbox.post(self._end) and self._thread is None:
            self._close()  # never started
        if self._thread is not None and threading.get_ident() != self._thread_id:
            self._thread.join()

    def listen(self, listener: LinkListener) -> None:
        """Accept what comes to the listener, which belongs to the pump from now on."""
        self._call(lambda: self._listen(listener))

    def unlisten(self, listener: LinkListener) -> None:
        """Refuse from now on, so the address can be bound anew; its connections go on."""
        with contextlib.suppress(OSError):  # closed already
            listener.socket.shutdown(socket.SHUT_RDWR)
        self._call(lambda: self._unlisten(listener))

    def dial(
        self, sock: socket.socket, target: Target, *, others: Iterable[Target] = (),
        answer: bytes = b"", early: bytes = b"", counters: LinkCounters | None = None,
        on_refusal: OnRefusal | None = None,
    ) -> None:  # fmt: skip
        """Connect an accepted socket with the target, or with the first that answers of others.

        others: is asked for the next only when one does not answer, in the pump: must not block.
        answer: what sock is told once connected. early: what was read from sock already.
        on_refusal: gets sock back, in the pump, if none answers; by default sock is reset, or
        gets an HTTP 502 where there is an answer to give. Each target has CONNECT_S, an agent
        ANSWER_S more.
        """
        if on_refusal is None:
            on_refusal = refuse_connect if answer else refuse_link
        targets = itertools.chain((target,), others)
        dial = Dial(self, sock, targets, answer, early, counters or LinkCounters(), on_refusal)
        self._begin((sock,), dial.start, dial.abort)

    def read_head(self, sock: socket.socket, peer: Address, on_head: OnHead) -> None:
        """Read an HTTP head from an accepted socket, then call on_head(sock, peer, head, rest).

        on_head runs in the pump and must not block: it calls dial() with early=rest, or hands
        sock (non-blocking) to a thread. An ArpanetError from it is answered and sock closed; so
        is a head of more than HEAD_BYTES (431) or one that is not there after HEAD_S (408).
        """
        reader = HeadReader(self, sock, peer, on_head)
        self._begin((sock,), reader.start, reader.abort)

    def shake(
        self, sock: socket.socket, peer: Address, context: ssl.SSLContext, settled: OnShaken
    ) -> None:
        """Agree on TLS with an accepted socket, then call settled(its TlsSocket), in the pump.

        Who has not shown what the context asks for after SHAKE_S is refused: settled(None).
        """
        sock.setblocking(False)
        shaking = Handshake(self, TlsSocket(sock, context), peer, settled)
        self._call(lambda: run_guarded(shaking.start if self._running else shaking.abort))

    def bridge(self, sock: socket.socket) -> socket.socket:
        """Return what any thread may use as a plain socket in place of one that may speak TLS.

        Raises OSError.
        """
        if not isinstance(sock, TlsSocket):
            return sock
        mine, near = tcp_pair()
        self.join(near, sock)
        return mine

    def note_refusal(self, peer: Address, why: str, *, news: bool = True) -> None:
        """Log that a peer was refused: as news once for each address and reason."""
        words = f"refused {peer[0]}: {why}"
        known = self._refused.get(words)
        self._refused.put(words, True)
        log.log(logging.WARNING if news and not known else logging.DEBUG, "%s", words)

    def join(
        self, near: socket.socket, far: socket.socket, *, early_to_far: bytes = b"",
        early_to_near: bytes = b"", counters: LinkCounters | None = None,
    ) -> None:  # fmt: skip
        """Connect two connected sockets, whose objects are empty (detached) when this returns.

        early_to_far: what was read from near already; early_to_near: from far.
        """
        near, far = adopt(near), adopt(far)
        connection = Connection(self, near, far, counters or LinkCounters())
        start = functools.partial(connection.join, early_to_far, early_to_near)
        self._begin((near, far), start, connection.abort)

    def cut(self, host: str, told: Callable[[int], None] | None = None) -> None:
        """Reset the connections that were dialled to this IP, or with "" to a unix socket.

        What is there is known not to answer, and would keep its peers waiting.
        told: gets how many there were, in the pump, if there were any.
        """
        self._call(lambda: self._cut(host, told))

    def _call(self, call: Callable[[], None]) -> None:
        """Run the call in the pump: at once if this is the pump's thread, or if that has ended."""
        if threading.get_ident() == self._thread_id or not self._mailbox.post(call):
            call()

    def _begin(
        self, socks: Sequence[socket.socket], start: Callable[[], None], abort: Callable[[], None]
    ) -> None:
        """Let start() run in the pump; if it fails, which is a bug, abort() what it began."""

        def begin() -> None:
            if not self._running:
                for sock in socks:
                    reset(sock)
                return
            try:
                start()
            except Exception:
                log.exception("internal error at the start of a connection")
                abort()

        for sock in socks:
            if sock.gettimeout() != 0:  # a thread has had it
                sock.setblocking(False)
        self._call(begin)

    def _listen(self, listener: LinkListener) -> None:
        if not self._running:
            listener.server_close()
            return
        self.watchers[listener.fileno()] = Acceptor(self, listener)
        self.epoll.register(listener.fileno(), select.EPOLLIN)

    def _unlisten(self, listener: LinkListener) -> None:
        acceptor = self.watchers.get(listener.fileno())
        if acceptor is None:  # the pump has ended
            listener.server_close()
        else:
            acceptor.abort()

    def _cut(self, host: str, told: Callable[[int], None] | None) -> None:
        known = {w.connection for w in self.watchers.values() if isinstance(w, Half)}
        waiting = [connection for connection in known if connection.has_reached(host)]
        for connection in waiting:
            connection.abort()
        if waiting and told:
            told(len(waiting))

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        with contextlib.suppress(PermissionError):  # of a client that is not root
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            while self._running:
                self._turn()
        finally:
            self._close()

    def _turn(self) -> None:
        """Handle what has happened; wait for it if nothing has, up to a tick."""
        self.turns += 1
        for fd, events in self.epoll.poll(TICK_S, EVENTS_PER_TURN):
            watcher = self.watchers.get(fd)
            if watcher is None:  # closed by another event of this turn
                continue
            try:
                watcher.event(events)
            except Exception:
                log.exception("internal error in a connection, which is closed")
                watcher.abort()
        self._close_buried()
        if self.had_bulk:
            self.had_bulk = False
            self._stop.wait(GATHER_S)
        now = time.monotonic()
        if now >= self._tick_at:
            self._tick_at = now + TICK_S
            self._tick(now)

    def _tick(self, now: float) -> None:
        for watcher in [watcher for watcher, deadline in self.due.items() if deadline <= now]:
            if self.due.pop(watcher, None) is None:  # closed by one before it
                continue
            try:
                watcher.expire()
            except Exception:
                log.exception("internal error at a deadline")
                watcher.abort()
        calls, self.next_tick = self.next_tick, []
        for call in calls:
            run_guarded(call)
        while len(self._pipes) > SPARE_PIPES:
            self._pipes.pop().close()
        for sock in self.untuned:
            if sock.fileno() >= 0:  # not closed
                keep_alive(sock)
        self.untuned.clear()
        self._close_buried()

    def _end(self) -> None:
        self._running = False

    def _close(self) -> None:
        """Close whatever there is. Thread: the pump, as its last act."""
        self._running = False
        for held in [*self.watchers.values(), *self.due]:
            held.abort()
        self._mailbox.close()
        self._close_buried()
        while self._pipes:
            self._pipes.pop().close()
        self.epoll.close()

    def bury(self, sock: socket.socket, *, broken: bool = False) -> None:
        """Close a watched socket when this turn's events are done with.

        Not at once: a new socket would get its descriptor, and events meant for the old one.
        """
        if broken:
            set_linger_0(sock)
        self._buried.append(sock)

    def _close_buried(self) -> None:
        while self._buried:
            self._buried.pop().close()

    def borrow_pipe(self) -> Pipe | None:
        """Return an empty pipe, or None if there is no descriptor for one."""
        if self._pipes:
            return self._pipes.pop()
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None
        for size_bytes in (PIPE_BYTES, PIPE_BYTES // 4):
            try:
                fcntl.fcntl(pipe.write_fd, fcntl.F_SETPIPE_SZ, size_bytes)
                break
            except OSError:  # past the user's soft limit: a small pipe works too
                continue
        return pipe

    def return_pipe(self, pipe: Pipe) -> None:
        """Take back an empty pipe."""
        self._pipes.append(pipe)


# ==== API ====================================================================
# The Docker API. A handler takes a Call and returns a Reply or raises; answer()
# alone makes bodies of errors. ROUTES is the whole surface.


class Reply(NamedTuple):
    """An answer: a body of ours, a stream of ours, or what an engine sends.

    With both an engine and a stream, the stream is what becomes of the engine's body.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    stream: Iterator[bytes] | None = None
    engine: EngineReply | None = None

    @property
    def is_brief(self) -> bool:
        """Return whether it is all there, or soon will be."""
        counted = self.engine is None or self.engine.response.length is not None
        return self.stream is None and counted and not (self.engine and self.engine.is_hijack)


JSON = (("Content-Type", "application/json"),)


def json_reply(value: Any, status: int = 200) -> Reply:
    """Return a JSON answer, with the line break that an engine sends too."""
    return Reply(status, dump_plain(value) + b"\n", JSON)


@dataclasses.dataclass
class Call:
    """One request: made for it, and thrown away with it."""

    node: Node
    method: str
    prefix: str  # "/v1.41" or ""
    path: str  # raw, less the prefix
    query_text: str  # raw, less the ?
    headers: Headers
    body: Body
    on_hangup: Callable[[Callable[[], None]], None]  # what to do when the client goes
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    warning: str = ""

    @functools.cached_property
    def query(self) -> dict[str, list[str]]:
        return urllib.parse.parse_qs(self.query_text, keep_blank_values=True)

    def text(self, name: str) -> str:
        """Return a parameter of the query, "" when it is not given."""
        return self.query.get(name, [""])[0]

    def flag(self, name: str) -> bool:
        """Return a yes or no of the query, in the forms that clients write."""
        return self.text(name).lower() not in ("", "0", "no", "false", "none")

    def number(self, name: str) -> int:
        """Return a number of the query, 0 when it is not given. Raises BadRequest."""
        try:
            return int(self.text(name) or 0)
        except ValueError:
            raise BadRequest(f"{name} must be a number, not {self.text(name)!r}") from None

    def target(self, **changed: str) -> str:
        """Return the raw path and query for an engine, with some path segments replaced."""
        path = self.path
        for name in sorted(changed, key=lambda n: -self.spans[n][0]):
            start, end = self.spans[name]
            path = path[:start] + urllib.parse.quote(changed[name], safe="") + path[end:]
        return self.prefix + path + (f"?{self.query_text}" if self.query_text else "")

    def engine_headers(self) -> list[tuple[str, str]]:
        """Return the headers that an engine gets: not those that are for us alone."""
        kept = [(n, v) for n, v in self.headers.items() if n.lower() not in NOT_FOR_ENGINES]
        upgrade = self.headers.get("Upgrade")
        return kept + ([("Connection", "Upgrade"), ("Upgrade", upgrade)] if upgrade else [])

    def view_for_change(self) -> View:
        """Return an up-to-date view. Raises MeshDown: without quorum nothing is changed."""
        return self.node.sync_view()

    def view_for_read(self) -> View:
        """Return an up-to-date view; without quorum the one we have, with a warning."""
        try:
            return self.node.sync_view(patient=False)
        except MeshDown as e:
            self.warning = f'199 arpanet "may be stale: {str(e)[:200]}"'
            return self.node.view

    def container(self, change: bool = False) -> Container:
        """Return the path's container. Raises NotFound in Docker's words, MeshDown for a change."""
        reference = self.params["container"]
        known = self.node.view.containers.get(reference)
        if known and not change:
            return known
        return require_container(
            self.view_for_change() if change else self.view_for_read(), reference
        )

    def engine_of(self, container: Container) -> Engine:
        return self.node.require_engine(self.node.view, container.host)

    def forward(self, container: Container) -> EngineReply:
        """Return the answer of the container's engine to this very request."""
        return self.send(self.engine_of(container), self.target(container=container.id))

    def send(self, engine: Engine, target: str, slow: bool = False) -> EngineReply:
        """Return an engine's answer to this request at another path; it ends when the client goes.

        slow: it ends so also before the answer's head, which may take long.
        Not so a hijacked stream: there a client that has nothing to send closes its side at once.
        """
        on_cut = self.on_hangup if slow and not self.headers.get("Upgrade") else None
        headers = self.engine_headers()
        reply = engine.send(self.method, target, headers, self.body, on_cut=on_cut)
        if not reply.is_hijack:
            self.on_hangup(reply.cut)
        return reply


# ---- system


def get_ping(call: Call) -> Reply:
    """Answer /_ping. Source: docker CLI 28 needs OSType for --device."""
    headers = (
        ("Api-Version", call.node.view.api.newest),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Pragma", "no-cache"),
        ("Content-Type", "text/plain; charset=utf-8"),
    )
    return Reply(200, b"OK", headers)


def get_options(call: Call) -> Reply:
    """Answer what a browser asks before it asks, as an engine does: on any path."""
    del call
    return Reply(200)


def get_version(call: Call) -> Reply:
    view = call.node.view
    versions = view.api
    hosts = view.living_hosts()
    engine = hosts[0].engine if hosts else {}
    about = {
        "ApiVersion": versions.newest,
        "MinAPIVersion": versions.oldest,
        "Os": "linux",
        "Arch": engine.get("arch", ""),
        "KernelVersion": engine.get("kernel", ""),
        **engine.get("build", {}),
    }
    details = {**about, "Experimental": "false"}
    components = [{"Name": "Engine", "Version": engine.get("version", "none"), "Details": details}]
    components.append({"Name": "arpanet", "Version": __version__, "Details": {}})
    for host in hosts:
        details = {"Address": host.ip, "ApiVersion": host.engine.get("api", "")}
        name = f"Host {host.name}"
        components.append({"Name": name, "Version": host.engine["version"], "Details": details})
    platform = {"Name": f"arpanet {__version__} ({len(hosts)} hosts)"}
    version = {"Version": engine.get("version", "none"), "Platform": platform}
    return json_reply(dict(about, **version, Components=components))


def ask_hosts(
    view: View, method: str, target: str, body: Any = None, timeout_s: float = 10.0
) -> dict[str, Any]:
    """Return each living host's JSON, or the error that asking it raised."""
    return gather(
        {
            h.name: functools.partial(Engine(h).fetch, method, target, body, timeout_s)
            for h in view.living_hosts()
        }
    )


def change_hosts(
    view: View, method: str, target: str, body: Any = None, timeout_s: float = 300.0
) -> dict[str, Any]:
    """Return the answers of the living hosts that have the object to be changed.

    Raises the first failure; of a host that lacks the object only when all lack it.
    """
    answers = ask_hosts(view, method, target, body, timeout_s)
    if not answers:
        raise EngineDown(NO_HOST)
    failures = [a for _, a in sorted(answers.items()) if isinstance(a, (ArpanetError, OSError))]
    other = [f for f in failures if getattr(f, "status", 500) != 404]
    if other:
        raise other[0] if isinstance(other[0], ArpanetError) else EngineDown(str(other[0]))
    return require_answers(answers)


def change_in_turn(view: View, users: set[str], method: str, target: str) -> list[Any]:
    """Return the answers of change_hosts(), of the hosts that may refuse before the others.

    These are the hosts where somebody uses the object: a refusal then leaves all as it was.
    """
    answers: list[Any] = []
    lacking: list[EngineError] = []
    for names in (users & view.hosts.keys(), view.hosts.keys() - users):
        some = view.narrowed(names)
        try:
            answers += change_hosts(some, method, target).values() if some.living_hosts() else []
        except EngineError as e:
            if e.status != 404:
                raise
            lacking.append(e)
    if not answers and lacking:
        raise lacking[0]
    return answers


def first_engine(node: Node, view: View) -> Engine:
    """Return the engine for what any can do. Raises EngineDown.

    The order is fixed, so that what belongs together (a build's requests) comes together.
    """
    hosts = view.living_hosts()
    if not hosts:
        raise EngineDown(NO_HOST)
    return node.engine(hosts[0])


def pass_first(call: Call) -> Reply:
    """Pass a request on to the first engine: a login, a search, a part of a build."""
    return Reply(
        engine=call.send(first_engine(call.node, call.view_for_read()), call.target(), slow=True)
    )


def good_answers(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers that are not errors, in the order of host names."""
    return {h: answers[h] for h in sorted(answers) if not isinstance(answers[h], Exception)}


SUMS = (
    "Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "NCPU", "MemTotal",
)  # fmt: skip
ABILITIES = (
    "MemoryLimit", "SwapLimit", "KernelMemory", "KernelMemoryTCP", "CpuCfsPeriod", "CpuCfsQuota",
    "CPUShares", "CPUSet", "PidsLimit", "IPv4Forwarding", "BridgeNfIptables", "BridgeNfIp6tables",
    "OomKillDisable",
)  # fmt: skip


def get_info(call: Call) -> Reply:
    """Add up all engines' info; each host has its lines, which the docker CLI prints."""
    view = call.view_for_read()
    answers = ask_hosts(view, "GET", call.prefix + "/info")
    infos = good_answers(answers)
    info: dict[str, Any] = dict(next(iter(infos.values()), {}))
    info.update({key: sum(i.get(key) or 0 for i in infos.values()) for key in SUMS})
    info.update({key: all(i.get(key) for i in infos.values()) for key in ABILITIES if key in info})
    info.update(
        ID=str(uuid.uuid5(uuid.NAMESPACE_OID, f"arpanet {call.node.mesh.cluster_id:x}")),
        Name="arpanet",
        Images=max([i.get("Images") or 0 for i in infos.values()], default=0),
        Arpanet={"Version": __version__},
        DriverStatus=host_lines(view, answers),
        Swarm={
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "NodeID": "",
            "NodeAddr": "",
        },
        Warnings=[f"{h}: {w}" for h, i in infos.items() for w in i.get("Warnings") or ()]
        + [f"{h}: {answers[h]}" for h in sorted(answers) if h not in infos]
        + [f"{h}: {view.trouble(h)}" for h in sorted(view.hosts) if view.trouble(h)],
    )
    return json_reply(info)


def host_lines(view: View, answers: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines about masters and hosts that docker info shows."""
    masters = ", ".join(f"{m.name} ({m.ip})" for _, m in sorted(view.masters.items()))
    lines = [["arpanet", __version__], ["Masters", masters], ["Hosts", str(len(view.hosts))]]
    for name, host in sorted(view.hosts.items()):
        info = answers.get(name)
        well = isinstance(info, dict)
        lines.append([f" {name}", host.ip])
        lines.append(["  └ Status", "Healthy" if well else "Down"])
        if isinstance(info, dict):
            lines.append(["  └ Containers", str(info.get("Containers"))])
            lines.append(["  └ CPUs", str(info.get("NCPU"))])
            lines.append(["  └ Memory", f"{(info.get('MemTotal') or 0) / 2**30:.1f} GiB"])
        lines.append(["  └ Engine", str(host.engine.get("version"))])
    return lines


class HostEvents(NamedTuple):
    """One host's stream of JSON lines."""

    host: str
    reply: EngineReply


def read_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield whole lines of a stream, without their ends."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def open_streams(call: Call, view: View, target: str) -> list[HostEvents]:
    """Return the streams that all living hosts answer a request with.

    Raises the first failure when all fail, and EngineDown when there is no host.
    """
    payload = call.body.read()
    headers = call.engine_headers()
    asked = gather(
        {
            h.name: functools.partial(
                call.node.engine(h).send,
                call.method,
                target,
                headers,
                payload,
                on_cut=call.on_hangup,
            )
            for h in view.living_hosts()
        }
    )
    if not asked:
        raise EngineDown(NO_HOST)
    streams, failures = [], []
    for host, reply in sorted(asked.items()):
        if isinstance(reply, Exception):
            failures.append(reply)
        elif reply.status >= 400:
            try:
                reply.read_json()
            except ArpanetError as e:
                failures.append(e)
        else:
            call.on_hangup(reply.cut)
            streams.append(HostEvents(host, reply))
    if not streams:
        raise failures[0]
    return streams


Line = tuple[str, dict[str, Any]]  # host, object


class Sources:
    """The hosts of a merged stream, each with a thread that reads; their lines arrive in a queue.

    Only the thread of the merged stream calls its methods; a host's end is an object that is None.
    """

    def __init__(self, streams: Iterable[HostEvents]) -> None:
        self.arrived: queue.SimpleQueue[tuple[str, dict[str, Any] | None]] = queue.SimpleQueue()
        self.live: set[str] = set()
        for stream in streams:
            self.read(stream.host, functools.partial(lambda reply: reply, stream.reply))

    def read(self, host: str, open_reply: Callable[[], EngineReply]) -> None:
        """Have a thread read a host's stream."""
        self.live.add(host)
        spawn(f"merge-{host}", functools.partial(self._read, host, open_reply))

    def next(self, timeout_s: float | None) -> Line | None:
        """Return what has arrived next, None for the end of a host. Raises queue.Empty."""
        host, value = self.arrived.get(timeout=timeout_s)
        if value is None:
            self.live.discard(host)
        return None if value is None else (host, value)

    @property
    def open(self) -> bool:
        """Return whether anything may arrive yet."""
        return bool(self.live)

    def _read(self, host: str, open_reply: Callable[[], EngineReply]) -> None:
        try:
            with contextlib.closing(open_reply()) as reply:
                for line in read_lines(reply.blocks()):
                    self.arrived.put((host, json.loads(line)))
        except (ArpanetError, ValueError) as e:
            log.debug("stream ended, host=%s: %s", host, e)
        finally:
            self.arrived.put((host, None))


def merge_lines(
    sources: Sources,
    hold_s: Callable[[dict[str, Any]], float],
    order: Callable[[dict[str, Any]], Any],
) -> Iterator[Line]:
    """Yield (host, object) of all streams; each is held for a while, and leaves it in order."""
    held: list[tuple[Any, int, float, str, dict[str, Any]]] = []
    count = 0
    while sources.open or held:
        due_s = max(0.0, min(h[2] for h in held) - time.monotonic()) if held else None
        try:
            item = sources.next(due_s if sources.open else 0.0)
        except queue.Empty:
            now = time.monotonic()
            while held and (not sources.open or min(h[2] for h in held) <= now):
                _, _, _, host, value = heapq.heappop(held)
                yield host, value
            continue
        if item:
            count += 1
            heapq.heappush(held, (order(item[1]), count, time.monotonic() + hold_s(item[1]), *item))


JOIN_S = 1.0
REFUSED_S = 30.0


class EventSources(Sources):
    """The hosts whose events are followed without an end: also those that join or come back.

    A host is asked for what came since a second before the last event that it told, or since the
    stream began; what it told lately is kept to know it again. Its events are only nearly in order.
    """

    KNOWN, AGAIN_NS = 1000, 10**9

    def __init__(self, call: Call, streams: Iterable[HostEvents], target: str) -> None:
        super().__init__(streams)
        self._call = call
        self._path, _, query = target.partition("?")
        self._query = dict(urllib.parse.parse_qsl(query))
        now = utc_now().timestamp()
        self._since_ns = 0 if "since" in self._query else int(now * 10**9)
        self._query.setdefault("since", f"{now:.9f}")
        self._known: dict[str, Recent[bool]] = {}
        self._latest_ns: dict[str, int] = {}
        self._join_at = 0.0
        self._again_at: dict[str, float] = {}  # when a host that refused is asked again
        self._cuts: dict[str, Callable[[], None]] = {}  # by host: what ends its latest stream
        self._gone = threading.Event()
        self._lock = threading.Lock()  # guards _cuts, and their calls
        call.on_hangup(self._end)

    @property
    def open(self) -> bool:
        return not self._gone.is_set()

    def next(self, timeout_s: float | None) -> Line | None:
        """Do as Sources.next(), and have hosts read that were not there before."""
        now = time.monotonic()
        if self.open and now >= self._join_at:
            self._join_at = now + JOIN_S
            for host in self._call.node.view.living_hosts():
                if host.name not in self.live and now >= self._again_at.get(host.name, 0.0):
                    self.read(host.name, functools.partial(self._open, host))
        item = super().next(JOIN_S if timeout_s is None else min(timeout_s, JOIN_S))
        return item if item and self._is_new(*item) else None

    def _is_new(self, host: str, event: dict[str, Any]) -> bool:
        known = self._known.setdefault(host, Recent(self.KNOWN))
        text = json.dumps(event, sort_keys=True)
        if known.get(text):
            return False
        known.put(text, True)
        self._latest_ns[host] = max(self._latest_ns.get(host, 0), event.get("timeNano", 0))
        return True

    def _open(self, host: Host) -> EngineReply:
        query = dict(self._query)
        if host.name in self._latest_ns:
            since_ns = max(self._since_ns, self._latest_ns[host.name] - self.AGAIN_NS)
            seconds, nanos = divmod(since_ns, 10**9)
            query["since"] = f"{seconds}.{nanos:09}"
        target = f"{self._path}?{urllib.parse.urlencode(query)}"
        on_cut = functools.partial(self._on_cut, host.name)
        reply = self._call.node.engine(host).send("GET", target, on_cut=on_cut)
        if reply.status >= 400:
            self._again_at[host.name] = time.monotonic() + REFUSED_S
            reply.read_json()  # raises the engine's words
        return reply

    def _on_cut(self, host: str, cut: Callable[[], None]) -> None:
        with self._lock:
            self._cuts[host] = cut
        if self._gone.is_set():
            cut()

    def _end(self) -> None:
        self._gone.set()
        with self._lock:
            cuts = [*self._cuts.values()]
        for cut in cuts:
            cut()


EVENT_WINDOW_S = 0.25


def hold_event(opened_at: float, event: Mapping[str, Any]) -> float:
    """Return how long an event is held: one that is being told of the past waits for its like.

    One that happens while the stream is followed goes out at once, but not before those.
    """
    if event.get("timeNano", 0) < opened_at * 10**9:
        return EVENT_WINDOW_S
    return min(EVENT_WINDOW_S, max(0.0, opened_at + EVENT_WINDOW_S - utc_now().timestamp()))


def name_event(host: str, event: dict[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Return an event with its host among the attributes, and its network's one id."""
    actor = event.get("Actor") or {}
    attributes = dict(actor.get("Attributes") or {}, host=host)
    changed = dict(actor, Attributes=attributes)
    if event.get("Type") == "network" and attributes.get("name") in ids:
        changed["ID"] = ids[attributes["name"]]
    return dict(event, Actor=changed)


def events_target(call: Call, view: View) -> str:
    """Return the path for engines, which know neither NAME@HOST nor the one id of a network."""
    filters = parse_filters(call.text("filters"))
    plain = {name: list(values) for name, values in filters.items()}
    if "container" in plain:
        plain["container"] = [value.partition("@")[0] for value in plain["container"]]
    for value in filters.get("network", ()):
        plain["network"] += [n for n, known in view.network_ids.items() if known.startswith(value)]
    if plain == {name: list(values) for name, values in filters.items()}:
        return call.target()
    query = dict(urllib.parse.parse_qsl(call.query_text), filters=dump_json(plain))
    return f"{call.prefix}/events?{urllib.parse.urlencode(query)}"


def is_of_network(event: Mapping[str, Any], known: str, values: Sequence[str]) -> bool:
    """Return whether an engine's event passes a filter of networks, which has the id known, too."""
    actor = event.get("Actor") or {}
    name = (actor.get("Attributes") or {}).get("name") or ""
    texts = (actor.get("ID") or "", known, name)
    return not values or any(text.startswith(value) for value in values for text in texts)


def get_events(call: Call) -> Reply:
    """Merge the events of all hosts. A network that is removed has its id to the end."""
    view, opened_at = call.view_for_read(), utc_now().timestamp()
    target, ids = events_target(call, view), dict(view.network_ids)
    streams = open_streams(call, view, target)
    networks = parse_filters(call.text("filters")).get("network", ())

    def lines() -> Iterator[bytes]:
        sources = Sources(streams) if call.text("until") else EventSources(call, streams, target)
        hold_s = functools.partial(hold_event, opened_at)
        for host, event in merge_lines(sources, hold_s, lambda e: e.get("timeNano", 0)):
            ids.update(call.node.view.network_ids)
            named = name_event(host, event, ids)
            if is_of_network(event, named["Actor"].get("ID") or "", networks):
                yield dump_json(named) + b"\n"

    return Reply(200, headers=JSON, stream=lines())


# ---- containers


def find_ancestry(view: View, filters: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the ids of the images that an ancestor filter means, as the living engines know."""
    asked = {"all": 1, "filters": dump_json({"ancestor": filters["ancestor"]})}
    answers = ask_hosts(view, "GET", f"/containers/json?{urllib.parse.urlencode(asked)}")
    return tuple({c["ImageID"] for listed in good_answers(answers).values() for c in listed})


def get_containers(call: Call) -> Reply:
    """Answer docker ps from memory, with the bytes that were made for the one before if they do."""
    view, now = call.view_for_read(), utc_now()
    make = functools.partial(make_listing, call, view, now)
    asks_hosts = call.flag("size") or "ancestor" in parse_filters(call.text("filters"))
    if not asks_hosts:  # those would be asked while others wait for the lock of the answers
        asked = (call.query_text, wants_plain(call))
        return Reply(200, call.node.answers.get(view, now, asked, make), JSON)
    entries = json.loads(make())
    if call.flag("size"):
        add_sizes(view, entries)
    return json_reply(entries)


PLAIN_CLIENTS = ("compose/", "docker-compose/")  # put the first name before lines of logs


def wants_plain(call: Call) -> bool:
    """Return whether a client is to find NAME before NAME@HOST in a listing."""
    return call.headers.get("User-Agent").startswith(PLAIN_CLIENTS)


def make_listing(call: Call, view: View, now: datetime.datetime) -> bytes:
    """Return the JSON of the containers that are asked for. Raises BadRequest, NotFound."""
    filters = parse_filters(call.text("filters"))
    if "ancestor" in filters:
        filters["ancestor"] += find_ancestry(view, filters)
    listing = Listing(call.flag("all"), call.number("limit"), filters)
    plain_first = wants_plain(call)
    entries = [list_entry(view, c, now, plain_first) for c in list_containers(view, listing)]
    return b"[" + b",".join(entries) + b"]\n"


def add_sizes(view: View, entries: list[dict[str, Any]]) -> None:
    """Ask the engines for the sizes, which they alone know."""
    answers = good_answers(ask_hosts(view, "GET", "/containers/json?all=1&size=1"))
    sizes = {c["Id"]: c for listed in answers.values() for c in listed}
    for entry in entries:
        for key in ("SizeRw", "SizeRootFs"):
            if key in sizes.get(entry["Id"], {}):
                entry[key] = sizes[entry["Id"]][key]


def known_details(container: Container, error: str) -> dict[str, Any]:
    """Return of an engine's inspect what the slave has published, with an error in its state."""
    summary, needs = container.summary, container.needs
    state = {k: v for k, v in container.state.items() if k != "Health"}
    health = container.state.get("Health") or "none"
    if health != "none":
        state["Health"] = {"Status": health, "FailingStreak": 0, "Log": []}
    ports: dict[str, list[dict[str, str]]] = {port: [] for port in container.expose}
    for p in summary.get("Ports") or ():
        bound = ports.setdefault(f"{p['PrivatePort']}/{p.get('Type', 'tcp')}", [])
        if p.get("PublicPort"):
            bound.append({"HostIp": p.get("IP", ""), "HostPort": str(p["PublicPort"])})
    return {
        "Id": container.id,
        "Created": f"{container.created}Z",
        "State": dict(state, Error=error),
        "Image": summary.get("ImageID", ""),
        "Config": {
            "Image": summary.get("Image", ""),
            "Labels": summary.get("Labels") or {},
            "ExposedPorts": {port: {} for port in container.expose},
        },
        "HostConfig": dict(
            summary.get("HostConfig") or {}, Memory=needs.memory_bytes, NanoCpus=needs.nano_cpus
        ),
        "Mounts": summary.get("Mounts") or [],
        "NetworkSettings": {
            "Networks": container.networks,
            "Ports": {port: bound or None for port, bound in ports.items()},
        },
    }


def describe_container(call: Call, container: Container, details: Any) -> dict[str, Any]:
    """Return the engine's inspect, with the links as they were typed, and the host."""
    view = call.node.view
    found: dict[str, Any] = details
    found["Name"] = f"/{plain_name(view, container)}"
    if host := view.hosts.get(container.host):  # else it was forgotten meanwhile
        found["Host"] = {"Name": host.name, "IP": host.ip}
    links = view.declared_of(container).links
    if links:
        found["HostConfig"]["Links"] = [f"/{k.target}:{found['Name']}/{k.alias}" for k in links]
    return with_network_ids(found, view.network_ids)


def inspect_container(call: Call) -> Reply:
    """Pass on the engine's inspect; of a container whose host is down, what is known of it."""
    container = call.container()
    try:
        details = call.forward(container).read_json()
    except EngineDown as e:
        details = known_details(container, f"Host Down: {e}")
    return json_reply(describe_container(call, container, details))


def as_typed(words: bytes, container_id: str, reference: str) -> bytes:
    """Return an engine's error with what the client typed for the id, where an engine does so.

    Source: moby 20.10, daemon/errors.go: what speaks of a container's state says the id.
    """
    by_id = rb"(?<!a running container )(?<!Cannot update container )%s"
    state = rb"(?! is (?:not |already |restarting|marked ))"
    return re.sub(by_id % container_id.encode() + state, lambda _: reference.encode(), words)


def engine_reply(call: Call, container: Container, reply: EngineReply) -> Reply:
    """Return an engine's answer; an error speaks of the container as the client did."""
    if reply.status < 400 or call.method == "HEAD":
        return Reply(engine=reply)
    words = as_typed(reply.read(), container.id, call.params["container"])
    return Reply(reply.status, words, JSON)


def pass_container(call: Call) -> Reply:
    """Pass a request on to the container's engine, and its answer back as it comes."""
    container = call.container()
    return engine_reply(call, container, call.forward(container))


def change_container(call: Call) -> Reply:
    """Pass a change on; the answer goes out when every master can see it."""
    container = call.container(change=True)
    reply = call.forward(container)
    publish(call.node, container.host, container.id)
    return engine_reply(call, container, reply)


def watch_ending(call: Call, container: Container) -> Ending | None:
    """Watch a container that removes itself, unless who started it waits for it already."""
    if not container.auto_remove or call.node.waited.get(container.id):
        return None
    engine = call.engine_of(container)
    try:
        details = engine.fetch("GET", f"/containers/{container.id}/json")
        described = describe_container(call, container, details)
        ending = Ending(call.node.mesh, engine, container, described)
    except (EngineDown, EngineError) as e:  # to start it says it better
        log.debug("cannot watch container %s: %s", container.id[:12], e)
        return None
    for name in (container.id, container.name):
        call.node.endings.put(name, ending)
    return ending


def start_container(call: Call) -> Reply:
    """Do as change_container(); one that removes itself may be gone before the answer."""
    container = call.container(change=True)
    ending = watch_ending(call, container)
    reply = call.forward(container)
    publish(call.node, container.host, container.id)
    if ending:
        if reply.status == 204:
            ending.settle()
        else:
            ending.give_up()
    return engine_reply(call, container, reply)


def find_ended(call: Call) -> Mapping[str, Any]:
    """Return what was kept of the path's container, which removed itself; {} for nothing."""
    view, reference = call.node.view, call.params["container"].partition("@")[0]
    ending = call.node.endings.get(reference)
    if ending:  # it is gone, so what it left comes in a moment
        ending.wait()
    if ending or find_container(view, reference):  # its news may be on their way
        view = call.view_for_read()
    return view.ended.get(reference, {})


Handler = Callable[["Call"], "Reply"]
GOING = (404, 409, 500)  # what an engine says of a container that is gone, or half gone


def or_ended(handler: Handler, tell: Callable[[Call, Mapping[str, Any]], Reply | None]) -> Handler:
    """Return a handler that tells what was kept of a container that removed itself just now."""

    def handle(call: Call) -> Reply:
        try:
            reply = handler(call)
        except ArpanetError as e:
            told = tell_ended(call, e.status, tell)
            if told is None:
                raise
            return told
        return tell_ended(call, reply.status, tell) or reply

    return handle


def tell_ended(
    call: Call, status: int, tell: Callable[[Call, Mapping[str, Any]], Reply | None]
) -> Reply | None:
    """Return what can be told in place of an answer of that status, None for nothing."""
    ended = find_ended(call) if status in GOING else {}
    return tell(call, ended) if ended else None


def tell_ended_logs(call: Call, ended: Mapping[str, Any]) -> Reply | None:
    """Return the kept output, None when it was not kept or more is asked than is known of it."""
    plain = all(call.text(name) in ("", "0", "all") for name in ("since", "until", "tail"))
    if ended["output"] is None or not plain or call.flag("timestamps"):
        return None
    output = base64.b64decode(ended["output"])
    if ended["details"]["Config"]["Tty"]:
        return Reply(200, output, (("Content-Type", STREAM_TYPES[0]),))
    wanted = {number for number, name in ((1, "stdout"), (2, "stderr")) if call.flag(name)}
    kept = b"".join(frame for frame in split_frames(output) if frame[0] in wanted)
    return Reply(200, kept, (("Content-Type", STREAM_TYPES[1]),))


def split_frames(output: bytes) -> Iterator[bytes]:
    """Yield the frames of a multiplexed stream with their heads: (which, 0, 0, 0, length)."""
    while output:
        end = 8 + int.from_bytes(output[4:8], "big")
        yield output[:end]
        output = output[end:]


def kill_container(call: Call) -> Reply:
    """Do as change_container(); the engine's words for a container that is not there differ."""
    try:
        return change_container(call)
    except NotFound as e:
        raise NotFound(f"Cannot kill container: {call.params['container']}: {e}") from e


def wait_container(call: Call) -> Reply:
    """Pass the head on at once: docker run starts the container only when it has it."""
    container = call.container()
    call.node.waited.put(container.id, True)
    reply = call.forward(container)
    if reply.status != 200:
        return engine_reply(call, container, reply)

    def blocks() -> Iterator[bytes]:
        for number, block in enumerate(reply.blocks()):
            if number == 0:
                publish(call.node, container.host, container.id)
            yield block

    return Reply(200, headers=JSON, stream=blocks())


wait_or_ended = or_ended(
    wait_container, lambda _, ended: json_reply({"StatusCode": ended["code"], "Error": None})
)
inspect_or_ended = or_ended(inspect_container, lambda _, ended: json_reply(ended["details"]))
logs_or_ended = or_ended(pass_container, tell_ended_logs)


def stats_container(call: Call) -> Reply:
    """Pass the figures on, with the name that inspect says."""
    container = call.container()
    reply = call.forward(container)
    if reply.status != 200:
        return engine_reply(call, container, reply)
    name = f"/{plain_name(call.node.view, container)}"

    def lines() -> Iterator[bytes]:
        for line in read_lines(reply.blocks()):
            figures = json.loads(line)
            yield dump_json(dict(figures, name=name)) + b"\n"

    return Reply(200, headers=JSON, stream=lines())


def claim_rename(call: Call, container: Container, name: str) -> Claim:
    """Return the claim on a container's next name. Raises in the engine's words for a rename."""
    if name == container.name:
        raise BadRequest("Renaming a container with the same name as its current name")
    try:
        return claim_name(call, check_new_name(name), container.host)
    except (BadRequest, Conflict) as e:
        words = str(e).replace(f"({name})", f"(/{name})")
        raise type(e)(f"Error when allocating new name: {words}") from e


def rename_container(call: Call) -> Reply:
    """Claim the new name, rename on the engine, let the old name go."""
    container = call.container(change=True)
    name, _, host = call.text("name").removeprefix("/").partition("@")
    if host not in ("", container.host):
        raise BadRequest(
            f"{container.name} is on {container.host}: a rename cannot move it to {host}"
        )
    claim = claim_rename(call, container, name)
    try:
        query = urllib.parse.urlencode({"name": name})
        target = f"{call.prefix}/containers/{container.id}/rename?{query}"
        reply = call.send(call.engine_of(container), target)
        if reply.status >= 400:
            reply.read_json()  # raises the engine's words
        keep_name(call.node, claim, container.host, container.id)
    except BaseException:
        let_go(call.node, claim)
        raise
    publish(call.node, container.host, container.id)
    return Reply(engine=reply)


def create_exec(call: Call) -> Reply:
    """Remember the host of the new exec before the client knows its id."""
    container = call.container()
    reply = call.forward(container)
    if reply.status != 201:
        return engine_reply(call, container, reply)
    made = reply.read_json()
    call.node.exec_hosts.put(made["Id"], container.host)
    return json_reply(made, 201)


def find_exec_host(call: Call, exec_id: str) -> str:
    """Return an exec's host; each host is asked when another master made it. Raises NotFound."""
    known = call.node.exec_hosts.get(exec_id)
    if known:
        return known
    path = f"/exec/{urllib.parse.quote(exec_id, safe='')}/json"
    answers = ask_hosts(call.view_for_read(), "GET", path)
    found = list(good_answers(answers))
    if not found:
        down = [e for e in answers.values() if isinstance(e, (EngineDown, OSError))]
        if down:
            raise EngineDown(str(down[0]))
        raise NotFound(f"No such exec instance: {exec_id}")
    call.node.exec_hosts.put(exec_id, found[0])
    return found[0]


def pass_exec(call: Call) -> Reply:
    host = find_exec_host(call, call.params["exec"])
    return Reply(engine=call.send(call.node.require_engine(call.node.view, host), call.target()))


PRUNED = ("Containers", "Images", "Volumes", "Networks", "Caches")


def prune(call: Call) -> Reply:
    """Prune on all hosts, and add up what they say."""
    view = call.view_for_change()
    answers = change_hosts(view, "POST", call.target())
    for host, answer in answers.items():
        for container_id in answer.get("ContainersDeleted") or ():
            publish(call.node, host, container_id)
        for volume in answer.get("VolumesDeleted") or ():
            call.node.mesh.delete(key_of("volumes", volume), value=dump_json({"host": host}))
    total = add_up([*answers.values()])
    forget_images(call, total.get("ImagesDeleted") or ())
    return json_reply(total)


def add_up(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one answer of prune for those of all hosts; null where none said more than that."""
    total: dict[str, Any] = {}
    for answer in answers:
        for key in (f"{kind}Deleted" for kind in PRUNED):
            if key in answer:
                total.setdefault(key, None)
                if answer[key] is not None:
                    total[key] = (total[key] or []) + answer[key]
        if "SpaceReclaimed" in answer:
            total["SpaceReclaimed"] = total.get("SpaceReclaimed", 0) + answer["SpaceReclaimed"]
    return total


def commit_container(call: Call) -> Reply:
    """Make an image of a container, on its host; from there it moves where it is needed."""
    call.params["container"] = call.text("container")
    container = call.container(change=True)
    query = urllib.parse.urlencode(dict(call.query, container=[container.id]), doseq=True)
    reply = call.send(call.engine_of(container), f"{call.prefix}/commit?{query}")
    if reply.status != 201:
        return engine_reply(call, container, reply)
    made = reply.read_json()
    if call.text("repo"):
        write_image(call.node, join_tag(call.text("repo"), call.text("tag")), made["Id"])
    return json_reply(made, 201)


def join_image(
    image: Mapping[str, Any],
    other: Mapping[str, Any],
    keys: Collection[str] = ("Containers", "Size", "SharedSize", "VirtualSize"),
) -> dict[str, Any]:
    """Return an image with its figures of two hosts added; -1 means unknown and stays that."""
    figures = {key: (image[key], other.get(key, -1)) for key in keys if key in image}
    return {**image, **{key: -1 if -1 in pair else sum(pair) for key, pair in figures.items()}}


def usage_names(call: Call, host: str, entry: Mapping[str, Any]) -> list[str]:
    """Return the names that a listing says for an engine's entry, known or not."""
    known = call.node.view.containers.get(entry["Id"])
    own = next((n[1:] for n in entry["Names"] or () if n.count("/") == 1), "")
    name = plain_name(call.node.view, known) if known else own
    return list_names(name, host, wants_plain(call))


def get_disk_usage(call: Call) -> Reply:
    """Add up docker system df: images by id, with what they take on all hosts, as layers do.

    Containers are named as in a listing.
    """
    view = call.view_for_read()
    answers = require_answers(ask_hosts(view, "GET", call.target(), None, 60.0))
    images: dict[str, dict[str, Any]] = {}
    volumes: dict[str, dict[str, Any]] = {}
    containers: list[dict[str, Any]] = []
    cache: list[dict[str, Any]] = []
    for host, usage in answers.items():
        for image in usage.get("Images") or ():
            known = images.get(image["Id"])
            images[image["Id"]] = join_image(known, image) if known else image
        for volume in usage.get("Volumes") or ():
            volumes.setdefault(volume["Name"], volume)
        for entry in usage.get("Containers") or ():
            entry = with_network_ids(entry, view.network_ids)
            containers.append(dict(entry, Names=usage_names(call, host, entry)))
        cache += usage.get("BuildCache") or []
    total = {
        key: sum(usage.get(key) or 0 for usage in answers.values())
        for key in ("LayersSize", "BuilderSize")
    }
    parts = {"Images": [*images.values()], "Volumes": [*volumes.values()]}
    return json_reply(dict(total, **parts, Containers=containers, BuildCache=cache))


# ---- create


def claim_name(call: Call, name: str, host: str, needs: Needs = NOTHING) -> Claim:
    """Return the claim on a free name, held by this master's lease until keep_name.

    Raises Conflict in Docker's words.
    """
    node = call.node
    unclaimed = [c.id for c in node.view.containers.values() if c.name == name]
    if unclaimed:  # made on an engine while another had the name, which is gone now
        raise name_taken(name, unclaimed[0])
    token = secrets.token_hex(8)
    value = name_row(host, "", needs, token=token)
    key, claim = key_of("names", name), None
    try:
        claim = node.mesh.claim(key, value, lease=node.lease_id())
    finally:
        if claim is None:
            node.give_up(key, value)
    if claim is None:
        entry = node.sync_view().names.get(name)
        raise name_taken(name, entry.id if entry and entry.id else "that is being created")
    return claim


def keep_name(
    node: Node, claim: Claim, host: str, container_id: str, needs: Needs = NOTHING
) -> None:
    """Make a claimed name the container's, without a lease. Raises LostClaim.

    needs: still said, for the container may not be in everybody's view yet.
    """
    node.mesh.write(claim.key, name_row(host, container_id, needs), fence=claim)
    node.give_up(claim.key, claim.value)


def invent_name(view: View) -> str:
    """Return a free name for a container that was given none."""
    while True:
        name = f"{secrets.choice(ADJECTIVES)}_{secrets.choice(NOUNS)}_{secrets.token_hex(2)}"
        if name not in view.names:
            return name


ADJECTIVES = (
    "amber", "brave", "calm", "eager", "gentle", "keen", "lively", "proud", "quiet", "swift",
)  # fmt: skip
NOUNS = ("badger", "crane", "dolphin", "falcon", "heron", "lynx", "otter", "raven", "tern", "wren")


def name_of_network(view: View, reference: str) -> str:
    """Return the name of a network that all hosts have, for what may be an id of it."""
    known = network_named(view.network_ids, reference)
    if known or reference == "default" or ":" in reference:
        return known or reference
    path = f"/networks/{urllib.parse.quote(reference, safe='')}"
    found = {n["Name"] for n in good_answers(ask_hosts(view, "GET", path)).values()}
    if reference not in found:
        found = {network_begun(view.network_ids, reference)} - {""} or found
    return found.pop() if len(found) == 1 and found <= view.network_ids.keys() else reference


def with_network_names(view: View, body: dict[str, Any]) -> dict[str, Any]:
    """Return what to create with the names of networks for their ids, which differ by host.

    So do those in the endpoints, which clients copy from an inspect.
    """
    host_config = object_of(body, "HostConfig", "HostConfig")
    names = {r: name_of_network(view, r) for r in networks_of(body, host_config)}
    mode = host_config.get("NetworkMode")
    networking = object_of(body, "NetworkingConfig", "NetworkingConfig")
    endpoints = networking.get("EndpointsConfig") or {}
    if endpoints:
        named = {names[r]: without_id(endpoint) for r, endpoint in endpoints.items()}
        body = dict(body, NetworkingConfig=dict(networking, EndpointsConfig=named))
    if isinstance(mode, str) and mode in names:
        body = dict(body, HostConfig=dict(host_config, NetworkMode=names[mode]))
    return body


def without_id(endpoint: Any) -> Any:
    """Return an endpoint of a network less the network's id, which is another one on each host."""
    if not isinstance(endpoint, dict):
        return endpoint
    return {key: value for key, value in endpoint.items() if key != "NetworkID"}


def create_container(call: Call) -> Reply:
    """Make a container; until it is there, others are placed with it in mind."""
    body = load_object(call.body.read(), "the body")
    view = call.view_for_change()
    body = with_network_names(view, body)
    name = call.text("name")
    if not name.partition("@")[0] and call.node.settings.auto_name:
        name = invent_name(view) + name
    wish = read_create(name, body)
    try:
        return make_container(call, view, wish, body)
    finally:
        call.node.making.done(wish.name)


def make_container(call: Call, view: View, wish: CreateWish, body: dict[str, Any]) -> Reply:
    """Make links, choose a host and have it create; one that is not reached is given up."""
    links = describe_links(call, view, wish, require_link_targets(view, wish))
    tried: set[str] = set()
    while True:
        lease = call.node.lease_id()
        try:
            return make_somewhere(call, view, wish, body, links)
        except EngineAway as e:
            host = call.node.making.shun(wish.name)
            if host in tried:  # and every other one that it may be on
                raise
            tried.add(host)
            log.info("%s goes to another host: %s", wish.name, e)
        except LostClaim:  # nothing is made yet
            call.node.renew_lease(lease)
        view = call.view_for_change()


def make_somewhere(
    call: Call, view: View, wish: CreateWish, body: dict[str, Any], links: Sequence[LinkTarget]
) -> Reply:
    """Choose a host, claim name and volumes, and have the engine create.

    Raises EngineAway when the host was not reached. After Unsure the name stays reserved a while.
    """
    with contextlib.ExitStack() as undo:
        placed = place_create(call, view, wish, undo)
        host = placed.placement.host
        try:
            made = make_on(call, view, wish, body, placed.placement, links)
            recipe = Recipe(host, call.query_text, body) if wish.reschedule else None
            declared = declare_new(host, wish, links)
            keep_created(call, placed, wish, made["Id"], declared, recipe)
        except Unsure:
            undo.close()
            reserve_name(call.node, wish.name, host)
            raise
        undo.pop_all()
    made["Warnings"] = (made.get("Warnings") or []) + link_warnings(links)
    return json_reply(made, 201)


def make_on(
    call: Call,
    view: View,
    wish: CreateWish,
    body: Mapping[str, Any],
    placed: Placement,
    links: Sequence[LinkTarget],
) -> dict[str, Any]:
    """Return what the engine at a container's place has made. Raises as create_on() does."""
    resolvers = name_resolvers(call.node, view, wish, placed.host)
    reason = f"{placed.host}: {placed.reason}" if placed.asked else ""
    return create_on(call, placed.host, wish, create_body(body, wish, links, resolvers, reason))


def reserve_name(node: Node, name: str, host: str) -> None:
    """Keep a name for what an engine may still make; it goes free by itself when none is made."""
    value = dump_json({"host": host, "id": "", "token": secrets.token_hex(8)})
    with contextlib.suppress(ArpanetError):  # the first failure is the one to tell
        node.mesh.claim(key_of("names", name), value, lease=node.mesh.grant(UNSURE_S))


def name_resolvers(node: Node, view: View, wish: CreateWish, host: str) -> list[str]:
    """Return whom a new container asks for names: the slave, on a network made through arpanet.

    There others find the container at a virtual address, which it gets here. While the slave is
    stopped the engine goes on to the next: those that the host itself asks.
    """
    if not view.networks.keys() & set(wish.networks):
        return []
    node.sync_view()  # with the name claimed, its address is not given back any more
    claim_vip(node, wish.name)
    own = resolver_of(node.settings.link_subnet)
    return [own, *view.hosts[host].engine.get("resolvers", ())]


def let_go(node: Node, claim: Claim) -> None:
    """Give up a claim; if that fails, it is done later."""
    node.give_up(claim.key, claim.value)
    with contextlib.suppress(MeshDown, Unsure):
        node.mesh.delete(claim.key, fence=claim)


def explain_place(call: Call) -> Reply:
    """Say where a create would put a container, and why, and make nothing."""
    body = load_object(call.body.read(), "the body")
    view = call.view_for_read()
    wish = read_create(call.text("name") or "it", body)
    require_link_targets(view, wish)
    policy, images = call.node.policy, images_of(view, wish)
    since = start_awaited_since()
    placed = place(view, wish, pins_of(view, wish), images=images, policy=policy, since=since)
    others = {name: placed.refused.get(name, "") for name in sorted(view.hosts)}
    return json_reply({"host": placed.host, "reason": placed.reason, "hosts": others})


TakeName = Callable[[Call, str, str, Needs], Claim]


class Placed(NamedTuple):
    """A container's place, the claim on its name that keeps it, and those on new volumes."""

    placement: Placement
    claim: Claim
    volumes: Mapping[str, bytes]  # key: value


def place_create(
    call: Call,
    view: View,
    wish: CreateWish,
    undo: contextlib.ExitStack,
    take: TakeName = claim_name,
) -> Placed:
    """Return the place of a container, which has its name and its new volumes claimed.

    undo: gets what lets them go. Raises NoRoom, BadRequest, Conflict.
    """
    node = call.node
    for _ in range(PLACE_TRIES):
        pins, images = pins_of(view, wish), images_of(view, wish)
        placed = node.making.place(view, wish, pins, images, node.policy)
        volumes = volume_rows(view, wish, placed.host)
        with contextlib.ExitStack() as attempt:
            if claim_volumes(node, volumes, attempt):
                claim = take(call, wish.name, placed.host, wish.needs)
                attempt.callback(let_go, node, claim)
                if not any(wish.needs) or not has_room(
                    node.wait_view(claim.revision), wish, placed, claim.revision, node.policy,
                    start_awaited_since(),
                ):  # fmt: skip
                    undo.enter_context(attempt.pop_all())
                    return Placed(placed, claim, volumes)
        view = node.sync_view()  # somebody else was first
    raise NoRoom(f"others take at this moment what {wish.name} asks for; try again")


PLACE_TRIES = 5


def volume_rows(view: View, wish: CreateWish, host: str) -> dict[str, bytes]:
    """Return what claims the new volumes of a wish for a host, until they are settled."""
    value = dump_json({"host": host, "token": secrets.token_hex(8)})
    return {key_of("volumes", v): value for v in wish.volumes if v not in view.volumes}


def claim_volumes(node: Node, rows: Mapping[str, bytes], undo: contextlib.ExitStack) -> bool:
    """Claim new volumes; say whether all are ours."""
    claimed = False
    try:
        claimed = not rows or node.mesh.claim_all(rows, lease=node.lease_id())
    finally:
        if claimed:
            undo.callback(let_volumes_go, node, rows)
        else:
            give_up_all(node, rows)
    return claimed


def images_of(view: View, wish: CreateWish) -> dict[str, set[str]]:
    """Return the names and ids of each living host's images, if an affinity asks for them."""
    found: dict[str, set[str]] = {}
    if not any(rule.key == "image" for rule in wish.affinities):
        return found
    for host, listed in good_answers(ask_hosts(view, "GET", "/images/json")).items():
        tags = {tag for image in listed for tag in image.get("RepoTags") or ()}
        ids = {image["Id"].removeprefix("sha256:") for image in listed}
        short = {text for i in ids for text in (f"sha256:{i}", i[:12])}
        found[host] = tags | {tag.rpartition(":")[0] for tag in tags} | ids | short
    return found


def let_volumes_go(node: Node, rows: Mapping[str, bytes]) -> None:
    """Give up volumes that nobody settled meanwhile; if that fails, it is done later."""
    give_up_all(node, rows)
    with contextlib.suppress(MeshDown, Unsure):
        for key, value in rows.items():
            node.mesh.delete(key, value=value)


def give_up_all(node: Node, rows: Mapping[str, bytes]) -> None:
    """Have the claims on these keys deleted, whenever they appear."""
    for key, value in rows.items():
        node.give_up(key, value)


def describe_links(
    call: Call, view: View, wish: CreateWish, targets: Sequence[Container]
) -> list[LinkTarget]:
    """Return what the links of a create point to, each target with its virtual address."""
    described = []
    for link, target in zip(wish.links, targets, strict=True):
        engine = call.node.require_engine(view, target.host)
        config = engine.fetch("GET", f"/containers/{target.id}/json")["Config"]
        vip = claim_vip(call.node, target.name)
        hostname, env = config.get("Hostname") or "", tuple(config.get("Env") or ())
        described.append(
            LinkTarget(Link(target.name, link.alias, vip), hostname, target.expose, env)
        )
    return described


FREE_AT_ONCE = 100  # in a transaction


def free_addresses(node: Node, of: Callable[[str], bool] = bool) -> int:
    """Give back the addresses that nobody needs; return how many. Raises MeshDown.

    of: says of an address whether it may go. Who gets a name, or links to one, at this moment
    writes a row that is checked here.
    """
    revision, entries = node.mesh.read_prefix(key_of("addresses", ""))
    view = node.wait_view(revision)
    free = {key_of("addresses", ip): name for ip, name in decide_free(view).items() if of(ip)}
    found = [entry for entry in entries if entry.key in free]
    total = 0
    for start in range(0, len(found), FREE_AT_ONCE):
        chunk = found[start : start + FREE_AT_ONCE]
        whole = free_chunk(node, view, chunk, free)
        total += len(chunk) if whole else sum(free_chunk(node, view, [e], free) for e in chunk)
    return total


def free_chunk(node: Node, view: View, rows: Sequence[Entry], names: Mapping[str, str]) -> bool:
    """Delete these addresses, and the rows of their names, if all are as they were read."""
    own = [names[e.key] for e in rows if view.vips.get(names[e.key]) == e.key.rpartition("/")[2]]
    checks = [Check(e.key, mod_revision=e.mod_revision) for e in rows]
    checks += [Check(key_of("names", name), create_revision=0) for name in own]
    gone = [*(e.key for e in rows), *(key_of("vips", name) for name in own)]
    return node.mesh.commit(checks, [], gone) is not None


def find_vip(node: Node, name: str) -> str:
    """Return the virtual address that a name gets, if need be one that nobody needs any more.

    Raises NoRoom.
    """
    try:
        return choose_vip(node.view, node.settings.link_subnet, name)
    except NoRoom:
        if not free_addresses(node):
            raise
        return choose_vip(node.sync_view(), node.settings.link_subnet, name)


def claim_vip(node: Node, name: str) -> str:
    """Return the virtual address of a name, claimed if it has none yet. Raises NoRoom."""
    view = node.view
    while name not in view.vips:
        vip = find_vip(node, name)
        rows = {
            key_of("vips", name): dump_json({"ip": vip}),
            key_of("addresses", vip): dump_json({"name": name}),
        }
        node.mesh.claim_all(rows)
        view = node.sync_view()
    return view.vips[name]


def link_warnings(targets: Sequence[LinkTarget]) -> list[str]:
    """Return what a person should know about the links of a new container."""
    return [
        f"link {t.link.alias}: {t.link.target} exposes no TCP port, so nothing is forwarded; "
        f"run it with --expose PORT"
        for t in targets
        if not any(p.protocol == "tcp" for p in parse_expose(t.expose))
    ]


def create_on(call: Call, host: str, wish: CreateWish, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine made. Raises its error; Unsure when its answer was lost."""
    try:
        made: dict[str, Any] = ask_create(call, host, wish, body).read_json()
    except EngineAway:
        raise
    except EngineDown as e:
        raise Unsure(
            f"{wish.name} may or may not have been made on {host}, whose engine fell silent: {e}; "
            f"see: docker ps -a --filter name={wish.name}"
        ) from e
    return made


def ask_create(call: Call, host: str, wish: CreateWish, body: Mapping[str, Any]) -> EngineReply:
    """Have the engine create; an image that another host has is brought here first.

    Raises the engine's error; 404 when no host has the image, so that the client pulls.
    """
    engine = call.node.require_engine(call.node.view, host)
    hear_builds(call.node)
    settle_image(call, wish.image, engine)
    query = dict(urllib.parse.parse_qsl(call.query_text), name=wish.name)
    target = f"{call.prefix}/containers/create?{urllib.parse.urlencode(query)}"
    headers = [("Content-Type", "application/json")]
    reply = engine.send("POST", target, headers, dump_json(body), reach_s=TRY_REACH_S)
    if reply.status != 404:
        return reply
    try:
        reply.read_json()
    except EngineError:
        if not bring_image(call, wish.image, engine):
            call.node.pull_hosts.put(image_name(wish.image), host)
            raise
    return engine.send("POST", target, headers, dump_json(body))


def settle_image(call: Call, image: str, engine: Engine) -> None:
    """Bring an engine the image that a name means when what it has by that name is older.

    It is asked once for each new meaning of a name, and not at all about names without one.
    """
    view, name, host = call.node.view, image_name(image), engine.host.name
    entry = view.images.get(name)
    if entry is None or call.node.settled.get(f"{host} {name}") == entry:
        return
    try:
        found = engine.fetch("GET", f"{image_path(image)}/json")["Id"]
    except EngineError:  # it has none: the create says so, and that brings it
        return
    if found != entry.id:
        ids = find_image(view, image)
        if entry.id not in ids.values():
            log.info("image %s is no more what %s means; it is left as it is", entry.id, name)
            return
        bring_image(call, image, engine)
    call.node.settled.put(f"{host} {name}", entry)


def bring_image(
    call: Call, image: str, engine: Engine, note: Callable[[int], object] = int
) -> bool:
    """Stream an image to an engine from a host that has it; return False when none has.

    note: is told how many bytes have gone, now and then.
    """
    view, path = call.node.view, image_path(image)
    ids = find_image(view, image) if image else {}
    have = [h for h in mean_images(view, image, ids) if h != engine.host.name]
    if not have:
        return False
    ask_images(engine.host, name=image_name(image), id=ids[have[0]])
    log.info("moving image %s from %s to %s", image, have[0], engine.host.name)
    source = call.node.engine(view.hosts[have[0]]).send("GET", f"{path}/get")
    with contextlib.closing(source):
        if source.status != 200:
            return False
        headers = [("Content-Type", "application/x-tar")]
        blocks = counted(source.blocks(), note)
        loaded = engine.send("POST", "/images/load?quiet=1", headers, blocks)
        answer = loaded.read()
    if b'"error"' in answer or loaded.status != 200:
        raise EngineError(
            500, f"image {image} could not be moved to {engine.host.name}: {answer!r}"
        )
    return True


def ask_images(host: Host, **brought: str) -> int:
    """Have a host's slave look at its engine's images; return the revision at which it has told.

    brought: the name and id of what comes there by arpanet's own hand, which is no news. A slave
    that does not answer is only logged: its own events bring the news later.
    """
    try:
        path = f"/images?{urllib.parse.urlencode(brought)}"
        return int(http_json(host.agent, "POST", path, SYNC_S * 2, name=host.name)["revision"])
    except (OSError, ArpanetError, KeyError, TypeError, ValueError) as e:
        log.warning("the slave did not look at its images, host=%s: %s", host.name, e)
        return 0


COUNT_BYTES = 16 << 20


def counted(blocks: Iterable[bytes], note: Callable[[int], object]) -> Iterator[bytes]:
    """Yield the blocks, and note how many bytes they were at each COUNT_BYTES."""
    total = 0
    for block in blocks:
        total += len(block)
        if total % COUNT_BYTES < len(block):
            note(total)
        yield block


def declare(node: Node, container_id: str, declared: Declared) -> None:
    """Record what a new container declared. Raises Conflict when a link's target has gone.

    The addresses of its links are written again with it: none is given back at this moment.
    """
    if not declared.links and not declared.labels:
        return
    row = Put(key_of("declared", container_id), declared.row)
    done = None
    while done is None:
        rows = {link: node.mesh.read(key_of("addresses", link.vip)) for link in declared.links}
        for link, entry in rows.items():
            if entry is None or read_value(entry.value).get("name") != link.target:
                raise Conflict(f"{link.target} was removed or renamed at this moment; try again")
        held = {entry.key: entry for entry in rows.values() if entry}
        checks = [Check(key, mod_revision=entry.mod_revision) for key, entry in held.items()]
        puts = [Put(key, entry.value) for key, entry in held.items()]
        done = node.mesh.commit(checks, [row, *puts])


def keep_created(
    call: Call,
    placed: Placed,
    wish: CreateWish,
    container_id: str,
    declared: Declared,
    recipe: Recipe | None,
) -> None:
    """Give a new container its name and volumes for good; undo the create when that fails.

    Its host's slave writes the name together with the container; without a slave we do.
    """
    node, host, claim = call.node, placed.placement.host, placed.claim
    try:
        declare(node, container_id, declared)
        if recipe:
            node.mesh.write(key_of("recipes", container_id), dump_json(recipe._asdict()))
        for volume in wish.volumes:
            if not node.view.volumes.get(volume, VolumePin(host, settled=False)).settled:
                node.mesh.write(key_of("volumes", volume), dump_json({"host": host}))
        give_up_all(node, placed.volumes)
        publish(node, host, container_id)
        held = node.view.names.get(wish.name)
        if held is None or (held.host, held.id) != (host, container_id):
            keep_name(node, claim, host, container_id, wish.needs)
        else:
            node.give_up(claim.key, claim.value)
    except (Conflict, LostClaim, MeshDown) as e:
        engine = node.require_engine(node.view, host)
        with contextlib.suppress(ArpanetError):  # the first failure is the one to tell
            engine.send("DELETE", f"/containers/{container_id}?v=1", timeout_s=30.0).read()
        if isinstance(e, LostClaim):
            raise Unavailable(
                f"{wish.name} was not made: this master could not reach the others for so long "
                "that the name went free; try again"
            ) from e
        raise


# ---- moving: a container is made again on another host, under its name


class Mover:
    """One move of a container, by the master that holds the claim moves/NAME.

    Chores say from the start what the slaves do when it comes to nothing, whoever dies: remove
    what bears its token, start the old container again. One transaction, which holds only while
    the claim does, switches the name and the volumes, and makes the old one what is removed.
    note: is told how far it is; None for a move off a host that is down, as long as it is.
    """

    def __init__(
        self,
        node: Node,
        old: Container,
        recipe: Recipe,
        wish: CreateWish,
        cargo: Sequence[Cargo] = (),
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._node, self._old, self._cargo = node, old, cargo
        self._note, self._alive = note or log.debug, note is not None
        self._wish = wish._replace(volumes=()) if cargo else wish  # they do not keep it there
        self._token = secrets.token_hex(8)
        labels = {**(recipe.body.get("Labels") or {}), LABEL_MADE: self._token}
        self._recipe = recipe._replace(body=dict(recipe.body, Labels=labels))
        self._checks: list[Check] = []
        self._chores: list[Put] = []

    def run(self) -> str:
        """Return the host that has it now. Raises NoRoom, Conflict and others."""
        node, nothing = self._node, Headers(())
        call = Call(
            node, "POST", "", "", self._recipe.query, nothing, Body(None, nothing), lambda _: None
        )
        try:
            with contextlib.ExitStack() as undo:
                placed = self._begin(call, undo)
                target = node.require_engine(node.view, placed.host)
                made = self._make(call, placed, target)
                self._fill(target, made)
                publish(node, placed.host, made)
                self._switch(placed.host, made)
                undo.pop_all()
        finally:
            node.making.done(self._old.name)
        return placed.host

    def _begin(self, call: Call, undo: contextlib.ExitStack) -> Placement:
        """Return the next host, where nothing is yet but the chores, and the room is claimed."""
        node, old, mesh = self._node, self._old, self._node.mesh
        entry = mesh.read(key_of("names", old.name))
        if entry is None or holder_of(entry.value) != NameEntry(old.host, old.id):
            raise Conflict(f"{old.full_name} does not hold its name any more")
        view = node.sync_view()
        self._running = has_run(view, old)
        placed, claim, _ = place_create(call, view, self._wish, undo, self._claim)
        if placed.taken and self._running:
            raise NoRoom(f"no host can take {old.name}: {placed.host}: {placed.taken}")
        self._checks = [
            Check(entry.key, mod_revision=entry.mod_revision),
            Check(claim.key, create_revision=claim.revision),
        ]
        if not self._alive:
            self._checks.append(Check(key_of("alive", old.host), create_revision=0))
        self._chores = [self._chore(placed.host, self._token, "remove")]
        if self._alive and self._running:
            self._chores.append(self._chore(old.host, old.id, "start"))
        if not mesh.commit(self._checks, self._chores):
            raise Conflict(f"{old.full_name} is back, or was changed at this moment")
        undo.callback(self._give_up)
        return placed

    def _claim(self, call: Call, name: str, host: str, needs: Needs) -> Claim:
        value = name_row(host, self._token, needs)
        claim = call.node.mesh.claim(key_of("moves", name), value, lease=call.node.lease_id())
        if claim is None:
            raise Conflict(f"{name} is being moved already")
        return claim

    def _chore(self, host: str, what: str, verb: str, volumes: Sequence[str] = ()) -> Put:
        chore = Chore(self._old.name, self._token, verb, tuple(volumes))
        return Put(key_of("chores", host, what), dump_json(chore._asdict()))

    def _give_up(self) -> None:
        """Write the chores again: a slave that took us for dead may have done them too early."""
        with contextlib.suppress(ArpanetError):  # the first failure is the one to tell
            self._node.mesh.commit(self._checks[:1], self._chores)

    def _make(self, call: Call, placed: Placement, target: Engine) -> str:
        """Return the id of what the next host's engine has made, with volumes of its own."""
        node, wish, body = self._node, self._wish, self._recipe.body
        self._note(f"making {wish.name} on {placed.host}")
        view = node.view
        links = describe_links(call, view, wish, require_link_targets(view, wish))
        for volume in self._cargo:
            labels = {**volume.labels, LABEL_MADE: self._token}
            asked = {"Name": volume.name, "Labels": labels}
            if target.fetch("POST", "/volumes/create", asked).get("Labels") != labels:
                raise Conflict(f"{placed.host} has a volume {volume.name} already")
        mode = (body.get("HostConfig") or {}).get("NetworkMode")
        networks = dict((body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {})
        first = {name: networks.pop(name) for name in [*networks] if name == mode}
        body = dict(body, NetworkingConfig={"EndpointsConfig": first})  # engines of old take one
        make = functools.partial(make_on, call, view, wish, body, placed, links)
        try:
            made: str = make()["Id"]
        except EngineError as e:
            if e.status != 404:
                raise
            image = urllib.parse.quote(with_tag(wish.image), safe="")
            target.send("POST", f"/images/create?fromImage={image}").read()
            made = make()["Id"]
        new, kept = declare_new(placed.host, wish, links), view.declared_of(self._old)
        carried = kept._replace(host=placed.host, labels=wish.labels)
        declare(node, made, new if links else carried)
        for name, endpoint in networks.items():
            order = {"Container": made, "EndpointConfig": endpoint}
            target.fetch("POST", f"/networks/{urllib.parse.quote(name, safe='')}/connect", order)
        return made

    def _fill(self, target: Engine, made: str) -> None:
        """Stop the old container, copy its volumes, and start the new one if the old one ran."""
        old, node = self._old, self._node
        if self._alive:
            source = node.require_engine(node.view, old.host)
            if self._running:
                self._note(f"stopping {old.full_name}")
                source.send("POST", f"/containers/{old.id}/stop").read_json()
            for volume in self._cargo:
                copy_volume(source, old.id, target, made, volume, self._note)
            if source.fetch("GET", f"/containers/{old.id}/json")["State"]["Running"]:
                raise Conflict(f"{old.full_name} was started while it was moved")
        if self._running:
            self._note(f"starting {old.name} on {target.host.name}")
            target.send("POST", f"/containers/{made}/start").read_json()

    def _switch(self, host: str, made: str) -> None:
        """Give the new container the name and the volumes. Raises Conflict."""
        node, old, wish = self._node, self._old, self._wish
        name = name_row(host, made, wish.needs)
        puts = [
            Put(key_of("names", old.name), name),
            self._chore(old.host, old.id, "remove", [volume.name for volume in self._cargo]),
        ]
        pin = dump_json({"host": host})
        puts += [Put(key_of("volumes", volume.name), pin) for volume in self._cargo]
        if wish.reschedule:
            recipe = self._recipe._replace(host=host)
            puts.append(Put(key_of("recipes", made), dump_json(recipe._asdict())))
        gone = [
            key_of("moves", old.name),
            key_of("chores", host, self._token),
            key_of("containers", old.host, old.id),
            key_of("recipes", old.id),
            key_of("declared", old.id),
        ]
        revision = node.mesh.commit(self._checks, puts, gone)
        if not revision:
            raise Conflict(f"{old.full_name} is back, or was changed while it was made again")
        node.wait_view(revision)


def copy_volume(
    source: Engine, old: str, target: Engine, new: str, volume: Cargo, note: Callable[[str], None]
) -> None:
    """Stream a volume from one container's to another's; neither runs. Raises EngineDown.

    What was sent must be what is read again from where it went.
    """
    path = f"/containers/{{}}/archive?{urllib.parse.urlencode({'path': f'{volume.path}/.'})}"

    def say(what: str, size_bytes: int) -> None:
        note(f"volume {volume.name}: {mib(size_bytes)} {what}")

    def put(blocks: Iterable[bytes]) -> None:
        headers = [("Content-Type", "application/x-tar")]
        target.send("PUT", path.format(new), headers, blocks).read_json()

    def skip(blocks: Iterable[bytes]) -> None:
        collections.deque(blocks, maxlen=0)

    sent = check_tar(source, path.format(old), functools.partial(say, "copied"), put)
    put([sent.root])
    come = check_tar(target, path.format(new), functools.partial(say, "checked"), skip)
    if come.sum != sent.sum:
        raise EngineError(500, f"volume {volume.name} came to {target.host.name} with other data")
    note(f"volume {volume.name}: checked, {come.sum}")


def check_tar(
    engine: Engine,
    path: str,
    note: Callable[[int], None],
    take: Callable[[Iterable[bytes]], None],
) -> TarSum:
    """Have a tar of an engine taken as it comes; return what is in it."""
    near, far = socket.socketpair()
    reply = engine.send("GET", path)

    def passed() -> Iterator[bytes]:
        for block in counted(reply.blocks(), note):
            far.sendall(block)
            yield block

    def hand_on() -> None:
        with far:
            take(passed())

    with near, contextlib.closing(reply):
        if reply.status != 200:
            reply.read_json()
        with near.makefile("rb") as file:
            results = gather({"put": hand_on, "sum": functools.partial(sum_tar, file)})
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    return TarSum(*results["sum"])


class TarSum(NamedTuple):
    """The checksum of what is in a tar, and a tar of its root alone, by a name that is obeyed."""

    sum: str
    root: bytes  # of ".", engines leave owner, mode and time out. Source: Unpack() of moby


def sum_tar(file: BinaryIO) -> TarSum:
    """Return what is in a tar, whatever its order and its headers' form. Blocks."""
    total, root = 0, b""
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for entry in tar:
                fields = (entry.name, entry.type, entry.mode, entry.uid, entry.gid, entry.linkname)
                digest = hashlib.sha256(repr((*fields, entry.size, int(entry.mtime))).encode())
                content = (entry.isreg() and tar.extractfile(entry)) or io.BytesIO()
                for block in iter(functools.partial(content.read, BLOCK_BYTES), b""):
                    digest.update(block)
                total += int.from_bytes(digest.digest(), "big")
                if entry.name == ".":
                    entry.name = "/"
                    root = entry.tobuf() + bytes(1024)
    except tarfile.TarError as e:
        raise EngineDown(f"what the engine sent is no whole tar: {e}") from e
    finally:
        while file.read(BLOCK_BYTES):
            pass  # whoever sends waits for it
    return TarSum(f"sha256:{total % 2**256:064x}", root)


def rescue(node: Node, container: Container) -> str:
    """Make a container of a dead host again, under its name; return its new host.

    Raises NoRoom, Conflict and others.
    """
    view = node.sync_view()
    recipe = view.recipes.get(container.id)
    if recipe is None or container.host in view.alive:
        raise Conflict(f"{container.full_name} is back, or has been made again already")
    typed = dict(urllib.parse.parse_qsl(recipe.query)).get("name", "")
    wish = read_create(container.name + "".join(typed.partition("@")[1:]), recipe.body)
    links = view.declared_of(container).links  # their targets may have other names by now
    if wish.links and links:
        wish = wish._replace(links=tuple(LinkWish(link.target, link.alias) for link in links))
    return Mover(node, container, recipe, wish).run()


def move_container(call: Call) -> Reply:
    """Move a container to another host; tell how far it is, line by line."""
    container, host = call.container(change=True), call.text("host")
    if host:
        require_host(call.node.view, host)
    if host == container.host:
        raise BadRequest(f"{container.name} is on {host} already")
    source = call.engine_of(container)
    details = source.fetch("GET", f"/containers/{container.id}/json")
    found = decide_cargo(container, details, call.flag("volumes"))
    cargo = [check_volume(call.node.view, source, container, volume) for volume in found]
    body = body_again(details, cargo, call.node.view.declared_of(container))
    wish = decide_move(container, body, host)
    body["Labels"].update(wish.labels)
    left = threading.Event()
    call.on_hangup(left.set)
    news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def note(text: str) -> None:
        if left.is_set():
            raise Conflict(f"who moved {container.name} has gone")
        news.put({"note": text})

    def run() -> None:
        try:
            recipe = Recipe(container.host, "", body)
            moved = Mover(call.node, container, recipe, wish, cargo, note).run()
            news.put({"host": moved, "from": container.host})
        except ArpanetError as e:
            news.put({"error": str(e), "status": e.status})
        finally:
            news.put(None)

    for network, ip in fixed_addresses(details).items():
        note(f"leaving the address {ip} on network {network}: it is one of {container.host}")
    spawn("move", run)
    lines = (dump_json(state) + b"\n" for state in iter(news.get, None))
    return Reply(200, headers=JSON, stream=lines)


def check_volume(view: View, source: Engine, container: Container, volume: Cargo) -> Cargo:
    """Return the volume with its labels. Raises Conflict when it has options, or other users."""
    name, host, pin = volume.name, container.host, view.volumes.get(volume.name)
    if pin and pin.host != host:
        raise Conflict(f"volume {name} of {host} shares its name with one on {pin.host}")
    details = source.fetch("GET", f"/volumes/{name}")
    if details.get("Options"):
        raise Conflict(f"volume {name} was made with options, and cannot be copied")
    query = urllib.parse.urlencode({"all": 1, "filters": json.dumps({"volume": [name]})})
    users = [c for c in source.fetch("GET", f"/containers/json?{query}") if c["Id"] != container.id]
    if users:
        others = ", ".join(user["Names"][0].lstrip("/") for user in users if user["Names"])
        raise Conflict(f"volume {name} is used by {others} too, and stays with it on {host}")
    return volume._replace(labels=details.get("Labels") or {})


def remove_link(call: Call) -> Reply:
    """Refuse docker rm --link: a link is a part of the container that was made with it."""
    reference, alias = call.params["container"], call.params["alias"]
    view = call.view_for_change()
    found = find_container(view, reference)
    links = view.declared_of(found).links if found else ()
    if call.flag("link") and any(link.alias == alias for link in links):
        raise NotSupported(
            f"taking a link off is not supported: remove {reference} and run it again without"
        )
    raise no_such_container(f"{reference}/{alias}")


# ---- images


def get_images(call: Call) -> Reply:
    """Join the images of all hosts by id."""
    hear_builds(call.node)
    joined: dict[str, dict[str, Any]] = {}
    holders: dict[str, dict[str, str]] = collections.defaultdict(dict)  # tag: host: the id there
    view = call.view_for_read()
    answers = ask_hosts(view, "GET", call.target())
    for host, listed in require_answers(answers).items():
        for image in listed:
            for tag in image.get("RepoTags") or ():
                holders[tag][host] = image["Id"]
            known = joined.get(image["Id"])
            fresh = dict(image, RepoTags=[], RepoDigests=[])
            known = join_image(known, image, ["Containers"]) if known else fresh
            joined[image["Id"]] = known
            for key in ("RepoTags", "RepoDigests"):
                known[key] = list(dict.fromkeys(known[key] + (image.get(key) or [])))
    for image in joined.values():
        image["RepoTags"] = [
            t
            for t in image["RepoTags"]
            if t == "<none>:<none>" or meant_image(view, t, holders[t]) == image["Id"]
        ]
        for key, none in (("RepoTags", "<none>:<none>"), ("RepoDigests", "<none>@<none>")):
            image[key] = [t for t in image[key] if t != none] or [t for t in image[key][:1]]
    by_name = "reference" in parse_filters(call.text("filters"))
    named = {i for ids in holders.values() for i in ids.values()} if by_name else set()
    found = [i for i in joined.values() if i["RepoTags"] or i["Id"] not in named]
    return json_reply(sorted(found, key=lambda i: -i.get("Created", 0)))


def require_answers(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the good answers. Raises the first failure when there are failures only."""
    good = good_answers(answers)
    failures = [a for a in answers.values() if isinstance(a, ArpanetError)]
    if not good and failures:
        raise failures[0]
    return good


def hear_builds(node: Node) -> None:
    """Wait until the mesh has the names that BuildKit gave in streams through this master."""
    builds = node.builds.values()
    ended = [build.key for build in builds if not build.is_open()]
    for host in {build.host for build in builds} & {h.name for h in node.view.living_hosts()}:
        node.wait_view(ask_images(node.view.hosts[host]))
    for key in ended:
        node.builds.pop(key)


def image_path(image: str) -> str:
    """Return the path of an image at an engine."""
    return f"/images/{urllib.parse.quote(image, safe='/:@')}"


def find_image(view: View, image: str) -> dict[str, str]:
    """Return the living hosts that have an image of that name, and its id there."""
    answers = ask_hosts(view, "GET", f"{image_path(image)}/json")
    return {host: details["Id"] for host, details in good_answers(answers).items()}


def find_image_hosts(view: View, image: str) -> list[str]:
    """Return the living hosts that have the image that a name means."""
    return mean_images(view, image, find_image(view, image))


def inspect_image(call: Call) -> Reply:
    """Answer from the first host that has the image; the order is fixed, so it does not flap."""
    hear_builds(call.node)
    view, image = call.view_for_read(), call.params["image"]
    have = find_image_hosts(view, image) if image_name(image) in view.images else []
    return json_reply(first_answer(view.narrowed(have) if have else view, call.target()))


def first_answer(view: View, target: str) -> Any:
    """Return the first host's good answer. Raises the most telling failure."""
    return telling_answers(ask_hosts(view, "GET", target))[0]


def telling_answers(answers: Mapping[str, Any]) -> list[Any]:
    """Return the good answers, one at least. Raises the most telling failure."""
    if not answers:
        raise EngineDown(NO_HOST)
    down = [a for a in answers.values() if isinstance(a, (EngineDown, OSError))]
    good = good_answers(answers)
    if not good and down:
        raise EngineDown(str(down[0]))
    return [*require_answers(answers).values()]


def write_image(node: Node, name: str, image_id: str) -> None:
    """Record what an image's name means from now on, so that no host goes on with another.

    The engine has done its part by then: a failure is only logged.
    """
    try:
        key = key_of("images", image_name(name))
        node.wait_view(node.mesh.write(key, new_meaning(image_id)))
    except ArpanetError as e:
        log.warning("could not record what %s means: %s", name, e)


def note_image(node: Node, host: str, name: str) -> None:
    """Record that an image's name means what a host has by it."""
    try:
        engine = node.require_engine(node.view, host)
        write_image(node, name, engine.fetch("GET", f"{image_path(name)}/json")["Id"])
    except ArpanetError as e:
        log.warning("could not find out what %s means: %s", name, e)


def forget_images(call: Call, lines: Iterable[Mapping[str, str]]) -> None:
    """Delete the rows of names that were removed, unless a host has an image of that name still."""
    view = call.node.view
    for name in {image_name(line.get("Untagged", "")) for line in lines} & view.images.keys():
        if not find_image(view, name):
            row = image_row(view.images[name])  # not one that is written meanwhile
            call.node.mesh.delete(key_of("images", name), value=row)


def names_given(call: Call, progress: Mapping[str, Any]) -> Iterator[str]:
    """Yield the image names that have a new meaning, as a line of progress tells."""
    loaded = str(progress.get("stream", "")).partition("Loaded image: ")[2]
    if call.path == "/images/load" and loaded:
        yield loaded.strip()
    if str(progress.get("status", "")).startswith("Pulling from ") and progress.get("id"):
        repository = re.sub("[:@][^/]*$", "", call.text("fromImage"))
        yield join_tag(repository, progress["id"])


def noting_names(call: Call, lines: Iterable[Line], names: Collection[str] = ()) -> Iterator[Line]:
    """Yield the progress of hosts, and at its good end record what names mean there."""
    given: dict[str, set[str]] = collections.defaultdict(set)
    failed: set[str] = set()
    for host, progress in lines:
        for name in (*names, *names_given(call, progress)):
            given[name].add(host)
        if "errorDetail" in progress:
            failed.add(host)
        yield host, progress
    for name, hosts in given.items():
        if "@" not in name and hosts - failed:
            note_image(call.node, min(hosts - failed), name)


def make_images(call: Call, engine: Engine, names: Collection[str] = ()) -> Reply:
    """Pass on a request that gives names to images, and note them at its end."""
    reply = call.send(engine, call.target(), slow=True)
    if reply.status != 200:
        return Reply(engine=reply)
    given = ((engine.host.name, json.loads(line)) for line in read_lines(reply.blocks()))
    lines = (dump_json(progress) + b"\r\n" for _, progress in noting_names(call, given, names))
    return Reply(engine=reply, stream=lines)


def build_image(call: Call) -> Reply:
    """Build on the first host, also what BuildKit does in several requests."""
    return make_images(call, first_engine(call.node, call.view_for_read()), call.query.get("t", ()))


def load_images(call: Call) -> Reply:
    return make_images(call, first_engine(call.node, call.view_for_read()))


def pull_image(call: Call) -> Reply:
    """Pull on the host that a create waits on, else on all hosts, each line led by its host."""
    view = call.view_for_change()
    if not call.text("fromImage"):  # an import: each makes a new id, so it is made once
        name = join_tag(call.text("repo"), call.text("tag"))
        return make_images(call, first_engine(call.node, view), [name] if name else ())
    reference = join_tag(call.text("fromImage"), call.text("tag"))
    host = call.node.pull_hosts.pop(image_name(reference))
    if host and not view.trouble(host):
        return make_images(call, call.node.require_engine(view, host))
    streams = open_streams(call, view, call.target())

    def lines() -> Iterator[bytes]:
        merged = merge_lines(Sources(streams), lambda _: 0, lambda _: 0)
        for source, progress in noting_names(call, merged):
            key = "id" if progress.get("id") else "status"
            led = {key: f"{source}: {progress[key]}"} if progress.get(key) else {}
            yield dump_json({**progress, **led}) + b"\r\n"

    return Reply(200, headers=JSON, stream=lines())


def pass_image(call: Call) -> Reply:
    """Pass a push on to a host that has the image; if none has it, any engine says so."""
    view = call.view_for_read()
    have = find_image_hosts(view, call.params["image"])
    engine = call.node.require_engine(view, have[0]) if have else first_engine(call.node, view)
    return Reply(engine=call.send(engine, call.target(), slow=True))


def save_images(call: Call) -> Reply:
    """Stream images as one tar, from the host that has most of them; the others are moved there."""
    view = call.view_for_read()
    wanted = [call.params["image"]] if "image" in call.params else call.query.get("names", [])
    have = {image: find_image_hosts(view, image) for image in wanted}
    missing = [image for image, hosts in have.items() if not hosts]
    if missing or not wanted:  # the engine's words
        query = urllib.parse.urlencode([("names", image) for image in missing[:1]])
        return Reply(
            engine=call.send(first_engine(call.node, view), f"{call.prefix}/images/get?{query}")
        )
    count = collections.Counter(host for hosts in have.values() for host in hosts)
    best = min(count, key=lambda host: (-count[host], host))
    engine = call.node.require_engine(view, best)
    for image in (i for i, hosts in have.items() if best not in hosts):
        bring_image(call, image, engine)
    return Reply(engine=call.send(engine, call.target()))


def tag_image(call: Call) -> Reply:
    """Tag an image on all hosts that have it; others get it by its new name when they need it."""
    view, image = call.view_for_change(), call.params["image"]
    ids = find_image(view, image)
    have = mean_images(view, image, ids)
    change_hosts(view.narrowed(have) if have else view, "POST", call.target())
    if have:
        write_image(call.node, join_tag(call.text("repo"), call.text("tag")), ids[have[0]])
    return Reply(201)


def remove_image(call: Call) -> Reply:
    """Remove an image from all hosts that have it."""
    view = call.view_for_change()
    image = call.params["image"]
    users = {c.host for c in view.containers.values() if match_ancestor(c, image)}
    gone: list[dict[str, str]] = []
    for lines in change_in_turn(view, users, "DELETE", call.target()):
        gone += [line for line in lines if line not in gone]
    forget_images(call, gone)
    return json_reply(gone)


def spread_image(call: Call) -> Reply:
    """Bring an image to all living hosts, or to those that a rule allows, one after the other."""
    view, image, to = call.view_for_change(), call.params["image"], call.text("to")
    rules = [parse_rule(to)] if to else []
    hosts = [
        host
        for host in view.living_hosts()
        if all(rule.allows(facts_of(view, host).get(rule.key, ())) for rule in rules)
    ]
    have = find_image_hosts(view, image)
    if not have:
        raise NotFound(f"No such image: {image}")
    if not hosts:
        raise NotFound(f"no living host has {to}; see: arpanet host ls")
    size = Engine(view.hosts[have[0]]).fetch("GET", f"{image_path(image)}/json").get("Size", 0)

    def lines() -> Iterator[bytes]:
        for host in hosts:
            states = iter([{"done": "was there"}]) if host.name in have else receive(call, host)
            for state in states:
                yield dump_json({"host": host.name, "size_bytes": size, **state}) + b"\n"

    return Reply(200, headers=JSON, stream=lines())


def receive(call: Call, host: Host) -> Iterator[dict[str, Any]]:
    """Bring the path's image to a host; yield how far it is, at last done or error."""
    news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def bring() -> None:
        try:
            image, engine = call.params["image"], call.node.engine(host)
            bring_image(call, image, engine, lambda size: news.put({"moved_bytes": size}))
            news.put({"done": "received"})
        except (ArpanetError, OSError) as e:
            news.put({"error": str(e)})

    spawn(f"ask-{host.name}", bring)
    for state in iter(news.get, None):
        yield state
        if "moved_bytes" not in state:
            return


# ---- networks: what is made through arpanet is made on every host, also on one that joins later


def join_networks(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one network of those that the hosts have by one name, with all their containers."""
    containers = [n.get("Containers") or {} for n in found]
    return dict(found[0], Containers={k: v for c in containers for k, v in c.items()})


def with_hosts(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the things that hosts have by one name, by NAME@HOST when there are several."""
    suffixes = [f"@{host}" for host in found] if len(found) > 1 else [""]
    things = zip(suffixes, found.values(), strict=True)
    return [dict(thing, Name=thing["Name"] + suffix) for suffix, thing in things]


TRUE = frozenset({"1", "true"})  # of a filter that is a yes or no


def get_networks(call: Call) -> Reply:
    """List the networks of all hosts; those that hosts have by one name by chance as NAME@HOST."""
    view, filters = call.view_for_read(), parse_filters(call.text("filters"))
    wanted = filters.pop("id", ("",))
    query = dict(urllib.parse.parse_qsl(call.query_text), filters=dump_json(filters))
    answers = ask_hosts(view, "GET", f"{call.prefix}/networks?{urllib.parse.urlencode(query)}")
    shared: dict[str, dict[str, dict[str, Any]]] = {}
    for host, listed in require_answers(answers).items():
        for network in listed:
            ids = (network["Id"], view.network_ids.get(network["Name"], network["Id"]))
            if any(matches(value, *ids) for value in wanted):
                shared.setdefault(network["Name"], {})[host] = network
    joined: list[dict[str, Any]] = []
    for name, found in shared.items():
        if name not in view.network_ids:
            joined += with_hosts(found)
        elif not (
            TRUE & {*filters.get("dangling", ())} and network_users(NetworkPlace(name, view))
        ):
            joined.append(with_network_id(join_networks([*found.values()]), view.network_ids))
    return json_reply(joined)


class NetworkPlace(NamedTuple):
    """A network's name, and a view of the hosts where it is the one that is meant."""

    name: str
    view: View


def find_network(call: Call, view: View) -> NetworkPlace:
    """Return the network of the path: a name, NAME@HOST, an id or a prefix of one.

    Raises BadRequest in the engine's words for a name that hosts have by chance.
    """
    reference = call.params["network"]
    name, _, host = reference.rpartition("@")
    known = network_named(view.network_ids, reference)
    if known:
        return NetworkPlace(known, view)
    if host in view.hosts and name:
        return NetworkPlace(name, view.narrowed([host]))
    path = f"/networks/{urllib.parse.quote(reference, safe='')}"
    answers = ask_hosts(view, "GET", path)
    found = good_answers(answers)
    named = {network["Name"] for network in found.values()}
    begun = "" if reference in named else network_begun(view.network_ids, reference)
    first = begun or telling_answers(answers)[0]["Name"]
    if first in view.network_ids:
        return NetworkPlace(first, view)
    if len({network["Id"] for network in found.values()}) > 1:
        told = ", ".join(f"{reference}@{host}" for host in found)
        raise BadRequest(
            f"network {reference} is ambiguous ({len(found)} matches found on name): say {told}"
        )
    return NetworkPlace(first, view.narrowed(found))


def inspect_network(call: Call) -> Reply:
    name, view = find_network(call, call.view_for_read())
    found = require_answers(ask_hosts(view, "GET", call.target(network=name)))
    joined = join_networks([*found.values()])
    return json_reply(with_network_id(joined, call.node.view.network_ids))


def create_network(call: Call) -> Reply:
    """Make a network on every host, or on none."""
    body = load_object(call.body.read(), "the body")
    name = str(body.get("Name") or "")
    view = call.view_for_change()
    if name in STANDARD_NETWORKS or not name.strip():  # the engine's words for its refusal
        made = first_engine(call.node, view).fetch("POST", f"{call.prefix}/networks/create", body)
        return json_reply(made, 201)
    key = key_of("networks", name)
    row = {"create": body, "token": secrets.token_hex(8)}  # never equal to another create's row
    if not call.node.mesh.claim_all({key: dump_json(row)}):
        raise Conflict(f"network with name {name} already exists")
    target = f"{call.prefix}/networks/create"
    answers = ask_hosts(view, "POST", target, body, 60.0)
    failures = [a for a in answers.values() if isinstance(a, Exception)]
    if failures or not answers:
        call.node.mesh.delete(key, value=dump_json(row))
        for host, made in good_answers(answers).items():
            with contextlib.suppress(ArpanetError):  # the first failure is the one to tell
                Engine(view.hosts[host]).fetch("DELETE", f"/networks/{made['Id']}")
        raise failures[0] if failures else EngineDown("no host is up")
    made = next(iter(good_answers(answers).values()))
    return json_reply(dict(made, Id=network_of(name, row).id), 201)


def remove_network(call: Call) -> Reply:
    remove_everywhere(call.node, find_network(call, call.view_for_change()))
    return Reply(204)


def remove_everywhere(node: Node, place: NetworkPlace) -> None:
    """Remove a network from its hosts, or from none. Raises in the engine's words."""
    name, view = place
    users = {c.host for c in view.containers.values() if name in c.networks}
    path = f"/networks/{urllib.parse.quote(name, safe='')}"
    try:
        change_in_turn(view, users, "DELETE", path)
    except EngineError as e:
        known = view.network_ids.get(name)
        words = re.sub("(?<= id )[0-9a-f]{64}", known, str(e)) if known else str(e)
        raise EngineError(e.status, words) from e
    node.mesh.delete(key_of("networks", name))


def prune_networks(call: Call) -> Reply:
    """Remove the networks that no container uses on any host, as far as the filters allow."""
    rule = parse_prune(parse_filters(call.text("filters")), utc_now())
    view = call.view_for_change()
    listed = require_answers(ask_hosts(view, "GET", "/networks"))
    pruned = set()
    for host, network in ((h, n) for h, networks in listed.items() for n in networks):
        name = network["Name"]
        shared = name in view.networks
        place = NetworkPlace(name, view if shared else view.narrowed([host]))
        if (
            name not in STANDARD_NETWORKS
            and name not in pruned
            and network_users(place).isdisjoint(place.view.hosts)
            and rule.takes(network)
        ):
            with contextlib.suppress(EngineError):  # one that somebody has just begun to use stays
                remove_everywhere(call.node, place)
                pruned.add(name)
    return json_reply({"NetworksDeleted": sorted(pruned) or None})


def network_users(place: NetworkPlace) -> set[str]:
    """Return the hosts where a container that runs uses a network."""
    return {
        c.host
        for c in place.view.containers.values()
        if c.running and place.name in c.networks and c.host in place.view.hosts
    }


def join_network(call: Call) -> Reply:
    """Connect a container with a network or take it off, on the container's host."""
    body = load_object(call.body.read(), "the body")
    view = call.view_for_change()
    reference = str(body.get("Container") or "")
    if body.get("Force") and find_container(view, reference) is None:
        name, view = find_network(call, view)
        change_hosts(view, "POST", call.target(network=name), body)
        return Reply(200)
    container = require_container(view, reference)
    name, having = find_network(call, view)
    if container.host not in having.hosts:
        raise NotFound(f"network {call.params['network']} not found on {container.host}")
    if name in view.networks:
        claim_vip(call.node, container.name)
    target = call.target(network=name)
    payload = dict(body, Container=container.id)
    if "EndpointConfig" in body:
        payload["EndpointConfig"] = without_id(body["EndpointConfig"])
    engine = call.engine_of(container)
    headers = [("Content-Type", "application/json")]
    reply = engine.send("POST", target, headers, dump_json(payload), 60.0)
    publish(call.node, container.host, container.id)
    return Reply(engine=reply)


# ---- volumes


def create_volume(call: Call) -> Reply:
    """Make a volume on one host, which it is pinned to; a known name answers as it is.

    One without a name gets it from the engine, with the labels by which that engine prunes it.
    """
    body = load_object(call.body.read(), "the body")
    name, node = str(body.get("Name") or ""), call.node
    binds = [f"{name}:/volume"] if name else []
    wish = read_create("volume", {"HostConfig": {"Binds": binds}})
    with contextlib.ExitStack() as undo:
        view, claimed = call.view_for_change(), False
        while not claimed:
            host = place(view, wish, pins_of(view, wish), policy=node.policy).host
            rows = volume_rows(view, wish, host)
            claimed = claim_volumes(node, rows, undo)
            view = view if claimed else node.sync_view()  # somebody else was first
        engine = node.require_engine(view, host)
        made = engine.fetch("POST", f"{call.prefix}/volumes/create", body)
        if rows or not name:
            node.mesh.write(key_of("volumes", made["Name"]), dump_json({"host": host}))
        give_up_all(node, rows)
        undo.pop_all()
    return json_reply(made, 201)


def get_volumes(call: Call) -> Reply:
    """List the volumes of all hosts; those that share a name by chance as NAME@HOST."""
    shared: dict[str, dict[str, dict[str, Any]]] = {}
    answers = ask_hosts(call.view_for_read(), "GET", call.target())
    for host, answer in require_answers(answers).items():
        for volume in answer.get("Volumes") or ():
            shared.setdefault(volume["Name"], {})[host] = volume
    volumes = [volume for found in shared.values() for volume in with_hosts(found)]
    return json_reply({"Volumes": volumes, "Warnings": None})


class VolumePlace(NamedTuple):
    """A volume's name, and the hosts that may have it."""

    name: str
    hosts: list[str]


def find_volume(call: Call, view: View) -> VolumePlace:
    """Return where the volume of the path is: NAME@HOST, or a name that may be pinned to a host."""
    name, _, host = call.params["volume"].partition("@")
    if host and host not in view.hosts:
        raise NotFound(f"get {call.params['volume']}: no such volume")
    pin = view.volumes.get(name)
    living = [h.name for h in view.living_hosts()]
    return VolumePlace(name, [host] if host else [pin.host] if pin else living)


def inspect_volume(call: Call) -> Reply:
    view = call.view_for_read()
    name, hosts = find_volume(call, view)
    if len(hosts) != 1:
        return json_reply(first_answer(view, call.target()))
    volume = call.node.require_engine(view, hosts[0]).fetch("GET", call.target(volume=name))
    return json_reply(dict(volume, Name=call.params["volume"]))


def remove_volume(call: Call) -> Reply:
    """Remove a volume where it is, then the pin that kept its containers there."""
    view = call.view_for_change()
    name, hosts = find_volume(call, view)
    target = call.target(volume=name)
    replies = [call.send(call.node.require_engine(view, h), target) for h in hosts]
    well = [r for r in replies if r.status < 400]
    pinned = view.volumes[name].host if name in view.volumes else ""
    if (well or all(r.status == 404 for r in replies)) and pinned in hosts:
        call.node.mesh.delete(key_of("volumes", name))
    for other in (r for r in replies if r not in (well or replies)[:1]):
        other.close()
    if not replies:
        raise NotFound(f"get {name}: no such volume")
    return Reply(engine=(well or replies)[0])


# ---- what is not offered, and the table


def get_plugins(call: Call) -> Reply:
    del call
    return json_reply([])


def get_plugin(call: Call) -> Reply:
    raise NotFound(f'plugin "{call.params["plugin"]}" not found')


def leave_swarm(call: Call) -> Reply:
    """Say what an engine says outside a swarm: to docker-py that is a success if forced."""
    del call
    raise Unavailable("This node is not part of a swarm")


def refuse(call: Call) -> Reply:
    raise NotSupported(
        f"{call.method} {call.path} is not supported by arpanet {__version__}; "
        "use it on the host itself: docker -H unix:///var/run/docker.sock …"
    )


def get_status(call: Call) -> Reply:
    return json_reply(call.node.report())


def get_facts(call: Call) -> Reply:
    return json_reply(call.node.facts())


def get_host_facts(call: Call) -> Reply:
    return json_reply(call.node.host_facts())


def get_masters(call: Call) -> Reply:
    """Answer a client that looks for a master: is this one any good, and which are there."""
    node = call.node
    facts = {"arpanet": node.arpanet, "masters": node.master_ips()}
    return json_reply({**facts, "quorum": node.has_quorum()})


def get_hosts(call: Call) -> Reply:
    """List all hosts, or describe the one in the path."""
    view, name = call.view_for_read(), call.params.get("host", "")
    if name:
        hosts = [require_host(view, name)]
        return json_reply(describe_hosts(view, hosts, start_awaited_since())[0])
    hosts = [host for _, host in sorted(view.hosts.items())]
    return json_reply(describe_hosts(view, hosts, start_awaited_since()))


def require_host(view: View, name: str) -> Host:
    """Return a host. Raises NotFound."""
    if name not in view.hosts:
        raise NotFound(f"there is no host {name}; see: arpanet host ls")
    return view.hosts[name]


def change_host(call: Call) -> Reply:
    """Say something of a host, beside its row: its slave cannot undo it."""
    change, name = load_object(call.body.read(), "the body"), call.params["host"]
    mesh, key = call.node.mesh, key_of("orders", name)
    while True:
        entry = mesh.read(key)
        view = call.view_for_change()
        order = decide_order(view, require_host(view, name), change)
        check = Check(key, mod_revision=entry.mod_revision if entry else 0)
        revision = mesh.commit([check], [Put(key, dump_json(order._asdict()))])
        if revision:  # else somebody changed it meanwhile
            call.node.wait_view(revision)
            return get_hosts(call)


class Route(NamedTuple):
    """One line of the API: verbs between |, path with {names}.

    {name+} may hold slashes, {name*} may also be nothing, or begin with one.
    """

    verbs: str
    path: str
    handler: Handler
    fate: str  # a key of FATES


FATES = {
    "routed": "passed to the one host that has the object",
    "placed": "passed to the host that is chosen for a new object",
    "merged": "asked of all hosts, and answered as one",
    "on all": "done on all hosts, or on all that have the object",
    "first host": "passed to the first living host, so that what belongs together comes together",
    "answered": "answered by the master from what it knows",
    "refused": "answered with 501: not offered",
}
ROUTES = (
    Route("GET|HEAD", "/_ping", get_ping, "answered"),
    Route("GET", "/version", get_version, "merged"),
    Route("GET", "/info", get_info, "merged"),
    Route("GET", "/events", get_events, "merged"),
    Route("GET", "/arpanet/masters", get_masters, "answered"),
    Route("GET", "/arpanet/status", get_status, "answered"),
    Route("GET", "/arpanet/doctor", get_facts, "answered"),
    Route("GET", "/arpanet/doctor/hosts", get_host_facts, "answered"),
    Route("GET", "/arpanet/hosts", get_hosts, "answered"),
    Route("GET", "/arpanet/hosts/{host}", get_hosts, "answered"),
    Route("POST", "/arpanet/hosts/{host}", change_host, "answered"),
    Route("POST", "/arpanet/place", explain_place, "answered"),
    Route("POST", "/arpanet/containers/{container}/move", move_container, "placed"),
    Route("POST", "/arpanet/images/{image+}/spread", spread_image, "on all"),
    Route("GET", "/containers/json", get_containers, "answered"),
    Route("POST", "/containers/create", create_container, "placed"),
    Route("POST", "/containers/prune", prune, "on all"),
    Route("GET", "/containers/{container}/json", inspect_or_ended, "routed"),
    Route("GET", "/containers/{container}/top", pass_container, "routed"),
    Route("GET", "/containers/{container}/logs", logs_or_ended, "routed"),
    Route("GET", "/containers/{container}/changes", pass_container, "routed"),
    Route("GET", "/containers/{container}/export", pass_container, "routed"),
    Route("GET", "/containers/{container}/stats", stats_container, "routed"),
    Route("POST", "/containers/{container}/resize", pass_container, "routed"),
    Route("POST", "/containers/{container}/start", start_container, "routed"),
    Route("POST", "/containers/{container}/stop", change_container, "routed"),
    Route("POST", "/containers/{container}/restart", change_container, "routed"),
    Route("POST", "/containers/{container}/kill", kill_container, "routed"),
    Route("POST", "/containers/{container}/pause", change_container, "routed"),
    Route("POST", "/containers/{container}/unpause", change_container, "routed"),
    Route("POST", "/containers/{container}/update", change_container, "routed"),
    Route("POST", "/containers/{container}/rename", rename_container, "routed"),
    Route("POST", "/containers/{container}/attach", pass_container, "routed"),
    Route("GET", "/containers/{container}/attach/ws", pass_container, "routed"),
    Route("POST", "/containers/{container}/wait", wait_or_ended, "routed"),
    Route("DELETE", "/containers/{container}", change_container, "routed"),
    Route("DELETE", "/containers/{container}/{alias}", remove_link, "routed"),
    Route("GET|HEAD|PUT", "/containers/{container}/archive", pass_container, "routed"),
    Route("POST", "/containers/{container}/exec", create_exec, "routed"),
    Route("POST", "/exec/{exec}/start", pass_exec, "routed"),
    Route("POST", "/exec/{exec}/resize", pass_exec, "routed"),
    Route("GET", "/exec/{exec}/json", pass_exec, "routed"),
    Route("GET", "/images/json", get_images, "merged"),
    Route("POST", "/images/create", pull_image, "on all"),
    Route("POST", "/images/load", load_images, "first host"),
    Route("POST", "/images/prune", prune, "on all"),
    Route("GET", "/images/search", pass_first, "first host"),
    Route("GET", "/images/get", save_images, "routed"),
    Route("GET", "/images/{image+}/json", inspect_image, "routed"),
    Route("GET", "/images/{image+}/history", inspect_image, "routed"),
    Route("GET", "/images/{image+}/get", save_images, "routed"),
    Route("POST", "/images/{image+}/push", pass_image, "routed"),
    Route("POST", "/images/{image+}/tag", tag_image, "on all"),
    Route("DELETE", "/images/{image+}", remove_image, "on all"),
    Route("GET", "/volumes", get_volumes, "merged"),
    Route("GET", "/volumes/{volume}", inspect_volume, "routed"),
    Route("PUT", "/volumes/{volume}", refuse, "refused"),
    Route("DELETE", "/volumes/{volume}", remove_volume, "routed"),
    Route("POST", "/volumes/create", create_volume, "placed"),
    Route("POST", "/volumes/prune", prune, "on all"),
    Route("GET", "/networks", get_networks, "merged"),
    Route("POST", "/networks/create", create_network, "on all"),
    Route("POST", "/networks/prune", prune_networks, "on all"),
    Route("GET", "/networks/{network}", inspect_network, "merged"),
    Route("DELETE", "/networks/{network}", remove_network, "on all"),
    Route("POST", "/networks/{network}/connect", join_network, "routed"),
    Route("POST", "/networks/{network}/disconnect", join_network, "routed"),
    Route("POST", "/commit", commit_container, "routed"),
    Route("POST", "/auth", pass_first, "first host"),
    Route("POST", "/build", build_image, "first host"),
    Route("POST", "/build/cancel", pass_first, "first host"),
    Route("POST", "/build/prune", prune, "on all"),
    Route("POST", "/session", pass_first, "first host"),
    Route("POST", "/grpc", pass_first, "first host"),
    Route("GET", "/system/df", get_disk_usage, "merged"),
    Route("GET", "/distribution/{image+}/json", pass_first, "first host"),
    Route("GET|POST", "/containers/{container}/checkpoints", pass_container, "routed"),
    Route("DELETE", "/containers/{container}/checkpoints/{checkpoint}", pass_container, "routed"),
    Route("GET", "/plugins", get_plugins, "answered"),
    Route("GET", "/plugins/{plugin+}/json", get_plugin, "answered"),
    Route("GET|POST|DELETE", "/plugins/{rest+}", refuse, "refused"),
    Route("POST", "/swarm/leave", leave_swarm, "answered"),
    *(
        Route("GET|POST|DELETE", f"/{kind}{{rest*}}", refuse, "refused")
        for kind in ("swarm", "nodes", "services", "tasks", "secrets", "configs")
    ),
    Route("OPTIONS", "{any*}", get_options, "answered"),
)


def routes_table() -> str:
    """Return the README's table of routes."""
    fates = [f"- *{fate}*: {meaning}" for fate, meaning in FATES.items()]
    rows = [f"| {r.verbs.replace('|', ', ')} | `{r.path}` | {r.fate} |" for r in ROUTES]
    return "\n".join([*fates, "", "| verbs | path | fate |", "|---|---|---|", *rows])


class Matcher(NamedTuple):
    """A row of ROUTES, ready for matching."""

    verbs: frozenset[str]
    pattern: re.Pattern[str]
    handler: Handler


def matcher_of(row: Route) -> Matcher:
    """Return a row's matcher."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>(?:/.*)?)", row.path)
    pattern = re.sub(r"\{(\w+)\+\}", r"(?P<\1>.+)", pattern)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
    return Matcher(frozenset(row.verbs.split("|")), re.compile(pattern), row.handler)


MATCHERS = tuple(matcher_of(row) for row in ROUTES)


DOT_SEGMENT = re.compile("(?:/|%2f)(?:[.]|%2e){1,2}(?:/|%2f|$)", re.IGNORECASE)


def find_handler(call: Call) -> Handler:
    """Return the handler of a call, its path's parameters filled in.

    Raises NotFound in the engine's words, also for a path with another verb, as the engine does;
    BadRequest for a path that an engine would read as another one.
    """
    if DOT_SEGMENT.search(call.path):
        raise BadRequest(f"a path cannot have . and .. between its slashes: {call.path[:100]!r}")
    for matcher in MATCHERS:
        match = matcher.pattern.fullmatch(call.path)
        if match and call.method in matcher.verbs:
            call.params = {k: urllib.parse.unquote(v) for k, v in match.groupdict().items()}
            call.spans = {k: match.span(k) for k in call.params}
            return matcher.handler
    raise NotFound("page not found")


def check_api(prefix: str, versions: ApiRange) -> None:
    """Raise BadRequest in Docker's words for a version that the cluster cannot do."""
    if not prefix:
        return
    asked = prefix.removeprefix("/v")
    if parse_api(asked) > parse_api(versions.newest):
        raise BadRequest(
            f"client version {asked} is too new. Maximum supported API version is {versions.newest}"
        )
    if parse_api(asked) < parse_api(versions.oldest):
        raise BadRequest(
            f"client version {asked} is too old. Minimum supported API version is "
            f"{versions.oldest}, please upgrade your client to a newer version"
        )


def silent_masters(node: Node) -> str:
    """Return which masters do not answer, as the end of a sentence, "" when none is known.

    They are asked once a second at most, however many requests fail.
    """
    return node.silent.get(lambda: ask_silent_masters(node))


def ask_silent_masters(node: Node) -> str:
    try:
        silent = [m for m in node.report().get("masters", ()) if not m["answers"]]
    except MeshDown:
        return "; not even this machine's etcd answers"
    names = ", ".join(f"{m['name'] or '?'} ({m['ip']})" for m in silent)
    return f"; missing: {names}" if names else ""


def answer(call: Call) -> Reply:
    """Return the reply to a call; the only place that makes the body of an error."""
    try:
        handler = find_handler(call)
        if handler is not get_ping:
            check_api(call.prefix, call.node.view.api)
        return handler(call)
    except ArpanetError as e:
        log.debug("%s %s: %s", call.method, call.path, e)
        missing = silent_masters(call.node) if isinstance(e, MeshDown) else ""
        return json_reply({"message": f"{e}{missing}"}, e.status)
    except Exception:
        log.exception("internal error in %s %s", call.method, call.path)
        return json_reply({"message": "internal error; the log of the master says more"}, 500)


class Busy:
    """Counts the requests that are being answered, so that they can end before a master stops."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()  # guards _count

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Return when none is left, or after GRACE_S: what is cut off then fails loudly."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._count == 0, GRACE_S):
                log.warning("broke off %d requests", self._count)


class HangupWatch:
    """Tells when a client goes while its answer is still coming: one thread for all of them."""

    def __init__(self, stop: threading.Event) -> None:
        self._epoll = select.epoll()
        self._actions: dict[int, list[Callable[[], None]]] = {}
        self._lock = threading.Lock()  # guards _actions
        self._stop = stop

    def run(self) -> None:
        while not self._stop.is_set():
            for fd, _ in self._epoll.poll(1.0):
                for action in self.forget(fd):
                    action()

    def add(self, fd: int, action: Callable[[], None]) -> None:
        """Call the action when the client behind a socket has gone."""
        with self._lock:
            actions = self._actions.setdefault(fd, [])
            actions.append(action)
            if len(actions) == 1:
                self._epoll.register(fd, select.EPOLLRDHUP)

    def forget(self, fd: int) -> list[Callable[[], None]]:
        """Return the actions of a socket, and watch it no longer."""
        with self._lock:
            actions = self._actions.pop(fd, [])
            if actions:
                self._epoll.unregister(fd)
            return actions


GRACE_S = 5.0

# ---- clients, before they ask and between their requests

LINGER_S = 2.0
IDLE_S = 600.0  # that a client may wait before its next request
HOT_S = 0.05  # that a thread waits for it
REST_S = 0.2  # before accept is tried again without descriptors
REFUSED_MOST = 200  # connections beyond the limit that are told so; the others are reset
HEADS_BYTES = 64 * 1024 * 1024  # what all unfinished heads may hold together
PIECE_BYTES = 1024 * 1024  # of an answer, that a client must take within stall_s


class Limits(NamedTuple):
    """What the clients of a master may use."""

    connections: int
    per_ip: int
    requests: int
    head_s: float
    stall_s: float


def decide_limits(settings: Settings, descriptors: int) -> Limits:
    """Return the settings, less what the descriptors do not allow: three for each connection."""
    most = max(1, (descriptors - 200) // 3)
    return Limits(
        min(settings.max_connections, most),
        min(settings.max_connections_per_ip, most),
        settings.max_requests,
        settings.head_s,
        settings.stall_s,
    )


def json_answer(status: int, value: Any) -> bytes:
    """Return a whole HTTP answer, which closes the connection."""
    body = dump_json(value) + b"\n"
    head = f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def too_many(what: str, setting: str) -> Unavailable:
    """Return the error for a client that is one too many."""
    row = next(row for row in SETTINGS if row.name == setting)
    return Unavailable(
        f"this master serves no more than {what}: use another master, try again later, or start "
        f"it with a larger {row.flag} ({row.variable})"
    )


class Guest:
    """One client's connection: the socket, and what of the next request has come."""

    __slots__ = ("sock", "ip", "serve", "got", "head_bytes", "due", "fault", "ready")

    def __init__(self, sock: socket.socket, ip: str, serve: Callable[[Guest], None]) -> None:
        self.sock, self.ip, self.serve = sock, ip, serve
        self.got = bytearray()
        self.head_bytes = 0  # of got, up to the end of the head; 0: it is not whole
        self.due = 0.0
        self.fault: ArpanetError | None = None  # why it will not be served
        self.ready: bool | None = False  # None: the connection has ended

    def add(self, part: bytes) -> None:
        """Add what was read; the guest is ready once its head is whole, or wrong."""
        if not self.got:
            part = part.lstrip(b"\r\n")
        searched = max(0, len(self.got) - 3)
        self.got += part
        end = HEAD_END.search(self.got, searched)
        self.head_bytes = end.end() if end else 0
        if (self.head_bytes or len(self.got)) > HEAD_LIMIT_BYTES:
            self.fault = self.fault or HeadTooLarge(
                f"the head of a request has at most {HEAD_LIMIT_BYTES} bytes"
            )
        self.ready = bool(end or self.fault)

    def read(self, wait_s: float) -> None:
        """Read what comes within a time."""
        self.sock.settimeout(wait_s)
        try:
            part = self.sock.recv(BLOCK_BYTES)
        except (BlockingIOError, TimeoutError):
            return
        except OSError:
            part = b""
        self.add(part)
        if not part:
            self.fault = self.fault or BadRequest("the request broke off in its head")
            self.ready = bool(self.got) or None

    def take_head(self) -> bytes:
        """Return the head, without its empty last line. Raises ArpanetError: it is no request."""
        if self.fault:
            raise self.fault
        head = bytes(self.got[: self.head_bytes])
        del self.got[: self.head_bytes]
        return head.rstrip(b"\r\n")

    def take_rest(self) -> bytes:
        """Return what came after the head."""
        rest = bytes(self.got)
        self.got.clear()
        return rest


class Lobby:
    """Where clients wait that have not asked yet: one thread, "lobby", for all of them.

    A guest whose head is whole gets a thread of its own, unless there are too many; a guest that
    is one too many is told so when it has asked: words before that could be lost.
    """

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.limits, self._stop = limits, stop
        self._epoll = select.epoll()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards what follows
        self._waiting: dict[int, Guest] = {}
        self._held_bytes = 0  # by those who wait
        self._guests: collections.Counter[str] = collections.Counter()  # of each address
        self._total = self._serving = 0

    def run(self) -> None:
        """Read heads until stop. Thread: lobby."""
        tick_at = 0.0
        while not self._stop.is_set():
            for fd, _ in self._epoll.poll(TICK_S, EVENTS_PER_TURN):
                self._read(self._waiting[fd])
            if time.monotonic() >= tick_at:
                tick_at = time.monotonic() + TICK_S
                self._tick()
        for guest in self._list_waiting():
            self._call_up(guest)
            self.leave(guest)

    def enter(self, sock: socket.socket, ip: str, serve: Callable[[Guest], None]) -> bool:
        """Let a client wait for its first request; return whether it may. Thread: accept-IP."""
        guest, limits = Guest(sock, ip, serve), self.limits
        with self._lock:
            self._total += 1
            self._guests[ip] += 1
            total, own = self._total, self._guests[ip]
        if total > limits.connections:
            guest.fault = too_many(f"{limits.connections} connections", "max_connections")
        elif own > limits.per_ip:
            what = f"{limits.per_ip} connections from {ip}"
            guest.fault = too_many(what, "max_connections_per_ip")
        if total > limits.connections + REFUSED_MOST:
            set_linger_0(sock)
            self.leave(guest)
            return False
        self.wait(guest, limits.head_s)
        return True

    def wait(self, guest: Guest, wait_s: float) -> None:
        """Have the guest served when it has asked. Thread: its own."""
        guest.sock.setblocking(False)
        guest.due = time.monotonic() + (self.limits.head_s if guest.got else wait_s)
        with self._lock:
            self._held_bytes += len(guest.got)
            self._waiting[guest.sock.fileno()] = guest
            self._epoll.register(guest.sock.fileno(), select.EPOLLIN)

    def leave(self, guest: Guest) -> None:
        """Close a guest's connection; the pump may keep it by another descriptor."""
        guest.sock.close()
        with self._lock:
            self._total -= 1
            self._guests[guest.ip] -= 1
            if not self._guests[guest.ip]:
                del self._guests[guest.ip]

    def _list_waiting(self) -> list[Guest]:
        with self._lock:
            return list(self._waiting.values())

    def _call_up(self, guest: Guest) -> None:
        with self._lock:
            del self._waiting[guest.sock.fileno()]
            self._epoll.unregister(guest.sock.fileno())
            self._held_bytes -= len(guest.got)

    def _read(self, guest: Guest) -> None:
        held = len(guest.got)
        guest.read(0)
        if guest.got and not held:
            guest.due = time.monotonic() + self.limits.head_s
        with self._lock:
            self._held_bytes += len(guest.got) - held
        if guest.ready is None:
            self._call_up(guest)
            self.leave(guest)
        elif guest.ready:
            self._call_up(guest)
            self._admit(guest)
        elif self._held_bytes > HEADS_BYTES:
            self._call_up(guest)
            self._refuse(guest, Unavailable("too many requests are unfinished; try again"))

    def _tick(self) -> None:
        """Say goodbye to those whose time is up."""
        now = time.monotonic()
        for guest in [g for g in self._list_waiting() if g.due < now]:
            late = TooSlow(f"the head of the request was not there within {self.limits.head_s:g} s")
            self._call_up(guest)
            self._refuse(guest, late if guest.got else None)

    def _refuse(self, guest: Guest, why: ArpanetError | None) -> None:
        if why:
            log.debug("refused %s: %s", guest.ip, why)
            say_and_close(guest.sock, json_answer(why.status, {"message": str(why)}))
        self.leave(guest)

    def _admit(self, guest: Guest) -> None:
        """Give a guest that has asked its thread, or the answer that there is none."""
        fault = guest.fault if isinstance(guest.fault, Unavailable) else None
        with self._lock:
            if self._serving >= self.limits.requests:
                fault = too_many(f"{self.limits.requests} requests at once", "max_requests")
            self._serving += 1
        try:
            if fault is None:
                spawn(f"api-{next(self._numbers)}", functools.partial(self._serve, guest))
                return
        except RuntimeError as e:  # the machine has no more threads
            fault = Unavailable(f"this master cannot serve more at the moment: {e}; try again")
        self._serve_no_more()
        self._refuse(guest, fault)

    def _serve(self, guest: Guest) -> None:
        try:
            guest.serve(guest)
        finally:
            self._serve_no_more()

    def _serve_no_more(self) -> None:
        with self._lock:
            self._serving -= 1


# ---- requests and replies

# They lose what comes in one segment with the head of a raw stream. Source: docker/docker-py#3332
DEAF_CLIENTS, DEAF_S = ("docker-sdk-python/", "docker-compose/1."), 0.02


class ApiConnection(http.server.BaseHTTPRequestHandler):
    """One request of a client, and its reply. Thread: api-N."""

    request: Guest
    server: ApiServer

    def setup(self) -> None:
        self.connection = self.request.sock
        self.connection.settimeout(self.server.lobby.limits.stall_s)
        self.command, self.close_connection, self._is_old = "", True, False

    def handle(self) -> None:
        try:
            text = self.request.take_head()
            head = read_head(text)
            ahead = Ahead(self.connection, self.request.take_rest())
            bulk = bool(head.headers.get("Transfer-Encoding"))
            self._reader = io.BufferedReader(ahead, BULK_BYTES if bulk else io.DEFAULT_BUFFER_SIZE)
            patient = functools.partial(self.connection.settimeout, None)
            body = Body(self._reader, head.headers, patient)
        except BadRequest as e:
            self.send_error(e.status, str(e))
            return
        self.command, self._is_old = head.method, head.minor == 0
        asked = head.headers.get("Connection").lower()
        self.close_connection = self._is_old or "close" in asked
        if head.headers.get("Expect").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._serve(self._build_call(head, body), body)

    def finish(self) -> None:
        """Leave what has come of the next request with the guest."""
        self.request.ready = None
        if not self.close_connection:
            self.connection.setblocking(False)
            self.request.ready = False
            self.request.add(buffered_bytes(self._reader))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a malformed request in Docker's form, and close."""
        del explain
        self.close_connection = True
        self._send(json_reply({"message": message or "malformed request"}, code))
        self._linger(iter(functools.partial(self.connection.recv, BLOCK_BYTES), b""))

    def _serve(self, call: Call, body: Body) -> None:
        if self._is_gone():
            self.close_connection = True
            return
        with contextlib.ExitStack() as busy:
            busy.enter_context(self.server.busy)
            reply = answer(call)
            if not reply.is_brief:
                busy.close()  # a stream may last for ever
            self._send_reply(call, reply)
        if not body.idle.is_set():
            self._await_upload(body)
        elif not body.finished:
            self._linger(body.blocks())

    def _send_reply(self, call: Call, reply: Reply) -> None:
        if not (call.body.finished or reply.engine):  # unread, it'd be taken for the next request
            self.close_connection = True
        try:
            self._send(reply, call)
        except EngineDown as e:
            log.info("%s", e)
            self.close_connection = True  # the client sees that the answer is not whole
        finally:
            for end in self.server.hangups.forget(self.connection.fileno()):
                end()  # also what a failed write has told us before the watch did
            if reply.engine and not reply.engine.is_hijack:
                if not call.body.idle.is_set():
                    reply.engine.cut()  # an upload that the engine no longer reads ends too
                reply.engine.close()

    def _is_gone(self) -> bool:
        """Return whether the client has reset the connection: it was told that this failed."""
        return bool(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _build_call(self, head: Head, body: Body) -> Call:
        target = re.sub(r"^https?://[^/]*", "", head.target)
        path, _, query = target.partition("?")
        path = re.sub("/{2,}", "/", path)
        match = re.match(r"/v\d{1,3}\.\d{1,3}(?=/)", path)
        prefix = match[0] if match else ""
        watch = functools.partial(self.server.hangups.add, self.connection.fileno())
        return Call(
            self.server.node,
            head.method,
            prefix,
            path[len(prefix) :],
            query,
            head.headers,
            body,
            watch,
        )

    def _await_upload(self, body: Body) -> None:
        """Do as _linger() when the thread that sends the body to an engine reads it still."""
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may be gone
            self.connection.shutdown(socket.SHUT_WR)
        if not body.idle.wait(LINGER_S):
            cut_socket(self.connection)  # it reads under the thread
            body.idle.wait(LINGER_S)

    def _linger(self, rest: Iterator[bytes]) -> None:
        """End the connection, but take what still comes: else a reset could eat our answer."""
        self.close_connection = True
        with contextlib.suppress(OSError, BadRequest):  # the answer is out; this is courtesy
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1.0)
            for _ in zip(range(64), rest, strict=False):
                pass

    def _send(self, reply: Reply, call: Call | None = None) -> None:
        noted = (("Warning", call.warning),) if call and call.warning else ()
        if call and reply.engine:
            self._send_engine(reply.engine, noted, call, reply.stream)
            return
        headers = [*reply.headers, ("Server", f"arpanet/{__version__} (linux)")]
        headers += [("Docker-Experimental", "false"), ("Ostype", "linux"), *noted]
        if reply.stream is not None:
            self._send_blocks(reply.status, headers, reply.stream)
        elif reply.status in (204, 304):
            self._send_head(reply.status, headers)
        else:
            headers.append(("Content-Length", str(len(reply.body))))
            body = b"" if self.command == "HEAD" else reply.body
            self._send_head(reply.status, headers, body)

    def _send_engine(
        self,
        reply: EngineReply,
        noted: Iterable[tuple[str, str]],
        call: Call,
        changed: Iterator[bytes] | None = None,
    ) -> None:
        self.connection.settimeout(None)  # a stream may pause for as long as it likes
        headers = [(n, v) for n, v in reply.headers if n.lower() not in HOP_HEADERS]
        headers += noted
        length = reply.response.getheader("Content-Length")
        if reply.is_hijack:
            self._hijack(reply, headers, call)
        elif self.command == "HEAD" or reply.status in (204, 304):
            self._send_head(reply.status, headers)
        elif reply.response.chunked and not (changed or self._is_old):
            self._send_head(reply.status, [*headers, ("Transfer-Encoding", "chunked")])
            for block in reply.chunks():
                self.connection.sendall(block)
        elif length is None or changed:
            self._send_blocks(reply.status, headers, changed or reply.blocks())
        else:
            self._send_head(reply.status, [*headers, ("Content-Length", length)])
            for block in reply.blocks():
                self.connection.sendall(block)

    def _send_blocks(
        self, status: int, headers: list[tuple[str, str]], blocks: Iterable[bytes]
    ) -> None:
        chunked, send = not self._is_old, self.connection.sendall
        self.connection.settimeout(None)
        framing = ("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")
        self._send_head(status, [*headers, framing])
        for block in in_chunks(blocks) if chunked else blocks:
            send(block)

    def _send_head(
        self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b""
    ) -> None:
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if not any(line.startswith("Date:") for line in lines):
            lines.append(f"Date: {http_date(int(utc_now().timestamp()))}")
        if self.close_connection and not any(x.startswith("Connection:") for x in lines):
            lines.append("Connection: close")
        whole = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        view = memoryview(body)
        sent = self.connection.sendmsg([whole, view[:PIECE_BYTES]]) - len(whole)
        if sent < 0:
            self.connection.sendall(whole[sent:])
        for start in range(max(sent, 0), len(body), PIECE_BYTES):
            self.connection.sendall(view[start : start + PIECE_BYTES])

    def _hijack(self, reply: EngineReply, headers: list[tuple[str, str]], call: Call) -> None:
        """Hand both connections to the pump; they are a raw stream from here on."""
        upgrade = reply.response.getheader("Upgrade")
        if reply.status == 101:
            headers += [("Connection", "Upgrade"), ("Upgrade", upgrade or "tcp")]
        else:
            headers.append(("Connection", "close"))
        self._send_head(reply.status, headers)
        self.close_connection = True
        self.server.hangups.forget(self.connection.fileno())
        if call.headers.get("User-Agent").startswith(DEAF_CLIENTS):
            self.server.node.stop.wait(DEAF_S)
        early_from_engine = reply.early_bytes()
        client = socket.socket(fileno=os.dup(self.connection.fileno()))
        client.setblocking(False)
        early_from_client = buffered_bytes(self._reader)
        counters = LinkCounters()
        if call.path in ("/session", "/grpc"):
            key, is_open = secrets.token_hex(8), lambda: counters.active or not counters.total
            self.server.node.builds.put(key, Build(key, reply.host, is_open))
        self.server.pump.join(
            client, reply.sock, early_to_far=early_from_client, early_to_near=early_from_engine,
            counters=counters,
        )  # fmt: skip


class ApiServer(socketserver.TCPServer):
    """The listener of the Docker API at one address; its clients wait in the lobby."""

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(
        self, address: HostPort, node: Node, pump: Pump, hangups: HangupWatch, lobby: Lobby
    ) -> None:
        super().__init__(address, ApiConnection)
        self.node, self.pump, self.hangups, self.lobby = node, pump, hangups, lobby
        self.busy = Busy()
        self._resting = False  # since the last time that accept worked

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; without descriptors wait a moment, as the queue stays readable."""
        try:
            accepted = super().get_request()
        except OSError as e:
            if e.errno in OUT_OF_DESCRIPTORS:
                if not self._resting:
                    log.warning("accepts no connection for now: %s", e)
                self._resting = True
                self.node.stop.wait(REST_S)
            raise
        self._resting = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        tune_socket(request)
        own = identity()
        if own is None:
            self.lobby.enter(request, client_address[0], self.serve)
        else:
            try:
                self._shake(request, client_address, own.server_context(guests=True))
            except OSError as e:
                log.debug("refused %s: %s", client_address, e)
                reset(request)

    def _shake(self, sock: socket.socket, peer: Address, context: ssl.SSLContext) -> None:
        """Let a client wait in the lobby, behind the TLS that the pump speaks with it.

        Raises OSError.
        """
        mine, far = tcp_pair()

        def settled(near: TlsSocket | None) -> None:
            if near is None:
                reset(far)  # so that the guest leaves
            else:
                self.pump.join(near, far)

        if self.lobby.enter(mine, str(peer[0]), self.serve):
            self.pump.shake(sock, peer, context, settled)
        else:
            reset(sock)
            far.close()

    def serve(self, guest: Guest) -> None:
        """Answer a guest for as long as it asks one request after the other. Thread: api-N."""
        ready: bool | None = None
        try:
            while self._answer(guest):
                pass
            ready = guest.ready
        except OSError as e:
            log.debug("connection from %s broke: %s", guest.ip, e)
        finally:
            if ready is None or self.node.stop.is_set():
                self.lobby.leave(guest)
            else:
                self.lobby.wait(guest, IDLE_S)

    def _answer(self, guest: Guest) -> bool | None:
        """Answer one request; return whether the next one is there, None when none will come."""
        self.finish_request(guest, guest.ip)  # type: ignore[arg-type]
        if guest.ready is False:
            guest.read(HOT_S)
        return guest.ready


# ==== Member =================================================================
# etcd as a child of this process, and this machine's membership in the cluster. A new master
# joins as a learner, which costs the others no quorum, and is promoted once it has caught up. The
# member list is etcd's truth; the state file beside the data only remembers whom to ask. Membership
# goes through etcd's JSON gateway, because etcd3 knows no learners. What to do is decided by the
# pure decide_*(); a change whose answer was lost is looked up in the list, never assumed.

LEARNER_GRACE_S = 15.0  # a learner that never answers blocks every other join
PATIENCE_S = 15.0  # how long the first join looks for any master at all
LEAVE_S = 20.0
STATUS_S = 2.0  # for an etcd to say how it is; a busy one takes a second
SILENT_S = 5.0  # one that leaves takes another for dead after this time
STOP_S = 10.0
NOTE_S = 5.0
ALONE_S = 60.0  # for etcd to answer after a recovery
ROOM_S = 20.0  # between two tries to make room
TURN, TURN_S = PREFIX + "turns/etcd", 60
MAX_BACKOFF_S = 30.0
ETCD_FLAGS = (
    *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
    *("--snapshot-count", "10000"),
    *("--heartbeat-interval", "100", "--election-timeout", "1000"),
    *("--max-txn-ops", "1024", "--experimental-initial-corrupt-check=true"),
    *("--pre-vote", "--strict-reconfig-check", "--enable-v2=false"),
    *("--grpc-keepalive-min-time", "1s"),  # the mesh pings every 1.2 s; the default allows 5 s
    *("--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"),
)
# of PEX, Python, etcd and systemd, nothing may leak into etcd
UNWANTED_PREFIXES = ("PEX", "_PEX", "__PEX", "PYTHON", "ETCD_", "LISTEN_", "WATCHDOG_")
UNWANTED = ("VIRTUAL_ENV", "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "MAINPID")


class GatewayDown(MeshDown):
    """One etcd did not answer, or what answered is not an etcd."""


class GatewayRefused(MeshDown):
    """One etcd answered with an error."""


class EtcdDied(ArpanetError):
    """The etcd of this machine ended by itself."""


def url_scheme() -> str:
    """Return what etcd speaks, as its URLs have it."""
    return "https" if identity() else "http"


def tls_flags() -> list[str]:
    """Return the flags for etcd's certificate. It reads that at each handshake, but the CA once.

    What keeps users out is that another authority makes their certificates. Source: etcd 3.4 has
    --client-cert-allowed-hostname, with which its gateway refuses itself (etcd-io/etcd#15755).
    """
    own = identity()
    if own is None:
        return []
    ca, cert, key = own.paths
    files = {"cert-file": cert, "key-file": key, "trusted-ca-file": ca}
    flags = [f"--{side}{name}={path}" for side in ("", "peer-") for name, path in files.items()]
    checks = ("--client-cert-auth", "--peer-client-cert-auth")
    return [*flags, *checks, f"--peer-cert-allowed-hostname={MACHINE}"]


def trusted_now() -> bytes:
    """Return the authorities that are trusted, b"" without TLS."""
    own = identity()
    return bytes(own.read().ca) if own else b""


class MemberPlace(NamedTuple):
    """Where the etcd of this machine lives: its address, ports, files, and its name in the list."""

    ip: str
    name: str
    state_dir: Path
    log_dir: Path
    client_port: int = 2379
    peer_port: int = 2380
    quota_bytes: int = 2 << 30

    @property
    def client(self) -> str:
        return f"{self.ip}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"{url_scheme()}://{self.ip}:{self.peer_port}"

    @property
    def alone(self) -> str:
        """Return --initial-cluster of a cluster of this machine alone."""
        return f"{self.name}={self.peer_url}"

    @property
    def data_dir(self) -> Path:
        return self.state_dir / "etcd"

    @property
    def old_dir(self) -> Path:
        return self.state_dir / "etcd.old"

    @property
    def state_path(self) -> Path:
        return self.state_dir / "master.json"

    @property
    def log_path(self) -> Path:
        return self.log_dir / "etcd.log"

    def list_clients(self, peers: Sequence[str]) -> list[str]:
        """Return peers as "ip:port", without ourselves and without the word boot."""
        port = self.client_port
        clients = [peer if ":" in peer else f"{peer}:{port}" for peer in peers if peer != "boot"]
        return [client for client in clients if client != self.client]

    def has_data(self) -> bool:
        """Say whether etcd has begun here: its --initial-* flags are then ignored."""
        return any((self.data_dir / "member" / "wal").glob("*.wal"))


class MemberState(NamedTuple):
    """What the state file remembers; ids 0: not known. peers: "ip:port" of all, also our own."""

    cluster: int = 0
    member: int = 0
    peers: tuple[str, ...] = ()


class MemberStatus(NamedTuple):
    """One row of `arpanet master status`. answers: its etcd says it is in the quorum."""

    name: str
    ip: str
    leader: bool
    learner: bool
    answers: bool
    version: str
    id: int
    size_bytes: int = 0
    alarms: tuple[str, ...] = ()


class Step(NamedTuple):
    """What to do next to join or leave; target is the member that it is done to.

    To join: "remove", "add" or "start" (with that --initial-cluster). To leave: "gone", "last",
    "start", "remove-dead", "transfer" or "remove-self".
    """

    action: str
    target: int = 0
    initial: str = ""


# ---- decisions, pure


def decide_boot(has_data: bool, state: MemberState) -> str:
    """Return "resume", "new", or "refuse": never a second cluster where one has been."""
    if has_data:
        return "resume"
    return "refuse" if state.peers or state.cluster else "new"


def decide_join(
    members: Sequence[Member], name: str, peer_url: str, dead_learners: Collection[int] = ()
) -> Step:
    """Return the next step of a machine without data into the cluster with these members.

    An entry with our URL that has a name has started once: its disk is gone, and a voter that
    forgot what it voted for is unsafe, so it goes first. One without a name was added just now,
    or before a crash, and is used. Source: etcd compares only URLs and their number in
    --initial-cluster, so an address serves as the others' name.
    """
    mine = next((member for member in members if member.peer_url == peer_url), None)
    if mine and mine.name:
        return Step("remove", mine.id)
    if mine:
        pairs = [(name if m is mine else f"member-{m.id:x}", m.peer_url) for m in members]
        return Step("start", mine.id, ",".join(f"{key}={url}" for key, url in pairs))
    dead = [member.id for member in members if member.id in dead_learners]
    return Step("remove", dead[0]) if dead else Step("add")


def decide_leave(
    members: Sequence[Member], my_id: int, answering: Collection[int], leader: int
) -> Step:
    """Return the next step of member my_id out of the cluster, without a gap for the rest.

    answering: ours too while it runs; where the others have no quorum without it, it must. Where
    the living would have none once it is gone, dead voters are removed first; a leader hands over
    first (removing it costs 2-7 s of writes).
    """
    if all(member.id != my_id for member in members):
        return Step("gone")
    rest = [member for member in members if member.id != my_id and not member.learner]
    if not rest:
        return Step("last")
    living = [member.id for member in rest if member.name and member.id in answering]
    runs = my_id in answering
    if not runs and len(living) < (len(rest) + 1) // 2 + 1:
        return Step("start")
    if len(living) < len(rest) // 2 + 1:
        dead = next(member.id for member in rest if member.id not in living)
        return Step("remove-dead", dead)
    if runs and leader == my_id:
        return Step("transfer", living[0])
    return Step("remove-self", living[0])


def find_last_words(text: str) -> str:
    """Return why etcd ended, from its log: the last line that is worse than a warning."""
    words = ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # Go's own words, when a panic ends it
            words = line if line.startswith("panic: ") else words
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            words = ": ".join(str(entry[key]) for key in ("msg", "error") if entry.get(key))
    last_lines = [line.strip() for line in text.splitlines() if line.strip()][-2:]
    return words or " / ".join(last_lines) or "it logged nothing"


def find_backoff_s(failures: int) -> float:
    """Return the seconds to wait before the restart after so many deaths in a row."""
    return float(min(0.5 * 2 ** min(failures, 10), MAX_BACKOFF_S))


def clean_environment(environment: Mapping[str, str], machine: str) -> dict[str, str]:
    """Return the environment for etcd. Source: etcd 3.4 exits on ARM unless it is told."""
    clean = {
        key: value
        for key, value in environment.items()
        if not key.startswith(UNWANTED_PREFIXES) and key not in UNWANTED
    }
    arm = {"aarch64": "arm64", "arm64": "arm64", "armv7l": "arm"}.get(machine)
    return {**clean, "ETCD_UNSUPPORTED_ARCH": arm} if arm else clean


# ---- the ports of this machine


def find_listener(table: str, ip: str, port: int) -> int | None:
    """Return the inode of the socket that listens on ip:port or on all addresses, or None.

    table: the text of /proc/net/tcp or tcp6. Source: proc(5); state 0A is LISTEN, addresses are in
    the machine's byte order.
    """
    mine = f"{int.from_bytes(socket.inet_aton(ip), sys.byteorder):08X}"
    for line in table.splitlines()[1:]:
        fields = line.split()
        address, _, number = fields[1].partition(":")
        everywhere = set(address) == {"0"}
        if fields[3] == "0A" and int(number, 16) == port and (everywhere or address == mine):
            return int(fields[9])
    return None


def find_holder(inode: int) -> str:
    """Return "etcd (pid 123)" for the process that holds this socket, as far as we may look."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and has_socket(entry / "fd", inode):
            return f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
    return "another program (as root: ss -ltnp)"


def has_socket(directory: Path, inode: int) -> bool:
    """Say whether a process holds this socket; directory is its /proc/PID/fd."""
    try:
        names = os.listdir(directory)
    except OSError:  # it ended meanwhile, or is another user's
        return False
    for name in names:
        with contextlib.suppress(OSError):  # closed meanwhile, as that of listdir itself is
            if os.readlink(directory / name) == f"socket:[{inode}]":
                return True
    return False


def require_free_port(ip: str, port: int) -> None:
    """Raise Conflict, naming who has it, if something listens on ip:port already."""
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        inode = find_listener(path.read_text(), ip, port) if path.exists() else None
        if inode is None:
            continue
        holder = find_holder(inode)
        cure = "systemctl stop etcd" if holder.startswith("etcd ") else "stop it"
        raise Conflict(f"port {port} on {ip} is in use by {holder}; try: {cure}")


# ---- etcd's JSON gateway


def open_gateway(client: str, timeout_s: float) -> http.client.HTTPConnection:
    """Return a connection to the etcd at client, not made yet."""
    ip, _, port = client.rpartition(":")
    own = identity()
    if own is None:
        return http.client.HTTPConnection(ip, int(port), timeout=timeout_s)
    context = own.client_context()
    return http.client.HTTPSConnection(ip, int(port), timeout=timeout_s, context=context)


def ask_gateway(
    client: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = 3.0
) -> Any:
    """Return the JSON that the etcd at client ("ip:port") answers to POST /v3/path.

    Raises GatewayDown, GatewayRefused. The timeout is short because a change of members that
    raft dropped would hang for ever. Source: etcd 3.4 grpc-gateway; 64-bit numbers are strings.
    """
    connection = open_gateway(client, timeout_s)
    try:
        connection.request("POST", f"/v3/{path}", json.dumps(body or {}))
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        raise GatewayDown(f"{client}: {find_reason(error)}") from error
    except http.client.HTTPException as error:
        raise GatewayDown(f"{client}: answers, but not as etcd does") from error
    finally:
        connection.close()
    return read_answer(client, answer.status, text)


def read_answer(client: str, status: int, text: bytes) -> Any:
    """Return the JSON of an answer; raises GatewayRefused, or GatewayDown if it is not etcd's."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise GatewayDown(f"{client}: answers, but not as etcd does") from error
    if not isinstance(value, dict):
        raise GatewayDown(f"{client}: answers, but not as etcd does")
    if status != 200:
        reason = value.get("message") or value.get("error") or f"status {status}"
        raise GatewayRefused(str(reason).removeprefix("etcdserver: "))
    return value


def find_reason(error: OSError) -> str:
    """Return the few words for why a connection failed."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it ended the connection without a word; it may want TLS (ARPANET_CERT_PATH)"
    return find_tls_reason(error) or (error.strerror or str(error)).lower()


def build_member_from_json(value: Mapping[str, Any]) -> Member:
    """Return a member of the gateway's list."""
    urls = [str(url).partition("://")[2] for url in value.get("clientURLs", ())]
    return Member(
        id=int(value["ID"]),
        name=value.get("name", ""),
        peer_url=next(iter(value.get("peerURLs", ())), ""),
        client=next(iter(urls), ""),
        learner=bool(value.get("isLearner")),
    )


def encode_text(text: str) -> str:
    """Return the text as the gateway wants keys and values."""
    return base64.b64encode(text.encode()).decode()


def read_mark(client: str) -> str:
    """Return what marks the etcd at client as an arpanet's, "" if it is none. As ask_gateway."""
    found = ask_gateway(client, "kv/range", {"key": encode_text(MARK)}).get("kvs")
    return base64.b64decode(found[0]["value"]).decode("utf-8", "replace") if found else ""


def make_key(client: str, key: str, value: str, lease: str = "0") -> bool:
    """Make a key, which needs a quorum; say whether it was not there. Raises as ask_gateway."""
    name, text = encode_text(key), encode_text(value)
    compare = {"key": name, "target": "CREATE", "result": "EQUAL", "createRevision": "0"}
    put = {"requestPut": {"key": name, "value": text, "lease": lease}}
    answer = ask_gateway(client, "kv/txn", {"compare": [compare], "success": [put]})
    return bool(answer.get("succeeded"))


def take_turn(client: str) -> str:
    """Return the lease of our turn at what one master does at a time, "" while it is another's.

    A turn that is not ended ends by itself after TURN_S. Raises as ask_gateway.
    """
    lease = str(ask_gateway(client, "lease/grant", {"TTL": str(TURN_S)})["ID"])
    if make_key(client, TURN, dump_json({"lease": lease}).decode(), lease):
        return lease
    end_turn(client, lease)
    return ""


class EtcdTurn(NamedTuple):
    """Whether etcd may be started anew now; on which lease of the others, and what is said."""

    mine: bool
    lease: str
    said: str


def ask_for_turn(client: str, ask_status: Callable[[], Sequence[MemberStatus]]) -> EtcdTurn:
    """Take our turn at starting the etcd at client anew, if all others answer. Raises MeshDown.

    One that does not understand us any longer has nothing to lose; one that is slow may have.
    """
    said = "was started anew, with the authorities that are trusted now"
    try:
        fetch_status(client)
    except GatewayDown as error:
        if isinstance(error.__cause__, TimeoutError):
            return EtcdTurn(False, "", "")
        return EtcdTurn(True, "", f"{said}; before it was of no use: {error}")
    lease = take_turn(client)
    silent = [row.name for row in ask_status() if not row.answers] if lease else []
    if silent:
        end_turn(client, lease)
        waiting = f"other authorities are trusted now; waiting for {', '.join(silent)} to answer"
        return EtcdTurn(False, "", waiting)
    return EtcdTurn(bool(lease), lease, said if lease else "")


def end_turn(client: str, lease: str) -> None:
    """Let another one have its turn, if we have one. Raises as ask_gateway."""
    if lease:
        with contextlib.suppress(GatewayRefused):  # it has ended by itself
            ask_gateway(client, "lease/revoke", {"ID": lease})


class MemberList(NamedTuple):
    """The list of one cluster, and who gave it."""

    via: str
    cluster: int
    members: tuple[Member, ...]

    @property
    def clients(self) -> tuple[str, ...]:
        """Return the addresses of those that have started once."""
        return tuple(member.client for member in self.members if member.client)


def fetch_members(client: str) -> MemberList:
    """Return the member list as the etcd at client has it. Raises as ask_gateway."""
    answer = ask_gateway(client, "cluster/member/list")
    try:
        members = tuple(build_member_from_json(value) for value in answer["members"])
        return MemberList(client, int(answer["header"]["cluster_id"]), members)
    except (KeyError, TypeError, ValueError) as error:
        raise GatewayDown(f"{client}: answers, but not as etcd does") from error


def fetch_status(client: str) -> Any:
    """Return etcd's own status: header.member_id, leader, version. Raises as ask_gateway."""
    return ask_gateway(client, "maintenance/status", timeout_s=STATUS_S)


def read_status(clients: Sequence[str]) -> list[MemberStatus]:
    """Return one row per master, asked of whichever of clients answers first.

    Blocks up to STATUS_S for those that do not answer. Raises MeshDown.
    """
    return list_status(fetch_first_members(clients).members)


def list_status(members: Iterable[Member]) -> list[MemberStatus]:
    """Return one row per master, all asked at once."""
    calls = {str(m.id): functools.partial(read_member_status, m) for m in members}
    return list(gather(calls).values())


def fetch_first_members(clients: Sequence[str], cluster: int = 0) -> MemberList:
    """Return the list from the first client that gives it, of our cluster if cluster is known.

    Raises Conflict when only another cluster answered, MeshDown with every reason otherwise.
    """
    reasons: list[str] = []
    foreign = ""
    for client in dict.fromkeys(clients):
        try:
            listing = fetch_members(client)
        except MeshDown as error:
            text = str(error)
            reasons.append(text if text.startswith(client) else f"{client}: {text}")
            continue
        if cluster in (0, listing.cluster):
            return listing
        foreign = f"{client} is of another arpanet (cluster {listing.cluster:x}, not {cluster:x})"
    if foreign:
        raise Conflict(foreign)
    raise MeshDown("no master answers at " + ", ".join(reasons))


def read_member_status(member: Member) -> MemberStatus:
    """Return the row of one master; one that does not answer has no version."""
    ip = (member.client or member.peer_url.partition("://")[2]).rpartition(":")[0]
    row = MemberStatus(member.name, ip, False, member.learner, False, "", member.id)
    if not member.client:
        return row
    try:
        status = fetch_status(member.client)
    except MeshDown:
        return row
    leader = int(status.get("leader", 0))
    return row._replace(
        answers=leader != 0,
        leader=leader == member.id,
        version=str(status.get("version", "")),
        size_bytes=int(status.get("dbSize", 0)),
        alarms=find_alarms(status, member.id),
    )


def find_alarms(status: Mapping[str, Any], member_id: int) -> tuple[str, ...]:
    """Return the alarms of one member, like NOSPACE. Source: etcd 3.4, Status of maintenance."""
    said = " ".join(map(str, status.get("errors", ())))
    return tuple(re.findall(rf"memberID:{member_id} alarm:(\w+)", said))


def make_room(place: MemberPlace, member_id: int) -> str:
    """Make room if etcd ran out of it, and return a sentence about that, "" where it did not.

    The history of the data is dropped, and what it took on disk: who watches reads all again, so
    that is safe. Only if that is enough the alarm ends, by which etcd refuses every change. Blocks
    for a minute or two at most. Raises as ask_gateway. Source: etcd 3.4, "Space quota".
    """
    client, status = place.client, fetch_status(place.client)
    if "NOSPACE" not in find_alarms(status, member_id):
        return ""
    now = {"revision": status["header"]["revision"], "physical": True}
    with contextlib.suppress(GatewayRefused):  # it is compacted already
        ask_gateway(client, "kv/compaction", now, 60)
    if int(fetch_status(client).get("dbSizeInUse", 0)) > place.quota_bytes * 0.9:
        return f"is full and refuses changes; {MORE_ROOM}"
    ask_gateway(client, "maintenance/defragment", {}, 60)
    alarm = {"action": "DEACTIVATE", "memberID": str(member_id), "alarm": "NOSPACE"}
    ask_gateway(client, "maintenance/alarm", alarm)
    return "was full; its history was dropped, and there is room again"


# ---- etcd as a child


class EtcdChild:
    """The etcd process of this machine, which dies with this one. Thread: main, all of it."""

    def __init__(self, place: MemberPlace) -> None:
        self.place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # where in the log file the running process began
        self.trusted = b""  # the authorities that it was started with
        self.born = 0.0  # an instant of time.monotonic()

    @property
    def started(self) -> bool:
        """Say whether it was started, and not stopped since; it may have died."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Return the process id of the last one that was started, 0 if none was."""
        return self._process.pid if self._process else 0

    @property
    def outdated(self) -> bool:
        """Say whether it runs with other authorities than there are now."""
        return self.started and self.trusted != trusted_now()

    def find_exit(self) -> int | None:
        """Return how it ended by itself, None while it runs or was not started."""
        return self._process.poll() if self._process else None

    def wait(self, wait_s: float) -> None:
        """Wait until it ends by itself, up to a time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process:
                self._process.wait(wait_s)

    def stop(self) -> None:
        """End it: SIGTERM, 10 s, SIGKILL."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            log.warning("etcd did not end in %d s and was killed", STOP_S)
            process.kill()
            process.wait()

    def read_log_tail(self, lines: int = 3) -> str:
        """Return the last lines that the running or last etcd logged."""
        try:
            with self.place.log_path.open("rb") as file:
                file.seek(self._log_start)
                text = file.read()[-20000:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def was_removed(self) -> bool:
        """Say whether it ended because the other masters removed it."""
        return self.find_exit() == 0 and "permanently removed" in self.read_log_tail(50)

    def describe_death(self) -> str:
        """Return why it ended, in etcd's words, and where its log is."""
        words = find_last_words(self.read_log_tail(200))
        return f"etcd ended ({self.find_exit()}): {words}; its log is {self.place.log_path}"

    def require_startable(self) -> None:
        packages = {"etcd": "etcd-server", "setpriv": "util-linux"}
        for program, package in packages.items():
            if not shutil.which(program):
                raise ArpanetError(f"{program} is not installed; try: apt-get install {package}")
        for ip, port in self._list_listeners():
            require_free_port(ip, port)

    def _list_listeners(self) -> list[tuple[str, int]]:
        place = self.place
        own = [(place.ip, place.client_port), (place.ip, place.peer_port)]
        return own if place.ip.startswith("127.") else [*own, ("127.0.0.1", place.client_port)]

    def start(
        self,
        cluster_state: str,
        initial: str,
        token: str = "arpanet",
        extra: Sequence[str] = (),
    ) -> None:
        """Start etcd. Thread: main only, for PDEATHSIG fires when the spawning thread ends.

        setpriv and not preexec_fn: with gRPC loaded, 2-6 % of such children die before exec.
        Source: grpc/grpc#43055.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("etcd must be started by the main thread")
        with disk_errors(self.place.data_dir):
            self.place.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.place.data_dir.mkdir(mode=0o700, exist_ok=True)
            output = open_log_file(str(self.place.log_path))
        with open(output, "ab") as file:
            self._log_start, self.trusted = file.tell(), trusted_now()
            self._process = subprocess.Popen(
                [*self._build_command(cluster_state, initial, token), *extra],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=clean_environment(os.environ, platform.machine()),  # noqa: TID251 (a child's)
                start_new_session=True,
            )
        self.born = time.monotonic()
        log.info("started etcd, pid %d", self._process.pid)

    def _build_command(self, cluster_state: str, initial: str, token: str) -> list[str]:
        place = self.place
        ports = [(ip, port) for ip, port in self._list_listeners() if port == place.client_port]
        clients = ",".join(f"{url_scheme()}://{ip}:{port}" for ip, port in ports)
        return [
            *("setpriv", "--pdeathsig", "KILL", "etcd"),
            *("--name", place.name, "--data-dir", str(place.data_dir)),
            *("--listen-peer-urls", place.peer_url),
            *("--initial-advertise-peer-urls", place.peer_url),
            *("--listen-client-urls", clients),
            *("--advertise-client-urls", f"{url_scheme()}://{place.client}"),
            *("--initial-cluster", initial, "--initial-cluster-state", cluster_state),
            *("--initial-cluster-token", token),
            *("--quota-backend-bytes", str(place.quota_bytes)),
            *tls_flags(),
            *ETCD_FLAGS,
        ]


# ---- joining


class Admitted(NamedTuple):
    """What a machine that is on the member list starts its etcd with, and whom it knows then."""

    cluster: int
    clients: tuple[str, ...]
    initial: str


class Admission:
    """How a machine without data gets onto the member list, as a learner, before etcd starts.

    clients: "ip:port" of masters; cluster: its id, 0 if any will do. tell is called with a
    sentence about what is waited for.
    """

    def __init__(
        self,
        place: MemberPlace,
        clients: Sequence[str],
        cluster: int,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        self._place, self._clients, self._cluster = place, tuple(clients), cluster
        self._stop, self._tell_person, self._said = stop, tell, ""
        self._unmarked_since = 0.0
        self._silent_since: dict[int, float] = {}

    def run(self, deadline: float, patience_s: float) -> Admitted | None:
        """Be added to the member list; None when stopped. Raises as EtcdMember.join."""
        patience = time.monotonic() + patience_s
        while not self._stop.is_set():
            try:
                listing = self._fetch_cluster()
            except MeshDown as error:
                if time.monotonic() > patience:
                    raise MeshDown(
                        f"{error}; check the address, or start the first one with: "
                        "arpanet master start --peers boot"
                    ) from error
                self._tell(f"{error}; trying on")
            else:
                patience = deadline
                admitted = self._step(listing)
                if admitted:
                    return admitted
            if time.monotonic() > deadline:
                raise MeshDown(f"could not join: {self._said}; try: arpanet master status")
            self._stop.wait(random.uniform(0.3, 0.8))
        return None

    def _tell(self, text: str) -> None:
        self._said = text
        self._tell_person(text)

    def _fetch_cluster(self) -> MemberList:
        try:
            return fetch_first_members(self._clients, self._cluster)
        except Conflict as error:
            path = self._place.state_path
            raise Conflict(f"{error}; to join it all the same, remove {path}") from error

    def _step(self, listing: MemberList) -> Admitted | None:
        """Do one step of joining; return what etcd is started with once that is known."""
        dead = self._find_dead_learners(listing.members)
        step = decide_join(listing.members, self._place.name, self._place.peer_url, dead)
        try:
            self._require_arpanet(listing.via)
            if step.action == "start":
                return Admitted(listing.cluster, listing.clients, step.initial)
            if step.action == "remove":
                self._tell("removing a member whose data is gone from the list")
                ask_gateway(listing.via, "cluster/member/remove", {"ID": str(step.target)})
            else:
                body = {"peerURLs": [self._place.peer_url], "isLearner": True}
                ask_gateway(listing.via, "cluster/member/add", body)
        except (GatewayDown, GatewayRefused) as error:
            # unhealthy: somebody joined just now; too many learners: somebody is joining
            self._tell(f"waiting to be let in: {error}")
        return None

    def _require_arpanet(self, client: str) -> None:
        """Raise Usage when this etcd has had no mark of ours for 3 s (a boot needs a moment)."""
        if read_mark(client):
            return
        self._unmarked_since = self._unmarked_since or time.monotonic()
        if time.monotonic() - self._unmarked_since < 3:
            raise GatewayRefused(f"{client} is not yet a master")
        raise Usage(
            f"the etcd at {client} is not of an arpanet; "
            "try: arpanet master start --peers ADDRESS, with the address of a master"
        )

    def _find_dead_learners(self, members: Sequence[Member]) -> list[int]:
        """Return the learners, not us, that have not answered for 15 s by our own watch."""
        learners = [m for m in members if m.learner and m.peer_url != self._place.peer_url]
        silent = [row.id for row in list_status(learners) if not row.answers]
        now = time.monotonic()
        self._silent_since = {id_: self._silent_since.get(id_, now) for id_ in silent}
        return [id_ for id_, since in self._silent_since.items() if now - since > LEARNER_GRACE_S]


# ---- the supervisor


class EtcdMember:
    """The etcd of this machine, and its place in the cluster. Thread: main, all of it.

    boot(), join() and resume() start it and block until it is a voter that answers, up to wait_s;
    they return whether it is, and step(), once a second, goes on from there. say is called with a
    sentence whenever what we wait for changes.
    """

    def __init__(
        self, place: MemberPlace, *, stop: threading.Event, say: Callable[[str], None]
    ) -> None:
        self.place, self.ready = place, False
        self._stop, self._say, self._said = stop, say, ""
        self.child = EtcdChild(place)
        self._state = read_state(place.state_path)
        self._restart_at = self._note_at = self._room_at = 0.0  # instants of time.monotonic()
        self._failures = 0
        self._turn = ""  # the lease of our turn at starting etcd anew

    # ---- starting

    def boot(self, wait_s: float = 30) -> bool:
        """Begin a new cluster of one; with data here, go on with that instead.

        Raises Conflict where a cluster has been whose data is gone, or a port is taken; EtcdDied;
        ArpanetError without etcd.
        """
        decision = decide_boot(self.place.has_data(), self._state)
        if decision == "resume":
            return self.resume((), wait_s)
        if decision == "refuse":
            raise Conflict(describe_lost_data(self.place, self._list_others()))
        self.child.require_startable()
        # a token of its own gives a cluster id of its own: two boots are never taken for one
        self._start("new", self.place.alone, uuid.uuid4().hex)
        return self._wait_ready(wait_s)

    def join(
        self, peers: Sequence[str], wait_s: float = 300, patience_s: float = PATIENCE_S
    ) -> bool:
        """Become a member of the cluster of any of peers ("ip" or "ip:port").

        With data here: resume. Raises MeshDown when none answers for patience_s, or it was not let
        in for wait_s; Conflict for another cluster or a port that is taken; Usage for an etcd that
        is not of an arpanet; EtcdDied. False: stopped.
        """
        if self.place.has_data():
            return self.resume(peers, wait_s)
        self.child.require_startable()
        deadline = time.monotonic() + wait_s
        clients = [*self.place.list_clients(peers), *self._list_others()]
        admission = Admission(self.place, clients, self._state.cluster, self._stop, self._tell)
        for attempt in range(4):
            admitted = admission.run(deadline, patience_s)
            if admitted is None:
                return False
            self._save(MemberState(admitted.cluster, 0, admitted.clients))
            self._start("existing", admitted.initial)
            try:
                return self._wait_ready(max(1.0, deadline - time.monotonic()))
            except EtcdDied as error:
                # two joined at once, and the list changed under our --initial-cluster
                if attempt == 3 or self.place.has_data():
                    raise
                log.warning("%s; joining again", error)
        return False

    def resume(self, peers: Sequence[str] = (), wait_s: float = 30) -> bool:
        """Start etcd on its data; without a majority of the others it waits for them.

        If they removed us meanwhile, the data is set aside and we join again. peers are only
        remembered: the data says which cluster is ours. Raises Conflict, EtcdDied, ArpanetError.
        """
        self.child.require_startable()
        require_same_cluster(self.place, self._state.cluster, self.place.list_clients(peers))
        known = dict.fromkeys([*self._state.peers, *self.place.list_clients(peers)])
        self._state = self._state._replace(peers=tuple(known))
        self._start("existing", self.place.alone)
        return self._wait_ready(wait_s)

    # ---- going on

    def step(self) -> str:
        """Do what is due and return a sentence about it, "" when nothing was.

        Starts a dead etcd again, finishes a join, notes the member list, makes room, starts etcd
        anew where other authorities are trusted now. Blocks for about 3 s; for 30 s when we were
        removed and join again, for a minute where etcd is full.
        Raises ArpanetError, and the next step tries on.
        """
        if not self.child.started:
            return ""
        if self.child.find_exit() is not None:
            return self._revive()
        if self.child.outdated:
            return self._trust_anew()
        if not self.ready:
            return "is a master now" if self._settle() else ""
        if time.monotonic() - self.child.born > 60:
            self._failures = 0
        if time.monotonic() >= self._note_at:
            self._note_at = time.monotonic() + NOTE_S
            self._note_members()
            return self._mind_room()
        return ""

    def status(self) -> list[MemberStatus]:
        """Return one row per master. Blocks up to STATUS_S for silent ones; raises MeshDown."""
        return read_status([self.place.client, *self._state.peers])

    # ---- stopping

    def stop(self) -> None:
        """End etcd, and stay a member. Blocks up to 10 s."""
        self.ready = False
        self.child.stop()

    def leave(self) -> bool:
        """Leave the cluster for good and set the data aside; say whether that was done.

        etcd need not run: it is started where the others have no quorum without it. The last
        master only stops and keeps the data; so does one whose leaving fails for 20 s.
        """
        deadline, left = time.monotonic() + LEAVE_S, ""
        while not left and time.monotonic() < deadline:
            try:
                left = self._leave_step(patient=time.monotonic() < deadline - LEAVE_S + SILENT_S)
            except (MeshDown, Conflict) as error:
                self._tell(f"leaving: {error}")
                threading.Event().wait(0.4)
        if left == "gone":
            self.child.wait(3)
        self.stop()
        if left == "gone":
            set_data_aside(self.place)
            self.place.state_path.unlink(missing_ok=True)
            self._state = MemberState()
        return left == "gone"

    # ---- private: becoming ready

    def _start(self, cluster_state: str, initial: str, token: str = "arpanet") -> None:
        self.child.start(cluster_state, initial, token)
        self._restart_at, self.ready = 0.0, False

    def _wait_ready(self, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while not self._stop.is_set() and time.monotonic() < deadline:
            if self.child.find_exit() is not None:
                if self.child.was_removed() and self._list_others():
                    return self._join_afresh(deadline - time.monotonic())
                raise EtcdDied(self.child.describe_death())
            try:
                if self._settle():
                    return True
            except Conflict:
                self.stop()
                raise
            self._stop.wait(0.2)
        return False

    def _settle(self) -> bool:
        """Note our ids, be promoted, leave the mark; say whether all that is done."""
        try:
            me = self._find_self()
            if me.learner:
                self._tell("joined as a learner, catching up")
                others = self._list_others()
                via = random.choice(others) if others else self.place.client
                ask_gateway(via, "cluster/member/promote", {"ID": str(me.id)})
                return False
            make_key(self.place.client, MARK, f"{self._state.cluster:x}/")
            end_turn(self.place.client, self._turn)
            self._turn = ""
        except MeshDown as error:
            if not self._said.startswith("joined as a learner"):
                self._tell(describe_waiting(self.place.client, self._list_others(), str(error)))
            return False
        self.ready = True
        self._tell(f"is a master of cluster {self._state.cluster:x}")
        return True

    def _find_self(self) -> Member:
        """Return our entry in the list, which proves that our own child answers on our port."""
        header = fetch_status(self.place.client)["header"]
        cluster, my_id = int(header["cluster_id"]), int(header["member_id"])
        # a learner gives no list, the others do
        listing = fetch_first_members([self.place.client, *self._list_others()], cluster)
        me = next((member for member in listing.members if member.id == my_id), None)
        if me is None or self._state.member not in (0, my_id):
            raise GatewayDown(f"what answers at {self.place.client} is not our etcd")
        if me.peer_url != self.place.peer_url:
            raise Conflict(describe_other_url(self.place, me.peer_url))
        self._save(MemberState(cluster, my_id, listing.clients))
        return me

    def _note_members(self) -> None:
        try:
            listing = fetch_members(self.place.client)
        except MeshDown as error:
            log.debug("member list: %s", error)
            return
        if listing.clients:
            self._save(self._state._replace(peers=listing.clients))

    def _mind_room(self) -> str:
        if time.monotonic() < self._room_at:
            return ""
        try:
            said = make_room(self.place, self._state.member)
        except MeshDown as error:
            log.debug("room: %s", error)
            return ""
        self._room_at = time.monotonic() + (ROOM_S if said else 0)
        return said

    # ---- private: dying, coming back, leaving

    def _trust_anew(self) -> str:
        turn = ask_for_turn(self.place.client, self.status)
        if turn.mine:
            self.child.stop()
            self._start("existing", self.place.alone)
            self._turn = turn.lease
        return turn.said

    def _revive(self) -> str:
        if self.child.was_removed() and self._list_others():
            joined = self._join_afresh(30)
            return "was removed by the other masters, and joined again" if joined else ""
        if not self._restart_at:
            self.ready = False
            self._restart_at = time.monotonic() + find_backoff_s(self._failures)
            self._failures += 1
            return f"{self.child.describe_death()}; starting it again"
        if time.monotonic() >= self._restart_at:
            self.child.require_startable()
            self._start("existing", self.place.alone)
        return ""

    def _join_afresh(self, wait_s: float) -> bool:
        self._tell("the other masters removed this one; joining again with empty data")
        peers = self._list_others()
        set_data_aside(self.place)
        self._save(self._state._replace(member=0))
        return self.join(peers, wait_s)

    def _leave_step(self, patient: bool) -> str:
        """Do one step of leaving; return "gone" or "last" at the end. patient: none is dead yet."""
        listing = fetch_first_members(
            [self.place.client, *self._list_others()], self._state.cluster
        )
        others = [m for m in listing.members if m.id != self._state.member and m.client]
        answering = [row.id for row in list_status(others) if row.answers]
        if self.child.started and self.child.find_exit() is None:
            answering.append(self._state.member)
        leader = int(fetch_status(listing.via).get("leader", 0))
        step = decide_leave(listing.members, self._state.member, answering, leader)
        clients = {member.id: member.client for member in others}
        # whom to ask once our own etcd has ended
        self._save(self._state._replace(peers=(self.place.client, *clients.values())))
        if step.action == "start":
            self._tell("starting etcd once more: without it the others have no majority")
            self.resume(wait_s=5)
        elif step.action == "remove-dead" and patient:
            raise MeshDown("too few of the others answer")
        elif step.action == "remove-dead":
            self._tell("removing a dead master first, so that the others keep a majority")
            ask_gateway(listing.via, "cluster/member/remove", {"ID": str(step.target)})
        elif step.action == "transfer":
            body = {"targetID": str(step.target)}
            ask_gateway(self.place.client, "maintenance/transfer-leadership", body)
        elif step.action == "remove-self":
            body = {"ID": str(self._state.member)}
            ask_gateway(clients[step.target], "cluster/member/remove", body)
        return step.action if step.action in ("gone", "last") else ""

    # ---- private: words and notes

    def _list_others(self) -> list[str]:
        return self.place.list_clients(self._state.peers)

    def _save(self, state: MemberState) -> None:
        # etcd lists members by their random ids; sorted, the file changes only when they do
        state = state._replace(peers=tuple(sorted(state.peers)))
        if state != read_state(self.place.state_path):
            write_state(self.place.state_path, state)
        self._state = state

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


def require_same_cluster(place: MemberPlace, cluster: int, clients: Sequence[str]) -> None:
    """Raise Conflict where masters that are to be joined are not of the cluster of the data here.

    cluster: 0 if it is not known.
    """
    for client in clients:
        with contextlib.suppress(MeshDown):
            if fetch_members(client).cluster != cluster and cluster:
                raise Conflict(
                    f"{client} is of another arpanet than the data here, or was recovered from a "
                    f"backup since; to join it all the same, remove {place.data_dir} and "
                    f"{place.state_path}"
                )


def describe_waiting(client: str, others: Sequence[str], reason: str) -> str:
    """Return what the master at client waits for, when asking it failed for a reason."""
    silent = [other.rpartition(":")[0] for other in others if not is_open(other)]
    if silent:
        return f"waiting for {', '.join(silent)} to answer"
    return "waiting for etcd on this machine" + ("" if reason.startswith(client) else f": {reason}")


def describe_other_url(place: MemberPlace, url: str) -> str:
    """Return what is said where the data here is of a member with another URL for its peers."""
    if url.partition("://")[0] == url_scheme():
        return (
            f"the data in {place.data_dir} is of the master {url}, and this is "
            f"{place.peer_url}; try: ARPANET_IP with the former address"
        )
    kind, other = ("without", "with") if identity() else ("with", "without")
    return (
        f"the data in {place.data_dir} is of an arpanet {kind} TLS; to go on {other}: stop all "
        "masters; on one: arpanet master recover, arpanet master start; on the others: remove "
        f"{place.data_dir} and {place.state_path}, then arpanet master start --peers IP"
    )


def describe_lost_data(place: MemberPlace, others: Sequence[str]) -> str:
    """Return what is said where a cluster has been, with these others, whose data is gone."""
    path = place.state_path
    if others:
        ips = [client.rpartition(":")[0] for client in others]
        return (
            f"this machine belonged to the arpanet of {', '.join(ips)}, and its data is "
            f"gone; try: arpanet master start --peers {ips[0]} (or remove {path} to begin "
            "a new, empty one)"
        )
    return (
        f"this machine had an arpanet of its own, and its data ({place.data_dir}) is "
        f"gone; restore it, or remove {path} to begin a new, empty one"
    )


def set_data_aside(place: MemberPlace) -> None:
    """Keep the last data as etcd.old: a removal by mistake can then be undone by hand."""
    shutil.rmtree(place.old_dir, ignore_errors=True)
    if place.data_dir.exists():
        with disk_errors(place.old_dir):
            place.data_dir.rename(place.old_dir)


def is_open(client: str, timeout_s: float = 0.5) -> bool:
    """Say whether anything accepts a connection at client ("ip:port")."""
    ip, _, port = client.rpartition(":")
    try:
        dial((ip, int(port)), timeout_s).close()
    except OSError:
        return False
    return True


def read_state(path: Path) -> MemberState:
    """Return what the state file says; an absent one says nothing. Raises Conflict if damaged."""
    try:
        value = json.loads(path.read_text())
        return MemberState(int(value["cluster"]), int(value["member"]), tuple(value["peers"]))
    except FileNotFoundError:
        return MemberState()
    except (ValueError, KeyError, TypeError) as error:
        raise Conflict(
            f"{path} is damaged ({error}); try: remove it, then --peers ADDRESS"
        ) from error


def write_state(path: Path, state: MemberState) -> None:
    """Replace the state file, so that a power cut leaves the old or the new one whole.

    Raises Unavailable where the disk does not take it.
    """
    with disk_errors(path):
        write_file(str(path), json.dumps(state._asdict()).encode())
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


# ---- what a person does to the list and the data


def remove_member(client: str, member_id: int) -> None:
    """Take a dead member off the list; returns when that is done. Raises MeshDown after 20 s."""
    deadline = time.monotonic() + LEAVE_S
    while any(member.id == member_id for member in fetch_members(client).members):
        try:
            ask_gateway(client, "cluster/member/remove", {"ID": str(member_id)})
        except MeshDown:  # the list is in flux, or the answer was lost: look again
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.4)


def has_leader(client: str) -> bool:
    """Say whether the etcd at client answers and is of a majority."""
    try:
        return int(fetch_status(client).get("leader", 0)) != 0
    except MeshDown:
        return False


def run_etcdctl(*words: str) -> str:
    """Return what etcdctl prints. Raises ArpanetError with what it said when it failed."""
    environment = clean_environment(os.environ, platform.machine())  # noqa: TID251 (a child's)
    try:
        done = subprocess.run(
            ["etcdctl", *words],
            env={**environment, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise ArpanetError("etcdctl is not installed; try: apt-get install etcd-client") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ArpanetError(f"etcdctl {' '.join(words[:2])} failed: {' / '.join(lines[-1:])}")
    return done.stdout


def save_snapshot(client: str, path: str) -> Mapping[str, Any]:
    """Write what the etcd at client has to a new file, whole and on disk; return its figures."""
    own, files = identity(), list[str]()
    if own:
        files = [f"--{flag}={getattr(own.paths, flag)}" for flag in ("cert", "key")]
        files.append(f"--cacert={own.paths.ca}")
    endpoint = f"--endpoints={url_scheme()}://{client}"
    run_etcdctl("snapshot", "save", path, endpoint, *files)
    figures: dict[str, Any] = json.loads(run_etcdctl("snapshot", "status", path, "-w", "json"))
    return figures


def restore_snapshot(place: MemberPlace, path: str) -> None:
    """Put the data of a snapshot here, as that of a cluster of this machine alone."""
    new = place.data_dir.with_name("etcd.new")
    shutil.rmtree(new, ignore_errors=True)
    run_etcdctl(
        *("snapshot", "restore", path, "--name", place.name, "--data-dir", str(new)),
        *("--initial-cluster", place.alone, "--initial-advertise-peer-urls", place.peer_url),
        *("--initial-cluster-token", uuid.uuid4().hex),
    )
    set_data_aside(place)
    new.rename(place.data_dir)


def recover_member(place: MemberPlace, snapshot: str) -> None:
    """Make a snapshot, or the data here, that of a cluster of this machine alone.

    What was here before is kept as etcd.old, and put back when it does not work. etcd runs once
    for that and is stopped again. Thread: main. Raises ArpanetError.
    Source: etcd 3.4, "Disaster recovery"; --force-new-cluster keeps the data and drops the others.
    """
    child = EtcdChild(place)
    child.require_startable()
    if snapshot:
        restore_snapshot(place, snapshot)
    else:
        kept = place.data_dir.with_name("etcd.new")
        shutil.rmtree(kept, ignore_errors=True)
        try:
            shutil.copytree(place.data_dir, kept)
            shutil.rmtree(place.old_dir, ignore_errors=True)  # not before there is another copy
            kept.rename(place.old_dir)
        except (OSError, shutil.Error) as error:
            raise Unavailable(
                f"cannot keep a copy of {place.data_dir}, and so did nothing: {error.args[-1]}"
            ) from error
    try:
        child.start("existing", place.alone, extra=() if snapshot else ("--force-new-cluster",))
        wait_alone(child)
    except ArpanetError:
        child.stop()
        shutil.rmtree(place.data_dir)
        if place.old_dir.exists():
            place.old_dir.rename(place.data_dir)
        raise
    child.stop()
    place.state_path.unlink(missing_ok=True)  # whom to ask is known anew with the next start


def wait_alone(child: EtcdChild) -> None:
    """Wait until etcd is the only member, and note the recovery in it.

    Raises EtcdDied, MeshDown; Conflict where it is not an arpanet's.
    """
    client, deadline = child.place.client, time.monotonic() + ALONE_S
    while True:
        if child.find_exit() is not None:
            raise EtcdDied(child.describe_death())
        try:
            mark, members = read_mark(client), fetch_members(client).members
            if not mark or len(members) != 1:
                raise Conflict("this is not the data of an arpanet; nothing was changed")
            if members[0].peer_url != child.place.peer_url:  # it had no TLS then, say
                moved = {"ID": str(members[0].id), "peerURLs": [child.place.peer_url]}
                ask_gateway(client, "cluster/member/update", moved)
            # another word in the mark: all begin anew who saw what may be undone now
            value = f"{mark.partition('/')[0]}/{uuid.uuid4().hex}"
            ask_gateway(client, "kv/put", {"key": encode_text(MARK), "value": encode_text(value)})
            return
        except MeshDown:
            if time.monotonic() > deadline:
                raise
        threading.Event().wait(0.2)


# ==== Doctor =================================================================
# What arpanet doctor looks at. Masters and slaves tell facts of themselves; the
# checks are pure, each a list of faults or one sentence that all is well.

DIAL_S = 2.0
ENGINE_S = 4.0  # after which an engine that does not answer counts as hung
LEAST_FREE_BYTES = 500_000_000
MOST_SKEW_S = 3.0
RENEW_DAYS = 30


class Finding(NamedTuple):
    """One line of arpanet doctor."""

    well: bool
    text: str
    cure: str = ""


class Doubts(NamedTuple):
    """What the machine where doctor is typed is for, and what hinders it."""

    running: Mapping[str, int]  # role: process
    idle: tuple[str, ...]  # roles that this machine has, and that do not run
    faults: tuple[str, ...]  # what a start would be told


Facts = Mapping[str, Any]  # what a member says of itself; {"error": why} when it does not answer


def dial_all(addresses: Iterable[HostPort], timeout_s: float = DIAL_S) -> dict[HostPort, str]:
    """Return why each address accepts no connection, "" if it does; all are tried at once."""
    found = {address: "timed out" for address in addresses}
    waiting: dict[int, tuple[socket.socket, HostPort]] = {}
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        for address in found:
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            error = sock.connect_ex(address)
            if error in (0, errno.EINPROGRESS):
                waiting[sock.fileno()] = sock, address
                poll.register(sock, select.POLLOUT)
            else:
                found[address] = os.strerror(error)
        deadline = time.monotonic() + timeout_s
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                sock, address = waiting.pop(fd)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found[address] = os.strerror(error) if error else ""
    return found


def list_doors(view: View, settings: Settings, role: str) -> dict[HostPort, str]:
    """Return where a master or slave must get in at the living members, and what is there."""
    etcd_ports = [settings.etcd_port, *([settings.etcd_peer_port] if role == "master" else [])]
    doors = {
        HostPort(m.ip, port): f"etcd of master {m.name}"
        for m in view.masters.values()
        for port in etcd_ports
    }
    return doors | {h.agent: f"the slave of {h.name}" for h in view.living_hosts()}


def require_own_certificate(settings: Settings) -> Mapping[str, Any]:
    """Return this machine's certificate, {} in the clear. Raises Usage when others refuse it."""
    own = identity()
    if own is None:
        return {}
    cert: Mapping[str, Any] = {}
    try:
        cert = own.show(settings.ip)
        why = "" if read_peer(cert).machine else "it is one of a client"
        if not why and settings.hostname not in read_peer(cert).names:
            why = f"it is not for {settings.hostname}"
    except OSError as e:
        why = (getattr(e, "verify_message", "") or str(e)).rstrip(".")
    if why:
        command = f"arpanet ca issue --host {settings.hostname} --ip {settings.ip}"
        raise Usage(f"{own.paths.cert} is no certificate of this machine: {why}; try: {command}")
    return cert


def require_machine() -> None:
    """Raise Usage when the certificate of this process opens no etcd, for it is a client's."""
    own = identity()
    if own is None:
        return
    try:
        own.show(MACHINE)
    except OSError as e:
        told = f"{own.paths.cert} is no certificate of a machine"
        raise Usage(f"{told}, which this takes; type it where a master or slave is") from e


def complain_of_certificate(settings: Settings, now: datetime.datetime) -> str:
    """Return what is wrong with this machine's certificate, or soon will be; "" for nothing."""
    own = identity()
    if own is None:
        return ""
    try:
        cert = require_own_certificate(settings)
    except Usage as e:
        return str(e)
    left = email.utils.parsedate_to_datetime(cert["notAfter"]) - now
    if left.days < RENEW_DAYS:
        return f"{own.paths.cert} is good for {left.days} days only"
    if not own.fault and os.stat(own.paths.key).st_mode & 0o077:
        return f"{own.paths.key} can be read by others than its owner"
    return own.fault


def describe_trust(authorities: bytes) -> dict[str, str]:
    """Return the fact which authorities are trusted, none without TLS."""
    return {"trust": hashlib.sha256(authorities).hexdigest()[:12]} if authorities else {}


def own_facts(view: View, settings: Settings, role: str) -> dict[str, Any]:
    """Return what a master or slave says of itself to doctor. Blocks for DIAL_S at most."""
    doors, now = list_doors(view, settings, role), utc_now()
    shut = {f"{doors[a]} ({a})": why for a, why in dial_all(doors).items() if why}
    return {
        "version": __version__,
        "shut": shut,
        "free_bytes": shutil.disk_usage(settings.state_dir).free,
        "state_dir": settings.state_dir,
        "link_subnet": settings.link_subnet,
        **describe_trust(trusted_now()),
        "certificate": complain_of_certificate(settings, now),
        "clock_s": now.timestamp(),
    }


FACTS_SHAPE = {  # of what own_facts() returns, and slaves and masters beside it
    **dict.fromkeys(("version", "state_dir", "link_subnet"), str),
    **dict.fromkeys(("trust", "certificate", "engine", "route"), Maybe(str)),
    "shut": STRINGS,
    "free_bytes": int,
    "clock_s": float,
}
REPORT_SHAPE = {  # of master status
    "arpanet": str,
    "masters": [
        {
            **dict.fromkeys(("name", "ip", "id", "version", "etcd"), str),
            **dict.fromkeys(("leader", "learner", "answers"), bool),
            "alarms": [str],
            "size_bytes": int,
        }
    ],
    "hosts": [
        {
            **dict.fromkeys(("name", "ip", "trouble", "version", "engine"), str),
            **dict.fromkeys(("containers", "running"), int),
            "alive": bool,
        }
    ],
    "conflicts": [str],
}
MASTER_SHAPE = {**FACTS_SHAPE, **REPORT_SHAPE, "clashes": {str: [str]}}


def ask_facts(
    address: HostPort, path: str, name: str = "", shape: Mapping[str, Any] = FACTS_SHAPE
) -> dict[str, Any]:
    """Return a member's facts, with how far its clock is ahead of ours. Raises as http_json()."""
    facts = http_json(address, "GET", path, 3 * DIAL_S, name=name)
    if not fits(facts, shape):
        raise OSError(f"{address} is no member of an arpanet of this version")
    return {**facts, "skew_s": facts["clock_s"] - utc_now().timestamp()}


def gather_facts(calls: Mapping[str, Callable[[], Facts]]) -> dict[str, Facts]:
    """Return the facts of each member that is asked, or why it does not answer."""
    found = gather(calls)
    for name, answer in found.items():
        if isinstance(answer, OSError):
            found[name] = {"error": find_reason(answer)}
        elif isinstance(answer, Exception):
            found[name] = {"error": str(answer)}
    return found


def ask_host_facts(view: View) -> dict[str, Facts]:
    """Return the facts of each living host, or why it does not answer."""
    return gather_facts(
        {
            h.name: functools.partial(ask_facts, h.agent, "/doctor", h.name)
            for h in view.living_hosts()
        }
    )


def ask_engine(path: str) -> str:
    """Return why this machine's engine does not answer, "" if it does.

    One that is silent is asked twice: a busy machine has moments. Source: Docker Engine API 1.40,
    HEAD /_ping; /version starts a program each time.
    """
    for _ in range(2):
        try:
            http_json(path, "HEAD", "/_ping", ENGINE_S)
        except TimeoutError as e:
            trouble = f"no Docker Engine answers at {path}: {e}"
        except (OSError, ArpanetError) as e:
            return f"no Docker Engine answers at {path}: {e}"
        else:
            return ""
    return trouble


def find_clashes(view: View) -> dict[str, list[str]]:
    """Return each container name that is on several hosts, with these hosts."""
    where = collections.defaultdict(list)
    for container in view.containers.values():
        where[container.name].append(container.host)
    return {name: sorted(hosts) for name, hosts in sorted(where.items()) if len(hosts) > 1}


def judge(faults: Iterable[tuple[str, str]], well: str) -> list[Finding]:
    """Return a finding for each fault, told with its cure, or that all is well."""
    return [Finding(False, *fault) for fault in faults] or [Finding(True, well)]


def check_here(here: Doubts) -> list[Finding]:
    """Judge the machine where doctor is typed."""
    runs = [f"the {role} runs as process {pid}" for role, pid in here.running.items()]
    well = f"on this machine {' and '.join(runs) or 'no master and no slave is to run'}"
    cure = "start it: systemctl start arpanet-{0}, or: arpanet {0} start"
    idle = [(f"the {role} of this machine does not run", cure.format(role)) for role in here.idle]
    return judge([*idle, *((fault, "") for fault in here.faults)], well)


def check_masters(masters: Sequence[Facts]) -> list[Finding]:
    """Judge the rows of master status: who answers, and whether that is a majority."""
    masters = sorted(masters, key=lambda m: str(m["name"]))
    voters = [m for m in masters if not m["learner"]]
    well = [m["name"] for m in voters if m["answers"]]
    count = f"{len(well)} of {len(voters)} masters answer"
    cure = "on it: arpanet master start"
    down = [m for m in masters if not m["answers"]]
    faults = [(f"master {m['name'] or '?'} ({m['ip']}) is down", cure) for m in down]
    if len(well) * 2 <= len(voters):
        told = f"{count}: no majority, nothing can be changed"
        faults.insert(0, (told, "start those that are down"))
    return judge(faults, f"{count}: {', '.join(well)}")


def check_hosts(hosts: Sequence[Facts]) -> list[Finding]:
    """Judge the rows of hosts in master status."""
    if not hosts:
        return [Finding(False, "there is no Docker host", "on each one: arpanet slave start")]
    down = [f"host {h['name']} ({h['ip']}) is down" for h in hosts if not h["alive"]]
    well = f"{len(hosts)} hosts are up: {', '.join(h['name'] for h in hosts)}"
    return judge([(told, "on it: arpanet slave start") for told in down], well)


def check_reach(facts: Mapping[str, Facts]) -> list[Finding]:
    """Judge who reaches whom."""
    silent = [f"{who} does not answer: {f['error']}" for who, f in facts.items() if "error" in f]
    shut = [
        f"{who} does not reach {door}: {why}"
        for who, f in facts.items()
        for door, why in f.get("shut", {}).items()
    ]
    faults = [(told, "look for a firewall between them") for told in (*silent, *shut)]
    return judge(faults, "all masters and slaves reach each other")


SAME = (  # facts that must be the same everywhere
    ("version", "the version of arpanet", "install the newest one on all"),
    ("link_subnet", "the links' network", "set ARPANET_LINK_SUBNET alike"),
    (
        "trust",
        "the list of trusted authorities",
        "put the same ca.pem on all; the masters take it one after the other",
    ),
)


def check_same(facts: Mapping[str, Facts], field: str, what: str, cure: str) -> list[Finding]:
    """Judge a fact that must be the same everywhere."""
    who = collections.defaultdict(list)
    for name, one in facts.items():
        if field in one:
            who[one[field]].append(name)
    if len(who) < 2:
        return [Finding(True, f"{what} is {value} everywhere") for value in who]
    told = "; ".join(f"{value} on {', '.join(names)}" for value, names in sorted(who.items()))
    return [Finding(False, f"{what} differs: {told}", cure)]


def check_clocks(facts: Mapping[str, Facts]) -> list[Finding]:
    """Judge the clocks by the one in the middle: times of events and logs are compared."""
    skews = {who: f["skew_s"] for who, f in facts.items() if "skew_s" in f}
    middle = sorted(skews.values())[len(skews) // 2] if skews else 0.0
    off = {who: skew - middle for who, skew in skews.items() if abs(skew - middle) > MOST_SKEW_S}
    told = [
        f"the clock of {who} is {abs(s):.0f} s {'ahead of' if s > 0 else 'behind'} the others"
        for who, s in off.items()
    ]
    return judge([(words, "on it: timedatectl set-ntp true") for words in told], "the clocks agree")


def check_disks(facts: Mapping[str, Facts]) -> list[Finding]:
    """Judge the room for what is kept: etcd stops on a full disk."""
    free = {who: f["free_bytes"] for who, f in facts.items() if "free_bytes" in f}
    faults = [
        (f"{who} has {bytes_ // 10**6} MB free in {facts[who]['state_dir']}", "make room")
        for who, bytes_ in free.items()
        if bytes_ < LEAST_FREE_BYTES
    ]
    least = min(free.values(), default=0) // 10**9
    return judge(faults, f"there is room on the disks: {least} GB or more")


def check_complaints(facts: Mapping[str, Facts]) -> list[Finding]:
    """Judge what members say of engines, of the route for links, and of their certificates."""
    faults = [
        (f"{who}: {f[field]}", cure)
        for field, cure in COMPLAINTS.items()
        for who, f in facts.items()
        if f.get(field)
    ]
    return judge(faults, "the engines answer, and the links' network is routed")


COMPLAINTS = {
    "engine": "on it: systemctl start docker",
    "route": "on it: arpanet slave stop; arpanet slave start",
    "certificate": "see: arpanet help tls",
}


def check_names(clashes: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Judge the names of containers: one that was made without arpanet may be there twice."""
    cure = "remove or rename one: docker rename {}@{} NEWNAME"
    faults = [
        (f"the name {name} is on {', '.join(hosts)}", cure.format(name, hosts[-1]))
        for name, hosts in clashes.items()
    ]
    return judge(faults, "no container's name is there twice")


def check_network(report: Facts, facts: Mapping[str, Facts]) -> list[Finding]:
    """Judge an arpanet by a master's report and by what each member says."""
    everyone = {**facts, "this command": {"version": __version__}}
    return [
        *check_masters(report["masters"]),
        *check_hosts(report["hosts"]),
        *check_reach(facts),
        *(finding for row in SAME for finding in check_same(everyone, *row)),
        *check_complaints(facts),
        *check_clocks(facts),
        *check_disks(facts),
        *check_names(report["clashes"]),
    ]


# ==== Supervisors ============================================================
# What a daemon does while it runs. A Slave is the truth's scribe for one host: it
# alone writes containers/HOST. A Master keeps etcd, its lease, and the Docker API.


class Daemon(Protocol):
    """What run_daemon() drives, all in the main thread."""

    def start(self) -> str:
        """Begin; return the sentence that says what is ready. Raises ArpanetError."""

    def step(self) -> None:
        """Do what is due; called about once a second."""

    def close(self) -> None:
        """End all that was begun."""


Say = Callable[[str], None]  # tells the person who waits what is waited for
STEP_S = 1.0
PUBLISHERS = 4
EVENT_S = 0.03  # that an event's news waits for a master who asks for them
PUBLISH_ON = frozenset((
    "create", "start", "die", "pause", "unpause", "rename", "update", "destroy", "restart", "oom",
    "health_status",
))  # fmt: skip


class Published(NamedTuple):
    """What the mesh last got from us about a container."""

    record: bytes
    name: str
    revision: int


def wait_published(asked: futures.Future[int], timeout_s: float, host: str) -> int:
    """Return the revision at which the mesh has a container. Raises EngineDown, MeshDown."""
    try:
        return asked.result(timeout=timeout_s)
    except futures.TimeoutError as e:
        raise EngineDown(f"the engine of {host} is slow to answer") from e


class Publisher:
    """Writes a host's containers to the mesh; the news of one container stay in order.

    Threads publish-N share the containers by id; each id is always with the same one. A master
    that changes a container asks for it right after, so what an event tells waits EVENT_S: one
    look at the engine serves both.
    """

    def __init__(self, node: Node, engine: Any, stop: threading.Event) -> None:
        self._node, self._engine, self._stop = node, engine, stop
        self._host = node.settings.hostname
        self._own: dict[str, Published] = {}  # each id is touched by its own thread alone
        self._gone: Recent[int] = Recent()  # id: revision since which the mesh has nothing of it
        self._waiting: dict[str, futures.Future[int]] = {}
        self._lock = threading.Lock()  # guards _waiting
        self._queues: list[queue.SimpleQueue[tuple[str, float]]] = [
            queue.SimpleQueue() for _ in range(PUBLISHERS)
        ]
        self.behind = threading.Event()  # set when something could not be written

    def start(self) -> None:
        for number, ids in enumerate(self._queues):
            spawn(f"publish-{number}", functools.partial(self._work, ids), self._stop)

    def ask(self, container_id: str) -> futures.Future[int]:
        """Return the revision, to come, at which the mesh has the container as it is now."""
        with self._lock:
            known = self._waiting.get(container_id)
            if known:
                return known
            asked = self._waiting[container_id] = futures.Future()
        self._queue_of(container_id).put((container_id, 0.0))
        return asked

    def note(self, container_id: str) -> None:
        """Have a container written soon, unless somebody asks for it before."""
        self._queue_of(container_id).put((container_id, time.monotonic() + EVENT_S))

    def _queue_of(self, container_id: str) -> queue.SimpleQueue[tuple[str, float]]:
        return self._queues[hash(container_id) % PUBLISHERS]

    def forget_all(self) -> None:
        """Write all anew at the next publish_all(): what was written is gone."""
        self._own = {}

    def publish_all(self) -> None:
        """Bring the mesh up to date with the engine's containers. Raises EngineDown, MeshDown."""
        view, self._gone = self._node.sync_view(), Recent()  # an engine's disk may be an older one
        ids = {c["Id"] for c in list_engine(self._engine)}
        ids |= {c.id for c in view.containers.values() if c.host == self._host}
        ids |= {e.id for e in view.names.values() if e.host == self._host and e.id}
        for asked in [self.ask(i) for i in sorted(ids)]:
            wait_published(asked, 60.0, self._host)

    def _work(self, ids: queue.SimpleQueue[tuple[str, float]]) -> None:
        due: dict[str, float] = {}  # each noted container, and when its time comes
        while not self._stop.is_set():
            now = time.monotonic()
            for container_id in [i for i, when in due.items() if when <= now]:
                del due[container_id]
                self._answer(container_id)
            with contextlib.suppress(queue.Empty):
                wait_s = min((when - now for when in due.values()), default=STEP_S)
                container_id, when = ids.get(timeout=max(wait_s, 0.0))
                due[container_id] = min(when, due.get(container_id, when))

    def _answer(self, container_id: str) -> None:
        with self._lock:
            asked = self._waiting.pop(container_id, None) or futures.Future()
        try:
            asked.set_result(self._publish(container_id))
        except ArpanetError as e:
            self.behind.set()
            asked.set_exception(e)
            log.warning("could not publish container %s: %s", container_id[:12], e)

    def _publish(self, container_id: str) -> int:
        chore = self._node.view.chores.get(f"{self._host}/{container_id}")
        if chore and chore.verb == "remove":  # another has taken its place
            return self._forget(container_id)
        gone = self._gone.get(container_id) or 0  # an id is never given again
        found = None if gone else inspect_engine(self._engine, container_id)
        if found is None:
            gone = self._forget(container_id, gone)
            self._gone.put(container_id, gone)
            return gone
        record = dump_json(found)
        own = self._own.get(container_id)
        naming = self._naming(container_of(self._host, container_id, found))
        if own and own.record == record and not naming:
            return own.revision
        name, mesh = found["name"], self._node.mesh
        row = Put(key_of("containers", self._host, container_id), record)
        revision = mesh.commit([naming[0]], [naming[1], row]) if naming else None
        revision = revision or mesh.write(row.key, row.value)  # somebody else may have the name
        self._own[container_id] = Published(record, name, revision)
        if own and own.name != name:
            revision = max(revision, self._remove([own.name], container_id, []))
        return revision

    def _forget(self, container_id: str, since: int = 0) -> int:
        """Take a container that is gone out of the mesh, and let its name go.

        since: the revision at which that was done before, if it was; there may be a new name.
        """
        view = self._node.wait_view(since)
        known = self._own.get(container_id) or view.containers.get(container_id)
        names = {n for n, e in view.names.items() if e.id == container_id and e.host == self._host}
        rows = [key_of("containers", self._host, container_id)] if known or not since else []
        if container_id in view.recipes:
            rows.append(key_of("recipes", container_id))
        if container_id in view.declared:
            rows.append(key_of("declared", container_id))
        if not (names or rows):
            return since
        revision = self._remove(names | ({known.name} if known else set()), container_id, rows)
        self._own.pop(container_id, None)
        return revision

    def _remove(self, names: Iterable[str], container_id: str, rows: Sequence[str]) -> int:
        """Delete rows, and those of the names that are the container's; return the revision."""
        mesh, holder = self._node.mesh, NameEntry(self._host, container_id)
        while True:
            found = [mesh.read(key_of("names", name)) for name in names]
            held = [e for e in found if e and holder_of(e.value) == holder]
            checks = [Check(e.key, mod_revision=e.mod_revision) for e in held]
            revision = mesh.commit(checks, [], [*rows, *(e.key for e in held)])
            if revision is not None:
                return revision

    def _naming(self, container: Container) -> tuple[Check, Put] | None:
        """Return what makes the name the container's; None when it is, or is rightly another's."""
        view, name = self._node.view, container.name
        known = view.names.get(name)
        if known and (known.host, known.id) == (self._host, container.id):
            return None
        key = key_of("names", name)
        entry = self._node.mesh.read(key)
        holder = holder_of(entry.value) if entry else None
        if not deserves_name(view, container, holder):
            return None
        check = Check(key, mod_revision=entry.mod_revision if entry else 0)
        return check, Put(key, name_row(self._host, container.id, container.needs))


class ImageNews(NamedTuple):
    """Why this host's images are looked at."""

    name: str = ""  # as image_name() has it: an event says that it was given to
    id: str = ""
    late: bool = False  # nobody listened for a while
    asked: futures.Future[int] | None = None  # gets the revision at which the mesh has all names


def image_news(action: str, actor: Mapping[str, Any]) -> ImageNews:
    """Return what an event about an image tells."""
    name = (actor.get("Attributes") or {}).get("name") or ""
    return ImageNews(image_name(name), actor["ID"]) if name and action == "tag" else ImageNews()


IMAGES_S = 5.0  # that a removed name waits, and what arpanet brought is no news for


class ImageNames:
    """Tells the mesh which names were given to images on this host's engine.

    It compares what the engine has with what it had, so that it does not matter which action gave
    a name, or whether anybody heard of it; what is here when it first looks is no news, nor is what
    arpanet itself brings here. Thread "images" does all of it.
    """

    def __init__(self, node: Node, engine: Any, stop: threading.Event) -> None:
        self._node, self._engine, self._stop = node, engine, stop
        self._path = os.path.join(node.settings.state_dir, "images.json")
        self._news: queue.SimpleQueue[ImageNews] = queue.SimpleQueue()
        self._brought: Recent[tuple[str, float]] = Recent(1000)  # name: its id, until when
        self._told: dict[str, str] | None = None  # name: id, as the mesh knows
        self._gone: dict[str, float] = {}  # name that was removed: when others are asked for it

    def start(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._told = dict(json.loads(read_file(self._path)))
        self.note(ImageNews(late=True))
        spawn("images", self._work, self._stop)

    def note(self, news: ImageNews) -> None:
        """Look at the images soon."""
        self._news.put(news)

    def expect(self, name: str, image_id: str) -> None:
        """Take it for no news when an image comes, which arpanet is about to bring here."""
        self._brought.put(name, (image_id, float("inf")))

    def _work(self) -> None:
        behind: list[ImageNews] = []  # what the mesh was not told in time
        while not self._stop.is_set():
            news = [*behind, *take_all(self._news, STEP_S)]
            behind = []
            asked = [one.asked for one in news if one.asked]
            try:
                revision = self._look(news) if news else 0
                self._forget()
            except ArpanetError as e:
                log.warning("could not tell what images this host has: %s", e)
                behind = [ImageNews(late=True)]
                for future in asked:
                    future.set_exception(e)
            else:
                for future in asked:
                    future.set_result(revision)

    def _look(self, news: Sequence[ImageNews]) -> int:
        """Tell what names were given; return the revision. Raises EngineDown, MeshDown."""
        view, here = self._node.sync_view(), names_here(self._engine)
        told = here if self._told is None else self._told
        late = any(one.late for one in news)
        tagged = {(one.name, one.id) for one in news}
        revision = view.revision
        for name, image_id in here.items():
            if told.get(name) == image_id and (name, image_id) not in tagged:
                continue
            if self._is_news(view, name, image_id, late=late):
                row = new_meaning(image_id)
                revision = max(revision, self._node.mesh.write(key_of("images", name), row))
        due = time.monotonic() + IMAGES_S
        self._gone.update(dict.fromkeys(told.keys() - here.keys(), due))
        if here != self._told:
            with contextlib.suppress(OSError):  # a full disk: it is looked at anew next time
                write_file(self._path, dump_json(here))
        self._told = here
        return revision

    def _is_news(self, view: View, name: str, image_id: str, *, late: bool) -> bool:
        """Return whether the name means this image on all hosts from now on.

        late: it may have been given before the name was given elsewhere. Raises EngineDown.
        """
        brought, until = self._brought.get(name) or ("", 0.0)
        if brought == image_id and time.monotonic() < until:
            self._brought.put(name, (image_id, min(until, time.monotonic() + IMAGES_S)))
            return False
        entry = view.images.get(name)
        if entry is None or entry.id == image_id or not late:
            return entry is None or entry.id != image_id
        here, there = tagged_at(self._engine, image_id), parse_time(entry.given)
        return bool(here and (there is None or here > there))

    def _forget(self) -> None:
        """Delete the rows of names that were removed here and are on no living host any more."""
        now = time.monotonic()
        due = {name for name, when in self._gone.items() if when <= now}
        if not due:
            return
        view = self._node.sync_view()
        rows = {name: view.images[name] for name in due & view.images.keys()}
        answers = ask_hosts(view, "GET", "/images/json") if rows else {}
        kept = {
            image_name(tag)
            for listed in good_answers(answers).values()
            for image in listed
            for tag in image.get("RepoTags") or ()
        }
        for name in rows.keys() - kept if len(good_answers(answers)) == len(answers) else ():
            self._node.mesh.delete(key_of("images", name), value=image_row(rows[name]))
        for name in due:
            del self._gone[name]


def connect_engine(path: str) -> Any:
    """Return a docker.APIClient for this machine's engine. Raises EngineDown with what to do."""
    import docker

    try:
        engine = docker.APIClient(base_url=f"unix://{path}", version="auto", timeout=30)
        engine.trust_env = False  # else each request looks for a proxy in the environment
        return engine
    except (docker.errors.DockerException, OSError) as e:
        cause = "nothing is there" if not os.path.exists(path) else str(e.__context__ or e)
        raise EngineDown(
            f"no Docker Engine answers at {path}: {cause}; "
            "try: systemctl start docker (or install it: apt-get install docker.io)"
        ) from e


def list_engine(engine: Any, **filters: Any) -> list[dict[str, Any]]:
    """Return the engine's containers. Raises EngineDown."""
    with engine_errors():
        listed: list[dict[str, Any]] = engine.containers(all=True, filters=filters)
        return listed


def change_here(engine: Any, verb: str, what: str, volumes: bool = False) -> None:
    """Start or remove a container, or remove a volume; what is not there any more is fine.

    volumes: those that have no name go with it. Raises EngineDown.
    """
    import docker

    actions = {
        "start": engine.start,
        "remove": functools.partial(engine.remove_container, force=True, v=volumes),
        "remove_volume": engine.remove_volume,
    }
    with engine_errors():
        try:
            actions[verb](what)
            log.info("did what a move had left to do here: %s %s", verb, what)
        except docker.errors.NotFound:
            pass
        except docker.errors.APIError as e:
            if verb == "remove":
                raise
            log.warning("could not %s %s, which a move left to do: %s", verb, what, e)


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Turn what docker-py raises into EngineDown."""
    import docker
    import requests

    try:
        yield
    except (docker.errors.APIError, requests.exceptions.RequestException, OSError) as e:
        raise EngineDown(f"this machine's Docker Engine does not answer: {e}") from e


def containers_at(engine: Any, ips: Collection[str]) -> dict[str, str]:
    """Return the id of the container that has each address now. Raises EngineDown.

    Asks the networks: a container that has just begun to run is in no list of running ones yet.
    """
    import docker

    found = {}
    with engine_errors():
        for network in engine.networks():
            with contextlib.suppress(docker.errors.NotFound):  # it was removed meanwhile
                attached = engine.inspect_network(network["Id"]).get("Containers") or {}
                for container_id, endpoint in attached.items():
                    found[endpoint.get("IPv4Address", "").partition("/")[0]] = container_id
    return {ip: found[ip] for ip in ips if ip in found}


def names_here(engine: Any) -> dict[str, str]:
    """Return the id of the image that each name means on an engine. Raises EngineDown."""
    with engine_errors():
        tags = [(tag, i["Id"]) for i in engine.images() for tag in i.get("RepoTags") or ()]
    return {image_name(tag): image_id for tag, image_id in tags if tag != "<none>:<none>"}


def tagged_at(engine: Any, image_id: str) -> datetime.datetime | None:
    """Return when an image last got a name here, as far as the engine knows. Raises EngineDown."""
    with engine_errors():
        details = engine.inspect_image(image_id)
    tagged = (details.get("Metadata") or {}).get("LastTagTime") or ""
    return parse_time(tagged) or parse_time(details.get("Created") or "")


def inspect_engine(engine: Any, container_id: str) -> dict[str, Any] | None:
    """Return a container's record, None when the engine has it no longer. Raises EngineDown."""
    import docker

    with engine_errors():
        try:
            details = engine.inspect_container(container_id)
        except docker.errors.NotFound:
            return None
        listed = engine.containers(all=True, filters={"id": [container_id]})
        return container_record(listed[0], details) if listed else None


RESOLV_CONF = "/etc/resolv.conf"


def read_resolvers() -> list[str]:
    """Return the host's own resolvers, IPv4 ones."""
    lines = read_file(RESOLV_CONF).decode("utf-8", "replace").splitlines()
    words = [line.split() for line in lines]
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and ":" not in w[1]]


def engine_facts(engine: Any) -> dict[str, Any]:
    """Return what the mesh should know of the engine. Raises EngineDown."""
    with engine_errors():
        version, info = engine.version(), engine.info()
    return {
        "version": version.get("Version", ""),
        "api": version.get("ApiVersion", ""),
        "min_api": version.get("MinAPIVersion", "1.12"),
        "arch": version.get("Arch", ""),
        "kernel": version.get("KernelVersion", ""),
        "build": {k: version.get(k, "") for k in ("GitCommit", "GoVersion", "BuildTime")},
        "os": info.get("OperatingSystem", ""),
        "id": info.get("ID", ""),
        "cpus": info.get("NCPU", 0),
        "memory_bytes": info.get("MemTotal", 0),
        "driver": info.get("Driver", ""),
        "labels": info.get("Labels") or [],
        "resolvers": [ip for ip in read_resolvers() if not ip.startswith("127.")],
    }


class Waiting(NamedTuple):
    """A connection to a link from an address that the table does not know."""

    sock: socket.socket
    peer_ip: str
    address: HostPort


class Router:
    """Finds routes, and keeps what it found for as long as the view is the same."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._found: tuple[View, dict[tuple[str, int], LinkRoute]] = (View(), {})

    def find(self, name: str, port: int) -> LinkRoute | None:
        """Return what find_route() says now. Thread: any."""
        view, (of_view, routes) = self._node.view, self._found
        if of_view is not view:
            routes = {}
            self._found = (view, routes)
        route = routes.get((name, port))
        if route is None:
            route = find_route(view, self._node.settings.hostname, name, port)
            if route is not None:  # of names that are nowhere there is no end
                routes[name, port] = route
        return route


class LinkKeeper:
    """Listens for this host's links and sends each connection on, or refuses it.

    Thread "links" makes the table follow the view; thread "askers" asks the engine about an
    address that is not in the table: the container may have started a moment ago.
    """

    def __init__(self, node: Node, engine: Any, pump: Pump) -> None:
        self._node, self._engine, self._pump = node, engine, pump
        self._host = node.settings.hostname
        self.router = Router(node)
        self._table = LinkTable(0, {}, frozenset(), {})
        self._listeners: dict[HostPort, LinkListener] = {}
        self._refused: set[HostPort] = set()  # addresses that could not be bound
        self._done = threading.Condition()  # guards the replacement of _table, for waiters
        self._unknown: queue.SimpleQueue[Waiting] = queue.SimpleQueue()

    def start(self) -> None:
        route_subnet(self._node.settings.link_subnet)
        spawn("links", self._follow, self._node.stop)
        spawn("askers", self._ask, self._node.stop)

    def close(self) -> None:
        """Take the links' network off this machine; the pump closes the listeners."""
        run_ip("route", "del", "local", self._node.settings.link_subnet, "dev", "lo")

    def find_consumer(self, ip: str) -> Container | None:
        """Return the container of this host that has an address, as far as the table says."""
        return self._node.view.containers.get(self._table.consumers.get(ip, ""))

    def wait(self, revision: int) -> None:
        """Return when the listeners are those of a revision. Raises MeshDown."""
        with self._done:
            if not self._done.wait_for(lambda: self._table.revision >= revision, SYNC_S):
                raise MeshDown(f"the links of {self._host} do not follow the mesh")

    def counters(self) -> dict[str, Any]:
        """Return the figures of each link that is listened for."""
        table = self._table
        return {
            str(address): {
                "target": table.listeners.get(address, ""),
                "connections": listener.counters.total,
                "open": listener.counters.active,
                "failed": listener.counters.failed,
                "bytes_to_target": listener.counters.to_target.bytes,
                "bytes_from_target": listener.counters.to_client.bytes,
            }
            for address, listener in list(self._listeners.items())
        }

    def _follow(self) -> None:
        view = View()
        while not self._node.stop.is_set():
            latest = self._node.wait_change(view, STEP_S)
            if latest is not view:
                view = latest
                self._apply(decide_links(view, self._host))

    def _apply(self, table: LinkTable) -> None:
        for address in self._listeners.keys() - table.listeners.keys():
            self._pump.unlisten(self._listeners.pop(address))
        for address in table.listeners.keys() - self._listeners.keys():
            self._listen(address, table.listeners[address])
        with self._done:
            self._table = table
            self._done.notify_all()

    def _listen(self, address: HostPort, target: str) -> None:
        try:
            listener = LinkListener(address, self._accepted)
        except OSError as e:
            if address not in self._refused:
                log.warning("cannot listen for the link to %s at %s: %s", target, address, e)
            self._refused.add(address)
            return
        self._refused.discard(address)
        self._listeners[address] = listener
        self._pump.listen(listener)
        log.info("listening for the link to %s at %s", target, address)

    def _accepted(self, sock: socket.socket, peer: Any, listener: LinkListener) -> None:
        """Decide on a new connection. Thread: pump."""
        address = listener.address
        assert isinstance(address, HostPort)
        target = self._table.listeners.get(address, "")
        if (peer[0], target) in self._table.allowed:
            self._forward(sock, address, target)
        else:
            self._unknown.put(Waiting(sock, peer[0], address))

    def _forward(self, sock: socket.socket, address: HostPort, name: str) -> None:
        route = self.router.find(name, address.port)
        if route is None:
            log.info("the link to %s leads nowhere at the moment", name)
            reset(sock)
            return
        target = Target(route.address)
        if route.target:
            preamble = f"CONNECT {route.target} HTTP/1.1\r\n\r\n".encode()
            target = Target(route.address, preamble, route.host)
        listener = self._listeners.get(address)
        self._pump.dial(sock, target, counters=listener.counters if listener else None)

    def _ask(self) -> None:
        while not self._node.stop.is_set():
            waiting = take_all(self._unknown, STEP_S)
            if waiting:
                self._settle(waiting)

    def _settle(self, waiting: Sequence[Waiting]) -> None:
        """Forward or refuse connections by what the engine says now."""
        try:
            allowed = self._ask_allowed({one.peer_ip for one in waiting})
        except EngineDown as e:
            log.warning("refused %d connections to links: %s", len(waiting), e)
            allowed = set()
        for one in waiting:
            target = self._table.listeners.get(one.address, "")
            if (one.peer_ip, target) in allowed:
                self._forward(one.sock, one.address, target)
            else:
                log.info("refused %s, which has no link to %s", one.peer_ip, target)
                reset(one.sock)

    def _ask_allowed(self, ips: Collection[str]) -> set[tuple[str, str]]:
        """Return (address, target) of what containers at addresses may reach. Raises EngineDown."""
        view = self._node.view
        at = containers_at(self._engine, ips)
        known = [(ip, view.containers[i]) for ip, i in at.items() if i in view.containers]
        return {(ip, target) for ip, c in known for target in targets_of(view, c)}


class Query(NamedTuple):
    """A DNS query that cannot be answered at once."""

    packet: bytes
    question: Question
    peer: tuple[str, int]


RESOLVER_PORT, RESOLVER_S, RESOLVERS = 53, 2.0, 8


class NameServer:
    """Answers this host's containers for names on networks that were made through arpanet.

    Thread "names" answers what is known; threads names-N ask the host's own resolvers for the
    rest, and the engine about an address that is not in the table yet.
    """

    def __init__(self, node: Node, engine: Any, links: LinkKeeper, pump: Pump) -> None:
        self._node, self._engine, self._links, self._pump = node, engine, links, pump
        self._address = HostPort(resolver_of(node.settings.link_subnet), RESOLVER_PORT)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._waiting: queue.Queue[Query] = queue.Queue(1000)
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to answer; where another program has the port, names are left to links."""
        try:
            self._socket.bind(self._address)
            self._pump.listen(LinkListener(self._address, self._accepted))
        except OSError as e:
            log.warning("cannot answer for names at %s: %s", self._address, e)
            return
        self._socket.settimeout(STEP_S)
        self._thread = spawn("names", self._serve, self._node.stop)
        for number in range(RESOLVERS):
            spawn(f"names-{number}", self._resolve, self._node.stop)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # not connected, which wakes its thread all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread:
            self._thread.join(2 * STEP_S)  # the port is free only then
        self._socket.close()

    def _serve(self) -> None:
        while not self._node.stop.is_set():
            try:
                packet, peer = self._socket.recvfrom(4096)
            except OSError:  # nothing came, or close()
                continue
            question = read_question(packet)
            if question and not self._answer(question, self._links.find_consumer(peer[0]), peer):
                with contextlib.suppress(queue.Full):  # who asks too much asks again
                    self._waiting.put_nowait(Query(packet, question, peer))

    def _answer(self, question: Question, consumer: Container | None, peer: Any) -> bool:
        """Send an answer and return True if the name means something for the container."""
        vips = find_vips(self._node.view, consumer, question.name) if consumer else None
        if vips is None:
            return False
        self._reply(name_reply(question, random.sample(vips, len(vips))), peer)
        return True

    def _reply(self, packet: bytes, peer: Any) -> None:
        with contextlib.suppress(OSError):  # who has gone misses nothing
            self._socket.sendto(packet, peer)

    def _resolve(self) -> None:
        while not self._node.stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._settle(self._waiting.get(timeout=STEP_S))

    def _settle(self, query: Query) -> None:
        """Answer a query with what the engine knows of its sender, or the host's resolvers say."""
        ip = query.peer[0]
        consumer = self._links.find_consumer(ip)
        if consumer is None:
            with contextlib.suppress(EngineDown):
                found = containers_at(self._engine, [ip]).get(ip, "")
                consumer = self._node.view.containers.get(found)
            if consumer is None:
                return  # no container of this host: it gets no answer
            if self._answer(query.question, consumer, query.peer):
                return
        reply = ask_resolvers(query.packet) or name_reply(query.question, (), failed=True)
        self._reply(reply, query.peer)

    def _accepted(self, sock: socket.socket, peer: Any, _listener: LinkListener) -> None:
        """Hand a query that needs TCP to the host's own resolver. Thread: pump."""
        resolvers = read_resolvers()
        if not resolvers or self._links.find_consumer(peer[0]) is None:
            raise Unavailable("no resolver, or no container of this host")
        first, *others = [Target(HostPort(ip, RESOLVER_PORT)) for ip in resolvers]
        self._pump.dial(sock, first, others=others)


def ask_resolvers(packet: bytes) -> bytes:
    """Return the answer of the first resolver of the host that has one, b"" if none has."""
    for ip in read_resolvers():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(RESOLVER_S)
            try:
                sock.connect((ip, RESOLVER_PORT))
                sock.send(packet)
                answer = sock.recv(65535)
            except OSError:
                continue  # the next one may know
            if answer[:2] == packet[:2]:
                return answer
    return b""


def run_ip(*arguments: str) -> str:
    """Run iproute2's ip; return what it complained of, "" if it did not."""
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no program ip; try: apt-get install iproute2"
    return done.stderr.strip() if done.returncode else ""


def route_subnet(subnet: str) -> None:
    """Make every address of the links' network this machine's own. Raises Usage."""
    complaint = run_ip("route", "replace", "local", subnet, "dev", "lo")
    if complaint:
        raise Usage(f"cannot route the links' network {subnet} to this machine: {complaint}")


def find_route_fault(subnet: str) -> str:
    """Return why an address of the links' network is not this machine's own, "" if it is."""
    address = str(ipaddress.ip_network(subnet)[1])
    done = subprocess.run(
        ["ip", "route", "get", address], capture_output=True, text=True, check=False
    )
    if done.stdout.startswith("local "):
        return ""
    return f"{address} does not lead here: {' '.join((done.stdout + done.stderr).split())}"


AGENT_REQUESTS = 500  # at once, tunnels apart


def find_target(
    find: Callable[[str, int], LinkRoute | None], host: str, engine: str, what: str
) -> Address:
    """Return the engine's socket, or a container's address. Raises NotFound, BadRequest."""
    if what == "engine":
        return engine
    name, _, port = what.rpartition(":")
    try:
        route = find(name, parse_port(port))
    except ValueError as e:
        raise BadRequest(f"CONNECT engine or CONNECT NAME:PORT is needed, not {what!r}") from e
    if route is None or route.target:
        raise NotFound(f"container {name} does not run on {host}")
    return route.address


class Agent:
    """Serves members of this arpanet on the agent's port: tunnels, publishing, status."""

    def __init__(self, slave: Slave) -> None:
        self._slave = slave
        self._node = slave.node
        self._count = itertools.count(1)
        self._room = threading.Semaphore(AGENT_REQUESTS)

    def start(self) -> None:
        settings = self._node.settings
        address = HostPort(settings.ip, settings.agent_port)
        self._slave.pump.listen(LinkListener(address, self._accepted, speaks_first=True))

    def _accepted(self, sock: socket.socket, peer: Any, _listener: LinkListener) -> None:
        own = identity()
        if own is None:
            self._slave.pump.read_head(sock, peer, self._on_head)
        else:
            admit = functools.partial(self._admit, peer)
            self._slave.pump.shake(sock, peer, own.server_context(), admit)

    def _admit(self, peer: Any, sock: TlsSocket | None) -> None:
        """Listen to a machine whose certificate is for the address it calls from. Thread: pump."""
        pump = self._slave.pump
        if sock is None:
            return
        shown = sock.read_peer()
        if shown.machine and peer[0] in shown.ips:
            pump.read_head(sock, peer, self._on_head)
            return
        why = f"certificate ({shown.common_name}) is not that of a machine at {peer[0]}"
        pump.note_refusal(peer, f"its {why}")
        words = f"this machine's {why}; try: arpanet doctor"
        say_and_close(sock, json_answer(Forbidden.status, {"message": words}))

    def _on_head(self, sock: socket.socket, peer: Any, head: bytes, rest: bytes) -> None:
        """Serve a request of a member. Thread: pump."""
        verb, _, line = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = line.partition(" ")[0]
        known = peer[0] == self._node.settings.ip or peer[0] in self._node.view.members
        if verb == "CONNECT" and known:
            target = Target(self._find_address(path))
            self._slave.pump.dial(sock, target, answer=AGENT_OK, early=rest)
        else:
            if not self._room.acquire(blocking=False):
                raise Unavailable(
                    f"this agent serves no more than {AGENT_REQUESTS} requests at once"
                )
            serve = functools.partial(self._serve, sock, peer[0], verb, path, rest)
            spawn(f"agent-{next(self._count)}", serve)

    def _find_address(self, what: str) -> Address:
        if what == "engine" and self._slave.trouble:
            raise EngineDown(self._slave.trouble)
        settings, find = self._node.settings, self._slave.links.router.find
        return find_target(find, settings.hostname, settings.docker_host, what)

    def _serve(self, sock: socket.socket, peer_ip: str, verb: str, path: str, rest: bytes) -> None:
        """Answer what may block. Thread: agent-N."""
        sock.settimeout(SYNC_S)
        try:
            self._require_member(peer_ip)
            if verb == "CONNECT":  # the news of a member that has just joined came meanwhile
                target = Target(self._find_address(path))
                return self._slave.pump.dial(sock, target, answer=AGENT_OK, early=rest)
            status, value = 200, self._answer(verb, path)
        except ArpanetError as e:
            status, value = e.status, {"message": str(e)}
        finally:
            self._room.release()
        with contextlib.suppress(OSError), sock:  # who has gone misses nothing
            sock.sendall(json_answer(status, value))
            sock.shutdown(socket.SHUT_WR)
        return None

    def _require_member(self, ip: str) -> None:
        """Raise Forbidden unless the address is of a machine of this arpanet."""
        view = self._node.view
        if ip == self._node.settings.ip or ip in view.members:
            return
        view = self._node.sync_view()
        if ip not in view.members:
            log.warning("refused %s, which is no master or slave of this arpanet", ip)
            raise Forbidden(f"{ip} is no master or slave of this arpanet")

    def _answer(self, verb: str, path: str) -> dict[str, Any]:
        path, _, query = path.partition("?")
        match = re.fullmatch("/publish/([0-9a-f]{64})", path)
        if verb == "POST" and match:
            revision = dict(urllib.parse.parse_qsl(query)).get("revision", "0")
            if not re.fullmatch("[0-9]{1,19}", revision):
                raise BadRequest(f"a revision is a number, not {revision!r}")
            return {"revision": self._slave.publish(match[1], int(revision))}
        if verb == "POST" and path == "/images":
            return {"revision": self._slave.tell_images(dict(urllib.parse.parse_qsl(query)))}
        if verb == "GET" and path == "/status":
            return self._slave.report()
        if verb == "GET" and path == "/doctor":
            return self._slave.facts()
        raise NotFound("this is an arpanet agent; the Docker API is on the masters")


class Slave:
    """Puts this machine's engine on the network."""

    def __init__(self, settings: Settings, stop: threading.Event, say: Say) -> None:
        self.settings, self._stop, self._say = settings, stop, say
        self.machine = machine_id(settings)
        self.pump = Pump(stop)
        self.trouble = ""  # what ails the engine; thread "engine" alone replaces it
        self._volumes: frozenset[str] = frozenset()  # of the engine; thread main or events
        self._seen = View()
        self._conflicts: list[str] = []
        self._ending = contextlib.ExitStack()  # what was begun, the last of it on top

    def start(self) -> str:
        settings = self.settings
        require_free_port(settings.ip, settings.agent_port)
        self._say(f"waiting for the Docker Engine at {settings.docker_host}")
        self.engine = connect_engine(settings.docker_host)
        masters = known_masters(settings)
        self._say(f"waiting for a master ({', '.join(masters)})")
        self.node = Node(settings, open_mesh(settings, masters, self._stop), self._stop)
        self._ending.callback(self.node.mesh.close)
        self.node.on_lost = self.pump.cut
        self.node.follow()
        self._register()
        self.publisher = Publisher(self.node, self.engine, self._stop)
        self.links = LinkKeeper(self.node, self.engine, self.pump)
        self.pump.start()
        self._ending.callback(self.pump.stop)
        self.links.start()
        self._ending.callback(self.links.close)
        self.names = NameServer(self.node, self.engine, self.links, self.pump)
        self.names.start()
        self._ending.callback(self.names.close)
        self.publisher.start()
        self.images = ImageNames(self.node, self.engine, self._stop)
        self._say("publishing the containers of this host")
        self._events = self._open_events()
        self._do_chores()
        self.publisher.publish_all()
        self._adopt_volumes()
        self.images.start()
        Agent(self).start()
        self._make_networks()
        spawn("events", self._read_events, self._stop)
        spawn("engine", self._watch_engine, self._stop)
        self.presence.start()
        where = f"{settings.hostname} ({settings.ip})"
        return f"slave {where} is on the network; see: arpanet slave status"

    def step(self) -> None:
        """Do what moves left to do, write again what could not be written. Raises Renewed."""
        self.node.require_current()
        if self.trouble:
            return
        try:
            self._do_chores()
            if self.publisher.behind.is_set():
                self.publisher.behind.clear()
                self.publisher.publish_all()
            view = self.node.view
            if view is not self._seen:
                self._settle(view)
                self._seen = view
        except ArpanetError as e:
            self.publisher.behind.set()
            log.debug("still behind: %s", e)

    def _settle(self, view: View) -> None:
        """Claim the names and volumes of this host that nobody has. Raises EngineDown, MeshDown."""
        if self.settings.hostname not in view.hosts:
            log.warning("this host was told to leave while it could not hear it; it joins again")
            self.publisher.forget_all()
            self._list_anew()
        for container in decide_names(view, self.settings.hostname):
            self.publisher.ask(container.id)
        if self._volumes - view.volumes.keys():
            self._adopt_volumes()
        conflicts = list_conflicts(view, self.settings.hostname)
        for sentence in conflicts:
            if sentence not in self._conflicts:
                log.warning("%s", sentence)
        self._conflicts = conflicts

    def close(self) -> None:
        self._ending.close()

    def publish(self, container_id: str, revision: int) -> int:
        """Return the revision at which the mesh has the container; its links are open by then.

        Blocks. Raises EngineDown, MeshDown. Thread: agent-N.
        """
        self.node.wait_view(revision)
        asked = self.publisher.ask(container_id)
        written = wait_published(asked, SYNC_S * 2, self.settings.hostname)
        self.links.wait(written)
        return written

    def tell_images(self, brought: Mapping[str, str]) -> int:
        """Return the revision at which the mesh has the names of this host's images.

        brought: the name and id of what is about to be brought here, if that is why we are asked.
        Blocks. Raises EngineDown, MeshDown. Thread: agent-N.
        """
        if brought:
            self.images.expect(brought.get("name", ""), brought.get("id", ""))
            return 0
        asked: futures.Future[int] = futures.Future()
        self.images.note(ImageNews(asked=asked))
        try:
            return asked.result(timeout=SYNC_S * 2)
        except futures.TimeoutError as e:
            raise EngineDown(f"the engine of {self.settings.hostname} is slow to answer") from e

    def report(self) -> dict[str, Any]:
        """Return what slave status shows."""
        view, name = self.node.view, self.settings.hostname
        here = [c for c in view.containers.values() if c.host == name]
        return {
            "host": name,
            "ip": self.settings.ip,
            "version": __version__,
            "registered": self.presence.alive,
            "engine": dict(view.hosts[name].engine) if name in view.hosts else {},
            "trouble": self.trouble,
            "masters": sorted(m.ip for m in view.masters.values()),
            "containers": len(here),
            "running": sum(c.running for c in here),
            "links": self.links.counters(),
        }

    def facts(self) -> dict[str, Any]:
        """Return what doctor wants to know of this slave. Thread: agent-N."""
        complaints = {
            "engine": ask_engine(self.settings.docker_host),
            "route": find_route_fault(self.settings.link_subnet),
        }
        return {**complaints, **own_facts(self.node.view, self.settings, "slave")}

    def _row(self) -> dict[str, Any]:
        return {
            "ip": self.settings.ip,
            "agent_port": self.settings.agent_port,
            "machine": self.machine,
            "version": __version__,
            "engine": engine_facts(self.engine),
            "labels": dict(self.settings.label),
            "declares": True,
        }

    def _alive(self, trouble: str) -> dict[str, bytes]:
        row = {"machine": self.machine, "trouble": trouble}
        return {key_of("alive", self.settings.hostname): dump_json(row)}

    def _watch_engine(self) -> None:
        """Tell the others when the engine falls silent, and when it is back. Thread: engine."""
        while not self._stop.wait(STEP_S):
            trouble = ask_engine(self.settings.docker_host)
            if bool(trouble) == bool(self.trouble):
                continue
            try:
                if not trouble:
                    self._list_anew()
            except ArpanetError as e:
                log.warning("the engine is back, but: %s", e)
                continue
            log.warning("%s", trouble or "the Docker Engine answers again")
            self.trouble = trouble
            self.presence.update(self._alive(trouble))
            if trouble:
                self.pump.cut("")  # who waits for an answer would wait for ever

    def _list_anew(self) -> None:
        """Publish all: the engine may be another than before. Raises EngineDown, MeshDown."""
        row, known = self._row(), self.node.view.hosts.get(self.settings.hostname)
        if known is None or row["engine"] != known.engine:
            self.node.mesh.write(key_of("hosts", self.settings.hostname), dump_json(row))
        self._adopt_volumes()
        self.publisher.publish_all()

    def _register(self) -> None:
        """Put this host on the network. Raises Conflict when another machine has its name."""
        settings, mesh = self.settings, self.node.mesh
        known = self.node.view.hosts.get(settings.hostname)
        if known and known.machine != self.machine:
            raise Conflict(
                f"the name {settings.hostname} is taken by the host at {known.ip}; give this "
                "machine another one (HOSTNAME=NAME arpanet slave start), or if that host is gone "
                f"for good, type: arpanet slave leave --host {settings.hostname}"
            )
        key, row = key_of("hosts", settings.hostname), dump_json(self._row())
        if not known and mesh.claim(key, row) is None:
            self.node.sync_view()
            return self._register()
        if known and not known.declares:
            self._take_over()
        mesh.write(key, row)
        self.presence = Lease(mesh, self._alive(""), stop=self._stop, ttl_s=settings.lease_s)
        self._ending.callback(self.presence.stop)
        self.presence.publish()
        self.node.wait_view(mesh.read_revision())
        return None

    def _take_over(self) -> None:
        """Record what the containers here declared to an older arpanet: once, the host's row says.

        Raises EngineDown, MeshDown.
        """
        import docker

        view, host = self.node.view, self.settings.hostname
        for c in [c for c in view.containers.values() if c.host == host]:
            labels = c.summary.get("Labels") or {}
            if c.id in view.declared or not any(k == LABEL_LINKS or is_rule(k) for k in labels):
                continue
            with engine_errors():
                try:
                    details = self.engine.inspect_container(c.id)
                    image = self.engine.inspect_image(details["Image"])
                except docker.errors.NotFound as e:
                    log.warning("%s has no links and rules any more: %s", c.full_name, e)
                    continue
            known = declared_before(view, details, (image.get("Config") or {}).get("Labels") or {})
            if known.links or known.labels:
                row = known._replace(host=host).row
                self.node.mesh.write(key_of("declared", c.id), row)

    def _do_chores(self) -> None:
        """Do what moves that are over have left to do here. Raises EngineDown, MeshDown."""
        view, host, mesh = self.node.view, self.settings.hostname, self.node.mesh
        held = {entry.id for entry in view.names.values() if entry.host == host}
        for what, chore in decide_chores(view, host).items():
            ids, volumes, is_half = [what], chore.volumes, len(what) == 16
            if is_half:
                marked = f"{LABEL_MADE}={what}"
                half = list_engine(self.engine, label=marked)  # an image may have the label too
                ids = [c["Id"] for c in half if f"/{chore.name}" in c["Names"]]
                with engine_errors():
                    found = (self.engine.volumes(filters={"label": marked}) or {}).get("Volumes")
                volumes = tuple(volume["Name"] for volume in found or ())
            for container_id in ids:
                if chore.verb == "start" or container_id not in held:
                    change_here(self.engine, chore.verb, container_id, is_half)
            for volume in volumes:
                change_here(self.engine, "remove_volume", volume)
            key = key_of("chores", host, what)
            entry = mesh.read(key)
            if entry and read_value(entry.value).get("token") == chore.token:  # not a later one
                mesh.delete(key, value=entry.value)

    def _adopt_volumes(self) -> None:
        """Pin the volumes that are here to this host: arpanet may not have made them."""
        host, known = self.settings.hostname, self.node.view.volumes
        with engine_errors():
            volumes = (self.engine.volumes() or {}).get("Volumes") or ()
        self._volumes = frozenset(v["Name"] for v in volumes)
        for name in self._volumes:
            self._adopt_volume(name)
        for name in known.keys() - self._volumes:
            if known[name] == VolumePin(host, settled=True):
                self._release_volume(name)

    def _release_volume(self, name: str) -> None:
        """Delete the pin of an anonymous volume that is gone from here; no other gets its name."""
        if is_anonymous(name):
            row = dump_json({"host": self.settings.hostname})
            self.node.mesh.delete(key_of("volumes", name), value=row)

    def _make_networks(self) -> None:
        """Make the networks that were made through arpanet while this host was away."""
        with engine_errors():
            here = {n["Name"] for n in self.engine.networks()}
        engine = Engine(self.node.view.hosts[self.settings.hostname])
        for name in self.node.view.networks.keys() - here:
            try:
                engine.fetch("POST", "/networks/create", self.node.view.networks[name].create)
            except EngineError as e:
                log.warning("could not make the network %s here: %s", name, e)

    def _adopt_volume(self, name: str) -> None:
        if name not in self.node.view.volumes:
            value = dump_json({"host": self.settings.hostname})
            self.node.mesh.claim(key_of("volumes", name), value)

    def _open_events(self) -> Any:
        with engine_errors():
            kinds = ["container", "network", "volume", "image"]
            return self.engine.events(decode=True, filters={"type": kinds})

    def _read_events(self) -> None:
        """Publish what changes; when the engine went away, publish all once it is back."""
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                with engine_errors():
                    for event in self._events:
                        self._note_event(event)
                        backoff.reset()
                raise EngineDown("the engine ended its events")
            except ArpanetError as e:
                if backoff.wait(self._stop):
                    return
                log.warning("lost the engine's events: %s", e)
            with contextlib.suppress(ArpanetError):  # said above; tried again
                self._events = self._open_events()
                self.images.note(ImageNews(late=True))
                self.publisher.publish_all()

    def _note_event(self, event: Mapping[str, Any]) -> None:
        actor = event.get("Actor") or {}
        action = str(event.get("Action") or "").partition(":")[0]
        if event.get("Type") == "network":
            container_id = (actor.get("Attributes") or {}).get("container", "")
            if action in ("connect", "disconnect") and container_id:
                self.publisher.note(container_id)
        elif event.get("Type") == "volume":
            if action == "create":
                self._volumes |= {actor["ID"]}
                self._adopt_volume(actor["ID"])
            elif action == "destroy":
                self._volumes -= {actor["ID"]}
                self._release_volume(actor["ID"])
        elif event.get("Type") == "image":
            self.images.note(image_news(action, actor))
        elif action in PUBLISH_ON:
            self.publisher.note(actor["ID"])


def machine_id(settings: Settings) -> str:
    """Return what tells this machine from another of the same name; made once. Raises Usage."""
    path = os.path.join(settings.state_dir, "machine")
    try:
        known = read_file(path).decode().strip()
        if not known:
            known = secrets.token_hex(16)
            write_file(path, known.encode() + b"\n")
    except OSError as e:
        raise Usage(
            f"cannot keep state in {settings.state_dir}: {e.strerror}; see --state-dir"
        ) from e
    return known


def masters_path(settings: Settings) -> str:
    return os.path.join(settings.state_dir, "masters.json")


def known_masters(settings: Settings) -> tuple[str, ...]:
    """Return addresses of masters: those named, those met before, and this machine's own.

    Raises Usage when there are none.
    """
    here = f"{settings.ip}:{settings.api_port}"
    own = [settings.ip] if settings.ip and is_open(here, 1.0) else []
    found = tuple(dict.fromkeys([*settings.masters, *own, *met_masters(settings)]))
    if not found:
        raise Usage(
            "no master is known; name some: ARPANET_MASTERS=IP,IP "
            "(or make this machine the first one: arpanet master start --peers boot)"
        )
    return found


def met_masters(settings: Settings) -> tuple[str, ...]:
    """Return addresses of masters: those named, and those met before."""
    try:
        met = json.loads(read_file(masters_path(settings)) or b"[]")
    except (OSError, ValueError):  # it is root's alone, or damaged
        met = []
    return tuple(dict.fromkeys([*settings.masters, *map(str, met)]))


def remember_masters(settings: Settings, ips: Iterable[str]) -> None:
    """Keep the addresses of masters for the next start."""
    with contextlib.suppress(OSError):  # a full disk: they are met again next time
        write_file(masters_path(settings), dump_json(sorted(set(ips))))


def open_mesh(
    settings: Settings,
    masters: Sequence[str],
    stop: threading.Event,
    near: HostPort | None = None,
) -> Mesh:
    """Return the mesh at some masters; those that are met are remembered for the next start."""

    def remember(endpoints: Sequence[str]) -> None:
        remember_masters(settings, [e.rpartition(":")[0] for e in endpoints])

    endpoints = [f"{ip}:{settings.etcd_port}" for ip in masters]
    return Mesh(endpoints, stop=stop, on_members=remember, near=near)


PING_EVERY_S, PING_S = 0.3, 0.6
FIND_S = 3.0
OWN_S = 0.5  # for this machine's own master, before the others
# of a master, while another answers: then what waits for it is ended; to lose one SYN takes 1 s
MUTE_S = 1.2


class MasterPing:
    """What a client knows of one master, from asking it all the time."""

    def __init__(self, master: HostPort) -> None:
        self.master = master
        self.rank = 2  # 0: it answers and has a majority, 1: it answers, 2: it is of no use
        self.strange = False  # of another arpanet
        self.heard_at = time.monotonic()

    def is_lost(self, others: Iterable[MasterPing]) -> bool:
        """Return whether what waits for this master waits in vain.

        It is silent, and another has answered meanwhile: so it is not we who hear nobody.
        """
        silent = self.rank == 2 and time.monotonic() > self.heard_at + MUTE_S
        since = self.heard_at + MUTE_S / 2
        return silent and any(o.rank < 2 and o.heard_at > since for o in others)

    def ask(self) -> dict[str, Any]:
        """Ask once; return what it says, {} if it is silent, which a slow one is not."""
        try:
            report = ask_ready(self.master, MUTE_S)
        except (OSError, ArpanetError):
            self.rank = 2
            return {}
        self.rank, self.heard_at = 0 if report["quorum"] else 1, time.monotonic()
        return report


class Client:
    """A unix socket that carries each connection to a living master."""

    def __init__(self, settings: Settings, stop: threading.Event, say: Say) -> None:
        self.settings, self._stop, self._say = settings, stop, say
        self.pump = Pump(stop)
        self._pings: tuple[MasterPing, ...] = ()
        self._lock = threading.Lock()  # guards the growth of _pings
        self._arpanet = ""  # its name, once a master has said it

    def start(self) -> str:
        seeds = known_masters(self.settings)
        self._say(f"waiting for a master ({', '.join(seeds)})")
        port = self.settings.api_port
        calls = {ip: functools.partial(ask_ready, HostPort(ip, port), PING_S) for ip in seeds}
        first = [answer for answer in gather(calls).values() if isinstance(answer, dict)]
        self._arpanet = first[0].get("arpanet", "") if first else ""  # of those named, in order
        self._learn(seeds)
        backoff = Backoff()
        while all(ping.rank == 2 for ping in self._pings):
            if backoff.wait(self._stop):
                raise Unavailable("stopped before a master answered")
        self._listen()
        return f"docker -H unix://{self.settings.socket} now reaches {len(self._pings)} masters"

    def step(self) -> None:
        """Nothing is due: the threads ping-IP and the pump do the work."""

    def close(self) -> None:
        self.pump.stop()
        with contextlib.suppress(OSError):
            os.unlink(self.settings.socket)

    def _listen(self) -> None:
        path = self.settings.socket
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            listener = UnixListener(path, self._accepted)
        except OSError as e:
            raise Usage(f"cannot listen at {path}: {e.strerror}; see --socket") from e
        os.chmod(path, 0o660)
        self.pump.start()
        self.pump.listen(listener)

    def _learn(self, ips: Iterable[str]) -> None:
        """Begin to ask the masters that are new."""
        with self._lock:
            known = {ping.master.host for ping in self._pings}
            fresh = [ip for ip in ips if ip not in known]
            if not fresh:
                return
            pings = [MasterPing(HostPort(ip, self.settings.api_port)) for ip in fresh]
            self._pings += tuple(pings)
        self._remember([*known, *fresh])
        for ping in pings:
            spawn(f"ping-{ping.master.host}", functools.partial(self._watch, ping), self._stop)

    def _remember(self, ips: Sequence[str]) -> None:
        remember_masters(self.settings, ips)

    def _is_ours(self, ping: MasterPing, arpanet: str) -> bool:
        """Say whether a master is of the arpanet of the first that ever answered."""
        self._arpanet = self._arpanet or arpanet
        strange = arpanet not in ("", self._arpanet)
        if strange:
            ping.rank = 2
            if not ping.strange:
                log.warning("the master at %s is of another arpanet, and is not used", ping.master)
        ping.strange = strange or (ping.strange and not arpanet)
        return not strange

    def _watch(self, ping: MasterPing) -> None:
        """Ask one master over and over; end what waits for it when others live. Thread: ping-IP."""
        while True:
            report = ping.ask()
            if self._is_ours(ping, report.get("arpanet", "")):
                self._learn(map(str, report.get("masters", ())))
            if ping.is_lost(self._pings):
                self.pump.cut(ping.master.host, functools.partial(self._tell_cut, ping.master))
            if self._stop.wait(PING_EVERY_S):
                return

    def _tell_cut(self, master: HostPort, count: int) -> None:
        log.warning("the master at %s is silent; broke off %d connections to it", master, count)

    def _accepted(self, sock: socket.socket, _peer: Any, _listener: LinkListener) -> None:
        spawn("carry", functools.partial(self._carry, sock))

    def _carry(self, sock: socket.socket) -> None:
        """Give a connection to a master that answers now: the last ping is old. Thread: carry."""
        pings = [ping for ping in self._pings if not ping.strange]
        masters = [ping.master for ping in sorted(pings, key=lambda ping: ping.rank)]
        living = [ping.master for ping in pings if ping.rank < 2]
        found, _ = race_masters(living or masters, PING_S)
        first = found or masters[0]
        others = [Target(master, member="") for master in masters if master != first]
        self.pump.dial(sock, Target(first, member=""), others=others, on_refusal=self._refuse)

    def _refuse(self, sock: socket.socket, why: str) -> None:
        """Answer a client's request: one that is answered before it has asked misses the words."""
        words = no_master_answer(why)
        self.pump.read_head(sock, "", lambda near, *_: say_and_close(near, words))


def no_master_answer(why: str) -> bytes:
    """Return what a docker client is told when no master answers."""
    words = f"no arpanet master answers ({why}); try: arpanet master status"
    return json_answer(503, {"message": words})


def ask_ready(master: HostPort, timeout_s: float) -> dict[str, Any]:
    """Return whether a master has a majority, and which masters it knows; it answers at once.

    Raises OSError, EngineError.
    """
    report = http_json(master, "GET", "/arpanet/masters", timeout_s)
    if not fits(report, {"quorum": bool, "masters": [str], "arpanet": Maybe(str)}):
        raise OSError(f"{master} is no arpanet master")
    try:
        return {**report, "masters": parse_ips(",".join(report["masters"]))}
    except ValueError as e:
        raise OSError(f"{master} names a master that is none: {e}") from e


def race_masters(masters: Collection[HostPort], timeout_s: float) -> tuple[HostPort | None, str]:
    """Return the first master that answers, and why others do not.

    All are asked at once: one that hangs delays nothing. One without a majority is second choice.
    """
    answers: queue.SimpleQueue[tuple[HostPort, Any]] = queue.SimpleQueue()

    def ask(master: HostPort) -> None:
        try:
            answers.put((master, ask_ready(master, timeout_s)["quorum"]))
        except (OSError, ArpanetError) as e:
            answers.put((master, e))

    for master in masters:
        spawn(f"ask-{master.host}", functools.partial(ask, master))
    second, causes = None, []
    for _ in masters:
        master, answer = answers.get()
        if answer is True:
            return master, ""
        if isinstance(answer, Exception):
            causes.append(f"{master}: {answer}")
        else:
            second = second or master
    return second, "; ".join(sorted(causes))


def find_master(settings: Settings, *, own_first: bool = False) -> HostPort:
    """Return a master that answers; own_first: this machine's, whether it has a majority or not.

    Raises MeshDown that names those asked.
    """
    own = ["127.0.0.1"]
    try:
        known = list(known_masters(settings))
    except Usage:
        known = []
    ips = dict.fromkeys([*known, *own] if settings.masters else [*own, *known])
    masters = [HostPort(ip, settings.api_port) for ip in ips]
    here = {"127.0.0.1", *local_addresses().values()} if own_first else set()
    found, causes = race_masters([m for m in masters if m.host in here], OWN_S)
    if found is None:
        found, causes = race_masters(masters, FIND_S)
    if found is None:
        raise MeshDown(
            f"no master answers ({causes}); start one: arpanet master start, "
            "or say where they are: ARPANET_MASTERS=IP,IP"
        )
    return found


class Companion(Client):
    """A client's socket for one docker client, to whose terminal it tells what it breaks off."""

    def start(self) -> str:
        """Listen as soon as one master answers; from that it learns of others. Raises MeshDown."""
        master = find_master(self.settings)
        self._learn(dict.fromkeys([master.host, *self.settings.masters]))
        self._listen()
        return ""

    def _remember(self, ips: Sequence[str]) -> None:
        """Write nothing: what one command was told is not for the next."""

    def _tell_cut(self, master: HostPort, _count: int) -> None:
        self._say(
            f"the master at {master} is silent; what it was asked last may be done or not; "
            "see: arpanet docker ps -a"
        )


KNOWN_SHAPE = {"arpanet": Maybe(str), "masters": [{"name": str, "ip": str}]}  # of all versions


def ask_status(
    master: HostPort, timeout_s: float = 3.0, shape: Mapping[str, Any] = KNOWN_SHAPE
) -> dict[str, Any]:
    """Return a master's report. Raises OSError, EngineError."""
    report = http_json(master, "GET", "/arpanet/status", timeout_s)
    if not fits(report, shape):
        raise OSError(f"{master} is no arpanet master of this version")
    return dict(report)


def ask_report(master: HostPort) -> dict[str, Any]:
    """Return a master's whole report, as this version has it. Raises MeshDown, EngineError."""
    try:
        return ask_status(master, 10.0, REPORT_SHAPE)
    except OSError as e:
        raise MeshDown(f"no report from {master}: {e}; try: arpanet doctor") from e


def ask_masters(settings: Settings, ips: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the reports of those masters that answer within a second, by address."""
    port = settings.api_port
    return good_answers(
        gather({ip: functools.partial(ask_status, HostPort(ip, port)) for ip in ips})
    )


def member_place(settings: Settings) -> MemberPlace:
    """Return where the etcd of this machine lives."""
    return MemberPlace(
        settings.ip,
        settings.hostname,
        Path(settings.state_dir),
        Path(settings.log_dir),
        settings.etcd_port,
        settings.etcd_peer_port,
        settings.etcd_quota_mb << 20,
    )


def report_hosts(view: View) -> list[dict[str, Any]]:
    """Return what master status shows of the hosts."""
    count = collections.Counter(c.host for c in view.containers.values())
    running = collections.Counter(c.host for c in view.containers.values() if c.running)
    return [
        {
            "name": h.name,
            "ip": h.ip,
            "alive": h.name in view.alive,
            "trouble": view.trouble(h.name),
            "version": h.version,
            "engine": h.engine.get("version") or "",
            "containers": count[h.name],
            "running": running[h.name],
        }
        for _, h in sorted(view.hosts.items())
    ]


RESCUES = 16  # at once
LOOK_S, MISSES = 2.0, 3  # at agents that are waited for; so often in a row


def tell_rescues(results: Mapping[str, Any], told: Mapping[str, str]) -> dict[str, str]:
    """Log what became of rescues, a failure once; return why some failed, Conflict apart.

    A Conflict says that another master has it at this moment.
    """
    failed = {}
    for name, result in results.items():
        if isinstance(result, str):
            log.info("made %s again on %s: its host is down", name, result)
            continue
        why = told.get(name, "") if isinstance(result, Conflict) else str(result)
        failed.update({name: why} if why else {})
        if why != told.get(name, ""):
            log.warning("cannot make %s again, whose host is down: %s", name, why)
    return failed


FREE_S = 60.0  # that an address waits for its name to come back


class Master:
    """Keeps this machine's etcd, its lease, and the Docker API."""

    def __init__(self, settings: Settings, stop: threading.Event, say: Say) -> None:
        self.settings, self._stop, self._say = settings, stop, say
        self.member = EtcdMember(member_place(settings), stop=stop, say=say)
        self._news = ""  # what step() logged last
        self._free, self._free_due = frozenset[str](), 0.0  # addresses that nobody needed then
        self._halt = threading.Event()  # set after stop, when the last requests are answered
        self.pump = Pump(self._halt)
        self.hangups = HangupWatch(self._halt)
        descriptors = raise_descriptors() // (2 if identity() else 1)
        self.lobby = Lobby(decide_limits(settings, descriptors), self._halt)
        self._ending = contextlib.ExitStack()  # what was begun, the last of it on top

    def start(self) -> str:
        settings = self.settings
        addresses = dict.fromkeys((settings.ip, "127.0.0.1"))
        for address in addresses:
            require_free_port(address, settings.api_port)
        self._ending.callback(self.member.stop)
        self._enter()
        if identity() is None:
            self._say(
                f"there is no TLS: whoever reaches port {settings.api_port} is root on all hosts, "
                "so keep it on a private network"
            )
        etcd = HostPort(settings.ip, settings.etcd_port)
        mesh = open_mesh(settings, (settings.ip,), self._halt, near=etcd)
        self.node = Node(settings, mesh, self._halt)
        self._ending.callback(self.node.mesh.close)
        self.node.report, self.node.on_lost = self.report, self.pump.cut
        self.node.tunnels.bridge = self.pump.bridge
        self.node.facts = self.facts
        self.node.host_facts = lambda: ask_host_facts(self.node.view)
        self.node.follow()
        self.node.mesh.read_mark()
        self._register()
        spawn("rescue", self._rescue, self._stop)
        self.pump.start()
        self._ending.callback(self.pump.stop)
        self._ending.callback(self._halt.set)
        spawn("hangup", self.hangups.run, self._halt)
        spawn("reach", self._watch_agents, self._halt)
        spawn("claims", self._drop_claims, self._halt)
        spawn("lobby", self.lobby.run, self._halt)
        for address in addresses:
            endpoint = HostPort(address, settings.api_port)
            server = ApiServer(endpoint, self.node, self.pump, self.hangups, self.lobby)
            self._ending.callback(server.busy.drain)
            spawn(f"accept-{address}", server.serve_forever, self._stop)
            self._ending.callback(server.server_close)
            self._ending.callback(server.shutdown)
        api = HostPort(settings.ip, settings.api_port)
        return f"master {settings.hostname} answers: docker -H tcp://{api} ps"

    def _enter(self) -> None:
        """Become a member of the mesh, or rejoin it. Raises Usage when it was not said which."""
        peers = self.settings.peers
        if self.member.place.has_data():
            self.member.resume([p for p in peers if p != "boot"])
        elif peers == ("boot",):
            self._require_alone()
            self.member.boot()
        elif peers:
            self._require_own_name(peers)
            self.member.join(peers)
        else:
            raise Usage(
                "say which masters to join: arpanet master start --peers IP[,IP…]; "
                "the first one of all is started with --peers boot"
            )

    def _require_alone(self) -> None:
        """Raise Conflict where an arpanet is known that answers: a second would share no names."""
        met = tuple(ip for ip in met_masters(self.settings) if ip != self.settings.ip)
        for ip in ask_masters(self.settings, met):
            raise Conflict(
                f"an arpanet answers at {ip}; to join it: arpanet master start --peers {ip} (to "
                f"begin another all the same: take it out of ARPANET_MASTERS, remove "
                f"{masters_path(self.settings)})"
            )

    def _require_own_name(self, peers: Sequence[str]) -> None:
        """Raise Conflict if another master has this one's name: before it is a member of etcd."""
        name, ip = self.settings.hostname, self.settings.ip
        for report in ask_masters(self.settings, peers).values():
            for row in report["masters"]:
                if row["name"] == name and row["ip"] != ip:
                    raise master_name_taken(name, row["ip"])

    def step(self) -> None:
        """Keep etcd going; what goes wrong with it is tried again. Raises Renewed."""
        if self._halt.is_set():  # a thread died of a fault
            self._stop.set()
            return
        self.node.tunnels.expire()
        try:
            news = self.member.step()
        except ArpanetError as e:
            news = f"{e}; trying on"
        if news and news != self._news:
            log.info("etcd: %s", news)
            self._news = news
        self.node.require_current()
        self._give_back()

    def _give_back(self) -> None:
        """Give back the addresses that nobody needed for FREE_S; one master does it for all."""
        view = self.node.view
        first = min(view.masters, default="")
        if time.monotonic() < self._free_due or self.settings.hostname != first:
            return
        free, unneeded = self._free, frozenset(decide_free(view))
        self._free, self._free_due = unneeded, time.monotonic() + FREE_S
        if free & unneeded:
            with contextlib.suppress(MeshDown, Unsure):
                count = free_addresses(self.node, free.__contains__)
                log.info("gave back %d addresses of names that are gone", count)

    def close(self) -> None:
        self._ending.close()

    def _rescue(self) -> None:
        """Make the containers of hosts that stay down again elsewhere. Thread: rescue."""
        since: dict[str, float] = {}
        told: dict[str, str] = {}
        silent_s = max(10.0, self.settings.lease_s)  # before a host counts as down
        while not self._stop.wait(5 * STEP_S if told else STEP_S):  # what failed fails again soon
            view, now = self.node.view, time.monotonic()
            since = {name: since.get(name, now) for name in view.hosts.keys() - view.alive.keys()}
            grace_s = max(0.0, self.settings.grace_s - silent_s)
            due = [name for name, instant in since.items() if now - instant >= grace_s]
            found = [c for name in due for c in decide_rescues(view, name)]
            found.sort(key=lambda c: c.full_name in told)  # it may be their turn for ever
            calls = {c.full_name: functools.partial(rescue, self.node, c) for c in found[:RESCUES]}
            results = gather(calls)
            told = tell_rescues(results, told)

    def _watch_agents(self) -> None:
        """End what waits for a host that lives, and whose agent is not reached. Thread: reach."""
        missed: dict[HostPort, int] = {}
        while not self._halt.wait(LOOK_S):
            ips = self.node.tunnels.ips()
            answers = dial_all(h.agent for h in self.node.view.living_hosts() if h.ip in ips)
            missed = {agent: missed.get(agent, 0) + 1 for agent, why in answers.items() if why}
            for agent, times in missed.items():
                if times == MISSES:
                    log.warning("the agent at %s is not reached; what waits for it is ended", agent)
                if times >= MISSES:
                    self.node.tunnels.cut(agent.host)
                    self.pump.cut(agent.host)

    def _drop_claims(self) -> None:
        """Delete the claims that came to nothing or are over: one may come late. Thread: claims.

        An etcd that stood still does what it was asked before, though another has done it since.
        """
        mesh = self.node.mesh
        while not self._halt.wait(STEP_S):
            claims = decide_leftovers(self.node.view, self.node.given_up.values())
            with contextlib.suppress(MeshDown, Unsure):
                for key, values in claims.items():
                    found = mesh.read(key)
                    if found and found.value in values and mesh.delete(key, value=found.value):
                        log.info("deleted %s, which was claimed for nothing", key)

    def report(self) -> dict[str, Any]:
        """Return what master status shows. Thread: api-N."""
        view = self.node.view
        names = {m.ip: m for m in view.masters.values()}
        masters = [
            {
                **row._asdict(),
                "answers": row.answers and row.ip in names,
                "id": f"{row.id:x}",
                "etcd": row.version,
                "version": names[row.ip].version if row.ip in names else "",
            }
            for row in self.member.status()
        ]
        return {
            "version": __version__,
            "arpanet": self.node.arpanet,
            "masters": masters,
            "hosts": report_hosts(view),
            "conflicts": list_conflicts(view),
        }

    def facts(self) -> dict[str, Any]:
        """Return what doctor wants to know of this master. Thread: api-N."""
        clashes = find_clashes(self.node.view)
        own = own_facts(self.node.view, self.settings, "master")
        trust = describe_trust(self.member.child.trusted)  # etcd takes others only in its turn
        return {**self.report(), "clashes": clashes, **own, **trust}

    def _register(self) -> None:
        """Show this master to the others. Raises Conflict when another machine has its name."""
        settings = self.settings
        row = {
            "ip": settings.ip,
            "api_port": settings.api_port,
            "version": __version__,
            "machine": machine_id(settings),
        }
        keys = {key_of("masters", settings.hostname): dump_json(row)}
        self.presence = Lease(self.node.mesh, keys, stop=self._halt, ttl_s=settings.lease_s)
        self._ending.callback(self.presence.stop)
        try:
            self.presence.publish()
        except Conflict as e:
            other = self.node.view.masters.get(settings.hostname)
            raise master_name_taken(settings.hostname, other.ip if other else "?") from e
        self.presence.start()
        self.node.presence = self.presence
        self.node.wait_view(self.node.mesh.read_revision())


# ==== Authority ==============================================================
# Makes the certificates of machines and of clients. Its key lies in a directory
# of its own, which no daemon reads.

AUTHORITY_DAYS, CERTIFICATE_DAYS = 3650, 397
KEY_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def sign_certificate(
    name: str, days: int, authority: Pair | None, extensions: Iterable[Any]
) -> Pair:
    """Return a new certificate and its key; without an authority it is signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), utc_now()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer = authority.key if authority else key
    end = now + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder(
        issuer_name=authority.cert.subject if authority else subject,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(hours=1),  # clocks differ
        not_valid_after=min(end, authority.cert.not_valid_after_utc) if authority else end,
    )
    uses = ("digital_signature",) if authority else ("key_cert_sign", "crl_sign")
    for extension in (
        x509.BasicConstraints(ca=not authority, path_length=None if authority else 0),
        x509.KeyUsage(**{use: use in uses for use in KEY_USES}),
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
        *extensions,
    ):
        critical = isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
        builder = builder.add_extension(extension, critical)
    return Pair(builder.sign(signer, hashes.SHA256()), key)


def sign_for_machine(name: str, ips: Sequence[str], days: int, authority: Pair) -> Pair:
    """Return a certificate that opens a machine's ports, and those of the others to it."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names = dict.fromkeys((name, MACHINE, "localhost"))
    addresses = dict.fromkeys((*ips, "127.0.0.1"))
    sans = [
        *(x509.DNSName(n) for n in names),
        *(x509.IPAddress(ipaddress.ip_address(a)) for a in addresses),
    ]
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return sign_certificate(name, days, authority, [x509.SubjectAlternativeName(sans), uses])


def sign_for_client(name: str, days: int, authority: Pair) -> Pair:
    """Return a certificate that opens the Docker API alone."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return sign_certificate(name, days, authority, [uses])


def write_pair(cert_path: str, key_path: str, pair: Pair) -> None:
    """Write a certificate and its key, which its owner alone can read. Raises OSError."""
    from cryptography.hazmat.primitives import serialization

    form = serialization.Encoding.PEM
    key = pair.key.private_bytes(
        form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_file(key_path, key)
    write_file(cert_path, pair.cert.public_bytes(form), 0o644)


def authority_paths(directory: str, cert: str) -> tuple[str, str]:
    """Return where the certificate of an authority is, and its key."""
    path = os.path.join(directory, cert)
    return path, path.replace(".pem", "-key.pem")


def make_authorities(directory: str) -> None:
    """Make the authority for machines and that for clients. Raises Usage where one is, OSError."""
    if os.path.exists(os.path.join(directory, "ca.pem")):
        raise Usage(f"an authority is in {directory} already; for another one: another directory")
    for cert, what in ((CLIENTS_CA, "clients"), ("ca.pem", "machines")):
        name = f"arpanet {what} {secrets.token_hex(4)}"  # one of its own: they are told apart by it
        pair = sign_certificate(name, AUTHORITY_DAYS, None, ())
        write_pair(*authority_paths(directory, cert), pair)


def read_authority(directory: str, cert: str) -> Pair:
    """Return an authority. Raises Usage when there is none.

    Beside its own, its file may hold the certificates of others that are trusted.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    paths = authority_paths(directory, cert)
    with contextlib.suppress(ValueError, TypeError):  # told below
        certs, key = (read_file(path) for path in paths)
        found: Any = serialization.load_pem_private_key(key, None)
        for certificate in x509.load_pem_x509_certificates(certs):
            if certificate.public_key() == found.public_key():
                return Pair(certificate, found)
    told = f"{' and '.join(paths)} are no authority"
    raise Usage(f"{told}; make one: arpanet ca init DIR, then say --ca DIR")


# ==== CLI ====================================================================
# What a person types. A daemon is forked before any thread runs, and the one who
# typed start waits on a pipe until it answers.


class LockHeld(Conflict):
    """The daemon runs already."""


def lock_path(settings: Settings, role: str) -> str:
    return os.path.join(settings.run_dir, f"{role}.pid")


def take_lock(path: str) -> int:
    """Return the descriptor of a lock file that holds our pid. Raises LockHeld, Usage."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise Usage(f"cannot write {path}: {e.strerror}; run it as root (sudo)") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(fd, 32).decode().strip()
        os.close(fd)
        raise LockHeld(f"it runs already, as process {pid}") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def lock_holder(path: str) -> int:
    """Return who holds a lock file, 0 if nobody does; the lock is trusted, not the pid."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    with contextlib.closing(io.FileIO(fd)):
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                pid = os.pread(fd, 32, 0).strip()
                if pid:
                    return int(pid)
                threading.Event().wait(0.01)  # it has just taken the lock, and writes its pid next
            else:
                return 0


def notify_systemd(state: str) -> None:
    """Tell systemd about our state, if it started us. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")  # noqa: TID251 (systemd's own protocol)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(state.encode(), address.replace("@", "\0", 1))


class Herald:
    """Tells the one who typed start how far the daemon is."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd  # None in the foreground

    def say(self, text: str) -> None:
        log.info("%s", text)
        notify_systemd(f"STATUS={text}")
        self._write("SAY", text)

    def ready(self, text: str) -> None:
        log.info("%s", text)
        notify_systemd(f"READY=1\nSTATUS={text}")
        self._write("READY", text)

    def fail(self, error: ArpanetError) -> None:
        notify_systemd(f"STATUS={error}")
        self._write("ERROR", f"{error.exit_code} {error}")

    def _write(self, word: str, text: str) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(OSError):  # nobody waits any longer
            os.write(self._fd, f"{word} {' '.join(text.split())}\n".encode())
        if word != "SAY":
            os.close(self._fd)
            self._fd = None


def run_daemon(
    make: Callable[[threading.Event, Say], Daemon], role: str, settings: Settings, herald: Herald
) -> int:
    """Run a daemon until a signal; return the exit code."""
    raise_descriptors()
    asked: list[int] = []  # the signals that asked us to stop
    again = False
    try:
        lock = take_lock(lock_path(settings, role))
        while not asked and (again := run_once(make, herald, asked, again)):
            log.warning("the arpanet was recovered; beginning anew")
    except ArpanetError as e:
        herald.fail(e)
        raise
    log.info("stopped")
    os.close(lock)
    return 0 if asked else 1  # a thread died of a fault: systemd starts us afresh


def run_once(
    make: Callable[[threading.Event, Say], Daemon], herald: Herald, asked: list[int], again: bool
) -> bool:
    """Run a daemon until a signal; say whether it is to begin anew instead.

    again: it is doing so, and therefore tries on when it cannot.
    """
    stop = threading.Event()

    def ask_stop(number: int, _frame: Any) -> None:
        asked.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_stop)
    daemon = None
    try:
        daemon = make(stop, herald.say)
        herald.ready(daemon.start())
        while not (asked or stop.wait(STEP_S)):
            daemon.step()
        log.info("stopping")
        notify_systemd("STOPPING=1")
    except Renewed:
        return True
    except ArpanetError as e:
        if not (stop.is_set() and daemon) and not again:
            raise
        log.info("stopped while starting: %s", e)
        return again and not stop.wait(STEP_S)
    finally:
        stop.set()
        if daemon:
            daemon.close()
    return False


def detach(log_path: str) -> int | None:
    """Fork a daemon and return there the pipe's end for its Herald.

    The parent waits, tells what it hears, and exits.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        os.waitpid(child, 0)
        print_line(hear_daemon(reading, f"see {log_path}"))
        leave_process(0)
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDONLY)
    output = open_log_file(log_path)
    for source, descriptor in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, descriptor)
    return writing


def hear_daemon(fd: int, advice: str) -> str:
    """Print what the daemon says; return its last words when it is ready, exit when it failed."""
    with open(fd, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            word, _, text = line.rstrip("\n").partition(" ")
            if word == "SAY":
                print_remark(text)
            elif word == "READY":
                return text
            elif word == "ERROR":
                code, _, message = text.partition(" ")
                print_remark(message)
                leave_process(int(code))
    print_remark(f"the daemon died before it was ready; {advice}")
    return leave_process(1)


def leave_process(code: int) -> NoReturn:
    """Exit the process that waited for its daemon."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_line(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text + "\n")


def print_remark(text: str) -> None:
    """Print a remark for the person, not part of the result."""
    sys.stderr.write(f"arpanet: {text}\n")
    sys.stderr.flush()


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in columns; the first is the head."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    for row in texts:
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line(line.rstrip())


UNSEEN = MappingProxyType({code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))})


class LogLine(logging.Formatter):
    """A line for each message, whatever somebody put into a name or a path; then a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own)
        return super().formatMessage(record).translate(UNSEEN)


def set_up_logging(level: str) -> None:
    """Log to stderr, each line with its thread."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine("%(asctime)s %(levelname)s %(threadName)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    logging.raiseExceptions = False  # a full disk costs lines of the log, and nothing else


MAKERS: Mapping[str, Callable[[Settings, threading.Event, Say], Daemon]] = {
    "master": Master,
    "slave": Slave,
    "client": Client,
}


def open_log(role: str, settings: Settings) -> str:
    """Return the path of a daemon's log, which can be written. Raises Usage."""
    path = os.path.join(settings.log_dir, f"{role}.log")
    try:
        os.close(open_log_file(path))
    except OSError as e:
        raise Usage(f"cannot write {path}: {e.strerror}; run it as root (sudo)") from e
    return path


def start_role(role: str, settings: Settings, foreground: bool) -> int:
    """Start a daemon, in the foreground or detached; return the exit code."""
    if role != "client" or not settings.masters:
        settings = with_ip(role, settings)
    if role != "client":
        require_own_certificate(settings)
    holder = lock_holder(lock_path(settings, role))
    if holder:
        raise LockHeld(f"the {role} runs already, as process {holder}; see: arpanet {role} status")
    herald = Herald(None if foreground else detach(open_log(role, settings)))
    set_up_logging(settings.log_level)
    make = functools.partial(MAKERS[role], settings)
    code = 1
    try:
        code = run_daemon(make, role, settings, herald)
    except ArpanetError as e:
        code = e.exit_code
        if foreground:
            raise
        log.error("%s", e)
    except Exception:
        log.exception("internal error")
    if not foreground:
        leave_process(code)  # a daemon never returns into the command that made it
    return code


def with_ip(role: str, settings: Settings) -> Settings:
    """Return the settings with this machine's address; the choice is said. Raises Usage."""
    chosen = choose_ip(settings.ip, local_addresses()) if role != "client" else settings.ip
    if chosen != settings.ip:
        print_remark(f"ARPANET_IP is {chosen}, the one private address of this machine")
    return dataclasses.replace(settings, ip=chosen)


def with_own_ip(settings: Settings) -> Settings:
    """Return the settings with this machine's address, for a command about itself. Raises Usage."""
    return dataclasses.replace(settings, ip=choose_ip(settings.ip, local_addresses()))


def stop_role(role: str, settings: Settings) -> int:
    """Stop a daemon and wait until it has ended; return the exit code. Raises Unavailable."""
    path = lock_path(settings, role)
    holder = lock_holder(path)
    if not holder:
        print_remark(f"the {role} does not run")
        return 0
    try:
        os.kill(holder, signal.SIGTERM)
    except PermissionError as e:
        raise Usage(f"process {holder} is not yours; run it as root (sudo)") from e
    deadline = time.monotonic() + 30
    pause = threading.Event()
    while lock_holder(path) == holder:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"process {holder} has not stopped after 30 s; see {settings.log_dir}"
            )
        pause.wait(0.05)
    print_line(f"{role} stopped")
    return 0


def take_over(role: str, settings: Settings) -> int:
    """Stop a daemon if it runs, and return the lock that it had. Raises as stop_role."""
    path = lock_path(settings, role)
    if lock_holder(path):
        stop_role(role, settings)
    return take_lock(path)


def show_master(settings: Settings, as_json: bool) -> int:
    """Print masters and hosts; return 0 when all are well, 1 when some are not."""
    master = find_master(settings, own_first=True)
    report = ask_report(master)
    report["strangers"] = find_strangers(settings, report)
    troubles = list(describe_troubles(report))
    if as_json:
        print_line(json.dumps(report, indent=2))
    else:
        show_master_report(report)
        for trouble in troubles:
            print_remark(trouble)
    return 1 if troubles else 0


def find_strangers(settings: Settings, report: Mapping[str, Any]) -> list[str]:
    """Return the addresses of masters that are known here and are of another arpanet."""
    ours = {m["ip"] for m in report["masters"]}
    others = ask_masters(settings, [ip for ip in met_masters(settings) if ip not in ours])
    return [
        ip for ip, other in others.items() if other.get("arpanet") not in ("", report["arpanet"])
    ]


def describe_troubles(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each thing that is not well, with what to do."""
    yield from describe_absent_masters({m["name"] or m["ip"]: m for m in report["masters"]})
    for m in report["masters"]:
        if "NOSPACE" in m["alarms"]:
            yield f"etcd on {m['name']} is full and refuses changes; {MORE_ROOM}"
        elif m["alarms"]:
            yield f"etcd on {m['name']} says {m['alarms'][0]}; there: arpanet master leave, start"
    for ip in report["strangers"]:
        yield (
            f"the master at {ip} is of another arpanet; if that is a mistake, there: arpanet "
            "master stop, remove etcd and master.json in its state directory, start it with --peers"
        )
    yield from report["conflicts"]
    for h in report["hosts"]:
        if h["alive"] and h["trouble"]:
            yield f"on {h['name']} {h['trouble']}; there: systemctl restart docker"
    down = [h["name"] for h in report["hosts"] if not h["alive"]]
    if down:
        yield (
            f"down: {', '.join(down)}; there: arpanet slave start; or if it is gone for good: "
            f"arpanet slave leave --host {down[0]}"
        )


def describe_absent_masters(masters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is to be done about masters that are not there, by name."""
    silent = sorted(name for name, m in masters.items() if not m["etcd"])
    waiting = [name for name, m in masters.items() if not m["answers"]]
    if not any(m["leader"] for m in masters.values()):
        yield describe_lost_majority(silent)
    elif silent:
        yield (
            f"no answer from {', '.join(silent)}; there: arpanet master start; or if it is gone "
            f"for good: arpanet master remove {silent[0]}"
        )
    elif waiting:
        yield f"not a master at the moment: {', '.join(waiting)}; its log tells why"


def show_master_report(report: Mapping[str, Any]) -> None:
    """Print the masters' report for a person."""
    rows: list[Sequence[Any]] = [("MASTER", "ADDRESS", "STATE", "ROLE", "ARPANET", "ETCD", "DATA")]
    for m in report["masters"]:
        role = "leader" if m["leader"] else "learner" if m["learner"] else "member"
        state = "answers" if m["answers"] else "waits" if m["etcd"] else "down"
        state = "full" if "NOSPACE" in m["alarms"] else state
        size = f"{m['size_bytes'] / 1e6:.1f} MB" if m["size_bytes"] else "-"
        versions = (m["version"] or "-", m["etcd"] or "-")
        rows.append((m["name"] or "-", m["ip"], state, role, *versions, size))
    print_table(rows)
    print_line("")
    rows = [("HOST", "ADDRESS", "STATE", "CONTAINERS", "RUNNING", "ARPANET", "ENGINE")]
    for h in report["hosts"]:
        state = "down" if not h["alive"] else "no engine" if h["trouble"] else "up"
        rows.append(
            (h["name"], h["ip"], state, h["containers"], h["running"], h["version"], h["engine"])
        )
    print_table(rows)


SLAVE_SHAPE = {  # of what Slave.report() returns
    **dict.fromkeys(("host", "ip", "trouble"), str),
    **dict.fromkeys(("containers", "running"), int),
    "registered": bool,
    "masters": [str],
    "engine": {"version": Maybe(str)},
    "links": {
        str: {
            "target": str,
            **dict.fromkeys(("open", "connections", "failed"), int),
            **dict.fromkeys(("bytes_to_target", "bytes_from_target"), int),
        }
    },
}


def show_slave(settings: Settings, as_json: bool) -> int:
    """Print what this machine's slave does; return 0 when it is on the network."""
    if not lock_holder(lock_path(settings, "slave")):
        if as_json:
            print_line(json.dumps({"running": False}))
        raise Unavailable("the slave does not run; start it: arpanet slave start")
    settings = with_own_ip(settings)
    try:
        report = http_json((settings.ip, settings.agent_port), "GET", "/status", 5.0)
        if not fits(report, SLAVE_SHAPE):
            raise OSError("it is of another version; type: arpanet slave stop, start")
    except OSError as e:
        raise Unavailable(
            f"the slave does not answer ({e}); see {settings.log_dir}/slave.log"
        ) from e
    if as_json:
        print_line(json.dumps({"running": True, **report}, indent=2))
    else:
        show_slave_report(report)
    return 0 if report["registered"] and not report["trouble"] else 1


def show_slave_report(report: Mapping[str, Any]) -> None:
    """Print a slave's report for a person."""
    state = "on the network" if report["registered"] else "not on the network at the moment"
    print_line(f"{report['host']} ({report['ip']}) is {state}")
    print_line(f"masters: {', '.join(report['masters']) or 'none'}")
    print_line(f"engine: {report['trouble'] or report['engine'].get('version', 'unknown')}")
    print_line(f"containers: {report['containers']}, running: {report['running']}")
    if report["links"]:
        rows: list[Sequence[Any]] = [
            ("LINK", "TARGET", "OPEN", "CONNECTIONS", "FAILED", "SENT", "RECEIVED")
        ]
        for address, f in sorted(report["links"].items()):
            figures = (
                f["open"],
                f["connections"],
                f["failed"],
                f["bytes_to_target"],
                f["bytes_from_target"],
            )
            rows.append((address, f["target"], *figures))
        print_table(rows)


def show_client(settings: Settings, as_json: bool) -> int:
    """Print whether this machine's client runs; return 0 when it does."""
    holder = lock_holder(lock_path(settings, "client"))
    if as_json:
        print_line(json.dumps({"running": bool(holder), "pid": holder, "socket": settings.socket}))
    if not holder:
        raise Unavailable("the client does not run; start it: arpanet client start")
    if not as_json:
        print_line(f"docker -H unix://{settings.socket} reaches a living master (process {holder})")
    return 0


def print_findings(findings: Sequence[Finding], as_json: bool, colour: bool) -> int:
    """Print what doctor has found; return 0 when all is well."""
    well = all(f.well for f in findings)
    if as_json:
        rows = [f._asdict() for f in findings]
        print_line(json.dumps({"well": well, "findings": rows}, indent=2))
        return 0 if well else 1
    for f in findings:
        mark = "✓" if f.well else "✗"
        if colour:
            mark = f"\33[{32 if f.well else 31}m{mark}\33[0m"
        print_line(f"{mark} {f.text}{f'; {f.cure}' if f.cure else ''}")
    return 0 if well else 1


def wants_colour(environment: Mapping[str, str]) -> bool:
    """Return whether a person looks on who has not said no. Source: no-color.org."""
    plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def run_doctor(settings: Settings) -> list[Finding]:
    """Return what a person would find who looks for the fault."""
    try:
        use_identity(make_identity(settings, "master"))
    except Usage as e:
        return [Finding(False, str(e), COMPLAINTS["certificate"])]
    file = read_env_file()
    with contextlib.suppress(Usage):  # check_start() tells it, where a slave is to run
        slave = read_settings({}, {}, file, settings.hostname, "slave")
        settings = dataclasses.replace(
            settings, agent_port=slave.agent_port, docker_host=slave.docker_host
        )
    with contextlib.suppress(Usage):  # the same
        settings = dataclasses.replace(settings, ip=choose_ip(settings.ip, local_addresses()))
    masters = ask_master_facts(settings)
    reports = {who: answer for who, answer in masters.items() if "masters" in answer}
    report = next(iter(reports.values()), None)
    doubts = look_here(settings, report)
    found = check_here(doubts)
    slaves = ask_slaves(settings, reports, "slave" in doubts.running)
    if report is None:
        silent = "; ".join(f"{who}: {f['error']}" for who, f in masters.items())
        cure = "start one: arpanet master start, or say where they are: ARPANET_MASTERS=IP,IP"
        found.append(Finding(False, f"no master answers ({silent})", cure))
        without = [*check_reach(slaves), *check_complaints(slaves)]  # a master
        return [*found, *(f for f in without if not f.well)]
    facts = {f"master {who}": answer for who, answer in masters.items()} | slaves
    return [*found, *check_network(report, facts)]


def ask_master_facts(settings: Settings) -> dict[str, Facts]:
    """Return the facts of each master, those that are down left out; by name, else address."""
    try:
        asked = known_masters(settings)
    except Usage:
        asked = ("127.0.0.1",)
    answers = ask_facts_at(settings, asked)
    rows = [row for a in answers.values() for row in a.get("masters", ())]
    names = {row["ip"]: row["name"] for row in rows if row["answers"]}
    answers |= ask_facts_at(settings, names.keys() - answers.keys())
    if names:  # who is no member any more is not missed
        answers = {ip: answer for ip, answer in answers.items() if ip in names}
    return {names.get(ip) or ip: answer for ip, answer in sorted(answers.items())}


def ask_facts_at(settings: Settings, ips: Iterable[str]) -> dict[str, Facts]:
    """Return the facts of the masters at some addresses, or why they do not answer."""
    ask = functools.partial(ask_facts, path="/arpanet/doctor", shape=MASTER_SHAPE)
    calls = {ip: functools.partial(ask, HostPort(ip, settings.api_port)) for ip in ips}
    return gather_facts(calls)


def ask_slaves(settings: Settings, reports: Mapping[str, Facts], here: bool) -> dict[str, Facts]:
    """Return the facts of each slave, from the first master that gets them; else our own slave's.

    reports: of masters, by name. here: whether this machine's slave runs.
    """
    found: dict[str, Facts] = {}
    for name, report in reports.items():
        own = (row["ip"] for row in report["masters"] if row["name"] == name)
        master = HostPort(next(own, name), settings.api_port)
        answer = ask_slaves_at(master, report["skew_s"])
        better = {h: f for h, f in answer.items() if "error" in found.get(h, {"error": ""})}
        found.update(better)
        if answer and not any("error" in facts for facts in found.values()):
            break
    if not reports and here:
        agent = HostPort(settings.ip, settings.agent_port)
        found = gather_facts({settings.hostname: functools.partial(ask_facts, agent, "/doctor")})
    return {f"slave {name}": facts for name, facts in found.items()}


def ask_slaves_at(master: HostPort, skew_s: float) -> dict[str, Facts]:
    """Return the facts of each slave as a master gets them, none when it does not answer.

    skew_s: how far its clock is ahead of ours.
    """
    answer: Any = None
    with contextlib.suppress(OSError, ArpanetError):
        answer = http_json(master, "GET", "/arpanet/doctor/hosts", 5 * DIAL_S)
    found: dict[str, Facts] = {}
    for host, facts in answer.items() if fits(answer, {str: dict}) else ():
        if fits(facts, {**FACTS_SHAPE, "skew_s": float}):
            found[host] = {**facts, "skew_s": facts["skew_s"] + skew_s}
        else:
            why = facts.get("error") or "it is of another version of arpanet"
            found[host] = {"error": str(why)}
    return found


def look_here(settings: Settings, report: Facts | None) -> Doubts:
    """Look at the roles of this machine, and at what would hinder those that do not run."""
    running = {role: lock_holder(lock_path(settings, role)) for role in ("master", "slave")}
    hosts = [row["name"] for row in report["hosts"]] if report else []
    has_role = {
        "master": os.path.exists(os.path.join(settings.state_dir, "etcd", "member")),
        "slave": settings.hostname in hosts,
    }
    idle = tuple(
        role
        for role, pid in running.items()
        if not pid and (has_role[role] or os.path.exists(ENABLED.format(role)))
    )
    faults = [fault for role in idle for fault in check_start(settings, role)]
    return Doubts({r: pid for r, pid in running.items() if pid}, idle, tuple(faults))


ENABLED = "/etc/systemd/system/multi-user.target.wants/arpanet-{}.service"


def check_start(settings: Settings, role: str) -> Iterator[str]:
    """Yield what hinders the start of a role on this machine."""
    ports = {"master": (settings.api_port, settings.etcd_port, settings.etcd_peer_port)}
    tries: list[Callable[[], Any]] = [
        lambda: read_settings({}, {}, read_env_file(), settings.hostname, role),
        lambda: choose_ip(settings.ip, local_addresses()),
        lambda: require_own_certificate(settings),
    ]
    for port in ports.get(role, (settings.agent_port,)):
        tries.append(functools.partial(require_free_port, settings.ip or "127.0.0.1", port))
    for attempt in tries:
        try:
            attempt()
        except ArpanetError as e:
            yield str(e)
    for program in {"master": ("etcd", "setpriv"), "slave": ("ip",)}[role]:
        if not shutil.which(program):
            yield f"{program} is not installed"
    if role == "slave":
        yield from filter(None, [ask_engine(settings.docker_host)])


def leave_network(settings: Settings, host: str, forget: bool) -> int:
    """Take a host off the network for good; return the exit code. Raises Conflict, Unavailable."""
    require_machine()
    name = host or settings.hostname
    if name == settings.hostname:
        stop_role("slave", settings)
    stop = threading.Event()
    mesh = open_mesh(settings, [find_master(settings).host], stop)
    try:
        if mesh.read(key_of("alive", name)):
            raise Conflict(f"host {name} is alive; type on it: arpanet slave leave")
        if not mesh.read(key_of("hosts", name)):
            raise NotFound(f"there is no host {name}; see: arpanet master status")
        forget_host(mesh, name, forget)
    finally:
        stop.set()
        mesh.close()
    print_line(
        f"host {name} has left; its containers run on, unseen"
        + ("" if forget else ", its volumes stay reserved for it")
    )
    return 0


def leave_masters(settings: Settings) -> int:
    """Take this machine's master away for good; return the exit code.

    Raises NotFound where none is, Conflict for the last one, MeshDown without a majority.
    """
    settings = with_own_ip(settings)
    place = member_place(settings)
    rest = read_rest(place)
    lock = take_over("master", settings)
    if not EtcdMember(place, stop=threading.Event(), say=print_remark).leave():
        raise Unavailable(
            "it could not leave: it is stopped, and still a member; try again, or start it again: "
            "arpanet master start"
        )
    os.close(lock)
    print_line(f"master {place.name} has left; {describe_masters([row.name for row in rest])}")
    return 0


def read_rest(place: MemberPlace) -> list[MemberStatus]:
    """Return the other masters, who go on when this one leaves. Raises as leave_masters."""
    if not place.has_data():
        raise NotFound(
            "this machine has no data of a master; if it was one, and its disk is gone, type on "
            f"another: arpanet master remove {place.name}"
        )
    others = [client for client in read_state(place.state_path).peers if client != place.client]
    rows = read_status([place.client, *others]) if others else []
    rest = [row for row in rows if row.ip != place.ip and not row.learner]
    if not rest:
        raise Conflict(
            f"this is the last master, so the data of the arpanet ({place.data_dir}) stays here; "
            "to stop it: arpanet master stop; to move it, first start another: "
            f"arpanet master start --peers {place.ip}"
        )
    if sum(bool(row.version) for row in rest) < (len(rest) + 1) // 2:
        raise MeshDown(describe_lost_majority([row.name for row in rest if not row.version]))
    return rest


def describe_masters(names: Sequence[str]) -> str:
    """Return who are masters now, and whether they are enough."""
    listed = ", ".join(sorted(names))
    if len(names) < 3:
        return f"masters now: {listed}; with fewer than three, losing one stops all changes"
    return f"masters now: {listed}"


def describe_lost_majority(silent: Sequence[str]) -> str:
    """Return what is said when too many masters do not answer."""
    return (
        f"the masters have no majority ({', '.join(sorted(silent))} do not answer); start them: "
        "arpanet master start; if they are gone for good, on one that is left: "
        "arpanet master recover"
    )


def remove_master(settings: Settings, name: str) -> int:
    """Take a dead master off the list for good; return the exit code.

    name: its name or its address. Raises NotFound, Conflict when it lives, MeshDown.
    """
    master = find_master(settings)
    rows = ask_report(master)["masters"]
    row = next((row for row in rows if name in (row["name"], row["ip"])), None)
    if row is None:
        names = ", ".join(sorted(row["name"] or row["ip"] for row in rows))
        raise NotFound(f"there is no master {name}; there are: {names}")
    if not any(row["leader"] for row in rows):
        raise MeshDown(
            describe_lost_majority([r["name"] or r["ip"] for r in rows if not r["etcd"]])
        )
    if row["etcd"] or row["version"]:  # its etcd answers, or its lease has not run out
        raise Conflict(
            f"master {name} lives, or did {settings.lease_s:g} s ago; type on it: "
            "arpanet master leave"
        )
    remove_member(f"{master.host}:{settings.etcd_port}", int(row["id"], 16))
    rest = [other["name"] for other in rows if other is not row]
    print_line(f"master {name} is removed; {describe_masters(rest)}")
    print_remark(
        "if it comes back it joins again, as a new one; to keep it out: arpanet master leave"
    )
    return 0


def back_up(settings: Settings, path: str, overwrite: bool) -> int:
    """Write all that the masters know to a file; return the exit code. Raises Conflict, Usage."""
    if os.path.exists(path) and not overwrite:
        raise Conflict(f"{path} is there already; to replace it: --overwrite")
    master, new = find_master(settings), f"{path}.new"
    try:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        figures = save_snapshot(f"{master.host}:{settings.etcd_port}", new)
        os.replace(new, path)
    except OSError as e:
        raise Usage(f"cannot write {path}: {e.strerror}") from e
    finally:
        with contextlib.suppress(OSError):  # it has its name by now, or was never there
            os.unlink(new)
    size = f"{figures['totalKey']} keys, {figures['totalSize']} bytes"
    print_line(f"saved revision {figures['revision']} ({size}) in {path}")
    return 0


def recover(settings: Settings, snapshot: str) -> int:
    """Begin again on this machine, with its data or a backup; return the exit code.

    Raises Conflict while a majority answers, NotFound where nothing is to begin with.
    """
    settings = with_own_ip(settings)
    place = member_place(settings)
    if snapshot and not os.path.isfile(snapshot):
        raise NotFound(f"there is no file {snapshot}")
    if not snapshot and not place.has_data():
        raise NotFound(
            "this machine has no data of a master to recover from; type it on one that has, or "
            "with a backup: arpanet master recover --from FILE"
        )
    require_lost(settings, place)
    lock = take_over("master", settings)
    recover_member(place, snapshot)
    os.close(lock)
    print_line(
        f"recovered: {place.name} is the only master now; start it: arpanet master start; then "
        f"on each of the others: arpanet master start --peers {place.ip}"
    )
    return 0


BELIEF_S = 3.0


def require_lost(settings: Settings, place: MemberPlace) -> None:
    """Raise Conflict while masters that are known have a majority.

    For a moment after the loss a member still believes in its leader. Source: --election-timeout.
    """
    known = [f"{ip}:{settings.etcd_port}" for ip in met_masters(settings)]
    clients = dict.fromkeys([place.client, *read_state(place.state_path).peers, *known])
    deadline, pause = time.monotonic() + BELIEF_S, threading.Event()
    while living := [client.rpartition(":")[0] for client in clients if has_leader(client)]:
        if time.monotonic() > deadline:
            raise Conflict(
                f"the masters have a majority ({', '.join(living)}): there is nothing to recover; "
                "to go back to a backup, first stop them all: arpanet master stop"
            )
        pause.wait(0.3)


def forget_host(mesh: Mesh, name: str, volumes: bool) -> None:
    """Delete what the mesh has of a host, its names and, if asked, its volumes."""
    mesh.delete_prefix(key_of("containers", name, ""))
    mesh.delete_prefix(key_of("chores", name, ""))
    for table in ("names", "recipes", "declared", *(("volumes",) if volumes else ())):
        for entry in mesh.read_prefix(key_of(table, ""))[1]:
            if read_value(entry.value).get("host") == name:
                mesh.delete(entry.key, value=entry.value)
    mesh.delete(key_of("orders", name))
    mesh.delete(key_of("hosts", name))


@contextlib.contextmanager
def open_master(
    settings: Settings, method: str, path: str, body: Any, timeout_s: float | None
) -> Iterator[http.client.HTTPResponse]:
    """Give the response of a master that answers. Raises MeshDown, EngineError with its words."""
    master = find_master(settings)
    try:
        with http_answer(master, method, path, timeout_s, body) as response:
            if response.status >= 400:
                raise EngineError(response.status, json.loads(response.read())["message"])
            yield response
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise MeshDown(f"the answer of the master at {master} broke off ({e}); try again") from e


def ask_master(settings: Settings, method: str, path: str, body: Any = None) -> Any:
    """Return the JSON that a master answers. Raises as open_master()."""
    with open_master(settings, method, path, body, 30.0) as response:
        return json.loads(response.read())


def stream_master(settings: Settings, path: str) -> Iterator[dict[str, Any]]:
    """Yield the objects, one a line, that a master answers to a POST. Raises as open_master()."""
    with open_master(settings, "POST", path, None, None) as response:
        for line in read_lines(iter(functools.partial(response.read1, BLOCK_BYTES), b"")):
            yield json.loads(line)


def show_hosts(hosts: Sequence[Mapping[str, Any]]) -> None:
    """Print hosts for a person."""
    rows: list[Sequence[Any]] = [
        ("HOST", "ADDRESS", "STATE", "CONTAINERS", "RUNNING", "CPUS", "MEMORY", "LABELS")
    ]
    for h in hosts:
        cpus = f"{h['nano_cpus_taken'] / 1e9:g} of {h['engine'].get('cpus', 0)}"
        memory = f"{mib(h['memory_taken_bytes'])} of {mib(h['engine'].get('memory_bytes', 0))}"
        state = ", ".join(filter(None, ("up" if h["alive"] else "down", h["state"])))
        labels = ",".join(f"{key}={value}" for key, value in sorted(h["labels"].items()))
        counts = h["containers"], h["running"]
        rows.append((h["name"], h["ip"], state, *counts, cpus, memory, labels))
    print_table(rows)


ORDERS = {"drain": "drained", "cordon": "cordoned", "undrain": ""}


def read_labels(texts: Iterable[str]) -> dict[str, str | None]:
    """Return the labels of KEY=VALUE, and None for those of KEY-. Raises Usage."""
    labels: dict[str, str | None] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator and not text.endswith("-"):
            raise Usage(f"{text!r} is no label: type KEY=VALUE, or KEY- to take it away")
        labels[key if separator else text.removesuffix("-")] = value if separator else None
    return labels


def run_host(options: argparse.Namespace, settings: Settings) -> int:
    """Show hosts or say something of one; return the exit code."""
    name, path = getattr(options, "name", ""), "/arpanet/hosts"
    if options.verb == "rm":
        return leave_network(settings, name, options.forget)
    path += f"/{urllib.parse.quote(name, safe='')}" if name else ""
    if options.verb in ("ls", "inspect"):
        found = ask_master(settings, "GET", path)
        if options.json:
            print_line(json.dumps(found, indent=2))
        elif name:
            print_table([(key, found[key]) for key in found if key != "engine"])
            print_table([(f"engine {key}", value) for key, value in found["engine"].items()])
        else:
            show_hosts(found)
        return 0
    if options.verb == "label":
        change: dict[str, Any] = {"labels": read_labels(options.labels)}
    else:
        change = {"state": ORDERS[options.verb]}
    show_hosts([ask_master(settings, "POST", path, change)])
    return 0


def parse_size(text: str) -> int:
    """Return the bytes of 512m or 2g, as docker run takes them. Raises ValueError."""
    match = re.fullmatch("([0-9.]+)([bkmg]?)b?", text.lower())
    if not match:
        raise ValueError("a size is needed, like 512m")
    return int(float(match[1]) * 1024 ** "bkmg".index(match[2] or "b"))


def parse_cpus(text: str) -> int:
    """Return the thousand millionths of a CPU of 0.5 or 2. Raises ValueError."""
    if not re.fullmatch("[0-9.]+", text):
        raise ValueError("a number is needed, like 0.5")
    return int(float(text) * 10**9)


def parse_publish(text: str) -> tuple[str, dict[str, str]]:
    """Return port and binding of [IP:]PORT:PORT[/udp]. Raises ValueError."""
    match = re.fullmatch(r"(?:([0-9.]+):)?(\d+):(\d+)(/(?:tcp|udp|sctp))?", text)
    if not match:
        raise ValueError("a port is needed, like 8080:80")
    return match[3] + (match[4] or "/tcp"), {"HostIp": match[1] or "", "HostPort": match[2]}


def show_place(options: argparse.Namespace, settings: Settings) -> int:
    """Print where docker run would put a container, and why; return the exit code."""
    ports: dict[str, list[dict[str, str]]] = {}
    for port, binding in options.publish:
        ports.setdefault(port, []).append(binding)
    body = {
        "Image": options.image,
        "Env": options.env,
        "Labels": dict(text.partition("=")[::2] for text in options.label),
        "HostConfig": {
            "Memory": options.memory,
            "NanoCpus": options.cpus,
            "CpuShares": options.cpu_shares,
            "PortBindings": ports,
            "Binds": options.volume,
            "VolumesFrom": options.volumes_from,
        },
    }
    path = f"/arpanet/place?{urllib.parse.urlencode({'name': options.name})}"
    found = ask_master(settings, "POST", path, body)
    if options.json:
        print_line(json.dumps(found, indent=2))
        return 0
    print_line(f"{found['host']}: {found['reason']}")
    others = [
        (h, why or "could take it") for h, why in found["hosts"].items() if h != found["host"]
    ]
    if others:
        print_table(others)
    return 0


def show_move(options: argparse.Namespace, settings: Settings) -> int:
    """Move a container and print where it is now; return the exit code."""
    name = urllib.parse.quote(options.name, safe="")
    query = urllib.parse.urlencode({"host": options.host, "volumes": int(options.with_volumes)})
    path = f"/arpanet/containers/{name}/move?{query}"
    for state in stream_master(settings, path):
        if "error" in state:
            raise EngineError(state["status"], state["error"])
        if "host" in state:
            print_line(f"{options.name} is on {state['host']} now; it was on {state['from']}")
            return 0
        print_remark(state["note"])
    raise MeshDown(f"the answer broke off; see: docker ps -a --filter name={options.name}")


def show_spread(options: argparse.Namespace, settings: Settings) -> int:
    """Bring an image to hosts and print how far it is; return 1 when one did not get it."""
    query = urllib.parse.urlencode({"to": options.to} if options.to else {})
    image = urllib.parse.quote(options.image, safe="/:@")
    code = 0
    path = f"/arpanet/images/{image}/spread?{query}"
    for state in stream_master(settings, path):
        host, moved = state["host"], mib(state.get("moved_bytes", 0))
        if "error" in state:
            print_remark(f"{host}: {state['error']}")
            code = 1
        elif "done" in state:
            print_line(f"{host}: {state['done']}")
        else:
            print_remark(f"{host}: {moved} of about {mib(state['size_bytes'])}")
    return code


CLIENT_NAME = "[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}"


def run_ca(options: argparse.Namespace, _settings: Settings) -> int:
    """Make authorities or a certificate; return the exit code. Raises Usage, Unavailable."""
    with disk_errors(options.ca):
        if options.verb == "init":
            make_authorities(options.ca)
            print_line(f"made {options.ca}; its keys open everything: keep them to yourself")
            return 0
        return issue(options)


def issue(options: argparse.Namespace) -> int:
    """Make a certificate; return the exit code. Raises Usage, OSError."""
    host, client, days = options.host, options.client, min(options.days, AUTHORITY_DAYS)
    if bool(host) == bool(client) or bool(host) != bool(options.ip):
        raise Usage("say for whom: --host NAME --ip IP, or --client NAME")
    if client and not re.fullmatch(CLIENT_NAME, client):
        raise Usage(f"a client's name is made of letters, digits, dots and dashes, not {client!r}")
    authority = read_authority(options.ca, "ca.pem" if host else CLIENTS_CA)
    if host:
        pair = sign_for_machine(host, options.ip, days, authority)
    else:
        pair = sign_for_client(client, days, authority)
    directory = os.path.join(options.ca, "hosts" if host else "clients", host or client)
    for name in ("ca.pem", CLIENTS_CA) if host else ("ca.pem",):
        trusted = read_file(os.path.join(options.ca, name))
        write_file(os.path.join(directory, name), trusted, 0o644)
    write_pair(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"), pair)
    end, place = pair.cert.not_valid_after_utc, f"{host}:{TLS_DIR}" if host else "its ~/.docker"
    print_line(f"made {directory}, good until {end:%Y-%m-%d}; its files belong in {place}")
    return 0


def run_docker(settings: Settings, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Become the docker client; a child carries its connections. Raises Usage."""
    try:
        socket_path = os.path.join(make_private_directory(settings), "docker.sock")
    except OSError as e:
        raise Usage(f"cannot make a socket for docker: {e}") from e
    docker, (reading, writing) = os.getpid(), os.pipe()
    if not os.fork():
        os.close(reading)
        carry_for(docker, dataclasses.replace(settings, socket=socket_path), Herald(writing))
    os.close(writing)
    hear_daemon(reading, "try again")
    own = {k: v for k, v in environment.items() if not k.startswith("DOCKER_TLS")}  # the child's
    try:
        os.execvpe("docker", ["docker", "-H", f"unix://{socket_path}", *arguments], own)
    except OSError as e:
        raise Usage(f"cannot run docker: {e.strerror}; try: apt-get install docker.io") from e


def make_private_directory(settings: Settings) -> str:
    """Make a directory that only this user may enter: in memory, where that is ours to write."""
    try:
        return tempfile.mkdtemp(prefix="docker-", dir=settings.run_dir)
    except OSError:
        return tempfile.mkdtemp(prefix="arpanet-")


def carry_for(docker: int, settings: Settings, herald: Herald) -> NoReturn:
    """Carry the connections of a docker client for as long as that process lives."""
    os.setsid()  # Ctrl-C is for docker alone
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    raise_descriptors()
    log.addHandler(logging.NullHandler())  # the terminal is docker's
    stop = threading.Event()
    carrier = Companion(settings, stop, print_remark)

    def await_end() -> None:
        select.select([os.pidfd_open(docker)], [], [])
        stop.set()

    try:
        spawn("docker", await_end, stop)
        herald.ready(carrier.start())
        stop.wait()
    except ArpanetError as e:
        herald.fail(e)
    except BaseException as e:  # a bug: nobody would hear of it otherwise
        herald.fail(ArpanetError(f"internal error: {e!r}"))
        raise
    finally:
        carrier.close()
        shutil.rmtree(os.path.dirname(settings.socket), ignore_errors=True)
        leave_process(0)


def help_text(options: argparse.Namespace) -> str:
    """Return what there is to know about a topic; without one, the topics."""
    if not options.topic:
        return f"arpanet help TOPIC; the topics: {', '.join(TOPICS)}"
    return TOPICS[options.topic] or settings_text()


def settings_text() -> str:
    """Return the settings for a person at a terminal."""
    lines = [
        f"{row.variable}={row.default}\n    {row.help}\n    {row.flag} of {row.roles}"
        for row in SETTINGS
    ]
    return "\n".join([*lines, SOURCES])


SOURCES = """
A flag of start beats the environment, which beats a line NAME=VALUE of /etc/arpanet/arpanet.env,
which beats the default. sudo and systemd drop the environment, so the file is the place to stay in;
it is read at the next start: systemctl restart arpanet-master arpanet-slave"""
TOPICS = {
    "settings": "",  # made from SETTINGS
    "names": """\
A container needs a name (--name), and no two in the arpanet share one: web runs on one host alone.
docker ps shows NAME@HOST. NAME, NAME@HOST, the id and its prefix are taken wherever docker takes a
container. A master with ARPANET_AUTO_NAME=1 gives a name to a container that has none.""",
    "links": """\
docker run --link db:sql and -e ARPANET_LINK1=db:sql mean the same, on whichever hosts they run:
the container finds the name sql, and variables like SQL_PORT_5432_TCP_ADDR. More links are
ARPANET_LINK2 and so on. They carry TCP to the ports that db exposes (EXPOSE, --expose, -p), follow
db when it is run again on another host, and are refused to all who did not declare them.
arpanet slave status shows those of a host, with what went through.""",
    "volumes": """\
docker run -e ARPANET_VOLUME1=/data gives a container a volume of its own. Run again by the same
name, it goes back to the host that has the volume. vol:/data, /data:ro and /host/dir:/data work as
with -v; -v vol:/data goes to the host that has vol. If that host is down, run says so: there is
never a second, empty volume elsewhere.""",
    "hosts": """\
A container goes to the host that has fewest, among those that can take it: alive, not drained, with
its volumes, its ports free, room for -m and --cpus. -e ARPANET_HOST=h2 or --name x@h2 asks for a
host; -e ARPANET_CONSTRAINT1=zone==b for a label (arpanet host label h2 zone=b), with != * /regex/
and, where it is only a wish, zone==~b; -e ARPANET_AFFINITY1=container==db for the neighbour db.
arpanet place --dry-run shows where docker run would put a container, and why not elsewhere.
arpanet host drain h2 keeps new ones away from h2, arpanet image spread brings images ahead.""",
    "moving": """\
arpanet move NAME [HOST] stops a container, makes it again on another host (on HOST, or where docker
run would put it) and starts it there; links follow. --with-volumes copies its volumes, compares
checksums, and removes them where they were. Cut off on the way, all is as it was before.
docker run -e ARPANET_RESCHEDULE=on-host-failure has a container made again elsewhere when its host
is silent for ARPANET_GRACE_S, unless a volume keeps it there. When that host is back, the old one
is removed.""",
    "masters": """\
A master is an etcd member and the Docker API at port 8791. The first is started with --peers boot,
the others with --peers and the address of one that is there. All are equal, and any may stop: more
than half must answer for anything to be changed, so have three or five. docker may ask any of them;
arpanet client start and arpanet docker find one that lives. arpanet master status shows all.""",
    "tls": """\
With certificates every port speaks TLS, in both directions. On a machine that you keep to yourself:
  arpanet ca init ca; cd ca
  arpanet ca issue --host h1 --ip 192.168.8.120     for each machine
  arpanet ca issue --client me                      for each person
Copy the files of hosts/h1 to /etc/arpanet/tls of h1, put ARPANET_CERT_PATH=/etc/arpanet/tls into
its /etc/arpanet/arpanet.env, and start it. Then, with DOCKER_CERT_PATH=clients/me:
  docker --tlsverify -H tcp://192.168.8.120:8791 ps
A client's certificate opens the Docker API, which is as much as root on every host. Masters and
slaves need a machine's, which is good for its HOSTNAME and address alone. To renew one (397 days;
doctor tells a month before) issue it again and copy the files again: nothing is restarted. The
README tells how an authority is replaced, and how an arpanet goes from the clear to TLS.""",
    "doctor": """\
arpanet doctor looks at this machine and its arpanet: which masters and slaves answer, who reaches
whom, engines, the route for links, versions, clocks, disks, names that are there twice. A line with
✗ says what to do; the exit code is 0 when there is none. What a daemon did is in
/var/log/arpanet/ROLE.log, or with systemd: journalctl -u arpanet-master -u arpanet-slave""",
}


def complete_words(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Yield each line of commands that can be typed, and the words that may come next."""
    words: list[str] = []
    for action in parser._actions:
        words += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            words += action.choices
            for child in action.choices.values():
                yield from complete_words(child)
        elif action.choices and not action.option_strings:
            words += map(str, action.choices)
    yield parser.prog, words


def completion(options: argparse.Namespace) -> str:
    """Return a shell's code that completes the words of arpanet."""
    cases = [
        f'        "{line}") words="{" ".join(words)}";;'
        for line, words in complete_words(build_parser())
    ]
    first = ["autoload -U +X bashcompinit && bashcompinit"] if options.shell == "zsh" else []
    return "\n".join([*first, *COMPLETION_HEAD, *cases, *COMPLETION_TAIL])


TEXTS: Mapping[str, Callable[[argparse.Namespace], str]] = {
    "help": help_text,
    "completion": completion,
}
COMPLETION_HEAD = (
    "# completion of arpanet; in ~/.bashrc: . <(arpanet completion bash), in ~/.zshrc likewise",
    "_arpanet() {",
    '    local line="arpanet" words="" word',
    '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
    '        case "$word" in -*) break;; *) line="$line $word";; esac',
    "    done",
    '    case "$line" in',
)
COMPLETION_TAIL = (
    "    esac",
    '    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
    "}",
    "complete -F _arpanet arpanet",
)

VERBS = {
    ("master", "start"): "Start a master: an etcd member and the Docker API",
    ("master", "stop"): "Stop this machine's master; it stays a member",
    ("master", "status"): "Show masters and hosts; exit code 0 when all are well",
    ("master", "leave"): "Take this machine's master away for good",
    ("master", "remove"): "Take a dead master off the list for good",
    ("master", "backup"): "Save all that the masters know in a file",
    ("master", "recover"): "Begin again when most masters are lost for good",
    ("slave", "start"): "Put this machine's Docker Engine on the network",
    ("slave", "stop"): "Stop this machine's slave; its containers run on",
    ("slave", "status"): "Show what this machine's slave does",
    ("slave", "leave"): "Take a host off the network for good",
    ("client", "start"): "Offer a unix socket that always reaches a living master",
    ("client", "stop"): "Stop this machine's client",
    ("client", "status"): "Show whether this machine's client runs",
    ("ca", "init"): "Make what signs the certificates",
    ("ca", "issue"): "Make or renew the certificate of a machine, or of a client",
    ("host", "ls"): "Show all hosts, and what of them is taken",
    ("host", "inspect"): "Show all that is known of a host",
    ("host", "drain"): "Keep all new containers off a host; see: arpanet move",
    ("host", "cordon"): "Keep new containers off a host that do not name it",
    ("host", "undrain"): "Let a drained or cordoned host take containers again",
    ("host", "label"): "Give a host labels, or take them away",
    ("host", "rm"): "Take a dead host off the network for good",
    ("image", "spread"): "Put an image on all hosts, from one that has it",
}
ROLES = {
    "master": "Run one of three or more masters, any of which may stop",
    "slave": "Run what makes this machine a Docker host of the network",
    "client": "Run a local Docker endpoint that finds a living master",
    "host": "Show the hosts, and say which of them take containers",
    "image": "Put images where they will be needed",
    "ca": "Make certificates for TLS",
    "docker": "Run the docker client with masters that are alive",
    "place": "Show where docker run would put a container, and why",
    "move": "Move a container to another host, under its name",
    "doctor": "Show what is wrong with this machine and its arpanet",
    "help": "Show what there is to know about a topic",
    "completion": "Show the code that completes arpanet's words in a shell",
}
TOLD = {
    ("ca", "issue"): """\
It is made in DIR/hosts/NAME or DIR/clients/NAME, as ca.pem, cert.pem and key.pem. To renew it, type
the same again, and copy the files again: a daemon takes them at the next connection.
""",
    ("master", "leave"): """\
It is stopped, and the others go on without it; no command of theirs fails. Its data is kept as
etcd.old in its state directory. The last master cannot leave. Where systemd starts it, type too:
systemctl disable arpanet-master. To come back: arpanet master start --peers ADDRESS.
""",
    ("master", "remove"): """\
Type it on any living master. A master that lives is told to leave on its own machine:
arpanet master leave. One that is only down for a while needs neither: start it again.
To replace a machine: remove the old one, then on the new one: arpanet master start --peers ADDRESS.
""",
    ("master", "backup"): """\
The file is a snapshot of etcd: names, links, volumes' hosts, networks; neither containers nor the
contents of volumes. It is written whole or not at all, and only root may read it.
Needs etcdctl. The way back: arpanet master recover --from FILE.
""",
    ("master", "recover"): """\
With three masters, two of which are lost for good, the third has all the data and no majority.
This makes it the only one; then start it, and start new ones with --peers. What only the lost ones
knew is lost. Where no master's data is left: --from FILE, with what arpanet master backup saved.
Refused while a majority answers. Be sure that the others are not merely cut off: they would go on.
What was here is kept as etcd.old in the state directory.
""",
}
EXAMPLES = """\
the first three commands:
  h1$ sudo arpanet master start --peers boot
  h2$ sudo arpanet master start --peers 192.168.8.120
  h1$ sudo arpanet slave start           (on each Docker host)
then, from anywhere:
  $ docker -H tcp://192.168.8.120:8791 run -d --name db redis

Each setting is a flag, a variable, or a line of /etc/arpanet/arpanet.env.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="arpanet",
        description="Many Docker hosts answer as one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"arpanet {__version__}")
    roles = parser.add_subparsers(dest="role", metavar="COMMAND", required=True)
    for role, meaning in ROLES.items():
        command = roles.add_parser(role, help=meaning, description=meaning)
        owned = {verb: words for (owner, verb), words in VERBS.items() if owner == role}
        if not owned:
            add_flags(command, role, "")
            continue
        verbs = command.add_subparsers(dest="verb", metavar="VERB", required=True)
        for verb, words in owned.items():
            parser_of_verb = verbs.add_parser(
                verb,
                help=words,
                description=words,
                epilog=TOLD.get((role, verb)),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            add_flags(parser_of_verb, role, verb)
    return parser


def add_flags(parser: argparse.ArgumentParser, role: str, verb: str) -> None:
    """Add the flags of a verb: its own, and the settings that it reads."""
    for name, options in OWN_FLAGS.get((role, verb), {}).items():
        parser.add_argument(*name.split(), **options)
    if role in ("docker", "doctor"):
        return  # what docker gets is not ours, and doctor looks at what the others read
    for row in SETTINGS:
        asked = row.name in ASKED or (row.name in RUNNING and verb in ("leave", "recover"))
        if READS.get(role, role) in row.roles and (verb == "start" or asked):
            text = f"{row.help} [{row.variable}]"
            how: dict[str, Any] = {"metavar": row.metavar}
            if not row.metavar:
                how = {"action": "store_const", "const": "1"}
            elif row.parse is parse_flag:
                how = {"nargs": "?", "const": "1", "metavar": row.metavar}
            elif row.metavar.endswith(",…]"):
                how["action"] = "append"
            parser.add_argument(row.flag, dest=f"set_{row.name}", help=text, **how)


CERTIFICATES = ("tls", "tlsverify", "tlscacert", "tlscert", "tlskey", "cert_path")
PORTS = ("api_port", "agent_port", "etcd_port")
ASKED = ("ip", "masters", "hostname", *PORTS, *CERTIFICATES, "run_dir", "state_dir")
RUNNING = ("etcd_peer_port", "log_dir")  # what it also takes to start etcd
READS = {  # whose settings a command reads that is none of a role
    "docker": "client",
    "doctor": "master",
    "host": "slave",
    "image": "client",
    "place": "client",
    "move": "client",
}


def told(words: str, metavar: str = "", **how: Any) -> Mapping[str, Any]:
    """Return what argparse is told of a word or a flag; words: its help."""
    return {"help": words, **({"metavar": metavar} if metavar else {}), **how}


A_HOST = MappingProxyType({"name": told("Such as h2", "HOST")})
FORGET = MappingProxyType({"--forget": told("Let go of its volumes too", action="store_true")})
AS_JSON = MappingProxyType({"--json": told("Print JSON", action="store_true")})
SEVERAL: Mapping[str, Any] = {"action": "append", "default": []}
OWN_FLAGS: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]] = {
    **{
        (role, "start"): {"--foreground": told("Stay, as systemd wants it", action="store_true")}
        for role in MAKERS
    },
    **{(role, "status"): AS_JSON for role in MAKERS},
    ("slave", "leave"): {
        "--host": told("A dead host (default: this one)", "NAME", default=""),
        **FORGET,
    },
    ("master", "remove"): {"name": told("Its name or address", "HOST")},
    ("master", "backup"): {
        "file": told("The file to write", "FILE"),
        "--overwrite": told("Replace the file if it is there", action="store_true"),
    },
    ("master", "recover"): {"--from": told("A backup", "FILE", dest="snapshot", default="")},
    ("host", "ls"): AS_JSON,
    ("host", "inspect"): {**AS_JSON, **A_HOST},
    **{("host", verb): A_HOST for verb in ORDERS},
    ("host", "rm"): {**A_HOST, **FORGET},
    ("host", "label"): {
        **A_HOST,
        "labels": told("Such as zone=b, or zone- to take it away", "KEY=VALUE", nargs="+"),
    },
    ("ca", "init"): {"ca": told("Where it is to be kept", "DIR")},
    ("ca", "issue"): {
        "--ca": told("What init has made (default: this one)", "DIR", default="."),
        "--host": told("A machine's HOSTNAME", "NAME", type=parse_hostname),
        "--ip": told("Its ARPANET_IP", "IP[,IP…]", type=parse_ips),
        "--client": told("Somebody who uses the Docker API", "NAME"),
        "--days": told(
            f"How long it is good for (default: {CERTIFICATE_DAYS})",
            "N",
            type=parse_count,
            default=CERTIFICATE_DAYS,
        ),
    },
    ("image", "spread"): {
        "image": told("Such as redis:7", "IMAGE"),
        "--to": told("Only to such hosts", "KEY==VALUE", default=""),
    },
    ("docker", ""): {"arguments": told("What docker gets", nargs=argparse.REMAINDER)},
    ("place", ""): {  # those flags of docker run that have a say in where a container goes
        "--dry-run": told("Make nothing; it never does", action="store_true", required=True),
        **AS_JSON,
        "--name": told("NAME or NAME@HOST", default=""),
        "-e --env": told("ARPANET_CONSTRAINT1=zone==b, …", "ARPANET_…", **SEVERAL),
        "-l --label": told("A label", "KEY=VALUE", **SEVERAL),
        "-m --memory": told("Memory, like 512m", "SIZE", type=parse_size, default=0),
        "--cpus": told("CPUs", "N", type=parse_cpus, default=0),
        "-c --cpu-shares": told("Shares, 1024 for a CPU", "N", type=int, default=0),
        "-p --publish": told("A host port", "PORT:PORT", type=parse_publish, **SEVERAL),
        "-v --volume": told("A volume", "NAME:PATH", **SEVERAL),
        "--volumes-from": told("A container whose volumes it uses", "NAME", **SEVERAL),
        "image": told("Its image", "IMAGE", nargs="?", default=""),
    },
    ("move", ""): {
        "name": told("A container", "NAME"),
        "host": told("Where to", "HOST", nargs="?", default=""),
        "--with-volumes": told(
            "Copy its volumes along, and remove them where they were", action="store_true"
        ),
    },
    ("doctor", ""): AS_JSON,
    ("help", ""): {"topic": told("What about", nargs="?", choices=list(TOPICS))},
    ("completion", ""): {"shell": told("Which shell", choices=["bash", "zsh"])},
}


def run_command(
    options: argparse.Namespace, settings: Settings, environment: Mapping[str, str]
) -> int:
    """Do what was typed; return the exit code."""
    if options.role == "doctor":
        return print_findings(run_doctor(settings), options.json, wants_colour(environment))
    own = {
        "host": run_host,
        "place": show_place,
        "move": show_move,
        "image": show_spread,
        "ca": run_ca,
    }
    if options.role == "docker":
        return run_docker(settings, options.arguments, environment)
    if options.role in own:
        return own[options.role](options, settings)
    if options.verb == "start":
        return start_role(options.role, settings, options.foreground)
    if options.verb == "stop":
        return stop_role(options.role, settings)
    actions: dict[tuple[str, str], Callable[[], int]] = {
        ("slave", "leave"): lambda: leave_network(settings, options.host, options.forget),
        ("master", "leave"): lambda: leave_masters(settings),
        ("master", "remove"): lambda: remove_master(settings, options.name),
        ("master", "backup"): lambda: back_up(settings, options.file, options.overwrite),
        ("master", "recover"): lambda: recover(settings, options.snapshot),
    }
    if (options.role, options.verb) in actions:
        return actions[options.role, options.verb]()
    show = {"master": show_master, "slave": show_slave, "client": show_client}[options.role]
    return show(settings, options.json)


def write_to_any_terminal() -> None:
    """Let a terminal of long ago show ✓ and … in its own way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code. The only place that prints an error."""
    write_to_any_terminal()
    options = build_parser().parse_args(arguments)
    flags = {
        k.removeprefix("set_"): ",".join(v) if isinstance(v, list) else v
        for k, v in vars(options).items()
        if k.startswith("set_")
    }
    environment = os.environ  # noqa: TID251 (the one place that reads it)
    try:
        if options.role in TEXTS:
            print_line(TEXTS[options.role](options))
            return 0
        machine = options.role in ("master", "slave") and options.verb != "status"
        others = {} if machine or options.role == "doctor" else docker_tls(environment)
        settings = read_settings(
            flags,
            {**others, **environment},
            read_env_file(),
            socket.gethostname(),
            READS.get(options.role, options.role),
        )
        if options.role != "doctor" and getattr(options, "verb", "") != "stop":
            use_identity(make_identity(settings, options.role))
        return run_command(options, settings, environment)
    except ArpanetError as e:
        print_remark(str(e))
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except ImportError as e:
        print_remark(f"cannot load a library: {e}; PEX_ROOT=DIR keeps them elsewhere, not noexec")
        return 1
    except Exception as e:
        log.debug("internal error", exc_info=True)
        print_remark(f"internal error: {e!r}; please report it")
        return 70


if __name__ == "__main__":
    sys.exit(main())
