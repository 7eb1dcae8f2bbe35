"""The sections Model and Train. Defaults are those of PP-ShiTuV2_rec; recipes.py holds the others'."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from paddlex_feat.config.base import PRETRAINED, PathText, Section, key


def amp_level(value: Any) -> Any:
    """The level as it is written here: off, None and False are OFF."""
    return "OFF" if value in (False, None) else str(value).upper()  # YAML reads a bare OFF as false


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not 0 < low <= high:
        raise ValueError("must be two numbers, 0 < least <= greatest")
    return value


Amp = Annotated[Literal["OFF", "O1", "O2"], BeforeValidator(amp_level)]
Range = Annotated[tuple[float, float], BeforeValidator(_pair), AfterValidator(_ordered)]
Interpolation = Literal["bilinear", "bicubic"]


class ModelSection(Section):
    """The network, as the named model's recipe builds it."""

    backbone: str = key(
        "PPLCNetV2_base_ShiTu",
        "PPLCNetV2_base_ShiTu, CLIP_vit, EfficientNet_Lite0, paddleclas/NAME (extra paddleclas), or one of another "
        "package.",
    )
    params: dict[str, Any] = key({}, "Own keys of a backbone of another package.")
    embedding_size: int = key(512, "Length of a feature; 512 is the contract of PaddleX's models.", ge=2, le=65536)
    dropout: float = key(0.2, "Dropout before the neck, of PPLCNetV2_base_ShiTu.", ge=0, lt=1)
    pooling: Literal["mean", "gem", "cls"] = key(
        "mean",
        "mean of the last map, or of the projected tokens of CLIP_vit; gem (PPLCNetV2_base_ShiTu, EfficientNet_Lite0): "
        "a power mean with a trained exponent, which starts at the mean for weights that were trained with it unless "
        "Train.adapt or method adapt find another better; cls (CLIP_vit): the projected class token, as in CLIP.",
    )
    patch_size: int = key(16, "Side of a patch, of CLIP_vit.", "px", ge=2, le=256)
    width: int = key(768, "Length of a token, of CLIP_vit.", ge=2, le=16384)
    depth: int = key(12, "Number of blocks, of CLIP_vit.", "blocks", ge=1, le=256)
    heads: int = key(12, "Attention heads, of CLIP_vit.", ge=1, le=256)
    class_token: bool = key(False, "Whether the class token takes part in the mean of tokens, of CLIP_vit.")
    activation: Literal["gelu", "quick_gelu"] = key(
        "gelu", "Between the layers of a block, of CLIP_vit; quick_gelu: x sigmoid(1.702 x), of OpenAI's weights."
    )
    neck: Literal["bn", "linear"] = key("bn", "bn: BatchNorm with shift 0; linear: fully connected.")
    head: str = key(
        "linear",
        "Classifier of training: linear, arc_margin (ArcFace), cosine, cosface, subcenter_arcface, "
        "or one of another package.",
    )
    head_params: dict[str, Any] = key({}, "Own keys of cosine, cosface, subcenter_arcface, or of another package's.")
    arc_margin: float = key(0.2, "Angular margin of arc_margin.", "radians", ge=0, lt=1.57)
    arc_scale: float = key(30.0, "Scale of arc_margin's logits.", gt=0)
    head_sample: float | None = key(
        None,
        "For very many classes: the share of them that a step draws for the classifier, the batch's own among them "
        "(Partial FC). The processes of a job hold a part of the class vectors each. 1: all classes, as null computes; "
        "null: the classifier is part of the network, and every process has all of it.",
        "of 1",
        gt=0,
        le=1,
    )


class RandAugmentSection(Section):
    """RandAugment (rand-mM-mstdS-inc1 of timm) on the squared image."""

    num_ops: int = key(0, "Operations drawn for an image, of 15; 0: off.", ge=0, le=15)
    prob: float = key(0.5, "Probability that a drawn operation is applied.", ge=0, le=1)
    magnitude: float = key(7.0, "Mean magnitude.", "of 10", ge=0, le=10)
    magnitude_std: float = key(0.5, "Standard deviation of the magnitude.", ge=0, le=10)


class AugmentSection(Section):
    """Training augmentation, in the order in which it is applied."""

    crop: Literal["pad_crop", "random_resized_crop"] = key(
        "pad_crop",
        "pad_crop: resize, flip, pad, crop back to the input size; "
        "random_resized_crop: crop a random part, resize, flip.",
    )
    scale: Range = key(
        (0.08, 1.0), "Share of the image's area that random_resized_crop takes, uniform between these.", "of 1"
    )
    ratio: Range = key((0.75, 1.3333333333333333), "Width to height of a random_resized_crop, uniform between these.")
    flip_prob: float = key(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    pad: int = key(10, "Zero pixels added to each side by pad_crop.", "px", ge=0, le=1024)
    zoom: float = key(0.0, "Side of a pad_crop is uniform in 1 - zoom .. 1 of the input size.", ge=0, lt=1)
    rand_augment: RandAugmentSection = RandAugmentSection()
    rotation_prob: float = key(0.5, "Probability of a rotation about the centre, black fill.", ge=0, le=1)
    rotation_degrees: float = key(90.0, "Rotation angle is uniform in plus or minus this.", "degrees", ge=0, le=180)
    rotation_interpolation: Interpolation = key("bilinear", "Resampling of the rotation.")
    brightness: float = key(0.0, "Brightness factor is uniform in 1 - b .. 1 + b.", ge=0, le=1)
    contrast: float = key(0.0, "Contrast factor is uniform in 1 - c .. 1 + c.", ge=0, le=1)
    fused: bool = key(
        True, "Interpolate a rotated padded crop once, in one warp; False: step by step, as PaddleClas does."
    )
    box_margin: float = key(
        0.0, "Share of a box's width and height that is added on each side before it is augmented.", "of 1", ge=0, le=2
    )
    reduced_decode: bool = key(True, "Decode a JPEG at 1/2, 1/4 or 1/8 size where that leaves enough pixels.")

    @model_validator(mode="after")
    def _scale_of_1(self) -> AugmentSection:
        if self.scale[1] > 1:
            raise ValueError("scale: no crop is larger than the image, so the greatest is at most 1")
        return self


class LossSection(Section):
    """Terms of the loss; the total is their weighted sum."""

    terms: list[dict[str, Any]] | None = key(
        None,
        "Losses, each as {name: NAME, weight: 1.0, lr_mult: 1.0, …} with its own keys; null: cross_entropy and "
        "triplet_angular_margin by the keys below, which have no effect otherwise.",
    )
    ce_weight: float = key(1.0, "Weight of the label-smoothed cross-entropy.", ge=0)
    label_smoothing: float = key(0.1, "Probability mass spread over all classes.", ge=0, lt=1)
    triplet_weight: float = key(1.0, "Weight of TripletAngularMarginLoss.", ge=0)
    triplet_margin: float = key(0.5, "Margin between hardest negative and hardest positive.", "cosine", ge=0)
    absolute_weight: float = key(0.1, "Weight of its absolute terms.", ge=0)
    absolute_positive: float = key(0.8, "Least similarity that a positive should have.", "cosine", ge=-1, le=1)
    absolute_negative: float = key(0.4, "Greatest similarity that a negative may have.", "cosine", ge=-1, le=1)

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossSection:
        if self.terms is None and not self.ce_weight and not self.triplet_weight:
            raise ValueError("ce_weight and triplet_weight are both 0, so nothing would be learnt")
        return self


class TrainSection(Section):
    """Training."""

    num_classes: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["auto"] | None = key(
        "auto", "Width of the classifier; auto or null: the labels of train.txt."
    )
    recipe: Literal["auto"] | None = key(
        None,
        "auto: choose a recipe from the data; the choices are logged and written to config.yaml, and keys that you "
        "set take precedence. null: the recipe of Global.model.",
    )
    recipe_minutes: float = key(
        6,
        "How long a run that recipe auto plans may take on two CPU cores, about. Sizes and lengths follow from it, "
        "the data and the kind of processor; without effect on a GPU.",
        "minutes",
        gt=0,
    )
    recipe_keeps: list[str] = key(
        [], "Keys of Train that recipe auto does not choose: those that you set, and all it has chosen already."
    )
    method: Literal["full", "probe", "probe_then_full", "adapt"] = key(
        "full",
        "What is trained: full: all layers; probe: the head and a linear neck alone, on features that are computed "
        "once; probe_then_full: first these, then all layers; adapt: a linear map of the start weights' features, "
        "fitted in seconds, which goes into the network's last layer if cross-validation prefers it.",
    )
    adapt: list[Literal["start", "end"]] = key(
        [],
        "Linear maps of the features, fitted as by method adapt and put into the network's last layer: start: before "
        "the first step, if cross-validation prefers one; end: after the last, if the evaluation prefers one.",
    )
    probe_epochs: int = key(30, "Length of the linear probe, before the first epoch.", "epochs", ge=1)
    probe_learning_rate: float | None = key(None, "Peak learning rate of the linear probe; null: learning_rate.", gt=0)
    init_backbone: Literal["recipe", "delta_orthogonal"] = key(
        "recipe",
        "Random weights of the backbone, where training starts without weights: recipe: those of PaddleClas; "
        "delta_orthogonal (PPLCNetV2_base_ShiTu): orthogonal ones, which keep images distinct through all layers, so "
        "that the loss falls sooner.",
    )
    init_head: Literal["random", "class_means"] = key(
        "random", "Class vectors of head and losses start at random, or at the mean features of the start weights."
    )
    epochs_iters: int = key(20, "Length of the run.", "epochs", ge=1)
    batch_size: int = key(128, "Images per step and device.", "images", ge=1)
    accumulate_steps: int = key(1, "Batches whose gradients are averaged for one optimizer step.", "batches", ge=1)
    learning_rate: float = key(0.01, "Peak learning rate.", gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = key(
        "none", "Multiply learning_rate by n or its square root; n is devices times accumulate_steps."
    )
    warmup_steps: float = key(5, "Linear warm-up (epochs, despite the key's historical name).", "epochs", ge=0)
    pretrain_weight_path: PathText | None = key(
        PRETRAINED + "PP-ShiTuV2_rec_pretrained.pdparams",
        "Weights to start from: a .pdparams, .safetensors or PyTorch file, its URL, or starter, the weights of the "
        "extra `starter`; null: from scratch, nothing is downloaded.",
    )
    freeze: list[str] = key([], "Parameters that are not trained, by name patterns such as backbone.stages.0.*.")
    resume_path: PathText | None = key(
        None, "A .pdparams file of an earlier run, with .pdopt and .pdstates beside it; null: a new run."
    )
    resume: Literal["auto"] | None = key(
        None, "auto: go on from latest/ in Global.output if it is there, else begin; null: a new run."
    )
    log_interval: int = key(
        10, "Interval between log lines; losses are fetched and checked one interval late.", "steps", ge=1
    )
    eval_interval: int = key(1, "Interval between evaluations.", "epochs", ge=1)
    eval_start: Literal["auto"] | bool = key(
        "auto",
        "Evaluate before the first step too; weights that training starts from are then the first best_model. auto: "
        "where training starts from weights.",
    )
    validation: Literal["queries", "split"] = key(
        "queries",
        "What best_model and early_stopping are chosen on: queries: gallery.txt and query.txt; split: a part of "
        "train.txt that is held out, so that gallery and query measure the chosen weights without bias.",
    )
    validation_percent: int = key(20, "Share of train.txt that validation=split holds out.", "%", ge=1, le=90)
    validation_by: Literal["classes", "images"] = key(
        "classes",
        "What validation=split holds out: whole classes, or images of each class, for few classes or a gallery of the "
        "classes of train.txt.",
    )
    early_stopping: int | None = key(
        None, "Stop after this many evaluations without a better recall1; null: never.", "evaluations", ge=1
    )
    save_interval: int = key(1, "Interval between epoch_N checkpoints.", "epochs", ge=1)
    head_save_interval: int = key(
        1,
        "With Model.head_sample, interval between states that can be resumed (latest/), which hold the file of all "
        "class vectors; best_model and epoch_N go without.",
        "epochs",
        ge=1,
    )
    save_interval_minutes: float | None = key(None, "Write latest/ at this interval too; null: not.", "minutes", gt=0)
    keep_checkpoints: int = key(5, "How many epoch_N checkpoints are kept; best_model and latest always are.", ge=1)
    input_size: int = key(
        224,
        "Side of the square input: a multiple of 8 for PP-ShiTuV2_rec, of the patch for CLIP.",
        "px",
        ge=16,
        le=4096,
    )
    final_epochs: int = key(0, "Last epochs of the run, whose images have the size final_size.", "epochs", ge=0)
    final_size: int | None = key(None, "Side of the square input in the last final_epochs.", "px", ge=16, le=4096)
    eval_size: int | None = key(
        None, "Side of the square input of evaluation and export; null: input_size.", "px", ge=16, le=4096
    )
    interpolation: Interpolation = key("bilinear", "Resampling of evaluation, export and padded crops.")
    normalization: Literal["imagenet", "clip"] | None = key(
        None,
        "Mean and standard deviation of pixels: ImageNet's or CLIP's; null: the backbone's (CLIP_vit: ImageNet's).",
    )
    samples_per_class: int | None = key(
        4, "K of P x K sampling (P = batch_size / K); null: plain shuffled epochs.", "images", ge=2
    )
    class_sampling: Literal["size", "uniform"] = key(
        "size", "Classes of a P x K batch are drawn in proportion to their size, or all alike."
    )
    shuffle_window: int | None = key(
        None,
        "For very many images in large files: an epoch puts the files into random order and moves each image by less "
        "than this many places, so that files are read nearly from beginning to end; null: all images are shuffled. "
        "Needs samples_per_class null.",
        "images",
        ge=1,
    )
    hard_classes: float = key(
        0.0,
        "Share of the P classes of a P x K batch that are not drawn but are the nearest classes of the drawn ones, by "
        "the class vectors of head or loss at the beginning of the epoch.",
        ge=0,
        le=1,
    )
    memory_batches: int = key(
        0,
        "Losses on pairs compare a batch with the images of this many past batches too, of all devices.",
        "batches",
        ge=0,
    )
    augment: AugmentSection = AugmentSection()
    loss: LossSection = LossSection()
    optimizer: str = key("momentum", "momentum (SGD), adamw, or one of another package.")
    optimizer_params: dict[str, Any] = key({}, "Own keys of the optimizer; adamw: beta1, beta2, epsilon.")
    momentum: float = key(0.9, "Momentum of the optimizer momentum.", ge=0, lt=1)
    weight_decay: float = key(
        1e-5,
        "L2 coefficient, added to the gradient, or decoupled by adamw; BatchNorm of the backbone is exempt.",
        ge=0,
    )
    no_decay: Literal["recipe", "vectors"] = key(
        "recipe",
        "What weight decay leaves out: recipe: BatchNorm of the backbone of PP-ShiTuV2_rec; vectors: every bias, and "
        "every scale and shift of a normalisation.",
    )
    layer_decay: float | None = key(
        None,
        "Factor between the learning rates of neighbouring layers of the backbone, the last of which has the "
        "backbone's; 0.65 to 0.95 is usual, null: all alike.",
        gt=0,
        le=1,
    )
    backbone_lr_mult: float = key(1.0, "Factor on the learning rate of the backbone.", ge=0)
    neck_lr_mult: float = key(1.0, "Factor on the learning rate of the neck.", ge=0)
    head_lr_mult: float = key(1.0, "Factor on the learning rate of the head.", ge=0)
    bn_frozen: bool = key(
        False,
        "BatchNorm layers of the backbone keep the statistics of the weights that training starts from; their scales "
        "and shifts are trained, unless Train.freeze names them.",
    )
    max_grad_norm: float | None = key(None, "Largest L2 norm of the whole gradient; null: no clipping.", gt=0)
    average: list[Literal["last", "start"]] = key(
        [],
        "Averages of weights that are measured after the last epoch, and the best of which becomes best_model if it is "
        "better: last: the mean of the last epoch_N checkpoints; start: 1/4 to 3/4 of the start, the rest of the end.",
    )
    average_last: int = key(5, "How many checkpoints last averages, of those that are kept; half of them too.", ge=2)
    ema_decay: float | None = key(
        None, "Keep a moving average of the weights, evaluate and save it; 0.9999 is usual, null: none.", gt=0, lt=1
    )
    ema_epochs: float | None = key(
        None,
        "As ema_decay, by its horizon: the decay is 1 - 1 / (this many epochs of steps); null: none.",
        "epochs",
        gt=0,
    )
    seed: int = key(42, "Seed of weights, sampling, augmentation and dropout.", ge=0, lt=2**31)
    deterministic: bool = key(
        False, "On a GPU, deterministic kernels, slower; on a CPU runs repeat bit for bit anyway."
    )
    num_workers: int = key(
        0,
        "Threads or processes that decode images; 0: one per processor, at most 8 threads or 16 processes.",
        "threads",
        ge=0,
        le=1024,
    )
    loader: Literal["auto", "threads", "processes"] = key(
        "auto",
        "Training images are decoded by threads or by processes; auto: processes on a GPU with enough processors.",
    )
    cache_mib: int = key(
        1024, "Memory for decoded training images, which later epochs need not decode again; 0: none.", "MiB", ge=0
    )
    skip_bad_images: bool = key(
        False, "Replace an undecodable image by another of its class and count it, instead of stopping."
    )
    onednn_conv: bool | Literal["channels_first"] = key(
        True,
        "On a CPU, compute training convolutions with oneDNN, checked at start. channels_first: with the rounding of "
        "earlier versions, at about two thirds of the rate.",
    )
    compiled_loops: bool = key(
        True,
        "On a CPU, compute BatchNorm, activations, attention and gradients of small parts by loops that Numba "
        "compiles, checked at start. Needs onednn_conv: True.",
    )
    amp: Amp = key("OFF", "Mixed precision on a GPU: OFF, O1 or O2.")
    amp_dtype: Literal["float16", "bfloat16"] = key("float16", "Number format of mixed precision.")
    dy2st: bool = key(False, "Compile the training graph (to_static).")
    autotune: bool = key(
        False, "On a GPU, let Paddle search convolution algorithms and, with amp in float16, channels-last layouts."
    )
    tf32: bool | None = key(
        None, "On a GPU, compute float32 products and convolutions in TF32; null: as Paddle does by default."
    )
    cross_device_negatives: bool = key(False, "Losses on features look at the batches of all devices together.")
    sync_bn: bool = key(False, "On several GPUs, BatchNorm takes its statistics from the batches of all devices.")
    dist_ips: str | None = key(None, "Addresses of the machines of one job, separated by commas, the same on each.")
    dist_port: int = key(6070, "First port of the job on each machine of dist_ips.", ge=1024, le=65000)
    dist_timeout: float = key(5, "Silence of a machine of dist_ips after which the others end.", "minutes", gt=0)
    visualdl: bool = key(False, "Write a VisualDL log too (extra visualdl).")
    basic_config_path: str | None = key(None, "Not used: the recipe's keys are public here.")
    uniform_output_enabled: bool = key(True, "Accepted for compatibility, without effect: the layout is always this.")

    @model_validator(mode="after")
    def _one_of_two(self) -> TrainSection:
        if self.resume and self.resume_path:
            raise ValueError("resume: auto and resume_path exclude each other")
        if (self.final_size is None) != (self.final_epochs == 0):
            raise ValueError("final_epochs and final_size go together: give both or neither")
        if "start" in self.adapt and self.pretrain_weight_path is None:
            raise ValueError("adapt: random weights have no features worth a map; leave start out")
        if "start" in self.adapt and self.eval_start is False:
            raise ValueError("adapt: with start the start has to be measured; leave eval_start out")
        if "start" in self.adapt and self.amp == "O2":
            raise ValueError("adapt: start sets float32 weights, which amp O2 does not keep; use O1")
        if self.recipe == "auto" and self.method == "adapt":
            raise ValueError("recipe: auto includes the adaptation; leave out recipe, or method")
        if not set(self.recipe_keeps) <= set(type(self).model_fields):
            raise ValueError("recipe_keeps: only keys of Train can be kept")
        if self.ema_decay and self.ema_epochs:
            raise ValueError("ema_decay and ema_epochs exclude each other: both state the decay")
        unsettled = self.recipe == "auto" and "samples_per_class" not in self.recipe_keeps
        if self.hard_classes and self.samples_per_class is None and not unsettled:
            raise ValueError("hard_classes is a share of the classes of P x K batches: samples_per_class has to be set")
        if self.shuffle_window and self.samples_per_class is not None and not unsettled:
            raise ValueError("shuffle_window is an order of all images: set samples_per_class to null, or leave it out")
        if self.deterministic and self.autotune:
            raise ValueError("deterministic and autotune exclude each other: a search may choose otherwise each time")
        return self

    def sizes(self) -> dict[str, int]:
        """The sides of the images that the network gets, by key, in px."""
        keys = {"input_size": self.input_size, "final_size": self.final_size, "eval_size": self.eval_size}
        return {f"Train.{name}": size for name, size in keys.items() if size is not None}

    def training_size(self, epoch: int) -> int:
        """Side of the training images of an epoch, counted from 0, in px."""
        final = self.final_size is not None and epoch >= self.epochs_iters - self.final_epochs
        return self.final_size if final and self.final_size else self.input_size

    @property
    def measured_size(self) -> int:
        """Side of the images of evaluation and export, in px."""
        return self.eval_size or self.input_size
