"""Generated posts, in the files that the experiments read."""

import gzip
import json


def write_tldr(folder, posts=10):
    """Write this many train and test posts, with rated summaries and their pairs."""
    from pcrm.demo.world import generate

    rows = generate(100, seed=0)
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    for split, chosen in (("train", prompts[:posts]), ("test", prompts[posts : 2 * posts])):
        pairs = [row for row in rows if row["prompt"] in chosen]
        with gzip.open(folder / f"tldr_{split}_pairs.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in pairs)
        pools = {prompt: {} for prompt in chosen}
        for row in pairs:
            for side in ("chosen", "rejected"):
                pools[row["prompt"]][row[side]] = row[f"rating_{side}"]
        (folder / f"tldr_{split}_ratings.jsonl").write_text(
            "".join(
                json.dumps({"prompt": prompt, "responses": list(pool), "ratings": list(pool.values())}) + "\n"
                for prompt, pool in pools.items()
            )
        )
