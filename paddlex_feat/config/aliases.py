"""Former names of configuration keys and of their values; they keep working, with a notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Former key -> key. Both are dotted, of the same section.
KEYS = {
    "Train.augment.area": "Train.augment.scale",
    "Train.augment.aspect": "Train.augment.ratio",
    "Train.augment.rand_augment.ops": "Train.augment.rand_augment.num_ops",
    "Train.accumulate": "Train.accumulate_steps",
    "Train.clip_norm": "Train.max_grad_norm",
    "Train.keep_last": "Train.keep_checkpoints",
    "Train.save_minutes": "Train.save_interval_minutes",
    "Predict.save": "Predict.save_format",
    "Evaluate.exclude_own": "Evaluate.exclude_self",
}
# Key -> former value -> value.
VALUES = {"Train.augment.crop": {"padded": "pad_crop", "area": "random_resized_crop"}}


def current_key(dotted: str) -> str:
    """The present name of a dotted key."""
    return KEYS.get(dotted, dotted)


class Renamer:
    """Replaces former names in what one source gives, a file or the assignments of `-o`.

    Args:
        source: the file, or "-o".
        place: dotted key as it is given -> where, in brackets after a space.

    Attributes:
        problems: one line for each key that is given under both names.
        former: key -> the former name under which it was given.
    """

    def __init__(self, source: str, place: Callable[[str], str]):
        self.problems: list[str] = []
        self.former: dict[str, str] = {}
        self._source, self._place = source, place
        self._values: list[str] = []  # former values, each with the present one
        self._given: set[str] = set()  # keys given under their present names

    @property
    def notices(self) -> list[str]:
        """One sentence for the log that lists the former names, or none."""
        names = [f"{former} (now {name})" for name, former in self.former.items()] + self._values
        kinds = " and ".join(kind for kind, given in (("keys", self.former), ("values", self._values)) if given)
        return [f"{self._source}: former names of {kinds}, which still work: {', '.join(names)}."] if names else []

    def key(self, dotted: str) -> str:
        """The present name of a key; notes a former one."""
        name = current_key(dotted)
        if name == dotted:
            if name in KEYS.values():
                self._given.add(name)
        else:
            self.former.setdefault(name, dotted)
        if name in self.former and name in self._given:
            former = self.former[name]
            problem = f"{former}{self._place(former)}: is the former name of {name}, which is given too; leave it out"
            self.problems += [problem] if problem not in self.problems else []
        return name

    def value(self, dotted: str, value: Any) -> Any:
        """A key's value, or a section's, with present names inside; notes the former ones."""
        if isinstance(value, dict):
            return self._section(dotted, value)
        name = VALUES.get(dotted, {}).get(value) if isinstance(value, str) else None
        if name is None:
            return value
        row = f"{dotted}={value} (now {name})"
        self._values += [row] if row not in self._values else []
        return name

    def _section(self, dotted: str, section: dict[Any, Any]) -> dict[Any, Any]:
        renamed: dict[Any, Any] = {}
        prefix = f"{dotted}." if dotted else ""
        for name, value in section.items():
            if not isinstance(name, str):
                renamed[name] = value
                continue
            key = self.key(prefix + name)
            renamed[key.removeprefix(prefix)] = self.value(key, value)
        return renamed
