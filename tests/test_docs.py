"""What the documents show runs, and what they point at is there."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
import yaml
from conftest import make_run
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from recordings import MadeUpRun, write_run
from torch import nn

from gradcam_callback import Cause, GradCAMCallback, pages

ROOT = Path(__file__).parents[1]
PAGE = ROOT / pages.PAGE
SHOWN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [
    *SHOWN,
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
PEERS = ("pytorch_grad_cam", "torchcam", "captum")  # other packages that a page computes the same map with
LANGUAGES = {"python", "yaml", "bash", "text", "json", "toml"}
OWN_NAMESPACE = "<!-- on its own -->"  # written above a block that does not go on from the one before it


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `line` is where its code begins, from 1."""

    language: str
    code: str
    line: int
    alone: bool


@dataclass
class Section:
    """A document from one heading of the first or second level to the next."""

    file: Path
    heading: str
    text: str = ""
    blocks: list[Block] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.file.name}#{anchor(self.heading)}"

    def in_language(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]


def read(file: Path) -> list[Section]:
    """The sections of a Markdown file, with their blocks of code."""
    sections = [Section(file, "")]
    lines = iter(enumerate(file.read_text().splitlines(), start=1))
    above = ""
    for number, line in lines:
        if fence := re.match(r"(\s*)(```+)(\w*)", line):
            indent, ticks, language = fence.groups()
            code = [inner[len(indent) :] for inner in _until_fence(lines, indent + ticks)]
            sections[-1].blocks.append(Block(language, "\n".join(code), number + 1, above == OWN_NAMESPACE))
        elif heading := re.match(r"##? (.+)", line):
            sections.append(Section(file, heading[1].strip()))
        else:
            sections[-1].text += line + "\n"
        above = line.strip() or above
    return sections


def _until_fence(lines: Iterator[tuple[int, str]], fence: str) -> Iterator[str]:
    for _, line in lines:
        if line.rstrip() == fence:
            return
        yield line
    raise AssertionError(f"a block of code is not closed with {fence!r}")


def anchor(heading: str) -> str:
    """The name by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    outside_code = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", outside_code, flags=re.MULTILINE)}


SECTIONS = [section for file in SHOWN if file.exists() for section in read(file)]
CAUSES = {section.heading: section for section in SECTIONS if section.file == PAGE and section.heading in list(Cause)}


def with_blocks(*languages: str) -> pytest.MarkDecorator:
    chosen = [section for section in SECTIONS if section.in_language(*languages)]
    return pytest.mark.parametrize("section", chosen, ids=str)


def test_the_reader_of_markdown(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("# A\n```python\n# a\nx = 1\n```\n## B c!\n<!-- on its own -->\n\n  ```bash\n  ls\n  ```\n")
    _, first, second = read(file)
    assert (str(first), first.blocks) == ("page.md#a", [Block("python", "# a\nx = 1", 3, False)])
    assert (str(second), second.blocks) == ("page.md#b-c", [Block("bash", "ls", 10, True)])


@pytest.mark.parametrize("section", [section for section in SECTIONS if section.blocks], ids=str)
def test_every_block_says_what_it_is(section: Section) -> None:
    assert {block.language for block in section.blocks} <= LANGUAGES


# Code that runs


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@with_blocks("python")
def test_python_runs(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(lightning_callbacks, "WeightAveraging") and "WeightAveraging" in str(section.blocks):
        pytest.skip("this version of Lightning has no WeightAveraging")
    for peer in PEERS:
        if re.search(rf"^from {peer}\b", "\n".join(block.code for block in section.blocks), flags=re.MULTILINE):
            pytest.importorskip(peer)
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "demo" / "version_0", MadeUpRun())  # a run that the documents read
    torch.manual_seed(0)
    if "read_run(" in str(section.blocks):
        make_run(tmp_path, logger=TensorBoardLogger("runs")).fit()  # which is then in runs/lightning_logs/version_0
    for block in section.in_language("python"):
        if block.alone or block is section.in_language("python")[0]:
            # A module of its own under this name, so that a class finds its globals, as it would in a script.
            module = ModuleType("__main__")
            monkeypatch.setitem(sys.modules, "__main__", module)
        # The line numbers are those of the document: the traceback and our own diagnoses point into it.
        code = compile("\n" * (block.line - 1) + block.code, str(section.file), "exec")
        exec(code, module.__dict__)
        assert torch.is_grad_enabled()


@with_blocks("yaml")
def test_yaml_configures_the_callback(section: Section) -> None:
    for block in section.in_language("yaml"):
        content = yaml.safe_load(block.code)
        assert content is not None
        for spec in callback_specs(content):
            assert isinstance(instantiated(spec), GradCAMCallback)


def callback_specs(content: Any) -> list[dict[str, Any]]:
    """Whatever in a configuration stands for the callback: its class with its arguments, or the arguments alone."""
    options = set(inspect.signature(GradCAMCallback).parameters)
    if isinstance(content, list):
        return [spec for item in content for spec in callback_specs(item)]
    if not isinstance(content, dict):
        return []
    if str(content.get("class_path")).endswith("GradCAMCallback"):
        return [content]
    arguments = content.get("init_args", content) if "class_path" not in content else content
    if arguments and set(arguments) <= options:
        return [{"class_path": "gradcam_callback.GradCAMCallback", "init_args": arguments}]
    return [spec for value in content.values() for spec in callback_specs(value)]


def instantiated(spec: dict[str, Any]) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    # Its name until jsonargparse 4.49.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(parser.parse_object({"callback": spec})).callback


TASKS = [section for section in SECTIONS if section.file.name == "tasks.md" and "](../configs/" in section.text]


@pytest.mark.parametrize("section", [section for section in TASKS if section.in_language("yaml")], ids=str)
def test_a_task_shows_what_its_configuration_says(section: Section) -> None:
    [config] = re.findall(r"\(\.\./(configs/\w+\.yaml)\)", section.text)
    [block] = section.in_language("yaml")
    trainer = yaml.safe_load((ROOT / config).read_text())["trainer"]
    assert callback_specs(yaml.safe_load(block.code)) == callback_specs(trainer)


def test_every_task_has_its_section_and_its_panel() -> None:
    makefile = (ROOT / "Makefile").read_text()
    tasks = sorted(re.findall(r"^TASKS := (.+)$", makefile, flags=re.MULTILINE)[0].split())
    told = [re.findall(r"\(\.\./configs/(\w+)\.yaml\)", section.text) for section in TASKS]
    assert sorted(name for names in told for name in names) == tasks
    shown = re.findall(r"\]\(gallery/(\w+)\.png\)", (ROOT / "docs" / "gallery.md").read_text())
    assert sorted(shown) == tasks
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "gallery").iterdir()) < 1_500_000


@pytest.mark.parametrize(
    "content",
    [
        {"trainer": {"callbacks": [{"class_path": "gradcam_callback.GradCAMCallback", "init_args": {"probes": 4}}]}},
        {"init_args": {"probes": 4}},
        {"probes": 4},
    ],
)
def test_the_callback_is_found_in_a_configuration(content: dict[str, Any]) -> None:
    [spec] = callback_specs(content)
    assert spec["init_args"] == {"probes": 4}


@with_blocks("bash")
def test_commands_name_files_that_are_there(section: Section) -> None:
    for block in section.in_language("bash"):
        for name in re.findall(r"\b(?:configs|scripts)/[\w./-]+", block.code):
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("file", [file for file in LINKED if file.exists()], ids=lambda file: file.name)
def test_make_targets_exist(file: Path) -> None:
    named = re.findall(r"(?:^\s*|`)make ([\w-]+)", file.read_text(), flags=re.MULTILINE)
    assert set(named) <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def links() -> list[tuple[Path, str]]:
    """Every link of a document to a file or a heading, code left out."""
    found = []
    for file in filter(Path.exists, LINKED):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(), flags=re.DOTALL)
        targets = re.findall(r"\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"", text)
        found += [(file, a or b) for a, b in targets if not re.match(r"\w+:", a or b)]
    return found


@pytest.mark.parametrize(("file", "target"), links(), ids=lambda value: getattr(value, "name", value))
def test_links_lead_somewhere(file: Path, target: str) -> None:
    path, _, heading = target.partition("#")
    destination = (file.parent / path) if path else file
    assert destination.exists()
    if heading:
        assert heading in anchors(destination)


# The page about causes


def test_every_cause_has_its_section_and_nothing_else_has() -> None:
    slugs = [s.heading for s in SECTIONS if s.file == PAGE and re.fullmatch(r"[a-z_]+", s.heading)]
    assert sorted(slugs) == sorted(cause.value for cause in Cause)


def test_the_contents_list_every_cause_and_alert_in_order() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\)", PAGE.read_text(), flags=re.MULTILINE)
    headings = re.findall(r"^###? ([a-z_]+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert rows == [(heading, heading) for heading in headings]


def test_the_alerts_of_the_readme_are_those_of_the_page() -> None:
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"\w+", cell)]
    assert sorted(named) == sorted(pages.contents())


@pytest.mark.parametrize("cause", list(Cause), ids=str)
def test_a_section_shows_its_cause_and_the_way_out(cause: Cause) -> None:
    section = CAUSES[cause.value]
    parts = ["**What you see.**", "**Why.**", "**How the callback tells it.**", "**How to mend it.**"]
    assert [part for part in parts if part not in section.text] == []
    code = "\n".join(block.code for block in section.in_language("python"))
    assert f'cause == "{cause.value}"' in code
    assert "cause is None" in code


# What torch says, so that a search for it leads to the page. Each does wrong on purpose.


def activation(trainable: bool = True) -> torch.Tensor:
    return nn.Conv2d(1, 2, 3).requires_grad_(trainable)(torch.ones(1, 1, 4, 4))


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return activation()


def switched_off() -> None:
    activation().requires_grad = False


def overwritten() -> None:
    gate = activation().sigmoid()
    gate *= 2
    gate.sum().backward()


def overwritten_leaf(index: Any = None) -> None:
    leaf = activation(trainable=False).requires_grad_()
    view = leaf if index is None else leaf[index]
    view.mul_(2)


class Quantise(torch.autograd.Function):
    given: Any = None

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        return features.round()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return Quantise.given


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        return features.round()


def quantised(given: Any) -> None:
    Quantise.given = given
    features = activation()
    torch.autograd.grad(Quantise.apply(features).sum(), features)


def anomaly() -> None:
    with torch.autograd.set_detect_anomaly(True):
        features = activation()
        torch.where(features > 9, (-features.abs()).sqrt(), 0).sum().backward()


FROZEN = "a-frozen-network-under-no_grad-nothing-is-wrong"
SAID: list[tuple[str, Callable[[], Any]]] = [
    (FROZEN, lambda: activation(trainable=False).sum().backward()),
    (FROZEN, lambda: activation(trainable=False).register_hook(print)),
    (FROZEN, lambda: activation(trainable=False).retain_grad()),
    ("detached", lambda: torch.autograd.grad(activation().sum(), activation())),
    ("detached", lambda: activation().detach().sum().backward()),
    ("requires_grad_off", switched_off),
    ("inference_mode", lambda: nn.Conv2d(2, 2, 1)(made_in_inference_mode())),
    ("inference_mode", lambda: made_in_inference_mode().requires_grad_()),
    ("inference_mode", lambda: made_in_inference_mode().add_(1)),
    ("left_torch", lambda: activation().numpy()),
    ("non_differentiable", lambda: activation().argmax(1).float().sum().backward()),
    ("non_differentiable", lambda: activation().long().requires_grad_()),
    ("not_on_path", lambda: torch.autograd.grad(activation().sum(), activation())),
    ("inplace_modified", overwritten),
    ("inplace_modified", overwritten_leaf),
    ("inplace_modified", lambda: overwritten_leaf(index=0)),
    ("custom_function", lambda: quantised(None)),
    ("custom_function", lambda: quantised((torch.ones(1, 2, 2, 2), None, torch.ones(1)))),
    ("custom_function", lambda: OneWay.apply(activation()).sum().backward()),
    ("non_finite", anomaly),
]


@pytest.mark.filterwarnings("ignore:Error detected in SqrtBackward0")
@pytest.mark.parametrize(("section", "wrong"), SAID, ids=[f"{name}-{number}" for number, (name, _) in enumerate(SAID)])
def test_what_torch_says_is_on_the_page(section: str, wrong: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)) as raised:
        wrong()
    # The first sentence, up to where it speaks of this one tensor.
    said = re.split(r"(?<=\w)\.(?!\w\w*\()|: \[|, got ", str(raised.value))[0]
    [shown] = [found for found in SECTIONS if found.file == PAGE and anchor(found.heading) == section]
    assert said in "\n".join(block.code for block in shown.in_language("text"))
