"""The notebooks: kept without outputs, and executed."""

import json
import os
import pathlib
import sys

import pytest

NOTEBOOKS = sorted(
  (pathlib.Path(__file__).resolve().parent.parent / 'notebooks').glob('*.ipynb')
)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
  cells = json.loads(path.read_text())['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  assert code
  assert not any(cell['outputs'] or cell['execution_count'] for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_executed(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  # The kernel of this environment, whatever else is installed for the user.
  kernels = tmp_path / 'kernels' / 'python3'
  kernels.mkdir(parents=True)
  argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
  (kernels / 'kernel.json').write_text(
    json.dumps({'argv': argv, 'display_name': 'here', 'language': 'python'})
  )
  monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
  root = str(path.parent.parent)
  monkeypatch.setenv(
    'PYTHONPATH', os.pathsep.join([root, os.environ.get('PYTHONPATH', '')])
  )
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=900, resources={'metadata': {'path': str(tmp_path)}}
  ).execute()
  runs = tmp_path / 'runs' / 'notebook'
  assert (runs / 'report' / 'index.html').exists()
  assert (runs / 'exported' / 'README.md').exists()
  outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
  assert any('image/png' in o.get('data', {}) for o in outputs)
