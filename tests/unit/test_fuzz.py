"""Whatever comes from the network, no other exception than ours escapes what reads it."""

from __future__ import annotations

import contextlib
import functools
import io
import ipaddress
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from builders import container, host, view
from hypothesis import example, given
from hypothesis import strategies as st

import arpanet
from arpanet import (
    ArpanetError,
    BadRequest,
    Body,
    Change,
    Frame,
    GrpcCaller,
    HeadTooLarge,
    Listing,
    MeshDown,
    View,
    apply_changes,
    pack_frame,
    parse_filters,
    parse_head,
    read_create,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
CODES = st.text(st.characters(codec="latin-1"), max_size=30)
WORDS = st.sampled_from(
    ["GET", "POST", "/_ping", "/v1.41/containers/json?all=1", "http://h/", "HTTP/1.1", "HTTP/1.0",
     "HTTP/2", "Host: x", "Content-Length: 5", "Content-Length: -1", "Transfer-Encoding: chunked",
     "Expect: 100-continue", "Connection: close", " folded", "Name : x", ":", "\x00", "\xff"]
)  # fmt: skip
SEPARATORS = st.sampled_from([" ", "\r\n", "\n", "\r", "\t", ""])


def bytes_like(words: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Return bytes made of such words, right ones and wrong ones, between separators."""
    rows = st.lists(st.tuples(words | CODES, SEPARATORS), max_size=12)
    return rows.map(lambda made: "".join(map("".join, made)).encode("latin-1"))


# ---- HTTP


@given(bytes_like(WORDS) | st.binary(max_size=200))
def test_a_head(text: bytes) -> None:
    with contextlib.suppress(BadRequest):
        head = parse_head(text)
        for part in (head.method, head.target, *(x for row in head.headers.items() for x in row)):
            assert not set(part) & set("\r\n\0")
        with contextlib.suppress(BadRequest):
            Body(io.BufferedReader(io.BytesIO(text)), head.headers).read()


@given(st.integers(0, 300))
def test_a_head_of_many_lines(count: int) -> None:
    text = b"GET / HTTP/1.1" + b"\r\nA: b" * count
    if count <= arpanet.HEAD_LINES:
        assert len(parse_head(text).headers.items()) == count
    else:
        with pytest.raises(HeadTooLarge):
            parse_head(text)


@pytest.mark.parametrize(
    "text",
    [b"GET / HTTP/1.1\r\nA: b\r\n c", b"GET / HTTP/1.1\r\nA : b", b"GET / HTTP/1.1\r\n: b",
     b"GET  / HTTP/1.1", b"GET / HTTP/1.2", b"GET /", b"", b"GET / HTTP/1.1\r\nA: b\rC: d"],
)  # fmt: skip
def test_a_head_that_can_be_read_in_two_ways_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(text)


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_what_a_client_sends_in_parts(parts: list[bytes]) -> None:
    near, far = socket.socketpair()
    with near, far:
        guest = arpanet.Guest(near, "", lambda _: None)
        came = b""
        while parts and not guest.ready:
            came += parts[0]
            guest.add(parts.pop(0))
        whole = came.lstrip(b"\r\n")
        end = arpanet.HEAD_END.search(whole)
        assert guest.ready == bool(end)
        if end:
            guest.take_head()
            assert guest.take_rest() == whole[end.end() :]


CHUNK_PARTS = st.sampled_from(["5", "0", "a;x=y", "hello", "\r\n", "\n", "-1", "fffffffffffffff"])


@given(bytes_like(CHUNK_PARTS) | st.binary(max_size=100))
def test_a_chunked_body(text: bytes) -> None:
    headers = arpanet.Headers([("Transfer-Encoding", "chunked")])
    plain, framed = io.BufferedReader(io.BytesIO(text)), io.BufferedReader(io.BytesIO(text), 7)
    try:
        assert len(Body(plain, headers).read()) <= len(text)
    except BadRequest:
        with pytest.raises(BadRequest):
            list(Body(framed, headers).frames())
    else:  # it is the same body that an engine gets with its framing
        passed = b"".join(Body(framed, headers).frames())
        assert text == passed + plain.read()


def test_trailers_end() -> None:
    text = b"0\r\n" + b"A: b\r\n" * (arpanet.HEAD_LINES + 1) + b"\r\n"
    with pytest.raises(BadRequest, match="lines of trailers"):
        Body(io.BytesIO(text), arpanet.Headers([("Transfer-Encoding", "chunked")])).read()


# ---- gRPC


class Answering:
    """A socket of somebody who says a text, in parts of one size."""

    def __init__(self, text: bytes, size: int) -> None:
        self._said, self._size, self.sent = io.BytesIO(text), size, b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, _size: int) -> bytes:
        return self._said.read(self._size)


def call(text: bytes, size: int = 100) -> tuple[bytes, bytes]:
    """Return the message of an answer, and what is said with the next call."""
    there = Answering(text, size)
    caller = GrpcCaller(there, b"/x", b"question")  # type: ignore[arg-type]
    message = caller.call()
    there.sent = b""
    with pytest.raises(OSError, match="ended"):
        caller.call()
    return message, there.sent


FRAMES = st.builds(
    pack_frame, st.integers(0, 9), st.sampled_from([0, 1, 4, 5]), st.sampled_from([0, 1, 3]),
    st.binary(max_size=20),
)  # fmt: skip


@given(st.lists(FRAMES).map(b"".join) | st.binary(max_size=100), st.integers(1, 40))
def test_frames_of_http_2(text: bytes, size: int) -> None:
    with contextlib.suppress(OSError):
        message, _ = call(text, size)
        assert len(message) < len(text)


@given(st.binary(max_size=20), st.integers(1, 60))
def test_an_answer_of_grpc_is_read_whatever_comes_between(message: bytes, size: int) -> None:
    head, trailers = pack_frame(Frame.HEADERS, 4, 1, b"head"), pack_frame(1, 5, 1, b"trailers")
    body = b"\0" + len(message).to_bytes(4, "big") + message
    others = pack_frame(Frame.SETTINGS, 0, 0, b"sixsix") + pack_frame(Frame.PING, 0, 0, b"8 of it.")
    others += pack_frame(Frame.PING, Frame.ACK, 0, bytes(8))
    parts = [others, head, pack_frame(Frame.DATA, 0, 1, body[:7]), others]
    answer = b"".join([*parts, pack_frame(Frame.DATA, 0, 1, body[7:]), trailers])
    told, said = call(answer, size)
    assert told == message
    echoes = pack_frame(Frame.SETTINGS, 1, 0, b"") + pack_frame(Frame.PING, 1, 0, b"8 of it.")
    assert said.startswith(echoes * 2)


def test_who_pings_for_ever_is_given_up() -> None:
    with pytest.raises(OSError, match="does not end"):
        call(pack_frame(Frame.PING, 0, 0, bytes(8)) * (arpanet.ANSWER_FRAMES + 1))


# ---- the API: paths, queries, filters


class NoMesh:
    """A mesh without quorum: handlers get as far as they can without one."""

    mark = ""
    endpoints = ()

    def read_revision(self, _timeout_s: float | None = None) -> int:
        raise MeshDown("no quorum")


def answer(method: str, target: str, text: bytes = b"") -> arpanet.Reply:
    """Return the answer to a request, over a view of two containers on hosts that are down."""
    settings = arpanet.read_settings({}, {}, {}, "h1", "master")
    node = arpanet.Node(settings, NoMesh(), threading.Event())  # type: ignore[arg-type]
    node.view = view(container("web"), container("db", "h2"), down=["h1", "h2", "h3"])
    body = Body(io.BytesIO(text), arpanet.Headers([("Content-Length", str(len(text)))]))
    path, _, query = target.partition("?")
    none = arpanet.Headers(())
    return arpanet.answer(arpanet.Call(node, method, "", path, query, none, body, lambda _: None))


PATHS = st.sampled_from([row for row in arpanet.ROUTES if row.handler is not arpanet.get_status])
QUERIES = st.dictionaries(
    st.sampled_from(["all", "limit", "size", "name", "filters", "since", "force", "fromImage"])
    | st.text(max_size=5),
    st.text(max_size=10) | JSON_VALUES.map(json.dumps),
    max_size=3,
)


@given(PATHS, st.text(min_size=1, max_size=10), QUERIES, st.binary(max_size=30))
def test_any_route_answers_without_an_internal_error(
    row: arpanet.Route, word: str, query: dict[str, str], text: bytes
) -> None:
    path = re.sub(r"\{\w+[+*]?\}", urllib.parse.quote(word, safe="", errors="replace"), row.path)
    asked = urllib.parse.urlencode(query, errors="replace")
    for verb in row.verbs.split("|"):
        assert answer(verb, f"{path}?{asked}", text).status != 500


FILTER_VALUES = st.text(max_size=8) | st.sampled_from(
    ["running", "80/tcp", "1-2", "²", "(", "a=b", "web", "0", "99999999999999999999", "\ud800"]
)


@given(st.dictionaries(st.sampled_from([*arpanet.FILTERS, "before", "since", "x"]),
                       st.lists(FILTER_VALUES, max_size=2), max_size=3))  # fmt: skip
def test_filters(filters: dict[str, list[str]]) -> None:
    with contextlib.suppress(ArpanetError):
        parsed = parse_filters(json.dumps(filters))
        arpanet.list_containers(view(container("web"), container("db")), Listing(True, 0, parsed))


@given(st.text(max_size=60) | JSON_VALUES.map(json.dumps))
def test_filters_that_are_something_else(text: str) -> None:
    with contextlib.suppress(BadRequest):
        parse_filters(text)


# ---- create: names, env, volumes, links


ENV = st.builds("{}={}".format, st.sampled_from(
    ["A", "ARPANET_LINK1", "ARPANET_LINK", "ARPANET_VOLUME1", "ARPANET_VOLUME²", "ARPANET_X", ""]
), st.sampled_from(["web", "web:db", "/web:x@y", ":", "/data", "/a:/b:ro", "v:/x", ""])
| st.text(max_size=10)) | st.text(max_size=10)  # fmt: skip


@given(st.text(max_size=10), st.lists(ENV, max_size=4))
def test_names_and_env(name: str, env: list[str]) -> None:
    for wanted in (name, "fine"):
        with contextlib.suppress(ArpanetError):
            wish = read_create(wanted, {"Env": env})
            arpanet.require_link_targets(view(container("web")), wish)
            arpanet.place(view(container("web")), wish, {})


HOST_CONFIG = st.dictionaries(
    st.sampled_from(["Binds", "Links", "PortBindings", "Mounts", "NetworkMode", "VolumesFrom",
                     "IpcMode", "PidMode", "Memory", "NanoCpus"]), JSON_VALUES, max_size=3,
)  # fmt: skip


@given(
    HOST_CONFIG | JSON_VALUES,
    st.dictionaries(
        st.sampled_from(["Image", "Env", "Labels", "ExposedPorts", "NetworkingConfig"]), JSON_VALUES
    ),
)
def test_a_create_of_any_json(host_config: Any, body: dict[str, Any]) -> None:
    with contextlib.suppress(ArpanetError):
        wish = read_create("fine", {**body, "HostConfig": host_config})
        arpanet.place(view(container("web")), wish, arpanet.pins_of(view(), wish))


@given(st.binary(max_size=60) | JSON_VALUES.map(lambda v: json.dumps(v).encode()))
def test_a_body(text: bytes) -> None:
    with contextlib.suppress(BadRequest):
        arpanet.load_object(text, "the body")


# ---- what somebody else wrote into etcd


def good_row(table: str) -> Any:
    """Return what stands in a table, as arpanet writes it."""
    summary = {"Id": "1" * 64, "Labels": {"a": "b"}, "Ports": [{"PublicPort": 80}],
               "Mounts": [{"Name": "v"}], "Image": "busybox", "ImageID": "sha256:12",
               "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "10.9.9.9"}}}}  # fmt: skip
    state = {"Status": "running", "Running": True, "StartedAt": "2020-01-01T00:00:00Z"}
    rows: dict[str, Any] = {
        "hosts": {**host()._asdict(), "ip": "10.0.0.1"},
        "orders": {"state": "drained", "labels": {"zone": "a", "disk": None}},
        "alive": {"machine": "m"}, "masters": {"ip": "10.0.0.1", "api_port": 1, "version": "1"},
        "containers": {"summary": summary, "name": "web", "state": state, "expose": ["80/tcp"],
                       "bindings": ["80/tcp"], "created": "2020", "aliases": {"net": ["web"]},
                       "calls": {"net": ["db:x"]}, "memory_bytes": 1, "nano_cpus": 1},
        **dict.fromkeys(("names", "moves"), {"host": "h1", "id": "1" * 64, "memory_bytes": 1,
                                             "bindings": ["80/tcp"]}),
        "recipes": {"host": "h1", "query": "", "body": {}},
        "chores": {"name": "web", "token": "t", "verb": "remove", "volumes": ["data"]},
        "images": {"id": "sha256:1", "token": "t"}, "volumes": {"host": "h1"},
        "networks": {"create": {"Name": "net"}}, "vips": {"ip": "198.18.0.1"},
        "addresses": {"name": "web"},
        "ended": {"code": 0, "output": None, "details": {}},
    }  # fmt: skip
    return rows[table]


@st.composite
def spoilt_rows(draw: st.DrawFn) -> tuple[str, Any]:
    """Return a table and a row of it, of which one part may be something else."""
    table = draw(st.sampled_from(sorted(arpanet.SHAPES)))
    row = json.loads(json.dumps(good_row(table)))
    place: Any = row
    while isinstance(place, (dict, list)) and place:
        at = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[at], (dict, list)) or draw(st.booleans()):
            if draw(st.booleans()):
                place[at] = draw(JSON_VALUES)
            elif draw(st.booleans()):
                del place[at]
            break
        place = place[at]
    return table, row


def use(found: View) -> None:
    """Do with a view what masters and slaves do."""
    now = arpanet.utc_now()
    for c in found.newest_first:
        json.loads(arpanet.list_entry(found, c, now))
        for name in arpanet.FILTERS:
            with contextlib.suppress(ArpanetError):
                arpanet.list_containers(found, Listing(True, 0, {name: ("1",)}))
        arpanet.find_address(found, c)
        arpanet.find_route(found, c.host, c.name, 80)
    assert found.api
    for member in found.members:
        ipaddress.ip_address(member)
    env = ["ARPANET_LINK1=web", "ARPANET_CONSTRAINT1=zone==a", "ARPANET_AFFINITY1=a==b"]
    with contextlib.suppress(ArpanetError):
        arpanet.place(found, read_create("new", {"Env": env}), {})
    for name in found.hosts:
        arpanet.decide_names(found, name)
        assert len(arpanet.decide_chores(found, name)) <= len(found.chores)
        assert len(arpanet.decide_rescues(found, name)) <= len(found.recipes)
    arpanet.mean_images(found, "x", {"h1": "sha256:1"})


def test_what_is_written_right_is_taken() -> None:
    keys = {table: f"{arpanet.PREFIX}{table}/x" for table in arpanet.SHAPES}
    keys["containers"] += "/1"
    keys["chores"] += "/" + "1" * 16
    keys["images"] = arpanet.key_of("images", "10.0.0.1:5000/team/web:1")
    changes = [Change(k, json.dumps(good_row(t)).encode()) for t, k in keys.items()]
    found = apply_changes(View(), 1, changes)
    assert all(len(getattr(found, table)) == 1 for table in arpanet.SHAPES)
    use(found)


@given(
    st.lists(spoilt_rows(), max_size=4), st.sampled_from(["x/1", "x", "/", "", "h1/" + "1" * 16])
)
def test_rows_of_somebody_else(rows: list[tuple[str, Any]], name: str) -> None:
    changes = [
        Change(f"{arpanet.PREFIX}{table}/{name}", json.dumps(row).encode()) for table, row in rows
    ]
    use(apply_changes(view(container("web")), 8, changes))


@given(st.text(max_size=20), st.binary(max_size=30))
def test_keys_and_values_of_somebody_else(key: str, value: bytes) -> None:
    for table in arpanet.SHAPES:
        use(apply_changes(View(), 1, [Change(f"{arpanet.PREFIX}{table}/{key}", value)]))
    use(apply_changes(View(), 1, [Change(key, value)]))


@given(st.binary(max_size=30) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_who_holds_a_row_of_somebody_else(text: bytes) -> None:
    assert not arpanet.same_machine(b'{"machine": "m"}', text)
    assert isinstance(arpanet.read_value(text), dict)


def test_a_value_that_is_nested_too_deep_is_left_out() -> None:
    key = arpanet.key_of("names", "web")
    assert apply_changes(View(), 1, [Change(key, b"[" * 100_000)]).names == {}


LINK_ROWS = st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), min_size=1, max_size=2)


@given((JSON_VALUES | LINK_ROWS).map(json.dumps) | st.text(max_size=30))
def test_labels(text: str) -> None:
    for link in arpanet.read_links_label({arpanet.LABEL_LINKS: text}):
        assert not link.vip or ipaddress.IPv4Address(link.vip)


# ---- DNS, CONNECT


@given(st.binary(max_size=100))
def test_a_question(packet: bytes) -> None:
    for start in (b"", b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"):
        asked = arpanet.read_question(start + packet)
        if asked:
            assert arpanet.name_reply(asked, ["198.18.0.1"])
            arpanet.find_container(view(container("web")), asked.name)


@given(st.text(max_size=30) | st.sampled_from(["engine", "web:80", "web:²", "web:99999", ":80"]))
def test_what_an_agent_is_asked_for(what: str) -> None:
    find = functools.partial(arpanet.find_route, view(container("web")), "h1")
    with contextlib.suppress(ArpanetError):
        address = arpanet.find_target(find, "h1", "/docker.sock", what)
        assert isinstance(address, str) or 0 < address[1] < 65536


# ---- what a master answers

PLACE = arpanet.HostPort("127.0.0.7", 28791)
READY = {"quorum": True, "masters": ["10.0.0.1"], "arpanet": "a"}
SPOILT = st.tuples(st.sampled_from(sorted(READY)), JSON_VALUES | st.lists(st.text(max_size=8)))
REPORTS = SPOILT.map(lambda spoilt: json.dumps(READY | dict([spoilt])).encode())
ANSWERED = b"HTTP/1.1 200 OK\r\n\r\n"
HEADS = st.sampled_from(
    [ANSWERED, b"HTTP/1.1 503 No\r\n\r\n", b"HTTP/1.1 200 OK\r\n"
     b"Transfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]
)  # fmt: skip


@pytest.fixture(scope="module")
def says() -> Iterator[list[bytes]]:
    """Yield what a master at PLACE says to whoever asks."""
    words: list[bytes] = []
    with socket.create_server(PLACE) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the end of the tests
                while True:
                    sock = listener.accept()[0]
                    with sock, contextlib.suppress(OSError):
                        sock.recv(4096)
                        sock.sendall(words[-1])

        arpanet.spawn("serve", serve)
        yield words
        listener.shutdown(socket.SHUT_RDWR)


@given(
    st.binary(max_size=60)
    | st.tuples(HEADS, REPORTS | st.binary()).map(b"".join)
    | REPORTS.map(lambda report: ANSWERED + report)
)
@example(ANSWERED + json.dumps(READY).encode())
@example(ANSWERED + b"[" * 100_000)
def test_what_a_master_answers(says: list[bytes], answer: bytes) -> None:
    says.append(answer)
    with contextlib.suppress(OSError, ArpanetError):
        report = arpanet.ask_ready(PLACE, 5.0)
        assert isinstance(report["quorum"], bool)
        assert all(map(ipaddress.IPv4Address, report["masters"]))


REPORT = {
    "arpanet": "a1", "conflicts": ["two of one name"],
    "masters": [{"name": "h1", "ip": "10.0.0.1", "id": "1f", "version": "0.1.0", "etcd": "3.5",
                 "leader": True, "learner": False, "answers": True, "alarms": [], "size_bytes": 9}],
    "hosts": [{"name": "h1", "ip": "10.0.0.1", "trouble": "", "version": "0.1.0", "engine": "28",
               "containers": 1, "running": 1, "alive": True}],
}  # fmt: skip
FACTS = {
    "version": "0.1.0", "shut": {"etcd": "timed out"}, "free_bytes": 1, "state_dir": "/x",
    "link_subnet": "198.18.0.0/16", "trust": "a1", "certificate": "", "clock_s": 1.5,
}  # fmt: skip
SLAVE = {
    "host": "h1", "ip": "10.0.0.1", "trouble": "", "containers": 1, "running": 1,
    "registered": True, "masters": ["10.0.0.1"], "engine": {"version": "28"},
    "links": {"198.18.0.1:80": {"target": "web:80", "open": 1, "connections": 2, "failed": 0,
                                "bytes_to_target": 1, "bytes_from_target": 1}},
}  # fmt: skip
ANSWERS = {
    "/arpanet/status": REPORT,
    "/arpanet/doctor": {**REPORT, **FACTS, "clashes": {"web": ["h1", "h2"]}},
    "/arpanet/doctor/hosts": {"h1": {**FACTS, "engine": "", "route": "", "skew_s": 0.5}},
    "/status": SLAVE,
}


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Return JSON with something else in one place, or with nothing there."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(JSON_VALUES)
    if isinstance(value, list):
        return [draw(changed(value[0])), *value[1:]]
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 5)) == 0:
        return {k: v for k, v in value.items() if k != key}
    return {**value, key: draw(changed(value[key]))}


@given(st.fixed_dictionaries({path: st.just(a) | changed(a) for path, a in ANSWERS.items()}))
@example(ANSWERS)
def test_what_masters_and_slaves_tell_of_themselves(answers: dict[str, Any]) -> None:
    settings = arpanet.read_settings({}, {}, {}, "h1", "master")

    def answer_json(_address: object, _method: str, path: str, *_: float, **__: str) -> Any:
        return answers[path]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(arpanet, "http_json", answer_json)
        patch.setattr(arpanet, "lock_holder", lambda _path: 1)
        patch.setattr(arpanet, "find_master", lambda *_, **__: PLACE)
        patch.setattr(arpanet, "met_masters", lambda _settings: ["10.0.0.1", "10.0.0.9"])
        patch.setattr(arpanet, "known_masters", lambda _settings: ["10.0.0.1"])
        for show in (arpanet.show_master, arpanet.show_slave):
            with contextlib.suppress(ArpanetError):
                assert show(settings, False) in (0, 1)
        masters = arpanet.ask_master_facts(settings)
        reports = {who: facts for who, facts in masters.items() if "masters" in facts}
        slaves = arpanet.ask_slaves(settings, reports, True)
        for report in reports.values():
            arpanet.check_network(report, {**masters, **slaves})


# ---- settings


@given(st.sampled_from(arpanet.SETTINGS), st.text(max_size=20) | st.integers().map(str))
def test_a_setting(row: arpanet.Setting, text: str) -> None:
    with contextlib.suppress(arpanet.Usage):
        settings = arpanet.read_settings({row.name: text}, {}, {}, "h1", row.roles.split()[0])
        assert arpanet.decide_limits(settings, 1024).requests > 0
