"""Trains a small GPT twice, once undisturbed and once with two kill -9, and compares the results.

`python examples/quickstart.py` does it all. The training is `train`, the first function below.
"""
# ruff: noqa: PLC0415 - whoever starts, kills and compares the trainings needs no torch

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 240
SAVE_EVERY = 20
KILLS = (92, 172)
OURS = ".made-by-quickstart"


def train(folder: Path) -> None:
    """An ordinary Lightning script, which may be killed at any time, and started again."""
    import lightning as L  # noqa: N812
    from char_gpt import CharGPT, LossLog, PythonDocs, digest
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchdata.stateful_dataloader import StatefulDataLoader

    from bt_lightning import BTLightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", ".*does not have many workers")  # the text is in memory

    L.seed_everything(7, verbose=False)
    docs = PythonDocs(length=64, size=2**18)
    model = CharGPT(alphabet=len(docs.alphabet), length=64)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=[
            BTLightning(),  # makes checkpoints durable, publishes them, and resumes
            ModelCheckpoint(
                every_n_train_steps=SAVE_EVERY, save_top_k=2, monitor="step", mode="max"
            ),
            LossLog(folder / "losses.jsonl"),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, StatefulDataLoader(docs, batch_size=32, shuffle=True, drop_last=True))

    result = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "weights": digest(model.state_dict()),
        "optimizer": digest(trainer.optimizers[0].state_dict()),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


class Job:
    """The training, in a process that can be killed and started again."""

    def __init__(self, folder: Path, store: Path | None, show: Callable[[int], None]) -> None:
        folder.mkdir()
        self.folder = folder
        self.disk = folder / "checkpoints"
        self.store = store
        self._show = show
        self._process: subprocess.Popen[str] | None = None

    def run(self, kill_at: int | None = None, *, whole_machine: bool = False) -> int:
        """Run until the end, or the kill; return the step that the training went on from.

        The output ends when nobody can write to it any more: after a kill of the training alone,
        when the worker has published what was committed.
        """
        log = self.folder / "stderr.log"
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "train", "--dir", str(self.folder)],
                env=self._environ(),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        first = 0
        with self._process as process:
            for line in process.stdout:
                if not line.startswith("step "):
                    continue
                step = int(line.split()[1])
                first = first or step
                self._show(step)
                if step == kill_at and whole_machine:
                    self.kill_all()
                elif step == kill_at:
                    process.kill()
        if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
            msg = f"the training ended by itself with {process.returncode}:\n{log.read_text()}"
            raise RuntimeError(msg)
        return first - 1

    def kill_all(self) -> None:
        """Kill the training and all that it started, if it runs."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _environ(self) -> dict[str, str]:
        environ = {name: v for name, v in os.environ.items() if not name.startswith("BT_")}
        environ["OMP_NUM_THREADS"] = "1"  # two trainings share this machine
        environ["BT_CHECKPOINT_DIR"] = str(self.disk.resolve())
        if self.store is not None:
            environ["BT_STORE_URL"] = f"file://{self.store.resolve()}"
            environ["BT_TRAINING_PROJECT_NAME"] = "demo"
            environ["BT_TRAINING_JOB_ID"] = "quickstart"
        return environ

    def attempts(self) -> list[list[tuple[int, float]]]:
        """Steps and losses as they were recorded, one list for each start."""
        found: list[list[tuple[int, float]]] = []
        for line in (self.folder / "losses.jsonl").read_text().splitlines():
            row = json.loads(line)
            if not found or row["step"] <= found[-1][-1][0]:
                found.append([])
            found[-1].append((row["step"], row["loss"]))
        return found

    def result(self) -> dict[str, object]:
        return json.loads((self.folder / "result.json").read_text())


def committed(place: Path) -> str:
    """Names of the checkpoints under `place`: the folders with a manifest, which comes last."""
    folders = [file.parent for file in place.glob("**/checkpoint-*/bt_manifest.json")]
    names = [folder.name for folder in folders if ".bt_lightning" not in folder.parts]
    return ", ".join(sorted(names, key=lambda name: int(name.split("-")[1]))) or "nothing"


def demo(output: Path) -> bool:
    """Run both trainings side by side, tell what happens, and say whether they ended the same."""
    started = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    bars = Progress(
        TextColumn("  {task.description:14}"),
        BarColumn(50),
        MofNCompleteColumn(),
        TextColumn("steps"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    say = bars.console.print

    def job(name: str, store: Path | None = None) -> Job:
        bar = bars.add_task(name, total=STEPS)
        return Job(output / name, store, lambda step: bars.update(bar, completed=step))

    peaceful, killed = job("undisturbed"), job("killed", output / "store")
    first, second = KILLS
    say(f"Train a small GPT for {STEPS} steps, twice, with a checkpoint every {SAVE_EVERY} steps.")
    say("One run is left in peace. The other one is killed twice.\n")
    with bars, ThreadPoolExecutor() as background:
        try:
            other = background.submit(peaceful.run)

            killed.run(kill_at=first)
            say(f"[bold]step {first}[/]   kill -9 of the training process")
            say(f"           on disk   {committed(killed.disk)}")
            say(f"           in store  {committed(killed.store)}")

            resumed = killed.run(kill_at=second, whole_machine=True)
            say(f"           same command again: [green]it went on from step {resumed}[/]")
            say(f"[bold]step {second}[/]  kill -9 of everything, and the disk is lost")
            shutil.rmtree(killed.disk)
            say(f"           on disk   {committed(killed.disk)}")
            say(f"           in store  {committed(killed.store)}")

            resumed = killed.run()
            say(f"           same command again: [green]it went on from step {resumed}[/]")
            say(f"[bold]step {STEPS}[/]  the end")
            other.result()
        finally:
            peaceful.kill_all()
            killed.kill_all()

    one, two = peaceful.result(), killed.result()
    attempts = killed.attempts()
    rows = [row for attempt in attempts for row in attempt]
    again = len(rows) - STEPS
    same = {
        "weights": one["weights"] == two["weights"],
        "optimizer": one["optimizer"] == two["optimizer"],
        "losses": set(rows) == set(peaceful.attempts()[0]),  # a step trained twice counts once
    }
    plot(peaceful.attempts()[0], attempts, output / "loss.png")

    say("\n              undisturbed     killed twice")
    for name in ("weights", "optimizer"):
        say(f"  {name:10}  {one[name][:12]}    {two[name][:12]}    {_verdict(same[name])}")
    ends = [f"{losses[-1][1]:.10f}" for losses in (peaceful.attempts()[0], rows)]
    say(f"  last loss   {ends[0]}    {ends[1]}    {_verdict(same['losses'])}")
    say(f"  {one['parameters']:,} parameters; {again} steps were trained twice\n")
    return all(same.values())


def _verdict(same: bool) -> str:
    return "[green]identical[/]" if same else "[red]different[/]"


def plot(undisturbed: list[tuple[int, float]], attempts, file: Path) -> None:
    """Draw both losses on top of each other, and below them what ran when."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    figure, (losses, starts) = plt.subplots(
        2, 1, figsize=(10, 6.2), sharex=True, height_ratios=[4, 1], layout="constrained"
    )
    colors = ["#0072b2", "#009e73", "#cc5500"]
    names = ["first start", "from the disk", "from the store"]
    losses.plot(*zip(*undisturbed, strict=True), color="#d0d0d0", lw=7, label="undisturbed")
    for row, (attempt, color, name) in enumerate(zip(attempts, colors, names, strict=True)):
        steps, values = zip(*attempt, strict=True)
        losses.plot(steps, values, color=color, lw=1.6, label=f"killed twice: {name}")
        starts.barh(-row, steps[-1] - steps[0] + 1, left=steps[0] - 1, height=0.6, color=color)
        if row < len(attempts) - 1:
            for axes in (losses, starts):
                axes.axvline(steps[-1], color="#b00020", lw=1.2, ls="--", zorder=0)
            losses.annotate(
                f" kill -9\n at step {steps[-1]}", (steps[-1], 0.97), va="top", color="#b00020",
                xycoords=("data", "axes fraction"),
            )  # fmt: skip
    losses.set_ylabel("training loss")
    losses.set_title("Killed twice, and the same run: every loss is bit for bit the same", loc="left")
    losses.legend(frameon=False, loc="center right")
    starts.set_yticks([0, -1, -2], names)
    starts.tick_params(axis="y", length=0)
    starts.spines["left"].set_visible(False)
    starts.set_xlabel("step")
    starts.set_xlim(0, STEPS)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for results (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", metavar="train")
    training = commands.add_parser("train", help="only the training; BT_CHECKPOINT_DIR is used")
    training.add_argument("--dir", type=Path, required=True, help="folder for losses and result")
    options = parser.parse_args()
    if options.command == "train":
        options.dir.mkdir(parents=True, exist_ok=True)
        train(options.dir)
        return 0
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
