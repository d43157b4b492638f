"""The Grounding DINO family (Liu et al. 2023, arXiv:2303.05499): models are those of transformers.

detect/         from pictures and words to boxes: the detector, and its preprocessing
task/           from a data set to boxes that can be measured: the official protocol
detecting.py    what detecting, evaluating and publishing use of it
switches.py     where the official code and transformers differ
needs.py        what has to be installed
model_zoo.json  the released models: training data, figures, licence, each with its source
family.py       what parity, publishing and the command line use of it
"""
