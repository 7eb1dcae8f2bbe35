"""The example package examples/paddlex_feat_extras, installed in a folder: a loss with parameters and a backbone.

Beside its loss the runs train with proxy_anchor and a head with keys of its own, which are built in.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.plugins import install
from support.runs import QUICK, ROOT, run_main, train

paddle = pytest.importorskip("paddle")

from paddlex_feat.models import weights

OPTIONS = (
    "Model.backbone=tiny_conv",
    "Model.params={width: 8}",
    "Model.embedding_size=16",
    "Model.head=subcenter_arcface",
    "Model.head_params={margin: 0.2, scale: 16.0, sub_centers: 2}",
    "Train.loss.terms=[{name: proxy_nca, lr_mult: 10}, {name: proxy_anchor, weight: 0.1, lr_mult: 10}, "
    "{name: cross_entropy, weight: 0.5, label_smoothing: 0.0}]",
    "Train.optimizer=adamw",
    "Train.optimizer_params={beta2: 0.99}",
    "Train.learning_rate=0.001",
    "Train.ema_decay=0.9",
    "Train.epochs_iters=6",
    "Train.resume=auto",
    "Train.keep_checkpoints=1",
)
SUFFIXES = ("pdparams", "pdema", "pdloss", "pdopt")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder in which the example is installed."""
    return install(ROOT / "examples/paddlex_feat_extras", tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def search_path(site) -> str:
    """PYTHONPATH of a process that finds the example."""
    return os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def finished(small_faces, search_path, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("extras") / "whole"
    done = train(small_faces, output, *OPTIONS, PYTHONPATH=search_path)
    assert done.returncode == 0, done.stderr
    return output


def test_the_losses_train_their_own_parameters(finished, site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    from paddlex_feat_extras.proxy_nca import ProxyNCALoss

    saved = weights.read(finished / "latest/latest.pdloss")
    assert {name: value.shape for name, value in saved.items()} == {
        "proxy_anchor.proxies": (8, 16),
        "proxy_nca.proxies": (8, 16),
    }
    assert weights.read(finished / "latest/latest.pdparams")["head.weight"].shape == (16, 16)
    assert not any("prox" in name for name in weights.read(finished / "latest/latest.pdparams"))
    optimizer = weights.read(finished / "latest/latest.pdopt")
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for name, term in (("proxy_nca", "ProxyNCALoss"), ("proxy_anchor", "ProxyAnchorLoss")):
        assert any(key.startswith(f"loss.{name}.proxies:") for key in optimizer)
        losses = [row[term] for row in rows if row["kind"] == "train"]
        assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4]), (term, losses)
    features = paddle.randn([8, 16])
    loss = ProxyNCALoss(8, 16)
    loss.proxies.set_value(saved["proxy_nca.proxies"])
    assert np.isfinite(float(loss(features, paddle.arange(8))))


def killed(process: subprocess.Popen[bytes], output: Path) -> bool:
    """SIGKILL after the first checkpoint; False if the run has ended before."""
    while not (output / "latest/latest.pdparams").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    return process.wait(60) == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(finished, small_faces, search_path, tmp_path):
    settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}", *QUICK, *OPTIONS)
    words = [word for setting in (*settings, "Train.save_interval_minutes=0.001") for word in ("-o", setting)]
    process = subprocess.Popen(
        [sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search_path},
        stderr=subprocess.DEVNULL,
    )
    assert killed(process, tmp_path)
    done = train(small_faces, tmp_path, *OPTIONS, PYTHONPATH=search_path)
    assert done.returncode == 0 and "Resuming after epoch" in done.stderr, done.stderr
    for name in ("latest", "best_model"):
        for suffix in SUFFIXES:
            file = f"{name}/{name}.{suffix}"
            assert (finished / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_the_backbone_is_exported_without_the_loss(finished, search_path, tmp_path):
    best = finished / "best_model/best_model.pdparams"
    options = ("Global.mode=export", f"Export.weight_path={best}", f"Global.output={tmp_path}", "Global.device=cpu")
    words = [word for option in options for word in ("-o", option)]
    done = run_main("-c", "PP-ShiTuV2_rec", *words, PYTHONPATH=search_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "inference.pdiparams").read_bytes() == (
        finished / "best_model/inference/inference.pdiparams"
    ).read_bytes()
    missing = run_main("-c", "PP-ShiTuV2_rec", *words)
    assert missing.returncode == 1 and "no 'tiny_conv' among the backbones" in missing.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("Train.loss.terms=[{name: proxy_nsa}]", "Did you mean proxy_nca"),
        ("Train.loss.terms=[{name: proxy_nca, scle: 1}]", "Train.loss.terms.0.scle"),
        ("Model.params={wdth: 8}", "Did you mean width?"),
        ("Train.input_size=36", "not a multiple of 8"),
    ],
)
def test_a_wrong_name_or_key_is_found_before_anything_is_written(
    small_faces, site, tmp_path, monkeypatch, setting, message
):
    monkeypatch.syspath_prepend(site)
    from paddlex_feat.config.load import load, split_override
    from paddlex_feat.errors import ConfigError
    from paddlex_feat.modes.parts import find_problems

    words = ("Global.mode=train", *OPTIONS, setting)
    with pytest.raises(ConfigError) as caught:
        load("PP-ShiTuV2_rec", [split_override(word) for word in words], check=find_problems)
    assert message in str(caught.value) and "(-o)" in str(caught.value)


def test_proxy_nca_by_hand(site, monkeypatch):
    """Distances and their softmax in NumPy."""
    monkeypatch.syspath_prepend(site)
    from paddlex_feat_extras.proxy_nca import ProxyNCALoss

    rng = np.random.default_rng(0)
    features, proxies, labels = rng.standard_normal((6, 4)), rng.standard_normal((5, 4)), np.array([0, 0, 1, 3, 3, 3])
    loss = ProxyNCALoss(5, 4, scale=3.0)
    loss.proxies.set_value(proxies.astype("float32"))
    x, p = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (features, proxies))
    z = np.exp(-3 * ((x[:, None] - p[None]) ** 2).sum(axis=2))
    expected = -np.log(z[np.arange(6), labels] / z.sum(axis=1)).mean()
    got = float(loss(paddle.to_tensor(features, "float32"), paddle.to_tensor(labels)))
    assert got == pytest.approx(expected, rel=1e-5)
