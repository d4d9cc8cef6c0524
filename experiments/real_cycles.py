"""Do the preferences of people and judges run in circles? Counts cyclic triads in public data.

  python -m experiments.real_cycles --source=$RMJAX_DATA [--output=FILE.json]

alpaca_eval: 58 models; on an instruction the model beats another whose answer has the higher win probability against the common baseline, so that
one instruction is a ranking, and circles come from adding instructions up. pandalm_human: five models; three people's votes on a pair of answers
make one comparison. Both have the share that sampling noise alone gives where a Bradley-Terry model is the truth (mean, 95 % quantile). It takes
comparisons for independent; on alpaca_eval those of one instruction are not. fine_grained_qa_feedback: the four answers to a question, nothing
added up; labels drawn at random make a quarter of decided triads cyclic.
"""

from pathlib import Path
from typing import Any

from absl import flags
from jaxtyping import Float
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli, real_data
from rmjax.evaluation.tournament import cyclic_triads, expected_cyclic_share
from rmjax.training.metrics import write_json

_SOURCE = flags.DEFINE_string('source', None, 'Directory with alpaca_eval, fine_grained_qa_feedback and pandalm_human.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write as well.')
_DRAWS = flags.DEFINE_integer('draws', 1000, 'Simulated round robins of the null.')

CHANCE = 0.25  # of a decided triad whose labels are coins


def alpaca_wins(source: Path) -> Float[np.ndarray, 'N N']:
  """Instructions on which a model's answer is judged better than another's; a half each where they are judged alike."""
  rows = read_scores(source)
  names = sorted({name for scores in rows for name in scores})
  # A model that gave no answer to an instruction is compared on none of its pairs there: comparisons with NaN are false.
  scores = np.array([[scores.get(name, np.nan) for name in names] for scores in rows])
  one, two = scores[:, :, None], scores[:, None, :]
  return np.sum((one > two) + 0.5 * (one == two), 0) * (1 - np.eye(len(names)))


def read_scores(source: Path) -> list[dict[str, float]]:
  """Of each instruction, model -> win probability against the baseline, which itself has 1/2."""
  judged = real_data.read(source / 'preference_matrix.jsonl.gz')
  answered = real_data.read(source / 'model_outputs.jsonl.gz')
  rows = [{**row[real_data.JUDGE], real_data.BASELINE: 0.5} for row in judged]
  return [{name: scores[name] for name in texts['outputs'] if scores.get(name) is not None} for scores, texts in zip(rows, answered, strict=True)]


def pandalm_wins(source: Path) -> Float[np.ndarray, 'N N']:
  """Pairs of answers, each shared out by its three votes."""
  rows = real_data.read(source / 'testset_v1.jsonl.gz')
  names = sorted({name for row in rows for name in row['cmp_key'].split('_')})
  wins = np.zeros((len(names), len(names)))
  for row in rows:
    i, j = (names.index(name) for name in row['cmp_key'].split('_'))
    share = real_data.vote_share(row)
    wins[i, j] += share
    wins[j, i] += 1 - share
  return wins


def tournament(wins: Float[np.ndarray, 'N N'], draws: int) -> dict[str, Any]:
  """Figures of one round robin."""
  cyclic, triads = (int(count) for count in cyclic_triads(wins))
  mean, quantile = expected_cyclic_share(wins, draws=draws)
  return dict(players=len(wins), comparisons=float(wins.sum()), triads=triads, cyclic=cyclic, share=cyclic / triads, null_mean=mean, null_quantile=quantile)


def questions(source: Path) -> dict[str, Any]:
  """Figures of the round robins of four that questions are."""
  wins = np.stack([real_data.fine_grained_wins(row) for row in real_data.read(source / 'dev_feedback.jsonl.gz')])
  cyclic, triads = cyclic_triads(wins)
  i, j = np.triu_indices(4, 1)
  points = wins.sum(2)  # a ranking, ties too, is the one that its points give
  ranked = (np.sign(points[:, :, None] - points[:, None, :]) == np.sign(wins - np.swapaxes(wins, 1, 2))).all((1, 2))
  return dict(
    questions=len(wins),
    players=4,
    comparisons=float(wins.sum()),
    triads=int(triads.sum()),
    cyclic=int(cyclic.sum()),
    share=float(cyclic.sum() / triads.sum()),
    null_mean=CHANCE,
    null_quantile=None,
    share_ties=float(np.mean(wins[:, i, j] == 0.5)),
    share_with_cycle=float(np.mean(cyclic > 0)),
    share_ranked=float(ranked.mean()),
    undecided_triads=int(4 * len(wins) - triads.sum()),
  )


def main() -> None:
  """Prints a table, and writes its figures."""
  source = Path(_SOURCE.value)
  figures = dict(
    alpaca_eval=tournament(alpaca_wins(source / 'alpaca_eval'), _DRAWS.value),
    pandalm_human=tournament(pandalm_wins(source / 'pandalm_human'), _DRAWS.value),
    fine_grained_qa_feedback=questions(source / 'fine_grained_qa_feedback'),
  )
  table = Table('data', 'players', 'comparisons', 'triads', 'cyclic', 'share', 'null', '95 %', box=None, header_style='bold')
  for name, found in figures.items():
    quantile = found['null_quantile']
    table.add_row(
      name,
      *(f'{found[figure]:.0f}' for figure in ('players', 'comparisons', 'triads', 'cyclic')),
      *(f'{found[figure]:.4f}' for figure in ('share', 'null_mean')),
      '' if quantile is None else f'{quantile:.4f}',
    )
  Console(width=120).print(table)
  asked = figures['fine_grained_qa_feedback']
  print(
    f'fine_grained_qa_feedback: {asked["share_ties"]:.1%} of labels are ties; {asked["share_with_cycle"]:.1%} of questions have a cycle, and the six '
    f'labels of {asked["share_ranked"]:.1%} are exactly a ranking with ties'
  )
  if _OUTPUT.value:
    write_json(Path(_OUTPUT.value), figures)


if __name__ == '__main__':
  cli.run(main)
