"""Rows know their file and line, whatever the file looks like."""

from __future__ import annotations

import gzip
import sys
import types

import pytest
from made_data import write

from burnish.data import files, readers
from burnish.data.rows import Bad, Row
from burnish.errors import DataError, MissingExtra


def rows(folder, name, content=None, mode="document"):
    if content is not None:
        write(folder, name, content)
    return [item for source in readers.find([name], folder) for item in readers.read(source, mode)]


def places(items):
    return [(type(item).__name__, item.where.line) for item in items]


def test_csv_lines_are_right_after_quoted_line_breaks(tmp_path):
    found = rows(tmp_path, "a.csv", 'text,label\n"one\n\ntwo",x\n\nthree,y\n')
    assert [(row.where.line, row.values["text"]) for row in found] == [(2, "one\n\ntwo"), (6, "three")]


def test_a_quote_that_never_closes_costs_one_row(tmp_path):
    found = rows(tmp_path, "a.csv", 'text,label\n"open,x\ntwo,y\nthree,z\n')
    assert places(found) == [("Bad", 2), ("Row", 3), ("Row", 4)]
    assert "never closed" in found[0].what


def test_a_stray_quote_is_named_and_reading_goes_on(tmp_path):
    found = rows(tmp_path, "a.csv", 'text,label\n"he said "no"",x\ntwo,y\n')
    assert places(found) == [("Bad", 2), ("Row", 3)]


def test_a_row_with_the_wrong_number_of_cells(tmp_path):
    found = rows(tmp_path, "a.csv", "text,label\nyes, but no,x\nfine,y\nshort\n")
    assert places(found) == [("Bad", 2), ("Row", 3), ("Bad", 4)]
    assert "3 cells where the first line has 2" in found[0].what


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path, separator):
    found = rows(tmp_path, "a.csv", f"text{separator}label\nhello{separator}x\n")
    assert found[0].values == {"text": "hello", "label": "x"}


def test_tabs_keep_quotes_that_are_no_quoting(tmp_path):
    found = rows(tmp_path, "a.tsv", 'text\tlabel\n"open\tx\n"shut"\ty\n')
    assert [row.values["text"] for row in found] == ['"open', "shut"]


def test_a_file_without_column_names(tmp_path):
    found = rows(tmp_path, "a.csv", "good film,1\nbad film,0\n")
    assert places(found) == [("Row", 1), ("Row", 2)]
    assert found[0].values == {"1": "good film", "2": "1"}
    stars = "".join(f"{at},{1 + at % 3}\n" for at in range(9))
    assert len(rows(tmp_path, "b.csv", stars)) == 9  # 2 is a class and the name that the column is given


def test_a_first_line_that_is_a_row_is_not_taken_for_names(tmp_path):
    told = "".join(f"film {at},{'good' if at % 2 else 'bad'}\n" for at in range(9))
    (bad,) = rows(tmp_path, "a.csv", told)
    assert (bad.field, bad.where.line) == ("header", 1)
    assert '"bad"' in bad.what
    assert len(rows(tmp_path, "b.csv", f"text,label\n{told}")) == 9
    words = "".join(f"{word},spelt {word}\n" for word in ("word", "a", "word", "b", "c", "d"))
    assert len(rows(tmp_path, "c.csv", f"word,text\n{words}")) == 6  # words that hardly ever come again are no classes


def test_column_names_again_among_the_rows(tmp_path):
    found = rows(tmp_path, "a.csv", "text,label\na,x\ntext,label\nb,x\ntext,label\nc,y\n")
    assert places(found) == [("Row", 2), ("Bad", 3), ("Row", 4), ("Bad", 5), ("Row", 6)]
    assert "names" in found[1].what


def test_a_column_named_twice(tmp_path):
    (bad,) = rows(tmp_path, "a.csv", "text,text\na,b\n")
    assert (bad.field, bad.where.line) == ("header", 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_line_ends_and_gz(tmp_path, encoding, end, packed):
    data = end.join(['{"text": "Käse 水"}', "", '{"text": "b"}', ""]).encode(encoding)
    name = "a.jsonl.gz" if packed else "a.jsonl"
    found = rows(tmp_path, name, gzip.compress(data) if packed else data)
    assert [(row.values["text"], row.where.line) for row in found] == [("Käse 水", 1), ("b", 3)]


def test_latin_1_is_named_by_line_and_column(tmp_path):
    found = rows(tmp_path, "a.csv", "text,label\nfine,x\nKäse,y\nwas für,z\n".encode("latin-1"))
    assert places(found) == [("Row", 2), ("Bad", 3), ("Bad", 4)]
    assert found[1].what == "is not UTF-8: byte 0xE4 at column 2"


def test_a_long_line_is_refused_by_number_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LINE", 2**20)
    for length in (2**20 - 12, 2**20 - 11, 2**20, 3 * 2**20):  # the line end is the last byte read, the next, or later
        found = rows(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "' + "x" * length + '"}\n{"text": "b"}\n')
        assert places(found) == [("Row", 1), ("Bad", 2), ("Row", 3)]
        assert len(found[1].text) <= 1000


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "a"', "not valid JSON: expecting ',' delimiter at column 13"),
        ('{"text": "a', "unterminated string starting at column 10"),
        ('{"text": "a"} {"text": "b"}', "goes on after the JSON value, at column 14"),
        ("[1, 2]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ('{"text": "a", "text": "b"}', 'the key "text" twice'),
        ('{"text": NaN}', "NaN, which is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "too many digits"),
        ('{"text": ' + "[" * 70 + "]" * 70 + "}", "more than 64 deep"),
        ('{"text": ' + "[" * 100_000, "more than 64 deep"),
    ],
)
def test_bad_json_lines(tmp_path, line, what):
    found = rows(tmp_path, "a.jsonl", f'{{"text": "ok"}}\n{line}\n{{"text": "ok"}}\n')
    assert places(found) == [("Row", 1), ("Bad", 2), ("Row", 3)]
    assert what in found[1].what


def test_json_elements_know_their_line_and_a_broken_one_costs_one_row(tmp_path):
    found = rows(tmp_path, "a.json", '[\n {"text": "a"},\n {"text": "b" "c"},\n {"text": "d"},\n 7\n]\n')
    assert places(found) == [("Row", 2), ("Bad", 3), ("Row", 4), ("Bad", 5)]
    assert "column 15" in found[1].what


def test_a_json_array_that_is_cut_short(tmp_path):
    found = rows(tmp_path, "a.json", '[\n {"text": "a"},\n {"text": "b"},\n')
    assert places(found) == [("Row", 2), ("Row", 3), ("Bad", 4)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('{"version": 1, "examples": [\n{"text": "a"},\n{"text": "b"}]}', [2, 3]),
        ('{"text": "a"}\n{"text": "b"}\n', [1, 2]),
        ('{"text": "a"}', [1]),
        ('{\n "text": "a"\n}\n{\n "text": "b"\n}', [1, 4]),
        ('{"messages": [{"role": "user", "content": "a"}]}', [1]),
    ],
)
def test_what_a_json_file_may_hold_instead_of_an_array(tmp_path, content, lines):
    assert places(rows(tmp_path, "a.json", content)) == [("Row", line) for line in lines]


def test_several_lists_in_one_json_object_are_refused(tmp_path):
    (bad,) = rows(tmp_path, "a.json", '{"train": [["a", "b"]], "val": [["c", "d"]]}')
    assert "2 lists (train, val)" in bad.what


@pytest.mark.parametrize(
    "content",
    [
        '{"text": ["a", "b"], "label": ["x", "y"]}',
        '{"text": {"0": "a", "1": "b"},\n "label": {"0": "x", "1": "y"}}\n',
    ],
)
def test_columns_instead_of_rows_are_called_so(tmp_path, content):
    (bad,) = rows(tmp_path, "a.json", content)
    assert "columns" in bad.what
    assert 'orient="records"' in bad.do
    (row,) = rows(tmp_path, "b.json", '{"text": "a", "labels": ["x", "y"]}')
    assert row.values["labels"] == ["x", "y"]


def test_text_files_are_documents_or_lines(tmp_path):
    content = "First line\n\nSecond line\r\n"
    assert [row.values["document"] for row in rows(tmp_path, "a.txt", content)] == ["First line\n\nSecond line"]
    assert places(rows(tmp_path, "a.txt", content, "line")) == [("Row", 1), ("Row", 3)]


def test_labelled_lines(tmp_path):
    found = rows(tmp_path, "a.txt", "DESC:manner How ?\n\n__label__x  Hello there\nalone\n", "labelled")
    assert found[0].values == {"label": "DESC:manner", "text": "How ?", "coarse": "DESC", "fine": "manner"}
    assert found[1].values == {"label": "x", "text": "Hello there"}
    assert places(found) == [("Row", 1), ("Row", 3), ("Bad", 4)]


@pytest.mark.parametrize(
    ("marks", "goal", "mode"),
    [
        ("0101", "", "labelled"),
        (["pos", "neg"] * 4, "", "document"),
        (["pos", "neg"] * 4, "classify", "labelled"),
        ("0101", "write", "document"),
        ("12345678", "", "document"),
        (["One", "Two"] * 4, "write", "document"),
    ],
)
def test_when_lines_are_taken_for_labelled(tmp_path, marks, goal, mode):
    write(tmp_path, "a.txt", "".join(f"{mark} some text here\n" for mark in marks))
    assert readers.text_mode(readers.find(["a.txt"], tmp_path), "auto", goal, {}) == mode


def test_a_folder_gives_its_files_sorted_and_passes_over_notes(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "README.md", ".hidden.txt"):
        write(tmp_path / "tales", name, name)
    found = rows(tmp_path, "tales")
    assert [row.values["document"] for row in found] == ["a.txt", "b.txt", "deep/c.txt"]


def test_a_glob_and_a_file_named_twice(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path, name, [{"text": name}])
    assert len(readers.find(["*.jsonl", "a.jsonl"], tmp_path)) == 2


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([], "No data files"),
        (["none.csv"], "no such file"),
        (["a.xlsx"], "does not read"),
        (["mixed"], "several kinds"),
        (["empty"], "no data files"),
    ],
)
def test_names_that_lead_nowhere(tmp_path, names, what):
    write(tmp_path, "a.xlsx", b"PK")
    write(tmp_path, "mixed/a.csv", "text,label\n")
    write(tmp_path, "mixed/a.txt", "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=what):
        readers.find(names, tmp_path)


def test_a_gz_file_that_is_cut_short_gives_what_it_has_and_one_bad_row(tmp_path):
    lines = "".join(f'{{"text": "row {at * 7919 % 10007} {at}"}}\n' for at in range(20_000))
    data = gzip.compress(lines.encode(), mtime=0)
    found = rows(tmp_path, "a.jsonl.gz", data[: len(data) // 2])
    assert isinstance(found[-1], Bad)
    assert found[-1].where.line == len(found) - 1 > 1
    assert found[-1].field == "file"
    table = gzip.compress("".join(f"row {at * 7919 % 10007}\n" for at in range(900)).encode(), mtime=0)
    found = rows(tmp_path, "a.csv.gz", table[: len(table) // 2])
    assert found[-1].last
    assert found[-1].where.line == len(found) > 1


def test_parquet_rows_are_numbered(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([{"text": "a", "turns": [{"role": "user"}]}, {"text": "b", "turns": None}])
    parquet.write_table(table, tmp_path / "a.parquet")
    found = rows(tmp_path, "a.parquet")
    assert places(found) == [("Row", 1), ("Row", 2)]
    assert found[0].values == {"text": "a", "turns": [{"role": "user"}]}
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    assert places(rows(tmp_path, "a.parquet")) == [("Bad", 1)]


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    write(tmp_path, "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, extra in (("a.parquet", "parquet"), ("hub:owner/name", "hub"), ("owner/name", "hub")):
        with pytest.raises(MissingExtra, match=extra):
            rows(tmp_path, name)


def test_hub_names_go_to_datasets(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = rows(tmp_path, "owner/name:small@test")
    assert asked == [(("owner/name", "small"), {"split": "test", "streaming": True})]
    assert isinstance(found[1], Row)
    assert str(found[1].where) == "hub:owner/name:small@test:2"


def test_what_the_hub_says_becomes_one_error(tmp_path, monkeypatch):
    def load_dataset(*names, **options):
        raise ConnectionError("no route\nmuch noise")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="no route\n  where"):
        rows(tmp_path, "owner/name")
