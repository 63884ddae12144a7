"""Text: styles, and lines that fit a width. All lengths are in pixels."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
INK = (31, 35, 40)
SOFT_INK = (89, 99, 110)

# Longer paragraphs lose their middle: setting thousands of characters takes seconds, and nobody reads them.
LONGEST_PARAGRAPH = 120  # characters
MOST_PARAGRAPHS = 8

HALF = 110  # of 255, of what thickens a stroke


@dataclass(frozen=True)
class Style:
    """A size in pixels, a weight and a colour of DejaVu Sans."""

    size: int
    bold: bool = False
    colour: Colour = INK

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """The font, loaded once."""
        return _font(self.size, self.bold)

    @property
    def line_height(self) -> int:
        """From one line to the next."""
        return round(self.size * 1.4)


SHOWN_WIDTH = 350  # pixels; TensorBoard first shows a picture so wide
READABLE = 9.5  # pixels of a caption's type in a picture of that width
LARGEST_CAPTION = 26


@dataclass(frozen=True)
class Typography:
    """The styles of one panel."""

    title: Style
    subtitle: Style
    heading: Style
    caption: Style
    remark: Style
    verdict: Style
    tick_label: Style

    @classmethod
    def of_width(cls, width: int) -> Typography:
        """Type that can still be read where a panel of this width is shown 350 pixels wide."""
        caption = min(LARGEST_CAPTION, max(13, math.ceil(READABLE * width / SHOWN_WIDTH)))
        return cls(
            title=Style(round(1.3 * caption), bold=True),
            subtitle=Style(caption, colour=SOFT_INK),
            heading=Style(caption, bold=True),
            caption=Style(caption),
            remark=Style(caption, colour=SOFT_INK),
            verdict=Style(caption, bold=True),
            tick_label=Style(max(12, caption - 2), colour=SOFT_INK),
        )


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # DejaVu Sans ships with matplotlib, so that no font has to be installed

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


@dataclass(frozen=True)
class Text:
    """Lines that fit a width, each in its style."""

    lines: tuple[tuple[str, Style], ...]

    @property
    def height(self) -> int:
        """Of all lines."""
        return sum(style.line_height for _, style in self.lines)

    @property
    def width(self) -> int:
        """Of the longest line."""
        return math.ceil(max((style.font.getlength(line) for line, style in self.lines), default=0))

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, anchor: str = "l") -> None:
        """Write the lines from `y` downwards; `x` is their left end ("l"), middle ("m") or right end ("r")."""
        for line, style in self.lines:
            place = (x, y + style.line_height / 2)
            draw.text(place, line, fill=style.colour, font=style.font, anchor=f"{anchor}m")
            if not style.bold:
                _thicken(draw, place, line, style, anchor)
            y += style.line_height


def _thicken(draw: ImageDraw.ImageDraw, place: tuple[float, float], line: str, style: Style, anchor: str) -> None:
    """Write a line once more, half transparent, a pixel to the right and a pixel lower.

    TensorBoard reduces a picture by leaving out rows and columns of pixels, and whole strokes would go with them.
    """
    left, top, right, bottom = map(math.floor, style.font.getbbox(line, anchor=f"{anchor}m"))
    size = right - left + 2, bottom - top + 2
    if min(size) <= 2:
        return
    mask = Image.new("L", size)
    x, y = (math.floor(length) for length in place)
    ImageDraw.Draw(mask).text((-left, -top), line, fill=HALF, font=style.font, anchor=f"{anchor}m")
    for right_by, down_by in ((1, 0), (0, 1)):
        draw.bitmap((x + left + right_by, y + top + down_by), mask, fill=style.colour)


def typeset(text: str, width: int, first: Style, rest: Style | None = None) -> Text:
    """Wrap a text to a width; its first paragraph in one style, the others in another. Long ones lose their middle."""
    paragraphs = text.split("\n", MOST_PARAGRAPHS)
    if len(paragraphs) > MOST_PARAGRAPHS:
        paragraphs[-1] = "…"
    styles = [first, *[rest or first] * (len(paragraphs) - 1)]
    pairs = zip(map(shortened, paragraphs), styles, strict=True)
    return Text(tuple((line, style) for words, style in pairs for line in _wrapped(words, style.font, width)))


def shortened(text: str, longest: int = LONGEST_PARAGRAPH) -> str:
    """The text, or where it is longer than so many characters its beginning and its end with an ellipsis between."""
    if len(text) <= longest:
        return text
    start = (longest - 1) // 2
    return f"{text[:start]}…{text[start + 1 - longest :]}"


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
