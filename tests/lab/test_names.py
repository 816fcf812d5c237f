"""A name is there once, whichever master is asked, and works wherever Docker takes a container."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from urllib.parse import quote

import pytest
from clients import (
    Front,
    ask,
    engine_json,
    engine_names,
    program,
    remove_containers,
    transcript,
)
from conftest import HOSTS, curl, docker, etcdctl, eventually, output, until
from lab import Lab

SLEEP = ("busybox", "sleep", "1000")
RACE_CODE = r"""
import json, sys, threading
hosts, name, rounds = json.load(sys.stdin)
body = json.dumps({"Image": "busybox", "Cmd": ["true"]})
def create(number, host, barrier, answers):
    connection = reach_http(host)
    connection.connect()
    barrier.wait()
    connection.request("POST", f"/containers/create?name={name}{number}", body,
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answers.append([answer.status, answer.read().decode()])
everything = []
for number in range(rounds):
    barrier, answers = threading.Barrier(2), []
    pair = [hosts[number % 3], hosts[(number + 1) % 3]]
    threads = [threading.Thread(target=create, args=(number, h, barrier, answers)) for h in pair]
    [t.start() for t in threads]
    [t.join() for t in threads]
    everything.append(sorted(answers))
json.dump(everything, sys.stdout)
"""


@pytest.fixture(autouse=True)
def clean(net: Lab) -> Iterator[None]:
    """Leave no container to the next test."""
    yield
    remove_containers(net)


def conflict(name: str, container_id: str = "[0-9a-f]{64}") -> str:
    """Return the pattern of Docker's words for a name that is taken."""
    words = re.escape(
        f'Conflict. The container name "/{name}" is already in use by container "ID". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    return words.replace("ID", container_id)


# ---- one name, one container


def test_two_masters_asked_for_one_name_at_the_same_instant_give_it_once_50_times_of_50(
    net: Lab,
) -> None:
    order = json.dumps([[net[h].ip for h in HOSTS], "race", 50])
    done = net.client.run(program(RACE_CODE), input=order)
    rounds = json.loads(done.stdout)
    assert len(rounds) == 50
    for number, answers in enumerate(rounds):
        (won, made), (lost, words) = answers
        assert (won, lost) == (201, 409), answers
        known = f"{json.loads(made)['Id']}|that is being created"
        assert re.fullmatch(conflict(f"race{number}", f"({known})"), json.loads(words)["message"])
    names = sorted(name.partition("@")[0] for name in engine_names(net))
    assert names == sorted(f"race{number}" for number in range(50))


def test_of_two_docker_runs_at_once_one_ends_with_125_and_leaves_nothing(net: Lab) -> None:
    for number in range(5):
        name = f"test{number}"
        with ThreadPoolExecutor(2) as pool:
            runs = [
                pool.submit(docker, net, "run", "-d", "--name", name, *SLEEP, via=via, check=False)
                for via in ("h1", "h2")
            ]
            won, lost = sorted((run.result() for run in runs), key=lambda run: run.returncode)
        assert (won.returncode, lost.returncode) == (0, 125), (won.stderr, lost.stderr)
        assert re.search(f"Error response from daemon: {conflict(name, '.*')}", lost.stderr), (
            lost.stderr
        )
    assert [n.partition("@")[0] for n in engine_names(net)] == [f"test{n}" for n in range(5)]


def test_a_taken_name_is_refused_in_dockers_words(net: Lab) -> None:
    session = [
        ("run", "-d", "--name", "taken", *SLEEP),
        ("run", "-d", "--name", "taken", *SLEEP),
        ("create", "--name", "taken", "busybox"),
        ("create", "--name", "other", "busybox"),
        ("rename", "other", "taken"),
        ("rename", "taken", "taken"),
        ("rename", "nosuch", "free"),
        ("rm", "-f", "taken", "other"),
    ]
    bare = transcript(Front(net, bare=True), session)
    for name in ("taken", "other"):
        eventually(f"{name} is free", lambda name=name: _require_no_name(net, name))  # type: ignore[misc]
    assert bare == transcript(Front(net, bare=False), session)


def _require_no_name(net: Lab, name: str) -> None:
    assert output(net, "ps", "-aq", "--filter", f"name={name}", via="h2") == ""


def test_the_words_of_a_conflict_name_the_container_that_has_the_name(net: Lab) -> None:
    made = output(net, "run", "-d", "--name", "mine", *SLEEP, via="h1")
    done = docker(net, "run", "-d", "--name", "mine", *SLEEP, via="h3", check=False)
    assert done.returncode == 125
    assert re.search(conflict("mine", made), done.stderr)


# ---- names that are refused


def test_without_a_name_the_answer_says_what_to_type(net: Lab) -> None:
    for words in (("run", "-d"), ("create",)):
        done = docker(net, *words, *SLEEP, check=False)
        assert done.returncode == (125 if words[0] == "run" else 1)
        assert "docker run --name NAME" in done.stderr
    assert ask(net, "POST", "/containers/create", '{"Image":"busybox"}').status == 400
    assert engine_names(net) == []


def test_a_new_name_with_an_at_sign_asks_for_that_host(net: Lab) -> None:
    for host in ("h3", "h2"):
        docker(net, "run", "-d", "--name", f"web-{host}@{host}", *SLEEP)
    assert engine_names(net) == ["web-h2@h2", "web-h3@h3"]
    for name, words in (("web@h9", "h1: host==h9 does not hold: it is h1"), ("web@", "--name web")):
        done = docker(net, "run", "-d", "--name", name, *SLEEP, check=False)
        assert done.returncode == 125
        assert words in done.stderr
    assert engine_names(net) == ["web-h2@h2", "web-h3@h3"]


@pytest.mark.parametrize("name", ["a b", "a/b", "-a", "_a", ".a", "a", "a:b", "ä1", "a\tb", "a%"])
def test_bad_characters_are_refused_as_the_engine_refuses_them(net: Lab, name: str) -> None:
    words = ("create", f"--name={name}", "busybox")
    bare, ours = (Front(net, is_bare).run(*words) for is_bare in (True, False))
    assert bare.returncode == 1
    assert (ours.returncode, ours.stderr) == (bare.returncode, bare.stderr)


@pytest.mark.parametrize("name", ["aa", "A1", "0.0", "a-_.", "x" * 200])
def test_a_name_that_the_engine_takes_is_taken(net: Lab, name: str) -> None:
    docker(net, "create", "--name", name, "busybox")
    assert output(net, "ps", "-a", "--format", "{{.Names}}", via="h3").startswith(f"{name}@h")


# ---- every form of a name, in every verb


FORMS = ("name", "full name", "id", "short id", "prefix")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_name_works_in_every_verb(net: Lab, form: str) -> None:
    container_id = output(net, "run", "-d", "--name", "web1", *SLEEP)
    full = output(net, "ps", "--format", "{{.Names}}")
    forms = ("web1", full, container_id, container_id[:12], container_id[:5])
    it = dict(zip(FORMS, forms, strict=True))[form]
    via = cycle(("h2", "h3", "h1"))
    assert output(net, "inspect", "-f", "{{.Id}}", it, via=next(via)) == container_id
    assert output(net, "exec", it, "hostname", via=next(via)) == container_id[:12]
    assert docker(net, "logs", it, via=next(via)).returncode == 0
    assert output(net, "stop", "-t", "0", it, via=next(via)) == it
    assert docker(net, "rename", it, "web2", via=next(via)).returncode == 0
    assert output(net, "ps", "-a", "--format", "{{.Names}}", via=next(via)).startswith("web2@")
    after = it.replace("web1", "web2")
    assert output(net, "rm", after, via=next(via)) == after
    assert engine_names(net) == []


def test_a_name_at_the_wrong_host_is_nobody(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "here", *SLEEP)
    host = output(net, "ps", "--format", "{{.Names}}").partition("@")[2]
    wrong = next(h for h in HOSTS if h != host)
    for reference in (f"here@{wrong}", "here@h9", "here@", f"nosuch@{host}"):
        for words in (("stop",), ("logs",), ("rm", "-f"), ("exec",), ("kill",)):
            done = docker(
                net, *words, reference, *(("true",) if words == ("exec",) else ()), check=False
            )
            assert done.returncode == (0 if words == ("rm", "-f") else 1), words
            assert f"No such container: {reference}" in done.stderr
    assert engine_names(net) == [f"here@{host}"]


# ---- names that come and go


def test_a_rename_through_another_master_is_seen_by_all(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "old", *SLEEP, via="h1")
    host = output(net, "ps", "--format", "{{.Names}}").partition("@")[2]
    docker(net, "rename", "old", "new", via="h2")
    for via in HOSTS:
        assert output(net, "ps", "--format", "{{.Names}}", via=via) == f"new@{host}"
        assert "No such container: old" in docker(net, "stop", "old", via=via, check=False).stderr
    docker(net, "run", "-d", "--name", "old", *SLEEP, via="h3")
    done = docker(net, "run", "-d", "--name", "new", *SLEEP, via="h3", check=False)
    assert re.search(conflict("new"), done.stderr)


def test_a_rename_does_not_move_a_container(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "stay", *SLEEP)
    host = output(net, "ps", "--format", "{{.Names}}").partition("@")[2]
    wrong = next(h for h in HOSTS if h != host)
    done = docker(net, "rename", "stay", f"gone@{wrong}", check=False)
    assert done.returncode == 1
    assert "cannot move" in done.stderr
    assert engine_names(net) == [f"stay@{host}"]


def test_a_removed_name_is_free_at_once_on_another_master(net: Lab) -> None:
    for number in range(10):
        first, second = HOSTS[number % 3], HOSTS[(number + 1) % 3]
        docker(net, "create", "--name", "again", "busybox", via=first)
        docker(net, "rm", "again", via=second)
    assert engine_names(net) == []


def test_run_rm_of_one_name_ten_times_in_a_row_never_conflicts(net: Lab) -> None:
    for number in range(10):
        via = HOSTS[number % 3]
        done = docker(
            net, "run", "--rm", "--name", "once", "busybox", "echo", str(number), via=via,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{number}\n", "")


def test_a_create_that_fails_leaves_its_name_free(net: Lab) -> None:
    for _ in range(2):
        done = docker(net, "run", "--name", "bad", "-m", "1k", "busybox", check=False)
        assert done.returncode == 125
        assert "Minimum memory limit" in done.stderr
    docker(net, "create", "--name", "bad", "busybox", via="h3")


# ---- containers that arpanet did not make


def test_a_container_that_was_made_on_an_engine_is_listed_and_reached(net: Lab) -> None:
    net["h2"].run(["docker", "run", "-d", "--name", "own", *SLEEP])
    eventually("own@h2 is listed", lambda: _require_listed(net, ["own@h2"]))
    assert output(net, "exec", "own", "echo", "reached", via="h3") == "reached"
    done = docker(net, "run", "-d", "--name", "own", *SLEEP, via="h1", check=False)
    assert done.returncode == 125
    assert re.search(conflict("own"), done.stderr)


def test_one_name_on_two_engines_is_reached_as_name_at_host(net: Lab) -> None:
    ids = {}
    for host in ("h2", "h3"):
        made = net[host].run(["docker", "run", "-d", "--name", "twin", *SLEEP])
        ids[host] = made.stdout.strip()
    both = sorted(["twin@h2", f"twin-{ids['h3'][:6]}@h3"])  # the older keeps the name
    eventually("both are listed", lambda: _require_listed(net, both))
    for host in ("h2", "h3"):
        own_id = engine_json(net[host], "/containers/twin/json")["Id"]
        for via in HOSTS:
            assert output(net, "inspect", "-f", "{{.Id}}", f"twin@{host}", via=via) == own_id
    docker(net, "rm", "-f", "twin@h2")
    assert engine_names(net) == ["twin@h3"]
    eventually("the other one has the name", lambda: _require_listed(net, ["twin@h3"]))
    done = docker(net, "create", "--name", "twin", "busybox", check=False)
    assert re.search(conflict("twin"), done.stderr)
    docker(net, "rm", "-f", "twin")
    docker(net, "create", "--name", "twin", "busybox", via="h2")


def _require_listed(net: Lab, names: list[str]) -> None:
    for via in HOSTS:
        assert sorted(output(net, "ps", "--format", "{{.Names}}", via=via).split()) == names


def test_a_container_and_its_name_come_and_go_in_one_change(net: Lab) -> None:
    """Each change is written to the disks of a majority: of a create there are two, of rm one."""
    host = net["h1"]

    def revisions(container_id: str) -> tuple[int, set[int]]:
        text = host.run(etcdctl(host, "get", "--prefix", "/arpanet/", "-w", "json")).stdout
        answer = json.loads(text)
        rows = {base64.b64decode(row["key"]).decode(): row for row in answer["kvs"]}
        ours = [r for k, r in rows.items() if k.endswith("/names/once") or f"/{container_id}" in k]
        return answer["header"]["revision"], {row["mod_revision"] for row in ours}

    before, _ = revisions("none")
    made = output(net, "create", "--name", "once", *SLEEP)
    created, changes = revisions(made)
    assert changes == {created}
    assert created == before + 2
    docker(net, "rm", "once", via="h2")
    after, left = revisions(made)
    assert (after, left) == (created + 1, set())


@pytest.mark.parametrize("table", ["names", "volumes"])
def test_a_claim_that_is_done_late_is_undone(net: Lab, table: str) -> None:
    """An etcd that stood still does what it was asked before it did, though that was over since."""

    def etcd(*words: str) -> str:
        return net["h1"].run(etcdctl(net["h1"], *words)).stdout.strip()

    key, foreign = f"/arpanet/{table}/late", f"/arpanet/{table}/foreign"
    docker(net, "create", "--name", "late", "-v", "late:/data", "busybox")
    (row,) = json.loads(etcd("get", key, "-w", "json"))["kvs"]
    claim = etcd("get", key, f"--rev={row['create_revision']}", "--print-value-only")
    assert json.loads(claim)["token"]
    docker(net, "rm", "late")
    docker(net, "volume", "rm", "late")
    etcd("put", foreign, json.dumps({**json.loads(claim), "token": "of a create that goes on"}))
    try:
        etcd("put", key, claim)
        until("the claim is gone", lambda: not etcd("get", key))
        assert etcd("get", foreign)
    finally:
        etcd("del", foreign)
    docker(net, "create", "--name", "late", "-v", "late:/data", "busybox")
    docker(net, "rm", "late")
    docker(net, "volume", "rm", "late")


def test_a_listing_has_both_names_and_the_rest_says_the_plain_one(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "web@h2", *SLEEP)
    docker(net, "run", "-d", "--name", "h2", *SLEEP)
    both = ["/web@h2", "/web"]
    path = "/containers/json?filters=" + quote('{"name": ["^/web$"]}')
    for program_name, names in (("curl/8", both), ("compose/2.40", both[::-1]), ("x", both)):
        words = curl(net["h3"], path, "-A", program_name)
        (entry,) = json.loads(net.client.run(words).stdout)
        assert entry["Names"] == names
    for name, found in (("^web$", ["web@h2"]), ("web@h2", ["web@h2"]), ("web@h1", [])):
        listed = output(net, "ps", "--filter", f"name={name}", "--format", "{{.Names}}")
        assert listed.split() == found, name
    named_h2 = output(net, "ps", "-q", "--no-trunc", "--filter", "name=h2", via="h3")
    assert named_h2 == output(net, "inspect", "-f", "{{.Id}}", "h2")
    on_h2 = output(net, "ps", "--filter", "node=h2", "--format", "{{.Names}}").split()
    assert on_h2 == output(net, "ps", "--filter", "host=h2", "--format", "{{.Names}}").split()
    assert "web@h2" in on_h2
    assert output(net, "inspect", "-f", "{{.Name}} {{.Host.Name}}", "web@h2") == "/web h2"
    usage = json.loads(ask(net, "GET", "/system/df").text)
    assert both in [entry["Names"] for entry in usage["Containers"]]


LISTS = ("/containers/json", "/images/json", "/networks", "/volumes", "/events?until=1")


@pytest.mark.parametrize("path", LISTS)
def test_filters_that_are_null_are_none(net: Lab, path: str) -> None:
    path += ("&" if "?" in path else "?") + "filters=null"
    assert ask(net, "GET", path).status == 200


def test_info_says_an_engines_versions_and_an_id_that_all_masters_share(net: Lab) -> None:
    infos = [json.loads(net.client.run(curl(net[h], "/info")).stdout) for h in HOSTS]
    bare = engine_json(net["h1"], "/info")
    ours = {(i["ServerVersion"], i["Driver"], i["ID"]) for i in infos}
    ((version, driver, network_id),) = ours
    assert (version, driver) == (bare["ServerVersion"], bare["Driver"])
    assert network_id not in ("arpanet", bare["ID"])
    assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", network_id)
    assert re.match(r"\d+\.\d+", infos[0]["Arpanet"]["Version"])
