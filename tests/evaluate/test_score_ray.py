"""A reward model in the actors of a real local Ray: the lines of docs/score.md."""

import os
import re
import secrets
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from helpers.project import ROOT
from pcrm.demo.world import generate
from pcrm.evaluate.reward_model import RewardModel

pytestmark = pytest.mark.slow
pytest.importorskip("ray.data", reason="Ray has no wheel for this Python or system")

# In a process of its own: Ray leaves threads and signal handlers behind.
SCRIPT = """
import os, sys
import ray

# An actor holds a CPU, and the files are read on others.
ray.init(address="local", num_cpus=4, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
# Or the first actor would do all that is there before the second has loaded its model.
ray.data.DataContext.get_current().wait_for_min_actors_s = 200
try:
    exec(sys.stdin.read())
finally:
    ray.shutdown()
"""
(DOCS,) = re.findall(r"^```python\n([^`]*ray\.data[^`]*)^```$", (ROOT / "docs" / "score.md").read_text(), flags=re.M)


def test_two_actors_have_the_scores_of_one_process(tmp_path, tiny):
    rows = [row | {"id": i} for i, row in enumerate(generate(64, seed=4))]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "reward-model").symlink_to(tiny)
    for i in range(4):
        pa.parquet.write_table(pa.Table.from_pylist(rows[16 * i :][:16]), tmp_path / "pairs" / f"{i}.parquet")
    assert len([line for line in DOCS.splitlines() if line.strip()]) <= 12
    code = DOCS
    # In blocks so small that both actors get some, and with the actor that had a row.
    for printed, run in (
        ('read_parquet("pairs")', 'read_parquet("pairs").repartition(8)'),
        ("batch_size=512", "batch_size=8"),
        ("return rows", 'return rows | {"actor": [os.getpid()] * len(rows["id"])}'),
    ):
        assert code.count(printed) == 1
        code = code.replace(printed, run)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=code,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=240,
        # A token of its own, or Ray leaves one in the home folder; and nothing is reported to anybody.
        env=os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = pa.parquet.read_table(tmp_path / "pairs-with-scores").sort_by("id")
    assert len(set(made["actor"].to_pylist())) == 2
    assert made.select(list(rows[0])).to_pylist() == rows
    model = RewardModel(tiny)
    for side in ("chosen", "rejected"):
        want = model([row["prompt"] for row in rows], [row[side] for row in rows])
        # Sums in float32 in another order, as in test_score.py; the scores are some 1e-2.
        np.testing.assert_allclose(made[f"{side}_score"], want, rtol=3e-5, atol=3e-7)
