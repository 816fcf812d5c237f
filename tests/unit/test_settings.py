"""Settings: where a value comes from, and what a bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import arpanet
from arpanet import SETTINGS, Settings, Usage, choose_ip, docker_tls, read_env_file, read_settings


def read(flag: str | None = None, variable: str | None = None, line: str | None = None) -> Settings:
    """Return the settings with the port of the API given in up to three places."""
    return read_settings(
        {"api_port": flag},
        {} if variable is None else {"ARPANET_API_PORT": variable},
        {} if line is None else {"ARPANET_API_PORT": line},
        "box",
        "master",
    )


def test_a_flag_wins_over_the_environment_the_file_and_the_default() -> None:
    assert read("1", "2", "3").api_port == 1
    assert read(None, "2", "3").api_port == 2
    assert read(None, None, "3").api_port == 3
    assert read().api_port == 8791


def test_the_machines_name_is_the_default_hostname() -> None:
    assert read().hostname == "box"
    assert read_settings({}, {"HOSTNAME": "other"}, {}, "box", "master").hostname == "other"


def test_dockers_variables_of_tls_count_where_ours_say_nothing() -> None:
    def path(role: str, **environment: str) -> str:
        given = {**docker_tls(environment), **environment}
        return read_settings({}, given, {"ARPANET_CERT_PATH": "/etc"}, "box", role).cert_path

    assert docker_tls({"DOCKER_CERT_PATH": "/d"}) == {}  # as docker has it: not without VERIFY
    assert path("client", DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH="/d") == "/d"
    assert path("client", DOCKER_TLS_VERIFY="1", HOME="/home/u") == "/home/u/.docker"
    assert path("client", DOCKER_TLS_VERIFY="1", ARPANET_CERT_PATH="/a") == "/a"


def test_a_path_holds_wherever_the_daemon_goes() -> None:
    found = read_settings({"tlskey": "own/key.pem"}, {}, {}, "box", "master")
    assert found.tlskey == str(Path.cwd() / "own/key.pem")


def role_of(name: str) -> str:
    """Return a role that reads a setting."""
    return next(row for row in SETTINGS if row.name == name).roles.split()[0]


def test_what_a_role_does_not_read_may_be_anything() -> None:
    environment = {"DOCKER_HOST": "tcp://192.168.8.120:8791"}
    assert read_settings({}, environment, {}, "box", "client").docker_host == "/var/run/docker.sock"
    with pytest.raises(Usage):
        read_settings({}, environment, {}, "box", "slave")


BAD = {
    "hostname": ["a@b", "a b", "-a", "x" * 64],
    "ip": ["1.2.3", "h1", "::1"],
    "masters": ["1.2.3.4,h1"],
    "peers": ["boots", "boot,1.2.3.4"],
    "api_port": ["0", "65536", "-1", "x", "", "8791 "],
    "link_subnet": ["10.0.0.1/8", "10.0.0.0/25", "x"],
    "docker_host": ["tcp://1.2.3.4:2375", "docker.sock"],
    "auto_name": ["maybe"],
    "lease_s": ["0", "-1", "nan", "inf", "ten"],
    "log_level": ["loud"],
}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in BAD.items() for t in texts])
def test_a_bad_value_names_flag_variable_and_value(name: str, text: str) -> None:
    row = next(s for s in arpanet.SETTINGS if s.name == name)
    with pytest.raises(Usage) as caught:
        read_settings({name: text}, {}, {}, "box", role_of(name))
    for part in (row.flag, row.variable, repr(text)):
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


GOOD = [
    ("masters", "1.2.3.4, 1.2.3.5,", ("1.2.3.4", "1.2.3.5")),
    ("peers", "boot", ("boot",)),
    ("peers", "1.2.3.4", ("1.2.3.4",)),
    ("docker_host", "unix:///run/x.sock", "/run/x.sock"),
    ("auto_name", "Yes", True),
    ("auto_name", "off", False),
    ("lease_s", "2.5", 2.5),
    ("log_level", "debug", "DEBUG"),
    ("link_subnet", "10.9.0.0/16", "10.9.0.0/16"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_value_is_read(name: str, text: str, value: object) -> None:
    assert getattr(read_settings({name: text}, {}, {}, "box", role_of(name)), name) == value


@pytest.mark.parametrize(
    ("words", "text"), [([], None), (["--auto-name"], "1"), (["--auto-name", "0"], "0")]
)
def test_a_flag_of_yes_or_no_may_be_typed_bare(words: list[str], text: str | None) -> None:
    typed = arpanet.build_parser().parse_args(["master", "start", *words, "--api-port", "1"])
    assert (typed.set_auto_name, typed.set_api_port) == (text, "1")


def test_the_file_has_comments_quotes_and_exports(tmp_path: Path) -> None:
    path = tmp_path / "arpanet.env"
    path.write_text("# a remark\n\n A = 1 \nexport B='two = 2'\nC=\"3\"\nD=\n")
    assert read_env_file(str(path)) == {"A": "1", "B": "two = 2", "C": "3", "D": ""}


def test_there_need_not_be_a_file(tmp_path: Path) -> None:
    assert read_env_file(str(tmp_path / "none")) == {}


@pytest.mark.parametrize("content", [b"A=1\njust a word\n", b"A=\xff\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "arpanet.env"
    path.write_bytes(content)
    with pytest.raises(Usage, match=str(path)):
        read_env_file(str(path))


def test_a_bad_line_is_given_by_number(tmp_path: Path) -> None:
    path = tmp_path / "arpanet.env"
    path.write_text("A=1\njust a word\n")
    with pytest.raises(Usage, match="line 2.*'just a word'"):
        read_env_file(str(path))


LO, BRIDGES = {"lo": "127.0.0.1"}, {"docker0": "172.17.0.1", "br-0123456789ab": "172.18.0.1"}
ADDRESSES = [
    ("", {"eth0": "192.168.8.120"}, "192.168.8.120"),
    ("", {"eth0": "10.1.2.3", **LO, **BRIDGES, "virbr0": "192.168.122.1"}, "10.1.2.3"),
    ("", {"eth0": "10.1.2.3", "eth1": "8.8.4.4"}, "10.1.2.3"),
    ("10.1.2.4", {"eth0": "10.1.2.3", "eth1": "10.1.2.4"}, "10.1.2.4"),
    ("8.8.4.4", {"eth0": "10.1.2.3", "eth1": "8.8.4.4"}, "8.8.4.4"),
    ("127.0.0.1", {"eth0": "10.1.2.3"}, "127.0.0.1"),
]


@pytest.mark.parametrize(("wanted", "interfaces", "chosen"), ADDRESSES)
def test_an_address_is_chosen(wanted: str, interfaces: dict[str, str], chosen: str) -> None:
    assert choose_ip(wanted, interfaces) == chosen


REFUSED = [
    ("", {"eth0": "10.1.2.3", "eth1": "192.168.1.2"}, ["several", "10.1.2.3, 192.168.1.2"]),
    ("", {"eth0": "8.8.4.4"}, ["no private", "8.8.4.4", "ARPANET_IP=IP"]),
    ("", {**LO, **BRIDGES}, ["no private", "127.0.0.1 for one machine alone"]),
    ("203.0.113.9", {"eth0": "10.1.2.3"}, ["203.0.113.9", "it has: 10.1.2.3"]),
]


@pytest.mark.parametrize(("wanted", "interfaces", "told"), REFUSED)
def test_a_choice_that_cannot_be_made_lists_the_candidates(
    wanted: str, interfaces: dict[str, str], told: list[str]
) -> None:
    with pytest.raises(Usage) as caught:
        choose_ip(wanted, interfaces)
    for part in told:
        assert part in str(caught.value)
