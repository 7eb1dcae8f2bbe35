"""Lists of images: `ImageList`; how they are split, replaced and identified.

`split.split_lists` divides a data set anew, `transaction.replace_lists` writes the three list files together,
`fingerprint.fingerprint` identifies a list, and `outside` finds paths that lead out of a data set's folder.
"""

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.transaction import LISTS

__all__ = ["LISTS", "ImageList"]
