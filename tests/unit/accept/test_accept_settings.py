"""What settings say of TLS is done, or refused."""

from __future__ import annotations

import pytest

from gateway.section import SettingsError
from gateway.settings import Settings


@pytest.mark.parametrize("where", ["accept", "scale: {keda"])
@pytest.mark.parametrize("alone", ["client_ca", "key"])
def test_who_asks_for_certificates_of_clients_has_one(where: str, alone: str) -> None:
    """Else we would listen in plain text, and let everybody in."""
    text = f"{where}: {{tls: {{{alone}: file.pem}}}}" + "}" * where.count("{")
    with pytest.raises(SettingsError, match="need a `certificate`"):
        Settings.load(text, {})
    Settings.load(text.replace("file.pem", "file.pem, certificate: our.pem"), {})
