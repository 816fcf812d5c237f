"""Whatever a client sends, the answer has Docker's form, and the next request is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import (
    Answer,
    Ask,
    ask,
    ask_all,
    engine_json,
    engine_names,
    remove_containers,
    send_raw,
)
from conftest import docker, output, scan_logs
from lab import Lab, ask_engine

PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def clean(net: Lab) -> Iterator[None]:
    """After each test the master still answers, and has not fallen over."""
    before = scan_logs(net["h1"].logs.parent)
    yield
    remove_containers(net)
    assert ask(net, "GET", "/_ping").text == "OK"
    assert scan_logs(net["h1"].logs.parent) == before


def request(verb: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """Return a request with a body of known length, on a connection that stays."""
    lines = [f"{verb} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def statuses(text: str) -> list[int]:
    """Return the status of each answer on a connection."""
    return [int(code) for code in re.findall(r"HTTP/1\.1 (\d{3}) ", text)]


CREATE = "/containers/create?name=c1"
GOOD = json.dumps({"Image": "busybox", "Cmd": ["true"]})


# ---- what no body of a request may do


@pytest.mark.parametrize(
    "body", ['{"Image":', "[]", '"x"', "null", "{}{}", "\x00\x01", "{'a': 1}", "[" * 5000]
)
def test_malformed_json_is_400(net: Lab, body: str) -> None:
    answer = ask(net, "POST", CREATE, body)
    assert answer.status == 400
    assert answer.message
    assert engine_names(net) == []


@pytest.mark.parametrize(
    "body",
    [
        '{"Image": 5}', '{"Image": "busybox", "Env": "A=1"}', '{"Image": "busybox", "Env": [5]}',
        '{"Image": "busybox", "HostConfig": []}',
        '{"Image": "busybox", "HostConfig": {"Binds": {"a": 1}}}',
        '{"Image": "busybox", "HostConfig": {"Links": "x"}}',
        '{"Image": "busybox", "HostConfig": {"PortBindings": []}}',
        '{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": 5}}}',
        '{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": [5]}}}',
        '{"Image": "busybox", "HostConfig": {"PortBindings": {"x": [{"HostPort": "y"}]}}}',
        '{"Image": "busybox", "HostConfig": {"Mounts": {"a": 1}}}',
        '{"Image": "busybox", "HostConfig": {"Mounts": [{"Type": "volume", "Source": 5}]}}',
        '{"Image": "busybox", "HostConfig": {"NetworkMode": 5}}',
        '{"Image": "busybox", "HostConfig": {"Memory": "much"}}',
        '{"Image": "busybox", "Labels": ["a"]}', '{"Image": "busybox", "ExposedPorts": []}',
        '{"Image": "busybox", "HostConfig": {"Binds": ["\\ud800:/x"]}}', '{"Image": "\\ud800"}',
        '{"Image": ""}', "{}",
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused_by_arpanet_or_by_the_engine(
    net: Lab, body: str
) -> None:
    answer = ask(net, "POST", CREATE, body)
    engines = answer.status == 500 and answer.message.startswith("json: cannot unmarshal ")
    assert answer.status in (400, 404) or engines, answer.text
    assert answer.message
    assert engine_names(net) == []


def test_a_body_that_is_cut_short_creates_nothing(net: Lab) -> None:
    whole = request("POST", CREATE, GOOD.encode())
    for cut in (1, 10, len(GOOD)):
        text = send_raw(net, whole[:-cut], half_close=True)
        assert statuses(text) in ([], [400]), text
    chunk = f"{len(GOOD):x}\r\n{GOOD}\r\n".encode()
    head = b"POST " + CREATE.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: application/json\r\n\r\n"
    for part in (chunk[:-5], chunk, b"zz\r\n", b"-5\r\nx\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n"):
        text = send_raw(net, head, part, half_close=True)
        assert statuses(text) in ([], [400]), text
    assert engine_names(net) == []


def test_length_and_chunks_together_are_refused_or_read_as_chunks(net: Lab) -> None:
    chunked = f"{len(GOOD):x}\r\n{GOOD}\r\n0\r\n\r\n"
    head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    text = send_raw(net, f"{head}{chunked}".encode(), LAST)
    assert statuses(text) in ([400], [201, 200]), text


@pytest.mark.parametrize(
    "header",
    [
        "Content-Length: x", "Content-Length: -1", "Content-Length: 1e3", "Content-Length: \xb2",
        "Content-Length: +5",
        "Content-Length: 5\r\nContent-Length: 6", "Transfer-Encoding: gzip",
    ],
)  # fmt: skip
def test_a_length_that_is_none_is_400_and_ends_the_connection(net: Lab, header: str) -> None:
    raw = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n12345".encode("latin-1")
    text = send_raw(net, raw, LAST)
    assert statuses(text) in ([400], [501]), text
    assert '{"message":' in text


def test_a_chunked_create_is_as_good_as_one_of_known_length(net: Lab) -> None:
    head = f"POST {CREATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    chunks = "".join(f"{len(c):x};ext=1\r\n{c}\r\n" for c in (GOOD[:7], GOOD[7:]))
    text = send_raw(net, f"{head}{chunks}0\r\nTrailer: x\r\n\r\n".encode(), LAST)
    assert statuses(text) == [201, 200]
    assert len(engine_names(net)) == 1


# ---- what is not there


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/nosuch"), ("GET", "/"), ("GET", "/v1.41/"), ("GET", "/v1.41"),
        ("GET", "/containers"), ("POST", "/containers/json"), ("DELETE", "/containers/create"),
        ("PUT", "/_ping"), ("PATCH", "/containers/x"), ("GET", "/containers/x/start"),
        ("NOSUCH", "/_ping"), ("GET", "/vx.y/info"), ("TRACE", "/info"),
        ("GET", "/containers/x/json/y"), ("GET", "/images/json/"),
    ],
)  # fmt: skip
def test_an_unknown_path_or_verb_is_answered_as_by_the_engine(
    net: Lab, verb: str, path: str
) -> None:
    answer = ask(net, verb, path)
    status, body = ask_engine(str(net["h1"].path("/run/docker.sock")), verb, path)
    assert (answer.status, answer.text.strip()) == (status, body.decode().strip())
    assert answer.status == 404
    assert answer.message == ("No such container: create" if verb == "DELETE" else "page not found")


def test_what_is_not_offered_is_501_and_says_what_to_do(net: Lab) -> None:
    answers = ask_all(
        net,
        Ask("POST", "/plugins/pull", ""), Ask("GET", "/swarm"), Ask("POST", "/swarm/init", "{}"),
        Ask("GET", "/v1.41/services"), Ask("GET", "/nodes"), Ask("GET", "/secrets"),
    )  # fmt: skip
    for answer in answers:
        assert answer.status == 501
        assert "not supported" in answer.message
        assert answer.headers["Content-Type"] == "application/json"
    done = docker(net, "service", "ls", check=False)
    assert done.returncode == 1
    assert "not supported" in done.stderr


def test_versions_that_nobody_speaks_are_refused_in_the_engines_words(net: Lab) -> None:
    for path in ("/v1.99/info", "/v9.0/containers/json", "/v1.1/info", "/v0.9/containers/json"):
        answer = ask(net, "GET", path)
        engine = net["h1"].path("/run/docker.sock")
        status, body = ask_engine(str(engine), "GET", path)
        assert answer.status == status == 400, path
        oldest = json.loads(ask(net, "GET", "/version").text)["MinAPIVersion"]
        bare = json.loads(body)["message"] if body.startswith(b"{") else body.decode().strip()
        assert answer.message == bare.replace("is 1.12,", f"is {oldest},")
    env = {"DOCKER_API_VERSION": "1.99"}
    command = ["docker", "-H", f"tcp://{net['h1'].ip}:8791", "ps"]
    assert "is too new" in net.client.run(command, check=False, env=env).stderr


def test_versioned_and_bare_paths_are_one(net: Lab) -> None:
    docker(net, "create", "--name", "c1", "busybox")
    paths = ["", "/v1.24", "/v1.41"]
    lists = ask_all(net, *(Ask("GET", f"{p}/containers/json?all=1") for p in paths))
    assert len({json.loads(a.text)[0]["Id"] for a in lists}) == 1
    newest = json.loads(ask(net, "GET", "/version").text)["ApiVersion"]
    assert newest == engine_json(net["h1"], "/version")["ApiVersion"]
    answers = ask_all(
        net,
        *(Ask("GET", p) for p in ("//containers//json", "/containers/c1/json", "//v1.41//_ping")),
        Ask("GET", "/containers/%63%31/json"),
        Ask("GET", "http://elsewhere:1/containers/json"),
    )
    assert [a.status for a in answers] == [200] * 5


def test_old_and_new_docker_clients_both_work(net: Lab) -> None:
    address = f"tcp://{net['h1'].ip}:8791"
    for client in ("/usr/bin/docker", "/usr/local/bin/docker"):
        run = ["run", "--rm", "--name", "c1", "busybox", "echo", "hello"]
        assert net.client.run([client, "-H", address, *run]).stdout == "hello\n"


@pytest.mark.parametrize(
    "path",
    [
        "/containers/json?limit=x", "/containers/json?filters=x", "/containers/json?filters=[]",
        '/containers/json?filters={"status":5}', "/events?since=x&until=1", "/events?filters=x",
        "/containers/..%2f..%2fetc/json", "/containers/%00/json", "/containers/%ff/json",
        "/containers/a%0d%0ab/json", "/containers/%2e%2e/json", "/images/%00/json",
        "/containers/c1/logs", "/containers/c1/top?ps_args=%00",
    ],
)  # fmt: skip
def test_odd_parameters_are_a_4xx_in_dockers_form(net: Lab, path: str) -> None:
    path = path.replace('"', "%22").replace("{", "%7b").replace("}", "%7d")
    docker(net, "create", "--name", "c1", "busybox")
    answer = ask(net, "GET", path)
    status, body = ask_engine(str(net["h1"].path("/run/docker.sock")), "GET", path)
    del body
    assert 400 <= answer.status < 500 or answer.status == status, (answer, status)
    assert answer.message


# ---- what is not HTTP, or not what clients send today


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), b"\x00" * 1000,
        b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n", b"",
        b"GET /_ping HTTP/1.1\r\nno colon here\r\n\r\n", b"GET /a b c HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n", b"GET /_ping FTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)  # fmt: skip
def test_garbage_gets_an_error_or_nothing(net: Lab, garbage: bytes) -> None:
    text = send_raw(net, garbage, half_close=True)
    assert "<html" not in text.lower()
    assert not statuses(text) or statuses(text)[0] >= 400 or "HTTP/1.1 200" in text


def test_a_client_of_http_1_0_is_answered_until_close(net: Lab) -> None:
    docker(net, "run", "--name", "c1", "busybox", "echo", "hello")
    for path in ("/_ping", "/containers/json?all=1", "/containers/c1/logs?stdout=1", "/info"):
        text = send_raw(net, f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = text.partition("\r\n\r\n")
        assert re.match(r"HTTP/1\.[01] 200 ", head)
        assert "chunked" not in head
        assert body and not re.match(r"[0-9a-f]+\r\n", body), body


def test_requests_in_one_segment_are_answered_in_order(net: Lab) -> None:
    docker(net, "create", "--name", "c1", "busybox")
    row = PING + request("GET", "/containers/c1/json") + request("GET", "/nosuch")
    row += request("POST", "/containers/c1/rename?name=c2") + request("GET", "/containers/c2/json")
    row += request("POST", "/containers/create?name=c2", GOOD.encode()) + LAST
    assert statuses(send_raw(net, row)) == [200, 200, 404, 204, 200, 409, 200]


def test_a_connection_goes_on_after_an_error_whose_body_was_read_or_closes(net: Lab) -> None:
    for refused in (
        request("POST", "/nosuch", b"x" * 100_000),
        request("POST", "/containers/create", GOOD.encode()),
        request("POST", "/v9.9/containers/create?name=c1", GOOD.encode()),
        request("POST", "/swarm/init", b"x" * 1_000_000),
        request("PUT", "/containers/nosuch/archive?path=/", b"x" * 100_000),
    ):
        text = send_raw(net, refused, LAST)
        first, *rest = statuses(text)
        assert first >= 400
        assert rest == [200] or "connection: close" in text.lower(), text
    assert engine_names(net) == []


def test_a_head_has_no_body(net: Lab) -> None:
    text = send_raw(net, b"HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n", LAST)
    assert statuses(text) == [200, 200]
    assert text.endswith("\r\n\r\nOK")
    assert text.count("OK") - text.count("200 OK") == 1
    head = text.partition("\r\n\r\n")[0].lower()
    for header in ("api-version: ", "docker-experimental: false", "ostype: linux"):
        assert header in head


def test_expect_100_is_answered_before_the_body_is_sent(net: Lab) -> None:
    raw = request("POST", CREATE, GOOD.encode(), "Expect: 100-continue")
    head, body = raw[: -len(GOOD)], raw[-len(GOOD) :]
    text = send_raw(net, head, body, LAST)
    assert statuses(text) in ([100, 201, 200], [201, 200])


CROWD_CODE = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def connect():
    return socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
silent = [connect() for _ in range(2000)]
loud = [connect() for _ in range(100)]
words = [b"\\x16\\x03\\x01" + bytes(99), b"GET / HTTP/1.1\\r\\nA: ", b"x" * 60000, b"\\0"]
for number, sock in enumerate(loud):
    sock.sendall(words[number % len(words)])
print("open", flush=True)
sys.stdin.read()
"""


def figures(lab: Lab, host: str, role: str) -> dict[str, int]:
    """Return how many threads and how much memory (in kB) a daemon has."""
    (pid,) = {p.pid for p in lab[host].processes() if {role, "start"} <= {*p.argv}}
    rows = (line.split()[:2] for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {row[0]: row[1] for row in rows if len(row) == 2}
    return {name: int(found[f"{name}:"]) for name in ("Threads", "VmRSS")}


@pytest.mark.parametrize(("role", "port"), [("master", 8791), ("slave", 8792)])
def test_thousands_that_send_nothing_or_garbage_do_not_keep_others_waiting(
    net: Lab, role: str, port: int
) -> None:
    docker(net, "run", "-d", "--name", "c1", "busybox", "sleep", "600")
    before = figures(net, "h1", role)
    command = ["python3", "-I", "-c", CROWD_CODE, net["h1"].ip, str(port)]
    crowd = net.client.popen(command, stdin=-1, stdout=-1)
    assert crowd.stdout
    assert crowd.stdout.readline() == "open\n"
    for _ in range(3):
        assert output(net, "ps", "--format", "{{.Names}}").startswith("c1@h")
        assert output(net, "exec", "c1", "echo", "hello") == "hello"
    now = figures(net, "h1", role)
    assert now["Threads"] < before["Threads"] + 20
    assert now["VmRSS"] < before["VmRSS"] + (50 << 10)
    crowd.communicate()


def test_an_error_is_json_with_one_message(net: Lab) -> None:
    answer: Answer = ask(net, "GET", "/containers/nosuch/json")
    assert (answer.status, answer.message) == (404, "No such container: nosuch")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Server"].startswith("arpanet/")


# ---- what nobody else may read, or write


def test_a_path_leads_nowhere_else(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "c1", "busybox", "sleep", "600")
    for path in (
        "/images/x/../../containers/c1",
        "/volumes/..%2Fcontainers%2Fc1",
        "//images/%2e%2E",
    ):
        answer = ask(net, "DELETE", f"{path}?force=1")
        assert (answer.status, "a path cannot have" in answer.message) == (400, True)
    assert output(net, "ps", "--format", "{{.Names}}").startswith("c1@h")


LINES = "x\r\nX-Injected: 1\r\n\r\nGET /_ping HTTP/1.1"


@pytest.mark.parametrize(
    "change",
    [
        {"Env": [f"ARPANET_LINK1=c1:{LINES}"]}, {"Env": [f"ARPANET_HOST={LINES}"]},
        {"Env": [f"ARPANET_VOLUME1={LINES}"]}, {"Env": [f"ARPANET_CONSTRAINT1={LINES}"]},
        {"Labels": {LINES: LINES}}, {"HostConfig": {"Links": [f"c1:{LINES}"]}}, {"Image": LINES},
    ],
)  # fmt: skip
def test_lines_in_a_value_are_no_lines_of_ours(net: Lab, change: dict[str, object]) -> None:
    docker(net, "run", "-d", "--name", "c1", "busybox", "sleep", "600")
    body = json.dumps({"Image": "busybox", "Cmd": ["true"], **change}).encode()
    create = request("POST", "/containers/create?name=c2", body)
    said = send_raw(net, create + LAST)
    assert len(statuses(said)) == 2, said
    assert "X-Injected: 1\r\n" not in said
    for name in ("/containers/create?name=", "/containers/"):
        target = f"{name}c2%0d%0aX-Injected:%201"
        said = send_raw(net, request("POST", target, GOOD.encode(), "Connection: close"))
        assert "\r\nX-Injected" not in said
        assert statuses(said)[0] in (400, 404)


def test_what_is_kept_and_logged_is_not_for_everybody(net: Lab) -> None:
    secret = "c2VjcmV0LXRoYXQtaXMtc2VlbiBub3doZXJl"
    docker(net, "run", "-d", "--name", "c1", "-e", f"KEY={secret}", "busybox", "sleep", "600")
    ask(net, "POST", f"/build?buildargs=%7B%22A%22%3A%22{secret}%22%7D")
    head = f"POST /auth HTTP/1.1\r\nHost: x\r\nX-Registry-Auth : {secret}\r\n\r\n"
    assert statuses(send_raw(net, head.encode())) == [400]
    for host in net.hosts:
        daemons = " ".join(f"/var/log/arpanet/{name}.log" for name in ("master", "slave", "etcd"))
        assert host.run(["sh", "-c", f"grep -l {secret} {daemons}"], check=False).stdout == ""
        kept = f"find /var/lib/arpanet/* {daemons} -maxdepth 1 -perm /007"
        assert host.run(["sh", "-c", kept]).stdout == ""
