"""Parts that are loaded only where they are on, because they need packages that not everybody has.

Each says by SettingsError which extra is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.section import SettingsError

if TYPE_CHECKING:
    from gateway.account.trace_export import Traces
    from gateway.demand import DemandSource
    from gateway.scale.keda import KedaScaler
    from gateway.settings import KedaSettings, TraceSettings


def scaler(settings: KedaSettings, demands: DemandSource) -> KedaScaler | None:
    """KEDA's external scaler, if it is on."""
    if settings.port is None:
        return None
    try:
        from gateway.scale.keda import KedaScaler
    except ImportError as error:
        raise SettingsError("scale.keda needs `pip install headrace[keda]`") from error
    return KedaScaler(settings, demands)


def traces(settings: TraceSettings) -> Traces | None:
    """Where traces go, if they are on. Its thread runs until it is closed."""
    if settings.endpoint is None:
        return None
    try:
        from gateway.account.trace_export import Traces
    except ImportError as error:
        raise SettingsError("account.traces needs `pip install headrace[otel]`") from error
    return Traces(settings)
