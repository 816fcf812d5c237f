"""A project of compose of today (2.40) and of Debian 12's (1.29), step by step on three hosts.

Each test is the next thing that a user types. What runs is asked of the engines themselves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from clients import engine_json
from conftest import HOSTS, eventually, output
from debian import CLIENTS, run_in, unstable
from lab import Host, Lab

FILES = {
    "db/Dockerfile": "FROM busybox\nVOLUME /anonymous\n",
    "app/Dockerfile": "FROM busybox\nCOPY words /\n",
    "app/words": "old image\n",
}
COMPOSE = """
services:
  db:
    build: db
    init: true
    command: ["sh", "-c", "echo $$WORDS | tee -a /data/words >>/anonymous/words; sleep 1000"]
    environment: {{WORDS: "{db}"}}
    volumes: ["store:/data"]
  web:
    build: app
    image: {name}-app
    init: true
    command: ["httpd", "-f", "-p", "8000", "-h", "/"]
    environment: {{WORDS: "{web}"}}
    ports: ["{port}:8000"]
    depends_on: ["db"]
    healthcheck: {{test: ["CMD", "wget", "-qO-", "http://127.0.0.1:8000/words"], interval: 1s}}
  worker:
    image: {name}-app
    init: true
    command: ["sh", "-c", "echo at work; sleep 1000"]
    depends_on: ["web"]
volumes:
  store: {{}}
"""
UP = ("up", "-d", "-t", "1", "--scale", "worker=3")


class Running(NamedTuple):
    """A container of a project, as its engine lists it."""

    id: str
    host: str
    name: str
    state: str


class Project:
    """A project on the lab's client, and the compose that it is typed to."""

    def __init__(self, lab: Lab, version: str) -> None:
        self.lab, self.version = lab, version
        self.name = f"today{version.replace('.', '')}"
        self.port = 8080
        self.directory = f"/run/{self.name}"
        for name, text in FILES.items():
            self.write_file(name, text)
        self.write()

    def write_file(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.lab.client.path(f"{self.directory}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def write(self, db: str = "first", web: str = "first") -> None:
        """Write the compose file, with what the services have in their environment."""
        text = COMPOSE.format(name=self.name, db=db, web=web, port=self.port)
        self.write_file("docker-compose.yml", text)

    def run(self, *words: str, via: str = "h1") -> str:
        """Return what compose says, errors too."""
        file = f"{self.directory}/docker-compose.yml"
        words = ("--ansi", "never", "-p", self.name, "-f", file, *words)
        env = {"DOCKER_HOST": f"tcp://{self.lab[via].ip}:8791"}
        done: subprocess.CompletedProcess[str]
        if self.version == "1.29":
            command = ["/usr/bin/docker-compose", *words]
            done = self.lab.client.run(command, env=env, timeout=120)
        else:
            with unstable("clients", CLIENTS) as root:
                command = ["docker", "compose", *words]
                done = run_in(self.lab.client, root, command, env, timeout=120)
        return done.stdout + done.stderr

    def running(self, *services: str) -> list[Running]:
        """Return the containers of those services, of all without any, sorted."""
        label = "com.docker.compose.service"
        return sorted(
            Running(entry["Id"], host.name, entry["Names"][0][1:], entry["State"])
            for host in self.lab.hosts
            for entry in self._entries(host)
            if entry["Labels"][label] in services or not services
        )

    def _entries(self, host: Host) -> list[dict[str, Any]]:
        """Return what the engine of a host lists of the project."""
        entries = engine_json(host, "/containers/json?all=1")
        wanted = "com.docker.compose.project"
        return [entry for entry in entries if entry["Labels"].get(wanted) == self.name]

    def ids(self, *services: str) -> set[str]:
        """Return the ids of the containers of those services."""
        return {row.id for row in self.running(*services)}

    def read(self, row: Running, path: str) -> str:
        """Return a file of a container, read on its host."""
        return self.lab[row.host].run(["docker", "exec", row.id, "cat", path]).stdout

    def require_all(self) -> None:
        """Check that all run, under their names, and that web answers on its port."""
        sep = "_" if self.version == "1.29" else "-"
        names = ("db-1", "web-1", "worker-1", "worker-2", "worker-3")
        rows = self.running()
        wanted = [f"{self.name}-{name}".replace("-", sep) for name in names]
        assert sorted(row.name for row in rows) == wanted
        assert {row.state for row in rows} == {"running"}
        [web] = self.running("web")
        eventually("web answers on its port", lambda: self.require_web(web.host))

    def require_web(self, host: str) -> None:
        """Check that web answers on the port that it publishes."""
        ask = ["curl", "-fsS", f"http://{self.lab[host].ip}:{self.port}/words"]
        assert self.lab.client.run(ask).stdout.endswith("image\n")

    def require_data(self, *words: str) -> None:
        """Check what both volumes of the database hold: a line for each time that it started."""
        [db] = self.running("db")
        for path in ("/data/words", "/anonymous/words"):
            assert self.read(db, path).split() == list(words), path


# compose 2 takes the ids that a network and an image have on each host for a change
one_id_each = pytest.mark.parametrize("project", ["1.29"], indirect=True)


@pytest.fixture(scope="module", params=["1.29", "2.40"])
def project(net: Lab, request: pytest.FixtureRequest) -> Iterator[Project]:
    """Yield a project that is up, and take it down with its volumes."""
    made = Project(net, request.param)
    made.run("build")
    made.run(*UP)
    yield made
    made.run("down", "-v", "-t", "1", via="h2")


def test_up_starts_all_services_over_three_hosts(project: Project) -> None:
    project.require_all()
    project.require_data("first")
    assert {row.host for row in project.running()} == set(HOSTS)


@one_id_each
def test_up_again_makes_not_one_container_anew(project: Project) -> None:
    before = project.running()
    project.run(*UP, via="h2")
    assert project.running() == before
    project.run(*UP, via="h3")
    assert project.running() == before


@one_id_each
def test_a_changed_line_of_web_makes_web_alone_anew_with_its_port(project: Project) -> None:
    others, old = project.ids("db", "worker"), project.ids("web")
    project.write(web="second")
    project.run(*UP, via="h2")
    assert project.ids("db") <= others
    assert not project.ids("web") & old
    project.require_all()


@one_id_each
def test_a_changed_line_of_db_makes_it_anew_with_its_data(project: Project) -> None:
    [old] = project.running("db")
    project.write(db="second", web="second")
    project.run(*UP)
    [new] = project.running("db")
    assert new.id != old.id
    project.require_data("first", "second")
    project.require_all()


@one_id_each
def test_up_with_force_recreate_makes_all_anew_with_their_data(project: Project) -> None:
    before = project.ids()
    project.run(*UP, "--force-recreate", via="h3")
    assert not project.ids() & before
    project.require_data("first", "second", "second")
    project.require_all()


@one_id_each
def test_a_build_after_an_edit_is_what_every_host_runs_after_up(project: Project) -> None:
    db = project.ids("db")
    project.write_file("app/words", "new image\n")
    project.run("build")
    project.run(*UP, via="h2")
    rows = project.running("web", "worker")
    assert len(rows) == 4
    assert [project.read(row, "/words") for row in rows] == ["new image\n"] * 4
    assert project.ids("db") == db
    project.require_all()


def test_down_with_v_leaves_nothing(project: Project) -> None:
    project.run("down", "-v", "-t", "1", via="h3")
    assert project.running() == []
    label = f"label=com.docker.compose.project={project.name}"
    for kind in ("volume", "network"):
        assert output(project.lab, kind, "ls", "-q", "--filter", label) == ""
