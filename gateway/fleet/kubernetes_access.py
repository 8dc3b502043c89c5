"""How a Kubernetes API is reached, and who we are there: read by the official client.

From a kubeconfig file, with whatever command it names for tokens, or from the service account of
the pod that we run in. Everything here blocks (files, commands), so it runs in a thread. The client
is loaded only when this is used (`pip install headrace[kubernetes]`).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from gateway.section import SettingsError

OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

NOT_INSTALLED: Final = (
    "fleet.kubernetes needs the official client: pip install 'headrace[kubernetes]'"
)


class Access:
    """A server, how it is trusted, and our token there, renewed as it expires."""

    def __init__(self, kubeconfig: str | None) -> None:
        """Raises SettingsError, saying what to do, where there is no way to an API server."""
        self._kubeconfig = kubeconfig
        self.load()

    def __repr__(self) -> str:
        return f"<Access to {self.url.geturl()}>"

    def load(self) -> None:
        """Read everything again, certificates too. Raises SettingsError."""
        configuration, self.namespace = _read(self._kubeconfig)
        self._configuration = configuration
        self.url: SplitResult = urlsplit(configuration.host.rstrip("/"))
        self.tls = _tls(configuration) if self.url.scheme == "https" else None
        self.server_name: str | None = configuration.tls_server_name

    def authorization(self) -> str | None:
        """The value of the Authorization header. Raises SettingsError where it cannot be had."""
        try:
            found = self._configuration.auth_settings().get("BearerToken")
        except (OSError, ValueError, _config_error()) as error:
            raise SettingsError(f"fleet.kubernetes: no token: {error}") from error
        value = found["value"] if found else None
        return value.strip() if value else None


def _read(kubeconfig: str | None) -> tuple[Any, str]:
    """A configuration of the client, and the namespace it is for. Raises SettingsError."""
    try:
        from kubernetes import config as untyped
        from kubernetes.client.configuration import Configuration
    except ImportError as error:
        raise SettingsError(NOT_INSTALLED) from error
    from gateway.yaml_text import NOT_YAML

    config: Any = untyped
    configuration = Configuration()
    try:
        if kubeconfig is None:
            try:
                config.load_incluster_config(configuration)
                return configuration, OWN_NAMESPACE.read_text("utf-8").strip() or "default"
            except config.ConfigException:
                pass  # not in a pod: as kubectl would
        config.load_kube_config(kubeconfig, client_configuration=configuration)
        _, active = config.list_kube_config_contexts(kubeconfig)
    except (OSError, config.ConfigException, *NOT_YAML) as error:
        raise SettingsError(
            f"fleet.kubernetes: no way to an API server: {str(error).rstrip('.')}. In a pod, give "
            "it a service account (automountServiceAccountToken: true); elsewhere, name a file in "
            "fleet.kubernetes.kubeconfig or KUBECONFIG"
        ) from error
    return configuration, active["context"].get("namespace") or "default"


def _tls(configuration: Any) -> ssl.SSLContext:
    """Raises SettingsError for a certificate that cannot be read."""
    try:
        authorities = getattr(configuration, "ca_cert_data", None)  # since version 37
        if isinstance(authorities, bytes):
            authorities = authorities.decode("ascii")
        context = ssl.create_default_context(
            cafile=configuration.ssl_ca_cert, cadata=authorities or None
        )
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if configuration.assert_hostname is False:
            context.check_hostname = False
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"fleet.kubernetes: a certificate cannot be used: {error}") from error
    return context


def _config_error() -> type[Exception]:
    from kubernetes.config import ConfigException

    error: type[Exception] = ConfigException
    return error
