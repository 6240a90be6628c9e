"""Create the first admin of an installation, and an API key for that admin."""

import secrets

from domain import accounts
from domain.accounts import NewApiKey, Registration, keys
from domain.shared.access import ALL_SCOPES, OPERATOR_TENANT_ID, Caller
from infra.credentials import API_KEY_PREFIX, generate_token, hash_token
from infra.settings import Settings
from infra.wiring import open_resources

ADMIN_TENANT = OPERATOR_TENANT_ID
ADMIN_EMAIL = "admin@localhost"


async def ensure_admin_key(settings: Settings, known_key: str | None) -> str:
    """Return `known_key` if it still works, else a new admin key. The admin is created if it does not exist."""
    async with open_resources(settings, "paddock bootstrap") as parts:
        if known_key is not None:
            async with parts.store.system_transaction() as tx:
                key = (await tx.api_keys.find([hash_token(known_key)])).get(hash_token(known_key))
            if key is not None and key.is_active:
                return known_key
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
        token = generate_token(API_KEY_PREFIX)
        async with parts.store.transaction(caller) as tx:
            new_key = NewApiKey(name="paddock up", scopes=sorted(ALL_SCOPES))
            await keys.create_api_key(tx, caller, new_key, token, hash_token(token))
        return token
