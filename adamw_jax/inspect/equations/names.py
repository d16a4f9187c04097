"""Names: what the variables of an update rule are called."""

from collections.abc import Iterable
from typing import NamedTuple


class _Variable(NamedTuple):
    base: str
    path: tuple[str, ...]
    parent: str | None


class Variables:
    """Variables by ids, which hold a dot and so are no names; names are found at the end.

    A name that is wanted once is given as it is.  Where it is wanted twice, the
    slots in which the two stand tell them apart, or else a number does.
    """

    def __init__(self):
        self._made: dict[str, _Variable] = {}

    def new(self, base: str, path: tuple[str, ...] = (), parent: str | None = None) -> str:
        """The id of a new variable `base`, or `parent_base` if it is named after another."""
        uid = f"{base}.{len(self._made)}"
        self._made[uid] = _Variable(base, path, parent)
        return uid

    def resolve(self, used: Iterable[str]) -> dict[str, str]:
        """The name of every variable that is used."""
        used = set(used)
        wanted = {uid for uid in self._made if uid in used or self._is_parent(uid, used)}
        taken = {name for name in used if name not in self._made}
        roots = [uid for uid in self._made if uid in wanted and not self._made[uid].parent]
        names: dict[str, str] = {}
        for uid in roots:
            base = self._made[uid].base
            alike = [other for other in roots if self._made[other].base == base]
            ending = self._ending(uid, alike)
            names[uid] = _free(f"{base}_{ending}" if ending else base, taken)
            taken.add(names[uid])
        for uid, (base, _, parent) in self._made.items():
            if uid in wanted and parent:
                names[uid] = _free(f"{names.get(parent, parent)}_{base}", taken)
                taken.add(names[uid])
        return names

    def _is_parent(self, uid: str, used: set[str]) -> bool:
        children = [child for child, made in self._made.items() if made.parent == uid]
        return any(child in used or self._is_parent(child, used) for child in children)

    def _ending(self, uid: str, alike: list[str]) -> str:
        """What tells a variable from others of its name."""
        if len(alike) == 1:
            return ""
        paths = [self._made[other].path for other in alike]
        for depth in range(max(map(len, paths))):
            slots = [path[depth] if depth < len(path) else "" for path in paths]
            if len(set(slots)) == len(slots) and all(s.isidentifier() for s in slots):
                return slots[alike.index(uid)]
        return str(alike.index(uid) + 1)


def _free(name: str, taken: set[str]) -> str:
    """The name, or the first of name_2, name_3, ... that is not taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found
