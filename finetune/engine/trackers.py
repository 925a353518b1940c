"""The curves of a training, step by step, in what the recipe's `report_to` names: trackio, tensorboard or wandb.

Names and places are the tracker's own to set, by its environment: `WANDB_PROJECT`, `TRACKIO_SPACE_ID`, …
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, cast

from transformers import TrainerCallback

from bnbench.errors import TrainingError, require
from bnbench.finetune.engine import processes
from bnbench.finetune.tuners.base import Job

PACKAGES: Mapping[str, str] = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Tracker(TrainerCallback):  # type: ignore[misc]
    """Hands every number of the trainer's log to the tracker, in the first process. A resumed run goes on in its own.

    Raises MissingExtraError, and TrainingError where the tracker does not start, such as without its login.
    """

    def __init__(self, job: Job) -> None:
        self.name, self.run = job.recipe.report_to, cast(Any, None)
        if processes.index():
            return
        module = require(PACKAGES[self.name], extra="trackers")
        try:
            if self.name == "tensorboard":
                # Steps after the one that it goes on from are logged anew: those of a killed session are hidden.
                start = {"purge_step": job.resume.step + 1} if job.resume else {}
                self.run = module.SummaryWriter(str(job.output / "tensorboard"), **start)
                return
            known: dict[str, Any] = {"id": f"{job.output.name}-{job.recipe.sha256[:8]}", "dir": str(job.output)}
            with redirect_stdout(sys.stderr):  # stdout is for results
                self.run = module.init(
                    project=os.environ.get(f"{self.name.upper()}_PROJECT", "bnbench"), name=job.output.name,
                    config=job.recipe.to_dict(), resume="allow", **(known if self.name == "wandb" else {}),
                )  # fmt: skip
        except Exception as error:  # whatever it raises, of the network or of its login
            why = f"it does not start ({error}); --set report_to=none"
            raise TrainingError(f'report_to = "{self.name}": {why}') from None

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """The numbers of one step."""
        numbers = {k: v for k, v in logs.items() if isinstance(v, int | float) and k not in ("step", "epoch")}
        if self.run is None:
            return
        if self.name == "tensorboard":
            for key, value in numbers.items():
                self.run.add_scalar(key, value, state.global_step)
        else:
            self.run.log(numbers, step=state.global_step)

    def close(self) -> None:
        """Waits until all is written."""
        if self.run is not None:
            with redirect_stdout(sys.stderr):
                self.run.close() if self.name == "tensorboard" else self.run.finish()
