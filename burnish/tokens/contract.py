"""What an artifact keeps of its task: how rows become tokens and answers are read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.tokens.encode import Encoding, Target
from burnish.tokens.template import Template
from burnish.tokens.tokenizer import Tokenizer

Ending = Literal["language", "classes", "multi", "number", "none"]  # of a model


def ending(goal: str, multi: bool) -> Ending:
    """What a model ends in that is trained on labels."""
    return "number" if goal == "regress" else "multi" if multi else "classes"


@dataclass(frozen=True)
class Contract:
    """How rows are read and answers said: one and the same in training, evaluation and chat.

    goal: the task kind.  shape: of the rows it was made from.  target: what is trained on.  head: how the model ends.
    labels: classes in the order of the head.  instruction: what a labelled row is asked with.
    mean, deviation, low, high: of the training numbers (regress); low = high where they are not known.
    virtual: tokens of a soft prompt, before whatever is read.  separator: between the two texts of a pair that a head
    reads, where the tokenizer sets none ('' in artifacts from before there was one: their pairs run together).
    """

    goal: str
    shape: str
    target: Target
    template: str
    template_text: str
    max_length: int
    too_long: str
    head: Ending = "language"
    labels: tuple[str, ...] = ()
    multi: bool = False
    instruction: str = ""
    mean: float = 0.0
    deviation: float = 1.0
    low: float = 0.0
    high: float = 0.0
    virtual: int = 0
    separator: str = ""

    def encoding(self, tokenizer: Tokenizer, kind: str, end: bool = True) -> Encoding:
        """The token contract for one tokenizer."""
        return Encoding(
            tokenizer,
            Template(self.template, self.template_text),
            kind,
            self.target,
            self.max_length,
            self.too_long,
            {name: i for i, name in enumerate(self.labels)} if self.head in ("classes", "multi") else {},
            self.head == "multi",
            self.mean,
            self.deviation,
            end,
            self.virtual,
            self.separator,
        )
