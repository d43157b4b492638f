"""Publishing: a folder that holds a model with its evidence, then one commit on the Hugging Face Hub.

In the order in which data passes:

    checks.py      whether configuration, ledger, certificate and evaluations belong to the weights
    markdown.py    names and sentences out of files, and tables
    facts.py       what card and bill of materials are made of
    evaluated.py   what the card says of evaluations on data sets, and the Hub's model-index
    bom_record.py  what a bill of materials states, read back
    figures.py     its figures, and the versions of what took part
    bom.py         the bill of materials, CycloneDX's, and what the card says of it
    card.py        the model card: what was verified by which numbers, what was not
    package.py     the folder to publish, made of a conversion
    bundle.py      a signature's bundle as a stranger's file: which files it names
    signature.py   whether a signature holds, and by whom: by model-signing
    folder.py      what of a folder may be published: every file hashed, all of the same weights
    repository.py  where it goes: whether it may be written, whether it is there, what it holds
    upload.py      large files, sent before the commit that names them
    signing.py     signing such a folder
    commit.py      one commit, looked for when its answer is lost, and read back
"""
