"""What is wrong is said in one sentence, with the right exit code, and nothing is half done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent import futures

import pytest
from clients import program
from conftest import HOSTS, TLS, certificate, docker, eventually, output, until
from lab import SLOW, TLS_DIR, Host, Lab

USAGE, MESH, ENGINE = 2, 3, 4
BOOT = ("arpanet", "master", "start", "--peers", "boot")
SLAVE = ("arpanet", "slave", "start")


def daemons(host: Host) -> list[str]:
    """Return the command lines of what arpanet runs on a host."""
    return [
        " ".join(p.argv)
        for p in host.processes()
        if p.comm == "etcd" or {"start", "arpanet"} <= {w.rpartition("/")[2] for w in p.argv}
    ]


def refused(
    host: Host,
    *argv: str,
    code: int,
    words: str,
    env: Mapping[str, str] | None = None,
) -> str:
    """Check that a command ends with that code and one sentence that fits words; return it.

    words: a regular expression.
    """
    before = daemons(host)
    done = host.run(argv, env=env, check=False)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    sentence = lines[-1]
    assert re.match(r"arpanet( \w+)*: ", sentence), lines
    assert re.search(words, sentence), sentence
    eventually("no daemon is left", lambda: assert_daemons(host, before), 5)
    return sentence


def assert_daemons(host: Host, expected: list[str]) -> None:
    assert daemons(host) == expected


@pytest.mark.parametrize(
    ("argv", "env", "words"),
    [
        (("master", "start"), {}, "which masters to join.*--peers boot"),
        (("master", "start", "--peers", "nonsense"), {}, "--peers.*ARPANET_PEERS.*'nonsense'"),
        (("master", "start", "--peers", "boot"), {"ARPANET_IP": "1.2.3"}, "ARPANET_IP.*'1.2.3'"),
        (
            ("master", "start", "--peers", "boot"),
            {"ARPANET_IP": "192.168.8.250"},
            "192.168.8.250 is not an address of this machine; it has: 192.168.8.120",
        ),
        (("slave", "start"), {"HOSTNAME": ""}, "--hostname.*HOSTNAME.*''"),
        (("slave", "start"), {"HOSTNAME": "a@b"}, "HOSTNAME.*'a@b'"),
        (("slave", "start"), {}, "no master is known; .*ARPANET_MASTERS"),
        (("slave", "start"), {"ARPANET_AGENT_PORT": "http"}, "ARPANET_AGENT_PORT.*'http'"),
        (("slave", "start"), {"ARPANET_AGENT_PORT": "0"}, "ARPANET_AGENT_PORT.*'0'"),
        (("slave", "start"), {"DOCKER_HOST": "tcp://1.2.3.4:5"}, "unix socket"),
        (("client", "start"), {}, "no master is known; .*ARPANET_MASTERS"),
        (("client", "start", "--masters", "h1"), {}, "--masters.*ARPANET_MASTERS.*'h1'"),
        (("slave", "start"), {"ARPANET_LINK_SUBNET": "198.18.0.0/33"}, "ARPANET_LINK_SUBNET"),
        (("slave", "restart"), {}, "invalid choice: 'restart'"),
        (("slave", "start", "--colour"), {}, "unrecognized arguments: --colour"),
        (("leave",), {}, "invalid choice: 'leave'"),
        ((), {}, "required: COMMAND"),
    ],
)
def test_a_wrong_setting_or_command_is_said_with_its_name_and_value(
    lab: Lab, argv: tuple[str, ...], env: dict[str, str], words: str
) -> None:
    refused(lab["h1"], "arpanet", *argv, env=env, code=USAGE, words=words)
    assert not lab["h1"].path("/var/lib/arpanet/etcd").exists()


def test_several_private_addresses_are_listed_and_none_is_guessed(lab: Lab) -> None:
    host = lab["h1"]
    host.run(["ip", "link", "add", "other0", "type", "bridge"])
    host.run(["ip", "address", "add", "10.8.8.8/24", "dev", "other0"])
    try:
        words = "ARPANET_IP=IP.*192.168.8.120.*10.8.8.8"
        refused(host, *BOOT, code=USAGE, words=words)
    finally:
        host.run(["ip", "link", "del", "other0"])


def test_a_malformed_line_of_the_settings_file_is_named(lab: Lab) -> None:
    host = lab["h1"]
    host.run(["sh", "-c", "mkdir -p /etc/arpanet; echo oops >/etc/arpanet/arpanet.env"])
    try:
        refused(host, *BOOT, code=USAGE, words="/etc/arpanet/arpanet.env line 1: .*'oops'")
    finally:
        host.run(["rm", "/etc/arpanet/arpanet.env"])


@pytest.mark.parametrize("role", ["master", "slave", "client"])
def test_stop_and_status_of_what_does_not_run(lab: Lab, role: str) -> None:
    stop = lab["h1"].run(["arpanet", role, "stop"])
    assert (stop.stdout, stop.stderr) == ("", f"arpanet: the {role} does not run\n")
    code = MESH if role == "master" else 1
    refused(lab["h1"], "arpanet", role, "status", code=code, words=f"arpanet {role} start")


def test_only_root_may_start_a_daemon(lab: Lab) -> None:
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    env = {"PEX_ROOT": "/tmp/pex-nobody", "HOME": "/tmp"}
    for words in (BOOT, SLAVE):
        refused(lab["h1"], *nobody, *words, env=env, code=USAGE, words="root|sudo")
    lab["h1"].run(["rm", "-rf", "/tmp/pex-nobody"])


def test_without_the_program_etcd_no_master_starts(lab: Lab) -> None:
    host = lab["h1"]
    host.run(
        ["sh", "-c", "mkdir -p /var/lib/bin; ln -sf /usr/bin/env /usr/bin/python3 /var/lib/bin"]
    )
    words = "etcd.*apt-get install etcd"
    argv = ("env", "PATH=/var/lib/bin", "/usr/local/bin/arpanet", *BOOT[1:])
    refused(host, *argv, code=1, words=words)
    assert not host.path("/var/lib/arpanet/etcd").exists()


@pytest.fixture
def squatter(lab: Lab) -> Iterator[dict[str, int]]:
    """Have a server that is neither etcd nor ours listen on h3 at the ports that arpanet uses."""
    ports = {"api": 8791, "agent": 8792, "etcd": 2379, "peer": 2380}
    servers = [
        lab["h3"].popen(["busybox", "httpd", "-f", "-p", str(port), "-h", "/etc"])
        for port in ports.values()
    ]
    for port in ports.values():
        probe = ["curl", "-s", f"http://127.0.0.1:{port}/"]
        eventually(f"{port} is taken", lambda p=probe: lab["h3"].run(p))  # type: ignore[misc]
    yield ports
    for server in servers:
        server.kill()
        server.wait()


def test_a_port_in_use_is_said_with_who_has_it(lab: Lab, squatter: dict[str, int]) -> None:
    words = f"port ({'|'.join(map(str, squatter.values()))}) on .* is in use by busybox"
    refused(lab["h3"], *BOOT, code=1, words=words)
    env = {"ARPANET_MASTERS": lab["h1"].ip}
    refused(lab["h3"], *SLAVE, env=env, code=1, words="port 8792 on .* is in use by busybox")


def test_peers_that_do_not_answer_or_are_no_arpanet_are_named(
    lab: Lab, squatter: dict[str, int]
) -> None:
    del squatter
    tries = {  # each looks for a while before it gives up, so all at once
        "h1": ("192.168.8.99", MESH, "192.168.8.99"),
        "c1": (lab["h2"].ip, MESH, f"{lab['h2'].ip}.*refused"),
        "h2": (lab["h3"].ip, MESH, f"{lab['h3'].ip}.*not as etcd"),
    }
    if TLS:
        tries["c1"] = (lab["h2"].ip, USAGE, "cert.pem is no certificate of this machine")
        tries["h2"] = (lab["h3"].ip, MESH, f"{lab['h3'].ip}.*TLS")

    def join(host: str) -> None:
        peers, code, words = tries[host]
        argv = ("arpanet", "master", "start", "--peers", peers)
        refused(lab[host], *argv, code=code, words=words)

    with futures.ThreadPoolExecutor() as pool:
        list(pool.map(join, tries))


def test_an_etcd_that_is_not_arpanets_is_not_joined(lab: Lab) -> None:
    h3, scheme = lab["h3"], "https" if TLS else "http"
    client, peer = f"{scheme}://{h3.ip}:2379", f"http://{h3.ip}:2380"
    pair = [f"--cert-file={TLS_DIR}/cert.pem", f"--key-file={TLS_DIR}/key.pem"] if TLS else []
    etcd = h3.popen(
        [
            "etcd", "--name", "other", "--data-dir", "/var/lib/etcd/other", *pair,
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"other={peer}",
        ]
    )  # fmt: skip
    ask = ["curl", *certificate(h3), "-sf"]
    try:
        eventually("etcd answers", lambda: h3.run([*ask, f"{client}/health"]))
        join = ("arpanet", "master", "start", "--peers", h3.ip)
        refused(lab["h1"], *join, code=USAGE, words="not .*arpanet")
        listed = h3.run([*ask, "-d", "{}", f"{client}/v3/cluster/member/list"])
        assert len(json.loads(listed.stdout)["members"]) == 1
    finally:
        etcd.terminate()
        etcd.wait()


def test_without_an_engine_no_slave_starts_and_none_is_registered(net: Lab) -> None:
    net["h3"].run(["arpanet", "slave", "stop"])
    net["h3"].stop_engine()
    try:
        words = "no Docker Engine answers at /var/run/docker.sock.*systemctl start docker"
        refused(net["h3"], *SLAVE, code=ENGINE, words=words)
        until("h3 is down", lambda: not hosts(net)["h3"])
    finally:
        net["h3"].start_engine()
        net["h3"].run(["arpanet", "slave", "start"])


def hosts(net: Lab) -> dict[str, bool]:
    """Return the hosts that are known, and whether each is alive."""
    done = net["h1"].run(["arpanet", "master", "status", "--json"], check=False)
    assert done.stdout, done
    return {h["name"]: h["alive"] for h in json.loads(done.stdout)["hosts"]}


def wait_listed(net: Lab, name: str) -> None:
    """Block until docker ps has a container that was made on its host itself."""

    def is_listed() -> None:
        assert name in output(net, "ps", "-a", "--format", "{{.Names}}").split()

    eventually(f"{name} is listed", is_listed)


def test_a_second_start_says_that_it_runs_already(net: Lab) -> None:
    for role in ("master", "slave"):
        words = f"the {role} runs already, as process [0-9]+; see: arpanet {role} status"
        refused(net["h1"], "arpanet", role, "start", code=1, words=words)


@pytest.mark.parametrize("role", ["slave", "master"])
def test_a_name_that_another_machine_has_is_refused(net: Lab, role: str) -> None:
    before = hosts(net)
    argv = ("arpanet", role, "start")
    words = f"the name h1 is taken by the (host|master) at {net['h1'].ip}; .*HOSTNAME=NAME"
    if TLS:  # and it has none that says so
        words = "cert.pem is no certificate of this machine: it is not for h1; try: arpanet ca"
    net["h2"].run(["arpanet", role, "stop"])
    try:
        code = USAGE if TLS else 1
        refused(net["h2"], *argv, env={"HOSTNAME": "h1"}, code=code, words=words)
        assert set(hosts(net)) == set(before)
    finally:
        net["h2"].run(argv)
    eventually("all is as before", lambda: assert_hosts(net, before))


def assert_hosts(net: Lab, expected: dict[str, bool]) -> None:
    assert hosts(net) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("busybox",), "--name"),
        (("--name", "aa@", "busybox"), "aa@ names no host"),
        (("--name", "-x-", "busybox"), "Invalid container name"),
        (("--name", "bad", "-e", "ARPANET_LINKS=a:b", "busybox"), "ARPANET_LINKS means nothing"),
        (("--name", "bad", "-e", "ARPANET_IP=1.2.3.4", "busybox"), "ARPANET_IP means nothing"),
        (("--name", "bad", "-e", "ARPANET_LINK1=", "busybox"), "ARPANET_LINK1 is empty"),
        (("--name", "bad", "-e", "ARPANET_VOLUME=", "busybox"), "ARPANET_VOLUME is empty"),
        (("--name", "bad", "-e", "ARPANET_LINK1=:db", "busybox"), "NAME:ALIAS"),
        (("--name", "bad", "-e", "ARPANET_LINK1=a:b c", "busybox"), "NAME:ALIAS"),
        (("--name", "bad", "-e", "ARPANET_LINK1=a:b:c", "busybox"), "NAME:ALIAS"),
        (("--name", "bad", "-e", "ARPANET_VOLUME1=data", "busybox"), "a volume is /PATH"),
        (("--name", "bad", "-e", "ARPANET_VOLUME1=:/data", "busybox"), "a volume is /PATH"),
        (("--name", "bad", "-e", "ARPANET_VOLUME1=/data:zz", "busybox"), "zz"),
        (("--name", "bad", "--volumes-from", "nobody", "busybox"), "No such container: nobody"),
        (
            ("--name", "bad", "--network", "container:nobody", "busybox"),
            "No such container: nobody",
        ),
    ],
)
def test_a_create_that_is_wrong_is_refused_in_words_and_leaves_nothing(
    net: Lab, words: tuple[str, ...], said: str
) -> None:
    done = docker(net, "run", *words, "true", check=False)
    assert done.returncode == 125
    assert said in done.stderr, done.stderr
    assert "Unable to find image" not in done.stderr
    assert output(net, "ps", "-aq") == ""
    assert all(h.run(["docker", "volume", "ls", "-q"]).stdout == "" for h in net.hosts)
    docker(net, "create", "--name", "bad", "busybox")  # the name is free
    docker(net, "rm", "bad")


SPEAK = r"""
import sys
address, text, wait_s = sys.argv[1:]
got = b""
try:
    link = reach(address, 8792, float(wait_s))
    link.sendall(text.encode().decode("unicode_escape").encode("latin-1"))
    end_sending(link)
    while block := receive(link):
        got += block
except OSError:
    pass  # refused, or it waits for more
sys.stdout.write(got.decode("latin-1"))
"""


def speak(net: Lab, sender: Host, text: str, wait_s: int = 5) -> str:
    """Return what the agent of h2 answers to a text, however it ends."""
    return str(sender.run([*program(SPEAK), net["h2"].ip, text, str(wait_s * SLOW)]).stdout)


@pytest.mark.parametrize(
    "text",
    [
        "CONNECT engine HTTP/1.1\\r\\n\\r\\nGET /containers/json HTTP/1.1\\r\\nHost: d\\r\\n\\r\\n",
        "CONNECT web:8000 HTTP/1.1\\r\\n\\r\\nGET / HTTP/1.0\\r\\n\\r\\n",
        "CONNECT web@h2:8000 HTTP/1.1\\r\\n\\r\\nGET / HTTP/1.0\\r\\n\\r\\n",
        f"POST /publish/{'a' * 64}?revision=1 HTTP/1.1\\r\\n\\r\\n",
        "GET /status HTTP/1.1\\r\\n\\r\\n",
    ],
)
def test_the_agent_serves_no_stranger(net: Lab, text: str) -> None:
    for name in HOSTS:  # one of them is on h2
        net[name].run(["docker", "rm", "-f", "web"], check=False)
    net["h2"].run(["docker", "run", "-d", "--name", "web", "web"])
    wait_listed(net, "web@h2")
    try:
        said = speak(net, net.client, text)
        assert said == "" or re.match("HTTP/1.1 403 ", said), said
        assert "hello from the lab" not in said
        assert "Id" not in said
    finally:
        docker(net, "rm", "-f", "web")


@pytest.mark.parametrize(
    "text",
    [
        "\\000\\001\\377garbage\\r\\n\\r\\n",
        "CONNECT\\r\\n\\r\\n",
        "CONNECT engine",
        "CONNECT nobody:80 HTTP/1.1\\r\\n\\r\\n",
        "CONNECT nobody HTTP/1.1\\r\\n\\r\\n",
        "CONNECT nobody:99999 HTTP/1.1\\r\\n\\r\\n",
        "POST /publish/zz HTTP/1.1\\r\\n\\r\\n",
        f"POST /publish/{'a' * 64}?revision=x HTTP/1.1\\r\\n\\r\\n",
        "GET / HTTP/1.1\\r\\n\\r\\n",
        "A" * 20000,
    ],
)
def test_the_agent_refuses_a_members_malformed_request_and_goes_on(net: Lab, text: str) -> None:
    said = speak(net, net["h1"], text, wait_s=2)
    assert said == "" or re.match("HTTP/1.1 4[0-9][0-9] ", said), said
    assert "internal" not in said
    assert re.match("HTTP/1.1 200 ", speak(net, net["h1"], "GET /status HTTP/1.1\\r\\n\\r\\n"))


def test_a_host_that_leaves_is_no_longer_known_and_its_names_are_free(net: Lab) -> None:
    net["h3"].run(["docker", "create", "--name", "left", "-v", "kept:/data", "busybox"])
    wait_listed(net, "left@h3")
    net["h3"].run(["arpanet", "slave", "leave"])
    until("h3 has left", lambda: set(hosts(net)) == {"h1", "h2"})
    assert daemons(net["h3"]) and not any("slave" in line for line in daemons(net["h3"]))
    docker(net, "create", "--name", "left", "busybox")
    docker(net, "rm", "left")
    assert net["h3"].run(["docker", "ps", "-aq"]).stdout  # nothing is done to its containers
    net["h3"].run(["docker", "rm", "left"])
    net["h3"].run(["docker", "volume", "rm", "kept"])
    net["h3"].run(["arpanet", "slave", "start"])
    until("h3 is back", lambda: set(hosts(net)) == set(HOSTS))


def test_a_dead_host_may_be_told_to_leave_by_another_and_its_volumes_forgotten(net: Lab) -> None:
    for name in HOSTS[:2]:
        net[name].run(["docker", "create", "--name", f"fill-{name}", "busybox"])
        wait_listed(net, f"fill-{name}@{name}")
    docker(net, "create", "--name", "db@h3", "-v", "data:/data", "busybox")
    leave = ("arpanet", "slave", "leave", "--host", "h3")
    refused(net["h1"], *leave, code=1, words="h3 is alive")
    refused(net["h1"], *leave[:-1], "h9", code=1, words="no host h9")
    (slave,) = [p for p in net["h3"].processes() if {"slave", "start"} <= set(p.argv)]
    net["h3"].run(["sh", "-c", "kill -9 $(cat /run/arpanet/slave.pid)"])
    assert slave

    def is_down() -> None:
        assert not hosts(net)["h3"]

    eventually("h3 counts as down", is_down)
    assert "Host Down" in output(net, "ps", "-a", "--filter", "name=db")
    known = output(net, "inspect", "-f", "{{.Name}} {{.Host.Name}} {{.State.Error}}", "db")
    assert known.startswith("/db h3 Host Down: host h3")
    net["h1"].run(list(leave))
    until("h3 has left", lambda: set(hosts(net)) == {"h1", "h2"})
    done = docker(net, "create", "--name", "db", "-v", "data:/data", "busybox", check=False)
    assert "volume data is on h3" in done.stderr
    net["h3"].run(["arpanet", "slave", "start"])
    net["h3"].run(["sh", "-c", "kill -9 $(cat /run/arpanet/slave.pid)"])
    eventually("h3 counts as down", is_down)
    net["h1"].run([*leave, "--forget"])
    docker(net, "create", "--name", "db", "-v", "data:/data", "busybox")
    docker(net, "rm", "db", "fill-h1", "fill-h2")
