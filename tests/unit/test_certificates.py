"""The certificate of a process: what it opens, how it is renewed, what it says of its holder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import re
import shutil
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import arpanet
from arpanet import (
    CertificateFiles,
    Identity,
    Pair,
    Settings,
    Usage,
    complain_of_certificate,
    make_identity,
    read_peer,
    read_settings,
    require_own_certificate,
    sign_certificate,
    sign_for_client,
    sign_for_machine,
    use_identity,
)

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
IP = "192.168.8.120"
NAMES, IPS = ("h1", "arpanet", "localhost"), (IP, "127.0.0.1")


def write(directory: Path, ca: Pair, own: Pair | None) -> CertificateFiles:
    """Return the paths of files as docker names them."""
    directory.mkdir(exist_ok=True)
    files = CertificateFiles(*(str(directory / f"{n}.pem") for n in ("ca", "cert", "key")))
    arpanet.write_pair(files.ca, str(directory / "ca-key.pem"), ca)
    if own:
        arpanet.write_pair(files.cert, files.key, own)
    return files


@pytest.fixture(scope="module")
def ca() -> Pair:
    return sign_certificate("ours", 9, None, ())


@pytest.fixture(scope="module")
def machine(ca: Pair) -> Pair:
    return sign_for_machine("h1", [IP], 9, ca)


@pytest.fixture
def files(tmp_path: Path, ca: Pair, machine: Pair) -> CertificateFiles:
    return write(tmp_path / "h1", ca, machine)


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = IP) -> tuple[Any, Any]:
    """Return what the server and the client see of each other. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=host),
    ]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert all(end.version() in ("TLSv1.2", "TLSv1.3") for end in ends)
    return ends[0].getpeercert(), ends[1].getpeercert()


def test_two_machines_see_who_the_other_is(files: CertificateFiles) -> None:
    identity = Identity(files)
    for seen in shake(identity.server_context(), identity.client_context()):
        assert read_peer(seen) == (NAMES, IPS, True, "h1")


def test_a_certificate_without_the_name_is_no_machines(tmp_path: Path, ca: Pair) -> None:
    client = Identity(write(tmp_path / "eve", ca, sign_for_client("eve", 9, ca)))
    server = Identity(write(tmp_path / "h1", ca, sign_for_machine("h1", [IP], 9, ca)))
    seen, _ = shake(server.server_context(), client.client_context())
    assert read_peer(seen) == ((), (), False, "eve")
    with pytest.raises(ssl.SSLError):  # and it opens no port
        shake(client.server_context(), server.client_context())


def test_nobodys_certificate_says_nothing() -> None:
    assert read_peer(None) == read_peer({}) == ((), (), False, "")


def stranger(kind: str, directory: Path, ca: Pair) -> Identity:
    """Return somebody who is not to be let in."""
    if kind == "of another authority":
        other = sign_certificate("theirs", 9, None, ())
        files = write(directory, ca, sign_for_machine("h1", [IP], 9, other))
    elif kind == "expired":
        files = write(directory, ca, sign_for_machine("h1", [IP], 0, ca))
    else:
        files = write(directory, ca, None)
    return Identity(files, trusting=True)


@pytest.mark.parametrize("kind", ["of another authority", "expired", "without a certificate"])
def test_a_stranger_is_refused(
    kind: str, tmp_path: Path, ca: Pair, files: CertificateFiles
) -> None:
    ours = Identity(files)
    with pytest.raises(ssl.SSLError):
        shake(ours.server_context(), stranger(kind, tmp_path / "it", ca).client_context())


def test_the_address_that_is_dialled_is_in_the_certificate(files: CertificateFiles) -> None:
    ours = Identity(files)
    with pytest.raises(ssl.SSLCertVerificationError, match="192.168.8.121"):
        shake(ours.server_context(), ours.client_context(), "192.168.8.121")


def test_tls_alone_lets_anybody_ask_a_master_and_nothing_else(
    tmp_path: Path, ca: Pair, files: CertificateFiles
) -> None:
    master, anybody = (
        Identity(files, guests=True),
        Identity(write(tmp_path, ca, None), trusting=True),
    )
    seen, _ = shake(master.server_context(guests=True), anybody.client_context(), "anywhere")
    assert not read_peer(seen).machine
    with pytest.raises(ssl.SSLError):
        shake(master.server_context(), anybody.client_context())
    with pytest.raises(ssl.SSLError):  # without --tls the port for guests is like any other
        shake(Identity(files).server_context(guests=True), anybody.client_context())


def test_old_versions_of_tls_are_not_spoken(files: CertificateFiles) -> None:
    ours = Identity(files)
    for context in (ours.server_context(), ours.server_context(guests=True), ours.client_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_renewed_certificate_is_taken_when_all_of_it_is_there(
    tmp_path: Path, ca: Pair, files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours = Identity(files)
    stamp, pem, context = ours.stamp(), ours.read(), ours.server_context()
    assert ours.server_context() is context
    renewed = write(tmp_path / "new", ca, sign_for_machine("again", [IP], 9, ca))
    Path(renewed.cert).replace(files.cert)  # and its key is still the old one
    for _ in range(3):
        assert (ours.stamp(), ours.read(), ours.server_context()) == (stamp, pem, context)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert files.key in caplog.text
    Path(renewed.key).replace(files.key)
    seen, _ = shake(ours.server_context(), ours.client_context())
    assert read_peer(seen).common_name == "again"
    assert ours.stamp() != stamp
    assert ours.read() != pem
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_many_threads_may_ask_while_it_is_renewed(
    tmp_path: Path, ca: Pair, files: CertificateFiles
) -> None:
    ours = Identity(files)
    faults: list[Exception] = []

    def ask() -> None:
        try:
            for _ in range(100):
                ours.server_context()
        except Exception as e:  # noqa: BLE001 (whatever it is, the test is to say it)
            faults.append(e)

    threads = [threading.Thread(target=ask) for _ in range(4)]  # noqa: TID251
    for thread in threads:
        thread.start()
    for i in range(20):
        renewed = write(tmp_path / f"new{i}", ca, sign_for_machine("h1", [IP], 9, ca))
        Path(renewed.key).replace(files.key)
        Path(renewed.cert).replace(files.cert)
    for thread in threads:
        thread.join()
    assert faults == []
    assert ours.read().cert == Path(files.cert).read_bytes()


def test_one_who_reads_slowly_spoils_nothing_and_delays_nobody(
    tmp_path: Path, ca: Pair, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, load = Identity(files), Identity._load
    pem, began, go_on = ours.read(), threading.Event(), threading.Event()

    def renew(name: str) -> None:
        renewed = write(tmp_path / name, ca, sign_for_machine("h1", [IP], 9, ca))
        Path(renewed.key).replace(files.key)
        Path(renewed.cert).replace(files.cert)

    def load_slowly(self: Identity, seen: tuple[Any, ...]) -> Any:
        began.set()
        assert go_on.wait(60)
        return load(self, seen)

    monkeypatch.setattr(Identity, "_load", load_slowly)
    slow = threading.Thread(target=ours.read)  # noqa: TID251
    renew("once")
    slow.start()
    assert began.wait(60)
    monkeypatch.setattr(Identity, "_load", load)
    renew("twice")
    assert ours.read() == pem  # while the other one is at it
    go_on.set()
    slow.join()
    assert ours.read().cert == Path(files.cert).read_bytes()
    assert ours.fault == ""


def test_what_cannot_be_used_is_named(tmp_path: Path, ca: Pair, machine: Pair) -> None:
    for number, spoil in enumerate(("ca.pem", "cert.pem", "key.pem")):
        files = write(tmp_path / str(number), ca, machine)
        bad = tmp_path / str(number) / spoil
        for content in ("", "none"):
            bad.write_text(content)
            with pytest.raises(Usage, match=str(bad)):
                Identity(files)
        bad.unlink()
        with pytest.raises(Usage, match=f"{bad} is missing"):
            Identity(files)


def test_nobody_is_asked_for_a_password(tmp_path: Path, ca: Pair, machine: Pair) -> None:
    from cryptography.hazmat.primitives import serialization

    files = write(tmp_path, ca, machine)
    hidden = serialization.BestAvailableEncryption(b"secret")
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path(files.key).write_bytes(machine.key.private_bytes(*forms, hidden))
    with pytest.raises(Usage, match="password"):
        Identity(files)


def test_who_opens_the_api_alone_is_signed_by_another_authority(
    tmp_path: Path, ca: Pair, files: CertificateFiles
) -> None:
    ours, clients = Identity(files), sign_certificate("clients", 9, None, ())
    user = Identity(write(tmp_path / "me", ca, sign_for_client("me", 9, clients)))
    before = ours.stamp()
    with pytest.raises(ssl.SSLError):
        shake(ours.server_context(guests=True), user.client_context())
    shutil.copy(write(tmp_path / "clients", clients, None).ca, Path(files.ca).parent / "x")
    os.replace(Path(files.ca).parent / "x", Path(files.ca).parent / "clients-ca.pem")
    seen, _ = shake(ours.server_context(guests=True), user.client_context())
    assert read_peer(seen) == ((), (), False, "me")
    assert ours.stamp() != before
    with pytest.raises(ssl.SSLError):
        shake(ours.server_context(), user.client_context())


def settings(**given: Any) -> Settings:
    """Return the settings of a master that was given these."""
    return dataclasses.replace(read_settings({}, {}, {}, "h1", "master"), **given)


def test_the_settings_say_whether_there_is_tls(
    tmp_path: Path, ca: Pair, machine: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path, ca, machine)
    monkeypatch.setattr(arpanet, "TLS_DIR", str(tmp_path))
    assert make_identity(settings(), "master") is None
    for given in (
        {"tls": True}, {"tlsverify": True}, {"cert_path": str(tmp_path)}, {"tlscacert": files.ca},
    ):  # fmt: skip
        found = make_identity(settings(**given), "master")
        assert found
        assert found.paths == files
    other = write(tmp_path / "other", ca, machine)
    found = make_identity(settings(cert_path=str(tmp_path), tlskey=other.key), "master")
    assert found
    assert found.paths == (files.ca, files.cert, other.key)


def test_only_tls_alone_is_for_guests(tmp_path: Path, ca: Pair, files: CertificateFiles) -> None:
    guest = Identity(write(tmp_path, ca, None), trusting=True).client_context()
    at = str(Path(files.cert).parent)
    for given, lets_in in (
        ({"tls": True}, True), ({"tlsverify": True}, False), ({}, False),
        ({"tls": True, "tlsverify": True}, False),
    ):  # fmt: skip
        found = make_identity(settings(cert_path=at, **given), "master")
        assert found
        if lets_in:
            shake(found.server_context(guests=True), guest)
        else:
            with pytest.raises(ssl.SSLError):
                shake(found.server_context(guests=True), guest)
        with pytest.raises(ssl.SSLCertVerificationError):  # and a machine verifies in any case
            shake(found.server_context(), found.client_context(), "elsewhere")


# ---- the certificate of a machine


@pytest.fixture
def used(files: CertificateFiles) -> Iterator[Identity]:
    """Use a certificate as a daemon does."""
    own = Identity(files)
    use_identity(own)
    yield own
    use_identity(None)


def test_what_asks_etcd_takes_a_machines_certificate(
    tmp_path: Path, ca: Pair, used: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    arpanet.require_machine()
    use_identity(None)
    arpanet.require_machine()
    assert used.paths
    write(tmp_path, ca, sign_for_client("me", 9, ca))
    for more in ([], ["--tls"]):
        assert arpanet.main(["host", "rm", "h1", "--cert-path", str(tmp_path), *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"arpanet: {tmp_path}/cert.pem is no certificate of a machine")


@pytest.mark.usefixtures("used")
def test_a_machine_knows_its_certificate() -> None:
    assert read_peer(require_own_certificate(settings(ip=IP))).machine
    assert require_own_certificate(settings(ip="127.0.0.1"))
    use_identity(None)
    assert require_own_certificate(settings(ip="1.2.3.4")) == {}


NOT_ITS_OWN = {
    "another address": (dict(ip="192.168.8.121"), "192.168.8.121'; try"),
    "another name": (dict(hostname="h2"), "it is not for h2"),
}


@pytest.mark.parametrize("what", NOT_ITS_OWN)
@pytest.mark.usefixtures("used")
def test_a_machine_is_not_started_with_the_certificate_of_another(what: str) -> None:
    given, told = NOT_ITS_OWN[what]
    with pytest.raises(Usage, match=told) as caught:
        require_own_certificate(settings(**{"ip": IP, **given}))
    assert "arpanet ca issue --host" in str(caught.value)


def broken(what: str, ca: Pair) -> Pair:
    """Return a certificate that will not do for h1."""
    if what == "purpose":
        return sign_for_client("h1", 9, ca)
    if what == "expired":
        return sign_for_machine("h1", [IP], 0, ca)
    return sign_for_machine("h1", [IP], 9, sign_certificate("another", 9, None, ()))


@pytest.mark.parametrize("what", ["expired", "purpose", "issuer"])
def test_a_machine_is_not_started_with_a_certificate_that_others_refuse(
    what: str, tmp_path: Path, ca: Pair
) -> None:
    use_identity(Identity(write(tmp_path, ca, broken(what, ca))))
    try:
        with pytest.raises(Usage, match=what):
            require_own_certificate(settings(ip=IP))
    finally:
        use_identity(None)


def test_doctor_is_told_before_it_is_too_late(files: CertificateFiles, used: Identity) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)

    def complaint(days: int = 0) -> str:
        then = now - datetime.timedelta(days=days)
        return complain_of_certificate(settings(ip=IP), then)

    assert "good for 8 days only" in complaint()
    assert complaint(40) == ""
    os.chmod(files.key, 0o640)
    assert "can be read by others" in complaint(40)
    Path(files.key).write_text("half of it")
    assert files.key in complaint(40)
    use_identity(None)
    assert complaint() == ""
    assert used.fault
    found = arpanet.check_complaints({"slave h1": {"certificate": "is good for 8 days only"}})
    assert [(f.well, f.text) for f in found] == [(False, "slave h1: is good for 8 days only")]


def test_a_certificate_that_is_no_good_keeps_nobody_from_stopping_and_from_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARPANET_CERT_PATH", str(tmp_path))
    where = ("--run-dir", str(tmp_path), "--state-dir", str(tmp_path))
    assert arpanet.main(["master", "stop", *where]) == 0
    assert arpanet.main(["master", "status", *where]) == 2
    assert f"{tmp_path}/ca.pem is missing or empty" in capsys.readouterr().err
    assert arpanet.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert re.fullmatch(f"✗ .* {tmp_path}/ca.pem is missing or empty; see: .* tls\n", said), said


# ---- arpanet ca


def ca_command(*words: str) -> int:
    return arpanet.main(["ca", *words])


def test_the_commands_that_the_readme_shows_make_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for told in (README.partition("\n## TLS\n")[2], arpanet.TOPICS["tls"]):
        commands = re.findall(r"arpanet ca (\w+ [^;\n`(]*?)(?:$|;| {2,}|`)", told, re.M)
        assert [c.split()[0] for c in commands][:3] == ["init", "issue", "issue"]
        shutil.rmtree(tmp_path / "ca", ignore_errors=True)
        assert ca_command(*commands[0].split()) == 0
        monkeypatch.chdir(tmp_path / "ca")
        assert [ca_command(*c.split()) for c in commands[1:]] == [0] * len(commands[1:])
        machine, me = (
            make_identity(settings(cert_path=path), "master") for path in ("hosts/h1", "clients/me")
        )
        assert machine
        assert me
        seen, master = shake(machine.server_context(guests=True), me.client_context())
        assert read_peer(seen) == ((), (), False, "me")
        assert read_peer(master) == (NAMES, IPS, True, "h1")
        with pytest.raises(ssl.SSLError):
            shake(machine.server_context(), me.client_context())
        monkeypatch.chdir(tmp_path)


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    at = str(tmp_path / "ca")
    assert ca_command("init", at) == 0
    assert ca_command("issue", "--ca", at, "--host", "h1", "--ip", f"{IP},10.0.0.1") == 0
    assert ca_command("issue", "--ca", at, "--client", "me") == 0
    modes = {str(p.relative_to(at)): p.stat().st_mode & 0o777 for p in Path(at).rglob("*.pem")}
    keys = {"ca-key.pem", "clients-ca-key.pem", "hosts/h1/key.pem", "clients/me/key.pem"}
    assert {path for path, mode in modes.items() if mode == 0o600} == keys
    assert {path for path, mode in modes.items() if mode == 0o644} == modes.keys() - keys
    assert "hosts/h1/clients-ca.pem" in modes
    assert "clients/me/clients-ca.pem" not in modes


def test_an_authority_is_not_replaced_and_a_certificate_is_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = str(tmp_path)
    issue = ("issue", "--ca", at, "--host", "h1", "--ip", IP, "--days", "9999999")
    assert ca_command("init", at) == 0
    kept = [(tmp_path / name).read_bytes() for name in ("ca.pem", "ca-key.pem")]
    assert ca_command("init", at) == 2
    assert [(tmp_path / name).read_bytes() for name in ("ca.pem", "ca-key.pem")] == kept
    assert ca_command(*issue) == 0
    own = make_identity(settings(cert_path=f"{at}/hosts/h1"), "slave")
    assert own
    first = own.show(IP)
    assert ca_command(*issue) == 0
    assert own.show(IP)["serialNumber"] != first["serialNumber"]
    assert own.show(IP)["notAfter"]
    capsys.readouterr()


def test_both_authorities_are_trusted_while_one_replaces_the_other(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    for at in (old, new):
        assert ca_command("init", at) == 0
    for name in ("ca.pem", "clients-ca.pem"):
        path = Path(new, name)
        path.write_bytes(Path(old, name).read_bytes() + path.read_bytes())
    for at in (old, new):
        assert ca_command("issue", "--ca", at, "--host", "h1", "--ip", IP) == 0
    shutil.copy(f"{new}/ca.pem", f"{old}/hosts/h1/ca.pem")
    before, after = (
        make_identity(settings(cert_path=f"{at}/hosts/h1"), "master") for at in (old, new)
    )
    assert before
    assert after
    for server, client in ((before, after), (after, before)):
        shake(server.server_context(), client.client_context())


REFUSED = [
    (["--host", "h1"], "--ip IP"),
    (["--ip", IP], "--host NAME"),
    (["--client", "me", "--ip", IP], "--client NAME"),
    (["--client", "me", "--host", "h1", "--ip", IP], "--client NAME"),
    (["--client", "../me"], "'../me'"),
    (["--client", "me"], "arpanet ca init DIR"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED)
def test_a_certificate_is_for_somebody(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca_command("issue", "--ca", str(tmp_path), *words) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
