"""Writes the viewer's colormaps, from matplotlib's tables: python scripts/colormaps.py."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import numpy as np
from matplotlib import colormaps

WEB = Path(__file__).parents[1] / "gradcam_callback" / "viewer" / "web"
NAMES = ("viridis", "inferno", "magma", "cividis", "gray", "turbo")
DIVERGING = "RdBu_r"

HEAD = """\
// Made by scripts/colormaps.py. Each table is 256 colours of three bytes, as base64.

/** @type {Record<string, string>} */
export const TABLES = {
"""


def table(name: str) -> str:
    colours = colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return b64encode(np.round(colours * 255).astype(np.uint8).tobytes()).decode()


def module() -> str:
    rows = [f'  {name}:\n    "{table(name)}",\n' for name in NAMES]
    rows.append(f'  diverging:\n    "{table(DIVERGING)}",\n')
    return f"{HEAD}{''.join(rows)}}};\n"


if __name__ == "__main__":
    (WEB / "colormap_tables.js").write_text(module(), encoding="utf-8")
