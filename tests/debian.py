"""Debian's packages for tests: fetched once, with this machine's settings for apt, and kept.

CLIENTS are the docker clients of today, from Debian unstable, in a tree of their own. What they
do is done on the lab's client, which the tree shares /run, /proc and the network with.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import PATH, SLOW, Host

CACHE = Path("/var/tmp/arpanet-lab-debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CLIENTS = ("docker-cli", "docker-compose", "docker-buildx")
ANSIBLE = ("ansible", "python3-requests", "dash", "coreutils", "libc-bin")
# what a tree shares with the host that enters it; then the words that follow are run in it
ENTER = """
root=$1; shift
for path in /run /proc /dev /tmp /etc/arpanet; do
    [ ! -e "$path" ] || mount --rbind "$path" "$root$path"
done
exec chroot "$root" "$@"
"""


def call(*command: str | Path, within_s: float = 120) -> str:
    """Return what a command prints, both outputs. Raises AssertionError with it if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within_s * SLOW,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def read_sources() -> list[str]:
    """Return this machine's sources of Debian for apt, as lines of a sources.list."""
    form = "$(ORIGIN)|deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = call("apt-get", "indextargets", "--format", form, "Identifier: Packages").splitlines()
    return [line.partition("|")[2] for line in targets if line.startswith("Debian|")]


def apt_options(place: Path, suite: str) -> list[str]:
    """Return the options of an apt that knows of that suite alone and of no installed package.

    place: a directory for what it fetches.
    """
    mirror = read_sources()[0].split()[1]
    (place / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    (place / "status").touch()
    options = {
        "Dir::State": place / "state",
        "Dir::State::status": place / "status",
        "Dir::Cache": place / "cache",
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Acquire::Languages": "none",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def unpack(root: Path, suite: str, packages: Sequence[str]) -> None:
    """Make a tree of those packages and of what they depend on, unpacked and not configured."""
    root.mkdir()
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("run", "proc", "dev", "tmp", "root", "etc/arpanet"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    place = root.with_name("apt")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (place / name).mkdir(parents=True)
    options = apt_options(place, suite)
    call("apt-get", *options, "update", within_s=200)
    call("apt-get", *options, "install", "--yes", "--download-only", *packages, within_s=300)
    for package in sorted((place / "cache/archives").glob("*.deb")):
        call("dpkg-deb", "--extract", package, root)


@contextlib.contextmanager
def kept(name: str, recipe: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a directory of CACHE that is made when its recipe is new, and kept."""
    CACHE.mkdir(exist_ok=True)
    wanted = CACHE / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    new = CACHE / f"new-{name}"
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            for old in [*CACHE.glob(f"{name}-*"), new]:
                shutil.rmtree(old, ignore_errors=True)
            new.mkdir()
            make(new / name)
            (new / name).rename(wanted)
            shutil.rmtree(new)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield wanted


@contextlib.contextmanager
def unstable(name: str, packages: Sequence[str]) -> Iterator[Path]:
    """Yield a tree of packages of Debian unstable, made once and kept under that name."""
    recipe = " ".join(packages) + "".join(read_sources())
    with kept(name, recipe, lambda root: unpack(root, "unstable", packages)) as root:
        yield root


def run_in(
    host: Host, root: Path, argv: Sequence[str], env: Mapping[str, str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command of that tree on a host of the lab; see Host.run."""
    enter = ["unshare", "--mount", "sh", "-euc", ENTER, "sh", str(root)]
    return host.run([*enter, *argv], env={"HOME": "/run", "PATH": PATH, **env}, **options)
