"""Predict.shard: the features of a part of the input, in a file of its own that `main.py merge` takes."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import ConfigError, Interrupted
from paddlex_feat.fileio.atomic import require_writable
from paddlex_feat.inference.inputs import Search, iter_images
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.inference.results import Failed
from paddlex_feat.inference.shards import FORMS, Inputs, Record, ShardReader, shard_file
from paddlex_feat.modes.predictor import failures_of, predictor_of
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)


def run_shard(config: Config, given: Any, output: Path, group: ProcessGroup) -> dict[str, Any]:
    """Write the shard, unless it is there; return the content of the result file.

    Raises ShardError if the file is there, and is of another model or input; ImageError if an input failed, whose
    shard is kept.
    """
    settings = config.Predict
    shard = Shard.parse(settings.shard or "")
    if f".{settings.save_format}" not in FORMS:
        what = f"Shards are no files of the form {settings.save_format}."
        fix = "Use -o Predict.save_format=parquet or npz."
        raise ConfigError(what, where="Predict.save_format", fix=fix, code="shard-form")
    path = output / f"features-{shard.name}.{settings.save_format}"
    require_writable(output)
    model, search = predictor_of(config, group), Search()
    inputs = Inputs(iter_images(given, search))
    there = path.exists()
    if there:
        record = _done(path, shard, inputs, model)
    else:
        try:
            record = _write(path, shard, inputs, model, search, config)
        except KeyboardInterrupt:
            fix = "Nothing of this shard is kept; run it again."
            raise Interrupted("Interrupted.", where=f"shard {shard}", fix=fix) from None
    images = len(record.numbers) - len(record.failed)
    rows = [{"input": name, "message": what} for _, name, what in record.failed]
    left_out = dict(record.left_out or {})
    result = {"images": images, "failed": rows, "left_out": left_out, "results": [path.name], "shard": str(shard)}
    result["skipped"] = there
    log.info("Shard %s: %d of %d images, %d failed; %s", shard, images, record.inputs, len(rows), path)
    if record.failed:
        failed = [Failed(name, what) for _, name, what in record.failed]
        error = failures_of(failed, "; the shard is whole without them", "Predict.input")
        raise error.with_result(result)
    return result


def _done(path: Path, shard: Shard, inputs: Inputs, model: Predictor) -> Record:
    """The record of a shard that is there already."""
    for _ in model.predict([]):  # so that the other devices, which wait for images, end
        pass
    for _ in inputs:
        pass
    with ShardReader(path) as reader:
        wanted = Record(shard, inputs.count, inputs.digest, model.identity)
        reader.record.require_same_job(path, wanted, "this job")
        for _ in reader.rows():  # whole
            pass
    log.info("%s is there already, of this model and these inputs: nothing is computed", path.name)
    return reader.record


def _write(path: Path, shard: Shard, inputs: Inputs, model: Predictor, search: Search, config: Config) -> Record:
    with shard_file(path, shard, model.identity) as file, bar(None, "predicting", "images") as progress:
        results = model.predict_with(shard.part_of(inputs), None, on_error=config.Predict.on_error)
        with closing(results):
            for result, _ in results:
                file.add(shard.number + shard.count * result.element, result)
                progress.update()
        failed = tuple((shard.number + shard.count * each.element, *each) for each in model.failed)
        record = Record(shard, inputs.count, inputs.digest, model.identity, failed, search.left_out)
        file.close(record)
    return record
