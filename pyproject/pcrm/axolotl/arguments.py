"""The keys `pcrm_*` as a pydantic model, for Axolotl's schema."""

from __future__ import annotations

import dataclasses
import typing

import pydantic

from ..trl import PCRMArguments

_types = typing.get_type_hints(PCRMArguments)
FIELDS = {f.name: (_types[f.name] | None, None) for f in dataclasses.fields(PCRMArguments)}

# All defaults are None, which Axolotl drops, so that the defaults of the trainers' arguments apply.
PCRMKeys = pydantic.create_model("PCRMKeys", __module__=__name__, **FIELDS)  # pyright: ignore[reportCallIssue, reportArgumentType]
