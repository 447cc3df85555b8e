"""Checks what was built: `python tests/distributions.py FOLDER`, with an sdist, its wheel and, in tree/, the tree's.

The sdist and the wheel hold the tracked files of the package and nothing else, both wheels are the same, and the
metadata are sound.
"""

import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

from packaging.metadata import Metadata

ROOT = Path(__file__).parent.parent
PLACES = {"sae_cli/": "sae_cli/", "conf/": "sae_cli/conf/", "sweeps/": "sae_cli/sweeps/"}
BESIDE = ("LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml")
MADE = ("PKG-INFO", "setup.cfg", "sae_cli.egg-info/")
"""What the build adds to an sdist."""


def wheel_content(file: Path) -> dict[str, bytes]:
    """Return every file of a wheel by name."""
    with ZipFile(file) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}


def check(folder: Path) -> str:
    """Return a line about the distributions in `folder`. AssertionError names what is wrong."""
    listed = subprocess.run(["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.split("\n")[:-1]
    (sdist,), (wheel,), (direct,) = (folder.glob(name) for name in ("*.tar.gz", "*.whl", "tree/*.whl"))
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    stored = {name for name in names if not name.startswith(MADE)}
    assert stored == {*tracked, *BESIDE}, f"sdist: {sorted(stored ^ {*tracked, *BESIDE})}"

    content = wheel_content(wheel)
    info = wheel.name.rsplit("-", 3)[0] + ".dist-info/"
    code = {name for name in content if not name.startswith(info)}
    wanted = {PLACES[(top := name.partition("/")[0] + "/")] + name.removeprefix(top) for name in tracked}
    assert code == wanted, f"wheel: {sorted(code ^ wanted)}"
    assert content == wheel_content(direct), "the wheel of the sdist is not that of the tree"

    told = Metadata.from_email(content[f"{info}METADATA"])
    assert told.license_expression == "MIT"
    assert told.license_files == ["LICENSE", "NOTICE"]
    assert {f"{info}licenses/{name}" for name in told.license_files} <= content.keys()
    assert told.description == (ROOT / "README.md").read_text()
    assert told.description_content_type == "text/markdown"
    return f"{wheel.name}: {len(content)} files, {wheel.stat().st_size:,} bytes; {sdist.name}: {len(names)} files"


if __name__ == "__main__":
    print(check(Path(sys.argv[1])))
