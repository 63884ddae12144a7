"""Colouring against pixel values worked out by hand; the layout against the fonts and the pixels it leaves behind."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gradcam_callback.reporting.panel import Panel, PanelColumn
from gradcam_callback.reporting.rendering import composition, typesetting
from gradcam_callback.reporting.rendering.colormap import colormap_table
from gradcam_callback.reporting.rendering.composition import compose
from gradcam_callback.reporting.rendering.tiles import (
    displayable,
    highest_peak,
    name_channels,
    overlays,
    tile_size,
    tiles,
)
from gradcam_callback.reporting.rendering.typesetting import READABLE, SHOWN_WIDTH, Typography, typeset

NAN, INF = math.nan, math.inf
RAMP = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 3).contiguous()  # level 200 is the grey 200
LONG_NAME = "a_class_name_of_sixty_characters_that_nobody_would_ever_type"
EPOCH_LINE = "Grad-CAM · epoch 3"


# The type of a panel with an input and one target.
TYPE = Typography.of_width(2 * 168 + composition.GAP + 2 * composition.MARGIN)
CAPTION, REMARK, VERDICT = TYPE.caption, TYPE.remark, TYPE.verdict
LEFT, GAP = composition.MARGIN, composition.GAP


def make_panel(probes: int = 3, size: tuple[int, int] = (168, 168), columns: int = 1, shared: bool = False) -> Panel:
    """A panel of flat tiles: inputs of one blue, overlays of one orange, neither of which occurs elsewhere."""
    blue = torch.tensor([10, 60, 200], dtype=torch.uint8).expand(probes, *size, 3).contiguous()
    orange = torch.tensor([250, 150, 20], dtype=torch.uint8).expand(probes, *size, 3).contiguous()
    column = PanelColumn("predicted", orange, ("cat 0.93",) * probes, (None,) * probes, torch.full((probes,), 1.2e-4))
    captions = tuple(f"#{probe}" for probe in range(probes))
    return Panel(f"layer4\n{EPOCH_LINE}", blue, captions, (None,) * probes, (column,) * columns, RAMP, shared)


def with_column(panel: Panel, **changes: object) -> Panel:
    return replace(panel, columns=(replace(panel.columns[0], **changes), *panel.columns[1:]))


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == np.array(colour)).all(axis=-1).sum())


# Colormaps


@pytest.mark.parametrize("name", ["turbo", "viridis", "jet", "tab10", "turbo_r"])
def test_table_holds_matplotlibs_colours(name):
    from matplotlib import colormaps

    table = colormap_table(name)

    assert table.shape == (256, 3)
    assert table.dtype == torch.uint8
    for index in (0, 77, 255):
        expected = torch.tensor(colormaps[name](index / 255)[:3]) * 255
        assert (table[index] - expected).abs().max() <= 1


def test_unknown_colormap_names_the_closest():
    with pytest.raises(ValueError, match=r"'turb0'.*'turbo'.*list\(colormaps\)"):
        colormap_table("turb0")


# Sizes


@pytest.mark.parametrize(
    ("image", "tile"),
    [
        ((28, 28), (168, 168)),
        ((64, 64), (192, 192)),
        ((1, 1), (168, 168)),
        ((28, 14), (168, 84)),
        ((150, 150), (150, 150)),
        ((224, 224), (224, 224)),
        ((256, 100), (256, 100)),
        ((512, 256), (256, 128)),
        ((300, 400), (192, 256)),
        ((2, 100), (16, 200)),
        ((10000, 1), (256, 16)),
    ],
)
def test_tile_size(image, tile):
    assert tile_size(*image) == tile


def test_every_tile_is_of_a_sane_size_and_small_ones_grow_by_a_whole_factor():
    for height in range(1, 300, 7):
        for width in range(1, 300, 7):
            th, tw = tile_size(height, width)
            assert 128 < max(th, tw) <= 256
            assert min(th, tw) >= 16
            if max(height, width) <= 256:
                assert th % height == 0
                assert tw % width == 0


# Images


def test_normalisation_is_undone():
    images = torch.rand(2, 3, 4, 4)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    torch.testing.assert_close(displayable(normalised, mean, std), images)


def test_single_mean_and_std_hold_for_all_channels():
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(displayable((images - 0.5) / 0.25, [0.5], [0.25]), images)


def test_mean_alone_and_std_alone():
    images = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(displayable(images - 0.5, mean=[0.5])[:, :1], images)
    torch.testing.assert_close(displayable(images / 0.5, std=[0.5])[:, :1], images)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_wrong_length_says_both_lengths(name):
    with pytest.raises(ValueError, match=f"{name} has 3 numbers, but the images have 4 channels"):
        displayable(torch.rand(2, 4, 5, 5), **{name: [0.5, 0.5, 0.5]})


def test_wrong_axes():
    with pytest.raises(ValueError, match=r"\(N, C, H, W\).*\(4, 4\)"):
        displayable(torch.rand(4, 4))


def test_images_within_0_and_1_stay_as_they_are():
    dim = torch.rand(2, 3, 4, 4) * 0.2
    torch.testing.assert_close(displayable(dim), dim)


def test_other_images_are_scaled_each_by_its_own_range():
    images = torch.tensor([[-2.0, 0.0, 2.0], [10.0, 15.0, 30.0]]).view(2, 1, 1, 3)
    expected = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.25, 1.0]]).view(2, 1, 1, 3).expand(2, 3, 1, 3)
    torch.testing.assert_close(displayable(images), expected)


def test_flat_image_becomes_grey():
    images = torch.full((1, 3, 4, 4), -7.0)
    assert displayable(images).eq(0.5).all()


def test_pixels_that_are_not_finite_leave_the_others_alone():
    images = torch.tensor([[-2.0, 0.0, 2.0, NAN, INF, -INF], [0.0, 1.0, 0.5, 0.0, 0.0, 0.0]]).view(2, 1, 1, 6)
    first, second = displayable(images)[:, 0, 0]
    assert first.tolist() == [0.0, 0.5, 1.0, 0.0, 1.0, 0.0]
    assert second.tolist() == [0.0, 1.0, 0.5, 0.0, 0.0, 0.0]


def test_image_of_nan_alone_is_drawn_and_spoils_no_other():
    images = torch.rand(2, 3, 4, 4)
    images[0] = NAN
    shown = displayable(images)
    assert shown.isfinite().all()
    torch.testing.assert_close(shown[1], images[1])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_becomes_three(channels):
    images = torch.rand(2, channels, 4, 4)
    mean_of_both = images.mean(dim=1, keepdim=True)
    expected = images[:, :3] if channels >= 3 else mean_of_both.expand(2, 3, 4, 4)
    torch.testing.assert_close(displayable(images), expected)
    torch.testing.assert_close(displayable(images * 2 - 1, [-1.0], [1.0]), (expected * 2 - 2).clamp(0, 1))


def test_chosen_channels_are_shown():
    images = torch.rand(2, 6, 4, 4)
    torch.testing.assert_close(displayable(images, channels=[3, 4, 5]), images[:, 3:])
    torch.testing.assert_close(displayable(images, channels=(5,)), images[:, 5:].expand(2, 3, 4, 4))
    means = torch.arange(6.0)
    undone = displayable(images - means[:, None, None], means.tolist(), channels=[5, 0, 2])
    torch.testing.assert_close(undone, images[:, [5, 0, 2]])
    assert displayable((images * 255).byte(), channels=[1, 1, 1])[0, 0, 0, 0] == (images[0, 1, 0, 0] * 255).byte() / 255


@pytest.mark.parametrize("channels", [[6], [0, -1, 2], [0, 1], []])
def test_channels_that_cannot_be_shown(channels):
    with pytest.raises(ValueError, match="one or three of 0 to 5"):
        displayable(torch.rand(2, 6, 4, 4), channels=channels)


@pytest.mark.parametrize(
    ("count", "channels", "words"),
    [
        (1, None, ""),
        (3, None, ""),
        (3, [2, 1, 0], ""),
        (2, None, "mean of 2 channels"),
        (6, None, "channels 0, 1, 2 of 6"),
        (4, [3], "channel 3 of 4"),
        (6, [3, 4, 5], "channels 3, 4, 5 of 6"),
    ],
)
def test_what_is_not_shown_is_said(count, channels, words):
    assert name_channels(count, channels) == words


def test_bytes_are_divided_by_255():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    torch.testing.assert_close(displayable(images)[0, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_number_type_becomes_float32(dtype):
    shown = displayable(torch.tensor([0, 2, 4]).view(1, 1, 1, 3).to(dtype))
    assert shown.dtype == torch.float32
    assert shown[0, 0, 0].tolist() == [0.0, 0.5, 1.0]


# Tiles and overlays


def test_enlarging_makes_no_new_colour():
    images = torch.rand(1, 3, 28, 28)
    enlarged = tiles(images, tile_size(28, 28))[0]

    assert enlarged.shape == (168, 168, 3)
    original = (images[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(enlarged[::6, ::6], original)
    assert torch.equal(enlarged[5::6, 5::6], original)
    assert set(map(tuple, enlarged.reshape(-1, 3).tolist())) == set(map(tuple, original.reshape(-1, 3).tolist()))


def test_reducing_takes_every_pixel_into_account():
    fine_stripes = (torch.arange(1024) % 2).float().expand(1, 3, 8, 1024)
    reduced = tiles(fine_stripes, (2, 256))
    assert reduced.shape == (1, 2, 256, 3)
    assert (reduced[:, :, 1:-1].int() - 128).abs().max() <= 1  # picking single pixels would give 0 or 255


def test_overlay_by_hand():
    image = torch.full((1, 3, 2, 2), 100 / 255)
    heat = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])

    drawn, peaks = overlays(image, heat, RAMP, 0.25, (2, 2))

    # Levels 0, 63.75, 127.5, 255 of the ramp are the greys 0, 64, 128, 255; a quarter of that and 75 of the image.
    assert drawn[0, ..., 0].tolist() == [[75, 91], [107, 139]]
    assert torch.equal(drawn[..., 0], drawn[..., 2])
    assert peaks.tolist() == [4.0]


def test_colours_come_from_the_table_in_its_order():
    table = colormap_table("turbo")
    drawn, _ = overlays(torch.rand(1, 3, 1, 2), torch.tensor([[[0.0, 5.0]]]), table, 1.0, (1, 2))
    assert torch.equal(drawn[0, 0], table[[0, 255]])


def test_opacity_zero_is_the_plain_image():
    images = torch.rand(2, 3, 5, 5)
    drawn, _ = overlays(images, torch.rand(2, 3, 3), RAMP, 0.0, (10, 10))
    assert torch.equal(drawn, tiles(images, (10, 10)))


def test_map_is_enlarged_bilinearly():
    drawn, peaks = overlays(torch.zeros(1, 3, 1, 4), torch.tensor([[[0.0, 8.0]]]), RAMP, 1.0, (1, 4))
    assert drawn[0, 0, :, 0].tolist() == [0, 64, 191, 255]  # 0, 2, 6, 8 of 8
    assert peaks.tolist() == [8.0]


def test_own_scale_and_shared_scale():
    images, heat = torch.zeros(2, 3, 1, 2), torch.tensor([[[0.0, 1.0]], [[0.0, 5.0]]])

    own, own_peaks = overlays(images, heat, RAMP, 1.0, (1, 2))
    peak = highest_peak(heat, (1, 2))
    shared, shared_peaks = overlays(images, heat, RAMP, 1.0, (1, 2), peak=peak)

    assert own[:, 0, 1, 0].tolist() == [255, 255]
    assert own_peaks.tolist() == [1.0, 5.0]
    assert shared[:, 0, 1, 0].tolist() == [51, 255]
    assert shared_peaks.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_map_that_is_not_finite_is_the_plain_image_and_spoils_no_other(shared, bad):
    images, heat = torch.rand(3, 3, 4, 4), torch.rand(3, 2, 2)
    size = (8, 8)
    expected, expected_peaks = overlays(
        images[1:], heat[1:], RAMP, 0.5, size, peak=highest_peak(heat[1:], size) if shared else None
    )
    heat[0, 1, 1] = bad

    drawn, peaks = overlays(images, heat, RAMP, 0.5, size, peak=highest_peak(heat, size) if shared else None)

    assert torch.equal(drawn[0], tiles(images, (8, 8))[0])
    assert torch.equal(drawn[1:], expected)
    assert peaks[0].isnan()
    assert torch.equal(peaks[1:], expected_peaks)


@pytest.mark.parametrize("peak", [None, torch.tensor(0.0)])
def test_zero_map_is_the_lowest_colour(peak):
    drawn, peaks = overlays(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 3), RAMP, 0.5, (2, 2), peak=peak)
    assert drawn.unique().tolist() == [128]
    assert peaks.tolist() == [0.0, 0.0]


def test_tiny_values_are_drawn_as_any_others():
    heat = torch.tensor([[[0.0, 0.5, 1.0]]])
    usual, _ = overlays(torch.zeros(1, 3, 1, 3), heat, RAMP, 1.0, (1, 3))
    tiny, _ = overlays(torch.zeros(1, 3, 1, 3), heat * 1e-30, RAMP, 1.0, (1, 3))
    assert torch.equal(usual, tiny)


@pytest.mark.parametrize("opacity", [-0.1, 1.5, NAN])
def test_opacity_out_of_range(opacity):
    with pytest.raises(ValueError, match=f"between 0 .* and 1 .*{opacity}"):
        overlays(torch.rand(1, 3, 2, 2), torch.rand(1, 2, 2), RAMP, opacity, (2, 2))


def test_one_map_an_image():
    with pytest.raises(ValueError, match="1 maps and 2 images"):
        overlays(torch.rand(2, 3, 2, 2), torch.rand(1, 2, 2), RAMP, 0.5, (2, 2))


def test_arguments_are_left_as_they_were():
    images, heat, table = torch.randn(2, 3, 8, 8), torch.rand(2, 2, 2), RAMP.clone()
    before = images.clone(), heat.clone()
    shown = displayable(images)
    kept = shown.clone()
    displayable(shown)
    overlays(shown, heat, table, 0.5, (8, 8), peak=highest_peak(heat, (8, 8)))
    tiles(shown, (8, 8))
    assert torch.equal(images, before[0])
    assert torch.equal(heat, before[1])
    assert torch.equal(shown, kept)
    assert torch.equal(table, RAMP)


def test_another_default_number_type_changes_nothing():
    images, heat = torch.randn(2, 3, 8, 8), torch.rand(2, 2, 2)
    expected, _ = overlays(displayable(images), heat, RAMP, 0.3, (8, 8), peak=highest_peak(heat, (8, 8)))
    torch.set_default_dtype(torch.float64)
    try:
        drawn, peaks = overlays(displayable(images), heat, RAMP, 0.3, (8, 8), peak=highest_peak(heat, (8, 8)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn, expected)
    assert peaks.dtype == torch.float32


def test_the_host_never_waits_for_the_device():
    # Meta tensors hold no values, so any step that reads one on the host (item, tolist, nonzero, a mask) fails on them.
    with torch.device("meta"):
        for images in (torch.empty(4, 3, 300, 300), torch.empty(4, 3, 300, 300, dtype=torch.uint8)):
            shown = displayable(images)
            displayable(images, [0.5], [0.5])
            displayable(images, channels=[2])
            maps = torch.empty(4, 7, 7)
            drawn, peaks = overlays(shown, maps, RAMP, 0.5, (256, 256), peak=highest_peak(maps, (256, 256)))
            assert drawn.shape == tiles(shown, (256, 256)).shape == (4, 256, 256, 3)
            assert drawn.is_meta
            assert peaks.is_meta


@pytest.mark.gpu
def test_nothing_synchronises_on_cuda():
    images, heat = torch.rand(4, 3, 64, 64, device="cuda"), torch.rand(4, 7, 7, device="cuda")
    table = RAMP.cuda()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        shown = displayable(images, [0.1, 0.2, 0.3], [1.0])
        tiles(displayable(images), (192, 192))
        overlays(shown, heat, table, 0.5, (192, 192), peak=highest_peak(heat, (192, 192)))
    finally:
        torch.cuda.set_sync_debug_mode(before)


# Text


@pytest.mark.parametrize(
    "text",
    [
        "cat 0.93",
        LONG_NAME,
        f"validation/image_00017.jpg · label {LONG_NAME} 0.03",
        "x" * 120,
        "i " * 60,
        "Größe naïve Ελληνικά кириллица " * 3,
        "e\u0301" * 60,
        "first line\nsecond line that is a good deal longer than the first one\n\nlast",
    ],
)
@pytest.mark.parametrize("width", [124, 168, 400])
def test_wrapped_lines_fit_and_hold_every_character(text, width):
    lines = typeset(text, width, CAPTION, REMARK).lines

    assert "".join("".join(line for line, _ in lines).split()) == "".join(text.split())
    for line, style in lines:
        assert style.font.getlength(line) <= width
        assert not line.startswith("\u0301")


def test_a_long_text_loses_its_middle():
    """Thousands of characters would take seconds; the end of a file name says more than its middle."""
    (line, _), *more = typeset("\n".join(["start" + "x" * 5000 + "end.jpg", *"abcdefghij"]), 10_000, CAPTION).lines
    assert (line[:5], line[-7:], line.count("…"), len(line)) == ("start", "end.jpg", 1, 120)
    assert [text for text, _ in more] == [*"abcdefg", "…"]


def test_words_of_every_length_fit():
    for length in range(1, 60):
        lines = typeset("x" * length, 168, CAPTION).lines
        assert sum(len(line) for line, _ in lines) == length
        assert max(style.font.getlength(line) for line, style in lines) <= 168


def test_words_break_after_a_mark_where_there_is_one():
    lines = [line for line, _ in typeset(LONG_NAME, 168, CAPTION).lines]
    assert len(lines) > 1
    assert all(line.endswith("_") for line in lines[:-1])


@pytest.mark.parametrize("width", [300, 510, 748, 900])
def test_captions_can_be_read_in_a_panel_that_is_shown_small(width):
    """TensorBoard shows it 350 pixels wide at first."""
    type_ = Typography.of_width(width)
    assert type_.caption.size * SHOWN_WIDTH / width >= READABLE
    assert min(style.size for style in vars(type_).values()) >= 12


@pytest.mark.parametrize("shown_width", [335, SHOWN_WIDTH])  # beside a scroll bar, and without one
@pytest.mark.parametrize(("width", "darkest"), [(510, 120), (748, 180)])
def test_no_stroke_is_lost_where_tensorboard_leaves_pixels_out(width, darkest, shown_width):
    """It shows pictures with `image-rendering: pixelated`: rows and columns are left out, and none are blended."""
    style = Typography.of_width(width).caption
    line = Image.new("RGB", (width, 40), composition.PAPER)
    typesetting.Text((("l " * 12, style),)).draw(ImageDraw.Draw(line), 5, 5)
    shown = np.asarray(line.resize((shown_width, round(40 * shown_width / width)), Image.Resampling.NEAREST))
    strokes = (shown.mean(axis=2) < darkest).any(axis=0)
    assert np.count_nonzero(np.diff(strokes.astype(int)) == 1) == 12


def test_the_type_of_a_panel_with_many_columns_fits_its_cells():
    assert Typography.of_width(5000).caption.size == typesetting.LARGEST_CAPTION


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.234e-4, "1.2e-04"), (0.123456, "0.123"), (12.0, "12"), (999.0, "999"), (12345.0, "1.2e+04")],
)
def test_numbers_of_the_colour_bar(value, text):
    assert composition._number(value) == text


# Panels


def test_tiles_are_shown_pixel_by_pixel():
    panel = make_panel(probes=1, size=(100, 150))
    inputs = torch.randint(0, 256, (1, 100, 150, 3), dtype=torch.uint8)
    drawn = torch.randint(0, 256, (1, 100, 150, 3), dtype=torch.uint8)

    image = compose(with_column(replace(panel, inputs=inputs), overlays=drawn))

    assert image.dtype == np.uint8
    first, second = slice(LEFT, LEFT + 150), slice(LEFT + 150 + GAP, LEFT + 300 + GAP)
    top = next(y for y in range(len(image)) if np.array_equal(image[y, first], inputs[0, 0].numpy()))
    assert np.array_equal(image[top : top + 100, first], inputs[0].numpy())
    assert np.array_equal(image[top : top + 100, second], drawn[0].numpy())


@pytest.mark.parametrize("text", ["", " ", "\n", "\x00\t", "\udce9.jpg", "猫 🐈 قطة"])
def test_any_string_can_be_written(text):
    panel = replace(make_panel(probes=1), title=text, captions=(text,), correct=(False,))
    image = compose(with_column(panel, title=text, captions=(text,), verdicts=(text,)))
    assert count(image, (10, 60, 200)) == 168 * 168


@pytest.mark.parametrize("probes", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("columns", [1, 4])
def test_every_probe_and_every_column_is_there(probes, columns):
    size = 20 * 30
    image = compose(make_panel(probes, (20, 30), columns))
    assert count(image, (10, 60, 200)) == probes * size
    assert count(image, (250, 150, 20)) == probes * columns * size


@pytest.mark.parametrize("probes", [1, 16])
def test_a_panel_has_one_row_a_probe(probes):
    """More side by side would be smaller where it is shown 350 pixels wide."""
    assert compose(make_panel(probes)).shape[1] == 2 * 168 + GAP + 2 * LEFT


def test_row_grows_with_its_caption():
    panel = make_panel()
    short = compose(panel)
    long = compose(with_column(panel, captions=("cat 0.93", f"{LONG_NAME} 0.93", "cat 0.93")))

    lines = len(typeset(f"{LONG_NAME} 0.93", 168, CAPTION).lines)
    assert lines >= 3
    assert long.shape[1] == short.shape[1]
    assert len(long) - len(short) == (lines - 1) * CAPTION.line_height


@pytest.mark.parametrize("text", ["W" * 300, f"{LONG_NAME} {LONG_NAME}"])
def test_no_text_leaves_its_column(text):
    panel = make_panel(probes=2, columns=2, shared=True)
    columns = tuple(replace(column, title=text, captions=(text, "short")) for column in panel.columns)
    panel = replace(panel, title=text, captions=("short", text), columns=columns, correct=(True, None))

    image = compose(panel)

    paper = image.min(axis=-1) > 200  # the soft edge round a tile counts as paper
    assert paper[: LEFT - 4].all()
    assert paper[4 - LEFT :].all()
    headings_end = next(y for y in range(len(image)) if (image[y, LEFT] == (10, 60, 200)).all())
    for left_of_gap in (LEFT + 168, LEFT + 2 * 168 + GAP):
        assert paper[headings_end:, left_of_gap + 1 : left_of_gap + GAP - 1].all()
    for margin in (paper[:, : LEFT - 4], paper[:, 4 - LEFT :]):
        assert margin.all()


def test_wrong_prediction_has_a_frame_and_a_cross_and_a_right_one_a_tick():
    panel = make_panel()
    none, right, wrong = (compose(replace(panel, correct=(None, answer, None))) for answer in (None, True, False))
    unlike_shape = np.asarray(composition._mark(True, 14)) != np.asarray(composition._mark(False, 14))

    assert count(none, composition.WRONG) == count(none, composition.RIGHT) == 0
    assert count(right, composition.WRONG) == 0
    assert 15 < count(right, composition.RIGHT) < CAPTION.size**2
    assert count(wrong, composition.RIGHT) == 0
    assert count(wrong, composition.WRONG) > 4 * composition.FRAME * 168
    assert count(wrong, (10, 60, 200)) == count(none, (10, 60, 200))  # the frame covers nothing of the image
    assert unlike_shape.mean() > 0.2


def test_verdict_is_hatched_and_takes_the_place_of_its_overlay_alone():
    panel = make_panel()
    plain = compose(panel)
    image = compose(with_column(panel, verdicts=(None, "no gradient\ndetached", None)))

    assert image.shape == plain.shape
    assert count(image, (250, 150, 20)) == 2 * 168 * 168
    assert count(image, (10, 60, 200)) == 3 * 168 * 168
    dark, light = composition.HATCH
    for shade in (dark, light):
        assert count(plain, shade) == 0
        assert count(image, shade) > 0.2 * 168 * 168
    ys, xs = np.nonzero((image != plain).any(axis=-1))
    assert ys.max() - ys.min() <= 170
    assert xs.min() >= LEFT + 168
    assert count(image[ys.min() : ys.max(), xs.min() : xs.max()], typesetting.INK) > 20  # the words


def test_hatch_runs_diagonally():
    hatch = composition._hatch(64, 64)
    assert np.array_equal(hatch[1:, :-1], hatch[:-1, 1:])
    assert len(np.unique(hatch[0], axis=0)) > 1


@pytest.mark.parametrize("size", [(16, 168), (168, 16)])
def test_long_verdict_makes_room_for_itself(size):
    panel = make_panel(probes=1, size=size)
    short = compose(with_column(panel, verdicts=("zero",)))
    long = compose(with_column(panel, verdicts=(f"not finite\nNaN first appears in {LONG_NAME} " * 3,)))
    width = max(168 if size[1] == 168 else 0, composition.NARROWEST_CELL) - 4 * composition.PLATE_PADDING
    type_ = Typography.of_width(2 * (width + 4 * composition.PLATE_PADDING) + GAP + 2 * LEFT)
    needed = typeset(f"not finite\nNaN first appears in {LONG_NAME} " * 3, width, type_.verdict).height
    assert len(long) >= max(len(short), needed)
    assert count(long, typesetting.INK) > count(short, typesetting.INK)


def test_colour_bar_shows_the_table_from_left_to_right():
    panel = replace(make_panel(probes=1), table=colormap_table("turbo"))
    image = compose(panel)
    lowest, highest = (tuple(panel.table[end].tolist()) for end in (0, 255))

    (left,) = set(np.nonzero((image == np.array(lowest)).all(axis=-1))[1].tolist())
    (right,) = set(np.nonzero((image == np.array(highest)).all(axis=-1))[1].tolist())

    assert (left, right) == (LEFT + 168 + GAP, LEFT + 168 + GAP + 167)
    assert count(image, highest) == composition.BAR_HEIGHT


def texts_of(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    draw = typesetting.Text.draw

    def note(self, *args, **kwargs):
        written.extend(line for line, _ in self.lines)
        draw(self, *args, **kwargs)

    monkeypatch.setattr(typesetting.Text, "draw", note)
    compose(panel)
    return written


def test_everything_is_written(monkeypatch):
    panel = with_column(make_panel(probes=2, columns=2), verdicts=(None, "no gradient"))
    written = texts_of(panel, monkeypatch)
    assert {"layer4", EPOCH_LINE, "input", "predicted", "#0", "#1", "cat 0.93", "no gradient"} <= set(written)
    assert written.count("cat 0.93") == 4
    assert written.count("max of each") == 1


def test_shared_scale_has_a_bar_with_a_number_a_column(monkeypatch):
    panel = make_panel(columns=2, shared=True)
    peaks = torch.tensor([NAN, 0.25, 0.25])
    panel = replace(panel, columns=(panel.columns[0], replace(panel.columns[1], peaks=peaks)))
    written = texts_of(panel, monkeypatch)
    assert "1.2e-04" in written
    assert "0.25" in written
    assert "max of each" not in written


def test_shared_scale_without_a_map(monkeypatch):
    panel = make_panel(shared=True)
    written = texts_of(with_column(panel, peaks=torch.full((3,), NAN), verdicts=("zero",) * 3), monkeypatch)
    assert "no map" in written


def test_threads_draw_what_one_would():
    panels = [
        with_column(
            make_panel(probes=3 + index % 3, columns=1 + index % 2),
            captions=(f"{LONG_NAME} {index}",) * (3 + index % 3),
            verdicts=("no gradient", *(None,) * (2 + index % 3)),
        )
        for index in range(12)
    ]
    serial = [compose(panel) for panel in panels]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(compose, panels))
    assert all(np.array_equal(one, other) for one, other in zip(serial, threaded, strict=True))


def mismatched() -> list[tuple[Panel, str]]:
    panel = make_panel()
    return [
        (make_panel(probes=0), "0 probes and 1 columns"),
        (replace(panel, columns=()), "3 probes and 0 columns"),
        (replace(panel, captions=("a", "b")), "captions: .*2 for 3"),
        (replace(panel, correct=(True,)), "correct: .*1 for 3"),
        (with_column(panel, captions=()), "predicted: captions: .*0 for 3"),
        (with_column(panel, verdicts=(None,) * 4), "predicted: verdicts: .*4 for 3"),
        (with_column(panel, overlays=panel.inputs[:, ::2]), r"\(3, 84, 168, 3\).*\(3, 168, 168, 3\)"),
    ]


@pytest.mark.parametrize(("panel", "message"), mismatched())
def test_parts_that_do_not_fit_together(panel, message):
    with pytest.raises(ValueError, match=message):
        compose(panel)


def test_the_heading_of_the_inputs_says_more_where_there_is_more_to_say(monkeypatch):
    panel = replace(make_panel(probes=5), input_title="input\nchannels 0, 1, 2 of 6")
    assert {"input", "channels 0, 1, 2 of 6"} <= set(texts_of(panel, monkeypatch))


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """16 parts of the photograph that ships with matplotlib: `(16, 3, 224, 224)` uint8."""
    from matplotlib import cbook

    whole = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    parts = [(x, y, x + 256, y + 256) for y in (0, 90, 180, 300) for x in (0, 90, 180, 250)]
    tiles_ = [np.asarray(whole.crop(part).resize((224, 224))) for part in parts]
    return torch.tensor(np.stack(tiles_)).permute(0, 3, 1, 2)


def panel_of(images: torch.Tensor, *, is_photograph: bool) -> Panel:
    size = tile_size(*images.shape[2:])
    shown, table = displayable(images), colormap_table("turbo")
    maps = torch.rand(2, len(images), 7, 7, generator=torch.Generator().manual_seed(0)) ** 3
    columns = []
    for title, own in zip(("predicted", "label"), maps, strict=True):
        drawn, peaks = overlays(shown, own, table, 0.5, size)
        columns.append(PanelColumn(title, drawn, ("cat 0.93",) * len(images), (None,) * len(images), peaks))
    captions, correct = ("#3\nlabel: cat\npredicted: cat 0.93",) * len(images), (True,) * len(images)
    inputs = tiles(shown, size)
    return Panel("net", inputs, captions, correct, tuple(columns), table, False, is_photograph=is_photograph)


def test_a_panel_of_16_photographs_takes_less_than_a_megabyte_and_looks_the_same(photographs):
    panel = panel_of(photographs, is_photograph=True)
    encoded, whole = composition.encode(panel), compose(panel).astype(float)
    shown = np.asarray(Image.open(io.BytesIO(encoded.content)).convert("RGB")).astype(float)
    assert encoded.suffix == "jpg"
    assert len(encoded.content) < 1e6
    assert (encoded.height, encoded.width) == whole.shape[:2]
    assert 10 * np.log10(255**2 / ((shown - whole) ** 2).mean()) > 36  # decibels


def test_what_is_drawn_pixel_by_pixel_loses_nothing(photographs):
    panel = panel_of(photographs[:2, :, ::4, ::4], is_photograph=False)
    encoded = composition.encode(panel)
    assert encoded.suffix == "png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded.content))), compose(panel))
