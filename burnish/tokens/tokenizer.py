"""A model folder's tokenizer, without transformers: text in, ids out, and what its special tokens mean.

In: a folder with tokenizer.json (anything else is converted by transformers once).  Out: ids that equal what
transformers gives for the same text, and the few facts that decide correctness: who adds BOS, what ends a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from burnish.errors import ModelError, TokenError

SPECIALS = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
MAX_BYTES = 200_000_000
REMEMBERED = 1 << 14  # characters of the longest text whose ids are kept for the next time


@dataclass
class Tokenizer:
    """ids <-> text for one model.

    special: name -> token text, of bos, eos, pad, unk, mask, cls, sep where the model has them.
    chat_template: the model's own Jinja text, '' when it has none.
    eos_ids: ids that end a generated text (generation_config's, else eos).
    """

    backend: Backend
    special: dict[str, str]
    chat_template: str
    eos_ids: tuple[int, ...]
    folder: Path
    size: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """The tokenizer of a model folder; a ModelError names the file that is missing or broken."""
        config = read_json(folder / "tokenizer_config.json", optional=True)
        mapped = read_json(folder / "special_tokens_map.json", optional=True)
        path = folder / "tokenizer.json"
        if path.exists():
            if path.stat().st_size > MAX_BYTES:
                raise ModelError("tokenizer.json is larger than 200 MB", str(path), "is it really a tokenizer?")
            try:
                backend = Backend.from_str(path.read_text(encoding="utf-8"))
            except Exception as problem:
                raise ModelError(f"tokenizer.json cannot be read: {problem}", str(path), "fetch it anew") from None
        else:
            backend = _convert(folder)
        backend.no_padding()
        backend.no_truncation()
        special = {}
        for name in SPECIALS:
            told = config.get(f"{name}_token", mapped.get(f"{name}_token"))
            told = told.get("content") if isinstance(told, dict) else told
            if isinstance(told, str) and backend.token_to_id(told) is not None:
                special[name] = told
        generation = read_json(folder / "generation_config.json", optional=True)
        model = read_json(folder / "config.json", optional=True)
        stops = generation.get("eos_token_id", model.get("eos_token_id"))
        ids = [stops] if isinstance(stops, int) else list(stops or [])
        if "eos" in special:
            ids.append(backend.token_to_id(special["eos"]))
        size = backend.get_vocab_size()
        ids = [i for i in dict.fromkeys(ids) if isinstance(i, int) and 0 <= i < size and "eos" in special]
        return Tokenizer(backend, special, _chat_template(folder, config), tuple(ids), folder, size, config)

    def id(self, name: str) -> int | None:
        """The id of bos, eos, pad, unk, mask, cls or sep; None where the model has none."""
        return self.backend.token_to_id(self.special[name]) if name in self.special else None

    def encode(self, text: str, guarded: Sequence[tuple[int, int]] = (), continued: bool = False) -> list[int]:
        """ids of rendered text: control tokens spelt in it count, none are added.

        guarded: (start, end) characters within which a control token is ordinary text.
        continued: the text goes on from other text, so that no word-start mark is put before it.
        """
        known = self._lately if len(text) <= REMEMBERED else self._encode
        return list(known(text, tuple(guarded), continued))

    @cached_property
    def _lately(self) -> Callable[[str, tuple[tuple[int, int], ...], bool], tuple[int, ...]]:
        """`_encode` with a memory: the prompts of one task begin alike, and each is encoded up to the same edges."""
        return lru_cache(maxsize=256)(self._encode)

    def _encode(self, text: str, guarded: tuple[tuple[int, int], ...], continued: bool) -> tuple[int, ...]:
        if not guarded and not continued:
            return tuple(self.backend.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        at, backend = 0, self._continuing if continued else self._guarded
        for start, end in self.controls_in(text, guarded):
            ids += backend.encode(text[at:start], add_special_tokens=False).ids if start > at else []
            ids.append(self._added[text[start:end].strip()])
            at, backend = end, self._inner
        return (*ids, *(backend.encode(text[at:], add_special_tokens=False).ids if at < len(text) else ()))

    def controls_in(self, text: str, guarded: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
        """(start, end) of every control token of a text outside `guarded`, which is sorted and does not overlap."""
        found, at = [], 0
        for start, end in [*guarded, (len(text), len(text))]:
            found += [match.span() for match in self.controls.finditer(text, at, start)]
            at = end
        return found

    def spells_control(self, text: str) -> bool:
        """Whether a control token is spelt in a text."""
        if self._literal_controls:
            return self.controls.search(text) is not None
        return self.encode(text) != self.encode_text(text)

    def encode_plain(self, text: str, pair: str | None = None) -> list[int]:
        """ids of a user's text as this model was pre-trained to read it (its own BOS, CLS, SEP ...).

        A control token spelt in the text stays ordinary text.
        """
        return list(self._guarded.encode(text, pair, add_special_tokens=True).ids)

    def segments(self, text: str, pair: str) -> list[int]:
        """Which of two texts each id of `encode_plain(text, pair)` belongs to: 0 or 1, as the model was pre-trained."""
        return list(self._guarded.encode(text, pair, add_special_tokens=True).type_ids)

    def encode_text(self, text: str) -> list[int]:
        """ids of a user's text alone; a control token spelt in it stays ordinary text."""
        return list(self._guarded.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of ids; control tokens are shown when `special`."""
        return str(self.backend.decode(ids, skip_special_tokens=not special))

    def cut(self, text: str, most: int) -> str:
        """The start of a text that has about `most` tokens: always shorter than the text, never half a character."""
        offsets = self._guarded.encode(text, add_special_tokens=False).offsets
        kept = text[: offsets[most - 1][1]] if 0 < most <= len(offsets) else ""
        return kept if len(kept) < len(text) else text[:-1]

    def pieces(self, ids: list[int]) -> list[str]:
        """Each id's own text such that joined pieces read as `decode` would; for display.

        A character made of several ids stands at its last one.
        """
        shown: list[str] = []
        before, read = 0, 0  # ids[before:read] are shown already: they tell the decoder what stands to the left
        for end in range(1, len(ids) + 1):
            known = self.decode(ids[before:read], special=True)
            text = self.decode(ids[before:end], special=True)
            if text.endswith("�") and end < len(ids) and end - read < 4:  # UTF-8 takes four bytes at most
                shown.append("")
                continue
            shown.append(text[len(known) :])
            before, read = read, end
        return shown

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Every control token."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def separator(self) -> str:
        """What must stand between two texts read as one: '' where this tokenizer puts a control token, else a line end.

        A line end is what parts them when they are asked in words too (ask.py).
        """
        one, two = (self.backend.num_special_tokens_to_add(pair) for pair in (False, True))
        return "" if two > one else "\n"

    @cached_property
    def _added(self) -> dict[str, int]:
        return {token.content.strip(): i for i, token in self.backend.get_added_tokens_decoder().items()}

    @cached_property
    def closing_ids(self) -> frozenset[int]:
        """Every id that may end a turn: control tokens, and what else ends a generated text."""
        return self.special_ids.union(self.eos_ids) - ({self.id("unk")} - set(self.eos_ids))

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """Control tokens this model expects before any text (BOS or CLS; often none)."""
        return self._around[0]

    @cached_property
    def suffix(self) -> tuple[int, ...]:
        """Control tokens this model expects after any text (SEP or EOS; often none)."""
        return self._around[1]

    @property
    def bos_text(self) -> str:
        """BOS as text when this model's texts begin with it, else ''."""
        return self.special["bos"] if self.id("bos") in self.prefix else ""

    @cached_property
    def controls(self) -> re.Pattern[str]:
        """Matches a control token as the backend does: the longest first, with the blanks it swallows."""
        told = [token for token in self.backend.get_added_tokens_decoder().values() if token.special]
        told.sort(key=lambda token: -len(token.content))
        parts = [
            r"\s*" * token.lstrip
            + r"(?<!\w)" * token.single_word
            + re.escape(token.content)
            + r"(?!\w)" * token.single_word
            + r"\s*" * token.rstrip
            for token in told
        ]
        return re.compile("|".join(parts) or r"(?!)")

    @cached_property
    def _literal_controls(self) -> bool:
        """Whether control tokens are looked for in the text as it is, not in its normalised form."""
        added = self.backend.get_added_tokens_decoder().values()
        return self.backend.normalizer is None or not any(token.special and token.normalized for token in added)

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        for probe in ("a", "0", *self.backend.get_vocab()):
            told = self.backend.encode(probe)
            if (inner := len(told.ids) - sum(told.special_tokens_mask)) > 0:
                start = told.special_tokens_mask.index(0)
                if any(told.special_tokens_mask[start : start + inner]):
                    break
                return tuple(told.ids[:start]), tuple(told.ids[start + inner :])
        raise TokenError("This tokenizer changes text when it adds control tokens", str(self.folder))

    @cached_property
    def _guarded(self) -> Backend:
        return _copy(self.backend.to_str())

    @cached_property
    def _inner(self) -> Backend:
        """For text that follows a control token: the mark of the first word of all is not put before it."""
        told = json.loads(self.backend.to_str())
        changed = False
        for item in _stages(told, "pre_tokenizer"):
            if item.get("type") == "Metaspace" and item.get("prepend_scheme") == "first":
                item["prepend_scheme"], changed = "never", True
        return _copy(json.dumps(told)) if changed else self._guarded

    @cached_property
    def _continuing(self) -> Backend:
        told = json.loads(self.backend.to_str())
        for item in [*_stages(told, "normalizer"), *_stages(told, "pre_tokenizer")]:
            if item["type"] == "Metaspace":
                item["prepend_scheme"] = "never"
            if item["type"] == "ByteLevel":
                item["add_prefix_space"] = False
            if item["type"] == "Prepend":
                item["prepend"] = ""
        return _copy(json.dumps(told))


def _copy(told: str) -> Backend:
    """A backend that reads control tokens as ordinary text."""
    backend = Backend.from_str(told)
    backend.encode_special_tokens = True
    return backend


def _stages(told: dict[str, Any], part: str) -> list[dict[str, Any]]:
    stage = told.get(part) or {}
    inner = stage.get("normalizers", stage.get("pretokenizers"))
    return inner if inner is not None else [stage] if stage else []


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object in a file; {} when it is absent and optional."""
    if optional and not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ModelError(
            f"{path.name} cannot be read: {problem.strerror}", str(path), "is this a model folder?"
        ) from None
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{path.name} is not valid JSON: {problem}", str(path), "fetch it anew") from None
    if not isinstance(told, dict):
        raise ModelError(f"{path.name} is not a JSON object", str(path), "fetch it anew")
    return told


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    told = config.get("chat_template") or ""
    if isinstance(told, list):  # several named templates
        told = next((item.get("template", "") for item in told if item.get("name") == "default"), "")
    return str(told)


def _convert(folder: Path) -> Backend:
    """Let transformers read the older formats (vocab.txt, spiece.model)."""
    from transformers import AutoTokenizer

    try:
        backend: Backend = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).backend_tokenizer
        return backend
    except Exception as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ModelError(
            f"No tokenizer.json, and transformers cannot convert what is there: {reason}",
            str(folder),
            "save the tokenizer with a recent transformers, which writes tokenizer.json",
        ) from None
