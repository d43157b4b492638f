"""From pictures and words to boxes.

In the order in which data passes:

    preprocessing.py  what is done to a picture and a caption, as data: preprocessing.json
    images.py         reading pictures; pictures as tensors
    tokenizer.py      BERT's vocabulary; words as token ids
    wording.py        likely mistakes in prompts, and phrases found in a sentence
    prompt.py         what to look for, as captions and token positions
    found.py          what was found in one picture
    detector.py       the model with all of these: pictures and prompts in, boxes out
    placement.py      where labels have room
    lettering.py      labels in a font that has their letters
    draw.py           boxes drawn into a picture
"""
