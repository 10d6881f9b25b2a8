"""Makes the wheel: the package, and the shared library in it.

A build backend (PEP 517) on the standard library. setuptools would have to be fetched, and would have to be
talked out of both believing that the package is pure and compiling an extension for one version of Python.

The library is the file that the environment variable MIDDLECON_LIBRARY names, else cargo builds it.
"""

import base64
import hashlib
import json
import os
import subprocess
import sysconfig
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME, VERSION = "middlecon", "0.1.0"
INFO = f"{NAME}-{VERSION}.dist-info"
METADATA = f"""Metadata-Version: 2.1
Name: {NAME}
Version: {VERSION}
Summary: Synchronous calls by name that tell the truth about their outcome
License: MIT OR Apache-2.0
Requires-Python: >=3.9
"""


def _library() -> Path:
    """The shared library, built if nobody names one."""
    named = os.environ.get("MIDDLECON_LIBRARY")
    if named:
        path = Path(named)
        if not path.is_file():
            raise SystemExit(f"MIDDLECON_LIBRARY names {named}, which is no file")
        return path
    command = ["cargo", "build", "--release", "--locked", "-p", "kumo-ffi"]
    command += ["--message-format", "json-render-diagnostics"]
    try:
        built = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise SystemExit(
            "cargo is missing: get Rust from https://rustup.rs, or name a built libmiddlecon.so "
            "with MIDDLECON_LIBRARY"
        ) from None
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "middlecon_c":
            for name in message.get("filenames", []):
                if name.endswith(".so"):
                    return Path(name)
    raise SystemExit("cargo built no shared library")


def _write(directory: str, tag: str, files: "dict[str, bytes]") -> str:
    wheel = f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files = {**files, f"{INFO}/METADATA": METADATA.encode(), f"{INFO}/WHEEL": wheel.encode()}
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{INFO}/RECORD"] = (record + f"{INFO}/RECORD,,\n").encode()
    file = f"{NAME}-{VERSION}-{tag}.whl"
    with zipfile.ZipFile(Path(directory) / file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return file


def _tag() -> str:
    return "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """The package and the library."""
    package = HERE / NAME
    sources = [*sorted(package.glob("*.py")), package / "py.typed"]
    files = {f"{NAME}/{path.name}": path.read_bytes() for path in sources}
    files[f"{NAME}/libmiddlecon.so"] = _library().read_bytes()
    return _write(wheel_directory, _tag(), files)


def build_sdist(sdist_directory, config_settings=None):
    """Not made: the library's sources are the repository."""
    raise SystemExit("there is no source archive; install from a checkout: pip install ./python")
