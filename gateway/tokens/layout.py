"""How a model's chat template lays messages out, found by trial where we do not have its files.

Short conversations are tokenised by a replica, in every order of roles that matters, and compared:
what stands before the first content, what between two, and which token comes after one. With that,
the contents of a real prompt are found in its text, and some beginnings of it known to decide so
many tokens whatever comes after (`edges`, as `gateway.kv_cache.Tokenised` defines them).

Invariants. What differs from one trial to another where it should not, or from a real prompt, ends
what is known of that prompt: in doubt there is no edge. At a message's end, tokens are counted up
to its *divider*: the token that followed the contents of its role in every trial, whatever the
content ended with and whatever came next, as only special tokens do. Inside a content, between a
letter or digit and a space, where no token of the whole text reaches across such a pair and more of
the text is known behind.

Trade-offs. Trials cannot prove what a template does. Contents with marks of reasoning, messages
with more than a role and a content, and roles other than the three of `_ORDERS` end the walk.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from gateway.record import Value
from gateway.tokens.json_text import characters
from gateway.tokens.prompts import ChatPrompt, Message, TextPrompt
from gateway.tokens.token_text import TokenText
from gateway.vocabulary import Tokens

Edge = tuple[int, Tokens]
Pair = tuple[str, str]  # the roles of two messages, one after another; "" before the first

EDGE_BYTES: Final = 256
"""Bytes between two edges inside a long content."""

AHEAD_BYTES: Final = 64
"""Behind a place inside a content so much must be known for it to be certain."""

LEAST_GAPS: Final = 32
"""Spaces between letters that a text must have to show how its tokenizer treats them."""

_ROLES: Final = {"s": "system", "u": "user", "a": "assistant"}
_ORDERS: Final = (
    *("u", "s", "su", "ua", "uu", "sua", "suu", "uau", "uaa", "uua", "uauu", "uauaa"),
    *("suauu", "uauauauauauauau", "suauauauauau"),
)
_ENDS: Final = ("a", "1", ".", "<", "\n", " ", "é", "字", "|", "\n\n", "}")
_MARKS: Final = (b"think", b"tool_response>")
"""Contents with these may be shortened, or change how others are written."""

_INSIDE: Final = ("</think>\n\nElse", "<think>", "<tool_response>no</tool_response>", " \n\n")
_STRING: Final = msgspec.json.Decoder(str)
_WHITE: Final = re.compile(rb"[ \t\n\r\x0b\x0c]*")
_GAP: Final = re.compile(rb"[0-9A-Za-z](?= [0-9A-Za-z])")


class Layout(Value, frozen=True):
    """What stands between contents, without white space around; `settled` are pairs that are the
    same where the second message is the last. `dividers` are tokens by role, `verbatim` the roles
    whose contents are written as they come whatever they end with."""

    between: dict[Pair, bytes]
    settled: frozenset[Pair]
    dividers: dict[str, int]
    verbatim: frozenset[str]


def trials() -> list[list[Message]]:
    """The conversations to be tried, for `learn`."""
    plain = [[_trial(_ROLES[each], at) for at, each in enumerate(order)] for order in _ORDERS]
    return plain + [messages for _, messages in _inside()]


def learn(told: Sequence[TokenText | None]) -> Layout:
    """From the answers to `trials`, in their order; None where a trial was refused."""
    between: dict[tuple[Pair, bool], set[bytes]] = {}
    dividers: dict[str, set[int | None]] = {}
    for messages, text in zip(trials()[: len(_ORDERS)], told, strict=False):
        for place in _found(messages, text) if text is not None else ():
            between.setdefault((place.pair, place.is_last), set()).add(place.before)
            dividers.setdefault(place.pair[1], set()).add(place.divider)
    known: dict[Pair, bytes] = {}
    settled: set[Pair] = set()
    for pair in {pair for pair, _ in between}:
        inner, last = between.get((pair, False), set()), between.get((pair, True), set())
        if len(inner) == 1 and b"" not in inner:
            (known[pair],) = inner
            if last <= inner:  # a template may refuse to end so
                settled.add(pair)
    found = {role: next(iter(each)) for role, each in dividers.items() if len(each) == 1}
    layout = Layout(
        known,
        frozenset(settled),
        {role: token for role, token in found.items() if token is not None},
        frozenset(),
    )
    return msgspec.structs.replace(layout, verbatim=_verbatim(layout, told[len(_ORDERS) :]))


def edges(
    prompt: ChatPrompt | TextPrompt, raw: bytes, told: TokenText, layout: Layout | None
) -> list[Edge]:
    """Ascending; the last is the whole prompt. `layout` is of no use to texts."""
    found: list[Edge] = []
    places: Iterator[Edge] = iter(())
    if isinstance(prompt, TextPrompt):
        places = _in_text(prompt, raw, told)
    elif layout is not None:
        places = _in_chat(prompt, raw, told, layout)
    for at, count in places:
        if at < len(raw) and (not found or (at > found[-1][0] and count > found[-1][1])):
            found.append((at, count))
    found.append((len(raw), len(told.tokens)))
    return found


class _Place(Value, frozen=True):
    """A content in a text: where it is, what was before it, and the token that follows."""

    pair: Pair
    is_last: bool
    before: bytes
    start: int
    end: int
    divider: int | None


def _trial(role: str, at: int, inside: str = "") -> Message:
    text = f"This is one of the contents in the trial, {at:02d}: to be found as it is"
    return {"role": role, "content": f"{text}{inside}{_ENDS[at % len(_ENDS)]}"}


def _inside() -> list[tuple[str, list[Message]]]:
    """(role, conversation): long contents of this role may be cut anywhere if it is plain."""
    made: list[tuple[str, list[Message]]] = []
    for role, order in (("user", "uauau"), ("system", "su")):
        for mark in _INSIDE:
            messages = [
                _trial(_ROLES[each], at, f"{mark}, and so on" if _ROLES[each] == role else "")
                for at, each in enumerate(order)
            ]
            made.append((role, messages))
        named = [_trial(_ROLES[each], at) for at, each in enumerate(order)]
        named[0]["name"] = "somebody"
        made.append((role, named))
    return made


def _found(messages: Sequence[Message], told: TokenText) -> list[_Place]:
    """Contents of a trial, which are unlike anything else."""
    places: list[_Place] = []
    at, above = 0, ""
    for index, message in enumerate(messages):
        bare = message["content"].encode().strip()
        start = told.text.find(bare, at)
        is_last = index == len(messages) - 1
        pair = (above, message["role"])
        if start < 0:
            return [*places, _Place(pair, is_last, b"", at, at, None)]
        before, at = told.text[at:start].strip(), start + len(bare)
        places.append(_Place(pair, is_last, before, start, at, _divider(told, at)))
        above = message["role"]
    return places


def _verbatim(layout: Layout, told: Sequence[TokenText | None]) -> frozenset[str]:
    failed: set[str] = set()
    tried: set[str] = set()
    for (role, messages), text in zip(_inside(), told, strict=False):
        if text is None:
            continue
        tried.add(role)
        for place in _found(messages, text):
            if place.pair[1] == role and place.before != layout.between.get(place.pair):
                failed.add(role)
    return frozenset(tried - failed)


def _divider(told: TokenText, end: int) -> int | None:
    index = told.beginning_at(_past_white(told.text, end))
    return None if index is None else told.tokens[index]


def _in_chat(prompt: ChatPrompt, raw: bytes, told: TokenText, layout: Layout) -> Iterator[Edge]:
    text, at, above = told.text, 0, ""
    cuts = _Cuts(told)
    for message, end, string in zip(prompt.messages, prompt.ends, prompt.strings, strict=True):
        pair, content = (above, message["role"]), _plain(message)
        before = layout.between.get(pair)
        if content is None or before is None:
            return
        whole = content.encode()
        bare = whole.strip()
        start = _past_white(text, at)
        if not bare or not text.startswith(before, start):
            return
        start = _past_white(text, start + len(before))
        if not text.startswith(bare, start):
            return
        at, above = start + len(bare), pair[1]
        if pair not in layout.settled:
            if message is prompt.messages[-1]:
                return
            continue
        if string is not None and above in layout.verbatim:
            lead = len(whole) - len(whole.lstrip())
            yield from cuts.within(raw, string, content, (start - lead, start, at))
        index = told.beginning_at(_past_white(text, at))
        if index is None or told.tokens[index] != layout.dividers.get(above):
            return
        yield end, index


def _in_text(prompt: TextPrompt, raw: bytes, told: TokenText) -> Iterator[Edge]:
    """A text is the prompt, but for special tokens around it."""
    whole = prompt.text.encode()
    start = len(told.text) - len(whole)
    for ahead in range(min(3, len(told.ends))):
        begin = told.ends[ahead - 1] if ahead else 0
        if begin <= start and told.text.startswith(whole, begin):
            place = (begin, begin, begin + len(whole))
            yield from _Cuts(told).within(raw, prompt.string, prompt.text, place)
            return


class _Cuts:
    """Where a text's tokens end between a letter and a space, if they all do."""

    def __init__(self, told: TokenText) -> None:
        self._told = told
        self._gaps: list[int] | None = None  # bytes of the text, ascending

    def within(
        self, raw: bytes, string: tuple[int, int], content: str, place: tuple[int, int, int]
    ) -> Iterator[Edge]:
        """Edges inside a content: its string in the prompt, itself, and where in the text it would
        begin with the white space before it, does begin and ends."""
        zero, start, end = place
        gaps = self._found() if _STRING.decode(raw[string[0] : string[1]]) == content else []
        first = bisect_right(gaps, start)
        done, offset = 0, zero
        for at, known in characters(raw, string, EDGE_BYTES) if gaps else ():
            offset += len(content[done:known].encode())
            done = known
            behind = bisect_right(gaps, min(offset, end) - AHEAD_BYTES)
            if behind > first:
                yield at, bisect_right(self._told.ends, gaps[behind - 1])

    def _found(self) -> list[int]:
        if self._gaps is None:
            gaps = [match.end() for match in _GAP.finditer(self._told.text)]
            are_split = len(gaps) >= LEAST_GAPS and set(self._told.ends).issuperset(gaps)
            self._gaps = gaps if are_split else []
        return self._gaps


def _plain(message: Message) -> str | None:
    """Its content, where there is nothing else to it."""
    contents: list[Any] = message["content"]
    if message.keys() != {"role", "content"} or len(contents) != 1:
        return None
    content: str = contents[0]
    return None if any(mark in content.encode() for mark in _MARKS) else content


def _past_white(text: bytes, at: int) -> int:
    match = _WHITE.match(text, at)
    return at if match is None else match.end()
