"""Makes keys: a certificate authority and a server's certificate, or the key of an artist's node.

    python keys.py server --host superlink.example.org --out tls
    python keys.py node --out ada.key

No file is replaced. Private keys can be read by their owner alone.
"""

import argparse
import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAYS = 365


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a new file."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def private_pem(key) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def certificate(subject: str, key, issuer: str, issuer_key, extensions) -> bytes:
    """A certificate for a year, in PEM."""
    name = lambda text: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])  # noqa: E731
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=DAYS))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    for extension in [*extensions, identifier]:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def address(host: str):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def make_server(hosts: list[str], out: Path) -> None:
    """Writes ca.key, ca.crt, server.key and server.crt."""
    out.mkdir(parents=True, exist_ok=True)
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = "catelier federation"
    of_authority = [x509.BasicConstraints(ca=True, path_length=0)]
    of_server = [
        x509.BasicConstraints(ca=False, path_length=None),
        x509.SubjectAlternativeName([address(host) for host in hosts]),
        x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]),
    ]
    write(out / "ca.key", private_pem(authority), 0o600)
    write(out / "ca.crt", certificate(issuer, authority, issuer, authority, of_authority))
    write(out / "server.key", private_pem(server), 0o600)
    write(out / "server.crt", certificate(hosts[0], server, issuer, authority, of_server))


def make_node(out: Path) -> None:
    """Writes the private key of a node, and its public key beside it."""
    key = ec.generate_private_key(ec.SECP384R1())
    formats = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    private = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, key.private_bytes(*private), 0o600)
    write(out.with_name(f"{out.name}.pub"), key.public_key().public_bytes(*formats) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    server = kinds.add_parser("server", help="a certificate authority and a server's certificate")
    server.add_argument("--host", action="append", required=True, help="a name or address of it; may be repeated")
    server.add_argument("--out", type=Path, required=True, help="the folder of the four files")
    node = kinds.add_parser("node", help="the key of an artist's node")
    node.add_argument("--out", type=Path, required=True, help="the private key; the public one is beside it, with .pub")
    arguments = parser.parse_args()
    try:
        make_server(arguments.host, arguments.out) if arguments.kind == "server" else make_node(arguments.out)
    except FileExistsError as error:
        sys.exit(f"error: `{error.filename}` is there already")


if __name__ == "__main__":
    main()
