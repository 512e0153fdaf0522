"""The commands deploy and undeploy for checkpoints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bt_lightning.cli.commands.protect_delete import now_in_utc, user_name
from bt_lightning.cli.target_options import some_checkpoints, target_options, text_or_json_option

if TYPE_CHECKING:
    from bt_lightning.manage.find_target import Target
    from bt_lightning.manage.servable_checkpoints import Deployable, SourceForm
    from bt_lightning.manage.vllm_truss_config import ServingOptions


@click.command()
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
@click.option("--dry-run", is_flag=True, help="Write the config, and protect nothing.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    show_default="truss_configs/<model name>",
    help="Folder to write the Truss to.",
)
@click.option("--model-name", help="Name of the model; by default that of what is deployed.")
@click.option(
    "--base-model", metavar="ID|URL", help="Base model of adapters, if not what they say."
)
@click.option("--accelerator", default="H100", show_default=True, help="GPUs, as L4 or H100:2.")
@click.option(
    "--source",
    type=click.Choice(["auto", "bt", "store", "training-checkpoints"]),
    default="auto",
    show_default=True,
    help="How the config names checkpoints: bt://, their s3:// or gs:// URL, or as artifacts of"
    " their job. auto: the URL of a bucket, else bt.",
)
@click.option("--hf-secret", metavar="NAME", help="Baseten secret with the token for a base model.")
@click.option("--bucket-secret", metavar="NAME", help="Baseten secret with a bucket's credentials.")
@click.option("--image", help="Image with vLLM.  [default: vllm/vllm-openai:latest]")
@click.option("--vllm-args", default="", metavar="TEXT", help="More arguments of `vllm serve`.")
@click.option("--by", default=None, help="Name; by default the user of this machine.")
@text_or_json_option
def deploy(
    checkpoints: tuple[str, ...],
    target: Target,
    dry_run: bool,
    output: Path | None,
    model_name: str | None,
    base_model: str | None,
    accelerator: str,
    source: str,
    hf_secret: str | None,
    bucket_secret: str | None,
    image: str | None,
    vllm_args: str,
    by: str | None,
    output_format: str,
) -> None:
    """Write a Truss that serves checkpoints with vLLM, and protect them as deployed.

    One model of `transformers`, one Whisper, or any number of LoRA adapters of one base model.
    CHECKPOINTS are ids, `latest`, or bt:// URLs. `truss push` deploys what is written. The
    protection keeps them from every deletion until `undeploy`.
    """
    from bt_lightning.manage.deployment import (
        check_config_free,
        protect_deployed,
        truss_text,
        write_truss,
    )
    from bt_lightning.manage.servable_checkpoints import deployable
    from bt_lightning.manage.vllm_truss_config import vllm_truss_config
    from bt_lightning.protection_record import ModelDeployment

    found = some_checkpoints(target, checkpoints)
    ready = deployable(found, cast("SourceForm", source), base_model)
    options = _options(ready, model_name, accelerator, image, (hf_secret, bucket_secret), vllm_args)
    text = truss_text(vllm_truss_config(ready.served, options))
    folder = output or Path("truss_configs") / options.slug
    check_config_free(folder, text)
    if not dry_run:
        deployment = ModelDeployment(
            options.model_name, user_name() if by is None else by, now_in_utc()
        )
        for job, item in found:
            protect_deployed(job, item, deployment)
    path = write_truss(folder, text)
    said: dict[str, Any] = {
        "config": str(path),
        "model_name": options.model_name,
        "kind": ready.kind,
        "base_model": options.base_source,
        "checkpoints": [
            {"name": item.name, "source": one.source or f"{one.job}/{one.artifact}"}
            for (_, item), one in zip(found, ready.served, strict=True)
        ],
        "protected": not dry_run,
        "dry_run": dry_run,
    }
    _render(said, ready, folder, output_format)


@click.command()
@click.argument("checkpoints", nargs=-1, required=True)
@target_options
@click.option("--model-name", help="Only the deployment as this model; by default all.")
def undeploy(checkpoints: tuple[str, ...], target: Target, model_name: str | None) -> None:
    """Lift the protection that `deploy` gave; a protection by a person stays.

    Undeploy a model at Baseten first: it may load its checkpoints again at any start.
    """
    from bt_lightning.cli.render.text import printable
    from bt_lightning.manage.deployment import lift_deployment

    for source, item in some_checkpoints(target, checkpoints):
        left = lift_deployment(source, item, model_name)
        said = "no longer protected" if left is None else f"still protected: {left.reason}"
        click.echo(printable(f"{item.name}: undeployed, {said}"))


def _options(
    ready: Deployable,
    model_name: str | None,
    accelerator: str,
    image: str | None,
    secrets: tuple[str | None, str | None],
    vllm_args: str,
) -> ServingOptions:
    from bt_lightning.manage.vllm_truss_config import IMAGE, ServingOptions
    from bt_lightning.truss_definitions.definition import as_definition
    from bt_lightning.truss_definitions.resources import Compute

    gpu = as_definition({"accelerator": accelerator}, Compute).accelerator
    if gpu is None or gpu.accelerator is None or not gpu.count:
        msg = "vLLM needs a GPU: name one, as --accelerator L4"
        raise click.UsageError(msg)
    return ServingOptions(
        model_name=model_name or ready.default_name,
        base_source=ready.base_source,
        accelerator=gpu.accelerator.value,
        gpus=gpu.count,
        image=image or IMAGE,
        hf_secret=secrets[0],
        bucket_secret=secrets[1],
        vllm_args=vllm_args,
    )


def _render(said: dict[str, Any], ready: Deployable, folder: Path, output_format: str) -> None:
    from bt_lightning.cli.render.table_csv_json import as_json
    from bt_lightning.cli.render.text import printable

    if any(one.source.startswith("bt://") for one in ready.served):
        note = (
            "truss 0.18 does not take bt:// sources, which Baseten documents: if yours refuses"
            " them, say --source training-checkpoints"
        )
        click.secho(note, fg="yellow", err=True)
    if output_format == "json":
        as_json(said)
        return
    count = len(ready.served)
    several = "s" if count > 1 else ""
    what = (
        f"{count} LoRA adapter{several} on {ready.base_model}" if ready.base_model else ready.kind
    )
    click.echo(printable(f"{said['config']}: {said['model_name']}, {what}"))
    for one in said["checkpoints"]:
        protected = "protected" if said["protected"] else "would be protected"
        click.echo(printable(f"{one['name']}: {protected}, deployed as {said['model_name']}"))
    place = shlex.quote(str(folder))
    click.echo(f"Push it: truss push {printable(place)}")
