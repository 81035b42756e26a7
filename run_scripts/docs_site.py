"""Pages of the documentation's site that are not under docs/ (mkdocs hooks).

The README, what stands beside it and results/ are pages, too; `gin.md` is the
reference of every class and function that gin files may bind, from the source.
"""

import ast
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ('README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'CONTRIBUTING.md')
# Where a link of such a page points to, from the top of the site.
LINK = re.compile(r'(?<=\]\()(?:\.\./|docs/)(?=[\w./])')
# What is shown by a link and is no page.
LICENCE = re.compile(r'\]\((?:\.\./)?LICENSE\)')


def on_files(files, config):
  """Adds the pages from elsewhere, and the reference."""
  sources = [ROOT / name for name in PAGES]
  sources += [
    path
    for path in (ROOT / 'results').rglob('*')
    if path.suffix in ('.md', '.png', '.csv')
  ]
  for path in sources:
    name = path.relative_to(ROOT).as_posix()
    files.append(File.generated(config, name, abs_src_path=str(path)))
  files.append(
    File.generated(config, 'LICENSE.txt', abs_src_path=str(ROOT / 'LICENSE'))
  )
  files.append(File.generated(config, 'gin.md', content=gin_reference()))
  return files


def on_page_markdown(markdown, page, **_):
  """Turns links of the repository into links of the site."""
  markdown = LICENCE.sub('](LICENSE.txt)', markdown)
  # results/ keeps its place below the top, all else moves to the top.
  if page.file.src_uri.startswith('results/'):
    return re.sub(r'(?<=\]\()((?:\.\./)+)docs/', r'\1', markdown)
  return LINK.sub('', markdown)


def gin_reference() -> str:
  """Returns a page on every configurable: its parameters and defaults."""
  found = {}
  for path in sorted((ROOT / 'batch_rl_dr3').rglob('*.py')):
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.ClassDef | ast.FunctionDef) and any(
        'gin.configurable' in ast.unparse(d) for d in node.decorator_list
      ):
        found[node.name] = f'{module}.{node.name}'
  options = '\n      '.join(
    (
      '    options:',
      'members: false',
      'show_root_full_path: false',
      'merge_init_into_class: true',
    )
  )
  entries = [f'::: {path}\n{options}\n' for _, path in sorted(found.items())]
  head = (
    '# Gin reference\n\nEvery class and function of the package that a gin '
    'file can bind, with its parameters and their defaults. Names of Dopamine '
    'that gin files may reference, too, are listed by the error that refuses '
    'others.\n\n'
  )
  return head + '\n'.join(entries)
