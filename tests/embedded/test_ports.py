"""Processes that start services at the same time choose different ports."""

import os

import pytest

from infra.embedded import find_free_ports


def test_processes_that_choose_at_once_choose_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_ports: list[set[int]] = []
    for number in (4000, 4001):
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        chosen_ports.append({port for _ in range(20) for port in find_free_ports(10)})
    assert min(map(len, chosen_ports)) > 10
    assert not chosen_ports[0] & chosen_ports[1]


def test_ports_of_one_call_are_different() -> None:
    ports = find_free_ports(400)
    assert len(set(ports)) == 400
