"""Writing: a plan carried out, byte for byte the same every time, and on the disk as a whole or not at all.

In the order in which data passes:

    route.py          the plan as a user states it: formats by name, and the residue beside the source
    convert.py        carries a plan out: the one function that writes a conversion
    in_memory.py      what it would write, without a file: for whoever runs a model
    transfer.py       moves tensors in threads: read, apply the ops, hash, write
    shards.py         the layout of safetensors files, one or several with an index
    torch_archive.py  the layout of what torch.load reads
    buffers.py        tensors that the config implies: checked, or made
    residue.py        what a conversion leaves out, kept beside the result for the way back
    ledger.py         conversion.json: where every tensor came from, and the hash of each
    state_dict.py     the one hash by which weights are known, whichever file they are in
    fitting.py        whether a checkpoint holds just the weights of a model
    records.py        conversion.json and config.json, read back
    changes.py        which tensors of a converted file are not what its ledger says
    names.py          what the name of a destination says: a file, a folder, or by mistake neither
    destination.py    what may be written where, and what may be replaced
    commit.py         the steps at which names are given; what dead processes left
    journal.py        the results of a long run, one to a line, for the run that goes on with it
    results.py        the folder of such a run: what is kept of it, and the files that it ends with
    staging.py        files without a name until all are complete, and their order when they get one
"""
