"""What is asked of a model, as far as we decide by it, and what its answer says it took.

One of each is made per request, and looked at some fifty times on its way: ordinary classes, which
compiled are mypyc's own (docs/adr/0032-the-compiled-hot-path.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.vocabulary import ANYBODY

if TYPE_CHECKING:
    from gateway.kv_cache import Reading
    from gateway.vocabulary import Buffer, ModelName, Route, Seconds, Tenant, Tokens


class GenerationRequest:
    """What we decide by, read once from a body that itself is forwarded untouched.

    `prompt_tokens` is an estimate (see `gateway.parse.estimate`); `max_tokens` is None where the
    client set no bound; `prompt_bytes` is the length of the prompt as it stood in the body.
    `prompt` is the prompt as it stood in the body, and `context` what else decides which tokens an
    engine reads and how it names its blocks (tools, salt), by the member's name and in their order:
    views of the body, not copies. `session` names what the client says belongs together: its
    X-Session-ID, else the body's `prompt_cache_key`. `tenant` is on whose account it is served;
    `deadline` is the monotonic instant by which the first byte must come to be of use, None where
    there is none. `reading` is its prompt in tokens, where that is found out before it is sent.
    """

    __slots__ = (
        "context", "deadline", "max_tokens", "model", "prompt", "prompt_bytes", "prompt_tokens",
        "reading", "route", "session", "stream", "tenant",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        route: Route,
        model: ModelName,
        stream: bool,
        prompt_bytes: int,
        prompt_tokens: Tokens,
        max_tokens: Tokens | None,
        prompt: Buffer = b"",
        context: tuple[tuple[str, Buffer], ...] = (),
        session: bytes | None = None,
        tenant: Tenant = ANYBODY,
        deadline: Seconds | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.route: Final = route
        self.model: Final = model
        self.stream: Final = stream
        self.prompt_bytes: Final = prompt_bytes
        self.prompt_tokens: Final = prompt_tokens
        self.max_tokens: Final = max_tokens
        self.prompt: Final = prompt
        self.context: Final = context
        self.session: Final = session
        self.tenant: Final = tenant
        self.deadline: Final = deadline
        self.reading: Final = reading

    def __repr__(self) -> str:
        """Without the prompt."""
        return f"<GenerationRequest {self.route.path} {self.model!r} {self.prompt_tokens} tokens>"

    def completed(
        self, tenant: Tenant, deadline: Seconds | None, reading: Reading | None
    ) -> GenerationRequest:
        """The same, with what is found out once it has been read."""
        return GenerationRequest(
            self.route,
            self.model,
            self.stream,
            self.prompt_bytes,
            self.prompt_tokens,
            self.max_tokens,
            self.prompt,
            self.context,
            self.session,
            tenant,
            deadline,
            reading,
        )


class Usage:
    """What a response says of a request in tokens; None where it says nothing."""

    __slots__ = ("cached_tokens", "output_tokens", "prompt_tokens")

    def __init__(
        self,
        prompt_tokens: Tokens | None = None,
        output_tokens: Tokens | None = None,
        cached_tokens: Tokens | None = None,
    ) -> None:
        self.prompt_tokens: Final = prompt_tokens
        self.output_tokens: Final = output_tokens
        self.cached_tokens: Final = cached_tokens

    def __repr__(self) -> str:
        return f"Usage({self.prompt_tokens}, {self.output_tokens}, {self.cached_tokens})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._counts() == other._counts()

    def __hash__(self) -> int:
        return hash(self._counts())

    def _counts(self) -> tuple[Tokens | None, Tokens | None, Tokens | None]:
        return self.prompt_tokens, self.output_tokens, self.cached_tokens
