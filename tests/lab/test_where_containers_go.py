"""A container goes where it was asked for, says why it is there, and no room is given twice."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clients import ask, engine_json, engine_names, program, remove_containers, require_empty
from conftest import HOSTS, docker, eventually, output
from lab import Lab

ZONES = {"h1": ["zone=a"], "h2": ["zone=b"], "h3": ["zone=b", "disk=ssd"]}
SWARM = "com.docker.swarm"
RACE_CODE = r"""
import json, sys, threading
hosts, body = json.load(sys.stdin)
barrier, answers = threading.Barrier(50), []
def create(number):
    connection = reach_http(hosts[number % 2], 120)
    connection.connect()
    barrier.wait()
    connection.request("POST", f"/containers/create?name=race{number}", json.dumps(body),
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answers.append([answer.status, answer.read().decode()])
threads = [threading.Thread(target=create, args=(n,)) for n in range(50)]
[t.start() for t in threads]
[t.join() for t in threads]
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def zones(lab: Lab) -> Lab:
    """Return a network whose slaves were started with labels; an image and a label are on one."""
    for name in HOSTS:
        peers = "boot" if name == "h1" else lab["h1"].ip
        lab[name].run(["arpanet", "master", "start", "--peers", peers])
    for name in HOSTS:
        flags = [word for label in ZONES[name] for word in ("--label", label)]
        lab[name].run(["arpanet", "slave", "start", *flags])
    lab["h3"].run(["docker", "tag", "busybox", "rare:1"])
    return lab


@pytest.fixture(autouse=True)
def clean(zones: Lab) -> Iterator[None]:
    """Leave no container to the next test."""
    yield
    remove_containers(zones)


def host_of(net: Lab, name: str) -> str:
    """Return the host that a container is on."""
    return str(json.loads(ask(net, "GET", f"/containers/{name}/json").text)["Host"]["Name"])


WISHES: list[tuple[list[str], str]] = [
    (["--name", "it@h3"], "h3"),
    (["-e", "ARPANET_HOST=h2"], "h2"),
    (["-l", "arpanet.host=h2"], "h2"),
    (["-e", "ARPANET_CONSTRAINT1=disk==s*"], "h3"),
    (["-e", "ARPANET_CONSTRAINT1=zone==/^[b-z]$/", "-e", "ARPANET_CONSTRAINT2=host!=h2"], "h3"),
    (["-e", "ARPANET_CONSTRAINT1=disk==~ssd", "-e", "ARPANET_CONSTRAINT2=zone==~nosuch"], "h3"),
    (["-l", "arpanet.constraint1=disk==ssd"], "h3"),
    (["-e", "constraint:disk==ssd"], "h3"),
    (["-l", f'{SWARM}.constraints=["node==h2"]'], "h2"),
    (["-e", "ARPANET_AFFINITY1=container==db"], "h2"),
    (["-e", "ARPANET_AFFINITY1=tier==data"], "h2"),
    (["-e", "ARPANET_AFFINITY1=image==rare"], "h3"),
    (["-e", "affinity:image==rare:1"], "h3"),
    (["-l", f'{SWARM}.affinities=["container==db"]'], "h2"),
    (["-e", "ARPANET_AFFINITY1=container!=db", "-e", "ARPANET_AFFINITY2=image!=rare"], "h1"),
]


def test_each_wish_is_granted_through_each_master(zones: Lab) -> None:
    """One test for all, on one container to be near to: what differs is in the table."""
    docker(zones, "create", "--name", "db@h2", "-l", "tier=data", "busybox")
    for number, (flags, host) in enumerate(WISHES):
        via = HOSTS[number % 3]
        name = [] if "--name" in flags else ["--name", "it"]
        docker(zones, "create", *name, *flags, "-e", "A=1", "busybox", via=via)
        (it,) = json.loads(output(zones, "inspect", "it", via=via))
        assert it["Host"]["Name"] == host, flags
        env = [line for line in it["Config"]["Env"] if not line.startswith("PATH=")]
        assert env == ["A=1"], flags
        assert it["Config"]["Labels"]["arpanet.placed"].startswith(f"{host}: "), flags
        docker(zones, "rm", "it", via=via)


def test_who_asks_for_nothing_is_spread_and_gets_no_label(zones: Lab) -> None:
    for number in range(3):
        docker(zones, "create", "--name", f"c{number}", "-m", "64m", "busybox")
        assert output(zones, "inspect", "-f", "{{.Config.Labels}}", f"c{number}") == "map[]"
    assert {name.partition("@")[2] for name in engine_names(zones)} == set(HOSTS)


def test_a_refused_create_names_each_host_and_its_reason(zones: Lab) -> None:
    most = str(engine_json(zones["h1"], "/info")["MemTotal"] * 2 // 3)
    words = ["-m", most, "-e", "ARPANET_CONSTRAINT1=zone==b", "busybox"]
    for name in ("p1", "p2"):
        docker(zones, "create", "--name", name, *words)
    done = docker(zones, "run", "--name", "p3", *words, check=False)
    assert done.returncode == 125
    left = r"\d+ MiB of \d+ MiB of memory are left"
    reasons = f"no host can take p3: h1: zone==b does not hold: it is a; h2: {left}; h3: {left}"
    assert re.search(reasons, done.stderr), done.stderr
    assert "Unable to find image" not in done.stderr, "a client that pulls took it for a 404"
    assert engine_names(zones) == ["p1@h2", "p2@h3"]


SLEEP = ["busybox", "sleep", "600"]


def test_a_port_goes_where_it_is_free_also_of_those_that_an_engine_chose(zones: Lab) -> None:
    docker(zones, "run", "-d", "--name", "first@h1", "-p", "80", *SLEEP)
    chosen = output(zones, "port", "first", "80").splitlines()[0].rpartition(":")[2]
    for name, host in (("second", "h2"), ("third", "h3")):
        docker(zones, "run", "-d", "--name", name, "-p", f"{chosen}:80", *SLEEP)
        assert host_of(zones, name) == host
    docker(zones, "create", "--name", "fourth", "-p", f"{chosen}:80", *SLEEP)
    done = docker(zones, "start", "fourth", check=False)
    assert done.returncode == 1
    assert "port is already allocated" in done.stderr
    docker(zones, "stop", "-t", "0", "first", "second", "third")
    docker(zones, "start", "fourth")


def make_anew(engine: Callable[..., Any], *words: str) -> None:
    """Make a service anew as clients do: stopped and renamed aside, beside it, and compose's way.

    Each time by what no two of them could have at once.
    """
    made = [*words, "-p", "8081:80", "-v", "kept:/data", *SLEEP]
    engine("run", "-d", "--name", "web", *made)
    engine("stop", "-t", "0", "web")
    engine("rename", "web", "web-old")
    engine("run", "-d", "--name", "web", *made)  # portainer, compose 1.29
    engine("rm", "web-old")
    short_id = engine("ps", "-q", "-f", "name=web").stdout.strip()
    engine("create", "--name", f"{short_id}_web", *made)  # compose 2
    engine("stop", "-t", "0", "web")
    engine("rm", "web")
    engine("rename", f"{short_id}_web", "web")
    engine("start", "web")
    engine("create", "--name", "beside", "-p", "8081:80", "-v", "kept:/data", *SLEEP)
    refused = engine("start", "beside", check=False)
    assert (refused.returncode, "already allocated" in refused.stderr) == (1, True)
    engine("rm", "-f", "web", "beside")
    engine("volume", "rm", "kept")


def test_what_does_not_run_holds_nothing(zones: Lab) -> None:
    """The same commands at a bare engine, and at a master."""
    facts = engine_json(zones["h1"], "/info")
    all_of_it = ["-m", str(facts["MemTotal"] * 2 // 3), "--cpus", str(facts["NCPU"])]

    def bare(*words: str, check: bool = True) -> Any:
        return zones["h3"].run(["docker", *words], check=check)

    make_anew(bare, *all_of_it)
    require_empty(zones)
    make_anew(functools.partial(docker, zones), *all_of_it)
    for number in range(7):  # of three hosts
        docker(zones, "run", "--name", f"job{number}", *all_of_it, "busybox", "true")


def test_a_variable_that_does_not_exist_is_refused_with_those_that_do(zones: Lab) -> None:
    done = docker(zones, "create", "--name", "it", "-e", "ARPANET_ZONE=b", "busybox", check=False)
    assert done.returncode == 1
    assert "ARPANET_CONSTRAINT1=KEY==VALUE" in done.stderr


# ---- arpanet host


def on_h1(net: Lab, *words: str, code: int = 0) -> str:
    """Return what arpanet prints on h1, both of its streams."""
    done = net["h1"].run(["arpanet", *words], check=False)
    assert done.returncode == code, done.stderr
    return str(done.stdout + done.stderr)


def test_hosts_are_listed_for_people_and_for_machines(zones: Lab) -> None:
    docker(zones, "create", "--name", "it@h3", "-m", "64m", "busybox")
    rows = [re.split("   +", line) for line in on_h1(zones, "host", "ls").splitlines()]
    assert [row[:5] for row in rows[1:]] == [
        [name, zones[name].ip, "up", "1" if name == "h3" else "0", "0"] for name in HOSTS
    ]
    assert rows[3][6].startswith("64 MiB of ")
    assert rows[3][7] == "disk=ssd,zone=b"
    (h1, *_) = json.loads(on_h1(zones, "host", "ls", "--json"))
    assert h1["labels"] == {"zone": "a"}
    assert json.loads(on_h1(zones, "host", "inspect", "h1", "--json")) == h1
    assert h1["engine"]["cpus"] == engine_json(zones["h1"], "/info")["NCPU"]
    assert re.search(r"engine kernel +\S+", on_h1(zones, "host", "inspect", "h1"))
    assert "there is no host h9" in on_h1(zones, "host", "inspect", "h9", code=1)
    assert "there is no host h9" in on_h1(zones, "host", "drain", "h9", code=1)


def test_a_drained_host_takes_nothing_also_after_its_slave_came_back(zones: Lab) -> None:
    to_h2 = ["create", "--name", "it@h2", "busybox"]
    docker(zones, "create", "--name", "was@h2", "busybox")
    assert re.search("h2 .* up, drained", on_h1(zones, "host", "drain", "h2"))
    try:
        zones["h2"].run(["arpanet", "slave", "stop"])
        zones["h2"].run(["arpanet", "slave", "start", "--label", "zone=b"])
        for via in HOSTS:
            assert "h2: the host is drained" in docker(zones, *to_h2, via=via, check=False).stderr
        for number in range(4):
            docker(zones, "create", "--name", f"c{number}", "busybox")
        assert not any(name.startswith("c") for name in engine_names(zones) if "@h2" in name)
        assert host_of(zones, "was") == "h2"
        on_h1(zones, "host", "cordon", "h2")
        docker(zones, *to_h2)
        docker(zones, "create", "--name", "c4", "-e", "ARPANET_CONSTRAINT1=host!=h1", "busybox")
        assert host_of(zones, "c4") == "h3"
    finally:
        on_h1(zones, "host", "undrain", "h2")
    done = docker(zones, "create", "--name", "c5", "-e", "ARPANET_HOST=~h2", "busybox")
    assert host_of(zones, "c5") == "h2", done


def test_a_label_can_be_changed_and_taken_away(zones: Lab) -> None:
    rest = ["-e", "ARPANET_CONSTRAINT1=zone==c", "busybox"]
    on_h1(zones, "host", "label", "h1", "zone=c", "rack=1")
    try:
        docker(zones, "create", "--name", "it", *rest)
        assert host_of(zones, "it") == "h1"
        assert "zone=c" in on_h1(zones, "host", "label", "h1", "rack-")
        assert "rack" not in on_h1(zones, "host", "ls")
        on_h1(zones, "host", "label", "h1", "zone-")
        done = docker(zones, "create", "--name", "it2", *rest, check=False)
        assert "h1: zone==c does not hold; h2: zone==c does not hold: it is b" in done.stderr
    finally:
        on_h1(zones, "host", "label", "h1", "zone=a")


def test_a_dead_host_is_removed_and_comes_back_as_new(zones: Lab) -> None:
    on_h1(zones, "host", "drain", "h3")
    assert "host h3 is alive" in on_h1(zones, "host", "rm", "h3", code=1)
    zones["h3"].run(["arpanet", "slave", "stop"])

    def has_left() -> None:
        assert "host h3 has left" in on_h1(zones, "host", "rm", "h3")

    eventually("h3 has left", has_left)
    assert "h3" not in on_h1(zones, "host", "ls")
    assert "there is no host h3" in on_h1(zones, "host", "rm", "h3", code=1)
    zones["h3"].run(["arpanet", "slave", "start", "--label", "zone=b", "--label", "disk=ssd"])
    assert re.search("h3 .* up   .* disk=ssd,zone=b", on_h1(zones, "host", "ls"))


# ---- arpanet place, arpanet image spread


def test_a_placement_is_explained_and_nothing_is_made(zones: Lab) -> None:
    docker(zones, "create", "--name", "db@h2", "busybox")
    wishes = ["-e", "ARPANET_CONSTRAINT1=zone==b", "-e", "ARPANET_AFFINITY1=container!=db"]
    said = on_h1(zones, "place", "--dry-run", *wishes, "-m", "64m", "busybox")
    assert re.fullmatch(
        r"h3: zone==b, container!=db; spread over h3, 64 MiB of memory, 0 containers were there\n"
        r"h1 +zone==b does not hold: it is a\n"
        r"h2 +container!=db does not hold\n",
        said,
    ), said
    words = ["place", "--dry-run", "--json", "--name", "xx@h1", "-p", "8080:80", "busybox"]
    assert json.loads(on_h1(zones, *words))["host"] == "h1"
    assert "no host can take it: h1: host==h9" in on_h1(
        zones, "place", "--dry-run", "-e", "ARPANET_HOST=h9", "busybox", code=1
    )
    assert engine_names(zones) == ["db@h2"]


def has_image(net: Lab, image: str) -> list[str]:
    """Return the hosts whose engines have an image."""
    return [
        h
        for h in HOSTS
        if net[h].run(["docker", "image", "inspect", image], check=False).returncode == 0
    ]


def test_an_image_is_spread_to_some_hosts_and_then_to_all(zones: Lab) -> None:
    """A layer of 40 MB: more than is moved without a word."""
    script = "docker create --name big busybox && head -c 40000000 /dev/urandom >/tmp/big && "
    script += (
        "docker cp /tmp/big big:/big && docker commit big big:1 && docker rm big && rm /tmp/big"
    )
    zones["h3"].run(["sh", "-c", script])
    assert "no living host has rack==9" in on_h1(
        zones, "image", "spread", "big:1", "--to", "rack==9", code=1
    )
    said = on_h1(zones, "image", "spread", "big:1", "--to", "zone==b")
    assert "h2: received" in said
    assert "h3: was there" in said
    assert re.search(r"h2: \d+ MiB of about \d+ MiB", said)
    assert has_image(zones, "big:1") == ["h2", "h3"]
    assert "h1: received" in on_h1(zones, "image", "spread", "big:1")
    assert has_image(zones, "big:1") == [*HOSTS]
    assert "No such image: nosuch" in on_h1(zones, "image", "spread", "nosuch", code=1)


# ---- room


def test_of_50_creates_at_two_masters_for_the_10_last_places_10_are_made(zones: Lab) -> None:
    info = engine_json(zones["h1"], "/info")
    share = int(info["MemTotal"] * 1.05) // 5
    body: dict[str, Any] = {
        "Image": "busybox",
        "HostConfig": {"Memory": share},
        "Labels": {"arpanet.constraint1": "host!=h3"},
    }
    order = json.dumps([[zones["h1"].ip, zones["h2"].ip], body])
    done = zones.client.run(program(RACE_CODE), input=order, timeout=150)
    answers = json.loads(done.stdout)
    made = [text for status, text in answers if status == 201]
    refused = [text for status, text in answers if status == 503]
    assert (len(made), len(refused)) == (10, 40), answers
    hosts = sorted(name.partition("@")[2] for name in engine_names(zones))
    assert hosts == ["h1"] * 5 + ["h2"] * 5
    for text in refused:
        assert re.search("no host can take|others take at this moment", text), text
    again = ask(zones, "POST", "/containers/create?name=late", json.dumps(body), via="h3")
    assert again.status == 503
    assert "h1: " in again.message and "of memory are left" in again.message
