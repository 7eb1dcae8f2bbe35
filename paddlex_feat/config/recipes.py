"""What each model's recipe changes against the schema's defaults: plain data.

Precedence, lowest first: schema defaults, the model's recipe, the YAML file, `-o`.
"""

from __future__ import annotations

from typing import Any

from paddlex_feat.config.base import PRETRAINED, STARTER, STARTER_MODEL, official_weights


def _clip(name: str, **model: Any) -> dict[str, Any]:
    return {
        "Model": {"backbone": "CLIP_vit", "neck": "linear", "head": "arc_margin", **model},
        "Train": {
            "batch_size": 32,
            "learning_rate": 0.001,
            "pretrain_weight_path": f"{PRETRAINED}{name}_backbone_LAION400M_pretrained.pdparams",
            "interpolation": "bicubic",
            "samples_per_class": None,
            "weight_decay": 2e-5,
            "augment": {
                "crop": "random_resized_crop",
                "rand_augment": {"num_ops": 2},
                "rotation_prob": 0.3,
                "rotation_interpolation": "bicubic",
            },
            "loss": {"label_smoothing": 0.0, "triplet_weight": 0.0},
        },
        "Evaluate": {"batch_size": 32},
        "Export": {"weight_path": official_weights(name)},
    }


BASE, LARGE = "PP-ShiTuV2_rec_CLIP_vit_base", "PP-ShiTuV2_rec_CLIP_vit_large"
RECIPES: dict[str, dict[str, Any]] = {
    "PP-ShiTuV2_rec": {},
    BASE: _clip(BASE, patch_size=16, width=768, depth=12, heads=12, class_token=False),
    LARGE: _clip(LARGE, patch_size=14, width=1024, depth=24, heads=16, class_token=True),
    STARTER_MODEL: {
        "Model": {"backbone": "EfficientNet_Lite0", "embedding_size": 1280, "neck": "linear"},
        "Train": {
            "batch_size": 64,
            "optimizer": "adamw",
            "learning_rate": 3e-4,
            "weight_decay": 0.02,
            "warmup_steps": 1,
            "pretrain_weight_path": STARTER,
            "augment": {"rotation_degrees": 15.0},
        },
        "Export": {"weight_path": STARTER},
    },
}
