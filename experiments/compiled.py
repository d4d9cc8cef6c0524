"""What a program costs on a TPU, read from what the TPU compiler made of it: loops multiplied out, which the compiler's own summary does not do."""

from collections.abc import Iterator
import math
import re
from typing import Any, NamedTuple

import jax
from jax.interpreters import partial_eval


class Chip(NamedTuple):
  """One TPU chip, as published.

  Attributes:
    flops: of bfloat16 products, a second.
    hbm: bytes.
    links: bytes a second to and from all neighbours.
    clock: cycles a second; what its matrix units must run at to reach `flops`.
  """

  flops: float
  hbm: float
  links: float
  clock: float


# cloud.google.com/tpu/docs: pages v5e, v5p and v6e.
CHIPS = {
  'v5e': Chip(197e12, 16 * 2**30, 200e9, 1.5e9),
  'v5p': Chip(459e12, 95 * 2**30, 600e9, 1.75e9),
  'v6e': Chip(918e12, 32 * 2**30, 448e9, 1.75e9),
}

COLLECTIVES = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')
_SIZES = dict(pred=1, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8)
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
# What moves no bytes itself: names for others' results, and what is counted where its body is.
_FREE = {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'while', 'conditional', 'call', 'partition-id', 'after-all', 'iota'}


class Costs(NamedTuple):
  """Of one run of a compiled program, on each chip.

  Attributes:
    cycles: the compiler's estimate for all that is not communication.
    bytes: read from and written to HBM.
    collectives: kind -> (how many, bytes that a chip sends).
    unknown_loops: loops whose number of rounds the data decide; they are counted once.
    kernels: custom calls, of which the compiler estimates nothing.
  """

  cycles: float = 0.0
  bytes: float = 0.0
  collectives: dict[str, tuple[float, float]] = {}  # noqa: RUF012 - never changed
  unknown_loops: int = 0
  kernels: float = 0

  def add(self, other: 'Costs', times: float = 1) -> 'Costs':
    """The sum, with `other` so many times."""
    collectives = dict(self.collectives)
    for kind, (count, sent) in other.collectives.items():
      old_count, old_sent = collectives.get(kind, (0.0, 0.0))
      collectives[kind] = old_count + times * count, old_sent + times * sent
    return Costs(
      self.cycles + times * other.cycles, self.bytes + times * other.bytes, collectives,
      self.unknown_loops + other.unknown_loops, self.kernels + times * other.kernels,
    )  # fmt: skip

  def seconds(self, chip: Chip) -> tuple[float, float]:
    """(all but communication, communication if every link is busy all the time)."""
    return self.cycles / chip.clock, sum(sent for _, sent in self.collectives.values()) / chip.links


class _Instruction(NamedTuple):
  name: str
  shape: str
  op: str
  args: str
  rest: str

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%[\w.\-]+', self.args)


def costs(text: str) -> Costs:
  """Costs of a compiled program.

  Args:
    text: `jax.stages.Compiled.as_text()`.
  """
  computations, entry = _parse(text)
  known: dict[str, Costs] = {}

  def of(name: str, fused: bool = False) -> Costs:
    key = name + ('*' if fused else '')
    if key not in known:
      total, shapes = Costs(), {x.name: x.shape for x in computations[name]}
      for x in computations[name]:
        total = total.add(own(x, shapes, name, fused))
      known[key] = total
    return known[key]

  def own(x: _Instruction, shapes: dict[str, str], where: str, fused: bool) -> Costs:
    called = re.findall(r'(?:calls|body|to_apply|true_computation|false_computation)=(%[\w.\-]+)', x.rest)
    called += [name for group in re.findall(r'branch_computations=\{([^}]*)\}', x.rest) for name in group.split(', ')]
    kind = x.op.removesuffix('-start')
    total = Costs()
    if kind in COLLECTIVES:
      # A reduce-scatter is an all-reduce of which each chip keeps a part, fused.
      kind = 'reduce-scatter' if kind == 'all-reduce' and 'reduce-scatter' in where else kind
      return Costs(collectives={kind: (1.0, _sent(kind, x))})
    if x.op == 'while':
      rounds = _rounds(computations[re.search(r'condition=(%[\w.\-]+)', x.rest)[1]])
      return Costs(unknown_loops=rounds is None).add(of(called[0]), 1 if rounds is None else rounds)
    if x.op == 'conditional':
      return max((of(name) for name in called), key=lambda costs: costs.cycles)
    for name in called:
      total = total.add(of(name, fused=x.op != 'call'))
    if fused:
      return total
    found = re.search(r'"estimated_cycles":"(\d+)"', x.rest)
    moved = 0 if x.op in _FREE or x.op.endswith('-done') else _moved(x, shapes, computations)
    kernel = x.op == 'custom-call' and 'tpu_custom_call' in x.rest
    return total.add(Costs(float(found[1]) if found else 0.0, moved, kernels=int(kernel)))

  return of(entry)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Instructions by computation, and the name of the first that runs."""
  computations: dict[str, list[_Instruction]] = {}
  current, entry = None, ''
  for line in text.split('\n'):
    if head := re.match(r'(ENTRY )?(%[\w.\-]+) \(.*\{$', line):
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif current is not None and (found := re.match(r'\s+(?:ROOT )?(%[\w.\-]+) = (.*)', line)):
      shape, rest = _cut(found[2]) if found[2].startswith('(') else found[2].split(' ', 1)
      op, rest = rest.strip().split('(', 1)
      current.append(_Instruction(found[1], shape, op, *_cut('(' + rest)))
  return computations, entry


def _cut(text: str) -> tuple[str, str]:
  """The parenthesis that a text begins with, and the rest."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[: i + 1], text[i + 1 :]
  return text, ''


def _arrays(shape: str) -> Iterator[tuple[float, str]]:
  """(bytes, layout) of each array of a shape."""
  for dtype, sizes, layout in _ARRAY.findall(shape):
    if dtype in _SIZES:
      yield _SIZES[dtype] * math.prod(int(size) for size in sizes.split(',') if size), layout


def _in_hbm(shape: str) -> float:
  """Bytes; S(1) and others are memories on the chip."""
  return sum(size for size, layout in _arrays(shape) if 'S(' not in layout)


def _moved(x: _Instruction, shapes: dict[str, str], computations: dict[str, list[_Instruction]]) -> float:
  """Bytes that an instruction reads and writes; of what it cuts a slice from or writes a slice into, the slice alone."""
  body = computations.get(next(iter(re.findall(r'calls=(%[\w.\-]+)', x.rest)), ''), [])
  inner = {y.name: y for y in body}
  parameters = {int(y.args.strip('()')): y.name for y in body if y.op == 'parameter'}
  total = _in_hbm(x.shape) if not x.op.endswith('-start') else 0.0
  if x.op == 'copy-start':  # asynchronous: its result names both ends
    return sum(size for size, layout in list(_arrays(x.shape))[:2] if 'S(' not in layout)
  for i, operand in enumerate(x.operands):
    size = _in_hbm(shapes.get(operand, ''))
    uses = [y for y in body if parameters.get(i) in y.operands]
    if size and uses and all(y.op == 'dynamic-slice' for y in uses):
      size = min(size, sum(_in_hbm(y.shape) for y in uses))
    elif size and uses and all(y.op == 'dynamic-update-slice' and y.operands[0] == parameters[i] for y in uses):
      written = sum(_in_hbm(inner[y.operands[1]].shape) for y in uses if y.operands[1] in inner)
      total, size = total - size + written, 0.0  # in place: neither read nor written as a whole
    total += size
  return max(total, 0.0)


def _sent(kind: str, x: _Instruction) -> float:
  """Bytes that a chip sends in a collective, on a ring."""
  sizes = [size for size, _ in _arrays(x.shape)]
  if kind == 'collective-permute':
    return sizes[0]
  # An asynchronous one's result names what goes in as well: the larger of each pair is the whole.
  whole = sum(sizes) if not x.op.endswith('-start') else sum(sizes[len(sizes) // 2 :]) if kind == 'all-gather' else sum(sizes[: len(sizes) // 2])
  if kind == 'reduce-scatter' and x.op.startswith('reduce-scatter'):
    whole *= _group(x.rest)  # its result is a part
  share = (_group(x.rest) - 1) / _group(x.rest)
  return whole * share * (2 if kind == 'all-reduce' else 1)


def _group(rest: str) -> int:
  """Chips that take part together."""
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
    sizes = dict(pair.split('=') for pair in found[1].split(','))
    return math.prod(int(sizes[axis]) for axis in found[2].split(','))
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', rest):
    return int(found[2])
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(found[1].split(','))
  return 1


def _rounds(condition: list[_Instruction]) -> int | None:
  """Of a loop that counts up from 0 to a constant; None of another."""
  names = {x.name: x for x in condition}
  last = condition[-1]
  if last.op != 'compare' or 'direction=LT' not in last.rest:
    return None
  bound = names.get(last.operands[1])
  return int(bound.args.strip('()')) if bound is not None and bound.op == 'constant' else None


def count_flops(function: Any, *args: Any) -> float:
  """Floating-point operations of a function's matrix products, those of all chips, recomputation included.

  Loops are multiplied out; one whose number of rounds the data decide counts once, but for a kernel's, which counts as for causal rows.
  """
  return _flops(_alive(function, *args), everywhere=True)


def kernel_flops(function: Any, *args: Any) -> float:
  """The same of its kernels alone."""
  return _flops(_alive(function, *args), everywhere=False)


def _alive(function: Any, *args: Any) -> Any:
  """What a function computes, without what none of its results depends on: the compiler leaves that out as well."""
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _flops(jaxpr: Any, *, everywhere: bool) -> float:
  """Of kernels alone if not everywhere."""
  total = 0.0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general' and everywhere:
      (contracted, _), _ = params['dimension_numbers']
      left = equation.invars[0].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
      continue
    times = 1
    if name == 'scan':
      times = params['length']
    elif name == 'pallas_call':
      # As many rounds as the data decide: at most the length of the table that says what is done in each, and half of it for a causal row.
      most = max((x.aval.size for x in equation.invars if x.aval.ndim == 1), default=1)
      times = math.prod(size if isinstance(size, int) else most / 2 for size in params['grid_mapping'].grid)
    elif name == 'shard_map':
      times = params['mesh'].size
    inner = [_flops(found, everywhere=everywhere or name == 'pallas_call') for value in params.values() for found in _jaxprs(value)]
    total += times * (max(inner, default=0.0) if name == 'cond' else sum(inner))
  return total


def _jaxprs(value: Any) -> Iterator[Any]:
  if hasattr(value, 'eqns'):
    yield value
  elif hasattr(value, 'jaxpr'):
    yield value.jaxpr
  elif isinstance(value, (tuple, list)):
    for item in value:
      yield from _jaxprs(item)
