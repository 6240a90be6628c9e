"""Seal the reasoning of providers for agents, which hold it between two calls and give it back."""

import binascii

import msgspec

from domain.llms import ReasoningItem
from infra.credentials import Keyring


class _SealedItem(msgspec.Struct, frozen=True, array_like=True):
    tenant_id: str
    item: ReasoningItem


class ReasoningSealer:
    """Seal reasoning for the runs of one tenant, as `infra.wires.common.ReasoningSeal` describes.

    What is opened goes to the provider as it is, and names the address of the provider. So an agent can neither make
    nor read it, and another tenant's is worth nothing to it.
    """

    def __init__(self, keyring: Keyring, tenant_id: str) -> None:
        self._keyring, self._tenant_id = keyring, tenant_id

    def seal_reasoning(self, item: ReasoningItem) -> str:
        """Return an item as text of ASCII, empty for one that is not JSON."""
        try:
            data = msgspec.json.encode(_SealedItem(self._tenant_id, item))
        except (UnicodeEncodeError, OverflowError):
            return ""
        return self._keyring.seal(data).decode("ascii")

    def open_reasoning(self, sealed: str) -> ReasoningItem | None:
        """Return a sealed item, None for what was not sealed here for this tenant."""
        try:
            opened = msgspec.json.decode(self._keyring.open(sealed.encode("ascii")), type=_SealedItem)
        except (ValueError, UnicodeEncodeError, binascii.Error, msgspec.MsgspecError):
            return None
        return opened.item if opened.tenant_id == self._tenant_id else None
