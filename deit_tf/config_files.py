"""Config files: YAML, with bounds on what a small file can stand for.

Ten lines of aliases can stand for more values than memory holds, and brackets within brackets
overflow the parser's stack.
"""

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MAX_VALUES = 10_000  # every alias replaced by what it stands for; a whole config has about 150
MAX_DEPTH = 50

# Of ArgumentParser, `parser_mode=BOUNDED_YAML`: other parsers in the process stay as they are.
BOUNDED_YAML = "bounded-yaml"

Part = tuple[str | None, int]  # an anchor, and how many values it holds, itself included


def check_yaml(text: str) -> None:
    """Refuse YAML that stands for too much, before anything is built from it.

    Raises:
        yaml.YAMLError: If `text` is no YAML; if it holds more than `MAX_VALUES` values with its
            aliases replaced, or nests deeper than `MAX_DEPTH`, or an alias stands within itself.
    """
    anchors: dict[str | None, int] = {}  # values that each stands for
    open_parts: list[Part] = [(None, 0)]

    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((event.anchor, 1))
        elif part := _finished_part(event, open_parts, anchors):
            anchor, values = part
            anchors[anchor] = values
            outer, before = open_parts.pop()
            open_parts.append((outer, before + values))

        if len(open_parts) > MAX_DEPTH:
            raise yaml.YAMLError(f"a config nests at most {MAX_DEPTH} levels deep")
        if open_parts[-1][1] > MAX_VALUES:
            raise yaml.YAMLError(f"a config holds at most {MAX_VALUES} values, aliases replaced")


def _finished_part(
    event: yaml.Event, open_parts: list[Part], anchors: dict[str | None, int]
) -> Part | None:
    """The part of a file that an event ends, if it ends one."""
    if isinstance(event, yaml.CollectionEndEvent):
        return open_parts.pop()
    if isinstance(event, yaml.ScalarEvent):
        return event.anchor, 1
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in anchors:
            raise yaml.YAMLError(
                f"the alias *{event.anchor} stands for nothing that ends before it"
            )
        return None, anchors[event.anchor]
    return None


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _load(text: str) -> Any:
    check_yaml(text)
    return get_loader("yaml")(text)


set_loader(BOUNDED_YAML, _load, (yaml.YAMLError,))
