"""The session of the README: three hosts, one address."""

from __future__ import annotations

import json

from conftest import HOSTS, docker, eventually, output
from lab import Lab


def test_status_lists_three_masters_and_three_hosts(net: Lab) -> None:

    def is_well() -> None:
        done = net["h2"].run(["arpanet", "master", "status", "--json"])
        report = json.loads(done.stdout)
        assert sorted(m["name"] for m in report["masters"]) == list(HOSTS)
        assert [m["leader"] for m in report["masters"]].count(True) == 1
        assert [(h["name"], h["alive"]) for h in report["hosts"]] == [(h, True) for h in HOSTS]

    eventually("all are there", is_well)


def test_two_containers_land_on_two_hosts_and_another_master_sees_them_at_once(net: Lab) -> None:
    docker(net, "run", "-d", "--name", "test1", "web")
    docker(net, "run", "-d", "--name", "test2", "web")
    names = output(net, "ps", "--format", "{{.Names}}", via="h2").split()
    assert sorted(n.partition("@")[0] for n in names) == ["test1", "test2"]
    assert len({n.partition("@")[2] for n in names}) == 2
    docker(net, "rm", "-f", "test1", "test2", via="h3")
    assert output(net, "ps", "-aq", via="h1") == ""
