"""ids equal transformers'; who adds BOS; control tokens in users' texts; text shown piece by piece."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import byte_level, pieces, word_pieces
from transformers import AutoTokenizer

from burnish.errors import ModelError
from burnish.tokens.tokenizer import Tokenizer

PARTS = [
    *(
        "Hello",
        " world",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        " ",
        "é",
        "e\u0301",
        "ﬁ",
        "日本語",
        "🙂",
        "👩‍👩‍👧",
        "Привет",
        "ß",
    ),
    *(
        "123",
        "3.14",
        "C(=O)O",
        "[NH3+]",
        "don't",
        "...",
        "_",
        "\u200b",
        "\u00a0",
        "A",
        "zebra",
        "<",
        ">",
        "|",
        "\\",
        "ﷺ",
    ),
]


def texts(count: int = 200) -> list[str]:
    """Unicode, blanks, newlines, nothing at all."""
    draw = random.Random(0)
    made = ["", " ", "\n", "a", "  a  ", "\n\na\n\n"]
    return made + ["".join(draw.choice(PARTS) for _ in range(draw.randint(1, 12))) for _ in range(count - len(made))]


MAKERS = {
    "bytes": byte_level,
    "bytes with BOS": lambda folder: byte_level(folder, "<s>"),
    "a flag that transformers ignores": lambda folder: byte_level(folder, bos_token="<s>", add_bos_token=True),
    "BOS told off": lambda folder: byte_level(folder, "<s>", add_bos_token=False),
    "pieces": pieces,
    "pieces, mark at the first word": lambda folder: pieces(folder, modern="first"),
    "pieces, mark always": lambda folder: pieces(folder, modern="always"),
    "word pieces": word_pieces,
}
REAL = [
    *("g2p-bart-en-us", "smiles-albert", "sort-gpt2-nano", "stories260k-llama", "stories3m-bitnet"),
    *("stories940k-llama-char", "tokenizers/gpt2", "tokenizers/olmo-neox"),
]


def equals_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.encode_plain(text) == theirs.encode(text), text
        ids = ours.encode_plain(text)
        assert ours.encode_plain(text, "pair") == theirs.encode(text, "pair"), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = theirs.encode(text)
    assert [*ours.prefix, *ours.encode_text(text), *ours.suffix] == whole


@pytest.mark.parametrize("name", MAKERS)
def test_ids_equal_transformers(name: str, tmp_path: Path) -> None:
    equals_transformers(MAKERS[name](tmp_path))


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_ids_of_real_tokenizers_equal_transformers(name: str, shared: Path) -> None:
    folder = shared / "models" / name
    if not folder.exists():
        pytest.skip(f"{name} is not there")
    equals_transformers(folder)


@pytest.mark.real
def test_every_real_tokenizer_is_tried(shared: Path) -> None:
    folder = shared / "models"
    found = {path.parent for path in [*folder.glob("*/tokenizer.json"), *folder.glob("tokenizers/*/tokenizer.json")]}
    assert {str(path.relative_to(folder)) for path in found} <= set(REAL)


@pytest.mark.real
@pytest.mark.parametrize("name", ["albert-spiece", "tok512-sentencepiece"])
def test_a_bare_sentencepiece_model_is_read_as_transformers_reads_it(name: str, shared: Path) -> None:
    """transformers 5 needs the sentencepiece library and a class name for these; without them it reads neither."""
    folder = shared / "models" / "tokenizers" / name
    try:
        AutoTokenizer.from_pretrained(folder)
    except Exception:
        with pytest.raises(ModelError) as refused:
            Tokenizer.load(folder)
        assert "tokenizer.json" in refused.value.do
    else:
        equals_transformers(folder)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("bytes", [], []),
        ("bytes with BOS", ["<s>"], []),
        ("a flag that transformers ignores", [], []),
        ("BOS told off", ["<s>"], []),
        ("pieces", ["<s>"], []),
        ("word pieces", ["[CLS]"], ["[SEP]"]),
    ],
)
def test_what_stands_around_a_text_is_known(name: str, before: list[str], after: list[str], tmp_path: Path) -> None:
    ours = Tokenizer.load(MAKERS[name](tmp_path))
    assert [ours.backend.id_to_token(i) for i in ours.prefix] == before
    assert [ours.backend.id_to_token(i) for i in ours.suffix] == after
    assert ours.bos_text == ("<s>" if before == ["<s>"] else "")


@pytest.mark.parametrize("name", MAKERS)
def test_a_control_token_in_a_users_text_is_text(name: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(MAKERS[name](tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    around = [*ours.prefix, *ours.suffix]
    unknown = {ours.id("unk")}
    for token in ours.special.values():
        for text in (token, f"a{token}b", f"a {token}{token} b\n"):
            ids = ours.encode_plain(text)
            assert [i for i in ids if i in ours.special_ids - unknown] == [i for i in around if i not in unknown]
            assert ours.encode_text(text) == theirs.encode(text, add_special_tokens=False)
            assert ours.spells_control(text)
            assert set(ours.encode(text)) & ours.special_ids
    assert not any(ours.spells_control(text) for text in texts())


def test_control_tokens_found_in_normalised_text_are_noticed(tmp_path: Path) -> None:
    told = json.loads((byte_level(tmp_path) / "tokenizer.json").read_text())
    told["normalizer"] = {"type": "Lowercase"}
    for token in told["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    ours = Tokenizer.load(tmp_path)
    assert ours.spells_control("a<|IM_END|>b")
    assert not ours.spells_control("a b")


@pytest.mark.parametrize("name", MAKERS)
def test_pieces_join_to_the_text(name: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(MAKERS[name](tmp_path))
    for text in texts():
        ids = ours.encode_plain(text)
        shown = ours.pieces(ids)
        assert len(shown) == len(ids)
        assert "".join(shown) == ours.decode(ids, special=True)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level(tmp_path_factory.mktemp("bytes")))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_bytes_decode_to_the_text_they_encode(ours: Tokenizer, text: str) -> None:
    ids = ours.encode_text(text)
    assert ours.decode(ids) == unicodedata.normalize("NFC", text)
    assert "".join(ours.pieces(ids)) == ours.decode(ids)


@pytest.mark.parametrize("name", MAKERS)
def test_a_cut_text_is_its_start_and_shorter(name: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(MAKERS[name](tmp_path))
    for text in texts()[3:60]:
        size = len(ours.encode_text(text))
        for most in {0, 1, size // 2, size - 1, size, size + 5}:
            kept = ours.cut(text, most)
            assert text.startswith(kept)
            assert len(kept) < len(text)


@pytest.mark.parametrize("name", MAKERS)
def test_text_that_goes_on_gets_no_word_mark(name: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(MAKERS[name](tmp_path))
    head, tail = ours.encode("The cap"), ours.encode("ital of France", continued=True)
    assert ours.decode([*head, *tail]).replace(" ", "").lower() == "thecapitaloffrance"
    if name != "word pieces":
        assert ours.decode([*head, *tail]) == "The capital of France"


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"No tokenizer\.json"):
        Tokenizer.load(tmp_path / "empty")


def test_end_ids_come_from_the_generation_settings_and_eos(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 6, 10**6]}))
    assert Tokenizer.load(tmp_path).eos_ids == (2, 6, 0)
