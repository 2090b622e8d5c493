"""A conversation in the terminal: typed turns in, streamed replies out; piped lines in, one reply per line.

In: a Chat of the workflow and three streams.  Out: text, or with --json one object per turn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

from burnish.evaluate import plain

HELP = "/reset forgets the conversation, /? shows this, Ctrl-C stops a reply, Ctrl-D ends"


class Chat(Protocol):
    """What `workflow.chat` gives."""

    describes: str

    def reply(self, text: str) -> Iterator[str]: ...

    def reset(self) -> None: ...


def talk(chat: Chat, as_json: bool = False) -> None:
    """Answer turn after turn until the input ends."""
    if not sys.stdin.isatty() or as_json:
        for line in sys.stdin:
            if line.strip():
                _answer(chat, line.rstrip("\n"), as_json)
        return
    import readline  # noqa: F401  (gives input() its editing keys and history)

    print(f"{plain.visible(chat.describes)}\n{HELP}")
    for text in _typed():
        if text == "/reset":
            chat.reset()
            print("Forgotten.")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            try:
                _answer(chat, text)
            except KeyboardInterrupt:
                print(" (stopped)")


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input(">>> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nCtrl-D ends")


def _answer(chat: Chat, text: str, as_json: bool = False) -> None:
    pieces: Iterable[str] = chat.reply(text)
    if as_json:
        print(json.dumps({"prompt": text, "reply": "".join(pieces)}), flush=True)
        return
    for piece in pieces:
        print(plain.visible(piece), end="", flush=True)
    print()
