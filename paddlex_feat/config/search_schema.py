"""Keys of the modes index and search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from paddlex_feat.config.base import PathText, Section, key

_LEAST, _MOST = -1.0, 1.0


def _threshold(value: Any) -> Any:
    """A number as it is; auto, evaluation, none and null as words."""
    if value is None:
        return "none"
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


ThresholdValue = Annotated[
    Literal["auto", "evaluation", "none"] | Annotated[float, Field(ge=_LEAST, le=_MOST)],
    BeforeValidator(_threshold),
    WithJsonSchema(
        {"anyOf": [{"enum": ["auto", "evaluation", "none", None]}, {"type": "number", "minimum": -1, "maximum": 1}]}
    ),
]
Texts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Labels = Annotated[list[str | None], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Numbers = list[Annotated[int, Field(ge=0, lt=2**63)]]


class IndexSection(Section):
    """A gallery of images to search in."""

    path: PathText | None = key(None, "File of the gallery; null: images.gallery in Global.output.")
    url: str | None = key(
        None,
        "Address of a Milvus server, such as http://localhost:19530, whose collection is the gallery instead of a "
        "file; its token is the environment variable MILVUS_TOKEN.",
    )
    collection: str = key("images", "Name of the collection.", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")
    action: Literal["build", "add", "update", "remove", "list", "stats", "rebuild", "compact", "export", "import"] = (
        key(
            "build",
            "build: make the gallery, or go on with one that was interrupted; add: more images, which replace those of "
            "the same paths; update: add what is new or has changed, remove what the input lacks; remove; list; stats; "
            "rebuild: embed all images again, with another model; compact: give unused space back; export, import.",
        )
    )
    input: Any = key(
        None,
        "Images: a list of lines `path label`, a data set's folder, or an input of Predict.input; null: the lists "
        "Index.lists of Global.dataset_dir. For import: the file or folder.",
    )
    lists: Texts = key(
        ["gallery"],
        "Lists of the data set that are taken where input is null: train, gallery, query.",
        min_length=1,
    )
    label: str | None = key(None, "Label of all images of the input; null: what the list or the data set says.")
    keys: Texts = key([], "For remove and list: names of images, which are their paths unless they were given others.")
    labels: Labels = key([], "For remove and list: labels; null: images without one.")
    ids: Numbers = key([], "For remove: numbers of images.")
    format: Literal["npz", "parquet", "paddlex"] = key(
        "npz", "For export: features.npz, features.parquet, or PaddleX's vector.index and id_map.yaml."
    )


class SearchSection(Section):
    """Questions to a gallery."""

    input: Any = key(None, "What is looked for: an input of Predict.input.")
    topk: int = key(10, "Images of an answer.", "images", ge=1, le=10_000)
    threshold: ThresholdValue = key(
        "auto",
        "Cosine similarity below which an answer is unknown; auto: so that of objects that are not in the gallery at "
        "most 5 % get an answer, found on the gallery itself; evaluation: the one that mode evaluate suggested for "
        "this model; none: every answer counts.",
    )
    method: Literal["exact", "hnsw"] = key(
        "exact",
        "exact; hnsw: by a graph of neighbours, faster in galleries of millions, which misses some: its recall is "
        "measured on the gallery. The graph is kept in a file beside the gallery. Of the modes search and serve.",
    )


class ServeSection(Section):
    """A gallery as a service."""

    host: str = key(
        "127.0.0.1",
        "Address to listen on; one that other machines reach needs a token in the environment variable "
        "PADDLEX_FEAT_TOKEN.",
    )
    port: int = key(8080, "Port to listen on.", ge=1, le=65535)
    allow_urls: bool = key(False, "Images of requests may be addresses, which this machine downloads.")
    max_body_mib: int = key(16, "Largest request.", "MiB", ge=1, le=1024)
    max_requests: int = key(64, "Requests at work at once; more are answered with 503.", ge=1, le=10_000)
