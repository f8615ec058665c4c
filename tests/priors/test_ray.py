"""`priors.annotate` in the workers of a real local Ray."""

import json
import os
import re
import secrets
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Json
from helpers.project import ROOT
from pcrm.demo.world import generate

import pcrm

pytestmark = pytest.mark.slow
pytest.importorskip("ray.data", reason="Ray has no wheel for this Python or system")

# In a separate process: Ray leaves threads and signal handlers behind.
SCRIPT = """
import functools, json, os, sys
import ray
import pcrm
from pcrm._engine import native

rows, settings, docs = json.load(sys.stdin)


def where(batch):
    n = len(batch["prior"])
    batch["worker"], batch["backend"] = [os.getpid()] * n, [str(native.chosen_library())] * n
    return batch


ray.init(address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
try:
    data = ray.data.from_items(rows).repartition(8)
    made = []
    for options in settings:
        annotate = functools.partial(pcrm.priors.annotate, **options)
        # The two are fused: `where` runs where `annotate` did.
        made.append(data.map_batches(annotate, batch_size=8).map_batches(where, batch_size=8).take_all())
    exec(docs)
    pairs = ray.data.read_parquet("json.parquet").map_batches(pcrm.priors.annotate, batch_format="pyarrow")
    pairs.write_parquet("json-with-prior")
finally:
    ray.shutdown()
json.dump(made, open("made.json", "w"), default=float)
"""

ROWS = [row | {"id": i} for i, row in enumerate(generate(64, seed=4))]
# Messages whose keys vary, which `datasets` saves as JSON texts.
VARIED = [
    {name: [{"role": "user", "content": f"{text} {i}"} | ({"thinking": "t"} if i % 2 else {})] for name, text in texts}
    for i in range(8)
    for texts in [(("chosen", "a sunny day"), ("rejected", "a rainy day"))]
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
DOCS = re.findall(r"^```python\n([^`]*ray\.data[^`]*)^```$", (ROOT / "docs" / "priors.md").read_text(), flags=re.M)


@pytest.fixture(scope="module")
def settings(tiny):
    """The arguments of annotate, and the tolerance: embeddings depend on the padding of their batch by
    some roundings of float32.
    """
    return [
        ({"prior": "lexical"}, 0),
        ({"prior": "length_ratio", "tokenizer": str(tiny)}, 0),
        ({"prior": "cosine", "model": str(tiny), "angular": False, "cache": False}, 1e-5),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, settings):
    """A folder in which a Ray with two workers has annotated rows and run the code of the docs."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "pairs").mkdir()
    for i in range(4):
        pa.parquet.write_table(pa.Table.from_pylist(ROWS[16 * i :][:16]), folder / "pairs" / f"{i}.parquet")
    Dataset.from_list(VARIED, features=Features(dict.fromkeys(VARIED[0], Json()))).to_parquet(folder / "json.parquet")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([ROWS, [s for s, _ in settings], *DOCS]),
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=240,
        # With a token of its own, because Ray would otherwise leave one in the home folder. Turn off usage reports.
        env=os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_workers_have_the_numbers_of_one_process(folder, settings):
    workers = set()
    for (options, tolerance), made in zip(settings, json.loads((folder / "made.json").read_text()), strict=True):
        made.sort(key=lambda row: row["id"])
        want = pcrm.priors.annotate(COLUMNS, **options)["prior"]
        assert [row["prior"] for row in made] == pytest.approx(want, rel=0, abs=tolerance)
        assert len(set(want)) > 32
        assert [row["chosen"] for row in made] == COLUMNS["chosen"]
        workers |= {row["worker"] for row in made}
        assert all("_bridge" in row["backend"] for row in made), "Go computes in the workers"
    assert len(workers) >= 2


def test_the_ten_lines_of_the_docs(folder):
    (block,) = DOCS
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    made = pa.parquet.read_table(folder / "pairs-with-prior").sort_by("id")
    assert made["prior"].to_pylist() == pcrm.priors.annotate(COLUMNS, prior="lexical")["prior"]
    assert made.drop_columns("prior").to_pylist() == ROWS


def test_json_columns_are_decoded(folder):
    made = pa.parquet.read_table(folder / "json-with-prior")
    want = pcrm.priors.annotate({name: [row[name] for row in VARIED] for name in VARIED[0]})["prior"]
    assert made["prior"].to_pylist() == pytest.approx(want)
    assert made.schema.field("chosen").type == pa.json_()
