"""With certificates no port answers a stranger, and certificates and authorities are renewed.

Every try is made from the client's machine, or from a container, against the real ports of h1.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from clients import program
from conftest import HOSTS, TLS, docker, eventually, make_authority, output, start_all, until
from faults import AWAY, Client, Told, compare, find_pids, read_world, wait_well
from lab import Lab
from tls import Authority

PORTS = {8791: "/containers/json", 8792: "/status", 2379: "/v3/kv/range", 2380: "/members"}
KNOCK_CODE = r"""
import json, sys
host, rows = json.load(sys.stdin)
def knock(port, path, kind, files):
    sock = socket.create_connection((host, port), 20)
    try:
        if kind != "plain":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if files:
                context.load_cert_chain(files + "/cert.pem", files + "/key.pem")
            sock = context.wrap_socket(sock)
        verb, body = ("POST", '{"key":"AA=="}') if path.startswith("/v3") else ("GET", "")
        head = f"{verb} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        sock.sendall(head.encode())
        return sock.recv(4096).decode("latin-1")
    except OSError as error:
        return repr(error)
    finally:
        sock.close()
json.dump([knock(*row) for row in rows], sys.stdout)
"""


@pytest.fixture(scope="module")
def net(lab: Lab, authority: Path) -> Lab:
    """Return the lab with a master and a slave on each host, all of them with certificates."""
    if not TLS:
        lab.give_certificates(authority)
    start_all(lab)
    return lab


@pytest.fixture(scope="module")
def certificates(
    net: Lab, authority: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Put certificates that are no good on the client's machine; return where they are there."""
    made, ip = tmp_path_factory.mktemp("strangers"), net.client.ip
    ours = Authority("", authority)
    ours.issue_machine(made / "expired", "h3", ip, days=-1)
    ours.issue_machine(made / "another-host", "h3", net["h3"].ip)
    Authority("others").issue_machine(made / "another-authority", "h3", ip)
    shutil.copytree(made, net.client.path("/run/strangers"))
    found = {path.name: f"/run/strangers/{path.name}" for path in made.iterdir()}
    return {**found, "client": "/etc/arpanet/tls", "none": "", "plain": ""}


def test_the_ordinary_client_works_with_its_own_flags(net: Lab) -> None:
    words = ["docker", "--tlsverify", "-H", f"tcp://{net['h2'].ip}:8791", "run", "--name", "hello"]
    assert net.client.run([*words, "busybox", "echo", "hi"]).stdout == "hi\n"
    assert output(net, "ps", "-a", "--format", "{{.Names}}", via="h3").startswith("hello@h")
    docker(net, "rm", "hello")


# who knocks at which ports; a client's certificate opens the first one, and etcd does not ask
# where a client of its own calls from, if it is a machine
TRIES = {
    "plain": PORTS, "none": PORTS, "expired": PORTS, "another-authority": PORTS,
    "client": (8792, 2379, 2380), "another-host": (8792, 2380),
}  # fmt: skip
REASONS = {
    "plain": "it does not speak TLS", "none": "it has no certificate",
    "expired": "certificate has expired", "another-authority": "unable to get local issuer",
    "client": "unable to get local issuer", "another-host": "is not that of a machine at",
}  # fmt: skip


def count_lines(log: Path, *words: str) -> int:
    """Return how many lines of a log have all these words."""
    return sum(all(word in line for word in words) for line in log.read_text().splitlines())


@pytest.mark.parametrize("who", TRIES)
def test_a_stranger_gets_nothing_and_is_logged_once(
    net: Lab, certificates: dict[str, str], who: str
) -> None:
    ip, logs = net.client.ip, net["h1"].logs
    rejected = (logs / "etcd.log", "rejected connection", f'"{ip}:')
    before, rejections = read_world(net), count_lines(*rejected)
    rows = [(port, PORTS[port], who, certificates[who]) for port in TRIES[who]]
    done = net.client.run(program(KNOCK_CODE), input=json.dumps([net["h1"].ip, rows]))
    for port, said in zip(TRIES[who], json.loads(done.stdout), strict=True):
        assert " 200 " not in said, (port, said)

    def is_logged_once() -> None:  # by arpanet for each reason, by etcd for each try
        assert count_lines(*rejected) - rejections == len({2379, 2380} & {*TRIES[who]})
        for port, role in ((8791, "master"), (8792, "slave")):
            told = count_lines(logs / f"{role}.log", f"refused {ip}: ", REASONS[who])
            assert told == 1 or port not in TRIES[who], (role, told)

    eventually("each try is logged once", is_logged_once, 15)
    assert read_world(net) == before


def test_a_master_with_the_certificate_of_another_host_is_not_believed(
    net: Lab, certificates: dict[str, str]
) -> None:
    code = f"""
import sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("{certificates["another-host"]}/cert.pem",
                        "{certificates["another-host"]}/key.pem")
listener = socket.create_server(("{net.client.ip}", 8791))
print("open", flush=True)
while True:
    near, _ = listener.accept()
    try:
        context.wrap_socket(near, server_side=True).recv(10)
        print("it was asked", flush=True)
    except OSError:
        near.close()
"""
    poser = net.client.popen(program(code), stdout=-1)
    try:
        assert poser.stdout
        assert poser.stdout.readline() == "open\n"
        url = f"tcp://{net.client.ip}:8791"
        done = net.client.run(["docker", "--tlsverify", "-H", url, "ps"], check=False)
        assert "certificate is valid for" in done.stderr
        env = {"ARPANET_MASTERS": net.client.ip, "ARPANET_STATE_DIR": "/run/none"}
        done = net.client.run(["arpanet", "docker", "ps"], env=env, check=False)
        assert done.returncode == 3
        assert f"{net.client.ip}:8791: " in done.stderr
        assert "certificate" in done.stderr
    finally:
        poser.kill()
        out, _ = poser.communicate()
    assert out == ""


def test_a_link_is_open_to_the_container_that_declared_it_alone(net: Lab) -> None:
    for name in ("web", "asks", "unlinked"):
        link = ["--link", "web:db"] if name == "asks" else []
        rest = ["web"] if name == "web" else ["busybox", "sleep", "1000"]
        docker(net, "run", "-d", "--name", name, "-e", "constraint:node==h1", *link, *rest)
    vip = output(net, "exec", "asks", "sh", "-c", "grep -w db /etc/hosts").split()[0]
    fetch = ["timeout", "5", "wget", "-qO-", f"http://{vip}:8000/index.html"]
    eventually("linked", lambda: docker(net, "exec", "asks", *fetch))
    assert docker(net, "exec", "unlinked", *fetch, check=False).returncode != 0
    net.client.run(["ip", "route", "add", f"{vip}/32", "via", net["h1"].ip])
    try:
        done = net.client.run(fetch, check=False)
        assert done.returncode != 0, done.stdout
    finally:
        net.client.run(["ip", "route", "del", f"{vip}/32"])
    docker(net, "rm", "-f", "web", "asks", "unlinked")


def test_a_container_cannot_speak_to_the_agent_as_a_slave_does(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "c1", "-e", "constraint:node==h1", "busybox", "sleep", "99")
    said = "CONNECT engine HTTP/1.1\\r\\n\\r\\nGET /containers/json HTTP/1.1\\r\\n\\r\\n"
    for ip in (net["h1"].ip, net["h2"].ip):
        knock = f"printf '{said}' | timeout 5 nc {ip} 8792"
        done = docker(net, "exec", "c1", "sh", "-c", knock, check=False)
        assert " 200 " not in done.stdout, done.stdout
    docker(net, "rm", "-f", "c1")


# ---- renewal


def mix(into: Path, holder: Path, trusted: list[Path]) -> Path:
    """Return a directory with the certificates of one authority, where several are trusted."""
    shutil.copytree(holder, into)
    for file in ("ca.pem", "clients-ca.pem"):
        pem = b"".join((one / file).read_bytes() for one in trusted)
        for path in into.glob(f"*/*/{file}"):
            path.write_bytes(pem)
    return into


def require_well(net: Lab, trust: Path) -> None:
    """Raise an error unless all trust the same, which is what is in the files."""
    told = net["h1"].run(["arpanet", "doctor", "--json"]).stdout
    pem = (trust / "hosts" / "h1" / "ca.pem").read_bytes()
    wanted = hashlib.sha256(pem).hexdigest()[:12]
    assert f"the list of trusted authorities is {wanted} everywhere" in told


def test_authorities_and_certificates_are_replaced_while_clients_work(
    net: Lab, authority: Path, tmp_path: Path
) -> None:
    following = make_authority(tmp_path / "next")
    both = [following, authority]
    stages = [
        mix(tmp_path / "one", authority, both),
        mix(tmp_path / "two", following, both),
        mix(tmp_path / "three", following, [following]),
    ]
    net.client.run(["arpanet", "client", "start"], env={"ARPANET_MASTERS": net["h1"].ip})
    things = [(net[name], role) for name in HOSTS for role in ("master", "slave")]
    daemons = {(h.name, role): find_pids(h, role) for h, role in things}
    etcds = {name: net[name].pids("etcd") for name in HOSTS}
    every = ",".join(net[name].ip for name in HOSTS)
    clients = [
        Client(net, "finds", ["arpanet", "docker"], {"ARPANET_MASTERS": every}),
        Client(net, "socket", ["docker", "-H", "unix:///run/arpanet/docker.sock"], {}),
        Client(net, "fixed", ["docker", "-H", f"tcp://{net['h2'].ip}:8791"], {}),
    ]
    try:
        for client in clients:
            client.start()
        for stage in stages:
            net.give_certificates(stage)
            eventually("all trust it", lambda s=stage: require_well(net, s), 120)  # type: ignore[misc]
            counts = [len(client.history) for client in clients]
            for client, count in zip(clients, counts, strict=True):
                until("work goes on", lambda c=client, n=count: len(c.history) > n + 2, 60)  # type: ignore[misc]
    finally:
        for client in clients:
            client.stop()
        net.client.run(["arpanet", "client", "stop"])
    told = [t for client in clients for t in client.history]
    for client in clients:
        assert_goes_on(client)
    assert {(h.name, role): find_pids(h, role) for h, role in things} == daemons
    assert not any({*etcds[name]} & {*net[name].pids("etcd")} for name in HOSTS)
    wait_well(net)
    eventually("all is as told", lambda: require_as_told(net, told), 30)


def assert_goes_on(client: Client) -> None:
    """Check that nothing failed but what a busy machine lets fail.

    Who looks for a master leaves one that stands still for 1.2 s, and then its command has failed.
    """
    failed = [n for n, t in enumerate(client.history) if not t.well and AWAY not in t.said]
    if client.label != "fixed":
        failed = [n for n in failed if n - 1 in failed]
    assert [client.history[n] for n in failed] == []


def require_as_told(net: Lab, told: list[Told]) -> None:
    findings = compare(told, read_world(net))
    assert not any(findings), findings
