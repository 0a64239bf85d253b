"""Arguments that name a run on an object store: commands read a copy of it here."""

from jsonargparse import Namespace

from deit_tf.object_store import is_url

READ = ("path", "run", "runs")  # arguments that name a run folder, or several


def with_local_runs(arguments: Namespace) -> Namespace:
    """The arguments, with a copy here in place of each run folder on a store.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If something other than a run is to be written to a store.
    """
    is_setting = "optim" in arguments  # there `out` is the run, of which the command reads or not
    for name in ("file",) if is_setting else ("file", "out"):
        if is_url(arguments.get(name) or ""):
            raise ValueError(
                f"`--{name}` is written on this machine: choose a path here, and copy it to the "
                f"store afterwards. Runs alone are kept there. Received: {arguments[name]}"
            )

    for name in READ:
        given = arguments.get(name)
        if isinstance(given, list):
            arguments[name] = [_local(path) for path in given]
        elif isinstance(given, str):
            arguments[name] = _local(given)
    return arguments


def _local(path: str) -> str:
    if not is_url(path):
        return path
    from deit_tf.runs import local_copy  # brings TensorFlow

    return local_copy(path)
