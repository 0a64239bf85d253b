"""A folder that a static web server shows as a page: pictures classified in the browser.

The page's own files are in web_page/. LiteRT.js, on which it runs, comes from npm in the version
that the lock file there names, and lies in the folder as well: the page asks no other server.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.sidecar import SUFFIX, tflite_description
from deit_tf.files import read_json, write_bytes, write_json

PAGE = Path(__file__).with_name("web_page")
LOCK = ("package.json", "package-lock.json")  # for npm, not for the browser
MODELS_FILE = "models.json"  # names of the models that the page offers
RUNTIME = "litert"  # folder of LiteRT.js in a site
LARGEST_WAIT = 600  # seconds for npm

# What the page loads of LiteRT.js, from node_modules to the site's folder. Of the four builds in
# WASM it is the one for browsers of today and the one for those without relaxed SIMD.
RUNTIME_FILES = {
    "@litertjs/core/package.json": "core/package.json",
    "@litertjs/core/dist/index.js": "core/index.js",
    "@litertjs/wasm-utils/dist/index.js": "wasm-utils/index.js",
    **{
        f"@litertjs/core/wasm/{name}": f"wasm/{name}"
        for build in ("litert_wasm_internal", "litert_wasm_compat_internal")
        for name in (f"{build}.js", f"{build}.wasm")
    },
}


def write_page(folder: Path) -> None:
    """Write the page and LiteRT.js to a folder, all but the models.

    Args:
        folder: Made where missing; an earlier page there is renewed.
    Raises:
        FileExistsError: If it holds something else.
        ExportError: If npm is missing or does not get LiteRT.js.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODELS_FILE).is_file():
        raise FileExistsError(
            f"{folder} holds other files than a page of deit-tf. Choose a new folder for --out."
        )
    runtime = folder / RUNTIME
    if not has_runtime(runtime):
        fetch_runtime(runtime)

    if not (folder / MODELS_FILE).exists():
        write_json([], folder / MODELS_FILE)
    for file in PAGE.iterdir():
        if file.name not in LOCK:
            write_bytes(file.read_bytes(), folder / file.name)


def write_models(folder: Path) -> list[str]:
    """Name the models that lie in a folder for its page; returns the names, sorted."""
    files = [file for file in folder.glob(f"*{SUFFIX}") if tflite_description(file)[0].is_file()]
    names = sorted(file.name for file in files)
    write_json(names, folder / MODELS_FILE)
    return names


def has_runtime(folder: Path) -> bool:
    """Whether a folder holds LiteRT.js, whole, in the version of the lock file."""
    if not all((folder / name).is_file() for name in RUNTIME_FILES.values()):
        return False
    return read_json(folder / "core" / "package.json").get("version") == runtime_version()


def runtime_version() -> str:
    """The version of LiteRT.js that the page is made for."""
    return read_json(PAGE / "package.json")["dependencies"]["@litertjs/core"]


def fetch_runtime(folder: Path) -> None:
    """Write LiteRT.js to a folder, from npm, as the lock file has it.

    Raises:
        ExportError: If npm is missing, or does not get it; `folder` is then not made.
    """
    remedy = f"copy the folder {RUNTIME} of a page made elsewhere to {folder.parent}"
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError(
            f"npm, which fetches LiteRT.js for the page, is not on the PATH. Install Node.js, or "
            f"{remedy}."
        )

    with tempfile.TemporaryDirectory() as temporary:
        for name in LOCK:
            shutil.copyfile(PAGE / name, Path(temporary, name))
        _run_npm(npm, temporary, remedy)

        for source, target in RUNTIME_FILES.items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(Path(temporary, "node_modules", source).read_bytes(), folder / target)


def _run_npm(npm: str, folder: str, remedy: str) -> None:
    """`npm ci` in a folder: what the lock file names, by checksums; no package's scripts run."""
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=LARGEST_WAIT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"npm does not run: {error}. Mend it, or {remedy}.") from error

    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        reason = "; ".join(line.removeprefix("npm error").strip() for line in said[:2])
        raise ExportError(
            f"npm does not get LiteRT.js {runtime_version()}: {reason or done.stderr[-200:]}. "
            f"Check the network, and npm's proxy and registry, or {remedy}."
        )
