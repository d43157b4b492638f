"""A pickle interpreter that imports nothing and calls nothing.

Every way in which a pickle can name or call code ends in an inert value: a `Global` is two strings, an `Instance` is
what would have been called and with what. Dicts become lists of pairs, so that no value from the file is ever hashed or
compared: a tuple nested a million deep as a key is as harmless as any other. There is no recursion.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from converter.checkpoint.pickle_stream import Unsound, opcodes
from converter.display import plain
from converter.errors import UnsupportedCheckpointError, damaged

# the largest checkpoint known, with optimizer and averaged weights, takes 0.2 million opcodes in 5 MB
OPCODE_LIMIT = 1_000_000
BYTE_LIMIT = 64 * 1024 * 1024
MEMO_LIMIT = 1 << 32  # binary opcodes have 32 bits for an index; larger ones, from PUT, could be chosen to collide
NAME_LIMIT = 10_000  # different names to import; a checkpoint has about ten


@dataclass(frozen=True, slots=True)
class Global:
    """A name that pickle would have imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return plain(f"{self.module}.{self.name}")


@dataclass(slots=True, eq=False)
class Dict:
    """A dict, as the pairs that were set, in order."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Instance:
    """What pickle would have made by a call, and everything done to it afterwards: `states` are what it was to set."""

    function: object
    arguments: object
    pairs: list[tuple[object, object]] = field(default_factory=list)
    items: list[object] = field(default_factory=list)
    states: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A reference to something outside the pickle; torch writes storages so."""

    reference: object


@dataclass(frozen=True, slots=True)
class Unpickled:
    """The value of a pickle, and where in the stream it ended; and all that it names, refers to outside and calls,
    whether the value holds it or not, the last two in order."""

    value: object
    globals: frozenset[Global]
    references: tuple[Persistent, ...]
    calls: tuple[Instance, ...]
    end: int


def interpret(stream: IO[bytes], label: str, limit: int = OPCODE_LIMIT) -> Unpickled:
    """Interpret one pickle from `stream`, up to and with its STOP.

    `label` begins every message. Raises CorruptCheckpointError for anything that is not a sound pickle, and
    UnsupportedCheckpointError beyond the limits on size and number of opcodes.
    """
    machine = _Machine(label)
    start = stream.tell()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown escapes in a text opcode
        try:
            for count, (name, argument, position) in enumerate(opcodes(stream)):
                machine.position = position
                if count >= limit or position - start > BYTE_LIMIT:
                    machine.refuse_size(f"goes on after {count} opcodes, the limit is {limit}, or {BYTE_LIMIT} bytes")
                _OPCODES[name](machine, name, argument)
        except Unsound as error:
            machine.position = error.position
            machine.fail(plain(str(error)))
    value = machine.pop("STOP")
    return Unpickled(value, frozenset(machine.globals), tuple(machine.references), tuple(machine.calls), stream.tell())


class _Machine:
    """The stack, the marks and the memo of a pickle under interpretation."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.position = 0
        self.globals: set[Global] = set()
        self.references: list[Persistent] = []
        self.calls: list[Instance] = []
        self.given = 0  # entries of what calls were given
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # stacks put aside by MARK
        self.memo: dict[int, object] = {}

    def fail(self, problem: str) -> NoReturn:
        raise damaged(f"{self.label}, byte {self.position}", problem)

    def refuse_size(self, problem: str) -> NoReturn:
        raise UnsupportedCheckpointError(
            f"{self.label}, byte {self.position}: the pickle {problem}. Save the weights alone, without other objects."
        )

    def pop(self, name: str) -> object:
        self.need(name)
        return self.stack.pop()

    def need(self, name: str, count: int = 1) -> None:
        if len(self.stack) < count:
            self.fail(f"{name} finds nothing on the stack")

    def pop_mark(self, name: str) -> list[object]:
        if not self.below:
            self.fail(f"{name} finds no mark")
        items = self.stack
        self.stack = self.below.pop()
        return items

    def push_global(self, module: object, name: object) -> Global:
        found = Global(str(module), str(name))
        self.globals.add(found)
        if len(self.globals) > NAME_LIMIT:
            self.refuse_size(f"names more than {NAME_LIMIT} classes and functions")
        return found

    def nothing(self, name: str, argument: Any) -> None:
        pass

    def refuse(self, name: str, argument: Any) -> None:
        self.fail(f"{name} refers to a buffer outside the file")

    def constant(self, name: str, argument: Any) -> None:
        self.stack.append(_CONSTANTS[name])

    def literal(self, name: str, argument: Any) -> None:
        self.stack.append(argument)

    def text_of_python2(self, name: str, argument: Any) -> None:
        """Bytes, given as Latin-1; torch.load takes them for UTF-8. In numpy's arrays they are neither."""
        with suppress(UnicodeDecodeError):
            argument = argument.encode("latin-1").decode()
        self.literal(name, argument)

    def mark(self, name: str, argument: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def discard(self, name: str, argument: Any) -> None:
        if name == "POP" and self.stack:
            self.stack.pop()
        else:  # POP on a mark removes the mark
            self.pop_mark(name)

    def duplicate(self, name: str, argument: Any) -> None:
        self.need(name)
        self.stack.append(self.stack[-1])

    def put(self, name: str, argument: Any) -> None:
        self.need(name)
        index = len(self.memo) if argument is None else argument
        if not 0 <= index <= MEMO_LIMIT:
            self.fail(f"{name} has index {plain(hex(index))}")
        self.memo[index] = self.stack[-1]

    def get(self, name: str, argument: Any) -> None:
        if argument not in self.memo:
            self.fail(f"{name} reads memo entry {plain(hex(argument))}, which was never set")
        self.stack.append(self.memo[argument])

    def empty_list(self, name: str, argument: Any) -> None:
        self.stack.append([])

    def empty_dict(self, name: str, argument: Any) -> None:
        self.stack.append(Dict())

    def marked_list(self, name: str, argument: Any) -> None:
        items = self.pop_mark(name)  # replaces self.stack
        self.stack.append(items)

    def marked_tuple(self, name: str, argument: Any) -> None:
        items = self.pop_mark(name)
        self.stack.append(tuple(items))

    def marked_dict(self, name: str, argument: Any) -> None:
        pairs = self.pairs(name)
        self.stack.append(Dict(pairs))

    def short_tuple(self, name: str, argument: Any) -> None:
        length = int(name[-1])
        self.need(name, length)
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def pairs(self, name: str) -> list[tuple[object, object]]:
        items = self.pop_mark(name)
        if len(items) % 2:
            self.fail(f"{name} finds a key without a value")
        return list(zip(items[::2], items[1::2], strict=True))

    def append(self, name: str, argument: Any) -> None:
        items = [self.pop(name)] if name == "APPEND" else self.pop_mark(name)
        self.need(name)
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Instance):
            target.items.extend(items)
        else:
            self.fail(f"{name} finds no list")

    def set_items(self, name: str, argument: Any) -> None:
        if name == "SETITEM":
            value = self.pop(name)
            pairs = [(self.pop(name), value)]
        else:
            pairs = self.pairs(name)
        self.need(name)
        target = self.stack[-1]
        if not isinstance(target, Dict | Instance):
            self.fail(f"{name} finds no dict")
        target.pairs.extend(pairs)

    def build(self, name: str, argument: Any) -> None:
        state = self.pop(name)
        self.need(name)
        if isinstance(target := self.stack[-1], Instance):  # on anything else, a function say, it means nothing here
            target.states.append(state)
        elif isinstance(target, Dict | list):
            self.fail(f"{name} finds a dict or a list, which have no attributes")

    def name_in_text(self, name: str, argument: Any) -> None:
        self.stack.append(self.push_global(*argument.partition(" ")[::2]))

    def name_on_stack(self, name: str, argument: Any) -> None:
        attribute, module = self.pop(name), self.pop(name)
        if not (isinstance(attribute, str) and isinstance(module, str)):
            self.fail(f"{name} finds no two strings")
        self.stack.append(self.push_global(module, attribute))

    def extension(self, name: str, argument: Any) -> None:
        self.stack.append(self.push_global("copyreg", f"extension {argument}"))

    def call(self, name: str, argument: Any) -> None:
        """REDUCE, NEWOBJ and NEWOBJ_EX: callee and arguments are on the stack."""
        arguments: object = self.pop(name)
        if name == "NEWOBJ_EX":
            arguments = (self.pop(name), arguments)
        callee = self.pop(name)
        self.stack.append(self.called(callee, arguments) if name == "REDUCE" else Instance(callee, arguments))

    def call_marked(self, name: str, argument: Any) -> None:
        """INST names its callee in text; OBJ has it after the mark."""
        items = self.pop_mark(name)
        if name == "INST":
            callee: object = self.push_global(*argument.partition(" ")[::2])
        elif items:
            callee = items.pop(0)
        else:
            self.fail("OBJ finds no class")
        self.stack.append(self.called(callee, tuple(items)))

    def called(self, callee: object, arguments: object) -> Instance:
        """A call with arguments as they are now: what they become later, by the memo, it never sees."""
        made = Instance(callee, tuple(map(self.as_it_is, arguments)) if isinstance(arguments, tuple) else arguments)
        if isinstance(callee, Global) and callee.name in _DICTS and isinstance(made.arguments, tuple):
            made.pairs = self.items(callee.name, *made.arguments)
        self.calls.append(made)
        return made

    def as_it_is(self, item: object) -> object:
        if not isinstance(item, _HOLDING):
            return item
        self.given += len(item.pairs if isinstance(item, Dict) else item)
        if self.given > OPCODE_LIMIT:  # one list may be the argument of a thousand calls
            self.refuse_size(f"gives calls more than {OPCODE_LIMIT} values")
        return Dict([*item.pairs]) if isinstance(item, Dict) else type(item)(item)

    def items(self, name: str, *given: object) -> list[tuple[object, object]]:
        """What an OrderedDict or a Counter begins with: a dict's items or, as Python 2 writes them, a list of pairs."""
        match given:
            case ():
                return []
            case (Dict(pairs=pairs) | Instance(function=Global(name="OrderedDict" | "Counter"), pairs=pairs),):
                return [*pairs] if self.as_it_is(pairs) else []
            case (list() | tuple() as pairs,) if name == "OrderedDict":
                if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                    return [(key, item) for key, item in pairs]
        self.fail(f"{name} is made of what is neither a dict nor a list of pairs")

    def persistent(self, name: str, argument: Any) -> None:
        self.references.append(Persistent(argument if name == "PERSID" else self.pop(name)))
        self.stack.append(self.references[-1])


_HOLDING = (list, tuple, Dict)  # what has entries
_DICTS = ("OrderedDict", "Counter")  # those that torch.load calls
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_Handler = Callable[[_Machine, str, Any], None]
_BY_HANDLER: tuple[tuple[_Handler, str], ...] = (
    (_Machine.nothing, "PROTO FRAME STOP"),
    (_Machine.refuse, "NEXT_BUFFER READONLY_BUFFER"),
    (_Machine.constant, "NONE NEWTRUE NEWFALSE EMPTY_TUPLE"),
    (_Machine.literal, "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING"),
    (_Machine.text_of_python2, "BINSTRING SHORT_BINSTRING"),
    (_Machine.literal, "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"),
    (_Machine.literal, "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"),
    (_Machine.mark, "MARK"),
    (_Machine.discard, "POP POP_MARK"),
    (_Machine.duplicate, "DUP"),
    (_Machine.put, "PUT BINPUT LONG_BINPUT MEMOIZE"),
    (_Machine.get, "GET BINGET LONG_BINGET"),
    (_Machine.empty_list, "EMPTY_LIST EMPTY_SET"),  # a set is kept as a list: its items are never looked at
    (_Machine.empty_dict, "EMPTY_DICT"),
    (_Machine.marked_list, "LIST"),
    (_Machine.marked_tuple, "TUPLE FROZENSET"),
    (_Machine.marked_dict, "DICT"),
    (_Machine.short_tuple, "TUPLE1 TUPLE2 TUPLE3"),
    (_Machine.append, "APPEND APPENDS ADDITEMS"),
    (_Machine.set_items, "SETITEM SETITEMS"),
    (_Machine.build, "BUILD"),
    (_Machine.name_in_text, "GLOBAL"),
    (_Machine.name_on_stack, "STACK_GLOBAL"),
    (_Machine.extension, "EXT1 EXT2 EXT4"),
    (_Machine.call, "REDUCE NEWOBJ NEWOBJ_EX"),
    (_Machine.call_marked, "INST OBJ"),
    (_Machine.persistent, "PERSID BINPERSID"),
)
_OPCODES: dict[str, _Handler] = {name: handler for handler, names in _BY_HANDLER for name in names.split()}
