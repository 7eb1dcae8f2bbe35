"""Losses, backbones, heads and optimizers by name: what configurations may say, and what is built."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support.networks import TINY_CLIP
from support.runs import ROOT

from paddlex_feat.config.base import Section, key
from paddlex_feat.config.load import load, split_override
from paddlex_feat.config.train_schema import LossSection
from paddlex_feat.errors import ConfigError, DependencyError, WeightsError
from paddlex_feat.losses import LOSSES, LossContext, LossSpec, read_terms
from paddlex_feat.models import BACKBONES, HEADS, BackboneSpec, HeadSpec
from paddlex_feat.modes.parts import find_problems, loss_terms, unused_settings

CONTEXT = LossContext(num_classes=3, embedding_size=4)


def problems(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load("PP-ShiTuV2_rec", [split_override(word) for word in words], check=find_problems)
    return str(caught.value)


def test_names_and_keys_are_checked_without_paddle():
    code = (
        "import sys; from paddlex_feat.config.load import load; from paddlex_feat.modes.parts import find_problems;"
        "load('PP-ShiTuV2_rec', [('Global.mode', 'train')], check=find_problems); print('paddle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("Train.loss.terms=[]", "nothing would be learnt"),
        ("Train.loss.terms=[{name: cross_entropy, weight: 0}]", "nothing would be learnt"),
        ("Train.loss.terms=[{name: cross_entropy}, {name: cross_entropy}]", "Train.loss.terms.1.name (-o): cross_en"),
        ("Train.loss.terms=[{weight: 1}]", "Train.loss.terms.0.name (-o): a value is needed"),
        ("Train.loss.terms=[{name: cross_entropy, label_smoothing: 2}]", "Train.loss.terms.0.label_smoothing"),
        ("Train.loss.terms=[{name: cross_entropy, smoothing: 0.1}]", "Did you mean label_smoothing?"),
        ("Train.loss.terms=[{name: cross_entropy, lr_mlt: 0.1}]", "Did you mean lr_mult?"),
        ("Train.loss.terms=[{name: CrossEntropy}]", "Did you mean cross_entropy?"),
        ("Model.head=arcmargin", "Did you mean arc_margin?"),
        ("Model.head_params={scale: 3}", "Model.head_params.scale (-o): unknown key"),
        ("Model.backbone=clip-vit", "Did you mean CLIP_vit?"),
        ("Train.optimizer=adam", "Did you mean adamw?"),
        ("Train.optimizer_params={beta1: 0.8}", "Train.optimizer_params.beta1 (-o): unknown key"),
    ],
)
def test_a_part_that_does_not_exist_is_a_problem_of_the_configuration(setting, message):
    assert message in problems("Global.mode=train", setting)


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ([], []),
        (["Train.loss.ce_weight=2", "Train.momentum=0.5"], []),
        (["Train.loss.terms=[{name: cross_entropy}]", "Train.optimizer=adamw"], []),
        (
            ["Train.loss.terms=[{name: cross_entropy}]", "Train.loss.ce_weight=2.0", "Train.loss.triplet_margin=0.1"],
            ["Train.loss.ce_weight, Train.loss.triplet_margin have no effect, for Train.loss.terms is set."],
        ),
        (
            ["Train.optimizer=adamw", "Train.momentum=0.5"],
            ["Train.momentum has no effect with the optimizer adamw."],
        ),
    ],
)
@pytest.mark.parametrize("model", ["PP-ShiTuV2_rec", "PP-ShiTuV2_rec_CLIP_vit_base"])
def test_settings_without_effect_are_found(model, words, sentences):
    assert unused_settings(load(model, [split_override(word) for word in words])[0]) == sentences


def test_losses_that_share_a_name_in_logs_are_both_named(parts):
    parts(LOSSES, LossSpec("clash", "CELoss", "features", "a:b"))
    text = problems("Global.mode=train", "Train.loss.terms=[{name: cross_entropy}, {name: clash}]")
    assert "Train.loss.terms.1.name (-o): cross_entropy and clash are both logged as CELoss" in text


def test_problems_of_all_parts_are_listed_together():
    text = problems("Global.mode=train", "Model.head=x", "Train.optimizer=y", "Train.loss.terms=[{name: z}]")
    assert text.startswith("3 problems") and all(repr(name) in text for name in "xyz")


@pytest.mark.parametrize("mode", ["export", "evaluate", "predict", "check_dataset"])
def test_weights_are_used_without_the_package_of_their_loss(mode):
    words = (f"Global.mode={mode}", "Train.loss.terms=[{name: of_another_package}]", "Train.optimizer=theirs")
    load("PP-ShiTuV2_rec", [split_override(word) for word in words], check=find_problems)


def test_the_old_keys_are_terms():
    section = LossSection(ce_weight=2.0, label_smoothing=0.3, triplet_margin=0.7, absolute_negative=0.1)
    classification, triplet = loss_terms(section)
    assert (classification.weight, classification.params.label_smoothing) == (2.0, 0.3)
    assert (triplet.params.margin, triplet.params.absolute_negative) == (0.7, 0.1)
    assert loss_terms(LossSection())[1].params == LOSSES.get("triplet_angular_margin").params()  # the same defaults


def test_a_loss_states_words_and_keys_that_are_free():
    with pytest.raises(ValueError, match="one word"):
        LossSpec("my.loss", "MyLoss", "logits", "a:b")
    with pytest.raises(ValueError, match="ends in Loss"):
        LossSpec("mine", "Mine", "logits", "a:b")

    with pytest.raises(ValueError, match="needs logits or features, not 'pixels'"):
        LossSpec("mine", "MyLoss", "pixels", "a:b")

    class Taken(Section):
        weight: float = key(1.0, "Taken.")

    with pytest.raises(ValueError, match="weight"):
        LossSpec("mine", "MyLoss", "logits", "a:b", Taken)


class WideParams(Section):
    width: int = key(2, "Width.", ge=1)


@pytest.fixture
def parts(monkeypatch):
    """Adds entries that are gone after the test."""

    def add(registry, entry):
        monkeypatch.setitem(registry._entries, entry.name, entry)

    return add


def test_a_head_and_a_backbone_of_somebody_else_get_their_own_keys(parts):
    paddle = pytest.importorskip("paddle")
    from paddlex_feat.models import recognizer
    from paddlex_feat.models.spec import NetworkSpec

    class Pixels(paddle.nn.Layer):
        def __init__(self, size: int, width: int):
            super().__init__()
            self.project = paddle.nn.Linear(3 * width, size)
            self.fused = False

        def forward(self, x):
            return self.project(paddle.concat([x.mean([2, 3])] * (self.project.weight.shape[0] // 3), axis=1))

        def fuse(self):
            self.fused = True

        def unfuse(self):
            self.fused = False

    parts(BACKBONES, BackboneSpec("pixels", lambda spec, p: Pixels(spec.embedding_size, p.width), WideParams))
    parts(HEADS, HeadSpec("wide", lambda spec, classes, p: paddle.nn.Linear(p.width, classes), WideParams))
    spec = NetworkSpec("pixels", params={"width": 5}, embedding_size=8, head="wide", head_params={"width": 7})
    network = recognizer.build(spec, 3)
    assert network.backbone.project.weight.shape == [15, 8] and network.head.weight.shape == [7, 3]
    assert list(network(paddle.rand([2, 3, 16, 16])).shape) == [2, 8]
    network.set_inference_weights(network.state_dict())
    assert network.backbone.fused
    network.set_inference_weights(network.state_dict(), fuse=False)
    assert not network.backbone.fused
    with pytest.raises(ConfigError, match="widht") as caught:
        recognizer.build(NetworkSpec("pixels", params={"widht": 5}), 3)
    assert (caught.value.code, caught.value.where) == ("part-params", "Model.params")


def test_code_that_cannot_be_imported_is_a_missing_dependency(parts):
    pytest.importorskip("paddle")
    from paddlex_feat.losses.combined import CombinedLoss

    parts(LOSSES, LossSpec("lost", "LostLoss", "features", "no_such_package.losses:lost"))
    with pytest.raises(DependencyError) as caught:
        CombinedLoss(read_terms([{"name": "lost"}]), CONTEXT)
    assert caught.value.code == "builder-missing"


def fails(*_):
    raise KeyError("width")


def test_a_faulty_part_of_another_package_is_named(parts):
    paddle = pytest.importorskip("paddle")
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.models import recognizer
    from paddlex_feat.models.spec import NetworkSpec

    class PerImage(paddle.nn.Layer):
        def forward(self, features, labels):
            return features.mean(axis=self.axis).reshape([-1])

    def per_image(axis):
        layer = PerImage()
        layer.axis = axis
        return layer

    def refuses(*_):
        raise ConfigError("Not with these keys.", code="theirs")

    def combined(make):
        parts(LOSSES, LossSpec("odd", "OddLoss", "features", make))
        return CombinedLoss(read_terms([{"name": "odd"}]), CONTEXT)

    for make, words in ((fails, "KeyError"), (lambda *_: 3, "returns 3, not a paddle Layer")):
        with pytest.raises(DependencyError, match=f"loss 'odd'.*{words}") as caught:
            combined(make)
        assert caught.value.code == "plugin-broken" and caught.value.where == __name__
    with pytest.raises(ConfigError, match="Not with these"):
        combined(refuses)
    features, labels = paddle.rand([5, 4]), paddle.zeros([5], "int64")
    with pytest.raises(DependencyError, match=r"loss 'odd'.*shape \[5\], not a scalar"):
        combined(lambda *_: per_image(1))(features, None, labels)
    assert combined(lambda *_: per_image(None))(features, None, labels)["loss"].shape == []
    parts(BACKBONES, BackboneSpec("odd", fails))
    with pytest.raises(DependencyError, match="backbone 'odd'"):
        recognizer.build(NetworkSpec("odd"), 3)
    parts(HEADS, HeadSpec("odd", lambda *_: None))
    with pytest.raises(DependencyError, match="head 'odd'"):
        recognizer.build(NetworkSpec(head="odd", embedding_size=8), 3)


def momentum_state(loss=None):
    """A small state with one optimizer step taken."""
    import paddle

    from paddlex_feat.losses.combined import recipe_loss
    from paddlex_feat.training.checkpoint import Progress, TrainingState

    layer, criterion = paddle.nn.Linear(4, 4), loss or recipe_loss()
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, [*layer.parameters(), *criterion.parameters()])
    return TrainingState(layer, optimizer, Progress(step=1), criterion)


@pytest.fixture
def proxy_loss(parts):
    """Makes a combined loss with parameters [classes, 4]."""
    paddle = pytest.importorskip("paddle")
    from paddlex_feat.losses.combined import CombinedLoss

    class ProxyLoss(paddle.nn.Layer):
        def __init__(self, classes: int, size: int):
            super().__init__()
            self.proxies = self.create_parameter([classes, size])

        def forward(self, features, labels):
            return (features @ self.proxies.T).mean()

    spec = LossSpec("proxy", "ProxyLoss", "features", lambda _, c: ProxyLoss(c.num_classes, c.embedding_size))
    parts(LOSSES, spec)
    return lambda classes=3, **keys: CombinedLoss(read_terms([{"name": "proxy", **keys}]), LossContext(classes, 4))


def test_parameters_of_a_loss_have_their_own_learning_rate_and_come_back(proxy_loss, tmp_path):
    import paddle

    from paddlex_feat.models import weights
    from paddlex_feat.training import checkpoint

    state = momentum_state(proxy_loss(lr_mult=3.0))
    proxies = state.criterion.losses["proxy"].proxies
    before = proxies.numpy().copy()
    features = paddle.ones([2, 4])
    state.criterion(features, None, paddle.to_tensor([0, 1]))["loss"].backward()
    gradient = proxies.grad.numpy()
    state.optimizer.step()
    assert np.allclose(proxies.numpy(), before - 0.1 * 3.0 * gradient, rtol=1e-6)
    checkpoint.snapshot(state).write(tmp_path, "x")
    assert list(weights.read(tmp_path / "x.pdloss")) == ["proxy.proxies"]
    again = momentum_state(proxy_loss())
    checkpoint.resume(tmp_path / "x.pdparams", again)
    checkpoint.resume_optimizer(tmp_path / "x.pdparams", again)
    assert np.array_equal(again.criterion.losses["proxy"].proxies.numpy(), proxies.numpy())
    checkpoint.snapshot(again).write(tmp_path, "y")
    for suffix in ("pdparams", "pdloss", "pdopt"):
        assert (tmp_path / f"x.{suffix}").read_bytes() == (tmp_path / f"y.{suffix}").read_bytes()


def test_other_losses_or_another_optimizer_cannot_be_resumed(proxy_loss, tmp_path):
    from paddlex_feat.models import weights
    from paddlex_feat.training import checkpoint

    checkpoint.snapshot(momentum_state(proxy_loss())).write(tmp_path, "x")
    path = tmp_path / "x.pdparams"
    for other in (momentum_state(), momentum_state(proxy_loss(classes=2))):
        with pytest.raises(WeightsError) as caught:
            checkpoint.resume(path, other)
        assert caught.value.code == "losses-changed"
    state = momentum_state(proxy_loss())
    state.progress.optimizer = "adamw"
    with pytest.raises(ConfigError) as caught:
        checkpoint.resume(path, state)
    assert caught.value.code == "optimizer-changed"
    for damaged in ({}, {"proxy.proxies": np.full((3, 4), np.nan, np.float32)}, {"proxy.proxies": "text"}):
        weights.write(tmp_path / "x.pdloss", damaged)
        with pytest.raises(WeightsError) as caught:
            checkpoint.resume(path, momentum_state(proxy_loss()))
        assert caught.value.code == "losses-changed"


def test_a_checkpoint_without_loss_parameters_has_no_file_for_them(tmp_path):
    pytest.importorskip("paddle")
    from paddlex_feat.training import checkpoint

    checkpoint.snapshot(momentum_state()).write(tmp_path, "x")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".pdopt", ".pdparams", ".pdstates"]


def test_adamw_is_that_of_the_paper_and_spares_what_has_no_decay():
    """Algorithm 2 of arXiv:1711.05101, two steps by hand."""
    paddle = pytest.importorskip("paddle")
    from paddlex_feat.training.optimizers import OPTIMIZERS, OptimizerContext

    decayed, spared = (paddle.create_parameter([2], "float32", attr=attr) for attr in (None, no_decay(paddle)))
    for parameter in (decayed, spared):
        parameter.set_value(np.array([1.0, -2.0], np.float32))
    spec = OPTIMIZERS.get("adamw")
    context = OptimizerContext(learning_rate=0.1, weight_decay=0.5)
    optimizer = spec.build([decayed, spared], context, spec.params(beta1=0.8, beta2=0.9))
    expected = [np.array([1.0, -2.0]) for _ in range(2)]
    mean, square = np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(([1.0, 3.0], [-2.0, 0.5]), 1):
        ((decayed + spared) * paddle.to_tensor(gradient)).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        mean, square = 0.8 * mean + 0.2 * np.array(gradient), 0.9 * square + 0.1 * np.array(gradient) ** 2
        change = mean / (1 - 0.8**step) / (np.sqrt(square / (1 - 0.9**step)) + 1e-8)
        expected = [w - 0.1 * (change + decay * w) for w, decay in zip(expected, (0.5, 0.0), strict=True)]
    assert np.allclose(decayed.numpy(), expected[0], rtol=1e-5) and np.allclose(spared.numpy(), expected[1], rtol=1e-5)


def no_decay(paddle):
    return paddle.ParamAttr(regularizer=paddle.regularizer.L2Decay(0.0))


def test_the_builtin_networks_are_those_of_their_names():
    pytest.importorskip("paddle")
    from paddlex_feat.models import recognizer

    assert type(recognizer.build(TINY_CLIP, 3).head).__name__ == "ArcMargin"
    assert BACKBONES.get("CLIP_vit").stride_of(TINY_CLIP) == 8 and BACKBONES.get("CLIP_vit").fixed_size
