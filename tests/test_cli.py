"""The command line, run in this process: what it answers, and with which exit status."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradcam_callback import Cause, GradCAMCallback, pages
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.cli import clarify, describe_callback, main

pytestmark = pytest.mark.usefixtures("few_digits")

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
IN_A_CHECKOUT = re.compile(r"(?<![\w/])(configs|docs|scripts)/")  # paths that an installation does not have
OPTIONS = list(inspect.signature(GradCAMCallback).parameters)


def briefly(folder: Path, config: str = str(DEMO)) -> list[str]:
    """The demo for two steps, into a folder of the test."""
    settings = ["max_epochs=1", "limit_train_batches=2", "accelerator=cpu", "enable_progress_bar=false"]
    place = f"--trainer.logger.init_args.save_dir={folder}"
    return ["--config", config, place, *(f"--trainer.{setting}" for setting in settings)]


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


def changed_demo(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    config = yaml.safe_load(DEMO.read_text())
    change(config)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def with_option(folder: Path, **options: Any) -> str:
    return changed_demo(folder, lambda config: config["trainer"]["callbacks"][0]["init_args"].update(options))


# Help


def test_no_arguments_print_the_help(say):
    code, out, err = say()
    assert code == 0
    assert err == ""
    for command in ("fit", "doctor", "layers", "explain-cause"):
        assert f"gradcam-callback {command} " in out
    assert not IN_A_CHECKOUT.search(out)
    assert say("--help") == (0, out, "")


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "doctor", "layers", "explain"])
def test_help_documents_every_option_of_the_callback(say, subcommand):
    code, out, _ = say(subcommand, "--help")
    assert code == 0
    assert describe_callback() in out
    assert not IN_A_CHECKOUT.search(out)


def test_no_option_of_the_callback_lacks_documentation():
    lines = describe_callback().splitlines()
    for name in OPTIONS:
        [position] = [number for number, line in enumerate(lines) if line.startswith(f"  {name}: ")]
        assert lines[position + 1].startswith(" " * 6), name


def test_jsonargparse_documents_the_callback_too(say):
    code, out, _ = say("fit", "--trainer.callbacks.help", "gradcam_callback.GradCAMCallback")
    assert code == 0
    assert [name for name in OPTIONS if f"--trainer.callbacks.{name}" not in out] == []


def test_there_is_no_predict(say):
    code, _, err = say("predict")
    assert code == 2
    assert all(name in err for name in ("fit", "validate", "test"))


# What is refused


@pytest.mark.parametrize(
    ("option", "value", "possible"),
    [
        ("every_n_epochs", "often", "int"),
        ("on_null", "shout", "ignore"),
        ("opacity", 2.0, "0 to 1"),
        ("method", "gradcam2", "hirescam"),
        ("colormap", "tubro", "turbo"),
        ("target", "labels", "predicted"),
        ("target_layer", "network.stages.3", "Did you mean 'target_layers'?"),
        ("target_layer", "network.stages.3", ", ".join(OPTIONS)),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_possible(say, tmp_path, option, value, possible):
    code, _, err = say("fit", "--config", with_option(tmp_path, **{option: value}))
    assert code == 2
    assert str(value if option in OPTIONS else option) in err
    assert possible in err
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
    ("args", "said"),
    [
        (("--config", str(DEMO), "--trainer.max_epochs", "many"), "trainer.max_epochs"),
        (("--config", str(DEMO), "--trainer.epochs", "3"), "--trainer.epochs"),
        (("--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_the_parser_refuses_is_said_without_a_traceback(say, args, said):
    code, _, err = say("fit", *args)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_clarify_leaves_other_messages_alone():
    assert clarify("No such file: x.yaml") == "No such file: x.yaml"


def test_an_unknown_layer_is_refused_before_training_with_the_closest_names(say, tmp_path):
    config = with_option(tmp_path, target_layers="network.stage.3")
    code, _, err = say("fit", *briefly(tmp_path, config))
    assert code == 2
    assert "network.stages.3" in err
    assert "Traceback" not in err


def test_errors_of_others_keep_their_traceback(tmp_path, monkeypatch):
    def misbehave(self, stage):
        raise ValueError("in the user's code")

    monkeypatch.setattr("gradcam_callback.demo.data.ClutteredMNISTData.setup", misbehave)
    with pytest.raises(ValueError, match="in the user's code"):
        main(["fit", *briefly(tmp_path)])


# What runs


def test_fit_twice_into_one_folder_then_validate_and_test(tmp_path, capsys):
    version = "--trainer.logger.init_args.version=same"
    main(["fit", *briefly(tmp_path), version])
    [checkpoint] = tmp_path.rglob("*.ckpt")
    main(["fit", *briefly(tmp_path), version])
    assert (tmp_path / "demo" / "same" / "config.yaml").is_file()
    for subcommand, metric in (("validate", "val/accuracy"), ("test", "test/accuracy")):
        main([subcommand, *briefly(tmp_path), "--ckpt_path", str(checkpoint)])
        assert metric in capsys.readouterr().out


@pytest.mark.parametrize("inputs", [0, "0", [0], {"images": 0}, {"images": "0"}], ids=repr)
def test_inputs_of_a_configuration_reach_forward(tmp_path, monkeypatch, inputs):
    """The batches of the demo are pairs; how each call got its images is kept."""
    from gradcam_callback.demo.classifier import ImageClassifier

    calls, forward = [], ImageClassifier.forward

    def kept(self, *args, **kwargs):
        calls.append((len(args), list(kwargs)))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ImageClassifier, "forward", kept)
    config = with_option(tmp_path, inputs=inputs, probes=2)
    limits = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val")]
    main(["fit", *briefly(tmp_path, config), *limits])
    assert list(tmp_path.rglob("events*")) != []
    assert list(tmp_path.rglob("alerts.jsonl")) == []
    assert ((0, ["images"]) in calls) == isinstance(inputs, dict)


@pytest.mark.parametrize(
    ("inputs", "told"), [({"images": 7}, "inputs=7 is not in the batch"), ([[0]], "inputs"), (1, "are not the images")]
)
def test_inputs_of_a_configuration_that_do_not_fit_are_refused(say, tmp_path, inputs, told):
    code, _, err = say("fit", *briefly(tmp_path, with_option(tmp_path, inputs=inputs)))
    assert code == 2
    assert told in err
    assert "Traceback" not in err


# explain-cause


def test_explain_cause_lists_every_slug_that_an_alert_may_have(capsys):
    main(["explain-cause"])
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    # `fewer_probes` is no alert any more.
    assert {str(slug) for slug in (*Cause, *CallbackIssue)} - {"fewer_probes"} <= set(listed)
    assert "detach() or .data" in listed["detached"]


def test_explain_cause_prints_the_section_of_the_page(capsys):
    main(["explain-cause", "detached"])
    out = capsys.readouterr().out
    assert out.startswith("## detached\n\n**What you see.**")
    assert out.endswith(f"\n\n{pages.url('detached')}\n")


def test_explain_cause_sets_the_page_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["explain-cause", "probes_missing"])
    out = capsys.readouterr().out
    assert "probes_missing" in out
    assert "**" not in out


def test_an_unknown_cause_is_answered_with_those_that_are_explained(say):
    code, _, err = say("explain-cause", "detach")
    assert code == 2
    assert "Did you mean 'detached'?" in err
    assert "non_finite" in err
