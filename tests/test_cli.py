from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradcam_callback import GradCAMCallback
from gradcam_callback.cli import clarify, describe_callback, main

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"


BRIEFLY = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.enable_progress_bar=false",
]


def in_folder(folder: Path) -> list[str]:
    return ["--trainer.logger.init_args.save_dir", str(folder), "--trainer.accelerator", "cpu"]


@pytest.fixture
def say(capsys):
    """Run the command line; give back its exit code, what it printed, and what it complained about."""

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def changed_demo(folder: Path, change) -> str:
    config = yaml.safe_load(DEMO.read_text())
    change(config)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def callback_options(config) -> dict:
    return config["trainer"]["callbacks"][0]["init_args"]


def test_no_arguments_print_the_help(say):
    code, out, err = say()
    assert code == 0
    assert err == ""
    assert "gradcam-callback fit --config configs/demo.yaml" in out
    assert say("--help") == (0, out, "")


def test_there_is_no_predict(say):
    code, _, err = say("predict")
    assert code == 2
    assert all(name in err for name in ("fit", "validate", "test"))


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
def test_help_documents_every_option_of_the_callback(say, subcommand):
    code, out, _ = say(subcommand, "--help")
    assert code == 0
    assert describe_callback() in out
    for name in inspect.signature(GradCAMCallback).parameters:
        assert f"\n  {name}: " in out


def test_no_option_of_the_callback_lacks_documentation():
    lines = describe_callback().splitlines()
    for name in inspect.signature(GradCAMCallback).parameters:
        [position] = [number for number, line in enumerate(lines) if line.startswith(f"  {name}: ")]
        assert lines[position + 1].startswith(" " * 6), name


def test_jsonargparse_documents_the_callback_too(say):
    code, out, _ = say("fit", "--trainer.callbacks.help", "gradcam_callback.GradCAMCallback")
    assert code == 0
    for name in inspect.signature(GradCAMCallback).parameters:
        assert f"--trainer.callbacks.{name}" in out


def test_an_unknown_option_of_the_callback_is_answered_with_those_that_exist(say, tmp_path):
    config = changed_demo(tmp_path, lambda config: callback_options(config).update(target_layer="network.stages.3"))
    code, _, err = say("fit", "--config", config)
    assert code == 2
    assert "'target_layer'" in err
    assert "Did you mean 'target_layers'?" in err
    assert all(name in err for name in inspect.signature(GradCAMCallback).parameters)
    assert "Traceback" not in err
    assert len(err.splitlines()) < 10


def test_an_unknown_option_deep_in_the_model_is_answered_too(say, tmp_path):
    def misspell(config):
        config["model"]["init_args"]["network"]["init_args"]["width"] = [4]

    code, _, err = say("fit", "--config", changed_demo(tmp_path, misspell))
    assert code == 2
    assert "ResidualNetwork" in err
    assert "Did you mean 'widths'?" in err


@pytest.mark.parametrize(
    ("option", "value", "possible"),
    [
        ("every_n_epochs", "often", "int"),
        ("on_null", "shout", "ignore"),
        ("opacity", 2.0, "0 to 1"),
        ("method", "gradcam2", "hirescam"),
        ("colormap", "tubro", "turbo"),
        ("target", "labels", "predicted"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_possible(say, tmp_path, option, value, possible):
    config = changed_demo(tmp_path, lambda config: callback_options(config).update({option: value}))
    code, _, err = say("fit", "--config", config)
    assert code == 2
    assert str(value) in err
    assert possible in err
    assert "Traceback" not in err


def test_unknown_keys_and_types_of_the_trainer_are_refused(say):
    code, _, err = say("fit", "--config", str(DEMO), "--trainer.max_epochs", "many")
    assert code == 2
    assert "trainer.max_epochs" in err
    code, _, err = say("fit", "--config", str(DEMO), "--trainer.epochs", "3")
    assert code == 2
    assert "--trainer.epochs" in err


def test_an_unknown_layer_is_refused_before_training_with_the_closest_names(say, tmp_path):
    config = changed_demo(tmp_path, lambda config: callback_options(config).update(target_layers="network.stage.3"))
    code, _, err = say("fit", "--config", config, *in_folder(tmp_path), "--trainer.enable_progress_bar", "false")
    assert code == 2
    assert "network.stages.3" in err
    assert "Traceback" not in err


def test_errors_of_others_keep_their_traceback(tmp_path, monkeypatch):
    def misbehave(self, stage):
        raise ValueError("in the user's code")

    monkeypatch.setattr("gradcam_callback.demo.data.ClutteredMNISTData.setup", misbehave)
    with pytest.raises(ValueError, match="in the user's code"):
        main(["fit", "--config", str(DEMO), *in_folder(tmp_path)])


def test_a_second_run_may_use_the_same_folder(tmp_path):
    args = ["fit", "--config", str(DEMO), *in_folder(tmp_path), *BRIEFLY, "--trainer.logger.init_args.version", "same"]
    main(args)
    main(args)
    assert (tmp_path / "demo" / "same" / "config.yaml").is_file()


def test_validate_and_test_run(tmp_path, capsys):
    main(["fit", "--config", str(DEMO), *in_folder(tmp_path), *BRIEFLY])
    [checkpoint] = tmp_path.rglob("*.ckpt")
    for subcommand, metric in (("validate", "val/accuracy"), ("test", "test/accuracy")):
        main([subcommand, "--config", str(DEMO), *in_folder(tmp_path), *BRIEFLY, "--ckpt_path", str(checkpoint)])
        assert metric in capsys.readouterr().out


def test_clarify_leaves_other_messages_alone():
    assert clarify("No such file: x.yaml") == "No such file: x.yaml"


def test_a_config_that_is_not_there_ends_the_process_without_a_traceback():
    process = subprocess.run(
        [sys.executable, "-c", "from gradcam_callback.cli import main; main()", "fit", "--config", "missing.yaml"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert process.returncode == 2
    assert "missing.yaml" in process.stderr
    assert "Traceback" not in process.stderr
