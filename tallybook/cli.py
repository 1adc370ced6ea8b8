"""The `tallybook` command: finds each subcommand where it lives, and loads only the one that runs."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from tallybook.configuration import refuse_unknown_settings, training_places
from tallybook.settings import CONFIG_VARIABLE

# In the order in which data flows.
COMMANDS = {
    "train": "training.cli:train",
    "export-embedding": "training.cli:export_embedding",
    "serve-model": "serving.model_server.cli:serve_model",
    "serve": "serving.cli:serve",
    "up": "tallybook.up:up",
    "keys": "serving.access.cli:keys",
    "quota": "serving.quotas.cli:quota",
    "release": "tallybook.release:release",
    "ingest": "billing.cli:ingest",
    "prices": "billing.prices.cli:prices",
    "rate": "billing.cli:rate",
    "close": "billing.cli:close",
    "report": "billing.cli:report",
    "mail": "billing.mail.cli:mail",
    "outbox": "billing.mail.cli:outbox",
    "subscriptions": "billing.mail.cli:subscriptions",
    "statement": "billing.exports.cli:statement_command",
    "export": "billing.exports.cli:export",
    "events": "billing.events_cli:events",
    "audit": "billing.audit_cli:audit",
    "reconcile": "billing.cli:reconcile",
    "costs": "billing.spending_cli:costs",
    "budgets": "billing.spending_cli:budgets",
    "wallet": "billing.spending_cli:wallet",
    "forecast": "billing.forecast.cli:forecast_command",
    "versions": "billing.versions.cli:versions",
    "alerts": "billing.alerts.cli:alerts",
    "simulate": "billing.simulation.cli:simulate_command",
    "airflow": "tallybook.airflow_cli:airflow",
    "settings": "tallybook.configuration:settings",
    "demo": "tallybook.demo:demo",
}
TRAINING = {"train", "export-embedding"}
# Known without loading the packages, whose imports take seconds.
HELP = {
    "train": "Train a text classifier and publish it as the next version, if it is good enough.",
    "export-embedding": "Export a pretrained BERT as a model that embeds texts.",
    "serve-model": "Serve exported models by TensorFlow Serving's protocols, gRPC and REST.",
    "serve": "Serve the API: POST /analyze, metered.",
    "up": "Start the model server and the API together.",
    "keys": "Make, list, revoke and rotate API keys.",
    "quota": "Limits of one user, project or key, and overage by approval.",
    "release": "Stage, canary, promote and roll back versions, without a restart.",
    "ingest": "Store the usage events of the journal and of Kafka in the ledger, each once.",
    "prices": "Show what the price file would change, and import it.",
    "rate": "Draft a day's bills at the prices of the price list.",
    "close": "Close a day's bills, if events, aggregates and lines agree.",
    "report": "Draw a day's charts and write its bill as CSV.",
    "mail": "Mail a day's bill, or write it to the outbox.",
    "outbox": "Show which mails wait, and deliver them.",
    "subscriptions": "Check who gets a daily mail of their own.",
    "statement": "Show what a month's bills come to, and how that was rounded.",
    "export": "Write closed bills for other programs: FOCUS, Beancount.",
    "events": "Set-aside lines, hourly aggregates, and rows old enough to drop.",
    "audit": "Prove closed bills, and walk a request to its bill.",
    "reconcile": "Set what was metered against the model servers' own counters.",
    "costs": "Set what machines and trainings cost against what was billed.",
    "budgets": "Show a month's budgets, what is billed of each, and where it is heading.",
    "wallet": "Prepaid credit of projects; every closed bill is charged to it.",
    "forecast": "Forecast the next quarter: tokens, cost and needed capacity.",
    "versions": "Tokens, answer times, cost and quality by model version: did the upgrade pay?",
    "alerts": "Look for surges, budgets, gaps and strangers; tell of them; acknowledge; back-test.",
    "simulate": "Make a realistic history of usage, in a ledger of its own, to try everything on.",
    "airflow": "Run Airflow with our DAGs on this machine, and ask it things.",
    "settings": "List every setting, its default and what it does.",
    "demo": "Run everything once, from training to the emailed bill.",
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which data flows."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; a missing extra is named."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in COMMANDS])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file; default: tallybook.toml, where there is one.",
)
@click.pass_context
def main(context: click.Context, config: Path | None) -> None:
    """Token metering and billing for models that you serve yourself.

    Settings come from TALLYBOOK_* variables, then from tallybook.toml; `tallybook settings` lists them.
    """
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)
    refuse_unknown_settings()
    if context.invoked_subcommand in TRAINING:
        # Training stands on nothing of ours, so it reads no settings file itself.
        context.default_map = {context.invoked_subcommand: training_places()}


if __name__ == "__main__":
    sys.exit(main())
