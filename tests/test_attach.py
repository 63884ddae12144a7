"""The callback in programs that do not know of it: by `gradcam-callback attach`, and by the environment."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from conftest import Events
from lightning.pytorch import Callback, Trainer
from models import Classifier, loader

from gradcam_callback import GradCAMCallback
from gradcam_callback.attach import factory
from gradcam_callback.attach.attached import AttachedCallback, attached_callback, read_options
from gradcam_callback.cli import main

PROGRAMS = Path(__file__).parent / "programs"
COMMAND = Path(sys.executable).with_name("gradcam-callback")
SAID = "Grad-CAM is attached to the Trainers of this program"

Environment = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (factory.ATTACH, factory.CONFIG):
        monkeypatch.delenv(name, raising=False)


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "default_root_dir": folder, **quiet}
    return Trainer(callbacks=list(callbacks), **(options | settings))


def attached_to(made: Trainer) -> list[AttachedCallback]:
    return [callback for callback in made.callbacks if isinstance(callback, AttachedCallback)]


# Whether it is asked for


def test_nothing_is_imported_where_nobody_asks() -> None:
    code = (
        "import sys; from gradcam_callback.attach.factory import callbacks; assert callbacks() == [];"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'numpy', 'lightning', 'yaml')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_finds_the_factory(package: str) -> None:
    found = importlib.metadata.entry_points(group=f"{package}.callbacks_factory")
    assert [point.load() for point in found if point.name == "gradcam_callback"] == [factory.callbacks]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"ATTACH": "1"}, True),
        ({"ATTACH": ""}, False),
        ({"CONFIG": "{}"}, True),
        ({"CONFIG": ""}, False),
        ({"ATTACH": "0", "CONFIG": "{}"}, False),
        ({"ATTACH": " Off "}, False),
    ],
)
def test_what_the_environment_asks_for(environment: dict[str, str], expected: bool) -> None:
    named = {f"GRADCAM_CALLBACK_{name}": value for name, value in environment.items()}
    assert factory.is_wanted(named) is expected


def test_a_trainer_has_none_where_nobody_asks(tmp_path: Path) -> None:
    assert attached_to(trainer(tmp_path)) == []


def test_each_trainer_has_one_of_its_own(tmp_path: Path, monkeypatch: Environment) -> None:
    monkeypatch.setenv(factory.CONFIG, "{probes: 2}")
    [first], [second] = attached_to(trainer(tmp_path / "a")), attached_to(trainer(tmp_path / "b"))
    assert first is not second
    assert first.settings.source is not second.settings.source
    assert first.settings.source.describe() == GradCAMCallback(probes=2).settings.source.describe()


@pytest.mark.parametrize("config", ["{probess: 2}", "missing.yaml", "{opacity: 2}", "[1", "{method: 3.5}"])
@pytest.mark.parametrize("as_errors", [False, True])
def test_a_mistake_in_the_environment_is_a_warning(
    config: str, as_errors: bool, tmp_path: Path, monkeypatch: Environment
) -> None:
    monkeypatch.setenv(factory.CONFIG, config)
    with warnings.catch_warnings(record=not as_errors) as caught:
        warnings.simplefilter("error" if as_errors else "always")
        assert factory.callbacks() == []
    if caught is not None:
        assert [str(one.message).partition(":")[0] for one in caught] == [
            "Grad-CAM could not be attached to the Trainer, which goes on without"
        ]


# Beside a callback of the program's own


@pytest.mark.parametrize("when", ["in the list", "appended", "by the model"])
def test_it_gives_way_to_the_programs_own(
    when: str, tmp_path: Path, monkeypatch: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(factory.ATTACH, "1")
    monkeypatch.setattr(AttachedCallback, "_said", set())
    own, after = GradCAMCallback(), Recorder()  # of the same options
    made = trainer(tmp_path, *([own] if when == "in the list" else []))
    module = Classifier()
    if when == "appended":
        made.callbacks.append(own)
    elif when == "by the model":
        monkeypatch.setattr(module, "configure_callbacks", lambda: [own])
    made.callbacks.append(after)
    made.fit(module, loader(8), loader(6))
    assert [callback for callback in made.callbacks if isinstance(callback, GradCAMCallback)] == [own]
    assert own.last_result is not None
    assert after.called == ["setup", "teardown"]  # nobody else's hook was left out
    assert "which has a GradCAMCallback of its own" in caplog.text


class Recorder(Callback):
    def __init__(self) -> None:
        self.called: list[str] = []

    def setup(self, *_: Any, **__: Any) -> None:
        self.called.append("setup")

    def teardown(self, *_: Any, **__: Any) -> None:
        self.called.append("teardown")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{target_layers: network.layer9}", "no layer 'network.layer9'"),
        ("{target: 7}", "class 7"),
        ("{probes: {class_path: gradcam_callback.ValidationProbes, init_args: {image_key: picture}}}", "'picture'"),
        ("{forward: classify}", "no method 'classify'"),
    ],
)
def test_an_option_that_is_impossible_for_the_model_is_one_alert(
    config: str, reason: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    monkeypatch.setenv(factory.CONFIG, config)
    made = trainer(tmp_path, max_epochs=2)
    [callback] = attached_to(made)
    with pytest.warns(UserWarning, match="There are no Grad-CAM maps in this run"):
        made.fit(Classifier(), loader(8), loader(6))
    assert made.state.status == "finished"
    [alert] = callback.alerts
    assert str(alert.cause) == "no_maps"
    assert reason in alert.message
    [file] = tmp_path.rglob("gradcam/alerts.jsonl")
    assert [json.loads(line)["cause"] for line in file.read_text().splitlines()] == ["no_maps"]
    assert "gradcam/null_gradients" not in made.callback_metrics

    made.validate(Classifier(), loader(6), verbose=False)  # is another run
    assert [str(alert.cause) for alert in callback.alerts] == ["no_maps"] * 2


# Options


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--probes", "3", "--target_layers", "a.b", "--method", "layercam"], {"method": "layercam", "probes": 3}),
        (["--target", "[predicted, label]"], {"target": ["predicted", "label"]}),
        (["--config", "{opacity: 0.3, bridge: false}", "--opacity", "0.7"], {"opacity": 0.7, "bridge": False}),
        (["--config", "file.yaml", "--panels=last"], {"probes": [2, 5], "scale": "shared", "panels": "last"}),
        (["--config", "of_a_cli.yaml"], {"target_layers": ["a", "b"]}),
        (["--class_names", json.dumps(["a long name" * 30] * 20)], {"opacity": 0.5}),
        ([], {"opacity": 0.5}),
    ],
)
def test_options_reach_the_program_as_they_were_given(args: list[str], expected: dict[str, Any]) -> None:
    Path("file.yaml").write_text("probes: [2, 5]\nscale: shared\n")
    own = {"class_path": "gradcam_callback.GradCAMCallback", "init_args": {"target_layers": ["a", "b"]}}
    Path("of_a_cli.yaml").write_text(json.dumps(own))
    callback, text = read_options(args)
    again = attached_callback(text)
    assert again.state_key == callback.state_key
    plain = GradCAMCallback(**expected)
    for name in expected:
        option = {"probes": "source", "target": "target_texts"}.get(name, name)
        seen, wanted = (getattr(one.settings, option) for one in (again, plain))
        assert seen == wanted or seen.describe() == wanted.describe()
        assert name in text or expected[name] == 0.5


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "There is no command to run, behind `--`"),
        (["train.py"], "There is no command to run, behind `--`"),
        (["--probess", "3", "--", "true"], "Did you mean 'probes'?\nThe options: target_layers, probes,"),
        (["--opacity", "2", "--", "true"], "`opacity` is a number from 0 to 1; given: 2"),
        (["--opacity", "much", "--", "true"], "much"),
        (["--method", "laycam", "--", "true"], "Did you mean 'layercam'?"),
        (["--config", "none.yaml", "--", "true"], "there is no such file, and it is no such text: 'none.yaml'"),
        (["--config", "{class_path: a.B}", "--", "true"], "What is attached is a gradcam_callback.GradCAMCallback"),
        (["--config", "{probess: 3}", "--", "true"], "Did you mean 'probes'?"),
        (
            ["--probes", "{class_path: gradcam_callback.ValidationProbes, init_args: {m: 3}}", "--", "true"],
            "The options of gradcam_callback.ValidationProbes: n, indices,",
        ),
        (["--", "no-such-program"], "'no-such-program' cannot be started: No such file or directory."),
    ],
)
def test_a_mistake_ends_the_command_before_the_program_starts(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: Environment
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        main(["attach", *args])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_help_lists_the_options_of_the_callback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["attach", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--target_layers" in printed
    assert "Dotted names of modules inside the LightningModule" in printed


def test_a_score_of_the_programs_own_is_found_beside_it(tmp_path: Path, monkeypatch: Environment) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execvpe", lambda file, command, environment: started.append(command))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "own_score_of_attach.py").write_text("def brightness(output, batch):\n    return output.sum(1)\n")
    main(["attach", "--target", "own_score_of_attach.brightness", "--", "python", "project/train.py"])
    assert started == [["python", "project/train.py"]]


# Programs, unchanged


def attach(*args: str, program: str) -> tuple[subprocess.Popen[str], str, str]:
    """Run `gradcam-callback attach ARGS -- python PROGRAM` here: the process, and what it has printed."""
    name, *rest = program.split()
    command = [str(COMMAND), "attach", *args, "--", sys.executable, str(PROGRAMS / name), *rest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        return process, *process.communicate()


def panels_of(folder: Path) -> dict[str, list[int]]:
    events = Events.read(folder / "lightning_logs" / "version_0")
    assert set(events.values("gradcam/null_gradients")) == {0}
    return {tag: events.steps(tag) for tag in events.images}


def test_a_program_takes_the_place_of_the_command(tmp_path: Path) -> None:
    process, printed, errors = attach("--target", "[predicted, label]", program="classifier.py --status 7")
    assert process.returncode == 7, errors
    assert printed.splitlines()[-1] == str(process.pid)  # so that signals are the program's own
    assert errors.count(SAID) == 1
    assert panels_of(tmp_path) == {"gradcam/network.5": [6, 12, 18, 24, 30, 36]}
    assert Events.read(tmp_path / "lightning_logs" / "version_0").values("val_accuracy")[-1] > 0.9


def test_programs_of_several_kinds(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    expected = {
        "command_line": {"gradcam/network.5": [3, 6]},
        "timm_network": {"gradcam/model.layer4": [3, 6]},
        "transformers_network": {"gradcam/model.vit.*": [12, 24, 36, 48]},  # its name goes by the version
        "segmentation": {},
    }
    config = "{probes: 4, target: predicted}"
    command = [sys.executable, str(PROGRAMS / "in_turn.py"), *expected]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, factory.CONFIG: config})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(SAID) == 1
    for name in list(expected)[:-1]:
        [(tag, steps)] = panels_of(tmp_path / name).items()
        [(pattern, at)] = expected[name].items()
        assert fnmatchcase(tag, pattern)
        assert steps == at
    [file] = (tmp_path / "segmentation").rglob("alerts.jsonl")
    [alert] = map(json.loads, file.read_text().splitlines())
    assert (alert["cause"], "use `target: {segmentation: predicted}`" in alert["message"]) == ("no_maps", True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "the batch has the keys 'input_ids', 'labels'"),
        ("text_without_forward", "TextWithoutForward defines no forward"),
        ("table", "a tensor (8, 5) of torch.float32"),
        ("no_layer", '"auto" found no layer in Module'),
        ("no_validation", "the trainer validates nothing"),
        ("adversarial", "the trainer validates nothing"),
        ("no_sanity_check", "the batch has the keys 'input_ids', 'labels'"),
        ("own_callback", None),
        ("images", None),
    ],
)
def test_a_training_goes_on_as_it_is_with_a_picture_or_without(
    kind: str, reason: str | None, tmp_path: Path, monkeypatch: Environment
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(PROGRAMS)
    run = importlib.import_module("several_trainers").run
    alone = run(kind)
    (tmp_path / kind).rename("alone")
    monkeypatch.setenv(factory.ATTACH, "1")
    assert run(kind) == alone  # to the last bit
    if reason is None:
        assert panels_of(tmp_path / kind) == {"gradcam/network.5": [3, 6]}
        return
    [file] = (tmp_path / kind).rglob("alerts.jsonl")
    [alert] = [json.loads(line) for line in file.read_text().splitlines()]
    assert alert["cause"] == "no_maps"
    assert reason in alert["message"]
    events = Events.read(file.parents[1])
    assert events.ours() == {"gradcam/alerts"}
    assert events.steps("gradcam/alerts") == [alert["step"]]


@pytest.mark.slow
def test_processes_of_ddp_inherit_it(tmp_path: Path) -> None:
    process, _, errors = attach("--probes", "4", program="classifier.py --devices 2")
    assert process.returncode == 0, errors
    assert errors.count(SAID) == 1
    assert panels_of(tmp_path) == {"gradcam/network.5": [3, 6, 9, 12, 15, 18]}
