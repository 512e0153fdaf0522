"""The explorer without a terminal: its keys, and what it shows once it has read."""

from __future__ import annotations

import asyncio
import time

from textual.widgets import Static

from bt_lightning.cli.explore.explorer import Explorer
from bt_lightning.cli.explore.main_screen import MainScreen

PATIENCE_S = 30


class Driver:
    """An explorer that runs, and keys for it."""

    def __init__(self, app, pilot):
        self.app, self.pilot = app, pilot

    async def press(self, *keys):
        await self.pilot.press(*keys)
        await self.settled()

    async def type(self, text):
        await self.press(*text)

    async def until(self, holds):
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.text()
            await self.pilot.pause(0.01)

    async def settled(self):
        """Wait until nothing is read any more."""
        await self.pilot.pause()
        await self.until(lambda: not self._reads())
        await self.pilot.pause()
        await self.until(lambda: not self._reads())
        await self.pilot.pause()

    def _reads(self):
        return [w for w in self.app.workers if w.group.startswith("read") and not w.is_finished]

    async def shows(self, word):
        await self.until(lambda: word in self.text())
        await self.settled()

    async def says(self, word):
        await self.until(lambda: word in self.status())
        await self.settled()

    def text(self):
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    @property
    def main(self):
        return next(s for s in self.app.screen_stack if isinstance(s, MainScreen))

    def status(self):
        return str(self.main.query_one("#status", Static).render())

    def rows(self, pane, width=200):
        """What a pane lists."""
        one = self.main.pane(pane)
        return [one.rows.draw(index, width, "").plain.rstrip() for index in one._shown]

    def front(self):
        return self.main.front.id


def explored(source, steps, name=None, order=None, size=(100, 30), is_live=False):
    """Run the explorer, and with it `steps`: a coroutine function of its driver."""

    async def run():
        app = Explorer(source, name, order, is_live=is_live)
        async with app.run_test(size=size) as pilot:
            driver = Driver(app, pilot)
            await driver.settled()
            await steps(driver)

    asyncio.run(run())
