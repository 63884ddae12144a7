"""The viewer in a real browser: the report is opened from disk, without a network."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Page, browser_context, canvas_pixels, download, needs_browser
from matplotlib import colormaps
from PIL import Image
from recordings import MadeUpRun, alert, write_run

from gradcam_callback.recording.reading import read_runs
from gradcam_callback.recording.records import ProbeImage
from gradcam_callback.report import write_report
from gradcam_callback.viewer.report import Run, build_report

pytestmark = needs_browser

ALERTS = {3: [alert("raised", 3)], 5: [alert("changed", 5, probes=[1, 2])], 8: [alert("cleared", 8)]}
NULLS = {3: [1], 4: [1], 5: [1, 2], 6: [1, 2], 7: [1, 2]}
RUN = MadeUpRun(alerts=ALERTS, nulls=NULLS)

Open = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; the second one is shorter, and of other images."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "a", RUN)
    write_run(folder / "b", MadeUpRun(looks=6, seed=1, session=(2.0, "b")))
    return Path(write_report([str(folder)], str(folder / "report.html")))


@pytest.fixture
def open_report(chromium: Any, report: Path) -> Open:
    """Opens a report from disk; whatever it asks the network for fails."""

    @contextmanager
    def opened(address: str = "", path: Path = report, **options: Any) -> Iterator[Any]:
        with browser_context(chromium, offline=True, **options) as watched:
            watched.page.goto(f"{path.as_uri()}#{address}")
            watched.page.get_by_role("slider", name="Look").wait_for()
            yield watched.page
            assert_nothing_foreign(watched)

    return opened


def assert_nothing_foreign(watched: Page) -> None:
    assert {re.match(r"\w+", url)[0] for url in watched.requests} <= {"file", "data", "blob"}  # type: ignore[index]


def where(page: Any) -> str:
    return str(page.locator("footer .where").inner_text())


def tile(page: Any, probe: str = "#0", run: int = 0) -> Any:
    return page.get_by_role("button", name=re.compile(rf"^{re.escape(probe)}, run")).nth(run)


def gray(page: Any, **which: Any) -> np.ndarray:
    """The map of a tile as it is shown in gray, once it is painted."""
    canvas = tile(page, **which).locator("canvas")
    page.wait_for_function(
        "canvas => canvas.width > 1 && canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data[3] > 0",
        arg=canvas.element_handle(),
    )
    return canvas_pixels(canvas)[..., 0]


MAP_ONLY = "targets=predicted&view=map&colormap=gray"


# Scrubbing


def test_it_opens_at_the_last_look_with_all_runs(open_report: Open) -> None:
    with open_report() as page:
        assert where(page) == "epoch 11 · step 120"
        assert page.locator(".chip").count() == 2
        assert page.get_by_role("region", name=re.compile("Probe #")).count() == RUN.probes


def test_the_keys_go_through_the_looks(open_report: Open) -> None:
    with open_report() as page:
        for key, expected in [
            ("Home", "epoch 0 · step 10"),
            ("ArrowRight", "epoch 1 · step 20"),
            ("Shift+ArrowRight", "epoch 11 · step 120"),
            ("ArrowLeft", "epoch 10 · step 110"),
            ("Shift+ArrowLeft", "epoch 0 · step 10"),
            ("End", "epoch 11 · step 120"),
        ]:
            page.keyboard.press(key)
            page.wait_for_function("text => document.querySelector('.where').innerText === text", arg=expected)


def test_space_plays_from_the_start_to_the_end(open_report: Open) -> None:
    with open_report() as page:
        page.keyboard.press("9")
        page.wait_for_function("document.querySelector('footer select').value === '9'")
        page.keyboard.press("Space")
        page.get_by_role("button", name="Stop").wait_for()
        page.get_by_role("button", name="Play").wait_for()  # it stops by itself
        assert where(page) == "epoch 11 · step 120"


def test_f_follows_the_newest(open_report: Open) -> None:
    with open_report("position=2") as page:
        assert where(page) == "epoch 2 · step 30"
        page.keyboard.press("f")
        page.wait_for_function("document.querySelector('.where').innerText === 'epoch 11 · step 120'")
        assert page.get_by_label("newest").is_checked()


def test_the_slider_has_the_focus_and_its_arrows(open_report: Open) -> None:
    with open_report() as page:
        slider = page.get_by_role("slider", name="Look")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.querySelector('.where').innerText === 'epoch 10 · step 110'")
        assert slider.get_attribute("aria-valuetext") == "epoch 10 · step 110"


def test_a_run_without_a_look_there_shows_an_earlier_one_and_says_so(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        second = tile(page, run=1)
        assert "epoch 5, stale" in second.inner_text()
        page.keyboard.press("Home")
        page.wait_for_function("document.querySelector('.where').innerText === 'epoch 0 · step 10'")
        assert "stale" not in second.inner_text()


# Seeing


def test_the_map_is_what_was_recorded_enlarged_linearly(open_report: Open) -> None:
    for look in (0, RUN.looks - 1):
        with open_report(f"{MAP_ONLY}&position={look}") as page:
            shown = gray(page)
        levels = torch.tensor(RUN.look(look).layers[0].levels[0, 0], dtype=torch.float32)
        size = tuple(min(128, side) for side in shown.shape)
        expected = torch.nn.functional.interpolate(levels[None, None], size=size, mode="bilinear")[0, 0]
        reduced = np.array(Image.fromarray(shown).resize(size[::-1], Image.Resampling.BILINEAR), np.float32)
        assert np.abs(reduced - expected.numpy()).mean() < 3
    assert shown[shown.shape[0] // 2, shown.shape[1] // 2] > 200


@pytest.mark.parametrize("name", ["viridis", "inferno", "magma", "cividis", "gray", "turbo"])
def test_every_colormap_is_matplotlibs(open_report: Open, name: str) -> None:
    with open_report("targets=predicted&view=map") as page:
        page.get_by_label("Colours").select_option(name)
        page.wait_for_function(f"location.hash.includes('colormap={name}') || '{name}' === 'viridis'")
        page.wait_for_function(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        )
        gray(page)
        pixels = canvas_pixels(tile(page).locator("canvas"))[..., :3].reshape(-1, 3).astype(int)
    table = np.round(colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(int)
    distance = np.abs(pixels[::37, None] - table[None]).max(axis=2).min(axis=1)
    assert distance.max() <= 6  # between two colours where a tile is larger than its map


def test_cells_are_drawn_as_they_are(open_report: Open) -> None:
    with open_report(f"{MAP_ONLY}&isSmooth=false") as page:
        shown = gray(page)
    levels = RUN.look(RUN.looks - 1).layers[0].levels[0, 0]
    edge = shown.shape[0] / 7
    middles = np.round((np.arange(7) + 0.5) * edge).astype(int)
    np.testing.assert_array_equal(shown[np.ix_(middles, middles)], levels)


def test_input_overlay_and_opacity(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        page.get_by_role("radio", name="Input").check()
        gray(page)
        plain = canvas_pixels(tile(page).locator("canvas")).astype(int)
        middle = plain.shape[0] // 2
        assert plain[middle, middle, 0] > 200 > plain[middle, middle, 1] + 60  # the red square of a cat
        page.get_by_role("radio", name="Overlay").check()
        page.get_by_label("Opacity").fill("0")
        page.wait_for_function("location.hash.includes('opacity=0')")
        page.wait_for_timeout(100)
        np.testing.assert_allclose(canvas_pixels(tile(page).locator("canvas")).astype(int), plain, atol=1)
        page.get_by_label("Opacity").fill("80")
        page.wait_for_function("location.hash.includes('opacity=0.8')")
        page.wait_for_timeout(100)
        assert np.abs(canvas_pixels(tile(page).locator("canvas")).astype(int) - plain).max() > 60


@pytest.mark.parametrize(("scale", "share"), [("each", 1), ("probe", 1 / 3), ("all", 1 / 3)])
def test_the_scale(open_report: Open, scale: str, share: float) -> None:
    """The peak of the first look is 0.5, that of the last one 1.5."""
    highest = int(RUN.look(0).layers[0].levels[0, 0].max())
    with open_report(f"{MAP_ONLY}&position=0&scale={scale}&isSmooth=false") as page:
        assert gray(page).max() == pytest.approx(share * highest, abs=2)


def test_the_value_under_the_pointer_and_the_peak_of_the_focused_tile(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        first = tile(page)
        first.hover(position={"x": 3, "y": 3})
        readout = page.locator("footer .readout")
        page.wait_for_function("document.querySelector('footer .readout').innerText.includes('row 0, column 0')")
        value = float(readout.inner_text().rsplit("· ", 1)[1])
        level = RUN.look(RUN.looks - 1).layers[0].levels[0, 0, 0, 0]
        assert value == pytest.approx(level / 255 * 1.5, rel=0.01, abs=1e-4)
        page.mouse.move(0, 0)
        first.focus()
        page.wait_for_function("document.querySelector('footer .readout').innerText.includes('peak 1.50')")


@pytest.mark.parametrize(("size", "expected"), [("small", 96), ("medium", 148), ("large", 256), ("pixels", 48)])
def test_the_sizes(open_report: Open, size: str, expected: int) -> None:
    with open_report(f"targets=predicted&size={size}") as page:
        assert tile(page).bounding_box()["width"] == expected


def test_fit_and_the_large_view(open_report: Open) -> None:
    with open_report("targets=predicted&size=fit") as page:
        assert tile(page).bounding_box()["width"] == 900 - 220
    with open_report("targets=predicted") as page:
        tile(page, "#1").focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Large view")
        assert dialog.get_by_role("button", name=re.compile("^#1, run")).first.bounding_box()["width"] > 600
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.querySelector('dialog h2').innerText.includes('epoch 10')")
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


def test_layers_targets_and_stages_are_chosen(open_report: Open, tmp_path: Path) -> None:
    fit = MadeUpRun(layers=("net.stem", "net.stage"))
    validation = replace(RUN, stage="validate", looks=1, alerts={}, session=(9.0, "v"))
    write_run(tmp_path / "run", [*fit.records(), *validation.records()])
    with open_report(path=Path(write_report([str(tmp_path / "run")], str(tmp_path / "report.html")))) as page:
        layers = page.get_by_role("combobox", name="Layer")
        assert layers.input_value() == "net.stage"  # the deepest
        layers.select_option("net.stem")
        page.wait_for_function("location.hash.includes('layer=net.stem')")
        assert page.locator(".tile").count() == 2 * RUN.probes
        page.get_by_role("checkbox", name="label").uncheck()
        page.wait_for_function(f"document.querySelectorAll('.tile').length === {RUN.probes}")
        page.get_by_role("combobox", name="Stage").select_option("validate")
        page.wait_for_function("document.querySelector('.slider input').max === '0'")


def test_a_volume_is_looked_through(open_report: Open, tmp_path: Path) -> None:
    """The map and the image are bright in the first half of the depth alone."""
    records = list(MadeUpRun(looks=2, probes=1, targets=("predicted",)).records())
    image = np.concatenate([np.full((32, 32, 3), level, np.uint8) for level in (200, 200, 20, 20)])
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    pictures = replace(records[0], images=(ProbeImage(buffer.getvalue(), 32, 32, slices=4),))  # type: ignore[type-var]
    levels = np.zeros((1, 1, 4, 3, 3), np.uint8)
    levels[:, :, :2] = 255
    looks = [replace(look, layers=(replace(look.layers[0], levels=levels),)) for look in records[1:]]  # type: ignore
    write_run(tmp_path / "run", [pictures, *looks])
    path = Path(write_report([str(tmp_path / "run")], str(tmp_path / "report.html")))
    for depth, expected in ((0.1, 255), (0.9, 0)):
        with open_report(f"view=map&colormap=gray&slice={depth}", path=path) as page:
            assert (gray(page) == expected).all()
    with open_report("view=input", path=path) as page:
        page.get_by_text("View options").click()
        for percent, expected in ((10, 200), (90, 20)):
            page.get_by_label("Depth").fill(str(percent))
            page.wait_for_function(f"location.hash.includes('slice={percent / 100}')")
            page.wait_for_timeout(100)
            assert gray(page)[5, 5] == expected


def test_every_view_option_has_a_control(open_report: Open) -> None:
    with open_report() as page:
        page.get_by_text("View options").click()
        for group, choices in {
            "scale": {"A probe's epochs": "probe", "Everything": "all", "Each map": ""},
            "isSmooth": {"Cells": "false", "Smooth": ""},
            "size": {"Small": "small", "Large": "large", "1:1": "pixels", "Fit": "fit", "Medium": ""},
            "align": {"Step": "step", "Epoch": ""},
        }.items():
            for text, value in choices.items():
                page.get_by_role("radio", name=text, exact=True).check()
                expected = (
                    f"location.hash.includes('{group}={value}')" if value else f"!location.hash.includes('{group}=')"
                )
                page.wait_for_function(expected)


@pytest.mark.parametrize("width", [700, 1400])
def test_menus_open_within_the_page_and_close_again(open_report: Open, width: int) -> None:
    with open_report(viewport={"width": width, "height": 900}) as page:
        for name in ("Sort and filter", "View options", "Share"):
            page.get_by_text(name, exact=True).click()
            panel = page.locator("details.menu[open] .panel")
            page.wait_for_function("document.querySelectorAll('details.menu[open]').length === 1")
            box = panel.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width
        page.keyboard.press("Escape")
        panel.wait_for(state="hidden")
        page.get_by_text("Share", exact=True).click()
        page.mouse.click(width / 2, 600)
        panel.wait_for(state="hidden")


def test_the_charts_mark_the_position_of_the_slider(open_report: Open) -> None:
    """Also those of a probe that has only now been selected."""
    with open_report("targets=predicted&position=3") as page:
        tile(page, "#1").click()
        mark = page.locator(".row.selected .plot .here").first
        mark.wait_for(state="attached")
        page.wait_for_function("parseFloat(document.querySelector('.row.selected .plot .here').style.left) > 0")
        over = page.locator(".row.selected .u-over").first.bounding_box()
        left = mark.evaluate("mark => parseFloat(mark.style.left)")
        assert left == pytest.approx(over["width"] * 3 / 11, abs=2)


# Comparing


def test_two_epochs_side_by_side(open_report: Open) -> None:
    with open_report(f"{MAP_ONLY}&compare=two&pinned=0&isSmooth=false") as page:
        earlier, later = gray(page, run=0).astype(int), gray(page, run=1).astype(int)
        assert np.unravel_index(earlier.argmax(), earlier.shape) < (40, 40)
        assert later[later.shape[0] // 2, later.shape[1] // 2] > 200


def test_the_difference_of_two_epochs_is_red_where_there_is_more(open_report: Open) -> None:
    with open_report("targets=predicted&view=map&compare=difference&pinned=0") as page:
        gray(page)
        pixels = canvas_pixels(tile(page).locator("canvas")).astype(int)
        middle = pixels.shape[0] // 2
        assert pixels[middle, middle, 0] > pixels[middle, middle, 2] + 50
        assert "±" in page.locator(".row figcaption").first.inner_text()
        page.get_by_role("button", name="With epoch 0 (set to this one)").click()
        page.get_by_role("button", name="With epoch 11 (set to this one)").wait_for()


def test_runs_are_aligned_by_step(open_report: Open) -> None:
    with open_report("align=step&position=30") as page:
        assert where(page) == "epoch 2 · step 30"


def test_runs_with_other_probes_are_warned_of(open_report: Open) -> None:
    with open_report() as page:
        assert "The probes of these runs differ" in page.get_by_role("list", name="Warnings").inner_text()
        page.get_by_role("button", name=re.compile("^Take .*b away")).click()
        page.get_by_role("list", name="Warnings").wait_for(state="detached")
        page.get_by_label("Add a run").select_option(index=1)
        page.get_by_role("list", name="Warnings").wait_for()


# Finding


def names(page: Any) -> list[str]:
    return [text.split()[0] for text in page.locator("main .caption .name").all_inner_texts()]


def test_sorting(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        page.get_by_text("Sort and filter").click()
        menu = page.get_by_role("combobox", name="Sort")
        assert names(page) == ["#0", "#1", "#2", "#3", "#4", "#5"]
        menu.select_option("class")
        page.get_by_text("Sort and filter (in use)").wait_for()
        assert names(page) == ["#2", "#5", "#0", "#3", "#1", "#4"]  # bird, cat, dog
        for order in ("wrong", "drift", "changed", "name"):
            menu.select_option(order)
            page.wait_for_function(f"location.hash.includes('sort={order}')")
            assert sorted(names(page)) == ["#0", "#1", "#2", "#3", "#4", "#5"]


def test_wrong_predictions_first(chromium: Any, open_report: Open, tmp_path: Path) -> None:
    records = list(RUN.records())
    last = records[-1]
    predictions = np.array(RUN.labels, np.int32)
    predictions[4] = (predictions[4] + 1) % 3
    write_run(tmp_path / "run", [*records[:-1], replace(last, predictions=predictions)])  # type: ignore[type-var]
    path = Path(write_report([str(tmp_path / "run")], str(tmp_path / "report.html")))
    with open_report("sort=wrong", path=path) as page:
        assert names(page)[0] == "#4"
        page.get_by_text("Sort and filter").click()
        page.get_by_role("combobox", name="Show").select_option("wrong")
        page.wait_for_function("document.querySelectorAll('main .caption .name').length === 1")
        assert names(page) == ["#4"]


def test_filters(open_report: Open) -> None:
    with open_report("targets=predicted&position=6") as page:
        page.get_by_text("Sort and filter").click()
        page.get_by_role("combobox", name="Show").select_option("alert")
        page.wait_for_function("document.querySelectorAll('main .caption .name').length === 2")
        assert names(page) == ["#1", "#2"]
        page.get_by_role("combobox", name="Show").select_option("all")
        page.get_by_role("combobox", name="Class").select_option("bird")
        page.wait_for_function("document.querySelectorAll('main .caption .name').length === 2")
        assert names(page) == ["#2", "#5"]
        page.get_by_role("combobox", name="Class").select_option("")
        page.get_by_role("searchbox", name="Find").fill("#3")
        page.wait_for_function("document.querySelectorAll('main .caption .name').length === 1")
        page.get_by_role("searchbox", name="Find").fill("nothing")
        page.get_by_text("No probe passes the filter.").wait_for()


def test_a_film_strip_shows_every_look_and_a_click_goes_there(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        strip = page.get_by_label(re.compile("^Film strip of #0")).first
        box = strip.locator(".film").bounding_box()
        pitch = box["width"] / RUN.looks
        page.mouse.click(box["x"] + 3.5 * pitch, box["y"] + 20)
        page.wait_for_function("document.querySelector('.where').innerText === 'epoch 3 · step 40'")
        here = strip.locator(".here").bounding_box()
        assert here["x"] == pytest.approx(box["x"] + 3 * pitch, abs=1)


def test_the_lines_and_a_click_in_them(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        chart = page.get_by_role("img", name=re.compile("^Label probability over the looks; now 0.9"))
        chart.wait_for()
        over = chart.locator(".u-over").bounding_box()
        page.mouse.move(over["x"] + 3, over["y"] + 20)
        page.mouse.click(over["x"] + 3, over["y"] + 20)
        page.wait_for_function("document.querySelector('.where').innerText === 'epoch 0 · step 10'")
        for title in ("Prediction probability", "Gradient norm", "Drift"):
            assert page.get_by_text(title).first.is_visible()


def test_the_grid(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        page.get_by_role("radio", name="Grid").check()
        page.locator(".card").first.wait_for()
        assert page.locator(".card").count() == RUN.probes
        tile(page, "#2").click()
        page.get_by_role("heading", name=re.compile("^#2")).wait_for()


# Alerts


def test_an_alert_is_explained(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        table = page.get_by_role("table")
        assert "detached" in table.inner_text()
        assert "net.py:12" in table.inner_text()
        table.get_by_role("button", name="Go to epoch 3").click()
        page.wait_for_function("document.querySelector('.where').innerText === 'epoch 3 · step 40'")
        assert "no gradient: detached" in tile(page, "#1").inner_text()
        assert "no gradient" not in tile(page, "#0").inner_text()
        table.get_by_role("button", name=re.compile("^Details")).click()
        page.get_by_text("Take detach() out of the way.").wait_for()
        assert "maps = maps.detach()" in table.locator(".blamed code").inner_text()
        link = table.get_by_role("link")
        assert link.get_attribute("href") == "https://example.org/why#detached"
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert page.locator(".tick").count() == 3


def test_texts_are_no_markup(open_report: Open, tmp_path: Path) -> None:
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    bad = alert("raised", 0, message=evil, remedy=evil, cause=evil, subject=evil, url="javascript:alert(1)")
    run = replace(RUN, alerts={0: [bad]}, class_names=(evil, "دجاجة", "鳥"), targets=(evil,))
    write_run(tmp_path / "run", run)
    path = Path(write_report([str(tmp_path / "run")], str(tmp_path / "report.html")))
    with open_report(path=path) as page:
        page.get_by_role("button", name=re.compile("^Details")).click()
        page.locator(".alert-details").wait_for()
        assert page.title() != "owned"
        assert page.locator("img[src='x']").count() == 0
        assert evil in page.get_by_role("table").inner_text()
        assert "دجاجة" in page.locator("main").inner_text()
        assert page.get_by_role("table").get_by_role("link").count() == 0


# Sharing


def test_the_address_holds_the_state(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        page.keyboard.press("Home")
        page.get_by_label("Colours").select_option("magma")
        page.get_by_role("radio", name="Grid").check()
        tile(page, "#2").click()
        page.wait_for_function("location.hash.includes('probe=%232')")
        link = page.url
    with open_report(link.partition("#")[2]) as page:
        assert where(page) == "epoch 0 · step 10"
        assert page.get_by_label("Colours").input_value() == "magma"
        page.get_by_role("heading", name=re.compile("^#2")).wait_for()


def test_nonsense_in_the_address_is_no_harm(open_report: Open) -> None:
    with open_report("position=abc&opacity=x&size=huge&runs=nope&layer=nope&speed=&toString=1") as page:
        assert page.locator(".row").count() == RUN.probes


def test_copy_link(open_report: Open) -> None:
    with open_report("position=3") as page:
        page.get_by_text("Share", exact=True).click()
        page.get_by_role("button", name="Copy link").click()
        page.wait_for_function("document.querySelector('.message').innerText.length > 0")


def test_the_view_as_png_and_a_history_as_gif(open_report: Open, tmp_path: Path) -> None:
    with open_report("targets=predicted") as page:
        page.get_by_text("Share", exact=True).click()
        picture = Image.open(download(page, "Save view as PNG", tmp_path))
        assert picture.format == "PNG"
        assert len(set(np.asarray(picture.convert("RGB")).reshape(-1, 3)[::97, 0].tolist())) > 50
        history = Image.open(download(page, "Save probe's history as GIF", tmp_path))
        assert history.format == "GIF"
        assert history.n_frames == RUN.looks
        history.seek(0)
        first = np.asarray(history.convert("RGB")).astype(int)
        history.seek(RUN.looks - 1)
        assert np.abs(np.asarray(history.convert("RGB")).astype(int) - first).max() > 50


# For everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("layout", ["rows", "grid"])
def test_nothing_that_axe_finds(open_report: Open, layout: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with open_report(f"layout={layout}&position=6", color_scheme=scheme) as page:
        page.get_by_role("button", name=re.compile("^Details")).click()
        page.get_by_text("View options").click()
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


@pytest.mark.parametrize("width", [700, 2500])
def test_no_width_needs_scrolling_aside(open_report: Open, width: int) -> None:
    with open_report(viewport={"width": width, "height": 900}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_can_be_reached_by_keyboard(open_report: Open) -> None:
    with open_report("targets=predicted") as page:
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    """() => {
                        const element = document.activeElement;
                        const style = getComputedStyle(element);
                        const around = element.nextElementSibling && getComputedStyle(element.nextElementSibling);
                        const isSeen = style.outlineStyle !== "none" || around?.outlineStyle !== "none";
                        return `${element.tagName} ${isSeen}`;
                    }"""
                )
            )
        assert not {one for one in reached if one.endswith("false") and not one.startswith("BODY")}
        assert {"INPUT true", "SELECT true", "BUTTON true", "SUMMARY true"} <= reached


def test_the_keys_are_listed(open_report: Open) -> None:
    with open_report() as page:
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keys")
        dialog.wait_for()
        assert "follow the newest look" in dialog.inner_text()
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")


def test_dark_and_light(open_report: Open) -> None:
    paper = {}
    for scheme in ("light", "dark"):
        with open_report(color_scheme=scheme) as page:
            paper[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}


# What cannot be shown


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"nope" + data[4:], "of an unknown form"),
        (lambda data: data[: len(data) // 4], "cut short|outside of the data"),
        (lambda data: data.replace(b'"version":1', b'"version":7', 1), "of version 7"),
        (lambda data: data.replace(b'"dtype":"float32"', b'"dtype":"float99"', 1), "of an unknown type"),
    ],
    ids=["magic", "cut", "version", "dtype"],
)
def test_a_run_that_cannot_be_read_is_said_and_the_others_go_on(
    open_report: Open, tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    from gradcam_callback.recording.bundle import bundle

    write_run(tmp_path / "good", RUN)
    data = bundle(read_runs(tmp_path / "good")[0])
    path = tmp_path / "report.html"
    path.write_text(build_report([Run("good", data), Run("bad", spoil(data))]), encoding="utf-8")
    with open_report(path=path) as page:
        assert re.search(f"bad: .*({reason})", page.get_by_role("list", name="Warnings").inner_text())
        assert page.locator(".row").count() == RUN.probes
