"""How every test runs: strict dtype promotion, float32 by default, float64 on request."""

import atexit
import os
import tempfile

import jax
import pytest

collect_ignore = ["typed_program.py"]  # is read by a type checker, and never run

# Nothing in the library may rely on JAX to choose a dtype.  Optax and Flax do: a test
# that runs their code does it under `jax.numpy_dtype_promotion("standard")`.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Eight devices for the tests that need a mesh; all else runs on the first.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)
# One program at a time: two that are in flight can wait for each other's collectives
# where devices outnumber cores.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# What one test compiles, the others load: in this process, in the other workers of xdist,
# which inherit the environment, and in what tests start.  The folder lasts for one run;
# name one in JAX_COMPILATION_CACHE_DIR to keep programs from run to run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="adamw_jax_tests_")
    atexit.register(programs.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
for option, value in (
    ("jax_persistent_cache_min_compile_time_secs", 0),
    ("jax_persistent_cache_min_entry_size_bytes", -1),
):
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)


@pytest.fixture
def x64():
    """float64 for one test.  The global flag, since a context manager is invisible to threads."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float16", "bfloat16", "float32", "float64", "complex64"])
def dtype(request):
    """Every dtype a parameter may have, as its name."""
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param
