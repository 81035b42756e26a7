import pathlib
import shutil

import batch_rl_dr3


def test_without_a_checkout_one_line_says_what_is_needed(run_command, tmp_path):
  """As where the package is installed without its sources."""
  package = pathlib.Path(batch_rl_dr3.__file__).parent
  shutil.copytree(package, tmp_path / 'batch_rl_dr3')
  done = run_command('benchmark', '--quick', cwd=tmp_path)
  assert done.returncode == 64
  assert 'source checkout' in done.stderr
  assert done.stderr.count('\n') == 1
