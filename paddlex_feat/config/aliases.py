"""Former names of configuration keys and of their values; they keep working, with a notice."""

from __future__ import annotations

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

    Attributes:
        notices: one sentence for each former name, for the log.
        problems: one line for each key that is given under both names.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.problems: list[str] = []
        self._former: dict[str, str] = {}  # key -> the former name under which it was given
        self._given: set[str] = set()  # keys given under their present names

    def key(self, dotted: str, where: str = "") -> str:
        """The present name of a key; notes a former one."""
        name = current_key(dotted)
        if name == dotted:
            if name in KEYS.values():
                self._given.add(name)
        elif name not in self._former:
            self._former[name] = dotted
            self.notices.append(f"{dotted}{where} is now called {name}; the former name still works.")
        if name in self._former and name in self._given:
            problem = f"{self._former[name]}{where}: is the former name of {name}, which is given too; leave it out"
            self.problems += [problem] if problem not in self.problems else []
        return name

    def value(self, dotted: str, value: Any, where: str = "") -> Any:
        """A key's value, or a section's, with present names inside; notes the former ones."""
        if isinstance(value, dict):
            return self._section(dotted, value, where)
        name = VALUES.get(dotted, {}).get(value) if isinstance(value, str) else None
        if name is None:
            return value
        self.notices.append(f"{dotted}{where}: {value} is now called {name}; the former name still works.")
        return name

    def _section(self, dotted: str, section: dict[Any, Any], where: str) -> dict[Any, Any]:
        renamed: dict[Any, Any] = {}
        prefix = f"{dotted}." if dotted else ""
        for name, value in section.items():
            if not isinstance(name, str):
                renamed[name] = value
                continue
            key = self.key(prefix + name, where)
            renamed[key.removeprefix(prefix)] = self.value(key, value, where)
        return renamed
