"""Curation of preference data: where to ask people, whom to believe, what to keep, what to turn around; every label says where it comes from.

Functions of arrays decide, `Curated` is the source of what was decided: it is read, trained on and mapped over by grain as any other source is.

Reference: Skywork-Reward-V2 (2025), sections on data curation. Its code is not public: details are [reconstructed].

Dimensions: Q queries, P pairs of the pool, D embedding, M models, S samples of one model.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import json
from typing import Literal, NamedTuple, SupportsIndex

from jaxtyping import Bool, Float, Int, Num
import numpy as np

from rmjax.data.pipeline import Source
from rmjax.data.records import Messages, pairwise_wins, Record
from rmjax.errors import InputError

Origin = Literal['given', 'human', 'annotators', 'recycled']
ORIGINS: tuple[Origin, ...] = ('given', 'human', 'annotators', 'recycled')  # a record's label `origin` is the place in here
ROUNDING = 1e-9  # 10 * (1 - 0.7) is above 3 in floating point


def retrieve_k(p: Float[np.ndarray, '*Q'], k_max: int = 8) -> Int[np.ndarray, '*Q']:
  """How many items of the pool are fetched for a gold item: k_max where the model has it wrong, else fewer the surer it is.

  Args:
    p: probability that the model gives to the gold label.
    k_max: the most.

  Returns:
    k_max where p <= 1/2, else ceil(k_max * (1 - p)).

  Reference: Skywork-Reward-V2 (2025), error-driven adaptive retrieval.
  """
  p = np.asarray(p)
  if not (np.all(p >= 0) and np.all(p <= 1)):
    raise InputError('retrieve_k: p must be probabilities, from 0 to 1')
  return np.where(p <= 0.5, k_max, np.ceil(k_max * (1 - p) - ROUNDING)).astype(np.int32)


def embed(texts: Sequence[str], size: int = 256) -> Float[np.ndarray, 'P D']:
  """Bags of words with inverse document frequencies, hashed into `size` places, of length 1 (0 for a text without words).

  It stands for a sentence encoder where there is none. The frequencies are those of `texts`: embed queries and pool in one call.
  """
  words = [_normalize(text).split() for text in texts]
  place = {word: int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), 'big') % size for word in sorted({w for ws in words for w in ws})}
  counts = np.zeros((len(texts), size))
  for row, found in enumerate(words):
    np.add.at(counts[row], [place[word] for word in found], 1)
  counts *= np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
  return unit(counts)


def unit(vectors: Num[np.ndarray, 'P D']) -> Float[np.ndarray, 'P D']:
  """Vectors of length 1; those of length 0 stay."""
  norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0)


def knn_retrieve(query: Num[np.ndarray, 'Q D'], pool: Num[np.ndarray, 'P D'], k: Int[np.ndarray, 'Q']) -> Int[np.ndarray, 'Q K']:
  """Nearest items of the pool by cosine, the nearest first; of equally near ones the earlier comes first.

  Args:
    query: embeddings.
    pool: embeddings.
    k: how many for each query; where the pool is smaller, all of it.

  Returns:
    Numbers of items, K the largest k; -1 where a query has fewer.
  """
  most = min(int(k.max(initial=0)), len(pool))
  near = unit(query) @ unit(pool).T
  order = np.argsort(-near, axis=-1, kind='stable')[:, :most]
  return np.where(np.arange(most) < k[:, None], order, -1)


def vote(labels: Num[np.ndarray, '*P M S']) -> Float[np.ndarray, '*P']:
  """What several annotators say together: each model's majority over its own samples (self-consistency), then the majority of models.

  Args:
    labels: 1 for the first response, 0 for the second, 0.5 for neither, NaN for no answer.

  Returns:
    1 or 0; 0.5 where they are divided evenly. A model that is divided, or silent, does not vote.

  Reference: Skywork-Reward-V2 (2025), preference-aware annotation.
  """
  opinion = np.sign(np.nansum(labels - 0.5, -1))
  return np.asarray(0.5 + 0.5 * np.sign(opinion.sum(-1)))


def consistency_filter(
  p_best: Float[np.ndarray, '*P'], p_gold: Float[np.ndarray, '*P'], llm_label: Num[np.ndarray, '*P'] | float = np.nan
) -> Bool[np.ndarray, '*P']:
  """Whether a pair is kept: the gold model agrees with its label, and so does the best model or the annotators' vote.

  Args:
    p_best: probability that the label is right, by the best model so far; one that was not trained on this pair, or it confirms itself.
    p_gold: the same by the model that was trained on human labels alone.
    llm_label: vote of language models on the label: 1 right, 0 wrong, 0.5 undecided, NaN where nobody was asked.

  Reference: Skywork-Reward-V2 (2025), stage 2.
  """
  return (p_gold > 0.5) & ((p_best > 0.5) | (np.asarray(llm_label) > 0.5))


def both_reject(p_best: Float[np.ndarray, '*P'], p_gold: Float[np.ndarray, '*P'], confidence: float = 0.5) -> Bool[np.ndarray, '*P']:
  """Whether both models give the opposite label more than `confidence`: what is recycled.

  Reference: Skywork-Reward-V2 (2025), the 40M variant; a confidence above 1/2 is ours.
  """
  if not 0.5 <= confidence < 1:
    raise InputError(f'confidence = {confidence}: from 0.5 to below 1')
  return (p_best < 1 - confidence) & (p_gold < 1 - confidence)


def recycle_flip(record: Record) -> Record:
  """The record with every comparison turned around. What the old label brought with it (ratings, margin) is unknown then."""
  return dataclasses.replace(record, wins=record.wins.T.copy(), ratings=np.full_like(record.ratings, np.nan), margin=0.0)


def label(record: Record) -> float:
  """How much the first response of a pair is preferred.

  Raises:
    InputError: the record is no pair that was compared.
  """
  if len(record.responses) != 2 or record.wins.sum() != 1:
    raise InputError(f'{record.where}: curation is of pairs with a preference, and this row has {len(record.responses)} responses: give chosen and rejected')
  return float(record.wins[0, 1])


def duplicates(records: Iterable[Record]) -> Bool[np.ndarray, 'P']:
  """Whether an earlier record has the same prompt and the same responses in any order, whatever their labels, case and spaces."""
  seen: set[str] = set()
  found = []
  for record in records:
    key = json.dumps([_normalize(_plain(record.prompt)), sorted(map(_normalize, record.responses))])
    found.append(key in seen)
    seen.add(key)
  return np.array(found, bool)


def contaminated(records: Iterable[Record], prompts: Iterable[str | Messages], words: int = 13) -> Bool[np.ndarray, 'P']:
  """Whether a record's prompt is one of the evaluation's, whatever its case and spaces, or has `words` words in a row that one of them has.

  Args:
    records: of the pool.
    prompts: of all data that will be evaluated on.
    words: 0 compares whole prompts alone.

  Reference: overlaps of 13 words as in Brown et al., GPT-3 (2020), appendix C.
  """
  whole = {_normalize(_plain(prompt)) for prompt in prompts} - {''}
  runs = set().union(*(_runs(prompt, words) for prompt in whole))
  hits = (_normalize(_plain(record.prompt)) for record in records)
  return np.array([prompt in whole or not runs.isdisjoint(_runs(prompt, words)) for prompt in hits], bool)


def _runs(text: str, words: int) -> set[tuple[str, ...]]:
  split = text.split()
  return {tuple(split[i : i + words]) for i in range(len(split) - words + 1)} if words else set()


def _plain(prompt: str | Messages) -> str:
  return prompt if isinstance(prompt, str) else '\n'.join(message['content'] for message in prompt)


def _normalize(text: str) -> str:
  return ' '.join(text.casefold().split())


class Choice(NamedTuple):
  """One pair of a curated set.

  Attributes:
    index: its number in the pool.
    origin: where its label comes from.
    first: how much the first response is preferred, by whoever labelled it anew; None keeps the given label, or turns it around if it is recycled.
  """

  index: int
  origin: Origin = 'given'
  first: float | None = None


class Curated:
  """A source of what was chosen from a pool, in the order of the choices.

  A record says where its label comes from: by the label `origin` (int32 [], a place in `ORIGINS`) and at the end of `where`.
  """

  def __init__(self, pool: Source, choices: Sequence[Choice]):
    """Wraps a pool.

    Raises:
      InputError: nothing was chosen, or something that there is not.
    """
    if not choices:
      raise InputError(f'curation kept none of {len(pool)} pairs: there is nothing to train on')
    for choice in choices:
      if choice.origin not in ORIGINS:
        raise InputError(f"origin '{choice.origin}': there are {', '.join(ORIGINS)}")
      if not 0 <= choice.index < len(pool):
        raise InputError(f'choice of pair {choice.index}: the pool has {len(pool)}')
    self._pool, self._choices = pool, choices
    self.bad = getattr(pool, 'bad', ())

  def __len__(self) -> int:
    return len(self._choices)

  def __getitem__(self, index: SupportsIndex) -> Record:
    choice = self._choices[index]
    record = self._pool[choice.index]
    if choice.first is not None:
      label(record)  # of pairs alone
      record = dataclasses.replace(recycle_flip(record), wins=pairwise_wins(2, [(0, 1, choice.first)]))
    elif choice.origin == 'recycled':
      record = recycle_flip(record)
    labels = {**record.labels, 'origin': np.int32(ORIGINS.index(choice.origin))}
    return dataclasses.replace(record, where=f'{record.where} ({choice.origin})', labels=labels)


def margins(p: Float[np.ndarray, 'P'], kept: Bool[np.ndarray, 'P']) -> dict[str, float]:
  """How far from 1/2 the probabilities of labels lie in the pool and in what was kept of it: a filter by agreement keeps easy pairs.

  Args:
    p: probability that the label is right, by the model that filtered.
    kept: what it kept.

  Returns:
    For each of `pool` and `kept`: `margin_<which>_<q>` the 10th, 50th and 90th percentile of |logit|, and `near_half_<which>`, the share
    within 0.1 of 1/2. Those of an empty set are absent.
  """
  found = {}
  for which, values in (('pool', p), ('kept', p[kept])):
    if len(values):
      values = np.clip(values.astype(np.float64), 1e-12, 1 - 1e-12)
      logits = np.abs(np.log(values) - np.log1p(-values))
      found |= {f'margin_{which}_{q}': float(np.percentile(logits, q)) for q in (10, 50, 90)}
      found[f'near_half_{which}'] = float(np.mean(np.abs(values - 0.5) < 0.1))
  return found
