"""The page about causes, as text that comes with the package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gradcam_callback import pages

ROOT = Path(__file__).parents[1]
TEXT = """\
# Title

| What it says | What happened |
| --- | --- |
| [`first`](#first) | see `x` |
| [`inner`](#inner) | another |

## first

Go to [the other](#inner), [a file](../configs/a.yaml) or [a page](https://example.org).

```python
# no heading
## none either
maps[0](images)
```

The end.

## others

### inner

Inside.

### next
"""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_text", lambda: TEXT)


@pytest.mark.usefixtures("page")
def test_a_section_reaches_to_the_next_heading_that_is_no_deeper() -> None:
    text = pages.section("first")
    assert text.startswith("## first\n")
    assert text.rstrip().endswith("The end.")
    assert "# no heading\n## none either\nmaps[0](images)\n" in text
    assert pages.section("inner").split() == ["###", "inner", "Inside."]


@pytest.mark.usefixtures("page")
def test_links_are_urls() -> None:
    text = pages.section("first")
    assert f"[the other]({pages.url('inner')})" in text
    assert f"[a file]({pages.REPOSITORY}/blob/main/configs/a.yaml)" in text
    assert "[a page](https://example.org)" in text


@pytest.mark.usefixtures("page")
def test_what_the_page_does_not_explain_is_refused() -> None:
    assert pages.contents() == {"first": "see `x`", "inner": "another"}
    with pytest.raises(
        ValueError, match=r"no cause or alert 'iner'. Did you mean 'inner'\? Explained are: first, inner"
    ):
        pages.section("iner")


def test_every_entry_has_a_section() -> None:
    for slug in pages.contents():
        assert len(pages.section(slug).splitlines()) > 4, slug


def test_the_wheel_holds_the_page_where_it_is_looked_for(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"gradcam_callback/{pages.PAGE}") == (ROOT / pages.PAGE).read_bytes()
        web = {name.partition("/web/")[2] for name in archive.namelist() if "/viewer/web/" in name}
        assert {"tab.js", "report.js", "viewer.css", "view/page.js", "vendor/lit-html/LICENSE"} <= web
        [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert f"Project-URL: Homepage, {pages.REPOSITORY}" in archive.read(metadata).decode()
