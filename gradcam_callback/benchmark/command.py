"""The command `gradcam-callback benchmark`: which maps show what decides, where that is known?"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gradcam_callback.benchmark.explainers import Explainer, explainers, missing_packages
from gradcam_callback.benchmark.measuring import (
    QUICK,
    Case,
    Figures,
    Scale,
    drawn_cases,
    measure,
    photograph_case,
    takes_too_long,
)
from gradcam_callback.benchmark.networks import repeatable
from gradcam_callback.benchmark.table import render
from gradcam_callback.progress import progress_bar

_INSTALL = "pip install 'gradcam-callback[benchmark]'"

DESCRIPTION = """\
Compare methods on pictures of which it is known what decides their class, because they are drawn here, and on
photographs with boxes. Small networks are trained for it; nothing is downloaded. A quarter of an hour on two cores."""


def run_benchmark(
    scale: Scale, ways: Sequence[Explainer], *, photographs: bool = True, names: Sequence[str] = ()
) -> tuple[list[Case], list[Figures]]:
    """All figures.

    Args:
        scale: How much is done.
        ways: To make maps.
        photographs: Whether the photographs are wanted; without their packages they are left out, and it is said.
        names: Of the drawn tasks; all of them where none is given.
    """
    cases = list[Case]()
    figures = list[Figures]()
    with warnings.catch_warnings(), progress_bar("training") as bar, repeatable(0):
        warnings.simplefilter("ignore")  # of other packages, for each of their maps
        cases += drawn_cases(scale, names)
        if photographs:
            try:
                cases.append(photograph_case())
            except ImportError as error:
                print(f"The photographs are left out: {error}. {_INSTALL}", file=sys.stderr)
        pairs = [(case, way) for case in cases for way in ways]
        for number, (case, way) in enumerate(pairs):
            bar.rename(f"{case.name}: {way.family} {way.name}")
            bar(number, len(pairs))
            if not takes_too_long(case, way):
                figures.append(measure(case, way, scale))
    return cases, figures


def run_command(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What stands behind `benchmark`.
    """
    parser = argparse.ArgumentParser("gradcam-callback benchmark", description=DESCRIPTION)
    parser.add_argument("-o", "--output", help="also write the tables into this file, Markdown")
    parser.add_argument("--json", help="also write the figures into this file")
    parser.add_argument("--quick", action="store_true", help="does it run at all? The figures mean nothing")
    options = parser.parse_args(args)
    for package in missing_packages():
        print(f"{package} is not installed, so its maps are left out.", file=sys.stderr)
    started = time.monotonic()
    ways = list(explainers(others=not options.quick, slow=not options.quick))
    names = ("digit", "object") if options.quick else ()
    cases, figures = run_benchmark(
        QUICK if options.quick else Scale(), ways, photographs=not options.quick, names=names
    )
    text = render(cases, figures, time.monotonic() - started)
    if options.output:
        Path(options.output).write_text(text)
    if options.json:
        Path(options.json).write_text("[\n" + ",\n".join(json.dumps(asdict(one)) for one in figures) + "\n]\n")
    print(text)
