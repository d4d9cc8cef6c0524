"""The device mesh, and which of its axes each logical dimension is laid along."""

from collections.abc import Iterator, Sequence
import contextlib
import math
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rmjax.errors import InputError

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# Logical dimension -> mesh axes. Batches are split over data and fsdp; fsdp also splits every parameter along `embed`, tensor along the rest.
RULES = (
  ('batch', ('data', 'fsdp')),
  ('length', 'sequence'),
  ('vocab', 'tensor'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('mlp', 'tensor'),
  ('embed', 'fsdp'),
  ('layers', None),
  ('norm', None),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh over all devices, or those given; one axis may be -1, which takes what the others leave.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(free) == 1 and count % fixed == 0:
    sizes[free[0]] = count // fixed
  if math.prod(sizes.values()) != count or min(sizes.values()) < 1:
    shape = ' x '.join(f'{axis} {size}' for axis, size in sizes.items())
    raise InputError(f'mesh {shape} does not fit {count} devices: set one of config.mesh.* to -1, or make their product {count}')
  return _mesh(tuple(sizes.values()), devices)


def one_device_mesh() -> Mesh:
  """A mesh of the first device alone."""
  return _mesh((1,) * len(AXES), jax.devices()[:1])


def _mesh(sizes: tuple[int, ...], devices: list[jax.Device]) -> Mesh:
  # Auto axes: under Explicit ones, JAX's default, Linen's logical constraints fail.
  # A logical axis may be a part of a physical one of the torus: 8 of 16 x 16.
  array = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
  return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Inside, networks lay out their parameters and activations on this mesh."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


def check_fits(mesh: Mesh, *, rows: int, accumulate: int, length: int, decoder: Any, name: str = 'train.rows') -> None:
  """Refuses a batch or a network that the mesh cannot split evenly.

  Args:
    mesh: from `make_mesh`.
    rows: R of the global batch.
    accumulate: micro-batches that the rows are cut into.
    length: T.
    decoder: a `DecoderConfig`.
    name: what the rows are called in the config.

  Raises:
    InputError: names the dimension, the axis and the setting to change.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  checks = (
    (name, rows, 'train.accumulate', accumulate),
    (f'{name} / train.accumulate', rows // accumulate, 'mesh.data x mesh.fsdp', ways),
    ('train.length', length, 'mesh.sequence', mesh.shape['sequence']),
    ('hidden_size', decoder.hidden_size, 'mesh.fsdp', mesh.shape['fsdp']),
    ('num_heads', decoder.num_heads, 'mesh.tensor', mesh.shape['tensor']),
    ('num_kv_heads', decoder.num_kv_heads, 'mesh.tensor', mesh.shape['tensor']),
    ('intermediate_size', decoder.intermediate_size, 'mesh.tensor', mesh.shape['tensor']),
    ('vocab_size', decoder.vocab_size, 'mesh.tensor', mesh.shape['tensor']),
  )
  for what, size, axis, parts in checks:
    if size % parts:
      raise InputError(f'{what} = {size} cannot be split {parts} ways ({axis}): change one of them')


def shardings(abstract: Any, mesh: Mesh) -> Any:
  """NamedShardings of a tree of (boxed) parameters or their shapes, by `RULES`; what carries no logical names is replicated."""
  return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, RULES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp; the other dimensions of a batch are whole."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def place(state: Any, mesh: Mesh) -> tuple[Any, Any]:
  """A state whose every array lies on the mesh, and how they lie.

  What is on no mesh yet, such as a step's number, becomes whole on every device. A step that is given this layout for what it returns gives a state
  that lies as the one it took, whatever XLA would choose, so the next call neither moves nor compiles anything.
  """
  layout = jax.tree.map(lambda x: x.sharding if isinstance(x.sharding, NamedSharding) else replicated(mesh), state)
  return jax.device_put(state, layout), layout


def shard_batch(batch: Any, mesh: Mesh) -> Any:
  """Assembles the global batch on the mesh from each process's rows."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def own_rows(mesh: Mesh, rows: int) -> list[int]:
  """Which of a global batch's rows this process's devices hold, in order."""
  held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
  return sorted({row for (part,) in held for row in range(rows)[part]})


def own_shards(mesh: Mesh, rows: int, shards: int) -> list[int]:
  """Which shards of the data fill the rows that this process's devices hold.

  Args:
    mesh: where batches go.
    rows: R of the global batch.
    shards: parts of equal size that its rows have.

  Raises:
    InputError: the rows cannot be split so, or this process holds a part of a shard.
  """
  if shards < 1 or rows % shards:
    raise InputError(f'train.rows = {rows} cannot be split into data.shards = {shards}: change one of them')
  each, held = rows // shards, set(own_rows(mesh, rows))
  own = [shard for shard in range(shards) if shard * each in held]
  if {shard * each + i for shard in own for i in range(each)} != held:
    raise InputError(f'{jax.process_count()} processes cannot share data.shards = {shards}: set it to a multiple of the processes that rows are split over')
  return own
