"""The Grounding DINO family (Liu et al. 2023, arXiv:2303.05499), whose model is transformers' own class.

model.py        transformers' class of given sizes, filled from a checkpoint
switches.py     where the official code computes otherwise, and the model as it would
outputs.py      activations that no module returns, and detections, from its output
mistakes.py     known mistakes of re-implementations
detect/         from pictures and words to boxes: the detector, and its preprocessing
task/           from a data set to boxes that can be measured: protocols
detecting.py    what detecting, evaluating and publishing use of it
needs.py        what has to be installed
model_zoo.json  the released models: training data, figures, licence, each with its source
family.py       what parity, publishing and the command line use of it
"""
