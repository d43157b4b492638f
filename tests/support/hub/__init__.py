"""A stand-in of the Hub, for huggingface_hub's own client; server.py lists where it differs.

storage.py     what it keeps: repositories with their history, and blobs
faults.py      what a test lets go wrong, and refusals
connection.py  one request: its endpoint, its fault, who asks
reading.py     endpoints that tell
writing.py     endpoints that change something
card.py        what it refuses in a model card
server.py      the server itself
offline.py     ways of being without it
__main__.py    a program beside an empty one
"""
