"""The files that go with a simulated history: prices, budgets, costs, model cards and settings."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

from billing.simulation.world import DEPARTMENTS, MODELS, World
from tallybook.calendar import month_start
from tallybook.files import write_whole

_NOTE = "# Written by `tallybook simulate`: of a made-up company.\n"
# A month's budget for each request that a working day has: one is too small, one just so, the rest ample.
_BUDGET_A_REQUEST = Decimal(70)
_TIGHT = {"operations": Decimal("0.30"), "retail": Decimal("0.46")}


def write_price_files(folder: Path, world: World) -> None:
    """Write prices.toml, budgets.toml and costs.toml."""
    first = month_start(world.first_day)
    prices = [_NOTE, 'currency = "CNY"\nper_tokens = 1000\n']
    for model in MODELS:
        price_in, price_out = model.price
        prices.append(
            f'[[prices]]\nmodel = "{model.name}"\neffective_from = {first}\n'
            f'input = "{price_in}"\noutput = "{price_out}"\n'
        )
    write_whole(folder / "prices.toml", "\n".join(prices).encode())
    requests = Decimal(round(float(world.activity.sum())))
    budgets = [_NOTE, 'currency = "CNY"\n']
    for department in DEPARTMENTS:
        share = Decimal(str(department.share)) * _TIGHT.get(department.name, Decimal("1.0"))
        amount = (requests * _BUDGET_A_REQUEST * share).quantize(Decimal(100)).quantize(Decimal("1.00"))
        budgets.append(
            f'[[budgets]]\ndepartment = "{department.name}"\n'
            f'effective_from = "{first:%Y-%m}"\namount = "{amount}"\n'
        )
    write_whole(folder / "budgets.toml", "\n".join(budgets).encode())
    names = ", ".join(f'"{model.name}"' for model in MODELS)
    costs = (
        f'{_NOTE}\ncurrency = "CNY"\n\n[[pools]]\nname = "serving"\neffective_from = {first}\ndevices = 2\n'
        f'price_per_device_hour = "12.50"\nmodels = [{names}]\n'
        'tokens_per_second = { "review-sentiment" = "60000", "chat" = "2500", "reply-writer" = "3000", '
        '"embeddings" = "20000" }\n'
    )
    write_whole(folder / "costs.toml", costs.encode())


def write_models(models_dir: Path) -> None:
    """Write the card of each model version, without a model: what a version report knows of quality."""
    for model in MODELS:
        for version in model.versions:
            card = {
                "version": version.name,
                "name": model.name,
                "simulated": True,
                "metrics": {"test": {"accuracy": float(version.accuracy)}},
            }
            file = models_dir / model.name / version.name / "assets.extra" / "model_card.json"
            write_whole(file, (json.dumps(card, indent=2) + "\n").encode())


def settings_of(folder: Path, ledger_url: str, zone_name: str) -> str:
    """A settings file under which every command works on the simulated ledger."""
    whole = folder.absolute()
    told = {
        "time_zone": zone_name,
        "ledger_url": ledger_url,
        "journal_dir": str(whole / "journal"),
        "models_dir": str(whole / "models"),
        "prices_file": str(whole / "prices.toml"),
        "budgets_file": str(whole / "budgets.toml"),
        "costs_file": str(whole / "costs.toml"),
        "training_dir": str(whole / "training"),
        "reports_dir": str(whole / "reports"),
        "outbox_dir": str(whole / "outbox"),
    }
    # A JSON string of printable characters is a TOML string too.
    return _NOTE + "".join(f"{name} = {json.dumps(value)}\n" for name, value in told.items())
