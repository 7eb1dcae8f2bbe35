"""Train.recipe=auto: what it chooses, and that the keys of the user win."""

from __future__ import annotations

import dataclasses

import pytest

from paddlex_feat.config import load
from paddlex_feat.config.auto_recipe import FROM_SCRATCH, FROM_WEIGHTS, MEASURED
from paddlex_feat.errors import ConfigError
from paddlex_feat.modes import train_recipe
from paddlex_feat.modes.train_recipe import Facts, choose

FACTS = Facts(200, 20, 10, 200, on_gpu=False, backbone="EfficientNet_Lite0", size=None, from_weights=True, minutes=6)


def config_of(tmp_path, text: str, *overrides: str):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    return load.load(str(file), [load.split_override(text) for text in overrides])


def test_the_keys_of_a_file_that_asks_for_it_win(tmp_path):
    text = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {recipe: auto, epochs_iters: 3, optimizer: momentum}"
    train = config_of(tmp_path, text)[0].Train
    assert (train.epochs_iters, train.optimizer, train.recipe_keeps) == (3, "momentum", ["epochs_iters"])
    assert train.method == FROM_WEIGHTS["Train"]["method"]


def test_keys_of_another_recipe_make_way_where_the_command_line_asks_for_it(tmp_path):
    text = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {epochs_iters: 3, optimizer: momentum, seed: 7}"
    config, notices = config_of(tmp_path, text, "Train.recipe=auto", "Train.batch_size=8", "Train.augment.pad=3")
    train = config.Train
    assert (train.optimizer, train.seed, train.batch_size) == ("adamw", 7, 8) and train.recipe_keeps == ["batch_size"]
    assert train.augment.pad == 3 and train.augment.crop == "random_resized_crop"
    assert any("Train.epochs_iters, Train.optimizer" in notice for notice in notices)


def test_random_weights_have_a_recipe_of_their_own(tmp_path):
    train = config_of(tmp_path, "Train: {recipe: auto, pretrain_weight_path: null}")[0].Train
    assert train.method == "full" and train.augment.pad == FROM_SCRATCH["Train"]["augment"]["pad"]


def test_no_file_and_no_key_changes_without_it(tmp_path):
    config, notices = config_of(tmp_path, "Global: {model: EfficientNet_Lite0_rec}")
    assert config.Train.recipe is None and config.Train.recipe_keeps == [] and not notices
    assert train_recipe.apply_auto_recipe(config, None) is config


@pytest.mark.parametrize(
    ("change", "size", "epochs"),
    [
        ({}, 224, 6),
        ({"images": 1600, "classes": 400, "per_class": 4}, 96, 8),
        ({"images": 1600, "classes": 400, "per_class": 4, "avx512": True}, 128, 8),
        ({"images": 2000, "classes": 400, "per_class": 4, "evaluated": 2000}, 96, 6),
        ({"images": 2000, "classes": 400, "per_class": 4, "evaluated": 2000, "minutes": 10}, 128, 6),
        ({"images": 100_000, "classes": 400}, 96, 3),
        ({"images": 100_000, "on_gpu": True}, 224, 8),
        ({"size": 96}, 96, 6),
        ({"images": 1600, "classes": 400, "backbone": "own", "stride": 14}, 98, 3),
        ({"images": 800, "given": {"epochs_iters": 30}}, 96, 6),
        ({"images": 800}, 160, 6),
        ({"from_weights": False, "minutes": 7, "backbone": "PPLCNetV2_base_ShiTu"}, 64, 90),
        ({"from_weights": False, "minutes": 7, "backbone": "PPLCNetV2_base_ShiTu", "avx512": True}, 64, 145),
        ({"from_weights": False, "images": 2500, "minutes": 7, "backbone": "PPLCNetV2_base_ShiTu"}, 48, 12),
        ({"from_weights": False, "images": 2500, "on_gpu": True}, 224, 200),
    ],
)
def test_size_and_length_follow_from_what_a_cpu_can_do(change, size, epochs):
    found = choose(dataclasses.replace(FACTS, **change))
    assert (found["input_size"][0], found["epochs_iters"][0]) == (size, epochs)
    assert set(found) == set(MEASURED) and all(reason for _, reason in found.values())


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, None),
        ({"images": 2000, "classes": 400}, 128),
        ({"size": 96}, None),
        ({"images": 2000, "on_gpu": True}, None),
        ({"from_weights": False}, None),
    ],
)
def test_evaluation_takes_larger_images_than_the_crops_of_training(change, size):
    assert choose(dataclasses.replace(FACTS, **change))["eval_size"][0] == size


def test_held_out_images_are_what_an_evaluation_costs(tmp_path):
    for name, lines in (("train", [f"{n}.png {n // 5}" for n in range(40)]), ("gallery", ["g.png 9"] * 1200)):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    (tmp_path / "query.txt").write_text("\n".join(f"q{n}.png 9" for n in range(1200)))
    text = f"Global: {{model: EfficientNet_Lite0_rec, dataset_dir: '{tmp_path}'}}\nTrain: {{recipe: auto}}"
    whole, part = (config_of(tmp_path, text, *extra)[0] for extra in ((), ("Train.validation=split",)))
    assert train_recipe.inspect_data(whole).evaluated == 1201
    assert 0 < train_recipe.inspect_data(part).evaluated < 40


@pytest.mark.parametrize(
    ("change", "batch", "per_class"),
    [
        ({}, 32, 4),
        ({"classes": 5}, 20, 4),
        ({"classes": 2, "per_class": 1}, 4, 2),
        ({"from_weights": False, "classes": 3}, 12, 4),
        ({"given": {"batch_size": 18}}, 30, 3),  # the given batch is used, with three images a class
        ({"given": {"samples_per_class": 5}}, 30, 5),
        ({"given": {"samples_per_class": 48}}, 48, 48),
        ({"from_weights": False, "given": {"samples_per_class": 20}}, 20, 20),
        ({"images": 1600, "classes": 400}, 64, 4),
        ({"images": 1600, "classes": 400, "backbone": "CLIP_vit", "on_gpu": True}, 32, 4),
        ({"given": {"samples_per_class": None}}, 32, 1),
    ],
)
def test_a_batch_holds_whole_classes_that_are_there(change, batch, per_class):
    found = choose(dataclasses.replace(FACTS, **change))
    assert (found["batch_size"][0], found["samples_per_class"][0]) == (batch, per_class)


def test_transformers_learn_slowly_and_networks_that_take_no_map_get_none():
    clip = choose(dataclasses.replace(FACTS, backbone="CLIP_vit", classes=400))
    assert clip["learning_rate"][0] == pytest.approx(1e-4) and clip["layer_decay"][0] == 0.75
    assert choose(dataclasses.replace(FACTS, takes_map=False))["adapt"][0] == []


@pytest.mark.parametrize(
    ("text", "head_params", "terms"),
    [
        ("Model: {head: arc_margin}\nTrain: {recipe: auto}", {}, True),
        ("Train: {recipe: auto, loss: {triplet_weight: 0.5}}", {"margin": 0.2, "scale": 24}, False),
        ("Train: {recipe: auto, samples_per_class: null, hard_classes: 0}", {"margin": 0.2, "scale": 24}, True),
    ],
)
def test_what_belongs_to_a_key_of_the_user_is_left_to_the_user(tmp_path, text, head_params, terms):
    config = config_of(tmp_path, text)[0]
    assert config.Model.head_params == head_params and (config.Train.loss.terms is not None) == terms
    assert ("samples_per_class" in config.Train.recipe_keeps) == ("samples_per_class" in text)


def test_a_finished_run_is_chosen_anew_where_the_command_line_asks_for_it(tmp_path):
    text = "Train: {recipe: auto, recipe_keeps: [batch_size], batch_size: 8}"
    train = config_of(tmp_path, text, "Train.recipe=auto")[0].Train
    assert train.recipe_keeps == [] and config_of(tmp_path, text)[0].Train.batch_size == 8


@pytest.mark.parametrize("text", ["Train: 5", "Train: [adapt]", "Model: head", "Train: {recipe_keeps: [foo]}"])
def test_damaged_sections_are_errors_of_the_configuration(tmp_path, text):
    with pytest.raises(ConfigError):
        config_of(tmp_path, text, "Train.recipe=auto", "Train.recipe_keeps=[foo]")


@pytest.mark.parametrize(
    "other", ["Train.method=adapt", "Train.eval_start=False", "Train.amp=O2", "Train.pretrain_weight_path=null"]
)
def test_what_excludes_an_adapted_start_is_refused(tmp_path, other):
    text = "Train: {adapt: [start]}" if "method" not in other else "Train: {recipe: auto}"
    with pytest.raises(ConfigError, match="adapt"):
        config_of(tmp_path, text, other)


def test_what_is_chosen_is_recorded_and_not_chosen_again(small_faces, tmp_path):
    text = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {recipe: auto, input_size: 96}"
    config = config_of(tmp_path, text, f"Global.dataset_dir={small_faces}")[0]
    chosen = train_recipe.apply_auto_recipe(config, None)
    assert chosen.Train.input_size == 96 and set(chosen.Train.recipe_keeps) == set(MEASURED)
    assert train_recipe.apply_auto_recipe(chosen, None) is chosen
    (tmp_path / "run/latest").mkdir(parents=True)
    recorded = chosen.model_copy(update={"Train": chosen.Train.model_copy(update={"epochs_iters": 77})})
    (tmp_path / "run/config.yaml").write_text(load.dump(recorded))
    resumed = train_recipe.apply_auto_recipe(config, tmp_path / "run/latest/latest.pdparams")
    assert resumed.Train.epochs_iters == 77


@pytest.mark.parametrize("name", [name for name in load.shipped() if name.endswith("_finetune")])
@pytest.mark.parametrize("start", ["weights.pdparams", None])
def test_the_shipped_files_set_no_key_of_the_recipe(name, start):
    config = load.load(name, [("Train.pretrain_weight_path", start)], usable=False)[0]
    expected = FROM_WEIGHTS if start else FROM_SCRATCH
    own = config.model_dump(mode="json")
    for section, keys in expected.items():
        for key, value in keys.items():
            found = own[section][key]
            assert {**found, **value} == found if isinstance(value, dict) else found == value, key
    assert config.Train.recipe == "auto" and not config.Train.recipe_keeps


@pytest.mark.parametrize("setting", ["Train.eval_start=False", "Train.amp=O2"])
def test_a_start_that_is_not_measured_gets_no_map(setting, small_faces, tmp_path):
    text = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {recipe: auto}"
    config = config_of(tmp_path, text, f"Global.dataset_dir={small_faces}", setting)[0]
    assert train_recipe.apply_auto_recipe(config, None).Train.adapt == ["end"]


def test_a_choice_that_does_not_go_with_a_key_is_an_error_of_the_configuration(small_faces, tmp_path):
    text = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {recipe: auto, adapt: [start], eval_start: False}"
    with pytest.raises(ConfigError, match="adapt"):
        train_recipe.apply_auto_recipe(config_of(tmp_path, text, f"Global.dataset_dir={small_faces}")[0], None)


def test_a_resumed_run_keeps_what_it_had_and_says_that_other_minutes_do_nothing(small_faces, tmp_path, caplog):
    (tmp_path / "run/latest").mkdir(parents=True)
    text = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {input_size: 160, epochs_iters: 2}"
    (tmp_path / "run/config.yaml").write_text(text)  # as a file of fixed values was run
    automatic = "Global: {model: EfficientNet_Lite0_rec}\nTrain: {recipe: auto, recipe_minutes: 2}"
    config = config_of(tmp_path, automatic, f"Global.dataset_dir={small_faces}")[0]
    resumed = train_recipe.apply_auto_recipe(config, tmp_path / "run/latest/latest.pdparams")
    assert (resumed.Train.input_size, resumed.Train.epochs_iters) == (160, 2) and not caplog.records
    (tmp_path / "run/config.yaml").write_text(automatic.replace("2}", "9, epochs_iters: 4}"))
    resumed = train_recipe.apply_auto_recipe(config, tmp_path / "run/latest/latest.pdparams")
    assert resumed.Train.epochs_iters == 4 and "9 minutes" in caplog.text
