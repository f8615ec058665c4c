"""`priors.annotate` in the workers of a real local Ray."""

import json
import os
import secrets
import subprocess
import sys

import pytest
from pcrm.demo.world import generate

import pcrm

pytest.importorskip("ray.data", reason="Ray has no wheel for this Python or system")

# In a process of its own: Ray leaves threads and signal handlers behind.
SCRIPT = """
import functools, json, os, sys
import ray
import pcrm

rows, settings = json.load(sys.stdin)


def where(batch):
    n = len(batch["prior"])
    batch["worker"], batch["backend"] = [os.getpid()] * n, [str(pcrm.backends.native())] * n
    return batch


ray.init(address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
try:
    data = ray.data.from_items(rows).repartition(8)
    made = []
    for options in settings:
        annotate = functools.partial(pcrm.priors.annotate, **options)
        # The two are fused: `where` runs where `annotate` did.
        made.append(data.map_batches(annotate, batch_size=8).map_batches(where, batch_size=8).take_all())
    json.dump(made, open(sys.argv[1], "w"), default=float)
finally:
    ray.shutdown()
"""


def test_two_workers_have_the_numbers_of_one_process(tmp_path, tiny):
    rows = [row | {"id": i} for i, row in enumerate(generate(64, seed=4))]
    # A prior, and by how much it may differ: embeddings depend on the padding of their batch
    # by some roundings of float32.
    settings = [
        ({"prior": "lexical"}, 0),
        ({"prior": "length_ratio", "tokenizer": str(tiny)}, 0),
        ({"prior": "cosine", "model": str(tiny), "angular": False, "cache": False}, 1e-5),
    ]
    out = tmp_path / "rows.json"
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out)],
        input=json.dumps([rows, [s for s, _ in settings]]),
        text=True,
        capture_output=True,
        timeout=240,
        # A token of its own, or Ray leaves one in the home folder; and nothing is reported to anybody.
        env=os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    workers = set()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for (options, tolerance), made in zip(settings, json.loads(out.read_text()), strict=True):
        made.sort(key=lambda row: row["id"])
        want = pcrm.priors.annotate(columns, **options)["prior"]
        assert [row["prior"] for row in made] == pytest.approx(want, rel=0, abs=tolerance)
        assert len(set(want)) > 32
        assert [row["chosen"] for row in made] == columns["chosen"]
        workers |= {row["worker"] for row in made}
        assert all("_bridge" in row["backend"] for row in made), "Go computes in the workers"
    assert len(workers) >= 2
