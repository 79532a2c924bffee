"""The package's source holds nothing that would execute what a file says."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "latentgen"
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "runpy",
    "imp",
    "code",
    "codeop",
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {"import_module", "exec_module", "load_module", "literal_load", "unsafe_load", "hub_load"}
ALLOWED = {
    ("__init__.py", "import_module"): "lazy names of the package itself, from a table",
    ("training/__init__.py", "import_module"): "the same",
    ("weights/pickles.py", "load"): "torch's weights-only reader, for latentgen convert",
}
"""Where such a thing may stand, and why."""


def findings(path):
    name, tree = path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    # A library's own loader follows what a folder's settings say.
    strangers = {"transformers", "tokenizers", "accelerate"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in strangers:
            strangers = strangers | {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module] if (node.module or "").split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found = [node.func.id] if node.func.id in CALLS | METHODS else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            reads = owner.split(".")[0] in {"torch", "np", "numpy"} and node.func.attr == "load"
            theirs = node.func.attr == "from_pretrained" and owner.split(".")[0] in strangers
            found = [node.func.attr] if reads or theirs or node.func.attr in METHODS else []
        else:
            found = []
        for what in found:
            if (name, what) not in ALLOWED:
                yield f"{name}:{node.lineno}: {what}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_nothing_is_unpickled_evaluated_or_imported_by_name(path):
    assert list(findings(path)) == []


def test_the_weights_only_reader_is_asked_to_be_that():
    tree = ast.parse((SOURCE / "weights" / "pickles.py").read_text(encoding="utf-8"))
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "load"]
    assert len(loads) == 1
    words = {word.arg: word.value for word in loads[0].keywords}
    assert isinstance(words["weights_only"], ast.Constant)
    assert words["weights_only"].value is True


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load('x')",
        "torch.jit.load('x')",
        "numpy.load('x', allow_pickle=True)",
        "importlib.import_module(n)",
        "from transformers import CLIPTokenizer as T\nT.from_pretrained('x')",
        "import transformers\ntransformers.AutoModel.from_pretrained('x')",
    ],
)
def test_it_would_be_seen(tmp_path, monkeypatch, code):
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    (tmp_path / "m.py").write_text(code)
    assert len(list(findings(tmp_path / "m.py"))) == 1
