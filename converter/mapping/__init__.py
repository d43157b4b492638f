"""Mapping tables: the language of the JSON documents in `mappings/`, and what they mean.

In the order in which data passes:

    folders.py     where documents lie: here, and in installed families
    released.py    the hashes of all that were released, by which a custom table is known, and what needs no check
    documents.py   finding, parsing, checking and writing the JSON
    doubts.py      what a person has to decide first
    wrappers.py    what trainers put around a model's own names
    names.py       how a table's keys read in a file, with wrappers and aliases
    pattern.py     names with captures, matched and formatted
    expression.py  arithmetic over a config
    ops.py         the closed set of operations on tensors, each with its inverse
    cast.py        the same for dtypes
    rebuild.py     buffers that a config implies
    spec.py        a target: variants, and every tensor with its shape
    entries.py     the entries of a table under one config
    table.py       a table: its entries read and bound
    transfers.py   every application of every rule: which tensors a checkpoint must hold
    joined.py      two tables in a row, where one includes another through a third
    load.py        a table with its spec, by name or path
    lint.py        whether a table is sound for every variant
    settle.py      doubts settled
    draft/         proposes a table for a checkpoint that nobody has described
"""
