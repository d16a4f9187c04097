# make demo    train AdamW with pieces swapped on real digits; report to out/
# make test    format, lint, types, tests
# make bench   measure speed and accuracy against Optax
# make cost    compile every optimizer for TPUs that are not there; table to docs/
# make readme  put the tables of the last demo and benchmark into README.md
# make clean   remove everything made here
#
# The first run installs into .venv and needs Python 3.11 or later; name an
# interpreter with `make demo PYTHON=python3.12`.

PYTHON ?=

demo: .venv/has-examples
	@.venv/bin/python -m adamw_jax.ablation

test: lint
	@.venv/bin/python -m pytest -n auto --dist worksteal

lint: .venv/has-test
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

bench: .venv/has-test
	@.venv/bin/python -m benchmarks
	@.venv/bin/python -m benchmarks.zoo

cost: .venv/has-test
	@JAX_PLATFORMS=cpu .venv/bin/python -m benchmarks.cost

readme: .venv/has-examples
	@.venv/bin/python docs/tables.py

.venv/has-%: setup.cfg pyproject.toml
	@sh .ci/install $* $(PYTHON)

clean:
	@rm -rf .venv out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: demo test lint bench cost readme clean
