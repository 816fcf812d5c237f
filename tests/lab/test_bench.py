"""The benchmarks start, say what they measure, and measure; what they find is for people."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from lab import SLOW, Lab

BENCH = Path(__file__).parents[1] / "bench" / "run"


def bench(*words: str) -> str:
    """Return what the benchmarks print."""
    done = subprocess.run([BENCH, *words], capture_output=True, text=True, timeout=240 * SLOW)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_has_every_row_once() -> None:
    names = [line.split()[0] for line in bench("--list").splitlines()]
    assert "link-bulk-1" in names
    assert len(set(names)) == len(names)


def test_with_certificates_the_links_between_hosts_are_measured() -> None:
    names = [line.split()[0] for line in bench("--tls", "--list").splitlines()]
    assert names == ["hosts-bulk-1", "hosts-bulk-8", "hosts-ping-1", "hosts-new-50"]


def test_one_quick_row_compares_a_link_with_a_peer(net: Lab) -> None:
    row = ("--row", "link-ping-100")
    found: dict[str, Any] = json.loads(bench("--lab", net.name, "--quick", "--json", *row))
    rates = {line["peer"]: line["peers"] for line in found["lines"]}
    assert rates["docker-proxy"] > 0
    [ours] = {line["ours"] for line in found["lines"]}
    assert ours > 0
    assert "cores" in found["machine"]


def test_a_row_that_is_not_there_is_said() -> None:
    done = subprocess.run(
        [BENCH, "--row", "nosuch"], capture_output=True, text=True, timeout=60 * SLOW
    )
    assert done.returncode == 1
    assert "there is no row nosuch; there are: list-1, " in done.stderr
