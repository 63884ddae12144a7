"""The figures as Markdown: a table for each measure, a row for each way to make maps."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradcam_callback.benchmark.explainers import EDGES, OURS
from gradcam_callback.benchmark.measuring import Case, Figures

WORSE = " †"
_LEARNT = 0.8  # the accuracy of a network that has learnt its task, at least; without the evidence half of it at most
_PACKAGES = ("torch", "torchvision", "timm", "grad-cam", "captum", "torchcam", "mlxtend", "scikit-image")


@dataclass(frozen=True)
class _Measure:
    """One table: its heading, what it shows, how to get it from figures, and whether more of it is better."""

    title: str
    text: str
    get: Callable[[Figures], float | None]
    more: bool = True

    def beats(self, value: float, edges: float) -> bool:
        """Whether a value is better than that of the edge filter."""
        return value > edges if self.more else value < edges


_MEASURES = (
    _Measure(
        "Pointing game",
        "The share of maps whose largest value lies where the evidence is, or within 15 pixels of 224 (4 of 64) of "
        "it (Zhang et al., 2018); that margin is left out where the evidence is most of the image.",
        lambda one: one.pointing,
    ),
    _Measure(
        "Energy inside",
        "The share of the maps' sum that lies where the evidence is.",
        lambda one: one.energy,
    ),
    _Measure(
        "Insertion",
        "The area under the probability as pixels are put into a blurred image.",
        lambda one: one.insertion,
    ),
    _Measure(
        "Deletion",
        "The area under the probability as pixels are taken away.",
        lambda one: one.deletion,
        more=False,
    ),
    _Measure(
        "Average drop",
        "The share of the probability that is lost where the image is multiplied by its map.",
        lambda one: one.average_drop,
        more=False,
    ),
    _Measure(
        "Increase",
        "The share of images whose probability is higher then.",
        lambda one: one.increase,
    ),
    _Measure(
        "ROAD",
        "The probability without the least relevant pixels, less that without the most relevant ones, halved; at 30 "
        "and 70 % of the pixels of 32 images.",
        lambda one: one.road,
    ),
    _Measure(
        "Sanity check",
        "The median absolute rank correlation to the map of the same network with random weights; 0 to an empty map.",
        lambda one: one.similarity,
        more=False,
    ),
)


def render(cases: Sequence[Case], figures: Sequence[Figures], seconds: float) -> str:
    """All tables.

    Args:
        cases: In the order of the columns.
        figures: Of all explainers on them.
        seconds: How long it took.
    """
    parts = [_cases_table(cases), _cautions(cases)]
    for measure in _MEASURES:
        better = "More" if measure.more else "Less"
        parts.append(f"## {measure.title}\n\n{measure.text} {better} is better.\n\n{_table(cases, figures, measure)}")
    parts.append(f"## Time\n\nMilliseconds a picture, on one thread.\n\n{_times(cases, figures)}")
    parts.append(_summary(figures))
    parts.append(f"{_versions()}. It took {seconds / 60:.1f} minutes.")
    return "\n\n".join(parts) + "\n"


def _cases_table(cases: Sequence[Case]) -> str:
    heads = ["name", "where the evidence is", "pictures", "share of the image", "accuracy", "without the evidence"]
    rows = [
        [
            case.name,
            case.truth,
            str(len(case.pictures)),
            f"{float(case.pictures.truth.float().mean()):.0%}",
            f"{case.accuracy:.0%}",
            "" if case.without is None else f"{case.without:.0%}",
        ]
        for case in cases
    ]
    return _markdown(heads, rows)


def _cautions(cases: Sequence[Case]) -> str:
    """How far the figures carry: how much chance there is in them, and which networks have not learnt their task."""
    counts = [len(case.pictures) for case in cases]
    errors = [0.5 / count**0.5 for count in (max(counts), min(counts))]
    told = "The standard error of a share is at most " + " to ".join(dict.fromkeys(f"{one:.2f}" for one in errors))
    lines = [f"{told}, by the number of pictures; a smaller difference tells nothing."]
    for case in cases:
        if case.is_drawn and not _has_learnt(case):
            lines.append(
                f"**The network of `{case.name}` has not learnt its task, so what decides is not known and its column "
                "means nothing.**"
            )
    return "\n\n".join(lines)


def _has_learnt(case: Case) -> bool:
    return case.accuracy >= _LEARNT and (case.without is None or case.without <= case.accuracy / 2)


def _table(cases: Sequence[Case], figures: Sequence[Figures], measure: _Measure) -> str:
    own = {(one.family, one.explainer, one.case): measure.get(one) for one in figures}
    edges = {case: value for (_, name, case), value in own.items() if name == EDGES}

    def cell(family: str, name: str, case: str) -> str:
        value, edge = own.get((family, name, case)), edges.get(case)
        if value is None:
            return ""
        return f"{value:.2f}" + (WORSE if edge is not None and not measure.beats(value, edge) else "")

    return _by_way(cases, figures, cell)


def _times(cases: Sequence[Case], figures: Sequence[Figures]) -> str:
    own = {(one.family, one.explainer, one.case): f"{one.milliseconds:.1f}" for one in figures}
    return _by_way(cases, figures, lambda *key: own.get(key, ""))


def _by_way(cases: Sequence[Case], figures: Sequence[Figures], cell: Callable[[str, str, str], str]) -> str:
    """A row for each way to make maps, a column for each case."""
    ways = dict.fromkeys((one.family, one.explainer) for one in figures)
    rows = [[family, name, *(cell(family, name, case.name) for case in cases)] for family, name in ways]
    return _markdown(["whose", "map", *(case.name for case in cases)], rows)


def _summary(figures: Sequence[Figures]) -> str:
    """A sentence for each of our methods: where an edge filter, which knows nothing of the network, is as good."""
    edges = {one.case: one for one in figures if one.explainer == EDGES}
    lines = []
    for name in dict.fromkeys(one.explainer for one in figures if one.family == OURS):
        own = [one for one in figures if (one.family, one.explainer) == (OURS, name)]
        lost = [
            f"{measure.title.lower()} ({one.case})"
            for measure in _MEASURES
            for one in own
            if (value := measure.get(one)) is not None and (edge := measure.get(edges[one.case])) is not None
            if not measure.beats(value, edge)
        ]
        told = f"does not beat the edge filter in: {', '.join(lost)}." if lost else "beats the edge filter everywhere."
        lines.append(f"- `{name}` {told}")
    return "## Beside an edge filter\n\n† marks what does not beat it.\n\n" + "\n".join(lines)


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
