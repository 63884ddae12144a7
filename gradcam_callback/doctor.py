"""Side door: `gradcam-callback doctor`. Trains nothing: follows the gradient once and prints its way as a table."""

from __future__ import annotations

import json as json_module
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from gradcam_callback.callback import GradCAMCallback
from gradcam_callback.causes import DOCS, Cause
from gradcam_callback.errors import BadInputError
from gradcam_callback.results import Diagnosis, PathStep

HEALTHY, NULL, COULD_NOT_RUN = 0, 1, 2

_RESCUES = {
    Cause.FROZEN: "everything up to the layer is frozen (requires_grad = False)",
    Cause.NO_GRAD: "validation runs under no_grad",
    Cause.INFERENCE_MODE: "validation runs under inference_mode",
}


@dataclass(frozen=True)
class Report:
    """What the doctor says of one layer.

    Attributes:
        targets: What the targets are called that it is so for, e.g. "predicted".
        diagnosis: Of the layer, for the first of these targets.
    """

    targets: tuple[str, ...]
    diagnosis: Diagnosis


class DoctorTrainer(Trainer):
    """A Trainer that can also look at a model without training it."""

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        json: bool = False,
    ) -> None:
        """Take the probes, run the model, and print the way of the gradient from the score back to each target layer.

        Nothing is trained, and nothing is written to the disk. The exit status is 0 if every gradient is there, 1 if
        one is None, zero or not finite, and 2 if the model could not be looked at.

        Args:
            model: The model; given in the configuration.
            datamodule: The data; given in the configuration.
            ckpt_path: A checkpoint whose weights are looked at; by default, the fresh model.
            json: Print JSON for machines instead of tables for people.
        """
        callbacks: list[Callback] = self.callbacks  # type: ignore[has-type]
        patients = [callback for callback in callbacks if isinstance(callback, GradCAMCallback)]
        if not patients:
            raise BadInputError(
                "There is no GradCAMCallback under `trainer.callbacks` in this configuration. Add one: "
                "`- class_path: gradcam_callback.GradCAMCallback`."
            )
        examination = _Examination(patients)
        self.callbacks = [examination]
        self.loggers = []
        self.limit_val_batches = 1
        try:
            self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
        except Exception:
            # A validation_step that raises is not the doctor's business, once the patient was seen.
            if not examination.done:
                raise
        print_reports(examination.reports, as_json=json)
        sys.exit(NULL if any(report.diagnosis.cause for report in examination.reports) else HEALTHY)


class _Examination(Callback):
    """Has the callbacks diagnose the model when it and its data are where they are in a validation."""

    def __init__(self, patients: Sequence[GradCAMCallback]) -> None:
        self.reports: list[Report] = []
        self.done = False
        self._patients = patients

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for patient in self._patients:
            self.reports += gather(patient.diagnose(trainer, pl_module))
        self.done = True


def gather(found: Iterable[tuple[str, Diagnosis]]) -> list[Report]:
    """Say once what is the same for several targets: layer, cause, line and probes."""
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
        console.print_json(json_module.dumps([as_record(report) for report in reports]))
        return
    for report in reports:
        console.print(render(report))
    nulls = list(dict.fromkeys(report.diagnosis.layer for report in reports if report.diagnosis.cause is not None))
    verdict = f"Gradients are missing at {', '.join(nulls)}." if nulls else "Every gradient is there."
    console.print(Text(verdict, style="bold red" if nulls else "bold green"))


def as_record(report: Report) -> dict[str, Any]:
    """A report as plain values."""
    record = asdict(report.diagnosis)
    record["bridges"] = sorted(record["bridges"])
    return {"targets": report.targets, **record}


def render(report: Report) -> RenderableType:
    """A report for people: the way of the gradient as a table, the line to blame, and what was rescued."""
    diagnosis = report.diagnosis
    colour = "green" if diagnosis.cause is None else "red"
    title = (
        f"[bold]{diagnosis.layer}[/] · {', '.join(report.targets)} · [bold {colour}]{diagnosis.cause or 'healthy'}[/]"
    )
    return Panel(Group(*_parts(diagnosis)), title=title, title_align="left", border_style=colour, padding=(1, 2))


def _parts(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    if diagnosis.path:
        yield _way(diagnosis.path)
        yield ""
    yield Text(diagnosis.message)
    for cut in diagnosis.cuts:
        if cut.location is not None:
            yield ""
            yield Text(f"{cut.cause} · {cut.location} in {cut.location.function}", style="bold")
            yield _code(cut.location.file, cut.location.line)
    if diagnosis.cause is not None:
        yield ""
        yield Text.assemble(("What to do  ", "bold"), diagnosis.remedy)
        yield Text.assemble(("More        ", "bold"), f"{DOCS}#{diagnosis.cause}")
    if diagnosis.rescued:
        yield ""
        reasons = "; ".join(_RESCUES.get(cause, str(cause)) for cause in diagnosis.rescued)
        yield Text.assemble(("Rescued     ", "bold"), f"Without the callback there would be no gradient: {reasons}.")


def _way(path: Sequence[PathStep]) -> Table:
    """From the score back to the layer, as the gradient goes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("module", overflow="fold")
    table.add_column("operation", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("gradient", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_row("", "score", "", "", "", style="dim")
    for position, step in reversed(list(enumerate(path))):
        norm = "none" if step.gradient_norm is None else f"{step.gradient_norm:.2e}"
        mark = _mark(step, path[position - 1] if position else None)
        table.add_row(step.module or "(model)", step.operation, " x ".join(map(str, step.shape)), norm, mark)
    return table


def _mark(step: PathStep, before: PathStep | None) -> Text:
    """How the gradient stands at a step; `before` is the step one nearer to the layer."""
    if not step.alive:
        return Text("cut here", style="bold red") if before is None or before.alive else Text("lost", style="red")
    if step.gradient_norm is None:
        return Text("not reached", style="red")
    if step.gradient_norm == 0:
        return Text("zero", style="bold red")
    return Text("alive", style="green") if math.isfinite(step.gradient_norm) else Text("not finite", style="bold red")


def _code(file: str, line: int, reach: int = 2) -> RenderableType:
    try:
        return Syntax.from_path(
            file, line_numbers=True, line_range=(max(1, line - reach), line + reach), highlight_lines={line}
        )
    except (OSError, UnicodeDecodeError):  # typed into a notebook, or gone since
        return Text("(the source is not at hand)", style="dim")
