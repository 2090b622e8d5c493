"""Documents as text with places: every format, and what a hostile or damaged file may not do."""

import io
import zipfile

import pytest

from burnish.data import documents
from burnish.errors import DataError


def pdf(*pages):
    """The bytes of a pdf with a line on each page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    parts = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>"]
    parts.append("<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    for i, line in enumerate(pages):
        font, said = "/Resources<</Font<</F 3 0 R>>>>", f"BT /F 12 Tf 10 100 Td ({line}) Tj ET"
        parts.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents {5 + 2 * i} 0 R{font}>>")
        parts.append(f"<</Length {len(said)}>>stream\n{said}\nendstream")
    text, places = "%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(text))
        text += f"{number} 0 obj{part}endobj\n"
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    table = f"xref\n0 {len(parts) + 1}\n0000000000 65535 f \n{rows}"
    end = f"trailer<</Root 1 0 R/Size {len(parts) + 1}>>\nstartxref\n{len(text)}\n%%EOF"
    return (text + table + end).encode()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))


def made(tmp_path, name, data):
    path = tmp_path / "docs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def word(tmp_path):
    docx = pytest.importorskip("docx")
    held, file = io.BytesIO(), docx.Document()
    file.add_paragraph("Before all.")
    file.add_heading("Refunds", 1)
    file.add_paragraph("Within 14 days.")
    table = file.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "fee", "none"
    file.save(held)
    return made(tmp_path, "a.docx", held.getvalue())


def told(document):
    return [(item.heading, document.text[item.start : item.end].strip()) for item in document.sections]


class TestFormats:
    def test_text_is_what_the_file_holds(self, tmp_path):
        document = documents.load("a.txt", made(tmp_path, "a.txt", "Sun.\r\n\r\nRain – and fog.\n"))
        assert document.text == "Sun.\r\n\r\nRain – and fog.\n"
        assert told(document) == [("", "Sun.\r\n\r\nRain – and fog.")]

    @pytest.mark.parametrize("code", ["utf-8-sig", "utf-16"])
    def test_a_byte_order_mark_is_no_text(self, code, tmp_path):
        assert documents.load("a", made(tmp_path, "a.txt", "Rain".encode(code))).text == "Rain"

    def test_markdown_is_cut_at_headings_but_not_inside_code(self, tmp_path):
        text = "Top\n# Refunds #\nSoon.\n```\n# not this\n```\n## Late\nNever.\n#tag\n"
        document = documents.load("a.md", made(tmp_path, "a.md", text))
        assert document.text == text
        assert told(document) == [
            ("", "Top"),
            ("Refunds", "Soon.\n```\n# not this\n```"),
            ("Late", "Never.\n#tag"),
        ]

    def test_html_is_what_a_reader_sees(self, tmp_path):
        pytest.importorskip("lxml")
        page = "<head><title>no</title></head><p>One <b>bold</b> word</p><script>evil()</script><!-- hid -->tail"
        page += "<style>p{}</style><h2>Re<i>funds</i></h2><p>Soon &amp; sure</p><p>Then</p>"
        document = documents.load("a.html", made(tmp_path, "a.html", page))
        assert told(document) == [("", "One bold word\n\ntail"), ("Refunds", "Soon & sure\n\nThen")]

    def test_pdf_has_pages(self, tmp_path):
        pytest.importorskip("pypdf")
        document = documents.load("a.pdf", made(tmp_path, "a.pdf", pdf("Rain falls", "Snow melts")))
        assert told(document) == [("page 1", "Rain falls"), ("page 2", "Snow melts")]

    def test_docx_has_headings_and_tables(self, tmp_path):
        document = documents.load("a.docx", word(tmp_path))
        assert told(document) == [("", "Before all."), ("Refunds", "Within 14 days.\nfee | none")]


class TestRefused:
    def refused(self, path):
        with pytest.raises(DataError) as caught:
            documents.load(path.name, path)
        return caught.value

    def test_what_is_not_utf8_by_its_line(self, tmp_path):
        problem = self.refused(made(tmp_path, "a.txt", b"ok\nok\nb\xe4d\n"))
        assert problem.where.endswith("a.txt:3")

    @pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
    def test_a_file_without_text(self, name, tmp_path):
        assert "no text" in self.refused(made(tmp_path, name, "\n \n")).what

    def test_a_file_that_is_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(documents, "FILE", 10)
        assert "larger than" in self.refused(made(tmp_path, "a.txt", "rain " * 9)).what

    def test_more_text_than_any_document_holds(self, tmp_path, monkeypatch):
        monkeypatch.setattr(documents, "TEXT", 10)
        assert "characters" in self.refused(made(tmp_path, "a.txt", "rain " * 9)).what

    @pytest.mark.parametrize("name", ["a.pdf", "a.docx"])
    @pytest.mark.parametrize("data", [b"", b"nonsense", b"%PDF-1.4\n", b"PK\3\4" + b"\0" * 60])
    def test_what_is_no_such_file(self, name, data, tmp_path):
        assert "cannot be read" in self.refused(made(tmp_path, name, data)).what

    def test_a_cut_docx(self, tmp_path):
        whole = word(tmp_path).read_bytes()
        assert "cannot be read" in self.refused(made(tmp_path, "b.docx", whole[: len(whole) // 2])).what

    def test_a_docx_that_unpacks_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(documents, "UNPACKED", 10**6)
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("word/document.xml", b"\0" * 2 * 10**6)
        assert len(held.getvalue()) < 10_000
        assert "unpack to more" in self.refused(made(tmp_path, "a.docx", held.getvalue())).what

    def test_entities_that_multiply(self, tmp_path):
        """A billion laughs inside a docx: libxml2 counts them."""
        whole, held = zipfile.ZipFile(word(tmp_path)), io.BytesIO()
        laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
        with zipfile.ZipFile(held, "w") as packed:
            for item in whole.infolist():
                data = whole.read(item)
                if item.filename == "word/document.xml":
                    head, _, rest = data.decode().partition("?>")
                    data = f'{head}?><!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]>{rest.replace("Within", "&a9;")}'.encode()
                packed.writestr(item.filename, data)
        path = made(tmp_path, "b.docx", held.getvalue())
        assert "cannot be read: Maximum entity" in self.refused(path).what

    @pytest.mark.parametrize("piece", ["<!--", "<", "<a ", "<script>", "<div>", "&#x", "<a b='", "<![CDATA["])
    def test_html_that_never_ends(self, piece, tmp_path):
        """Python's own parser takes minutes for these."""
        pytest.importorskip("lxml")
        text, _ = documents.read(f"<p>rain</p>{piece * 100_000}".encode(), tmp_path / "a.html")
        assert "rain" in text

    def test_a_locked_pdf(self, tmp_path):
        pypdf = pytest.importorskip("pypdf")
        writer, held = pypdf.PdfWriter(), io.BytesIO()
        writer.add_blank_page(100, 100)
        writer.encrypt("secret", algorithm="RC4-128")
        writer.write(held)
        assert "locked" in self.refused(made(tmp_path, "a.pdf", held.getvalue())).what


class TestFind:
    def test_a_folder_gives_its_documents_by_their_path_in_it(self, tmp_path):
        for name in ("b.txt", "a.md", ".hidden.txt", "c.png"):
            made(tmp_path, name, "rain")
        (tmp_path / "docs" / "in").mkdir()
        (tmp_path / "docs" / "in" / "d.txt").write_text("fog")
        assert list(documents.find(["docs"], tmp_path)) == ["a.md", "b.txt", "in/d.txt"]
        assert list(documents.find(["docs/*.txt"], tmp_path)) == ["b.txt"]

    @pytest.mark.parametrize("name", ["nothing", "no*.txt"])
    def test_what_is_not_there_is_named(self, name, tmp_path):
        with pytest.raises(DataError, match="no such document"):
            documents.find([name], tmp_path)

    def test_a_folder_without_documents(self, tmp_path):
        made(tmp_path, "c.png", "rain")
        with pytest.raises(DataError, match="No documents"):
            documents.find(["docs"], tmp_path)

    def test_a_file_of_another_kind(self, tmp_path):
        path = made(tmp_path, "c.png", "rain")
        with pytest.raises(DataError, match="are not read"):
            documents.load(*next(iter(documents.find(["docs/c.png"], tmp_path).items())))
        assert path.exists()


def test_only_a_changed_file_is_read_again(tmp_path, monkeypatch):
    read, seen = documents.read, []
    monkeypatch.setattr(documents, "read", lambda data, path: seen.append(path.name) or read(data, path))
    paths = [made(tmp_path, f"{n}.txt", f"rain {n}") for n in range(3)]
    every = lambda: [documents.load(path.name, path).text for path in paths]  # noqa: E731
    assert every() == every() == ["rain 0", "rain 1", "rain 2"]
    assert seen == ["0.txt", "1.txt", "2.txt"]
    paths[1].write_text("fog")
    assert every() == ["rain 0", "fog", "rain 2"]
    assert seen == ["0.txt", "1.txt", "2.txt", "1.txt"]


def test_a_damaged_copy_is_made_anew(tmp_path):
    path = made(tmp_path, "a.txt", "rain")
    documents.load("a.txt", path)
    for kept in (tmp_path / "home").rglob("*.json"):
        kept.write_text("{")
    assert documents.load("a.txt", path).text == "rain"
