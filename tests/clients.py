"""Clients of a lab: raw HTTP from c1, a terminal, and one session against two backends."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import reach
from conftest import docker, eventually
from lab import SLOW, Host, Lab, ask_engine

SOCKET = "/run/docker.sock"
REACH = Path(reach.__file__).read_text()
HTTP_CODE = r"""
import json, sys
answers = []
for host, verb, path, headers, body in json.load(sys.stdin):
    connection = reach_http(host)
    connection.request(verb, path, body, headers)
    answer = connection.getresponse()
    answers.append([answer.status, dict(answer.getheaders()), answer.read().decode("latin-1")])
json.dump(answers, sys.stdout)
"""
RAW_CODE = r"""
import base64, json, sys
host, parts, half_close = json.load(sys.stdin)
link = reach(host)
got = b""
try:
    for part in parts:
        link.sendall(base64.b64decode(part))
    if half_close:
        end_sending(link)
except OSError:
    pass  # it has answered already, and wants no more
try:
    while block := receive(link):
        got += block
except (ConnectionResetError, ssl.SSLEOFError):
    pass
json.dump(got.decode("latin-1"), sys.stdout)
"""


class Answer(NamedTuple):
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def message(self) -> str:
        """Return the words of an error in Docker's form; anything else fails the test."""
        document = json.loads(self.text)
        assert list(document) == ["message"], document
        return str(document["message"])


class Ask(NamedTuple):
    """A request to the master on a host."""

    verb: str
    path: str
    body: str | None = None
    via: str = "h1"
    kind: str = "application/json"


def program(code: str) -> list[str]:
    """Return the words that run a Python program on a host, which may use what reach.py has."""
    return ["python3", "-I", "-c", REACH + code]


def ask_all(lab: Lab, *asks: Ask) -> list[Answer]:
    """Return the answers to requests that c1 sends one after the other, each on its connection."""
    rows = [
        (lab[a.via].ip, a.verb, a.path, {"Content-Type": a.kind} if a.body else {}, a.body)
        for a in asks
    ]
    done = lab.client.run(program(HTTP_CODE), input=json.dumps(rows))
    return [Answer(*row) for row in json.loads(done.stdout)]


def ask(lab: Lab, verb: str, path: str, body: str | None = None, via: str = "h1") -> Answer:
    """Return the answer to one request."""
    return ask_all(lab, Ask(verb, path, body, via))[0]


def send_raw(lab: Lab, *parts: bytes, via: str = "h1", half_close: bool = False) -> str:
    """Return all that a master answers to those bytes until it closes; 20 s without a byte fail."""
    encoded = [base64.b64encode(part).decode() for part in parts]
    order = json.dumps([lab[via].ip, encoded, half_close])
    return str(json.loads(lab.client.run(program(RAW_CODE), input=order).stdout))


# ---- engines, past arpanet


def engine_json(host: Host, path: str) -> Any:
    """Return what a host's engine answers to a GET."""
    status, body = ask_engine(str(host.path(SOCKET)), "GET", path)
    assert status == 200, body
    return json.loads(body)


def engine_names(lab: Lab) -> list[str]:
    """Return NAME@HOST of every container on every engine, sorted."""
    return sorted(
        f"{entry['Names'][0][1:]}@{host.name}"
        for host in lab.hosts
        for entry in engine_json(host, "/containers/json?all=1")
    )


def remove_containers(lab: Lab) -> None:
    """Remove every container behind arpanet's back, and wait until no master lists one."""
    doomed = [
        (str(host.path(SOCKET)), "DELETE", f"/containers/{entry['Id']}?force=1&v=1")
        for host in lab.hosts
        for entry in engine_json(host, "/containers/json?all=1")
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: ask_engine(*row), doomed))
    eventually("nothing is listed", lambda: require_empty(lab))


def require_empty(lab: Lab) -> None:
    """Raise AssertionError unless neither a container nor a name is left."""
    listed = ask(lab, "GET", "/containers/json?all=1")
    assert listed.text.strip() == "[]", listed.text


# ---- one session, two backends


class Front(NamedTuple):
    """Where a session goes: a bare engine (h1, from h1 itself), or arpanet (from c1)."""

    lab: Lab
    bare: bool

    def run(self, *words: str, **options: Any) -> Any:
        """Run docker with those words, whatever its exit code."""
        if self.bare:
            return self.lab["h1"].run(["docker", *words], check=False, **options)
        return docker(self.lab, *words, via="h2", check=False, **options)


class Said(NamedTuple):
    """What a docker command answered, ids and hosts left out."""

    command: str
    code: int
    out: str
    err: str


def plain(text: str) -> str:
    """Return a text without what differs from run to run: ids, @HOST, times."""
    text = re.sub(r"\b[0-9a-f]{64}\b", "ID", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "SHORT", text)
    return re.sub(r"@h\d\b", "", text)


def transcript(front: Front, session: Sequence[Sequence[str]]) -> list[Said]:
    """Return what each command of a session said."""
    said = []
    for words in session:
        done = front.run(*words)
        said.append(Said(" ".join(words), done.returncode, plain(done.stdout), plain(done.stderr)))
    return said


# ---- a terminal


class Terminal:
    """A docker command on c1 at a terminal of its own."""

    def __init__(self, lab: Lab, *words: str, rows: int = 24, columns: int = 80) -> None:
        self._fd, near = os.openpty()
        self.resize(rows, columns, tell=False)
        self.shown = ""
        self.process = lab.client.popen(
            ["setsid", "--ctty", *words], {"TERM": "xterm"}, stdin=near, stdout=near, stderr=near
        )
        os.close(near)

    def type(self, text: str) -> None:
        """Press those keys."""
        os.write(self._fd, text.encode())

    def resize(self, rows: int, columns: int, tell: bool = True) -> None:
        """Give the window another size; the terminal tells its programs, as a real one does."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def read_until(self, wanted: str, within_s: float = 20.0) -> str:
        """Return what was shown up to wanted, and forget it. Raises AssertionError."""
        deadline = time.monotonic() + within_s * SLOW
        while wanted not in self.shown:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"no {wanted!r} within {within_s} s; shown: {self.shown!r}"
            if select.select([self._fd], [], [], left_s)[0]:
                self._read()
        before, found, self.shown = self.shown.partition(wanted)
        return before + found

    def _read(self) -> None:
        try:
            block = os.read(self._fd, 65536)
        except OSError:  # EIO: the other end has gone
            block = b""
        assert block, f"the terminal was closed; shown: {self.shown!r}"
        self.shown += block.decode(errors="replace")

    def wait(self, within_s: float = 20.0) -> int:
        """Return the command's exit code."""
        code = self.process.wait(within_s)
        with contextlib.suppress(AssertionError):
            while select.select([self._fd], [], [], 0)[0]:
                self._read()
        return code

    def close(self) -> None:
        """Take the terminal away."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)


@contextlib.contextmanager
def terminal(lab: Lab, *words: str, **options: int) -> Iterator[Terminal]:
    """Yield a docker command at a terminal; at the end the command is killed."""
    made = Terminal(lab, *words, **options)
    try:
        yield made
    finally:
        made.close()
