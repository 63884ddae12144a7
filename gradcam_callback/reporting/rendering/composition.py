"""From tiles and words to one picture, on the host, with Pillow. All lengths are in pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gradcam_callback.errors import BadInputError
from gradcam_callback.reporting.panel import Panel, PanelColumn
from gradcam_callback.reporting.rendering.typesetting import SOFT_INK, Text, Typography, typeset

Pixels = NDArray[np.uint8]

MARGIN = 24  # around the whole panel
GAP = 14  # between the tiles of a row
NARROWEST_CELL = 144  # a thinner tile stands in a cell of this width, so that its caption has room

JPEG_QUALITY = 80

PAPER = (255, 255, 255)
EDGE = (209, 215, 222)
RIGHT = (26, 127, 55)
WRONG = (207, 34, 46)
HATCH = (205, 210, 216), (230, 233, 237)


@dataclass(frozen=True)
class EncodedImage:
    """A picture as a file.

    Attributes:
        content: The file's bytes.
        height: In pixels.
        width: In pixels.
        suffix: "png" or "jpg".
    """

    content: bytes
    height: int
    width: int
    suffix: str = "png"


def encode(panel: Panel) -> EncodedImage:
    """Compose a panel and encode it: photographs as JPEG, what is drawn pixel by pixel as PNG."""
    pixels = compose(panel)
    buffer = io.BytesIO()
    if panel.is_photograph:
        # Colours as fine as the rest, because the captions are part of the picture.
        Image.fromarray(pixels).save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    else:
        Image.fromarray(pixels).save(buffer, "png")
    height, width = pixels.shape[:2]
    return EncodedImage(buffer.getvalue(), height, width, "jpg" if panel.is_photograph else "png")


def compose(panel: Panel) -> Pixels:
    """Put a panel together: a heading, a row a probe (its input, then an overlay a target), and the colour bar.

    Captions and headings wrap, and their rows grow. The type grows with the panel's width, so that it can be read where
    the panel is shown small. Safe to call from several threads at once.

    Args:
        panel: Tiles, captions and verdicts, on the CPU.

    Returns:
        `(height, width, 3)` uint8, dark on white.

    Raises:
        ValueError: If the parts of the panel do not fit together.
    """
    _check(panel)
    grid = _Grid(max(NARROWEST_CELL, panel.inputs.shape[2]), 1 + len(panel.columns))
    rows = (_Row(_probe_cells(panel, probe, grid)) for probe in range(len(panel.inputs)))
    bands = [
        _title_band(panel, grid),
        _headings_band(panel, grid),
        *(_row_band(row, grid) for row in rows),
        _bar_band(panel, grid),
    ]
    return np.concatenate([np.asarray(band) for band in bands])


def _check(panel: Panel) -> None:
    probes = len(panel.inputs)
    if not probes or not panel.columns:
        raise BadInputError(
            f"a panel needs probes and columns, but has {probes} probes and {len(panel.columns)} columns"
        )
    lengths = [("captions", len(panel.captions)), ("correct", len(panel.correct))]
    for column in panel.columns:
        lengths += [(f"{column.title}: captions", len(column.captions))]
        lengths += [(f"{column.title}: verdicts", len(column.verdicts))]
        if column.overlays.shape != panel.inputs.shape:
            raise BadInputError(
                f"{column.title}: the shape of the overlays is {tuple(column.overlays.shape)}, that of the inputs "
                f"{tuple(panel.inputs.shape)}; both must be tiles of one size"
            )
    for name, length in lengths:
        if length != probes:
            raise BadInputError(f"{name}: there must be one a probe, but there are {length} for {probes} probes")


# Cells: a tile and its caption

CAPTION_GAP = 7
ROW_TOP = 6
ROW_BOTTOM = 16
FRAME = 4
MARK_GAP = 6
PLATE_PADDING = 8


@dataclass(frozen=True)
class _Cell:
    """A tile, or a verdict in its place, and the caption beneath."""

    tile: Pixels
    caption: Text
    verdict: Text | None = None
    correct: bool | None = None

    @property
    def tile_height(self) -> int:
        if self.verdict is None:
            return len(self.tile)
        return max(len(self.tile), self.verdict.height + 4 * PLATE_PADDING)


def _probe_cells(panel: Panel, probe: int, grid: _Grid) -> list[_Cell]:
    type_, width, correct = grid.type, grid.cell_width, panel.correct[probe]
    room = width if correct is None else width - grid.mark - MARK_GAP
    caption = typeset(panel.captions[probe], room, type_.caption, type_.remark)
    cells = [_Cell(panel.inputs[probe].numpy(), caption, correct=correct)]
    for column in panel.columns:
        verdict = column.verdicts[probe]
        room = width - 4 * PLATE_PADDING
        plate = None if verdict is None else typeset(verdict, room, type_.verdict, type_.caption)
        caption = typeset(column.captions[probe], width, type_.caption, type_.remark)
        cells.append(_Cell(column.overlays[probe].numpy(), caption, plate))
    return cells


@dataclass(frozen=True)
class _Row:
    """One row of the panel: the cells of a probe."""

    cells: Sequence[_Cell]

    @property
    def tile_height(self) -> int:
        return max(cell.tile_height for cell in self.cells)

    @property
    def caption_top(self) -> int:
        return ROW_TOP + self.tile_height + CAPTION_GAP

    @property
    def height(self) -> int:
        return self.caption_top + max(cell.caption.height for cell in self.cells) + ROW_BOTTOM


# The grid: where the cells stand


@dataclass(frozen=True)
class _Grid:
    cell_width: int
    columns: int

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.columns * (self.cell_width + GAP) - GAP

    @property
    def type(self) -> Typography:
        return Typography.of_width(self.width)

    @property
    def mark(self) -> int:
        """The side of a tick or a cross."""
        return self.type.caption.size

    def x(self, column: int) -> int:
        """The left side of a cell."""
        return MARGIN + column * (self.cell_width + GAP)

    def band(self, height: int) -> Image.Image:
        """Empty paper, as wide as the panel."""
        return Image.new("RGB", (self.width, height), PAPER)


# Bands: strips as wide as the panel, stacked to make it

BAR_HEIGHT = 12
TICK_HEIGHT = 5


def _title_band(panel: Panel, grid: _Grid) -> Image.Image:
    title = typeset(panel.title, grid.width - 2 * MARGIN, grid.type.title, grid.type.subtitle)
    band = grid.band(MARGIN - 4 + title.height + 12)
    title.draw(ImageDraw.Draw(band), MARGIN, MARGIN - 4)
    return band


def _headings_band(panel: Panel, grid: _Grid) -> Image.Image:
    texts = [panel.input_title, *(column.title for column in panel.columns)]
    headings = [typeset(text, grid.cell_width, grid.type.heading, grid.type.remark) for text in texts]
    height = max(heading.height for heading in headings)
    band = grid.band(height + 2)
    draw = ImageDraw.Draw(band)
    for column, heading in enumerate(headings):
        heading.draw(draw, grid.x(column), height - heading.height)
    return band


def _row_band(row: _Row, grid: _Grid) -> Image.Image:
    band = grid.band(row.height)
    for column, cell in enumerate(row.cells):
        x = grid.x(column)
        if cell.verdict is None:
            _draw_tile(band, cell, x, ROW_TOP + (row.tile_height - len(cell.tile)) // 2)
        else:
            _draw_verdict(band, cell.verdict, x, (row.tile_height, grid.cell_width))
        _draw_caption(band, cell, x, row.caption_top, grid)
    return band


def _draw_tile(band: Image.Image, cell: _Cell, x: int, y: int) -> None:
    height, width = cell.tile.shape[:2]
    frame, colour = (FRAME, WRONG) if cell.correct is False else (1, EDGE)
    around = (x - frame, y - frame, x + width + frame - 1, y + height + frame - 1)
    ImageDraw.Draw(band).rectangle(around, outline=colour, width=frame)
    band.paste(Image.fromarray(cell.tile), (x, y))


def _draw_verdict(band: Image.Image, verdict: Text, x: int, size: tuple[int, int]) -> None:
    height, width = size
    draw = ImageDraw.Draw(band)
    draw.rectangle((x - 1, ROW_TOP - 1, x + width, ROW_TOP + height), outline=EDGE)
    band.paste(Image.fromarray(_hatch(height, width)), (x, ROW_TOP))
    middle, top = x + width // 2, ROW_TOP + (height - verdict.height) // 2
    half = verdict.width // 2 + PLATE_PADDING
    plate = (middle - half, top - PLATE_PADDING, middle + half, top + verdict.height + PLATE_PADDING)
    draw.rounded_rectangle(plate, radius=4, fill=PAPER, outline=EDGE)
    verdict.draw(draw, middle, top, anchor="m")


def _draw_caption(band: Image.Image, cell: _Cell, x: int, y: int, grid: _Grid) -> None:
    if cell.correct is not None:
        colour = RIGHT if cell.correct else WRONG
        below = (grid.type.caption.line_height - grid.mark) // 2
        band.paste(colour, (x, y + below), _mark(cell.correct, grid.mark))
        x += grid.mark + MARK_GAP
    cell.caption.draw(ImageDraw.Draw(band), x, y)


def _bar_band(panel: Panel, grid: _Grid) -> Image.Image:
    """One bar for all columns where each map has its own scale, else one a column."""
    columns = range(1, grid.columns)
    if panel.shared_scale:
        scale = "one scale for all" if len(columns) == 1 else "one scale a column"
        bars = [(column, column, _peak(panel.columns[column - 1])) for column in columns]
    else:
        scale = "each map on its own scale"
        bars = [(columns[0], columns[-1], "max of each")]
    type_ = grid.type.tick_label
    legend = typeset(scale, grid.cell_width, type_)
    band = grid.band(max(legend.height, BAR_HEIGHT + TICK_HEIGHT + type_.line_height) + MARGIN)
    legend.draw(ImageDraw.Draw(band), grid.x(0), (BAR_HEIGHT - type_.line_height) / 2)
    for first, last, end in bars:
        _draw_bar(band, panel.table.numpy(), (grid.x(first), grid.x(last) + grid.cell_width), end, grid)
    return band


def _draw_bar(band: Image.Image, table: Pixels, sides: tuple[int, int], end: str, grid: _Grid) -> None:
    left, right = sides
    width = right - left
    levels = np.linspace(0, len(table) - 1, width).round().astype(int)
    bar = table[levels][None].repeat(BAR_HEIGHT, axis=0)
    band.paste(Image.fromarray(bar), (left, 0))
    draw = ImageDraw.Draw(band)
    for quarter in range(5):
        x = left + quarter * (width - 1) // 4
        draw.line((x, BAR_HEIGHT, x, BAR_HEIGHT + TICK_HEIGHT - 1), fill=SOFT_INK)
    y = BAR_HEIGHT + TICK_HEIGHT
    typeset("0", width, grid.type.tick_label).draw(draw, left, y)
    typeset(end, width, grid.type.tick_label).draw(draw, right, y, anchor="r")


def _peak(column: PanelColumn) -> str:
    peaks = column.peaks[column.peaks.isfinite()]
    return _number(float(peaks.max())) if len(peaks) else "no map"


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.3g}" if 0.01 <= value < 999.5 else f"{value:.1e}"


@lru_cache(maxsize=32)
def _hatch(height: int, width: int) -> Pixels:
    """Diagonal stripes with soft edges, in two greys."""
    y, x = np.ogrid[:height, :width]
    share = np.clip(np.abs((x + y) % 16 - 8.0) - 3.5, 0, 1)[..., None]
    dark, light = np.array(HATCH)
    stripes: Pixels = np.round(dark + (light - dark) * share).astype(np.uint8)
    return stripes


@lru_cache(maxsize=16)
def _mark(correct: bool, side: int) -> Image.Image:
    """A tick or a cross, drawn four times too large and reduced, which makes its edges smooth."""
    large = Image.new("L", (4 * side, 4 * side))
    draw = ImageDraw.Draw(large)
    tick = [[(0.07, 0.54), (0.36, 0.82), (0.89, 0.18)]]
    cross = [[(0.14, 0.14), (0.86, 0.86)], [(0.86, 0.14), (0.14, 0.86)]]
    for stroke in tick if correct else cross:
        points = [(4 * side * x, 4 * side * y) for x, y in stroke]
        draw.line(points, fill=255, width=max(10, round(0.17 * 4 * side)), joint="curve")
    return large.reduce(4)
