"""What the pages say is what the code does."""

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from absl.testing import flagsaver
from zoo import ROWS

import adamw_jax
from adamw_jax import __main__ as command

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ALGEBRA = ROOT / "docs" / "algebra.md"
INSIGHT = ROOT / "docs" / "insight.md"
FLOW = ROOT / "docs" / "flow.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [README, CONTRIBUTING, CHANGELOG, *sorted((ROOT / "docs").glob("*.md"))]
STATE = ROOT / "docs" / "state.md"
SCALING = ROOT / "docs" / "scaling.md"
FLAX = ROOT / "docs" / "flax.md"
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def code_blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def standard_promotion():
    """For code of Optax and Flax, which leaves dtypes to JAX."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_the_algebra_page_holds_the_expressions_of_the_code():
    assert TABLES["block"](ALGEBRA, "expressions") == TABLES["expressions"]()


def test_the_written_expressions_evaluate_to_the_optimizers():
    names = vars(adamw_jax)
    calls = re.findall(r"^.*, `(.*)`:$", TABLES["block"](ALGEBRA, "expressions"), re.MULTILINE)
    for call, written in zip(calls, code_blocks(ALGEBRA, "python"), strict=True):
        assert eval(written, dict(names)) == adamw_jax.expand(eval(call, dict(names)))


def test_every_optimizer_is_written_out():
    written = {tx.factory.__name__ for tx in TABLES["OPTIMIZERS"].values()}
    assert written == {row.make.__name__ for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.make.__name__)
def test_every_optimizer_tells_its_arguments_an_example_and_its_source(row):
    """What CONTRIBUTING.md asks for; the examples are run as doctests."""
    page = row.make.__doc__
    assert all(part in page for part in ("    Args:\n", "      >>> ", "    Reference: "))


def test_every_public_function_has_an_example():
    public = {name: getattr(adamw_jax, name) for name in adamw_jax.__all__}
    functions = {k: f for k, f in public.items() if callable(f) and not isinstance(f, type)}
    assert len(functions) > 100
    assert [name for name, f in functions.items() if "      >>> " not in f.__doc__] == []


def test_every_name_in_the_algebra_tables_exists():
    rows = re.findall(r"^\| `(\w+)\(", ALGEBRA.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 20
    assert set(rows) <= set(adamw_jax.__all__)


def test_readme_programs_run(standard_promotion):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.float32)
    labels = jnp.arange(8) % 10
    names = {"images": images, "labels": labels, "batches": [(images, labels)] * 3}
    for program in code_blocks(README, "python"):
        exec(program, names)
    assert names["loss"] < 10
    assert names["sweep"].shape == (3,)


def test_the_programs_about_state_run(standard_promotion, capsys):
    names = {}
    for program in code_blocks(STATE, "python"):
        exec(program, names)
    printed = capsys.readouterr().out.splitlines()
    (shown,) = code_blocks(STATE, "text")
    lines = [line for line in shown.splitlines() if line != "..."]
    assert lines
    assert set(lines) <= set(printed)


@pytest.mark.parametrize("page", [README, FLOW, CONTRIBUTING, INSIGHT], ids=lambda page: page.name)
def test_sessions_print_what_they_say(page, standard_promotion):
    session = "\n".join(code_blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(session, {}, page.stem, str(page), 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted
    assert not result.failed


def test_the_commands_of_the_insight_page_run(capsys):
    lines = "".join(code_blocks(INSIGHT, "sh")).splitlines()
    for line in lines:
        with flagsaver.flagsaver():
            assert command.run(flags.FLAGS(shlex.split(line))) == ("lint" in line)
        assert capsys.readouterr().out
    assert {shlex.split(line)[1] for line in lines} == set(command.COMMANDS)


def test_the_programs_of_the_page_on_many_devices_run(standard_promotion, capsys):
    names = {}
    for program in code_blocks(SCALING, "python"):
        exec(program, names)
    assert names["on_each"] < 8 * (64 * 256 * 2 + 3) / 7
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(line.endswith("of gain no axis of (3,) is divisible by 4") for line in said)


def test_the_programs_of_the_flax_page_run(standard_promotion, tmp_path):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.float32)
    labels = jnp.arange(8) % 10
    names = {"batches": [(images, labels)] * 3, "directory": tmp_path / "run"}
    seen = []
    for program in code_blocks(FLAX, "python"):
        exec(program, names)
        seen.append(float(names["loss"]))
    assert len(seen) == len(set(seen)) == 4  # every program trains
    assert all(loss < 10 for loss in seen)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"2", "3"}


MIGRATIONS = re.findall(r"^\| `(optax\..*)` \| `(.*)` \|$", README.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("theirs", "ours"), MIGRATIONS)
def test_both_columns_of_the_migration_table_agree(theirs, ours, standard_promotion, x64):
    rng = np.random.default_rng(0)
    draw = lambda: {"a": jnp.asarray(rng.normal(size=3)), "b": jnp.asarray(rng.normal())}
    names = {"lr": 0.01, "mask": {"a": True, "b": False}}
    left, right = eval(theirs, {"optax": optax} | names), eval(ours, vars(adamw_jax) | names)
    params = draw()
    left_state, right_state = left.init(params), right.init(params)
    for _ in range(3):
        grads = draw()
        left_update, left_state = left.update(grads, left_state, params)
        right_update, right_state = right.update(grads, right_state, params)
        chex.assert_trees_all_close(
            left_update, right_update, rtol=1e-6
        )  # Optax's schedules are float32
        params = optax.apply_updates(params, left_update)


def test_the_readme_shows_the_benchmarks_last_written():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert TABLES["block"](README, "benchmarks") == page.strip()


def test_the_insight_page_shows_the_benchmarks_last_written():
    page = (ROOT / "docs" / "benchmarks_telemetry.md").read_text(encoding="utf-8")
    assert TABLES["block"](INSIGHT, "telemetry") == page.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    """`adamw_jax/...`, `tests/...`, and modules by their dotted names."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:adamw_jax|tests|docs|benchmarks|examples)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:core|inspect|state|pieces)/[\w/]+\.py)`", text):
        assert (ROOT / "adamw_jax" / name).exists(), name
    for name in re.findall(r"`(adamw_jax\.[\w.]+)`", text):
        assert pkgutil.resolve_name(name), name


def test_the_changelog_says_where_modules_have_gone():
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", CHANGELOG.read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 50
    for _, now in rows:
        for name in re.findall(r"`([\w.]+)`", now):
            assert hasattr(adamw_jax, name) or importlib.import_module(f"adamw_jax.{name}"), name


def test_the_picture_shows_the_floors_as_they_are():
    """If not, `python docs/floors.py` draws it again."""
    floors = runpy.run_path(str(ROOT / "docs" / "floors.py"))
    assert floors["PICTURE"].read_text(encoding="utf-8") == floors["svg"]()
    storeys = [[room.name for room in storey] for storey in floors["floors"](floors["rooms"]())]
    assert storeys[0] == ["core"]
    height = {name: i for i, storey in enumerate(storeys) for name in storey}
    for upper, lower in floors["steps"](floors["rooms"]()):
        assert height[upper] > height[lower]
