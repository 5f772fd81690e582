"""Pictures of every panel of the monitor, for the README and docs/: `python -m scripts.monitor_pictures RUN`."""

import asyncio
import sys
from pathlib import Path

from monitor.app import Monitor
from monitor.panels import PANELS
from monitor.source import Run

FOLDER = Path("docs") / "monitor"
SIZE = (110, 30)


async def take(run: Run) -> None:
    """One SVG for each panel, of the middle one of the run's sweeps."""
    app = Monitor(run, run.folder.parent)
    FOLDER.mkdir(parents=True, exist_ok=True)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(1.0)
        player = app._player
        assert player is not None
        sweeps = list(player.state.sweeps)
        player.seek(sweeps[len(sweeps) // 2]["end"])
        player.is_paused = True
        for number, name in enumerate(PANELS, start=1):
            await pilot.press(str(number))
            await pilot.pause(0.5)
            (FOLDER / f"{name.lower()}.svg").write_text(app.export_screenshot(title="klotski-monitor"))


if __name__ == "__main__":
    asyncio.run(take(Run(Path(sys.argv[1]))))
