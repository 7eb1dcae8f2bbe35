"""The checks of scripts/accept_gpu.py, by number of its list."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from accept import jobs, machine, numerics, runs, speed
from accept.bench import Bench, Line

Check = Callable[[Bench], Iterator[Line]]

ITEMS: dict[int, tuple[Check, ...]] = {
    1: (machine.environment,),
    2: (numerics.one_step,),
    3: (numerics.mixed_precision, numerics.overflow),
    4: (numerics.accumulation, numerics.clipping, numerics.moving_average),
    5: (runs.repeated, runs.resumed),
    6: (runs.whole_training, runs.whole_clip_training),
    7: (runs.portable,),
    8: (runs.evaluated, runs.predicted),
    9: (machine.flags, machine.predictors, machine.evaluations),
    10: (numerics.compiled, numerics.tuned),
    11: (speed.steps, speed.profile, speed.loader, speed.evaluation),
    12: (machine.out_of_memory, machine.unsupported, machine.forked),
    13: (jobs.device_lists, jobs.one_batch_on_two, jobs.variants, jobs.evaluated_together),
    14: (jobs.terminated, jobs.killed),
}
