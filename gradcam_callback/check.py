"""What `gradcam-callback check` asks of a callback, and how the answer is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradcam_callback.callback import GradCAMCallback
from gradcam_callback.engine.sanity import THRESHOLD, LayerSanity, SanityResult, Stage
from gradcam_callback.lightning_api import LightningModule, Trainer
from gradcam_callback.progress import progress_bar

_BAR = 20  # characters


def check_weights(callback: GradCAMCallback, trainer: Trainer, pl_module: LightningModule) -> list[SanityResult]:
    """Ask a callback whether its maps depend on the weights, with a bar on stderr while it looks."""
    with progress_bar("randomising weights") as bar:
        return callback.check_weights(trainer, pl_module, bar)


def print_checks(results: Sequence[SanityResult], *, as_json: bool) -> None:
    """Print what a check found: a table for each layer and target, and a sentence; or JSON."""
    if as_json:
        print(json.dumps(list(_records(results)), indent=2))
        return
    console = Console()
    for result in results:
        for (layer, found), line in zip(result.layers.items(), result.lines, strict=True):
            title = Text(f"{layer}, {result.target}: {result.method}")  # names may hold brackets, which are no markup
            table = Table(title=title, title_justify="left")
            table.add_column("randomised so far, from the score backwards", overflow="fold")
            table.add_column("rank correlation to the map of the model", min_width=_BAR + 5)
            for number, stage in enumerate(found.stages, start=1):
                table.add_row(Text(stage.name), _bar(stage), end_section=number == found.later)
            console.print(table)
            console.print(line, markup=False, highlight=False)
            console.print()


def _bar(stage: Stage) -> str:
    similarity = stage.similarity
    if math.isnan(similarity):
        return "no map"
    colour = "red" if similarity >= THRESHOLD else "green"
    return f"[{colour}]{'█' * round(_BAR * similarity):{_BAR}}[/] {similarity:.2f}"


def _records(results: Iterable[SanityResult]) -> Iterable[dict[str, Any]]:
    for result in results:
        for layer, found in result.layers.items():
            yield {
                "layer": layer,
                "target": result.target,
                "method": result.method,
                "verdict": found.verdict,
                "threshold": THRESHOLD,
                "similarity": _number(found.similarity),
                "stages": _stages(found),
            }


def _stages(found: LayerSanity) -> list[dict[str, Any]]:
    return [{"modules": list(stage.modules), "similarity": _number(stage.similarity)} for stage in found.stages]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
