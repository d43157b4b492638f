"""Grounding DINO on data sets: what is asked of a picture, and how the answer becomes boxes that can be measured.

protocols.json  the choices of the official evaluation, and of MMDetection's, each with its source
protocol.py     the same as a value
task.py         pictures in, boxes of classes out
"""
