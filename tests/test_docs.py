"""What the pages say is what the code does."""

import doctest
import re
import runpy
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import ROWS

import adamw_jax

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ALGEBRA = ROOT / "docs" / "algebra.md"
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


def test_readme_sessions_print_what_they_say():
    session = "\n".join(code_blocks(README, "pycon"))
    test = doctest.DocTestParser().get_doctest(session, {}, "README", str(README), 0)
    assert doctest.DocTestRunner().run(test).failed == 0


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


@pytest.mark.parametrize("page", [README, ALGEBRA, FLAX], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
