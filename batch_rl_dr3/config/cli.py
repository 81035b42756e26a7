"""What every command shares: flags, gin configuration, errors, exit codes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import errno
import json
import os
import pathlib
import re
import sys
import traceback

from absl import flags, logging
import gin

from batch_rl_dr3.config import (
  errors,
  flag_tables,
  gin_files,
  own_code,
  signals,
)

FLAGS = flags.FLAGS

# Names a file, in the environment, that an error of a command is described in
# as JSON, for a program that started it.
ENDING = 'BATCH_RL_DR3_ENDING'
# A disk, or somebody's share of it, that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

flags.DEFINE_boolean('help', False, 'Show this help.', short_name='h')
flags.DEFINE_boolean(
  'debug', False, 'Show the whole traceback when the command fails.'
)


def define_shared(*tables: str, cache_dir: str | None = None) -> None:
  """Defines flags that several commands have: those of gin, code and cache.

  `cache_dir` is the help of --cache_dir, if it is not the usual one.
  """
  trust_help = (
    'Let gin files import any module and name any function. Without it they '
    f'may import batch_rl_dr3 and {", ".join(gin_files.ALLOWED_IMPORTS)}, and '
    'what else would execute foreign code is refused.'
  )
  cache = {'help': cache_dir} if cache_dir else {}
  for table in tables:
    flag_tables.define(
      table,
      trust_gin={'help': trust_help},
      cache_dir={'default': default_cache_dir(), **cache},
    )


def need(*names: str, why: str = '') -> None:
  """Raises UsageError unless each flag has a value."""
  for name in names:
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed{why} (see --help).')


def find_imports() -> tuple[own_code.OwnCode, ...]:
  """Returns what --import names; see `own_code.find`."""
  return own_code.find(FLAGS['import'].value or ())


def trusts_gin() -> bool:
  """Returns whether --trust_gin was given."""
  return FLAGS.is_parsed() and bool(getattr(FLAGS, 'trust_gin', False))


def default_cache_dir() -> str:
  """Returns where stores are kept if nobody says so."""
  return os.path.join(
    os.environ.get('XDG_CACHE_HOME') or str(pathlib.Path.home() / '.cache'),
    'batch_rl_dr3',
  )


def load_gin(
  files: Sequence[str],
  bindings: Sequence[str],
  imports: Sequence[own_code.OwnCode] = (),
) -> None:
  """Parses gin files and bindings, as the flags of the same names give them.

  What they may name besides, `imports`, is executed first.

  Raises:
    ConfigError: if a file is missing, names something that does not exist, or
      would execute foreign code and --trust_gin was not given.
  """
  gin.add_config_file_search_path(str(gin_files.shipped_configs()))
  paths = _find_gin_files(files, bindings, imports)
  own_code.load(imports)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)  # Gin logs each place it looks in.
  try:
    gin.parse_config_files_and_bindings(paths, bindings, skip_unknown=False)
  except Exception as error:  # Gin raises many kinds for a wrong file.
    raise errors.ConfigError(f'gin: {errors.one_line(error)}') from error
  finally:
    logging.set_verbosity(verbosity)


def _find_gin_files(
  files: Sequence[str],
  bindings: Sequence[str],
  imports: Sequence[own_code.OwnCode],
) -> list[str]:
  """Returns the paths of the files, once they and the bindings are checked."""
  paths = [gin_files.find(name) for name in files]
  if not trusts_gin():
    own = own_code.definitions(imports)
    for path in paths:
      gin_files.check(gin_files.statements_of_file(path), own)
    text = '\n'.join(bindings)
    gin_files.check(gin_files.statements_of_text(text, '--gin_bindings'), own)
  return paths


def gin_text(
  files: Sequence[str],
  bindings: Sequence[str],
  imports: Sequence[own_code.OwnCode] = (),
) -> str:
  """Returns gin text that another process can parse, as `load_gin` would."""
  paths = _find_gin_files(files, bindings, imports)
  includes = [f"include '{path}'" for path in paths]
  return '\n'.join([*includes, *bindings]) + '\n'


@contextlib.contextmanager
def gin_errors() -> Iterator[None]:
  """Turns what gin raises while objects are built into a ConfigError."""
  try:
    yield
  except RecursionError as error:
    raise errors.ConfigError(
      'gin: a macro or reference leads back to itself.'
    ) from error
  except (TypeError, RuntimeError) as error:
    if not re.search('configurable|Required bindings', str(error)):
      raise  # Not about a binding.
    raise errors.ConfigError(f'gin: {errors.one_line(error)}') from error


def run(main: Callable[[], None], usage: str | None) -> None:
  """Parses the flags, runs `main`, and exits with the code its error says."""
  run_subcommand({'': main}, usage)


def run_subcommand(
  commands: Mapping[str, Callable[[], None]], usage: str | None
) -> None:
  """Like `run`, for a command whose first argument is one of several words."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  program = pathlib.Path(sys.argv[0]).stem
  try:
    rest = FLAGS(sys.argv)
  except flags.Error as error:
    print(f'{program}: {errors.one_line(error)} (see --help)', file=sys.stderr)
    sys.exit(errors.UsageError.exit_code)

  def command() -> None:
    if FLAGS.help:
      text = f'{FLAGS.main_module_help()}\n{FLAGS.module_help(__name__)}'
      print(f'{(usage or "").rstrip()}\n\nFlags:\n{text}')
    else:
      _choose(commands, rest[1:])()

  sys.exit(_end(program, command))


def _end(program: str, command: Callable[[], None]) -> int:
  """Runs a command and returns its exit code; this is how every one ends."""
  try:
    with signals.raising():
      command()
      sys.stdout.flush()
    return 0
  except BrokenPipeError:
    # Whoever read has enough, as in `| head`. Python flushes once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return errors.WriteError.exit_code
  except errors.BatchRLError as error:
    ending = error
  except KeyboardInterrupt as error:
    ending = errors.PreemptedError('stopped; rerun the same command to resume.')
    ending.__cause__ = error
  except OSError as error:
    if error.errno not in _FULL:
      raise
    where = f' ({error.filename})' if error.filename else ''
    ending = errors.WriteError(f'{os.strerror(error.errno)}{where}.')
    ending.__cause__ = error
  if FLAGS.debug:
    traceback.print_exception(ending)
  message = errors.one_line(ending)
  if path := os.environ.get(ENDING):
    with contextlib.suppress(OSError):
      pathlib.Path(path).write_text(
        json.dumps({'error': type(ending).__name__, 'message': message})
      )
  print(f'{program}: {message}', file=sys.stderr)
  return ending.exit_code


def _choose(
  commands: Mapping[str, Callable[[], None]], words: list[str]
) -> Callable[[], None]:
  # A command without words of its own is known by the empty one.
  word = words.pop(0) if words and '' not in commands else ''
  if word not in commands:
    wrong = f'unknown command {word!r}' if word else 'no command'
    raise errors.UsageError(
      f'{wrong}; give one of {", ".join(commands)} (see --help).'
    )
  if words:
    raise errors.UsageError(
      f'unexpected argument {words[0]!r}; every input is a --flag (see --help).'
    )
  return commands[word]
