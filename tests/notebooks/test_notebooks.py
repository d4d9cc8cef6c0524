"""Every notebook runs from its first cell to its last, and is what its source says."""

from pathlib import Path

import jupytext
from nbclient import NotebookClient
import pytest

NOTEBOOKS = Path(__file__).parents[2] / 'notebooks'
SOURCES = sorted(NOTEBOOKS.glob('*.py'))


@pytest.mark.parametrize('source', SOURCES, ids=lambda path: path.stem)
def test_the_notebook_is_its_source(source):
  cells = [[(cell.cell_type, cell.source) for cell in jupytext.read(path).cells] for path in (source, source.with_suffix('.ipynb'))]
  assert cells[0] == cells[1], f'jupytext --to ipynb {source.name}'


@pytest.mark.slow
@pytest.mark.parametrize('source', SOURCES, ids=lambda path: path.stem)
def test_the_notebook_runs(source, monkeypatch):
  monkeypatch.setenv('NOTEBOOK_STEPS', '20')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  notebook = jupytext.read(source)
  NotebookClient(notebook, timeout=500, kernel_name='python3', resources={'metadata': {'path': str(NOTEBOOKS)}}).execute()
  assert 'bayes_accuracy' in str(notebook.cells[-1].outputs)
