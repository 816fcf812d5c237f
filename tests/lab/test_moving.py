"""A container goes to another host under its name: by hand, or when its host is down."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest
from clients import engine_json, engine_names, remove_containers
from conftest import HOSTS, curl, docker, eventually, output, until
from faults import Fault, kill, set_rate, start_engine, start_master
from lab import Lab

GRACE_S = 12
RUN = ["run", "-d", "--stop-timeout", "1"]
SLEEP = ["busybox", "sleep", "100000"]
FETCH = ["exec", "user", "wget", "-qO-", "http://db:8000/cgi-bin/hostname"]


@pytest.fixture(scope="module")
def moving(lab: Lab) -> Lab:
    """Return a network whose masters wait for a host no longer than must be."""
    for name in HOSTS:
        peers = "boot" if name == "h1" else lab["h1"].ip
        flags = ["--peers", peers, "--grace-s", str(GRACE_S)]
        lab[name].run(["arpanet", "master", "start", *flags])
    for name in HOSTS:
        lab[name].run(["arpanet", "slave", "start"])
    return lab


@pytest.fixture(autouse=True)
def clean(moving: Lab) -> Iterator[None]:
    """Leave neither a container nor a volume to the next test, and nothing left to do."""
    yield
    remove_containers(moving)
    eventually("no volume is left", lambda: remove_volumes(moving))


def remove_volumes(net: Lab) -> None:
    """Remove all volumes, with what keeps their containers where they are."""
    for volume in output(net, "volume", "ls", "-q").split():
        docker(net, "volume", "rm", volume)


def move(net: Lab, *words: str, code: int = 0) -> str:
    """Return what arpanet move prints on h1, both of its streams."""
    done = net["h1"].run(["arpanet", "move", *words], check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def require_names(net: Lab, *names: str) -> None:
    """Raise AssertionError unless the engines have these containers."""
    assert engine_names(net) == sorted(names)


def volumes_on(net: Lab, name: str) -> list[str]:
    """Return the names of a host's volumes."""
    found = engine_json(net[name], "/volumes")["Volumes"] or ()
    return sorted(volume["Name"] for volume in found)


# ---- by hand


def test_a_container_is_moved_with_its_name_and_its_links(moving: Lab) -> None:
    output(moving, "network", "create", "shop")
    wishes = ["-e", "A=1", "-m", "64m", "-p", "8099:8000", "-e", "ARPANET_HOST=h2"]
    docker(moving, *RUN, "--name", "web0", *wishes, "--network", "shop",
           "--network-alias", "shopfront", "web")  # fmt: skip
    docker(moving, *RUN, "--name", "user@h1", "--link", "web0:db", *SLEEP)
    eventually("the link leads to web0", lambda: output(moving, *FETCH))
    try:
        assert "web0 is on h3 now; it was on h2" in move(moving, "web0", "h3")
        assert output(moving, "ps", "-aq", via="h2").count("\n") == 1, "the old one is not listed"
        eventually("it is gone", lambda: require_names(moving, "user@h1", "web0@h3"))
        (moved,) = json.loads(output(moving, "inspect", "web0"))
        until("the link follows", lambda: output(moving, *FETCH) == moved["Id"][:12])
        assert "A=1" in moved["Config"]["Env"]
        assert moved["HostConfig"]["Memory"] == 64 << 20
        assert "shopfront" in moved["NetworkSettings"]["Networks"]["shop"]["Aliases"]
        assert "web0 is on h3 already" in move(moving, "web0", "h3", code=1)
        refused = move(moving, "web0", code=1)
        assert "no host can take web0: h1: host==h3 does not hold" in refused, "its own wish"
        assert_start_that_fails_leaves_the_source(moving)
    finally:
        docker(moving, "rm", "-f", "web0")
        docker(moving, "network", "rm", "shop")


def assert_start_that_fails_leaves_the_source(net: Lab) -> None:
    """Let another program have the port on h2 that web0 needs there."""
    other = net["h2"].popen(["python3", "-m", "http.server", "8099"])
    ready = ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8099), 1)"]
    eventually("it listens", lambda: net["h2"].run(ready))
    assert "8099" in move(net, "web0", "h2", code=1)
    other.kill()
    other.wait()
    eventually("nothing half is left", lambda: require_names(net, "user@h1", "web0@h3"))
    until("it runs again", lambda: is_running(net, "web0"))


def is_running(net: Lab, name: str) -> bool:
    return output(net, "inspect", "-f", "{{.State.Running}}", name) == "true"


def test_what_cannot_be_moved_stays_as_it_is(moving: Lab) -> None:
    docker(moving, *RUN, "--name", "kept@h2", "-v", "kept:/data", "web")
    docker(moving, "create", "--name", "beside", "-v", "kept:/too", "web")
    docker(moving, *RUN, "--name", "bound", "-v", "/srv:/srv", "web")
    docker(moving, *RUN, "--rm", "--name", "gone", "web")
    moving["h3"].run(["docker", "volume", "create", "mine"])
    docker(moving, *RUN, "--name", "twin@h1", "-v", "alone:/data", "web")
    assert "try: arpanet move --with-volumes kept" in move(moving, "kept", code=1)
    assert "used by beside too" in move(moving, "--with-volumes", "kept", code=1)
    assert "has /srv of h" in move(moving, "--with-volumes", "bound", code=1)
    assert "run with --rm" in move(moving, "gone", code=1)
    assert "No such container: nosuch" in move(moving, "nosuch", code=1)
    assert "there is no host h9" in move(moving, "kept", "h9", code=1)
    running = ["bound", "gone", "kept", "twin"]
    names = output(moving, "ps", "--format", "{{.Names}}").splitlines()
    assert sorted(name.partition("@")[0] for name in names) == running


# ---- with volumes

DATA = """
cd /data && head -c 20000000 /dev/urandom >big && mkdir -p a/b none && echo x >a/b/x && ln -s x a/l
ln big a/hard && chown 7:8 a/b/x && chmod 4750 a/b/x && touch -t 200102030405 a/b/x
chown 9:9 . && chmod 711 . && echo more >/more/it && rm /www/index.html
"""
SUMS = """
cd /data && find . | sort | xargs ls -ldn --full-time | tr -s ' ' | sed 's/^d.*[.]0* //'
find . -type f | sort | xargs sha256sum; cat /more/it; ls /www
"""


def test_volumes_go_along_to_the_last_bit(moving: Lab) -> None:
    """One that has a name, one that has none, and one where the image has files."""
    volumes = ["-v", "data:/data", "-v", "/more", "-v", "www:/www"]
    docker(moving, *RUN, "--name", "db0@h2", "--label", "a=b", *volumes, "web")
    docker(moving, "exec", "db0", "sh", "-ec", DATA)
    before = output(moving, "exec", "db0", "sh", "-c", SUMS)
    assert "big" in before and "more" in before
    there = volumes_on(moving, "h2")
    said = move(moving, "--with-volumes", "db0", "h3")
    assert "volume data: 16 MiB copied" in said
    assert "volume data: checked, sha256:" in said
    assert "db0 is on h3 now; it was on h2" in said
    assert output(moving, "exec", "db0", "sh", "-c", SUMS) == before
    eventually("the old one is gone", lambda: require_names(moving, "db0@h3"))
    until("its volumes too", lambda: not volumes_on(moving, "h2"))
    assert volumes_on(moving, "h3") == there
    docker(
        moving, "run", "--rm", "--name", "next", "-v", "data:/data", "busybox", "ls", "/data/big"
    )
    assert "db0 is on h1 now; it was on h3" in move(moving, "--with-volumes", "db0", "h1")
    assert output(moving, "exec", "db0", "sh", "-c", SUMS) == before


CUTS = ["the master dies", "who asked goes away", "the target dies"]


@pytest.mark.parametrize("cut", CUTS)
def test_a_move_that_is_cut_off_changes_nothing(moving: Lab, cut: str) -> None:
    """All runs over a slow cable of h3, so that the copy is at its beginning for seconds."""
    docker(moving, *RUN, "--name", "db0@h2", "-v", "data:/data", "-v", "/more", "busybox",
           "sleep", "100000")  # fmt: skip
    docker(moving, "exec", "db0", "sh", "-ec", "cd /data; seq 9 >few; truncate -s 300M big")
    volumes = volumes_on(moving, "h2")
    set_rate(moving, "h3", "200mbit")
    try:
        path = "/arpanet/containers/db0/move?host=h3&volumes=1"
        words = ["arpanet", "move", "--with-volumes", "db0", "h3"]
        if cut == "the master dies":  # this very one
            words = curl(moving["h1"], path, "-sSNX", "POST")
        pipe = subprocess.PIPE
        mover = moving["h1"].popen(words, stdout=pipe, stderr=subprocess.STDOUT)
        assert mover.stdout
        assert any("MiB copied" in line for line in mover.stdout)
        if cut == "who asked goes away":
            mover.send_signal(signal.SIGINT)
        elif cut == "the master dies":
            kill(moving["h1"], "master")
        else:
            kill(moving["h3"], "engine")
        rest = mover.communicate(timeout=60)[0]
    finally:
        set_rate(moving, "h3", "")
        start_master(moving["h1"])
        start_engine(moving["h3"])
    assert mover.returncode != 0, rest
    eventually("no half is left", lambda: require_names(moving, "db0@h2"))
    until("nor half a volume", lambda: not volumes_on(moving, "h3"))
    assert volumes_on(moving, "h2") == volumes
    until("it runs again", lambda: is_running(moving, "db0"))
    assert output(moving, "exec", "db0", "wc", "-c", "/data/big", "/data/few").split()[::2] == [
        str(300 << 20), "18", str((300 << 20) + 18)
    ]  # fmt: skip


# ---- a host that goes


def test_containers_of_a_host_that_dies_are_made_elsewhere_once(moving: Lab) -> None:
    """Ten, all on h3, one of them linked to from h1; then h3 comes back with the old ten."""
    names = [f"web{n}" for n in range(10)]
    wishes = ["-e", "ARPANET_HOST=~h3", "-e", "ARPANET_RESCHEDULE=on-host-failure"]
    for name in names:
        docker(moving, *RUN, "--name", name, "--restart", "always", *wishes, "web")
    docker(moving, *RUN, "--name", "pinned", *wishes, "-v", "data:/data", "web")
    docker(moving, *RUN, "--name", "plain@h3", "web")
    docker(moving, *RUN, "--name", "user@h1", "--link", "web0:db", *SLEEP)
    others = ["pinned@h3", "plain@h3", "user@h1"]
    assert engine_names(moving) == sorted([*others, *(f"{name}@h3" for name in names)])
    fault = Fault("kill", "machine")
    fault.inject(moving, "h3")
    try:
        eventually("all run elsewhere", lambda: require_moved(moving, names), GRACE_S + 10)
        eventually("the link follows", lambda: docker(moving, *FETCH), 10)
        listed = output(moving, "ps", "-a", "--format", "{{.Names}} {{.Status}}")
        assert "pinned@h3 Host Down" in listed and "plain@h3 Host Down" in listed
    finally:
        fault.heal(moving, "h3")
    eventually("the old ones are gone", lambda: require_once(moving, [*names, *others]))
    require_moved(moving, names)
    docker(moving, "rm", "-f", "web0")
    docker(moving, "create", "--name", "web0", "busybox", via="h3")


def require_moved(net: Lab, names: list[str]) -> None:
    """Raise AssertionError unless each of these runs once, and not on h3."""
    listed = output(net, "ps", "--format", "{{.Names}} {{.Status}}", via="h2").splitlines()
    found = [line for line in listed if line.startswith("web")]
    assert sorted(line.partition("@")[0] for line in found) == names, listed
    assert all("@h3" not in line and " Up " in line for line in found), listed


def require_once(net: Lab, names: list[str]) -> None:
    """Raise AssertionError unless the engines have each of these once."""
    plain = [name.partition("@")[0] for name in names]
    assert sorted(name.partition("@")[0] for name in engine_names(net)) == sorted(plain)


def test_a_fixed_address_stays_behind_and_that_is_said(moving: Lab) -> None:
    docker(moving, "network", "create", "--subnet", "10.98.0.0/24", "fixed")
    where = ["--network", "fixed", "--ip", "10.98.0.9"]
    docker(moving, *RUN, "--name", "addressed@h1", *where, *SLEEP)
    assert "leaving the address 10.98.0.9 on network fixed" in move(moving, "addressed", "h2")
    docker(moving, "rm", "-f", "addressed")
    docker(moving, "network", "rm", "fixed")
