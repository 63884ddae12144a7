"""Writes benchmarks/faithfulness.md: `gradcam-callback benchmark` with an introduction."""

from __future__ import annotations

from pathlib import Path

from gradcam_callback.benchmark import command

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
INTRODUCTION = """\
# Is the map any good?

`gradcam-callback benchmark`, or `python scripts/faithfulness.py`, which writes this page. Small networks are trained on
pictures that are drawn on the way, so it is known what decides: a network that has learnt a task fails without it. On
photographs the truth is a box drawn by hand, and that the network looks there is likely, not known. Each method gets
the same networks, layers, pictures and classes; `gradient_rollout` needs a transformer and is not among them.

"""


def main() -> None:
    """Run the benchmark, and put the introduction before it."""
    path = BENCHMARKS / "faithfulness.md"
    command.run_command(["--output", str(path), "--json", str(BENCHMARKS / "faithfulness.json")])
    path.write_text(INTRODUCTION + path.read_text())


if __name__ == "__main__":
    main()
