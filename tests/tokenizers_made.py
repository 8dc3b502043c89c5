"""Small tokenizers and chat templates of the common kinds, made on the spot into model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "def f(x):\n    return [x for x in range(10)]\n\n\nprint('it''s', 1234567)\n",
    "The quick brown fox jumps over the lazy dog, doesn't it? We'll see; they've gone.",
    "Grüße aus Köln! Ça va très bien, merci. Straße, Übermut, naïve café.",
    "東京は日本の首都です。今日は天気がいい。我们都是好人。",
    "emoji 😀😀 and 👩‍👩‍👧 zero\u200bwidth, tabs\t\tand  double  spaces   end",
] * 4

SPECIAL = ["<|start|>", "<|end|>", "<|think|>", "<s>", "</s>", "<unk>"]

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}<|start|>system\nBe kind.<|end|>\n"
    "{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls %}[{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}]{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Every message is written as it comes."""

TRIMMED = (
    "<s>{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = 'None.' %}{% endif %}"
    "<|start|>{{ system }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}"
    "{% if loop.last or messages[loop.index0 + 1].role != message.role %}!{% endif %}"
    "<|start|>{{ message.role }}: {{ message.content | trim }} </s>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
"""Trims, shortens the list, looks one message ahead."""

FORGETFUL = (
    "{% set ns = namespace(last=messages | length - 1) %}"
    "{% for message in messages[::-1] %}"
    "{% if message.role == 'user' %}{% set ns.last = messages | length - loop.index %}"
    "{% break %}{% endif %}{% endfor %}"
    "{% for message in messages %}<|start|>{{ message.role }}\n"
    "{% set content = message.content %}"
    "{% if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ content }}<|end|>\n{% endfor %}"
)
"""Drops earlier reasoning: it is not append-only."""

REASONED = (
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|start|>{{ message.name or message.role }}\n{{ content }}<|end|>\n{% endfor %}"
)
"""Append-only, but what it writes first for a message depends on the message's end."""


def byte_level() -> Tokenizer:
    """As most models now: a pattern splits the text, merges are of bytes."""
    tokenizer = Tokenizer(models.BPE())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As older models: spaces are written as ▁, nothing is split, a beginning is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    _train(tokenizer, [])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def _train(tokenizer: Tokenizer, alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["  ", "\t\t", AddedToken(" <pad>", lstrip=True, normalized=False)])


def made_folder(folder: Path, tokenizer: Tokenizer, template: str, **config: Any) -> Path:
    """The folder of a model, as far as prompts are concerned."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    written = {"chat_template": template, "bos_token": "<s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder
