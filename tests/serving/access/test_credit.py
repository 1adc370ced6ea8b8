"""The contract between prepaid credit and the ledger's wallets, held against the real ledger."""

from pathlib import Path
from typing import Any

import pytest

from billing.ledger import open_ledger, writing
from billing.wallets import refund, top_up
from serving.access.credit import Credit
from serving.errors import ApiError
from serving.settings import ServingSettings
from tests.apis import running_app
from tests.modelservers import wait_until


def test_a_project_is_served_until_its_wallet_is_empty(access_url: str, tmp_path: Path) -> None:
    ledger = open_ledger(access_url, "Asia/Shanghai")
    store = f"sqlite:///{tmp_path / 'store.db'}"
    settings: dict[str, Any] = {"ledger_url": access_url, "access_url": store, "prepaid_poll_seconds": 0.02}
    with running_app(tmp_path, prepaid=True, **settings) as api:
        assert api.analyze().status_code == 200  # it has no wallet
        with writing(ledger) as connection:
            top_up(connection, "search", 500, "CNY", "finance-a")
        assert api.analyze(**{"X-Project-ID": "search"}).status_code == 200
        with writing(ledger) as connection:
            refund(connection, "search", 500, "CNY", "finance-a")
        wait_until(lambda: api.analyze(**{"X-Project-ID": "search"}).status_code == 402)
        refused = api.analyze(**{"X-Project-ID": "search"})
        assert refused.json["error"]["code"] == "wallet_empty"
        assert api.analyze().status_code == 200
    ledger.dispose()


def test_without_the_setting_nobody_looks(tmp_path: Path) -> None:
    credit = Credit(ServingSettings(ledger_url=f"sqlite:///{tmp_path}/no/ledger.db"))
    credit.check("search")
    credit.close()


def test_while_the_ledger_is_away_the_last_balances_hold(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    ledger = open_ledger(f"sqlite:///{file}", "Asia/Shanghai")
    with writing(ledger) as connection:
        top_up(connection, "search", 500, "CNY", "finance-a")
        refund(connection, "search", 500, "CNY", "finance-a")
    ledger.dispose()
    credit = Credit(ServingSettings(ledger_url=f"sqlite:///{file}", prepaid=True, prepaid_poll_seconds=3600))
    file.write_bytes(b"no database" * 100)
    credit.refresh()
    with pytest.raises(ApiError, match="has used up its prepaid credit"):
        credit.check("search")
    credit.close()
