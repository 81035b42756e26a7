"""What is wrong with a log, and what a reader of it has to allow for.

Every check is a trap that the DQN Replay format is known for, or a kind of
damage that no checksum shows.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools

from batch_rl_dr3.replay.inspection import FileSummary

# Consecutive frames differ less than distant ones. Where the ratio of the two
# is above this, the rows are not in time order.
_SHUFFLED_RATIO = 0.9
# The last frame of a file is stale where it differs so many times as much from
# the one before as frames do on average.
_STALE_RATIO = 5
# A file with fewer rows than this says nothing about how frames change.
_FEW_ROWS = 20


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something about a log that a user should know.

  Attributes:
    is_fault: whether training on the log as it is would be wrong; else it is
      a property of the format that a reader has to allow for.
    message: one sentence.
  """

  is_fault: bool
  message: str


def diagnose(
  summaries: Sequence[FileSummary],
  num_actions: int | None = None,
  max_agent_steps_per_episode: int = 27_000,
) -> list[Finding]:
  """Returns what a log shows of the format's traps, faults first.

  Args:
    summaries: of all files, in time order.
    num_actions: int, of the game; None does not check the actions.
    max_agent_steps_per_episode: int, the time limit that the log was played
      under.
  """
  findings = [
    *_file_faults(summaries, num_actions),
    *_duplicates(summaries),
    *_traits(summaries, max_agent_steps_per_episode),
  ]
  return sorted(findings, key=lambda finding: not finding.is_fault)


def _file_faults(
  summaries: Sequence[FileSummary], num_actions: int | None
) -> Iterator[Finding]:
  for summary in summaries:
    file = f'file {summary.suffix}'
    low, high = summary.reward_range
    if low < -1 or high > 1:
      yield Finding(
        True, f'{file}: rewards are not clipped: {low:g} to {high:g}.'
      )
    if num_actions is not None and summary.max_action >= num_actions:
      yield Finding(
        True,
        f'{file}: action {summary.max_action} in a game of {num_actions} '
        'actions: data of another game?',
      )
    if summary.num_rows < _FEW_ROWS:
      continue
    yield from _frame_faults(summary)


def _frame_faults(summary: FileSummary) -> Iterator[Finding]:
  file, frames = f'file {summary.suffix}', summary.frames
  if all(change.far == 0 for change in frames.changes):
    yield Finding(True, f'{file}: its frames are all the same.')
    return
  shuffled = [
    change
    for change in frames.changes
    if change.near > _SHUFFLED_RATIO * change.far > 0
  ]
  if shuffled:
    first = shuffled[0]
    yield Finding(
      True,
      f'{file}: from row {first.first_row} on, consecutive frames differ as '
      f'much as distant ones ({first.near:.3g} and {first.far:.3g}): its rows '
      f'are not in time order, in {len(shuffled)} of {len(frames.changes)} '
      'stretches looked at.',
    )
  if frames.num_unpadded:
    yield Finding(
      True,
      f'{file}: {frames.num_unpadded} episodes do not begin with blank frames '
      'of padding. Were states of another --stack_size logged?',
    )


def _duplicates(summaries: Sequence[FileSummary]) -> Iterator[Finding]:
  first: dict[str, int] = {}
  for summary in summaries:
    other = first.setdefault(summary.frames.digest, summary.suffix)
    if other != summary.suffix:
      yield Finding(
        True, f'file {summary.suffix} begins with the frames of file {other}.'
      )


def _traits(
  summaries: Sequence[FileSummary], max_agent_steps_per_episode: int
) -> Iterator[Finding]:
  crossing = [
    f'{first.suffix}-{second.suffix}'
    for first, second in itertools.pairwise(summaries)
    if second.follows_before
    and first.ends_in_episode
    and not second.starts_with_padding
  ]
  if crossing:
    yield Finding(
      False,
      f'episodes go on from file to file at {", ".join(crossing)}.',
    )
  num_cut = sum(
    int((s.episode_lengths >= max_agent_steps_per_episode).sum())
    for s in summaries
  )
  if num_cut:
    yield Finding(
      False,
      f'{num_cut} episodes last the {max_agent_steps_per_episode:,} agent '
      'steps of the time limit and are logged as ending in a terminal.',
    )
  for summary in summaries:
    if summary.cursor:
      yield Finding(
        False,
        f'file {summary.suffix}: its buffer was saved with the cursor at row '
        f'{summary.cursor}; rows from there on are older than those before.',
      )
  yield from _stale_rows(summaries)
  num_padding = sum(summary.num_padding_rows for summary in summaries)
  if num_padding:
    yield Finding(
      False, f'{num_padding:,} rows are the zero padding that begins episodes.'
    )


def _stale_rows(summaries: Sequence[FileSummary]) -> Iterator[Finding]:
  """Yields the files whose last frame does not go on from the one before."""
  stale = []
  for summary in summaries:
    change, frames = summary.frames.last_change, summary.frames.changes
    if change is None or not summary.ends_in_episode:
      continue
    near = sum(stretch.near for stretch in frames) / len(frames)
    far = sum(stretch.far for stretch in frames) / len(frames)
    if change > max(_STALE_RATIO * near, _SHUFFLED_RATIO * far):
      stale.append(str(summary.suffix))
  if stale:
    yield Finding(
      False,
      f'the last frame does not go on from the one before it in files '
      f'{", ".join(stale)}: it is stale, or a cut in the picture. The last '
      'transition of these files may have a wrong next state.',
    )
