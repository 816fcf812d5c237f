"""Certificates for tests, good ones and bad ones: an authority in a few lines."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
FILES = ("ca.pem", "cert.pem", "key.pem")


class Authority:
    """Who makes certificates. pem: its own. made: where `arpanet ca` made it."""

    def __init__(self, name: str, made: Path | None = None) -> None:
        self._key: Any = ec.generate_private_key(ec.SECP256R1())
        if made:
            secret = (made / "ca-key.pem").read_bytes()
            self._key = serialization.load_pem_private_key(secret, None)
            self.pem = (made / "ca.pem").read_bytes()
            self._name = x509.load_pem_x509_certificate(self.pem).subject
            return
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        rules = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._build(self._name, self._key, days=9)
        self.pem = self._sign(builder.add_extension(rules, critical=True))

    def issue(
        self,
        directory: Path,
        name: str,
        names: Sequence[str] = (),
        ips: Sequence[str] = (),
        days: int = 1,
        trusted: bytes = b"",
    ) -> Path:
        """Write ca.pem, cert.pem and key.pem, each in one step, and return their directory.

        names, ips: who it is for; a user's is for nobody. days: negative, it has expired.
        trusted: what ca.pem holds (default: this authority).
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        made = self._build(subject, key, days)
        if names or ips:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
            sans: list[x509.GeneralName] = [x509.DNSName(n) for n in names]
            sans += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
            made = made.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        made = made.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        form = serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        directory.mkdir(parents=True, exist_ok=True)
        contents = (trusted or self.pem, self._sign(made), secret)
        for file, content in zip(FILES, contents, strict=True):
            put(directory / file, content)
        return directory

    def issue_machine(
        self, directory: Path, name: str, *ips: str, days: int = 1, trusted: bytes = b""
    ) -> Path:
        """Write the certificate of a machine, as `arpanet ca issue --host` does."""
        names, all_ips = (name, "arpanet", "localhost"), (*ips, "127.0.0.1")
        return self.issue(directory, name, names, all_ips, days, trusted)

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + days * DAY)
        )

    def _sign(self, made: x509.CertificateBuilder) -> bytes:
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def put(path: Path, content: bytes) -> None:
    """Replace a file in one step; nobody else may read it."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    os.replace(new, path)
