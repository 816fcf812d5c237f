"""ansible's modules for Docker, each play twice: what the first made, the second finds as it is.

It runs on the lab's client, against a master; ansible and its collection are Debian unstable's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from debian import ANSIBLE, run_in, unstable
from lab import Lab

pytestmark = pytest.mark.skipif(
    not os.environ.get("ARPANET_CLIENTS"), reason="it takes minutes: sudo tests/run --clients"
)
Task = dict[str, Any]
NETWORK: Task = {"docker_network": {"name": "front", "labels": {"made": "by-a-play"}}}
VOLUME: Task = {"docker_volume": {"name": "store", "labels": {"made": "by-a-play"}}}
PLAYS: dict[str, list[Task]] = {
    "network": [NETWORK],
    "volume": [VOLUME],
    "image": [
        {"docker_image": {"name": "busybox", "source": "local"}},
        {
            "docker_image": {
                "name": "busybox",
                "source": "local",
                "repository": "shop:second",
            }
        },
    ],
}
GONE: list[Task] = [
    {"docker_network": {"name": "front", "state": "absent"}},
    {"docker_volume": {"name": "store", "state": "absent"}},
    {"docker_image": {"name": "shop:second", "state": "absent"}},
]


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Return the tree that has ansible in it."""
    with unstable("ansible", ANSIBLE) as made:
        yield made


def play(net: Lab, root: Path, tasks: list[Task], via: str) -> list[bool]:
    """Return of each task whether it changed something. A task that fails fails the command."""
    host = {"docker_host": f"tcp://{net[via].ip}:8791"}
    full = [
        {f"community.docker.{module}": words | host}
        for task in tasks
        for module, words in task.items()
    ]
    book = [{"hosts": "localhost", "gather_facts": False, "tasks": full}]
    net.client.path("/run/play.json").write_text(json.dumps(book))
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "/run/play.json"]
    env = {
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
    }
    said = json.loads(run_in(net.client, root, command, env, timeout=120).stdout)
    results = [task["hosts"]["localhost"] for task in said["plays"][0]["tasks"]]
    return [result["changed"] for result in results]


@pytest.mark.parametrize("name", PLAYS)
def test_a_play_that_runs_again_changes_nothing(net: Lab, root: Path, name: str) -> None:
    changed = play(net, root, PLAYS[name], "h2")
    assert changed[-1], "nothing was made"
    assert play(net, root, PLAYS[name], "h3") == [False] * len(changed)


def test_what_is_absent_is_removed_once(net: Lab, root: Path) -> None:
    assert any(play(net, root, GONE, "h1"))
    assert play(net, root, GONE, "h2") == [False] * len(GONE)
