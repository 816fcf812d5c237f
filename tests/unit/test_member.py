"""What a master's etcd does next is decided by pure functions; here are their tables."""

from __future__ import annotations

import http.server
import os
import re
import socket
import sys
import threading
from pathlib import Path

import pytest

from arpanet import (
    Conflict,
    GatewayDown,
    GatewayRefused,
    Member,
    MemberState,
    Step,
    ask_gateway,
    clean_environment,
    decide_boot,
    decide_join,
    decide_leave,
    describe_troubles,
    find_alarms,
    find_backoff_s,
    find_last_words,
    find_listener,
    read_answer,
    read_state,
    require_free_port,
    write_state,
)


def member(number: int, name: str | None = None, learner: bool = False) -> Member:
    """Return member number; name "" is one that has not started yet."""
    name = f"h{number}" if name is None else name
    client = f"10.0.0.{number}:2379" if name else ""
    return Member(number, name, f"http://10.0.0.{number}:2380", client, learner)


KNOWN = MemberState(cluster=7, member=1, peers=("10.0.0.1:2379",))


@pytest.mark.parametrize(
    ("has_data", "state", "decision"),
    [
        (False, MemberState(), "new"),
        (True, MemberState(), "resume"),
        (True, KNOWN, "resume"),
        (False, KNOWN, "refuse"),
        (False, MemberState(cluster=7), "refuse"),
    ],
)
def test_a_second_cluster_is_never_booted(
    has_data: bool, state: MemberState, decision: str
) -> None:
    assert decide_boot(has_data, state) == decision


@pytest.mark.parametrize(
    ("members", "dead", "step"),
    [
        ([member(1), member(2)], [], Step("add")),
        ([member(1), member(9)], [], Step("remove", 9)),
        ([member(1), member(9, learner=True)], [], Step("remove", 9)),
        (
            [member(1), member(9, "", learner=True)],
            [],
            Step("start", 9, "member-1=http://10.0.0.1:2380,h9=http://10.0.0.9:2380"),
        ),
        (
            [member(1), member(2, ""), member(9, "", learner=True)],
            [2],
            Step(
                "start",
                9,
                "member-1=http://10.0.0.1:2380,member-2=http://10.0.0.2:2380,"
                "h9=http://10.0.0.9:2380",
            ),
        ),
        ([member(1), member(2, learner=True)], [], Step("add")),
        ([member(1), member(2, learner=True)], [2], Step("remove", 2)),
        ([member(1)], [5], Step("add")),
    ],
)
def test_a_machine_without_data_joins(members: list[Member], dead: list[int], step: Step) -> None:
    assert decide_join(members, "h9", "http://10.0.0.9:2380", dead) == step


@pytest.mark.parametrize(
    ("members", "answering", "leader", "step"),
    [
        ([2, 3], [1, 2, 3], 2, Step("gone")),
        ([1], [1], 1, Step("last")),
        ([1, 2, 3], [1, 2, 3], 1, Step("transfer", 2)),
        ([1, 2, 3], [1, 2, 3], 3, Step("remove-self", 2)),
        ([1, 2, 3], [1, 3], 3, Step("remove-dead", 2)),
        ([1, 2, 3], [1], 0, Step("remove-dead", 2)),
        ([1, 2], [1, 2], 2, Step("remove-self", 2)),
        ([1, 2, 3, 4], [1, 3, 4], 3, Step("remove-self", 3)),
        ([1, 2, 3, 4, 5], [1, 4, 5], 4, Step("remove-dead", 2)),
        # stopped: the others can do it alone, or not
        ([1, 2, 3], [2, 3], 1, Step("remove-self", 2)),
        ([1, 2], [2], 2, Step("start")),
        ([1, 2, 3], [3], 0, Step("start")),
        ([1, 2, 3, 4, 5], [3, 4, 5], 3, Step("remove-self", 3)),
        ([1], [], 0, Step("last")),
    ],
)
def test_a_leaving_master_leaves_a_majority(
    members: list[int], answering: list[int], leader: int, step: Step
) -> None:
    assert decide_leave([member(number) for number in members], 1, answering, leader) == step


def test_a_learner_does_not_count_as_a_rest() -> None:
    assert decide_leave([member(1), member(2, learner=True)], 1, [2], 1) == Step("last")


def test_the_backoff_grows_to_half_a_minute() -> None:
    assert [find_backoff_s(number) for number in (0, 1, 3, 6, 99)] == [0.5, 1, 4, 30, 30]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it logged nothing"),
        ("panic: tocommit(9)\n\ngoroutine 1\n", "panic: tocommit(9)"),
        ("Usage:\n  etcd\n", "Usage: / etcd"),
        ('{"level":"warn","msg":"slow"}\n', '{"level":"warn","msg":"slow"}'),
        (
            '{"level":"fatal","msg":"discovery failed","error":"member count is unequal"}\n'
            '{"level":"warn","msg":"later"}\nmain.main()\n',
            "discovery failed: member count is unequal",
        ),
    ],
)
def test_the_reason_is_found_in_etcds_log(text: str, words: str) -> None:
    assert find_last_words(text) == words


def test_nothing_of_python_or_systemd_reaches_etcd() -> None:
    dirty = {"PATH": "/bin", "ETCD_NAME": "x", "PEX_ROOT": "x", "NOTIFY_SOCKET": "x"}
    assert clean_environment(dirty, "x86_64") == {"PATH": "/bin"}
    assert clean_environment({}, "aarch64") == {"ETCD_UNSUPPORTED_ARCH": "arm64"}


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is of a little-endian machine")
def test_a_listener_is_found_by_address_and_port() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout\n"
        "   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n"
        "   1: 00000000:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4712 1\n"
        "   2: 0A00000A:094D 0A00000B:0050 01 00000000:00000000 00:00000000 00000000 0 0 4713 1\n"
    )
    assert find_listener(table, "127.0.0.1", 2379) == 4711
    assert find_listener(table, "10.0.0.10", 2379) is None
    assert find_listener(table, "10.0.0.10", 2380) == 4712
    assert find_listener(table, "10.0.0.10", 2381) is None


def test_a_port_in_use_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            Conflict, match=rf"port {port} on 127.0.0.1 is in use by .*{os.getpid()}"
        ):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_the_state_file_is_read_back_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "master.json"
    assert read_state(path) == MemberState()
    write_state(path, KNOWN)
    assert read_state(path) == KNOWN
    path.write_text('{"cluster": 7')
    with pytest.raises(Conflict, match=r"master.json is damaged"):
        read_state(path)


def test_an_answer_of_something_else_is_not_taken_for_etcds() -> None:
    assert read_answer("h:1", 200, b'{"a": 1}') == {"a": 1}
    with pytest.raises(GatewayRefused, match="^unhealthy cluster$"):
        read_answer("h:1", 503, b'{"message": "etcdserver: unhealthy cluster"}')
    for text in (b"<html>", b"[]", b"\xff"):
        with pytest.raises(GatewayDown, match="h:1: answers, but not as etcd does"):
            read_answer("h:1", 200, text)


def test_a_web_server_is_not_an_etcd() -> None:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(GatewayDown, match="answers, but not as etcd does"):
                etcd = f"127.0.0.1:{server.server_address[1]}"
                ask_gateway(etcd, "cluster/member/list", timeout_s=30)
        finally:
            server.shutdown()
            thread.join()


def test_only_the_own_alarms_of_a_master_are_found() -> None:
    errors = ["memberID:7 alarm:NOSPACE ", "memberID:71 alarm:CORRUPT ", "etcdserver: no leader"]
    assert find_alarms({"errors": errors}, 7) == ("NOSPACE",)
    assert find_alarms({"errors": errors}, 1) == ()
    assert find_alarms({}, 7) == ()


WELL = {"name": "h1", "alive": True, "trouble": ""}


def report(**changes: object) -> dict[str, object]:
    """Return what two masters and a host that are well say, with changes to the second master."""
    well = {"name": "h1", "ip": "10.0.0.1", "leader": True, "answers": True, "etcd": "3.4"}
    other = {**well, "name": "h2", "ip": "10.0.0.2", "leader": False, **changes}
    masters = [{"alarms": [], **row} for row in (well, other)]
    return {"masters": masters, "hosts": [WELL], "strangers": [], "conflicts": []}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (report(), []),
        (report(answers=False, etcd=""), ["no answer from h2; there: .*master remove h2"]),
        (report(answers=False), ["not a master at the moment: h2"]),
        (report(alarms=["NOSPACE"]), ["etcd on h2 is full.*--etcd-quota-mb"]),
        (report(alarms=["CORRUPT"]), ["etcd on h2 says CORRUPT; there: arpanet master leave"]),
        (
            {**report(), "hosts": [{**WELL, "trouble": "no engine"}]},
            ["on h1 no engine; there: sys"],
        ),
        ({**report(), "conflicts": ["web is there twice"]}, ["web is there twice"]),
        ({**report(), "strangers": ["10.0.0.3"]}, ["10.0.0.3 is of another arpanet"]),
        (
            {**report(), "hosts": [{"name": "h1", "alive": False, "trouble": "the host is down"}]},
            ["down: h1; there: arpanet slave start; .*slave leave --host h1"],
        ),
    ],
)
def test_status_says_what_to_do_where_something_is_not_well(
    found: dict[str, object], words: list[str]
) -> None:
    said = list(describe_troubles(found))
    assert len(said) == len(words)
    for sentence, pattern in zip(said, words, strict=True):
        assert re.search(pattern, sentence), sentence
