"""The room's door: the body of an exchange, by its route, becomes a GenerationRequest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.exchange import Message
from gateway.parse.estimate import Estimator
from gateway.parse.multipart import parse_multipart
from gateway.parse.openai import parse_json
from gateway.vocabulary import BodyKind

if TYPE_CHECKING:
    from gateway.request import GenerationRequest
    from gateway.vocabulary import Body, Route, Tokens


_MULTIPART: Final = BodyKind.MULTIPART  # found faster by a name of our own


class Shown(Message):
    """A body that is shown to us, not asked of us."""

    __slots__ = ("_body",)

    def __init__(self, route: Route, body: bytes) -> None:
        super().__init__(route, {})
        self._body = body

    def __repr__(self) -> str:
        return f"<Shown {self.route.path} {len(self._body)} bytes>"

    @property
    def body(self) -> Body:
        """As it is."""
        return self._body


class Parser:
    """Parses bodies and learns, from what replicas report, how long prompts are."""

    __slots__ = ("_estimator",)

    def __init__(self) -> None:
        self._estimator = Estimator()

    def parse(self, message: Message) -> GenerationRequest:
        """Raises InvalidRequest, or whatever was wrong with the message before it was whole."""
        if message.route.body is _MULTIPART:
            return parse_multipart(bytes(message.body), message.content_type, message.route)
        return parse_json(
            message.body,
            message.route,
            self._estimator.prompt_tokens,
            message.fields.get(b"x-session-id"),
        )

    def learn(self, request: GenerationRequest, prompt_tokens: Tokens) -> None:
        """A replica counted the prompt of `request`. The model is one that exists."""
        self._estimator.learn(request.model, request.prompt_bytes, prompt_tokens)
