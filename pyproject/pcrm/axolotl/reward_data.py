"""Keep the texts and the column `prior` of a reward model's data. Axolotl's tokenization keeps only token ids.

`pcrm.trl` reads the column, and computes the priors `lexical` and `cosine` from the texts.
"""

# Axolotl is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from axolotl.prompt_strategies.bradley_terry import chat_template
from axolotl.utils.data import sft

_strategy, _hash = chat_template.BTChatTemplateStrategy, sft.generate_dataset_hash_from_config


class KeepsTexts(chat_template.BTChatTemplateStrategy):
    """Axolotl's tokenization, extended to keep the texts and the prior of each row."""

    def tokenize_prompt(self, prompt: dict[str, Any]) -> dict[str, Any]:
        kept = {name: prompt[name] for name in ("chosen", "rejected", "prior") if name in prompt}
        kept["prompt"] = "\n".join(filter(None, (prompt.get("system"), prompt.get("input"))))
        return {**super().tokenize_prompt(prompt), **kept}


def keep_texts() -> None:
    """Make Axolotl keep the texts of reward models' data, in this process."""
    chat_template.BTChatTemplateStrategy = KeepsTexts
    sft.generate_dataset_hash_from_config = _hash_of_texts


def drop_texts() -> None:
    """Undo `keep_texts`."""
    chat_template.BTChatTemplateStrategy = _strategy
    sft.generate_dataset_hash_from_config = _hash


def _hash_of_texts(*args: Any, **kwargs: Any) -> str:
    """Use a separate folder for prepared data, because data prepared without texts must not be read."""
    return f"{_hash(*args, **kwargs)}-pcrm"
