"""A fresh Debian machine becomes an arpanet with one command, and it stays installed.

The machine is a real one but for its kernel: debootstrap's minbase, booted by systemd-nspawn in a
network of its own that leads nowhere. Debian's packages come from apt's cache inside it, and pip's
from a directory, so nothing is fetched while a test runs; both are fetched once, with this
machine's settings for apt and pip, into CACHE.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from debian import call, kept, read_sources
from lab import SLOW, Process, list_processes

REPO = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "apt-get")
# Not on a bare Debian, and not what bootstrap.sh is to bring: systemd for a booted machine, busybox
# for a test image, wget for the README's first line.
INCLUDED = "systemd-sysv,dbus,busybox-static,wget"
# What bootstrap.sh is to install; apt keeps these in its cache inside the machine, not installed.
DOWNLOADED = (
    "docker.io etcd-server etcd-client python3 python3-venv iproute2 iptables ca-certificates"
)
# docker-cli is a package of its own from Debian 13 on
DOWNLOAD = f"""
apt-get update -qq
set -- {DOWNLOADED}
if apt-cache show docker-cli >/dev/null 2>&1; then set -- "$@" docker-cli; fi
exec apt-get install -y -qq --no-install-recommends --download-only "$@"
"""
IMAGE = """
mkdir -p /tmp/image/bin
cp /bin/busybox /tmp/image/bin/
ln -s busybox /tmp/image/bin/echo
tar -C /tmp/image -c . | docker import - busybox:latest
"""
HELLO = "docker -H tcp://127.0.0.1:8791 run --name hello busybox echo hi"
LINKED = """
docker() { command docker -H tcp://127.0.0.1:8791 "$@"; }
serve='echo over a link >/index.html; exec /bin/busybox httpd -f -p 8000 -h /'
docker run -d --name web --expose 8000 busybox /bin/busybox sh -c "$serve" >/dev/null
ask='until /bin/busybox wget -qO- http://web:8000/ 2>/dev/null; do /bin/busybox sleep 1; done'
docker run --rm --name asker --link web busybox /bin/busybox sh -c "$ask"
docker rm -f web >/dev/null
"""
WEB = "http://127.0.0.1:8000"
DOCTOR = "for _ in $(seq 30); do arpanet doctor >said && break; sleep 1; done; cat said"
README_WEB = "https://files.example/arpanet"  # what the README calls it
PIPED = f"wget -qO- {WEB}/bootstrap.sh | ARPANET_URL={WEB}/ bash -s --"
# certificates as the README makes them, and what they are good for
CERTIFIED = f"""
{PIPED}
arpanet ca init ca
cd ca
arpanet ca issue --host "$(hostname)" --ip 192.168.8.120
arpanet ca issue --client me
mkdir /etc/arpanet/tls
cp hosts/*/* /etc/arpanet/tls
printf '# mine' >>/etc/arpanet/arpanet.env
{PIPED} --start --cert-path /etc/arpanet/tls
export DOCKER_CERT_PATH=clients/me
docker --tlsverify -H tcp://192.168.8.120:8791 ps -a --format '{{{{.Names}}}}'
{DOCTOR}
cat /etc/arpanet/arpanet.env
"""
# an upgrade that dies at once when the file is replaced, and all that it started
CUT = """
wget -qO whole.sh $URL/bootstrap.sh
was=$(sha256sum /usr/local/bin/arpanet)
ARPANET_URL=$URL/ setsid bash whole.sh master slave &
for i in $(seq 6000); do
    [ "$(sha256sum /usr/local/bin/arpanet)" = "$was" ] || break
    sleep 0.01
done
kill -9 "-$!"
"""
UNITS = "arpanet-master arpanet-slave"


def require_lab() -> None:
    """Skip, or fail if ARPANET_LAB=required, where no machine can be made."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    reason = f"{', '.join(missing)} not here" if missing else ""
    if os.getuid() != 0:
        reason = "needs root"
    if reason and os.environ.get("ARPANET_LAB") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def wait_until(what: str, is_so: Callable[[], bool], within_s: float) -> None:
    """Return when it is so. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + within_s * SLOW
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        threading.Event().wait(0.1)


# ---- what is fetched once -----------------------------------------------------------------------


def read_apt_settings() -> str:
    """Return how this machine's apt fetches (a proxy, say), as lines of an apt.conf."""
    lines = call("apt-config", "dump", "Acquire").splitlines()
    unwanted = ("Acquire::IndexTargets", "Acquire::Changelogs")
    return "\n".join(line for line in lines if not line.startswith(unwanted))


def make_debian(root: pathlib.Path) -> None:
    """Make the tree of a bare Debian, with the packages to come in apt's cache."""
    sources = read_sources()
    mirror, suite = sources[0].split()[1:3] if sources else ("", "stable")
    options = ["--variant=minbase", f"--include={INCLUDED}"]
    call("debootstrap", *options, suite, root, *filter(None, [mirror]), within_s=600)
    (root / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
    (root / "etc/apt/apt.conf.d/99lab").write_text(read_apt_settings() + "\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    call("chroot", root, "sh", "-euc", DOWNLOAD, within_s=600)
    (root / "etc/resolv.conf").write_text("")


def fetch_packages(directory: pathlib.Path) -> None:
    """Fill a directory with all that pip is asked for by build_zipapp.sh."""
    script = (REPO / "build_zipapp.sh").read_text()
    tools = directory.with_name("tools.txt")
    tools.write_text("\n".join(re.findall(r"^(?:TOOLS=')?(\S+==\S+ --hash=\S+?)'?$", script, re.M)))
    python = directory.with_name("venv") / "bin/python"
    call("/usr/bin/python3", "-m", "venv", python.parents[1])
    call(python, "-m", "pip", "install", "--require-hashes", "-r", tools, within_s=300)
    options = ["--require-hashes", "--no-deps", "--no-build-isolation", "-r", str(tools)]
    download = [*options, "-r", str(REPO / "requirements.txt"), "-d", str(directory)]
    call(python, "-m", "pip", "download", *download, within_s=300)


@pytest.fixture(scope="module")
def debian() -> Iterator[pathlib.Path]:
    require_lab()
    with kept("debian", INCLUDED + DOWNLOAD + "".join(read_sources()), make_debian) as root:
        yield root


@pytest.fixture(scope="module")
def packages() -> Iterator[pathlib.Path]:
    require_lab()
    recipe = (REPO / "requirements.txt").read_text() + (REPO / "build_zipapp.sh").read_text()
    with kept("packages", recipe, fetch_packages) as directory:
        yield directory


@pytest.fixture(scope="module")
def pex(packages: pathlib.Path) -> pathlib.Path:
    """Return arpanet.pex for Debian's own Python."""
    build = packages.parent / "build"
    build.mkdir(exist_ok=True)
    for name in ("arpanet.py", "requirements.txt", "build_zipapp.sh"):
        shutil.copy(REPO / name, build)
    call("env", "PYTHON=/usr/bin/python3", build / "build_zipapp.sh", within_s=300)
    return build / "dist/arpanet.pex"


# ---- the machine --------------------------------------------------------------------------------


# Docker and systemd in the machine then make their control groups below the machine's own.
ENTER_GROUPS = """
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done
shift
exec "$@"
"""


def control_groups() -> list[pathlib.Path]:
    """Return where the trees of control groups are mounted."""
    mounts = [line.split() for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    return [pathlib.Path(words[1]) for words in mounts if words[2] in ("cgroup", "cgroup2")]


def make_group(group: pathlib.Path) -> None:
    """Make a control group that processes can enter."""
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists() and (group.parent / name).exists():  # empty in a new group
            (group / name).write_text((group.parent / name).read_text())


def remove_group(group: pathlib.Path) -> None:
    """Remove a control group and those below it, once its processes are gone."""

    def is_gone() -> bool:
        with contextlib.suppress(OSError):  # busy for a moment after its last process
            for directory, _, _ in os.walk(group, topdown=False):
                os.rmdir(directory)
        return not group.exists()

    wait_until(f"{group} is gone", is_gone, 10)


def children(pid: int) -> list[Process]:
    """Return the living children of a process."""
    return [process for process in list_processes() if process.parent == pid]


class Machine:
    """A fresh Debian that runs; the checkout is in /root/arpanet. Thread: the test's."""

    numbers = itertools.count(1)

    def __init__(self, debian: pathlib.Path, directory: pathlib.Path, boots: bool) -> None:
        self.directory = directory
        self.boots = boots
        self.root = directory / "root"
        self.debian = debian
        self.name = f"arpanet-install-{os.getpid()}-{next(self.numbers)}"
        self.groups = [mount / self.name for mount in control_groups()]
        self.nspawn: subprocess.Popen[bytes] | None = None
        self.leader = 0

    def start(self) -> None:
        """Make the machine, and return when commands can be run in it."""
        for name in ("root", "upper", "work", "docker"):
            (self.directory / name).mkdir(parents=True)
        own = f"upperdir={self.directory}/upper,workdir={self.directory}/work"
        call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={self.debian},{own}", self.root)
        self.copy_checkout()
        for group in self.groups:
            make_group(group)
        self.nspawn = self.spawn()
        self.leader = self.wait_leader(self.nspawn)
        wait_until("the machine is up", self.is_up, 30)
        # dockerd makes control groups, and nspawn gives most of them read-only
        mounts = "awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts"
        self.sh(f"{mounts} | xargs -n1 mount -o remount,bind,rw")

    def copy_checkout(self) -> None:
        """Copy what a user's clone has."""
        there = self.root / "root/arpanet"
        there.mkdir()
        for name in ("arpanet.py", "requirements.txt", "build_zipapp.sh", "bootstrap.sh"):
            shutil.copy(REPO / name, there)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the machine: systemd if it boots, else a process that does nothing."""
        command = ["sh", "-euc", ENTER_GROUPS, "sh", *map(str, self.groups), "--"]
        command += ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-M", self.name]
        command += ["--private-network", "--capability=all", "--system-call-filter=@keyring bpf"]
        command += ["-D", str(self.root), f"--bind={self.directory / 'docker'}:/var/lib/docker"]
        command += ["--boot"] if self.boots else ["--as-pid2", "sleep", "infinity"]
        with open(self.directory / "console", "wb") as console:
            null = subprocess.DEVNULL
            return subprocess.Popen(command, stdin=null, stdout=console, stderr=console)

    def wait_leader(self, nspawn: subprocess.Popen[bytes]) -> int:
        """Return the machine's first process, as it is seen from here, once it is on its own.

        Before that it, and the process that makes it, can still be in namespaces of this machine.
        """
        leaders: list[int] = []

        def is_there() -> bool:
            leaders[:] = [p.pid for p in children(nspawn.pid) if self.is_on_its_own(p)]
            return bool(leaders)

        wait_until("the machine's first process", is_there, 30)
        return leaders[0]

    def is_on_its_own(self, leader: Process) -> bool:
        """Return whether nspawn has made a machine of a process, and has let go of it."""
        if self.boots:
            return leader.comm == "systemd"
        return "sleep" in [process.comm for process in children(leader.pid)]

    def is_up(self) -> bool:
        """Return whether the machine has got as far as it goes by itself."""
        states = ("running", "degraded")
        return not self.boots or self.enter("systemctl is-system-running").stdout.strip() in states

    def enter(self, script: str, within_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Return how a script ended that ran in the machine with root's environment there."""
        command = ["nsenter", "-t", str(self.leader), "-a", "env", "-i", "HOME=/root"]
        command += ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        command += ["sh", "-euc", f"cd /root\n{script}"]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s * SLOW,
        )

    def sh(self, script: str, within_s: float = 120) -> str:
        """Return what a script prints. Raises AssertionError, with logs, if it fails."""
        done = self.enter(script, within_s)
        if done.returncode != 0:
            said = f"{script}\nended with {done.returncode}:\n{done.stdout}"
            raise AssertionError(f"{said}\n{self.logs()}")
        return done.stdout

    def logs(self) -> str:
        """Return the end of what the daemons in the machine wrote."""
        journal = "journalctl -q -n 50 -o cat -u 'arpanet-*' -u docker; " if self.boots else ""
        return self.enter(journal + "tail -n 30 /var/log/arpanet/*.log || true").stdout

    def close(self) -> None:
        """Stop the machine and take away all of it."""
        try:
            if self.nspawn is not None:
                self.stop(self.nspawn)
        finally:
            if os.path.ismount(self.root):
                call("umount", "--recursive", self.root)
            shutil.rmtree(self.directory)
            for group in self.groups:
                remove_group(group)

    def stop(self, nspawn: subprocess.Popen[bytes]) -> None:
        """Stop the machine, at once if it does not power off."""
        if self.boots and self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGRTMIN + 4)  # systemd: power off
            with contextlib.suppress(subprocess.TimeoutExpired):
                nspawn.wait(20)
        elif nspawn.poll() is None:
            nspawn.terminate()  # it ends the machine, and removes its own traces
            with contextlib.suppress(subprocess.TimeoutExpired):
                nspawn.wait(10)
        if nspawn.poll() is None:
            # the kernel ends all processes of the machine with its first one, and nspawn follows
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader or nspawn.pid, signal.SIGKILL)
            nspawn.wait(20)


@contextlib.contextmanager
def running(debian: pathlib.Path, directory: pathlib.Path, boots: bool) -> Iterator[Machine]:
    """Yield a machine that is up, and leave nothing of it."""
    machine = Machine(debian, directory, boots)
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


def give_packages(machine: Machine, packages: pathlib.Path) -> None:
    """Let pip in the machine find its packages in a directory, for want of an index."""
    shutil.copytree(packages, machine.root / "opt/packages")
    settings = "[global]\nno-index = true\nfind-links = /opt/packages\n"
    (machine.root / "etc/pip.conf").write_text(settings)


@contextlib.contextmanager
def web(machine: Machine, pex: pathlib.Path) -> Iterator[pathlib.Path]:
    """Serve bootstrap.sh and arpanet.pex on the machine's loopback; yield the directory."""
    directory = machine.directory / "web"
    directory.mkdir()
    for path in (REPO / "bootstrap.sh", pex, pex.with_name("arpanet.pex.sha256")):
        shutil.copy(path, directory)
    enter = ["nsenter", "-t", str(machine.leader), "-n", "python3", "-m", "http.server"]
    server = subprocess.Popen(
        [*enter, "8000", "--bind", "127.0.0.1", "--directory", str(directory)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        fetch = f"wget -qO /dev/null {WEB}/bootstrap.sh"
        wait_until("the web server", lambda: machine.enter(fetch).returncode == 0, 20)
        yield directory
    finally:
        server.kill()
        server.wait()


def give_address(machine: Machine, address: str) -> None:
    """Give the machine one network interface, which leads nowhere."""
    ip = ["nsenter", "-t", str(machine.leader), "-n", "ip"]
    call(*ip, "link", "add", "eth0", "type", "bridge")
    call(*ip, "address", "add", address, "dev", "eth0")
    call(*ip, "link", "set", "eth0", "up")


def changed_files(machine: Machine) -> dict[str, tuple[int, int]]:
    """Return size and time of each file in which the machine differs from a bare Debian."""
    found = [path for path in (machine.directory / "upper").rglob("*") if not path.is_dir()]
    states = {str(path): path.lstat() for path in found}
    kept = {p: s for p, s in states.items() if "/run/" not in p and "/var/log/" not in p}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in kept.items()}


def pids(machine: Machine) -> list[str]:
    """Return the process numbers of the services."""
    return machine.sh(f"systemctl show --value -p MainPID {UNITS} docker").split()


# ---- the tests ----------------------------------------------------------------------------------


def readme_commands() -> list[str]:
    """Return the commands of the README's section Install, as they stand."""
    section = (REPO / "README.md").read_text().partition("\n## Install\n")[2].partition("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def test_the_readme_is_followed_word_by_word_on_a_fresh_debian(
    debian: pathlib.Path, packages: pathlib.Path, pex: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with running(debian, tmp_path / "machine", boots=True) as machine, web(machine, pex):
        give_packages(machine, packages)
        give_address(machine, "192.168.8.120/24")
        commands = [c for c in readme_commands() if "tests/run" not in c]
        built = machine.sh(f"cd arpanet; {as_typed(commands[0])}", within_s=300)
        assert commands[1] == built.splitlines()[-1].strip() == HELLO
        machine.sh(IMAGE)
        assert machine.sh(commands[1]) == "hi\n"
        check_services(machine)

        # the same source gives the same file, wherever it is built: nothing is new in the web
        assert machine.sh("sha256sum </usr/local/bin/arpanet") == call(
            "sh", "-c", f"sha256sum <{pex}"
        )
        # by systemd, without HOME, in a directory that cannot be written to
        alone = "systemd-run --quiet --pipe --wait -p ProtectSystem=strict -p PrivateTmp=yes"
        assert machine.sh(f"{alone} /usr/local/bin/arpanet --version").startswith("arpanet ")

        before = pids(machine)
        piped = next(c for c in commands if c.startswith("wget"))
        machine.sh(as_typed(piped))
        machine.sh(f"cd arpanet; {as_typed(commands[0])}")
        assert pids(machine) == before, "the second run restarted something"

        printed = [
            machine.sh(f"cd arpanet; {as_typed(c)}") for c in commands[commands.index(piped) + 1 :]
        ]
        assert re.fullmatch(r"arpanet \d+\.\d+\.\d+\n", printed[0])
        assert {line[0] for line in printed[1].splitlines()} == {"✓"}, printed[1]
        left = "ls -d /etc/arpanet /var/*/arpanet /usr/local/bin/arpanet 2>/dev/null"
        assert machine.enter(left).stdout == ""
        assert machine.sh("docker ps -aq").strip() != "", "uninstall took a container"
        check_certificates(machine)


def check_certificates(machine: Machine) -> None:
    """See that what is installed first and started later, with certificates, has TLS."""
    said = machine.sh(CERTIFIED).splitlines()
    assert any(line.startswith("hello@") for line in said)
    assert said[-2:] == ["# mine", "ARPANET_CERT_PATH=/etc/arpanet/tls"]
    assert {line[0] for line in said if line[0] in "✓✗!"} == {"✓"}, said
    refused = machine.enter("docker -H tcp://192.168.8.120:8791 ps")
    assert "HTTP request to an HTTPS server" in refused.stdout
    other = machine.sh(f"{PIPED} slave --cert-path /root/ca/hosts/vm")
    assert "arpanet.env has another ARPANET_CERT_PATH, which is kept" in other


def as_typed(command: str) -> str:
    """Return a command of the README as it is typed in the machine, by root."""
    if command == "arpanet doctor":
        return DOCTOR
    return f'sudo() {{ env "$@"; }}; {command.replace(README_WEB, WEB)}'


def check_services(machine: Machine) -> None:
    """See that systemd is content with the services, and they with their few rights."""
    assert machine.sh(f"systemctl is-enabled {UNITS}") == "enabled\nenabled\n"
    assert machine.enter("systemctl is-active etcd").stdout == "inactive\n"
    assert machine.sh("systemd-analyze verify arpanet-master.service arpanet-slave.service") == ""
    settings = machine.sh("cat /etc/arpanet/arpanet.env")
    assert "ARPANET_PEERS" not in settings, (
        "a master whose data is lost would boot a second arpanet"
    )
    master, slave, _ = pids(machine)
    for pid in (master, slave):
        inside = f"nsenter -t {pid} -m sh -c 'echo >/usr/x || echo >/etc/x || echo >/root/x'"
        refused = machine.enter(inside)
        assert refused.returncode != 0, refused.stdout
        assert refused.stdout.count("Read-only") + refused.stdout.count("denied") == 3
    assert machine.sh(f"grep CapBnd /proc/{master}/status").split()[1] == f"{1 << 10:016x}"
    assert machine.sh(LINKED) == "over a link\n"
    machine.sh(f"kill -9 {slave}")

    def is_back() -> bool:
        return pids(machine)[1] not in ("0", slave) and (
            machine.enter("systemctl is-active arpanet-slave").stdout == "active\n"
        )

    wait_until("systemd starts the slave again", is_back, 60)


def test_what_is_refused_leaves_a_bare_debian_as_it_was(
    debian: pathlib.Path, pex: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with running(debian, tmp_path / "machine", boots=False) as machine, web(machine, pex) as served:
        give_address(machine, "10.9.8.7/24")
        start = "master slave --peers boot"
        script = (served / "bootstrap.sh").read_bytes()
        cuts = [len(script) * part // 21 for part in range(1, 21)]
        for size in cuts:
            (machine.root / "root" / f"cut{size}").write_bytes(script[:size])
        before = changed_files(machine)
        for size in cuts:
            machine.enter(f"ARPANET_URL={WEB}/ bash -s -- {start} <cut{size}")
            assert changed_files(machine) == before, f"cut after {size} bytes it left something"
        for command, told in {
            f"{PIPED} {start} --sha256 {64 * '0'}": "nothing was changed",
            f"{PIPED} {start} --url http://127.0.0.1:9/": "cannot fetch http://127.0.0.1:9/",
            f"{PIPED} {start} --version 9.9.9": "cannot fetch",
            f"wget -qO- {WEB}/bootstrap.sh | setpriv --reuid 65534 bash -s -- {start}": "root",
        }.items():
            done = machine.enter(command)
            assert (done.returncode, told in done.stdout) == (1, True), f"{command}\n{done.stdout}"
            assert changed_files(machine) == before, command
        check_other_systems(machine, start)


# knows all but etcd; then etcd too, but can fetch nothing
DNF = """#!/bin/sh
case "$1-$2-$3" in
    -q-list-etcd) exec test -e /tmp/etcd;;
    -q-list-docker-cli|-q-list-iptables-nft) exit 1;;
    -q-list-*) exit 0;;
    *) echo "$*"; exit 1;;
esac
"""


def check_other_systems(machine: Machine, start: str) -> None:
    """See what bootstrap.sh does on a Fedora, with a stand-in for dnf, and on a stranger."""
    release = machine.root / "etc/os-release"
    release.unlink()
    release.write_text("ID=rocky\nID_LIKE='rhel centos fedora'\nVERSION_ID=10\n")
    dnf = machine.root / "usr/local/bin/dnf"
    dnf.write_text(DNF)
    dnf.chmod(0o755)
    assert "dnf does not know: etcd; install" in machine.enter(f"{PIPED} {start}").stdout
    machine.sh("touch /tmp/etcd")
    wanted = "-y -q install python3 moby-engine etcd iproute iptables ca-certificates"
    assert wanted in machine.enter(f"{PIPED} {start}").stdout.splitlines()
    only = machine.enter(f"{PIPED} master --peers boot").stdout.splitlines()
    assert wanted.replace(" moby-engine", "").replace(" iptables", "") in only
    release.write_text("ID=alpine\n")
    told = machine.enter(f"{PIPED} {start}").stdout
    assert "this is alpine; install what brings these, then run this again: python3 " in told
    assert not (machine.root / "usr/local/bin/arpanet").exists()


def test_a_machine_without_systemd_is_installed_from_the_web_and_upgraded(
    debian: pathlib.Path, pex: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with running(debian, tmp_path / "machine", boots=False) as machine, web(machine, pex) as served:
        give_address(machine, "10.9.8.7/24")
        install = f"{PIPED} master slave --peers boot"
        assert "nothing was changed" not in machine.sh(install, within_s=300)
        machine.sh(IMAGE)
        assert machine.sh(HELLO) == "hi\n"
        assert "ARPANET_IP" not in machine.sh("cat /etc/arpanet/arpanet.env")

        before = machine.sh("cat /run/arpanet/*.pid")
        machine.sh(install)
        assert machine.sh("cat /run/arpanet/*.pid") == before, "the second run restarted something"

        machine.sh(
            "head -c 2000000 /usr/local/bin/arpanet >half.pex; sha256sum half.pex >half.pex.sha256"
        )
        half = machine.enter("./arpanet/bootstrap.sh --start --url ./half.pex")
        assert (half.returncode, "nothing was replaced" in half.stdout) == (1, True)
        assert machine.sh("docker -H tcp://10.9.8.7:8791 ps -aq") != ""

        machine.sh("echo '# mine' >>/etc/arpanet/arpanet.env")
        upgrade(served, pex)
        other = machine.enter(f"{install} --version 9.9.9 --url {WEB}/arpanet.pex")
        assert (
            "this is arpanet 0.0.0, and arpanet 9.9.9 is wanted; nothing was replaced"
            in other.stdout
        )
        assert machine.sh("cat /run/arpanet/*.pid") == before
        assert machine.enter(f"URL={WEB}\n{CUT}").returncode == 0
        machine.sh(install)
        assert machine.sh("arpanet --version") == "arpanet 0.0.0\n"
        assert "# mine" in machine.sh("cat /etc/arpanet/arpanet.env")
        status = machine.sh("arpanet master status --json")
        assert status.count('"version": "0.0.0"') == 3, "master or slave still runs the old file"
        assert machine.sh("docker -H tcp://10.9.8.7:8791 ps -aq") != ""


def upgrade(served: pathlib.Path, pex: pathlib.Path) -> None:
    """Put another version on the web server."""
    build = served / "newer"
    build.mkdir()
    source = (REPO / "arpanet.py").read_text()
    newer = re.sub("(?m)^__version__ = .*$", '__version__ = "0.0.0"', source)
    (build / "arpanet.py").write_text(newer)
    for name in ("requirements.txt", "build_zipapp.sh"):
        shutil.copy(REPO / name, build)
    tools = f"ARPANET_BUILD_DIR={pex.parents[1] / '.build'}"
    call("env", "PYTHON=/usr/bin/python3", tools, build / "build_zipapp.sh", within_s=300)
    for name in ("arpanet.pex", "arpanet.pex.sha256"):
        shutil.copy(build / "dist" / name, served)


def pythons() -> list[pathlib.Path]:
    """Return one Python of each version that the file is for, as far as they are here."""
    own = pathlib.Path.home() / ".pyenv/versions"
    places = [pathlib.Path("/usr/bin"), pathlib.Path("/usr/local/bin"), *own.glob("*/bin")]
    found = {path.name: path for place in places for path in place.glob("python3.1[0-4]")}
    return [found[name] for name in sorted(found)]


def test_the_file_for_all_starts_under_each_python_that_is_here(tmp_path: pathlib.Path) -> None:
    require_lab()
    if not (REPO / ".build/wheels-all.of").exists():
        pytest.skip("no wheels for all Pythons are kept here; ./build_zipapp.sh --all fetches them")
    for name in ("arpanet.py", "requirements.txt", "build_zipapp.sh"):
        shutil.copy(REPO / name, tmp_path)
    build = f"ARPANET_BUILD_DIR={REPO / '.build'}"
    call("env", build, tmp_path / "build_zipapp.sh", "--all", within_s=600)
    file = tmp_path / "dist/arpanet.pex"
    show = "import sys, docker, arpanet; arpanet.load_etcd3(); print('3.%d' % sys.version_info[1])"
    for python in pythons():
        directory = tmp_path / python.name
        directory.mkdir()
        (directory / "python3").symlink_to(python)
        alone = ["env", "-i", f"PATH={directory}:/usr/bin:/bin", f"PEX_ROOT={tmp_path}/root"]
        assert call(*alone, file, "--version").startswith("arpanet ")
        seen = call(*alone, "PEX_INTERPRETER=1", file, "-c", show)
        assert f"python{seen.strip()}" == python.name
