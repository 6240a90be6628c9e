"""The first admin of an installation, and a key for it."""

import secrets

from domain import accounts
from domain.accounts import Register, keys
from domain.accounts.keys import NewKey
from domain.shared.access import OPERATORS, SCOPES, Caller
from infra.credentials import KEY_PREFIX, new_token, token_hash
from infra.settings import Settings
from infra.wiring import open_resources

TENANT = OPERATORS
EMAIL = "admin@localhost"


async def admin_key(settings: Settings, known: str | None) -> str:
    """A working admin key: the one `known`, or a new one. The admin is created if there is none."""
    async with open_resources(settings, "paddock bootstrap") as parts:
        if known is not None:
            async with parts.store.begin_unbound() as tx:
                found = (await tx.keys.find([token_hash(known)])).get(token_hash(known))
            if found is not None and found.is_active:
                return known
        async with parts.store.begin_unbound() as tx:
            admin = await tx.accounts.find_login(EMAIL)
        if admin is None:
            data = Register(
                email=EMAIL, password=secrets.token_urlsafe(24), tenant_id=TENANT, full_name="Administrator"
            )
            hashed = await parts.passwords.hash(data.password)
            async with parts.store.begin_for(TENANT) as tx:
                user_id = (await accounts.register(tx, TENANT, data, hashed, b"", by_operator=True)).id
        else:
            user_id = admin.user_id
        caller = Caller(tenant_id=TENANT, user_id=user_id, role="admin", scopes=frozenset(SCOPES))
        key = new_token(KEY_PREFIX)
        async with parts.store.begin(caller) as tx:
            asked = NewKey(name="paddock up", scopes=sorted(SCOPES))
            await keys.create(tx, caller, asked, key, token_hash(key))
        return key
