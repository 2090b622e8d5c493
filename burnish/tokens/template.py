"""Conversations become text by one template, and the template says which characters are answers.

In: messages and a Jinja template (the tokenizer's own, or one of `templates/`).  Out: the rendered text and the
spans a model must produce itself: from where generation starts to the end-of-turn token.  Training, evaluation
and chat all come through `render`, so what is trained on is what is asked for.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from burnish.errors import TokenError
from burnish.records import Message
from burnish.tokens.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Template:
    """One Jinja text and where it came from ("chat": the tokenizer's own; "plain", "raw": Burnish's)."""

    name: str
    text: str

    @staticmethod
    def choose(name: str, shape: str, tokenizer: Tokenizer) -> Template:
        """The template a task uses; "auto" takes the model's own for conversations and raw for prompt/completion."""
        if name == "auto":
            name = "raw" if shape == "prompt" else "chat" if tokenizer.chat_template else "plain"
        if name == "chat":
            if not tokenizer.chat_template:
                raise TokenError(
                    "This model has no chat template", str(tokenizer.folder), "set data.template to auto, plain or raw"
                )
            return Template("chat", tokenizer.chat_template)
        return Template(name, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Rendered:
    """Text and the (start, end) character spans that are answers, one for each assistant turn, with its weight."""

    text: str
    spans: tuple[tuple[int, int, float], ...]


def render(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool = False
) -> Rendered:
    """The text of a conversation, and where its answers stand.

    An answer's span starts where `generation_prompt` rendering of the turns before it ends, and ends after the
    end-of-turn token.  Raises TokenError when the template rewrites the history so that no such place exists.
    """
    text = _run(template, messages, tokenizer, generation_prompt)
    answers = [i for i, turn in enumerate(messages) if turn.role == "assistant"]
    spans = []
    for i in answers:
        start = _start(template, messages, i, text, tokenizer)
        content_end = _content_end(messages[i].content, text, start)
        spans.append((start, _turn_end(text, content_end, tokenizer), messages[i].weight))
    if any(first[1] > second[0] for first, second in zip(spans, spans[1:], strict=False)):
        raise TokenError("The chat template lets two answers overlap", do="set data.template to plain")
    return Rendered(text, tuple(spans))


def _start(template: Template, messages: Sequence[Message], i: int, text: str, tokenizer: Tokenizer) -> int:
    """Where turn i's answer begins in `text`."""
    before = _run(template, messages[:i], tokenizer, True) if i else ""
    if text.startswith(before):
        return len(before)
    bare = _run(template, messages[:i], tokenizer, False) if i else ""
    if text.startswith(bare):  # the generation prompt says more than the history does (thinking tags)
        at = text.find(messages[i].content.strip(), len(bare))
        if at >= 0:
            return at
    raise TokenError(
        f"The chat template rewrites the conversation before answer {i + 1}, so its place cannot be told",
        do="set data.template to plain, or split the conversation so that each row has one answer",
    )


def _content_end(content: str, text: str, start: int) -> int:
    wanted = content.strip()
    at = text.find(wanted, start) if wanted else start
    if at < 0:
        raise TokenError("The chat template does not show the answer as written", do="set data.template to plain")
    kept = at + len(wanted)
    tail = content[len(content.rstrip()) :]  # trailing blanks that the template kept belong to the answer
    return kept + len(tail) if tail and text.startswith(tail, kept) else kept


def _turn_end(text: str, end: int, tokenizer: Tokenizer) -> int:
    """After the control token that closes the turn, if one follows directly."""
    rest = text[end:]
    blanks = len(rest) - len(rest.lstrip())
    for token in sorted(_closers(tokenizer), key=len, reverse=True):
        if rest.startswith(token, blanks):
            return end + blanks + len(token)
    return end


def _closers(tokenizer: Tokenizer) -> list[str]:
    openers = {tokenizer.special.get(name) for name in ("bos", "pad", "unk", "mask", "cls")} - {
        tokenizer.special.get("eos")
    }
    added = tokenizer.backend.get_added_tokens_decoder().values()
    return [token.content for token in added if token.special and token.content not in openers]


def _run(template: Template, messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool) -> str:
    roles = {"developer": "system"} if "developer" not in template.text else {}
    turns = [{"role": roles.get(turn.role, turn.role), "content": turn.content} for turn in messages]
    own = {f"{name}_token": token for name, token in tokenizer.special.items()}
    own.setdefault("bos_token", "")
    own.setdefault("eos_token", "")
    if template.name != "chat":  # ours carry BOS only where the model's texts do
        own["bos_token"] = tokenizer.bos_text
    try:
        return _compiled(template.text).render(messages=turns, add_generation_prompt=generation_prompt, **own)
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, MemoryError) as problem:
        raise TokenError(
            f"The chat template refuses this conversation: {problem}",
            do="mend the roles' order, or set data.template to plain",
        ) from None


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` only mark; spans are found from the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    world = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], undefined=jinja2.Undefined
    )

    def stop(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    world.filters["tojson"] = tojson
    world.globals["raise_exception"] = stop
    world.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return world.from_string(text)
    except jinja2.TemplateError as problem:
        raise TokenError(f"The chat template is not valid Jinja: {problem}", do="set data.template to plain") from None
