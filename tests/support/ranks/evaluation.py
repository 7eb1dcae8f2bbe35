"""Every rank evaluates one inference directory together with the others.

    python evaluation.py INFERENCE DATA RESULT BATCH_SIZE

Rank 0 writes RESULT.npz: features of both lists, recall1, recall5, mAP.
"""

import sys
from pathlib import Path

import numpy as np

from paddlex_feat.data.readers import require_lists
from paddlex_feat.evaluation.evaluator import Evaluator
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle


def main(inference: str, data: str, result: str, batch_size: int) -> None:
    """Evaluate and save."""
    prepare_paddle(1)
    group = ProcessGroup.from_environment()
    group.init()
    lists = require_lists(data, ("gallery", "query"))
    evaluation = Evaluator(lists, batch_size, 1, group)(FeatureExtractor(Path(inference), "cpu", 1))
    if group.rank == 0:
        figures = evaluation.main_metrics()
        np.savez(result, query=evaluation.query, gallery=evaluation.gallery, **figures)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
