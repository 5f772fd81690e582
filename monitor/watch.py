"""A run that is watched: its story, and what is looked at now and then."""

from monitor.facts import Facts
from monitor.player import Player
from monitor.source import Run, Status
from monitor.sweep import Job, find_sweep

__all__ = ["Watch"]


class Watch:
    """A run from the moment at which somebody began to watch it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.player = Player(run)
        self.sweep = find_sweep(run.folder)
        self._identity = run.identity
        self._has_run = False
        self.look()

    def look(self) -> None:
        """Look at what changes slowly."""
        run = self.run
        self.status: Status = run.status()
        self.plan: Facts = run.plan()
        self.metrics: Facts = run.metrics()
        self.config: Facts = run.config()
        self.is_predicted = run.is_predicted
        self.log: list[str] = run.log()
        self.jobs: list[Job] = self.sweep.jobs() if self.sweep else []
        self._has_run |= self.status.is_running

    @property
    def is_another(self) -> bool:
        """Whether the folder has been taken by another run meanwhile."""
        identity = self.run.identity
        return bool(identity) and any(identity.at(key) != self._identity.at(key) for key in ("pid", "host", "start"))

    @property
    def next_job(self) -> Run | None:
        """When a job has ended that was watched as it ran: the one of its sweep that runs now."""
        if self.status.is_running or not self._has_run or not self.player.is_live:
            return None
        return next((job.run for job in self.jobs if job.status.is_running), None)

    @property
    def words(self) -> str:
        """What is shown, in a few words."""
        player = self.player
        if player.is_loading and player.has_read < 1:
            how = f"reading {player.has_read:.0%}"
        else:
            how = player.words or ("live" if self.status.is_running else self.status.word)
        return "predicted, " * self.is_predicted + how
