"""Starting TF-Agents without what it and what it stands on have to say."""

import contextlib
import io
import warnings


def import_tf_agents() -> None:
  """Imports TF-Agents; warnings about its syntax are silent from then on."""
  warnings.filterwarnings('ignore', category=SyntaxWarning)
  # It imports the old gym, which announces its end at every start.
  with contextlib.redirect_stderr(io.StringIO()):
    import tf_agents.agents  # noqa: F401
