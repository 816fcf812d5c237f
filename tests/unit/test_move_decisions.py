"""What is made again elsewhere, what goes along, and what is left to do for whom."""

from __future__ import annotations

import dataclasses
import io
import re
import tarfile
from typing import Any

import pytest
from builders import container, host, id_of, view, wish

from arpanet import (
    Cargo,
    Change,
    Chore,
    Conflict,
    Declared,
    EngineDown,
    Link,
    NameEntry,
    Needs,
    NoRoom,
    Placement,
    Policy,
    Recipe,
    apply_changes,
    body_again,
    decide_cargo,
    decide_chores,
    decide_move,
    decide_names,
    decide_rescues,
    deserves_name,
    dump_json,
    has_room,
    has_run,
    place,
    sum_tar,
    tell_rescues,
)

GB = 1 << 30
TOKEN = "0123456789abcdef"
WEB = container("web", "h1")
MADE = container(
    "web", "h2", container_id=id_of("made"), created=2000, Labels={"arpanet.made-again": TOKEN}
)
MOVING = {"web": NameEntry("h2", TOKEN)}


def test_of_a_dead_host_only_what_asked_for_it_is_made_elsewhere() -> None:
    asked, moving, plain, other, twin = (
        container(name, "h2") for name in ("asked", "moving", "plain", "other", "twin")
    )
    seen = dataclasses.replace(
        view(asked, moving, plain, other, twin, down=["h2"]),
        recipes={c.id: Recipe("h2", "", {}) for c in (asked, moving, twin)},
        moves={"moving": NameEntry("h1", TOKEN)},
    )
    seen = dataclasses.replace(seen, names={**seen.names, "twin": NameEntry("h1", "somebody's")})
    assert decide_rescues(seen, "h2") == [asked]
    assert decide_rescues(seen, "h1") == []


def test_why_a_container_is_not_made_elsewhere_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: dict[str, str] = {}
    full, busy = NoRoom("no host can take web"), Conflict("web is being moved already")
    for result in (busy, full, busy, full):
        told = tell_rescues({"web@h2": result, "db@h2": busy}, told)
    assert told == {"web@h2": "no host can take web"}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert tell_rescues({"web@h2": "h1"}, told) == {}


# ---- the name


DOOMS: list[tuple[str, dict[str, Chore], bool]] = [
    ("nothing is said of it", {}, True),
    ("it was made again elsewhere", {f"h1/{WEB.id}": Chore("web", TOKEN, "remove")}, False),
    ("it runs again if its move fails", {f"h1/{WEB.id}": Chore("web", TOKEN, "start")}, True),
    ("another one was", {f"h1/{id_of('db')}": Chore("web", TOKEN, "remove")}, True),
    ("one of that id on another host", {f"h2/{WEB.id}": Chore("web", TOKEN, "remove")}, True),
]


@pytest.mark.parametrize(
    ("chores", "deserving"), [row[1:] for row in DOOMS], ids=[r[0] for r in DOOMS]
)
def test_the_older_keeps_a_name_unless_it_was_made_again_elsewhere(
    chores: dict[str, Chore], deserving: bool
) -> None:
    held = view(WEB, MADE, names={"web": NameEntry("h2", MADE.id)})
    free = dataclasses.replace(held, names={})
    for seen in (held, free):
        seen = dataclasses.replace(seen, chores=chores)
        assert deserves_name(seen, WEB, seen.names.get("web")) is deserving
        assert decide_names(seen, "h1") == ([WEB] if deserving else [])


def test_what_is_in_the_making_does_not_take_the_name_when_that_goes_free() -> None:
    half = {f"h2/{TOKEN}": Chore("web", TOKEN, "remove")}
    seen = dataclasses.replace(view(MADE), names={}, chores=half)
    assert decide_names(seen, "h2") == []
    assert decide_names(dataclasses.replace(seen, chores={}), "h2") == [MADE]


def test_a_token_that_an_image_says_dooms_nobody() -> None:
    chores = {f"h2/{TOKEN}": Chore("another", TOKEN, "remove")}
    seen = dataclasses.replace(view(MADE), names={}, chores=chores)
    assert decide_names(seen, "h2") == [MADE]


# ---- what is left to do


def test_a_slave_does_its_own_part_of_moves_that_are_over() -> None:
    half, start = Chore("web", TOKEN, "remove"), Chore("web", TOKEN, "start")
    seen = dataclasses.replace(view(), chores={f"h2/{TOKEN}": half, f"h1/{WEB.id}": start})
    assert decide_chores(seen, "h1") == {WEB.id: start}
    assert decide_chores(seen, "h2") == {TOKEN: half}
    assert decide_chores(seen, "h3") == {}
    going_on = dataclasses.replace(seen, moves=MOVING)
    assert decide_chores(going_on, "h1") == decide_chores(going_on, "h2") == {}
    later = dataclasses.replace(seen, moves={"web": NameEntry("h2", "fedcba9876543210")})
    assert decide_chores(later, "h2") == {TOKEN: half}, "another move of that name is not this one"


BAD_CHORES = [
    ("h1/web", {}),
    ("h1/0123", {}),
    (f"h1/{TOKEN}/x", {}),
    (TOKEN, {}),
    (f"h1/{TOKEN}", {"verb": "kill"}),
    (f"h1/{TOKEN}", {"volumes": None}),
    (f"h1/{TOKEN}", {"token": 5}),
]


@pytest.mark.parametrize(("key", "change"), BAD_CHORES)
def test_nothing_is_done_by_a_name_or_a_row_of_somebody_else(
    key: str, change: dict[str, Any]
) -> None:
    row = {**Chore("web", TOKEN, "remove")._asdict(), **change}
    assert not apply_changes(view(), 8, [Change(f"/arpanet/chores/{key}", dump_json(row))]).chores
    good = dump_json(Chore("web", TOKEN, "remove", ("data",))._asdict())
    read = apply_changes(view(), 8, [Change(f"/arpanet/chores/h1/{TOKEN}", good)])
    assert read.chores == {f"h1/{TOKEN}": Chore("web", TOKEN, "remove", ("data",))}


def test_what_a_move_has_stopped_counts_as_running() -> None:
    stopped = container("web", running=False)
    assert not has_run(view(stopped), stopped)
    chores = {f"h1/{stopped.id}": Chore("web", TOKEN, "start")}
    assert has_run(dataclasses.replace(view(stopped), chores=chores), stopped)


def test_what_is_being_moved_takes_room_where_it_goes_once() -> None:
    needs = Needs(memory_bytes=3 * GB)
    row = {"host": "h1", "id": TOKEN, **needs._asdict()}
    hosts = [host("h1", memory_bytes=4 * GB, cpus=2)]
    before = view(hosts=hosts)
    seen = apply_changes(before, 11, [Change("/arpanet/moves/a", dump_json(row), 11)])
    with pytest.raises(NoRoom, match="1024 MiB of 4096 MiB of memory are left"):
        place(seen, wish(memory_bytes=2 * GB), {})
    there = Placement("h1", "", "", {})
    assert has_room(seen, wish("a", memory_bytes=3 * GB), there, 11, Policy()) == ""
    assert has_room(seen, wish("b", memory_bytes=3 * GB), there, 12, Policy()) != ""
    assert has_room(seen, wish("b", memory_bytes=3 * GB), there, 10, Policy()) == ""
    made = container("a", memory_bytes=3 * GB, Labels={"arpanet.made-again": TOKEN})
    seen = dataclasses.replace(seen, containers={made.id: made})
    assert place(seen, wish(memory_bytes=GB), {}).host == "h1"


# ---- what it is made of


RULES = {"arpanet.constraint1": "zone==b"}
DECLARED = Declared("h1", (Link("db", "x", "198.18.0.1"),), RULES)
FORGED_ENV = ["ARPANET_LINK1=db", "ARPANET_VOLUME1=/v", "ARPANET_X=1", "constraint:zone==c"]
FORGED = {
    "arpanet.links": '[["admin", "x", "198.18.0.2"]]', "arpanet.host": "h9", "arpanet.volumes": "v",
    "arpanet.affinity2": "container==admin", "arpanet.reschedule": "on-host-failure",
    "arpanet.made-again": TOKEN, "com.docker.swarm.constraints": "no JSON",
}  # fmt: skip
DETAILS: dict[str, Any] = {
    "Id": id_of("web"),
    "Config": {
        "Image": "web", "Hostname": id_of("web")[:12], "MacAddress": "02:42",
        "Env": ["A=1", *FORGED_ENV],
        "Labels": {"a": "b", "arpanet.placed": "h1: spread", **FORGED, **RULES},
    },
    "HostConfig": {"Memory": GB, "NetworkMode": "shop"},
    "NetworkSettings": {
        "Networks": {"shop": {"Aliases": ["w", id_of("web")[:12]], "IPAddress": "x"}, "bridge": {}}
    },
}  # fmt: skip


def test_a_container_is_made_again_of_what_its_engine_says() -> None:
    links = '[["db", "x", "198.18.0.1"]]'
    assert body_again(DETAILS, (), DECLARED) == {
        "Image": "web",
        "Env": ["A=1"],
        "Labels": {"a": "b", "arpanet.links": links, **RULES},
        "HostConfig": {"Memory": GB, "NetworkMode": "shop"},
        "NetworkingConfig": {"EndpointsConfig": {"shop": {"Aliases": ["w"]}}},
    }


def test_volumes_that_go_along_get_nothing_of_the_image() -> None:
    mounts = [{"Type": "volume", "Target": "/b"}, {"Type": "tmpfs", "Target": "/t"}]
    config = {"Binds": ["data:/a"], "Mounts": mounts, "VolumesFrom": ["web0"]}
    cargo = [Cargo("data", "/a"), Cargo("f" * 64, "/b")]
    assert body_again({**DETAILS, "HostConfig": config}, cargo)["HostConfig"] == {
        "Binds": ["data:/a:nocopy", f"{'f' * 64}:/b:nocopy"],
        "Mounts": [{"Type": "tmpfs", "Target": "/t"}],
        "VolumesFrom": None,
    }


@pytest.mark.parametrize(
    ("label", "to", "constraints"),
    [
        ("", "", ["zone==b", "host!=h1"]),
        ("", "h2", ["zone==b", "host==h2"]),
        ("h1", "", ["zone==b", "host==h1", "host!=h1"]),
        ("h1", "h2", ["zone==b", "host==h2"]),
    ],
)
def test_a_container_that_is_moved_keeps_its_wishes_but_for_its_host(
    label: str, to: str, constraints: list[str]
) -> None:
    body = body_again(DETAILS, (), DECLARED)
    body["Labels"].update({"arpanet.host": label} if label else {})
    asked = decide_move(container("web", "h1"), body, to)
    assert [str(rule) for rule in asked.constraints] == constraints
    assert asked.labels.get("arpanet.host", "") == (to or label if label else "")
    assert asked.needs.memory_bytes == GB


VOLUME = {"Type": "volume", "Name": "data", "Destination": "/b", "Driver": "local", "RW": True}
CARGO: list[tuple[dict[str, Any], list[dict[str, Any]], bool, list[Cargo] | str]] = [
    ({}, [], False, []),
    ({}, [{"Type": "tmpfs", "Destination": "/t"}], False, []),
    ({}, [VOLUME], False, "a volume at /b.*arpanet move --with-volumes web"),
    ({}, [VOLUME], True, [Cargo("data", "/b")]),
    (
        {},
        [VOLUME, {**VOLUME, "Name": "f" * 64, "Destination": "/a"}],
        True,
        [Cargo("f" * 64, "/a"), Cargo("data", "/b")],
    ),
    ({}, [{**VOLUME, "RW": False}], True, "cannot write to its volume at /b"),
    ({}, [{**VOLUME, "Driver": "nfs"}], True, "none of the driver local"),
    ({}, [{"Type": "bind", "Source": "/srv", "Destination": "/b"}], True, "/srv of h1 at /b"),
    ({}, [{"Type": "bind", "Source": "/srv", "Destination": "/b"}], False, "/srv of h1 at /b"),
    ({"AutoRemove": True}, [], True, "run with --rm"),
]


@pytest.mark.parametrize(("config", "mounts", "allowed", "expected"), CARGO)
def test_what_goes_along_and_what_cannot(
    config: dict[str, Any], mounts: list[dict[str, Any]], allowed: bool, expected: list[Cargo] | str
) -> None:
    details = {"HostConfig": config, "Mounts": mounts}
    if isinstance(expected, list):
        assert decide_cargo(WEB, details, allowed) == expected
    else:
        with pytest.raises(Conflict, match=expected):
            decide_cargo(WEB, details, allowed)


# ---- the checksum of a volume


def tar_of(
    *entries: tuple[str, bytes | None, dict[str, Any]], form: int = tarfile.PAX_FORMAT
) -> bytes:
    """Return a tar of files, and of directories (None)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, fields in entries:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            entry.size = len(content or b"")
            for key, value in fields.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(content or b""))
    return buffer.getvalue()


A: tuple[str, bytes | None, dict[str, Any]] = ("./a", b"one" * 500, {"mode": 0o640, "uid": 7})
B: tuple[str, bytes | None, dict[str, Any]] = ("./" + "b" * 150, b"two", {"mtime": 5.5})


def sum_of(text: bytes) -> str:
    return sum_tar(io.BytesIO(text)).sum


def test_a_checksum_is_of_the_content_not_of_order_or_form() -> None:
    wanted = sum_of(tar_of(A, B))
    assert re.fullmatch("sha256:[0-9a-f]{64}", wanted)
    assert sum_of(tar_of(B, A)) == wanted
    assert sum_of(tar_of(A, B, form=tarfile.GNU_FORMAT)) == wanted
    assert sum_of(tar_of(A, B) + b"\0" * 100_000) == wanted


def test_the_root_of_a_tar_comes_by_a_name_that_engines_obey() -> None:
    text = tar_of((".", None, {"mode": 0o711, "uid": 9, "mtime": 5}), A)
    with tarfile.open(fileobj=io.BytesIO(sum_tar(io.BytesIO(text)).root)) as tar:
        (root,) = tar.getmembers()
    assert (root.isdir(), root.mode, root.uid, root.mtime) == (True, 0o711, 9, 5)
    assert sum_tar(io.BytesIO(tar_of(A))).root == b""


OTHERS: list[list[tuple[str, bytes | None, dict[str, Any]]]] = [
    [A],
    [A, B, B],
    [A, B, B, B],
    [("./a", b"one" * 499 + b"onf", A[2]), B],
    [("./c", A[1], A[2]), B],
    [("./a", A[1], {**A[2], "mode": 0o644}), B],
    [("./a", A[1], {**A[2], "uid": 8}), B],
    [("./a", None, A[2]), B],
]


@pytest.mark.parametrize("entries", OTHERS)
def test_another_content_has_another_checksum(
    entries: list[tuple[str, bytes | None, dict[str, Any]]],
) -> None:
    assert sum_of(tar_of(*entries)) != sum_of(tar_of(A, B))


@pytest.mark.parametrize("keep", [0, 100, 700])
def test_a_tar_that_is_cut_off_has_none(keep: int) -> None:
    with pytest.raises(EngineDown, match="no whole tar"):
        sum_tar(io.BytesIO(tar_of(A, B)[:keep]))
