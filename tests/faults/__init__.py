"""Faults: every system call of a commit killed, interrupted and failed, and the disk read afresh.

In the order in which data passes:

    scenarios.py     what is converted, over what, and how; what lies there before and after
    calls.py         the system calls of a commit, and which faults each is given
    injection.py     one fault: the disk before it, the run, the disk after it
    disk.py          what lies on the disk: old, new, or something else, and what may not be there
    campaign.py      many faults, on several processes, and the tables of what came of them
    broken.py        programs that commit wrongly on purpose: the harness must say so

`scripts/faults.py` runs all of them, `test_faults.py` a sample, `test_output.py` what happens to stdout and stderr.
"""
