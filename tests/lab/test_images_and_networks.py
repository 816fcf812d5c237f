"""Images, networks, volumes and execs: made through one master, used through all."""

from __future__ import annotations

import json
import shutil
import tarfile
import time
from collections.abc import Callable
from typing import Any

import pytest
from clients import engine_json
from conftest import HOSTS, curl, docker, eventually, output
from debian import CLIENTS, run_in, unstable
from lab import Lab


def ask(lab: Lab, via: str, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return the status and the JSON that a master answers, asked without a client of Docker."""
    words = [
        "-sS",
        "-X",
        verb,
        "-w",
        "\n%{http_code}",
        "-H",
        "Content-Type: application/json",
    ]
    words += ["-d", json.dumps(body)] if body is not None else []
    said = lab.client.run(curl(lab[via], path, *words)).stdout
    text, _, status = said.rpartition("\n")
    return int(status), json.loads(text) if text.startswith(("{", "[")) else text


def engine_output(lab: Lab, host: str, *words: str) -> str:
    """Return what a host's own engine says."""
    return lab[host].run(["docker", *words]).stdout.strip()


def host_of(lab: Lab, name: str) -> str:
    return output(lab, "inspect", "--format", "{{.Host.Name}}", name)


def run_everywhere(lab: Lab, image: str, *command: str) -> dict[str, str]:
    """Return what a command of an image says on each of the three hosts."""
    names = [f"everywhere{number}" for number in range(3)]
    try:
        for name in names:
            docker(lab, "run", "--name", name, image, *command)
        return {host_of(lab, name): output(lab, "logs", name) for name in names}
    finally:
        docker(lab, "rm", "-f", *names)


# ---- execs


def test_an_exec_is_created_started_and_inspected_through_three_masters(net: Lab) -> None:
    docker(net, "run", "-d", "--init", "--name", "execs", "busybox", "sleep", "1000")
    body = {"Cmd": ["sh", "-c", "echo said; exit 6"], "AttachStdout": True}
    status, made = ask(net, "h1", "POST", "/containers/execs/exec", body)
    assert status == 201
    path = f"/exec/{made['Id']}"
    status, said = ask(net, "h2", "POST", f"{path}/start", {"Detach": False})
    assert (status, said[8:]) == (200, "said\n"), said
    status, seen = ask(net, "h3", "GET", f"{path}/json")
    assert (status, seen["ExitCode"], seen["Running"]) == (200, 6, False)
    status, error = ask(net, "h2", "GET", "/exec/0123456789ab/json")
    assert (status, error) == (404, {"message": "No such exec instance: 0123456789ab"})
    docker(net, "rm", "-f", "execs")


# ---- images


def test_an_image_built_through_one_master_runs_on_every_host(net: Lab) -> None:
    docker(net, "build", "-q", "-t", "built", "-", input="FROM busybox\nRUN echo built >/built\n")
    assert run_everywhere(net, "built", "cat", "/built") == dict.fromkeys(HOSTS, "built")
    docker(net, "rmi", "built", via="h3")


def test_a_buildkit_build_goes_through_session_and_its_image_runs_on_every_host(
    net: Lab,
) -> None:
    context = net.client.path("/run/context")
    context.mkdir()
    shutil.copy("/bin/busybox", context / "busybox")
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/cat\nCOPY words /words\nCMD ["cat", "/words"]\n'
    )
    for number, via in enumerate(HOSTS):
        (context / "words").write_text(f"kit {number}\n")
        done = net.client.run(
            [
                "/usr/bin/docker",
                "-H",
                f"tcp://{net[via].ip}:8791",
                "build",
                "-t",
                "kit",
                "/run/context",
            ],
            env={"DOCKER_BUILDKIT": "1"},
        )
        assert "exporting layers" in done.stderr, done.stderr
        assert run_everywhere(net, "kit") == dict.fromkeys(HOSTS, f"kit {number}")
        docker(net, "rmi", "kit")


def rebuild(lab: Lab, name: str, words: str) -> None:
    text = f"FROM busybox\nRUN echo {words} >/words\n"
    docker(lab, "build", "-q", "-t", name, "-", input=text)


def build_with_buildkit(lab: Lab) -> None:
    program = ["/usr/bin/docker", "-H", f"tcp://{lab['h3'].ip}:8791", "build", "-t", "anew", "-"]
    text = "FROM source\nLABEL kit=1\n"
    lab.client.run(program, input=text, env={"DOCKER_BUILDKIT": "1"})


def commit(lab: Lab) -> None:
    docker(lab, "run", "--name", "base", "source", "true", via="h2")
    docker(lab, "commit", "base", "anew", via="h3")
    docker(lab, "rm", "base")


def import_image(lab: Lab) -> None:
    docker(lab, "create", "--name", "base", "source", "true")
    lab.client.run(
        ["sh", "-euc", "docker export base | docker import - docker.io/library/anew:latest"],
        env={"DOCKER_HOST": f"tcp://{lab['h2'].ip}:8791"},
    )
    docker(lab, "rm", "base")


def load(lab: Lab) -> None:
    docker(lab, "tag", "anew", "kept")
    docker(lab, "tag", "source", "anew")
    docker(lab, "save", "-o", "/run/anew.tar", "anew", via="h3")
    docker(lab, "tag", "kept", "anew", via="h2")
    docker(lab, "load", "-i", "/run/anew.tar", via="h3")
    docker(lab, "rmi", "kept")


ANEW: dict[str, Callable[[Lab], Any]] = {
    "build": lambda lab: rebuild(lab, "anew", "second"),
    "buildkit": build_with_buildkit,
    "commit": commit,
    "import": import_image,
    "load": load,
    "tag": lambda lab: docker(lab, "tag", "source:latest", "anew", via="h2"),
}


@pytest.mark.parametrize("way", ANEW)
def test_an_image_made_anew_by_the_same_name_is_the_one_that_runs_on_every_host(
    net: Lab, way: str
) -> None:
    rebuild(net, "anew", "first")
    assert run_everywhere(net, "anew", "cat", "/words") == dict.fromkeys(HOSTS, "first")
    rebuild(net, "source", "second")
    ANEW[way](net)
    shown = output(net, "inspect", "-f", "{{.Id}}", "anew", via="h3")
    assert run_everywhere(net, "anew", "cat", "/words") == dict.fromkeys(HOSTS, "second")
    listed = output(net, "images", "-q", "--no-trunc", "anew", via="h2")
    assert listed == shown, "one image has the name"
    assert {engine_output(net, h, "inspect", "-f", "{{.Id}}", "anew") for h in HOSTS} == {shown}
    docker(net, "rmi", "anew", "source")
    docker(net, "image", "prune", "-f")


def rebuild_there(lab: Lab, buildkit: str) -> None:
    program = ["/usr/bin/docker", "build", "-q", "-t", "anew", "-"]
    lab["h3"].run(program, input="FROM source\nLABEL a=b\n", env={"DOCKER_BUILDKIT": buildkit})


def commit_there(lab: Lab) -> None:
    engine_output(lab, "h3", "create", "--name", "of-source", "source")
    engine_output(lab, "h3", "commit", "of-source", "anew")
    engine_output(lab, "h3", "rm", "of-source")


THERE: dict[str, Callable[[Lab], Any]] = {
    "tag": lambda lab: engine_output(lab, "h2", "tag", "source", "anew"),
    "build": lambda lab: rebuild_there(lab, "0"),
    "buildkit": lambda lab: rebuild_there(lab, "1"),
    "load": lambda lab: engine_output(lab, "h3", "load", "-q", "-i", "/run/anew.tar"),
    "commit": commit_there,
}


@pytest.mark.parametrize("way", THERE)
def test_a_name_given_on_an_engine_itself_means_the_new_image_on_every_host(
    net: Lab, way: str
) -> None:
    rebuild(net, "source", "second")
    assert run_everywhere(net, "source", "cat", "/words") == dict.fromkeys(HOSTS, "second")
    engine_output(net, "h3", "tag", "source", "anew")
    engine_output(net, "h3", "save", "-o", "/run/anew.tar", "anew")
    rebuild(net, "anew", "first")
    assert run_everywhere(net, "anew", "cat", "/words") == dict.fromkeys(HOSTS, "first")
    THERE[way](net)
    assert run_everywhere(net, "anew", "cat", "/words") == dict.fromkeys(HOSTS, "second")
    shown = output(net, "inspect", "-f", "{{.Id}}", "anew", via="h3")
    assert output(net, "images", "-q", "--no-trunc", "anew", via="h2") == shown
    assert {engine_output(net, h, "inspect", "-f", "{{.Id}}", "anew") for h in HOSTS} == {shown}
    docker(net, "rmi", "anew", "source")
    docker(net, "image", "prune", "-f")


def test_a_build_by_todays_docker_means_the_new_image_on_every_host(net: Lab) -> None:
    context = net.client.path("/run/buildx")
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nCOPY words /words\n")
    for number, via in enumerate(HOSTS):
        (context / "words").write_text(f"today {number}\n")
        command = ["docker", "build", "-t", "today", "/run/buildx"]
        with unstable("clients", CLIENTS) as root:
            run_in(net.client, root, command, {"DOCKER_HOST": f"tcp://{net[via].ip}:8791"})
        shown = output(net, "images", "-q", "--no-trunc", "today", via=via)
        assert shown == output(net, "inspect", "-f", "{{.Id}}", "today", via=via)
        said = run_everywhere(net, "today", "cat", "/words")
        assert said == dict.fromkeys(HOSTS, f"today {number}")
    docker(net, "rmi", "today")


def test_what_an_image_takes_is_that_of_all_hosts(net: Lab) -> None:
    rebuild(net, "counted", "words")
    assert set(run_everywhere(net, "counted", "true")) == set(HOSTS)
    docker(net, "run", "-d", "--init", "--name", "user@h2", "counted", "sleep", "1000")
    _, usage = ask(net, "h3", "GET", "/system/df")
    engines = [engine_json(host, "/system/df") for host in net.hosts]

    def all_of(key: str) -> int:
        images = [i for e in engines for i in e["Images"] if i["RepoTags"] == ["counted:latest"]]
        assert len(images) == len(HOSTS)
        return int(sum(image[key] for image in images))

    [found] = [i for i in usage["Images"] if i["RepoTags"] == ["counted:latest"]]
    keys = ("Containers", "Size", "SharedSize")
    assert {key: found[key] for key in keys} == {key: all_of(key) for key in keys}
    assert found["Containers"] == 1
    assert usage["LayersSize"] == sum(engine["LayersSize"] for engine in engines)
    used = [i["Size"] - i["SharedSize"] for i in usage["Images"] if i["Containers"]]
    assert 0 < sum(used) <= usage["LayersSize"]
    docker(net, "rm", "-f", "user")
    docker(net, "rmi", "counted")


def test_a_name_given_while_nobody_listened_means_the_new_image_unless_it_is_older(
    net: Lab,
) -> None:
    for name in ("away", "later"):
        rebuild(net, name, "first")
        assert run_everywhere(net, name, "cat", "/words") == dict.fromkeys(HOSTS, "first")
    net["h3"].run(["arpanet", "slave", "stop"])
    eventually("h3 is down", lambda: require_down(net, "h3"))
    for name in ("away", "later"):
        text = "FROM busybox\nRUN echo there >/words\n"
        net["h3"].run(["docker", "build", "-q", "-t", name, "-"], input=text)
    rebuild(net, "later", "second")
    net["h3"].run(["arpanet", "slave", "start"])

    def all_say(name: str, words: str) -> None:
        assert run_everywhere(net, name, "cat", "/words") == dict.fromkeys(HOSTS, words)

    eventually("away is what h3 made", lambda: all_say("away", "there"))
    all_say("later", "second")
    docker(net, "rmi", "away", "later")
    docker(net, "image", "prune", "-f")


def test_an_image_that_is_gone_from_all_engines_does_not_hinder_the_older_one(net: Lab) -> None:
    rebuild(net, "gone", "first")
    assert run_everywhere(net, "gone", "cat", "/words") == dict.fromkeys(HOSTS, "first")
    rebuild(net, "gone", "second")
    [newest] = {engine_output(net, h, "images", "-q", "gone") for h in HOSTS} - {
        engine_output(net, "h3", "images", "-q", "gone")
    }
    engine_output(net, "h1", "rmi", "gone")
    assert output(net, "images", "-q", "gone") != newest
    docker(net, "run", "--name", "filler", "busybox", "true")  # h1 has the next but two
    docker(net, "run", "--name", "old", "gone", "cat", "/words", via="h2")
    assert output(net, "logs", "old") == "first"
    docker(net, "rm", "filler", "old")
    docker(net, "rmi", "gone")


def test_a_build_that_fails_in_buildkit_says_where(net: Lab) -> None:
    program = ["/usr/bin/docker", "-H", f"tcp://{net['h2'].ip}:8791", "build", "-"]
    done = net.client.run(
        program, input="FROM scratch\nCOPY nosuch /\n", env={"DOCKER_BUILDKIT": "1"}, check=False
    )
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    assert "not found" in done.stderr


def test_an_image_made_on_one_host_moves_by_itself(net: Lab) -> None:
    net["h3"].run(["docker", "build", "-q", "-t", "local", "-"], input="FROM busybox\nLABEL a=b\n")
    image = engine_output(net, "h3", "images", "-q", "local")
    assert run_everywhere(net, "local", "echo", "hi") == dict.fromkeys(HOSTS, "hi")
    assert {engine_output(net, h, "images", "-q", "local") for h in HOSTS} == {image}
    listed = output(net, "images", "-q", "local")
    assert listed == image, "an image of three hosts is one image"
    docker(net, "rmi", "local")
    assert {engine_output(net, h, "images", "-q", "local") for h in HOSTS} == {""}


def test_images_of_three_hosts_are_saved_in_one_tar(net: Lab) -> None:
    for host in HOSTS:
        text = f"FROM busybox\nLABEL of={host}\n"
        net[host].run(["docker", "build", "-q", "-t", f"only-{host}:v1", "-"], input=text)
    names = [f"only-{host}:v1" for host in HOSTS]
    docker(net, "save", "-o", "/run/saved.tar", *names, via="h2")
    with tarfile.open(net.client.path("/run/saved.tar")) as tar:
        entry = tar.extractfile("manifest.json")
        assert entry is not None
        manifest = json.loads(entry.read())
    assert sorted(tag for row in manifest for tag in row["RepoTags"]) == names
    docker(net, "rmi", *names, via="h3")
    assert docker(net, "save", "-o", "/run/none.tar", *names, check=False).returncode == 1
    said = output(net, "load", "-i", "/run/saved.tar")
    assert all(f"Loaded image: {name}" in said for name in names), said
    assert run_everywhere(net, names[0], "echo", "hi") == dict.fromkeys(HOSTS, "hi")
    docker(net, "rmi", *names)


def test_a_tag_is_on_every_host_that_has_the_image(net: Lab) -> None:
    docker(net, "tag", "busybox", "renamed:v9", via="h2")
    ids = {engine_output(net, host, "images", "-q", "renamed:v9") for host in HOSTS}
    assert ids == {engine_output(net, "h1", "images", "-q", "busybox")}
    docker(net, "rmi", "renamed:v9", via="h3")
    assert {engine_output(net, host, "images", "-q", "renamed:v9") for host in HOSTS} == {""}


def test_an_image_in_use_on_one_host_is_removed_from_none(net: Lab) -> None:
    docker(net, "tag", "web", "used:v1")
    docker(net, "build", "-q", "-t", "used:v1", "-", input="FROM busybox\nLABEL used=1\n")
    assert len(run_everywhere(net, "used:v1", "true")) == 3
    docker(net, "run", "-d", "--init", "--name", "user", "used:v1", "sleep", "1000")
    done = docker(net, "rmi", "used:v1", check=False)
    assert done.returncode == 1
    assert "conflict: unable to remove repository reference" in done.stderr
    assert all(engine_output(net, host, "images", "-q", "used:v1") for host in HOSTS)
    docker(net, "rm", "-f", "user")
    docker(net, "rmi", "used:v1")


# ---- networks


def test_a_network_is_on_every_host_and_containers_of_one_host_find_each_other(net: Lab) -> None:
    docker(net, "network", "create", "--label", "of=test", "backend", via="h2")
    for host in HOSTS:
        assert engine_output(net, host, "network", "ls", "-q", "--filter", "label=of=test")
    assert output(net, "network", "ls", "--filter", "label=of=test", "--format", "{{.Name}}") == (
        "backend"
    )
    docker(net, "run", "-d", "--init", "--name", "server", "--network", "backend", "web")
    docker(net, "run", "--rm", "--name", "client", "--network", "container:server", "busybox",
           "wget", "-qO-", "http://server:8000/")  # fmt: skip
    in_use = docker(net, "network", "rm", "backend", check=False)
    assert in_use.returncode == 1
    assert "has active endpoints" in in_use.stderr
    assert all(engine_output(net, h, "network", "ls", "-q", "-f", "name=backend") for h in HOSTS)
    docker(net, "rm", "-f", "server")
    docker(net, "network", "rm", "backend", via="h3")
    assert {engine_output(net, h, "network", "ls", "-q", "-f", "name=backend") for h in HOSTS} == {
        ""
    }


@pytest.mark.parametrize("kind", ["network", "system"])
def test_prune_keeps_a_network_that_a_container_of_one_host_uses(net: Lab, kind: str) -> None:
    for name in ("used", "unused"):
        docker(net, "network", "create", "--label", "of=prune", name)
    docker(net, "run", "-d", "--init", "--name", "user@h2", "--network", "used", "web")
    pruned = output(net, kind, "prune", "-f", "--filter", "label=of=prune")
    assert "unused" in pruned.splitlines()
    for host in HOSTS:
        listed = engine_output(
            net, host, "network", "ls", "--filter", "name=used", "-q", "--no-trunc"
        )
        assert len(listed.splitlines()) == 1, host
    docker(net, "run", "--rm", "--name", "second@h3", "--network", "used", "busybox", "true")
    docker(net, "rm", "-f", "user")
    assert output(net, "network", "prune", "-f", "--filter", "until=24h") == ""
    assert "used" in output(net, "network", "prune", "-f").splitlines()


def test_a_network_has_one_id_in_all_that_is_said_of_it(net: Lab) -> None:
    began = str(time.time())
    made = docker(net, "network", "create", "one-id", via="h2").stdout.strip()
    names = {f"one-id{n}": f"h{n}" for n in (1, 2, 3)}
    for name, host in names.items():
        docker(net, "run", "-d", "--init", "--name", f"{name}@{host}", "--network", made, "web")
    bridge = output(net, "network", "inspect", "-f", "{{.Id}}", "bridge")
    for via in HOSTS:
        listed = output(
            net, "network", "ls", "--no-trunc", "-q", "--filter", f"id={made[:12]}", via=via
        )
        assert listed == made
        for reference in ("one-id", made, made[:9]):
            assert output(net, "network", "inspect", "-f", "{{.Id}}", reference, via=via) == made
        assert output(net, "network", "inspect", "-f", "{{.Id}}", "bridge", via=via) == bridge
        of_container = "{{range .NetworkSettings.Networks}}{{.NetworkID}}{{end}}"
        assert output(net, "inspect", "-f", of_container, *names, via=via).split() == [made] * 3
        for value in (made, made[:12], "one-id"):
            shown = output(net, "ps", "-aq", "--filter", f"network={value}", via=via)
            assert len(shown.split()) == 3
        _, found = ask(net, via, "GET", "/containers/json")
        ids = [c["NetworkSettings"]["Networks"]["one-id"]["NetworkID"] for c in found]
        assert ids == [made] * 3
    docker(net, "network", "disconnect", made, "one-id2", via="h3")
    endpoint = {"NetworkID": "0" * 64, "Aliases": ["two"]}  # as clients copy it of an inspect
    body = {"Container": "one-id2", "EndpointConfig": endpoint}
    assert ask(net, "h1", "POST", f"/networks/{made[:12]}/connect", body)[0] == 200
    own = engine_output(net, "h2", "network", "inspect", "-f", "{{.Id}}", "one-id")
    assert own != made
    assert output(net, "network", "inspect", "-f", "{{.Id}}", own) == made  # as it was before
    for value in (made[:12], "one-id"):
        words = ["events", "--since", began, "--until", str(time.time()), "--format", "{{json .}}"]
        words += ["--filter", "type=network", "--filter", f"network={value}"]
        events = output(net, *words, via="h3").splitlines()
        assert {json.loads(event)["Actor"]["ID"] for event in events} == {made}
        actions = [json.loads(event)["Action"] for event in events]
        assert [actions.count(action) for action in ("create", "connect")] == [3, 4]
        assert "disconnect" in actions  # told twice by Docker 20.10
    docker(net, "rm", "-f", *names)
    docker(net, "network", "rm", made[:12], via="h3")
    assert output(net, "network", "ls", "-q", "--filter", "name=one-id") == ""


def test_a_network_is_also_on_a_host_whose_slave_starts_later(net: Lab) -> None:
    net["h3"].run(["arpanet", "slave", "stop"])
    eventually("h3 is down", lambda: require_down(net, "h3"))
    docker(net, "network", "create", "--label", "late=1", "--internal", "late")
    find = ["network", "ls", "-q", "--filter", "label=late=1"]
    assert [bool(engine_output(net, h, *find)) for h in HOSTS] == [True, True, False]
    net["h3"].run(["arpanet", "slave", "start"])
    eventually("late is on h3", lambda: require(engine_output(net, "h3", *find)))
    assert engine_output(net, "h3", "network", "inspect", "-f", "{{.Internal}}", "late") == "true"
    names = [f"late{number}" for number in range(3)]
    for name in names:
        docker(net, "run", "-d", "--init", "--name", name, "--network", "late", "web")
    assert {host_of(net, name) for name in names} == set(HOSTS)
    joined = output(net, "network", "inspect", "-f", "{{len .Containers}}", "late", via="h2")
    assert joined == "3"
    docker(net, "rm", "-f", *names)
    docker(net, "network", "rm", "late")


def require(value: str) -> None:
    assert value


def require_down(lab: Lab, host: str) -> None:
    report = json.loads(
        lab["h1"].run(["arpanet", "master", "status", "--json"], check=False).stdout
    )
    assert [h["alive"] for h in report["hosts"] if h["name"] == host] == [False]


# ---- volumes


@pytest.mark.parametrize("via", HOSTS)
def test_a_container_goes_where_its_volume_was_made(net: Lab, via: str) -> None:
    name = f"stored-{via}"
    docker(net, "volume", "create", "--label", "of=test", name, via=via)
    [where] = [
        h for h in HOSTS if engine_output(net, h, "volume", "ls", "-q", "-f", f"name={name}")
    ]
    docker(net, "run", "--name", f"w-{via}", "-v", f"{name}:/data", "busybox", "touch", "/data/f")
    assert host_of(net, f"w-{via}") == where
    docker(net, "rm", f"w-{via}")
    again = output(
        net, "run", "--rm", "--name", f"r-{via}", "-v", f"{name}:/data", "busybox", "ls", "/data"
    )
    assert again == "f"
    mount = f"type=volume,source={name},target=/other"
    again = output(
        net, "run", "--rm", "--name", f"m-{via}", "--mount", mount, "busybox", "ls", "/other"
    )
    assert again == "f"
    found = [h for h in HOSTS if engine_output(net, h, "volume", "ls", "-q", "-f", f"name={name}")]
    assert found == [where], "a second, empty volume"
    docker(net, "volume", "rm", name)
    assert docker(net, "volume", "inspect", name, check=False).returncode == 1


# ---- what hosts have by one name by chance


@pytest.mark.parametrize("kind", ["volume", "network"])
def test_what_two_hosts_have_by_one_name_by_chance_is_told_apart_by_host(
    net: Lab, kind: str
) -> None:
    for host in ("h1", "h3"):
        engine_output(net, host, kind, "create", "--label", f"of={host}", "twin")
    listed = output(net, kind, "ls", "--filter", "name=twin", "--format", "{{.Name}}", via="h2")
    assert listed.split() == ["twin@h1", "twin@h3"]
    for host in ("h1", "h3"):
        label = output(net, kind, "inspect", "-f", "{{.Labels.of}}", f"twin@{host}", via="h2")
        assert label == host
    nowhere = docker(net, kind, "inspect", "twin@h2", check=False)
    assert nowhere.returncode == 1
    assert f"o such {kind}" in nowhere.stderr or f"{kind} twin not found" in nowhere.stderr
    if kind == "network":
        done = docker(net, kind, "rm", "twin", check=False)
        assert done.returncode == 1
        assert "network twin is ambiguous (2 matches found on name)" in done.stderr
    docker(net, kind, "rm", "twin@h3", via="h2")
    assert engine_output(net, "h3", kind, "ls", "-q", "-f", "name=twin") == ""
    listed = output(net, kind, "ls", "--filter", "name=twin", "--format", "{{.Name}}")
    assert listed == "twin"
    docker(net, kind, "rm", "twin", via="h3")
    assert engine_output(net, "h1", kind, "ls", "-q", "-f", "name=twin") == ""
