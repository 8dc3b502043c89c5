"""A real gRPC client, with stubs made of the `.proto` file, at the external scaler."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme

from gateway.app import House
from gateway.demand import Demand
from gateway.scale.keda import KedaScaler
from gateway.settings import KedaSettings, Settings, TlsFiles
from gateway.vocabulary import ModelName
from tests.house import run, until
from tests.keda_client import a_ref, stubs

M = ModelName("org/model")


class Demands:
    """A `DemandSource` whose demand a test sets."""

    def __init__(self) -> None:
        self.known = {M: Demand(M)}
        self.listeners: list[Callable[[ModelName], None]] = []

    def models(self) -> Collection[ModelName]:
        return self.known

    def demand(self, model: ModelName) -> Demand:
        return self.known.get(model, Demand(model))

    def on_activation(self, listener: Callable[[ModelName], None]) -> None:
        self.listeners.append(listener)

    def hold(self, model: ModelName = M) -> None:
        """A request is held."""
        self.known[model] = Demand(model, replicas_needed=1.0, is_active=True, queued_requests=1)
        for listener in self.listeners:
            listener(model)


@asynccontextmanager
async def a_scaler(source: Demands, tls: TlsFiles | None = None) -> AsyncIterator[KedaScaler]:
    scaler = KedaScaler(KedaSettings(port=0, tls=tls or TlsFiles()), source)
    await scaler.start()
    try:
        yield scaler
    finally:
        await scaler.stop()


@asynccontextmanager
async def a_client(scaler: KedaScaler) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{scaler.port}") as channel:
        yield stubs()[1].ExternalScalerStub(channel)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def asking(name: str, **metadata: str) -> Any:
    return stubs()[0].GetMetricsRequest(scaledObjectRef=a_ref(**metadata), metricName=name)


def test_an_idle_model_is_told_as_zero_in_both_fields_and_inactive() -> None:
    async def law() -> None:
        async with a_scaler(Demands()) as scaler, a_client(scaler) as keda:
            assert not (await keda.IsActive(a_ref(model=M))).result
            (spec,) = (await keda.GetMetricSpec(a_ref(model=M))).metricSpecs
            assert (spec.metricName, spec.targetSize) == ("headrace-replicas-needed", 1)
            assert spec.targetSizeFloat == 1.0
            told = await keda.GetMetrics(asking(spec.metricName, model=M))
            (value,) = told.metricValues
            assert (value.metricName, value.metricValue) == (spec.metricName, 0)
            assert value.metricValueFloat == 0.0

    run(law())


def test_demand_is_told_in_full_and_rounded_up_for_those_who_read_whole_numbers() -> None:
    async def law() -> None:
        source = Demands()
        source.known[M] = Demand(M, replicas_needed=2.3, is_active=True, queued_tokens=9000)
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            assert (await keda.IsActive(a_ref(model=M))).result
            (value,) = (
                await keda.GetMetrics(asking("headrace-replicas-needed", model=M))
            ).metricValues
            assert (value.metricValue, value.metricValueFloat) == (3, 2.3)
            tokens = {"model": M, "metric": "queued_tokens", "target": "4000"}
            (spec,) = (await keda.GetMetricSpec(a_ref(**tokens))).metricSpecs
            assert spec.targetSizeFloat == 4000.0
            (value,) = (await keda.GetMetrics(asking(spec.metricName, **tokens))).metricValues
            assert value.metricValueFloat == 9000.0

    run(law())


def test_mistakes_are_named() -> None:
    async def law() -> None:
        async with a_scaler(Demands()) as scaler, a_client(scaler) as keda:
            code, says = await refusal(keda.IsActive(a_ref(modle=M)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert says == ("models/vllm: unknown metadata: modle; known are model, metric, target")
            code, says = await refusal(keda.GetMetrics(asking("s0-else", model=M)))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "headrace-replicas-needed" in says
            code, says = await refusal(keda.IsActive(a_ref(model="nobody")))
            assert code is grpc.StatusCode.NOT_FOUND
            assert "`nobody`" in says
            stream = keda.StreamIsActive(a_ref(model=M, target="-1"))
            code, says = await refusal(stream.read())
            assert code is grpc.StatusCode.INVALID_ARGUMENT

    run(law())


def test_a_held_request_is_pushed_at_once_and_said_again_while_it_is_true() -> None:
    async def law() -> None:
        source = Demands()
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            stream = keda.StreamIsActive(a_ref(model=M))
            first = asyncio.create_task(stream.read())
            await until(lambda: scaler._streams)
            await asyncio.sleep(0.2)
            assert not first.done(), "false is never pushed"
            held_at = time.monotonic()
            source.hold()
            assert (await first).result
            assert time.monotonic() - held_at < 0.05
            assert (await stream.read()).result
            assert 0.8 < time.monotonic() - held_at < 2.0
            source.known[M] = Demand(M)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.read(), 1.5)
            stream.cancel()
            await until(lambda: not scaler._streams)

    run(law())


def test_a_model_that_loads_is_active_when_the_stream_opens() -> None:
    async def law() -> None:
        source = Demands()
        source.known[M] = Demand(M, replicas_needed=1.0, is_active=True, replicas_loading=1)
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            assert (await keda.StreamIsActive(a_ref(model=M)).read()).result

    run(law())


def test_every_stream_of_a_model_hears_and_no_other() -> None:
    async def law() -> None:
        source = Demands()
        source.known[ModelName("o")] = Demand(ModelName("o"))
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            ours = [keda.StreamIsActive(a_ref(model=M)) for _ in range(3)]
            other = keda.StreamIsActive(a_ref(model="o"))
            reads = [asyncio.create_task(stream.read()) for stream in (*ours, other)]
            await until(lambda: sum(map(len, scaler._streams.values())) == 4)
            source.hold()
            assert all(answer.result for answer in await asyncio.gather(*reads[:3]))
            assert not reads[3].done()
            other.cancel()
            await asyncio.gather(reads[3], return_exceptions=True)

    run(law())


def test_a_model_that_becomes_known_is_pushed_on_a_stream_that_was_there_before() -> None:
    async def law() -> None:
        source = Demands()
        source.known.clear()
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            read = asyncio.create_task(keda.StreamIsActive(a_ref(model=M)).read())
            await until(lambda: scaler._streams)
            source.hold()
            assert (await read).result

    run(law())


@pytest.mark.parametrize("is_active", [False, True])
def test_streams_end_with_ok_when_we_leave(is_active: bool) -> None:
    async def law() -> None:
        source = Demands()
        source.known[M] = Demand(M, is_active=is_active)
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            stream = keda.StreamIsActive(a_ref(model=M))
            answers: list[bool] = []

            async def listen() -> None:
                answers.extend([answer.result async for answer in stream])

            listening = asyncio.create_task(listen())
            await until(lambda: scaler._streams)
            await scaler.stop()
            await listening
            assert await stream.code() is grpc.StatusCode.OK
            assert answers == [True] * is_active

    run(law())


def test_clients_that_leave_at_any_moment_leave_nothing() -> None:
    async def law() -> None:
        source = Demands()
        async with a_scaler(source) as scaler, a_client(scaler) as keda:
            for number in range(60):
                stream = keda.StreamIsActive(a_ref(model=M))
                read = asyncio.create_task(stream.read())
                await asyncio.sleep(0.001 * (number % 4))
                if number % 3 == 0:
                    source.hold()
                stream.cancel()
                await asyncio.gather(read, return_exceptions=True)
            await until(lambda: not scaler._streams)

    run(law())


def test_a_port_that_is_taken_or_a_file_that_is_missing_is_told_at_the_start(
    tmp_path: Path,
) -> None:
    async def law() -> None:
        with pytest.raises(OSError, match="nowhere"):
            await KedaScaler(
                KedaSettings(port=0, tls=TlsFiles(certificate=f"{tmp_path}/nowhere.pem")), Demands()
            ).start()
        with pytest.raises(OSError, match=r"scale\.keda cannot listen on 192\.0\.2\.1"):
            await KedaScaler(KedaSettings(port=0, host="192.0.2.1"), Demands()).start()

    run(law())


def test_a_gateway_whose_scaler_cannot_start_leaves_nothing_running() -> None:
    async def law() -> None:
        settings = {"accept": {"port": 0}, "scale": {"keda": {"port": 0, "host": "192.0.2.1"}}}
        before = set(threading.enumerate())
        house = House(Settings.of(settings))
        (writer,) = [each for each in threading.enumerate() if each not in before]
        with pytest.raises(OSError, match="cannot listen"):
            await house.serve(house.server())
        assert not writer.is_alive(), "of the access log"

    run(law())


@pytest.mark.parametrize("is_mutual", [False, True])
def test_tls_and_who_may_ask(tmp_path: Path, is_mutual: bool) -> None:
    async def law() -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        ours = authority.issue_cert("localhost")
        certificate, key, roots = (tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt"))
        ours.cert_chain_pems[0].write_to_path(certificate)
        ours.private_key_pem.write_to_path(key)
        authority.cert_pem.write_to_path(roots)
        tls = TlsFiles(
            certificate=str(certificate),
            key=str(key),
            client_ca=str(roots) if is_mutual else None,
        )
        async with a_scaler(Demands(), tls) as scaler:

            async def ask(trusted: trustme.CA, client: trustme.LeafCert | None) -> bool:
                shown = () if client is None else (
                    client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
                )  # fmt: skip
                trust = grpc.ssl_channel_credentials(trusted.cert_pem.bytes(), *shown)
                where = f"localhost:{scaler.port}"
                async with grpc.aio.secure_channel(where, trust) as channel:
                    keda = stubs()[1].ExternalScalerStub(channel)
                    try:
                        await keda.IsActive(a_ref(model=M), timeout=3)
                    except grpc.aio.AioRpcError:
                        return False
                    return True

            assert await ask(authority, authority.issue_cert("keda"))
            assert not await ask(stranger, authority.issue_cert("keda")), "it can tell who we are"
            assert await ask(authority, None) is not is_mutual
            assert await ask(authority, stranger.issue_cert("keda")) is not is_mutual

            renewed = stranger.issue_cert("localhost")
            renewed.private_key_pem.write_to_path(key)
            assert await ask(authority, authority.issue_cert("keda")), "half of a new pair"
            renewed.cert_chain_pems[0].write_to_path(certificate)
            assert await ask(stranger, authority.issue_cert("keda")), "new files serve at once"

    run(law())
