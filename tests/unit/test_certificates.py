"""The certificate of a process: what it opens, how it is renewed, what it says of its holder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ipaddress
import logging
import ssl
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import arpanet
from arpanet import (
    CertificateFiles,
    Identity,
    Settings,
    Usage,
    make_identity,
    read_peer,
    read_settings,
)

IP = "192.168.8.120"
MACHINE_USES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def sign(name: str, ca: Pair | None, **extensions: Any) -> Pair:
    """Return a certificate: an authority's if there is no ca."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.cert.subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=extensions.get("days", 1)))
        .add_extension(x509.BasicConstraints(ca is None, None), critical=True)
    )
    if names := extensions.get("names"):
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if ca:
        uses = extensions.get("uses", MACHINE_USES)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return Pair(builder.sign(ca.key if ca else key, hashes.SHA256()), key)


MACHINE_NAMES = [
    x509.DNSName("h1"),
    x509.DNSName("arpanet"),
    x509.IPAddress(ipaddress.ip_address(IP)),
]


def write(directory: Path, ca: Pair, own: Pair | None, password: bytes = b"") -> CertificateFiles:
    """Return the paths of files as docker names them."""
    directory.mkdir(exist_ok=True)
    (directory / "ca.pem").write_bytes(ca.cert.public_bytes(serialization.Encoding.PEM))
    if own:
        hidden: Any = serialization.NoEncryption()
        if password:
            hidden = serialization.BestAvailableEncryption(password)
        forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (directory / "cert.pem").write_bytes(own.cert.public_bytes(serialization.Encoding.PEM))
        (directory / "key.pem").write_bytes(own.key.private_bytes(*forms, hidden))
    return CertificateFiles(*(str(directory / f"{n}.pem") for n in ("ca", "cert", "key")))


@pytest.fixture(scope="module")
def ca() -> Pair:
    return sign("ours", None)


@pytest.fixture(scope="module")
def machine(ca: Pair) -> Pair:
    return sign("h1", ca, names=MACHINE_NAMES)


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
        assert read_peer(seen) == (("h1", "arpanet"), (IP,), True, "h1")


def test_a_certificate_without_the_name_is_no_machines(tmp_path: Path, ca: Pair) -> None:
    user = sign("eve", ca, uses=MACHINE_USES[1:])
    client = Identity(write(tmp_path / "eve", ca, user))
    server = Identity(write(tmp_path / "h1", ca, sign("h1", ca, names=MACHINE_NAMES)))
    seen, _ = shake(server.server_context(), client.client_context())
    assert read_peer(seen) == ((), (), False, "eve")
    with pytest.raises(ssl.SSLError):  # and it opens no port
        shake(client.server_context(), server.client_context())


def test_nobodys_certificate_says_nothing() -> None:
    assert read_peer(None) == read_peer({}) == ((), (), False, "")


def stranger(kind: str, directory: Path, ca: Pair) -> Identity:
    """Return somebody who is not to be let in."""
    if kind == "of another authority":
        other = sign("theirs", None)
        files = write(directory, ca, sign("h1", other, names=MACHINE_NAMES))
    elif kind == "expired":
        files = write(directory, ca, sign("h1", ca, names=MACHINE_NAMES, days=-1))
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
    renewed = write(tmp_path / "new", ca, sign("h1 again", ca, names=MACHINE_NAMES))
    Path(renewed.cert).replace(files.cert)  # and its key is still the old one
    for _ in range(3):
        assert (ours.stamp(), ours.read(), ours.server_context()) == (stamp, pem, context)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert files.key in caplog.text
    Path(renewed.key).replace(files.key)
    seen, _ = shake(ours.server_context(), ours.client_context())
    assert read_peer(seen).common_name == "h1 again"
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
        renewed = write(tmp_path / f"new{i}", ca, sign("h1", ca, names=MACHINE_NAMES))
        Path(renewed.key).replace(files.key)
        Path(renewed.cert).replace(files.cert)
    for thread in threads:
        thread.join()
    assert faults == []
    assert ours.read().cert == Path(files.cert).read_bytes()


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
    with pytest.raises(Usage, match="password"):
        Identity(write(tmp_path, ca, machine, b"secret"))


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
