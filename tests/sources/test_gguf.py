import json
import sys
import types

import pytest

from sae_cli.errors import UserError
from sae_cli.sources import gguf


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_HOME", str(tmp_path))
    return tmp_path


def package_with(content):
    package = types.ModuleType(gguf.PACKAGE)

    def assemble(path):
        path.write_bytes(content)
        return path

    package.assemble = assemble
    return package


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, gguf.PACKAGE, None)
    with pytest.raises(UserError, match=r"pip install 'sae-cli\[gemma\]'"):
        gguf.gemma_folder()


def test_another_file_is_refused_and_nothing_stays(monkeypatch, home):
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    monkeypatch.setitem(sys.modules, gguf.PACKAGE, package_with(b"something else"))
    with pytest.raises(UserError, match="holds another file than expected"):
        gguf.gemma_folder()
    assert list(home.iterdir()) == []


def test_folder_is_built_once_and_appears_whole(monkeypatch, home):
    monkeypatch.setitem(sys.modules, "gguf", types.ModuleType("gguf"))
    monkeypatch.setitem(sys.modules, gguf.PACKAGE, package_with(b"weights"))
    monkeypatch.setattr(gguf, "SHA256", "9b16a3f1")
    monkeypatch.setattr(gguf, "sha256_of", lambda path: "9b16a3f1")
    built = []

    def convert(path, target):
        assert path.read_bytes() == b"weights"
        target.mkdir()
        (target / "config.json").write_text(json.dumps({}))
        built.append(target)

    monkeypatch.setattr(gguf, "_convert", convert)
    folder = gguf.gemma_folder()
    assert gguf.gemma_folder() == folder == home / "gemma3_270m-9b16a3f1"
    assert len(built) == 1
    assert [path.name for path in home.iterdir()] == [folder.name]
    assert (folder / "config.json").is_file()
