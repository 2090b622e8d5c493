"""The text that should have been said, the one that was, and its words.

In: an example or a prediction.  Out: strings; no usable answer is the empty string, which every text metric scores 0.
"""

from __future__ import annotations

import re

from burnish.records import Example, Prediction

# One ideograph or kana is a word; elsewhere a run of letters and digits is.  On ASCII text this is exactly
# rouge_score's tokenizer, which throws every other letter away and so gives a Greek or Chinese answer 0.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")


def gold(example: Example) -> str:
    """The example's answer; for a row of text and label, the label as text."""
    return example.answer or (example.label if isinstance(example.label, str) else "")


def said(prediction: Prediction) -> str:
    """The predicted text, '' when there is no usable answer."""
    return "" if prediction.problem else prediction.text or ""


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation.

    >>> words("It's 3 o'clock_now")
    ['it', 's', '3', 'o', 'clock', 'now']
    """
    return _WORD.findall(text.lower())
