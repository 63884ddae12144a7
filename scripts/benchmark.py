"""What watching costs, as ratios inside one run: a probe pass, a validation with the callback, a long training.

Five tables: `passes`, the time and memory of one probe pass beside the least work that gives the same map; `methods`,
those of each method beside a forward pass; `attached`, a validation with and without the callback in a real Trainer;
`growth`, whether a look costs more as epochs go by;
`viewer`, what a recorded look costs, and how the viewer does on long runs. What runs within a round is shuffled or
alternates, so that a busy machine slows all of it down; reported is the median over the rounds of each round's own
ratio, with the quartiles. Packages that are not installed are left out.

    python scripts/benchmark.py                      # all tables but the last
    python scripts/benchmark.py --device cuda --rounds 20
    python scripts/benchmark.py --only passes --images 16
    python scripts/benchmark.py --only viewer        # in the browser that `make browser` installs
    python scripts/benchmark.py --quick              # does it run at all? The figures mean nothing
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarking import methods, passes
from benchmarking.clock import Budget
from benchmarking.report import Goal, device_name, render_goals, say, versions

EPOCHS = 200  # of the long training
ON_REQUEST = ["viewer"]  # it needs a browser
TITLES = {
    "passes": "A probe pass",
    "methods": "The methods",
    "attached": "A validation with the callback and 8 probes",
    "growth": "A long training",
    "viewer": "The recording and the viewer",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="a row's rounds, at least (default: 5; long ones half)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="a row's rounds last at least so long (default: 10)"
    )
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda" (default: cpu)')
    parser.add_argument("--images", type=int, nargs="+", help="images in a pass (default: 1 16 64)")
    parser.add_argument("--only", choices=list(TITLES), help="one table")
    parser.add_argument(
        "--quick", action="store_true", help="one round of small networks and images, no other packages"
    )
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "benchmarks", help="for the JSON")
    given = parser.parse_args()
    for name, numbers in {"rounds": [given.rounds], "images": given.images or []}.items():
        for number in numbers:
            if number < 1:
                parser.error(f"--{name} is a whole number of at least 1; given: {number}")
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    return given


def measured(name: str, given: argparse.Namespace, budget: Budget) -> tuple[list[Any], list[Goal], list[str]]:
    """One table: its rows, what was wished for, and how it is printed."""
    if name == "passes":
        settings = passes.settings(given.images, given.device, quick=given.quick)
        found = [row for setting in settings for row in passes.measure(setting, budget)]
        return found, passes.goals(found), passes.render(found)
    if name == "methods":
        costs = [
            row
            for setting in methods.settings(given.device, quick=given.quick)
            for row in methods.measure(setting, budget)
        ]
        return costs, [], methods.render(costs)
    # Not at the top, which runs in each of the processes that memory is measured in: Lightning takes seconds to import.
    from benchmarking import attached, growth

    if name == "attached":
        cases = attached.cases(given.device, quick=given.quick)
        # One percent is a small thing to see: thrice the time.
        patient = Budget(budget.rounds, 3 * budget.seconds)
        epochs = [attached.measure(case, patient, given.device) for case in cases]
        return epochs, attached.goals(epochs), attached.render(epochs)
    if name == "viewer":
        from benchmarking import viewer

        figures = viewer.measure(quick=given.quick)
        return figures, viewer.goals(figures), viewer.render(figures)
    rows = growth.measure(4 if given.quick else EPOCHS, given.device)
    return rows, growth.goals(rows), growth.render(rows)


def main() -> None:
    given = arguments()
    budget = Budget(1, 0.0) if given.quick else Budget(given.rounds, given.seconds)
    device = device_name(given.device)
    where = "cpu" if given.device == "cpu" else re.sub(r"\W+", "-", device).strip("-").lower()
    given.folder.mkdir(parents=True, exist_ok=True)
    verdicts: list[Goal] = []
    for name in [given.only] if given.only else [name for name in TITLES if name not in ON_REQUEST]:
        rows, goals, tables = measured(name, given, budget)
        verdicts += goals
        print(
            "\n\n".join([f"### {TITLES[name]}", f"{device}, {torch.get_num_threads()} threads.", *tables, ""]),
            flush=True,
        )
        report = {
            "device": device,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "setting": {"rounds": budget.rounds, "seconds": budget.seconds},
            name: [asdict(row) for row in rows],
            "goals": [asdict(goal) for goal in goals],
        }
        path = given.folder / f"{where}-{name}.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
        say(f"Written to {path}")
    print(f"### Goals\n\n{render_goals(verdicts)}")


if __name__ == "__main__":
    main()
