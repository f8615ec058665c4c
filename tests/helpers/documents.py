"""Read code blocks from the documentation."""

import re

from helpers.project import ROOT


def blocks(path, language):
    text = (ROOT / path).read_text()
    return [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M) if kind == language]
