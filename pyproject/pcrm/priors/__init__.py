"""Prior similarities of two responses: numbers s in [0, 1], where 1 means most similar.

A prior depends on token ids or texts but not on the model. It can be computed once per data
set, or in the collator. `annotate` computes it for a batch of rows in any worker process.

    length_ratio     from token ids: shorter length divided by longer length
    lexical          from texts: shared n-grams
    cosine           from embeddings, which `pcrm.priors.encoders.Encoder` computes from texts
    random_uniform   not a similarity: the random number that a random constraint uses instead

To add a prior:

1. Write its function in a module of its own, like `_lexical.py`, and a readable reference version in
   `_engine/torch_reference.py`. Export it here. The fast version belongs in Go's package `pcrm/prior`,
   with a function in `bridge/bridge.go` that calls it and a line in `_native/_bridge.pyi`.
2. Add its name to `COMPUTED_PRIORS` in `settings/rules.py`, and to `Priors` and `neededBy` in
   `pcrm/settings.go`. The prior then has the settings of a curve: betas, floor and cap. Add cases to
   `pcrm/testdata/settings.json`, which tests both.
3. Compute it in `of_texts_and_errors` in `_by_name.py`. `annotate`, `pcrm prior` and TRL's trainers
   call that function. Describe the prior in the help of `commands/prior.py` and `trl/configs.py`.
4. Test it against an independent implementation in `tests/priors/test_priors.py`, and document it in
   `docs/priors.md` and `docs/settings.md`.
"""

from ._annotate import annotate, prior_tensor
from ._by_name import forget_models, of_texts, of_texts_and_errors
from ._cosine import cosine
from ._length_ratio import length_ratio
from ._lexical import lexical
from ._ragged import Ids
from ._random_uniform import random_uniform

__all__ = [
    "Ids",
    "annotate",
    "cosine",
    "forget_models",
    "length_ratio",
    "lexical",
    "of_texts",
    "of_texts_and_errors",
    "prior_tensor",
    "random_uniform",
]
