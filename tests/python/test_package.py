"""The package: import, types, documentation."""

import importlib.util
import inspect
import pathlib
import subprocess
import sys

import bitnet_toolchain as bt
import pytest
from conftest import ROOT

PACKAGE = pathlib.Path(bt.__file__).parent


def test_the_import_is_light(script):
    code = "import sys, bitnet_toolchain; print([m for m in ('numpy', 'torch', 'ray', 'json', 'typing') if m in sys.modules])"
    assert script(code).stdout.strip() in ("[]", "['typing']")


def test_everything_public_says_what_it_does():
    for name in bt.__all__:
        item = getattr(bt, name)
        if name != "__version__":
            assert inspect.getdoc(item), name
        if inspect.isclass(item):
            for method, value in vars(item).items():
                if not method.startswith("_") and callable(value):
                    assert inspect.getdoc(value), f"{name}.{method}"
    assert "(tokens, vocab_size)" in bt.Model.logits.__doc__
    assert "(rows, cols)" in bt.Checkpoint.ternary.__doc__


def test_the_stub_names_what_the_native_module_has():
    from bitnet_toolchain import _native

    stub = (PACKAGE / "_native.pyi").read_text()
    assert (PACKAGE / "py.typed").exists()
    for name in dir(_native):
        if name.startswith("_") and name != "__version__":
            continue
        item = getattr(_native, name)
        assert f"class {name}:" in stub or f"def {name}(" in stub or f"{name}: " in stub, name
        if inspect.isclass(item):
            body = stub.split(f"class {name}:")[1].split("\nclass ")[0]
            for method in vars(item):
                if not method.startswith("_"):
                    assert f"def {method}(" in body, f"{name}.{method}"


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="skipped: mypy is not installed")
def test_types_are_strict(tmp_path):
    example = tmp_path / "example.py"
    example.write_text(
        "import bitnet_toolchain as bt\n"
        "import bitnet_toolchain.ray\n"
        "report: dict[str, object] = bt.convert('a', 'b', to='gguf-i2_s', progress=lambda done, total: None)\n"
        "model = bt.Model('a', threads=2, kernel='scalar')\n"
        "shape: tuple[int, ...] = model.logits([1, 2]).shape\n"
        "text: str = model.generate('a', max_new_tokens=3)\n"
        "for piece in model.generate([1], stream=True):\n"
        "    text += piece\n"
        "trits, scales = bt.Checkpoint('a').ternary('x')\n"
        "product = trits * scales\n"
        "done = bitnet_toolchain.ray.convert('a', 'b', 'packed')\n"
        "try:\n"
        "    bt.run_job(bt.plan('a', 'b', 'packed'), 0)\n"
        "except bt.BitnetError as error:\n"
        "    hint: str | None = error.hint\n"
    )
    words = ["--strict", "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache")]
    for checked in (["-p", "bitnet_toolchain"], [str(example)]):
        done = subprocess.run(
            [sys.executable, "-m", "mypy", *words, *checked], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import bitnet_toolchain as bt\nbt.Model(3).generate('x', max_new_tokens='4')\n")
    done = subprocess.run([sys.executable, "-m", "mypy", *words, str(wrong)], capture_output=True, text=True)
    assert done.stdout.count("error:") >= 2, done.stdout


def examples(page):
    return [part.split("```")[0] for part in page.read_text().split("```python\n")[1:]]


def test_the_examples_of_the_guide_run(tmp_path, monkeypatch, script):
    """Every example of the guide, in order, in one process; its names are fixtures here."""
    found = examples(ROOT / "formats" / "guides" / "python.md")
    assert len(found) >= 5
    optional = {"ray": "bitnet_toolchain.ray", "torch": "to_torch_state_dict"}
    left = [
        code
        for code in found
        if not any(word in code and importlib.util.find_spec(name) is None for name, word in optional.items())
    ]
    fixtures = ROOT / "tests" / "fixtures"
    (tmp_path / "checkpoint").symlink_to(fixtures / "demo" / "checkpoint")
    (tmp_path / "README.md").write_text("x")
    done = script("\n".join(left), cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_readme_runs(tmp_path, script):
    (code,) = examples(ROOT / "crates" / "bitnet-python" / "README.md")
    (tmp_path / "checkpoint").symlink_to(ROOT / "tests" / "fixtures" / "demo" / "checkpoint")
    done = script(code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("same\n"), done.stderr
