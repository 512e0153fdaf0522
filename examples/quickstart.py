"""Trains a small GPT twice, once undisturbed and once with two kill -9, and compares the results.

`python examples/quickstart.py` does it all. The training is quickstart_training.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Losses = list[tuple[int, float]]

STEPS = 240
SAVE_EVERY = 20
KILLS = (92, 172)
TRAINING = str(Path(__file__).with_name("quickstart_training.py"))
OURS = ".made-by-quickstart"


class Job:
    """The training, in a process of its own that can be killed and started again."""

    def __init__(self, folder: Path, store: Path | None, show: Callable[[int], None]) -> None:
        folder.mkdir()
        self.folder = folder
        self.disk = folder / "checkpoints"
        self.store = store
        self._show = show
        self._log = folder / "stderr.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> int:
        """Start the training; return the step from which it goes on."""
        environ = {name: v for name, v in os.environ.items() if not name.startswith("BT_")}
        environ["OMP_NUM_THREADS"] = "1"  # two trainings share this machine
        environ["BT_CHECKPOINT_DIR"] = str(self.disk)
        if self.store is not None:
            environ["BT_STORE_URL"] = f"file://{self.store.resolve()}"
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, TRAINING, str(self.folder), str(STEPS), str(SAVE_EVERY)],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # so that `kill_all` does not reach us
            )
        self._steps = self._read()
        first = next(self._steps, None)
        if first is None:
            self._give_up()
        return first - 1

    def wait(self, kill_at: int | None = None, *, whole_machine: bool = False) -> None:
        """Wait for the end, or for step `kill_at` to kill the training there.

        Killed alone, it leaves a process behind that uploads what is committed, then ends.
        """
        for step in self._steps:
            if step == kill_at and whole_machine:
                self.kill_all()
            elif step == kill_at:
                self._process.kill()
        if self._process.wait() != (0 if kill_at is None else -signal.SIGKILL):
            self._give_up()

    def run(self) -> None:
        """Train from the start to the end."""
        self.start()
        self.wait()

    def kill_all(self) -> None:
        """Kill the training and all that it started, if it runs."""
        if self._process is not None and self._process.poll() is None:
            pid = self._process.pid
            uploader = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            os.killpg(pid, signal.SIGKILL)
            for child in map(int, uploader):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def attempts(self) -> list[Losses]:
        """The step and the loss of each step that was recorded, one list for each start."""
        found: list[Losses] = []
        for line in (self.folder / "losses.jsonl").read_text().splitlines():
            row = json.loads(line)
            if not found or row["step"] <= found[-1][-1][0]:
                found.append([])
            found[-1].append((row["step"], row["loss"]))
        return found

    def result(self) -> dict[str, str]:
        return json.loads((self.folder / "result.json").read_text())

    def _read(self) -> Iterator[int]:
        """Yield each step that is reported, until every process that could write is gone."""
        with self._process.stdout as lines:
            for line in lines:
                if line.startswith("step "):
                    step = int(line.split()[1])
                    self._show(step)
                    yield step

    def _give_up(self) -> NoReturn:
        code = self._process.wait()
        sys.exit(f"the training ended by itself, with exit code {code}:\n{self._log.read_text()}")


def demo(output: Path) -> bool:
    """Train side by side, with and without kills; tell the story; return whether the ends agree."""
    started = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    bars = Progress(
        TextColumn("{task.description:12}"),
        BarColumn(50),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def job(name: str, store: Path | None = None) -> Job:
        bar = bars.add_task(name, total=STEPS)
        return Job(output / name, store, lambda step: bars.update(bar, completed=step))

    undisturbed, killed = job("undisturbed"), job("killed", output / "store")
    console.print(
        f"A small GPT is trained for {STEPS} steps, with a checkpoint every {SAVE_EVERY}, twice:\n"
        "one run is left alone, the other is killed two times and has to end up the same.\n"
        "All that helps it is BTLightning() among the callbacks of its Trainer.\n"
    )
    with bars, ThreadPoolExecutor() as background:
        try:
            alone = background.submit(undisturbed.run)
            kill_and_resume(killed, console.print)
            alone.result()
        finally:
            undisturbed.kill_all()
            killed.kill_all()

    same = compare(undisturbed, killed, console.print)
    plot(undisturbed.attempts()[0], killed.attempts(), output / "loss.png")
    seconds = time.monotonic() - started
    console.print(
        "[bold green]PASS[/]: the killed run is bit for bit the one that was left alone"
        if same
        else "[bold red]FAIL[/]: the killed run is not the one that was left alone",
        f"({seconds:.0f} s).\n",
    )
    console.print(f"See [bold]{output}[/]:")
    console.print("  loss.png                both loss curves, the kills, and what ran when")
    console.print("  undisturbed/, killed/   losses of every step, digests, checkpoints on disk")
    console.print("  store/                  what the killed run published")
    return same


def kill_and_resume(job: Job, say: Callable[[str], None]) -> None:
    """The story of the job that is killed twice."""

    def look() -> int:
        """Tell which checkpoints are left, and return the step of the newest one."""
        left = {"on disk": committed(job.disk), "in store": committed(job.store)}
        for place, steps in left.items():
            names = ", ".join(f"checkpoint-{step}" for step in steps)
            say(f"            {place + ':':11}{names or 'nothing'}")
        return max(step for steps in left.values() for step in steps)

    def resume(newest: int, source: str) -> None:
        step = job.start()
        if step != newest:
            sys.exit(f"FAIL: it went on from step {step}, not from checkpoint-{newest}")
        say(f"step {step:3}    [green]resumed[/] from {source}, by the same command")

    job.start()
    job.wait(kill_at=KILLS[0])
    say(f"step {KILLS[0]:3}    [red]kill -9[/] of the training process")
    resume(look(), "disk")

    job.wait(kill_at=KILLS[1], whole_machine=True)
    shutil.rmtree(job.disk)
    say(f"step {KILLS[1]:3}    [red]kill -9[/] of all its processes, and its disk is deleted")
    resume(look(), "the store")

    job.wait()
    say(f"step {STEPS:3}    done\n")


def committed(place: Path) -> list[int]:
    """Steps of the checkpoints under `place`: folders with a manifest, which is written last."""
    manifests = place.glob("**/checkpoint-*/bt_manifest.json")
    folders = [file.parent for file in manifests if ".bt_lightning" not in file.parts]
    return sorted(int(folder.name.removeprefix("checkpoint-")) for folder in folders)


def compare(undisturbed: Job, killed: Job, say: Callable[[str], None]) -> bool:
    """Compare results and losses; a step that was trained twice must give the same loss twice."""
    one, two = undisturbed.result(), killed.result()
    rows = [(key, one[key][:16], two[key][:16], one[key] == two[key]) for key in one]
    expected = undisturbed.attempts()[0]
    losses = [row for attempt in killed.attempts() for row in attempt]
    twice = f"{len(losses)}, {len(losses) - STEPS} of them twice"
    rows.append(("losses", str(len(expected)), twice, set(losses) == set(expected)))

    say(f"            {'left alone':20}killed twice")
    for name, left, right, same in rows:
        verdict = "[green]identical[/]" if same else "[red]different[/]"
        say(f"{name:12}{left:20}{right:24}{verdict}")
    say("")
    return all(same for *_, same in rows)


def plot(undisturbed: Losses, attempts: list[Losses], file: Path) -> None:
    """Draw both losses on top of each other, and below them what ran when."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.legend_handler import HandlerTuple

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(10, 6), sharex=True, height_ratios=[4, 1], layout="constrained"
    )
    names = ["started", "resumed from disk", "resumed from the store"]
    colors, red = ["#0072b2", "#00856a", "#c4500a"], "#b00020"
    (thick,) = above.plot(*zip(*undisturbed, strict=True), color="#d3d3d3", lw=7)
    thin = []
    for row, (attempt, name, color) in enumerate(zip(attempts, names, colors, strict=True)):
        steps, losses = zip(*attempt, strict=True)
        begin, end = steps[0] - 1, steps[-1]
        thin += above.plot(steps, losses, color=color, lw=1.7)
        below.barh(-row, end - begin, left=begin, height=0.8, color=color)
        where = f" at step {begin}" if begin else ""
        below.text(begin + 2, -row, name + where, va="center", color="white", size=10)
        if end < STEPS:
            for axes in (above, below):
                axes.axvline(end, color=red, lw=1.2, ls="--", zorder=0)
            top = {"transform": above.get_xaxis_transform(), "va": "top"}
            above.text(end + 2, 0.98, f"kill -9\nat step {end}", color=red, **top)
    above.legend(
        [thick, tuple(thin)],
        ["left alone", "killed and resumed"],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        handlelength=4,
        loc="upper left",
        bbox_to_anchor=(0.08, 1),
        frameon=False,
    )
    above.set_ylabel("training loss")
    above.set_title(
        "One training, killed twice: the loss goes on as if nothing had happened", loc="left"
    )
    below.set_yticks([])
    below.spines["left"].set_visible(False)
    below.set_xlabel(f"step (a checkpoint every {SAVE_EVERY})")
    below.set_xticks(range(0, STEPS + 1, SAVE_EVERY))
    below.set_xlim(0, STEPS + 1)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        help="folder for the results, %(default)s",
    )
    options = parser.parse_args()
    return 0 if demo(fresh(options.output)) else 1


def fresh(output: Path) -> Path:
    """`output` as an empty folder; what an earlier demo left there is deleted, and nothing else."""
    if (output / OURS).exists():
        shutil.rmtree(output)
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        sys.exit(f"{output} exists and was not made by this demo: choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    (output / OURS).touch()
    return output


if __name__ == "__main__":
    sys.exit(main())
