"""Measures of faithfulness of the maps of a probe pass: the same model, images and classes, run again and again.

Axes: `T` targets, `N` probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from gradcam_callback.engine.faithfulness import Faithfulness, FaithfulnessOptions, Scorer, forward_passes, measure
from gradcam_callback.engine.forward import prepared, run_without_graph
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.memory import is_out_of_memory
from gradcam_callback.engine.replica import Replica, ReplicaOptions, run_in_replica
from gradcam_callback.engine.targets import ClassTarget, OutputSpec, Target
from gradcam_callback.errors import BadInputError
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.measures import Array
from gradcam_callback.results import CAMResult

MEASURES = tuple(field.name for field in fields(Faithfulness))


@dataclass(frozen=True)
class FaithfulnessPass:
    """Measures the maps of probe passes.

    Attributes:
        options: How.
        output: Where the logits are in what the model returns.
        processes: Those that take part: each measures its share, and all get everything.
        replica_options: How the replica of the model is made.
    """

    options: FaithfulnessOptions
    output: OutputSpec
    processes: ProcessGroup
    replica_options: ReplicaOptions

    def run(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        targets: Sequence[Target],
        results: Sequence[CAMResult],
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, dict[str, Array]]:
        """Layer to measure to float32 `(T, N)`, on the host.

        Args:
            model: In any mode; left as it was.
            inputs: What the model gets for the probes.
            targets: Those of the pass.
            results: What it gave, one a target.
            progress: Told how many images are scored, and of how many.

        Raises:
            BadInputError: A target is of no class, or the images are no images.
        """
        check_faithfulness(targets, inputs.images)
        share = self.processes.share(len(inputs))
        maps = len(targets) * len(results[0].cams)
        told = _Counter(progress, forward_passes(self.options) * len(inputs[share]) * maps)

        def job() -> list[dict[str, Array]]:
            if len(inputs[share]) == 0:
                return []
            own = [(target.part(share), result) for target, result in zip(targets, results, strict=True)]
            return [self._of_layer(model, inputs, share, own, layer, told) for layer in results[0].cams]

        parts = [part for part in self.processes.gather(job) if part]
        layers = [
            {name: np.concatenate([layer[name] for layer in column], axis=1) for name in MEASURES}
            for column in zip(*parts, strict=True)
        ]
        return dict(zip(results[0].cams, layers, strict=True))

    def _of_layer(
        self,
        model: nn.Module,
        inputs: ModelInputs,
        share: slice,
        own: Sequence[tuple[Target, CAMResult]],
        layer: str,
        told: _Counter,
    ) -> dict[str, Array]:
        """Each measure at one layer, `(T, n)`."""

        def job(replica: Replica) -> list[Faithfulness]:
            ready = prepared(inputs[share], replica.model)
            found = []
            for target, result in own:
                heatmaps = result.heatmaps()[layer][share].to(ready.images.device)
                score = self._scorer(replica.model, ready, target, result.targets[share], told)
                found.append(self._measured(score, ready.images, heatmaps))
            return found

        measured = run_in_replica(model, job, self.replica_options)
        return {
            name: np.stack([getattr(one, name).float().cpu().numpy() for one in measured]).astype(np.float32)
            for name in MEASURES
        }

    def _measured(self, score: Scorer, images: Tensor, heatmaps: Tensor) -> Faithfulness:
        """In portions that fit into memory."""
        options = self.options
        while True:
            try:
                return measure(score, images, heatmaps, options)
            except Exception as error:
                if options.portion == 1 or not is_out_of_memory(error):
                    raise
            options = replace(options, portion=(options.portion + 1) // 2)

    def _scorer(self, model: nn.Module, inputs: ModelInputs, target: Target, classes: Tensor, told: _Counter) -> Scorer:
        """The probability of the class that was explained, of changed images."""
        assert isinstance(target, ClassTarget)

        def score(images: Tensor, rows: Tensor) -> Tensor:
            fixed = replace(target, classes=classes.to(rows.device)[rows], rank=0, present=None)
            given = inputs.taken(rows, images)
            scores = fixed.score(fixed.read(run_without_graph(model, given), self.output, given.apart))
            told.add(len(images))
            return scores.probabilities.gather(1, scores.targets[:, None]).squeeze(1)

        return score


@dataclass
class _Counter:
    """Counts images, and tells how many there were of how many."""

    progress: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def check_faithfulness(targets: Sequence[Target], images: Tensor) -> None:
    """Refuse what has no probability of a class in changed images.

    Raises:
        BadInputError: A target is of no class, or the images are no images.
    """
    unfit = [one.title for one in targets if not isinstance(one, ClassTarget) or one.task == "regression"]
    if unfit:
        raise BadInputError(
            f"`faithfulness` asks how the probability of a class goes as the image changes, and {unfit[0]!r} is none. "
            "Possible are targets that are classes or labels."
        )
    if images.ndim != 4:
        raise BadInputError(f"`faithfulness` is for images (N, C, H, W); the probes are {tuple(images.shape)}.")


def as_options(given: bool | Mapping[str, object] | None) -> tuple[FaithfulnessOptions, int] | None:
    """The option `faithfulness`: how to measure, and at how many epochs; None for not at all.

    Raises:
        BadInputError: It has other entries, or an impossible value.
    """
    if given is None or given is False:
        return None
    entries = {} if given is True else dict(given)
    names = [field.name for field in fields(FaithfulnessOptions)]
    unknown = sorted(set(entries) - {*names, "every_n_epochs"})
    every = entries.pop("every_n_epochs", 1)
    if unknown or type(every) is not int or every < 1:
        wrong = f"there is no {unknown[0]!r}" if unknown else f"`every_n_epochs` is {every!r}"
        raise BadInputError(
            f"`faithfulness` takes `every_n_epochs`, a whole number of at least 1, and {', '.join(names)}; {wrong}."
        )
    options = FaithfulnessOptions(**entries)  # type: ignore[arg-type]
    one = torch.zeros(1, 1, 2, 2)
    measure(lambda images, _rows: images.flatten(1).sum(dim=1), one, one[:, 0], options)  # refuses what is impossible
    return options, every
