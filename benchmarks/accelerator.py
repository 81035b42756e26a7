"""The compiled training step on an accelerator: is it right, and how fast?

With TensorFlow on a GPU, beside the plain step on the CPU and Dopamine's own
loop on the same card:

  python -m benchmarks.accelerator measure --output=accelerator.json

TensorFlow is too large to carry to a machine that is borrowed for minutes; the
step as StableHLO is not. Made where the package is installed, run where jax is
(0.4.35 or later) and nothing else of this package but this file:

  python -m benchmarks.accelerator export --output=EXPORTED
  python accelerator.py run EXPORTED --output=accelerator.json

`export` writes a folder for CQL and for REM, each with DR3, in each dtype, 20
MB each: the compiled steps lowered for a GPU (--platform=CPU for a test), their
arguments, and the losses of the plain step on this CPU after 1 to 10 steps, two
copies of the target network among them. `run` compares losses and times calls
of 1, 10, 100 and 1,000 steps. What a step takes in calls of 1,000 over what it
takes in shorter ones is the share of the time that the device works.
"""

import argparse
import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
import importlib
import json
import pathlib
import re
import tempfile
import time
from typing import Any

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_Row = dict[str, Any]

SETTINGS = [
  (method, dtype)
  for method in ('cql', 'rem')
  for dtype in ('float32', 'bfloat16')
]
NUM_COMPARED = 10
TARGET_UPDATE_PERIOD = 4  # Gradient steps, so that ten hold two copies.
STEPS_PER_CALL = (1, 10, 100, 1000)
NUM_ROWS = 2000  # Of the made-up log.
# Seconds for which a rate is measured, and in how many parts.
_SECONDS, _PARTS = 5.0, 5
# What is counted in a module.
_OPERATIONS = ('while', 'fusion', 'convolution', 'dot', 'custom-call', 'sort')
_COPIES = ('copy', 'transpose', 'convert', 'gather')


def rate(
  call: Callable[[int], object], num_steps: int, seconds: float = _SECONDS
) -> _Row:
  """Returns steps/s of `call(num_steps)`: median and range over parts."""
  call(num_steps)  # Compiles, or warms up.
  rates = []
  for _ in range(_PARTS):
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds / _PARTS:
      call(num_steps)
      count += num_steps
    rates.append(count / elapsed)
  low, median, high = np.quantile(rates, [0, 0.5, 1]).tolist()
  return {'steps_per_second': median, 'lowest': low, 'highest': high}


def count_operations(hlo: str) -> dict[str, int]:
  """Returns how often a module's text names some operations."""
  found = collections.Counter(re.findall(r'= \S+(?: \S+)*? ([a-z-]+)\(', hlo))
  return {name: found[name] for name in _OPERATIONS + _COPIES}


def worst_difference(
  losses: dict[str, float], expected: dict[str, float]
) -> float:
  """Returns the largest relative difference of a loss from what is expected."""
  return max(
    abs(losses[name] - value) / max(abs(value), 1e-6)
    for name, value in expected.items()
  )


# With TensorFlow and this package.


def _agents(
  folder: pathlib.Path,
) -> tuple[Callable[..., Any], Callable[[str], Callable[[], Any]]]:
  """Returns what makes agents on one made-up log: (method, dtype, ...)."""
  from benchmarks import setups

  problem = setups.ATARI
  log = setups.write_log(folder, problem, NUM_ROWS)
  store = setups.open_store(log, folder / 'cache', problem)

  def make(method: str, dtype: str, **kwargs: Any) -> Any:
    return setups.agent(
      problem,
      store,
      method,
      compute_dtype=dtype,
      target_update_period=TARGET_UPDATE_PERIOD,
      **kwargs,
    )

  def make_stock(method: str) -> Callable[[], Any]:
    return setups.stock_step(setups.stock_agent(problem, store, method))

  return make, make_stock


def _plain_losses(agent: Any) -> list[dict[str, float]]:
  step = agent.make_train_step()
  return [
    {name: float(value) for name, value in step().items()}
    for _ in range(NUM_COMPARED)
  ]


def lower(agent: Any, platform: str) -> tuple[list[_Array], bytes]:
  """Returns the arguments of an agent's compiled steps, and their HLO."""
  import tensorflow as tf
  from tensorflow.python.eager import context

  steps = agent.compiled_steps()
  # The last is the number of steps.
  arguments = agent._sess.run(steps.arguments[:-1])
  specs = [tf.TensorSpec(a.shape, a.dtype) for a in steps.arguments]
  with context.eager_mode():
    function = tf.function(steps, jit_compile=True, autograph=False)
    lowered = function.experimental_get_compiler_ir(*specs)
    hlo = lowered(stage='hlo_serialized', platform_name=platform)
  return [np.asarray(value) for value in arguments], hlo


def portable(hlo: bytes) -> tuple[bytes, int]:
  """Returns a serialised HLO module as StableHLO, and how many results it has.

  HLO has one result, a tuple, where jax expects several.
  """
  # Their stubs miss half of what is there.
  mlir: Any = importlib.import_module('jax._src.interpreters.mlir')
  xla: Any = importlib.import_module('jaxlib.xla_client')
  ir: Any = importlib.import_module('jaxlib.mlir.ir')
  func: Any = importlib.import_module('jaxlib.mlir.dialects.func')
  stablehlo: Any = importlib.import_module('jaxlib.mlir.dialects.stablehlo')
  text = xla._xla.mlir.xla_computation_to_mlir_module(xla.XlaComputation(hlo))
  with mlir.make_ir_context(), ir.Location.unknown():
    module = ir.Module.parse(text)
    (main,) = (f for f in module.body if ir.StringAttr(f.name).value == 'main')
    block = main.body.blocks[0]
    *_, returned = block.operations
    made = returned.operands[0].owner
    results = list(made.operands)
    with ir.InsertionPoint(returned):
      func.ReturnOp(results)
    returned.operation.erase()
    made.erase()
    main.attributes['function_type'] = ir.TypeAttr.get(
      ir.FunctionType.get(main.type.inputs, [r.type for r in results])
    )
    artifact = stablehlo.serialize_portable_artifact(
      module, stablehlo.get_current_version()
    )
  return artifact, len(results)


def _save_arguments(folder: pathlib.Path, values: list[_Array]) -> None:
  """Writes arrays, those of zeros and those that are there already by name."""
  recipe: list[_Row] = []
  arrays: dict[str, _Array] = {}
  for index, value in enumerate(values):
    entry: _Row = {'shape': value.shape, 'dtype': str(value.dtype)}
    same = [
      name
      for name, array in arrays.items()
      if array.dtype == value.dtype and np.array_equal(array, value)
    ]
    if same:
      entry['array'] = same[0]
    elif value.any():
      entry['array'] = str(index)
      arrays[str(index)] = value
    recipe.append(entry)
  np.savez_compressed(folder / 'arguments.npz', **arrays)
  (folder / 'arguments.json').write_text(json.dumps(recipe))


def export(
  output: pathlib.Path, platform: str, settings: Sequence[Sequence[str]]
) -> None:
  """Writes a folder for each setting that `run` reads."""
  with tempfile.TemporaryDirectory() as name:
    make, _ = _agents(pathlib.Path(name))
    for method, dtype in settings:
      folder = output / f'{method}_dr3_{dtype}'
      folder.mkdir(parents=True, exist_ok=True)
      agent = make(method, dtype)
      values, hlo = lower(agent, platform)
      artifact, num_results = portable(hlo)
      (folder / 'steps.stablehlo').write_bytes(artifact)
      _save_arguments(folder, values)
      names = sorted(agent.loss_parts.by_name)
      expected: _Row = {
        'platform': platform,
        'part_names': names,
        'num_state': num_results - len(names),
        'losses': _plain_losses(make(method, dtype)),
      }
      (folder / 'expected.json').write_text(json.dumps(expected, indent=1))
      print(f'{folder}: losses {expected["losses"][-1]}')


def _repeat(step: Callable[[], object], num_steps: int) -> None:
  for _ in range(num_steps):
    step()


def measure() -> list[_Row]:
  """Returns rows on TensorFlow's compiled steps on this machine's GPU."""
  import tensorflow as tf

  if not tf.config.list_physical_devices('GPU'):
    raise SystemExit(
      'TensorFlow finds no GPU here: install tensorflow[and-cuda] on a machine '
      'that has one, or use export and run.'
    )
  card = tf.config.experimental.get_device_details(
    tf.config.list_physical_devices('GPU')[0]
  )['device_name']
  rows = []
  with tempfile.TemporaryDirectory() as name:
    make, make_stock = _agents(pathlib.Path(name))
    for method in ('cql', 'rem'):
      step = make_stock(method)
      # Its steps are one a call, however many are asked for.
      stock = rate(functools.partial(_repeat, step), 10)
      rows.append(_row(card, method, 'float32', 'stock Dopamine', 1, stock))
    for method, dtype in SETTINGS:
      with tf.device('/cpu:0'):
        expected = _plain_losses(make(method, dtype, device='cpu'))
      agent = make(method, dtype, device='gpu')
      call = agent.make_compiled_steps('gpu')
      worst = worst_difference(call(NUM_COMPARED), expected[-1])
      for count in STEPS_PER_CALL:
        found = rate(call, count) | {'worst_loss_difference': worst}
        memory = tf.config.experimental.get_memory_info('GPU:0')
        found['peak_bytes'] = memory['peak']
        rows.append(_row(card, method, dtype, 'compiled', count, found))
  return rows


def _row(
  card: str, method: str, dtype: str, what: str, count: int, found: _Row
) -> _Row:
  row = {
    'device': card,
    'method': f'{method}_dr3',
    'dtype': dtype,
    'what': what,
    'steps_per_call': count,
    **found,
  }
  print(row, flush=True)
  return row


# With jax alone.


def load(
  folder: pathlib.Path,
) -> tuple[Callable[..., Any], list[_Array], _Row, str]:
  """Returns the compiled steps, their first state, what is expected, the HLO.

  jax.export wraps a module of its own making; here it is one of the same
  arguments and results, whose code is then that of the artifact.
  """
  import jax
  from jax import export as jax_export
  import jax.numpy as jnp

  jax.config.update('jax_enable_x64', True)  # type: ignore[no-untyped-call]
  expected = json.loads((folder / 'expected.json').read_text())
  recipe = json.loads((folder / 'arguments.json').read_text())
  arrays = np.load(folder / 'arguments.npz')
  values = [
    arrays[entry['array']]
    if 'array' in entry
    else np.zeros(entry['shape'], entry['dtype'])
    for entry in recipe
  ]
  num_parts = len(expected['part_names'])

  def same_signature(state: Any, data: Any, num_steps: Any) -> list[Any]:
    del data, num_steps
    return [*state, *(jnp.zeros([], jnp.float32) for _ in range(num_parts))]

  artifact = (folder / 'steps.stablehlo').read_bytes()
  num_state = expected['num_state']
  state, data = values[:num_state], values[num_state:]
  made = jax_export.export(jax.jit(same_signature, keep_unused=True))(
    state, data, np.int64(0)
  )
  made = dataclasses.replace(made, mlir_module_serialized=artifact)
  # The old state's memory is the new one's.
  jitted: Any = jax.jit(made.call, donate_argnums=0)
  arguments = (jax.device_put(state), jax.device_put(data), np.int64(1))
  steps = jitted.lower(*arguments).compile()

  def call(state: Any, num_steps: int) -> tuple[Any, dict[str, float]]:
    results = steps(state, arguments[1], np.int64(num_steps))
    parts = [float(part) for part in results[num_state:]]
    return results[:num_state], dict(
      zip(expected['part_names'], parts, strict=True)
    )

  return call, state, expected, steps.as_text()


def run(
  exported: pathlib.Path,
  steps_per_call: Sequence[int] = STEPS_PER_CALL,
  seconds: float = _SECONDS,
) -> list[_Row]:
  """Returns rows on the steps of the folders that `export` wrote."""
  import jax

  device = jax.devices()[0]
  print(f'jax {jax.__version__} on {device.device_kind}')
  rows = []
  for path in sorted(exported.glob('*/expected.json')):
    name = path.parent.name
    method, _, dtype = name.split('_')
    call, start, expected, hlo = load(path.parent)
    worst = 0.0
    for count in (1, 3, NUM_COMPARED):
      _, losses = call(jax.device_put(start), count)
      plain = expected['losses'][count - 1]
      worst = max(worst, worst_difference(losses, plain))
    print(f'{name}: losses differ by at most {worst:.1e}')
    print(f'{name}: {count_operations(hlo)}')
    for count in steps_per_call:
      state = jax.device_put(start)

      def again(num_steps: int, call: Callable[..., Any] = call) -> None:
        nonlocal state
        state, _ = call(state, num_steps)

      found = rate(again, count, seconds) | {'worst_loss_difference': worst}
      memory = device.memory_stats() or {}
      found['peak_bytes'] = memory.get('peak_bytes_in_use')
      rows.append(
        _row(device.device_kind, method, dtype, 'compiled', count, found)
      )
  return rows


def main() -> None:
  """Runs a subcommand."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  commands = parser.add_subparsers(dest='command', required=True)
  for name in ('measure', 'export', 'run'):
    command = commands.add_parser(name)
    command.add_argument('--output', type=pathlib.Path, required=True)
  running = commands.choices['run']
  running.add_argument('exported', type=pathlib.Path)
  running.add_argument('--seconds', type=float, default=_SECONDS)
  running.add_argument(
    '--steps_per_call', type=int, nargs='+', default=STEPS_PER_CALL
  )
  exporting = commands.choices['export']
  exporting.add_argument('--platform', choices=('GPU', 'CPU'), default='GPU')
  exporting.add_argument(
    '--settings',
    nargs='+',
    default=['_'.join(setting) for setting in SETTINGS],
    help='such as cql_float32',
  )
  flags = parser.parse_args()
  if flags.command != 'run':
    import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)
  if flags.command == 'export':
    settings = [name.split('_') for name in flags.settings]
    export(flags.output, flags.platform, settings)
    return
  if flags.command == 'measure':
    rows = measure()
  else:
    rows = run(flags.exported, flags.steps_per_call, flags.seconds)
  flags.output.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  main()
