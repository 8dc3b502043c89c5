"""Who we are at a Kubernetes API, and how it is reached: service accounts, kubeconfigs, TLS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trustme
import yaml
from kubernetes.config import incluster_config

from gateway.fleet import kubernetes_access
from gateway.fleet.kubernetes_access import Access
from gateway.fleet.kubernetes_api import KubernetesApi, Refused, Unreachable
from gateway.fleet.kubernetes_rights import PODS
from gateway.section import SettingsError
from tests.house import run
from tests.kube.server import ApiServer, running_api_server

PATH = PODS.path("models")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> Path:
    issued = authority.issue_cert("127.0.0.1")
    path = tmp_path / "server.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture
def service_account(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a pod finds its token in."""
    (tmp_path / "token").write_text("t0\n")
    (tmp_path / "namespace").write_text("mine\n")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubernetes_access, "OWN_NAMESPACE", tmp_path / "namespace")
    return tmp_path


def test_a_pod_uses_its_service_account_and_trusts_its_authority(
    service_account: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def law() -> None:
        async with running_api_server(ApiServer(tokens={"t0"}, certificate=certificate)) as server:
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
            access = Access(None)
            assert access.namespace == "mine"
            api = KubernetesApi(access)
            assert json.loads(await api.get(PATH, {}))["kind"] == "PodList"
            server.tokens = {"t1"}
            (service_account / "token").write_text("t1")
            with pytest.raises(Refused) as refused:
                await api.get(PATH, {})
            assert refused.value.status == 401
            await api.renew()
            assert json.loads(await api.get(PATH, {}))["kind"] == "PodList"

    run(law())


def test_a_server_that_its_authority_does_not_vouch_for_is_not_spoken_to(
    certificate: Path, tmp_path: Path
) -> None:
    async def law() -> None:
        async with running_api_server(ApiServer(certificate=certificate)) as server:
            path = server.kubeconfig(tmp_path)
            with pytest.raises(Unreachable, match="certificate"):
                await KubernetesApi(Access(str(path))).get(PATH, {})
            document = yaml.safe_load(path.read_text())
            document["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
            path.write_text(yaml.safe_dump(document))
            assert await KubernetesApi(Access(str(path))).get(PATH, {})
            assert not [each for each in server.asked if each.verb != "list"]

    run(law())


def test_a_command_that_gives_tokens_is_run_again_when_they_have_expired(tmp_path: Path) -> None:
    token = tmp_path / "token"
    credential = "{{'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
    script = (
        (
            f"import json; print(json.dumps({credential} "
            f"'status': {{{{'token': open({str(token)!r}).read()}}}}}}}}))"
        )
        .replace("{{", "{")
        .replace("}}", "}")
    )
    command = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": ["-c", script],
        "interactiveMode": "Never",
    }

    async def law() -> None:
        async with running_api_server(ApiServer(tokens={"t0"})) as server:
            token.write_text("t0")
            api = KubernetesApi(Access(str(server.kubeconfig(tmp_path, exec=command))))
            await api.get(PATH, {})
            token.write_text("t1")
            server.tokens = {"t1"}
            with pytest.raises(Refused):
                await api.get(PATH, {})
            await api.renew()
            await api.get(PATH, {})

    run(law())


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "apiVersion: v1\nkind: Config\n"])
def test_a_kubeconfig_that_is_none_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"fleet\.kubernetes\.kubeconfig"):
        Access(str(path))
