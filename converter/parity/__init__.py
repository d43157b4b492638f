"""Proofs that two models, or two sets of weights, are the same; of any torch module whose family is known.

In the order in which data passes:

    family.py        what a family of models offers to be run and compared
    subject.py       a model as it is compared
    graph.py         how a family's models are exported
    taps.py          looking at activations while a model runs, and replacing them
    probes.py        a few hundred numbers that stand for a large tensor
    schemas.py       what a capture's metadata and a certificate have to be
    capture.py       captures: what a model made of some inputs, as a file
    record.py        making a capture of a converted model
    same_weights.py  whether a capture was made of the weights that are compared with it
    device.py        where and in which numbers a model runs
    gates.py         tolerances, from gates.json
    compare.py       one activation beside the captured one
    detections.py    detections beside captured ones
    run.py           a whole model beside a capture: the report
    suspects.py      tensors of the file that are not what its own record says, where a comparison fails
    sensitivity.py   what a change of each element of the weights does to the activations of a capture
    places.py        where in a tensor some elements are, in words
    coverage.py      which elements some captures see, and why not the others
    summary.py       the top of every form of the report: verdict, first difference, next command
    report.py        the report as text, JSON and JUnit XML
    coverage_report.py  the same of coverage
    html.py          the report as a page
    mutations.py     faults to be made on purpose
    mutate.py        how many of them a capture notices
    setup.py         what decides results beside the weights: configuration, preprocessing, vocabulary; no torch
    consistency.py   whether a certificate agrees with itself
    evidence.py      reading a certificate, and the tables that it names; it needs no torch
    certificate.py   writing a certificate, and checking a copy of weights by it
    diff.py          two checkpoints, tensor by tensor, across formats; it needs no torch
    recorder.py      what a user copies to record the outputs of any model
    outputs.py       such outputs of two models, compared; it needs no torch
"""
