"""Runs a module as `python -m` does, with what OpenRLHF takes for granted of a GPU machine.

    python -m on_cpu pcrm.openrlhf train_rm ...

OpenRLHF names CUDA in a few places of its strategy, asks for FlashAttention by name where
samples are packed, and imports flash_attn's packing functions, which lie beside this file.
"""

import runpy
import sys

import torch


def main() -> None:
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, lambda *args: None)
    torch.cuda.current_device = lambda: "cpu"

    from openrlhf.utils.deepspeed import deepspeed as strategy

    device_mesh = strategy.init_device_mesh
    strategy.init_device_mesh = lambda device, *args, **options: device_mesh("cpu", *args, **options)

    from transformers import AttentionInterface, AttentionMaskInterface, modeling_utils
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    # OpenRLHF packs samples only for an attention of such a name, and transformers would load
    # flash_attn for it. Packed samples are told apart by their position ids, of which sdpa's mask
    # is made: tests/openrlhf/test_training.py compares the scores with those of unpacked ones.
    modeling_utils.lazy_import_flash_attention = lambda *args, **options: None
    AttentionInterface.register("flash_attention_on_cpu", sdpa_attention_forward)
    AttentionMaskInterface.register("flash_attention_on_cpu", sdpa_mask)

    # DeepSpeed's launcher puts its own flag before the module.
    start = next(i for i, argument in enumerate(sys.argv) if i and not argument.startswith("--local_rank"))
    runpy.run_module(sys.argv.pop(start), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
