"""What the quantities of a report are, in words."""

from collections.abc import Mapping
from types import MappingProxyType

from batch_rl_dr3.reporting import intervals, preset, reference
from batch_rl_dr3.reporting.table import INCOMPLETE

QUANTITIES: Mapping[str, str] = MappingProxyType(
  {
    'Return': "The sum of an evaluation episode's rewards, not discounted, "
    'averaged over the episodes of an evaluation.',
    'TD loss': 'The Bellman error term of the training loss, without penalties '
    'such as DR3 or CQL, averaged over a sample of the data that is drawn once '
    'for the run.',
    'Feature dot product': "The mean over the same sample of φ(s, a)·φ(s', a')"
    ", φ being the input of the Q-network's last layer; DR3 penalises it "
    '(Kumar et al. 2022, arXiv:2112.04716).',
    'Effective rank': 'srank of the feature matrix: the smallest k for which '
    'the k largest singular values make up a share of at least 1 - δ of the '
    'sum of all, δ = 0.01 (Kumar et al. 2021, arXiv:2010.14498).',
  }
)

# Where a suite's reference scores are from.
_REFERENCES = {
  'atari': 'The reference scores are means over the last 5 iterations and 5 '
  "runs of Dopamine's published DQN curves.",
  'minatar': "The reference scores were measured by this package's `collect`: "
  '100,000 steps of random play; the last 50,000 of the 500,000 steps of the '
  'online DQN, with epsilon 0.1.',
}


def of_study(
  chosen: preset.Preset,
  normalisation: reference.Normalisation,
  bootstrap: intervals.Bootstrap,
) -> dict[str, str]:
  """Returns how the numbers of a study's page are made."""
  lengths = ', '.join(
    f'{steps:,} on {preset.dataset_name(dataset)}'
    for dataset, steps in chosen.datasets.items()
  )
  kept = ('Return', 'Feature dot product', 'Effective rank')
  return {
    'Final score, average over training': 'The paper reports "either [...] the '
    'average performance over the course of training or the final performance '
    f'at the end of training", the end being at so many gradient steps: '
    f'{lengths}. Here the final score of a run is the return of its last '
    'evaluation up to there, and its average is the mean of all evaluations up '
    'to there. Whether the authors smooth over the last evaluations is not in '
    'the text.',
    'Normalised score': f'{normalisation.formula}, in percent. How the paper '
    'normalises is not in its text; the final score of the online DQN, which '
    'made the data, is what it is taken to normalise by. '
    f'{_REFERENCES[chosen.suite]}',
    'IQM and intervals': 'The interquartile mean is that of all runs of all '
    'games without the lowest and the highest quarter. Intervals are 95% '
    'percentile intervals of a stratified bootstrap: runs are drawn again '
    f'within each game, {bootstrap.num_resamples:,} times, seed '
    f'{bootstrap.seed} (rliable 1.2.0; Agarwal et al. 2021, arXiv:2108.13264).',
    'Incomplete sets': 'Scores are of finished runs alone. A statistic over '
    'games needs as many runs of each, so where runs are missing it is of the '
    f'largest block of games and runs that there is; {INCOMPLETE} marks it.',
    **{name: QUANTITIES[name] for name in kept},
  }
