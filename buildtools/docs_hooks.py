"""MkDocs hook: point links from docs/ to other files of the repository at the forge, and remove comments for tests.

A page links to `../examples/accelerate`. This works on the forge and in an editor, but the site has no
such file. A link to a file that does not exist in the repository is a warning, which `--strict` turns
into an error.

The comments `<!-- test: ... -->` and `<!-- notest: ... -->` before a code block are for
tests/project/test_docs.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger

_ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\(\.\./([^)#\s]*)")
_NOTE = re.compile(r"^ *<!-- (?:no)?test: .* -->\n", flags=re.MULTILINE)
_log = get_plugin_logger("repository")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    def forge(link: re.Match[str]) -> str:
        path = link[1]
        if not (_ROOT / path).exists():
            _log.warning("%s links to %s, which is not in the repository", page.file.src_uri, path)
        return f"]({config.extra['repository']}/{'tree' if (_ROOT / path).is_dir() else 'blob'}/main/{path}"

    return _LINK.sub(forge, _NOTE.sub("", markdown))
