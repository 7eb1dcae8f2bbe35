"""Reading, merging and validating the configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paddlex_feat.config import aliases, load, schema
from paddlex_feat.config.describe import describe_keys
from paddlex_feat.config.schema import MODELS, Config, walk
from paddlex_feat.data.readers import find_root
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.fileio import safe_yaml
from paddlex_feat.modes import parts
from paddlex_feat.runtime.device import first_device

# Every key that a configuration file of the existing tool can hold, with a value of its type.
EXISTING_KEYS = {
    "Global.model": "PP-ShiTuV2_rec",
    "Global.mode": "check_dataset",
    "Global.dataset_dir": "d",
    "Global.device": "gpu:0,1,2,3",
    "Global.output": "o",
    "Global.export_with_pir": True,
    "CheckDataset.convert.enable": False,
    "CheckDataset.convert.src_dataset_type": None,
    "CheckDataset.split.enable": False,
    "CheckDataset.split.train_percent": None,
    "CheckDataset.split.gallery_percent": 20,
    "CheckDataset.split.query_percent": 10,
    "Train.num_classes": 159,
    "Train.epochs_iters": 20,
    "Train.batch_size": 128,
    "Train.learning_rate": 0.01,
    "Train.pretrain_weight_path": None,
    "Train.warmup_steps": 5,
    "Train.resume_path": None,
    "Train.log_interval": 1,
    "Train.eval_interval": 1,
    "Train.save_interval": 1,
    "Train.amp": False,  # how YAML reads OFF
    "Train.dy2st": False,
    "Train.dist_ips": None,
    "Train.basic_config_path": None,
    "Train.uniform_output_enabled": True,
    "Evaluate.weight_path": "w",
    "Evaluate.log_interval": 1,
    "Export.weight_path": "w",
    "Predict.batch_size": 1,
    "Predict.model_dir": "m",
    "Predict.input": "i",
    "Predict.kernel_option.run_mode": "paddle",
    "Predict.use_hpip": False,
    "Predict.hpi_config": None,
    "Predict.engine": None,
    "Predict.engine_config": None,
}


def faults(*overrides: tuple[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load.load("PP-ShiTuV2_rec", list(overrides), check=parts.find_problems)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(load.shipped()))
def test_every_shipped_file_loads_and_holds_only_known_keys(name):
    config, notices = load.load(name, [])
    assert config.Global.model in MODELS and not notices
    _, lines = safe_yaml.parse(load.shipped()[name].read_text(), name)
    known = {key for key, _ in walk()}
    sections = {key.rsplit(".", 1)[0] for key in known} | set(Config.model_fields)
    lines = {line for line in lines if line.rpartition(".")[0] not in known}  # keys of a head, as its own are
    assert lines <= known | sections | {"CheckDataset", "Train.augment", "Train.loss"}


def test_files_of_the_existing_tool_load_unchanged():
    config, _ = load.load("PP-ShiTuV2_rec", list(EXISTING_KEYS.items()))
    assert config.Train.num_classes == 159 and config.Train.amp == "OFF" and config.Global.device == "gpu:0,1,2,3"


def test_the_models_have_shipped_files():
    assert set(MODELS) <= set(load.shipped())


def test_all_faults_are_reported_at_once_with_the_nearest_key():
    text = faults(
        ("Train.batchsize", 3), ("Train.epochs_iters", "many"), ("Train.num_classes", -3), ("Globl.mode", "x")
    )
    assert "4 problems" in text
    assert "Did you mean Train.batch_size?" in text and "Did you mean Global.mode?" in text
    assert "Train.epochs_iters" in text and "Train.num_classes" in text and "-o" in text


def test_a_key_in_the_wrong_section_is_found():
    assert "Did you mean Train.batch_size?" in faults(("Global.batch_size", 8)) or "Predict.batch_size" in faults(
        ("Global.batch_size", 8)
    )


def test_faults_in_a_file_name_its_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("Global:\n  mode: train\nTrain:\n  batch_size: two\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:4"):
        load.load(str(file), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Global: [", "mine.yaml"),
        ("- a\n", "no sections"),
        ("Global:\n  mode: train\n  mode: export\n", "lines 2 and 3"),
    ],
)
def test_a_broken_file_is_an_error(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load.load(str(file), [])


def test_an_empty_file_means_the_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    config, _ = load.load(str(tmp_path / "mine.yaml"), [])
    assert config == Config()


def test_precedence_is_recipe_then_file_then_override(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("Global: {model: PP-ShiTuV2_rec_CLIP_vit_base}\nTrain: {batch_size: 8}\n")
    config, _ = load.load(str(file), [("Train.epochs_iters", 3), ("Train.epochs_iters", 4)])
    assert config.Train.weight_decay == 2e-5  # recipe of CLIP
    assert config.Train.batch_size == 8  # file
    assert config.Train.epochs_iters == 4  # the last -o
    assert config.Train.momentum == 0.9  # schema


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=TRUE", True), ("a.b=false", False), ("a.b=null", None), ("a.b=None", None), ("a.b=", None),
        ("a.b=1e-3", 1e-3), ("a.b=1E5", 1e5), ("a.b=.5", 0.5), ("a.b=5", 5), ("a.b='5'", "5"), ("a.b=007", 7),
        ("a.b=0,1", "0,1"), ("a.b=gpu:0,1", "gpu:0,1"), ("a.b=2024-10-11", "2024-10-11"), ("a.b=1:30", "1:30"),
        ("a.b=dir", "dir"), ("a.b=os", "os"), ("a.b=__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("a.b=http://h/x?y=1&z=2", "http://h/x?y=1&z=2"), ("a.b=[a.jpg, b.jpg]", ["a.jpg", "b.jpg"]),
        ("a.b=img #3.jpg", "img #3.jpg"), ("a.b={x: 1}", {"x": 1}), ("a.b=my file.jpg", "my file.jpg"),
        ("a.b=1/255", "1/255"), ("a.b=e", "e"),
    ],
)  # fmt: skip
def test_override_values_are_yaml_scalars(text, value):
    key, parsed = load.split_override(text)
    assert key == "a.b" and parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["Train.batch_size", "=3", "a.b=[1", "a.b=!!python/object:os.system x"])
def test_bad_overrides_are_usage_errors(text):
    with pytest.raises(ValueError):
        load.split_override(text)


def test_yaml_tags_that_build_objects_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("Global: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError):
        load.load(str(file), [])


@pytest.mark.parametrize(
    "text",
    [
        "Train: &t {loss: *t}\n",
        "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30)]),
    ],
)
def test_aliases_without_end_are_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"alias|values"):
        load.load(str(file), [])


def test_anchors_within_reason_are_fine(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("Global: &g {device: cpu}\nTrain: {batch_size: &b 8}\nEvaluate: {batch_size: *b}\n")
    config, _ = load.load(str(file), [])
    assert config.Global.device == "cpu" and config.Evaluate.batch_size == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Train.epochs_iters", True),
        ("Train.epochs_iters", "7"),
        ("Train.learning_rate", float("inf")),
        ("Train.warmup_steps", float("nan")),
        ("Global.threads", 100000),
        ("Train.num_classes", 10**11),
        ("Train.augment.pad", 100000),
        ("Train.loss", {"ce_weight": 0, "triplet_weight": 0}),
    ],
)
def test_values_of_a_wrong_type_or_size_are_faults(key, value):
    assert key in faults((key, value))


def test_a_number_where_text_belongs_says_how_to_quote_it():
    assert "'5'" in faults(("Global.output", 5))


def test_the_manuals_path_finds_the_shipped_file_with_a_notice():
    config, notices = load.load("paddlex/configs/modules/image_feature/PP-ShiTuV2_rec.yaml", [])
    assert config.Global.model == "PP-ShiTuV2_rec" and "shipped" in notices[0]


def test_a_missing_file_lists_the_shipped_names():
    with pytest.raises(ConfigError, match="PP-ShiTuV2_rec_CLIP_vit_base"):
        load.load("nowhere.yaml", [])


def test_functions_that_are_not_built_yet_are_said_only_in_their_mode():
    assert "not implemented" in faults(("Global.mode", "train"), ("Train.basic_config_path", "recipe.yaml"))
    load.load("PP-ShiTuV2_rec", [("Global.mode", "predict"), ("Train.basic_config_path", "recipe.yaml")])


@pytest.mark.parametrize(
    ("given", "forms"),
    [
        ("onnx", ["paddle", "onnx"]),
        (["openvino", "paddle"], ["paddle", "openvino"]),
        ([], ["paddle"]),
        ("paddle", ["paddle"]),
    ],
)
def test_paddle_is_among_the_forms_of_every_export(given, forms):
    assert load.load("PP-ShiTuV2_rec", [("Export.format", given)])[0].Export.format == forms


@pytest.mark.parametrize("given", [["onnx", {"a": 1}], 3])
def test_a_malformed_form_of_export_is_named(given):
    assert "Export.format" in faults(("Export.format", given))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("Global.device", "cpu:0,0", "twice"),
        ("Global.device", "gpu:1,01", "twice"),
        ("Train.augment.scale", [0.5, 0.1], "least <= greatest"),
        ("Train.augment.scale", [0.5, 2], "at most 1"),
        ("Train.input_size", 60, "use 64"),
        ("Train.freeze", "backbone", "list"),
        ("Train.resume", "always", "auto"),
        ("Train.basic_config_path", "recipe.yaml", "not implemented"),
    ],
)
def test_values_of_training_that_make_no_sense(key, value, message):
    assert message in faults(("Global.mode", "train"), (key, value))


def test_a_size_must_fit_the_patches():
    with pytest.raises(ConfigError, match="not a multiple of 14"):
        load.load("PP-ShiTuV2_rec_CLIP_vit_large", [("Train.input_size", 200)], check=parts.find_problems)
    load.load("PP-ShiTuV2_rec_CLIP_vit_large", [("Train.input_size", 196)], check=parts.find_problems)


def test_there_is_one_way_to_resume():
    assert "exclude each other" in faults(("Train.resume", "auto"), ("Train.resume_path", "x.pdparams"))


def test_lists_of_the_recipes_come_from_yaml_as_they_are_written(tmp_path):
    (tmp_path / "a.yaml").write_text("Train: {augment: {scale: [0.2, 0.9]}, freeze: [backbone.stem]}")
    config, _ = load.load(str(tmp_path / "a.yaml"), [])
    assert config.Train.augment.scale == (0.2, 0.9) and config.Train.freeze == ["backbone.stem"]


def test_each_model_has_its_whole_recipe():
    """Figures of the recipes, by the keys that a user can override."""
    rec, base, large, lite = (load.load(name, [])[0] for name in MODELS)
    assert (rec.Model.backbone, rec.Model.neck, rec.Model.head) == ("PPLCNetV2_base_ShiTu", "bn", "linear")
    assert (rec.Train.batch_size, rec.Train.samples_per_class, rec.Train.weight_decay) == (128, 4, 1e-5)
    assert (rec.Train.augment.crop, rec.Train.augment.rand_augment.num_ops) == ("pad_crop", 0)
    for clip, widths in ((base, (16, 768, 12, 12, False)), (large, (14, 1024, 24, 16, True))):
        model, train = clip.Model, clip.Train
        assert (model.patch_size, model.width, model.depth, model.heads, model.class_token) == widths
        assert (model.neck, model.head, model.arc_margin, model.arc_scale) == ("linear", "arc_margin", 0.2, 30.0)
        assert (train.batch_size, train.learning_rate, train.weight_decay) == (32, 0.001, 2e-5)
        assert train.samples_per_class is None and train.interpolation == "bicubic"
        assert (train.augment.crop, train.augment.rotation_prob) == ("random_resized_crop", 0.3)
        assert (train.augment.rand_augment.num_ops, train.augment.rand_augment.magnitude) == (2, 7.0)
        assert (train.loss.label_smoothing, train.loss.triplet_weight, train.loss.ce_weight) == (0.0, 0.0, 1.0)
    model, train = lite.Model, lite.Train
    assert (model.backbone, model.embedding_size, model.neck) == ("EfficientNet_Lite0", 1280, "linear")
    assert (train.input_size, train.batch_size, train.samples_per_class, train.optimizer) == (224, 64, 4, "adamw")
    assert train.pretrain_weight_path == lite.Export.weight_path == "starter"


def test_the_configuration_cannot_change():
    config = Config()
    with pytest.raises(Exception, match="frozen"):
        config.Train.batch_size = 3


def test_a_dumped_configuration_loads_to_the_same(tmp_path):
    config, _ = load.load("PP-ShiTuV2_rec_CLIP_vit_large", [("Train.learning_rate", 1e-5)])
    (tmp_path / "config.yaml").write_text(load.dump(config))
    again, _ = load.load(str(tmp_path / "config.yaml"), [])
    assert again == config


def test_every_key_is_documented():
    for row in describe_keys():
        assert row.meaning.endswith(".") and len(row.meaning) > 8, row.name


def test_the_training_page_explains_every_key():
    """In its prose, not only in the table that is made from the schema."""
    prose = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text().partition("## All keys")[0]
    silent = {"log_interval", "dist_port", "basic_config_path", "uniform_output_enabled"}
    for row in describe_keys():
        if row.name.startswith("Train."):
            last = row.name.rsplit(".", 1)[-1]
            assert last in silent or last in prose, row.name


def test_generated_docs_are_up_to_date():
    import make_docs

    docs = Path(__file__).parent.parent.parent / "docs"
    assert (docs / "configuration.md").read_text() == make_docs.configuration_page()
    page = (docs / "training.md").read_text()
    assert page == make_docs.training_page(page)
    assert json.loads((docs / "config.schema.json").read_text()) == make_docs.json_schema()


def test_modes_of_one_device_take_the_first():
    """Files of the existing tool say gpu:0,1,2,3; there, too, only training uses them all."""
    assert first_device("gpu:2,3") == "gpu:2" and first_device("gpu:1") == "gpu:1" and first_device("cpu") == "cpu"


@pytest.mark.parametrize("text", ['"/tmp/a\\0b"', '"/tmp/a\\ud800b"'])
def test_what_no_path_can_hold_is_refused_in_every_text(text):
    keys = (
        "Global.output",
        "Global.dataset_dir",
        "Train.pretrain_weight_path",
        "Train.resume_path",
        "Predict.model_dir",
    )
    keys += ("Evaluate.weight_path", "Export.weight_path", "Predict.input")
    words = [load.split_override(f"{key}={text}") for key in keys]
    words += [load.split_override(f"Predict.engine_config={{a: [{text}]}}")]
    with pytest.raises(ConfigError) as error:
        load.load("PP-ShiTuV2_rec", words)
    for key, _ in words:
        assert f"{key} (-o): contains a NUL character" in error.value.what
    good = load.split_override('Global.output="/tmp/\\udcff"')  # bytes that are not UTF-8
    assert load.load("PP-ShiTuV2_rec", [good])[0].Global.output == "/tmp/\udcff"


def test_names_that_are_too_long_do_not_exist():
    with pytest.raises(ConfigError, match="does not exist"):
        load.load("x" * 300, [])
    with pytest.raises(DatasetError, match="does not exist"):
        find_root("x" * 300)


def test_messages_hold_nothing_that_a_terminal_would_obey(tmp_path):
    (tmp_path / "c.yaml").write_text('"\\e[2J\\r\\u009b1m": 1\n')
    with pytest.raises(ConfigError) as error:
        load.load(str(tmp_path / "c.yaml"), [])
    assert r"\x1b[2J\x0d\x9b1m" in str(error.value) and not set("\x1b\r\x9b") & set(str(error.value))


FORMER = {  # former name -> a value other than the default
    "Train.augment.area": [0.2, 0.9],
    "Train.augment.aspect": [0.5, 2.0],
    "Train.augment.rand_augment.ops": 3,
    "Train.accumulate": 4,
    "Train.clip_norm": 2.5,
    "Train.keep_last": 7,
    "Train.save_minutes": 1.5,
    "Predict.save": "npz",
    "Evaluate.exclude_own": True,
}


def nested(dotted: str, value: object) -> dict:
    first, _, rest = dotted.partition(".")
    return {first: nested(rest, value) if rest else value}


def value_of(config: Config, dotted: str) -> object:
    value = schema.value_of(config, dotted)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("former", aliases.KEYS)
@pytest.mark.parametrize("source", ["file", "-o"])
def test_a_former_name_works_with_one_notice(tmp_path, former, source):
    path, value, name = tmp_path / "a.yaml", FORMER[former], aliases.KEYS[former]
    path.write_text(json.dumps(nested(former, value)) if source == "file" else "{}")
    given = load.split_override(f"{former}={json.dumps(value)}")
    config, notices = load.load(str(path), [given, given] if source == "-o" else [])
    assert value_of(config, name) == value != value_of(Config(), name)
    assert len(notices) == 1 and former in notices[0] and name in notices[0]


@pytest.mark.parametrize("former", aliases.KEYS)
def test_both_names_of_a_key_are_an_error_and_o_overrides_a_file(tmp_path, former):
    path, value, name = tmp_path / "a.yaml", FORMER[former], aliases.KEYS[former]
    both = load._merge(nested(former, value), nested(name, value))
    path.write_text(json.dumps(both))
    with pytest.raises(ConfigError) as caught:
        load.load(str(path), [])
    assert f"{former} ({path}:1): is the former name of {name}" in caught.value.what
    with pytest.raises(ConfigError, match="which is given too"):
        load.load("PP-ShiTuV2_rec", [(former, value), (name, value)])
    default = value_of(Config(), name)
    path.write_text(json.dumps(nested(former, value)))
    assert value_of(load.load(str(path), [(name, default)])[0], name) == default
    path.write_text(json.dumps(nested(name, default)))
    assert value_of(load.load(str(path), [(former, value)])[0], name) == value


@pytest.mark.parametrize(("former", "name"), aliases.VALUES["Train.augment.crop"].items())
def test_former_values_work_with_a_notice(tmp_path, former, name):
    path = tmp_path / "a.yaml"
    path.write_text(f"Train: {{augment: {{crop: {former}}}}}")
    for file, overrides in ((str(path), []), ("PP-ShiTuV2_rec", [("Train.augment", {"crop": former})])):
        config, notices = load.load(file, overrides)
        assert config.Train.augment.crop == name and len(notices) == 1 and former in notices[0]


def test_every_former_name_belongs_to_the_section_of_a_key():
    known = {name for name, _ in walk()}
    for former, name in aliases.KEYS.items():
        assert name in known and former not in known and former.rpartition(".")[0] == name.rpartition(".")[0]


def test_a_value_under_a_former_name_is_checked_and_the_message_has_both_names(tmp_path):
    assert "Train.keep_checkpoints (-o, as Train.keep_last): " in faults(("Train.keep_last", 0))
    (tmp_path / "a.yaml").write_text("Train:\n  keep_last: zz\n")
    with pytest.raises(ConfigError, match=r"Train\.keep_checkpoints \(.*a\.yaml:2, as Train\.keep_last\): "):
        load.load(str(tmp_path / "a.yaml"), [])
    with pytest.raises(ConfigError, match=r"keep_checkpoints \(-o\): "):
        load.load(str(tmp_path / "a.yaml"), [("Train.keep_checkpoints", 0)])
    with pytest.raises(ConfigError, match=r"write Train\.max_grad_norm=null"):
        load.load("PP-ShiTuV2_rec", [load.split_override("Train.clip_norm=")])


def test_each_source_gives_one_notice_of_all_former_names(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("Train: {accumulate: 2, keep_last: 3, augment: {crop: area}}")
    _, notices = load.load(str(path), [("Predict.save", "npz"), ("Evaluate.exclude_own", True)])
    assert notices == [
        f"{path}: former names of keys and values, which still work: Train.accumulate (now Train.accumulate_steps), "
        "Train.keep_last (now Train.keep_checkpoints), Train.augment.crop=area (now random_resized_crop).",
        "-o: former names of keys, which still work: Predict.save (now Predict.save_format), "
        "Evaluate.exclude_own (now Evaluate.exclude_self).",
    ]


def test_a_misspelt_former_name_suggests_the_present_one():
    assert "Did you mean Train.keep_checkpoints?" in faults(("Train.keep_lst", 3))


def test_options_of_a_mode_without_any_are_named_with_their_source(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("Global:\n  device: cpu\n  mode_options: {bar: 2}\n")
    row = "Global.mode_options ({}): mode check_dataset takes none, got {}"
    for words, place, value in (
        ([], f"{path}:3", {"bar": 2}),
        ([("Global.mode_options.foo", 1)], "-o", {"bar": 2, "foo": 1}),
    ):
        with pytest.raises(ConfigError) as caught:
            load.load(str(path), words)
        assert row.format(place, value) in caught.value.what
