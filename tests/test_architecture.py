"""Imports run one way through the package, few parts know Lightning or TensorBoard, and importing it is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradcam_callback

PACKAGE = Path(gradcam_callback.__file__).parent

# From the lowest layer of imports to the highest. What stands in one line does not import each other.
LAYERS = [
    {"causes", "frameworks", "measures", "notebook", "progress", "source_lines", "viewer"},
    {"recording"},
    {"results"},
    {"errors"},
    {"option_errors", "pages"},
    {"options", "entry_point"},
    {"engine"},
    {"diagnosis", "probes"},
    {"execution", "reporting"},
    {"lightning_api"},
    {"lightning_cli"},
    {"settings", "run_context"},
    {"loop_context", "probe_capture", "prober", "run_reporter", "trainer_context"},
    {"measuring", "notices"},
    {"looking"},
    {"session"},
    {"callback", "report", "watch"},
    {"attach", "check", "explaining"},
    {"demo"},
    {"benchmark", "doctor", "tensorboard_plugin"},
    {"cli"},
]
KNOW_LIGHTNING = {
    "lightning_api",
    "lightning_cli",
    "trainer_context",
    "callback",
    "attach",
    "check",
    "explaining",
    "doctor",
    "cli",
}
MODULES = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts}


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in the file; a public name by the module that it comes from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    public = {f"gradcam_callback.{name}": f"gradcam_callback.{home}" for name, home in gradcam_callback._HOMES.items()}
    return {public.get(name, name) for name in names}


def knows_tensorboard(module: Path) -> bool:
    return module.parts[0] in ("recording", "tensorboard_plugin") or "sinks" in module.parts


def part(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("module", [module for module in MODULES if module.name != "__init__.py"], ids=str)
def test_imports_run_one_way(module: Path) -> None:
    own = module.parts[0].removesuffix(".py")
    level = next(number for number, parts in enumerate(LAYERS) if own in parts)
    allowed = set().union(*LAYERS[:level], {own})
    names = imported(MODULES[module])
    assert {part(name) for name in names if name.startswith("gradcam_callback.")} <= allowed
    assert own in ("lightning_api", "lightning_cli") or not any("lightning" in name.split(".")[0] for name in names)
    assert own in KNOW_LIGHTNING or "lightning_api" not in {part(name) for name in names if name.startswith("gradcam_")}
    assert knows_tensorboard(module) or not any(name.split(".")[0] == "tensorboard" for name in names)


def test_demo_uses_what_everybody_can_use() -> None:
    homes = {f"gradcam_callback.{home}" for home in gradcam_callback._HOMES.values()}
    for path in (PACKAGE / "demo").glob("*.py"):
        names = {name for name in imported(path) if name.startswith("gradcam_callback.") and ".demo" not in name}
        assert names <= homes, path.name


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
