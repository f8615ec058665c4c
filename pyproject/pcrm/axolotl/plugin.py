"""The plugin that Axolotl loads. Every user of Axolotl who has pcrm installed runs this module, so it imports nothing heavy."""

# Axolotl is in an environment of its own, not in that of the type checker.
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from typing import Any

from axolotl.integrations.base import BasePlugin

from .named import names_pcrm


class PCRMPlugin(BasePlugin):
    """Does nothing for a configuration that does not name pcrm."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = False  # by the configuration that was registered last

    def register(self, cfg: Any) -> None:
        """Check the configuration as it is in the file; refuse what would train with Axolotl's own loss."""
        # One process may read several configurations.
        self._undo()
        if not names_pcrm(cfg, sys.argv):
            return
        from . import keys, reward_data

        keys.check(cfg, sys.argv)
        self._asked = True
        if cfg.get("rl"):
            # Axolotl's DPO takes only its own trainer's arguments with a class of `get_trainer_cls`: not the model.
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
        """Add none: it is the first hook that sees the trainer, and another plugin's class may be in the place of ours."""
        if self._asked:
            from .trainers import check_trainer

            check_trainer(trainer)
        return []

    def _undo(self) -> None:
        if self._asked:
            from . import reward_data

            reward_data.drop_texts()
        self._asked = False
