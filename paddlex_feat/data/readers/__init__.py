"""Read the lists of a data set, in any format of `READERS`.

`require_lists` is what modes call: it finds the data set at or below a folder and reads its lists. An installed package
adds a format by an entry point of the group `paddlex_feat.readers`, which names a `ReaderSpec`
(docs/extending_data.md).
"""

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers.find import READERS, find_root, reader_of, require_lists
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

__all__ = ["LISTS", "READERS", "ImageList", "ReaderSpec", "Reading", "find_root", "reader_of", "require_lists"]
