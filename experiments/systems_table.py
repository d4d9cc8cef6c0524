"""Writes docs/systems.md from results/: a row for each system, and each recorded claim with its figures.

  python -m experiments.systems_table [--results=results] [--output=docs/systems.md] [--check]

results/systems.csv lists the systems; results/<system>.json is what `experiments.reproduce --record=results` wrote; results/<system>.md, if there is
one, says what it means; results/studies/ and results/real/ have further records, of no system of the list by itself. --check writes nothing, and exits
with 1 if the file is not what it would write.
"""

from collections.abc import Mapping, Sequence
import csv
import json
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli
from rmjax.errors import InputError

HEAD = """# Systems

One row for each system, made by `python -m experiments.systems_table` from `results/`; a record is what `python -m experiments.reproduce
--config=configs/<system>.py --workdir=DIR --record=results` measured. A claim that fails stays, with what was measured. `>` and `<` hold where the
difference is shown (paired t-test over seeds, one-sided, level 0.05); `>=` and `<=` hold unless the opposite is shown.
"""


STUDIES = """# Further studies

Of parts that several systems share.
"""

REAL = """# On public preferences

`configs/real_preferences.py` by models of 0.4 million parameters, which read surface features and little else. Seeds share the records, so an error here
is that of training alone; three seeds show large differences and nothing else.
"""

FURTHER = {'studies': STUDIES, 'real': REAL}  # directory in results/ -> what it is


def page(
  systems: Sequence[Mapping[str, str]],
  reports: Mapping[str, Mapping[str, Any]],
  notes: Mapping[str, str],
  further: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> str:
  """The page.

  Args:
    systems: dicts of slug, title and family.
    reports: slug -> what reproduce wrote.
    notes: slug, name or directory -> what to say of it.
    further: directory of `FURTHER` -> name -> what reproduce wrote.

  Raises:
    InputError: a record of a system that is not listed.
  """
  if unknown := sorted(reports.keys() - {system['slug'] for system in systems}):
    raise InputError(f"results/{unknown[0]}.json: there is no system '{unknown[0]}' in results/systems.csv: add its row, or rename the file")
  rows = [_row(number, system, reports.get(system['slug'])) for number, system in enumerate(systems, 1)]
  done = [system['slug'] for system in systems if system['slug'] in reports]
  count = f'{len(done)} of {len(systems)} systems have a record.\n'
  table = '\n'.join(['| | system | paper | family | claims that hold | config |', '|---|---|---|---|---|---|', *rows])
  sections = [_section(slug, reports[slug], notes.get(slug, '')) for slug in done]
  for directory, records in further.items():
    if records:
      sections += [FURTHER[directory], *([notes[directory]] if directory in notes else [])]
      sections += [_section(name, report, notes.get(name, '')) for name, report in records.items()]
  return '\n'.join([HEAD, count, table, '', *sections])


def _row(number: int, system: Mapping[str, str], report: Mapping[str, Any] | None) -> str:
  slug = system['slug']
  held = f'{sum(claim["holds"] for claim in report["claims"])} of {len(report["claims"])}' if report else ''
  name, config = (f'[{slug}](#{slug})', f'`configs/{slug}.py`') if report else (slug, '')
  return f'| {number} | {name} | {system["title"]} | {system["family"]} | {held} | {config} |'


def _section(slug: str, report: Mapping[str, Any], note: str) -> str:
  seeds = f'{len(report["seeds"])} seeds, {report["minutes"]:.1f} minutes on {report["machine"]}, commit {report["commit"]}, {report["date"]}'
  lines = [f'## {slug}', '', f'{seeds}.', '', '| claim | left | right | difference ± s.e. | p | the paper reports | |', '|---|---|---|---|---|---|---|']
  for claim in report['claims']:
    verdict = 'holds' if claim['holds'] else '**fails**'
    lines.append(
      f'| `{claim["claim"]}` | {claim["left"]:.3f} | {claim["right"]:.3f} | {claim["difference"]:+.3f} ± {claim["error"]:.3f} '
      f'| {claim["p_value"]:.2g} | {claim["paper"]} | {verdict} |'
    )
  return '\n'.join([*lines, '', *([note.strip(), ''] if note else [])])


def read(results: Path) -> tuple[list[dict[str, str]], dict[str, Any], dict[str, str], dict[str, dict[str, Any]]]:
  """Systems, records, notes and further records: the arguments of `page`.

  Raises:
    InputError: there is no list of systems.
  """
  if not (results / 'systems.csv').is_file():
    raise InputError(f'{results}/systems.csv does not exist: give the directory of the records with --results')
  with (results / 'systems.csv').open(newline='') as f:
    systems = list(csv.DictReader(f))
  notes = {path.stem: path.read_text() for path in sorted(results.rglob('*.md'))}
  records = lambda directory: {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob('*.json'))}
  return systems, records(results), notes, {name: records(results / name) for name in FURTHER}


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string('results', 'results', 'Directory of the records.')
  flags.DEFINE_string('output', 'docs/systems.md', 'File to write.')
  flags.DEFINE_bool('check', False, 'Compare instead of writing.')


def main() -> None:
  """Writes or checks the page."""
  text, output = page(*read(Path(flags.FLAGS.results))), Path(flags.FLAGS.output)
  if flags.FLAGS.check:
    if not output.exists() or output.read_text() != text:
      raise InputError(f'{output} is not what {flags.FLAGS.results} gives: run python -m experiments.systems_table')
    return
  output.write_text(text)
  print(f'{output}: written')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
