"""Convert annotations of other programs to the lists of a data set.

`CONVERTERS` holds every converter, by the name in `CheckDataset.convert.src_dataset_type`. An installed package adds
one by an entry point of the group `paddlex_feat.converters`, which names a `ConverterSpec` (docs/extending_data.md).
"""

from paddlex_feat.config.registry import Registry
from paddlex_feat.data.converters.labelme import LABELME
from paddlex_feat.data.converters.spec import Converted, ConverterSpec

__all__ = ["CONVERTERS", "Converted", "ConverterSpec"]

CONVERTERS: Registry[ConverterSpec] = Registry("converters", ConverterSpec, key="CheckDataset.convert.src_dataset_type")
CONVERTERS.add(LABELME)
