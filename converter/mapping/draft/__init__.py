"""Proposing a mapping table for a checkpoint that nobody has described yet, for a person to review.

    names.py       names as templates with numbers; the units that fold into one rule each
    words.py       how alike two names read
    assignment.py  the best assignment, and where another is nearly as good
    order.py       what the order of the file says where names do not
    match.py       which unit becomes which, from the most consistent evidence to the least
    missing.py     what is in doubt because part of the target has no counterpart
    copies.py      one tensor under several names
    squares.py     square matrices, of which no shape tells whether they are transposed
    captures.py    units as patterns
    buffers.py     buffers that follow from a size
    rules.py       matches as rules and ignores
    spec.py        a target that is known by a checkpoint only, as a spec
    propose.py     all of it, and the documents

A rule that is not sure says so in `doubt`. Sure means: no other assignment of tensors of the same shapes comes near.
"""

from converter.mapping.draft.names import Named
from converter.mapping.draft.propose import Draft, Target, known_target, new_target, propose, specs_of
from converter.mapping.draft.squares import squares_as_stored

__all__ = ["Draft", "Named", "Target", "known_target", "new_target", "propose", "specs_of", "squares_as_stored"]
