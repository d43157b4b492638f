"""What detectors of phrases share: from pictures and words to a model's inputs, and from its boxes to drawings.

In the order in which data passes:

    preprocessing.py  what is done to a picture and a caption, as data
    images.py         reading pictures; pictures as tensors
    tokenizer.py      BERT's vocabulary; words as token ids
    wording.py        likely mistakes in prompts, and phrases found in a sentence
    prompt.py         what to look for, as captions and token positions
    query.py          all that, before there are weights
    faults.py         what is said where a model computes nothing that can be used
    best.py           the best boxes of a picture, over all captions
    found.py          what was found in one picture
    placement.py      where labels have room
    lettering.py      labels in a font that has their letters
    draw.py           boxes drawn into a picture

And for whole data sets:

    choices.py        the choices of an evaluation, as data with their sources, and what they may be changed to
    classes.py        the classes of a data set as captions
    prepared.py       a picture as a worker hands it on
    task.py           all that is asked, but for the model
"""
