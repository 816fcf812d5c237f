"""A link reaches its container by name, wherever it runs, and nobody else does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent import futures

import pytest
from conftest import HOSTS, docker, etcdctl, eventually, host_of, output, remove_all
from lab import SLOW, Host, Lab

PAGE = "hello from the lab"
FETCH = f"timeout {5 * SLOW:g} wget -qO- http://{{}}:{{}}/{{}}"


@pytest.fixture(autouse=True)
def clean(net: Lab) -> Iterator[None]:
    """Remove all containers after each test."""
    yield
    remove_all(net)


def engine_docker(host: Host, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the docker client against a host's own engine."""
    done: subprocess.CompletedProcess[str] = host.run(["docker", *words], check=check)
    return done


def start_on(net: Lab, host: str, name: str, *words: str, port: int = 19999) -> None:
    """Run a container on that host: on all others a host port that it asks for is taken."""
    blockers = [h for h in HOSTS if h != host]
    for blocked in blockers:
        words_there = ("create", "--name", f"block-{name}-{blocked}", "-p", f"{port}:1", "busybox")
        engine_docker(net[blocked], *words_there)
        eventually(
            f"the blocker on {blocked} is listed",
            lambda h=blocked: host_of(net, f"block-{name}-{h}"),  # type: ignore[misc]
        )
    docker(net, "run", "-d", "--name", name, "-p", f"{port}:1", *words)
    for blocked in blockers:
        docker(net, "rm", f"block-{name}-{blocked}")
    assert host_of(net, name) == host


def fetch(net: Lab, name: str, address: str, port: int = 8000, path: str = "") -> str:
    """Return what a container reads from a web server."""
    return output(net, "exec", name, "sh", "-c", FETCH.format(address, port, path))


def try_fetch(net: Lab, name: str, address: str) -> subprocess.CompletedProcess[str]:
    """Let a container try to read; the answer of the attempt comes within 3 seconds."""
    command = ("exec", name, "sh", "-c", FETCH.format(address, 8000, ""))
    return docker(net, *command, check=False, timeout=3 + 5)


def try_from(machine: Host, vip: str) -> int:
    """Let a machine try to read; return 1 if it was refused at once, 143 if nobody answered."""
    limit = ["busybox", "timeout", f"{3 * SLOW:g}"]
    words = [*limit, "busybox", "wget", "-qO-", f"http://{vip}:8000/"]
    return machine.run(words, check=False).returncode


def vip_of(net: Lab, name: str, alias: str) -> str:
    """Return the address of a link, from the variables of the container that has it."""
    variable = f"{alias.upper()}_PORT_8000_TCP_ADDR"
    return output(net, "exec", name, "sh", "-c", f"echo ${variable}")


@pytest.mark.parametrize("consumer", ["h2", "h1"])
def test_a_run_with_arpanet_link_reads_a_page_by_name_and_by_address(
    net: Lab, consumer: str
) -> None:
    start_on(net, "h1", "test1", "web")
    script = (
        "timeout 5 wget -qO- http://test1:8000/ && "
        "timeout 5 wget -qO- http://$TEST1_PORT_8000_TCP_ADDR:8000/cgi-bin/hostname"
    )
    there = output(net, "inspect", "-f", "{{.Config.Hostname}}", "test1")
    words = ["-e", "ARPANET_LINK1=test1:test1", "busybox", "sh", "-c", script]
    if consumer == "h1":
        start_on(net, "h1", "same", *words, port=19998)
        docker(net, "wait", "same")
        said = output(net, "logs", "same")
    else:  # spread: the host of test1 has the most containers
        said = output(net, "run", "--rm", "--name", "other", *words, via="h3")
    assert said.split("\n") == [PAGE, there]


def test_dockers_own_link_does_the_same_across_hosts(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1:web", "busybox", "sleep", "600", port=19998)
    assert fetch(net, "user", "web") == PAGE
    assert fetch(net, "user", vip_of(net, "user", "web")) == PAGE


def test_several_links_and_aliases_lead_each_to_its_own_container(net: Lab) -> None:
    start_on(net, "h1", "one", "-h", "host-one", "web")
    start_on(net, "h2", "two", "-h", "host-two", "web")
    links = ["--link", "one", "-e", "ARPANET_LINK1=one:first", "-e", "ARPANET_LINK12=two:second"]
    start_on(net, "h3", "user", *links, "busybox", "sleep", "600", port=19998)
    said = {n: fetch(net, "user", n, 8000, "cgi-bin/hostname") for n in ("one", "first", "second")}
    assert said == {"one": "host-one", "first": "host-one", "second": "host-two"}


def test_a_link_follows_its_container_to_another_host_and_is_refused_meanwhile(net: Lab) -> None:
    start_on(net, "h1", "test1", "-h", "old", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    began = output(net, "inspect", "-f", "{{.State.StartedAt}}", "user")
    assert fetch(net, "user", "test1", path="cgi-bin/hostname") == "old"
    docker(net, "stop", "-t", "0", "test1")
    refused = try_fetch(net, "user", "test1")
    assert refused.returncode and re.search("refused|reset", refused.stderr), refused.stderr
    docker(net, "rm", "test1")
    refused = try_fetch(net, "user", "test1")
    assert refused.returncode and re.search("refused|reset", refused.stderr), refused.stderr
    start_on(net, "h3", "test1", "-h", "new", "web")
    moved = eventually(
        "the link leads to h3", lambda: fetch(net, "user", "test1", 8000, "cgi-bin/hostname")
    )
    assert moved == "new"
    assert output(net, "inspect", "-f", "{{.State.StartedAt}}", "user") == began


def test_who_has_no_link_is_refused(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    vip = vip_of(net, "user", "test1")
    assert fetch(net, "user", vip) == PAGE
    for number, host in enumerate(HOSTS):
        start_on(net, host, f"stranger-{host}", "busybox", "sleep", "600", port=19990 - number)
        assert try_fetch(net, f"stranger-{host}", vip).returncode == 1, host  # at once: no timeout
    docker(net, "run", "-d", "--name", "nethost", "--network", "host", "busybox", "sleep", "600")
    assert try_fetch(net, "nethost", vip).returncode == 1
    for machine in (*net.hosts, net.client):
        assert try_from(machine, vip) == 1, machine.name
    assert fetch(net, "user", vip) == PAGE


def test_a_neighbour_with_a_route_to_the_links_network_is_refused(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    vip = vip_of(net, "user", "test1")
    route = ["198.18.0.0/16", "via", net["h2"].ip]
    net.client.run(["ip", "route", "add", *route])
    try:
        assert try_from(net.client, vip) == 1  # at once: no timeout
    finally:
        net.client.run(["ip", "route", "del", *route])
    told = f"refused {net.client.ip}, which has no link to test1"
    assert (net["h2"].logs / "slave.log").read_text().count(told) == 1


TARGET = [
    "--name", "target", "-h", "tgt.example.com", "--expose", "7000-7002", "--expose", "53/udp",
    "-e", "COLOUR=red", "-e", "EMPTY=", "web",
]  # fmt: skip
SHOW = ["busybox", "sh", "-c", "env; echo ----; cat /etc/hosts"]


def told(said: str, consumer: str) -> tuple[list[str], list[list[str]]]:
    """Return the variables and the hosts lines of a link, its address as VIP."""
    env, _, hosts = said.partition("----")
    address = re.search(r"DB_1_PORT_8000_TCP_ADDR=(\S+)", env)
    assert address, env
    lines = [
        line.replace(address[1], "VIP") for line in env.splitlines() if line.startswith("DB_1")
    ]
    names = [line.split()[1:] for line in hosts.splitlines() if line.startswith(address[1])]
    assert f"DB_1_NAME=/{consumer}/db-1" in lines
    return sorted(lines), names


def test_a_link_gives_the_variables_and_names_that_one_engines_own_link_gives(net: Lab) -> None:
    consumer = ["run", "--rm", "--name", "show", "--link", "target:db-1"]
    engine = net["h2"]
    engine_docker(engine, "run", "-d", *TARGET)
    bare_env, bare_hosts = told(engine_docker(engine, *consumer, *SHOW).stdout, "show")
    bare_id = engine_docker(engine, "inspect", "-f", "{{.Id}}", "target").stdout[:12]
    engine_docker(engine, "rm", "-f", "-v", "target")
    eventually("the name is free", lambda: docker(net, "create", *TARGET))
    docker(net, "start", "target")
    env, hosts = told(output(net, *consumer, *SHOW), "show")
    assert env == bare_env
    # an engine puts all names on one line, ExtraHosts one on each
    flat = [name for line in hosts for name in line]
    assert flat == [name for line in bare_hosts for name in line], bare_id


def test_a_link_to_a_missing_container_is_said_in_dockers_words_and_pulls_nothing(net: Lab) -> None:
    for words in (("--link", "nobody:db"), ("-e", "ARPANET_LINK1=nobody:db")):
        done = docker(net, "run", "--name", "user", *words, "busybox", "true", check=False)
        assert done.returncode == 125
        assert "could not get container for nobody: No such container: nobody" in done.stderr
        assert "Unable to find image" not in done.stderr
    assert output(net, "ps", "-aq") == ""


def test_what_the_user_says_wins(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    said = output(
        net, "run", "--rm", "--name", "user", "--link", "test1:db", "--add-host", "db:10.9.8.7",
        "-e", "DB_PORT=mine", "busybox", "sh", "-c", "echo $DB_PORT; grep -w db /etc/hosts",
    )  # fmt: skip
    assert said.split() == ["mine", "10.9.8.7", "db"]


def test_inspect_shows_the_links_as_an_engine_does(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "test1", "web")
    docker(net, "create", "--name", "user", "--link", "test1:db", "busybox")
    shown = json.loads(output(net, "inspect", "-f", "{{json .HostConfig.Links}}", "user"))
    assert [re.sub("@h[0-9]", "", link) for link in shown] == ["/test1:/user/db"]


def test_20_mb_pass_unharmed_in_both_directions(net: Lab) -> None:
    make = "dd if=/dev/urandom of=/www/f bs=1M count=20 2>/dev/null; md5sum </www/f >/www/sum"
    take = "sleep 600 | nc -l -p 7001 | md5sum >/got &"  # an nc ends when its other side does
    serve = f"{make}; {take} httpd -f -p 8000 -h /www"
    start_on(net, "h1", "tt", "--expose", "7001", "web", "sh", "-c", serve)
    start_on(net, "h2", "user", "--link", "tt", "busybox", "sleep", "600", port=19998)
    expected = eventually("the sum", lambda: fetch(net, "user", "tt", path="sum"))
    pull = "wget -qO /f http://tt:8000/f; md5sum </f"
    assert output(net, "exec", "user", "sh", "-c", pull) == expected
    docker(net, "exec", "user", "sh", "-c", "nc tt 7001 </f")
    got = eventually("the sum", lambda: output(net, "exec", "tt", "grep", ".", "/got"))
    assert got == expected


def test_50_connections_at_once_are_served(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    one = FETCH.format("test1", 8000, "")
    many = f"for i in $(seq 50); do ({one} || echo lost) & done; wait"
    assert output(net, "exec", "user", "sh", "-c", many).split("\n") == [PAGE] * 50


def test_a_linked_container_may_connect_in_its_first_instruction(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    lost = []
    for number in range(20):
        done = docker(
            net, "run", "--rm", "--name", f"c{number}", "--link", "test1", "busybox",
            "timeout", "5", "wget", "-qO-", "http://test1:8000/",
            via=HOSTS[number % 3], check=False,
        )  # fmt: skip
        if done.stdout.strip() != PAGE or done.returncode:
            lost.append((number, done.returncode, done.stdout, done.stderr))
    assert lost == []


def test_links_join_containers_on_user_defined_bridges(net: Lab) -> None:
    for host in net.hosts:
        engine_docker(host, "network", "create", "mynet")
    try:
        start_on(net, "h1", "test1", "--network", "mynet", "web")
        words = ["-e", "ARPANET_LINK1=test1:web", "busybox", "sleep", "600"]
        start_on(net, "h2", "far", "--network", "mynet", *words, port=19998)
        start_on(net, "h1", "near", "--network", "mynet", *words, port=19997)
        start_on(net, "h1", "plain", *words, port=19996)
        for name in ("far", "near", "plain"):
            assert fetch(net, name, "web") == PAGE, name
    finally:
        remove_all(net)
        for host in net.hosts:
            engine_docker(host, "network", "rm", "mynet")


def test_a_target_on_its_hosts_network_is_reached(net: Lab) -> None:
    words = ["--network", "host", "--expose", "8123", "web", "httpd", "-f", "-p", "8123"]
    docker(net, "run", "-d", "--name", "tt", *words, "-h", "/www")
    home = host_of(net, "tt")
    for number, host in enumerate([home, next(h for h in HOSTS if h != home)]):
        words = ["--link", "tt", "busybox", "sleep", "600"]
        start_on(net, host, f"c-{host}", *words, port=19990 + number)
        assert fetch(net, f"c-{host}", "tt", 8123) == PAGE


def link_row(net: Lab, host: str, target: str) -> dict[str, int]:
    """Return the counters that a slave shows for its link to a container."""
    report = json.loads(net[host].run(["arpanet", "slave", "status", "--json"]).stdout)
    rows: list[dict[str, int]] = [
        row
        for address, row in report["links"].items()
        if row["target"] == target and address.endswith(":8000")
    ]
    assert len(rows) == 1, report
    return rows[0]


def test_slave_status_counts_what_links_carry(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    before = link_row(net, "h2", "test1")
    for _ in range(3):
        fetch(net, "user", "test1")

    def counted() -> None:
        row = link_row(net, "h2", "test1")
        assert row["connections"] == before["connections"] + 3
        assert (row["open"], row["failed"]) == (0, 0)
        assert row["bytes_from_target"] > 3 * len(PAGE)
        assert row["bytes_to_target"] > 3 * len("GET / HTTP/1.1")

    eventually("three connections are counted", counted)
    assert "test1" in net["h2"].run(["arpanet", "slave", "status"]).stdout


def test_a_slave_that_stops_takes_its_route_away_and_one_that_starts_links_again(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    began = output(net, "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "user")
    show = ["ip", "route", "show", "table", "local"]
    assert "198.18.0.0/16" in net["h2"].run(show).stdout
    net["h2"].run(["arpanet", "slave", "stop"])
    try:
        assert "198.18." not in net["h2"].run(show).stdout
        assert "198.18." not in net["h2"].run(["ip", "rule"]).stdout
    finally:
        net["h2"].run(["arpanet", "slave", "start"])
    assert fetch(net, "user", "test1") == PAGE
    assert output(net, "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "user") == began


def test_a_docker_client_that_half_closes_at_once_gets_all_output(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "user", "busybox", "sleep", "600")

    def one(number: int) -> str:
        return output(net, "exec", "user", "echo", str(number), via=HOSTS[number % 3])

    with futures.ThreadPoolExecutor(4) as pool:
        said = list(pool.map(one, range(80)))
    assert said == [str(n) for n in range(80)]


# ---- what an image says

FORGED_LABELS = {
    "arpanet.links": '[["test1", "test1", "VIP"]]',
    "arpanet.volumes": "data",
    "arpanet.placed": "h3: said",
    "arpanet.made-again": "0" * 16,
    "arpanet.host": "h3",
    "arpanet.reschedule": "on-host-failure",
    "arpanet.constraint1": "host==h3",
    "arpanet.affinity1": "container==test1",
    "com.docker.swarm.constraints": '["host==h3"]',
    "com.docker.swarm.affinities": "no JSON",
    "com.docker.swarm.reschedule-policies": '["on-node-failure"]',
}
FORGED_ENV = {
    "ARPANET_LINK1": "test1:test1",
    "ARPANET_VOLUME1": "data:/data",
    "ARPANET_HOST": "h3",
    "ARPANET_RESCHEDULE": "on-host-failure",
    "ARPANET_NONSENSE": "1",
    "constraint:host": "=h3",
}


def forge_images(engine: Host, changes: list[str], number: int) -> None:
    """Make images of one that has each some of the changes, the first has all."""
    engine_docker(engine, "create", "--name", "template", "busybox", "sleep", "600")
    for n in range(number):
        chosen = [c for i, c in enumerate(changes) if not n or (n * 37 >> i % 7) & 1]
        words = [part for change in chosen for part in ("--change", change)]
        engine_docker(engine, "commit", *words, "template", f"forged:{n}")
    engine_docker(engine, "rm", "template")


def test_what_an_image_says_opens_pins_places_and_moves_nothing(net: Lab) -> None:
    start_on(net, "h1", "test1", "web")
    start_on(net, "h2", "user", "--link", "test1", "busybox", "sleep", "600", port=19998)
    vip = vip_of(net, "user", "test1")
    changes = [f"LABEL {k}={json.dumps(v).replace('VIP', vip)}" for k, v in FORGED_LABELS.items()]
    changes += [f"ENV {k}={v}" for k, v in FORGED_ENV.items()]
    forge_images(net["h2"], changes, 100)
    before = {t: etcd_keys(net, t) for t in ("declared", "volumes", "recipes", "chores")}
    with futures.ThreadPoolExecutor(4) as pool:
        words = ("create", "-e", "ARPANET_HOST=h2")
        made = [("--name", f"forged-{n}", f"forged:{n}") for n in range(1, 100)]
        assert len([*pool.map(lambda one: docker(net, *words, *one), made)]) == 99
    asked = etcd_keys(net, "declared") - before["declared"]
    assert len(asked) == 99, "that they are to be on h2"
    docker(net, "rm", "-f", *(f"forged-{n}" for n in range(1, 100)))
    eventually("they are gone", lambda: require(etcd_keys(net, "declared") == before["declared"]))

    docker(net, "run", "-d", "--name", "forged@h2", "--label", "mine=1", "forged:0")
    engine_docker(net["h2"], "run", "-d", "--name", "past", "forged:0")
    eventually("it is listed", lambda: host_of(net, "past"))
    assert host_of(net, "forged") == "h2"
    for name, to in (("forged", "h1"), ("past", "h1"), ("forged", "h2")):
        for on in (name, "past"):
            assert try_fetch(net, on, vip).returncode, "a link that nobody declared"
        net["h1"].run(["arpanet", "move", name, to])
        assert host_of(net, name) == to
    assert try_fetch(net, "past", vip).returncode
    assert fetch(net, "user", vip) == PAGE
    assert output(net, "inspect", "-f", "{{.Config.Labels.mine}}", "forged") == "1"
    after = {t: etcd_keys(net, t) for t in before}
    assert [len(after[t] - before[t]) for t in before] == [1, 0, 0, 0], "forged asked for a host"
    assert output(net, "volume", "ls", "-q") == ""


def require(what: bool) -> bool:
    assert what
    return what


def etcd_keys(net: Lab, table: str) -> set[str]:
    """Return the keys of a table."""
    words = etcdctl(net["h1"], "get", "--prefix", f"/arpanet/{table}/", "--keys-only")
    return set(net["h1"].run(words).stdout.split())


def test_links_of_an_older_arpanet_are_taken_over_once(net: Lab) -> None:
    """Without the row and its mark, the host is what an older arpanet left."""
    docker(net, "run", "-d", "--name", "test1@h1", "web")
    docker(net, "run", "-d", "--name", "user@h2", "--link", "test1", "busybox", "sleep", "600")
    vip = vip_of(net, "user", "test1")
    key = f"/arpanet/declared/{output(net, 'inspect', '-f', '{{.Id}}', 'user')}"
    net["h2"].run(["arpanet", "slave", "stop"])
    row = net["h1"].run(etcdctl(net["h1"], "get", "--print-value-only", key)).stdout.strip()
    net["h1"].run(etcdctl(net["h1"], "del", key))
    words = etcdctl(net["h1"], "get", "--print-value-only", "/arpanet/hosts/h2")
    known = json.loads(net["h1"].run(words).stdout)
    del known["declares"]
    net["h1"].run(etcdctl(net["h1"], "put", "/arpanet/hosts/h2", json.dumps(known)))
    forge = ["--label", f'arpanet.links=[["test1", "test1", "{vip}"]]', "busybox", "sleep", "600"]
    net["h2"].run(["arpanet", "slave", "start"])
    assert fetch(net, "user", "test1") == PAGE
    again = net["h1"].run(etcdctl(net["h1"], "get", "--print-value-only", key)).stdout
    assert {**json.loads(again), "labels": {}} == {**json.loads(row), "labels": {}}
    engine_docker(net["h2"], "run", "-d", "--name", "past", *forge)
    eventually("it is listed", lambda: host_of(net, "past"))
    net["h2"].run(["arpanet", "slave", "stop"])
    net["h2"].run(["arpanet", "slave", "start"])
    assert try_fetch(net, "past", vip).returncode, "it is done once"
    assert fetch(net, "user", "test1") == PAGE
