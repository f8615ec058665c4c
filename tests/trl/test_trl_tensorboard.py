"""The margins' histogram in TensorBoard, read back by TensorBoard's own reader."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from helpers.project import ROOT
from helpers.trainers import FORMATS, TWO_PROCESSES, build, distance, launch, load, steps
from pcrm.trl import PCRMDPOConfig, PCRMRewardConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

pytestmark = pytest.mark.slow

LOGGED = {"report_to": "tensorboard", "pcrm_log_margins": True}
# A learning rate of 0 keeps the margins as a model that is not trained has them.
STILL = {"learning_rate": 0.0, "per_device_eval_batch_size": 4}


@pytest.fixture(params=["reward", "dpo"])
def kind(request):
    return request.param


@pytest.fixture
def make(kind, request, tmp_path):
    """A function that builds a trainer of the tiny model of this kind.

    A policy's reference is another model: its own would make every margin of an untrained one 0.
    """
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")

    def trainer(data, out="out", **options):
        extra = {"trainer": {"ref_model": perturbed(folder)}} if kind == "dpo" else {}
        return build(kind, folder, tmp_path / out, data, **extra, **options)

    return trainer


def perturbed(folder):
    model = load("dpo", folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def margins(kind, folder, rows, beta=0.1):
    """Chosen minus rejected of each row by plain forward passes in float64, one response at a time;
    and what the trainer's float32 may differ from it.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(kind, folder).double().eval()
    reference = perturbed(folder).double().eval() if kind == "dpo" else None

    largest = 0.0

    def logps(lm, ids, start):
        nonlocal largest
        logits = lm(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        total = logits.gather(-1, torch.tensor(ids[1:])[:, None])[start - 1 :].sum().item()
        largest = max(largest, -total)
        return total

    def score(row, key):
        ids = [*tokenizer(row["prompt"] + row[key])["input_ids"], tokenizer.eos_token_id]
        if reference is None:
            return model(torch.tensor([ids])).logits.item()
        start = len(tokenizer(row["prompt"])["input_ids"])
        return beta * (logps(model, ids, start) - logps(reference, ids, start))

    with torch.no_grad():
        values = np.array([score(row, "chosen") - score(row, "rejected") for row in rows])
    # Four sums of log probabilities, each with a rounding error of about its last digit; a score
    # is a short sum of numbers near 1.
    eps = torch.finfo(torch.float32).eps
    return values, 4 * beta * eps * largest if reference is not None else 16 * eps


def histograms(out):
    """The histograms by tag, each with its step, from the single file in the folder."""
    (file,) = out.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"histograms": 0, "scalars": 0}).Reload()
    tags = sorted(events.Tags()["histograms"], reverse=True)  # that of training first
    return {tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags}


def is_of(histogram, margins):
    values, rounding = margins
    assert histogram.num == len(values)
    assert histogram.min == pytest.approx(values.min(), abs=rounding)
    assert histogram.max == pytest.approx(values.max(), abs=rounding)
    assert histogram.sum == pytest.approx(values.sum(), abs=rounding * len(values))
    assert histogram.sum_squares == pytest.approx((values**2).sum(), abs=2 * rounding * np.abs(values).sum())
    # A value within a rounding of a bucket's edge may be on either side of it.
    counts = np.cumsum(histogram.bucket)
    for limit, count in zip(histogram.bucket_limit, counts, strict=True):
        assert (values <= limit - rounding).sum() <= count <= (values <= limit + rounding).sum()


def test_histograms_are_those_of_the_margins(kind, make, rows, request, tmp_path):
    """A histogram covers the pairs since the last log: here a whole epoch of 8 pairs, then half an epoch."""
    folder = request.getfixturevalue("tiny" if kind == "reward" else "tiny_policy")
    plain = FORMATS["plain"](rows)
    trainer = make(
        plain.select(range(8)),
        eval_data=plain.select(range(20, 30)),  # the last batch is not full
        max_steps=5,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=5,
        **STILL,
        **LOGGED,
    )
    trainer.train()
    found = histograms(tmp_path / "out")
    assert found.keys() == {"pcrm/margins", "eval/pcrm/margins"}
    train, held_out = margins(kind, folder, rows[:8]), margins(kind, folder, rows[20:30])
    assert train[0].std() > 100 * train[1], "these margins would show nothing"
    assert [step for step, _ in found["pcrm/margins"]] == [2, 4, 5]
    for _, histogram in found["pcrm/margins"][:2]:
        is_of(histogram, train)
    assert found["pcrm/margins"][2][1].num == 4, "the fifth step comes with the run's last log"
    ((step, histogram),) = found["eval/pcrm/margins"]
    assert step == 5
    is_of(histogram, held_out)


def test_they_move_with_training(kind, make, rows, tmp_path):
    """The means match TRL's log, and all parts of gradient accumulation are included."""
    trainer = make(FORMATS["plain"](rows), gradient_accumulation_steps=2, max_steps=4, learning_rate=1.0, **LOGGED)
    trainer.train()
    (logged,) = histograms(tmp_path / "out").values()
    name = "margin" if kind == "reward" else "rewards/margins"
    assert [h.num for _, h in logged] == [8] * 4
    means = [h.sum / h.num for _, h in logged]
    assert means == pytest.approx([step[name] for step in steps(trainer)], rel=1e-4, abs=1e-6)
    assert means[0] != pytest.approx(means[-1], rel=1e-2)


def test_the_curves_of_a_run_are_scalars(kind, make, rows, tmp_path):
    """What TRL logs and what we log, for training and evaluation: no page of our own draws them."""
    data = FORMATS["plain"](rows)
    make(data, eval_data=data.select(range(4)), max_steps=2, logging_steps=1, eval_strategy="steps", **LOGGED).train()
    (file,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    margin = "margin" if kind == "reward" else "rewards/margins"
    for name in ("loss", margin, "pcrm/delta", "pcrm/violation"):
        assert [e.step for e in events.Scalars(f"train/{name}")] == [1, 2], name
        assert f"eval/{name}" in events.Tags()["scalars"], name


def test_several_evaluation_sets_and_a_prediction_between(kind, make, rows, tmp_path):
    data = FORMATS["plain"](rows)
    parts = {"short": data.select(range(4)), "long_one": data.select(range(6))}
    options = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "prediction_loss_only": True}
    trainer = make(data, eval_data=parts, **options, **STILL, **LOGGED)
    trainer.predict(trainer.eval_dataset["short"])  # logs nothing, and is in no histogram
    trainer.train()
    found = {tag: [h.num for _, h in logged] for tag, logged in histograms(tmp_path / "out").items()}
    assert found == {
        "pcrm/margins": [4],
        "eval/short/pcrm/margins": [4],
        "eval/long_one/pcrm/margins": [6],
    }


def test_off_writes_nothing_and_on_trains_the_same(make, rows, tmp_path):
    data = FORMATS["plain"](rows)
    options = {"report_to": "tensorboard", "max_steps": 2}
    off = make(data, out="off", **options)
    off.train()
    assert histograms(tmp_path / "off") == {}
    on = make(data, out="on", **options, pcrm_log_margins=True)
    on.train()
    assert distance(on, off) == 0
    ours, theirs = ([set(step) for step in t.state.log_history] for t in (on, off))
    assert ours == theirs


def test_margins_that_are_not_finite_are_left_out(rows, tiny, tmp_path):
    """A diverged model's log does not end its training."""
    trainer = build("reward", tiny, tmp_path / "out", FORMATS["plain"](rows), max_steps=2, **STILL, **LOGGED)
    with torch.no_grad():
        trainer.model.score.weight.fill_(torch.nan)
    trainer.train()
    assert histograms(tmp_path / "out") == {}


SCRIPT = """\
import json
import sys

from helpers.trainers import FORMATS, build

folder, out, rows, options = sys.argv[1:]
train, held_out = (FORMATS["plain"](part) for part in json.loads(open(rows).read()))
trainer = build("reward", folder, out, train, eval_data=held_out, **json.loads(options))
trainer.train()
trainer.accelerator.end_training()
"""


def test_two_processes_write_one_histogram(rows, tiny, tmp_path, monkeypatch):
    """Of 8 pairs by two in each of two processes. An evaluation of 7 has one twice, to be even, which
    the histogram has not.
    """
    parts = [rows[:8], rows[20:27]]
    options = {"max_steps": 2, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, **STILL, **LOGGED}
    options |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "rows.json").write_text(json.dumps(parts))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    arguments = (tmp_path / "script.py", tiny, tmp_path / "out", tmp_path / "rows.json", json.dumps(options))
    launch(*TWO_PROCESSES, *map(str, arguments))
    found = histograms(tmp_path / "out")
    assert found.keys() == {"pcrm/margins", "eval/pcrm/margins"}
    for (logged,), part in zip(found.values(), parts, strict=True):
        is_of(logged[1], margins("reward", tiny, part))


@pytest.mark.parametrize("config", [PCRMRewardConfig, PCRMDPOConfig])
def test_refused_without_tensorboard(config, tmp_path, monkeypatch):
    options = {"output_dir": str(tmp_path), "bf16": False, "pcrm_log_margins": True}
    for report_to, shown in (("none", r"\[\]"), (["wandb"], r"\['wandb'\]")):
        with pytest.raises(
            ValueError, match=f"report_to must contain 'tensorboard' with pcrm_log_margins=True, .* got {shown}"
        ):
            config(**options, report_to=report_to)
    config(**options, report_to=["wandb", "tensorboard"])
    for name in ("tensorboard", "tensorboardX"):  # what makes an import fail
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pcrm_log_margins=True requires tensorboard: pip install tensorboard"):
        config(**options, report_to="tensorboard")
    config(**options | {"pcrm_log_margins": False}, report_to="tensorboard")
