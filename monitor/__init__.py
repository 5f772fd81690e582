"""klotski-monitor: watch a run, or one that has ended, in a terminal. Reads files; never touches the run."""
