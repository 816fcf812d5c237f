"""Links, the part that is decided: addresses, variables, listeners and routes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from builders import agent_of, container, view

import arpanet
from arpanet import (
    Conflict,
    Declared,
    Entry,
    HostPort,
    Link,
    LinkRoute,
    NoRoom,
    Router,
    View,
    choose_vip,
    decide_links,
    declared_before,
    find_route,
    link_environment,
)

SUBNET = "198.18.0.0/24"

# ---- choose_vip


def test_a_name_keeps_its_address() -> None:
    assert choose_vip(view(vips={"db": "198.18.9.9"}), SUBNET, "db") == "198.18.9.9"


def test_every_master_chooses_the_same_free_address() -> None:
    first = choose_vip(View(), SUBNET, "db")
    assert choose_vip(View(), SUBNET, "db") == first
    assert choose_vip(View(), SUBNET, "web") != first
    second = choose_vip(view(vips={"other": first}), SUBNET, "db")
    assert second != first


def test_every_address_is_given_but_the_networks_own_and_the_resolvers() -> None:
    vips: dict[str, str] = {}
    for n in range(253):
        vips[f"c{n}"] = choose_vip(view(vips=vips), SUBNET, f"c{n}")
    assert set(vips.values()) == {f"198.18.0.{n}" for n in range(2, 255)}
    with pytest.raises(NoRoom, match="all 253 addresses"):
        choose_vip(view(vips=vips), SUBNET, "one-more")


class FakeMesh:
    """A store of rows that counts its revisions, as far as addresses need one, and its view."""

    def __init__(self) -> None:
        self.rows: dict[str, Entry] = {}
        self.view = view()
        self.settings = SimpleNamespace(link_subnet=SUBNET)
        self.mesh, self.revision = self, 1

    def put(self, key: str, value: bytes) -> None:
        table, _, name = key.removeprefix("/arpanet/").partition("/")
        self.revision += 1
        created = self.rows[key].create_revision if key in self.rows else self.revision
        self.rows[key] = Entry(key, value, 1, self.revision, created, 0)
        getattr(self.view, table)[name] = arpanet.row_of(table, name, value)

    def delete(self, key: str) -> None:
        table, _, name = key.removeprefix("/arpanet/").partition("/")
        self.rows.pop(key, None)
        getattr(self.view, table).pop(name, None)

    def holds(self, check: arpanet.Check) -> bool:
        entry = self.rows.get(check.key)
        created, modified = (entry.create_revision, entry.mod_revision) if entry else (0, 0)
        return check.create_revision in (None, created) and check.mod_revision in (None, modified)

    def commit(
        self, checks: Sequence[arpanet.Check], puts: Sequence[arpanet.Put], gone: Sequence[str] = ()
    ) -> int | None:
        if not all(map(self.holds, checks)):
            return None
        for put in puts:
            self.put(put.key, put.value)
        for key in gone:
            self.delete(key)
        return self.revision

    def claim_all(self, rows: dict[str, bytes]) -> bool:
        checks = [arpanet.Check(key, create_revision=0) for key in rows]
        return self.commit(checks, [arpanet.Put(*row) for row in rows.items()]) is not None

    def read(self, key: str) -> Entry | None:
        return self.rows.get(key)

    def read_prefix(self, prefix: str) -> tuple[int, list[Entry]]:
        return self.revision, [e for key, e in self.rows.items() if key.startswith(prefix)]

    def sync_view(self) -> View:
        return self.view

    def wait_view(self, _revision: int) -> View:
        return self.view


def test_70000_names_come_and_go_and_their_addresses_are_free_again() -> None:
    node: Any = FakeMesh()
    node.settings.link_subnet = "198.18.0.0/16"
    kept = arpanet.claim_vip(node, "kept")
    node.put("/arpanet/names/kept", arpanet.name_row("h1", "1", arpanet.NOTHING))
    for n in range(70_000):
        arpanet.claim_vip(node, f"c{n}")
        if n % 7_000 == 6_999:
            assert arpanet.free_addresses(node) == 7_000
    assert (node.view.vips, node.view.addresses) == ({"kept": kept}, {kept: "kept"})


def test_what_nobody_needs_makes_room_when_all_is_taken() -> None:
    node: Any = FakeMesh()
    for n in range(600):
        arpanet.claim_vip(node, f"c{n}")
    for n in range(600, 853):
        node.put(f"/arpanet/names/c{n}", arpanet.name_row("h1", "1", arpanet.NOTHING))
        arpanet.claim_vip(node, f"c{n}")
    assert len(set(node.view.vips.values())) == 253
    with pytest.raises(NoRoom, match="all 253 addresses"):
        arpanet.claim_vip(node, "one-more")


def test_an_address_is_kept_for_a_link_whose_target_is_gone() -> None:
    node: Any = FakeMesh()
    vip = arpanet.claim_vip(node, "db")
    arpanet.declare(node, "1", Declared("h1", (Link("db", "x", vip),)))
    assert arpanet.free_addresses(node) == 0
    node.delete("/arpanet/declared/1")
    node.view.hosts["h3"] = node.view.hosts["h3"]._replace(declares=False)
    assert arpanet.free_addresses(node) == 0, "h3 may have a link that has no row yet"
    node.view.hosts["h3"] = node.view.hosts["h3"]._replace(declares=True)
    assert arpanet.free_addresses(node) == 1
    with pytest.raises(Conflict, match="db was removed or renamed"):
        arpanet.declare(node, "2", Declared("h1", (Link("db", "x", vip),)))
    assert node.view.declared == {}


@pytest.mark.parametrize("row", ["names", "declared"])
def test_an_address_that_is_needed_again_at_this_moment_is_kept(row: str) -> None:
    node: Any = FakeMesh()
    vip, other = arpanet.claim_vip(node, "db"), arpanet.claim_vip(node, "other")
    read = node.read_prefix

    def read_late(prefix: str) -> tuple[int, list[Entry]]:
        """Return what was there just before somebody came, whom the view does not show yet."""
        found = read(prefix)
        if row == "names":
            node.put("/arpanet/names/db", arpanet.name_row("h1", "1", arpanet.NOTHING))
        else:
            arpanet.declare(node, "1", Declared("h1", (Link("db", "x", vip),)))
        getattr(node.view, row).clear()
        return found  # type: ignore[no-any-return]

    node.read_prefix = read_late
    assert arpanet.free_addresses(node) == 1
    assert node.view.addresses == {vip: "db"} != {other: "other"}


# ---- link_environment (docker's own links, engine 20.10)

LINK = Link("db", "db", "198.18.0.1")


def port_lines(number: int, kind: str = "tcp", prefix: str = "DB") -> list[str]:
    name = f"{prefix}_PORT_{number}_{kind.upper()}"
    return [
        f"{name}={kind}://198.18.0.1:{number}",
        f"{name}_ADDR=198.18.0.1",
        f"{name}_PORT={number}",
        f"{name}_PROTO={kind}",
    ]


def test_without_ports_there_is_only_the_name() -> None:
    assert link_environment("web", LINK, [], []) == ["DB_NAME=/web/db"]


def test_the_variables_of_a_link() -> None:
    assert link_environment("web", LINK, ["5433/tcp", "5432/tcp"], []) == [
        "DB_PORT=tcp://198.18.0.1:5432",
        *port_lines(5432),
        *port_lines(5433),
        "DB_NAME=/web/db",
    ]


def test_the_alias_gives_the_prefix() -> None:
    link = Link("db", "my-db.v1", "198.18.0.1")
    assert link_environment("web", link, ["80/tcp"], []) == [
        "MY_DB.V1_PORT=tcp://198.18.0.1:80",
        *port_lines(80, prefix="MY_DB.V1"),
        "MY_DB.V1_NAME=/web/my-db.v1",
    ]


def test_tcp_comes_before_udp_and_ports_are_numbers() -> None:
    lines = link_environment("web", LINK, ["100/tcp", "53/udp", "53/tcp"], [])
    assert lines[0] == "DB_PORT=tcp://198.18.0.1:53"
    assert lines[1:-1] == [*port_lines(53), *port_lines(53, "udp"), *port_lines(100)]
    assert link_environment("web", LINK, ["9/tcp", "53/udp", "10/tcp"], [])[0].endswith(":9")


def range_lines(first: int, last: int, kind: str = "tcp") -> set[str]:
    name = f"DB_PORT_{first}_{kind.upper()}"
    return {
        f"{name}_START={kind}://198.18.0.1:{first}",
        f"{name}_PORT_START={first}",
        f"{name}_END={kind}://198.18.0.1:{last}",
        f"{name}_PORT_END={last}",
    }


RANGES: list[tuple[list[str], set[str]]] = [
    (["7000/tcp", "7001/tcp"], set()),
    (["7000/tcp", "7002/tcp", "7004/tcp"], set()),
    (["7002/tcp", "7000/tcp", "7001/tcp"], range_lines(7000, 7002)),
    ([f"{n}/tcp" for n in range(98, 103)], range_lines(98, 102)),
    (["7000/tcp", "7001/tcp", "7002/tcp", "7003/udp"], range_lines(7000, 7002)),
    (["7000/udp", "7001/udp", "7002/udp"], range_lines(7000, 7002, "udp")),
    (["1/tcp", "2/tcp", "3/tcp", "5/tcp", "7/tcp", "8/tcp", "9/tcp"],
     range_lines(1, 3) | range_lines(7, 9)),
]  # fmt: skip


@pytest.mark.parametrize(("expose", "extra"), RANGES)
def test_three_ports_in_a_row_have_a_start_and_an_end(expose: list[str], extra: set[str]) -> None:
    lines = link_environment("web", LINK, expose, [])
    plain = {line for port in expose for line in port_lines(int(port[:-4]), port[-3:])}
    assert set(lines[1:-1]) == plain | extra
    assert len(lines) == len(set(lines))


def test_the_targets_own_variables_less_home_and_path() -> None:
    env = ["A=1", "HOME=/root", "PATH=/bin", "NOTHING", "B=x=y", "PATHS=2"]
    assert link_environment("web", LINK, [], env)[1:] == [
        "DB_ENV_A=1", "DB_ENV_B=x=y", "DB_ENV_PATHS=2",
    ]  # fmt: skip


def test_ports_that_cannot_be_read_are_left_out() -> None:
    assert arpanet.parse_expose(["80/tcp", "x/tcp", "", "²/tcp"]) == [(80, "tcp")]
    assert arpanet.parse_expose(["53"]) == [(53, "tcp")]


# ---- decide_links

VIP = "198.18.0.1"
WEB = container("web", "h1", ip="172.17.0.9")
LINKED = {"web": [Link("db", "x", VIP)]}
DB = container("db", "h2", ip="172.17.0.5", expose=["5432/tcp", "5433/tcp", "53/udp"])


def test_a_host_listens_for_the_links_of_its_own_containers() -> None:
    table = decide_links(view(WEB, DB, links=LINKED), "h1")
    assert table.listeners == {HostPort(VIP, 5432): "db", HostPort(VIP, 5433): "db"}
    assert table.allowed == {("172.17.0.9", "db")}
    assert table.revision == 7
    other = decide_links(view(WEB, DB, links=LINKED), "h2")
    assert (other.listeners, other.allowed) == ({}, frozenset())


def test_a_consumer_that_does_not_run_may_not_connect() -> None:
    stopped = dataclasses.replace(WEB, state={"Running": False})
    assert decide_links(view(stopped, DB, links=LINKED), "h1").allowed == frozenset()


def test_without_its_target_a_link_has_no_listener() -> None:
    assert decide_links(view(WEB, links=LINKED), "h1").listeners == {}


def test_a_label_opens_no_link() -> None:
    says = container("web", "h1", Labels={"arpanet.links": json.dumps([["db", "x", VIP]])})
    table = decide_links(view(says, DB), "h1")
    assert (table.listeners, table.allowed) == ({}, frozenset())


OLD = {"arpanet.links": f'[["db", "x", "{VIP}"]]'}
OLDER: list[tuple[dict[str, str], dict[str, str], list[Link], list[str]]] = [
    (OLD, {}, [Link("db", "x", VIP)], ["X_PORT", "X_NAME"]),
    (OLD, {"arpanet.links": "[]"}, [Link("db", "x", VIP)], ["X_PORT", "X_NAME"]),
    (OLD, OLD, [], []),
    ({"arpanet.links": '[["db", "x", "198.18.0.2"]]'}, {}, [], []),
    ({"arpanet.links": f'[["web", "x", "{VIP}"]]'}, {}, [], []),
    ({}, {}, [], []),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "image", "links", "env"), OLDER)
def test_what_an_older_arpanet_labelled_is_taken_over_but_nothing_of_the_image(
    labels: dict[str, str], image: dict[str, str], links: list[Link], env: list[str]
) -> None:
    rule = {"arpanet.host": "h1"}
    config = {"Labels": labels | rule, "Env": ["X_PORT=1", "X_NAME=2", "X_PORTS=3", "Y_NAME=4"]}
    found = declared_before(view(DB, vips={"db": VIP}), {"Config": config}, image)
    assert found == Declared("", tuple(links), rule, tuple(env))
    assert declared_before(view(DB), {"Config": config}, labels | rule) == Declared("", labels={})


# ---- find_route


def test_the_route_of_a_link() -> None:
    here, far = LinkRoute(HostPort("172.17.0.5", 80), ""), LinkRoute(agent_of("h2"), "db:80", "h2")
    assert find_route(view(WEB, DB), "h2", "db", 80) == here
    assert find_route(view(WEB, DB), "h1", "db", 80) == far


def test_the_route_follows_the_target() -> None:
    moved = dataclasses.replace(DB, host="h3")
    assert find_route(view(WEB, moved), "h1", "db", 80) == LinkRoute(agent_of("h3"), "db:80", "h3")


def test_no_route_to_what_is_not_there() -> None:
    assert find_route(view(WEB), "h1", "db", 80) is None
    assert find_route(view(WEB, DB, down=["h2"]), "h1", "db", 80) is None
    assert find_route(view(WEB, DB, hosts=["h1"]), "h1", "db", 80) is None
    stopped = dataclasses.replace(DB, state={"Running": False})
    assert find_route(view(stopped), "h2", "db", 80) is None


def test_a_target_in_another_network_is_reached_there() -> None:
    def routed(mode: str, *others: arpanet.Container) -> LinkRoute | None:
        target = container("db", "h2", ip="", HostConfig={"NetworkMode": mode})
        return find_route(view(target, *others), "h2", "db", 80)

    pod = container("pod", "h2", ip="172.17.0.7")
    assert routed("host") == LinkRoute(HostPort("127.0.0.1", 80), "")
    assert routed(f"container:{pod.id}", pod) == LinkRoute(HostPort("172.17.0.7", 80), "")
    assert routed("container:ghost") is None
    assert routed("container:db") is None
    assert routed("none") is None


def test_a_router_forgets_what_it_found_when_the_view_changes() -> None:
    node: Any = SimpleNamespace(view=view(WEB, DB), settings=SimpleNamespace(hostname="h1"))
    router = Router(node)
    first = router.find("db", 80)
    assert first == find_route(node.view, "h1", "db", 80)
    assert router.find("db", 80) is first
    node.view = view(WEB, container("db", "h3"))
    assert router.find("db", 80) == LinkRoute(agent_of("h3"), "db:80", "h3")
    node.view = view(WEB)
    assert router.find("db", 80) is None
