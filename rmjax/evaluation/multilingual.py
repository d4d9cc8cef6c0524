"""M-RewardBench: the same pairs in many languages.

Dimensions: I items, L languages, K subsets, C categories.
"""

from collections.abc import Sequence
import functools

from jaxtyping import Float, Int
import numpy as np

from rmjax.data.records import BadRecord, Record
from rmjax.errors import InputError
from rmjax.evaluation import benchmark_figures
from rmjax.evaluation.correlation import kappa, kappa_matrix
from rmjax.evaluation.items import Answer, Benchmark, column, counts, Facts, gap_notes, make_items, pair, pair_ties, pairs_right, Report, with_interval
from rmjax.evaluation.rewardbench import REWARDBENCH, section_of, section_scores, subset_means

ENGLISH = ('eng_Latn', 'eng', 'en', 'English')
_SCORED = REWARDBENCH._replace(apart={})


def language_scores(correct: Float[np.ndarray, 'I L'], codes: Int[np.ndarray, 'I'], *, names: Sequence[str]) -> Float[np.ndarray, 'L']:
  """Mean over the categories that there are of the weighted mean over their subsets, as RewardBench, in each language.

  Args:
    correct: of each item, NaN where it is not there.
    codes: number of its subset in `names`.
    names: of subsets.

  Returns:
    NaN for a language without items.

  Reference: Gureja et al., M-RewardBench (2024).
  """
  own = np.equal.outer(np.arange(len(names)), codes).astype(np.float64)
  known = ~np.isnan(correct)
  number, total = own @ known, own @ np.nan_to_num(correct)  # [K, L]
  means = np.divide(total, number, out=np.zeros_like(total), where=number > 0)
  weights = np.array([[subsets.get(name, 0) for name in names] for subsets in REWARDBENCH.weights.values()], np.float64)  # [C, K]
  share = weights @ (number > 0)
  scores = np.divide(weights @ means, share, out=np.zeros_like(share), where=share > 0)
  present = np.sum(share > 0, 0)
  return np.divide(scores.sum(0), present, out=np.full(len(present), np.nan), where=present > 0)


def english_gaps(correct: Float[np.ndarray, 'I L'], codes: Int[np.ndarray, 'I'], *, names: Sequence[str]) -> Float[np.ndarray, 'L-1']:
  """Score in English (the first column) less that in each other language, each over the items that both have."""
  both = ~np.isnan(correct[:, :1]) & ~np.isnan(correct[:, 1:])
  one, two = (language_scores(np.where(both, side, np.nan), codes, names=names) for side in (correct[:, :1], correct[:, 1:]))
  return one - two


def _facts(record: Record) -> Facts:
  pair(record, 'm_rewardbench')
  of = section_of(_SCORED)
  subset = next((name for name in (record.columns.get('source'), record.subset) if name in of), None)
  if subset is None:
    known = f'{", ".join(list(of)[:3])}, ...'
    raise BadRecord(f"{record.where}: column 'source': '{record.columns.get('source')}' is no subset of RewardBench: {known} (another benchmark's row?)")
  name, language = (column(record, column_name, 'm_rewardbench') for column_name in ('id', 'language'))
  return dict(id=name, subset=subset, language=language)


def _measure(found: Sequence[Answer]) -> Report:
  languages = sorted({answer.facts['language'] for answer in found})
  english = next((language for language in languages if language in ENGLISH), None)
  if english:
    languages = [english, *(language for language in languages if language != english)]
  ids, subsets, correct = _table(found, languages)
  names, codes = np.unique(subsets, return_inverse=True)
  names = [str(name) for name in names]
  score = lambda *rows: float(np.nanmean(language_scores(*rows, names=names)))
  gap = lambda *rows: float(np.nanmean(english_gaps(*rows, names=names)))
  figures = counts(found) | {'num_languages': len(languages), 'num_score_ties': pair_ties(found)}
  figures |= with_interval('score', '', score, correct, codes, groups=ids)
  categories = dict.fromkeys(section_of(_SCORED)[name] for name in names)
  categories = [category for category in REWARDBENCH.weights if category in categories]
  cells = np.full((len(languages), len(categories)), np.nan)
  for k, language in enumerate(languages):
    here = correct[:, k]
    mine = [answer for answer in found if answer.facts['language'] == language]
    figures |= with_interval('score', f'/{language}', score, here[:, None], codes, groups=ids)
    figures |= {f'{name}/{language}': value for name, value in counts(mine).items()}
    sections = section_scores(_SCORED, subset_means(names, here, codes))
    for c, category in enumerate(categories):
      if category in sections:
        cells[k, c] = figures[f'{category}/{language}'] = sections[category]
    if english and language != english:
      both = np.stack([correct[:, 0], here], -1)
      figures |= with_interval('english_gap', f'/{language}', gap, both, codes, groups=ids)
      figures |= with_interval('kappa', f'/{language}', kappa, correct[:, 0], here, groups=ids)
      known = ~np.isnan(both).any(1)
      figures[f'flip_rate/{language}'] = float(np.mean(both[known, 0] != both[known, 1])) if known.any() else np.nan
  for c, category in enumerate(categories):
    figures[category] = float(np.nanmean(cells[:, c]))
  figures |= _means(figures, gap, correct, codes, ids, languages, english)
  notes = [
    f'm_rewardbench: {language} lacks {", ".join(gone)}: its score is the mean over the other categories'
    for language, gone in _gaps(languages, cells, categories)
  ]
  notes += gap_notes('m_rewardbench', 'categories', [category for category in REWARDBENCH.weights if category not in categories])
  if not english:
    notes.append(f'm_rewardbench: none of the languages is English ({", ".join(ENGLISH)}): no gap, and kappa between the others alone')
  columns = [(name, name) for name in ('score', *categories)] + [('English gap', 'english_gap'), ('kappa', 'kappa'), ('truncated', 'num_truncated')]
  lines = [('all languages', ''), *((language, f'/{language}') for language in languages)]
  draw = functools.partial(benchmark_figures.heat_map, cells, rows=languages, columns=categories, label='accuracy', title='accuracy by language')
  items = make_items(found, [pairs_right(answer)[0] for answer in found])
  return Report({k: v for k, v in figures.items() if not np.isnan(v)}, items._replace(groups=items.ids), columns, lines, notes, draw=draw)


def _table(found: Sequence[Answer], languages: Sequence[str]) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, 'I L']]:
  """Ids, subsets, and whether each item is right in each language: NaN where it is not there."""
  subsets: dict[str, str] = {}
  right: dict[tuple[str, str], float] = {}
  for answer in found:
    name, language, subset = (answer.facts[key] for key in ('id', 'language', 'subset'))
    if subsets.setdefault(name, subset) != subset:
      raise InputError(f"m_rewardbench: item '{name}' is of '{subsets[name]}' and, in {language}, of '{subset}': ids must mean the same in all languages")
    if (name, language) in right:
      raise InputError(f"m_rewardbench: item '{name}' is there twice in {language}: give each row once")
    right[name, language] = float(pairs_right(answer)[0])
  ids = sorted(subsets)
  correct = np.array([[right.get((name, language), np.nan) for language in languages] for name in ids], np.float64)
  return np.array(ids, str), np.array([subsets[name] for name in ids], str), correct


def _means(figures, gap, correct, codes, ids, languages, english) -> dict[str, float]:
  """Means over the languages that are not English, of gap and kappa; and over all pairs of languages, of kappa."""
  out = {}
  if len(languages) > 1:
    over = kappa_matrix(correct)[np.triu_indices(len(languages), 1)]
    out['kappa_all_pairs'] = float(np.nanmean(over)) if not np.isnan(over).all() else np.nan
    out |= {f'kappa_between/{a}/{b}': value for (a, b), value in zip(_pairs(languages), over, strict=True)}
  if english and len(languages) > 1:
    other = range(1, len(languages))
    agreement = lambda correct: float(np.mean([kappa(correct[:, 0], correct[:, k]) for k in other]))
    out |= with_interval('english_gap', '', gap, correct, codes, groups=ids)
    out |= with_interval('kappa', '', agreement, correct, groups=ids)
    out['flip_rate'] = float(np.nanmean([figures[f'flip_rate/{languages[k]}'] for k in other]))
  return out


def _pairs(languages: Sequence[str]) -> list[tuple[str, str]]:
  return [(languages[i], languages[j]) for i, j in zip(*np.triu_indices(len(languages), 1), strict=True)]


def _gaps(languages, cells, categories) -> list[tuple[str, list[str]]]:
  found = [(language, [name for name, cell in zip(categories, row, strict=True) if np.isnan(cell)]) for language, row in zip(languages, cells, strict=True)]
  return [(language, gone) for language, gone in found if gone]


# A translation can make both responses the same: then there is nothing to prefer, and the item is dropped in every language.
m_rewardbench = Benchmark(_facts, _measure, skip=lambda row: 'chosen' in row and row.get('chosen') == row.get('rejected'))
