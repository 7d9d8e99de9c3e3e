"""How faults of input are told: a value on one line that ends, several faults as one error."""

import reprlib
from collections.abc import Sequence

from ivr_dagster.core.errors import InputError

# more would not be read, and the first ones are what is mended first
MOST_TOLD = 20
_LONGEST_NUMBER_BITS = 128
# of a library's message, which can list all models there are
_MOST_CHARACTERS = 200


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 120, 120
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 8

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out numbers of thousands of digits
        return repr(x) if x.bit_length() <= _LONGEST_NUMBER_BITS else f"a whole number of {x.bit_length():,} bits"


_SHORT = _Short()


def shown(value: object) -> str:
    """A value as Python writes it, on one line, shortened where it is long or deep."""
    return " ".join(_SHORT.repr(value).split("\n"))


def first_words(error: BaseException) -> str:
    """A library's message on one line, cut where it becomes long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rsplit(" ", 1)[0] + " …"


def told_together(faults: Sequence[InputError]) -> InputError:
    """Several faults of a kind as one error that names all their places, `MOST_TOLD` at most; one is left as it is."""
    if len(faults) == 1:
        return faults[0]
    places = {str(fault.where) for fault in faults}
    where = faults[0].where if len(places) == 1 else None
    told = [fault.message if where else f"{fault.where}: {fault.message}" for fault in faults[:MOST_TOLD]]
    more = [f"and {len(faults) - MOST_TOLD} more"] if len(faults) > MOST_TOLD else []
    remedies = dict.fromkeys(fault.remedy for fault in faults if fault.remedy)
    return InputError("; ".join(told + more), where=where, remedy=". ".join(remedies) or None)
