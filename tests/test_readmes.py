"""Every README tells the tree as it is: what it names is there, and what is there is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import burnish

PACKAGE = Path(burnish.__file__).parent
ROOT = PACKAGE.parent
KINDS = ("adapters", "data/shapes", "methods", "metrics", "prompting")  # their names are a user's, and told elsewhere
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w/.-]*\w\.(?:py|cpp|hpp|jinja|css|md)")
DECISIONS = ROOT / "docs" / "decisions"

FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})
READMES = [ROOT / "README.md", *sorted(PACKAGE.rglob("README.md")), DECISIONS / "README.md"]


def named(readme: Path) -> str:
    """A README's text, without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```|^    .*?$", "", readme.read_text(encoding="utf-8"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_readme_names_is_there(readme: Path) -> None:
    text = named(readme)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert not [link for link in links if not (readme.parent / link).exists()]
    files = [file for code in CODE.findall(text) for file in FILE.findall(code)]
    places = (readme.parent, PACKAGE, ROOT)
    assert not [file for file in files if not any((place / file).exists() for place in places)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_is_in_a_folder_is_named(folder: Path) -> None:
    kind = str(folder.relative_to(PACKAGE)) in KINDS
    readme = next(path / "README.md" for path in (folder, *folder.parents) if (path / "README.md").exists())
    words = {word for code in CODE.findall(named(readme)) for word in re.findall(r"\w+", code)}
    files = [path for path in folder.iterdir() if path.suffix in (".py", ".cpp", ".hpp", ".jinja", ".css")]
    files = [path for path in files if path.name != "__init__.py" and (not kind or path.stem.startswith("_"))]
    assert sorted(path.name for path in files if path.stem.split(".")[0] not in words) == []


def test_the_rooms_are_all_named() -> None:
    words = set(re.findall(r"\w+", named(PACKAGE / "README.md")))
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} - words == set()


def test_every_decision_is_listed_by_its_own_title() -> None:
    listed = dict(re.findall(r"(?m)^\| \[\d{4}\]\(([^)]+)\) \| (.+) \|$", (DECISIONS / "README.md").read_text()))
    found = {path.name: path.read_text().partition("\n")[0] for path in DECISIONS.glob("0*.md")}
    assert {name: f"# {title}" for name, title in listed.items()} == found
