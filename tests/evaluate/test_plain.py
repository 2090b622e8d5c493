"""A stranger's text is shown as what it is and can always be written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.evaluate import plain


def test_hidden_characters_are_written_out() -> None:
    assert plain.visible("a\u202eb\u200bc\x07\r\nd\ud800") == "a⟨U+202E⟩b⟨U+200B⟩c␇\nd⟨U+D800⟩"
    assert plain.visible("می\u200cخواهم 👩\u200d🚀\ttab") == "می\u200cخواهم 👩\u200d🚀\ttab"


@given(st.text())
@settings(deadline=None)
def test_visible_is_writable_and_stable(text: str) -> None:
    once = plain.visible(text)
    once.encode()
    assert plain.visible(once) == once


def test_bytes_are_read_at_a_glance() -> None:
    told = [plain.size(count) for count in (900, 3.5e6, 38e6, 1.25e9, 12e9, 3e12)]
    assert told == ["900 B", "3.5 MB", "38 MB", "1.2 GB", "12 GB", "3,000 GB"]
