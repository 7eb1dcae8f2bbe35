"""Batches of decoded images, prepared while the network computes.

loader            by threads: `training_batches`, `evaluation_batches`, `prefetch_map`
processes         by processes: `DecodingProcesses`; their program is decoder_process, the shared memory ring
slices            the unit of work, and the random numbers of a sample
"""

from paddlex_feat.data.loading.loader import (
    CorruptImageReplacer,
    evaluation_batches,
    prefetch_map,
    prefetch_map_then,
    training_batches,
)

__all__ = ["CorruptImageReplacer", "evaluation_batches", "prefetch_map", "prefetch_map_then", "training_batches"]
