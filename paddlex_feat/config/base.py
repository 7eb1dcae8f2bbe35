"""What all sections of the configuration share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from paddlex_feat.fileio.paths import expand_home

PRETRAINED = "https://paddle-model-ecology.bj.bcebos.com/paddlex/official_pretrained_model/"


STARTER = "starter"  # for a weight file: the ImageNet weights in the package of the extra `starter`
STARTER_MODEL = "EfficientNet_Lite0_rec"  # the model that these weights are for


def official_weights(model: str) -> str:
    """Address of a model's official weights; STARTER for the model that has them in an installed package."""
    return STARTER if model == STARTER_MODEL else f"{PRETRAINED}{model}_pretrained.pdparams"


def key(default: Any, meaning: str, unit: str = "", values: str = "", **bounds: Any) -> Any:
    """A field with its documentation.

    Args:
        default: value where neither recipe nor file nor -o gives one.
        meaning: one or more sentences for `--help` and the documentation.
        unit: of the value.
        values: the allowed values in words, where the type does not say it.
        bounds: constraints of pydantic's Field.
    """
    extra: Any = {name: text for name, text in (("unit", unit), ("values", values)) if text}
    return Field(default, description=meaning, json_schema_extra=extra or None, **bounds)


# NUL, and halves of surrogate pairs but for those that stand for bytes of a file name.
_IN_NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")


def fits_a_path(value: Any) -> bool:
    """Whether the system takes every text in a value as a path or a word."""
    if isinstance(value, dict):
        return all(fits_a_path(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(fits_a_path, value))
    return not (isinstance(value, str) and _IN_NO_PATH.search(value))


PathText = Annotated[str, AfterValidator(expand_home)]  # text that is a path, or may be one


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change."""

    # strict: True and "7" are not numbers, 5 is not text. defer_build: `--help` reads the keys and checks nothing.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    @field_validator("*", check_fields=False)
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        if not fits_a_path(value):
            raise ValueError("contains a NUL character or an unpaired surrogate")
        return value
