"""A private registry with a password: login, push, pull to one host and to all."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HOSTS, eventually, start_all
from conftest import docker as run_docker
from lab import Lab

USER, PASSWORD = "someone", "not-for-logs"
# bcrypt of PASSWORD, as `htpasswd -B` writes it; docker-registry takes no other form.
HASH = "$2b$05$abcdefghijklmnopqrstuusCUz24FGJhBwycaipzZkynhb3.zulFq"
CONFIG = """
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: /run/registry}, delete: {enabled: true}}
http: {addr: "0.0.0.0:5000"}
auth: {htpasswd: {realm: lab, path: /run/registry.htpasswd}}
"""


def docker(lab: Lab, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the docker client with the login of this file."""
    return run_docker(lab, "--config", "/run/login", *words, **options)


def output(lab: Lab, *words: str, **options: Any) -> str:
    return docker(lab, *words, **options).stdout.strip()


@pytest.fixture(scope="module")
def net(lab: Lab) -> Lab:
    """Return the lab with masters and slaves that log all they can."""
    for name in HOSTS:
        lab[name].path("/etc/arpanet/arpanet.env").write_text("ARPANET_LOG_LEVEL=debug\n")
    start_all(lab)
    return lab


@pytest.fixture(scope="module")
def registry(net: Lab) -> Iterator[str]:
    """Yield the address of a registry that runs on the lab's client."""
    net.client.path("/run/registry.yml").write_text(CONFIG)
    net.client.path("/run/registry.htpasswd").write_text(f"{USER}:{HASH}\n")
    with open(net.client.logs / "registry.log", "ab") as log:
        program = net.client.popen(
            ["docker-registry", "serve", "/run/registry.yml"], stdout=log, stderr=log
        )
    try:
        ask = ["curl", "-sf", "-u", f"{USER}:{PASSWORD}", "http://127.0.0.1:5000/v2/"]
        eventually("the registry answers", lambda: net.client.run(ask))
        yield f"{net.client.ip}:5000"
    finally:
        program.kill()
        program.wait()


@pytest.fixture(scope="module")
def pushed(net: Lab, registry: str) -> str:
    """Return an image that is in the registry and on no host."""
    image = f"{registry}/team/hello:v1"
    login = docker(net, "login", "-u", USER, "--password-stdin", registry, input=PASSWORD, via="h2")
    assert "Login Succeeded" in login.stdout
    docker(net, "build", "-q", "-t", image, "-", input="FROM busybox\nCMD echo pulled\n")
    assert "digest: sha256:" in output(net, "push", image, via="h3")
    docker(net, "rmi", image, via="h2")
    assert hosts_with(net, image) == []
    return image


def hosts_with(lab: Lab, image: str) -> list[str]:
    """Return the hosts whose own engine has the image."""
    ask = ["docker", "images", "-q", image]
    return [name for name in HOSTS if lab[name].run(ask).stdout]


def test_without_a_login_push_and_pull_are_refused_in_the_registrys_words(
    net: Lab, registry: str
) -> None:
    image = f"{registry}/team/secret:v1"
    docker(net, "tag", "busybox", image)
    strange = ["--config", "/run/nobody"]
    for words in (["push", image], ["pull", image]):
        done = run_docker(net, *strange, *words, check=False)
        assert done.returncode == 1
        assert "no basic auth credentials" in done.stderr
    wrong = ["login", "-u", USER, "-p", "wrong", registry]
    assert "401 Unauthorized" in run_docker(net, *strange, *wrong, check=False).stderr
    docker(net, "rmi", image)


def test_run_pulls_to_the_chosen_host_alone(net: Lab, pushed: str) -> None:
    done = docker(net, "run", "--name", "puller", pushed, via="h2")
    assert done.stdout == "pulled\n"
    where = output(net, "inspect", "--format", "{{.Host.Name}}", "puller")
    assert hosts_with(net, pushed) == [where]
    docker(net, "rm", "puller")
    docker(net, "rmi", pushed, via="h3")
    assert hosts_with(net, pushed) == []


def test_pull_goes_to_all_hosts_and_shows_the_progress_of_each(net: Lab, pushed: str) -> None:
    said = output(net, "pull", pushed, via="h3")
    assert hosts_with(net, pushed) == list(HOSTS)
    for host in HOSTS:
        assert any(
            line.startswith(f"{host}: ") and "Pull complete" in line or "Already exists" in line
            for line in said.splitlines()
        ), said
    digests = output(
        net, "images", "--digests", "--format", "{{.Digest}}", pushed.rpartition(":")[0]
    )
    assert digests.startswith("sha256:")
    docker(net, "rmi", pushed)


def test_what_was_pulled_while_a_host_was_away_runs_there_when_it_is_back(
    net: Lab, pushed: str
) -> None:
    image = pushed.replace("hello", "moved")

    def push(words: str) -> None:
        docker(net, "build", "-q", "-t", image, "-", input=f"FROM busybox\nCMD echo {words}\n")
        docker(net, "push", "-q", image)

    push("second")
    docker(net, "rmi", image)
    docker(net, "build", "-q", "-t", image, "-", input="FROM busybox\nCMD echo first\n")
    names = [f"moved{number}" for number in range(3)]
    for name in names:
        docker(net, "run", "--name", name, image)
    assert hosts_with(net, image) == list(HOSTS)
    docker(net, "rm", *names)
    net["h3"].run(["arpanet", "slave", "stop"])
    eventually("h3 is down", lambda: require_hosts(net, 2))
    docker(net, "pull", "-q", "--all-tags", image.rpartition(":")[0], via="h2")
    net["h3"].run(["arpanet", "slave", "start"])
    eventually("h3 is up", lambda: require_hosts(net, 3))
    said = [output(net, "run", "--name", name, image, via="h3") for name in names]
    assert said == ["second"] * 3
    docker(net, "rm", *names)
    docker(net, "rmi", image)


def require_hosts(lab: Lab, count: int) -> None:
    platform = output(lab, "version", "--format", "{{.Server.Platform.Name}}")
    assert f"({count} hosts)" in platform


def test_a_pull_by_digest_and_one_of_all_tags_work(net: Lab, pushed: str) -> None:
    repository = pushed.rpartition(":")[0]
    docker(net, "pull", "-q", pushed)
    [digest] = json.loads(output(net, "inspect", "--format", "{{json .RepoDigests}}", pushed))
    docker(net, "rmi", pushed)
    docker(net, "pull", "-q", digest, via="h2")
    assert hosts_with(net, digest) == list(HOSTS)
    docker(net, "rmi", digest, via="h3")
    docker(net, "pull", "-q", "--all-tags", repository, via="h2")
    assert hosts_with(net, pushed) == list(HOSTS)
    docker(net, "rmi", pushed)


def test_an_image_that_is_nowhere_is_refused_with_its_name(net: Lab, registry: str) -> None:
    for words in (["pull"], ["run", "--name", "never"]):
        done = docker(net, *words, f"{registry}/team/nosuch:v1", check=False)
        assert done.returncode in (1, 125)
        assert "manifest for" in done.stderr or "not found" in done.stderr, done.stderr
    assert output(net, "ps", "-aq", "--filter", "name=never") == ""


def test_the_password_is_in_no_log(net: Lab, pushed: str) -> None:
    assert pushed
    secrets = [PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()]
    sent = {"username": USER, "password": PASSWORD}
    # X-Registry-Auth is JSON in base64: three shifts of what stands in it
    secrets += [base64.b64encode(b" " * n + PASSWORD.encode())[4:-4].decode() for n in range(3)]
    assert any(s in base64.b64encode(json.dumps(sent).encode()).decode() for s in secrets)
    logs = [p for name in HOSTS for p in net[name].logs.iterdir() if p.is_file()]
    assert len(logs) >= 6
    assert "DEBUG" in (net["h1"].logs / "master.log").read_text()
    for path in logs:
        text = path.read_text(errors="replace")
        assert not [s for s in secrets if s in text], path
