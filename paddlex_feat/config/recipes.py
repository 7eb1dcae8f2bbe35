"""What each model's recipe changes against the schema's defaults: plain data.

Precedence, lowest first: schema defaults, the model's recipe, the YAML file, `-o`.
"""

from __future__ import annotations

from typing import Any

from paddlex_feat.config.schema import PRETRAINED


def _clip(name: str) -> dict[str, Any]:
    return {
        "Train": {
            "batch_size": 32,
            "learning_rate": 0.001,
            "pretrain_weight_path": f"{PRETRAINED}{name}_backbone_LAION400M_pretrained.pdparams",
            "interpolation": "bicubic",
            "samples_per_class": None,
            "weight_decay": 2e-5,
        },
        "Evaluate": {"batch_size": 32},
        "Export": {"weight_path": f"{PRETRAINED}{name}_pretrained.pdparams"},
    }


RECIPES: dict[str, dict[str, Any]] = {
    "PP-ShiTuV2_rec": {},
    "PP-ShiTuV2_rec_CLIP_vit_base": _clip("PP-ShiTuV2_rec_CLIP_vit_base"),
    "PP-ShiTuV2_rec_CLIP_vit_large": _clip("PP-ShiTuV2_rec_CLIP_vit_large"),
}
