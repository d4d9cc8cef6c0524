"""Coarse quality levels beside comparisons: which comparisons contradict them.

Dimensions: N responses of a record.
"""

import dataclasses

import numpy as np

from rmjax.data.records import BadRecord, Record


def compatible(record: Record, levels: int) -> Record:
  """Takes out the comparisons that the levels contradict: the preferred response is of a lower level than the other, or they tie.

  Args:
    record: its label `quality`, int [N], says the level of each response from 0 (worst) to levels - 1, or -1 where that is unknown.
    levels: how many there are.

  Returns:
    The record, with their number as its label `incompatible`.

  Raises:
    BadRecord: there is no such label, or a level that there is not.

  Reference: Learning Ordinal Probabilistic Reward from Preferences (2026), appendix H.1, as its reviews report it.
  """
  if 'quality' not in record.labels:
    raise BadRecord(f"{record.where}: column 'labels.quality': missing; data.levels = {levels} asks for the level of each response, -1 where it is unknown")
  quality = np.asarray(record.labels['quality'])
  if quality.shape != (len(record.responses),) or quality.min() < -1 or quality.max() >= levels:
    raise BadRecord(f"{record.where}: column 'labels.quality': {quality.tolist()}: one level a response is wanted, 0 to {levels - 1}, or -1 for unknown")
  known = (quality[:, None] >= 0) & (quality[None, :] >= 0)
  contradicts = known & (quality[:, None] < quality[None, :]) & (record.wins >= 0.5)
  wins = np.where(contradicts | contradicts.T, 0.0, record.wins).astype(np.float32)
  return dataclasses.replace(record, wins=wins, labels={**record.labels, 'incompatible': np.int32(contradicts.sum())})
