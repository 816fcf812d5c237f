"""What a create asks for: names, links, volumes, and the body that the engine gets."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from builders import container, view, wish
from hypothesis import given
from hypothesis import strategies as st

from arpanet import (
    LABEL_LINKS,
    LABEL_VOLUMES,
    BadRequest,
    Link,
    LinkTarget,
    LinkWish,
    Needs,
    bind_of,
    check_new_name,
    create_body,
    link_wish,
    read_create,
    require_link_targets,
    split_env,
    volume_name,
)

# ---- names


@pytest.mark.parametrize("name", ["web", "/web", "Web_1.x-y", "0a"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert check_new_name(name) == name.removeprefix("/")


WRONG_NAMES = [
    ("", "docker run --name NAME"),
    ("/", "docker run --name NAME"),
    ("web@h1", "Invalid container name (web@h1)"),
    ("a", "Invalid container name (a), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    ("-web", "Invalid container name"),
    ("web\n", "Invalid container name"),
    ("wéb", "Invalid container name"),
    ("a/b", "Invalid container name"),
]


@pytest.mark.parametrize(("name", "words"), WRONG_NAMES)
def test_a_name_that_cannot_be_is_refused(name: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_new_name(name)
    assert words in str(caught.value)


# ---- ARPANET_LINKn and ARPANET_VOLUMEn


def test_arpanets_variables_are_taken_out_in_the_order_of_their_numbers() -> None:
    env = ["A=1", "ARPANET_LINK10=c", "ARPANET_LINK2=b:x", "ARPANET_LINK=a", "ARPANET_VOLUME1=/d"]
    assert split_env([*env, "B"]) == (("A=1", "B"), ("a", "b:x", "c"), ("/d",), {}, {})


@pytest.mark.parametrize(
    "line",
    [
        "ARPANET_LINKS=a", "ARPANET_LINK1=", "ARPANET_VOLUME1", "ARPANET_X=1", "ARPANET_=1",
        "ARPANET_HOST1=h1", "ARPANET_HOST", "ARPANET_CONSTRAINT1=", "ARPANET_AFFINITIES=a==b",
    ],
)  # fmt: skip
def test_a_variable_of_arpanet_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(BadRequest, match=line.partition("=")[0]):
        split_env([line])


def test_who_types_a_variable_that_is_not_there_is_told_which_are() -> None:
    with pytest.raises(BadRequest) as caught:
        split_env(["ARPANET_ZONE=b"])
    for name in ("LINK1", "VOLUME1", "HOST", "CONSTRAINT1", "AFFINITY1", "RESCHEDULE"):
        assert f"ARPANET_{name}=" in str(caught.value)


# ---- wishes for a host

SWARM_C, SWARM_A = "com.docker.swarm.constraints", "com.docker.swarm.affinities"
BOTH = {SWARM_C: '["zone==b"]', SWARM_A: '["image==a"]'}
HOST_WISHES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("web@h2", {}, ["host==h2"], []),
    ("web", {"Env": ["ARPANET_HOST=h2"]}, ["host==h2"], []),
    ("web", {"Env": ["ARPANET_HOST=~h*"]}, ["host==~h*"], []),
    ("web@h2", {"Env": ["ARPANET_HOST=h1"]}, ["host==h2"], []),
    ("web", {"Env": ["ARPANET_CONSTRAINT1=zone==b"]}, ["zone==b"], []),
    ("web", {"Env": ["ARPANET_CONSTRAINT=zone!=~/b|c/"]}, ["zone!=~/b|c/"], []),
    ("web", {"Env": ["ARPANET_AFFINITY3=container==db"]}, [], ["container==db"]),
    ("web", {"Env": ["constraint:zone==b", "affinity:image!=a"]}, ["zone==b"], ["image!=a"]),
    ("web", {"Labels": {"arpanet.host": "h2"}}, ["host==h2"], []),
    ("web", {"Labels": {"arpanet.constraint7": "zone==b"}}, ["zone==b"], []),
    ("web", {"Labels": {"arpanet.affinity": "tier==front"}}, [], ["tier==front"]),
    ("web", {"Labels": BOTH}, ["zone==b"], ["image==a"]),
    ("web", {"Env": ["constraint:health==healthy"]}, [], []),
    ("web", {"Labels": {"arpanet.links": "[]", "arpanet.hosts": "a", "zone": "b"}}, [], []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "constraints", "affinities"), HOST_WISHES)
def test_a_wish_for_a_host_is_read_and_leaves_the_environment(
    name: str, body: dict[str, Any], constraints: list[str], affinities: list[str]
) -> None:
    read = read_create(name, dict(body, Image="busybox"))
    assert read.name == "web"
    assert [str(rule) for rule in read.constraints] == constraints
    assert [str(rule) for rule in read.affinities] == affinities
    assert read.env == ()


@pytest.mark.parametrize(("name", "body", "constraints", "affinities"), HOST_WISHES)
def test_the_labels_that_record_a_wish_are_the_same_wish(
    name: str, body: dict[str, Any], constraints: list[str], affinities: list[str]
) -> None:
    made = create_body(body, read_create(name, body), [], [])
    again = read_create("web", {"Labels": made["Labels"]})
    assert [str(rule) for rule in again.constraints] == constraints
    assert [str(rule) for rule in again.affinities] == affinities


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("web@", {}),
        ("web", {"Env": ["ARPANET_CONSTRAINT1=zone=b"]}),
        ("web", {"Env": ["ARPANET_CONSTRAINT1=zone"]}),
        ("web", {"Env": ["ARPANET_CONSTRAINT1===b"]}),
        ("web", {"Env": ["ARPANET_CONSTRAINT1=zone=="]}),
        ("web", {"Env": ["ARPANET_CONSTRAINT1=zone==/(/"]}),
        ("web", {"Env": ["constraint:zone"]}),
        ("web", {"Labels": {"arpanet.affinity1": "container"}}),
        ("web", {"Labels": {SWARM_C: "zone==b"}}),
        ("web", {"Labels": {SWARM_C: "[1]"}}),
        ("web", {"Labels": {SWARM_A: ["image==a"]}}),
        ("web", {"Env": ["ARPANET_RESCHEDULE=always"]}),
    ],
)
def test_a_wish_for_a_host_that_is_none_is_refused(name: str, body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        read_create(name, body)


RESCHEDULES: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"Env": ["ARPANET_RESCHEDULE=on-host-failure"]}, True),
    ({"Env": ["ARPANET_RESCHEDULE=off"]}, False),
    ({"Env": ["reschedule:on-node-failure"]}, True),
    ({"Labels": {"arpanet.reschedule": "on-host-failure"}}, True),
    ({"Labels": {"com.docker.swarm.reschedule-policies": '["on-node-failure"]'}}, True),
]


@pytest.mark.parametrize(("body", "wanted"), RESCHEDULES)
def test_a_wish_to_be_made_again_when_its_host_is_down(body: dict[str, Any], wanted: bool) -> None:
    read = read_create("web", body)
    assert read.reschedule is wanted
    assert read.env == ()
    assert read_create("web", {"Labels": dict(read.labels)}).reschedule is wanted


NEEDS = [
    ({"Memory": 64 << 20}, Needs(memory_bytes=64 << 20)),
    ({"NanoCpus": 5 * 10**8}, Needs(nano_cpus=5 * 10**8)),
    ({"CpuShares": 512}, Needs(nano_cpus=5 * 10**8)),
    ({"CpuShares": 512, "NanoCpus": 10**9}, Needs(nano_cpus=10**9)),
    ({"Memory": -1, "CpuShares": "x", "NanoCpus": None}, Needs()),
]


@pytest.mark.parametrize(("host_config", "needs"), NEEDS)
def test_what_a_container_takes_of_its_host(host_config: dict[str, Any], needs: Needs) -> None:
    assert read_create("web", {"HostConfig": host_config}).needs == needs


LINKS = [
    ("db", LinkWish("db", "db")),
    ("db:x", LinkWish("db", "x")),
    ("/db:x", LinkWish("db", "x")),
    ("db@h1", LinkWish("db@h1", "db")),
    ("db@h1:x", LinkWish("db@h1", "x")),
    ("/db:/web/x", LinkWish("db", "x")),
]


@pytest.mark.parametrize(("text", "read"), LINKS)
def test_a_link(text: str, read: LinkWish) -> None:
    assert link_wish(text) == read


@pytest.mark.parametrize("text", ["", ":x", "db:x:y", "db: x", "db:é", "/"])
def test_a_link_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="a link is NAME or NAME:ALIAS"):
        link_wish(text)


OWN = volume_name("web", "/data")
BINDS = [
    ("/data", f"{OWN}:/data"),
    ("/data/", f"{OWN}:/data"),
    ("//data", f"{OWN}:/data"),
    ("/x/../data", f"{OWN}:/data"),
    ("/data:ro", f"{OWN}:/data:ro"),
    ("vol:/data", "vol:/data"),
    ("vol:/data:ro", "vol:/data:ro"),
    ("/host/dir:/data", "/host/dir:/data"),
]


@pytest.mark.parametrize(("text", "bind"), BINDS)
def test_a_volume(text: str, bind: str) -> None:
    assert bind_of("web", text) == bind


@pytest.mark.parametrize("text", ["", "data", "vol:data", ":/data", "vol:"])
def test_a_volume_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="a volume is /PATH, NAME:/PATH or /DIR:/PATH"):
        bind_of("web", text)


NAMES = st.from_regex("[a-zA-Z0-9][a-zA-Z0-9_.-]{1,12}", fullmatch=True)
PATHS = st.text("abA01/_-. é:\0", max_size=12).map(lambda text: "/" + text.strip("/"))


@given(NAMES, PATHS, NAMES, PATHS)
def test_no_two_containers_and_paths_share_a_volume(a: str, p: str, b: str, q: str) -> None:
    assert (volume_name(a, p) == volume_name(b, q)) == ((a, p) == (b, q))


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a_b", "/c"), ("a", "/b_c")), (("a", "/b c"), ("a", "/b-c")), (("a", "/"), ("a", "/root"))],
)
def test_volumes_that_look_the_same_are_two(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert volume_name(*one) != volume_name(*other)


@given(NAMES, st.text(max_size=400))
def test_a_volume_has_a_name_that_an_engine_takes(name: str, path: str) -> None:
    made = volume_name(name, "/" + path)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", made)
    assert made.startswith(name)
    assert len(made) <= 255


def test_a_long_path_makes_no_long_name() -> None:
    long = "/" + "a" * 4000
    assert len(volume_name("web", long)) < 255
    assert volume_name("web", long) != volume_name("web", long + "a")


def test_a_volume_can_be_read_by_a_person() -> None:
    assert volume_name("web", "/var/lib/data").startswith("web_var-lib-data_")


# ---- read_create


def test_a_create_without_wishes() -> None:
    assert read_create("web", {"Image": "busybox", "Env": ["A=1"]}) == wish(
        "web", env=("A=1",), networks=("default",)
    )


def test_all_that_a_create_can_ask_for() -> None:
    asked = read_create(
        "/web",
        {
            "Image": "busybox",
            "Env": ["ARPANET_LINK1=db:x", "A=1", "ARPANET_VOLUME1=/data", "ARPANET_VOLUME2=/taken"],
            "HostConfig": {
                "Links": ["cache:c"],
                "Binds": ["vol:/taken:ro", "/etc:/host", "vol:/again", "/anonymous"],
                "Mounts": [
                    {"Type": "volume", "Source": "other", "Target": "/other"},
                    {"Type": "bind", "Source": "/x", "Target": "/y"},
                    {"Type": "volume", "Target": "/new"},
                ],
                "VolumesFrom": ["a:ro", "b@h1"],
                "IpcMode": "container:c",
                "PidMode": "host",
                "NetworkMode": "container:d",
                "PortBindings": {"80/tcp": [{"HostPort": "8080"}]},
            },
            "NetworkingConfig": {"EndpointsConfig": {"net": {}}},
        },
    )
    assert asked == wish(
        "web",
        env=("A=1",),
        links=(LinkWish("db", "x"), LinkWish("cache", "c")),
        binds=(
            "vol:/taken:ro", "/etc:/host", "vol:/again", "/anonymous",
            f"{volume_name('web', '/data')}:/data",
        ),
        volumes=("vol", volume_name("web", "/data"), "other"),
        companions=("a", "b@h1", "d", "c"),
        bindings=("8080/tcp",),
        networks=("container:d", "net"),
    )  # fmt: skip


def test_the_users_own_mount_of_the_same_place_wins() -> None:
    body = {"Env": ["ARPANET_VOLUME1=/data/"], "HostConfig": {"Binds": ["mine:/data"]}}
    assert read_create("web", body).binds == ("mine:/data",)
    mounts = [{"Type": "tmpfs", "Target": "/data/"}]
    body = {"Env": ["ARPANET_VOLUME1=/data"], "HostConfig": {"Mounts": mounts}}
    assert read_create("web", body).binds == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["", "a:b", "/a", "80/tcp"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["HostPort", "HostIp", "Type", "Source", "Target", "80/tcp", "a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
HOST_FIELDS = (
    "Links", "Binds", "Mounts", "VolumesFrom", "IpcMode", "PidMode", "NetworkMode", "PortBindings",
    "ExtraHosts",
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "Image": JSON,
            "Env": JSON,
            "Labels": JSON,
            "HostConfig": JSON
            | st.fixed_dictionaries({}, optional=dict.fromkeys(HOST_FIELDS, JSON)),
        },
    )
)
def test_any_json_is_understood_or_refused(body: dict[str, Any]) -> None:
    try:
        asked = read_create("web", body)
        made = create_body(body, asked, [], [])
    except BadRequest as e:
        assert str(e)
    else:
        json.dumps(made)


# ---- links of a create


def test_the_target_of_a_link_must_be_there() -> None:
    db = container("db", "h2")
    asked = wish(links=(LinkWish("db@h2", "x"),))
    assert require_link_targets(view(db), asked) == [db]
    words = "could not get container for db@h2: No such container: db@h2"
    with pytest.raises(BadRequest, match=words):  # on a 404 the docker client would pull
        require_link_targets(view(), asked)


def test_no_links_on_the_hosts_network() -> None:
    asked = wish(links=(LinkWish("db", "x"),), networks=("host",))
    with pytest.raises(BadRequest, match="host type networking can't be used with links"):
        require_link_targets(view(container("db")), asked)


# ---- create_body

TARGET = LinkTarget(Link("db", "x", "198.18.0.1"), "0123456789ab", ("5432/tcp",), ("A=1",))


def test_what_the_engine_gets_for_a_link() -> None:
    asked = wish("web", env=("X_PORT=mine", "B=2"))
    made = create_body({"Image": "busybox", "Cmd": ["sh"]}, asked, [TARGET], [])
    assert made["Env"] == [
        "X_PORT_5432_TCP=tcp://198.18.0.1:5432",
        "X_PORT_5432_TCP_ADDR=198.18.0.1",
        "X_PORT_5432_TCP_PORT=5432",
        "X_PORT_5432_TCP_PROTO=tcp",
        "X_NAME=/web/x",
        "X_ENV_A=1",
        "X_PORT=mine",  # the user's alone: of two of a name most programs see the first
        "B=2",
    ]
    assert made["HostConfig"]["ExtraHosts"] == [
        "x:198.18.0.1", "0123456789ab:198.18.0.1", "db:198.18.0.1",
    ]  # fmt: skip
    assert json.loads(made["Labels"][LABEL_LINKS]) == [["db", "x", "198.18.0.1"]]
    assert made["HostConfig"]["Links"] is None
    assert made["Cmd"] == ["sh"]


def test_the_users_own_host_entry_wins() -> None:
    body = {"HostConfig": {"ExtraHosts": ["x:10.0.0.9", "y:10.0.0.8"]}}
    made = create_body(body, wish(), [TARGET], [])
    assert made["HostConfig"]["ExtraHosts"] == [
        "x:10.0.0.9", "y:10.0.0.8", "0123456789ab:198.18.0.1", "db:198.18.0.1",
    ]  # fmt: skip
    assert body["HostConfig"]["ExtraHosts"] == ["x:10.0.0.9", "y:10.0.0.8"]


def test_what_the_engine_gets_without_wishes_is_what_was_sent() -> None:
    body = {"Image": "busybox", "Labels": {"a": "b"}, "HostConfig": {"Memory": 5}}
    made = create_body(body, wish(), [], [])
    assert made["Labels"] == {"a": "b"}
    assert {k: v for k, v in made["HostConfig"].items() if v is not None} == {"Memory": 5}
    assert made["Env"] == []


def test_volumes_are_recorded() -> None:
    made = create_body({}, wish(binds=("v:/a", "w:/b"), volumes=("v", "w")), [], [])
    assert made["HostConfig"]["Binds"] == ["v:/a", "w:/b"]
    assert made["Labels"] == {LABEL_VOLUMES: "v,w"}


def test_references_to_containers_lose_their_host() -> None:
    config = {
        "NetworkMode": "container:a@h1", "IpcMode": "shareable", "PidMode": "container:b",
        "VolumesFrom": ["c@h1:ro", "d@h1", "e"],
    }  # fmt: skip
    made = create_body({"HostConfig": config}, wish(), [], [])["HostConfig"]
    assert (made["NetworkMode"], made["IpcMode"], made["PidMode"]) == (
        "container:a",
        "shareable",
        "container:b",
    )
    assert made["VolumesFrom"] == ["c:ro", "d", "e"]
