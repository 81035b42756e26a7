"""Many runs: what a sweep consists of, who executes it, how it stands."""
