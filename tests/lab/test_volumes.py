"""A container's data stays where it is, and the container comes back to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures

import pytest
from clients import SOCKET, ask
from conftest import HOSTS, docker, etcdctl, eventually, host_of, output, remove_all, start_all
from lab import CommandFailed, Lab, ask_engine

OLD = "older-than-arpanet"


@pytest.fixture(scope="module")
def old(lab: Lab) -> Lab:
    """Return a network one of whose engines had a volume with a file before it joined."""
    words = ["docker", "run", "--rm", "-v", f"{OLD}:/data", "busybox", "touch", "/data/old"]
    lab["h2"].run(words)
    start_all(lab)
    return lab


@pytest.fixture(autouse=True)
def clean(old: Lab) -> Iterator[None]:
    """Remove all containers, and all volumes but the old one, after each test."""
    yield
    remove_all(old)
    for volume in output(old, "volume", "ls", "-q").split():
        if volume != OLD:
            docker(old, "volume", "rm", volume)


def fill(net: Lab, host: str, count: int = 3) -> None:
    """Give a host so many containers that no new one goes there without a reason."""
    for number in range(count):
        net[host].run(["docker", "create", "--name", f"fill-{host}-{number}", "busybox"])
    eventually("they are listed", lambda: host_of(net, f"fill-{host}-{count - 1}"))


def volumes_on(net: Lab, host: str) -> set[str]:
    """Return the volumes of a host's own engine."""
    return set(net[host].run(["docker", "volume", "ls", "-q"]).stdout.split())


@pytest.mark.parametrize("volume", ["/data", "/data:rw", "vol:/data"])
def test_a_container_that_is_run_again_finds_its_file_though_other_hosts_are_emptier(
    old: Lab, volume: str
) -> None:
    words = ["--name", "db", "-e", f"ARPANET_VOLUME1={volume}", "busybox", "sh", "-c"]
    docker(old, "run", *words, "echo written >/data/file")
    home = host_of(old, "db")
    docker(old, "rm", "db")
    fill(old, home)
    assert output(old, "run", *words, "cat /data/file", via="h2") == "written"
    assert host_of(old, "db") == home


def test_a_read_only_volume_is_read_only(old: Lab) -> None:
    docker(old, "run", "--name", "db", "-e", "ARPANET_VOLUME1=/data", "busybox", "touch", "/data/f")
    docker(old, "rm", "db")
    words = ["run", "--name", "db", "-e", "ARPANET_VOLUME1=/data:ro", "busybox", "sh", "-c"]
    done = docker(old, *words, "ls /data; touch /data/g", check=False)
    assert done.stdout.strip() == "f"
    assert "Read-only file system" in done.stderr


def test_a_directory_of_the_host_is_mounted(old: Lab) -> None:
    for host in HOSTS:
        old[host].run(["sh", "-c", "mkdir -p /var/lib/shared && hostname >/var/lib/shared/name"])
    words = ["-e", "ARPANET_VOLUME1=/var/lib/shared:/data", "busybox", "cat", "/data/name"]
    said = output(old, "run", "--name", "db", *words)
    assert said == host_of(old, "db")


def test_what_the_user_mounts_at_the_same_path_wins(old: Lab) -> None:
    words = ["-v", "mine:/data", "-e", "ARPANET_VOLUME1=/data", "busybox"]
    docker(old, "create", "--name", "db", *words)
    mounts = json.loads(output(old, "inspect", "-f", "{{json .Mounts}}", "db"))
    assert [(m["Name"], m["Destination"]) for m in mounts] == [("mine", "/data")]


@pytest.mark.parametrize("form", ["-v", "--mount"])
def test_an_old_volume_is_found_where_it_is(old: Lab, form: str) -> None:
    text = f"{OLD}:/data" if form == "-v" else f"type=volume,src={OLD},dst=/data"
    fill(old, "h2")
    assert output(old, "run", "--name", "db", form, text, "busybox", "ls", "/data") == "old"
    assert host_of(old, "db") == "h2"


def refused(net: Lab, name: str, *words: str) -> str:
    """Return what docker says when a create is refused."""
    done = docker(net, "create", "--name", name, *words, check=False, timeout=30)
    assert done.returncode, "it was created"
    return done.stderr


def test_while_the_volumes_host_is_cut_off_nothing_empty_is_made_elsewhere(old: Lab) -> None:
    fill(old, "h2")
    docker(old, "run", "--name", "db", "-v", f"{OLD}:/data", "busybox", "true")
    docker(old, "rm", "db")
    before = {host: volumes_on(old, host) for host in HOSTS}
    old.cut("h2")
    try:
        words = ["-v", f"{OLD}:/data", "busybox"]
        # nobody knows yet that it is gone; where it is asked all the same, the name is kept a while
        assert "h2" in refused(old, "early", *words)
        wait_down(old, "h2")
        said = refused(old, "db", *words)
        assert f"volume {OLD} is on h2" in said
        assert "down" in said
        for host in ("h1", "h3"):
            assert volumes_on(old, host) == before[host]
    finally:
        old.heal("h2")
    wait_up(old, "h2")
    assert volumes_on(old, "h2") == before["h2"]
    assert output(old, "run", "--name", "db", *words, "ls", "/data") == "old"


def states(net: Lab) -> dict[str, bool]:
    """Return which hosts are alive."""
    done = net["h1"].run(["arpanet", "master", "status", "--json"], check=False)
    return {h["name"]: h["alive"] for h in json.loads(done.stdout)["hosts"]}


def wait_down(net: Lab, host: str) -> None:
    def is_down() -> None:
        assert not states(net)[host]

    eventually(f"{host} counts as down", is_down)


def wait_up(net: Lab, host: str) -> None:
    def is_up() -> None:
        assert states(net)[host]

    eventually(f"{host} counts as up", is_up)


def test_while_the_volumes_slave_is_stopped_the_create_says_which_host_it_needs(old: Lab) -> None:
    before = {host: volumes_on(old, host) for host in HOSTS}
    old["h2"].run(["arpanet", "slave", "stop"])
    try:
        wait_down(old, "h2")
        said = refused(old, "db", "-v", f"{OLD}:/data", "busybox")
        assert f"volume {OLD} is on h2" in said
    finally:
        old["h2"].run(["arpanet", "slave", "start"])
    assert {host: volumes_on(old, host) for host in HOSTS} == before


def test_companions_share_a_host(old: Lab) -> None:
    docker(old, "run", "-d", "--name", "db", "-v", "/data", "busybox", "sleep", "600")
    home = host_of(old, "db")
    docker(old, "exec", "db", "touch", "/data/shared")
    fill(old, home)
    words = ["--volumes-from", "db", "busybox", "ls", "/data"]
    assert output(old, "run", "--name", "reader", *words, via="h3") == "shared"
    words = ["--network", f"container:db@{home}", "busybox", "hostname"]
    same = output(old, "exec", "db", "hostname")
    assert output(old, "run", "--name", "net1", *words, via="h2") == same
    assert (host_of(old, "reader"), host_of(old, "net1")) == (home, home)


def test_volumes_are_listed_inspected_and_removed_through_any_master(old: Lab) -> None:
    docker(old, "create", "--name", "db", "-v", "vol:/data", "busybox")
    home = host_of(old, "db")
    assert "vol" in output(old, "volume", "ls", "-q", via="h2").split()
    assert OLD in output(old, "volume", "ls", "-q", via="h3").split()
    assert output(old, "volume", "inspect", "-f", "{{.Name}}", "vol", via="h3") == "vol"
    in_use = docker(old, "volume", "rm", "vol", check=False)
    assert in_use.returncode == 1
    assert "volume is in use" in in_use.stderr
    docker(old, "rm", "db")
    docker(old, "volume", "rm", "vol", via="h2")
    assert "vol" not in volumes_on(old, home)
    gone = docker(old, "volume", "inspect", "vol", check=False)
    assert gone.returncode == 1
    assert "o such volume" in gone.stderr
    fill(old, home)
    docker(old, "create", "--name", "db", "-v", "vol:/data", "busybox")
    assert host_of(old, "db") != home


def test_two_creates_at_once_for_a_new_volume_meet_on_one_host(old: Lab) -> None:
    def create(number: int) -> None:
        words = ["--name", f"both-{number}", "-v", f"new-{number // 4}:/data", "busybox"]
        docker(old, "create", *words, via=HOSTS[number % 3])

    with futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(12)))
    for volume in range(3):
        homes = {host_of(old, f"both-{number}") for number in range(volume * 4, volume * 4 + 4)}
        assert len(homes) == 1, homes
        assert [h for h in HOSTS if f"new-{volume}" in volumes_on(old, h)] == list(homes)


def test_a_create_that_fails_leaves_its_volume_name_free(old: Lab) -> None:
    with pytest.raises(CommandFailed):
        docker(old, "create", "--name", "db", "-v", "vol:/data", "-w", "relative", "busybox")
    assert not any("vol" in volumes_on(old, host) for host in HOSTS)
    for host in ("h1", "h2"):
        fill(old, host)
    docker(old, "create", "--name", "db", "-v", "vol:/data", "busybox")
    assert host_of(old, "db") == "h3"


def test_an_anonymous_volume_is_found_by_its_name_also_when_its_container_is_gone(
    old: Lab,
) -> None:
    """As compose and portainer make a service anew whose image has a VOLUME."""
    docker(old, "run", "--name", "db", "-v", "/data", "busybox", "touch", "/data/kept")
    home = host_of(old, "db")
    volume = output(old, "inspect", "-f", "{{(index .Mounts 0).Name}}", "db")
    fill(old, home)
    mount = f"type=volume,src={volume},dst=/data"
    for form, text in (("-v", f"{volume}:/data"), ("--mount", mount)):
        words = ["run", "--rm", "--name", "anew", form, text, "busybox", "ls", "/data"]
        assert output(old, *words, via="h3") == "kept"
    docker(old, "rm", "db")
    assert output(old, *words, via="h3") == "kept"
    old[home].run(["arpanet", "slave", "stop"])
    try:
        wait_down(old, home)
        said = refused(old, "anew", form, text, "busybox")
        assert f"volume {volume} is on {home}" in said
    finally:
        old[home].run(["arpanet", "slave", "start"])
    docker(old, "volume", "rm", volume)
    assert not any(volume in volumes_on(old, host) for host in HOSTS)


def test_no_pin_is_left_of_anonymous_volumes(old: Lab) -> None:
    for number in range(3):
        docker(old, "run", "--rm", "--name", f"c{number}", "-v", "/data", "busybox", "true")
    docker(old, "run", "--name", "db", "-v", "/data", "busybox", "true")
    docker(old, "rm", "-v", "db")

    def none_left() -> None:
        keys = old["h1"].run(etcdctl(old["h1"], "get", "--prefix", "--keys-only", "/arpanet/vol"))
        assert keys.stdout.split() == [f"/arpanet/volumes/{OLD}"]

    eventually("only the old volume is pinned", none_left)


def test_what_is_pruned_is_what_the_engine_prunes(old: Lab) -> None:
    """A volume without a name; and of two volumes of one name only the one that is not in use."""
    docker(old, "create", "--name", "user@h1", "-v", "twin:/data", "busybox")
    docker(old, "create", "--name", "keeper@h2", "-v", f"{OLD}:/data", "busybox")
    old["h3"].run(["docker", "volume", "create", "twin"])
    made = [output(old, "volume", "create"), old["h3"].run(["docker", "volume", "create"]).stdout]
    docker(old, "volume", "prune", "-f")
    for volume in made:
        assert not any(volume.strip() in volumes_on(old, host) for host in HOSTS)
    assert "twin" in volumes_on(old, "h1")
    docker(old, "create", "--name", "again", "-v", "twin:/data", "busybox", via="h3")
    assert host_of(old, "again") == "h1"


def test_a_prune_that_finds_nothing_says_what_an_engine_says(old: Lab) -> None:
    docker(old, "create", "--name", "keeper@h2", "-v", f"{OLD}:/data", "busybox")
    for kind in ("images", "volumes", "networks", "build"):
        path = f"/{kind}/prune"
        _, bare = ask_engine(str(old["h1"].path(SOCKET)), "POST", path)
        assert json.loads(ask(old, "POST", path).text) == json.loads(bare), kind
