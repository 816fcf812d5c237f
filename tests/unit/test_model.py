"""The model: what is known as of one revision, and how it is found, listed and shown."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
from collections.abc import KeysView
from typing import Any

import pytest
from builders import container, host, id_of, view

import arpanet
from arpanet import (
    BadRequest,
    Change,
    EngineError,
    Listing,
    NotFound,
    View,
    VolumePin,
    apply_changes,
    decide_leftovers,
    find_container,
    human_age,
    list_containers,
    parse_prune,
    status_text,
)

# ---- apply_changes

HOST_ROW = {
    "ip": "10.0.0.1", "agent_port": 8792, "machine": "m", "version": "0.1.0", "engine": {},
}  # fmt: skip
MASTER_ROW = {"ip": "10.0.0.1", "api_port": 8791, "version": "0.1.0"}
CONTAINER_ROW = {
    "name": "web", "summary": {"Created": 1}, "state": {}, "expose": ["80/tcp"], "bindings": [],
    "created": "2020-01-01T00:00:00.5",
    "aliases": {"net": ["w"]},
}  # fmt: skip
ROWS: dict[str, Any] = {
    "hosts/h1": HOST_ROW,
    "alive/h1": {"machine": "m", "trouble": ""},
    "masters/h1": MASTER_ROW,
    "containers/h1/abc": CONTAINER_ROW,
    "names/web": {"host": "h1", "id": "abc"},
    "moves/web": {"host": "h2", "id": "0123456789abcdef"},
    "recipes/abc": {"host": "h1", "query": "name=web", "body": {"Image": "web"}},
    "chores/h2/0123456789abcdef": {
        "name": "web", "token": "0123456789abcdef", "verb": "remove", "volumes": [],
    },
    "volumes/data": {"host": "h1"},
    "vips/web": {"ip": "198.18.0.1"},
    "addresses/198.18.0.1": {"name": "web"},
}  # fmt: skip


def put(key: str, row: Any) -> Change:
    return Change(f"/arpanet/{key}", json.dumps(row).encode())


def delete(key: str) -> Change:
    return Change(f"/arpanet/{key}", None)


FULL = apply_changes(View(), 5, [put(key, row) for key, row in ROWS.items()])


def test_every_table_is_read() -> None:
    assert FULL.revision == 5
    assert FULL.hosts["h1"] == arpanet.Host("h1", "10.0.0.1", 8792, "m", "0.1.0", {}, {}, False)
    assert FULL.masters["h1"] == arpanet.MasterInfo("h1", "10.0.0.1", 8791, "0.1.0")
    assert FULL.alive == {"h1": ""}
    assert FULL.containers["abc"].full_name == "web@h1"
    assert FULL.containers["abc"].expose == ("80/tcp",)
    assert FULL.names["web"] == arpanet.NameEntry("h1", "abc")
    assert FULL.moves["web"] == arpanet.NameEntry("h2", "0123456789abcdef")
    assert FULL.recipes["abc"] == arpanet.Recipe("h1", "name=web", {"Image": "web"})
    chore = arpanet.Chore("web", "0123456789abcdef", "remove")
    assert FULL.chores == {"h2/0123456789abcdef": chore}
    assert FULL.volumes == {"data": VolumePin("h1", settled=True)}
    assert FULL.vips == {"web": "198.18.0.1"}
    assert FULL.addresses == {"198.18.0.1": "web"}


def test_what_is_deleted_is_gone_and_the_old_view_keeps_it() -> None:
    empty = apply_changes(FULL, 6, [delete(key) for key in ROWS])
    assert empty == View(revision=6)
    assert FULL.names
    assert FULL.containers


@pytest.mark.parametrize("key", ["volumes/", "volumes", "nothing/x", "/volumes/x"])
def test_a_key_without_table_or_name_is_left_out(key: str) -> None:
    assert apply_changes(View(), 1, [put(key, {"host": "h1"})]) == View(1)


def test_changes_apply_in_their_order() -> None:
    twice = [put("volumes/v", {"host": "h1"}), delete("volumes/v"), put("volumes/v", {"host": "b"})]
    assert apply_changes(View(), 1, twice).volumes == {"v": VolumePin("b", settled=True)}
    assert apply_changes(View(), 1, twice[:2]).volumes == {}


def test_deleting_what_is_not_there_changes_nothing() -> None:
    assert apply_changes(View(), 1, [delete("names/x"), delete("containers/h1/x")]) == View(1)


@pytest.mark.parametrize("key", [*ROWS, "nothing/x", "hosts", "hosts/", ""])
@pytest.mark.parametrize("value", [b"", b"{", b"5", b"[]", b"{}", b'"x"', b"null", b"\xff"])
def test_a_row_that_cannot_be_read_is_left_out(key: str, value: bytes) -> None:
    changes = [Change(f"/arpanet/{key}", value), put("volumes/good", {"host": "h1"})]
    good = {"good": VolumePin("h1", settled=True)}
    assert apply_changes(View(), 1, changes) == View(1, volumes=good)


def test_a_volume_is_settled_once_the_token_of_its_create_is_gone() -> None:
    claimed = apply_changes(View(), 1, [put("volumes/v", {"host": "h1", "token": "x"})])
    assert claimed.volumes == {"v": VolumePin("h1", settled=False)}


def test_claims_that_were_given_up_are_left_over_only_while_they_may_be_there() -> None:
    pending, pin = {"host": "h1", "id": "", "token": "x"}, {"host": "h1", "token": "x"}
    rows = [
        put("names/n", pending),
        put("volumes/v", pin),
        put("names/held", {**pending, "id": "c"}),
    ]
    view = apply_changes(View(), 1, [*rows, put("volumes/kept", {"host": "h1"})])
    keys = ["names/n", "volumes/v", "names/held", "volumes/kept", "names/v", "volumes/n", "moves/n"]
    given_up = [(f"/arpanet/{key}", value) for key in keys for value in (b"x", b"y")]
    found = {"/arpanet/names/n": {b"x", b"y"}, "/arpanet/volumes/v": {b"x", b"y"}}
    assert decide_leftovers(view, given_up) == found


@pytest.mark.parametrize("label", ["", "x", "5", "[5]", '[["a"]]', '{"a": 1}', '[["a","b","c",1]]'])
def test_a_label_of_links_that_was_tampered_with_means_no_links(label: str) -> None:
    assert arpanet.read_links_label({arpanet.LABEL_LINKS: label}) == ()


def test_a_slave_publishes_what_the_view_needs() -> None:
    record = arpanet.container_record(
        {"Id": "abc", "Created": 1, "Status": "Up 2 seconds"},
        {
            "Name": "/web",
            "State": {"Running": True, "Pid": 5, "Health": {"Status": "healthy", "Log": ["…"]}},
            "Config": {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}},
        },
    )
    assert "Status" not in record["summary"]  # it ages
    read = apply_changes(View(), 1, [put("containers/h1/abc", record)]).containers["abc"]
    assert (read.name, read.running, read.state["Health"]) == ("web", True, "healthy")
    assert read.expose == ("53/udp", "80/tcp")
    assert read.needs == arpanet.Needs(bindings=("8080/tcp",))


BINDINGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"80/tcp": [{"HostPort": "8080"}]}, ["8080/tcp"]),
    ({"80": [{"HostPort": "8080"}]}, ["8080/tcp"]),
    ({"80/udp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}, ["8080/udp"]),
    ({"80/tcp": [{"HostIp": "::", "HostPort": "8080"}]}, ["8080/tcp"]),
    ({"80/tcp": [{"HostIp": "10.0.0.1", "HostPort": "8080"}]}, ["10.0.0.1:8080/tcp"]),
    ({"80/tcp": [{"HostPort": "1"}, {"HostPort": "2"}]}, ["1/tcp", "2/tcp"]),
    ({"80/tcp": [{"HostPort": "8080-8090"}]}, []),  # the engine finds a free one
    ({"80/tcp": [{"HostPort": "0"}], "81/tcp": [{"HostPort": ""}], "82/tcp": None}, []),
]


@pytest.mark.parametrize(("given", "keys"), BINDINGS)
def test_fixed_host_ports(given: dict[str, Any], keys: list[str]) -> None:
    assert list(arpanet.binding_keys(given)) == keys


def test_members_are_the_machines_of_masters_and_hosts() -> None:
    assert view(hosts=["h1", host("h2", "10.9.9.9")]).members == {"127.9.0.1", "10.9.9.9"}


def test_api_versions_are_what_all_living_engines_can_do() -> None:
    old, new = host("h1", api="1.40", min_api="1.12"), host("h2", api="1.50", min_api="1.24")
    assert arpanet.api_range(view(hosts=[old, new])) == ("1.24", "1.40")
    assert arpanet.api_range(view(hosts=[old, new], down=["h1"])) == ("1.24", "1.50")
    assert arpanet.api_range(View()) == ("1.12", "1.51")


def test_a_table_is_copied_once_for_all_its_changes() -> None:
    class Counted(collections.UserDict[str, Any]):
        copies = 0

        def keys(self) -> KeysView[str]:
            self.copies += 1
            return super().keys()

    vips = Counted({"a": "198.18.0.1", "b": "198.18.0.2"})
    apply_changes(View(vips=vips), 1, [delete("vips/a"), delete("vips/b"), delete("vips/c")])
    assert vips.copies == 1


# ---- names of images

NAMES = [
    ("busybox", "busybox:latest"),
    ("library/busybox", "busybox:latest"),
    ("docker.io/busybox:1.35", "busybox:1.35"),
    ("docker.io/library/busybox:1.35", "busybox:1.35"),
    ("index.docker.io/team/app", "team/app:latest"),
    ("team/library/app", "team/library/app:latest"),
    ("docker.io.example/app", "docker.io.example/app:latest"),
    ("192.168.8.200:5000/library/app", "192.168.8.200:5000/library/app:latest"),
    ("busybox@sha256:12", "busybox@sha256:12"),
]


@pytest.mark.parametrize(("reference", "name"), NAMES)
def test_an_image_has_one_name(reference: str, name: str) -> None:
    assert arpanet.image_name(reference) == name
    assert arpanet.image_name(name) == name


MEANT: list[tuple[dict[str, str], list[str]]] = [
    ({}, []),
    ({"h2": "old"}, ["h2"]),
    ({"h2": "new", "h1": "old"}, ["h2"]),
    ({"h3": "new", "h2": "new", "h1": "old"}, ["h2", "h3"]),
    ({"h3": "old", "h2": "older", "h1": "old"}, ["h1", "h3"]),  # the new one is nowhere
]


@pytest.mark.parametrize(("ids", "hosts"), MEANT)
def test_a_name_means_the_image_that_it_was_given_to_last(
    ids: dict[str, str], hosts: list[str]
) -> None:
    seen = apply_changes(view(), 1, [put("images/app:latest", {"id": "new", "token": "x"})])
    assert arpanet.mean_images(seen, "docker.io/library/app", ids) == hosts
    assert arpanet.mean_images(view(), "app", {"h1": "old", "h2": "new"}) == ["h1"]


# ---- find_container

A1, A2 = "a" * 64, "a" * 12 + "b" * 52
FOUND = view(
    container("web", "h1", container_id=A1),
    container("db", "h2", container_id=A2),
    container("abba", "h1", container_id="c" * 64),
    container("c" * 64, "h2", container_id="d" * 64),
    container("cafe", "h3", container_id="e" * 64),
    container("other", "h3", container_id="cafe" + "0" * 60),
)
REFERENCES = [
    ("web", "web"),
    ("/web", "web"),
    ("web@h1", "web"),
    (A1, "web"),
    (A2, "db"),
    ("aaaaaaaaaaaab", "db"),
    ("abba", "abba"),
    ("c" * 64, "abba"),  # an id wins over a name
    ("cafe", "cafe"),  # a name wins over a prefix
    ("cafe0", "other"),
    ("ddd", "c" * 64),
]


@pytest.mark.parametrize(("reference", "name"), REFERENCES)
def test_a_container_is_found(reference: str, name: str) -> None:
    found = find_container(FOUND, reference)
    assert found
    assert found.name == name


@pytest.mark.parametrize(
    "reference", ["", "web@", "web@h2", "WEB", "we", "f", "A" * 64, "@h1", "*"]
)
def test_a_container_is_not_found(reference: str) -> None:
    if reference != "web@":
        assert find_container(FOUND, reference) is None
    with pytest.raises(NotFound) as caught:
        arpanet.require_container(FOUND, reference)
    assert str(caught.value) == f"No such container: {reference}"  # docker's words


@pytest.mark.parametrize("reference", ["new", "/new", "new@h1", "9" * 64])
def test_a_container_that_its_slave_has_not_told_of_is_not_called_gone(reference: str) -> None:
    names = {**FOUND.names, "new": arpanet.NameEntry("h1", "9" * 64)}
    with pytest.raises(arpanet.EngineAway, match=r"is on h1.*on h1 type: arpanet slave start"):
        arpanet.require_container(dataclasses.replace(FOUND, names=names), reference)


def test_a_name_that_is_only_claimed_is_no_container() -> None:
    names = {"new": arpanet.NameEntry("h1", "")}
    with pytest.raises(NotFound):
        arpanet.require_container(dataclasses.replace(FOUND, names=names), "new")


def test_an_ambiguous_prefix_is_refused_in_dockers_words() -> None:
    with pytest.raises(EngineError, match="Multiple IDs found with provided prefix: aaaa") as e:
        find_container(FOUND, "aaaa")
    assert e.value.status == 500


def test_a_name_that_two_engines_have_is_who_claimed_it() -> None:
    mine, theirs = container("web", "h1", container_id="1" * 64), container("web", "h2")
    seen = view(mine, theirs, names={"web": arpanet.NameEntry("h1", mine.id)})
    assert find_container(seen, "web") == mine
    assert find_container(seen, "web@h2") == theirs
    assert (
        find_container(view(mine, theirs, names={"web": arpanet.NameEntry("h9", "")}), "web")
        is None
    )


# ---- words of docker ps

AGES = [
    (0, "Less than a second"), (0.9, "Less than a second"), (1, "1 second"), (1.9, "1 second"),
    (2, "2 seconds"), (59.9, "59 seconds"), (60, "About a minute"), (119, "About a minute"),
    (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"), (5399, "About an hour"),
    (5400, "2 hours"), (47.4 * 3600, "47 hours"), (48 * 3600, "2 days"), (13.9 * 86400, "13 days"),
    (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks"), (60 * 86400, "2 months"),
    (729 * 86400, "24 months"), (730 * 86400, "2 years"), (1200 * 86400, "3 years"),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "words"), AGES)
def test_an_age_in_dockers_words(seconds: float, words: str) -> None:
    assert human_age(seconds) == words


NOW = datetime.datetime(2020, 1, 1, 0, 5, 1, tzinfo=datetime.timezone.utc)
BEFORE, ZERO = "2020-01-01T00:00:00.123456789Z", "0001-01-01T00:00:00Z"
RUNNING = {"Running": True, "StartedAt": BEFORE, "FinishedAt": ZERO, "ExitCode": 0}
STATUSES: list[tuple[dict[str, Any], str]] = [
    ({**RUNNING}, "Up 5 minutes"),
    ({**RUNNING, "Health": "none"}, "Up 5 minutes"),
    ({**RUNNING, "Health": "healthy"}, "Up 5 minutes (healthy)"),
    ({**RUNNING, "Health": "unhealthy"}, "Up 5 minutes (unhealthy)"),
    ({**RUNNING, "Health": "starting"}, "Up 5 minutes (health: starting)"),
    ({**RUNNING, "Paused": True}, "Up 5 minutes (Paused)"),
    (
        {**RUNNING, "Restarting": True, "FinishedAt": BEFORE, "ExitCode": 3},
        "Restarting (3) 5 minutes ago",
    ),
    ({"StartedAt": BEFORE, "FinishedAt": BEFORE, "ExitCode": 137}, "Exited (137) 5 minutes ago"),
    ({"StartedAt": BEFORE, "FinishedAt": ZERO, "ExitCode": 0}, ""),
    ({"StartedAt": ZERO, "FinishedAt": ZERO, "ExitCode": 0, "Status": "created"}, "Created"),
    ({"StartedAt": ZERO, "FinishedAt": ZERO, "ExitCode": 127}, "Created"),
    ({"StartedAt": BEFORE, "FinishedAt": BEFORE, "Dead": True}, "Dead"),
    ({"StartedAt": BEFORE, "FinishedAt": BEFORE, "Status": "removing"}, "Removal In Progress"),
    ({}, "Created"),
]


@pytest.mark.parametrize(("state", "words"), STATUSES)
def test_a_status_in_dockers_words(state: dict[str, Any], words: str) -> None:
    assert status_text(state, NOW) == words


def test_an_entry_has_its_host_and_says_when_that_is_down() -> None:
    web = container("web", "h1", Image="busybox")
    entry = json.loads(arpanet.list_entry(view(web), web, NOW))
    assert (entry["Names"], entry["Status"], entry["Image"]) == (
        ["/web@h1", "/web"],
        "Up 5 minutes",
        "busybox",
    )
    entry = json.loads(arpanet.list_entry(view(web, down=["h1"]), web, NOW))
    assert entry["Status"] == "Host Down"


# ---- list_containers

IMAGE = "sha256:" + "7" * 64
LISTED = view(
    container(
        "web", "h1", created=30, expose=["80/tcp", "53/udp"], Image="nginx", ImageID=IMAGE,
        Labels={"app": "shop", "tier": "web"},
        Ports=[{"PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, {"PrivatePort": 53}],
        NetworkSettings={"Networks": {"front": {"NetworkID": "beef", "IPAddress": "172.18.0.2"}}},
        Mounts=[{"Name": "data", "Source": "/var/lib/data", "Destination": "/data"}],
        state={"Health": "healthy"},
    ),
    container("db", "h2", created=20, Image="redis:6", Labels={"app": "shop"}),
    container("old", "h2", created=10, running=False, state={"ExitCode": 3}),
    container(
        "fresh", "h3", created=40, running=False,
        state={"Status": "created", "StartedAt": ZERO, "FinishedAt": ZERO},
    ),
)  # fmt: skip


def listed(everything: bool = True, limit: int = 0, **filters: Any) -> list[str]:
    named = {name.replace("_", "-"): tuple(values) for name, values in filters.items()}
    return [c.name for c in list_containers(LISTED, Listing(everything, limit, named))]


def test_only_what_runs_is_listed_newest_first_without_all() -> None:
    assert listed(everything=False) == ["web", "db"]
    assert listed() == ["fresh", "web", "db", "old"]


def test_a_limit_is_of_all_the_newest() -> None:
    assert listed(everything=False, limit=3) == ["fresh", "web", "db"]
    assert listed(limit=-1) == ["fresh", "web", "db", "old"]
    assert listed(limit=1, host=["h2"]) == ["db"]


FILTERED: list[tuple[str, list[str], list[str]]] = [
    ("ancestor", ["nginx"], ["web"]),
    ("ancestor", ["nginx:latest"], ["web"]),
    ("ancestor", [IMAGE], ["web"]),
    ("ancestor", ["7777"], ["web"]),
    ("ancestor", ["777"], []),
    ("ancestor", ["redis"], []),
    ("ancestor", ["redis:6", "nginx"], ["web", "db"]),
    ("before", ["db"], ["old"]),
    ("since", ["db"], ["fresh", "web"]),
    ("since", [id_of("old")[:12]], ["fresh", "web", "db"]),
    ("exited", ["3"], ["old"]),
    ("exited", ["0"], []),
    ("expose", ["80"], ["web"]),
    ("expose", ["53"], []),
    ("expose", ["53/udp"], ["web"]),
    ("expose", ["79-81/tcp"], ["web"]),
    ("expose", ["81-90"], []),
    ("health", ["healthy"], ["web"]),
    ("health", ["none"], ["fresh", "db", "old"]),
    ("host", ["h2"], ["db", "old"]),
    ("host", ["h2", "h3"], ["fresh", "db", "old"]),
    ("id", [id_of("web")[:12]], ["web"]),
    ("is_task", ["false"], ["fresh", "web", "db", "old"]),
    ("is_task", ["true"], []),
    ("label", ["app"], ["web", "db"]),
    ("label", ["app=shop", "tier"], ["web"]),  # all of them, not any
    ("label", ["tier=db"], []),
    ("name", ["db"], ["db"]),
    ("name", ["d"], ["db", "old"]),
    ("name", ["^/db$"], ["db"]),
    ("name", ["db@h2"], ["db"]),
    ("name", ["^/db@h2$"], ["db"]),
    ("name", ["db@h1"], []),
    ("name", ["h2"], []),
    ("name", ["db", "web"], ["web", "db"]),
    ("name", ["("], []),
    ("network", ["front"], ["web"]),
    ("node", ["h2", "h3"], ["fresh", "db", "old"]),
    ("network", ["beef"], ["web"]),
    ("publish", ["8080"], ["web"]),
    ("publish", ["80"], []),
    ("publish", ["8000-9000"], ["web"]),
    ("publish", ["8080/udp"], []),
    ("status", ["exited"], ["old"]),
    ("status", ["created", "running"], ["fresh", "web", "db"]),
    ("volume", ["data"], ["web"]),
    ("volume", ["/data"], ["web"]),
    ("volume", ["/var/lib/data"], ["web"]),
    ("volume", ["dat"], []),
]


@pytest.mark.parametrize(("name", "values", "names"), FILTERED)
def test_a_filter(name: str, values: list[str], names: list[str]) -> None:
    assert listed(True, 0, **{name: values}) == names


def test_every_filter_has_a_test() -> None:
    tested = {name.replace("_", "-") for name, _, _ in FILTERED}
    assert tested == {*arpanet.FILTERS, "before", "since"}


def test_several_filters_must_all_hold() -> None:
    assert listed(label=["app"], host=["h2"]) == ["db"]
    assert listed(label=["app"], since=["db"]) == ["web"]


def test_a_status_is_looked_for_among_all() -> None:
    assert listed(everything=False, status=["exited"]) == ["old"]


PORT = "error while looking up for {}: strconv.ParseUint: parsing "
WRONG_FILTERS = [
    ("colour", "red", "Invalid filter 'colour'"),
    ("status", "up", "Invalid filter 'status=up'"),
    ("is-task", "maybe", "Invalid filter 'is-task=[maybe]'"),
    ("health", "ill", "Unrecognised filter value for health: ill"),
    ("exited", "x", 'strconv.Atoi: parsing "x": invalid syntax'),
    ("publish", "http", PORT.format("publish http") + '"http": invalid syntax'),
    ("expose", "1-x", PORT.format("expose 1-x") + '"x": invalid syntax'),
    ("expose", "²", PORT.format("expose ²") + '"²": invalid syntax'),
    ("expose", "70000", PORT.format("expose 70000") + '"70000": value out of range'),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG_FILTERS)
def test_a_wrong_filter_is_refused(name: str, value: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        listed(True, 0, **{name: [value]})
    assert str(caught.value) == words


def test_a_container_to_compare_with_must_be_there() -> None:
    with pytest.raises(NotFound, match="no such container ghost"):
        listed(before=["ghost"])


FORMS = [
    ("", {}),
    ("{}", {}),
    ('{"label": ["a", "b"]}', {"label": ("a", "b")}),
    ('{"label": {"a": true}}', {"label": ("a",)}),
]


@pytest.mark.parametrize(("text", "filters"), FORMS)
def test_filters_have_two_forms(text: str, filters: object) -> None:
    assert arpanet.parse_filters(text) == filters


@pytest.mark.parametrize("text", ["x", "[]", '{"label": "a"}', '{"label": 5}', "[" * 100_000])
def test_filters_that_are_neither_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="filters"):
        arpanet.parse_filters(text)


# ---- hosts in trouble

SILENT = "its Docker Engine does not answer"


def test_a_host_is_asked_for_nothing_while_it_or_its_engine_is_down() -> None:
    seen = view(hosts=("h1", "h2", "h3"), down=["h1"], ailing={"h2": SILENT})
    assert [seen.trouble(h) for h in ("h1", "h2", "h3")] == ["the host is down", SILENT, ""]
    assert [h.name for h in seen.living_hosts()] == ["h3"]


@pytest.mark.parametrize(
    ("lost", "status"),
    [({"down": ["h1"]}, "Host Down"), ({"ailing": {"h1": SILENT}}, "Host Down (engine)")],
)
def test_a_container_that_cannot_be_asked_is_not_shown_as_up(lost: Any, status: str) -> None:
    seen = view(container("web", "h1"), **lost)
    entry = json.loads(arpanet.list_entry(seen, seen.containers[id_of("web")], NOW))
    assert entry["Status"] == status


# ---- one name, two containers

OLD = container("web", "h1", container_id="a" * 64, created=1)
NEW = container("web", "h2", container_id="b" * 64, created=2)


def names_of(host: str, container_id: str) -> dict[str, arpanet.NameEntry]:
    return {"web": arpanet.NameEntry(host, container_id)}


@pytest.mark.parametrize(
    ("entry", "deserving"),
    [
        (None, ["h1", "h2"]),
        (arpanet.NameEntry("h1", OLD.id), []),
        (arpanet.NameEntry("h2", NEW.id), ["h1"]),
        (arpanet.NameEntry("h1", ""), ["h1"]),  # its master died before it said so
        (arpanet.NameEntry("h3", ""), []),  # being made
        (arpanet.NameEntry("h3", "c" * 64), []),  # made, and not published yet
    ],
)
def test_of_two_containers_the_older_has_the_right_to_the_name(
    entry: arpanet.NameEntry | None, deserving: list[str]
) -> None:
    seen = view(OLD, NEW)
    seen = dataclasses.replace(seen, names={"web": entry} if entry else {})
    found = [c.host for host in ("h1", "h2", "h3") for c in arpanet.decide_names(seen, host)]
    assert found == deserving


def test_the_newer_of_two_is_shown_and_found_under_another_name_and_told_about() -> None:
    seen = view(OLD, NEW, names=names_of("h1", OLD.id))
    assert [arpanet.shown_name(seen, c) for c in (OLD, NEW)] == ["web@h1", "web-bbbbbb@h2"]
    names = [json.loads(arpanet.list_entry(seen, c, NOW))["Names"] for c in (OLD, NEW)]
    assert names == [["/web@h1", "/web"], ["/web-bbbbbb@h2", "/web-bbbbbb"]]
    names = [json.loads(arpanet.list_entry(seen, c, NOW, True))["Names"] for c in (OLD, NEW)]
    assert names == [["/web", "/web@h1"], ["/web-bbbbbb", "/web-bbbbbb@h2"]]
    found = {r: find_container(seen, r) for r in ("web", "web-bbbbbb", "web-bbbbbb@h2", "web@h2")}
    assert found == {"web": OLD, "web-bbbbbb": NEW, "web-bbbbbb@h2": NEW, "web@h2": NEW}
    (told,) = arpanet.list_conflicts(seen)
    assert told.startswith("web on h2 is shown as web-bbbbbb@h2: web@h1 is older and keeps")
    assert arpanet.list_conflicts(seen, "h2") == [told]
    assert arpanet.list_conflicts(seen, "h1") == []


def test_one_container_with_its_name_is_no_conflict() -> None:
    seen = view(OLD, names=names_of("h1", OLD.id))
    assert arpanet.shown_name(seen, OLD) == "web@h1"
    assert not arpanet.list_conflicts(seen) and not arpanet.decide_names(seen, "h1")


@pytest.mark.parametrize(
    ("filters", "taken"),
    [
        ({}, True),
        ({"label": ("a",)}, True),
        ({"label": ("a=1", "b")}, False),
        ({"label!": ("a=2",)}, True),
        ({"label!": ("a",)}, False),
        ({"until": ("1h30m",)}, True),
        ({"until": ("2h30m",)}, False),
        ({"until": ("2026-12-01T11:00:01+01:00",)}, True),
        ({"until": ("2026-12-01T09:00:00.5Z",)}, False),
        ({"until": ("1796119200",)}, True),  # date -ud 2026-12-01T10:00 +%s
        ({"until": ("1796119199.9",)}, False),
    ],
)
def test_a_prune_takes_what_its_filters_say(
    filters: dict[str, tuple[str, ...]], taken: bool
) -> None:
    network = {"Labels": {"a": "1"}, "Created": "2026-12-01T12:00:00.123456789+02:00"}
    now = datetime.datetime(2026, 12, 1, 12, tzinfo=datetime.timezone.utc)
    if filters.get("until") == ("1796119200",):
        network["Created"] = "2026-12-01T10:00:00Z"
    assert parse_prune(filters, now).takes(network) is taken


@pytest.mark.parametrize(
    "filters", [{"nosuch": ("x",)}, {"until": ("x",)}, {"until": ("1h", "2h")}]
)
def test_a_prune_with_a_filter_that_is_not_there_is_refused(
    filters: dict[str, tuple[str, ...]],
) -> None:
    with pytest.raises(BadRequest):
        parse_prune(filters, datetime.datetime.now(datetime.timezone.utc))


def test_a_networks_id_is_found_in_its_row_alike_by_all_masters_also_in_one_of_old() -> None:
    own = "e" * 64
    on = {"NetworkSettings": {"Networks": {"net": {"NetworkID": own}}}}
    web = dataclasses.replace(container("web"), summary=on)

    def listed_id(seen: View) -> str:
        entry = json.loads(arpanet.list_entry(seen, seen.containers[web.id], NOW))
        return str(entry["NetworkSettings"]["Networks"]["net"]["NetworkID"])

    rows: list[dict[str, Any]] = [{"token": "a"}, {"token": "b"}, {}]
    found = set()
    for row in rows:
        change = put("networks/net", {"create": {"Name": "net"}, **row})
        seen = apply_changes(view(web), 1, [change])
        known = listed_id(seen)
        found.add(known)
        assert (
            known
            == seen.network_ids["net"]
            == apply_changes(View(), 2, [change]).networks["net"].id
        )
        for value in (known[:12], own, "net"):
            assert list_containers(seen, Listing(True, 0, {"network": (value,)}))
        assert listed_id(apply_changes(seen, 3, [delete("networks/net")])) == own
    assert len(found) == 3


def test_a_filter_without_values_keeps_nobody_out() -> None:
    for text in ('{"name": []}', '{"label": null}', '{"network": {}}'):
        listing = Listing(True, 0, arpanet.parse_filters(text))
        assert len(arpanet.list_containers(FULL, listing)) == len(FULL.containers) > 0
