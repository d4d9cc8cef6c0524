"""Critiques that a reward model writes of responses, to be scored with them.

Train with the data's critiques, score with the model's own: what is lost between the two is exposure bias, so report both.

  records = write_critiques(model, params, records, tokenizer, encode, max_new_tokens=64)
  scored = score_records(model, params, records, encode, mesh=mesh)

Dimensions: P paths of a batch, L tokens of a path.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from rmjax import trees
from rmjax.backbones.decoder import Decoder
from rmjax.data.pipeline import Encode
from rmjax.data.records import Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.decoding.generate import generate, pack_prompts
from rmjax.decoding.sampling import Sampling
from rmjax.errors import InputError
from rmjax.models import RewardModel


class _Path(NamedTuple):
  """A response to be criticised, with all that comes before its critique."""

  record: int
  response: int
  tokens: list[int]


def write_critiques(
  model: RewardModel,
  params: Any,
  records: Iterable[Record],
  tokenizer: Tokenizer,
  encode: Encode,
  *,
  max_new_tokens: int,
  temperature: float = 0.0,
  seed: int = 0,
  rows: int = 64,
) -> Iterator[Record]:
  """Gives each response the critique that the model writes of it, in place of any that the record has.

  A critique depends on its own prompt and response alone, and on its number and the seed if it is drawn, not on the batch. One that is not ended
  within `max_new_tokens` is kept as far as it goes.

  Args:
    model: trained with critiques, such as one with `rmjax.heads.critique:CritiqueScorer`.
    params: its parameters. Adapters must be merged into the backbone first, `rmjax.backbones.lora.merge_lora`.
    records: any number; those of one batch are held.
    tokenizer: the model's.
    encode: record -> tree, or the reason why it is refused, as for `score_records`. It must leave room for the critiques: what is cut off a response
      when it is scored with one was there when that was written. A refused record comes back without critiques.
    max_new_tokens: of a critique, its end included.
    temperature: 0 takes the likeliest token at every place.
    seed: of the draws.
    rows: P; responses that are criticised at a time.

  Yields:
    The records, in their order, with `critiques`; '' where the model ends one before its first word.

  Raises:
    InputError: the tokenizer has no end-of-text token, which ends a critique.

  Reference: Zhang et al., MM-RLHF (2025): at inference the critique is written, then scored. Averaging the scores of several drawn ones did not help.
  """
  if tokenizer.eos_id < 0:
    raise InputError('the tokenizer has no end-of-text token: nothing would end a critique')
  write = functools.partial(_write, model.backbone, params['backbone'], tokenizer, max_new_tokens, temperature, jax.random.key(seed), rows)
  waiting, paths = [], []
  for number, record in enumerate(records):
    record = dataclasses.replace(record, critiques=())
    tree = encode(record)
    waiting.append(record)
    if isinstance(tree, trees.Tree):
      paths += [_Path(number, n, tokens) for n, tokens in enumerate(_paths(tree, len(record.responses)))]
    if len(paths) >= rows:
      yield from _critical(waiting, number + 1 - len(waiting), paths, write)
      waiting, paths = [], []
  yield from _critical(waiting, number + 1 - len(waiting), paths, write) if waiting else ()


def _critical(records: list[Record], first: int, paths: list[_Path], write: Callable[[list[_Path]], list[str]]) -> Iterator[Record]:
  found = {(path.record, path.response): text for path, text in zip(paths, write(paths), strict=True)}
  for number, record in enumerate(records, first):
    texts = [found.get((number, n)) for n in range(len(record.responses))]
    yield record if None in texts else dataclasses.replace(record, critiques=tuple(texts))


def _write(decoder: Decoder, params: Any, tokenizer: Tokenizer, new: int, temperature: float, key: jax.Array, rows: int, paths: list[_Path]) -> list[str]:
  """Critiques of any number of paths, `rows` at a time; lengths are rounded up, so that few shapes are compiled."""
  texts, run = [], _jitted(decoder, new, (tokenizer.eos_id,))
  length = 8
  while length < max((len(path.tokens) for path in paths), default=0):
    length *= 2
  for first in range(0, len(paths), rows):
    part = paths[first : first + rows]
    tokens, lengths = pack_prompts([path.tokens for path in part], length=length, rows=rows)
    numbers = np.zeros((rows, 2), np.int32)
    numbers[: len(part)] = [path[:2] for path in part]
    batch = run(params, tokens, lengths, numbers, key, Sampling(temperature=temperature))
    found, ids = np.asarray(batch.tokens), np.asarray(batch.response_ids)
    texts += [tokenizer.decode(found[row][ids[row] == 0].tolist()) for row in range(len(part))]
  return texts


@functools.lru_cache(maxsize=8)  # one compile for all the seeds of a model
def _jitted(decoder: Decoder, new: int, stop: tuple[int, ...]) -> Callable[..., trees.Trees]:
  def run(params, tokens, lengths, numbers, key, sampling):
    keys = jax.vmap(lambda at: jax.random.fold_in(jax.random.fold_in(key, at[0]), at[1]))(numbers)[:, None]
    return generate(decoder, params, tokens, lengths, keys, responses=1, max_new_tokens=new, sampling=sampling, stop_tokens=stop)

  return jax.jit(run)


def _paths(tree: trees.Tree, count: int) -> list[list[int]]:
  """Tokens from the root to the end of each response."""
  paths = [[]] * count
  upto: list[list[int]] = []  # each segment's end
  for segment in tree.segments:
    upto.append([*(upto[segment.parent] if segment.parent >= 0 else []), *segment.tokens])
    if segment.response >= 0:
      paths[segment.response] = upto[-1]
  return paths
