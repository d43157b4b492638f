"""A detector on a data set: what it finds in every picture, and by how much that is right.

    large_json.py   files of strangers, of hundreds of megabytes
    dataset.py      annotations of a data set, read and checked
    predictions.py  boxes that a model predicted, as arrays, and in COCO's results format
    curves.py       precision and recall, by faster-coco-eval
    metrics.py      AP and AR, made of them
    paired.py       two models on one data set
    record.py       `evaluation.json`: what was measured, of which weights, on what
    page.py         a report as one HTML page, of what these write:
    charts.py       curves, bars and intervals as SVG
    gallery.py      pictures with what is annotated in them, and what was predicted
    markup.py       names and figures as HTML
    folder.py       where results are written, and kept of a run that was stopped
    run.py          pictures on their way through a model, in one process or in many

It knows no family: what a model is asked, and how it is run, comes from there.
"""
