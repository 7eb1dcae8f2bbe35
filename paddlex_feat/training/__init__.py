"""The training run: loop, one optimizer step, schedule, moving average, checkpoints and the run folder."""
