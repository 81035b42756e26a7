import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import reference, run_reader


def _load(tmp_path):
  return run_reader.load([str(tmp_path / 'runs' / '*')])


def _sentences(tmp_path):
  return reference.differences(_load(tmp_path).runs)


def test_runs_that_are_alike_may_share_a_table(rem_pair):
  found = reference.differences(run_reader.load([rem_pair]).runs)
  assert found == []
  reference.refuse(found)


def test_data_protocol_rom_and_version_are_compared(make_run, tmp_path):
  make_run('rem')
  make_run(
    'cql',
    data={'hash': 'hash2'},
    protocol={'gamma': 0.9, 'epsilon_eval': 0.05},
    rom_md5='f00',
    numbers_version=2,
  )
  assert _sentences(tmp_path) == [
    'minatar: version of the numbers (1 in rem; 2 in cql)',
    'minatar breakout: md5 of the ROM (not recorded in rem; f00 in cql)',
    (
      'minatar breakout, 10pct, logged run 1, seed 0: hash of the data (hash1 '
      'in rem; hash2 in cql)'
    ),
    'minatar: epsilon_eval (0.001 in rem; 0.05 in cql)',
  ]


def test_data_sets_with_names_are_told_apart_by_them(make_run, tmp_path):
  """Not by their hashes, which say nothing."""
  for seed, version in enumerate(('v0', 'v2')):
    data = {'hash': version, 'name': 'hopper_medium', 'version': version}
    make_run('rem', name=version, data=data, seed=seed)
  assert _sentences(tmp_path) == [
    (
      'minatar breakout, 10pct, logged run 1: data set (hopper_medium v0 in '
      'v0; hopper_medium v2 in v2)'
    )
  ]


@pytest.mark.parametrize(
  ('setting', 'value'),
  [
    ('sticky_action_probability', 0.0),
    ('epsilon_eval', 0.05),
    ('num_evaluation_agent_steps', 1000),
    ('max_agent_steps_per_episode', 100),
    ('terminal_on_life_loss', True),
    ('anything_else', 'x'),
  ],
)
def test_a_mix_is_refused_with_the_field_and_the_runs(
  make_run, tmp_path, setting, value
):
  make_run('rem')
  make_run('rem', name='other', game='freeway', protocol={setting: value})
  with pytest.raises(errors.DataError) as caught:
    reference.refuse(reference.differences(_load(tmp_path).runs))
  message = str(caught.value)
  assert setting in message
  assert 'in rem' in message
  assert 'in other' in message
  assert '--allow_mixed' in message


def test_what_differs_between_games_by_nature_does_not_count(
  make_run, tmp_path
):
  protocol = {'gamma': 0.9, 'epsilon_eval': 0.001}
  make_run('rem', protocol=protocol | {'rom': 'breakout'}, rom_md5='a')
  make_run(
    'rem',
    name='b',
    game='freeway',
    protocol=protocol | {'rom': 'freeway'},
    rom_md5='b',
    data={'hash': 'hash3'},
  )
  make_run(
    'rem',
    name='c',
    run=2,
    protocol=protocol | {'rom': 'breakout'},
    rom_md5='a',
    data={'hash': 'hash2'},
  )
  make_run('rem', name='d', suite='atari', protocol={'epsilon_eval': 0.1})
  assert _sentences(tmp_path) == []


def test_many_runs_are_counted(make_run, tmp_path):
  for number in range(5):
    make_run(f'm{number}')
  make_run('rem', data={'hash': 'x'})
  (sentence,) = _sentences(tmp_path)
  assert 'hash1 in m0, m1, m2 and 2 more' in sentence


def test_seeds_may_have_data_of_their_own_which_is_said(make_run, tmp_path):
  for seed in range(2):
    for method in ('rem', 'cql'):
      make_run(
        method,
        name=f'{method}{seed}',
        seed=seed,
        data={'hash': f'hash{seed}'},
      )
  assert _sentences(tmp_path) == []
  (note,) = reference.data_notes(_load(tmp_path).runs)
  assert 'breakout, 10pct' in note


def test_the_hash_of_the_data_has_several_places(make_run, tmp_path):
  make_run('rem', data={'data_hash': 'h'})
  make_run('cql', data={}, data_hash='h')
  make_run('dqn', data=None)
  hashes = [run.data_hash for run in _load(tmp_path).runs]
  assert hashes == [None, 'h', 'h']


def test_roms_are_compared_with_those_of_the_logged_data(make_run, tmp_path):
  def atari(game, rom_md5):
    make_run('rem', name=game, suite='atari', game=game, rom_md5=rom_md5)

  # The md5 of atari-py 0.2.5's pong.bin and of ale-py's space_invaders.bin.
  atari('Pong', '60e0ea3cbe0913d39803477945e9e5ec')
  atari('SpaceInvaders', '72ffbef6504b75e69ee1045af9075f66')
  atari('Breakout', None)
  atari('Haunted', 'f00')
  make_run('rem', name='minatar', rom_md5=None)
  lines = list(reference.rom_notes(_load(tmp_path).runs))
  assert [line.partition(' were')[0].partition(' do')[0] for line in lines] == [
    'Runs of SpaceInvaders',
    'Runs of Breakout',
    (
      'Runs of Haunted have no ROM in atari-py 0.2.5, so which one the logged '
      'data was made with is unknown.'
    ),
  ]
