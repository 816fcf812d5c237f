"""The command line: its help, its exit codes, and what a person reads when something is wrong."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest
from conftest import until
from lab import SLOW

import arpanet
from arpanet import SETTINGS, BadRequest, LogLine, build_parser, main, open_log_file, parse_head

VERBS = {
    "Begin", "Give", "Keep", "Let", "Make", "Move", "Offer", "Put", "Run", "Save", "Show", "Start",
    "Stop",
    "Take",
}  # fmt: skip


def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of all its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from walk(child)


PARSERS = list(walk(build_parser()))


def short_helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the line for each subcommand."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert len(action._choices_actions) == len(action.choices), "one has no help"
            yield from (str(choice.help) for choice in action._choices_actions)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give every setting of a test a place of its own, and an arpanet where nobody answers."""
    for row in SETTINGS:
        monkeypatch.delenv(row.variable, raising=False)
    for name in ("RUN_DIR", "STATE_DIR", "LOG_DIR"):
        monkeypatch.setenv(f"ARPANET_{name}", str(tmp_path / name.lower()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("ARPANET_API_PORT", str(port))
    monkeypatch.setenv("ARPANET_SOCKET", str(tmp_path / "docker.sock"))
    monkeypatch.setenv("ARPANET_IP", "127.0.0.1")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run arpanet as a process of its own."""
    command = [sys.executable, arpanet.__file__, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60 * SLOW)


# ---- what docker run would be told


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1k", 1024), ("512M", 512 << 20), ("1.5g", 3 << 29), ("2b", 2)],
)
def test_a_size_of_memory(text: str, size: int) -> None:
    assert arpanet.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("8080:80", ("80/tcp", {"HostIp": "", "HostPort": "8080"})),
        ("10.0.0.1:53:53/udp", ("53/udp", {"HostIp": "10.0.0.1", "HostPort": "53"})),
    ],
)
def test_a_port_that_is_published(text: str, read: tuple[str, dict[str, str]]) -> None:
    assert arpanet.parse_publish(text) == read


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "much"], ["-m", "1.2.3"], ["-p", "80"], ["--cpus", "nan"], ["--cpus", "-1"],
        ["-c", "x"], ["--nosuch"],
    ],
)  # fmt: skip
def test_a_flag_of_place_that_is_wrong_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["place", "--dry-run", *words, "busybox"])
    assert caught.value.code == 2
    assert "usage: arpanet" in capsys.readouterr().err


def test_a_label_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "label", "h1", "zone"]) == 2
    assert "type KEY=VALUE, or KEY- to take it away" in capsys.readouterr().err
    assert arpanet.read_labels(["a=b", "c-", "d-=", "e=f-"]) == {
        "a": "b", "c": None, "d-": "", "e": "f-",
    }  # fmt: skip


# ---- help


def test_there_are_the_subcommands_that_the_readme_tells() -> None:
    names = {parser.prog for parser in PARSERS}
    assert names == {
        "arpanet", "arpanet docker", "arpanet doctor", "arpanet help", "arpanet completion",
        *(f"arpanet {role}" for role in ("master", "slave", "client")),
        *(f"arpanet {role} {verb}" for role in ("master", "slave", "client")
          for verb in ("start", "stop", "status")),
        "arpanet slave leave", "arpanet host", "arpanet move", "arpanet place", "arpanet image",
        "arpanet image spread", "arpanet ca", "arpanet ca init", "arpanet ca issue",
        *(f"arpanet host {verb}"
          for verb in ("ls", "inspect", "drain", "cordon", "undrain", "label", "rm")),
        *(f"arpanet master {verb}" for verb in ("leave", "remove", "backup", "recover")),
    }  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.prog.replace(" ", "-"))
def test_every_help_can_be_read(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*parser.prog.split()[1:], "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert parser.description
    assert re.sub(r"\s+", " ", parser.description) in re.sub(r"\s+", " ", text)
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action
        flag = next(iter(action.option_strings), "")
        assert flag in text


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.prog.replace(" ", "-"))
def test_a_short_help_is_a_verb_without_a_full_stop(parser: argparse.ArgumentParser) -> None:
    for words in short_helps(parser):
        assert words.split()[0].rstrip(":") in VERBS, words
        assert not words.endswith("."), words
        assert len(words) <= 60


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.prog.replace(" ", "-"))
def test_a_flag_is_told_with_a_capital_and_its_variable(parser: argparse.ArgumentParser) -> None:
    variables = {row.flag: row.variable for row in SETTINGS}
    for action in parser._actions:
        flag = next(
            (f for f in action.option_strings if f not in ("-h", "--help", "--version")), ""
        )
        if not flag:
            continue
        words = str(action.help)
        assert words[0].isupper(), words
        assert not words.endswith("."), words
        if parser.prog != "arpanet ca issue":  # whose --ip is another machine's
            assert flag not in variables or words.endswith(f"[{variables[flag]}]")


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_every_setting_is_a_flag_of_the_roles_that_read_it(row: arpanet.Setting) -> None:
    for parser in PARSERS:
        if parser.prog.endswith(" start"):
            role = parser.prog.split()[1]
            flags = {flag for action in parser._actions for flag in action.option_strings}
            assert (row.flag in flags) == (role in row.roles), parser.prog


def test_the_first_help_shows_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "sudo arpanet master start --peers boot" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"arpanet {arpanet.__version__}\n"


# ---- exit codes and words

FAILURES = [
    (["slave", "status"], 1, "the slave does not run; start it: arpanet slave start"),
    (["client", "status"], 1, "the client does not run; start it: arpanet client start"),
    (["master", "status"], 3, "no master answers (127.0.0.1:"),
    (["docker", "ps"], 3, "start one: arpanet master start"),
    (["slave", "leave"], 3, "no master answers"),
    (["master", "start", "--api-port", "http"], 2, "--api-port (ARPANET_API_PORT)"),
    (["master", "start", "--ip", "203.0.113.9"], 2, "not an address of this machine"),
    (["client", "start", "--foreground"], 2, "no master is known"),
    (["client", "start"], 2, "no master is known"),
    (["slave", "start", "--run-dir", "/proc/x"], 2, "cannot write /proc/x"),
    (["client", "start", "--log-dir", "/proc/x"], 2, "run it as root (sudo)"),
]


@pytest.mark.parametrize(("words", "code", "told"), FAILURES, ids=lambda x: str(x)[:40])
def test_a_failure_has_its_exit_code_and_one_line(words: list[str], code: int, told: str) -> None:
    done = run(*words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("arpanet: ")]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    "words", [[], ["master"], ["nothing"], ["master", "nothing"], ["master", "start", "--nothing"]]
)
def test_a_wrong_command_line_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: arpanet" in capsys.readouterr().err


def test_a_bad_variable_is_told_like_a_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARPANET_API_PORT", "http")
    assert main(["master", "status"]) == 2
    assert capsys.readouterr().err == (
        "arpanet: --api-port (ARPANET_API_PORT) cannot be 'http': "
        "a port is a number from 1 to 65535\n"
    )


@pytest.mark.parametrize("role", ["master", "slave", "client"])
def test_stopping_what_does_not_run_is_well(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([role, "stop"]) == 0
    assert capsys.readouterr().err == f"arpanet: the {role} does not run\n"


@pytest.mark.parametrize("role", ["slave", "client"])
def test_json_is_for_machines(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([role, "status", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["running"] is False
    assert "does not run" in told.err


def test_what_others_may_not_read_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "state_dir" / "masters.json").mkdir(parents=True)  # not even root can read it
    done = run("docker", "ps")
    assert (done.returncode, "no master answers" in done.stderr) == (3, True), done.stderr


def test_what_holds_the_lock_runs_whatever_the_file_says(tmp_path: Path) -> None:
    path = str(tmp_path / "run_dir" / "client.pid")
    lock = arpanet.take_lock(path)
    assert arpanet.lock_holder(path) == os.getpid()
    done = run("client", "start", "--masters", "127.0.0.1")
    assert (done.returncode, done.stderr) == (
        1, f"arpanet: the client runs already, as process {os.getpid()}; "
           "see: arpanet client status\n",
    )  # fmt: skip
    with pytest.raises(arpanet.LockHeld, match=str(os.getpid())):
        arpanet.take_lock(path)
    os.close(lock)
    assert arpanet.lock_holder(path) == 0


def test_who_has_just_taken_the_lock_is_waited_for_until_it_says_who_it_is(tmp_path: Path) -> None:
    path = tmp_path / "slave.pid"
    with path.open("wb") as file, futures.ThreadPoolExecutor() as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        asked = pool.submit(arpanet.lock_holder, str(path))
        assert futures.wait([asked], timeout=0.2).not_done
        file.write(b"4711\n")
        file.flush()
        assert asked.result(20 * SLOW) == 4711


def test_a_daemon_may_open_as_many_files_as_its_user_may_have(tmp_path: Path) -> None:
    start = [sys.executable, arpanet.__file__, "client", "start", "--foreground"]
    words = ["sh", "-c", 'ulimit -Sn 99; exec "$@"', "sh", *start, "--masters", "127.0.0.1"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    lock = str(tmp_path / "run_dir" / "client.pid")
    try:
        until("it runs", lambda: arpanet.lock_holder(lock) == process.pid, 60)
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard
    finally:
        process.terminate()
        process.wait(20 * SLOW)


def test_a_table_is_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    arpanet.print_table([("A", "LONG"), ("value", 1), ("", "")])
    assert capsys.readouterr().out == "A       LONG\nvalue   1\n\n"


@pytest.mark.parametrize("words", [["doctor"], ["help", "doctor"], ["master", "start", "--help"]])
def test_a_terminal_of_long_ago_can_be_written_to(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run(*words)
    assert done.stdout.strip()
    assert "error" not in done.stderr


# ---- help and completion


@pytest.mark.parametrize("topic", arpanet.TOPICS)
def test_a_topic_is_told_on_one_screen(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", topic]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    if topic == "settings":
        assert sum(f"{row.variable}={row.default}" in lines for row in SETTINGS) == len(SETTINGS)
    else:
        assert 3 <= len(lines) <= 14


def test_help_without_a_topic_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    told = capsys.readouterr().out
    assert all(topic in told for topic in arpanet.TOPICS)


def completion(shell: str) -> str:
    """Return the code for a shell."""
    return arpanet.completion(argparse.Namespace(shell=shell))


COMPLETIONS = [
    ("", "master slave client host image ca docker place move doctor help completion"),
    ("ma", "master"),
    ("master st", "start stop status"),
    ("master start --pe", "--peers"),
    ("master start --peers boot --etcd-p", "--etcd-port --etcd-peer-port"),
    ("help vol", "volumes"),
    ("completion z", "zsh"),
    ("nothing x", ""),
]


@pytest.mark.parametrize(("typed", "offered"), COMPLETIONS)
def test_a_shell_completes_what_is_typed(typed: str, offered: str) -> None:
    words = ["arpanet", *typed.split(" ")]
    script = (
        completion("bash") + f"\nCOMP_WORDS=({' '.join(words[:-1])} '{words[-1]}')"
        f"\nCOMP_CWORD={len(words) - 1}\n_arpanet\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-uc", script], capture_output=True, text=True, timeout=60 * SLOW
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [word for word in done.stdout.split() if typed or not word.startswith("-")]
    assert found == offered.split()


def test_zsh_gets_the_same_through_its_own_bridge() -> None:
    first, _, rest = completion("zsh").partition("\n")
    assert first == "autoload -U +X bashcompinit && bashcompinit"
    assert rest == completion("bash")


# ---- what is written


def test_a_library_that_cannot_be_loaded_is_no_internal_error(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None; import arpanet; sys.exit(arpanet.main())"
    )
    command = [sys.executable, "-c", code, "ca", "init", str(tmp_path / "ca")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SLOW)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("arpanet: cannot load a library: ")
    assert "PEX_ROOT=DIR" in done.stderr


def test_a_line_of_the_log_is_one_line_whatever_a_name_has() -> None:
    record = logging.LogRecord("arpanet", 30, "", 0, "no %s", ("a\nERROR main: \x1b[1m\x9b",), None)
    line = LogLine("%(levelname)s %(threadName)s: %(message)s").format(record)
    assert line == "WARNING MainThread: no a\\x0aERROR main: \\x1b[1m\\x9b"


def test_a_traceback_has_its_lines() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("arpanet", 40, "", 0, "internal error", (), sys.exc_info())
    assert LogLine("%(message)s").format(record).splitlines()[-1] == "ValueError: x"


def test_a_log_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "log" / "master.log"
    os.close(open_log_file(str(path)))
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("line", [b"X-Registry-Auth : c2VjcmV0", b" c2VjcmV0"])
def test_a_line_of_a_head_that_is_none_is_not_repeated(line: bytes) -> None:
    with pytest.raises(BadRequest, match="line 3 of a head") as caught:
        parse_head(b"GET / HTTP/1.1\r\nHost: x\r\n" + line)
    assert "c2VjcmV0" not in str(caught.value)
