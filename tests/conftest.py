"""What every test may use: waiting, and a lab with the built PEX on three hosts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from lab import NETWORK, SLOW, TLS_DIR, Host, HostProcess, Lab, leftovers

import arpanet
from arpanet import ArpanetError, Pump

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
FAILED = Path(__file__).parent / "lab" / "failed"
HOSTS = ("h1", "h2", "h3")
POLL_S = 0.05
GRPC_THREADS = 5  # which etcd's client may make for itself, when the mesh was out of reach
LAST_LINES = 12  # of each log of a lab, shown with a failure
TLS = bool(os.environ.get("ARPANET_LAB_TLS"))  # all hosts and the client have certificates
clear_only = pytest.mark.skipif(TLS, reason="it is of an arpanet without TLS")
FAULT_ROW = "FAULT            HOST   TRIED  FAILED  GAP s  LOST  DOUBLED"


def eventually(what: str, probe: Callable[[], T], within_s: float = 30.0) -> T:
    """Return what probe returns, as soon as it raises no failed assertion, look-up or command.

    within_s: seconds, multiplied by ARPANET_TEST_SLOW. Raises AssertionError with the last error.
    """
    deadline = time.monotonic() + within_s * SLOW
    while True:
        try:
            return probe()
        except (
            AssertionError,
            LookupError,
            OSError,
            subprocess.CalledProcessError,
            ArpanetError,
        ) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s:g} s: {what}; last: {error}") from error
        threading.Event().wait(POLL_S)


@pytest.fixture
def pump(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pump]:
    """Return a pump that runs, as patient as ARPANET_TEST_SLOW says.

    A bug that ends its thread fails the test.
    """
    for name in ("ANSWER_S", "CONNECT_S", "HEAD_S", "SHAKE_S"):
        monkeypatch.setattr(arpanet, name, getattr(arpanet, name) * SLOW)
    stop = threading.Event()
    made = Pump(stop)
    made.start()
    yield made
    made.stop()
    assert not stop.is_set(), "the pump's thread died"


@pytest.fixture
def keep() -> Iterator[contextlib.ExitStack]:
    """Return what is left with the test."""
    with contextlib.ExitStack() as stack:
        yield stack


def until(what: str, probe: Callable[[], T], within_s: float = 10.0) -> T:
    """Return the first true value of probe; see eventually()."""

    def check() -> T:
        value = probe()
        assert value, f"saw {value!r}"
        return value

    return eventually(what, check, within_s)


def pytest_configure() -> None:
    """Let a test run that is told to stop end all that it began, as Ctrl-C does.

    Ctrl-C too: a shell lets what it starts in the background ignore it, and all that this starts.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show with a failure how the logs of the lab end: the machine it was on may be gone."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab:
        for path in arpanet_logs(lab["h1"].logs.parent):
            told = path.read_text(errors="replace").splitlines()[-LAST_LINES:]
            report.sections.append((f"the end of {path.parent.name}/{path.name}", "\n".join(told)))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what each fault did, as the tests noted it, also where they ran side by side."""
    every = (r for found in terminalreporter.stats.values() for r in found)
    reports = [r for r in every if getattr(r, "when", "") == "call"]  # others repeat what it noted
    rows = [v for r in reports for k, v in getattr(r, "user_properties", ()) if k == "fault"]
    if rows:
        terminalreporter.section("what was lost, and what it did")
        for row in (FAULT_ROW, *rows):
            terminalreporter.line(row)


@pytest.fixture(scope="session")
def root_only() -> None:
    """Skip what needs root, or fail where the lab is required."""
    if os.getuid():
        if os.environ.get("ARPANET_LAB") == "required":
            pytest.fail("ARPANET_LAB=required, and this is not root")
        pytest.skip("the lab needs root: sudo tests/run")


@pytest.fixture(scope="session")
def pex(root_only: None) -> Path:  # noqa: ARG001
    """Return the built dist/arpanet.pex, which the lab's hosts run: never the source tree."""
    subprocess.run([ROOT / "build_zipapp.sh"], check=True, timeout=300)
    return ROOT / "dist" / "arpanet.pex"


def make_authority(made: Path) -> Path:
    """Make an authority, with certificates for h1, h2, h3 and the client c1."""
    machines = [["--host", f"h{n}", "--ip", f"{NETWORK}.{119 + n}"] for n in (1, 2, 3)]
    orders = [["issue", "--ca", str(made), *who] for who in (*machines, ["--client", "c1"])]
    for order in (["init", str(made)], *orders):
        words = [sys.executable, str(ROOT / "arpanet.py"), "ca", *order]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return made


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the authority that hosts with certificates trust."""
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def lab(
    pex: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Yield three hosts with engines and the PEX, nothing of arpanet running yet.

    With ARPANET_LAB_TLS each has a certificate, and the client c1 that of a client.
    A traceback in any log fails the module; a failed module keeps its logs in tests/lab/failed.
    """
    name = f"t{os.getpid()}"
    logs = tmp_path_factory.mktemp("logs")
    before = request.session.testsfailed
    with Lab.up(hosts=3, name=name, pex=pex, logs=logs) as made:
        if TLS:
            made.give_certificates(request.getfixturevalue("authority"))
        yield made
    assert leftovers(name) == []
    faults = scan_logs(logs)
    if faults or request.session.testsfailed > before:
        shutil.copytree(logs, FAILED / request.module.__name__, dirs_exist_ok=True)
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def net(lab: Lab) -> Lab:
    """Return the lab with a master and a slave on each host."""
    start_all(lab)
    return lab


def arpanet_logs(logs: Path) -> list[Path]:
    """Return the logs that arpanet itself wrote on the hosts of a lab."""
    ours = ("master.log", "slave.log", "client.log")
    return [path for path in sorted(logs.glob("*/*.log")) if path.name in ours]


def scan_logs(logs: Path) -> list[str]:
    """Return the lines of all arpanet logs that no user should ever cause."""
    bad = re.compile(r"Traceback|internal error|ended by a fault")
    return [
        f"{path.parent.name}/{path.name}: {line}"
        for path in arpanet_logs(logs)
        for line in path.read_text(errors="replace").splitlines()
        if bad.search(line)
    ]


def start_all(lab: Lab) -> None:
    """Start a master and a slave on each host, as a person does."""
    lab["h1"].run(["arpanet", "master", "start", "--peers", "boot"])
    for name in HOSTS[1:]:
        lab[name].run(["arpanet", "master", "start", "--peers", lab["h1"].ip])
    for name in HOSTS:
        lab[name].run(["arpanet", "slave", "start"])


def docker(
    lab: Lab, *words: str, via: str = "h1", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the docker client on c1, which has no engine, against the master on a host."""
    done: subprocess.CompletedProcess[str] = lab.client.run(
        ["docker", "-H", f"tcp://{lab[via].ip}:8791", *words], **options
    )
    return done


def certificate(host: Host) -> list[str]:
    """Return the flags of curl and etcdctl for a host's certificate, none in the clear."""
    if not host.path(TLS_DIR).exists():
        return []
    flags = {"--cacert": "ca", "--cert": "cert", "--key": "key"}
    return [word for flag, name in flags.items() for word in (flag, f"{TLS_DIR}/{name}.pem")]


def curl(host: Host, path: str, *words: str) -> list[str]:
    """Return the words that ask the master on a host with curl, with a certificate if need be."""
    own = certificate(host)
    return ["curl", *own, *words, f"{'https' if own else 'http'}://{host.ip}:8791{path}"]


def etcdctl(host: Host, *words: str) -> list[str]:
    """Return the words that ask the etcd of a host, typed on that host."""
    ask = ["etcdctl", *certificate(host), "--endpoints", f"{host.ip}:2379"]
    return ["env", "ETCDCTL_API=3", *ask, *words]


def output(lab: Lab, *words: str, via: str = "h1", **options: Any) -> str:
    """Return what the docker client prints, stripped."""
    return docker(lab, *words, via=via, **options).stdout.strip()


def line_of(process: HostProcess) -> str:
    """Return the next line that a command prints."""
    assert process.stdout
    return process.stdout.readline().strip()


def remove_all(lab: Lab, via: str = "h1") -> None:
    """Remove all containers, and their volumes that have no name."""
    if ids := output(lab, "ps", "-aq", via=via).split():
        docker(lab, "rm", "-f", "-v", *ids, via=via)


def host_of(lab: Lab, name: str) -> str:
    """Return the host that a container is on."""
    names = output(lab, "ps", "-a", "--format", "{{.Names}}").split()
    return dict(n.split("@") for n in names)[name]
