"""POST /v1/audio/transcriptions: a multipart form in, an invented transcript out.

The audio is not heard: its length decides how long the prompt is (one token for every `_BYTES`
bytes) and its bytes decide the reply.
"""

from typing import Any
from zlib import crc32

import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from serving.sim.api_errors import bad_request
from serving.sim.call import Call
from serving.sim.channel import ClientLeftError
from serving.sim.generation import stream
from serving.sim.kv_cache import CacheKey
from serving.sim.openai_routes import DONE
from serving.sim.requests import Limits
from serving.sim.service import Piece, Service, Usage
from serving.sim.tokens import tokenize

_BYTES = 640
"""Of 16-bit sound at 16 kHz this is 20 ms, about what a speech encoder makes one token of."""
_BYTES_PER_S = 32_000
_MAX_TOKENS = 64


class AudioRoute:
    """The route; one per replica."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def transcribe(self, call: Call) -> None:
        service = self._service
        audio, fields = await _read_form(call)
        model = service.model(fields.get("model"))
        prompt = _prompt(audio, service.max_model_len // 2)
        jobs = service.replying([prompt], Limits(_MAX_TOKENS), CacheKey(model.adapter))
        if fields.get("stream", "").lower() in ("true", "1"):
            answer = {
                "id": service.new_id("trsc-", call),
                "object": "transcription.chunk",
                "created": int(service.now_s()),
                "model": model.name,
            }
            await stream(service, call, jobs, TranscriptionRendering(answer))
            return
        with service.generating(call, jobs) as generation:
            await generation.finish()
        text = jobs[0].reply.text
        if fields.get("response_format") == "text":
            await call.reply(200, text.encode(), b"text/plain; charset=utf-8")
            return
        seconds = -(-len(audio) // _BYTES_PER_S)
        body = {"text": text, "usage": {"type": "duration", "seconds": seconds}}
        await call.reply(200, msgspec.json.encode(body))


class TranscriptionRendering:
    """Chunks of a transcript."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    def preface(self) -> list[bytes]:
        return []

    def opening(self, usage: Usage) -> list[bytes]:
        return []

    def piece(self, piece: Piece, usage: Usage) -> bytes:
        choice: dict[str, Any] = {"delta": {"content": piece.text}}
        if piece.finish is not None:
            choice |= {"finish_reason": piece.finish, "stop_reason": piece.stop_reason}
        data = msgspec.json.encode({**self._answer, "choices": [choice]})
        return b"data: %b\n\n" % data

    def closing(self, usage: Usage) -> list[bytes]:
        return [DONE]


async def _read_form(call: Call) -> tuple[bytes, dict[str, str]]:
    """The audio and the other fields. Raises ApiError, ClientLeftError."""
    request = Request(call.scope, call.receive)  # type: ignore[arg-type]
    try:
        form = await request.form()
    except ClientDisconnect as error:
        raise ClientLeftError from error
    except (MultiPartException, KeyError) as error:
        raise bad_request(f"malformed form: {error}", "file") from error
    try:
        return await _audio_of(form), {
            name: value for name, value in form.items() if isinstance(value, str)
        }
    finally:
        await form.close()


async def _audio_of(form: FormData) -> bytes:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise bad_request("file is required", "file")
    return await file.read()


def _prompt(audio: bytes, most: int) -> list[int]:
    """Tokens that stand for the sound: equal sound, equal tokens."""
    count = max(1, min(len(audio) // _BYTES, most))
    return tokenize(f"<|audio {crc32(audio):08x}|>") + [0] * (count - 1)
