"""The rules of docs/architecture.md that a test can hold: who imports what, and how long files are."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sae_cli"
FILES = sorted(PACKAGE.glob("**/*.py"))

ONLY_IN = {
    "hydra": ("config/compose.py", "runs/launch.py"),
    "wandb": ("runs/tracking.py", "runs/publish.py"),
    "fsspec": ("store/remote.py",),
    "transformer_lens": ("sources/language_model.py",),
}
NOT_BELOW = {
    "config": ("sources", "store", "dictionary", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "sparse": ("config", "sources", "store", "dictionary", "losses", "training", "runs", "evaluation", "comparison"),
    "losses": ("sources", "store", "dictionary", "training", "runs", "evaluation", "comparison", "reporting"),
    "dictionary": ("sources", "store", "training", "runs", "evaluation", "comparison", "reporting"),
    "store": ("dictionary", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "sources": ("dictionary", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "interop": ("config", "sources", "store", "losses", "training", "runs", "evaluation", "comparison", "reporting"),
    "training": ("comparison", "dashboard", "reporting"),
    "evaluation": ("training", "comparison", "dashboard", "reporting"),
    "comparison": ("store", "losses", "training", "dashboard", "reporting"),
    "dashboard": ("training", "evaluation"),
    "reporting": (
        "sources",
        "store",
        "dictionary",
        "losses",
        "sparse",
        "training",
        "evaluation",
        "comparison",
        "dashboard",
    ),
}


def imports(file: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_door(library):
    users = {
        str(file.relative_to(PACKAGE)) for file in FILES if any(name.split(".")[0] == library for name in imports(file))
    }
    assert users <= set(ONLY_IN[library])
    assert users


@pytest.mark.parametrize("folder", NOT_BELOW)
def test_imports_go_one_way(folder):
    for file in (PACKAGE / folder).glob("**/*.py"):
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "sae_cli" and len(parts) > 1:
                assert parts[1] not in NOT_BELOW[folder], f"{file.relative_to(PACKAGE)} imports {name}"


def test_reporting_imports_no_torch():
    for file in (PACKAGE / "reporting").glob("**/*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imports(file)), file


def test_no_file_is_longer_than_350_lines():
    assert {file.name: count for file in FILES if (count := len(file.read_text().splitlines())) > 350} == {}


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
"""Modules that run what they read."""
SAFELY = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
    "yaml.load": "Loader=SAFE_LOADER",
    "yaml.parse": "Loader=SAFE_LOADER",
}
"""Readers and the argument without which they could run code."""
CALLED = {
    "importlib.import_module": {"sources/gguf.py"},
    "subprocess.run": {"runs/directory.py", "runs/launch.py", "sparse/compiled.py"},
    "ctypes.CDLL": {"training/allocator.py", "bench/machine.py", "sparse/compiled.py"},
}
"""What starts other code, and who does: git and scontrol, the compiler of our own kernels, the libc, a PyPI package."""
NEVER = {
    *("eval", "exec", "compile", "__import__", "input", "breakpoint", "os.system", "os.popen", "os.execv", "os.spawnv"),
    *("hydra.utils.instantiate", "instantiate", "hydra.utils.call", "yaml.unsafe_load", "yaml.full_load"),
    *("OmegaConf.register_new_resolver", "torch.hub.load", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle"),
    *("subprocess.Popen", "subprocess.call", "subprocess.check_output", "importlib.reload", "zipfile.extractall"),
}


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    """Return the calls of a file by the dotted names as they are written."""
    found = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in found]


def test_nothing_that_is_read_is_run():
    users = defaultdict(set)
    for file in FILES:
        name = str(file.relative_to(PACKAGE))
        assert not {imported.split(".")[0] for imported in imports(file)} & FORBIDDEN, name
        assert "trust_remote_code" not in file.read_text(), name
        for called, node in calls(file):
            given = {ast.unparse(keyword) for keyword in node.keywords}
            assert called not in NEVER, f"{name}:{node.lineno} calls {called}"
            assert called not in SAFELY or SAFELY[called] in given, f"{name}:{node.lineno} needs {SAFELY[called]}"
            assert "shell=True" not in given, f"{name}:{node.lineno} starts a shell"
            users[called].add(name)
    assert {called: users[called] for called in CALLED} == CALLED


def test_pages_put_text_in_as_text():
    templates = [file.read_text() for file in (PACKAGE / "reporting" / "templates").glob("**/*") if file.is_file()]
    assert len(templates) > 5
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "| safe",
        "|safe",
        "eval(",
        "Function(",
    ):
        assert not any(word in template for template in templates), word
