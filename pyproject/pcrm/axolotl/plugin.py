"""The plugin that Axolotl loads. It runs for every user of Axolotl who has pcrm installed, so it must stay light."""

# Axolotl is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from typing import Any

from axolotl.integrations.base import BasePlugin

from .named import names_pcrm


class PCRMPlugin(BasePlugin):
    """Axolotl's plugin for pcrm. It does nothing if the configuration does not name pcrm."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = False  # by the last registered configuration

    def register(self, cfg: Any) -> None:
        """Check the configuration in the file; reject one that would train with Axolotl's own loss."""
        # One process may read several configurations.
        self._undo()
        if not names_pcrm(cfg, sys.argv):
            return
        from . import keys, reward_data

        keys.check(cfg, sys.argv)
        self._asked = True
        if cfg.get("rl"):
            # With a class from `get_trainer_cls`, Axolotl's DPO passes only its own trainer's arguments, not the model.
            cfg["trainer_cls"] = keys.DPO_TRAINER
        else:
            reward_data.keep_texts()

    def on_config_validation_error(self, cfg: Any) -> None:
        self._undo()

    def get_input_args(self) -> str | None:
        return "pcrm.axolotl.arguments.PCRMKeys" if self._asked else None

    def get_trainer_cls(self, cfg: Any) -> Any:
        if not self._asked or cfg.get("rl"):
            return None
        from .trainers import ConstrainedRewardTrainer

        return ConstrainedRewardTrainer

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Add no callback. This is the first hook that sees the trainer, so check that it is ours, not another plugin's."""
        if self._asked:
            from .trainers import check_trainer

            check_trainer(trainer)
        return []

    def _undo(self) -> None:
        if self._asked:
            from . import reward_data

            reward_data.drop_texts()
        self._asked = False
