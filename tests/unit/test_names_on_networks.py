"""Containers on a network that was made through arpanet find each other by name."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from builders import container, view, wish

from arpanet import (
    Container,
    HostPort,
    NetworkEntry,
    View,
    create_body,
    decide_links,
    find_vips,
    name_reply,
    read_question,
    resolver_of,
)

NETWORK: Any = {"Networks": {"net": {"IPAddress": "172.20.0.2"}}}
VIPS = {"db": "198.18.0.7", "web": "198.18.0.8", "other": "198.18.0.9"}


def on_net(name: str, host: str, *aliases: str, running: bool = True) -> Container:
    made = container(name, host, expose=("80/tcp",), running=running, NetworkSettings=NETWORK)
    return dataclasses.replace(made, aliases={"net": aliases})


def shared(*containers: Container) -> View:
    """Return a view in which the network net was made through arpanet."""
    return dataclasses.replace(
        view(*containers, vips=VIPS), networks={"net": NetworkEntry("n" * 64, {"Name": "net"})}
    )


WEB = on_net("web", "h1")
DB = on_net("db", "h2", "database", "0123456789ab")


@pytest.mark.parametrize("name", ["db", "DB", "database", "db.", "database.net", "0123456789ab"])
def test_a_name_or_an_alias_means_the_container_of_another_host(name: str) -> None:
    assert find_vips(shared(WEB, DB), WEB, name) == [VIPS["db"]]


@pytest.mark.parametrize("name", ["nobody", "db.other", "net", ""])
def test_another_name_means_nothing(name: str) -> None:
    assert find_vips(shared(WEB, DB), WEB, name) is None


def test_a_name_of_several_containers_means_all_that_run() -> None:
    seen = shared(
        WEB,
        on_net("db", "h2", "s"),
        on_net("other", "h3", "s"),
        on_net("x", "h3", "s", running=False),
    )
    assert find_vips(seen, WEB, "s") == [VIPS["db"], VIPS["other"]]


def test_a_link_of_a_network_is_a_name_for_the_one_who_declared_it() -> None:
    linked = dataclasses.replace(
        WEB, calls={"net": ("db:store", "0123456789ab:keep", "nobody:ghost")}
    )
    seen = shared(linked, DB)
    assert find_vips(seen, linked, "Store") == find_vips(seen, linked, "keep.net") == [VIPS["db"]]
    assert find_vips(seen, linked, "ghost") is None
    assert find_vips(seen, DB, "store") is None


def test_a_network_that_one_engine_alone_has_joins_nobody_of_another_host() -> None:
    seen = view(WEB, DB, vips=VIPS)
    assert find_vips(seen, WEB, "db") is None
    assert decide_links(seen, "h1").listeners == {}


def test_who_is_on_the_network_may_reach_what_the_others_expose() -> None:
    table = decide_links(shared(WEB, DB, container("plain", "h1", ip="172.17.0.9")), "h1")
    assert table.listeners[HostPort(VIPS["db"], 80)] == "db"
    assert ("172.20.0.2", "db") in table.allowed
    assert not any(ip == "172.17.0.9" for ip, _ in table.allowed)
    assert table.consumers == {"172.20.0.2": WEB.id, "172.17.0.9": container("plain").id}


def test_the_user_says_whom_a_container_asks_for_names() -> None:
    resolver = resolver_of("198.18.0.0/16")
    assert resolver == "198.18.0.1"
    asked = [resolver, "10.0.0.1"]
    assert create_body({}, wish(), [], asked)["HostConfig"]["Dns"] == asked
    body = {"HostConfig": {"Dns": ["1.2.3.4"]}}
    assert create_body(body, wish(), [], asked)["HostConfig"]["Dns"] == ["1.2.3.4"]
    assert create_body({}, wish(), [], [])["HostConfig"]["Dns"] is None


# ---- the packets

QUESTION = b"\x02db\x03net\x00" + struct.pack(">HH", 1, 1)


def query(flags: int = 0x0100, questions: int = 1, section: bytes = QUESTION) -> bytes:
    return struct.pack(">HHHHHH", 77, flags, questions, 0, 0, 0) + section


def test_a_query_is_read_and_answered() -> None:
    asked = read_question(query())
    assert asked is not None
    assert (asked.id, asked.name, asked.kind, asked.section) == (77, "db.net", 1, QUESTION)
    packet = name_reply(asked, ["198.18.0.7", "198.18.0.8"])
    assert struct.unpack_from(">HHHHHH", packet) == (77, 0x8180, 1, 2, 0, 0)
    assert packet[12 : 12 + len(QUESTION)] == QUESTION
    assert packet.endswith(b"\x00\x04\xc6\x12\x00\x08")


def test_another_kind_of_a_known_name_has_no_records() -> None:
    asked = read_question(query(section=QUESTION[:-4] + struct.pack(">HH", 28, 1)))
    assert asked is not None
    assert struct.unpack_from(">HHHH", name_reply(asked, ["198.18.0.7"])) == (77, 0x8180, 1, 0)
    assert struct.unpack_from(">HH", name_reply(asked, [], failed=True)) == (77, 0x8182)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        query()[:11],
        query(section=b"\x02db"),
        query(section=b"\x3fdb\x00"),
        query(section=b"\x02\xff\xff\x00" + struct.pack(">HH", 1, 1)),
        query(flags=0x8100),
        query(flags=0x0800),
        query(questions=2),
        query(section=b"\x02db\x00" + struct.pack(">HH", 1, 3)),
        query(section=b"\xc0\x0c" * 40),
    ],
)
def test_what_is_no_plain_query_is_left_alone(packet: bytes) -> None:
    assert read_question(packet) is None
