"""What is left and printed at the end of a run: its results, a report, where it is, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from torch import Tensor

from gradcam_callback import GradCAMCallback, read_run
from gradcam_callback.demo.pointing import PointingGame

PANEL = "gradcam/"  # what the tags of panels begin with


def save_last_panels(log_dir: Path) -> list[Path]:
    """Read the last panel of each layer back from the event file and leave it as `gradcam/{layer}.png` beside it.

    Args:
        log_dir: The folder of a run, which holds its event file.

    Returns:
        The files that were written, one a layer; none if the run logged no panel.
    """
    events = EventAccumulator(str(log_dir), size_guidance={IMAGES: 1})  # of each tag, the last one
    events.Reload()
    written = []
    for tag in events.Tags()[IMAGES]:
        if tag.startswith(PANEL):
            path = log_dir / f"{tag}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(events.Images(tag)[-1].encoded_image_string)
            written.append(path)
    return written


def save_report(log_dir: Path) -> Path:
    """Leave the recording of a run as `report.html` beside its event file: every epoch, to be opened from disk.

    Args:
        log_dir: The folder of a run, which holds its event file.
    """
    path = log_dir / "report.html"
    path.write_text(read_run(log_dir).to_html(), encoding="utf-8")
    return path


class RunReport(Callback):
    """Prints, at the end of `fit`, where the run is, how to open it and what to look at.

    It leaves the report as HTML and the last panels as PNG.

    Put it last in `trainer.callbacks`. It needs a `TensorBoardLogger` that writes to the disk; else it says nothing.
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the report, after every callback has written what it had to write."""
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if stage != "fit" or logger is None or not trainer.is_global_zero or "://" in logger.log_dir:
            return
        logger.experiment.flush()
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.teardown(trainer, pl_module, stage)  # or it stays on the screen, below
        log_dir = Path(logger.log_dir)
        panels = save_last_panels(log_dir)
        game = next((callback for callback in trainer.callbacks if isinstance(callback, PointingGame)), None)  # type: ignore[attr-defined]
        parts = [
            _results(trainer.callback_metrics, game),
            _places(log_dir, [save_report(log_dir)] if _has_recording(trainer) else [], panels),
            _instructions(str(logger.save_dir), game is not None, _has_regions(trainer)),
        ]
        print("\n" + "\n\n".join("\n".join(lines) for lines in parts if lines))


def _results(metrics: Mapping[str, Tensor], game: PointingGame | None) -> list[str]:
    lines = []
    if "val/accuracy" in metrics:
        lines.append(f"Accuracy in validation  {metrics['val/accuracy'].item():7.1%}")
    if game is not None and game.scores:
        first, last = game.scores[0], game.scores[-1]
        lines += [
            "                         before    after  by chance",
            f"Peak on the digit       {first.pointing_game:7.1%}  {last.pointing_game:7.1%}    {game.chance:7.1%}",
            f"Energy on the digit     {first.energy_inside:7.1%}  {last.energy_inside:7.1%}    {game.chance:7.1%}",
        ]
    return lines


def _has_recording(trainer: Trainer) -> bool:
    return any(isinstance(callback, GradCAMCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _places(log_dir: Path, reports: Sequence[Path], panels: Sequence[Path]) -> list[str]:
    return [
        f"The run         {log_dir}",
        *(f"The report      {report}  (open it in a browser: every epoch, without TensorBoard)" for report in reports),
        *(f"The last panel  {panel}" for panel in panels),
    ]


def _has_regions(trainer: Trainer) -> bool:
    callbacks = (callback for callback in trainer.callbacks if isinstance(callback, GradCAMCallback))  # type: ignore[attr-defined]
    return any(callback.settings.regions is not None for callback in callbacks)


def _instructions(save_dir: str, demo: bool, regions: bool) -> list[str]:
    tags = [
        ("Grad-CAM", "", "where the network looks, from epoch to epoch: arrow keys, or Space to play"),
        ("Images", "gradcam/*", "the same as panels"),
        ("Scalars", "gradcam/null_gradients", "maps without a usable gradient; 0 is good"),
        ("Scalars", "gradcam/gradient_norm/*", "how strongly the layer moves the score"),
        ("Scalars", "gradcam/drift/*", "how much the maps have changed since the epoch before"),
        ("Scalars", "gradcam/seconds", "how long the training waited for the maps"),
        ("Text", "gradcam/alerts", "what went wrong with a gradient; not there if nothing did"),
    ]
    if regions:
        tags.append(("Scalars", "gradcam/energy_inside/*", "share of map energy that lies in the regions"))
    if demo:
        tags.append(("Scalars", "demo/pointing_game", "share of maps whose peak lies on the digit"))
        tags.append(("Scalars", "demo/energy_inside", "share of map energy that lies on the digit"))
    return [
        "To look at every epoch:",
        f"  tensorboard --logdir {save_dir}    and there the tab Grad-CAM",
        *(f"    {tab:8}  {tag:23}  {meaning}" for tab, tag, meaning in tags),
    ]
