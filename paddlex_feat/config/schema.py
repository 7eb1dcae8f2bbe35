"""Every configuration key with its type, default, unit and meaning.

The only list of keys: `--help`, docs/configuration.md and docs/config.schema.json are made
from it. Defaults are those of PP-ShiTuV2_rec; recipes.py holds what other models change.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from paddlex_feat.runtime import DEVICE

MODES = ("check_dataset", "train", "evaluate", "export", "predict")
MODELS = ("PP-ShiTuV2_rec", "PP-ShiTuV2_rec_CLIP_vit_base", "PP-ShiTuV2_rec_CLIP_vit_large")
PRETRAINED = "https://paddle-model-ecology.bj.bcebos.com/paddlex/official_pretrained_model/"


def key(default: Any, meaning: str, unit: str = "", **bounds: Any) -> Any:
    """A field with its documentation."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit} if unit else None, **bounds)


def _amp(value: Any) -> Any:
    return "OFF" if value in (False, None) else str(value).upper()  # YAML reads a bare OFF as false


def _device(value: str) -> str:
    if not DEVICE.fullmatch(value.lower()):
        raise ValueError("must be auto, cpu, gpu or gpu:ID")
    return value.lower()


def _network_size(value: int) -> int:
    if value % 8:
        raise ValueError(f"must be a multiple of 8, the network's stride (nearest: {max(16, round(value / 8) * 8)})")
    return value


Device = Annotated[str, AfterValidator(_device)]
Amp = Annotated[Literal["OFF", "O1", "O2"], BeforeValidator(_amp)]
InputSize = Annotated[int, Field(ge=16, le=4096), AfterValidator(_network_size)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change."""

    # strict: True is no number, "7" is no number, 5 is no text.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class GlobalSection(Section):
    """What to do, with what, where to."""

    model: Literal[MODELS] = key("PP-ShiTuV2_rec", "Model name.")  # type: ignore[valid-type]
    mode: Literal[MODES] = key("check_dataset", "What to do.")  # type: ignore[valid-type]
    dataset_dir: str = key("dataset", "Folder that holds train.txt, gallery.txt and query.txt, at its top or below.")
    device: Device = key("auto", "auto (first visible GPU, else the CPU), cpu, gpu or gpu:ID.")
    output: str = key("output", "Folder for everything that a mode writes.")
    threads: int = key(0, "CPU threads; 0 takes OMP_NUM_THREADS, else all processors.", "threads", ge=0, le=1024)
    export_with_pir: bool = key(True, "Write inference.json, Paddle's current format.")


class ConvertSection(Section):
    """Conversion of another data-set format."""

    enable: bool = key(False, "Convert before checking.")
    src_dataset_type: Literal["LabelMe"] | None = key(None, "Format to convert from.")
    seed: int = key(0, "Seed of the draw of 50 % train, 30 % gallery and 20 % query.", ge=0, lt=2**31)


class SplitSection(Section):
    """Re-splitting of the data set."""

    enable: bool = key(False, "Split anew before checking.")
    train_percent: int | None = key(None, "Share of train.txt.", "%", ge=1, le=98)
    gallery_percent: int | None = key(None, "Share of gallery.txt.", "%", ge=1, le=98)
    query_percent: int | None = key(None, "Share of query.txt.", "%", ge=1, le=98)
    by: Literal["image", "class"] = key(
        "image", "image: every class in every list; class: train.txt has classes of its own (open set)."
    )
    seed: int = key(0, "Seed of the draw.", ge=0, lt=2**31)

    @model_validator(mode="after")
    def _whole(self) -> SplitSection:
        shares = (self.train_percent, self.gallery_percent, self.query_percent)
        if self.enable and (None in shares or sum(s or 0 for s in shares) != 100):
            raise ValueError("train_percent, gallery_percent and query_percent must be given and add up to 100")
        return self


class CheckDatasetSection(Section):
    """Validation of the data set."""

    decode: Literal["all", "sample", "none"] = key("all", "Which images are decoded: all, 500 a list, or none.")
    strict: bool = key(False, "Warnings fail the check too.")
    convert: ConvertSection = ConvertSection()
    split: SplitSection = SplitSection()

    @model_validator(mode="after")
    def _source_named(self) -> CheckDatasetSection:
        if self.convert.enable and self.convert.src_dataset_type is None:
            raise ValueError("convert.enable needs convert.src_dataset_type, e.g. LabelMe")
        return self


class AugmentSection(Section):
    """Training augmentation, in the order in which it is applied."""

    flip_prob: float = key(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    pad: int = key(10, "Zero pixels on each side before the random crop back to the input size.", "px", ge=0, le=1024)
    rotation_prob: float = key(0.5, "Probability of a rotation about the centre, black fill.", ge=0, le=1)
    rotation_degrees: float = key(90.0, "Rotation angle is uniform in plus or minus this.", "degrees", ge=0, le=180)
    zoom: float = key(0.0, "Side of the crop is uniform in 1 - zoom .. 1 of the input size.", ge=0, lt=1)
    brightness: float = key(0.0, "Brightness factor is uniform in 1 - b .. 1 + b.", ge=0, le=1)
    contrast: float = key(0.0, "Contrast factor is uniform in 1 - c .. 1 + c.", ge=0, le=1)


class LossSection(Section):
    """Terms of the loss; the total is their weighted sum."""

    ce_weight: float = key(1.0, "Weight of the label-smoothed cross-entropy.", ge=0)
    label_smoothing: float = key(0.1, "Probability mass spread over all classes.", ge=0, lt=1)
    triplet_weight: float = key(1.0, "Weight of TripletAngularMarginLoss.", ge=0)
    triplet_margin: float = key(0.5, "Margin between hardest negative and hardest positive.", "cosine", ge=0)
    absolute_weight: float = key(0.1, "Weight of its absolute terms.", ge=0)
    absolute_positive: float = key(0.8, "Least similarity that a positive should have.", "cosine", ge=-1, le=1)
    absolute_negative: float = key(0.4, "Greatest similarity that a negative may have.", "cosine", ge=-1, le=1)

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossSection:
        if not self.ce_weight and not self.triplet_weight:
            raise ValueError("ce_weight and triplet_weight are both 0, so nothing would be learnt")
        return self


class TrainSection(Section):
    """Training."""

    num_classes: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] | None = key(
        "auto", "Width of the classifier; auto or null: the labels of train.txt."
    )
    epochs_iters: int = key(20, "Length of the run.", "epochs", ge=1)
    batch_size: int = key(128, "Images per step and device.", "images", ge=1)
    learning_rate: float = key(0.01, "Peak learning rate; not scaled by the number of devices.", gt=0)
    pretrain_weight_path: str | None = key(
        PRETRAINED + "PP-ShiTuV2_rec_pretrained.pdparams",
        "Weights to start from: file or URL; null trains from scratch and downloads nothing.",
    )
    warmup_steps: float = key(5, "Linear warm-up (epochs, despite the key's historical name).", "epochs", ge=0)
    resume_path: str | None = key(None, "A .pdparams file of an earlier run, with .pdopt and .pdstates beside it.")
    log_interval: int = key(1, "Interval between log lines.", "steps", ge=1)
    eval_interval: int = key(1, "Interval between evaluations.", "epochs", ge=1)
    eval_start: bool = key(False, "Evaluate before the first step too, to know where training started from.")
    save_interval: int = key(1, "Interval between epoch_N checkpoints.", "epochs", ge=1)
    keep_last: int = key(5, "How many epoch_N checkpoints are kept; best_model and latest always are.", ge=1)
    input_size: InputSize = key(224, "Side of the square input, a multiple of 8.", "px")
    interpolation: Literal["bilinear", "bicubic"] = key("bilinear", "Resampling of training, evaluation and export.")
    samples_per_class: int | None = key(
        4, "K of P x K sampling (P = batch_size / K); null: plain shuffled epochs.", "images", ge=2
    )
    augment: AugmentSection = AugmentSection()
    loss: LossSection = LossSection()
    momentum: float = key(0.9, "Momentum of SGD.", ge=0, lt=1)
    clip_norm: float | None = key(None, "Largest L2 norm of the whole gradient; null: no clipping.", gt=0)
    weight_decay: float = key(1e-5, "L2 coefficient, added to the gradient; BatchNorm of the backbone is exempt.", ge=0)
    seed: int = key(42, "Seed of weights, sampling, augmentation and dropout.", ge=0, lt=2**31)
    num_workers: int = key(0, "Threads that decode images; 0: one per processor.", "threads", ge=0, le=1024)
    onednn_conv: bool = key(True, "On a CPU, compute training convolutions with oneDNN (checked at start).")
    amp: Amp = key("OFF", "Mixed precision: OFF (O1 and O2 are not implemented yet).")
    dy2st: bool = key(False, "Compile the training graph (not implemented yet).")
    dist_ips: str | None = key(None, "Addresses of several machines (not implemented yet).")
    basic_config_path: str | None = key(None, "Not used: the recipe's keys are public here.")
    uniform_output_enabled: bool = key(True, "Accepted for compatibility, without effect: the layout is always this.")


class EvaluateSection(Section):
    """Evaluation."""

    weight_path: str | None = key(
        "output/best_model/best_model.pdparams", "Weights to evaluate: .pdparams file or URL."
    )
    log_interval: int = key(1, "Accepted for compatibility; progress is a bar.", "batches", ge=1)
    batch_size: int = key(64, "Images per inference call, in training's evaluations too.", "images", ge=1)


class ExportSection(Section):
    """Export of an inference model."""

    weight_path: str | None = key(
        PRETRAINED + "PP-ShiTuV2_rec_pretrained.pdparams", "Weights to export: .pdparams file or URL."
    )
    tolerance: float = key(1e-5, "Largest allowed difference of a unit feature after export.", gt=0)


RunMode = Literal["paddle", "paddle_fp32", "paddle_fp16", "trt_fp32", "trt_fp16", "trt_int8", "mkldnn", "mkldnn_bf16"]


class KernelOptionSection(Section):
    """Engine settings of older configuration files."""

    run_mode: RunMode | None = key(None, "paddle, paddle_fp32 and mkldnn: fp32. Others are not implemented yet.")


class PredictSection(Section):
    """Feature extraction with an inference model."""

    batch_size: int = key(1, "Images per inference call.", "images", ge=1)
    model_dir: str | None = key("output/best_model/inference", "Inference directory.")
    input: Any = key(None, "Image file, folder, URL, or a list of these.")
    kernel_option: KernelOptionSection = KernelOptionSection()
    engine: Literal["paddle", "paddle_static"] | None = key(None, "Inference engine: Paddle Inference.")
    engine_config: dict[str, Any] | None = key(None, "Not implemented yet.")
    use_hpip: bool = key(False, "Not implemented yet.")
    hpi_config: dict[str, Any] | None = key(None, "Not implemented yet.")


class Config(Section):
    """The whole configuration; immutable."""

    Global: GlobalSection = GlobalSection()
    CheckDataset: CheckDatasetSection = CheckDatasetSection()
    Train: TrainSection = TrainSection()
    Evaluate: EvaluateSection = EvaluateSection()
    Export: ExportSection = ExportSection()
    Predict: PredictSection = PredictSection()


def walk(section: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, Any]]:
    """All keys, dotted, each with its pydantic FieldInfo, in the order of definition."""
    rows: list[tuple[str, Any]] = []
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += walk(info.annotation, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, info))
    return rows
