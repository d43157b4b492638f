"""The model alone, in plain PyTorch: images and token ids in, boxes out. Of files only glip.py knows.

In the order in which data passes:

    config.py        the sizes that make one model
    inputs.py        checks of what a user passes to the model
    swin.py          images -> maps of stride 4 to 32
    fpn.py           maps -> the pyramid P3..P7
    bert.py          token ids -> text features
    fusion.py        pyramid and text attend to each other
    dynamic_conv.py  a block of the dynamic head
    head.py          the tower of blocks, and the predictions of each cell
    encoded.py       images and captions as they are before they meet, to be used again
    detection.py     predictions -> boxes, scores, labels
    glip.py          all of it as one module
    precision.py     which sums are computed in which dtype
    tiles.py         how many rows of a matrix are computed at a time
"""
