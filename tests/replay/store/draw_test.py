"""The subset rules that draw, from the draw to the batch."""

import itertools

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store import subset as draw_subset
from batch_rl_dr3.replay.store.subset import Subset

GAMMA = 0.9


@pytest.fixture
def open_store(tmp_path, logs):
  def call(folder, subset, stack_size=logs.STACK_SIZE, cache='cache', **kwargs):
    return replay_store.open_store(
      folder,
      tmp_path / cache,
      subset,
      logs.SHAPE,
      logs.NUM_ACTIONS,
      stack_size,
      **kwargs,
    )

  return call


@pytest.fixture(params=[0, 77])
def log(request, tmp_path, logs):
  """Full files of Dopamine's; with the cursor at 77, stacks wrap around."""
  folder = tmp_path / 'log'
  logs.write_with_dopamine(
    folder, logs.make_transitions(640), cursor=request.param
  )
  return folder


def _drawn_per_file(store):
  """Yields each segment, its rows of the store drawn, and those of its file."""
  rows, source_rows = store.valid_indices(), store.source_rows()
  for segment in store.segments:
    end = segment.first_row + segment.num_rows
    inside = rows[(rows >= segment.first_row) & (rows < end)]
    yield segment, inside, source_rows[inside]


def test_rows_needed_by_hand():
  needed = draw_subset.rows_needed(np.array([4, 6]), 10, stack_size=2)
  assert needed.tolist() == [3, 4, 5, 6, 7]
  # Around the end: rows 8, 9, 0, 1 for a stack of 3 at row 0.
  needed = draw_subset.rows_needed(np.array([0]), 10, stack_size=3)
  assert needed.tolist() == [0, 1, 8, 9]


@pytest.mark.parametrize('max_resident_bytes', [1 << 30, 0])
def test_transitions_equal_dopamine(log, logs, open_store, max_resident_bytes):
  store = open_store(
    log, Subset('uniform', 0.3), max_resident_bytes=max_resident_bytes
  )
  store.hold_frames()
  for segment, rows, source_rows in _drawn_per_file(store):
    buffer = logs.load_with_dopamine(log, segment.suffix, gamma=GAMMA)
    assert set(source_rows) <= set(logs.valid_with_dopamine(buffer))
    expected = buffer.sample_transition_batch(len(rows), source_rows)
    batch = store.gather(rows, 1, GAMMA)
    for ours, theirs in zip(batch[:-1], expected[:-1], strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_counts_are_exact_and_frames_stored_once(log, open_store):
  num_rows = open_store(log, Subset()).num_rows
  store = open_store(log, Subset('uniform', 0.17))
  assert len(store.valid_indices()) == int(num_rows * 17) // 100
  assert sum(s.num_drawn for s in store.segments) == len(store.valid_indices())
  assert store.num_rows < 5 * len(store.valid_indices())
  for segment, _, _ in _drawn_per_file(store):
    rows = store.source_rows()[segment.first_row :][: segment.num_rows]
    assert (np.diff(rows) > 0).all()
  assert store.manifest['subset'] == {
    'rule': 'uniform',
    'fraction': 0.17,
    'seed': 0,
  }
  assert store.manifest['stack_size'] == 4


def test_partly_filled_files_are_drawn_from_too(tmp_path, logs, open_store):
  folder = tmp_path / 'partly'
  logs.write_with_dopamine(folder, logs.make_transitions(100), final=True)
  store = open_store(folder, Subset('uniform', 0.1))
  add_count = store.segments[0].add_count
  assert add_count < store.segments[0].num_rows_in_source == 200
  assert len(store.valid_indices()) == add_count // 10
  ((segment, rows, source_rows),) = _drawn_per_file(store)
  buffer = logs.load_with_dopamine(folder, segment.suffix, gamma=GAMMA)
  expected = buffer.sample_transition_batch(len(rows), source_rows)
  batch = store.gather(rows, 1, GAMMA)
  np.testing.assert_array_equal(batch.states, expected[0])
  np.testing.assert_array_equal(batch.next_states, expected[3])


def test_the_seed_names_the_draw(log, open_store):
  def drawn(store):
    return [
      (segment.suffix, row)
      for segment, _, rows in _drawn_per_file(store)
      for row in rows.tolist()
    ]

  first = open_store(log, Subset('uniform', 0.2, 5))
  again = open_store(log, Subset('uniform', 0.2, 5), cache='other')
  other = open_store(log, Subset('uniform', 0.2, 6))
  assert first.data_hash == again.data_hash != other.data_hash
  assert drawn(first) == drawn(again) != drawn(other)


def test_draws_are_uniform_without_replacement():
  rng = np.random.default_rng(0)
  masks = [rng.random(n) < p for n, p in ((40, 0.9), (30, 0.5), (10, 1))]
  num_valid = [int(mask.sum()) for mask in masks]
  rows_to_draw = [np.flatnonzero(mask) for mask in masks]
  counts = [np.zeros(len(mask)) for mask in masks]
  num_draws, count = 3000, 20
  for seed in range(num_draws):
    drawn = draw_subset.draw_rows(rows_to_draw, count, seed)
    assert sum(map(len, drawn)) == count
    for per_file, rows in zip(counts, drawn, strict=True):
      assert (np.diff(rows) > 0).all()
      per_file[rows] += 1
  for per_file, mask in zip(counts, masks, strict=True):
    assert not per_file[~mask].any()
  hits = np.concatenate([c[m] for c, m in zip(counts, masks, strict=True)])
  # Each row is in a draw with probability count / total.
  share = count / sum(num_valid)
  deviations = (hits - num_draws * share) / np.sqrt(
    num_draws * share * (1 - share)
  )
  assert np.abs(deviations).max() < 5
  assert 0.6 < (deviations**2).mean() < 1.5


def test_more_than_there_is_cannot_be_drawn(log, open_store):
  with pytest.raises(errors.ConfigError, match='smaller Subset'):
    open_store(log, Subset('uniform', 1.0))


def test_stacks_of_another_size_are_another_store(log, open_store):
  subset = Subset('uniform', 0.2)
  short = open_store(log, subset, stack_size=2)
  assert short.folder != open_store(log, subset).folder
  with pytest.raises(errors.ConfigError, match='stacks of 2'):
    replay_store.ReplayStore(short.folder, 4).valid_indices()


def test_longer_transitions_and_returns_are_refused(log, open_store):
  store = open_store(log, Subset('uniform', 0.2))
  with pytest.raises(errors.ConfigError, match='transitions of 1 step'):
    store.valid_indices(3)
  with pytest.raises(errors.ConfigError, match='no Monte-Carlo returns'):
    store.returns_to_go(GAMMA)


@pytest.mark.parametrize(
  'subset',
  [Subset('prefix', 0.4), Subset('first', 0.3), Subset('uniform', 0.2, 5)],
)
def test_held_out_transitions_are_no_part_of_the_subset(
  log, logs, open_store, subset
):
  learnt = open_store(log, subset)
  held_out = open_store(log, subset.held_out(50))
  states = {
    (segment.suffix, row + offset)
    for segment, _, rows in _drawn_per_file(learnt)
    for row in rows
    for offset in (0, 1)  # s and s'.
  }
  drawn = {
    (segment.suffix, row)
    for segment, _, rows in _drawn_per_file(held_out)
    for row in rows
  }
  assert len(drawn) == 50
  assert not drawn & states
  for segment, rows, source_rows in _drawn_per_file(held_out):
    buffer = logs.load_with_dopamine(log, segment.suffix, gamma=GAMMA)
    expected = buffer.sample_transition_batch(len(rows), source_rows)
    for ours, theirs in zip(
      held_out.gather(rows, 1, GAMMA)[:-1], expected[:-1], strict=True
    ):
      np.testing.assert_array_equal(ours, theirs)


def test_held_out_transitions_are_all_there_are_at_most(log, open_store):
  learnt = open_store(log, Subset('prefix', 0.9))
  held_out = open_store(log, Subset('prefix', 0.9).held_out(10_000))
  num_learnt = {s.suffix: s.num_rows for s in learnt.segments}
  everything, drawn = (
    {
      (segment.suffix, row)
      for segment, _, rows in _drawn_per_file(store)
      for row in rows
    }
    for store in (open_store(log, Subset()), held_out)
  )
  assert drawn == {(s, row) for s, row in everything if row >= num_learnt[s]}


def test_episodes_by_hand():
  # Whole episodes are rows 2-4 and 5-6; what begins or ends outside is none.
  terminals = np.array([0, 1, 0, 0, 1, 0, 1, 0], np.uint8)
  assert sorted(draw_subset.draw_episodes(terminals, 5, [0])) == [2, 3, 4, 5, 6]
  firsts = {
    tuple(draw_subset.draw_episodes(terminals, 1, [seed])) for seed in range(20)
  }
  assert firsts == {(2, 3, 4), (5, 6)}


def test_whole_episodes_are_drawn_from_each_file(log, logs, open_store):
  store = open_store(log, Subset('episodes', 0.2, 3))
  whole = open_store(log, Subset())
  terminals = {
    s.suffix: whole.terminals[s.first_row :][: s.num_rows]
    for s in whole.segments
  }
  valid = {s.suffix: s for s in whole.segments}
  for segment, rows, source_rows in _drawn_per_file(store):
    own = valid[segment.suffix]
    order = own.rows_in_time() - own.first_row
    ends = np.flatnonzero(terminals[segment.suffix][order]) + 1
    pieces = [order[a:b] for a, b in itertools.pairwise(ends)]
    drawn = set(source_rows.tolist())
    taken = [p for p in pieces if drawn & set(p.tolist())]
    # All that can be sampled of these episodes, and nothing else.
    sampleable = whole.valid_indices() - own.first_row
    everything = np.intersect1d(np.concatenate(taken), sampleable)
    assert drawn == set(everything.tolist())
    # At least a fifth of the file's rows, and not without the last episode.
    lengths = [len(piece) for piece in taken]
    assert sum(lengths) - max(lengths) < own.num_rows // 5
    buffer = logs.load_with_dopamine(log, segment.suffix, gamma=GAMMA)
    expected = buffer.sample_transition_batch(len(rows), source_rows)
    batch = store.gather(rows, 1, GAMMA)
    for ours, theirs in zip(batch[:-1], expected[:-1], strict=True):
      np.testing.assert_array_equal(ours, theirs)
  other = open_store(log, Subset('episodes', 0.2, 4))
  assert other.data_hash != store.data_hash


def test_what_is_held_out_of_episodes_is_not_in_them(log, open_store):
  subset = Subset('episodes', 0.3)
  stores = (
    open_store(log, subset),
    open_store(log, subset.held_out(9)),
  )
  states, drawn = (
    {
      (segment.suffix, row)
      for segment, _, rows in _drawn_per_file(store)
      for row in rows
    }
    for store in stores
  )
  assert len(drawn) == 9
  assert not drawn & states


def test_a_log_without_a_whole_episode_has_none_to_draw(
  tmp_path, logs, open_store
):
  transitions = [t._replace(terminal=0) for t in logs.make_transitions(50)]
  logs.write_log(tmp_path / 'endless', transitions)
  with pytest.raises(errors.ConfigError, match='a whole episode'):
    open_store(tmp_path / 'endless', Subset('episodes', 0.5))
