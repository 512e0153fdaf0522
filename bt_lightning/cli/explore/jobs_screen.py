"""The jobs of the store, or the directories beside this one: one of them is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Static

from bt_lightning.cli.explore.background import read_in_background
from bt_lightning.cli.explore.pane import Pane
from bt_lightning.cli.explore.table_rows import RowColumn, TableRows
from bt_lightning.cli.render.text import natural, printable, short_time
from bt_lightning.human_units import human_size
from bt_lightning.manage.jobs_beside import JobBeside, for_another_thread, jobs_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult

    from bt_lightning.manage.checkpoint_items import JobCheckpoints


class JobsScreen(Screen["JobCheckpoints | None"]):
    """A list of jobs; ends with the one that was opened, or with None."""

    BINDINGS: ClassVar = [
        Binding("enter,right,l", "open"),
        Binding("escape,left,h,q", "back"),
        Binding("slash", "filter"),
        Binding("s", "sort(False)"),
        Binding("S", "sort(True)"),
    ]

    def __init__(self, source: JobCheckpoints) -> None:
        super().__init__()
        self._source, self._jobs = source, list[JobBeside]()

    def compose(self) -> ComposeResult:
        """The list, what is under way, keys."""
        yield Pane(0, "Jobs", id="jobs")
        yield Static("reading ...", id="status")
        yield Static("enter open  esc back  / filter  s sort  S reverse", id="hints")

    def on_mount(self) -> None:
        """List them in a thread."""
        self.query_one(Pane).lines.focus()
        source = for_another_thread(self._source)
        read_in_background(self, "jobs", lambda: jobs_beside(source), self._show, self._fail)

    def _show(self, found: list[JobBeside]) -> None:
        self._jobs = found
        self.query_one("#status", Static).update("" if found else "There is no job.")
        pane = self.query_one(Pane)
        pane.put(job_rows(found))
        pane.choose((self._source.project, self._source.job))

    def _fail(self, said: str) -> None:
        self.query_one("#status", Static).update(Text(printable(said), style="red"))

    def on_pane_opened(self) -> None:
        """Open the job that was clicked."""
        self.action_open()

    def action_open(self) -> None:
        """End with the chosen job."""
        chosen = self.query_one(Pane).chosen
        if chosen is not None and chosen < len(self._jobs):
            self.dismiss(self._jobs[chosen].open())

    def action_back(self) -> None:
        """Clear the filter, else end with none."""
        if not self.query_one(Pane).end_filter(clear=True):
            self.dismiss(None)

    def action_filter(self) -> None:
        """Filter by project and job."""
        self.query_one(Pane).begin_filter()

    def action_leave_filter(self) -> None:
        """Go from the filter to the list."""
        self.query_one(Pane).end_filter(clear=False)

    def action_clear_filter(self) -> None:
        """Go from the filter to the whole list."""
        self.query_one(Pane).end_filter(clear=True)

    def action_sort(self, reverse: bool) -> None:
        """Sort by the next order, or the other way round."""
        self.query_one(Pane).sort(reverse=reverse)


def job_rows(jobs: Sequence[JobBeside]) -> TableRows:
    """Jobs with what there is of them."""
    columns = (
        RowColumn(title="Job"),
        RowColumn(title="Project", rank=3),
        RowColumn(title="Status", rank=2, style="cyan"),
        RowColumn(title="Checkpoints", right=True),
        RowColumn(title="Step", right=True, rank=1),
        RowColumn(title="Size", right=True, rank=4),
        RowColumn(title="Newest", rank=5),
    )
    cells = [
        (
            printable(job.job),
            printable(job.project),
            job.status,
            f"{job.number:,}",
            "" if job.step is None else str(job.step),
            human_size(job.size),
            short_time(job.newest),
        )
        for job in jobs
    ]
    orders: dict[str, Sequence[object] | None] = {
        "": None,
        "name": [natural(f"{job.project}/{job.job}") for job in jobs],
        "size": [job.size for job in jobs],
        "newest": [job.newest for job in jobs],
    }
    return TableRows(
        columns,
        cells,
        [(job.project, job.job) for job in jobs],
        names=[printable(f"{job.project}/{job.job}") for job in jobs],
        orders=orders,
    )
