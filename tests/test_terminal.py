"""Reports in the terminal: tables, JSON, and names that a terminal would take for something else."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from gradcam_callback import Cause, Cut, Diagnosis, PathStep, SourceLocation
from gradcam_callback.reporting.terminal import Report, merge_targets, print_reports

HERE = SourceLocation(__file__, 1, "forward", "maps = maps.detach()", "stage")


def diagnosis(cause: Cause | None = None, *path: PathStep) -> Diagnosis:
    cuts = () if cause is None else (Cut(cause, HERE, "Tensor.detach"),)
    return Diagnosis("stage", cause, HERE if cause else None, (0,), path, (), "seen", "do this", cuts)


def layer(norm: float | None) -> PathStep:
    return PathStep("stage", "layer", (2, 4, 3, 3), True, norm)


def printed(*reports: Report, width: int = 100, as_json: bool = False) -> str:
    # As strict as a terminal: what cannot be encoded fails.
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    print_reports(reports, as_json=as_json, console=Console(file=file, width=width))
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode()


def test_the_way_goes_from_the_score_back_to_the_layer() -> None:
    detach = PathStep("", "Tensor.detach", (2, 4, 3, 3), False, None)
    linear = PathStep("head", "nn.functional.linear", (2, 5), False, None)
    lines = printed(Report(("predicted",), diagnosis(Cause.DETACHED, layer(None), detach, linear))).splitlines()
    rows = [
        next(i for i, line in enumerate(lines) if word in line) for word in ("score", "linear", "cut here", "layer")
    ]
    assert rows == sorted(rows)
    assert "lost" in lines[rows[1]]
    assert "(model)" in lines[rows[2]]
    assert "not reached" in lines[rows[3]]


@pytest.mark.parametrize(
    ("norm", "state"), [(0.0, "zero"), (2.0, "alive"), (math.nan, "not finite"), (math.inf, "not finite")]
)
def test_each_state_of_a_gradient_has_its_word(norm: float, state: str) -> None:
    report = Report(("predicted",), diagnosis(None, layer(norm)))
    [row] = [line for line in printed(report).splitlines() if "layer" in line]
    assert state in row

    [record] = json.loads(printed(report, as_json=True), parse_constant=pytest.fail)
    [step] = record["path"]
    assert (step["gradient_norm"], step["state"]) == (norm if math.isfinite(norm) else None, state)


def test_a_narrow_terminal_cuts_no_line() -> None:
    text = printed(Report(("predicted",), diagnosis(Cause.DETACHED)), width=50)
    assert max(map(len, text.splitlines())) == 50
    assert "do this" in text


@pytest.mark.parametrize("name", ["[/]", "[red]x", "a\nb", "\x1b[2J", "\x07", "\udc80", "\\[x]"])
def test_names_are_printed_and_not_obeyed(name: str) -> None:
    steps = (replace(layer(1.0), module=name), replace(layer(2.0), operation=name))
    found = replace(diagnosis(Cause.DETACHED, *steps), layer=name, message=f"at {name}", remedy=f"mend {name}")
    report = Report((name,), replace(found, cuts=(Cut(Cause.DETACHED, replace(HERE, file=name, function=name), "x"),)))
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    text = printed(report)
    assert f"{shown} · {shown} · detached" in text
    assert text.count(shown) >= 8 - 2 * (name == "a\nb")  # a message may have lines of its own
    assert "\x1b" not in text
    assert "\x07" not in text

    [record] = json.loads(printed(report, as_json=True))
    assert (record["layer"], record["targets"]) == (name, [name])


def test_what_is_the_same_for_several_targets_is_one_report() -> None:
    found = [("predicted", diagnosis(Cause.DETACHED)), ("label", diagnosis(Cause.DETACHED)), ("cat", diagnosis())]
    assert [report.targets for report in merge_targets(found)] == [("predicted", "label"), ("cat",)]
