"""The keys `pcrm_*` in the form that Axolotl's schema takes: a model of pydantic."""

from __future__ import annotations

import dataclasses
import typing

import pydantic

from ..trl import PCRMArguments

_types = typing.get_type_hints(PCRMArguments)
FIELDS = {f.name: (_types[f.name] | None, None) for f in dataclasses.fields(PCRMArguments)}

# None everywhere, which Axolotl drops: the defaults are those of the trainers' arguments.
PCRMKeys = pydantic.create_model("PCRMKeys", __module__=__name__, **FIELDS)  # pyright: ignore[reportCallIssue, reportArgumentType]
