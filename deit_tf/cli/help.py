"""The pages of `--help`: of a command's settings the most used, one group, or all.

They come from the docstrings of config/.
"""

import argparse
import textwrap
from types import FunctionType
from typing import Literal, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from deit_tf.cli.refusals import nearest, refuse
from deit_tf.config import TrainConfig

STUDENT_SETTINGS = (
    "data.source",
    "data.batch_size",
    "model.name",
    "model.image_size",
    "model.weights",
    "augment.recipe",
    "optim.lr",
    "distill.teacher",
    "epochs",
    "out",
)
TEACHER_SETTINGS = (
    "data.source",
    "data.batch_size",
    "teacher.name",
    "teacher.image_size",
    "teacher.weights",
    "teacher.augment.recipe",
    "teacher.optim.lr",
    "teacher.epochs",
    "precision",
    "out",
)
RUN_GROUP = "run"  # the settings that stand in no group
WIDTH = 80  # of the text above and the lists below the options


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's, without what tells nothing: that text is a str, a function of ours as a type,
    choices twice, that a flag is off.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        if not action.option_strings:
            return text.removesuffix(" (required)")
        is_optional = action.default is None and self._get_type_str(action) is None
        if action.nargs == 0 or is_optional:
            return text.removesuffix(" (default: %(default)s)")
        return text

    def _get_type_str(self, action: argparse.Action) -> str | None:
        kind = getattr(action, "_typehint", action.type)
        is_told = kind in (str, str | None) or get_origin(kind) is Literal
        if is_told or isinstance(kind, FunctionType):
            return None
        return super()._get_type_str(action)


def setting_groups(parser: ArgumentParser) -> dict[str, list[str]]:
    """The settings that a command takes by group, such as `teacher.optim`; none of most commands.

    Those in no group are `RUN_GROUP`.
    """
    groups: dict[str, list[str]] = {}
    for action in parser._actions:
        group, _, name = action.dest.rpartition(".")
        groups.setdefault(group, []).append(name)

    own = groups.pop("")
    if not groups:
        return {}
    groups = {
        group: [name for name in names if f"{group}.{name}" not in groups]
        for group, names in groups.items()
    }
    run = [name for name in TrainConfig.__dataclass_fields__ if name in own and name not in groups]

    return {RUN_GROUP: run} | groups


def show_help(parser: ArgumentParser, command: str, group: str | None) -> None:
    """Print the help of a command: of its settings the most used, those of a group, or `all`."""
    groups = setting_groups(parser)
    if groups and group != "all":
        if group not in (None, *groups):
            refuse(parser.prog, f"there is no group {group!r}.{nearest(group, groups)}")
        _hide_settings(parser, command, group, groups)
        parser.usage = f"{parser.prog} [--config FILE] [--SETTING VALUE ...]"
        parser.epilog = (
            f"All settings by group; `{parser.prog} --help GROUP` explains one:\n"
            + listed({name: _names(name, groups) for name in groups} | {"all": "every group"})
        )
    parser.print_help()


def _hide_settings(
    parser: ArgumentParser, command: str, group: str | None, groups: dict[str, list[str]]
) -> None:
    """Leave the most used settings in the help, and the command's own options; or one group."""
    if group is None:
        shown = TEACHER_SETTINGS if command == "train-teacher" else STUDENT_SETTINGS
    elif group == RUN_GROUP:
        shown = groups[RUN_GROUP]
    else:
        shown = [group, *(f"{group}.{name}" for name in groups[group])]

    of_settings = {"print_config", *groups, *groups[RUN_GROUP]}
    for action in parser._actions:
        is_setting = "." in action.dest or action.dest in of_settings
        if action.dest not in shown and (is_setting or group is not None):
            action.help = argparse.SUPPRESS


def _names(group: str, groups: dict[str, list[str]]) -> str:
    """The settings of a group, or that they are those of another, as `teacher.optim` has them."""
    other = group.rpartition(".")[2]
    same = other != group and groups.get(other) == groups[group]
    return f"as {other}" if same else ", ".join(groups[group])


def listed(texts: dict[str, str]) -> str:
    """One indented paragraph per name."""
    indent = 2 + max(map(len, texts)) + 2
    lines = []
    for name, text in texts.items():
        start = f"  {name}".ljust(indent)
        lines.append(
            textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * indent)
        )
    return "\n".join(lines)
