"""Where a container goes: to a host that satisfies all it asks for, if there is one."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from builders import HOSTS, container, view, wish
from hypothesis import given
from hypothesis import strategies as st

from arpanet import BadRequest, CreateWish, Making, NameEntry, NoRoom, View, pins_of, place

CROWD = [container(name, "h2") for name in "bcd"]  # h1 would be chosen, if it could
TABLE: list[tuple[str, View, CreateWish, str]] = [
    ("nothing runs: the first name", view(), wish(), "h1"),
    ("the one with the fewest", view(container("a", "h1"), container("b", "h3")), wish(), "h2"),
    ("stopped ones count too", view(container("a", "h1", running=False)), wish(), "h2"),
    ("a name being made counts", view(names={"x": NameEntry("h1", "")}), wish(), "h2"),
    ("not a host that is down", view(down=["h1"]), wish(), "h2"),
    ("its volume's host", view(volumes={"data": "h3"}), wish(volumes=("data",)), "h3"),
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
]


@pytest.mark.parametrize(
    ("seen", "asked", "chosen"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_host_is_chosen(seen: View, asked: CreateWish, chosen: str) -> None:
    assert place(seen, asked, pins_of(seen, asked)) == chosen


def test_containers_asked_for_at_once_are_spread() -> None:
    making, seen = Making(), view()
    assert [making.place(seen, wish(name), {}) for name in ("a1", "b1", "c1")] == [*HOSTS]
    making.done("b1")
    assert making.place(seen, wish("d1"), {}) == HOSTS[1]


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
        ["h1: volume b is on h2", "h2: volume a is on h1"],
    ),
    (
        "a port that every host has given away",
        view(container("a", "h1", bindings=["80/tcp"]), hosts=["h1"]),
        wish(bindings=("80/tcp",)),
        ["h1: port 80/tcp is taken"],
    ),
]


@pytest.mark.parametrize(
    ("seen", "asked", "told"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_no_room_gives_the_reason_of_each_host(
    seen: View, asked: CreateWish, told: list[str]
) -> None:
    with pytest.raises(NoRoom) as caught:
        place(seen, asked, pins_of(seen, asked))
    for part in told:
        assert part in str(caught.value)
    assert caught.value.status == 503  # a 404 would make the docker client pull


def test_a_companion_that_is_not_there_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="No such container: ghost"):
        pins_of(view(), wish(companions=("ghost",)))


PORTS = ["80/tcp", "81/tcp", "10.0.0.9:80/tcp", "127.0.0.1:80/tcp", "80/udp"]
NAMES = [f"h{n}" for n in range(1, 6)]


@st.composite
def situations(draw: st.DrawFn) -> tuple[View, CreateWish]:
    """Draw a cluster of some hosts, and something to be placed in it."""
    hosts = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    some_hosts = st.lists(st.sampled_from(hosts), unique=True)
    spots = draw(st.lists(st.tuples(st.sampled_from(hosts), st.sets(st.sampled_from(PORTS)))))
    containers = [
        container(f"c{n}", on, bindings=sorted(ports)) for n, (on, ports) in enumerate(spots)
    ]
    volumes = draw(st.dictionaries(st.sampled_from("xyz"), st.sampled_from(hosts)))
    seen = view(*containers, hosts=hosts, down=draw(some_hosts), volumes=volumes)
    companions = [c.name for c in containers[:3]]
    asked = wish(
        volumes=tuple(draw(st.sets(st.sampled_from("xyz"), max_size=2))),
        companions=tuple(draw(st.sets(st.sampled_from(companions), max_size=1)))
        if companions
        else (),
        bindings=tuple(draw(st.sets(st.sampled_from(PORTS), max_size=2))),
    )
    return seen, asked


def clash(wanted: str, held: str) -> bool:
    """Return whether one machine cannot give away both of these ports."""
    (ip, _, port), (other_ip, _, other_port) = wanted.rpartition(":"), held.rpartition(":")
    return port == other_port and (ip == other_ip or "" in (ip, other_ip))


def fits(seen: View, asked: CreateWish, name: str) -> bool:
    """Return whether a host satisfies all that is asked for, said in another way than place()."""
    here = [c for c in seen.containers.values() if c.host == name]
    return (
        name in seen.alive
        and all(seen.volumes[v].host == name for v in asked.volumes if v in seen.volumes)
        and all(c in {x.name for x in here} for c in asked.companions)
        and not any(clash(b, h) for b in asked.bindings for c in here for h in c.bindings)
    )


@given(situations())
def test_a_host_that_fits_is_chosen_whenever_there_is_one(
    situation: tuple[View, CreateWish],
) -> None:
    seen, asked = situation
    fitting = {name for name in seen.hosts if fits(seen, asked, name)}
    try:
        chosen = place(seen, asked, pins_of(seen, asked))
    except NoRoom:
        assert fitting == set()
    else:
        assert chosen in fitting


@given(situations(), st.randoms(use_true_random=False))
def test_every_master_chooses_the_same_host(
    situation: tuple[View, CreateWish], dice: random.Random
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
    results = []
    for one in (seen, other):
        try:
            results.append(place(one, asked, pins_of(one, asked)))
        except NoRoom as e:
            results.append(str(e))
    assert results[0] == results[1]
