"""Containers on three hosts: listed at once everywhere, run as a bare engine runs them."""

from __future__ import annotations

import datetime
import json
import re
import urllib.parse
from collections.abc import Iterator, Sequence

import pytest
from clients import (
    Ask,
    Front,
    ask_all,
    engine_json,
    engine_names,
    program,
    remove_containers,
    send_raw,
    transcript,
)
from conftest import HOSTS, TLS, docker, eventually, output, until
from lab import Lab

SLEEP = ("busybox", "sleep", "1000")


@pytest.fixture(autouse=True)
def clean(net: Lab) -> Iterator[None]:
    """Leave no container to the next test."""
    yield
    remove_containers(net)


# ---- listing


@pytest.fixture
def mixed(net: Lab) -> list[str]:
    """Return the ids, oldest first, of containers in many states, made through all masters."""
    return [
        output(net, *words, via=HOSTS[number % 3])
        for number, words in enumerate(
            [
                ("run", "-d", "--name", "web1", "--label", "tier=web", "--label", "x", "web"),
                ("run", "-d", "--name", "web2", "--label", "tier=web", "-p", "8081:8000", "web"),
                ("run", "-d", "--name", "db", "--label", "tier=db", "--expose", "5432", *SLEEP),
                ("run", "-d", "--name", "failed", "busybox", "sh", "-c", "exit 3"),
                ("run", "-d", "--name", "ended", "busybox", "true"),
                ("create", "--name", "made", "--label", "x", "busybox"),
                ("run", "-d", "--name", "data", "-v", "store:/data", *SLEEP),
                ("run", "-d", "--name", "sick", "--health-cmd", "false", *SLEEP),
            ]
        )
    ]


FILTERS = [
    "name=web", "name=^web1$", "name=/db", "name=nosuch", "label=tier", "label=tier=web", "label=x",
    "label=tier=", "status=running", "status=exited", "status=created", "status=paused",
    "exited=0", "exited=3", "exited=137", "ancestor=busybox", "ancestor=web:latest",
    "ancestor=nosuch", "health=none", "health=starting", "volume=store", "volume=/data",
    "publish=8081", "publish=8000-9000/tcp", "expose=5432", "expose=8000/tcp", "network=bridge",
    "network=none", "is-task=false", "is-task=true",
]  # fmt: skip


def test_every_filter_finds_what_the_engines_find(net: Lab, mixed: list[str]) -> None:
    docker(net, "wait", "failed", "ended")
    docker(net, "pause", "db")
    cases = [(f,) for f in FILTERS] + [("label=tier", "label=x"), ("name=web", "name=db")]
    cases += [("status=exited", "status=created"), (f"id={mixed[0][:4]}",), (f"id={mixed[1]}",)]
    cases += [("name=web", "label=x"), (f"ancestor={_image_id(net)}",)]
    paths = [
        f"/containers/json?all={everything}&filters={urllib.parse.quote(filters_of(case))}"
        for case in cases
        for everything in (0, 1)
    ]
    for path, answer in zip(paths, ask_all(net, *(Ask("GET", p) for p in paths)), strict=True):
        found = sorted(e["Id"] for e in json.loads(answer.text))
        told = sorted(e["Id"] for host in net.hosts for e in engine_json(host, path))
        assert found == told, urllib.parse.unquote(path)


def filters_of(case: Sequence[str]) -> str:
    """Return filters as the docker client sends them."""
    filters: dict[str, dict[str, bool]] = {}
    for text in case:
        name, _, value = text.partition("=")
        filters.setdefault(name, {})[value] = True
    return json.dumps(filters)


def _image_id(net: Lab) -> str:
    return str(engine_json(net["h1"], "/images/busybox/json")["Id"])


def test_filters_at_the_command_line(net: Lab, mixed: list[str]) -> None:
    del mixed
    for words, wanted in [
        (("--filter", "label=tier=web"), ["web1", "web2"]),
        (("-a", "--filter", "exited=3"), ["failed"]),
        (("-a", "--filter", "status=created"), ["made"]),
        (("--filter", "name=db"), ["db"]),
        (("--filter", "ancestor=web"), ["web1", "web2"]),
    ]:
        names = output(net, "ps", *words, "--format", "{{.Names}}", via="h2").split()
        assert sorted(n.partition("@")[0] for n in names) == wanted, words


@pytest.mark.parametrize(
    "words",
    [
        ("--filter", "nosuch=1"),
        ("--filter", "status=nosuch"),
        ("--filter", "exited=x"),
        ("--filter", "health=nosuch"),
        ("--filter", "is-task=perhaps"),
        ("--filter", "publish=x"),
        ("-n", "x"),
    ],
)
def test_a_bad_filter_is_refused_in_the_engines_words(net: Lab, words: Sequence[str]) -> None:
    bare, ours = (Front(net, is_bare).run("ps", "-a", *words) for is_bare in (True, False))
    assert (ours.returncode, ours.stderr) == (bare.returncode, bare.stderr)


def test_the_newest_come_first_and_a_limit_cuts_the_rest(net: Lab, mixed: list[str]) -> None:
    newest = mixed[::-1]
    every = ("ps", "--no-trunc", "--format", "{{.ID}}")
    assert output(net, *every, "-a", via="h2").split() == newest
    for count in (1, 3, 100):
        assert output(net, *every, "-n", str(count), via="h3").split() == newest[:count]
    assert output(net, *every, "-l").split() == newest[:1]
    assert output(net, *every, "-a", "--filter", "before=made").split() == newest[3:]
    assert output(net, *every, "-a", "--filter", "since=failed").split() == newest[:4]


def test_ids_are_cut_names_carry_the_host_and_sizes_are_shown(net: Lab, mixed: list[str]) -> None:
    assert sorted(output(net, "ps", "-aq").split()) == sorted(i[:12] for i in mixed)
    assert sorted(output(net, "ps", "-aq", "--no-trunc").split()) == sorted(mixed)
    names = output(net, "ps", "-a", "--format", "{{.Names}}", via="h3").split()
    assert sorted(names) == engine_names(net)
    docker(net, "exec", "db", "sh", "-c", "head -c 1000000 /dev/zero >/big")
    words = ["ps", "-s", "--filter", "name=db", "--format", "{{.Names}} {{.Size}}"]
    shown = re.compile(r"db@h\d 1MB \(virtual [\d.]+MB\)")
    until("its size", lambda: shown.fullmatch(output(net, *words)))  # 0B where an engine is slow
    header = output(net, "ps", "-as").splitlines()[0].split("  ")
    assert [w.strip() for w in header if w] == [
        "CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "SIZE",
    ]  # fmt: skip


AGES = {"Less than a second": 0, "1 second": 1, "About a minute": 60}


def split_ages(row: str) -> tuple[str, list[int]]:
    """Return a row of docker ps without its ages, and the ages in seconds."""
    for words, number in AGES.items():
        row = re.sub(rf"\b{words}\b", f"{number} seconds", row)
    return re.sub(r"\d+ seconds", "AGE", row), [int(n) for n in re.findall(r"(\d+) seconds", row)]


def test_every_column_but_the_name_is_the_engines_own(net: Lab, mixed: list[str]) -> None:
    docker(net, "wait", "failed", "ended")
    docker(net, "pause", "db")
    docker(net, "kill", "data")
    assert len(mixed) == 8
    row = "{{.ID}}|{{.Image}}|{{.Command}}|{{.Status}}|{{.State}}|{{.Ports}}|{{.Labels}}"
    row += "|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.RunningFor}}"

    def engines_rows() -> list[str]:
        lists = [h.run(["docker", "ps", "-a", "--format", row]).stdout for h in net.hosts]
        return sorted("".join(lists).splitlines())

    before = engines_rows()
    shown = sorted(output(net, "ps", "-a", "--format", row, via="h2").splitlines())
    for first, ours, last in zip(before, shown, engines_rows(), strict=True):
        words, seconds = split_ages(ours)
        earliest, latest = (split_ages(engines) for engines in (first, last))
        assert words == earliest[0] == latest[0]
        assert all(a <= b <= c for a, b, c in zip(earliest[1], seconds, latest[1], strict=True))
    for words in ("(Paused)", "Exited (3)", "Exited (0)", "Exited (137)", "(health: starting)"):
        assert any(words in line for line in shown), words


CHANGES: list[list[tuple[tuple[str, ...], str, str]]] = [
    [(("pause", "c1"), "c1", "(Paused)"), (("unpause", "c1"), "c1", "Up ")],
    [(("rename", "c1", "c2"), "c2", "Up "), (("restart", "-t", "0", "c2"), "c2", "Up ")],
    [(("kill", "c1"), "c1", "Exited (137)"), (("start", "c1"), "c1", "Up ")],
    [(("stop", "-t", "0", "c1"), "c1", "Exited (137)")],
]


def test_docker_ps_shows_each_change_through_another_master(net: Lab) -> None:
    for number in range(len(CHANGES)):
        first, second, third = (HOSTS[(number + step) % 3] for step in range(3))
        docker(net, "run", "-d", "--name", "c1", *SLEEP, via=first)
        assert output(net, "ps", "--format", "{{.Names}}", via=third).startswith("c1@")
        for words, name, status in CHANGES[number]:
            docker(net, *words, via=second)
            shown = output(net, "ps", "-a", "--format", "{{.Names}} {{.Status}}", via=third)
            assert shown.startswith(f"{name}@"), (words, shown)
            assert status in shown, (words, shown)
            assert ("(Paused)" in shown) == (status == "(Paused)"), (words, shown)
            second, third = third, second
        docker(net, "rm", "-f", name, via=second)
        assert output(net, "ps", "-aq", via=third) == ""


STALE_CODE = r"""
import json, sys
hosts, rounds = json.load(sys.stdin)
links = [reach_http(host) for host in hosts]
def say(link, verb, path, body=None):
    link.request(verb, path, body, {"Content-Type": "application/json"} if body else {})
    answer = link.getresponse()
    text = answer.read()
    assert answer.status < 300, (verb, path, answer.status, text)
    return json.loads(text or b"null")
def listed(link):
    while True:
        link.request("GET", "/containers/json?all=1")
        answer = link.getresponse()
        entries = json.load(answer)
        if not answer.getheader("Warning"):  # it had no majority's word, and says so
            return [(e["Names"][0].split("@")[0][1:], e["State"]) for e in entries]
body = json.dumps({"Image": "busybox", "Cmd": ["sleep", "1000"]})
for number in range(rounds):
    one, others = links[number % 3], [links[(number + 1) % 3], links[(number + 2) % 3]]
    for verb, path, body_now, wanted in [
        ("POST", "/containers/create?name=c1", body, [("c1", "created")]),
        ("POST", "/containers/c1/start", None, [("c1", "running")]),
        ("POST", "/containers/c1/pause", None, [("c1", "paused")]),
        # after it an engine itself may say paused for a moment
        ("POST", "/containers/c1/unpause", None, [("c1", "")]),
        ("POST", "/containers/c1/rename?name=c2", None, [("c2", "")]),
        ("POST", "/containers/c2/kill", None, [("c2", "exited")]),
        ("DELETE", "/containers/c2", None, []),
    ]:
        say(one, verb, path, body_now)
        for other in others:
            found = listed(other)
            if found != wanted and [(name, "") for name, _ in found] != wanted:
                print(number, verb, path, "wanted", wanted, "found", found)
"""


def test_no_listing_is_stale_a_millisecond_after_the_answer(net: Lab) -> None:
    order = json.dumps([[net[h].ip for h in HOSTS], 10])
    done = net.client.run(program(STALE_CODE), input=order)
    assert done.stdout == ""


def test_a_container_that_ends_by_itself_is_soon_listed_as_ended(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "brief", "busybox", "sh", "-c", "sleep 0.3; exit 4")

    def ended() -> None:
        assert "Exited (4)" in output(net, "ps", "-a", "--format", "{{.Status}}", via="h3")

    eventually("brief has ended", ended)


def test_after_wait_every_master_shows_the_end(net: Lab) -> None:
    for number in range(5):
        docker(net, "run", "-d", "--name", f"w{number}", "busybox", "sleep", "0.2", via="h1")
        assert output(net, "wait", f"w{number}", via="h2") == "0"
        shown = output(net, "ps", "-a", "--format", "{{.Status}}", "-l", via="h3")
        assert shown.startswith("Exited (0)"), shown


# ---- what a bare engine says, arpanet says

SESSIONS: dict[str, list[tuple[str, ...]]] = {
    "exit codes": [
        ("run", "--rm", "--name", "t1", "busybox", "true"),
        ("run", "--rm", "--name", "t1", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"),
        ("run", "--rm", "--name", "t1", "--nosuch", "busybox"),
        ("run", "--rm", "--name", "t1", "-m", "1k", "busybox"),
        ("run", "--rm", "--name", "t1", "--cpus", "1000", "busybox"),
        ("run", "--rm", "--name", "t1", "busybox", "/etc/passwd"),
        ("run", "--rm", "--name", "t1", "busybox", "nosuch"),
        ("run", "--rm", "--name", "t1", "-w", "relative", "busybox", "true"),
        ("run", "--rm", "--name", "t1", "-u", "nosuch", "busybox", "true"),
        ("run", "--rm", "--name", "t1", "busybox", "sh", "-c", "kill -9 $$"),
        ("ps", "-aq"),
    ],
    "a life": [
        ("create", "--name", "t1", "busybox", "sh", "-c", "echo hello; sleep 1000"),
        ("inspect", "-f", "{{.State.Status}} {{.Config.Cmd}} {{.Path}} {{.Args}}", "t1"),
        ("start", "t1"),
        ("start", "t1"),
        ("inspect", "-f", "{{.State.Status}}", "t1"),
        ("rm", "t1"),
        ("pause", "t1"),
        ("pause", "t1"),
        ("exec", "t1", "true"),
        ("unpause", "t1"),
        ("unpause", "t1"),
        ("restart", "-t", "0", "t1"),
        ("kill", "-s", "NOSUCH", "t1"),
        ("kill", "-s", "KILL", "t1"),
        ("wait", "t1"),
        ("kill", "t1"),
        ("stop", "t1"),
        ("exec", "t1", "true"),
        ("attach", "t1"),
        ("top", "t1"),
        ("logs", "t1"),
        ("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "t1"),
        ("rm", "t1"),
        ("rm", "t1"),
    ],
    "nobody": [
        (verb, "nosuch")
        for verb in ("start", "stop", "restart", "kill", "pause", "unpause", "logs", "top", "diff",
                     "port", "wait", "attach", "inspect", "rm", "stats", "export")
    ] + [
        ("rm", "-f", "nosuch"), ("exec", "nosuch", "true"), ("update", "-c", "5", "nosuch"),
        ("cp", "nosuch:/etc/passwd", "-"), ("container", "inspect", "nosuch"),
        ("stats", "--no-stream", "nosuch"), ("rename", "nosuch", "free"),
    ],
    "logs": [
        ("run", "--name", "t1", "busybox", "sh", "-c", "echo 1; echo 2 >&2; echo 3; echo 4 >&2"),
        ("logs", "t1"),
        ("logs", "--tail", "0", "t1"),
        ("logs", "--since", "2100-01-01T00:00:00Z", "t1"),
        ("logs", "-f", "t1"),
        ("run", "-t", "--name", "t2", "busybox", "sh", "-c", "echo 1; echo 2 >&2"),
        ("logs", "t2"),
        ("logs", "--tail", "1", "t2"),
        ("rm", "t1", "t2"),
    ],
    "exec": [
        ("run", "-d", "--name", "t1", *SLEEP),
        ("exec", "t1", "sh", "-c", "echo out; echo err >&2; exit 7"),
        ("exec", "t1", "nosuch"),
        ("exec", "t1", "/etc/passwd"),
        ("exec", "-e", "A=1", "-w", "/tmp", "-u", "nobody", "t1", "sh", "-c", "echo $A; pwd; id"),
        ("exec", "-u", "nosuch", "t1", "true"),
        ("exec", "-d", "t1", "touch", "/touched"),
        ("exec", "t1", "sh", "-c", "until [ -e /touched ]; do :; done; echo seen"),
        ("rm", "-f", "t1"),
    ],
    "small verbs": [
        ("run", "-d", "--name", "t1", "-p", "8088:80", "--hostname", "name1", *SLEEP),
        ("port", "t1"),
        ("port", "t1", "80"),
        ("port", "t1", "81"),
        ("top", "t1", "-o", "comm"),
        ("exec", "t1", "touch", "/etc/new"),
        ("diff", "t1"),
        ("update", "--cpu-shares", "512", "-m", "64m", "--memory-swap", "-1", "t1"),
        ("update", "-m", "1k", "t1"),
        ("inspect", "-f", "{{.HostConfig.CpuShares}} {{.HostConfig.Memory}}", "t1"),
        ("inspect", "-f", "{{.Config.Hostname}} {{.HostConfig.PortBindings}}", "t1"),
        ("exec", "t1", "hostname"),
        ("rename", "t1", "t2"),
        ("rename", "t2", "t2"),
        ("rename", "t2", "b%d"),
        ("inspect", "-f", "{{.State.Status}}", "t2"),
        ("rm", "-f", "t2"),
    ],
    "detached": [
        ("run", "-d", "--name", "t1", "busybox", "sh", "-c", "sleep 3; exit 9"),
        ("wait", "t1"),
        ("wait", "t1"),
        ("start", "-a", "t1"),
        ("start", "t1", "nosuch"),
        ("rm", "-f", "t1"),
        ("run", "-d", "--rm", "--name", "t1", "busybox", "nosuch"),
        ("run", "-d", "--rm", "--name", "t1", "busybox", "sh", "-c", "sleep 5"),
        ("wait", "t1"),
    ],
    "cp": [
        ("create", "--name", "t1", "busybox"),
        ("cp", "t1:/nosuch", "/run/x"),
        ("cp", "/run/nosuch", "t1:/"),
        ("cp", "/etc/hostname", "t1:/nosuch/dir/x"),
        ("cp", "-q", "/etc/passwd", "t1:/etc/copied"),
        ("cp", "-q", "t1:/etc/copied", "/run/back"),
        ("diff", "t1"),
        ("rm", "t1"),
    ],
    "images": [
        ("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}"),
        ("inspect", "-f", "{{.Id}} {{.Config.Cmd}}", "web"),
        ("history", "--format", "{{.Comment}}", "web"),
        ("inspect", "nosuch"),
        ("image", "inspect", "nosuch"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_is_answered_as_by_a_bare_engine(net: Lab, name: str) -> None:
    bare = transcript(Front(net, bare=True), SESSIONS[name])
    remove_containers(net)
    ours = transcript(Front(net, bare=False), SESSIONS[name])
    assert ours == bare


def test_the_words_for_a_command_that_cannot_run_are_dockers(net: Lab) -> None:
    for command, code, words in [
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
    ]:
        done = docker(net, "run", "--rm", "--name", "bad", "busybox", command, check=False)
        assert done.returncode == code
        assert words in done.stderr
    assert docker(net, "run", "--nosuch", "busybox", check=False).returncode == 125
    assert engine_names(net) == []


# ---- the rest of the verbs


def test_stats_show_the_name(net: Lab) -> None:
    for number in range(3):
        docker(net, "run", "-d", "--name", f"s{number}", *SLEEP)
    row = ("--no-stream", "--format", "{{.Name}} {{.PIDs}}")
    named = output(net, "stats", *row, "s0", "s1", "s2", via="h2").splitlines()
    assert sorted(named) == [f"s{number} 1" for number in range(3)]
    assert sorted(output(net, "stats", *row, via="h3").splitlines()) == sorted(named)


def test_inspect_tells_name_and_host(net: Lab) -> None:
    container_id = output(net, "run", "-d", "--name", "i1", *SLEEP)
    (name,) = engine_names(net)
    host = name.partition("@")[2]
    (ours,) = json.loads(output(net, "inspect", "i1", via="h3"))
    (bare,) = json.loads(net[host].run(["docker", "inspect", "i1"]).stdout)
    assert ours.pop("Host") == {"Name": host, "IP": net[host].ip}
    (network,) = json.loads(output(net, "network", "inspect", "bridge"))
    bare["NetworkSettings"]["Networks"]["bridge"]["NetworkID"] = network["Id"]
    assert ours == bare
    assert ours["Name"] == "/i1"
    assert ours["Id"] == container_id


def test_100_mb_are_copied_in_and_out_byte_for_byte(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "box", *SLEEP)
    client = net.client
    client.run(["sh", "-c", "head -c 100000000 /dev/urandom >/run/hundred"])
    (wanted, _, _) = client.run(["sha256sum", "/run/hundred"]).stdout.partition(" ")
    docker(net, "cp", "-q", "/run/hundred", "box:/tmp/in", via="h2", timeout=120)
    assert output(net, "exec", "box", "sha256sum", "/tmp/in").split()[0] == wanted
    docker(net, "cp", "-q", "box:/tmp/in", "/run/back", via="h3", timeout=120)
    assert client.run(["sha256sum", "/run/back"]).stdout.split()[0] == wanted
    client.run(["rm", "/run/hundred", "/run/back"])


def test_an_archive_is_not_packed_for_the_way(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "box", *SLEEP)
    asked = b"GET /containers/box/archive?path=/etc/passwd HTTP/1.1\r\nHost: x\r\n"
    said = send_raw(net, asked + b"Accept-Encoding: gzip\r\nConnection: close\r\n\r\n")
    assert " 200 " in said.partition("\r\n")[0]
    assert "content-encoding" not in said.partition("\r\n\r\n")[0].lower()
    assert "root:" in said


def test_a_directory_is_copied_in_and_out(net: Lab) -> None:
    docker(net, "create", "--name", "box", "busybox")
    client = net.client
    client.run(["sh", "-c", "mkdir -p /run/tree/a/b; echo 1 >/run/tree/x; echo 2 >/run/tree/a/b/y"])
    client.run(["sh", "-c", "ln -sf x /run/tree/link; chmod 700 /run/tree/a; : >'/run/tree/a b'"])
    docker(net, "cp", "-aq", "/run/tree", "box:/root/", via="h2")
    docker(net, "cp", "-aq", "box:/root/tree", "/run/again", via="h3")
    show = "cd {} && find . | sort | xargs -d '\\n' stat -c '%n %a %s %N' | grep -v '^. '"
    first, second = (client.run(["sh", "-c", show.format(d)]) for d in ("/run/tree", "/run/again"))
    assert first.stdout == second.stdout
    assert first.stdout.count("\n") == 6
    client.run(["rm", "-r", "/run/tree", "/run/again"])


def test_an_export_is_the_containers_whole_tree(net: Lab) -> None:
    docker(net, "create", "--name", "box", "web")
    address = f"tcp://{net['h2'].ip}:8791"
    listed = net.client.run(["sh", "-c", f"docker -H {address} export box | tar t"]).stdout
    assert "bin/busybox" in listed.splitlines()
    assert "www/cgi-bin/hostname" in listed.splitlines()


# ---- events


def test_a_stream_of_events_goes_on_with_hosts_that_come_back(net: Lab) -> None:
    row = "{{.TimeNano}} {{.Action}} {{.Actor.Attributes.name}}@{{.Actor.Attributes.host}}"
    command = ["docker", "-H", f"tcp://{net['h1'].ip}:8791", "events"]
    since = datetime.datetime.now(datetime.timezone.utc).isoformat()
    command += ["--since", since, "--filter", "type=container", "--format", row]
    watcher = net.client.popen(command, stdout=-1)
    seen: list[list[str]] = []

    def read_until(action: str, name: str) -> None:
        while [action, name] not in [line[1:] for line in seen]:
            assert watcher.stdout
            line = watcher.stdout.readline()
            assert line, seen
            seen.append(line.split())

    def make(*names: str) -> None:
        for name in names:
            net["h3"].run(["docker", "run", "-d", "--name", name, *SLEEP])

    make("before")
    read_until("start", "before@h3")
    net["h3"].run(["arpanet", "slave", "stop"])
    make("away")
    net["h3"].run(["arpanet", "slave", "start"])
    make("after")
    read_until("start", "after@h3")
    watcher.terminate()
    watcher.communicate()
    told = [line[1:] for line in seen if line[2].endswith("@h3")]
    names = ("before@h3", "away@h3", "after@h3")
    assert told == [[action, name] for name in names for action in ("create", "start")]


def test_one_stream_of_events_tells_of_all_hosts_in_the_order_of_time(net: Lab) -> None:
    since = datetime.datetime.now(datetime.timezone.utc).isoformat()
    row = "{{.TimeNano}} {{.Action}} {{.Actor.Attributes.name}}@{{.Actor.Attributes.host}}"
    command = ["docker", "-H", f"tcp://{net['h2'].ip}:8791", "events", "--since", since]
    watcher = net.client.popen([*command, "--format", row], stdout=-1)
    for number in range(6):
        docker(net, "run", "-d", "--name", f"e{number}", *SLEEP, via=HOSTS[number % 3])
    names = engine_names(net)
    docker(net, "kill", *(name.partition("@")[0] for name in names))
    seen: list[list[str]] = []
    assert watcher.stdout
    while sum(action == "die" for _, action, _ in seen) < 6:
        line = watcher.stdout.readline()
        assert line, seen
        seen.append(line.split())
    watcher.kill()
    watcher.communicate()
    for host in HOSTS:  # what another one tells more than 0.25 s late comes after what is later
        times = [int(time) for time, _, name in seen if name.endswith(f"@{host}")]
        assert times == sorted(times)
    for action in ("create", "start", "die"):
        assert sorted(name for _, a, name in seen if a == action) == names
    assert {name.partition("@")[2] for name in names} == set(HOSTS)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    past = [*command[3:], "--until", now]

    def is_told_in_order() -> None:
        told = [line.split() for line in output(net, *past, "--format", row, via="h3").splitlines()]
        assert [line for line in told if line in seen] == sorted(
            seen, key=lambda line: int(line[0])
        )

    eventually("what has been is told in the order of time", is_told_in_order)
    full_name = next(n for n in names if n.startswith("e1@"))
    for asked in ("e1", full_name):
        only = ("--filter", "event=die", "--filter", f"container={asked}", "--format", row)
        filtered = output(net, *past, *only).splitlines()
        assert [line.split()[1:] for line in filtered] == [["die", full_name]]


def opened(lab: Lab, host: str) -> int:
    """Return how many TCP connections have been opened from a host. Source: proc(5), net/snmp."""
    names, values = (
        line.split()
        for line in lab[host].run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        if line.startswith("Tcp:")
    )
    return int(values[names.index("ActiveOpens")])


def test_calls_to_one_engine_share_a_connection(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "c1", *SLEEP)
    before, pairs = opened(net, "h1"), 60 * TLS  # each client's TLS goes through a pair
    for answer in ask_all(net, *[Ask("GET", "/containers/c1/json")] * 60):
        assert answer.status == 200
    assert opened(net, "h1") - before - pairs < 30
