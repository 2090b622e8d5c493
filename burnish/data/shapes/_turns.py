"""Lists of turns as other tools write them, read into Messages.

OpenAI `role`/`content` (text or typed parts, `weight`, `tool_calls`), ShareGPT `from`/`value`, LLaMA-Factory's
`loss_weight`.  A call to a function is an assistant turn that holds the call as JSON; its result is a tool turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from burnish.data.rows import ShapeProblem, absent, kind, number, plain
from burnish.errors import nearest
from burnish.records import ROLES, Message

SPEAKERS = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "customer"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "ai", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "ipython"), "tool"),
}


def turns(value: object, field: str) -> tuple[Message, ...]:
    """The turns in a list (or in JSON text of one); raises ShapeProblem naming the turn and its key."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ShapeProblem("is not a JSON list of turns", field, "mend it") from None
    if not isinstance(value, (list, tuple)):
        raise ShapeProblem(
            f"is {kind(value)}, not a list of turns", field, 'write [{"role": ..., "content": ...}, ...]'
        )
    if not value:
        raise ShapeProblem("has no turns", field, "add a user and an assistant turn, or remove the row")
    found = [_turn(turn, f"{field}[{at}]") for at, turn in enumerate(value)]
    return tuple(turn for turn in found if turn.content.strip() or turn.role != "system")


def _turn(turn: object, field: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ShapeProblem(f"is {kind(turn)}, not an object", field, 'write {"role": ..., "content": ...}')
    speaker = next((key for key in ("role", "from") if key in turn), None)
    if speaker is None:
        slip = absent(turn, "from" if "value" in turn else "role")
        raise ShapeProblem(slip.what, f"{field}.{slip.field}", slip.do)
    role = SPEAKERS.get(str(turn[speaker]))
    if role is None:
        close = nearest(str(turn[speaker])[:100], SPEAKERS)
        hint = f" (nearest: {close})" if close else ""
        raise ShapeProblem(
            f"unknown role {json.dumps(plain(turn[speaker]))[:60]}",
            f"{field}.{speaker}",
            f"use one of {', '.join(ROLES)}{hint}",
        )
    key = next((key for key in ("content", "value") if key in turn), None)
    if key is None and not turn.get("tool_calls"):
        slip = absent(turn, "value" if speaker == "from" else "content")
        raise ShapeProblem(slip.what, f"{field}.{slip.field}", slip.do)
    text = _text(turn.get(key or "content"), f"{field}.{key}")
    if turn.get("tool_calls"):
        text = "\n".join(part for part in (text, json.dumps(turn["tool_calls"], ensure_ascii=False)) if part)
    if not text.strip() and role in ("user", "assistant"):
        raise ShapeProblem("is empty", f"{field}.{key}", "fill it in, or remove the turn")
    told = next((turn[name] for name in ("weight", "loss_weight") if turn.get(name) is not None), 1.0)
    weight = number(float(told) if isinstance(told, bool) else told)
    if weight is None or weight < 0:
        raise ShapeProblem("is not a number of 0 or more", f"{field}.weight", "write 0 or 1")
    return Message(role, text, weight if role == "assistant" else 1.0)


def _text(value: Any, field: str) -> str:
    if isinstance(value, list):
        parts = []
        for at, part in enumerate(value):
            text = (
                next((part[key] for key in ("text", "value") if key in part), None)
                if isinstance(part, Mapping)
                else part
            )
            if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type", "text") != "text"):
                raise ShapeProblem(
                    "is not text", f"{field}[{at}]", "Burnish reads text only; remove the part or the row"
                )
            parts.append(text)
        return "".join(parts)
    if isinstance(value, Mapping):
        raise ShapeProblem("is an object, not text", field, "write it as text")
    return plain(value) or ""


def learnable(messages: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    """`messages` if there is an answer at the end and some answer to learn from; else a ShapeProblem."""
    if not any(turn.role == "assistant" for turn in messages):
        raise ShapeProblem("has no assistant turn", field, "add the answer, or remove the row")
    if messages[-1].role != "assistant":
        raise ShapeProblem(f"ends with a {messages[-1].role} turn", field, "add the answer, or remove that turn")
    if messages[0].role == "assistant" and len(messages) == 1:
        raise ShapeProblem("has no turn before the answer", field, "add the user's turn, or remove the row")
    if not any(turn.weight > 0 for turn in messages if turn.role == "assistant"):
        raise ShapeProblem(
            "gives every assistant turn weight 0: nothing is learned", field, "raise one, or remove the row"
        )
    return messages
