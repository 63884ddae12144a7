"""Diagnoses for the terminal: tables for people, JSON for machines.

Names come from the user's model and data, and may hold anything: what is printed of them is no markup, and their
control characters are escaped.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradcam_callback import pages
from gradcam_callback.causes import Cause
from gradcam_callback.engine.layer_listing import ListedLayer
from gradcam_callback.results import Diagnosis

_RESCUES = {
    Cause.FROZEN: "everything up to the layer is frozen (requires_grad = False)",
    Cause.NO_GRAD: "validation runs under no_grad",
    Cause.INFERENCE_MODE: "validation runs under inference_mode",
}
_STYLES = {"alive": "green", "cut here": "bold red", "zero": "bold red", "not finite": "bold red"}


@dataclass(frozen=True)
class Report:
    """What is known of one layer.

    Attributes:
        targets: What the targets are called that it is so for, e.g. "predicted".
        diagnosis: Of the layer, for the first of these targets.
    """

    targets: tuple[str, ...]
    diagnosis: Diagnosis


def merge_targets(found: Iterable[tuple[str, Diagnosis]]) -> list[Report]:
    """Make one report of what is the same for several targets: layer, cause, line and probes."""
    reports: dict[object, Report] = {}
    for target, diagnosis in found:
        same = (diagnosis.layer, diagnosis.cause, diagnosis.location, diagnosis.probes)
        before = reports.get(same)
        reports[same] = (
            Report((target,), diagnosis) if before is None else replace(before, targets=(*before.targets, target))
        )
    return list(reports.values())


def print_reports(reports: Sequence[Report], *, as_json: bool, console: Console | None = None) -> None:
    """Print what was found.

    Args:
        reports: One a layer and target.
        as_json: Whether to print one JSON list, instead of tables as wide and as coloured as the terminal allows.
        console: Where to; None takes stdout.
    """
    console = console or Console()
    if as_json:
        text = json.dumps([as_record(report) for report in reports], indent=2, allow_nan=False)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    for report in reports:
        console.print(render(report))
    nulls = list(dict.fromkeys(report.diagnosis.layer for report in reports if report.diagnosis.cause is not None))
    verdict = f"Gradients are missing at {', '.join(nulls)}." if nulls else "Every gradient is there."
    console.print(Text(printable(verdict), style="bold red" if nulls else "bold green"))


def print_layers(layers: Sequence[ListedLayer], *, as_json: bool, console: Console | None = None) -> None:
    """Print which layers there are, and which "auto" takes.

    Args:
        layers: In the order in which they finish.
        as_json: Whether to print one JSON list, instead of a table as wide as the terminal allows.
        console: Where to; None takes stdout.
    """
    console = console or Console()
    if as_json:
        text = json.dumps([asdict(layer) for layer in layers], indent=2)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", overflow="fold", min_width=18)
    table.add_column("type", overflow="fold")
    table.add_column("returns", overflow="fold")
    table.add_column("cells", overflow="fold")
    table.add_column("gradient", justify="right", no_wrap=True)
    table.add_column("auto", overflow="fold", min_width=16)
    for layer in layers:
        cells = "" if layer.cells is None else f"{' x '.join(map(str, layer.cells))}, {layer.layout}"
        norm = "" if layer.gradient is None else f"{layer.gradient:.2e}"
        verdict = "takes it" if layer.chosen else f"no: {layer.reason}" if layer.reason else "possible"
        output = layer.output.removeprefix("a tensor of shape ")
        style = "bold green" if layer.chosen else "" if not layer.reason else "dim"
        row = (layer.name, layer.kind, output, cells.removesuffix(", channels first"), norm, verdict)
        table.add_row(*(Text(printable(cell)) for cell in row), style=style)
    console.print(table)


def print_markdown(text: str, console: Console | None = None) -> None:
    """Print Markdown: set in a terminal, and as it is into a file or a pipe."""
    console = console or Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def as_record(report: Report) -> dict[str, Any]:
    """A report as values that JSON has. A norm that is NaN or infinite is None; the step's `state` tells which."""
    diagnosis = report.diagnosis
    record: dict[str, Any] = asdict(diagnosis)
    for step, state in zip(record["path"], diagnosis.path_states, strict=True):
        step["state"] = state
        if step["gradient_norm"] is not None and not math.isfinite(step["gradient_norm"]):
            step["gradient_norm"] = None
    more = None if diagnosis.cause is None else pages.url(diagnosis.cause.value)
    return {"targets": report.targets, **record, "bridges": sorted(diagnosis.bridges), "more": more}


def render(report: Report) -> RenderableType:
    """A report for people: the way of the gradient as a table, the line to blame, and what was rescued."""
    diagnosis = report.diagnosis
    colour = "green" if diagnosis.cause is None else "red"
    title = Text.assemble(
        (printable(diagnosis.layer), "bold"),
        f" · {printable(', '.join(report.targets))} · ",
        (str(diagnosis.cause or "healthy"), f"bold {colour}"),
    )
    return Panel(Group(*_parts(diagnosis)), title=title, title_align="left", border_style=colour, padding=(1, 2))


def printable(text: str, keep: str = "") -> str:
    """Escape control characters, which a terminal would obey, and what no encoding has; `keep` stays as it is."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs") and character not in keep
        else character
        for character in text
    )


def _sentences(text: str) -> str:
    return printable(text, keep="\n\t")


def _parts(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    if diagnosis.path:
        yield _path(diagnosis)
        yield ""
    yield Text(_sentences(diagnosis.message))
    for cut in diagnosis.cuts:
        if cut.location is not None:
            yield ""
            yield Text(printable(f"{cut.cause} · {cut.location} in {cut.location.function}"), style="bold")
            yield _code(cut.location.file, cut.location.line)
    if diagnosis.cause is not None:
        yield ""
        yield Text.assemble(("What to do  ", "bold"), _sentences(diagnosis.remedy))
        url = pages.url(diagnosis.cause.value)
        yield Text.assemble(("More        ", "bold"), f"gradcam-callback explain-cause {diagnosis.cause}")
        yield Text.assemble("            ", (url, f"link {url}"))
    if diagnosis.rescued:
        yield ""
        reasons = "; ".join(_RESCUES.get(cause, str(cause)) for cause in diagnosis.rescued)
        yield Text.assemble(("Rescued     ", "bold"), f"Without the callback there would be no gradient: {reasons}.")


def _path(diagnosis: Diagnosis) -> Table:
    """From the score back to the layer, as the gradient goes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("module", overflow="fold")
    table.add_column("operation", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("gradient", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_row("", "score", "", "", "", style="dim")
    for step, state in reversed(list(zip(diagnosis.path, diagnosis.path_states, strict=True))):
        norm = "none" if step.gradient_norm is None else f"{step.gradient_norm:.2e}"
        cells = (step.module or "(model)", step.operation, " x ".join(map(str, step.shape)), norm)
        table.add_row(*(Text(printable(cell)) for cell in cells), Text(state, style=_STYLES.get(state, "red")))
    return table


def _code(file: str, line: int, reach: int = 2) -> RenderableType:
    try:
        return Syntax.from_path(
            file, line_numbers=True, line_range=(max(1, line - reach), line + reach), highlight_lines={line}
        )
    except (OSError, UnicodeDecodeError):  # typed into a notebook, or gone since
        return Text("(the source is not at hand)", style="dim")
