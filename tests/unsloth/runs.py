"""Short runs of TRL's trainers and ours with Unsloth in the process: `python runs.py WAY FOLDERS ROWS OUT`.

WAY says how Unsloth gets in: "first" and "last", before and after pcrm, as with a GPU; "cpu", its backend for machines without
one; "fast", as "first", but the model is of Unsloth's loader; "liger": no Unsloth, but Liger's kernels. Writes what was logged as JSON.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
way, folders, rows, out = sys.argv[1:]

import cpu  # noqa: E402

if way in ("first", "fast"):
    cpu.as_with_a_gpu()
elif way == "cpu":
    import unsloth  # noqa: F401
elif way == "liger":
    os.environ["TRITON_INTERPRET"] = "1"

import trl  # noqa: E402
from helpers.trainers import FORMATS, SETTINGS, load, steps  # noqa: E402
from pcrm.trl import PCRMDPOConfig, PCRMDPOTrainer, PCRMRewardConfig, PCRMRewardTrainer  # noqa: E402

from pcrm import prefix_sharing  # noqa: E402

if way == "last":
    cpu.as_with_a_gpu()

from transformers import AutoTokenizer  # noqa: E402

OURS = {"reward": (PCRMRewardTrainer, PCRMRewardConfig), "dpo": (PCRMDPOTrainer, PCRMDPOConfig)}
STOCK = {"reward": (trl.RewardTrainer, trl.RewardConfig), "dpo": (trl.DPOTrainer, trl.DPOConfig)}
INFINITE = {"pcrm_prior": "fixed", "pcrm_delta": float("inf")}
BETAS = {"pcrm_beta1": 1.1, "pcrm_beta3": 0.9}
# Unsloth's configurations have other defaults than TRL's.
SAME = {"seed": 1, "warmup_steps": 0, "weight_decay": 0.0, "gradient_accumulation_steps": 1, "dataset_num_proc": None}
data = FORMATS["plain"]([row | {"prompt": row["prompt"] * 3} for row in json.loads(Path(rows).read_text())])


def train(kind, *, stock=False, model=None, **options):
    trainer_class, config_class = (STOCK if stock else OURS)[kind]
    # Kernels in Triton's interpreter are slow.
    few = {"max_steps": 2, "per_device_train_batch_size": 2} if way in ("fast", "liger") else {}
    trainer = trainer_class(
        model=model or load(kind, f"{folders}/{kind}"),
        args=config_class(f"{out}-run", **SETTINGS | SAME | few | options),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(f"{folders}/{kind}"),
    )
    trainer.train()
    return steps(trainer)


def refusal(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:  # its type is looked at by the test
        return f"{type(error).__name__}: {error}"
    return ""


def all_kinds():
    found = {"bases": {kind: [base.__name__ for base in OURS[kind][0].__mro__] for kind in OURS}}
    for kind in OURS:
        found[kind] = {
            "stock": train(kind, stock=True),
            "infinite": train(kind, **INFINITE),
            "constrained": train(kind, **BETAS),
            "shared": train(kind, pcrm_prefix_sharing=True, **BETAS),
        }
    return found


def defaults():
    return {
        name: {
            field: str(getattr(config(f"{out}-run", bf16=False), field)) for field in ("seed", "learning_rate", "optim")
        }
        for name, config in (("stock", STOCK["dpo"][1]), ("ours", OURS["dpo"][1]))
    }


def fast():
    found = {
        "stock": train("dpo", stock=True, model=cpu.fast_model(f"{folders}/dpo")),
        "infinite": train("dpo", model=cpu.fast_model(f"{folders}/dpo"), **INFINITE),
        "constrained": train("dpo", model=cpu.fast_model(f"{folders}/dpo"), **BETAS),
    }
    model = cpu.fast_model(f"{folders}/dpo")
    found["refused"] = refusal(train, "dpo", model=model, pcrm_prefix_sharing=True)
    found["why not"] = prefix_sharing.why_not(model)
    return found


def liger():
    found = {kind: {"without": train(kind, **BETAS)} for kind in OURS}
    # Triton's interpreter has plain floats, and Liger's norm and activation ask for more. Its positions stay from here on.
    options = {"use_liger_kernel": True, "liger_kernel_config": {"rms_norm": False, "swiglu": False}}
    for kind in OURS:
        found[kind]["with"] = train(kind, **options, **BETAS)
    found["stock reward"] = refusal(train, "reward", stock=True, **options)
    return found


if way == "liger":
    result = liger()
elif way == "fast":
    result = fast()
else:
    result = all_kinds() | ({"defaults": defaults()} if way == "first" else {})
Path(out).write_text(json.dumps(result))
