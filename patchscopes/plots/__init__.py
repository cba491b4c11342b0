"""Figures from result documents: one module per figure, each with one function from a document to a `Figure`.

A document is what `results.build_document` frames and a JSON file holds, so a figure can be drawn again without the
model, and nothing here imports torch. `create_figure` of `style` makes the figure; its other functions draw the curves
that the figures share, those of `tables` the tables, and `fonts` finds what their signs need; `save_png` writes it.
pyplot and the settings of matplotlib are left alone.
"""
