"""The Hugging Face Hub, through huggingface_hub alone, which is imported when it is needed.

    reference.py   what names something on the Hub, and what a path here
    resolve.py     models and files of the Hub as local paths, every hash checked
    requests.py    asking the Hub patiently; failures as values, cleaned of the token
    hashes.py      a file's hashes, as the Hub states them
    conversion.py  `convert` for Python: a local path or a name of the Hub in, what was written out
    web.py         a picture from any http(s) address, by the same HTTP library

Its settings are that package's: `HF_TOKEN` or `hf auth login`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`. The token is
kept in no variable of this package, and texts of errors are cleaned of it.
"""
