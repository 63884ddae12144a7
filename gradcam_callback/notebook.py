"""What a notebook shows: HTML of plain data, light or dark as the notebook is. Whatever text comes in is escaped.

Axes: `N` probes, `C` image channels, `H W` the image in pixels, as it is shown.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_ROWS = 32  # of probes; a notebook keeps all that it shows
SHOWN_SIDE = 176  # pixels, of a picture's longest side
CURVE_HEIGHT = 40  # pixels, of a signal
_ENDS = 4  # steps at either end of a long way on which nothing changes

# The colours are those of the notebook's own text.
_STYLE = """<style>
.gradcam table{border-collapse:collapse;font:13px/1.45 system-ui,sans-serif;color:inherit;background:none;margin:0}
.gradcam :is(th,td){padding:3px 14px 3px 0;text-align:left;vertical-align:top;background:none;border:0;font-weight:400}
.gradcam thead th{font-weight:600;border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent)}
.gradcam caption{caption-side:top;text-align:left;padding:0 0 8px}
.gradcam :is(caption,h4){margin:0 0 8px;color:inherit;font:600 14px/1.4 system-ui,sans-serif}
.gradcam p{margin:8px 0;max-width:80ch;font:13px/1.5 system-ui,sans-serif}
.gradcam pre{font:12px/1.5 ui-monospace,monospace;background:color-mix(in srgb,currentColor 8%,transparent);margin:0}
.gradcam pre{padding:2px 6px;border-radius:3px;color:inherit;white-space:pre-wrap;max-width:max-content}
.gradcam img{display:block;max-width:none;margin:0 0 4px;border-radius:2px}
.gradcam .none{display:grid;place-items:center;text-align:center;margin:0 0 4px;border-radius:2px;font-weight:600;
background:repeating-linear-gradient(45deg,color-mix(in srgb,currentColor 18%,transparent) 0 4px,transparent 4px 10px)}
.gradcam small{display:block;font-size:12px;opacity:.75}
.gradcam .bad{color:#c62828;font-weight:600}.gradcam .good{color:#2e7d32;font-weight:600}
@media (prefers-color-scheme:dark){.gradcam .bad{color:#ff8a80}.gradcam .good{color:#81c784}}
:is([data-jp-theme-light=true],.vscode-light) .gradcam .bad{color:#c62828}
:is([data-jp-theme-light=true],.vscode-light) .gradcam .good{color:#2e7d32}
:is([data-jp-theme-light=false],.vscode-dark) .gradcam .bad{color:#ff8a80}
:is([data-jp-theme-light=false],.vscode-dark) .gradcam .good{color:#81c784}
</style>"""


@dataclass(frozen=True, repr=False)
class NotebookHTML:
    """HTML that a notebook shows where it is the last expression of a cell.

    Attributes:
        html: The text, without anything from elsewhere.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<HTML for a notebook, {len(self.html) // 1000} kB>"


@dataclass(frozen=True, eq=False)
class MapColumn:
    """The maps of one layer.

    Attributes:
        title: Its name.
        subtitle: What else is to be said of it.
        maps: One a probe, `(H, W)` in 0..1, or None where there is none.
        texts: One a probe: why there is no map, or what it is of; may be empty.
    """

    title: str
    subtitle: str
    maps: Sequence[Array | None]
    texts: Sequence[str]


def shown_size(size: Sequence[int]) -> tuple[int, ...]:
    """At which size maps of such images are shown: `(H, W)` as they are, `(W,)` of signals, of volumes one slice."""
    if len(size) == 1:
        return (SHOWN_SIDE,)
    scale = SHOWN_SIDE / max(size[-2:])
    return (*size[:-2], *(max(1, round(side * scale)) for side in size[-2:]))


def flat_map(values: Array) -> Array | None:
    """A map as a picture `(H, W)`: of a signal a band, of a volume the slice with its peak; None: it is not there."""
    if np.isnan(values).all():
        return None
    if values.ndim == 1:
        return np.repeat(values[None], CURVE_HEIGHT, axis=0)
    if values.ndim == 3:
        values = values[values.reshape(len(values), -1).max(axis=1).argmax()]
    return values


def map_table(
    title: str,
    rows: Sequence[str],
    columns: Sequence[MapColumn],
    images: Sequence[Array] | None = None,
    *,
    left_out: int = 0,
    colormap: str = "turbo",
    opacity: float = 0.5,
) -> NotebookHTML:
    """A table with a row a probe and a column a layer.

    Args:
        title: What stands above it.
        rows: What is said of each probe, line by line.
        columns: The maps.
        images: One a probe, `(C, H, W)`, to draw the maps over; None draws the maps alone.
        left_out: How many probes more there are.
        colormap: Any that matplotlib knows.
        opacity: Of a map over its image, 0 to 1.

    Raises:
        KeyError: There is no such colormap.
    """
    heads = "".join(f"<th>{name}</th>" for name in ("", "input")[: 1 + (images is not None)])
    heads += "".join(f"<th>{escape(one.title)}<small>{escape(one.subtitle)}</small></th>" for one in columns)
    paint = _Painter(colormap, opacity)
    body = []
    for number, text in enumerate(rows):
        picture = None if images is None else _shown(images[number])
        cells = f"<th>{_lines(text)}</th>"
        cells += "" if picture is None else f"<td>{_img(picture, 'input')}</td>"
        cells += "".join(f"<td>{paint.tile(column, number, picture)}</td>" for column in columns)
        body.append(f"<tr>{cells}</tr>")
    more = f"<p>{left_out} probes more are not shown.</p>" if left_out else ""
    return _page(_table(title, heads, body) + more)


class _Painter:
    """Colours maps, over images where there are some."""

    def __init__(self, colormap: str, opacity: float) -> None:
        from matplotlib import colormaps  # it takes a third of a second that only those who draw should pay

        self._table, self._opacity = colormaps[colormap], opacity

    def tile(self, column: MapColumn, number: int, picture: Array | None) -> str:
        """One map, or in its place why there is none."""
        values, said = column.maps[number], column.texts[number]
        if values is None:
            height, width = (SHOWN_SIDE, SHOWN_SIDE) if picture is None else picture.shape[:2]
            return f'<div class="none" style="height:{height}px;width:{width}px"><span>{_lines(said)}</span></div>'
        heat = self._table(values, bytes=True)[..., :3]
        if picture is not None:
            heat = (heat * self._opacity + picture * (1 - self._opacity)).round().astype(np.uint8)
        return f"{_img(heat, f'map of {column.title}')}<small>{_lines(said)}</small>"


def diagnosis_table(
    title: str,
    verdict: str,
    *,
    is_good: bool,
    message: str,
    path: Sequence[tuple[str, str, str, str, str]],
    blamed: Sequence[tuple[str, str]],
    remedy: str,
) -> NotebookHTML:
    """A diagnosis: what was found, the way of the gradient, the lines to blame, and what to do.

    Args:
        title: What was examined.
        verdict: In a word.
        is_good: Whether nothing is wrong.
        message: In sentences.
        path: From the score back to the layer: module, operation, shape, norm of the gradient, and its state.
        blamed: Where a gradient ends, and the line of code there.
        remedy: What to do; may be empty.
    """
    kind = "good" if is_good else "bad"
    heads = "".join(f"<th>{name}</th>" for name in ("module", "operation", "shape", "gradient", ""))
    body = [_row(step) for step in _elided(path)]
    parts = [f'<h4>{escape(title)} <span class="{kind}">{escape(verdict)}</span></h4>']
    parts += [_table("", heads, body)] if body else []
    parts += [f"<p>{_lines(message)}</p>"]
    parts += [f"<p>{escape(place)}</p><pre>{escape(code)}</pre>" for place, code in blamed]
    parts += [f"<p><b>What to do:</b> {_lines(remedy)}</p>"] if remedy else []
    return _page("".join(parts))


PathRow = tuple[str, str, str, str, str]


def _elided(path: Sequence[PathRow]) -> Iterator[PathRow]:
    """The steps of a path without the middle of a long part in which nothing changes."""
    for state, part in groupby(path, key=lambda step: step[-1]):
        steps = list(part)
        if len(steps) > 3 * _ENDS:
            left_out = len(steps) - 2 * _ENDS
            steps[_ENDS:-_ENDS] = [("...", f"{left_out} steps more", "", "", state)]
        yield from steps


def _row(step: PathRow) -> str:
    *cells, state = step
    mark = "" if state == "alive" else ' class="bad"'
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}<td{mark}>{escape(state)}</td></tr>"


def _page(content: str) -> NotebookHTML:
    return NotebookHTML(f'{_STYLE}<div class="gradcam">{content}</div>')


def _table(title: str, heads: str, rows: Sequence[str]) -> str:
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _displayable(image: Array) -> Array:
    """An image `(C, H, W)` as `(H, W, 3)` uint8: within 0..1, or bytes, as it is; else by its own range."""
    channels = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    pixels = channels.transpose(1, 2, 0)
    if pixels.dtype == np.uint8:
        return np.asarray(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / (high - low or 1)
    return np.asarray((pixels * 255).round().astype(np.uint8))


def _shown(image: Array) -> Array:
    """An image `(C, H, W)` at the size of its maps: `(H, W, 3)` uint8."""
    from PIL import Image

    picture = _displayable(image)
    height, width = shown_size(picture.shape[:2])
    smooth = Image.Resampling.BOX if height < picture.shape[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((width, height), smooth))


def _img(pixels: Array, what: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")
    data = b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img alt="{escape(what)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
