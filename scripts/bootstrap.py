"""The first admin of an installation, and a key for it."""

import secrets

from domain import accounts
from domain.accounts import Registration, keys
from domain.accounts.keys import NewApiKey
from domain.shared.access import ALL_SCOPES, OPERATOR_TENANT_ID, Caller
from infra.credentials import API_KEY_PREFIX, generate_token, hash_token
from infra.settings import Settings
from infra.wiring import open_resources

ADMIN_TENANT = OPERATOR_TENANT_ID
ADMIN_EMAIL = "admin@localhost"


async def ensure_admin_key(settings: Settings, known: str | None) -> str:
    """A working admin key: the one `known`, or a new one. The admin is created if there is none."""
    async with open_resources(settings, "paddock bootstrap") as parts:
        if known is not None:
            async with parts.store.system_transaction() as tx:
                found = (await tx.api_keys.find([hash_token(known)])).get(hash_token(known))
            if found is not None and found.is_active:
                return known
        async with parts.store.system_transaction() as tx:
            admin = await tx.accounts.find_login(ADMIN_EMAIL)
        if admin is None:
            data = Registration(
                email=ADMIN_EMAIL, password=secrets.token_urlsafe(24), tenant_id=ADMIN_TENANT, full_name="Administrator"
            )
            hashed = await parts.passwords.hash_password(data.password)
            async with parts.store.tenant_transaction(ADMIN_TENANT) as tx:
                user_id = (await accounts.register_user(tx, ADMIN_TENANT, data, hashed, b"", by_operator=True)).id
        else:
            user_id = admin.user_id
        caller = Caller(tenant_id=ADMIN_TENANT, user_id=user_id, role="admin", scopes=frozenset(ALL_SCOPES))
        key = generate_token(API_KEY_PREFIX)
        async with parts.store.transaction(caller) as tx:
            asked = NewApiKey(name="paddock up", scopes=sorted(ALL_SCOPES))
            await keys.create_api_key(tx, caller, asked, key, hash_token(key))
        return key
