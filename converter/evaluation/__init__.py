"""A detector on a data set: what it finds in every picture, and by how much that is right.

    large_json.py   files of strangers, of hundreds of megabytes
    dataset.py      annotations of a data set, read and checked
    predictions.py  boxes that a model predicted, as arrays, and in COCO's results format
    curves.py       precision and recall, by faster-coco-eval
    metrics.py      AP and AR, made of them
    paired.py       two models on one data set
    record.py       `evaluation.json`: what was measured, of which weights, on what
    consistency.py  whether such a record agrees with itself
    page.py         a report as one HTML page, of what these write:
    charts.py       curves, bars and intervals as SVG
    gallery.py      pictures with what is annotated in them, and what was predicted
    markup.py       names and figures as HTML
    question.py     a data set as it is asked about: its classes, and how captions name them
    reading.py      picture files, read and resized by workers
    ranks.py        one process, or many that torchrun started
    run.py          pictures on their way through a model
    answer.py       all of that for one data set: from the pictures to the outcome
    outcome.py      what it has come to, and the files that say so

It knows no family: what a model is asked, and how it is run, comes from there.
"""
