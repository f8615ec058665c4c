"""The documentation: its site builds, needs nothing from elsewhere and has no broken link; each block of code is run, or said not to be."""

import html.parser
import logging
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from helpers.project import ROOT

FORGE = "https://github.com/pcrm-project/pcrm"
PAGES = sorted((ROOT / "docs").glob("*.md"))

# A block by its page and its first line that no other block of the page has, and the test that runs it.
RUN = {
    ("README.md", "from datasets import Dataset"): "test_readme.py::test_python_blocks",
    ("README.md", "pcrm run train.py --config train.yaml"): "test_guides.py::test_trl_by_a_script_that_stays",
    ("README.md", "import torch"): "test_readme.py::test_python_blocks",
    ("README.md", "PCRM_TRACE=trace python train.py && pcrm verify trace"): "test_guides.py::test_trace",
    ("README.md", "pcrm report scores.jsonl --out report --preset alpaca/length_ratio"): "test_guides.py::test_report",
    (
        "README.md",
        "pcrm optimize pool.jsonl --proxy reward-model --gold ratings --out optimized",
    ): "test_guides.py::test_optimize",
    ("README.md", "losses := make([]float64, n) // may be nil for the mean"): "test_guides.py::test_go_of_the_readme",
    ("average.md", "pcrm average rm-seed0 rm-seed1 rm-seed2 --out rm-warm"): "test_guides.py::test_average",
    ("calibrate.md", "pcrm calibrate pairs-scores.jsonl --out calibrated.jsonl"): "test_guides.py::test_calibrate",
    ("degrees.md", "import copy"): "test_degrees.py::test_the_loop_of_the_documentation",
    ("frameworks.md", "import torch"): "test_readme.py::test_guides",
    ("frameworks.md", "# my_pcrm.py, somewhere on PYTHONPATH"): "test_readme.py::test_the_class_for_axolotl",
    ("go.md", "package main"): "test_guides.py::test_go_program",
    ("go.md", "0.2030 [-0.0021 -0.1345]"): "test_guides.py::test_go_program",
    (
        "index.md",
        "pcrm prior pairs.jsonl --out train.jsonl          # how alike responses are",
    ): "test_guides.py::test_from_pairs_to_a_report",
    ("openrlhf.md", "from pcrm import Constraint"): "test_guides.py::test_openrlhf_in_a_script",
    (
        "optimize.md",
        "# Scored pools: no model is needed.",
    ): "test_guides.py::test_optimize",
    (
        "optimize.md",
        "best of 16: proxy reward scaled from 1.02 to 3.77 (+2.75, 2.9 sd of the reference policy), gold from 0.51 to 0.43",
    ): "test_optimize.py::test_documentation",
    (
        "optimize.md",
        "from pcrm.evaluate.optimization import best_of_n, reference, softmax_policy",
    ): "test_optimize.py::test_documentation",
    ("principles.md", "from pcrm.methods.principles import with_principles"): "test_guides.py::test_principles",
    (
        "principles.md",
        "pcrm score reward-model pairs.jsonl --out pairs-scores.jsonl --principles principles.json",
    ): "test_principles.py::test_documentation",
    ("principles.md", '["Be kind.", {"text": "Be brief.", "name": "brief"}]'): "test_principles.py::test_documentation",
    (
        "priors.md",
        "pcrm prior pairs.jsonl --out with-prior.jsonl                                      # lexical",
    ): "test_readme.py::test_commands_about_priors",
    (
        "priors.md",
        "python benchmarks/distributions.py pairs.jsonl.gz --model all-MiniLM-L6-v2",
    ): "test_readme.py::test_distributions",
    ("priors.md", "from pcrm.settings import presets"): "test_readme.py::test_python_about_priors",
    (
        "priors.md",
        "$ pcrm prior tldr.jsonl.gz --out tldr-prior.parquet --prior cosine --model all-MiniLM-L6-v2",
    ): "test_readme.py::test_commands_about_priors",
    ("priors.md", "import numpy as np"): "test_readme.py::test_python_about_priors",
    (
        "priors.md",
        "pcrm fit tldr-prior.parquet --win-alike 0.7 --win-unlike 0.95 --out win.toml",
    ): "test_readme.py::test_commands_about_priors",
    ("priors.md", "from datasets import load_dataset"): "test_readme.py::test_python_about_priors",
    ("priors.md", "import ray"): "test_ray.py::test_the_ten_lines_of_the_docs",
    ("report.md", "pip install 'pcrm[report]'"): "test_guides.py::test_report",
    (
        "report.md",
        "pcrm report plain=plain.jsonl plain=plain-ratings.jsonl constrained=constrained.jsonl --out report",
    ): "test_guides.py::test_report",
    ("rivals.md", "import math"): "test_baselines.py::test_the_guide_runs_as_it_is_printed",
    (
        "rivals.md",
        "bradley_terry held-out pairs in the gold order 0.88, spread of their margins 2.3",
    ): "test_baselines.py::test_the_guide_runs_as_it_is_printed",
    (
        "rivals.md",
        "from pcrm.methods.ensembles import ensemble",
    ): "test_baselines.py::test_the_guide_runs_as_it_is_printed",
    (
        "sampling.md",
        '-    args=PCRMRewardConfig(output_dir="reward-model"),',
    ): "test_guides.py::test_arguments_of_a_diff",
    ("sampling.md", "import torch"): "test_prioritized.py::test_the_guide_runs_as_it_is_printed",
    (
        "score.md",
        "pcrm score reward-model pairs.jsonl --out pairs-scores.jsonl",
    ): "test_score.py::test_documentation",
    (
        "score.md",
        '{"prompt": "...", "chosen": "...", "rejected": "...", "chosen_score": 1.0312, "rejected_score": -0.4177}',
    ): "test_score.py::test_documentation",
    ("settings.md", "[constraint]"): "test_settings.py::test_documentation",
    ("sft.md", '-    args=PCRMDPOConfig(output_dir="policy"),'): "test_guides.py::test_arguments_of_a_diff",
    (
        "sft.md",
        "from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification",
    ): "test_sft.py::test_the_guide_runs_as_it_is_printed",
    ("transforms.md", "from datasets import load_dataset"): "test_rl_rewards.py::test_documentation",
    ("trl.md", "-from trl import RewardConfig, RewardTrainer"): "test_guides.py::test_two_lines_of_a_script",
    ("trl.md", "from datasets import Dataset"): "test_readme.py::test_guides",
    ("trl.md", "# reward.yaml"): "test_guides.py::test_trl_by_configuration",
    # Its other two lines are of machines with several GPUs; tests/trl/test_trl_commands.py starts both launchers.
    ("trl.md", "pcrm reward --config reward.yaml"): "test_guides.py::test_trl_by_configuration",
    (
        "trl.md",
        "pcrm run train.py --config dpo.yaml     # python train.py --config dpo.yaml",
    ): "test_guides.py::test_trl_by_a_script_that_stays",
    (
        "trl.md",
        "pcrm prior preferences.jsonl --out with-prior.jsonl --prior lexical",
    ): "test_guides.py::test_trl_by_configuration",
    ("trl.md", "loss_type: [pcrm, sft]"): "test_guides.py::test_trl_by_a_script_that_stays",
    ("verify.md", "PCRM_TRACE=trace PCRM_TRACE_EVERY=10 python train.py"): "test_guides.py::test_trace",
    ("verify.md", 'with pcrm.trace("trace", every=10):'): "test_guides.py::test_trace_in_a_script",
    ("verify.md", "func TestOurRun(t *testing.T) {"): "test_guides.py::test_go_tests",
    ("verify.md", "func TestOurLoss(t *testing.T) {"): "test_guides.py::test_go_tests",
}

FORMULA = "a formula, nothing to run"
# The others, and why none runs them.
NOT_RUN = {
    (
        "README.md",
        "L(m) = -log sigmoid(m) - log sigmoid(delta - m)        m = chosen score - rejected score",
    ): FORMULA,
    (
        "README.md",
        "make demo     # trains three models on the CPU, prints the table, writes demo-out/margins.png",
    ): "minutes; .ci/run has `make test`, tests/demo/test_demo.py a short demo",
    (
        "README.md",
        "deepspeed --module pcrm.openrlhf train_rm --pcrm.beta1 1.1 --pcrm.beta3 0.9 ...    # and OpenRLHF's flags",
    ): "an ellipsis of flags; make test-openrlhf starts this launcher",
    (
        "CONTRIBUTING.md",
        "pcrm/        Go packages with all the mathematics. Pure Go, no cgo. Package pcrm has the losses, the constraint and the settings.",
    ): "a list of folders",
    (
        "CONTRIBUTING.md",
        "make test        # the quick loop, about five minutes: test-go and test-python",
    ): "a list of targets, some of which take hours or a GPU; .ci/run has the others",
    ("average.md", "theta = sum_i w_i theta_i / sum_i w_i"): FORMULA,
    ("benchmarks-priors.md", "python benchmarks/priors.py"): "minutes of a quiet machine, and never an assertion",
    ("benchmarks.md", "python benchmarks/losses.py"): "minutes of a quiet machine, and never an assertion",
    ("calibrate.md", "calibrated = score - alpha b(feature)"): FORMULA,
    (
        "experiments.md",
        "python experiments/tldr/run.py DATA --model ENCODER",
    ): "hours, on data that is not the project's; tests/project/test_experiment.py runs it in small",
    ("frameworks.md", "rl: dpo"): "needs Axolotl, which needs a GPU",
    ("frameworks.md", "from nemo_rl.algorithms import rm"): "needs NeMo-RL, which needs a GPU",
    ("go.md", "go get github.com/pcrm-project/pcrm"): "needs a network",
    ("go.md", "go doc github.com/pcrm-project/pcrm/pcrm"): "prints documentation, in a module that has the package",
    ("gpu-results.md", "make gpu-check"): "needs a GPU",
    ("idea.md", "L(m) = -log sigmoid(m) - log sigmoid(delta - m)"): FORMULA,
    ("idea.md", "delta(s) = beta1 / (s + beta2) + beta3"): FORMULA,
    (
        "index.md",
        "L(m) = -log sigmoid(m) - log sigmoid(delta - m)        m = chosen score - rejected score",
    ): FORMULA,
    (
        "openrlhf.md",
        "deepspeed --module pcrm.openrlhf train_rm \\",
    ): "an 8B model of the hub; make test-openrlhf trains with these flags",
    (
        "openrlhf.md",
        "python -m openrlhf.cli.train_ppo_ray --reward.model_name_or_path reward-model --ds.value_head_prefix score ...",
    ): "needs vLLM, Ray and GPUs",
    (
        "principles.md",
        '{"prompt": "...", "chosen": "...", "rejected": "...", "principles": [',
    ): "a row with ellipses for texts",
    (
        "principles.md",
        '"scores_by_principle": [{"principle": "Be kind.", "chosen_score": 0.71, "rejected_score": -0.2}, ...]',
    ): "a part of a row, with an ellipsis",
    (
        "sampling.md",
        "p_i = (1 - epsilon) * a_i / sum_j a_j + epsilon / n        a_i = |dL/dm|_i ** alpha        weight = 1 / (n * p_i)",
    ): FORMULA,
    (
        "sft.md",
        "loss = mean L(m) + eta * NLL          NLL = -(1/T) sum over the T tokens y_t of the batch's chosen responses of log p(y_t | what precedes it)",
    ): FORMULA,
}


def test_each_block_is_run_or_said_not_to_be():
    found = []
    for page in (*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text()
        blocks = [block.splitlines() for block in re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.S | re.M)]
        assert text.count("\n```") + text.startswith("```") == 2 * len(blocks), (
            f"{page.name} has a block of another form"
        )
        for block in blocks:
            others = {line for other in blocks if other is not block for line in other}
            found.append((page.name, next(line for line in block if line not in others)))
    listed = [*RUN, *NOT_RUN]
    assert sorted(set(found) - set(listed)) == [], "new blocks: put them in RUN or NOT_RUN"
    assert sorted(set(listed) - set(found)) == [], "blocks that are no more"
    assert len(set(listed)) == len(listed) and len(set(found)) == len(found)


@pytest.mark.parametrize("test", sorted(set(RUN.values())))
def test_the_tests_of_blocks_are_there(test):
    """And their file reads the page."""
    file, name = test.split("::")
    (path,) = (ROOT / "tests").rglob(file)
    source = path.read_text()
    assert re.search(rf"^def {name}\(", source, flags=re.M)
    for page in {page for (page, _), by in RUN.items() if by == test}:
        assert page in source, f"{file} does not name {page}"


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
    """By the built pages, and not by what MkDocs says of it."""
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


def test_links_out_of_docs(caplog):
    sys.path.insert(0, str(ROOT / "buildtools"))
    from docs_hooks import on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    config = SimpleNamespace(extra={"repository": FORGE})
    made = on_page_markdown("[a](../Makefile#x), [b](../pcrm/internal), [c](trl.md)", page=page, config=config)
    assert made == f"[a]({FORGE}/blob/main/Makefile#x), [b]({FORGE}/tree/main/pcrm/internal), [c](trl.md)"
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        on_page_markdown("[d](../nowhere.md)", page=page, config=config)
    assert "page.md links to nowhere.md, which the repository does not have" in caplog.text


@pytest.mark.slow
def test_the_reference_has_what_is_public(site):
    """Each public name of the package, and its formulas without Markdown's reading of their stars."""
    import pcrm.openrlhf
    import pcrm.trl

    import pcrm

    text = (site / "api.html").read_text() + (site / "api-tools.html").read_text()
    names = [f"pcrm.{n}" for n in ("Constraint", "PCRMLoss", "PCRMDPOLoss", "margin_of", "trace")]
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
