"""Checks a pickle before it is loaded: its operations are read one by one, and none is executed.

Even an unpickler that admits plain data only can be made to run for years, to use all memory, or to overflow the
stack: by a tuple that contains a tuple twice, which contains a tuple twice, … and is hashed as the key of a dict; by
tuples nested a million times; by a huge number of a memo entry; by a call of torch.FloatTensor with a huge number of
elements, which are what was in memory before. Such pickles are refused here.
"""

from pickletools import OpcodeInfo, StackObject, genops, markobject, stackslice
from typing import IO, Any, NamedTuple

DEEPEST, LARGEST = 50, 100_000  # levels of nested tuples; items in a tuple, those of its tuples included
LONGEST = 200  # characters of a text that is kept
MOST_OPERATIONS, MOST_NUMBERS = 1_500_000, 10_000_000  # other operations than numbers; numbers
GLOBALS, CALLS = ("GLOBAL", "STACK_GLOBAL"), ("REDUCE", "NEWOBJ", "NEWOBJ_EX")
HASHED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")  # operations that make a hashable container
NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "NONE", "NEWTRUE", "NEWFALSE"))
MEMO = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
MEMO_GET = ("GET", "BINGET", "LONG_BINGET")
ALLOCATING = ("Tensor", "Storage", "bytearray")  # ends of the names of classes whose call makes one of any size


class Item(NamedTuple):
    """What is known of a value on the unpickler's stack."""

    size: int = 1  # its items, those of its tuples included
    depth: int = 0  # levels of nested tuples
    text: Any = None  # a text, the texts of a tuple's items, or the name of a global
    is_global: bool = False  # a function or class that the pickle names


PLAIN = Item()


class PickleFacts(NamedTuple):
    """What a pickle refers to. storages: keys of torch's storages.  texts: all its short texts."""

    storages: set[Any]
    texts: set[Any]


class PickleCheck:
    """Follows the operations of a pickle with the sizes of its values in place of the values."""

    def __init__(self) -> None:
        self.stack: list[Item | None] = []  # None: a mark
        self.memo: dict[int, Item] = {}
        self.facts = PickleFacts(set(), set())

    def pop(self, kinds: list[StackObject]) -> list[Item]:
        """Removes the operands of an operation from the stack and returns them."""
        found: list[Item] = []
        if stackslice in kinds:
            while self.stack and (item := self.stack.pop()) is not None:
                found.append(item)
            kinds = kinds[: kinds.index(markobject)]
        for _ in kinds:
            item = self.stack.pop() if self.stack else None
            found.append(item or Item())
        return found[::-1]

    def step(self, op: OpcodeInfo, argument: Any, count: int) -> None:
        """Follows one operation. count: operations before it. Raises ValueError for one that no file needs."""
        if op.name in MEMO:
            number = len(self.memo) if op.name == "MEMOIZE" else int(argument)
            if number > count:
                raise ValueError(f"its memo entry {number:,} comes after {count:,} operations")
            self.memo[number] = (self.stack[-1] if self.stack else None) or Item()
            return
        operands = self.pop(op.stack_before)
        if op.name == "BINPERSID":
            if not isinstance(operands[0].text, tuple) or len(operands[0].text) < 3:
                raise ValueError("it refers to something other than a storage")
            self.facts.storages.add(operands[0].text[2])
        if op.name in CALLS:
            if not operands[0].is_global:
                raise ValueError("it calls something other than a function that it names")
            if str(operands[0].text).endswith(ALLOCATING):
                raise ValueError(f"it calls {operands[0].text}")
        for kind in op.stack_after:
            self.stack.append(None if kind is markobject else self.result(op, argument, operands))
        if op.name == "DUP":
            self.stack[-2:] = [operands[0]] * 2

    def result(self, op: OpcodeInfo, argument: Any, operands: list[Item]) -> Item:
        """Returns what is known of the result of an operation. Raises ValueError for a tuple that is too large."""
        if op.name in MEMO_GET:
            return self.memo.get(int(argument), Item())
        if isinstance(argument, str) and len(argument) <= LONGEST and op.name not in ("GLOBAL", "INST"):
            self.facts.texts.add(argument)
            return Item(text=argument)
        if op.name in GLOBALS:  # "module name" in one text, or two texts on the stack
            return Item(text=argument or " ".join(str(item.text) for item in operands), is_global=True)
        if op.name not in HASHED:
            return Item()
        size, depth = 1 + sum(item.size for item in operands), 1 + max((item.depth for item in operands), default=0)
        if size > LARGEST or depth > DEEPEST:
            raise ValueError(f"it contains a tuple of {depth:,} levels with {size:,} items")
        return Item(size, depth, tuple(item.text for item in operands[:5]))


def check_pickle(file: IO[bytes]) -> PickleFacts:
    """Reads the operations of the pickle at the position of `file`, up to its end. Returns what it refers to.

    Raises ValueError for a pickle that is cut short, has unknown operations, or would use up time or memory.
    """
    check, numbers = PickleCheck(), 0
    for count, (op, argument, _) in enumerate(genops(file)):
        if op.name in NUMBERS:
            check.stack.append(PLAIN)
            numbers += 1
        else:
            check.step(op, argument, count)
        if count - numbers > MOST_OPERATIONS or numbers > MOST_NUMBERS:
            raise ValueError(f"it has more than {count:,} operations")
    return check.facts
