"""Mode train."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlex_feat.config import load as config_load
from paddlex_feat.config.base import STARTER
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import WeightsError
from paddlex_feat.fileio.atomic import link_or_copy, write_text
from paddlex_feat.fileio.atomic_folder import resolve_during_swap, sync_files
from paddlex_feat.fileio.backups import write_with_backup
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub.starter import starter_weights
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.export.convert import inference_file_names, require_forms, write_forms
from paddlex_feat.modes import train_adapt
from paddlex_feat.modes.build import exporter_of, preprocess_of
from paddlex_feat.modes.data import comparison_batches, write_class_names
from paddlex_feat.modes.parts import keeps_rounding, network_spec, unused_settings
from paddlex_feat.modes.train_data import Data, Loader, read_data
from paddlex_feat.modes.train_recipe import apply_auto_recipe
from paddlex_feat.modes.weight_paths import require_checkpoint, require_weights
from paddlex_feat.modes.worker import Worker, init_worker, launch_processes, threads_of
from paddlex_feat.provenance.lineage import resumed_from
from paddlex_feat.runtime import heartbeat, launch
from paddlex_feat.runtime.cpu import memory_limit
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.gpus import expects_gpu
from paddlex_feat.runtime.malloc import keep_all_freed_memory
from paddlex_feat.runtime.paddle_import import prepare_paddle, restore_environment

if TYPE_CHECKING:  # these import Paddle, which waits until data and configuration are known to be right
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.training.run_folder import RunFolder
    from paddlex_feat.training.run_logger import OnRecord
    from paddlex_feat.training.trainer import Trainer

log = logging.getLogger(__name__)
LATEST = "latest"  # folder of the newest checkpoint


def run(config: Config, output: Path, group: ProcessGroup, on_record: OnRecord | None = None) -> dict[str, Any]:
    """Train here, or start the processes of several devices and machines and wait for them.

    All that can be wrong with data and configuration is found before Paddle is imported.

    Args:
        config: the configuration, validated.
        output: the run's folder, Global.output.
        group: the processes of the job.
        on_record: called on rank 0 with the kind ("train", "eval", "save") and the values of each line of
            metrics.jsonl.
    """
    if config.Train.method == "adapt":
        return train_adapt.run(config, output)
    resumed = _require_start(config, output)
    config = apply_auto_recipe(config, resumed)
    if launch.needs_workers(config.Global.device, config.Train.dist_ips, group):
        return launch_processes(config, output, config.Train.dist_ips)
    require_forms(config.Export.format)
    for sentence in unused_settings(config) if group.rank == 0 else ():
        log.warning("%s", sentence)
    data = read_data(config, group, resumed)
    on_cpu = not expects_gpu(config.Global.device)
    # A compiled training graph would take the flag for itself, and Paddle 3.3 crashes in oneDNN's gradients.
    onednn = on_cpu and config.Train.onednn_conv and not config.Train.dy2st
    if config.Train.dy2st and on_cpu:
        os.environ["FLAGS_use_mkldnn"] = "0"
    memory = keep_all_freed_memory(memory_limit() // 2 // group.local_size) if on_cpu else contextlib.nullcontext()
    with memory:  # before Paddle starts threads, which get arenas of their own otherwise
        fast_products = not keeps_rounding(config)
        prepare_paddle(threads_of(config, group), True, onednn, config.Train.deterministic, fast_products)
        try:
            worker = init_worker(config, group, config.Train.num_workers)
            return _train(config, output, data, worker, on_record)
        finally:
            restore_environment()


def _require_start(config: Config, output: Path) -> Path | None:
    """The checkpoint to resume from, if any.

    Raises WeightsError if the run cannot start from what is given, DependencyError if the starter is not installed;
    a URL is fetched later.
    """
    settings = config.Train
    if settings.resume_path:
        require_checkpoint("Train.resume_path", resolve_during_swap(Path(settings.resume_path)))
        return Path(settings.resume_path)
    if settings.resume == "auto" and resolve_during_swap(output / LATEST).is_dir():
        return output / LATEST / f"{LATEST}.pdparams"
    start = settings.pretrain_weight_path
    if start == STARTER:
        starter_weights()
    elif start and not is_url(start):
        require_weights("Train.pretrain_weight_path", resolve_during_swap(Path(start)))
    return None


def _train(config: Config, output: Path, data: Data, worker: Worker, on_record: OnRecord | None) -> dict[str, Any]:
    from paddlex_feat.models import recognizer
    from paddlex_feat.modes import train_build, train_kernels
    from paddlex_feat.modes.train_features import TrainingFeatures
    from paddlex_feat.modes.train_final import final_candidates_of
    from paddlex_feat.modes.train_hard import hard_classes_of
    from paddlex_feat.modes.train_map import FeatureMaps
    from paddlex_feat.modes.train_warm import WarmStart
    from paddlex_feat.training.run_folder import RunFolder

    folder = RunFolder(output, config.Train.keep_checkpoints)
    start = train_build.checkpoint_to_resume(config, folder, worker.group)
    state, frozen_bn_layers = train_build.build_state(config, data.num_classes, data.classes, start, worker)
    hard = hard_classes_of(config, state, data.sampler, worker.group)
    if data.bad is not None:
        data.bad.files.update(state.progress.skipped)
    convolutions = train_kernels.choose_convolutions(config, state.model, worker)
    exporter = exporter_of(config, config, recognizer.build(network_spec(config), num_classes=None))
    train_build.open_folder(folder, config, state.progress, start, worker.group)
    if worker.group.rank == 0:
        _describe_run(config, output, data, worker, state.progress.classes, convolutions, start)
    with Loader(config, data, worker, hard) as batches:
        trainer = train_build.build_trainer(
            config, state, frozen_bn_layers, exporter, folder, data, worker, batches, on_record
        )
        _log_run_summary(config, data, worker, trainer)
        features = TrainingFeatures(config, trainer, data, worker)
        maps = FeatureMaps(config, trainer, data, worker, features)
        trainer.prepare = WarmStart(config, trainer, data, features, maps)
        trainer.conclude = final_candidates_of(config, trainer, maps)
        trainer.fit()
    return _finish(config, folder, trainer, exporter, data, worker)


def _finish(
    config: Config, folder: RunFolder, trainer: Trainer, exporter: Exporter, data: Data, worker: Worker
) -> dict[str, Any]:
    from paddlex_feat.modes.train_delivery import report_delivery

    skipped = _skipped(data, worker.group)
    heartbeat.stop()
    if worker.group.rank:
        return {}
    progress, best = trainer.state.progress, folder.root / "best_model" / "best_model.pdparams"
    try:
        _complete_inference_model(config, exporter, best, worker)
    except WeightsError as error:
        from paddlex_feat.modes.train_rate import explain_disagreement

        raise explain_disagreement(error, config.Train, trainer.state) from error
    result = folder.result(config.Global.model, progress.best)
    result |= report_delivery(config, progress, best, exporter, data, worker)
    if data.bad is not None:
        log.info("%d images could not be decoded and were replaced.", len(skipped))
        result["skipped_images"] = skipped
    return result


def _skipped(data: Data, group: ProcessGroup) -> list[str]:
    """Files that any rank had to replace."""
    own = json.dumps(sorted(data.bad.files) if data.bad else []).encode()
    parts = group.all_gather_rows(np.frombuffer(own, np.uint8).astype(np.int32))
    return sorted({name for part in parts for name in json.loads(part.astype(np.uint8).tobytes())})


def _complete_inference_model(config: Config, exporter: Exporter, best: Path, worker: Worker) -> None:
    """Add the other forms of Export.format; all answer as the weight file does. Raises WeightsError."""
    from paddlex_feat.inference.export.exporter import require_agreement
    from paddlex_feat.models import weights

    settings, folder = config.Export, best.parent / "inference"
    with TemporaryFolder(best.parent.parent) as scratch:
        for name in inference_file_names() & {file.name for file in folder.iterdir()}:
            link_or_copy((folder / name).resolve(), scratch / name)
        write_forms(scratch, settings.format)
        batches, source = comparison_batches(config, preprocess_of(config))
        differences = exporter.differences(
            weights.read(best), scratch, batches, worker.device, worker.threads, settings.format
        )
        for form, difference in differences.items():
            text = "Inference model of the best epoch (%s): largest difference to its weights on %s %.2e"
            log.info(text, form, source, difference)
            require_agreement(difference, settings.tolerance, folder, form)
        sync_files(scratch)
        for file in sorted(scratch.iterdir()):  # inference.bin before the inference.xml that needs it
            file.replace(folder / file.name)


def _describe_run(
    config: Config, output: Path, data: Data, worker: Worker, classes: list[int], convolutions: str, start: Path | None
) -> None:
    """config.yaml, class_map.json, class_names.json, run.json: what a run needs to be understood and repeated."""
    from paddlex_feat.provenance import run_record
    from paddlex_feat.training.run_folder import run_of

    prints = {name: {"images": p.images, "sha256": p.sha256} for name, p in data.prints.items()}
    resumed = resumed_from(run_of(start), config, prints) if start else []  # of whose config.yaml this may be the place
    write_with_backup(output / "config.yaml", config_load.dump(config_load.without_resume(config)).encode())
    rows = ",\n".join(f'  "{index}": {label}' for index, label in enumerate(classes))
    write_text(output / "class_map.json", f"{{\n{rows}\n}}\n")  # as write_json does, without a dict of millions
    trained = data.lists["train"]
    write_class_names(output, trained)
    run_record.write_start(
        output,
        run_record.command_line(),
        worker.device,
        convolutions,
        worker.group.size,
        prints,
        resumed,
        trained.origin,
    )


def _log_run_summary(config: Config, data: Data, worker: Worker, trainer: Trainer) -> None:
    settings, plan = config.Train, trainer.plan
    several = f", {worker.group.size} processes" if worker.group.size > 1 else ""
    log.info("Training %s on %s%s at %d px", config.Global.model, worker.device, several, settings.input_size)
    log.info(
        "%d images, %d classes; %d epochs of %d steps",
        len(data.labels),
        len(data.classes),
        plan.epochs,
        plan.steps_per_epoch,
    )
