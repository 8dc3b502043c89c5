"""A SPIFFE Workload API, served on a unix socket: the gRPC of the specification, with an authority
of its own.

What it tells is changed by `tell`; whoever has a stream open is told at once. Times of validity are
true: an SVID that has expired has.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from spiffe._proto import workload_pb2, workload_pb2_grpc

from gateway.trust.mutual_tls import Credentials, load_pem

DOMAIN = "example.org"
GATEWAY = f"spiffe://{DOMAIN}/ns/headrace/gateway"
REPLICA = f"spiffe://{DOMAIN}/ns/models/llama"
HOUR_S = 3600.0


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: str, issuer: x509.Name, key: Any, lasts_s: float) -> Any:
    now = datetime.now(UTC)
    ends = now + timedelta(seconds=lasts_s)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - timedelta(minutes=1))
        .not_valid_after(ends)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True)
class Issued:
    """An SVID with its private key."""

    names: tuple[str, ...]
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The key and the certificate."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)

    @property
    def serial(self) -> int:
        """The certificate's serial number."""
        return self.certificate.serial_number


class Authority:
    """Who signs the SVIDs of a trust domain."""

    def __init__(self, domain: str = DOMAIN) -> None:
        self.domain = domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = self.key.public_key()
        self.certificate: x509.Certificate = (
            _builder(f"authority of {domain}", _name(f"authority of {domain}"), self.key, HOUR_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self, *names: str, lasts_s: float = HOUR_S) -> Issued:
        """Sign a certificate with these URIs."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.key.public_key()
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        certificate = (
            _builder("workload", self.certificate.subject, key, lasts_s)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([*uris, x509.DNSName("any")]), False)
            .sign(self.key, hashes.SHA256())
        )
        return Issued(names, certificate, key)

    def credentials(self, name: str, *trusted: Authority, lasts_s: float = HOUR_S) -> Credentials:
        """The same as the Workload API would tell it, trusting itself unless others are named."""
        issued = self.issue(name, lasts_s=lasts_s)
        ends = issued.certificate.not_valid_after_utc.timestamp()
        authorities = "".join(each.pem for each in trusted or (self,))
        return Credentials(name, issued.serial, ends, issued.pem, authorities)

    def server(self, *names: str, lasts_s: float = HOUR_S) -> ssl.SSLContext:
        """A replica's side of mutual TLS, which asks for SVIDs of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.pem)
        load_pem(context, self.issue(*names, lasts_s=lasts_s).pem)
        return context


@dataclass(slots=True)
class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """One workload's API: what it is told, and how often it asked."""

    path: Path
    authority: Authority
    svid: Issued
    others: tuple[Authority, ...] = ()
    """Of the same trust domain, in the bundle too."""
    federated: tuple[Authority, ...] = ()
    streams: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _version: int = 0
    _server: Any = None

    @property
    def socket(self) -> str:
        """As settings have it."""
        return f"unix:{self.path}"

    def tell(self, svid: Issued, authority: Authority, *others: Authority) -> None:
        """From now on it is this."""
        with self._changed:
            self.svid, self.authority, self.others = svid, authority, others
            self._version += 1
            self._changed.notify_all()

    def start(self) -> None:
        """Listen (again)."""
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        add: Any = workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server  # has no types
        add(self, self._server)
        self._server.add_insecure_port(self.socket)
        self._server.start()

    def stop(self) -> None:
        """Go away; streams end."""
        if self._server is not None:
            self._server.stop(0).wait()
        self._server = None

    def FetchX509SVID(self, request: object, context: Any) -> Iterator[Any]:
        """As the specification has it: at once, and whenever something has changed."""
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        self.streams += 1
        told = -1
        while context.is_active():
            with self._changed:
                if self._version == told:
                    self._changed.wait(0.05)
                    continue
                told, said = self._version, self._said()
            yield said

    def FetchX509Bundles(self, request: object, context: Any) -> Iterator[Any]:
        """The authorities alone."""
        yield workload_pb2.X509BundlesResponse(
            bundles={f"spiffe://{self.authority.domain}": self._bundle()}
        )

    def _bundle(self) -> bytes:
        both = (self.authority, *self.others)
        return b"".join(each.certificate.public_bytes(Encoding.DER) for each in both)

    def _said(self) -> Any:
        key = self.svid.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return workload_pb2.X509SVIDResponse(
            svids=[
                workload_pb2.X509SVID(
                    spiffe_id=self.svid.names[0],
                    x509_svid=self.svid.certificate.public_bytes(Encoding.DER),
                    x509_svid_key=key,
                    bundle=self._bundle(),
                )
            ],
            federated_bundles={
                f"spiffe://{each.domain}": each.certificate.public_bytes(Encoding.DER)
                for each in self.federated
            },
        )


@contextlib.contextmanager
def serving_workload_api(
    folder: Path, authority: Authority, name: str = GATEWAY
) -> Iterator[WorkloadApi]:
    """One that listens in `folder`."""
    api = WorkloadApi(folder / "api.sock", authority, authority.issue(name))
    api.start()
    try:
        yield api
    finally:
        api.stop()
