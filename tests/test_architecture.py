"""The house: imports run one way, no room imports another, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradcam_callback

PACKAGE = Path(gradcam_callback.__file__).parent

# Who may import whom. A name that is missing here may import the leaves alone.
LEAVES = {"causes", "host", "memory", "options", "records"}
ROOMS = {
    "parts",
    "ranks",
    "isolation",
    "layers",
    "targets",
    "gradients",
    "methods",
    "health",
    "picture",
    "alerts",
    "events",
}
ENGINE = {"isolation", "layers", "targets", "gradients", "methods", "health"}
ALLOWED = {
    "causes": set(),
    "host": set(),
    "memory": set(),
    "options": {"records"},
    "records": {"causes"},
    "loaders": LEAVES,
    "generators": LEAVES,
    "datasets": {"loaders"} | LEAVES,
    "probes": {"datasets", "generators", "loaders"} | LEAVES,
    "traces": LEAVES,
    "tracing": {"traces"} | LEAVES,
    "wording": LEAVES,
    "evidence": {"traces"} | LEAVES,
    "explain": ENGINE | {"tracing"} | LEAVES,
    "diagnosis": ENGINE | {"explain", "traces", "tracing", "evidence", "wording"} | LEAVES,
    "panels": {"picture"} | LEAVES,
    "observer": {"explain", "diagnosis", "layers", "parts", "ranks", "targets"} | LEAVES,
    "journal": {"alerts", "events", "picture"} | LEAVES,
    "setting": {"events", "ranks"} | LEAVES,
    "callback": {"diagnosis", "observer", "panels", "journal", "layers", "methods", "picture", "probes", "setting"}
    | {"alerts", "events"}
    | LEAVES,
    "doctor": {"callback", "alerts"} | LEAVES,
    "cli": {"callback", "doctor"},
} | dict.fromkeys(ROOMS, LEAVES)
ALLOWED["isolation"] = {"generators"} | LEAVES
# The only ones that may import these packages at their top.
LIGHTNING = {"callback", "setting", "doctor", "cli"}
PURE = {"methods"}


def modules() -> dict[str, Path]:
    return {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """The modules of ours among them; a public name stands for the module that it comes from."""
    ours = {name.split(".")[1] for name in names if name.startswith("gradcam_callback.")}
    return {gradcam_callback._HOMES.get(name, name) for name in ours}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_one_way(name: str) -> None:
    assert own(imported(modules()[name])) <= ALLOWED[name]


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(modules()))
def test_only_the_front_door_knows_lightning(name: str) -> None:
    if name not in LIGHTNING:
        assert not {top for top in (n.split(".")[0] for n in imported(modules()[name])) if "lightning" in top}


@pytest.mark.parametrize("name", sorted(modules()))
def test_only_the_back_door_knows_tensorboard(name: str) -> None:
    if name != "events":
        assert not {n for n in imported(modules()[name]) if n.split(".")[0] == "tensorboard"}


def test_demo_uses_what_everybody_can_use() -> None:
    for path in (PACKAGE / "demo").glob("*.py"):
        names = {n for n in imported(path) if n.startswith("gradcam_callback.") and ".demo" not in n}
        assert {n.removeprefix("gradcam_callback.") for n in names} <= set(gradcam_callback.__all__), path.name


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, gradcam_callback; print([m for m in ('torch', 'lightning', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in gradcam_callback.__all__:
        assert getattr(gradcam_callback, name).__name__ == name
    assert set(gradcam_callback.__all__) <= set(dir(gradcam_callback))
    with pytest.raises(AttributeError, match="no attribute 'GradCam'"):
        _ = gradcam_callback.GradCam
