"""The kinds of findings of a LabelMe conversion."""

from __future__ import annotations

from paddlex_feat.data.findings import FindingSpec

_REDO = "Correct the annotation and convert again."
NOT_JSON = FindingSpec("labelme-not-json", "warning", "an annotation is not JSON", _REDO)
NO_IMAGE = FindingSpec("labelme-no-image", "warning", "imagePath is missing", _REDO)
IMAGE_MISSING = FindingSpec("labelme-image-missing", "warning", "the image of imagePath does not exist", _REDO)
AMBIGUOUS = FindingSpec("labelme-ambiguous-image", "warning", "imagePath may be any of several images", _REDO)
IMAGE_DATA = FindingSpec(
    "labelme-image-data",
    "warning",
    "the image of imagePath does not exist, and `imageData` is not a picture or cannot become a file",
    _REDO,
)
OTHER_FILE = FindingSpec(
    "labelme-other-file", "note", "a file in annotations/ is not JSON; beside images: other files, counted", "Nothing."
)
OTHER_FORMAT = FindingSpec(
    "labelme-other-format", "note", "JSON files of other tools (COCO and others), counted", "Nothing."
)
FOLDER_UNREADABLE = FindingSpec(
    "labelme-folder-unreadable", "warning", "a folder of images or annotations cannot be read", "Fix its permissions."
)
FORMAT = FindingSpec("labelme-format", "warning", "an annotation holds something else", _REDO)
IMAGE_INSIDE = FindingSpec(
    "labelme-image-inside",
    "note",
    "the image of imagePath does not exist, and the picture in `imageData` becomes a file",
    "Nothing.",
)
NO_CLASS = FindingSpec("labelme-no-class", "warning", "no flag is true, and no shape names a class", _REDO)
SEVERAL_CLASSES = FindingSpec("labelme-several-classes", "warning", "more than one class is named", _REDO)
CONFLICT = FindingSpec("labelme-conflict", "warning", "two annotations give an image two classes", _REDO)
UNKNOWN_CLASS = FindingSpec(
    "labelme-unknown-class",
    "warning",
    "the class is not in label.txt",
    "If it is a class, add it to label.txt; if not, correct the annotation.",
)
LABEL_UNUSED = FindingSpec(
    "labelme-label-unused",
    "note",
    "labels of shapes that are not in label.txt, where another name is the class",
    "If one of them is a class, add it to label.txt.",
)
NO_NAMES = FindingSpec("labelme-no-names", "warning", "there is neither label.txt nor flags.txt", "Write label.txt.")
NAME_TWICE = FindingSpec("labelme-name-twice", "warning", "a name is twice in label.txt", "Remove one of the lines.")
IMAGE_NAME = FindingSpec(
    "labelme-image-name", "warning", "the image's name cannot be written in a list", "Rename the image."
)
WITHOUT_CLASS = FindingSpec(
    "labelme-image-without-class", "warning", "no annotation names a class for an image", "Annotate it."
)
FINDINGS = (
    OTHER_FILE,
    OTHER_FORMAT,
    FOLDER_UNREADABLE,
    NOT_JSON,
    FORMAT,
    NO_IMAGE,
    IMAGE_MISSING,
    IMAGE_INSIDE,
    IMAGE_DATA,
    AMBIGUOUS,
    NO_CLASS,
    SEVERAL_CLASSES,
    CONFLICT,
    UNKNOWN_CLASS,
    LABEL_UNUSED,
    NO_NAMES,
    NAME_TWICE,
    IMAGE_NAME,
    WITHOUT_CLASS,
)
