"""Pages, tables, pictures and plots of a data set check and of an evaluation, from results that are already computed.

evaluation_report         all files of mode evaluate: `evaluation_report.write`
evaluation_html, html     its page; what pages share
dataset_html              the page of mode check_dataset: `dataset_html.write_report`
dataset_pictures          its pictures: `write_samples`, `write_histogram`, `write_class_sizes`
csv_tables                `write_queries`, `write_classes`, `write_confusions`
query_sheets, examples    queries with their nearest gallery images: `draw_queries`, `Examples`
plots, images             `draw_similarities`, `draw_thresholds`; small images in a page

Importing this room imports neither OpenCV nor matplotlib; the names of `__all__` are imported when they are first
used, matplotlib when a plot is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlex_feat.fileio.lazy import lazy_names

if TYPE_CHECKING:
    from paddlex_feat.reports.csv_tables import write_classes, write_confusions, write_queries
    from paddlex_feat.reports.dataset_pictures import write_class_sizes, write_histogram, write_samples
    from paddlex_feat.reports.examples import Examples
    from paddlex_feat.reports.plots import draw_similarities, draw_thresholds
    from paddlex_feat.reports.query_sheets import choose_queries, draw_queries

__all__ = [
    "Examples",
    "choose_queries",
    "draw_queries",
    "draw_similarities",
    "draw_thresholds",
    "write_class_sizes",
    "write_classes",
    "write_confusions",
    "write_histogram",
    "write_queries",
    "write_samples",
]

if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "csv_tables": ("write_classes", "write_confusions", "write_queries"),
            "dataset_pictures": ("write_class_sizes", "write_histogram", "write_samples"),
            "examples": ("Examples",),
            "plots": ("draw_similarities", "draw_thresholds"),
            "query_sheets": ("choose_queries", "draw_queries"),
        },
    )
