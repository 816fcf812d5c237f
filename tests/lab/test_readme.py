"""The README's console blocks, typed as they stand: what they show is what is seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT
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
        done = host.run(["sh", "-c", sudo + step.command], timeout=90)
        if step.shown:
            seen = done.stdout.strip()
            assert re.fullmatch(pattern_of(step.shown), seen), f"{step.command}\n{seen}"
