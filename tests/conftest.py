"""Every test sees eight virtual CPU devices, so that sharding is tested everywhere, and a compilation cache."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_compilation_cache_dir', str(Path(__file__).parents[1] / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

# XLA sizes its thread pool by this. With one thread a device, two collectives of one step can each hold threads that the other waits for.
# Programs of tests are compiled once and run for a moment: without LLVM's optimisations compiling takes two thirds of the time, and half of that with the
# older emitters (30 and 12 ms for one addition; XLA's of jaxlib 0.10).
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false'
start = {'NPROC': '32', 'XLA_FLAGS': f'{QUICK} {os.environ.get("XLA_FLAGS", "")}'}
with pytest.MonkeyPatch.context() as patch:  # not for the programs that tests start: those are compiled as a user's
  for name, value in start.items():
    patch.setenv(name, value)
  jax.devices()


@pytest.fixture(scope='session')
def real_data() -> Path:
  """Directory of real data sets and checkpoints, named by RMJAX_DATA."""
  if not os.environ.get('RMJAX_DATA'):
    pytest.skip('RMJAX_DATA is unset: it names a directory of real data')
  return Path(os.environ['RMJAX_DATA'])
