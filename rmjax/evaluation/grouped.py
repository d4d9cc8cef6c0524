"""Accuracy of whole groups of comparisons: all of one prompt's have to be right."""

from collections.abc import Sequence

import numpy as np

from rmjax.evaluation import accuracy
from rmjax.evaluation.scored import compared_pairs, Scored


def accuracy_plus(scored: Sequence[Scored]) -> dict[str, float]:
  """Acc+, by the data's labels and by gold.

  Returns:
    accuracy_plus, accuracy_plus_se: share of prompts of which every comparison with a preference is ordered right (records of one prompt
      together; a tie in the scores is not right). With one pair a prompt it is the accuracy.
    gold_accuracy_plus, gold_accuracy_plus_se: the same by gold quality, over the same pairs; where gold is known.

  Reference: Acc+ of MM-RLHF-RewardBench, Zhang et al., MM-RLHF (2025), as BaseReward (2025) reports it.
  """
  pairs = compared_pairs(scored)
  figures = {}
  for name, wins in (('accuracy_plus', pairs.wins), ('gold_accuracy_plus', 0.5 + pairs.gold)):
    right = accuracy.agreement(pairs.logits, wins)
    prompts = np.unique(pairs.groups[~np.isnan(right)])
    all_right = np.array([float(np.nanmin(right[pairs.groups == prompt]) == 1) for prompt in prompts])
    figures[name], figures[f'{name}_se'] = accuracy.clustered_mean(all_right, prompts)
  return {name: value for name, value in figures.items() if not np.isnan(value)}
