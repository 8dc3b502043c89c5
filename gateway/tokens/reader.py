"""One model's files, made into a reader of its prompts: from a request to the engine's tokens.

Asked on a thread of its own. The model's folder is what an engine serves it from; of it are read
tokenizer.json, tokenizer_config.json, the chat template's file and, from config.json, the kind of
model: a few are not rendered through a template by vLLM, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.kv_cache import Tokenised
from gateway.request import GenerationRequest
from gateway.tokens.json_text import characters, integers
from gateway.tokens.prompts import (
    LONG,
    ChatPrompt,
    Prompt,
    TextPrompt,
    TokenPrompt,
    Unreadable,
    cache_salt,
    read_prompt,
)
from gateway.tokens.segments import Read, Segments
from gateway.tokens.template import ChatTemplate, Rendered
from gateway.tokens.tokenizer import ModelTokenizer
from gateway.vocabulary import Tokens

EDGE_BYTES: Final = 256
"""Bytes between two edges inside a long content."""

EDGE_TOKENS: Final = 64
"""The same, where the prompt is token ids."""

_RENDERED_OTHERWISE: Final = ("gpt_oss", "deepseek_v32", "deepseek_v4", "kimi_k3", "inkling")
"""Kinds of models whose chats vLLM writes out by code of its own."""

_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")

Edge = tuple[int, Tokens]


class Reader:
    """Reads prompts of one model. Raises Unreadable where its folder cannot be used, and OSError or
    the libraries' own errors where it is damaged. For one thread at a time."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        self._tokenizer = ModelTokenizer((folder / "tokenizer.json").read_bytes())
        self._segments = Segments(self._tokenizer, cache_bytes)
        self._config = _json(folder / "tokenizer_config.json")
        self._model_type = _json(folder / "config.json").get("model_type")
        self._sources = _sources(folder, self._config)
        self._templates: dict[str, ChatTemplate] = {}

    def read(self, request: GenerationRequest, adapter: str | None) -> Tokenised:
        """Raises Unreadable."""
        tokens, edges = self._read(read_prompt(request), bytes(request.prompt))
        return Tokenised(tokens, edges, cache_salt(request), adapter)

    def _read(self, prompt: Prompt, raw: bytes) -> tuple[Any, list[Edge]]:
        match prompt:
            case TokenPrompt(tokens, array):
                inside = raw[array[0] : array[1]]
                places = [(array[0] + at, n) for at, n in integers(inside, EDGE_TOKENS)]
                return tokens, [*places, (len(raw), len(tokens))]
            case TextPrompt(text, string):
                read = self._segments.read(text)
                places = list(characters(raw, string, EDGE_BYTES))
            case ChatPrompt():
                template = self._template(has_tools=prompt.tools is not None)
                rendered = template.render(prompt.messages, prompt.tools, prompt.variables)
                read = self._segments.read(rendered.text)
                places = _settled(prompt, rendered, raw, template)
        return self._finished(read, places, raw, special=prompt.add_special_tokens)

    def _finished(
        self, read: Read, places: Iterable[tuple[int, int]], raw: bytes, *, special: bool
    ) -> tuple[Any, list[Edge]]:
        """Special tokens put around, and (bytes, characters) made (bytes, tokens)."""
        before = self._tokenizer.prefix if special else []
        after = self._tokenizer.suffix if special else []
        tokens = read.tokens
        if before or after:
            tokens = type(tokens)("I", [*before, *tokens, *after])
        edges: list[Edge] = []
        for at, known in places:
            certain = read.certain(known, self._tokenizer.reach)
            if certain and (not edges or certain + len(before) > edges[-1][1]):
                edges.append((at, certain + len(before)))
        if edges and edges[-1][0] == len(raw):
            edges.pop()
        edges.append((len(raw), len(tokens)))  # that many bytes are the whole prompt
        return tokens, edges

    def _template(self, *, has_tools: bool) -> ChatTemplate:
        if self._model_type in _RENDERED_OTHERWISE:
            raise Unreadable(f"chats of {self._model_type} are not written by a template")
        name = "tool_use" if has_tools and "tool_use" in self._sources else "default"
        template = self._templates.get(name)
        if template is None:
            if name not in self._sources:
                raise Unreadable("the model's folder has no chat template")
            template = ChatTemplate(self._sources[name], _special_tokens(self._config))
            self._templates[name] = template
        return template


def _settled(
    prompt: ChatPrompt, rendered: Rendered, raw: bytes, template: ChatTemplate
) -> list[tuple[int, int]]:
    """(bytes, characters): so much of the prompt decides so much of the text."""
    places: list[tuple[int, int]] = []
    begin = 0
    for message, end, string, settled in zip(
        prompt.messages, prompt.ends, prompt.strings, rendered.settled, strict=True
    ):
        if string is not None and template.writes_verbatim(message["role"]):
            (content,) = message["content"]
            bare = content.strip()
            lead = len(content) - len(content.lstrip())
            at = rendered.text.find(bare, begin, settled) if len(bare) >= LONG else -1
            if at >= 0:
                for place, known in characters(raw, string, EDGE_BYTES):
                    if lead < known <= lead + len(bare):
                        places.append((place, at + known - lead))
        if end and settled > begin:
            places.append((end, settled))
        begin = settled
    return places


def _sources(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name: a file of its own goes before tokenizer_config.json."""
    for name in ("chat_template.jinja", "chat_template.json"):
        file = folder / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            return {"default": text if name.endswith("jinja") else _json(file)["chat_template"]}
    found = config.get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    return {each["name"]: each["template"] for each in found or ()}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    special: dict[str, str] = {}
    for name in _SPECIAL:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            special[name] = text
    return special


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    document = msgspec.json.decode(file.read_bytes())
    return document if isinstance(document, dict) else {}
