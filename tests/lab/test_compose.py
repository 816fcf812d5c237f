"""docker-compose, file formats 2 and 3: a project whose services land on several hosts.

In format 2 services are linked; in format 3 they find each other by name, on the project's network.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import HOSTS, eventually, output
from lab import Lab

PROGRAM = "/usr/bin/docker-compose"
HTTPD = "exec httpd -f -p 8000 -h"
DB = f"echo $$WORDS >>/data/words && {HTTPD} /data"
WEB = f"while true; do wget -qO /www/copy http://db:8000/words; sleep 0.2; done & {HTTPD} /www"
FILE = """
version: "{version}"
services:
  db:
    image: web
    init: true
    command: ["sh", "-c", "{db}"]
    environment: {{WORDS: "{words}"}}
    volumes: ["store:/data"]
    expose: ["8000"]
    {network}
  web:
    image: web
    init: true
    command: ["sh", "-c", "{web}"]
    {links}
    {network}
  worker:
    image: busybox
    init: true
    command: ["sh", "-c", "echo working; exec sleep 1000"]
    {network}
    depends_on: ["db"]
volumes:
  store: {{}}
"""


class Project:
    """A compose project on the lab's client."""

    def __init__(self, lab: Lab, version: str) -> None:
        self.lab, self.version = lab, version
        self.name = f"p{version.replace('.', '')}"
        self.write("first")

    def write(self, words: str) -> None:
        """Write the compose file; words is what the database holds."""
        linked = self.version.startswith("2")
        text = FILE.format(
            version=self.version,
            words=words,
            db=DB,
            web=WEB,
            links='links: ["db"]' if linked else "",
            network="network_mode: bridge" if linked else "",
        )
        directory = self.lab.client.path(f"/run/{self.name}")
        directory.mkdir(exist_ok=True)
        (directory / "docker-compose.yml").write_text(text)

    def run(self, *words: str, via: str = "h1", **options: Any) -> str:
        """Return what docker-compose says, errors too."""
        file = f"/run/{self.name}/docker-compose.yml"
        done: subprocess.CompletedProcess[str] = self.lab.client.run(
            [PROGRAM, "--ansi", "never", "-p", self.name, "-f", file, *words],
            env={"DOCKER_HOST": f"tcp://{self.lab[via].ip}:8791"},
            timeout=120,
            **options,
        )
        return done.stdout + done.stderr

    def containers(self, service: str = "") -> dict[str, str]:
        """Return the running containers' ids by NAME@HOST."""
        label = f"label=com.docker.compose.project={self.name}"
        chosen = f"label=com.docker.compose.service={service}" if service else label
        rows = output(
            self.lab, "ps", "--no-trunc", "--filter", label, "--filter", chosen,
            "--format", '{{index (split .Names ",") 0}} {{.ID}}',
        )  # fmt: skip
        return dict(row.split() for row in rows.splitlines())

    def hosts(self, service: str = "") -> list[str]:
        return [name.partition("@")[2] for name in self.containers(service)]

    def require_answer(self, words: str) -> None:
        """Check that web answers with what it read from db."""
        answer = self.run("exec", "-T", "web", "wget", "-qO-", "http://127.0.0.1:8000/copy")
        assert answer == words, answer


@pytest.fixture(scope="module", params=["2.4", "3.7"])
def project(net: Lab, request: pytest.FixtureRequest) -> Iterator[Project]:
    """Yield a project that is up, and take it down with its volumes."""
    made = Project(net, request.param)
    made.run("up", "-d")
    yield made
    made.run("down", "-v", "-t", "1", via="h2")


def test_three_services_come_up_on_three_hosts(project: Project) -> None:
    names = project.containers()
    assert sorted(n.partition("@")[0] for n in names) == [
        f"{project.name}_{service}_1" for service in ("db", "web", "worker")
    ]
    assert sorted(project.hosts()) == list(HOSTS)
    listed = project.run("ps", via="h2")
    assert listed.count(" Up ") == 3, listed


def test_the_web_service_answers_with_what_its_database_on_another_host_holds(
    project: Project,
) -> None:
    assert project.hosts("web") != project.hosts("db")
    eventually("web has read from db", lambda: project.require_answer("first\n"))


def test_logs_and_exec_reach_services_of_all_hosts(project: Project) -> None:
    assert "working" in project.run("logs", "worker", via="h3")
    for service in ("db", "web", "worker"):
        said = project.run("exec", "-T", service, "hostname", via="h2")
        [container_id] = project.containers(service).values()
        assert said.strip() == container_id[:12]


def test_a_service_is_scaled_up_and_down(project: Project) -> None:
    before = project.containers()
    project.run("up", "-d", "--scale", "worker=4", via="h2")
    workers = project.containers("worker")
    assert len(workers) == 4
    assert set(project.hosts("worker")) == set(HOSTS)
    assert before.items() <= project.containers().items(), "others were recreated"
    project.run("up", "-d", "--scale", "worker=1", via="h3")
    assert project.containers() == before


def test_up_again_through_another_master_changes_nothing(project: Project) -> None:
    before = project.containers()
    project.run("up", "-d", via="h3")
    assert project.containers() == before


def test_a_changed_service_is_recreated_where_its_volume_is_and_keeps_its_data(
    project: Project,
) -> None:
    before = project.containers()
    [old] = project.containers("db")
    project.write("second")
    project.run("up", "-d", "-t", "1", via="h2")
    [new] = project.containers("db")
    assert new == old, "another name or another host"
    assert project.containers()[new] != before[old]
    assert project.containers("worker").items() <= before.items(), "worker was recreated"
    eventually("web has read from the new db", lambda: project.require_answer("first\nsecond\n"))


def test_down_removes_containers_and_with_v_the_volumes(project: Project) -> None:
    project.run("down", "-t", "1", via="h3")
    label = f"label=com.docker.compose.project={project.name}"
    assert output(project.lab, "ps", "-aq", "--filter", label) == ""
    volumes = output(project.lab, "volume", "ls", "-q", "--filter", label)
    assert volumes == f"{project.name}_store"
    project.run("up", "-d")
    eventually("the data is there again", lambda: project.require_answer("first\nsecond\nsecond\n"))
    project.run("down", "-v", "-t", "1", via="h2")
    assert output(project.lab, "volume", "ls", "-q", "--filter", label) == ""


def test_a_run_of_one_command_ends_with_its_output_and_exit_code(project: Project) -> None:
    said = project.run("run", "--rm", "-T", "worker", "sh", "-c", "echo once", via="h2")
    assert "once" in said
    with pytest.raises(subprocess.CalledProcessError) as failed:
        project.run("run", "--rm", "-T", "worker", "sh", "-c", "exit 4", via="h3")
    assert failed.value.returncode == 4
