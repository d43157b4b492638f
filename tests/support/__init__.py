"""What tests share.

tiny.py              a table with every op, and weights of a few numbers for it
small_formats.py     every built-in format at a size at which all pairs can be tried
random_tables.py     tables that nobody wrote, all sound
official_keys.py     the official state dicts without a file
small_glip.py        a GLIP of a few thousand parameters
saved_glip.py        the same as a converted file
small_folder.py      the same as a folder, with bert_vocabulary.py's small vocabulary
small_capture.py     what it computes, as a capture
small_files.py       every format as a file, and the command line on it
two_checkpoints.py   two that differ in a little, for diff
archives.py          archives of torch.save, member by member
packaging.py         a folder to publish
craft_pickle.py      pickles that say what no pickler would
craft_files.py       zip, legacy and safetensors files that lie
reading.py           what a reader makes of such a file
publishing.py        whose token, which repository, how a refusal reads
hub/                 a stand-in of the Hub
program.py           the program as a user starts it: a process that imported it forks for each run
alone.py             the same without the fork: a process of its own, for what it imports and where it ends
schemas.py           all JSON that commands print, beside its schema
drawings.py          whether boxes were drawn into a picture
bare.py              an environment with converter and nothing that is optional
strace.py            its system calls, listed and made to fail
stopping.py          it is stopped at a request to the Hub, or at a system call
jobs.py              conversions to every form of result, and what a folder then shows
mounts.py            file systems of their own kinds
official_standin/    a stand-in of the official package, as scripts/capture_official.py imports it
second_family/       a package with a family of its own
"""
