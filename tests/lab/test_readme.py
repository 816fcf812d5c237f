"""The README's console blocks, typed as they stand: what they show is what is seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT, eventually, until
from lab import Host, Lab

PROMPT = re.compile(r"(h[123]|c1)\$ (.*)")


class Step(NamedTuple):
    """A command, the host it is typed on, and the lines that the README shows below it."""

    host: str
    command: str
    shown: list[str]


def read_steps(readme: Path) -> list[Step]:
    steps: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```", readme.read_text(), re.M | re.S):
        for line in block.splitlines():
            prompt = PROMPT.fullmatch(line)
            if prompt:
                steps.append(Step(prompt[1], prompt[2], []))
            else:
                steps[-1].shown.append(line)
    return steps


def pattern_of(lines: list[str]) -> str:
    """Return a pattern in which … stands for anything on a line; no lines: whatever it prints."""
    return "\n".join(re.escape(line).replace("…", ".*") for line in lines)


def test_every_console_block_does_what_it_shows(lab: Lab) -> None:
    sudo = 'sudo() { "$@"; }; '
    steps = read_steps(ROOT / "README.md")
    assert len(steps) > 15
    for step in steps:
        host: Host = lab.client if step.host == "c1" else lab[step.host]

        def type_it(host: Host = host, step: Step = step) -> None:
            done = host.run(["sh", "-c", sudo + step.command], timeout=90)
            if step.shown:
                seen = done.stdout.strip()
                assert re.fullmatch(pattern_of(step.shown), seen), f"{step.command}\n{seen}"

        if " exec " in step.command and " wget " in step.command:
            eventually("the web server listens", type_it)
        else:
            type_it()


# ---- TLS

SERIAL = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="clients/me/ca.pem")
context.load_cert_chain("clients/me/cert.pem", "clients/me/key.pem")
with socket.create_connection((sys.argv[1], 8791)) as sock:
    with context.wrap_socket(sock, server_hostname=sys.argv[1]) as end:
        print(end.getpeercert()["serialNumber"])
"""


def type_in(host: Host, command: str, check: bool = True) -> str:
    """Return what is seen where the certificates are made."""
    words = ["sh", "-c", f"mkdir -p /var/lib/arpanet; cd /var/lib/arpanet; {command}"]
    return host.run(words, check=check).stdout.strip()


def copy_certificate(lab: Lab) -> None:
    """Copy the files of hosts/h1 to h1, as a person does with scp."""
    packed = type_in(lab.client, "tar -C ca/hosts/h1 -cz . | base64")
    unpack = "mkdir -p /etc/arpanet/tls; base64 -d | tar -C /etc/arpanet/tls -xz"
    lab["h1"].run(["sh", "-c", unpack], input=packed)


def test_the_section_about_tls_does_what_it_says(lab: Lab) -> None:
    told = (ROOT / "README.md").read_text().partition("\n## TLS\n")[2].partition("\n## ")[0]
    init, issue, person, ask = re.findall("(?m)^    (.*)$", told)
    h1 = lab["h1"]
    for host in lab.hosts:
        for role in ("slave", "master"):
            host.run(["arpanet", role, "stop"])
        host.run(["sh", "-c", "rm -rf /var/lib/arpanet/*"])
    type_in(lab.client, f"{init}\n{issue}\n{person}")
    copy_certificate(lab)
    h1.run(["sh", "-c", "echo ARPANET_CERT_PATH=/etc/arpanet/tls >/etc/arpanet/arpanet.env"])
    h1.run(["arpanet", "master", "start", "--peers", "boot"])
    h1.run(["arpanet", "slave", "start"])
    assert "NAMES" in type_in(lab.client, f"cd ca; {ask}")
    assert lab.client.run(["docker", "-H", f"tcp://{h1.ip}:8791", "ps"], check=False).returncode
    running = [h1.run(["cat", f"/run/arpanet/{role}.pid"]).stdout for role in ("master", "slave")]
    see = f"cd ca; python3 -Ic '{SERIAL}' {h1.ip}"
    first = type_in(lab.client, see)
    type_in(lab.client, f"cd ca; {issue}")
    copy_certificate(lab)
    until("the new one is shown", lambda: type_in(lab.client, see) not in ("", first))
    assert "NAMES" in type_in(lab.client, f"cd ca; {ask}")
    eventually("doctor finds nothing", lambda: h1.run(["arpanet", "doctor"]))
    assert running == [
        h1.run(["cat", f"/run/arpanet/{role}.pid"]).stdout for role in ("master", "slave")
    ]
