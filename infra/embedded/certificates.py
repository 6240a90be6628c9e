"""Create certificates that only the processes of one embedded service can show each other."""

import os
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# They are made again at each start, so a service may run for this long.
_VALIDITY_PERIOD: Final = timedelta(days=3650)


def write_certificates(folder: Path, name: str) -> None:
    """Write `ca.crt`, `own.crt` and `own.key` into a folder, for both ends of connections within this machine.

    The authority's key is not kept: no other certificate can be made that these two ends would accept.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    valid_from = datetime.now(UTC) - timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(authority_name)
        .not_valid_before(valid_from)
        .not_valid_after(valid_from + _VALIDITY_PERIOD)
    )
    authority = (
        builder.subject_name(authority_name)
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    own = (
        builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(names, critical=False)
        .add_extension(uses, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, text in (
        ("ca.crt", authority.public_bytes(serialization.Encoding.PEM)),
        ("own.crt", own.public_bytes(serialization.Encoding.PEM)),
        ("own.key", private),
    ):
        write_private(folder / file, text)


def write_private(file: Path, text: bytes) -> None:
    """Write a file that its owner alone may read, from its first byte on."""
    file.touch(mode=0o600)
    os.chmod(file, 0o600)
    file.write_bytes(text)
