"""Files of rows in every format that the commands accept."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk

# The command as it is installed, but with small batches: many shards of few rows.
SMALL_BATCHES = (
    "import sys, pcrm.data.sources as d; d._BATCH_ROWS, d._LOOK_ROWS = 20, 5; "
    "from pcrm.cli import main; sys.exit(main(sys.argv[1:]))"
)
SUFFIXES = [".jsonl", ".jsonl.gz", ".parquet", ""]


def write(path, rows):
    """Write the rows in the format of the path's suffix, or as a folder of `datasets` without one; return the path."""
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=33)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines(rows)))
    elif path.name.endswith(".jsonl"):
        path.write_bytes(lines(rows))
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(path):
    if path.name.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    if path.name.endswith(".gz"):
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    if path.name.endswith(".jsonl"):
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    return load_from_disk(str(path)).to_list()
