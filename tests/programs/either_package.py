"""A training with one of the two packages of Lightning, the first argument; what came of it is printed as JSON.

`--hide NAME` makes a package impossible to import, as if it were not installed; `--late` has ours imported first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("package")
parser.add_argument("--hide", action="append", default=[])
parser.add_argument("--late", action="store_true")
options = parser.parse_args()


class Hidden:
    """Finds no module of the packages that are hidden, and keeps others from finding them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in options.hide:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())
if options.late:
    from gradcam_callback import GradCAMCallback
pl = importlib.import_module(options.package)

import torch  # noqa: E402
from pictures import batches  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

if not options.late:
    from gradcam_callback import GradCAMCallback


class Classifier(pl.LightningModule):
    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.cut = cut
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8 * 7 * 7, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.trainer, pl.Trainer)
        features = self.body(images)
        self.log("mean", features.mean())
        return self.head((features.detach() if self.cut else features).flatten(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] - 0.5, batch[1]

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), lr=0.01)


class Pictures(pl.LightningDataModule):
    def train_dataloader(self):
        return batches(24)

    def val_dataloader(self):
        return batches(12)


SETTINGS = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}
CONFIG = """\
trainer:
  callbacks:
    - class_path: gradcam_callback.GradCAMCallback
      init_args: {probes: 2, target: [predicted, label]}
  logger: {class_path: PACKAGE.loggers.TensorBoardLogger, init_args: {save_dir: by_cli}}
"""


def train() -> dict[str, Any]:
    callback = GradCAMCallback(probes=3)
    trainer = pl.Trainer(callbacks=[callback], default_root_dir="trained", **SETTINGS)
    trainer.fit(Classifier(), Pictures())
    assert callback.probes is not None
    return {
        "layers": list(callback.last_result.cams),
        "alerts": [str(alert.cause) for alert in callback.alerts],
        "smallest": callback.probes.images.min().item(),  # after the hook of the model
        "checkpoint": trainer.checkpoint_callback.best_model_path,
    }


def resume(checkpoint: str) -> dict[str, Any]:
    callback = GradCAMCallback(probes=3)
    trainer = pl.Trainer(callbacks=[callback], default_root_dir="resumed", **{**SETTINGS, "max_epochs": 3})
    # Any checkpoint of Lightning's holds objects of its own.
    trainer.fit(Classifier(), Pictures(), ckpt_path=checkpoint, **UNPICKLE)
    return {"epochs": trainer.current_epoch, "indices": list(callback.probes.indices)}


def fit_with_a_cut() -> list[str]:
    callback = GradCAMCallback("body", probes=3, on_null="ignore")
    pl.Trainer(callbacks=[callback], default_root_dir="cut", **SETTINGS).fit(Classifier(cut=True), Pictures())
    return [str(alert.cause) for alert in callback.alerts]


def by_command_line() -> list[str]:
    cli = importlib.import_module(f"{options.package}.cli")
    Path("config.yaml").write_text(CONFIG.replace("PACKAGE", options.package))
    arguments = ["fit", "--config", "config.yaml", *(f"--trainer.{name}={value}" for name, value in SETTINGS.items())]
    trainer = cli.LightningCLI(Classifier, Pictures, args=arguments).trainer
    [callback] = [one for one in trainer.callbacks if isinstance(one, GradCAMCallback)]
    return list(callback.last_result.cams)


UNPICKLE = {"weights_only": False} if "weights_only" in pl.Trainer.fit.__annotations__ else {}

if __name__ == "__main__":
    pl.seed_everything(0)
    from lightning_utilities.core import rank_zero

    result: dict[str, Any] = {"log": rank_zero.log.name}
    result |= {"trained": train(), "is_callback": issubclass(GradCAMCallback, pl.Callback)}
    result |= {"cut": fit_with_a_cut(), "by_command_line": by_command_line()}
    result["resumed"] = resume(result["trained"]["checkpoint"])
    result["packages"] = sorted({"lightning", "pytorch_lightning"} & set(sys.modules))
    print(json.dumps(result))
