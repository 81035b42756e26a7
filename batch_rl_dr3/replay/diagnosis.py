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
    if summary.frame_spread == 0:
      yield Finding(True, f'{file}: its frames are all the same.')
    elif summary.frame_change > _SHUFFLED_RATIO * summary.frame_spread:
      yield Finding(
        True,
        f'{file}: consecutive frames differ as much as distant ones '
        f'({summary.frame_change:.3g} and {summary.frame_spread:.3g}): its '
        'rows are not in time order.',
      )


def _duplicates(summaries: Sequence[FileSummary]) -> Iterator[Finding]:
  first: dict[str, int] = {}
  for summary in summaries:
    other = first.setdefault(summary.frames_digest, summary.suffix)
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
    if first.ends_in_episode and not second.starts_with_padding
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
        f'{summary.cursor}; rows from there on are older than those before, '
        'or were never written.',
      )
  num_padding = sum(summary.num_padding_rows for summary in summaries)
  if num_padding:
    yield Finding(
      False, f'{num_padding:,} rows are the zero padding that begins episodes.'
    )
