"""One line against what a command does not take: the name, the nearest ones, what is allowed."""

import difflib
import re
import sys
import textwrap
from collections.abc import Collection
from typing import NoReturn

MOST_NAMED = 3  # nearest names
MOST_SHOWN = 80  # characters of a value that is refused


def refuse(program: str, message: str) -> NoReturn:
    """End with one line on stderr, and status 2."""
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def refusal(message: str, names: Collection[str]) -> str:
    """What jsonargparse says against an argument, in one line, with the nearest of `names`."""
    text = " ".join(message.split())
    if found := re.search(r"unrecognized arguments:.*? --([^ =]+)", text):
        return f"{text}.{nearest(found[1], names, '--')}"

    # Of a config file.
    if found := re.fullmatch(r"Group '(.+)' does not accept option '(.+)'", text):
        key = ".".join(found.groups())
        return f"there is no setting `{key}`.{nearest(key, names)}"
    if found := re.fullmatch(r"Option '(.+)' is not accepted", text):
        return f"there is no setting `{found[1]}`.{nearest(found[1], names)}"

    if found := _WRONG_TYPE.fullmatch(text):
        types = re.sub(r"typing\.|<class '(\w+)'>", r"\1", found["one"] or found["several"])
        types = re.sub(r"Literal\[(.*?)\]", r"one of \1", types)
        value = textwrap.shorten(found["value"], MOST_SHOWN)
        return f"`{found['key']}` takes {types.replace('NoneType', 'null')}. Received: {value}"
    return text


_WRONG_TYPE = re.compile(
    r'Parser key "(?P<key>[\w.]+)": '
    r"(?:Expected an? (?P<one>.+?)|.* Subtypes: \[(?P<several>.+)\] Errors: .*?)"
    r"\.? (?:Got|Given) value: (?P<value>.*)"
)


def nearest(name: str, names: Collection[str], dashes: str = "") -> str:
    """` Did you mean ...?`, or nothing where no name is near; a last part alone is near."""
    whole = [each for each in names if each.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, names, n=MOST_NAMED)
    near = list(dict.fromkeys([*whole, *close]))[:MOST_NAMED]
    return f" Did you mean {' or '.join(dashes + each for each in near)}?" if near else ""


def printable(text: str) -> str:
    """The text with control characters escaped, so that no file name steers the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
