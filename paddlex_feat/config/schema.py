"""Every configuration key with its type, default, unit and meaning.

The only list of keys, together with train_schema.py: `--help`, docs/configuration.md and
docs/config.schema.json are made from it. Defaults are those of PP-ShiTuV2_rec; recipes.py holds
what other models change.
"""

from __future__ import annotations

import re
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from paddlex_feat.config.base import PRETRAINED, STARTER_MODEL, PathText, Section, key
from paddlex_feat.config.registry import did_you_mean, entry_points
from paddlex_feat.config.search_schema import IndexSection, SearchSection, ServeSection
from paddlex_feat.config.train_schema import ModelSection, TrainSection, amp_level
from paddlex_feat.runtime.device import DEVICE

# Built in: paddlex_feat.modes.MODES.
MODE_NAMES = ("check_dataset", "train", "evaluate", "export", "predict", "index", "search", "serve")
MODELS = ("PP-ShiTuV2_rec", "PP-ShiTuV2_rec_CLIP_vit_base", "PP-ShiTuV2_rec_CLIP_vit_large", STARTER_MODEL)


def _meant_device(text: str) -> str:
    """What to write for 0, 0,1, cuda:0 and the like, as the end of a message."""
    found = re.fullmatch(r"(cpu|gpu|cuda)?:?(\d+(?:,\d+)*)?", "".join(text.split()))
    if not found or not found[0]:
        return ""
    kind = "cpu" if found[1] == "cpu" else "gpu"
    return f"; write {kind}:{found[2]}" if found[2] else f"; write {kind}"


def _device(value: str) -> str:
    value = value.lower()
    if not DEVICE.fullmatch(value):
        raise ValueError(f"must be auto, cpu, gpu, gpu:ID, or several as in gpu:0,1 and cpu:0,1{_meant_device(value)}")
    ids = value.partition(":")[2].split(",")
    if len(set(map(int, filter(None, ids)))) < len(ids) > 1:
        raise ValueError("names a device twice")
    return value


def _ascending(value: list[int]) -> list[int]:
    if len(set(value)) < len(value):
        raise ValueError("names a number twice")
    return sorted(value)


def _forms(value: Any) -> Any:
    """One form or several; Paddle's is always written, and first."""
    forms = [value] if isinstance(value, str) else value
    return ["paddle", *(f for f in forms if f != "paddle")] if isinstance(forms, list) else forms


def _mode(value: str) -> str:
    """A built-in mode, or one that an installed package adds."""
    if value not in MODE_NAMES:
        names = [*MODE_NAMES, *(point.name for point in entry_points("paddlex_feat.modes"))]
        if value not in names:
            meant = did_you_mean(value, names)
            raise ValueError(f"is not a mode; choose from {', '.join(names)}{meant and f'.{meant}'}")
    return value


def _shard(value: str) -> str:
    """i/n, which is i-th of n parts."""
    number, count = map(int, value.split("/"))
    if number >= count:
        raise ValueError(f"is not i/n with i from 0 to {count - 1}")
    return value


ShardText = Annotated[str, Field(pattern=r"^\d{1,5}/[1-9]\d{0,4}$"), AfterValidator(_shard)]
Mode = Annotated[str, AfterValidator(_mode), WithJsonSchema({"type": "string", "examples": list(MODE_NAMES)})]
Device = Annotated[str, AfterValidator(_device)]
Ks = Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_ascending)]
_FORM = {"type": "string"}
ExportForms = Annotated[
    list[str], BeforeValidator(_forms), WithJsonSchema({"anyOf": [_FORM, {"type": "array", "items": _FORM}]})
]
EvaluationAmp = Annotated[Literal["OFF", "O1"], BeforeValidator(amp_level)]


class GlobalSection(Section):
    """What to do, with what, where to."""

    model: Literal[MODELS] = key("PP-ShiTuV2_rec", "Model name.")  # type: ignore[valid-type]
    mode: Mode = key("check_dataset", "What to do.", values=", ".join(MODE_NAMES) + ", or a mode of another package")
    mode_options: dict[str, Any] = key({}, "Keys of a mode of another package; the built-in modes take none.")
    dataset_dir: PathText = key(
        "dataset",
        "Folder of the data set: train.txt, gallery.txt and query.txt, or another format, at its top or below.",
    )
    dataset_format: str | None = key(
        None,
        "Format of the data set: ShiTuRecDataset, ClassFolders, Table, Parquet, TarShards, COCO and others, see "
        "docs/datasets.md, or that of another package's reader; null: recognized by the files.",
    )
    device: Device = key(
        "auto",
        "auto (first visible GPU, else the CPU), cpu, gpu or gpu:ID; several work together: gpu:0,1, cpu:0,1.",
    )
    output: PathText = key("output", "Folder for everything that a mode writes.")
    threads: int = key(0, "CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.", "threads", ge=0, le=1024)
    export_with_pir: bool = key(
        True, "Write inference.json, Paddle's current format; False: inference.pdmodel, the one before."
    )

    @field_validator("mode_options")
    @classmethod
    def _options_of_another_package(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        mode = info.data.get("mode")  # None: not a valid name
        if value and mode in MODE_NAMES:
            raise ValueError(f"mode {mode} takes none")
        return value


class ConvertSection(Section):
    """Conversion of another data-set format."""

    enable: bool = key(False, "Convert before checking.")
    src_dataset_type: str | None = key(
        None,
        "Format to convert from: LabelMe (a class for each image), the name of any format that Global.dataset_format "
        "takes, or auto for what is recognized.",
    )
    to: Literal["ShiTuRecDataset", "CSV"] = key(
        "ShiTuRecDataset", "Write train.txt, gallery.txt, query.txt and label.txt, or CSV: data.csv; not for LabelMe."
    )
    crops: bool = key(False, "Write images that are boxes, or bytes within a larger file, as files of their own.")
    seed: int = key(0, "Seed of the draw of 50 % train, 30 % gallery and 20 % query.", ge=0, lt=2**31)


class SplitSection(Section):
    """Re-splitting of the data set, or the division in memory of one that has no gallery and query."""

    enable: bool = key(False, "Split before checking, and write the lists.")
    train_percent: int | None = key(None, "Share of train.txt.", "%", ge=1, le=98)
    gallery_percent: int | None = key(None, "Share of gallery.txt.", "%", ge=1, le=98)
    query_percent: int | None = key(None, "Share of query.txt.", "%", ge=1, le=98)
    by: Literal["image", "class"] | None = key(
        None,
        "image: every class in every list; class: train.txt has classes of its own (open set); null: image to split, "
        "class to divide in memory where there are four classes.",
    )
    seed: int = key(0, "Seed of the draw.", ge=0, lt=2**31)

    def percents(self) -> tuple[int, int, int] | None:
        """The shares of train, gallery and query; None unless all are given and add up to 100."""
        train, gallery, query = self.train_percent, self.gallery_percent, self.query_percent
        if train is None or gallery is None or query is None or train + gallery + query != 100:
            return None
        return train, gallery, query

    @model_validator(mode="after")
    def _whole(self) -> SplitSection:
        if self.enable and self.percents() is None:
            raise ValueError("train_percent, gallery_percent and query_percent must be given and add up to 100")
        return self


class CheckDatasetSection(Section):
    """Validation of the data set."""

    decode: Literal["all", "sample", "none"] = key("all", "Which images are decoded: all, 500 a list, or none.")
    strict: bool = key(False, "Warnings fail the check too.")
    outside: Literal["warn", "refuse"] = key(
        "warn", "Paths that lead out of their list's folder: warn, or refuse them, by links too, in all modes."
    )
    urls: Literal["refuse", "download"] = key(
        "refuse", "Images of a table that are addresses: refuse them, or download them into the cache, in all modes."
    )
    features: str = key(
        "off",
        "Look for wrong labels, by features of the images: auto takes the starter's, else those of Predict.model_dir; "
        "an inference directory or the name of a model; off.",
    )
    shard: ShardText | None = key(
        None,
        "i/n: open the images of the i-th of n parts alone, counted from 0, and keep what is found for "
        "CheckDataset.inspected. See docs/scale.md.",
    )
    inspected: PathText | None = key(
        None,
        "Global.output of the jobs that ran with CheckDataset.shard: what they have found is not looked for again.",
    )
    pixels: bool = key(
        True, "Note images that are far more blurred, dark, bright, plain, long, large or small than the others."
    )
    fix: list[Literal["missing", "undecodable", "duplicates", "line-ends", "names", "suspects"]] = key(
        [],
        "Rewrite the lists and keep the old ones as .bak: drop lines of missing or undecodable images, or repeated "
        "lines; make line ends plain; turn names into numbers; apply what CheckDataset.suspects marks.",
    )
    suspects: PathText | None = key(
        None, "For fix: [suspects]: check_dataset/suspects.csv with drop or another label in its column action."
    )
    convert: ConvertSection = ConvertSection()
    split: SplitSection = SplitSection()

    @model_validator(mode="after")
    def _source_named(self) -> CheckDatasetSection:
        if self.convert.enable and self.convert.src_dataset_type is None:
            raise ValueError("convert.enable needs convert.src_dataset_type, e.g. LabelMe or auto")
        writes = self.convert.enable or self.split.enable or self.fix
        if self.shard is not None and (writes or self.inspected or self.features != "off"):
            raise ValueError(
                "shard only opens images: convert, split, fix, features and inspected are for the last job"
            )
        if "suspects" in self.fix and self.suspects is None:
            raise ValueError("fix: [suspects] needs the table CheckDataset.suspects")
        return self


class EvaluateSection(Section):
    """Evaluation."""

    weight_path: PathText | None = key(
        "output/best_model/best_model.pdparams",
        "What is evaluated: a .pdparams, .safetensors or PyTorch file, its URL, starter, or an inference directory; "
        "null: the model's official weights.",
    )
    log_interval: int = key(1, "Accepted for compatibility; progress is a bar.", "batches", ge=1)
    batch_size: int = key(64, "Images per inference call, in training's evaluations too.", "images", ge=1)
    recall_ks: Ks = key([1, 5], "The k of recall@k; 1 and 5 are always among them.")
    exclude_self: bool = key(
        False, "Leave out a query's own file where the gallery lists it too, in training's evaluations as well."
    )
    query_sample: int | None = key(
        None,
        "Mode evaluate: measure a random sample of so many queries (by Train.seed), with intervals that hold the "
        "metrics of all in 95 of 100 samples; null: all queries.",
        "images",
        ge=1,
    )
    shard: ShardText | None = key(
        None,
        "i/n: compute the features of the i-th of n parts alone, counted from 0, and keep them for Evaluate.embedded. "
        "See docs/scale.md.",
    )
    embedded: PathText | None = key(
        None, "Global.output of the jobs that ran with Evaluate.shard: their features are ranked, no image is opened."
    )
    memory_mib: int = key(
        2048,
        "Bound for features and similarities together, of all processes of a machine; features beyond half of it "
        "wait in a temporary file in Global.output. At least 128.",
        "MiB",
        ge=128,
    )
    save_features: bool = key(False, "Write evaluate/features.npz: features, labels, paths and lists.")
    baseline: bool = key(
        True, "Compute recall and mAP of raw pixels (16 x 16) on the same lists too; training logs them once."
    )
    mirror: bool = key(
        False, "Average the features of each image and its mirror image, in training's evaluations as well."
    )
    amp: EvaluationAmp = key("OFF", "Mixed precision on a GPU, in Train.amp_dtype: OFF or O1.")

    @model_validator(mode="after")
    def _one_part_of_the_work(self) -> EvaluateSection:
        if self.shard is not None and (self.embedded or self.save_features):
            raise ValueError("shard only computes features: embedded and save_features are for the last job")
        return self


class ExportSection(Section):
    """Export of an inference model."""

    weight_path: PathText | None = key(
        PRETRAINED + "PP-ShiTuV2_rec_pretrained.pdparams",
        "Weights to export: a .pdparams, .safetensors or PyTorch file, its URL, or starter; null: the model's official "
        "weights.",
    )
    save_weights: Literal["pdparams", "safetensors"] | None = key(
        None, "Write the tensors of the weight file too, the head included: as weights.pdparams or weights.safetensors."
    )
    tolerance: float = key(1e-4, "Largest allowed difference of a unit feature after export.", gt=0)
    format: ExportForms = key(
        ["paddle"],
        "Forms to write, one or a list: paddle (always among them), onnx, openvino, or that of an engine which another "
        "package adds. At the end of a training, of its best model.",
    )
    input_size: Literal["fixed", "dynamic"] = key(
        "fixed", "fixed: the graph takes images of Train.input_size; dynamic: of any size, which CLIP networks cannot."
    )
    dimension: int | None = key(
        None,
        "Numbers of an exported feature, fewer than the network gives: its leading directions, by the adaptation of "
        "the weights or by PCA of training images. In mode export and with Train.method adapt; null: all.",
        ge=2,
        le=65536,
    )


class KernelOptionSection(Section):
    """Engine settings of older configuration files."""

    run_mode: str | None = key(
        None,
        "paddle: as Predict.engine and Predict.precision say; paddle_fp32 and mkldnn: engine paddle in fp32, "
        "mkldnn_bf16: in bf16, paddle_fp16: in fp16. TensorRT is not supported.",
    )


class PredictSection(Section):
    """Feature extraction with an inference model."""

    batch_size: int | None = key(
        None, "Images computed together; on a CPU at least 8 are; null: 32 on a GPU, else 1.", "images", ge=1
    )
    model_dir: PathText | None = key("output/best_model/inference", "Inference directory; null: the official model.")
    input: Any = key(None, "Image file, folder, pattern, text file of paths, URL, {img: any of these}, or a list.")
    save_format: Literal["json", "jsonl", "npz", "parquet"] = key(
        "json",
        "json: each result is printed, and saved as <name>_res.json; jsonl, npz, parquet: all in one file features.*, "
        "nothing printed; parquet needs pyarrow.",
    )
    shard: ShardText | None = key(
        None,
        "i/n: the i-th of n parts of the input, counted from 0, in a file of its own; main.py merge makes one of all. "
        "Forms npz and parquet. See docs/scale.md.",
    )
    on_error: Literal["skip", "raise"] = key(
        "skip", "An input that cannot be used: skip goes on with the others, raise stops; exit code 1 in both cases."
    )
    fast_decode: bool = key(
        False, "Decode large JPEGs at 1/2, 1/4 or 1/8 of their size; features change, see docs/predict.md."
    )
    mirror: bool = key(False, "Average the features of each image and its mirror image; takes twice as long.")
    kernel_option: KernelOptionSection = KernelOptionSection()
    engine: str | None = key(
        None,
        "Inference engine: paddle, onnx, openvino, or one that another package adds; null: paddle; auto and hpi: the "
        "fastest of those that are installed.",
    )
    precision: str | None = key(
        None, "What the engine computes in, if it and the processor can: fp32, bf16 or fp16; null: fp32."
    )
    trust_graph: bool = key(
        False, "Run a Paddle graph even if it has operators that could read and write files, see docs/predict.md."
    )
    engine_config: dict[str, Any] | None = key(
        None, "PaddleX's dictionary: run_mode, cpu_threads, intra_op_num_threads, device_type, device_id."
    )
    use_hpip: bool = key(False, "The same as engine auto, or the backend of hpi_config.")
    hpi_config: dict[str, Any] | None = key(
        None, "PaddleX's dictionary: backend, backend_config (cpu_num_threads), device_type, device_id."
    )


class Config(Section):
    """The whole configuration; immutable."""

    Global: GlobalSection = GlobalSection()
    CheckDataset: CheckDatasetSection = CheckDatasetSection()
    Model: ModelSection = ModelSection()
    Train: TrainSection = TrainSection()
    Evaluate: EvaluateSection = EvaluateSection()
    Export: ExportSection = ExportSection()
    Predict: PredictSection = PredictSection()
    Index: IndexSection = IndexSection()
    Search: SearchSection = SearchSection()
    Serve: ServeSection = ServeSection()


def walk(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, Any]]:
    """All keys, dotted, each with its pydantic FieldInfo, in the order of definition."""
    rows: list[tuple[str, Any]] = []
    for name, info in section.model_fields.items():
        # In Python 3.10 list[str] passes for a class, and issubclass() fails on it.
        if isclass(info.annotation) and not get_origin(info.annotation) and issubclass(info.annotation, BaseModel):
            rows += walk(info.annotation, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, info))
    return rows


def value_of(config: BaseModel, dotted: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _wants_text(annotation: Any) -> bool:
    """Is any text a value? Not of a choice of a few words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _wants_text(parts[0])
    return annotation is str or (get_origin(annotation) in (Union, UnionType) and any(map(_wants_text, parts)))


# Keys that take any text -> whether they take null too.
TEXT_KEYS = {n: NoneType in get_args(info.annotation) for n, info in walk() if _wants_text(info.annotation)}
INPUTS = ("Predict.input", "Index.input", "Search.input")  # text too, or a list or mapping of it
