"""What is handed out: the wheel and the sdist, their metadata, their types, and what importing them loads."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
import yaml

import gradcam_callback
from gradcam_callback import pages

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "user_program.py"
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg"}


def contents_of_wheel(wheel: Path) -> list[str]:
    """The files of a wheel; it is an error if there are others than the package's own."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    _check(names, {"gradcam_callback", wheel.name.split("-py3")[0] + ".dist-info"})
    return names


def contents_of_sdist(sdist: Path) -> list[str]:
    """The files of an sdist; it is an error if there are others than a wheel is built of."""
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    texts = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    _check(names, {"gradcam_callback", "docs", *texts})
    assert [name for name in names if name.startswith("docs/")] == [pages.PAGE]
    return names


def _check(names: list[str], roots: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == roots
    assert "gradcam_callback/py.typed" in names
    assert [name for name in names if Path(name).suffix in PICTURES or "__pycache__" in name] == []


def type_check(program: Path, python: Path) -> str:
    """What mypy says of a program in the environment of a Python; it is an error if there is anything wrong."""
    cache = program.parent / "mypy_cache"
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", cache]
    # From a folder that has neither our configuration nor our sources.
    done = subprocess.run([*command, program.name], cwd=program.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    pytest.importorskip("hatchling")
    pytest.importorskip("hatch_fancy_pypi_readme")
    folder = tmp_path_factory.mktemp("dist")
    code = f"from hatchling.build import *; build_sdist({str(folder)!r}); build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def wheel(dist: Path) -> Path:
    [found] = dist.glob("*.whl")
    return found


@pytest.fixture
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_wheel_and_sdist_hold_the_package_and_no_more(dist: Path, wheel: Path) -> None:
    [sdist] = dist.glob("*.tar.gz")
    packed = {name for name in contents_of_wheel(wheel) if name.endswith(".py")}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "gradcam_callback").rglob("*.py")}
    assert packed == there
    assert there <= set(contents_of_sdist(sdist))


def test_the_version_comes_from_one_place(metadata: Message) -> None:
    assert metadata["Version"] == gradcam_callback.__version__
    assert not re.search(r"^version\s*[=:]", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_readme_of_the_package_index_has_addresses(metadata: Message) -> None:
    text = re.sub(r"```.*?```", "", metadata.get_payload(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert f"{pages.REPOSITORY}/raw/main/docs/viewer.png" in targets
    assert f"{pages.REPOSITORY}/blob/main/docs/targets.md" in targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_citation_and_package_agree(metadata: Message) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["repository-code"] == pages.REPOSITORY
    assert citation["license"] == metadata["License-Expression"]
    assert citation["authors"] == [{"name": metadata["Author"]}]


@pytest.mark.slow  # mypy reads all of torch and Lightning
def test_a_program_is_type_checked_against_the_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", symlinks=True)
    [site] = tmp_path.glob("venv/lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("\n".join(others))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.read_text())
    assert "no issues" in type_check(program, tmp_path / "venv" / "bin" / "python")


def loaded_by(code: str, after: str = "pass") -> set[str]:
    """The modules that some code loads in a Python of its own, beyond those that other code has loaded before."""
    script = f"import sys\n{after}\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def others_in(modules: set[str]) -> set[str]:
    """The top-level names of what is neither the standard library's nor our own."""
    return {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"gradcam_callback"}


def test_importing_the_package_loads_nothing_else() -> None:
    assert others_in(loaded_by("import gradcam_callback")) == set()


def test_the_callback_loads_no_more_than_a_training_needs() -> None:
    more = loaded_by("from gradcam_callback import GradCAMCallback", after="import lightning.pytorch, torchvision")
    # The recording is written as an event file: TensorBoard's protocol buffers, and what these bring along.
    assert others_in(more) <= {"tensorboard", "google", "absl", "fsspec", "PIL", "yaml", "encodings"}
    for part in ("cli", "doctor", "check", "benchmark", "viewer", "tensorboard_plugin", "demo", "reporting.terminal"):
        assert f"gradcam_callback.{part}" not in more
    drawing = {name for name in more if name.startswith(("matplotlib", "rich", "jsonargparse", "PIL.ImageFont"))}
    assert drawing == set()
