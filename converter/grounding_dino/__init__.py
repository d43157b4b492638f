"""Grounding DINO: transformers' own class, run, compared and used.

switches.py   where the official code computes otherwise, and the model as it would
model.py      transformers' class of given sizes, filled from a checkpoint
outputs.py    activations that no module returns, and detections, from its output
mistakes.py   known mistakes of re-implementations
family.py     what parity, publishing and the command line use
"""
