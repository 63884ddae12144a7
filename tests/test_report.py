"""The command `report` and the HTML file that it writes; what a browser makes of it is in `test_viewer.py`."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recordings import MadeUpRun, write_run

from gradcam_callback import cli, read_run
from gradcam_callback.recording.bundle import bundle
from gradcam_callback.viewer.report import WEB, Run, build_report, web_modules


class Elements(HTMLParser):
    """Every element of a page with its attributes and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes), ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data

    def scripts(self, kind: str) -> list[str]:
        return [text for tag, attributes, text in self.found if tag == "script" and attributes.get("type") == kind]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "one", MadeUpRun(looks=3))
    return tmp_path / "runs" / "one"


def test_the_command_writes_one_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "two", MadeUpRun(looks=2, session=(2.0, "b")))
    output = tmp_path / "new" / "report.html"
    cli.main(["report", str(run.parent), "-o", str(output)])
    assert re.fullmatch(rf"Written: {output} \(0\.\d MB\)\. Open it in a browser\.\n", capsys.readouterr().out)
    [index] = Elements(output.read_text()).scripts("application/json")
    assert [one["name"] for one in json.loads(index)["runs"]] == ["runs/one", "runs/two"]


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_folder_without_a_recording_is_said(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(tmp_path / "empty" / path), "-o", str(tmp_path / "report.html")])
    assert end.value.code == 2
    assert "error: There is no " in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_the_file_holds_the_data_as_they_are_served(run: Path) -> None:
    recording = read_run(run)
    [packed] = Elements(recording.to_html()).scripts("application/octet-stream")
    assert zlib.decompress(base64.b64decode(packed)) == bundle(recording)


def test_every_module_is_in_the_file_and_nothing_is_asked_for_elsewhere(run: Path) -> None:
    page = Elements(read_run(run).to_html())
    [modules] = page.scripts("importmap")
    urls = json.loads(modules)["imports"]
    assert set(urls) == {f"gradcam/{path}" for path in web_modules("report.js")}
    for url in urls.values():
        text = base64.b64decode(url.removeprefix("data:text/javascript;base64,")).decode()
        named = re.findall(r"""(?:\bfrom|\bimport)\s*["']([\w./-]+)["']""", text)
        assert set(named) <= set(urls)
        assert "import.meta" not in text
        assert not re.search(r"\beval\(|\bnew Function\(|\bimport\(", text)
    sources = [
        value for _, attributes, _ in page.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources == ["data:,"]
    styles = next(text for tag, _, text in page.found if tag == "style")
    assert "url(" not in styles
    assert "@import" not in styles


def test_every_module_of_the_viewer_is_used() -> None:
    used = {*web_modules("report.js"), *web_modules("tab.js")}
    own = {path.relative_to(WEB).as_posix() for path in WEB.rglob("*.js")}
    assert own == used | {"types.js"}  # types alone, for the checker


def test_names_cannot_end_the_elements_that_they_stand_in() -> None:
    name = "</script><script>alert(1)</script><!--"
    page = Elements(build_report([Run(name, b"GCV1")]))
    [index] = page.scripts("application/json")
    assert json.loads(index)["runs"][0]["name"] == name
    assert [text for tag, attributes, text in page.found if tag == "script" and not attributes] == []
