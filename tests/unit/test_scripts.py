"""The shell scripts: clean, clear in what they refuse, and harmless when cut short."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest
from lab import SLOW

REPO = pathlib.Path(__file__).resolve().parents[2]
ALWAYS = {"build_zipapp.sh", "bootstrap.sh"}
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
NOBODY = 65534
# What bootstrap.sh calls; in the test of cut scripts each of these only leaves a mark.
STUBS = """
apt-get apt-cache awk cat chmod cmp cp curl cut date df dirname dockerd docker dpkg-query env
flock grep head hostname id ip journalctl mkdir mktemp mv python3 rm sed service setsid sha256sum
sh sleep systemctl tail tr uname update-rc.d wget
"""


def scripts() -> list[pathlib.Path]:
    """Return the shell scripts of the repository."""
    tops = [*REPO.glob("*.sh"), *REPO.glob("tests/**/*.sh"), REPO / "tests/run", REPO / ".ci/run"]
    return sorted(path for path in tops if path.is_file() and is_shell(path))


def is_shell(path: pathlib.Path) -> bool:
    """Return whether a file starts as a shell script does."""
    with open(path, "rb") as file:
        return file.readline().strip().endswith((b"/sh", b"/bash", b"env bash"))


def named(path: pathlib.Path) -> str:
    """Return a script's name for a test's name."""
    return str(path.relative_to(REPO))


def run(*command: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Return how a command ended, with what it printed."""
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
    )


def test_the_scripts_of_the_top_level_are_among_those_checked() -> None:
    assert {path.name for path in scripts()} >= ALWAYS


@pytest.mark.parametrize("script", scripts(), ids=named)
def test_the_shell_can_read_it(script: pathlib.Path) -> None:
    with open(script) as file:
        shells = ["bash"] if "bash" in file.readline() else SHELLS
    for shell in shells:
        done = run(shell, "-n", script)
        assert (done.returncode, done.stderr) == (0, ""), shell


@pytest.mark.parametrize("script", sorted(ALWAYS))
@pytest.mark.parametrize("shell", SHELLS)
def test_help_is_for_everybody(script: str, shell: str) -> None:
    done = run(shell, REPO / script, "--help")
    assert done.returncode == 0
    assert f"./{script} --" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_help_reaches_one_who_pipes_the_script(shell: str) -> None:
    done = subprocess.run(
        [shell, "-s", "--", "--help"],
        input=(REPO / "bootstrap.sh").read_bytes(),
        capture_output=True,
        timeout=60 * SLOW,
    )
    assert done.returncode == 0
    assert b"--start" in done.stdout


@pytest.mark.parametrize("script", sorted(ALWAYS))
def test_an_unknown_option_is_refused_in_one_sentence(script: str) -> None:
    done = run("sh", REPO / script, "--bogus")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{script}: unknown option --bogus; try: ./{script} --help\n"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["king"], "king"),
        (["--peers"], "--peers"),
        (["--version", "../1"], "--version"),
        (["--start", "--peers", "h1; rm"], "--peers"),
        (["--ip", "h1"], "--ip"),
        (["--cert-path", "tls"], "--cert-path"),
        (["--sha256", "XYZ"], "--sha256"),
        (["--purge"], "--uninstall"),
    ],
)
def test_a_bad_value_is_refused_and_named(options: list[str], names: str) -> None:
    done = run("sh", REPO / "bootstrap.sh", "--dry-run", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert names in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("shell", SHELLS)
def test_one_who_is_not_root_is_told_to_use_sudo(shell: str) -> None:
    done = subprocess.run(
        [shell, "-s", "--", "--start"],
        input=(REPO / "bootstrap.sh").read_text(),
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        cwd="/",
        user=NOBODY if os.getuid() == 0 else None,
    )
    assert (done.returncode, done.stdout) == (1, "")
    told = "this changes the machine and needs root: sudo ./bootstrap.sh, or piped: ... | sudo bash"
    assert done.stderr == f"bootstrap.sh: {told}\n"


def test_what_is_no_checkout_needs_a_url(tmp_path: pathlib.Path) -> None:
    done = run("sh", shutil.copy(REPO / "bootstrap.sh", tmp_path), "--dry-run")
    assert done.returncode == 1
    assert "--url" in done.stderr


def test_a_certificate_must_be_there_and_stands_in_the_settings(tmp_path: pathlib.Path) -> None:
    options = ["--dry-run", "--start", "--ip", "127.0.0.1", "--cert-path", str(tmp_path)]
    for name in ("ca.pem", "cert.pem", "key.pem"):
        done = run("sh", REPO / "bootstrap.sh", *options)
        assert done.returncode == 1
        assert f"there is no {tmp_path / name}" in done.stderr
        (tmp_path / name).write_text("x")
    assert run("sh", REPO / "bootstrap.sh", *options).returncode == 0
    functions = (REPO / "bootstrap.sh").read_text().rpartition("\nmain ")[0] + "\n}\n"
    done = run("sh", "-c", f'{functions}parse "$@"; env_file', "x", *options)
    assert done.stdout.splitlines()[-2:] == ["ARPANET_PEERS=boot", f"ARPANET_CERT_PATH={tmp_path}"]


def test_a_dry_run_needs_no_root_and_says_what_would_be_done(tmp_path: pathlib.Path) -> None:
    (tmp_path / "arpanet.pex").write_text("")
    options = ["--dry-run", "--url", str(tmp_path / "arpanet.pex")]
    done = run("sh", REPO / "bootstrap.sh", *options)
    assert done.returncode == 0, done.stderr
    assert "would write /usr/local/bin/arpanet\n" in done.stdout


@pytest.mark.parametrize(
    ("variables", "words", "roles"),
    [
        ({}, [], ""),
        ({}, ["master", "--peers", "boot"], "master"),
        ({}, ["slave", "--masters", "192.0.2.1"], "slave"),
        ({}, ["slave", "master", "--peers", "192.0.2.1"], "master slave"),
        ({}, ["--start"], "master slave"),
        ({"ARPANET_ROLE": "slave", "ARPANET_MASTERS": "192.0.2.1"}, [], "slave"),
        ({"ARPANET_ROLE": "slave", "ARPANET_PEERS": "boot"}, ["master"], "master"),
    ],
)
def test_the_roles_that_are_named_are_started(
    variables: dict[str, str], words: list[str], roles: str
) -> None:
    place = {"ARPANET_URL": "https://files.example/", "ARPANET_VERSION": "0.2.0"}
    done = subprocess.run(
        ["sh", "-s", "--", "--dry-run", "--ip", "127.0.0.1", *words],
        input=(REPO / "bootstrap.sh").read_text(),
        capture_output=True,
        text=True,
        timeout=60 * SLOW,
        env={"PATH": os.environ["PATH"], **place, **variables},
    )
    assert done.returncode == 0, done.stderr
    assert "would fetch https://files.example/0.2.0/arpanet.pex and" in done.stdout
    started = re.findall(r"would run: .*(?:/arpanet |restart arpanet-)(\w+)", done.stdout)
    assert " ".join(started) == roles


def write_stubs(directory: pathlib.Path, mark: pathlib.Path) -> pathlib.Path:
    """Return a PATH that has only commands that leave a mark."""
    directory.mkdir()
    for name in STUBS.split():
        stub = directory / name
        stub.write_text(f"#!/bin/sh\necho {name} >>{mark}\n")
        stub.chmod(0o755)
    return directory


def prefixes(script: bytes) -> list[bytes]:
    """Return a script cut short every 50 bytes, and at each byte of its last lines."""
    near_end = range(max(0, len(script) - 40), len(script.rstrip()))
    return [script[:size] for size in sorted({*range(0, len(script), 50), *near_end})]


@pytest.mark.parametrize("shell", SHELLS)
def test_half_a_download_runs_nothing(shell: str, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    path = write_stubs(tmp_path / "bin", mark)
    program = shutil.which(shell)
    assert program is not None
    for prefix in prefixes((REPO / "bootstrap.sh").read_bytes()):
        subprocess.run(
            [program, "-s", "--", "--start"],
            input=prefix,
            capture_output=True,
            timeout=60 * SLOW,
            env={"PATH": str(path)},
            cwd=tmp_path,
        )
        assert not mark.exists(), f"cut after {len(prefix)} bytes it ran {mark.read_text()}"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_whole_download_does_run(shell: str, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    program = shutil.which(shell)
    assert program is not None
    subprocess.run(
        [program, "-s", "--", "--start"],
        input=(REPO / "bootstrap.sh").read_bytes(),
        capture_output=True,
        timeout=60 * SLOW,
        env={"PATH": str(write_stubs(tmp_path / "bin", mark))},
        cwd=tmp_path,
    )
    assert mark.exists(), "the stubs see nothing, so the test of cut scripts proves nothing"
