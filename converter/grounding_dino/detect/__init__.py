"""From pictures and words to boxes, with what `converter.grounding` has for every detector of phrases.

preprocessing.py  what is done to a picture and a caption: preprocessing.json, or as a folder's processor is set
scores.py         from probabilities of tokens to scores of phrases; boxes in pixels
detector.py       the model with its vocabulary and preprocessing: pictures and prompts in, boxes out
"""
