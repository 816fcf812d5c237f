#!/usr/bin/env python3
"""lab: N Docker hosts on one machine, for tests and for people (Linux, root, standard library).

    sudo tests/lab.py up 3 --pex dist/arpanet.pex    # h1 h2 h3 with engines, and a client c1
    sudo tests/lab.py sh h1 docker ps                # without a command: a shell
    sudo tests/lab.py cut h2                         # pull the cable of h2; heal h2: plug it in
    sudo tests/lab.py status
    sudo tests/lab.py down

A host is a keeper: process 1 of a PID namespace, with network, mount, UTS and IPC namespaces of
its own. When the keeper dies the kernel ends all that ran on the host, containers too, and the
namespaces, mounts and tmpfs go with it. A keeper also dies when its owner does (its stdin ends),
so that a test run which is killed leaves nothing running; `lab.py up` tells the keepers to stay.
The hosts hang on a bridge that is in a namespace of its own too: no packet can leave the machine.

Floor plan (a section uses only the sections before it):
    Errors, Processes, State, Images, Keeper, Engine, Host, Lab, Leftovers, CLI
"""

from __future__ import annotations

import argparse
import atexit
import concurrent.futures
import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import io
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, NamedTuple, NoReturn

BASE = Path("/run/arpanet-lab")
CACHE = Path(f"/var/tmp/arpanet-lab-{os.getuid()}")
MARK = "LAB_OF_HOSTS"  # in the environment of all that the lab starts
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PEX_ROOT = "/var/cache/arpanet/pex"  # inside a host; one directory for all hosts
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
NETWORK = "192.168.8"
FIRST_HOST, CLIENT = 120, 200
TLS_DIR = "/etc/arpanet/tls"  # inside a host
SLOW = float(os.environ.get("ARPANET_TEST_SLOW") or 1)  # deadlines are so many times later
PROGRAMS = {
    "dockerd": "docker.io", "docker": "docker.io", "iptables": "iptables", "ip": "iproute2",
    "busybox": "busybox-static", "unshare": "util-linux", "nsenter": "util-linux", "ps": "procps",
}  # fmt: skip


# ==== Errors ==================================================================
# A failure of the lab is one sentence; a failure of a command shows all it said.


class LabError(Exception):
    """The lab cannot do this; the message says why and what to do."""


class CommandFailed(subprocess.CalledProcessError):
    """A command on a host ended with an exit code other than 0."""

    def __str__(self) -> str:
        return f"{super().__str__()}\nstdout: {self.output}\nstderr: {self.stderr}"


# ==== Processes ===============================================================
# A process is its pid and its start time: a pid that was used again is another process.


class Process(NamedTuple):
    """A process, as the root PID namespace sees it. start: clock ticks since boot."""

    pid: int
    start: int
    parent: int
    comm: str

    @property
    def argv(self) -> list[str]:
        """Return its command line, empty if it has ended."""
        try:
            raw = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:  # it ended
            return []
        return raw.decode(errors="replace").split("\0")[:-1]

    def answers_to(self, name: str) -> bool:
        """Return whether its comm, its program or its script has that name."""
        words = [word for word in self.argv if not word.startswith("-")][:2]
        return name == self.comm or name in map(os.path.basename, words)


def find_process(pid: int) -> Process | None:
    """Return the living process with that pid, None if there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    comm, _, rest = text[text.index("(") + 1 :].rpartition(")")
    field = rest.split()  # field[0] is field 3 of proc(5)
    return None if field[0] in "ZX" else Process(pid, int(field[19]), int(field[1]), comm)


def list_processes() -> Iterator[Process]:
    """Yield every living process of the machine."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := find_process(int(entry))):
            yield process


def end_process(pid: int, start: int, sig: int, within_s: float) -> bool:
    """Send sig to that very process and return whether it has ended within_s seconds later."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        now = find_process(pid)
        if now is None or now.start != start:
            return True
        signal.pidfd_send_signal(fd, sig)
        return bool(select.select([fd], [], [], within_s * SLOW)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)


def namespace(pid: int, kind: str) -> str:
    """Return the name of a namespace of that process, empty if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def read_file(path: str) -> str:
    """Return the text of a file below /proc, empty if it went away."""
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


# ==== State ===================================================================
# BASE/NAME/state.json says what is up, so that the next command, or the next run after a crash,
# can end it. It is written before a keeper is told to do anything.


class HostState(NamedTuple):
    """What is needed to reach a host and to end it; start is the keeper's start time."""

    name: str
    ip: str
    engine: bool
    pid: int
    start: int


class State(NamedTuple):
    """All that is known of a lab; owner is the process whose end is the lab's end, or 0."""

    name: str
    owner: int
    owner_start: int
    logs: str
    hosts: tuple[HostState, ...]
    switch: HostState


def state_dir(name: str) -> Path:
    """Return the directory of that lab's state. Raises LabError if the name is not usable."""
    if not re.fullmatch(r"[a-z0-9]{1,20}", name):
        raise LabError(f"the name of a lab is 1 to 20 of a-z and 0-9, not {name!r}")
    return BASE / name


def write_state(state: State) -> None:
    """Replace the lab's state file in one step."""
    path = state_dir(state.name) / "state.json"
    document = state._asdict()
    document["hosts"] = [host._asdict() for host in state.hosts]
    document["switch"] = state.switch._asdict()
    path.with_suffix(".new").write_text(json.dumps(document, indent=1))
    path.with_suffix(".new").replace(path)


def find_state(name: str) -> State | None:
    """Return what is recorded of that lab, None if nothing is."""
    try:
        document: dict[str, Any] = json.loads((state_dir(name) / "state.json").read_text())
    except FileNotFoundError:
        return None
    document["hosts"] = tuple(HostState(**host) for host in document["hosts"])
    document["switch"] = HostState(**document["switch"])
    return State(**document)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold off every other process that makes or removes a lab."""
    while True:
        BASE.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if BASE.exists() and os.fstat(fd).st_ino == BASE.stat().st_ino:
                yield
                return
        finally:
            os.close(fd)


def cgroup_roots(name: str) -> list[Path]:
    """Return that lab's cgroup in every hierarchy, cgroups v1 or v2, that has it."""
    mounts = [line.split() for line in read_file("/proc/self/mountinfo").splitlines()]
    points = [Path(words[4]) for words in mounts if words[words.index("-") + 1].startswith("cgro")]
    return [path for point in points if (path := point / f"arpanet-lab-{name}").is_dir()]


def remove_cgroups(name: str, within_s: float = 5.0) -> None:
    """Remove that lab's cgroups. Raises LabError if one is still in use within_s seconds later."""
    deadline = time.monotonic() + within_s * SLOW
    while roots := cgroup_roots(name):
        for root in roots:
            for path in sorted(root.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):  # busy for some ms after its last process
                    path.rmdir()
        if time.monotonic() > deadline:
            raise LabError(f"cgroups of lab {name} are in use: {', '.join(map(str, roots))}")
        threading.Event().wait(0.01)


def remove_lab(name: str) -> None:
    """End all that is recorded of that lab and remove its cgroups and its directory.

    Raises LabError if something does not end. The caller has the lock.
    """
    state = find_state(name)
    keepers = [*state.hosts, state.switch] if state else []
    for keeper in keepers:
        end_process(keeper.pid, keeper.start, signal.SIGKILL, 0)
    for keeper in keepers:
        if not end_process(keeper.pid, keeper.start, signal.SIGKILL, 20):
            raise LabError(f"{keeper.name} (pid {keeper.pid}) of lab {name} does not end")
    remove_cgroups(name)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(state_dir(name))
    with contextlib.suppress(OSError):  # another lab is there
        BASE.rmdir()


# ==== Images ==================================================================
# No registry: busybox:latest and web:latest are written here in the form of `docker save`. The
# same busybox gives the same bytes, and so the same image ids, on every host and machine.

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "www/index.html": "hello from the lab\n",
    "www/cgi-bin/hostname": "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\nhostname\n",
}
IMAGES: dict[str, dict[str, Any]] = {
    "busybox:latest": {"Cmd": ["sh"]},
    "web:latest": {
        "Cmd": ["httpd", "-f", "-p", "8000", "-h", "/www"],
        "ExposedPorts": {"8000/tcp": {}},
    },
}


def add_entry(tar: tarfile.TarFile, name: str, content: bytes | str | None, mode: int) -> None:
    """Add a file (bytes), a symbolic link (str, its target) or a directory (None)."""
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    if content is None:
        entry.type = tarfile.DIRTYPE
    elif isinstance(content, str):
        entry.type, entry.linkname = tarfile.SYMTYPE, content
    else:
        entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)


def busybox_layer(busybox: Path) -> bytes:
    """Return a tar of a root directory with that busybox and a link for each of its applets."""
    applets = subprocess.run([busybox, "--list-full"], check=True, capture_output=True, text=True)
    links = sorted(set(applets.stdout.split()) - {"bin/busybox"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("bin", "dev", "etc", "proc", "root", "sbin", "sys", "usr", "usr/bin",
                     "usr/sbin", "var", "www", "www/cgi-bin"):  # fmt: skip
            add_entry(tar, name, None, 0o755)
        add_entry(tar, "tmp", None, 0o1777)
        add_entry(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        for name in links:
            add_entry(tar, name, "/bin/busybox", 0o777)
        for name, text in FILES.items():
            add_entry(tar, name, text.encode(), 0o755 if "cgi-bin" in name else 0o644)
    return buffer.getvalue()


def image_config(config: dict[str, Any], diff_id: str, created: str) -> bytes:
    """Return the JSON whose SHA-256 is the image's id. Source: image-spec v1.2 of moby."""
    machine = platform.machine()
    document = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
        "os": "linux",
        "created": created,  # of each image another, so that `docker images` has one order
        "config": {**config, "Env": [f"PATH={PATH}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": created, "comment": "made by the lab"}],
    }
    return json.dumps(document, sort_keys=True).encode()


def images_tar(busybox: Path) -> bytes:
    """Return IMAGES in the form of `docker save`. Source: image-spec v1.2 of moby."""
    layer = busybox_layer(busybox)
    diff_id = hashlib.sha256(layer).hexdigest()
    manifest = []
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        add_entry(tar, diff_id, None, 0o755)
        add_entry(tar, f"{diff_id}/layer.tar", layer, 0o644)
        for number, (tag, config) in enumerate(IMAGES.items()):
            raw = image_config(config, diff_id, created=f"2020-01-01T00:00:0{number}Z")
            name = f"{hashlib.sha256(raw).hexdigest()}.json"
            add_entry(tar, name, raw, 0o644)
            manifest.append({"Config": name, "RepoTags": [tag], "Layers": [f"{diff_id}/layer.tar"]})
        add_entry(tar, "manifest.json", json.dumps(manifest).encode(), 0o644)
    return buffer.getvalue()


def cached_images() -> Path:
    """Return the file with IMAGES, made once for each version of busybox and of this file."""
    busybox = Path(shutil.which("busybox", path=PATH) or "/bin/busybox").resolve()
    key = hashlib.sha256(busybox.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    path = CACHE / f"images-{key}.tar"
    if not path.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        if CACHE.stat().st_uid != os.getuid():
            raise LabError(f"{CACHE} belongs to somebody else; remove it")
        for old in CACHE.glob("images-*"):
            old.unlink(missing_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(images_tar(busybox))
        new.replace(path)
    return path


# ==== Keeper ==================================================================
# Process 1 of a host. It makes the host's mounts and addresses, then only reaps. It does nothing
# before it has its orders, which the owner gives only once the keeper is in the state file.

MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384
MNT_DETACH = 2
OVERLAID = ("/etc", "/usr/local/bin", "/var/lib", "/var/log", "/var/cache")
PRIVATE = ("/etc/arpanet", "/var/lib/docker", "/var/lib/containerd", "/var/lib/etcd",
           "/var/lib/arpanet", "/var/cache/arpanet")  # fmt: skip


class Orders(NamedTuple):
    """What a keeper is told; scratch is an empty directory of the host's own."""

    name: str
    ip: str
    names: dict[str, str]
    scratch: str
    logs: str
    pex: str
    pex_root: str


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Put source there, by the system call. Raises OSError that names the target."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [source.encode(), target.encode(), kind.encode() or None]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot mount {source}: {os.strerror(number)}", target)


def require_private(paths: Sequence[str]) -> None:
    """Raise LabError unless each path is a mount of the lab: the machine's own is never changed."""
    lines = [line.split() for line in read_file("/proc/self/mountinfo").splitlines()]
    top = {words[4]: words[words.index("-") + 2] for words in lines}
    if bare := [path for path in paths if top.get(path) != "arpanet-lab"]:
        raise LabError(f"not private here, nothing was written: {', '.join(bare)}")


def make_private(path: str, scratch: Path) -> None:
    """Put an empty directory of the host's own on path, with the owner and mode it had."""
    mine = scratch / "private" / path.replace("/", "_")
    mine.mkdir(parents=True)
    old = os.stat(path) if os.path.isdir(path) else None
    os.makedirs(path, exist_ok=True)
    if old:
        mine.chmod(old.st_mode & 0o7777)
        os.chown(mine, old.st_uid, old.st_gid)
    mount(str(mine), path, flags=MS_BIND)


def mount_sys(scratch: Path) -> None:
    """Mount a sysfs that shows this network namespace, with all that was mounted below it."""
    old = scratch / "sys"
    old.mkdir()
    lines = [line.split() for line in read_file("/proc/self/mountinfo").splitlines()]
    points = sorted({words[4] for words in lines if words[4].startswith("/sys/")})
    mount("/sys", str(old), flags=MS_BIND | MS_REC)
    mount("sysfs", "/sys", "sysfs")
    done: list[str] = []
    for point in points:
        if not any(point.startswith(f"{upper}/") for upper in done):
            mount(f"{old}{point[4:]}", point, flags=MS_BIND | MS_REC)
            done.append(point)
    ctypes.CDLL(None).umount2(str(old).encode(), MNT_DETACH)
    for line in read_file("/proc/self/mountinfo").splitlines():
        words = line.split()
        is_cgroup = words[words.index("-") + 1].startswith("cgroup")
        if is_cgroup and words[4].startswith("/sys/") and "ro" in words[5].split(","):
            mount("", words[4], flags=MS_REMOUNT | MS_BIND)


def make_mounts(orders: Orders) -> None:
    """Give the host directories of its own; they live in one tmpfs and end with the host."""
    scratch = Path(orders.scratch)
    mount("arpanet-lab", orders.scratch, "tmpfs", options="mode=755")
    for path in OVERLAID:
        upper, work = (scratch / kind / path[1:] for kind in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        shutil.copystat(path, upper)
        options = f"lowerdir={path},upperdir={upper},workdir={work}"
        mount("arpanet-lab", path, "overlay", options=options)
    require_private(OVERLAID)
    for path in PRIVATE:
        make_private(path, scratch)
    for source, target in ((orders.logs, "/var/log/arpanet"), (orders.pex_root, PEX_ROOT)):
        os.makedirs(target, exist_ok=True)
        mount(source, target, flags=MS_BIND)
    if orders.pex:
        shutil.copyfile(orders.pex, "/usr/local/bin/arpanet")
        os.chmod("/usr/local/bin/arpanet", 0o755)
    mount("proc", "/proc", "proc")
    mount("arpanet-lab", "/dev/shm", "tmpfs", options="mode=1777")
    mount_sys(scratch)
    (scratch / "run/lock").mkdir(parents=True)
    mount(str(scratch / "run"), "/run", flags=MS_BIND)


def make_network(orders: Orders) -> None:
    """Name the host, and give it its addresses; eth0 is there already."""
    require_private(["/etc"])
    socket.sethostname(orders.name)
    hosts = {"127.0.0.1": "localhost", "::1": "localhost ip6-localhost", **orders.names}
    texts = {
        "hosts": "".join(f"{address}\t{name}\n" for address, name in hosts.items()),
        "hostname": f"{orders.name}\n",
        "resolv.conf": "nameserver 127.0.0.1\n",
    }
    for name, text in texts.items():
        path = Path("/etc", name)
        path.unlink(missing_ok=True)  # it may be a link to a file below /run
        path.write_text(text)
    configure = [
        "link set lo up",
        f"address add {orders.ip}/24 broadcast {NETWORK}.255 dev eth0",
        "link set eth0 up",
    ]
    run_ip(configure)


def run_ip(commands: list[str], enter: Sequence[str] = ()) -> None:
    """Run those `ip` commands, after the words of enter. Raises LabError with what ip said."""
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True
    )
    if done.returncode:
        raise LabError(f"ip failed: {done.stderr.strip()}; it was told: {'; '.join(commands)}")


def serve_keeper() -> NoReturn:
    """Be process 1 of a host: say our pid, take orders, say ready, reap until the owner ends."""
    me = find_process(int(os.readlink("/proc/self")))  # /proc is still the machine's
    assert me is not None
    print(json.dumps([me.pid, me.start]), flush=True)
    with open(0, "rb", buffering=0, closefd=False) as owner:
        line = owner.readline()
    if not line:  # the owner died before it could record us
        os._exit(1)
    orders = json.loads(line)
    try:
        if orders:
            make_mounts(Orders(**orders))
            make_network(Orders(**orders))
        else:
            mount("proc", "/proc", "proc")
        print("ready", flush=True)
    except (OSError, LabError) as error:
        print(error, flush=True)
        os._exit(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    reap_until_owner_ends()


def reap_until_owner_ends() -> NoReturn:
    """Reap orphans until stdin ends; a line on stdin says to go on for ever."""
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    watched = [0, woken]
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        ready = select.select(watched, [], [])[0]
        if woken in ready:
            os.read(woken, 512)
        if 0 in ready:
            if not os.read(0, 512):
                os._exit(0)
            watched = [woken]


class Keeper:
    """The owner's end of a keeper that was just started."""

    def __init__(self, lab: str, name: str, log: IO[bytes]) -> None:
        me = [sys.executable, "-I", os.path.abspath(__file__), "keep", f"{lab}-{name}"]
        unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child"]
        self.name = name
        self.unshare = subprocess.Popen(
            [*unshare, *me], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env={"PATH": PATH, "LANG": "C.UTF-8", MARK: lab}, start_new_session=True, bufsize=0,
        )  # fmt: skip

    def read_line(self, within_s: float = 20.0) -> str:
        """Return the next line the keeper says. Raises LabError if it says none."""
        assert self.unshare.stdout is not None
        if select.select([self.unshare.stdout], [], [], within_s * SLOW)[0]:
            line: bytes = self.unshare.stdout.readline()
            if line:
                return line.decode().strip()
        raise LabError(f"the keeper of {self.name} did not start; see keeper.log of {self.name}")

    def give(self, words: object) -> None:
        """Tell the keeper one thing, as a line of JSON."""
        assert self.unshare.stdin is not None
        self.unshare.stdin.write(json.dumps(words).encode() + b"\n")

    def wait_ready(self) -> None:
        """Block until the host is made. Raises LabError with the keeper's words."""
        if (words := self.read_line()) != "ready":
            raise LabError(f"cannot make {self.name}: {words}")

    def close(self) -> None:
        """End the keeper, unless it was told to stay, and what stands for it here."""
        for pipe in (self.unshare.stdin, self.unshare.stdout):
            if pipe:
                pipe.close()
        self.unshare.wait()


# ==== Engine ==================================================================
# Requests to a host's dockerd over its socket, seen through /proc/PID/root.


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s * SLOW)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask_engine(
    path: str, verb: str, target: str, body: IO[bytes] | None = None, timeout_s: float = 30.0
) -> tuple[int, bytes]:
    """Return the status and the body that an engine answers with. Raises OSError."""
    connection = UnixConnection(path, timeout_s)
    try:
        headers = {"Content-Type": "application/x-tar"} if body else {}
        connection.request(verb, target, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"the engine at {path} does not answer: {error!r}") from error
    finally:
        connection.close()


# ==== Host ====================================================================
# One machine of the lab: commands run in it, its engine, its processes.


class HostProcess(subprocess.Popen[str]):
    """A command on a host. A signal goes to the command, not to what waits for it out here."""

    def communicate(
        self, input: str | None = None, timeout: float | None = None
    ) -> tuple[str, str]:
        """Return stdout and stderr when it has ended. timeout: seconds, times ARPANET_TEST_SLOW."""
        return super().communicate(input, timeout and timeout * SLOW)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended. timeout: seconds, times ARPANET_TEST_SLOW."""
        return super().wait(timeout and timeout * SLOW)

    def find_command(self) -> Process | None:
        """Return the process on the host, as the machine sees it, None if it has ended."""
        children = read_file(f"/proc/{self.pid}/task/{self.pid}/children").split()
        return find_process(int(children[0])) if children else None

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command, or to what starts it while that has not."""
        command = self.find_command()
        if command is None:
            super().send_signal(sig)
        else:
            end_process(command.pid, command.start, sig, 0)


class Host:
    """A host of the lab. Attributes: name, ip, logs (a directory: dockerd.log and others)."""

    def __init__(self, lab: str, state: HostState, logs: Path, aborted: threading.Event) -> None:
        self.name, self.ip, self.has_engine = state.name, state.ip, state.engine
        self.keeper_pid, self.keeper_start = state.pid, state.start
        self.logs = logs / state.name
        self._lab = lab
        self._aborted = aborted
        self._popens: list[HostProcess] = []

    def path(self, path: str) -> Path:
        """Return how a file of the host, /run and unix sockets too, is reached from outside."""
        return Path(f"/proc/{self.keeper_pid}/root", path.lstrip("/"))

    def enter(self) -> list[str]:
        """Return the words before a command that make it run on this host."""
        now = find_process(self.keeper_pid)
        if now is None or now.start != self.keeper_start:
            raise LabError(f"{self.name} is not up; try: lab.py down, then lab.py up")
        # nsenter's own fork stops itself when the command is stopped, and stays so; unshare's not
        enter = ["nsenter", "-t", str(self.keeper_pid), *NAMESPACES, "--no-fork", "--"]
        return [*enter, "unshare", "--fork", "--kill-child", "--"]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a fresh login on the host, and extra."""
        base = {"PATH": PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb",
                "HOSTNAME": self.name, "PEX_ROOT": PEX_ROOT, MARK: self._lab}  # fmt: skip
        tls = {"ARPANET_CERT_PATH": TLS_DIR} if self.path(TLS_DIR).exists() else {}
        return {**base, **tls, **(extra or {})}

    def popen(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, **popen_kwargs: Any
    ) -> HostProcess:
        """Start a command on the host, in text mode and in /; it ends with the lab.

        env: on top of a login's environment. stdin, stdout, stderr: /dev/null unless given.
        """
        for stream in ("stdin", "stdout", "stderr"):
            popen_kwargs.setdefault(stream, subprocess.DEVNULL)
        popen_kwargs.setdefault("text", True)
        words, env = [*self.enter(), *argv], self.environment(env)
        if "ARPANET_CERT_PATH" in env and "tcp://" in " ".join([*argv, env.get("DOCKER_HOST", "")]):
            # the docker client would speak TLS to a unix socket, too
            env |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": env["ARPANET_CERT_PATH"]}
        process = HostProcess(words, env=env, **popen_kwargs)
        self._popens = [old for old in self._popens if old.poll() is None] + [process]
        return process

    def run(
        self,
        argv: Sequence[str],
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end, with its output kept as text.

        timeout: seconds, times ARPANET_TEST_SLOW. Raises CommandFailed, subprocess.TimeoutExpired
        (the command is killed).
        """
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        process = self.popen(argv, env, stdin=stdin, stdout=pipe, stderr=pipe)
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise CommandFailed(process.returncode, list(argv), out, err)
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def processes(self) -> list[Process]:
        """Return all that runs on the host, its containers too, without the keeper."""
        return [process for process in list_on([self]) if process.pid != self.keeper_pid]

    def pids(self, name: str) -> list[int]:
        """Return the pids, as the machine sees them, of what has that name on this host.

        name: the comm, or the file name of the program or of the script that it runs.
        """
        return sorted(process.pid for process in self.processes() if process.answers_to(name))

    def start_engine(self, within_s: float = 30.0) -> None:
        """Start dockerd and block until it answers. Raises LabError with the end of its log."""
        if self.pids("dockerd"):
            raise LabError(f"the engine of {self.name} runs already")
        self.path("/run/docker.pid").unlink(missing_ok=True)
        command = [
            "dockerd", "--host", "unix:///var/run/docker.sock", "--data-root", "/var/lib/docker",
            "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--dns", "127.0.0.1",
            "--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--insecure-registry", f"{NETWORK}.0/24",
            "--cgroup-parent", f"/arpanet-lab-{self._lab}/{self.name}",
        ]  # fmt: skip
        with open(self.logs / "dockerd.log", "ab") as log:
            words = [*self.enter(), "setsid", "--fork", *command]
            null = subprocess.DEVNULL
            env = self.environment()
            subprocess.run(words, env=env, check=True, stdin=null, stdout=log, stderr=log)
        self._wait_engine(within_s)

    def _wait_engine(self, within_s: float) -> None:
        """Block until the engine answers. Raises LabError when it ended or within_s are over."""
        began = time.monotonic()
        deadline = began + within_s * SLOW
        while not self.engine_answers():
            dead = time.monotonic() > began + 1 and not self.pids("dockerd")  # 1 s: to be exec'ed
            if dead or time.monotonic() > deadline or self._aborted.is_set():
                tail = read_file(str(self.logs / "dockerd.log"))[-2000:]
                why = "ended" if dead else "does not answer"
                raise LabError(f"the engine of {self.name} {why}; its log ends with:\n{tail}")
            self._aborted.wait(0.03)

    def engine_answers(self, timeout_s: float = 5.0) -> bool:
        """Return whether the engine answers a ping."""
        path = str(self.path("/run/docker.sock"))
        try:
            return ask_engine(path, "GET", "/_ping", timeout_s=timeout_s)[0] == 200
        except OSError:
            return False

    def stop_engine(self, within_s: float = 30.0) -> None:
        """Stop dockerd as a service manager does; its containers stop with it."""
        self._end_engine(signal.SIGTERM, within_s)

    def kill_engine(self) -> None:
        """Kill dockerd; its containers go on without it."""
        self._end_engine(signal.SIGKILL, 10)

    def _end_engine(self, sig: int, within_s: float) -> None:
        """Send sig to dockerd and block until it ended. Raises LabError if it does not."""
        for process in self.processes():
            is_engine = process.answers_to("dockerd")
            if is_engine and not end_process(process.pid, process.start, sig, within_s):
                raise LabError(f"the engine of {self.name} did not end within {within_s} s")

    def load_images(self, archive: Path) -> None:
        """Give the engine the images of a `docker save`. Raises LabError with its words."""
        with archive.open("rb") as body:
            path = str(self.path("/run/docker.sock"))
            status, answer = ask_engine(path, "POST", "/images/load?quiet=1", body)
        if status != 200 or b'"error' in answer:
            raise LabError(f"{self.name} does not load {archive}: {answer.decode()}")

    def end_popens(self) -> None:
        """Kill and reap what popen started."""
        for process in self._popens:
            if process.poll() is None:
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    with contextlib.suppress(OSError):  # unsent input for a dead process
                        stream.close()
            process.wait()
        self._popens = []


def list_on(hosts: Sequence[Host]) -> list[Process]:
    """Return every process in the PID namespaces of those hosts, or in one below them."""
    spaces = {namespace(host.keeper_pid, "pid") for host in hosts} - {""}
    everything = {process.pid: process for process in list_processes()}
    inside: dict[int, bool] = {}

    def is_inside(pid: int) -> bool:
        if pid not in inside:
            process = everything.get(pid)
            inside[pid] = process is not None and (
                namespace(pid, "pid") in spaces or is_inside(process.parent)
            )
        return inside[pid]

    return [everything[pid] for pid in sorted(everything) if is_inside(pid)]


# ==== Lab =====================================================================
# All hosts and the switch between them, from up() to down().


def check_machine(pex: Path | None) -> None:
    """Raise LabError if this machine cannot carry a lab, with the command that helps."""
    if os.getuid():
        raise LabError("a lab makes network namespaces and needs root; try: sudo tests/lab.py ...")
    lacking = {package for name, package in PROGRAMS.items() if not shutil.which(name, path=PATH)}
    if lacking:
        raise LabError(f"programs are missing; try: apt-get install {' '.join(sorted(lacking))}")
    if pex and not pex.is_file():
        raise LabError(f"there is no file {pex}; try: ./build_zipapp.sh")


def default_name() -> str:
    """Return the lab's name if none is given: ARPANET_LAB_NAME, or `default`."""
    return os.environ.get("ARPANET_LAB_NAME") or "default"


def host_addresses(hosts: int, client: bool) -> dict[str, str]:
    """Return the name and the address of each host, the client last."""
    if not 1 <= hosts <= 60:
        raise LabError(f"a lab has 1 to 60 hosts, not {hosts}")
    names = {f"h{number + 1}": f"{NETWORK}.{FIRST_HOST + number}" for number in range(hosts)}
    return {**names, "c1": f"{NETWORK}.{CLIENT}"} if client else names


def hardware_address(ip: str) -> str:
    """Return the MAC address of the host with that address."""
    return ":".join(["02:00", *(f"{int(part):02x}" for part in ip.split("."))])


class Lab:
    """Hosts on one machine. Make one with Lab.up or Lab.open; use up() in a `with`."""

    def __init__(self, state: State, keepers: Sequence[Keeper] = ()) -> None:
        self.state = state
        self.name = state.name
        self._keepers = list(keepers)
        self._aborted = threading.Event()
        self._is_down = False
        self._stays = not keepers
        logs = Path(state.logs)
        made = [Host(state.name, host, logs, self._aborted) for host in state.hosts]
        self._all = {host.name: host for host in made}
        self._handlers: dict[int, Any] = {}

    @classmethod
    def open(cls, name: str | None = None) -> Lab:
        """Return the lab that is up under that name. Raises LabError if none is."""
        name = name or default_name()
        state = find_state(name)
        if state is None:
            raise LabError(f"no lab {name} is up; try: sudo tests/lab.py --name {name} up 3")
        return cls(state)

    @classmethod
    def up(
        cls,
        hosts: int = 3,
        client: bool = True,
        pex: Path | None = None,
        logs: Path | None = None,
        name: str | None = None,
    ) -> Lab:
        """Return a lab of that many hosts with engines and images.

        pex: becomes /usr/local/bin/arpanet on every host. logs: a directory that outlives the
        lab; without it they go with the lab. name: two labs with two names may be up at once.
        Raises LabError, also if a living process owns a lab of that name.
        """
        check_machine(pex)
        name = name or default_name()
        addresses = host_addresses(hosts, client)
        images = cached_images()
        lab: Lab | None = None
        try:
            with locked(), uninterrupted():
                lab = cls._start_keepers(name, addresses, logs)
                lab._catch_signals()
            lab._make_hosts(pex)
            lab._start_engines(images)
        except BaseException:
            if lab:
                lab.down()
            raise
        return lab

    @classmethod
    def _start_keepers(cls, name: str, addresses: dict[str, str], logs: Path | None) -> Lab:
        """Clear what a crash left and start every host's keeper, still without orders."""
        refuse_if_owned(name)
        remove_lab(name)
        home = state_dir(name)
        log_root = (logs or home / "logs").resolve()
        keepers: list[Keeper] = []
        try:
            for host in [*addresses, "switch"]:
                (home / host).mkdir(parents=True)
                (log_root / host).mkdir(parents=True, exist_ok=True)
                with open(log_root / host / "keeper.log", "ab") as log:
                    keepers.append(Keeper(name, host, log))
            ids = [json.loads(keeper.read_line()) for keeper in keepers]
            me = find_process(os.getpid())
            assert me is not None
            made = [
                HostState(host, ip, host != "c1", *keeper_id)
                for (host, ip), keeper_id in zip(addresses.items(), ids, strict=False)
            ]
            switch = HostState("switch", "", False, *ids[-1])
            state = State(name, me.pid, me.start, str(log_root), tuple(made), switch)
            write_state(state)
        except BaseException:
            for keeper in keepers:
                keeper.close()  # a keeper without orders ends with its stdin
            remove_lab(name)
            raise
        return cls(state, keepers)

    def _make_hosts(self, pex: Path | None) -> None:
        """Give every host its cable, its mounts and its addresses."""
        commands = ["link add name lab0 type bridge forward_delay 0 mcast_snooping 0"]
        for host in self.state.hosts:
            peer = f"name eth0 address {hardware_address(host.ip)} netns {host.pid}"
            commands.append(f"link add name port-{host.name} type veth peer {peer}")
            commands.append(f"link set port-{host.name} master lab0 up")
        run_ip([*commands, "link set lab0 up"], self._enter_switch())
        home = state_dir(self.name)
        (home / "pex").mkdir(exist_ok=True)
        names = {host.ip: host.name for host in self.state.hosts}
        for keeper, host in zip(self._keepers, self.state.hosts, strict=False):
            orders = Orders(
                host.name, host.ip, names, scratch=str(home / host.name),
                logs=str(self._all[host.name].logs), pex=str(pex.resolve()) if pex else "",
                pex_root=str(home / "pex"),
            )  # fmt: skip
            keeper.give(orders._asdict())
        self._keepers[-1].give({})
        for keeper in self._keepers:
            keeper.wait_ready()

    def _start_engines(self, images: Path) -> None:
        """Start all engines at once and give each the images."""

        def start(host: Host) -> None:
            host.start_engine()
            host.load_images(images)

        with concurrent.futures.ThreadPoolExecutor(len(self.hosts)) as pool:
            try:
                for done in concurrent.futures.as_completed(
                    [pool.submit(start, host) for host in self.hosts]
                ):
                    done.result()
            except BaseException:
                self._aborted.set()
                raise

    def _catch_signals(self) -> None:
        """End the lab also on SIGTERM and SIGHUP: they become a Ctrl-C, if nobody handles them."""
        atexit.register(self.down)
        if threading.current_thread() is not threading.main_thread():
            return
        for sig in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(sig) is signal.SIG_DFL:
                self._handlers[sig] = signal.signal(sig, raise_interrupt)

    def _enter_switch(self) -> list[str]:
        """Return the words before a command that make it run where the bridge is."""
        return ["nsenter", "-t", str(self.state.switch.pid), "--net", "--"]

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._stays:
            self.down()

    def __getitem__(self, name: str) -> Host:
        """Return the host of that name. Raises LabError that lists the names there are."""
        if name not in self._all:
            raise LabError(f"there is no host {name}; there are: {', '.join(self._all)}")
        return self._all[name]

    @property
    def hosts(self) -> list[Host]:
        """Return the hosts with an engine: h1 first."""
        return [host for host in self._all.values() if host.has_engine]

    @property
    def client(self) -> Host:
        """Return the host without an engine. Raises LabError if the lab has none."""
        return self["c1"]

    def give_certificates(self, made: Path) -> None:
        """Give each host a certificate that `arpanet ca` made, the client one of a client.

        What is typed on the hosts from then on speaks TLS. All files change at once.
        """
        for host in self._all.values():
            place = host.path(TLS_DIR)
            fresh = place.with_name(f"tls-{len(list(place.parent.glob('tls-*')))}")
            shutil.copytree(made / ("hosts" if host.has_engine else "clients") / host.name, fresh)
            link = place.with_name("tls.new")
            link.symlink_to(fresh.name)
            link.replace(place)

    def cut(self, name: str, other: str | None = None) -> None:
        """Pull the cable of a host, or with other: let nothing through between those two."""
        if other:
            self._filter("-A", self[name], self[other])
        else:
            run_ip([f"link set port-{self[name].name} down"], self._enter_switch())

    def heal(self, name: str, other: str | None = None) -> None:
        """Undo a cut with the same names; harmless if there was none."""
        if other:
            self._filter("-D", self[name], self[other])
        else:
            run_ip([f"link set port-{self[name].name} up"], self._enter_switch())

    def _filter(self, change: str, one: Host, other: Host) -> None:
        """Add (-A) or delete (-D) the rules of the switch that part two hosts."""
        for source, target in ((one, other), (other, one)):
            rule = ["-s", hardware_address(source.ip), "-d", hardware_address(target.ip)]
            for verb in ("-D", "-A")[: 1 + (change == "-A")]:  # never a rule twice
                words = ["ebtables", verb, "FORWARD", *rule, "-j", "DROP"]
                done = subprocess.run([*self._enter_switch(), *words], capture_output=True)
                if done.returncode and verb == "-A":
                    raise LabError(f"ebtables failed: {done.stderr.decode().strip()}")

    def cut_hosts(self) -> list[str]:
        """Return the names of the hosts whose cable is pulled."""
        command = [*self._enter_switch(), "ip", "-json", "link", "show", "master", "lab0"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        ports = {port["ifname"]: port["flags"] for port in json.loads(done.stdout)}
        return [name for name in self._all if "UP" not in ports[f"port-{name}"]]

    def processes(self) -> list[Process]:
        """Return everything alive in the lab's namespaces, without the keepers."""
        keepers = {host.pid for host in self.state.hosts}
        found = list_on(list(self._all.values()))
        return [process for process in found if process.pid not in keepers]

    def leave_up(self) -> None:
        """Let the lab outlive this process and the end of `with`; `lab.py down` ends it."""
        for keeper in self._keepers:
            keeper.give("stay")
        self.state = self.state._replace(owner=0, owner_start=0)
        write_state(self.state)
        self._stays = True
        atexit.unregister(self.down)

    def down(self) -> None:
        """End the lab and remove all of it but logs that were asked for; harmless twice."""
        if self._is_down:
            return
        with uninterrupted():
            self._aborted.set()
            with locked():
                if find_state(self.name) == self.state:  # else it was ended from outside
                    remove_lab(self.name)
            for host in self._all.values():
                host.end_popens()
            for keeper in self._keepers:
                keeper.close()
            self._is_down = True
            atexit.unregister(self.down)
        if threading.current_thread() is threading.main_thread():
            for sig, handler in self._handlers.items():
                signal.signal(sig, handler)


def raise_interrupt(sig: int, _frame: FrameType | None) -> NoReturn:
    """Do for another signal what Ctrl-C does."""
    raise KeyboardInterrupt(signal.Signals(sig).name)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and its like, in the main thread, until the block is done."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def refuse_if_owned(name: str) -> None:
    """Raise LabError if a living process owns the lab of that name."""
    state = find_state(name)
    owner = find_process(state.owner) if state and state.owner else None
    if state and owner and owner.start == state.owner_start:
        raise LabError(
            f"lab {name} is in use by pid {owner.pid} ({owner.comm}); "
            f"try another name: ARPANET_LAB_NAME={name}2"
        )


# ==== Leftovers ===============================================================
# What a lab may leave on the machine, each found without the lab's own record.


def leftovers(name: str | None = None) -> list[str]:
    """Return a line for each process, mount, interface, cgroup or file that a lab left behind.

    name: of that lab alone; without it, of the one that ARPANET_LAB_NAME says.
    """
    name = name or default_name()
    found = [f"cgroup {path}" for path in cgroup_roots(name)]
    found += [f"directory {state_dir(name)}"] if state_dir(name).exists() else []
    for process in list_processes():
        environ = read_file(f"/proc/{process.pid}/environ").split("\0")
        cgroups = read_file(f"/proc/{process.pid}/cgroup")
        is_ours = f"{MARK}={name}" in environ or f"/arpanet-lab-{name}/" in cgroups
        if is_ours and process.pid != os.getpid():
            found.append(f"process {process.pid} {' '.join(process.argv) or process.comm}")
    mounts = read_file("/proc/self/mountinfo").splitlines()
    found += [f"mount {line}" for line in mounts if f"{state_dir(name)}/" in line]
    ports = re.compile(r"lab0|port-[hc]\d+")
    found += [f"interface {port}" for port in os.listdir("/sys/class/net") if ports.fullmatch(port)]
    return found


# ==== CLI =====================================================================


def cmd_up(args: argparse.Namespace) -> int:
    """Start the lab and leave it up."""
    began = time.monotonic()
    with Lab.up(args.hosts, args.client, args.pex, args.logs, args.name) as lab:
        if args.tls:
            lab.give_certificates(args.tls)
        lab.leave_up()
        print(f"up in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return cmd_status(args)


def cmd_sh(args: argparse.Namespace) -> NoReturn:
    """Run a command on a host, or a shell."""
    host = Lab.open(args.name)[args.host]
    env = host.environment({"TERM": os.environ.get("TERM", "dumb"), "HISTFILE": "/dev/null"})
    words = [*host.enter(), *(args.command or ["bash"])]
    os.execvpe(words[0], words, env)


def cmd_cut(args: argparse.Namespace) -> int:
    """Pull a host's cable, or part two hosts."""
    Lab.open(args.name).cut(args.host, args.other)
    return 0


def cmd_heal(args: argparse.Namespace) -> int:
    """Undo cut."""
    Lab.open(args.name).heal(args.host, args.other)
    return 0


def cmd_status(args: argparse.Namespace) -> int:
    """Say what is up."""
    lab = Lab.open(args.name)
    cut = lab.cut_hosts()
    row = "{:5} {:15} {:7} {:6} {}".format
    print(row("HOST", "ADDRESS", "ENGINE", "CABLE", "LOGS"))
    for host in [*lab.hosts, *([lab["c1"]] if "c1" in lab._all else [])]:
        engine = ("up" if host.engine_answers() else "down") if host.has_engine else "-"
        print(row(host.name, host.ip, engine, "cut" if host.name in cut else "in", host.logs))
    return 0


def cmd_down(args: argparse.Namespace) -> int:
    """End the lab, whoever started it."""
    check_machine(None)
    name = args.name or default_name()
    with locked():
        remove_lab(name)
    if left := leftovers(name):
        raise LabError("left behind:\n" + "\n".join(left))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="lab.py", description="Docker hosts on one machine")
    parser.add_argument("--name", help="which lab (default: ARPANET_LAB_NAME, or default)")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    commands: list[tuple[str, Callable[[argparse.Namespace], int], str]] = [
        ("up", cmd_up, "Start hosts h1, h2, ... and a client c1"),
        ("sh", cmd_sh, "Run a command, or a shell, on a host"),
        ("cut", cmd_cut, "Pull the cable of a host, or part two hosts"),
        ("heal", cmd_heal, "Undo cut"),
        ("status", cmd_status, "Show the hosts"),
        ("down", cmd_down, "End the lab and remove all of it"),
    ]
    for name, run, text in commands:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run)
        if name == "up":
            verb.add_argument("hosts", nargs="?", type=int, default=3, help="how many (3)")
            verb.add_argument("--pex", type=Path, help="becomes /usr/local/bin/arpanet")
            verb.add_argument("--logs", type=Path, help="a directory that outlives the lab")
            verb.add_argument("--tls", type=Path, help="a directory that `arpanet ca` made")
            verb.add_argument("--no-client", dest="client", action="store_false", help="no c1")
        if name in ("sh", "cut", "heal"):
            verb.add_argument("host")
        if name in ("cut", "heal"):
            verb.add_argument("other", nargs="?")
        if name == "sh":
            verb.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def main() -> int:
    """Run the command line and return the exit code."""
    if sys.argv[1:2] == ["keep"]:
        serve_keeper()
    args = build_parser().parse_args()
    try:
        check_machine(None)
        code: int = args.run(args)
    except LabError as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
