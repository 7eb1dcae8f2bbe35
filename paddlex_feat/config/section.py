"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PRETRAINED = "https://paddle-model-ecology.bj.bcebos.com/paddlex/official_pretrained_model/"


def official_weights(model: str) -> str:
    """Address of a model's official weights."""
    return f"{PRETRAINED}{model}_pretrained.pdparams"


def key(default: Any, meaning: str, unit: str = "", **bounds: Any) -> Any:
    """A field with its documentation."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit} if unit else None, **bounds)


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change."""

    # strict: True is no number, "7" is no number, 5 is no text.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
