"""POST /tokenize and /detokenize: the simulator's own tokenizer, in vLLM's shapes."""

from typing import Any

import msgspec

from serving.sim.api_errors import bad_request
from serving.sim.call import Call
from serving.sim.requests import ChatMessage, read, tools_message
from serving.sim.service import Service
from serving.sim.tokens import detokenize, render_chat, token_string, tokenize


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False

    def text(self) -> str:
        if self.messages is None:
            if self.prompt is None:
                raise bad_request("either prompt or messages is required", "prompt")
            return self.prompt
        return render_chat(
            tools_message(self.tools) + [message.rendered() for message in self.messages],
            replies=self.add_generation_prompt,
            continues=self.continue_final_message,
        )


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Tokens to turn into text."""

    tokens: list[int]
    model: str | None = None


class TextRoutes:
    """The routes; one per replica."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def tokenize(self, call: Call) -> None:
        request = await read(call, TokenizeRequest)
        self._service.model(request.model)
        tokens = tokenize(request.text())
        body = {
            "count": len(tokens),
            "max_model_len": self._service.max_model_len,
            "tokens": tokens,
            "token_strs": None,
        }
        if request.return_token_strs:
            body["token_strs"] = [token_string(token) for token in tokens]
        await call.reply(200, msgspec.json.encode(body))

    async def detokenize(self, call: Call) -> None:
        request = await read(call, DetokenizeRequest)
        self._service.model(request.model)
        try:
            text = detokenize(request.tokens)
        except ValueError as error:
            raise bad_request(str(error), "tokens") from error
        await call.reply(200, msgspec.json.encode({"prompt": text}))
