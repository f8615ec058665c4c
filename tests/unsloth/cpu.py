"""Unsloth on a machine without a GPU, as it is there and as it is with one.

Without a GPU, `import unsloth` takes a backend of its own: TRL's and transformers' classes, with other defaults. What users
have on a GPU is another thing: Unsloth writes TRL's trainers anew, and its models compute by its Triton kernels.
`as_with_a_gpu` makes that run on the CPU. `UNSLOTH_ALLOW_CPU=1`, which Unsloth's own tests set, lets it import its code for
GPUs, but then leaves TRL alone, so the patches of TRL are called here. `TRITON_INTERPRET=1` runs the kernels in Python, and
`TORCHDYNAMO_DISABLE=1` spares minutes of compiling.
"""

import os


def as_with_a_gpu():
    """Import Unsloth so that it patches TRL as on a GPU; `fast_model` then returns its models."""
    os.environ |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1", "UNSLOTH_ALLOW_CPU": "1"}
    import unsloth  # noqa: F401
    from unsloth.models import rl

    # The steps of `PatchFastRL`, which UNSLOTH_ALLOW_CPU leaves out, for the two trainers that are tested.
    rl.patch_trl_disable_gradient_checkpointing()
    rl.patch_trl_fused_lm_head_devices()
    rl.patch_trl_fused_lm_head_kernel()
    for trainer in ("dpo_trainer", "reward_trainer"):
        rl._patch_trl_rl_trainers(trainer)


def fast_model(folder, **options):
    """A model from Unsloth's own loader with LoRA, on the CPU, with made-up properties of a device."""
    import torch
    from unsloth import FastLanguageModel
    from unsloth.models import llama

    llama.get_device_stats = lambda: ("no GPU", "", 0.0)
    llama.get_current_device = lambda: "cpu"
    llama.DEVICE_COUNT = 1
    torch.cuda.get_device_capability = lambda *_: (8, 0)
    torch.cuda.current_device = lambda: 0
    # Its tables of angles lie on numbered devices.
    llama._PerDeviceRopeCache.extend_rope_embedding = lambda *_, **__: None
    llama._PerDeviceRopeCache.get_cached = _angles
    llama.fast_rope_embedding = _rotated  # minutes in Triton's interpreter
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=256, dtype=torch.float32, load_in_4bit=False, device_map="cpu", **options
    )
    return FastLanguageModel.get_peft_model(
        model, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_gradient_checkpointing=False
    )


def _angles(self, *_, **__):
    import torch

    table = torch.outer(torch.arange(self.current_rope_size).float(), self._unsloth_recompute_inv_freq())
    table = torch.cat((table, table), -1)
    return table.cos(), table.sin()


def _rotated(q, k, cos, sin, positions=None):
    import torch

    positions = slice(q.shape[-2]) if positions is None else positions.long()
    cos, sin = cos[positions], sin[positions]
    if cos.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]

    def rotate(x):
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    return rotate(q), rotate(k)
