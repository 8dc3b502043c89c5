"""A model's own chat template, and how much of what it writes is decided by the first messages.

Templates run as Hugging Face runs them: in a sandbox that cannot change what it is given, with
`raise_exception`, `tojson` and the `generation` tag. A template that asks for today's date is
refused while it does: the engine's clock is not ours.

Trick. Whether a conversation's next turn only adds to the text is a property of the template, and
some (those that drop earlier reasoning, say) do not have it. It is not guessed from the template's
source but watched while it runs: the messages are handed over as a sequence that notes how much had
been written when something was first looked at. What was written before message k+1, or the number
of messages, was looked at, is the same for every conversation that begins with messages 0 to k.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, overload

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from gateway.record import Value
from gateway.tokens.prompts import Message, Unreadable

_MOST_CHARACTERS: Final = 64 * 1024 * 1024


class Rendered(Value, frozen=True):
    """Text, and for every message how many characters of it no later message can change."""

    text: str
    settled: list[int]


class ChatTemplate:
    """One compiled template. Raises Unreadable where it cannot be compiled."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self.takes_parts = _loops_over_content(environment.parse(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise Unreadable(f"the chat template cannot be compiled: {error}") from error
        self._special_tokens = dict(special_tokens)
        self._verbatim: dict[str, bool] = {}

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> Rendered:
        """Raises Unreadable where the template does, or fails."""
        watch = _Watch(len(messages))
        shown = [self._shown(message) for message in messages]
        context = {
            **self._special_tokens,
            **variables,
            "messages": _Watched(shown, watch, 0),
            "tools": tools,
            "documents": None,
        }
        pieces: list[str] = []
        try:
            for piece in self._template.generate(**context):
                pieces.append(piece)
                watch.written += len(piece)
                if watch.written > _MOST_CHARACTERS:
                    raise Unreadable("the chat template writes without end")
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise Unreadable(f"the chat template does not take it: {error}") from error
        watch.looked_at(len(messages))
        return Rendered("".join(pieces), watch.settled)

    def writes_verbatim(self, role: str) -> bool:
        """Is what it writes for a long content, up to some place in it, decided by that content up
        to there, whatever follows in the message or after it? Tried once for each role."""
        known = self._verbatim.get(role)
        if known is None:
            known = self._verbatim[role] = self._try(role)
        return known

    def _try(self, role: str) -> bool:
        begun = "\n".join(["What a template may do to it: nothing at all."] * 3)
        beginnings = set()
        for content, more, after in _TRIALS:
            message = {"role": role, "content": [begun + content], **more}
            asked = [{"role": "user", "content": ["Well?"]}]
            before = [] if role == "system" else asked
            try:
                text = self.render(
                    [*before, message, *after], None, {"add_generation_prompt": True}
                ).text
            except Unreadable:
                continue
            at = text.find(begun)
            if at < 0:
                return False
            beginnings.add(text[: at + len(begun)])
        return len(beginnings) == 1

    def _shown(self, message: Message) -> Message:
        """Contents as this template takes them."""
        texts = message["content"]
        if self.takes_parts and message["role"] != "tool":
            return {**message, "content": [{"type": "text", "text": text} for text in texts]}
        return {**message, "content": "\n".join(texts)}


_TRIALS: Final[tuple[tuple[str, Message, list[Message]], ...]] = (
    ("", {}, []),
    ("ly nothing", {}, []),
    (" \n\n", {}, []),
    ("</think>\n\nelse", {}, []),
    ("<think>", {}, []),
    ("<tool_response>no</tool_response>", {}, []),
    ("", {"name": "n", "tool_call_id": "i", "reasoning_content": "r", "reasoning": "r"}, []),
    ("", {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}, []),
    ("", {}, [{"role": "assistant", "content": ["a"]}, {"role": "user", "content": ["b"]}]),
    ("", {}, [{"role": "user", "content": ["b"]}]),
    ("", {}, [{"role": "tool", "content": ["b"]}]),
)
"""Ends of a content, more members of its message, later messages."""


class _Watch:
    """How much had been written when a message was first looked at, or passed over."""

    __slots__ = ("_messages", "settled", "written")

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self.written = 0
        self.settled: list[int] = []

    def looked_at(self, index: int) -> None:
        """All before it is now settled. An index beyond the last: their number is known."""
        for _ in range(len(self.settled), min(index, self._messages)):
            self.settled.append(self.written)


class _Watched(Sequence[Message]):
    """The messages from `first` on. To know their number is to have looked at all of them."""

    __slots__ = ("_first", "_items", "_watch")

    def __init__(self, items: Sequence[Message], watch: _Watch, first: int) -> None:
        self._items = items
        self._watch = watch
        self._first = first

    def __len__(self) -> int:
        self._watch.looked_at(self._first + len(self._items))
        return len(self._items)

    def __bool__(self) -> bool:
        self._watch.looked_at(self._first)
        return bool(self._items)

    def __iter__(self) -> Iterator[Message]:
        for index, item in enumerate(self._items, self._first):
            self._watch.looked_at(index)
            yield item
        self._watch.looked_at(self._first + len(self._items))

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        if isinstance(index, slice):
            start = index.start or 0
            if index.stop is None and index.step in (None, 1) and start >= 0:
                return _Watched(self._items[start:], self._watch, self._first + start)
            self._watch.looked_at(self._first + len(self._items))
            return list(self._items[index])
        beyond = index < 0 or index >= len(self._items)
        self._watch.looked_at(self._first + (len(self._items) if beyond else index))
        return self._items[index]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model wrote, for training; here it only writes its body."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    del environment.filters["random"]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> NoReturn:
    raise Unreadable("the chat template asks for the date")


def _loops_over_content(root: jinja2.nodes.Template) -> bool:
    """Does it walk through the parts of a content? Then it is given parts, otherwise text."""
    for loop in root.find_all(jinja2.nodes.For):
        walked: jinja2.nodes.Node | None = loop.iter
        while isinstance(walked, jinja2.nodes.Filter | jinja2.nodes.Test) or (
            isinstance(walked, jinja2.nodes.Getitem) and isinstance(walked.arg, jinja2.nodes.Slice)
        ):
            walked = walked.node
        match walked:
            case jinja2.nodes.Name(name="content") | jinja2.nodes.Getattr(attr="content"):
                return True
            case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
                return True
    return False
