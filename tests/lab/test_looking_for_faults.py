"""arpanet doctor finds each fault that is there, and no other."""

from __future__ import annotations

import json
import re

import pytest
from conftest import TLS, eventually, output
from lab import TLS_DIR, Host, Lab


def examine(host: Host, *words: str, **variables: str) -> tuple[int, list[str]]:
    """Return the exit code of doctor, and its lines."""
    done = host.run(["arpanet", "doctor", *words], env=variables, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def require_well(host: Host, **variables: str) -> list[str]:
    """Return what doctor says of an arpanet that is well, once it does."""

    def is_well() -> list[str]:
        code, lines = examine(host, **variables)
        assert code == 0, "\n".join(lines)
        assert all(line.startswith("✓ ") for line in lines)
        return lines

    return eventually("all is well", is_well)


@pytest.fixture(scope="module")
def well(net: Lab) -> Lab:
    """Return an arpanet that is up and of which doctor says so."""
    require_well(net["h1"])
    return net


def test_of_what_is_well_doctor_says_so(well: Lab) -> None:
    lines = require_well(well["h1"])
    assert "✓ 3 of 3 masters answer: h1, h2, h3" in lines
    assert "✓ 3 hosts are up: h1, h2, h3" in lines
    assert "✓ all masters and slaves reach each other" in lines
    assert require_well(well["h3"])[1:-2] == lines[1:-2]

    def is_told_to_machines() -> None:
        code, text = examine(well["h2"], "--json")
        told = json.loads("".join(text))
        assert (code, told["well"], {f["well"] for f in told["findings"]}) == (0, True, {True})

    eventually("to machines too", is_told_to_machines)


def test_a_client_without_a_role_can_ask_too(well: Lab) -> None:
    lines = require_well(well.client, ARPANET_MASTERS=f"192.0.2.1,{well['h2'].ip}")
    assert lines[0] == "✓ on this machine no master and no slave is to run"
    assert lines[2] == "✓ 3 hosts are up: h1, h2, h3"


def test_one_who_is_not_root_is_told_the_same(well: Lab) -> None:
    drop = ["setpriv", "--reuid", "65534", "--clear-groups", "env", "HOME=/tmp"]
    nobody = [*drop, "PEX_ROOT=/tmp/pex", "arpanet"]
    if TLS:  # the machine's key is for root alone
        done = well["h1"].run([*nobody, "doctor"], check=False)
        assert done.stdout.startswith(f"✗ cannot read {TLS_DIR}/ca.pem; use sudo, or say where ")
        well["h1"].run(["sh", "-c", f"cp -rL {TLS_DIR} /run/own; chmod -R a+rX /run/own"])
        nobody.insert(len(drop), "ARPANET_CERT_PATH=/run/own")
    for words in (["doctor"], ["slave", "status"], ["docker", "ps"]):
        done = well["h1"].run([*nobody, *words])
        assert "internal" not in done.stderr

    def is_told_the_same() -> None:
        told = well["h1"].run([*nobody, "doctor"]).stdout
        assert told.splitlines() == require_well(well["h1"])

    eventually("the same", is_told_the_same)


def test_one_who_asks_nobody_is_told_whom_to_ask(well: Lab) -> None:
    code, lines = examine(well.client, ARPANET_MASTERS="127.0.0.9")
    assert code == 1
    assert lines[-1].startswith("✗ no master answers (127.0.0.9: refused); start one: ")


def test_each_fault_is_found_and_no_other(well: Lab) -> None:
    h1, h2, h3 = well.hosts
    image = output(well, "image", "ls", "--quiet").splitlines()[0]
    for host in (h1, h2):
        host.run(["docker", "create", "--name", "twin", image, "true"])
    block = ["OUTPUT", "-d", h2.ip, "-p", "tcp", "--dport", "8792", "-j", "REJECT"]
    h1.run(["iptables", "-I", *block])
    h2.run(["ip", "route", "del", "local", "198.18.0.0/16", "dev", "lo"])
    h3.run(["arpanet", "slave", "stop"])
    h3.popen(["python3", "-m", "http.server", "8792", "--bind", h3.ip])

    def faults() -> None:
        code, lines = examine(h3)
        found = {re.sub(r"\(pid \d+\)|(?<=lead here: ).*", "…", x) for x in lines if x[0] != "✓"}
        door = (
            f"the slave of h2 ({h2.ip}:8792): Connection refused; look for a firewall between them"
        )
        assert found == {
            "✗ the slave of this machine does not run; "
            "start it: systemctl start arpanet-slave, or: arpanet slave start",
            f"✗ port 8792 on {h3.ip} is in use by python3 …; try: stop it",
            f"✗ host h3 ({h3.ip}) is down; on it: arpanet slave start",
            f"✗ master h1 does not reach {door}",
            f"✗ slave h1 does not reach {door}",
            "✗ slave h2: 198.18.0.1 does not lead here: …",
            "✗ the name twin is on h1, h2; remove or rename one: docker rename twin@h2 NEWNAME",
        }
        assert code == 1

    eventually("doctor finds all", faults, within_s=40)
