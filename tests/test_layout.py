"""How the package is laid out: layers, sizes, and what an import brings along."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import adamw_jax

ROOT = Path(adamw_jax.__file__).parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}

# Each module imports only from floors below its own; a folder is one floor.
ORDER = [
    "core/",  # what an expression is
    "domains.py",  # of core, for the pieces of others
    "schedules.py",
    "pieces/",
    "optimizers/",
    "telemetry/",
    "state/",
    "inspect/",
    "flax.py",
    "checkpoints.py",
    "__init__.py",
    "__main__.py",
    "ablation/",  # uses the package as its users do
]

each_module = pytest.mark.parametrize("module", SOURCES)


def layer(module):
    """The place of a module, such as "optimizers/adam.py", in the order."""
    folder = module.split("/")[0] + "/"
    name = folder if "/" in module else module
    assert name in ORDER, f"{module} has no place in the order of layers: give it one"
    return ORDER.index(name)


def named(dotted):
    """The file of a module `adamw_jax.x.y`, or None if that is no module."""
    path = "/".join(dotted.split(".")[1:])
    return next(
        (f for f in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if f in SOURCES), None
    )


def imports(tree):
    """Dotted names a module imports, those inside functions included; `from a import b`
    gives "a" and "a.b", of which the second need not be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            yield from ((f"{node.module}.{alias.name}", node.module) for alias in node.names)


def imported(module):
    """The files of the package that one of its files imports."""
    for names in imports(SOURCES[module]):
        if names[0].split(".")[0] == "adamw_jax":
            yield next(filter(None, map(named, names)))


def length(node):
    """Lines of a function or class, those of its docstring not counted."""
    first = node.body[0]
    doc = ast.get_docstring(node) is not None
    return node.end_lineno - node.lineno + 1 - doc * (first.end_lineno - first.lineno + 1)


@each_module
def test_imports_only_what_stands_before_it(module):
    for other in imported(module):
        # within a folder the order is free, as long as it is one
        assert layer(other) < layer(module) or other.split("/")[0] == module.split("/")[0]


def test_no_cycles():
    graph = {module: set(imported(module)) for module in SOURCES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(SOURCES)


def test_the_order_knows_every_module():
    assert len(SOURCES) > 10
    for module in SOURCES:
        layer(module)
    with pytest.raises(AssertionError, match="no place"):
        layer("helpers.py")
    with pytest.raises(AssertionError, match="no place"):
        layer("helpers/adam.py")


def test_imports_are_seen():
    # the two forms, function-level ones, a module and a name in a module
    tree = ast.parse("import jax.numpy\ndef f():\n  from adamw_jax.core import trees, adamw")
    assert list(imports(tree)) == [
        ("jax.numpy",),
        ("adamw_jax.core.trees", "adamw_jax.core"),
        ("adamw_jax.core.adamw", "adamw_jax.core"),
    ]
    assert named("adamw_jax.core.trees") == "core/trees.py"
    assert named("adamw_jax.optimizers.adam") == "optimizers/adam.py"
    assert named("adamw_jax.optimizers") == "optimizers/__init__.py"
    assert named("adamw_jax") == "__init__.py"
    assert named("adamw_jax.adamw") is None
    below = {"pieces/scaling.py", "pieces/moments.py", "core/combinators.py"}
    assert set(imported("optimizers/rmsprop.py")) >= below


def test_no_module_stands_where_a_public_name_does():
    modules = {file.split("/")[0].removesuffix(".py") for file in SOURCES}
    assert not modules & set(adamw_jax.__all__)


@each_module
def test_no_factory_is_asked_who_it_is(module):
    """A reading that knows a factory by name knows no stranger's; only the module that defines
    one may."""
    defined = {n.name for n in SOURCES[module].body if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot | ast.In):
            sides = [ast.unparse(x) for x in (node.left, *node.comparators)]
            alike = all(side.endswith(".factory") for side in sides)  # of two expressions
            asked = sides[0].endswith("factory") and not alike
            whom = {n.id for x in node.comparators for n in ast.walk(x) if isinstance(n, ast.Name)}
            assert not asked or whom <= defined, ast.unparse(node)


@each_module
def test_nothing_private_is_imported(module):
    for names in imports(SOURCES[module]):
        top, *rest = names[0].split(".")
        if top in ("jax", "jaxlib", "optax", "flax", "chex", "orbax"):
            assert not any(part.startswith("_") for part in rest), names[0]


@each_module
def test_nothing_private_is_used(module):
    # what is private can be reached from a public module without an import
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Attribute):
            assert node.attr != "_src", ast.unparse(node)


@each_module
def test_functions_are_short(module):
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert length(node) <= 40, f"{node.name}, line {node.lineno}"


def test_length_leaves_out_the_docstring():
    (function,) = ast.parse('def f():\n  """One.\n\n  Two."""\n  x = 1\n\n  return x').body
    assert length(function) == 4


def test_import_brings_only_jax_and_optax():
    heavy = {"flax", "chex", "matplotlib", "sklearn", "rich", "orbax"}
    code = "import sys, adamw_jax; print(*{name.split('.')[0] for name in sys.modules})"
    path = str(ROOT.parent)
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(run.stdout.split())
    assert {"adamw_jax", "jax", "optax"} <= loaded
    assert not heavy & loaded


@pytest.mark.parametrize("name", adamw_jax.__all__)
def test_public_names_are_documented(name):
    doc = getattr(adamw_jax, name).__doc__
    assert doc, name
    assert doc.split("\n\n")[0].strip()[-1] in ".:", "the first paragraph is a sentence"


def test_public_names_are_all():
    # what is imported is public, and the other way round; submodules come as attributes
    imported_names = {
        alias.asname or alias.name
        for node in SOURCES["__init__.py"].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported_names == set(adamw_jax.__all__)
    assert sorted(adamw_jax.__all__) == adamw_jax.__all__
