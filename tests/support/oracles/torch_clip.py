"""Runs in an environment of PyTorch: visual towers of CLIP, from the papers, under the names of the public files.

    python torch_clip.py FOLDER

For each tower of TOWERS writes FOLDER/<tower>.pt, random weights, and in FOLDER/features.npz its features, float32, of
FOLDER/<size>.npy, float32 [N, 3, size, size].
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DEPTH = 2  # blocks; the public towers have 12 and 24 of them


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A block under OpenAI's names."""

    def __init__(self, width, heads, act):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        layers = ("c_fc", nn.Linear(width, 4 * width)), ("gelu", act()), ("c_proj", nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, heads, act):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, act) for _ in range(DEPTH)))

    def forward(self, x):
        return self.resblocks(x)


class Visual(nn.Module):
    """The visual tower of OpenAI and open_clip; without `size`, that of MLCD, which has no projection."""

    def __init__(self, pixels, patch, width, heads, act, size=None):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((pixels // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.empty(width, size)) if size else None
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, act)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images):
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        x = self.ln_post(self.transformer(x)[:, 0])
        return x if self.proj is None else x @ self.proj


class CLIP(nn.Module):
    """Both towers; the text tower is there for its names alone."""

    def __init__(self, size, **visual):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(77, 64))
        self.text_projection = nn.Parameter(torch.empty(64, size))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.visual = Visual(size=size, **visual)
        self.transformer = Transformer(64, 1, nn.GELU)
        self.token_embedding = nn.Embedding(100, 64)
        self.ln_final = nn.LayerNorm(64)

    def forward(self, images):
        return self.visual(images)


class HFAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class HFBlock(nn.Module):
    def __init__(self, width, heads, act):
        super().__init__()
        self.self_attn = HFAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        layers = ("fc1", nn.Linear(width, 4 * width)), ("activation", act()), ("fc2", nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class HFEmbeddings(nn.Module):
    def __init__(self, pixels, patch, width):
        super().__init__()
        tokens = (pixels // patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(tokens, width)
        self.register_buffer("position_ids", torch.arange(tokens)[None])  # in the files of older releases

    def forward(self, images):
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], 1)
        return x + self.position_embedding(self.position_ids)


class HFTransformer(nn.Module):
    def __init__(self, pixels, patch, width, heads, act):
        super().__init__()
        self.embeddings = HFEmbeddings(pixels, patch, width)
        self.pre_layrnorm = nn.LayerNorm(width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(HFBlock(width, heads, act) for _ in range(DEPTH))
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, images):
        x = self.pre_layrnorm(self.embeddings(images))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x[:, 0])


class HFVision(nn.Module):
    """CLIPVisionModelWithProjection; without `size`, CLIPVisionModel."""

    def __init__(self, size=None, **visual):
        super().__init__()
        self.vision_model = HFTransformer(**visual)
        self.visual_projection = nn.Linear(visual["width"], size, bias=False) if size else None

    def forward(self, images):
        x = self.vision_model(images)
        return x if self.visual_projection is None else self.visual_projection(x)


BASE, LARGE = {"width": 768, "heads": 12}, {"width": 1024, "heads": 16}
L14_336 = {"pixels": 336, "patch": 14, "act": QuickGELU, **LARGE}
TOWERS = {
    "openai_b16": lambda: CLIP(512, pixels=224, patch=16, act=QuickGELU, **BASE),
    "open_clip_b32": lambda: CLIP(512, pixels=224, patch=32, act=nn.GELU, **BASE),
    "mlcd_b32": lambda: Visual(224, 32, act=QuickGELU, **BASE),
    "hf_l14": lambda: HFVision(768, pixels=224, patch=14, act=QuickGELU, **LARGE),
    "hf_mlcd_l14_336": lambda: HFVision(**L14_336),
    "openai_l14_336": lambda: CLIP(768, **L14_336),
}


def shake(model):
    """Weights of about their trained sizes; scales, shifts and biases that matter."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.04 if parameter.ndim > 1 else 0.2)
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight, 1, 0.2)


def save(name, model, images, file):
    """The form in which such weights are published."""
    if name == "openai_b16":
        torch.jit.trace(model, images).half().save(file)
    elif name == "open_clip_b32":
        torch.save({"epoch": 32, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file)
    elif name == "hf_l14":
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False)
    else:
        torch.save(model.state_dict(), file)


def main(folder):
    """Write what the test compares with."""
    features = {}
    for number, (name, build) in enumerate(TOWERS.items()):
        torch.manual_seed(number)
        model = build().eval()
        shake(model)
        images = torch.from_numpy(np.load(folder / f"{336 if name.endswith('336') else 224}.npy"))
        if name == "openai_b16":
            model.half().float()  # the numbers that the file holds
        with torch.no_grad():
            features[name] = model(images).numpy()
            save(name, model, images, str(folder / f"{name}.pt"))
            if name == "openai_l14_336":
                features["at 224"] = at_224(model, torch.from_numpy(np.load(folder / "224.npy"))).numpy()
    np.savez(folder / "features.npz", **features)


def at_224(model, images):
    """Features at another size, by the resampling of positions that open_clip has, without antialiasing."""
    first, grid = model.visual.positional_embedding[:1], model.visual.positional_embedding[1:]
    grid = grid.T.reshape(1, -1, 24, 24)
    grid = F.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    model.visual.positional_embedding = nn.Parameter(torch.cat([first, grid.flatten(2)[0].T]))
    return model(images)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
