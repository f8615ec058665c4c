"""Tiny models, made on the spot."""

import torch


def make_tiny(folder, rows, model_class, tokenizer=None, **options):
    """Save a tiny random model and its tokenizer, trained on the rows, in a folder; return that."""
    from pcrm.demo.model import make_tokenizer

    tokenizer = tokenizer or make_tokenizer(r["prompt"] + r["chosen"] + r["rejected"] for r in rows)
    torch.manual_seed(0)
    config = model_class.config_class(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
