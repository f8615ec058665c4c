"""Prior similarities of two responses: numbers s in [0, 1], 1 for alike.

They take token ids or texts and nothing of the model, so they can be computed once per
data set or in the collator. `annotate` does it for a batch of rows in any worker.

    length_ratio     of token ids: shorter by longer response
    lexical          of texts: the n-grams that both have
    cosine           of embeddings, which `pcrm.priors.encoders.Encoder` makes of texts
    random_uniform   no similarity, but what a random constraint takes in its place

To add a prior:

1. Write its function in a module of its own, as `_lexical.py`, and its readable twin in
   `_engine/torch_reference.py`. Export it here. The fast one belongs in Go's package `pcrm/prior`,
   with a function in `bridge/bridge.go` that calls it and a line in `_native/_bridge.pyi`.
2. Put its name into `COMPUTED_PRIORS` in `settings/rules.py`, and into `Priors` and `neededBy` in
   `pcrm/settings.go`. That gives it the settings of a curve: betas, floor and cap. Add cases to
   `pcrm/testdata/settings.json`, which tests both.
3. Compute it in `of_texts_and_errors` in `_by_name.py`, which `annotate` and `pcrm prior` call, and
   TRL's trainers before training. Say what it is in the help of `commands/prior.py` and `trl/configs.py`.
4. Test it against something independent in `tests/priors/test_priors.py`, and describe it in
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
