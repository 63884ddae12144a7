"""The documentation site: built without a warning, and every link in it leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import gradcam_callback

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
RESOURCES = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "srcset"), ("iframe", "src")}


@dataclass
class Page(HTMLParser):
    """A page of the site: what it links to, what it loads, and what can be linked to in it."""

    text: str
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value or "")
            elif tag == "a" and name == "href":
                self.links.add(value or "")
            elif (tag, name) in RESOURCES:
                self.loaded.add(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("site")
    [recipe] = re.findall(r"python -m (sphinx .*) -d build/doctrees \. build/site$", makefile(), flags=re.MULTILINE)
    command = [sys.executable, "-m", *recipe.split(), "-d", str(folder / "doctrees"), ".", str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def is_elsewhere(target: str) -> bool:
    return bool(re.match(r"[\w+.-]+:|//", target))


def lost_links(folder: Path, pages: dict[Path, Page]) -> list[str]:
    """Links within the site that lead nowhere."""
    lost = []
    for path, page in pages.items():
        for target in page.links | page.loaded:
            name, _, anchor = unquote(target).partition("#")
            to = (path.parent / name.partition("?")[0]).resolve() if name else path
            if is_elsewhere(target) or target == "#":
                continue
            if not to.is_file() or (anchor and anchor not in pages[to].anchors):
                lost.append(f"{path.relative_to(folder)}: {target}")
    return lost


def test_the_site(site: Path) -> None:
    pages = {path.resolve(): Page(path.read_text()) for path in site.rglob("*.html")}
    assert lost_links(site.resolve(), pages) == []

    # Nothing is loaded from another host: no font, no script, no picture.
    assert [target for page in pages.values() for target in page.loaded if is_elsewhere(target)] == []
    styles = "\n".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']*", styles) == []

    # Every page is in the navigation of the first one.
    reached = {(site / link.partition("#")[0]).resolve() for link in pages[(site / "README.html").resolve()].links}
    expected = {(site / path.relative_to(ROOT)).with_suffix(".html").resolve() for path in PAGES}
    assert expected - reached == set()

    reference = pages[(site / "docs" / "api.html").resolve()]
    assert {f"gradcam_callback.{name}" for name in gradcam_callback.__all__} <= reference.anchors


def test_what_is_lost_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text("<p id='there'>")
    text = "<a href='b.html#there'><a href='b.html#gone'><a href='c.html'><a href='https://x.y'><img src='d.png'>"
    (tmp_path / "a.html").write_text(text)
    pages = {path: Page(path.read_text()) for path in tmp_path.glob("*.html")}
    assert sorted(lost_links(tmp_path, pages)) == ["a.html: b.html#gone", "a.html: c.html", "a.html: d.png"]


def test_the_contents_list_every_page() -> None:
    contents = ROOT / "docs" / "README.md"
    names = re.findall(r"^- \[.+\]\((.+)\)", contents.read_text(), flags=re.MULTILINE)
    listed = {(contents.parent / name).resolve() for name in names}
    assert {path for path in PAGES if path != contents} <= listed


def test_the_reference_names_what_is_public() -> None:
    headings = re.findall(r"^### `(\w+)`$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(gradcam_callback.__all__)
