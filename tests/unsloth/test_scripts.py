"""For which scripts `pcrm run` imports Unsloth; Unsloth is not needed."""

import pytest
from pcrm.commands import run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import unsloth\nimport trl\n", True),
        ("from unsloth import FastLanguageModel\n", True),
        ("from unsloth.chat_templates import get_chat_template\n", True),
        ("import os, unsloth as u\n", True),
        ("import unsloth_zoo\nfrom . import unsloth\n", False),
        ("# import unsloth\nimport trl\n", False),
        ("import unsloth\nthis is no Python", False),
    ],
)
def test_scripts(tmp_path, text, expected):
    script = tmp_path / "train.py"
    script.write_text(text)
    assert run._imports_unsloth(str(script)) is expected
