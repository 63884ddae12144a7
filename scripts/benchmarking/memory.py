"""Memory: the peak of one pass above the loaded model and its images."""

from __future__ import annotations

import multiprocessing
import os
import re
from pathlib import Path

import torch

from benchmarking.tools import TOOLS, Setting


def peak_mebibytes(setting: Setting, tool: str) -> float | None:
    """On a GPU as torch's allocator counts, on a CPU in a fresh process; None there without Linux's own count of it."""
    if setting.device.startswith("cuda"):
        return _peak_on_device(setting, tool)
    if not Path("/proc/self/clear_refs").exists():
        return None
    # Memory that is freed goes back at once, or what an earlier operation left behind would be counted too.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_on_host, (setting, tool, torch.get_num_threads()))


def _peak_on_device(setting: Setting, tool: str) -> float:
    model, images = setting.load()
    TOOLS[tool](model, images, setting.layer)
    model.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    TOOLS[tool](model, images, setting.layer)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak_on_host(setting: Setting, tool: str, threads: int) -> float:
    torch.set_num_threads(threads)
    model, images = setting.load()
    TOOLS[tool](model, images[:1], setting.layer)  # what is loaded at the first call is not counted
    model.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is in use now
    before = _status("VmRSS")
    TOOLS[tool](model, images, setting.layer)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A line of the kernel's account of this process, in KiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
