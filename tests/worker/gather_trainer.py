"""A training process of one rank: saves again and again, and logs what it is told.

usage: python -m tests.worker.gather_trainer ROOT RANK WORLD_SIZE RUN LOG DIRECT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bt_lightning.localdir.write_part_files import write_part_files
from bt_lightning.manifest import Manifest
from bt_lightning.session.directory_takeover import take_over
from bt_lightning.sharding.save_part import SaveHead
from bt_lightning.worker_messages import Committed
from tests.worker.gathering import Rank, content_of

_IDS = 3
"""Names of checkpoints that are saved in turn, so that each is replaced again and again."""


def main(root, rank, world_size, run, log, direct):
    ready = root.parent / f"ready-{run}"
    if rank == 0:
        take_over(root, 60.0, stored=False)
        ready.touch()
    while not ready.exists():
        time.sleep(0.002)
    trainer = Rank(root, rank, world_size, run=run, drain_s=5.0, gather_s=10.0)
    with log.open("a", buffering=1) as out:
        print(f"worker {trainer.worker.pid}", file=out)
        told = 0
        for number in range(1, 1000):
            name = f"checkpoint-{number % _IDS}"
            if direct and number % 3 == 0:
                write_directly(trainer, number, name)
            else:
                trainer.save(number, name)
                while not (trainer.durable(number) or trainer.outcome(number)):
                    time.sleep(0.001)
            for event in trainer.poll()[told:]:
                told += 1
                if isinstance(event, Committed):
                    manifest = Manifest.from_bytes(event.manifest, "")
                    print(f"committed {event.number} {manifest.digest}", file=out)


def write_directly(trainer, number, name):
    image = trainer.image(number, name)
    head = SaveHead(checkpoint_id=name, after=0, facts=image.facts) if trainer.rank == 0 else None
    pieces = {
        one.path: lambda size=one.size: [content_of(trainer.run, number, trainer.rank, size)]
        for one in image.files
    }
    write_part_files(trainer.root, image.part, pieces, head)
    trainer.wait_for(number)


if __name__ == "__main__":
    _, root, rank, world_size, run, log, direct = sys.argv
    main(Path(root), int(rank), int(world_size), run, Path(log), direct == "1")
