"""Planning: from the names and shapes of a checkpoint to a proved plan, before a byte of tensor data is read.

In the order in which data passes:

    adapters.py  low-rank adapters, merged into the weights that they are for
    formats.py   which table a checkpoint is in, and the plan from any format to any other
    fit.py       a table laid against tensors: the variant, what becomes of each tensor, everything that is wrong
    refusals.py  what is said where they do not fit
    options.py   fields of the config that the checkpoint decides
    keys.py      the keys of a checkpoint as a table knows them
    nearest.py   names that no rule knows, and what reads like them
    export.py    the same table read backwards: from the target's tensors to a checkpoint of the format
    compose.py   two plans in a row as one
    equal.py     tensors of one checkpoint with the same numbers
    values.py    doubts of a table that the values of two checkpoints settle
    plan.py      the plan itself, a value: what a dry run prints and a conversion carries out
"""
