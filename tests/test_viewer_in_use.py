"""What people do with the viewer beyond looking: export, compare, go to an alert, change the theme."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import browser_context, canvas_pixels, download, needs_browser
from PIL import Image
from recordings import MadeUpRun, alert, write_run

from gradcam_callback.report import write_report

pytestmark = needs_browser


@contextmanager
def opened(chromium: Any, folder: Path, address: str = "", script: str = "", **options: Any) -> Iterator[Any]:
    """The report of the runs in a folder; a script runs before those of the page."""
    path = Path(write_report([str(folder)], str(folder / "report.html")))
    with browser_context(chromium, offline=True, **options) as watched:
        watched.page.add_init_script(script)
        watched.page.goto(f"{path.as_uri()}#{address}")
        watched.page.get_by_role("slider", name="Look").wait_for()
        yield watched.page


def where(page: Any) -> str:
    return str(page.locator("footer .where").inner_text())


def has_square(picture: Image.Image) -> np.ndarray:
    """In which rows of pixels there is red, green or blue as in the middle of the probes' images."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return ((pixels.max(2) > 220) & (pixels.min(2) < 90)).any(axis=1)


def test_an_exported_view_has_the_pictures_that_were_never_scrolled_to(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path, MadeUpRun(probes=40, looks=3))
    with opened(
        chromium, tmp_path, "layout=grid&view=input&targets=label", viewport={"width": 700, "height": 400}
    ) as page:
        page.get_by_text("Share").click()
        picture = Image.open(download(page, "Save view as PNG", tmp_path))
    assert np.flatnonzero(has_square(picture))[-1] > 0.85 * picture.height


GATE = """
    const decode = window.createImageBitmap.bind(window);
    const gate = new Promise((open) => (window.openGate = open));
    window.createImageBitmap = async (...given) => { await gate; return decode(...given); };
"""
"""No picture is decoded before the gate is opened."""


@pytest.mark.parametrize("button", ["Save view as PNG", "Save probe's history as GIF"])
def test_an_export_waits_for_its_pictures_and_is_what_was_asked_for(chromium: Any, tmp_path: Path, button: str) -> None:
    """Also where another view is chosen meanwhile."""
    write_run(tmp_path, MadeUpRun(probes=40, looks=3))
    with opened(chromium, tmp_path, "layout=grid&view=input&targets=label", GATE) as page:
        page.get_by_text("Share").click()
        with page.expect_download() as waiting:
            page.get_by_role("button", name=button).click()
            page.get_by_role("radio", name="Map").check()
            page.evaluate("openGate()")
        waiting.value.save_as(tmp_path / "picture")
        assert has_square(Image.open(tmp_path / "picture")).any()


def test_the_page_has_the_pictures_that_an_export_asked_for_first(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path, MadeUpRun(looks=3))
    with opened(chromium, tmp_path, "view=map&targets=label", GATE) as page:
        page.get_by_text("Share").click()
        with page.expect_download():
            page.get_by_role("button", name="Save view as PNG").click()
            page.get_by_role("radio", name="Input").check()
            wait_for_pixels(page, "max === 0")
            page.evaluate("openGate()")
        wait_for_pixels(page, "max > 220")


def wait_for_pixels(page: Any, condition: str) -> None:
    """Until the largest value in the first tile is so."""
    page.wait_for_function(
        "() => { const canvas = document.querySelector('.tile canvas'); if (canvas.width < 2) return false;"
        " const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        f" const max = data.reduce((most, value) => Math.max(most, value), 0); return {condition}; }}"
    )


def test_an_export_of_nothing_says_so(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path, MadeUpRun(looks=2))
    with opened(chromium, tmp_path, "filterName=nobody") as page:
        page.get_by_text("Share").click()
        for button in ("Save view as PNG", "Save probe's history as GIF"):
            page.get_by_role("button", name=button).click()
            page.get_by_role("status").filter(has_text="there is nothing to save").wait_for()


def test_one_scale_for_everything_is_one_for_all_runs(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "a", MadeUpRun(looks=3))
    write_run(tmp_path / "b", MadeUpRun(looks=3, layers=("net.stage",), session=(2.0, "b"), peak=0.375))
    shown = "view=map&colormap=gray&targets=label&runs=a&runs=b"
    for scale, expected in (("each", 255), ("all", 64)):
        with opened(chromium, tmp_path, f"{shown}&scale={scale}") as page:
            canvas = page.locator("canvas.painted").and_(page.locator(".tile canvas")).nth(1)
            page.wait_for_function(
                "canvas => canvas.width > 1 && canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data[3] > 0",
                arg=canvas.element_handle(),
            )
            assert canvas_pixels(canvas)[..., 0].max() == pytest.approx(expected, abs=4)


def test_another_run_in_the_place_of_one_is_drawn_and_changes_the_scale_of_all(chromium: Any, tmp_path: Path) -> None:
    """The maps have no image below them, whose decoding would have them drawn again."""
    for number, peak in enumerate((1.5, 1.5, 1.5, 0.375, 6.0)):
        run = MadeUpRun(looks=2, probes=1, targets=("label",), session=(float(number), str(number)), peak=peak)
        write_run(tmp_path / f"run{number}", run)
    with opened(chromium, tmp_path, "view=map&colormap=gray&scale=all") as page:

        def wait_for_peaks(first: int, last: int) -> None:
            page.wait_for_function(
                "expected => [0, 3].every((run, i) => { const canvas = document.querySelectorAll('.tile canvas')[run];"
                " if (!canvas || canvas.width < 2) return false; const context = canvas.getContext('2d');"
                " const { data } = context.getImageData(0, 0, canvas.width, canvas.height);"
                " const peak = Math.max(...data.filter((_, i) => i % 4 === 0));"
                " return Math.abs(peak - expected[i]) <= 6; })",
                arg=[first, last],
            )

        wait_for_peaks(255, 64)
        page.get_by_label("Add a run").select_option(index=1)
        wait_for_peaks(64, 255)


def test_the_look_stays_when_runs_are_aligned_otherwise(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path, MadeUpRun())
    with opened(chromium, tmp_path, "position=4") as page:
        assert where(page) == "epoch 4 · step 50"
        page.get_by_text("View options").click()
        for align in ("Step", "Epoch"):
            page.get_by_label(align, exact=True).check(force=True)
            page.wait_for_function("() => document.querySelector('.where').innerText.includes('step 50')")
            assert where(page) == "epoch 4 · step 50"


def test_both_looks_stay_where_the_first_run_has_ended_before_them(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "a", MadeUpRun(looks=4))
    write_run(tmp_path / "b", MadeUpRun(session=(2.0, "b")))
    with opened(chromium, tmp_path, "position=9&pinned=7&compare=two") as page:
        page.get_by_text("View options").click()
        for align, pinned in (("Step", "With step 80"), ("Epoch", "With epoch 7")):
            page.get_by_role("radio", name=align, exact=True).check()
            page.get_by_role("button", name=f"{pinned} (set to this one)").wait_for()
            assert where(page) == "epoch 9 · step 100"


def test_an_alert_leads_to_its_look_its_layer_and_its_probe(chromium: Any, tmp_path: Path) -> None:
    raised = {**alert("raised", 2, probes=[3]), "subject": "net.early", "layer": "net.early"}
    write_run(tmp_path, MadeUpRun(layers=("net.early", "net.stage"), alerts={2: [raised]}))
    with opened(chromium, tmp_path) as page:
        assert page.get_by_label("Layer").input_value() == "net.stage"
        page.get_by_role("button", name="Go to epoch 2").click()
        page.wait_for_function("() => document.querySelector('.where').innerText.startsWith('epoch 2')")
        assert page.get_by_label("Layer").input_value() == "net.early"
        assert page.locator(".selected").inner_text().startswith("#3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_changes_its_theme(chromium: Any, tmp_path: Path, scheme: str) -> None:
    write_run(tmp_path, MadeUpRun(looks=2))
    with opened(chromium, tmp_path, color_scheme=scheme) as page:
        colour = "() => getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(colour)
        other = "Light" if scheme == "dark" else "Dark"
        page.get_by_role("button", name=other, exact=True).click()
        page.wait_for_function(f"before => ({colour})() !== before", arg=before)
        page.get_by_role("button", name=scheme.capitalize(), exact=True).click()
        page.wait_for_function(f"before => ({colour})() === before", arg=before)


def test_the_address_is_written_now_and_then_while_it_plays(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path, MadeUpRun(looks=60))
    with opened(chromium, tmp_path, "position=0") as page:
        page.evaluate(
            "() => { window.written = 0; const own = history.replaceState.bind(history);"
            " history.replaceState = (...given) => { window.written += 1; own(...given); }; }"
        )
        page.evaluate(
            "async () => { for (let i = 0; i < 30; i++) {"
            " document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));"
            " await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame); } }"
        )
        page.wait_for_function("() => location.hash.includes('position=30')")
        assert page.evaluate("window.written") <= 12


def test_an_address_that_was_changed_by_others_is_written_again(chromium: Any, tmp_path: Path) -> None:
    """As TensorBoard does when another of its tabs is opened."""
    write_run(tmp_path, MadeUpRun())
    with opened(chromium, tmp_path, "position=5") as page:
        page.evaluate("history.replaceState(null, '', '#')")
        page.locator(".tile").first.hover()
        page.wait_for_function("location.hash.includes('position=5')")


FOCUS = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"


@pytest.mark.parametrize("closing", ["Escape", "Close"])
@pytest.mark.parametrize(("opener", "dialog"), [("Keys", "Keys"), ("#1, run", "Large view")])
def test_a_dialog_takes_the_focus_keeps_it_and_gives_it_back(
    chromium: Any, tmp_path: Path, opener: str, dialog: str, closing: str
) -> None:
    write_run(tmp_path, MadeUpRun())
    with opened(chromium, tmp_path) as page:
        page.get_by_role("button", name=opener).first.focus()
        before = page.evaluate(FOCUS)
        page.keyboard.press("Enter")
        shown = page.get_by_role("dialog", name=dialog)
        shown.wait_for()
        for pressed in ("Shift+Tab", *["Tab"] * 5, *["Shift+Tab"] * 5):
            assert shown.evaluate("dialog => dialog.contains(document.activeElement)")
            page.keyboard.press(pressed)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.querySelector('.where').innerText.startsWith('epoch 10')")
        if closing == "Escape":
            page.keyboard.press("Escape")
        else:
            shown.get_by_role("button", name="Close").click()
        shown.wait_for(state="detached")
        assert page.evaluate(FOCUS).split(",")[0] == before.split(",")[0]


def test_a_dialog_whose_opener_is_gone_gives_the_focus_to_the_slider(chromium: Any, tmp_path: Path) -> None:
    """The first third of the looks is wrong, and then the probe is right."""
    write_run(tmp_path, MadeUpRun())
    with opened(chromium, tmp_path, "filter=wrong&position=0") as page:
        page.locator(".tile").first.focus()
        page.keyboard.press("Enter")
        page.get_by_role("dialog", name="Large view").wait_for()
        page.keyboard.press("End")
        page.get_by_text("No probe passes the filter.").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
        page.wait_for_function(f"({FOCUS}) === 'Look'")  # a closed dialog is hidden before its event comes


def test_a_menu_that_is_closed_by_a_key_has_the_focus_again(chromium: Any, tmp_path: Path) -> None:
    write_run(tmp_path, MadeUpRun(looks=2))
    with opened(chromium, tmp_path) as page:
        page.get_by_text("Share").click()
        page.get_by_role("button", name="Copy link").focus()
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.innerText") == "Share"
