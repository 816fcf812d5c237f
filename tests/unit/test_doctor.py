"""What doctor says of facts: a table of faults, and what is well."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from builders import container, host, id_of, view
from lab import SLOW

import arpanet
from arpanet import (
    Doubts,
    Facts,
    Finding,
    HostPort,
    MasterInfo,
    check_here,
    check_network,
    dial_all,
    find_clashes,
    list_doors,
    print_findings,
    read_settings,
    wants_colour,
)

ROW = {"ip": "10.0.0.1", "learner": False, "answers": True}
FACTS = {
    "version": arpanet.__version__, "shut": {}, "free_bytes": 10**10, "skew_s": 0.1,
    "state_dir": "/var/lib/arpanet", "link_subnet": "198.18.0.0/16", "engine": "", "route": "",
}  # fmt: skip


def faults(
    report: dict[str, Any] | None = None, **facts: dict[str, Any] | None
) -> list[tuple[str, str]]:
    """Return the faults, with their cures, of three members that are well but for what is given."""
    whole = {
        "masters": [{**ROW, "name": n} for n in ("h1", "h2", "h3")],
        "hosts": [{"name": "h1", "ip": "10.0.0.1", "alive": True}],
        "clashes": {},
        **(report or {}),
    }
    members: dict[str, Facts] = {"m1": FACTS, "m2": FACTS, "s1": FACTS}
    for who, changed in facts.items():
        members[who] = {**FACTS, **changed} if changed else {"error": "refused"}
    return [(f.text, f.cure) for f in check_network(whole, members) if not f.well]


def masters(*answers: bool) -> dict[str, Any]:
    """Return a report in which these masters answer or not."""
    return {"masters": [{**ROW, "name": f"h{n}", "answers": a} for n, a in enumerate(answers, 1)]}


FIREWALL = "look for a firewall between them"
NTP = "on it: timedatectl set-ntp true"
MASTER = "on it: arpanet master start"
TABLE: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({}, []),
    ({"report": masters(True, True, False)}, [("master h3 (10.0.0.1) is down", MASTER)]),
    (
        {"report": masters(True, False)},
        [
            (
                "1 of 2 masters answer: no majority, nothing can be changed",
                "start those that are down",
            ),
            ("master h2 (10.0.0.1) is down", MASTER),
        ],
    ),
    (
        {"report": {"hosts": [{"name": "h4", "ip": "10.0.0.4", "alive": False}]}},
        [("host h4 (10.0.0.4) is down", "on it: arpanet slave start")],
    ),
    (
        {"report": {"hosts": []}},
        [("there is no Docker host", "on each one: arpanet slave start")],
    ),
    ({"s1": None}, [("s1 does not answer: refused", FIREWALL)]),
    ({"m1": {"shut": {"X": "timed out"}}}, [("m1 does not reach X: timed out", FIREWALL)]),
    (
        {"s1": {"version": "9"}},
        [
            (
                f"the version of arpanet differs: {arpanet.__version__} on m1, m2, this command; "
                "9 on s1",
                "install the newest one on all",
            )
        ],
    ),
    (
        {"m2": {"link_subnet": "10.9.0.0/16"}},
        [
            (
                "the links' network differs: 10.9.0.0/16 on m2; 198.18.0.0/16 on m1, s1",
                "set ARPANET_LINK_SUBNET alike",
            )
        ],
    ),
    ({"s1": {"skew_s": -60.2}}, [("the clock of s1 is 60 s behind the others", NTP)]),
    (
        {"m1": {"skew_s": 99.9}, "m2": {"skew_s": 100.0}, "s1": {"skew_s": 140.0}},
        [("the clock of s1 is 40 s ahead of the others", NTP)],
    ),
    ({"m1": {"skew_s": 2.9}}, []),
    (
        {"m1": {"free_bytes": 42_000_000}},
        [("m1 has 42 MB free in /var/lib/arpanet", "make room")],
    ),
    ({"s1": {"engine": "no engine"}}, [("s1: no engine", "on it: systemctl start docker")]),
    (
        {"s1": {"route": "elsewhere"}},
        [("s1: elsewhere", "on it: arpanet slave stop; arpanet slave start")],
    ),
    (
        {"report": {"clashes": {"web": ["h1", "h2"]}}},
        [
            (
                "the name web is on h1, h2",
                "remove or rename one: docker rename web@h2 NEWNAME",
            )
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "told"), TABLE)
def test_each_fault_has_its_line_and_its_cure(
    given: dict[str, Any], told: list[tuple[str, str]]
) -> None:
    assert faults(**given) == told


def test_a_machine_is_judged_by_what_it_is_for() -> None:
    assert check_here(Doubts({}, (), ())) == [
        Finding(True, "on this machine no master and no slave is to run")
    ]
    assert check_here(Doubts({"master": 7}, (), ())) == [
        Finding(True, "on this machine the master runs as process 7")
    ]
    cure = "start it: systemctl start arpanet-slave, or: arpanet slave start"
    assert check_here(Doubts({"master": 7}, ("slave",), ("port 8792 is in use",))) == [
        Finding(False, "the slave of this machine does not run", cure),
        Finding(False, "port 8792 is in use"),
    ]


def test_a_name_on_two_hosts_is_a_clash() -> None:
    twins = [container("web", on, container_id=id_of(on)) for on in ("h2", "h1")]
    assert find_clashes(view(*twins, container("db", "h1"))) == {"web": ["h1", "h2"]}


def test_a_member_must_get_in_at_those_that_live() -> None:
    seen = arpanet.View(
        hosts={"h1": host("h1"), "h2": host("h2")},
        alive={"h1": ""},
        masters={"h2": MasterInfo("h2", "10.0.0.2", 8791, "")},
    )
    settings = read_settings({}, {}, {}, "box", "master")
    doors = {HostPort("10.0.0.2", 2379): "etcd of master h2", host("h1").agent: "the slave of h1"}
    assert list_doors(seen, settings, "slave") == doors
    assert list_doors(seen, settings, "master") == {
        **doors,
        HostPort("10.0.0.2", 2380): "etcd of master h2",
    }


def test_all_are_dialled_at_once_and_each_has_its_answer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as open_,
        socket.create_server(("127.0.0.1", 0)) as closed,
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
    ):
        addresses = [HostPort(*s.getsockname()) for s in (open_, closed, full)]
        closed.close()
        crowd = [socket.socket() for _ in range(4)]
        for sock in crowd:
            sock.setblocking(False)
            sock.connect_ex(addresses[2])
        answers = dial_all(addresses, timeout_s=0.5)
        for sock in crowd:
            sock.close()
    assert list(answers.values()) == ["", "Connection refused", "timed out"]


# ---- how it is shown

FOUND = [Finding(True, "all is well"), Finding(False, "one is not", "mend it")]


@pytest.mark.parametrize(("silent", "said"), [(0, ""), (1, ""), (2, "timed out")])
def test_an_engine_that_is_silent_once_is_busy_and_twice_is_hung(
    silent: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # who is silent is given up soon, and who is not may be slow
    monkeypatch.setattr(arpanet, "ENGINE_S", (1.0 if silent else 10.0) * SLOW)
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            for number in range(2):
                client, _ = listener.accept()
                with client:
                    asked = client.recv(4096)
                    if number >= silent:
                        assert asked.startswith(b"HEAD /_ping ")
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                        return
                    client.recv(1)  # until who asks gives up

        server = threading.Thread(target=serve)
        server.start()
        found = arpanet.ask_engine(path)
        server.join()
    assert said in found if said else not found


def test_a_line_each_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_findings(FOUND, as_json=False, colour=False) == 1
    assert capsys.readouterr().out == "✓ all is well\n✗ one is not; mend it\n"
    assert print_findings(FOUND[:1], as_json=False, colour=True) == 0
    assert capsys.readouterr().out == "\33[32m✓\33[0m all is well\n"


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_findings(FOUND, as_json=True, colour=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        "well": False,
        "findings": [
            {"well": True, "text": "all is well", "cure": ""},
            {"well": False, "text": "one is not", "cure": "mend it"},
        ],
    }


@pytest.mark.parametrize(
    ("terminal", "environment", "wanted"),
    [
        (True, {"TERM": "xterm"}, True),
        (False, {"TERM": "xterm"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
    ],
)
def test_colours_are_for_a_terminal_and_for_who_wants_them(
    terminal: bool, environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert wants_colour(environment) == wanted
