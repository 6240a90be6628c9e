"""Sales in many currencies become a chart in one: a file in, a web API with a token, a file out."""

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import requests

WORK = Path(os.environ.get("PADDOCK_WORK", "."))


def fetch_rates(base: str) -> dict[str, float]:
    headers = {"Authorization": f"Bearer {os.environ['RATES_TOKEN']}"}
    response = requests.get(f"{os.environ['RATES_URL']}/rates", params={"base": base}, headers=headers, timeout=30)
    response.raise_for_status()
    return response.json()["rates"]


def handle(payload: dict[str, Any]) -> dict[str, Any]:
    base = payload.get("base", "EUR")
    sales = pd.read_csv(WORK / "sales.csv", parse_dates=["date"])
    sales["value"] = sales["amount"] / sales["currency"].map(fetch_rates(base))
    by_month = sales.groupby(sales["date"].dt.strftime("%Y-%m"))["value"].sum().round(2)

    figure, axes = plt.subplots(figsize=(7, 4))
    by_month.plot.bar(ax=axes, title=f"Sales in {base}", rot=0)
    figure.tight_layout()
    figure.savefig(WORK / "sales.png")
    by_month.to_csv(WORK / "sales-by-month.csv")
    print(f"{len(sales)} sales in {len(by_month)} months")
    return {"months": by_month.to_dict(), "total": float(by_month.sum())}
