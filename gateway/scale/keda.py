"""KEDA's external scaler: how many replicas each model needs, told over gRPC, asked and unasked.

What KEDA does with it decides what is said:

    a model nobody asks for is told as 0, for an error would make KEDA build its scalers anew; a
    model nobody knows is an error, for KEDA keeps the replicas there are while it hears errors,
    and a gateway that has just started may not have heard of all models
    `true` is pushed the moment a request is held, and said again while it stays true: KEDA drops
    one that comes before it is ready for it. `false` is never pushed: it would speak for other
    triggers of the same object
    a stream ends with OK when we leave: only then does KEDA come back at once, not after a pause
    that doubles
    a metric of 0 is 0 in both fields: KEDA takes the float where it is above 0, else the integer

Every gateway answers for all, so it does not matter which one is asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from gateway.scale.keda_messages import CLASSES, METHODS, SERVICE
from gateway.scale.trigger import BadTrigger, Trigger, read_trigger

if TYPE_CHECKING:
    from gateway.demand import DemandSource
    from gateway.settings import KedaSettings, TlsFiles
    from gateway.vocabulary import ModelName

REPEAT_S: Final = 1.0
STOP_S: Final = 1.0
MAX_REQUEST_BYTES: Final = 64 * 1024

log = logging.getLogger(__name__)


class KedaScaler:
    """The server, and the streams that are open."""

    def __init__(self, settings: KedaSettings, source: DemandSource) -> None:
        self._settings = settings
        self._source = source
        self._streams: dict[ModelName, set[asyncio.Event]] = {}
        self._is_stopping = False
        self._server: grpc.aio.Server | None = None
        self.port = 0
        """Where it listens, once it does."""
        source.on_activation(self._activated)

    def __repr__(self) -> str:
        return f"<KedaScaler {self.port}, {sum(map(len, self._streams.values()))} streams>"

    # Its life

    async def start(self) -> None:
        """Listen, beside other processes of the same gateway if need be: gRPC shares its port.

        Raises OSError where that cannot be, or a file of TLS cannot be used.
        """
        settings = self._settings
        where = f"{settings.host}:{settings.port}"
        options = [("grpc.max_receive_message_length", MAX_REQUEST_BYTES)]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, self._handlers())]
        )
        try:
            if settings.tls.certificate is None:
                self.port = server.add_insecure_port(where)
            else:
                self.port = server.add_secure_port(where, credentials(settings.tls))
        except RuntimeError as error:
            raise OSError(f"scale.keda cannot listen on {where}") from error
        await server.start()
        self._server = server
        log.info("KEDA scaler: listens on port %d", self.port)

    async def stop(self) -> None:
        """End every stream in order, and listen no more."""
        self._is_stopping = True
        for waiting in self._streams.values():
            for event in waiting:
                event.set()
        server, self._server = self._server, None
        if server is not None:
            await server.stop(STOP_S)

    def _handlers(self) -> dict[str, Any]:
        answers: dict[str, Any] = {
            "IsActive": self._is_active,
            "StreamIsActive": self._stream_is_active,
            "GetMetricSpec": self._metric_spec,
            "GetMetrics": self._metrics,
        }
        return {name: _handler(name, answer) for name, answer in answers.items()}

    # What is asked

    async def _is_active(self, asked: Any, context: Any) -> Any:
        trigger = await self._known(asked, context)
        is_active = self._source.demand(trigger.model).is_active
        return CLASSES["IsActiveResponse"](result=is_active)

    async def _metric_spec(self, asked: Any, context: Any) -> Any:
        trigger = await _read(asked, context)
        spec = CLASSES["MetricSpec"](
            metricName=trigger.metric_name,
            targetSize=math.ceil(trigger.target),
            targetSizeFloat=trigger.target,
        )
        return CLASSES["GetMetricSpecResponse"](metricSpecs=[spec])

    async def _metrics(self, asked: Any, context: Any) -> Any:
        trigger = await self._known(asked.scaledObjectRef, context)
        if asked.metricName != trigger.metric_name:
            wrong = f"there is no metric `{asked.metricName[:100]}`, but `{trigger.metric_name}`"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, wrong)
        value = trigger.value(self._source.demand(trigger.model))
        told = CLASSES["MetricValue"](
            metricName=trigger.metric_name, metricValue=math.ceil(value), metricValueFloat=value
        )
        return CLASSES["GetMetricsResponse"](metricValues=[told])

    async def _stream_is_active(self, asked: Any, context: Any) -> AsyncIterator[Any]:
        """A model that nobody knows yet may be heard of: the stream stays, silent."""
        trigger = await _read(asked, context)
        event = asyncio.Event()
        listening = self._streams.setdefault(trigger.model, set())
        listening.add(event)
        try:
            while not self._is_stopping:
                if self._source.demand(trigger.model).is_active:
                    yield CLASSES["IsActiveResponse"](result=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT_S):
                        await event.wait()
                event.clear()
        finally:
            listening.discard(event)
            if not listening:
                self._streams.pop(trigger.model, None)

    async def _known(self, asked: Any, context: Any) -> Trigger:
        """Its trigger; ends the call where it cannot be read, or nobody knows the model."""
        trigger = await _read(asked, context)
        if trigger.model not in self._source.models():
            unknown = f"no replica and no setting knows the model `{trigger.model[:100]}`"
            await context.abort(grpc.StatusCode.NOT_FOUND, unknown)
        return trigger

    def _activated(self, model: ModelName) -> None:
        """A request is held for it."""
        for event in self._streams.get(model, ()):
            event.set()


async def _read(asked: Any, context: Any) -> Trigger:
    """Its trigger; ends the call where it cannot be read."""
    try:
        return read_trigger(asked.scalerMetadata)
    except BadTrigger as error:
        whose = f"{asked.namespace}/{asked.name}: {error}"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, whose)
        raise  # `abort` has raised: this is for whoever reads types


def _handler(name: str, answer: Callable[[Any, Any], Awaitable[Any] | AsyncIterator[Any]]) -> Any:
    asks, answers, is_stream = METHODS[name]
    make = (
        grpc.unary_stream_rpc_method_handler if is_stream else grpc.unary_unary_rpc_method_handler
    )
    return make(
        answer,
        request_deserializer=CLASSES[asks].FromString,
        response_serializer=CLASSES[answers].SerializeToString,
    )


def credentials(files: TlsFiles) -> Any:
    """Who we are, and who may ask; files that have changed serve the next connection.

    Raises OSError where they cannot be used now. Later, the last good ones stand.
    """
    trust = files.client_ca is not None
    first = _configuration(files)

    def latest() -> Any:
        try:
            return _configuration(files)
        except OSError as error:
            log.warning("KEDA scaler: the TLS files cannot be used: %s", error)
            return None

    return grpc.dynamic_ssl_server_credentials(first, latest, trust)


def _configuration(files: TlsFiles) -> Any:
    certificate, key = files.certificate, files.key
    assert certificate is not None
    chain = Path(certificate).read_bytes()
    private = chain if key is None else Path(key).read_bytes()
    roots = None if files.client_ca is None else Path(files.client_ca).read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)  # says what is wrong; gRPC would not
    return grpc.ssl_server_certificate_configuration([(private, chain)], roots)
