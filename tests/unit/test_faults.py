"""The judge of the fault table: it must find what is lost, doubled or half, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from faults import FAULTS, Findings, Told, World, compare, longest_gap

A, B = "a" * 64, "b" * 64


def told(verb: str, name: str, said: str = "", *, well: bool = True) -> Told:
    return Told(verb, name, 0.0, 1.0, well, said)


def world(engines: dict[str, dict[str, str]], *also: str, **volumes: str) -> World:
    """Return a world where etcd says what the engines do, but for keys that are there also."""
    tables: dict[str, Any] = {}
    for host, rows in engines.items():
        for container_id, name in rows.items():
            tables[f"containers/{host}/{container_id}"] = {"name": name}
            tables[f"names/{name}"] = {"host": host, "id": container_id}
    for name, host in volumes.items():
        tables[f"volumes/{name}"] = {"host": host}
    tables.update({key: {"host": "h1", "id": "", "name": "x"} for key in also})
    kept = {h: frozenset(v for v, on in volumes.items() if on == h) for h in ("h1", "h2")}
    return World(engines, kept, tables)


WEB = told("create", "web", A)


@pytest.mark.parametrize(
    ("history", "seen", "lost"),
    [
        ([WEB], world({"h1": {A: "web"}}, data="h1"), 0),
        ([WEB], world({"h1": {}}), 1),
        ([WEB], world({"h1": {B: "web"}}), 1),  # another one by that name is not it
        ([WEB, told("rm", "web")], world({"h1": {}}), 0),
        ([WEB, told("rm", "web")], world({"h1": {A: "web"}}), 1),
        ([WEB, told("rm", "web", well=False)], world({"h1": {A: "web"}}), 0),
        ([WEB, told("rm", "web", well=False)], world({"h1": {}}), 0),
        ([told("create", "web", "no answer", well=False)], world({"h1": {A: "web"}}), 0),
        ([told("create", "web", "no answer", well=False)], world({"h1": {}}), 0),
    ],
)
def test_what_was_acknowledged_and_is_not_so_is_lost(
    history: list[Told], seen: World, lost: int
) -> None:
    found = compare(history, seen)
    assert (len(found.lost), found.doubled, found.half) == (lost, [], [])


def test_a_name_or_a_volume_on_two_hosts_is_doubled() -> None:
    twice = world({"h1": {A: "web"}, "h2": {B: "web"}})
    assert compare([], twice).doubled == ["web is there 2 times"]
    volumes = {"h1": frozenset({"v"}), "h2": frozenset({"v"})}
    assert compare([], World({}, volumes, {})).doubled == ["v is there 2 times"]


@pytest.mark.parametrize("left", ["names/web", f"containers/h1/{A}"])
def test_what_is_in_etcd_alone_is_half(left: str) -> None:
    assert len(compare([], world({"h1": {}}, left)).half) == 1


def test_what_is_on_an_engine_alone_is_half() -> None:
    assert len(compare([], World({"h1": {A: "web"}}, {"h1": frozenset("v")}, {})).half) == 3
    assert compare([], world({})) == Findings([], [], [])


def test_the_longest_gap_counts_what_went_well_alone() -> None:
    history = [
        Told("ps", "", t - 1, t, well, "") for t, well in ((12, True), (15, False), (17, True))
    ]
    assert longest_gap(history, 10.0, 20.0) == 5
    assert longest_gap([], 10.0, 20.0) == 10


def test_the_table_of_faults_has_all_but_the_cables_that_are_not() -> None:
    assert len(set(FAULTS)) == len(FAULTS) == 23
