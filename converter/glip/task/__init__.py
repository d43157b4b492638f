"""GLIP on data sets: what is asked of a picture, and how the answer becomes boxes that can be measured.

Captions of classes and resized pictures are `converter.grounding`'s.

protocols.json  the choices of the official evaluation, and of MMDetection's, each with its source
protocol.py     the same as a value
task.py         pictures in, boxes of classes out
odinw.json      the 13 data sets of ODinW: where they lie, their classes, and the official prompts
benchmark.py    the same as values
"""
