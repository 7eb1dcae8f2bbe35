"""The networks of the models, by name, without the recipes of the configuration."""

from __future__ import annotations

from paddlex_feat.models.spec import NetworkSpec

SPECS = {
    "PP-ShiTuV2_rec": NetworkSpec(),
    "PP-ShiTuV2_rec_CLIP_vit_base": NetworkSpec(
        backbone="CLIP_vit",
        patch_size=16,
        width=768,
        depth=12,
        heads=12,
        class_token=False,
        neck="linear",
        head="arc_margin",
    ),
    "PP-ShiTuV2_rec_CLIP_vit_large": NetworkSpec(
        backbone="CLIP_vit",
        patch_size=14,
        width=1024,
        depth=24,
        heads=16,
        class_token=True,
        neck="linear",
        head="arc_margin",
    ),
}

TINY_CLIP = NetworkSpec(
    backbone="CLIP_vit", patch_size=8, width=32, depth=2, heads=2, neck="linear", head="arc_margin", input_size=32
)
