"""Conversations become text by one template, and the template says which characters are answers.

In: messages and a Jinja template (the tokenizer's own, or one of `templates/`).  Out: the rendered text and the
spans a model must produce itself: from where generation starts to the end-of-turn token.  Training, evaluation
and chat all come through `render`, so what is trained on is what is asked for.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from burnish.errors import TokenError
from burnish.records import Message
from burnish.tokens.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent / "templates"
MARK = "\ue0f0\ue0f1\ue0f2"  # private use: no template treats it as anything but a word
LIMIT = 10_000_000  # characters a template may write, and steps it may take


@dataclass(frozen=True)
class Template:
    """One Jinja text and where it came from ("chat": the tokenizer's own; the others: Burnish's)."""

    name: str
    text: str

    @staticmethod
    def choose(name: str, shape: str, tokenizer: Tokenizer) -> Template:
        """The template a task uses; "auto" takes the model's own, raw for prompt/completion and spaced for choices."""
        if name == "auto":
            usual = "chat" if tokenizer.chat_template else "plain"
            name = {"prompt": "raw", "choices": "spaced"}.get(shape, usual)
        if name == "chat":
            if not tokenizer.chat_template:
                raise TokenError(
                    "This model has no chat template", str(tokenizer.folder), "set data.template to auto, plain or raw"
                )
            return Template("chat", tokenizer.chat_template)
        return Template(name, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Rendered:
    """Text and places in it, counted in characters.

    spans: (start, end, weight) of every answer whose place can be told.
    guarded: (start, end) of contents that spell a control token, which must stay ordinary text.
    """

    text: str
    spans: tuple[tuple[int, int, float], ...]
    guarded: tuple[tuple[int, int], ...] = ()


def render(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool = False
) -> Rendered:
    """The text of a conversation, and where its answers stand.

    An answer's span holds all that a model must write: from where the `generation_prompt` rendering of the turns
    before it ends, to the control token that closes the turn.  Contents are found by rendering again with MARK in
    their place.  Raises TokenError when the template rewrites the history or an answer with weight so that no such
    place exists, or a content so that a control token spelt in it cannot be told from a real one.
    """
    text = _run(template, messages, tokenizer, generation_prompt)
    spans = []
    for i, turn in enumerate(messages):
        if turn.role == "assistant":
            try:
                start, end = _answer(template, messages, i, text, tokenizer, generation_prompt)
            except TokenError:
                if turn.weight and not generation_prompt:
                    raise
                continue  # context only: nothing is taught from it
            spans.append((start, end, turn.weight))
    if any(first[1] > second[0] for first, second in itertools.pairwise(spans)):
        raise TokenError("The chat template lets two answers overlap", do="set data.template to plain")
    forged = [i for i, turn in enumerate(messages) if tokenizer.spells_control(turn.content)]
    places = [_content(template, messages, i, text, tokenizer, generation_prompt) for i in forged]
    return Rendered(text, tuple(spans), tuple(sorted(place for place in places if place)))


def _answer(
    template: Template, messages: Sequence[Message], i: int, text: str, tokenizer: Tokenizer, generation_prompt: bool
) -> tuple[int, int]:
    """Where turn i's answer stands in `text`."""
    before = _run(template, messages[:i], tokenizer, True)
    if not text.startswith(before):
        raise TokenError(
            f"The chat template rewrites what stands before turn {i + 1}, so the place of that answer cannot be told",
            do="set data.template to plain, or split the conversation so that each row has one answer",
        )
    parts = _marked(template, messages, i, tokenizer, generation_prompt)
    tail = parts[-1]
    start, end = len(before), len(text) - len(tail)
    written = _squeezed(text[start:end])  # may say more than the answer: empty thoughts, a channel
    as_written = text.endswith(tail) and start <= end and written.endswith(_squeezed(messages[i].content))
    if len(parts) != 2 or not as_written:
        raise TokenError(
            f"The chat template does not show the answer of turn {i + 1} as written",
            do="set data.template to plain, or split the conversation so that each row has one answer",
        )
    if i + 1 < len(messages) or generation_prompt:  # how the turn ends when no other follows
        tail = _marked(template, messages[: i + 1], i, tokenizer, False)[-1]
    closer = tokenizer.controls.search(tail)
    if closer and text.startswith(tail[: closer.end()], end):
        return start, end + closer.end()
    closer = tokenizer.controls.match(text, end)  # some turns are ended by the next one's first token
    forged = any(tokenizer.spells_control(turn.content) for turn in messages[i + 1 : i + 2])
    if closer and not forged and tokenizer.backend.token_to_id(closer.group().strip()) in tokenizer.eos_ids:
        return start, closer.end()
    return start, end


def _content(
    template: Template, messages: Sequence[Message], i: int, text: str, tokenizer: Tokenizer, generation_prompt: bool
) -> tuple[int, int] | None:
    """Where turn i's content stands in `text`; None when the template leaves it out."""
    parts = _marked(template, messages, i, tokenizer, generation_prompt)
    if parts == (text,):
        return None
    start, end = len(parts[0]), len(text) - len(parts[-1])
    shown = text[start:end].strip() == messages[i].content.strip()
    if len(parts) != 2 or start > end or not (shown and text.startswith(parts[0]) and text.endswith(parts[1])):
        raise TokenError(
            f"Turn {i + 1} spells one of this model's control tokens, and the chat template changes the turn, so that "
            "the text cannot be kept apart from a real control token",
            do="take the token out of the text, or set data.template to plain",
        )
    return start, end


def _marked(
    template: Template, messages: Sequence[Message], i: int, tokenizer: Tokenizer, generation_prompt: bool
) -> tuple[str, ...]:
    """What is rendered around turn i's content, whatever the template makes of its blanks: two texts where it is
    shown once."""
    turns = [*messages[:i], replace(messages[i], content=MARK), *messages[i + 1 :]]
    return tuple(_run(template, turns, tokenizer, generation_prompt).split(MARK))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _run(template: Template, messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool) -> str:
    roles = {"developer": "system"} if "developer" not in template.text else {}
    turns = tuple((roles.get(turn.role, turn.role), turn.content) for turn in messages)
    own = {f"{name}_token": token for name, token in tokenizer.special.items()}
    own.setdefault("bos_token", "")
    own.setdefault("eos_token", "")
    if template.name != "chat":  # ours carry BOS only where the model's texts do
        own["bos_token"] = tokenizer.bos_text
    return _written(template.text, turns, tuple(own.items()), generation_prompt)


@lru_cache(maxsize=256)  # the prompts of one task begin with the same turns
def _written(text: str, turns: tuple[tuple[str, str], ...], own: tuple[tuple[str, str], ...], opened: bool) -> str:
    told = [{"role": role, "content": content} for role, content in turns]
    try:
        return _compiled(text).render(
            messages=told, tools=None, documents=None, add_generation_prompt=opened, _steps=[0], **dict(own)
        )
    except Exception as problem:  # the template is a stranger's program
        if isinstance(problem, TokenError):
            raise
        raise TokenError(
            f"The chat template refuses this conversation: {str(problem) or type(problem).__name__}",
            do="mend the roles' order, or set data.template to plain",
        ) from None


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` only mark; spans are found from the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _joined(parts: Iterable[str]) -> str:
    held, size = [], 0
    for part in parts:
        size += len(part) + 1
        if size > LIMIT:
            raise jinja2.TemplateError(f"it writes more than {LIMIT:,} characters")
        held.append(part)
    return "".join(held)


def _count(context: jinja2.runtime.Context, more: int) -> None:
    steps = context.parent["_steps"]
    steps[0] += more
    if steps[0] > LIMIT:
        raise jinja2.TemplateError(f"it takes more than {LIMIT:,} steps")


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, items: Any) -> Any:
    """What a loop runs over, charged to the rendering's steps."""
    items = items if hasattr(items, "__len__") else list(items)
    _count(context, len(items))
    return items


class _Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which loops, calls, products and output are bounded too."""

    intercepted_binops = frozenset({"*", "**"})
    concat = staticmethod(_joined)

    def _generate(self, source: nodes.Template, *more: Any, **options: Any) -> str:
        for loop in source.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None)
        return super()._generate(source, *more, **options)

    def call(self, context: jinja2.runtime.Context, told: Any, /, *given: Any, **named: Any) -> Any:
        _count(context, 100)
        return super().call(context, told, *given, **named)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [abs(side) if isinstance(side, int | float) else len(side) for side in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > LIMIT:
            raise SecurityError(f"{operator} makes too large a value")
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    world = _Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])

    def stop(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    world.filters["tojson"] = tojson
    world.filters["_counted"] = _counted
    world.globals["raise_exception"] = stop
    world.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return world.from_string(text)
    except Exception as problem:  # RecursionError and others, besides Jinja's own
        raise TokenError(f"The chat template is not valid Jinja: {problem}", do="set data.template to plain") from None
