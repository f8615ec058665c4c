"""Create tiny models."""

import json

import torch
from safetensors.torch import save_file


def make_tiny(folder, rows, model_class, tokenizer=None, **options):
    """Save a tiny random model, and a tokenizer trained on the rows, in a folder; return the folder."""
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


def make_static(folder, tokenizer, kind, size=8):
    """Save an encoder that averages random vectors of tokens, and return its folder and the vectors, by id.

    Args:
        tokenizer: A fast tokenizer of transformers.
        kind: "sentence-transformers" for what that library writes, "model2vec" for the files that model2vec
            writes: rows shared between tokens, a weight per token, and embeddings of length 1.
        size: Numbers in a vector.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

    torch.manual_seed(0)
    if kind == "sentence-transformers":
        module = StaticEmbedding(tokenizer, embedding_dim=size)
        SentenceTransformer(modules=[module], device="cpu").save(str(folder))
        return folder, module.embedding.weight.detach()
    rows, mapping, weights = (
        torch.randn(500, size),
        torch.randint(500, (len(tokenizer),)),
        torch.rand(len(tokenizer)) + 0.1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"embeddings": rows, "mapping": mapping, "weights": weights}, folder / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps({"normalize": True, "max_length": 512, "embedding_dtype": "float32"})
    )
    modules = [("0", ".", "StaticEmbedding"), ("1", "1_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{module}"}
                for name, path, module in modules
            ]
        )
    )
    return folder, rows[mapping] * weights[:, None]
