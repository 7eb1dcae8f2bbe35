"""Pages, tables, pictures and plots of a data set check and of an evaluation.

`evaluation_report.write` writes the files of mode evaluate; `dataset_html.write_report` and
`dataset_pictures` make the report of mode check_dataset. Matplotlib is imported when a plot is drawn.
"""
