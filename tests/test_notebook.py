"""What a notebook shows of results and diagnoses, read back from its HTML and seen in a browser."""

from __future__ import annotations

import base64
import gc
import io
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser_context, needs_browser
from matplotlib import colormaps
from models import Network, Spots
from PIL import Image
from torch import Tensor, nn

from gradcam_callback import CAMResult, Cause, compute_cam, diagnose
from gradcam_callback.notebook import MOST_ROWS, SHOWN_SIDE

LAYER = "stage"


def images(count: int = 4) -> Tensor:
    return torch.stack([Spots()[index][0] for index in range(count)])


def network(on_map: Any = None) -> Network:
    torch.manual_seed(0)
    return Network(on_map)


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


@pytest.fixture
def result() -> CAMResult:
    return compute_cam(network(), images(), ["stem", LAYER])


def test_a_result_alone_is_its_maps_in_colour(result: CAMResult) -> None:
    html = result._repr_html_()
    drawn = pictures(html)
    assert len(drawn) == 4 * 2
    heat = result.heatmaps((SHOWN_SIDE, SHOWN_SIDE))[LAYER][1].numpy()
    assert np.array_equal(drawn[3], colormaps["turbo"](heat, bytes=True)[..., :3])
    assert "8 x 8 cells" in html
    said = f"predicted: class {result.predictions[1]}, {result.probabilities[1].max():.2f}"
    assert said in html


def test_images_are_drawn_under_the_maps_and_not_kept(result: CAMResult) -> None:
    given = images()
    html = result.show(given, class_names=["ant", "bee", "cat"], opacity=0.25, colormap="viridis").html
    shown, _, overlay, *_ = pictures(html)
    factor = SHOWN_SIDE // 16
    expected = (given[0].permute(1, 2, 0) * 255).round().byte().numpy().repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(shown, expected)
    heat = colormaps["viridis"](result.heatmaps((SHOWN_SIDE, SHOWN_SIDE))[LAYER][0].numpy(), bytes=True)[..., :3]
    assert np.array_equal(overlay, (0.25 * heat + 0.75 * expected).round().astype(np.uint8))
    assert re.search(r"predicted: (ant|bee|cat), 0\.\d\d", html)

    held = weakref.ref(given)
    del given
    gc.collect()
    assert held() is None


def test_a_result_holds_no_tensor_but_its_own() -> None:
    given = images()
    held = weakref.ref(given)
    result = compute_cam(network(), given, LAYER)
    result.show(given)
    del given
    gc.collect()
    assert held() is None
    assert result.cams[LAYER].shape == (4, 8, 8)


@pytest.mark.parametrize("kind", ["bytes", "normalised", "grey", "list"])
def test_images_of_every_kind_are_seen(kind: str) -> None:
    given: Any = images()
    expected = (given[0].permute(1, 2, 0) * 255).round()
    if kind == "bytes":
        given = (given * 255).round().byte()
    elif kind == "normalised":
        given = (given - 0.5) / 0.25
        low, high = given[0].min(), given[0].max()
        expected = ((given[0] - low) / (high - low)).permute(1, 2, 0) * 255
    elif kind == "grey":
        given = given[:, 0]
        expected = (given[0] * 255).round()[..., None].expand(-1, -1, 3)
    else:
        given = list(given)
    html = compute_cam(network(), images(), LAYER).show(given).html
    step = SHOWN_SIDE // 16
    assert np.abs(pictures(html)[0][::step, ::step].astype(float) - expected.numpy()).max() <= 1


def test_images_of_different_sizes_keep_theirs() -> None:
    class Padding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, given: list[Tensor]) -> Tensor:
            whole = torch.zeros(len(given), 3, 16, 16)
            for row, image in zip(whole, given, strict=True):
                row[:, : image.shape[1], : image.shape[2]] = image
            logits: Tensor = self.network(whole)
            return logits

    given = [images()[0], images()[1][:, :8]]
    html = compute_cam(Padding(), given, f"network.{LAYER}").show(given).html
    assert [picture.shape[:2] for picture in pictures(html)] == [(SHOWN_SIDE, SHOWN_SIDE)] * 2 + [
        (SHOWN_SIDE // 2, SHOWN_SIDE)
    ] * 2


def test_what_has_no_gradient_is_no_picture() -> None:
    def lose(maps: Tensor) -> Tensor:
        return maps * torch.tensor([1.0, 0, 1, 1]).view(4, 1, 1, 1)

    html = compute_cam(network(lose), images(), LAYER)._repr_html_()
    assert len(pictures(html)) == 3
    assert html.count("zero gradient") == 1
    html = compute_cam(network(Tensor.detach), images(), LAYER).show(images()).html
    assert len(pictures(html)) == 4, "the inputs"
    assert html.count("no gradient") == 4


@pytest.mark.parametrize(("axes", "shape"), [(1, (40, SHOWN_SIDE)), (3, (SHOWN_SIDE, SHOWN_SIDE))])
def test_signals_and_volumes_are_shown_alone(axes: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    kind: Any = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    pool: Any = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[axes]
    model = nn.Sequential(kind(2, 4, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3))
    given = torch.rand(2, 2, *[12] * axes)
    result = compute_cam(model, given, "0")
    assert [picture.shape[:2] for picture in pictures(result._repr_html_())] == [shape] * 2
    with pytest.raises(ValueError, match="shown alone"):
        result.show(given)


def test_of_many_probes_the_first_are_shown() -> None:
    html = compute_cam(network(), images(1).repeat(MOST_ROWS + 3, 1, 1, 1), LAYER)._repr_html_()
    assert len(pictures(html)) == MOST_ROWS
    assert "3 probes more are not shown" in html


@pytest.mark.parametrize(
    ("given", "message"),
    [(images(3), "there are 4 maps and 3 images"), (torch.rand(4, 2, 3, 16, 16), "expected (N, C, H, W)")],
    ids=["too few", "axes"],
)
def test_images_that_do_not_fit_are_refused(result: CAMResult, given: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        result.show(given)


def test_a_diagnosis_is_a_table_with_the_line_and_the_remedy() -> None:
    found = diagnose(network(Tensor.detach), images(), LAYER)
    html = found._repr_html_()
    assert found.location is not None
    assert f"detached · {found.location} in forward" in html
    assert "<pre>maps = maps if self.on_map is None else self.on_map(maps)</pre>" in html
    rows = re.findall(r"<td>([^<]*)</td><td>([^<]*)</td><td>[^<]*</td><td>([^<]*)</td><td[^>]*>([^<]*)</td>", html)
    assert ("(model)", "Tensor.detach", "none", "cut here") in rows
    assert rows[0][1] == "score"
    assert "What to do:" in html
    healthy = diagnose(network(), images(), LAYER)._repr_html_()
    assert "healthy" in healthy
    assert "What to do:" not in healthy


def test_a_long_way_without_news_is_cut_short() -> None:
    layers = [layer for _ in range(12) for layer in (nn.Conv2d(3, 3, 1), nn.LeakyReLU())]
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = diagnose(model, images(), "0")
    assert len(found.path) == 26
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + 4 + 1 + 4
    assert "19 steps more" in html


HOSTILE = "<img src=x onerror=alert(1)>\"'&"


def test_text_is_no_markup(result: CAMResult) -> None:
    renamed = replace(result, cams={HOSTILE: result.cams[LAYER]}, health={HOSTILE: result.health[LAYER]})
    shown = renamed.show(images(), class_names=[HOSTILE] * 3).html
    broken = diagnose(network(Tensor.detach), images(), LAYER)
    location = broken.location
    assert location is not None
    cut = replace(broken.cuts[0], location=replace(location, file=HOSTILE, code=HOSTILE, function=HOSTILE))
    told = replace(broken, layer=HOSTILE, message=HOSTILE, remedy=HOSTILE, cuts=(cut,))._repr_html_()
    for html in (shown, told):
        assert "<img src=x" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;" in html


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_in_a_notebook(chromium: Any, tmp_path: Path, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    broken = network(Tensor.detach)
    parts = [
        compute_cam(network(), images(), [LAYER, "stem"]).show(images()).html,
        compute_cam(broken, images(), LAYER)._repr_html_(),
        diagnose(broken, images(), LAYER)._repr_html_(),
    ]
    colours = {"light": "background:#fff;color:#111", "dark": "background:#111418;color:#e6e6e6"}[theme]
    is_light = str(theme == "light").lower()
    file = tmp_path / "cell.html"
    file.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>cell</title><body style="{colours}" '
        f'data-jp-theme-light="{is_light}"><main>{"".join(parts)}</main></body></html>'
    )
    with browser_context(chromium, color_scheme=theme) as opened:
        opened.page.goto(file.as_uri())
        assert opened.requests == [file.as_uri(), *filter(lambda url: url.startswith("data:"), opened.requests)]
        found = Axe().run(opened.page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert found.violations_count == 0, found.generate_report()
    assert Cause.DETACHED.value in file.read_text()
