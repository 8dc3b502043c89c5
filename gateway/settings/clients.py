"""Who may come in, where, and how much we take from them."""

from __future__ import annotations

from dataclasses import field

from gateway.section import Section, knob


class TlsFiles(Section):
    """Who we are, and who may come."""

    certificate: str | None = knob(None, description="PEM file: the chain we present")
    key: str | None = knob(None, description="PEM file: its private key")
    client_ca: str | None = knob(
        None, description="PEM file: who may sign client certificates; set, a client needs one"
    )

    def __post_init__(self) -> None:
        if self.certificate is None and (self.key is not None or self.client_ca is not None):
            raise ValueError("`key` and `client_ca` need a `certificate`: without, there is no TLS")


class TlsSettings(TlsFiles):
    """TLS for clients; the files are watched, and new ones serve new handshakes."""

    reload_every_s: float = knob(5.0, gt=0, description="how often the files are looked at")


class AcceptSettings(Section):
    """Where we listen and what we take from a client."""

    host: str = knob("127.0.0.1", description="loopback unless you say otherwise")
    port: int = knob(8000, ge=0, le=65535, description="0 lets the system choose")
    max_body_bytes: int = knob(
        16 * 1024 * 1024, gt=0, description="a million tokens of text is about 4 MB"
    )
    max_upload_bytes: int = knob(64 * 1024 * 1024, gt=0, description="the same, for audio")
    max_header_bytes: int = knob(
        32 * 1024, gt=0, description="url and headers together, before 431"
    )
    header_timeout_s: float = knob(10.0, gt=0, description="from the first byte to the last")
    body_timeout_s: float = knob(
        30.0, gt=0, description="a body slower than this and than min_body_rate is cut with 408"
    )
    min_body_bytes_per_s: int = knob(1024, gt=0, description="adds to body_timeout_s by size")
    keep_alive_s: float = knob(
        75.0, gt=0, description="idle client connections; above the 60 s of common load balancers"
    )
    client_stall_s: float = knob(
        60.0, gt=0, description="a client that reads nothing for so long is let go"
    )
    backlog: int = knob(2048, gt=0, description="connections the kernel may hold for us")
    tls: TlsSettings = field(default_factory=TlsSettings)


class AdmitSettings(Section):
    """How much may be open at once, and how we leave."""

    max_open_requests: int = knob(
        10_000, gt=0, description="beyond it: 503; bounds memory at this times max_body_bytes"
    )
    drain_grace_s: float = knob(
        30.0, ge=0, description="after SIGTERM: how long running streams may take to finish"
    )
    retry_after_s: float = knob(
        2.0, gt=0, description="what a refused client is told while we drain or are full"
    )


class TenantsSettings(Section):
    """Who may ask; unset, everybody who reaches us, and then that should be nobody from outside."""

    path: str | None = knob(
        None,
        description="YAML or JSON file, or a folder of such files (a mounted Secret): tenants and "
        "their hashed keys, as docs/tenants.md has it; watched",
    )
    anonymous: bool = knob(
        False, description="serve on other addresses than loopback though nobody needs a key"
    )
    reload_every_s: float = knob(1.0, gt=0, description="how often the path is looked at")
    forward_authorization: bool = knob(
        False, description="send clients' keys on to replicas, where path is set"
    )
    assumed_output_tokens: int = knob(
        512, ge=0, description="reserved for a request that sets no bound on what it generates"
    )

    def __post_init__(self) -> None:
        if self.anonymous and self.path is not None:
            raise ValueError("`anonymous` and `path` exclude each other: with keys, all need one")
