"""From images, maps and verdicts to one picture. Pure: no model, no trainer, no TensorBoard.

Two stages. The first runs in torch on the device that holds the images, and never makes the host wait for it:
`displayable`, then `tiles` and `overlays`. The second, `compose`, runs on the host in any thread, and puts tiles,
captions and colour bar together with Pillow. In between they travel as `records.Panel`.

Axes: `N` probes, `C` image channels, `H W` the image, `h w` the map, `th tw` the tile. All lengths are in pixels.
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gradcam_callback.errors import BadInputError
from gradcam_callback.results import Panel, PanelColumn

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# The longest side of a tile lies between the first two; no side is thinner than the third.
SMALL_TILE = 168
LARGE_TILE = 256
THIN_TILE = 16

# A panel that would be taller than this many times its width is folded, as a newspaper is, into blocks side by side.
TALLEST_PANEL = 2.5

MARGIN = 24  # around the whole panel
GAP = 14  # between the tiles of a row
BLOCK_GAP = 44  # between two blocks of a folded panel
NARROWEST_CELL = 144  # a thinner tile stands in a cell of this width, so that its caption has room

PAPER = (255, 255, 255)
INK = (31, 35, 40)
SOFT_INK = (89, 99, 110)
EDGE = (209, 215, 222)
RIGHT = (26, 127, 55)
WRONG = (207, 34, 46)
HATCH = (205, 210, 216), (230, 233, 237)


# --- Stage one: on the device ----------------------------------------------------------------------------------------


def colormap_table(name: str) -> Tensor:
    """Look up a colormap in matplotlib's tables.

    Args:
        name: Any name that matplotlib knows, e.g. "turbo", "viridis" or "jet"; an "_r" at the end turns it round.

    Returns:
        `(256, 3)` uint8 on the CPU: red, green and blue, from the lowest value to the highest.

    Raises:
        ValueError: If matplotlib knows no such colormap.
    """
    from matplotlib import colormaps  # here, since it takes a third of a second that only those who draw should pay

    if name not in colormaps:
        near = difflib.get_close_matches(name, list(colormaps), n=3) or ["turbo", "viridis", "jet"]
        raise BadInputError(
            f"unknown colormap {name!r}; did you mean {', '.join(map(repr, near))}? "
            "`from matplotlib import colormaps; print(list(colormaps))` shows all of them"
        )
    colours = colormaps[name](np.linspace(0, 1, 256), bytes=True)
    return torch.from_numpy(np.array(colours, dtype=np.uint8)[:, :3].copy())


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Choose the size at which an image is shown.

    A small image grows by a whole factor, so that no pixel has to be blurred; a large one shrinks to a longest side of
    256; the others stay as they are. The aspect is kept, unless a side would be thinner than 16 pixels.

    Args:
        height: Height of the image.
        width: Width of the image.

    Returns:
        `(th, tw)`.
    """
    longest = max(height, width)
    if longest > LARGE_TILE:
        scale = LARGE_TILE / longest
        return max(THIN_TILE, round(height * scale)), max(THIN_TILE, round(width * scale))
    factor = max(1, min(math.ceil(SMALL_TILE / longest), LARGE_TILE // longest))
    return height * max(factor, math.ceil(THIN_TILE / height)), width * max(factor, math.ceil(THIN_TILE / width))


def displayable(images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """Turn what the model sees back into images that people can look at.

    Where `mean` or `std` is given, the normalisation is undone. Without them, images within 0..1 are shown as they
    are, and otherwise each image is scaled by its own range; a flat one becomes grey. uint8 images are divided by 255.
    One channel is shown as grey, of two their mean, of more than three the first three. Pixels that are not finite do
    not touch the others: NaN and -inf are black, inf is white.

    Args:
        images: `(N, C, H, W)`, of any number type.
        mean: What was subtracted from each channel: C numbers, or one for all.
        std: What each channel was divided by: C numbers, or one for all.

    Returns:
        `(N, 3, H, W)` float32 in 0..1, on the device of the images.

    Raises:
        ValueError: If `images` has another number of axes, or `mean` or `std` another length than there are channels.
    """
    if images.ndim != 4:
        raise BadInputError(f"images must have the axes (N, C, H, W), but their shape is {tuple(images.shape)}")
    means = _per_channel("mean", mean, images.shape[1], missing=0.0)
    stds = _per_channel("std", std, images.shape[1], missing=1.0)
    if images.dtype == torch.uint8:
        return _as_rgb(images.float() / 255)
    images = images.float()
    if mean is None and std is None:
        return _within_range(_as_rgb(images))
    # Channel by channel, because a tensor made of the numbers would have to be copied to the device.
    planes = [plane * s + m for plane, m, s in zip(images.unbind(1), means, stds, strict=True)]
    return _clean(_as_rgb(torch.stack(planes, dim=1)))


def tiles(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring images to the size of a tile: enlarged by a whole factor without blur, otherwise smoothly.

    Args:
        images: `(N, 3, H, W)` float32 in 0..1, as `displayable` makes them.
        size: `(th, tw)`, as `tile_size` chooses it.

    Returns:
        `(N, th, tw, 3)` uint8, on the device of the images.
    """
    return _as_bytes(_resized(images, size))


def overlays(
    images: Tensor, maps: Tensor, table: Tensor, opacity: float, size: tuple[int, int], *, shared_scale: bool
) -> tuple[Tensor, Tensor]:
    """Colour each map and blend it with its image.

    A map is enlarged bilinearly and divided by its peak. An all-zero map stays zero. A map with a value that is not
    finite is not drawn: its tile is the plain image, its peak is NaN, and the other maps do not notice it.

    Args:
        images: `(N, 3, H, W)` float32 in 0..1, as `displayable` makes them.
        maps: `(N, h, w)` float32, at least 0, on the device of the images.
        table: `(256, 3)` uint8, as `colormap_table` makes it; on the device of the images it need not be copied.
        opacity: How strongly the map covers the image, from 0 to 1.
        size: `(th, tw)`, as `tile_size` chooses it.
        shared_scale: Divide all maps by the highest of their peaks, rather than each by its own.

    Returns:
        `(N, th, tw, 3)` uint8 tiles, and `(N,)` float32 peaks: the value that the end of the colour bar stands for.

    Raises:
        ValueError: If `opacity` lies outside 0..1, or there is not one map an image.
    """
    if not 0 <= opacity <= 1:
        raise BadInputError(f"opacity must lie between 0 (only the image) and 1 (only the map), but is {opacity}")
    if len(maps) != len(images):
        raise BadInputError(f"there must be one map an image, but there are {len(maps)} maps and {len(images)} images")
    drawn = maps.isfinite().flatten(1).all(dim=1)[:, None, None]
    maps = torch.where(drawn, maps.float(), 0.0)
    maps = F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    if shared_scale:
        peaks = peaks.amax().expand_as(peaks)
    levels = torch.where(peaks > 0, maps / peaks, 0.0)  # (N, th, tw), 0..1
    table = table.to(maps.device, torch.float32, non_blocking=True) / 255
    colours = F.embedding((levels * 255).round().int(), table)  # (N, th, tw, 3)
    blended = torch.lerp(_resized(images, size), colours, drawn.float().unsqueeze(-1) * opacity)
    return _as_bytes(blended), torch.where(drawn, peaks, torch.nan).flatten()


def _per_channel(name: str, numbers: Sequence[float] | None, channels: int, missing: float) -> Sequence[float]:
    if numbers is None or len(numbers) == 1:
        return [missing if numbers is None else numbers[0]] * channels
    if len(numbers) != channels:
        raise BadInputError(
            f"{name} has {len(numbers)} numbers, but the images have {channels} channels; "
            f"give {channels} numbers, one a channel, or a single one for all"
        )
    return numbers


def _as_rgb(images: Tensor) -> Tensor:
    if images.shape[1] < 3:
        return images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return images[:, :3]


def _within_range(images: Tensor) -> Tensor:
    low = images.nan_to_num(math.inf, math.inf, math.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = images.nan_to_num(-math.inf, -math.inf, -math.inf).amax(dim=(1, 2, 3), keepdim=True)
    # One answer for all probes: they come from one pipeline, and a dim image among normalised ones proves nothing.
    shown_as_is = (low.amin() >= 0) & (high.amax() <= 1)
    flat = high <= low
    start = torch.where(shown_as_is, 0.0, low)
    span = torch.where(shown_as_is | flat, 1.0, high - low)
    lift = torch.where(flat & ~shown_as_is, 0.5, 0.0)
    return _clean((images - start).div_(span).add_(lift))


def _clean(images: Tensor) -> Tensor:
    return images.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp_(0, 1)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(N, 3, H, W)` and put the colours last, as pictures have them: `(N, th, tw, 3)`, contiguous."""
    height, width = images.shape[-2:]
    if size[0] % height == 0 and size[1] % width == 0:
        resized = F.interpolate(images, size=size, mode="nearest-exact")
    else:
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def _as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round_().to(torch.uint8)


# --- Stage two: on the host ------------------------------------------------------------------------------------------


def compose(panel: Panel) -> Pixels:
    """Put a panel together: a heading, a row a probe (its input, then an overlay a target), and the colour bar.

    Nothing that is written is ever cut: captions and headings wrap, and their rows grow. Many probes are folded into
    blocks side by side, so that the panel does not become a strip. Safe to call from several threads at once.

    Args:
        panel: Tiles, captions and verdicts, on the CPU.

    Returns:
        `(height, width, 3)` uint8, dark on white.

    Raises:
        ValueError: If the parts of the panel do not fit together.
    """
    _check(panel)
    cell_width = max(NARROWEST_CELL, panel.inputs.shape[2])
    probes = [_probe_cells(panel, probe, cell_width) for probe in range(len(panel.inputs))]
    grid = _fold(probes, cell_width)
    bands = [
        _title_band(panel, grid),
        _headings_band(panel, grid),
        *(_row_band(_Row(probes[row :: grid.rows]), grid) for row in range(grid.rows)),
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


# Text


@dataclass(frozen=True)
class _Style:
    size: int
    bold: bool = False
    colour: Colour = INK

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        return _font(self.size, self.bold)

    @property
    def line_height(self) -> int:
        return round(self.size * 1.4)


TITLE = _Style(20, bold=True)
SUBTITLE = _Style(14, colour=SOFT_INK)
HEADING = _Style(14, bold=True)
CAPTION = _Style(13)
REMARK = _Style(13, colour=SOFT_INK)
VERDICT = _Style(13, bold=True)
TICK_LABEL = _Style(12, colour=SOFT_INK)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # DejaVu Sans ships with matplotlib, so that no font has to be installed

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


@dataclass(frozen=True)
class _Text:
    """Lines that fit a width, each in its style."""

    lines: tuple[tuple[str, _Style], ...]

    @property
    def height(self) -> int:
        return sum(style.line_height for _, style in self.lines)

    @property
    def width(self) -> int:
        return math.ceil(max((style.font.getlength(line) for line, style in self.lines), default=0))

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, anchor: str = "l") -> None:
        """Write the lines from `y` downwards; `x` is their left end ("l"), middle ("m") or right end ("r")."""
        for line, style in self.lines:
            draw.text((x, y + style.line_height / 2), line, fill=style.colour, font=style.font, anchor=f"{anchor}m")
            y += style.line_height


def _typeset(text: str, width: int, first: _Style, rest: _Style | None = None) -> _Text:
    """Wrap a text to a width; its first paragraph in one style, the others in another."""
    styles = [first, *[rest or first] * text.count("\n")]
    paragraphs = zip(text.split("\n"), styles, strict=True)
    return _Text(tuple((line, style) for words, style in paragraphs for line in _wrapped(words, style.font, width)))


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        *full_lines, line = _broken(word, font, width)
        yield from full_lines
    if line:
        yield line


def _broken(word: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """Break a word that is wider than a line, after a mark such as "_" where there is one in the line's later half."""
    while font.getlength(word) > width:
        fitting = bisect_right(range(1, len(word)), width, key=lambda count: math.ceil(font.getlength(word[:count])))
        end = max(1, fitting)
        while end > 1 and unicodedata.combining(word[end]):
            end -= 1  # an accent stays with its letter
        seams = (count for count in range(end, end // 2, -1) if word[count - 1] in "_-/.,:;|\\")
        end = next(seams, end)
        yield word[:end]
        word = word[end:]
    yield word


# Cells: a tile and its caption

CAPTION_GAP = 7
ROW_TOP = 6
ROW_BOTTOM = 16
FRAME = 4
MARK = 14
MARK_GAP = 6
PLATE_PADDING = 8


@dataclass(frozen=True)
class _Cell:
    """A tile, or a verdict in its place, and the caption beneath."""

    tile: Pixels
    caption: _Text
    verdict: _Text | None = None
    correct: bool | None = None

    @property
    def tile_height(self) -> int:
        if self.verdict is None:
            return len(self.tile)
        return max(len(self.tile), self.verdict.height + 4 * PLATE_PADDING)


def _probe_cells(panel: Panel, probe: int, width: int) -> list[_Cell]:
    correct = panel.correct[probe]
    room = width if correct is None else width - MARK - MARK_GAP
    caption = _typeset(panel.captions[probe], room, CAPTION, REMARK)
    cells = [_Cell(panel.inputs[probe].numpy(), caption, correct=correct)]
    for column in panel.columns:
        verdict = column.verdicts[probe]
        plate = None if verdict is None else _typeset(verdict, width - 4 * PLATE_PADDING, VERDICT, CAPTION)
        caption = _typeset(column.captions[probe], width, CAPTION, REMARK)
        cells.append(_Cell(column.overlays[probe].numpy(), caption, plate))
    return cells


@dataclass(frozen=True)
class _Row:
    """One row of the panel: the cells of a probe, and beside them those of the other blocks' probes."""

    probes: Sequence[Sequence[_Cell]]

    @property
    def tile_height(self) -> int:
        return max(cell.tile_height for cells in self.probes for cell in cells)

    @property
    def caption_top(self) -> int:
        return ROW_TOP + self.tile_height + CAPTION_GAP

    @property
    def height(self) -> int:
        return self.caption_top + max(cell.caption.height for cells in self.probes for cell in cells) + ROW_BOTTOM


# The grid: where the cells stand


@dataclass(frozen=True)
class _Grid:
    cell_width: int
    columns: int
    blocks: int
    rows: int

    @property
    def block_width(self) -> int:
        return self.columns * (self.cell_width + GAP) - GAP

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.blocks * (self.block_width + BLOCK_GAP) - BLOCK_GAP

    def x(self, block: int, column: int) -> int:
        """The left side of a cell."""
        return MARGIN + block * (self.block_width + BLOCK_GAP) + column * (self.cell_width + GAP)

    def band(self, height: int) -> Image.Image:
        """Empty paper, as wide as the panel."""
        return Image.new("RGB", (self.width, height), PAPER)


def _fold(probes: Sequence[Sequence[_Cell]], cell_width: int) -> _Grid:
    """Take the fewest blocks that do not make the panel a strip; the last may be shorter than the others."""
    for blocks in range(1, len(probes) + 1):
        rows = math.ceil(len(probes) / blocks)
        grid = _Grid(cell_width, len(probes[0]), math.ceil(len(probes) / rows), rows)
        if sum(_Row(probes[row::rows]).height for row in range(rows)) <= TALLEST_PANEL * grid.width:
            break
    return grid


# Bands: strips as wide as the panel, stacked to make it

BAR_HEIGHT = 12
TICK_HEIGHT = 5


def _title_band(panel: Panel, grid: _Grid) -> Image.Image:
    title = _typeset(panel.title, grid.width - 2 * MARGIN, TITLE, SUBTITLE)
    band = grid.band(MARGIN - 4 + title.height + 12)
    title.draw(ImageDraw.Draw(band), MARGIN, MARGIN - 4)
    return band


def _headings_band(panel: Panel, grid: _Grid) -> Image.Image:
    texts = ["input", *(column.title for column in panel.columns)]
    headings = [_typeset(text, grid.cell_width, HEADING) for text in texts]
    height = max(heading.height for heading in headings)
    band = grid.band(height + 2)
    draw = ImageDraw.Draw(band)
    for block in range(grid.blocks):
        for column, heading in enumerate(headings):
            heading.draw(draw, grid.x(block, column), height - heading.height)
    return band


def _row_band(row: _Row, grid: _Grid) -> Image.Image:
    band = grid.band(row.height)
    for block, cells in enumerate(row.probes):
        for column, cell in enumerate(cells):
            x = grid.x(block, column)
            if cell.verdict is None:
                _draw_tile(band, cell, x, ROW_TOP + (row.tile_height - len(cell.tile)) // 2)
            else:
                _draw_verdict(band, cell.verdict, x, (row.tile_height, grid.cell_width))
            _draw_caption(band, cell, x, row.caption_top)
    return band


def _draw_tile(band: Image.Image, cell: _Cell, x: int, y: int) -> None:
    height, width = cell.tile.shape[:2]
    frame, colour = (FRAME, WRONG) if cell.correct is False else (1, EDGE)
    around = (x - frame, y - frame, x + width + frame - 1, y + height + frame - 1)
    ImageDraw.Draw(band).rectangle(around, outline=colour, width=frame)
    band.paste(Image.fromarray(cell.tile), (x, y))


def _draw_verdict(band: Image.Image, verdict: _Text, x: int, size: tuple[int, int]) -> None:
    height, width = size
    draw = ImageDraw.Draw(band)
    draw.rectangle((x - 1, ROW_TOP - 1, x + width, ROW_TOP + height), outline=EDGE)
    band.paste(Image.fromarray(_hatch(height, width)), (x, ROW_TOP))
    middle, top = x + width // 2, ROW_TOP + (height - verdict.height) // 2
    half = verdict.width // 2 + PLATE_PADDING
    plate = (middle - half, top - PLATE_PADDING, middle + half, top + verdict.height + PLATE_PADDING)
    draw.rounded_rectangle(plate, radius=4, fill=PAPER, outline=EDGE)
    verdict.draw(draw, middle, top, anchor="m")


def _draw_caption(band: Image.Image, cell: _Cell, x: int, y: int) -> None:
    if cell.correct is not None:
        colour = RIGHT if cell.correct else WRONG
        band.paste(colour, (x, y + (CAPTION.line_height - MARK) // 2), _mark(cell.correct))
        x += MARK + MARK_GAP
    cell.caption.draw(ImageDraw.Draw(band), x, y)


def _bar_band(panel: Panel, grid: _Grid) -> Image.Image:
    """One bar for all columns where each map has its own scale, else one a column; beneath the first block."""
    columns = range(1, grid.columns)
    if panel.shared_scale:
        scale = "one scale for all" if len(columns) == 1 else "one scale a column"
        bars = [(column, column, _peak(panel.columns[column - 1])) for column in columns]
    else:
        scale = "each map on its own scale"
        bars = [(columns[0], columns[-1], "max of each")]
    legend = _typeset(scale, grid.cell_width, TICK_LABEL)
    band = grid.band(max(legend.height, BAR_HEIGHT + TICK_HEIGHT + TICK_LABEL.line_height) + MARGIN)
    legend.draw(ImageDraw.Draw(band), grid.x(0, 0), (BAR_HEIGHT - TICK_LABEL.line_height) / 2)
    for first, last, end in bars:
        _draw_bar(band, panel.table.numpy(), grid.x(0, first), grid.x(0, last) + grid.cell_width, end)
    return band


def _draw_bar(band: Image.Image, table: Pixels, left: int, right: int, end: str) -> None:
    width = right - left
    levels = np.linspace(0, len(table) - 1, width).round().astype(int)
    bar = table[levels][None].repeat(BAR_HEIGHT, axis=0)
    band.paste(Image.fromarray(bar), (left, 0))
    draw = ImageDraw.Draw(band)
    for quarter in range(5):
        x = left + quarter * (width - 1) // 4
        draw.line((x, BAR_HEIGHT, x, BAR_HEIGHT + TICK_HEIGHT - 1), fill=SOFT_INK)
    y = BAR_HEIGHT + TICK_HEIGHT
    _typeset("0", width, TICK_LABEL).draw(draw, left, y)
    _typeset(end, width, TICK_LABEL).draw(draw, right, y, anchor="r")


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


@lru_cache(maxsize=2)
def _mark(correct: bool) -> Image.Image:
    """A tick or a cross, drawn four times too large and reduced, which makes its edges smooth."""
    large = Image.new("L", (4 * MARK, 4 * MARK))
    draw = ImageDraw.Draw(large)
    tick = [[(4, 30), (20, 46), (50, 10)]]
    cross = [[(8, 8), (48, 48)], [(8, 48), (48, 8)]]
    for stroke in tick if correct else cross:
        draw.line(stroke, fill=255, width=9, joint="curve")
    return large.reduce(4)
