"""Types: what a type checker knows of the package."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import adamw_jax
from adamw_jax import checkpoints, flax, schedules

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_typed_program_has_no_strict_error():
    # As a user's project would check it: none of this one's configuration, no word of
    # what is wrong elsewhere.
    options = ["--strict", "--config-file=", "--follow-imports=silent"]
    cache = "--cache-dir=.mypy_cache/typed_program"
    mypy = [sys.executable, "-m", "mypy", *options, cache, "tests/typed_program.py"]
    done = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def exported():
    """Every exported function and public method by name, as it was written."""
    own = lambda module: {
        name: x
        for name, x in vars(module).items()
        if callable(x) and x.__module__ == module.__name__ and not name.startswith("_")
    }
    names = {name: getattr(adamw_jax, name) for name in adamw_jax.__all__}
    for name, x in (names | own(checkpoints) | own(flax) | own(schedules)).items():
        if not inspect.isclass(x):
            yield name, inspect.unwrap(x)
            continue
        for method, member in vars(x).items():
            member = getattr(member, "fget", getattr(member, "func", member))  # properties
            member = getattr(member, "__func__", member)  # static and class methods
            own_code = inspect.isfunction(member) and member.__module__ == x.__module__
            if own_code and not method.startswith("_"):
                yield f"{name}.{method}", member


def missing(function):
    """The parameters without a type, and "return"."""
    signature = inspect.signature(function)
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    bare += ["return"] * (signature.return_annotation is signature.empty)
    return [name for name in bare if name not in ("self", "cls")]


def test_every_exported_signature_is_annotated():
    bare = {name: missing(function) for name, function in exported() if missing(function)}
    assert not bare
