"""Takes the panels of docs/gallery.md from the runs of `make configs`: python scripts/gallery.py RUNS.

Each is the last panel of its run as the callback drew it, with as few colours as do no harm.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from screenshots import newest

TASKS = ("segmentation", "detection", "multilabel", "regression", "similarity", "reconstruction", "signal", "volume")
GALLERY = Path(__file__).parents[1] / "docs" / "gallery"


def main(runs: Path) -> None:
    GALLERY.mkdir(exist_ok=True)
    for task in TASKS:
        picture = Image.open(io.BytesIO(last_panel(newest(runs / task)))).convert("RGB")
        # Not the most frequent colours, which are those of the noisy ground: the colormap would be lost.
        picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        path = GALLERY / f"{task}.png"
        picture.save(path, optimize=True)
        print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


def last_panel(run: Path) -> bytes:
    """The bytes of the one panel at the last step, read from the event file."""
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    [tag] = [tag for tag in events.Tags()["images"] if tag.startswith("gradcam/")]
    return bytes(events.Images(tag)[-1].encoded_image_string)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
