"""The documentation: its site builds, needs nothing from elsewhere and has no broken link; each block of code is run, or has a reason beside it."""

import html.parser
import logging
import math
import os
import pkgutil
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from helpers.project import ROOT

FORGE = "https://github.com/pcrm-project/pcrm"
PAGES = sorted((ROOT / "docs").glob("*.md"))

PRINTED = sorted([*PAGES, *ROOT.glob("*.md"), ROOT / "recipes" / "README.md"])


class Block(NamedTuple):
    """A block of code, by its page and line, and the comment on the line before it."""

    page: str
    line: int
    run: bool  # the comment names the test that runs the block, and not the reason why none does
    note: str


def noted_blocks(page):
    """The blocks of a page; a block without its comment is an error."""
    name = page.relative_to(ROOT).as_posix()
    lines, inside = page.read_text().splitlines(), False
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("```", "~~~")):
            inside = not inside
            if inside:
                before = lines[number - 1] if number else ""
                note = re.fullmatch(r" *<!-- (test|notest): (\S.*\S) -->", before)
                assert note, (
                    f"{name}, line {number + 1}: put `<!-- test: FILE::TEST -->` or `<!-- notest: REASON -->` above"
                )
                yield Block(name, number + 1, note[1] == "test", note[2])


@pytest.mark.parametrize("page", PRINTED, ids=lambda page: page.name)
def test_each_block_is_run_or_said_not_to_be(page):
    """And the test that runs it is there, in a file that names the page."""
    found = list(noted_blocks(page))
    comments = re.findall(r"^ *<!-- (?:no)?test\b", page.read_text(), flags=re.M)
    assert len(comments) == len(found), "a comment without its block"
    for block in found:
        if block.run:
            file, _, test = block.note.partition("::")
            source = (ROOT / file).read_text()
            assert re.search(rf"^def {test}\(", source, flags=re.M), f"{block.page}, line {block.line}: no {block.note}"
            assert page.name in source, f"{block.page}, line {block.line}: {file} does not name the page"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does. (Not --quiet: MkDocs then counts no warnings, and is strict with none.)"""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(html.parser.HTMLParser):
    """The ids of a page, its links, and what a browser loads for it."""

    # The values of `rel` with which a browser loads what a link names, or connects to where it is.
    LOADED = frozenset(
        {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
    )

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.components = set(), [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.components |= {given.get("data-md-component"), *(given.get("class") or "").split()}
        self.loads += [given[name] for name in ("src", "srcset", "poster", "data") if name in given]
        if tag == "link" and self.LOADED & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style") or "")


@pytest.fixture(scope="module")
def pages(site):
    # The theme's page of what is not found links from the root of wherever the site lies.
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_each_page_is_built(pages):
    assert {path.stem for path in pages} == {page.stem for page in PAGES}


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert page.loads
        for target in page.loads:
            assert not urlsplit(target).netloc, f"{path.name} loads {target}"
            assert (path.parent / unquote(urlsplit(target).path)).is_file(), f"{path.name} loads {target}"
        # What the theme's script fetches from elsewhere, by what on a page it does so.
        assert page.components.isdisjoint({"source", "mermaid"}), path.name
    for sheet in site.rglob("*.css"):
        loaded = re.findall(r"""@import|url\(["']?(?:https?:)?//""", sheet.read_text())
        assert not loaded, f"{sheet.name}: {loaded}"
    for script in site.rglob("*.html"):
        assert "unpkg" not in script.read_text() and "googleapis" not in script.read_text(), script.name


@pytest.mark.slow
def test_no_broken_link(pages):
    """Checks the built pages, not the messages of MkDocs."""
    forge = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if link.startswith(FORGE + "/"):
                kind, branch, rest = link.removeprefix(FORGE + "/").split("/", 2)
                there = ROOT / rest.partition("#")[0]
                assert branch == "main" and (there.is_dir() if kind == "tree" else there.is_file()), (
                    f"{path.name}: {link}"
                )
                forge += 1
            elif not parts.netloc:
                there = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
                assert there.is_file(), f"{path.name}: {link}"
                if parts.fragment and there in pages and parts.fragment != "__skip":
                    assert unquote(parts.fragment) in pages[there].ids, f"{path.name}: {link}"
    assert forge >= 10


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASE.md", "SECURITY.md"])
def test_links_of_the_front_pages(name):
    for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text()):
        assert urlsplit(link).netloc or (ROOT / link).exists(), link


def test_each_make_that_is_named_is_there():
    makefile = (ROOT / "Makefile").read_text()
    rules = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, flags=re.M))
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.M)[0].split())
    assert phony <= rules
    named = set()
    for page in [*PAGES, *ROOT.glob("*.md"), ROOT / "recipes" / "README.md", ROOT / ".ci" / "run"]:
        named |= set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", page.read_text(), flags=re.M))
    assert len(named) > 10 and named <= rules, named - rules


def test_what_the_site_is_made_of(caplog):
    sys.path.insert(0, str(ROOT / "buildtools"))
    from docs_hooks import on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    config = SimpleNamespace(extra={"repository": FORGE})
    made = on_page_markdown("[a](../Makefile#x), [b](../pcrm/internal), [c](trl.md)", page=page, config=config)
    assert made == f"[a]({FORGE}/blob/main/Makefile#x), [b]({FORGE}/tree/main/pcrm/internal), [c](trl.md)"
    noted = "a\n<!-- test: b.py::c -->\n```\nx\n```\n1. d\n\n    <!-- notest: e -->\n    ```\n    y\n    ```\n"
    made = on_page_markdown(noted, page=page, config=config)
    assert made == "a\n```\nx\n```\n1. d\n\n    ```\n    y\n    ```\n"
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        on_page_markdown("[d](../nowhere.md)", page=page, config=config)
    assert "page.md links to nowhere.md, which is not in the repository" in caplog.text


def test_what_is_called_public_is_there():
    text = (ROOT / "docs" / "stability.md").read_text()
    names = set(re.findall(r"`(pcrm(?:\.\w+)+)`", text)) - {"pcrm.toml", "pcrm.prior"}
    assert len(names) > 10
    for name in names:
        pkgutil.resolve_name(name)
    for variable in re.findall(r"`(PCRM_\w+)`", text):
        assert any(variable in path.read_text() for path in (ROOT / "pyproject").rglob("*.py")), variable
    assert (ROOT / "pyproject" / "pcrm" / "py.typed").is_file()


@pytest.mark.slow
def test_the_reference_has_what_is_public(site):
    """Each public name of the package, and its formulas without Markdown's reading of their stars."""
    import pcrm.openrlhf
    import pcrm.trl

    import pcrm

    text = (site / "api.html").read_text() + (site / "api-tools.html").read_text()
    names = [f"pcrm.{n}" for n in ("Constraint", "PCRMLoss", "PCRMDPOLoss", "margin_of", "trace", "win_probability")]
    names += [f"pcrm.trl.{n}" for n in pcrm.trl.__all__] + [f"pcrm.openrlhf.{n}" for n in pcrm.openrlhf.__all__]
    for name in names:
        assert f'id="{name}"' in text, name
    for name in pcrm.functional.__all__:
        assert not name.endswith("_loss") or re.search(rf'id="pcrm\.\w+\.{name}"', text), name
    assert not re.search(r"<(em|strong)>[^<]*</\1>", text)


def test_the_curves_of_the_idea():
    """The points of docs/idea.svg are of the formula, to the digits that they have."""
    svg = (ROOT / "docs" / "idea.svg").read_text()
    curves = re.findall(r'<path class="(d\d+|inf)" d="M([^"]*)"', svg)
    assert [name for name, _ in curves] == ["d2", "d4", "d8", "inf"]
    for name, points in curves:
        delta = math.inf if name == "inf" else float(name[1:])
        for margin, loss in (map(float, point.split(",")) for point in points.split()):
            want = math.log1p(math.exp(-margin)) + math.log1p(math.exp(margin - delta))
            assert loss == pytest.approx(want, abs=5.1e-4), (name, margin)


@pytest.mark.parametrize("name", ["idea.svg", "architecture.svg"])
def test_drawings_have_a_dark_scheme(name):
    svg = (ROOT / "docs" / name).read_text()
    used = set(re.findall(r"var\((--\w+)\)", svg))
    light, dark = (set(re.findall(r"(--\w+):", scheme)) for scheme in svg.split("prefers-color-scheme: dark", 1))
    assert used and used <= light and used <= dark
