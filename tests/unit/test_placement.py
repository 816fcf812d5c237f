"""Where a container goes: to a host that satisfies all it asks for, if there is one."""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

import docker
import pytest
from builders import HOSTS, container, host, id_of, view, wish
from hypothesis import given
from hypothesis import strategies as st

import arpanet
from arpanet import (
    BadRequest,
    Change,
    CreateWish,
    Entry,
    Host,
    Making,
    NameEntry,
    Needs,
    Node,
    NoRoom,
    Order,
    Placement,
    Policy,
    Publisher,
    View,
    apply_changes,
    decide_order,
    dump_json,
    has_room,
    name_row,
    pins_of,
    place,
    read_settings,
)

GB, CPU = 2**30, 10**9


def zones(**zone: str) -> list[Host]:
    """Return hosts with a label zone, and 4 GB and 4 CPUs each."""
    return [host(h, labels={"zone": z}, memory_bytes=4 * GB, cpus=4) for h, z in zone.items()]


AB = zones(h1="a", h2="b", h3="b")
DISK = host("h2")._replace(engine={"labels": ["disk=ssd", "zone=x"]})
IMAGES = {"h1": {"busybox", "busybox:latest"}, "h3": {"redis", "redis:7"}}
FULL: dict[str, Any] = {"bindings": ("80/tcp",), "memory_bytes": 3 * GB, "nano_cpus": 3 * CPU}
CHOSEN = {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 32768, "Type": "tcp"}
CROWD = [container(name, "h2") for name in "bcd"]  # h1 would be chosen, if it could
TABLE: list[tuple[str, View, CreateWish, str]] = [
    ("nothing runs: the first name", view(), wish(), "h1"),
    ("the one with the fewest", view(container("a", "h1"), container("b", "h3")), wish(), "h2"),
    ("stopped ones count too", view(container("a", "h1", running=False)), wish(), "h2"),
    ("a name being made counts", view(names={"x": NameEntry("h1", "")}), wish(), "h2"),
    ("not a host that is down", view(down=["h1"]), wish(), "h2"),
    ("its volume's host", view(volumes={"data": "h3"}), wish(volumes=("data",)), "h3"),
    (
        "the host of a volume that a container has, whose pin is to come",
        view(container("a", "h3", running=False, Mounts=[{"Name": "0af"}, {"Type": "bind"}])),
        wish(volumes=("0af",)),
        "h3",
    ),
    ("a new volume pins nothing", view(), wish(volumes=("data",)), "h1"),
    ("its companion's host", view(container("a", "h2")), wish(companions=("a",)), "h2"),
    ("companion as NAME@HOST", view(container("a", "h2")), wish(companions=("a@h2",)), "h2"),
    (
        "not where its port is taken",
        view(container("a", bindings=["80/tcp"]), *CROWD, hosts=["h1", "h2"]),
        wish(bindings=("80/tcp",)),
        "h2",
    ),
    (
        "udp is another port",
        view(container("a", "h1", bindings=["80/udp"]), hosts=["h1"]),
        wish(bindings=("80/tcp",)),
        "h1",
    ),
    (
        "another address is another port",
        view(container("a", "h1", bindings=["10.0.0.1:80/tcp"]), hosts=["h1"]),
        wish(bindings=("127.0.0.1:80/tcp",)),
        "h1",
    ),
    (
        "an address where all addresses are taken",
        view(container("a", bindings=["80/tcp"]), *CROWD, hosts=["h1", "h2"]),
        wish(bindings=("127.0.0.1:80/tcp",)),
        "h2",
    ),
    (
        "all addresses where one address is taken",
        view(container("a", bindings=["127.0.0.1:80/tcp"]), *CROWD, hosts=["h1", "h2"]),
        wish(bindings=("80/tcp",)),
        "h2",
    ),
    (
        "not where its port is about to be taken",
        view(names={"x": NameEntry("h1", "", Needs(0, 0, ("80/tcp",)))}, hosts=["h1", "h2"]),
        wish(bindings=("80/tcp",)),
        "h2",
    ),
    (
        "where its port is taken, when it is everywhere: its start is refused",
        view(container("a", "h1", bindings=["80/tcp"]), hosts=["h1"]),
        wish(bindings=("80/tcp",)),
        "h1",
    ),
    (
        "where its volume is, though its port is taken there",
        view(container("a", "h2", bindings=["80/tcp"]), volumes={"data": "h2"}),
        wish(bindings=("80/tcp",), volumes=("data",)),
        "h2",
    ),
    (
        "not where an engine chose its port for another",
        view(container("a", Ports=[CHOSEN]), *CROWD, hosts=["h1", "h2"]),
        wish(bindings=("32768/tcp",)),
        "h2",
    ),
    (
        "where another that was given its port has ended",
        view(container("a", running=False, Ports=[CHOSEN]), *CROWD, hosts=["h1", "h2"]),
        wish(bindings=("32768/tcp",)),
        "h1",
    ),
    (
        "where what had its port, its memory and CPUs has ended",
        view(container("a", running=False, **FULL), *CROWD, hosts=AB[:2]),
        wish(**FULL),
        "h1",
    ),
    (
        "where what has its port, its memory and CPUs is replaced by it",
        view(container("a", **FULL), *CROWD, hosts=AB[:2]),
        wish(f"{id_of('a')[:12]}_a", **FULL),
        "h1",
    ),
    (
        "not where what has its port is no more than called alike",
        view(container("a", **FULL), *CROWD, hosts=AB[:2]),
        wish(f"{id_of('b')[:12]}_a", **FULL),
        "h2",
    ),
    (
        "not where what is paused has its port",
        view(container("a", state={"Status": "paused"}, **FULL), *CROWD, hosts=AB[:2]),
        wish(**FULL),
        "h2",
    ),
    ("its host, by name", view(), wish(constraints=["host==h2"]), "h2"),
    ("its host, as Swarm calls it", view(), wish(constraints=["node==h2"]), "h2"),
    ("any host but one", view(), wish(constraints=["host!=h1"]), "h2"),
    ("hosts like these", view(), wish(constraints=["host==*3"]), "h3"),
    ("hosts that an expression fits", view(), wish(constraints=["host==/[23]$/"]), "h2"),
    ("a glob fits the whole name", view(), wish(constraints=["host!=1"]), "h1"),
    ("rather this one", view(), wish(constraints=["host==~h3"]), "h3"),
    ("rather not this one", view(), wish(constraints=["host!=~h1"]), "h2"),
    ("a wish that cannot be is let go", view(), wish(constraints=["host==~h9"]), "h1"),
    (
        "of two wishes one is better than none",
        view(hosts=AB),
        wish(constraints=["zone==~b", "zone==~c"]),
        "h2",
    ),
    ("its label", view(hosts=AB), wish(constraints=["zone==b"]), "h2"),
    ("two rules", view(hosts=AB), wish(constraints=["zone==b", "host!=h2"]), "h3"),
    ("who has no label has no other one", view(), wish(constraints=["zone!=b"]), "h1"),
    (
        "a label of the engine",
        view(hosts=["h1", DISK]),
        wish(constraints=["disk==ssd"]),
        "h2",
    ),
    (
        "a label that was given later",
        view(hosts=AB, orders={"h3": Order("", {"zone": "c"})}),
        wish(constraints=["zone==c"]),
        "h3",
    ),
    (
        "a label that was taken away",
        view(hosts=AB, orders={"h2": Order("", {"zone": None})}),
        wish(constraints=["zone==b"]),
        "h3",
    ),
    (
        "an engine of its kind",
        view(hosts=["h1", host("h2", arch="arm64")]),
        wish(constraints=["architecture==arm64"]),
        "h2",
    ),
    (
        "a kernel, a version, a system, a driver",
        view(hosts=["h1", host("h2", kernel="6.1", version="24", os="Debian 12", driver="zfs")]),
        wish(
            constraints=[
                "kernelversion==6.*",
                "engineversion==24",
                "operatingsystem==/(?i)debian/",
                "storagedriver==zfs",
            ]
        ),
        "h2",
    ),
    (
        "where a container is",
        view(container("db", "h3")),
        wish(affinities=["container==db"]),
        "h3",
    ),
    (
        "where a container is, by its id",
        view(container("db", "h3")),
        wish(affinities=[f"container=={id_of('db')}"]),
        "h3",
    ),
    (
        "where a container is, by its full name",
        view(container("db", "h3")),
        wish(affinities=["container==db@h3"]),
        "h3",
    ),
    (
        "where a container is being made",
        view(names={"db": NameEntry("h3", "")}),
        wish(affinities=["container==db"]),
        "h3",
    ),
    (
        "where no such container is",
        view(container("db1", "h1"), container("db2", "h2"), container("x", "h3")),
        wish(affinities=["container!=db*"]),
        "h3",
    ),
    ("where an image is", view(), wish(affinities=["image==redis"]), "h3"),
    ("where an image of that tag is", view(), wish(affinities=["image==redis:7"]), "h3"),
    ("where an image is not", view(), wish(affinities=["image!=busybox"]), "h2"),
    (
        "where a container with a label is",
        view(container("a", "h2", Labels={"tier": "front"}), container("b", "h1")),
        wish(affinities=["tier==front"]),
        "h2",
    ),
    (
        "where none with a label is",
        view(container("a", "h1", Labels={"tier": "front"}), *CROWD, hosts=["h1", "h2"]),
        wish(affinities=["tier!=front"]),
        "h2",
    ),
    (
        "an affinity that cannot be is let go",
        view(container("a", "h1")),
        wish(affinities=["container==~nosuch"]),
        "h2",
    ),
    ("not a host that is drained", view(orders={"h1": Order("drained")}), wish(), "h2"),
    ("not a host that is cordoned", view(orders={"h1": Order("cordoned")}), wish(), "h2"),
    (
        "a cordoned host that is named",
        view(orders={"h2": Order("cordoned")}),
        wish(constraints=["host==h2"]),
        "h2",
    ),
    (
        "a cordoned host that has its volume",
        view(orders={"h2": Order("cordoned")}, volumes={"data": "h2"}),
        wish(volumes=("data",)),
        "h2",
    ),
    (
        "where there is memory",
        view(container("a", "h1", memory_bytes=3 * GB), *CROWD, hosts=AB),
        wish(memory_bytes=2 * GB, constraints=["host!=h3"]),
        "h2",
    ),
    (
        "where there are CPUs",
        view(container("a", "h1", nano_cpus=3 * CPU), *CROWD, hosts=AB),
        wish(nano_cpus=2 * CPU, constraints=["host!=h3"]),
        "h2",
    ),
    (
        "the last byte is given away",
        view(container("a", "h1", memory_bytes=3 * GB), hosts=AB[:1]),
        wish(memory_bytes=GB),
        "h1",
    ),
    (
        "what is being made takes memory too",
        view(names={"x": NameEntry("h1", "", Needs(3 * GB))}, hosts=AB),
        wish(memory_bytes=2 * GB, constraints=["host!=h3"]),
        "h2",
    ),
    (
        "who asks for nothing needs no room",
        view(container("a", "h1", memory_bytes=9 * GB), *CROWD, hosts=AB[:2]),
        wish(),
        "h1",
    ),
    (
        "a host that does not say what it has, has enough",
        view(hosts=["h1"]),
        wish(memory_bytes=9 * GB, nano_cpus=99 * CPU),
        "h1",
    ),
    (
        "more CPUs than any host has: its engine says so",
        view(hosts=AB),
        wish(nano_cpus=5 * CPU),
        "h1",
    ),
    (
        "memory that was asked for is spread",
        view(container("a", "h1", memory_bytes=GB), container("b", "h2"), *CROWD, hosts=AB[:2]),
        wish(memory_bytes=GB),
        "h2",
    ),
]
POLICIES: list[tuple[str, View, CreateWish, Policy, str]] = [
    (
        "spread: fewest",
        view(container("a", "h1"), container("b", "h2")),
        wish(),
        Policy("spread"),
        "h3",
    ),
    (
        "binpack: most",
        view(container("a", "h2"), container("b", "h3"), container("c", "h3")),
        wish(),
        Policy("binpack"),
        "h3",
    ),
    ("binpack: of the same the first name", view(), wish(), Policy("binpack"), "h1"),
    (
        "binpack: what is fullest of what is asked for",
        view(
            container("a", "h2", memory_bytes=2 * GB), container("b", "h1", nano_cpus=CPU), hosts=AB
        ),
        wish(memory_bytes=GB),
        Policy("binpack"),
        "h2",
    ),
    (
        "binpack: until it is full",
        view(
            container("a", "h2", memory_bytes=4 * GB),
            container("b", "h3", memory_bytes=GB),
            hosts=AB,
        ),
        wish(memory_bytes=GB),
        Policy("binpack"),
        "h3",
    ),
    ("random: by its name", view(), wish("a"), Policy("random"), "h2"),
    ("random: another by another name", view(), wish("b"), Policy("random"), "h3"),
    (
        "random: what is asked for comes first",
        view(),
        wish("b", constraints=["host!=h3"]),
        Policy("random"),
        "h1",
    ),
    (
        "binpack: a soft wish comes first",
        view(*CROWD),
        wish(constraints=["host==~h3"]),
        Policy("binpack"),
        "h3",
    ),
    (
        "overcommit: more than there is",
        view(container("a", "h1", memory_bytes=4 * GB), hosts=AB[:1]),
        wish(memory_bytes=GB),
        Policy("spread", 0.25),
        "h1",
    ),
    (
        "overcommit: some is kept back",
        view(container("a", "h3"), hosts=[*AB[:1], host("h3", cpus=8)]),
        wish(nano_cpus=4 * CPU),
        Policy("spread", -0.5),
        "h3",
    ),
]


def where(seen: View, asked: CreateWish, policy: Policy = Policy()) -> Placement:  # noqa: B008
    return place(seen, asked, pins_of(seen, asked), images=IMAGES, policy=policy)


@pytest.mark.parametrize(
    ("seen", "asked", "policy", "chosen"),
    [row[1:] for row in POLICIES],
    ids=[row[0] for row in POLICIES],
)
def test_a_host_is_chosen_by_the_policy(
    seen: View, asked: CreateWish, policy: Policy, chosen: str
) -> None:
    assert where(seen, asked, policy).host == chosen


def test_a_placement_says_why() -> None:
    seen = view(container("db", "h2"), hosts=AB, orders={"h3": Order("drained")})
    asked = wish(constraints=["zone==b"], affinities=["container==~x"], memory_bytes=GB)
    placed = where(seen, asked)
    assert placed.host == "h2"
    assert placed.reason.startswith("zone==b; spread over h2, 1024 MiB of memory, 1 containers")
    assert placed.refused == {"h1": "zone==b does not hold: it is a", "h3": "the host is drained"}
    assert where(view(), wish()).asked == ""


KNOWN = Order("drained", {"zone": "c", "new": "1", "disk": None})
CHANGES: list[tuple[dict[str, Any], Order]] = [
    ({}, KNOWN),
    ({"state": ""}, KNOWN._replace(state="")),
    ({"state": "cordoned"}, KNOWN._replace(state="cordoned")),
    ({"labels": {"zone": "d"}}, Order("drained", {"zone": "d", "new": "1", "disk": None})),
    ({"labels": {"zone": None}}, Order("drained", {"zone": None, "new": "1", "disk": None})),
    ({"labels": {"new": None}}, Order("drained", {"zone": "c", "disk": None})),
    ({"labels": {"disk": "hdd"}}, Order("drained", {"zone": "c", "new": "1", "disk": "hdd"})),
]


@pytest.mark.parametrize(("change", "becomes"), CHANGES)
def test_what_is_said_of_a_host_stays_until_something_else_is_said(
    change: dict[str, Any], becomes: Order
) -> None:
    seen = view(hosts=[DISK], orders={"h2": KNOWN})
    assert decide_order(seen, DISK, change) == becomes


@pytest.mark.parametrize(
    "change",
    [
        {"state": "gone"},
        {"state": None},
        {"labels": []},
        {"labels": {"a b": "c"}},
        {"labels": {"a": 1}},
    ],
)
def test_what_cannot_be_said_of_a_host_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        decide_order(view(), host("h1"), change)


def names_row(host_name: str, **needs: Any) -> bytes:
    """Return the row of a name that is claimed."""
    return dump_json({"host": host_name, "id": "", "token": "t", **Needs(**needs)._asdict()})


def test_of_those_that_take_the_last_room_at_once_the_first_keeps_it() -> None:
    rows = [
        Change("/arpanet/names/a", names_row("h1", memory_bytes=GB), 11),
        Change("/arpanet/names/b", names_row("h1", memory_bytes=GB), 12),
        Change("/arpanet/names/c", names_row("h1", bindings=("80/tcp",)), 13),
        Change("/arpanet/names/d", names_row("h1", bindings=("80/tcp",)), 14),
    ]
    seen = apply_changes(view(container("x", "h1", memory_bytes=3 * GB), hosts=AB), 14, rows)

    there = Placement("h1", "", "", {})

    def told(name: str, revision: int, **needs: Any) -> str:
        return has_room(seen, wish(name, **needs), there, revision, Policy())

    assert told("a", 11, memory_bytes=GB) == ""
    assert told("b", 12, memory_bytes=GB) == "0 MiB of 4096 MiB of memory are left"
    assert told("c", 13, bindings=("80/tcp",)) == ""
    assert told("d", 14, bindings=("80/tcp",)) == "port 80/tcp is taken"
    there = there._replace(taken="port 80/tcp is taken")  # as it was on every host
    assert told("d", 14, bindings=("80/tcp",)) == ""


@pytest.mark.parametrize(
    ("seen", "asked", "chosen"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_host_is_chosen(seen: View, asked: CreateWish, chosen: str) -> None:
    assert where(seen, asked).host == chosen


@pytest.mark.parametrize(("since", "chosen"), [("000000000999", "h2"), ("000000001001", "h1")])
def test_what_was_just_made_keeps_its_room_until_it_had_time_to_start(
    since: str, chosen: str
) -> None:
    made = container("a", running=False, created=1000, state={"Status": "created"}, **FULL)
    seen = view(made, *CROWD, hosts=AB[:2])
    assert place(seen, wish(**FULL), {}, since=since).host == chosen


def test_containers_asked_for_at_once_are_spread() -> None:
    making, seen = Making(), view()
    assert [making.place(seen, wish(name), {}).host for name in ("a1", "b1", "c1")] == [*HOSTS]
    making.done("b1")
    assert making.place(seen, wish("d1"), {}).host == HOSTS[1]


def test_what_is_asked_for_at_once_shares_what_there_is() -> None:
    making, seen = Making(), view(hosts=AB)
    hosts = [making.place(seen, wish(f"a{n}", memory_bytes=2 * GB), {}).host for n in range(6)]
    assert sorted(hosts) == ["h1", "h1", "h2", "h2", "h3", "h3"]
    with pytest.raises(NoRoom, match="h1: 0 MiB of 4096 MiB of memory are left; h2: 0 MiB"):
        making.place(seen, wish("a7", memory_bytes=2 * GB), {})
    assert making.place(seen, wish("a1", memory_bytes=2 * GB), {}).host == "h2", "placed again"


def test_a_host_that_did_not_answer_gets_nothing_while_there_is_another() -> None:
    making, seen = Making(), view(hosts=("h1", "h2"))
    assert making.place(seen, wish("a1"), {}).host == "h1"
    assert making.shun("a1") == "h1"
    assert making.place(seen, wish("a1"), {}).host == "h2"
    assert making.shun("a1") == "h2"
    assert making.place(seen, wish("a1"), {}).host == "h1"


def test_a_host_that_is_not_reached_is_given_up_by_each_of_two_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    making, seen, tried = Making(), view(hosts=("h1", "h2")), []

    def make_somewhere(_call: Any, seen: View, wish: CreateWish, *_: Any) -> str:
        host = making.place(seen, wish, {}).host
        tried.append(host)
        if host == "h1":
            making.shun(wish.name)  # as the other one has done meanwhile
            raise arpanet.EngineAway("h1 is not reached")
        return "made"

    monkeypatch.setattr(arpanet, "make_somewhere", make_somewhere)
    node = types.SimpleNamespace(making=making, lease_id=lambda: 1)
    call: Any = types.SimpleNamespace(node=node, view_for_change=lambda: seen)
    made: Any = arpanet.make_container(call, seen, wish("a1"), {})
    assert (made, tried) == ("made", ["h1", "h2"])
    alone = view(hosts=("h1",))
    call.view_for_change = lambda: alone
    with pytest.raises(arpanet.EngineAway):
        arpanet.make_container(call, alone, wish("b1"), {})
    assert tried[2:] == ["h1", "h1"], "who has tried all must give up"


def test_a_host_whose_engine_is_silent_gets_nothing() -> None:
    seen = view(hosts=("h1", "h2"), ailing={"h1": "its Docker Engine does not answer"})
    assert place(seen, wish(), {}).host == "h2"


REFUSALS: list[tuple[str, View, CreateWish, list[str]]] = [
    ("no host at all", view(hosts=[]), wish(), ["arpanet slave start"]),
    ("all down", view(down=HOSTS), wish("w"), ["w", "h1: the host is down", "h3: the host"]),
    (
        "its volume's host is down",
        view(down=["h2"], volumes={"data": "h2"}),
        wish(volumes=("data",)),
        ["h1: volume data is on h2", "h2: the host is down"],
    ),
    (
        "its volume's host has left",
        view(volumes={"data": "h9"}),
        wish(volumes=("data",)),
        ["volume data is on h9, which is not known here"],
    ),
    (
        "two volumes apart",
        view(volumes={"a": "h1", "b": "h2"}),
        wish(volumes=("a", "b")),
        ["h1: volume b is on h2", "h2: volume a is on h1", "belong together"],
    ),
    (
        "two companions apart",
        view(container("a", "h1"), container("b", "h2")),
        wish(companions=("a", "b")),
        ["h1: container b is on h2", "h2: container a", "-e ARPANET_AFFINITY1=container==NAME"],
    ),
    (
        "one reason for each host",
        view(
            container("a", "h2", memory_bytes=4 * GB),
            hosts=[*AB, host("h4", labels={"zone": "b"})],
            down=["h3"],
            orders={"h4": Order("drained")},
        ),
        wish(constraints=["zone==b"], memory_bytes=GB),
        [
            "no host can take new: h1: zone==b does not hold: it is a; "
            "h2: 0 MiB of 4096 MiB of memory are left; h3: the host is down; "
            "h4: the host is drained"
        ],
    ),
    (
        "no such host",
        view(),
        wish(constraints=["host==h9"]),
        ["h1: host==h9 does not hold: it is h1"],
    ),
    ("no such label", view(), wish(constraints=["zone==b"]), ["h1: zone==b does not hold; h2"]),
    (
        "no such container",
        view(container("a", "h1")),
        wish(affinities=["container==db"]),
        ["h1: container==db does not hold; h2: container==db does not hold"],
    ),
    (
        "too many CPUs",
        view(container("a", "h4"), hosts=[*AB, host("h4", cpus=8)], down=["h4"]),
        wish(nano_cpus=5 * CPU),
        ["h1: 4 of 4 CPUs are left", "h4: the host is down"],
    ),
    (
        "a drained host takes nothing, also what names it",
        view(orders={"h1": Order("drained")}),
        wish(constraints=["host==h1"]),
        ["h1: the host is drained", "h2: host==h1"],
    ),
]


@pytest.mark.parametrize(
    ("seen", "asked", "told"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_no_room_gives_the_reason_of_each_host(
    seen: View, asked: CreateWish, told: list[str]
) -> None:
    with pytest.raises(NoRoom) as caught:
        where(seen, asked)
    for part in told:
        assert part in str(caught.value)
    assert caught.value.status == 503  # a 404 would make the docker client pull


def test_a_companion_that_is_not_there_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="No such container: ghost"):
        pins_of(view(), wish(companions=("ghost",)))


PORTS = ["80/tcp", "81/tcp", "10.0.0.9:80/tcp", "127.0.0.1:80/tcp", "80/udp"]
NAMES = [f"h{n}" for n in range(1, 6)]
RULES = ["zone==a", "zone!=a", "zone==~a", "host==h1", "host!=h2", "host==/[135]/", "host==h[123]"]
KINDS = ["container==c0", "container!=c*", "container==~c1", "tier==x", "tier!=x", "image==redis"]
ROOM = [0, 1, 2, 5]


@st.composite
def situations(draw: st.DrawFn) -> tuple[View, CreateWish]:
    """Draw a cluster of some hosts, and something to be placed in it."""
    hosts = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    some_hosts = st.lists(st.sampled_from(hosts), unique=True)
    on, room, ports = st.sampled_from(hosts), st.sampled_from(ROOM), st.sampled_from(PORTS)
    spot = st.tuples(on, st.sets(ports, max_size=2), room, room, st.sampled_from("xy"))
    spots = draw(st.lists(spot, max_size=6))
    containers = [
        container(
            f"c{n}",
            h,
            bindings=sorted(taken),
            memory_bytes=m,
            nano_cpus=c * CPU,
            Labels={"tier": t},
        )
        for n, (h, taken, m, c, t) in enumerate(spots)
    ]
    volumes = draw(st.dictionaries(st.sampled_from("xyz"), st.sampled_from(hosts)))
    states = st.sampled_from(["", "cordoned", "drained"])
    said = st.builds(Order, states, st.dictionaries(st.just("zone"), st.sampled_from(["a", None])))
    seen = view(
        *containers,
        hosts=[
            host(h, labels={"zone": draw(st.sampled_from("ab"))}, memory_bytes=5, cpus=5)
            for h in hosts
        ],
        down=draw(some_hosts),
        volumes=volumes,
        names={f"n{n}": NameEntry(h, "", Needs(m)) for n, (h, _, m, _, _) in enumerate(spots[:2])},
        orders=draw(st.dictionaries(st.sampled_from(hosts), said)),
    )
    companions = [c.name for c in containers[:3]]
    asked = wish(
        volumes=tuple(draw(st.sets(st.sampled_from("xyz"), max_size=2))),
        companions=tuple(draw(st.sets(st.sampled_from(companions), max_size=1)))
        if companions
        else (),
        bindings=tuple(draw(st.sets(ports, max_size=2))),
        memory_bytes=draw(room),
        nano_cpus=draw(room) * CPU,
        constraints=draw(st.lists(st.sampled_from(RULES), max_size=2)),
        affinities=draw(st.lists(st.sampled_from(KINDS), max_size=1)),
    )
    return seen, asked


def clash(wanted: str, held: str) -> bool:
    """Return whether one machine cannot give away both of these ports."""
    (ip, _, port), (other_ip, _, other_port) = wanted.rpartition(":"), held.rpartition(":")
    return port == other_port and (ip == other_ip or "" in (ip, other_ip))


def holds(seen: View, rule: str, name: str) -> bool:
    """Return whether a host satisfies one of the rules above, said in another way than place()."""
    zone = seen.orders.get(name, Order()).labels.get("zone", seen.hosts[name].labels["zone"])
    here = [c for c in seen.containers.values() if c.host == name]
    tiers = {c.summary["Labels"]["tier"] for c in here}
    return {
        "zone==a": zone == "a",
        "zone!=a": zone != "a",
        "host==h1": name == "h1",
        "host!=h2": name != "h2",
        "host==/[135]/": name in ("h1", "h3", "h5"),
        "host==h[123]": name in ("h1", "h2", "h3"),
        "container==c0": "c0" in {c.name for c in here},
        "container!=c*": not here,
        "tier==x": "x" in tiers,
        "tier!=x": "x" not in tiers,
        "image==redis": name == "h3",
    }.get(rule, True)


def is_open(seen: View, asked: CreateWish, name: str) -> bool:
    """Return whether a host takes this container as far as people said what it takes."""
    pinned = {seen.volumes[v].host for v in asked.volumes if v in seen.volumes}
    pinned |= {c.host for c in seen.containers.values() if c.name in asked.companions}
    named = f"host=={name}" in map(str, asked.constraints)
    state = seen.orders.get(name, Order()).state
    return state == "" or (state == "cordoned" and (named or name in pinned))


def fits(seen: View, asked: CreateWish, name: str) -> bool:
    """Return whether a host satisfies all that is asked for, said in another way than place()."""
    here = [c for c in seen.containers.values() if c.host == name]
    soon = [e for n, e in seen.names.items() if n.startswith("n") and e.host == name]
    taken = [*(c.needs for c in here), *(e.needs for e in soon)]
    memory = sum(needs.memory_bytes for needs in taken)
    cpus = sum(needs.nano_cpus for needs in taken)
    return (
        name in seen.alive
        and is_open(seen, asked, name)
        and all(seen.volumes[v].host == name for v in asked.volumes if v in seen.volumes)
        and all(c in {x.name for x in here} for c in asked.companions)
        and all(holds(seen, str(rule), name) for rule in asked.constraints + asked.affinities)
        and (not asked.needs.memory_bytes or memory + asked.needs.memory_bytes <= 5)
        and (not asked.needs.nano_cpus or cpus + asked.needs.nano_cpus <= 5 * CPU)
    )


def has_ports(seen: View, asked: CreateWish, name: str) -> bool:
    """Return whether a host has all ports that are asked for."""
    here = [c for c in seen.containers.values() if c.host == name]
    taken = [binding for c in here for binding in c.needs.bindings]
    return not any(clash(b, other) for b in asked.needs.bindings for other in taken)


policies = st.sampled_from([Policy("spread"), Policy("binpack"), Policy("random")])


@given(situations(), policies)
def test_a_host_that_fits_is_chosen_whenever_there_is_one(
    situation: tuple[View, CreateWish], policy: Policy
) -> None:
    seen, asked = situation
    fitting = {name for name in seen.hosts if fits(seen, asked, name)}
    try:
        chosen = where(seen, asked, policy).host
    except NoRoom as e:
        assert fitting == set()
        assert all(f"{name}: " in str(e) for name in seen.hosts)
    else:
        assert chosen in ({h for h in fitting if has_ports(seen, asked, h)} or fitting)


@given(situations(), policies, st.randoms(use_true_random=False))
def test_every_master_chooses_the_same_host(
    situation: tuple[View, CreateWish], policy: Policy, dice: random.Random
) -> None:
    seen, asked = situation

    def shuffled(table: Any) -> dict[str, Any]:
        rows = list(table.items())
        dice.shuffle(rows)
        return dict(rows)

    other = dataclasses.replace(
        seen,
        hosts=shuffled(seen.hosts),
        containers=shuffled(seen.containers),
        alive=shuffled(seen.alive),
        names=shuffled(seen.names),
    )
    results: list[Placement | str] = []
    for one in (seen, other):
        try:
            results.append(where(one, asked, policy))
        except NoRoom as e:
            results.append(str(e))
    assert results[0] == results[1]


def test_ten_times_the_hosts_and_containers_cost_about_ten_times_as_many_calls() -> None:
    def calls(size: int) -> int:
        counted = 0

        def count(*_: Any) -> None:
            nonlocal counted
            counted += 1

        crowd = [container(f"c{n}", f"h{n % size}", bindings=["1/tcp"]) for n in range(10 * size)]
        seen = view(*crowd, hosts=[f"h{n}" for n in range(size)])
        asked = wish(
            bindings=("80/tcp",),
            memory_bytes=1,
            affinities=["container!=db"],
            constraints=["host!=x"],
        )
        sys.setprofile(count)
        try:
            where(seen, asked)
        finally:
            sys.setprofile(None)
        return counted

    assert calls(200) < 15 * calls(20)


class NameRows:
    """A mesh that has the row of one name, which a master claimed a moment ago."""

    def __init__(self, row: bytes) -> None:
        self.row = row

    def read_revision(self, _timeout_s: float | None = None) -> int:
        return 8

    def read(self, key: str) -> Entry:
        return Entry(key, self.row, 1, 7, 7, 0)


def test_a_name_that_its_slave_takes_over_still_says_what_the_container_takes() -> None:
    made = container("web", memory_bytes=100, nano_cpus=5, bindings=["80/tcp"])
    mesh = NameRows(dump_json({"host": "h1", "id": "", **made.needs._asdict()}))
    node = Node(read_settings({}, {}, {}, "h1", "slave"), mesh, threading.Event())  # type: ignore[arg-type]
    naming = Publisher(node, None, node.stop)._naming(made)
    assert naming
    seen = apply_changes(View(), 8, [Change("/arpanet/names/web", naming[1].value)])
    assert seen.names["web"] == NameEntry("h1", made.id, made.needs)


class GoneEngine:
    """An engine that has no container, and a mesh that counts how often it is written."""

    def __init__(self) -> None:
        self.looks = self.commits = 0
        self.name = b""

    def inspect_container(self, _container_id: str) -> None:
        self.looks += 1
        raise docker.errors.NotFound("no such container")

    def read_revision(self, _timeout_s: float | None = None) -> int:
        return 8

    def read(self, key: str) -> Entry | None:
        return Entry(key, self.name, 1, 7, 7, 0) if self.name else None

    def commit(self, _checks: object, _puts: object, deletes: Sequence[str]) -> int:
        self.commits += 1
        self.deleted = list(deletes)
        return 8


def test_a_container_that_is_gone_is_taken_out_of_the_mesh_once_and_a_later_name_of_it_too() -> (
    None
):
    made, there = container("web"), GoneEngine()
    node = Node(read_settings({}, {}, {}, "h1", "slave"), there, threading.Event())  # type: ignore[arg-type]
    node.view = View(revision=8)
    publisher = Publisher(node, there, node.stop)
    assert [publisher._publish(made.id) for _ in range(3)] == [8, 8, 8]
    assert (there.looks, there.commits) == (1, 1)
    there.name = name_row("h1", made.id, made.needs)
    node.view = apply_changes(node.view, 9, [Change("/arpanet/names/web", there.name)])
    publisher._publish(made.id)
    assert there.deleted == ["/arpanet/names/web"]
    assert (there.looks, there.commits) == (1, 2)
