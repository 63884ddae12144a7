"""What a notebook shows: HTML of plain data, light or dark as the notebook is. Whatever text comes in is escaped.

Axes: `N` probes, `C` image channels, `H W` the image in pixels, as it is shown.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_ROWS = 32  # of probes; a notebook keeps all that it shows
SHOWN_SIDE = 176  # pixels, of a picture's longest side
CURVE_HEIGHT = 40  # pixels, of a signal

# The colours are those of the notebook's own text.
_STYLE = """<style>
.gradcam table{border-collapse:collapse;font:13px/1.45 system-ui,sans-serif;color:inherit;background:none;margin:0}
.gradcam :is(th,td){padding:6px 10px 6px 0;text-align:left;vertical-align:top;background:none;border:0;font-weight:400}
.gradcam thead th{font-weight:600;border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent)}
.gradcam caption{caption-side:top;text-align:left;padding:0 0 8px;color:inherit;font:600 14px/1.4 system-ui,sans-serif}
.gradcam p{margin:8px 0;max-width:80ch;font:13px/1.5 system-ui,sans-serif}
.gradcam :is(code,pre){font:12px/1.5 ui-monospace,monospace;background:color-mix(in srgb,currentColor 8%,transparent)}
.gradcam :is(code,pre){padding:1px 4px;border-radius:3px;color:inherit;white-space:pre-wrap;overflow-wrap:anywhere}
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
    from matplotlib import colormaps  # it takes a third of a second that only those who draw should pay

    table = colormaps[colormap]
    heads = ["", *(["input"] if images is not None else [])]
    cells = "".join(f"<th>{escape(text)}</th>" for text in heads)
    cells += "".join(f"<th>{escape(one.title)}<small>{escape(one.subtitle)}</small></th>" for one in columns)
    body = []
    for number, text in enumerate(rows):
        picture = None if images is None else _displayable(images[number])
        parts = [f"<th>{_lines(text)}</th>"]
        if picture is not None:
            size = _size_of(columns, number, picture)
            picture = _resized(picture, size)
            parts.append(f"<td>{_img(picture, 'input')}</td>")
        for column in columns:
            values, said = column.maps[number], column.texts[number]
            if values is None:
                tile = _missing(said, (SHOWN_SIDE, SHOWN_SIDE) if picture is None else picture.shape[:2])
                parts.append(f"<td>{tile}</td>")
                continue
            heat = table(values, bytes=True)[..., :3]
            if picture is not None and heat.shape == picture.shape:
                heat = (heat * opacity + picture * (1 - opacity)).round().astype(np.uint8)
            parts.append(f"<td>{_img(heat, f'map of {column.title}')}<small>{_lines(said)}</small></td>")
        body.append(f"<tr>{''.join(parts)}</tr>")
    more = f"<p>{left_out} probes more are not shown.</p>" if left_out else ""
    rows_html = "".join(body)
    caption = f"<caption>{escape(title)}</caption>"
    return NotebookHTML(
        f'{_STYLE}<div class="gradcam"><table>{caption}<thead><tr>{cells}</tr></thead><tbody>{rows_html}</tbody>'
        f"</table>{more}</div>"
    )


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
    head = f'{escape(title)} <span class="{kind}">{escape(verdict)}</span>'
    rows = []
    for *cells, state in path:
        mark = "" if state == "alive" else ' class="bad"'
        rows.append(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td{mark}>{escape(state)}</td></tr>"
        )
    names = "".join(f"<th>{name}</th>" for name in ("module", "operation", "shape", "gradient", ""))
    table = f"<table><caption>{head}</caption>"
    table += f"<thead><tr>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else "</table>"
    parts = [f"<p>{_lines(message)}</p>"]
    parts += [f"<p>{escape(place)}</p><pre>{escape(code)}</pre>" for place, code in blamed]
    parts += [f"<p><b>What to do:</b> {_lines(remedy)}</p>"] if remedy else []
    return NotebookHTML(f'{_STYLE}<div class="gradcam">{table}{"".join(parts)}</div>')


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


def _size_of(columns: Sequence[MapColumn], number: int, picture: Array) -> tuple[int, int]:
    """`(H, W)` of what is drawn over an image."""
    maps = (column.maps[number] for column in columns)
    shape = next((values.shape for values in maps if values is not None), shown_size(picture.shape[:2]))
    return shape[0], shape[1]


def _resized(picture: Array, size: tuple[int, int]) -> Array:
    from PIL import Image

    smooth = Image.Resampling.BOX if size[0] < picture.shape[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), smooth))


def _img(pixels: Array, what: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")
    data = b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img alt="{escape(what)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


def _missing(text: str, size: Sequence[int]) -> str:
    return f'<div class="none" style="height:{size[0]}px;width:{size[1]}px"><span>{_lines(text)}</span></div>'
