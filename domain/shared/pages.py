"""Describe the envelope of every list: `{items, total, limit, offset, has_more}`, newest first."""

from typing import Final, Generic, TypeVar

import msgspec

from domain.shared.errors import InvalidField

T = TypeVar("T")

MAX_PAGE_LIMIT: Final = 1000
DEFAULT_PAGE_LIMIT: Final = 100
MAX_PAGE_OFFSET: Final = 10_000_000

# Counts of record tables stop here, so that a page costs the same at any table size; see docs/api.md.
MAX_COUNTED_ROWS: Final = 10_000
# Each match of a search is looked up by itself, which takes longer than counting.
MAX_COUNTED_MATCHES: Final = 1000


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Select a part of a list."""

    limit: int = DEFAULT_PAGE_LIMIT
    offset: int = 0


class Listing(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Hold a part of a list, newest first. `has_more` is true if more items follow."""

    items: list[T]
    total: int
    limit: int
    offset: int
    has_more: bool


def parse_page(
    limit: int | None, offset: int | None, skip: int | None, page: int | None, page_size: int | None
) -> Page:
    """Parse the three ways to page (`limit`/`offset`, `skip`, `page`/`page_size`) into one `Page`.

    Errors: `invalid_field` names the parameter that is out of range or contradicts another one.
    """
    for field, value, minimum, maximum in (
        ("limit", limit, 1, MAX_PAGE_LIMIT),
        ("page_size", page_size, 1, MAX_PAGE_LIMIT),
        ("offset", offset, 0, MAX_PAGE_OFFSET),
        ("skip", skip, 0, MAX_PAGE_OFFSET),
        ("page", page, 1, MAX_PAGE_OFFSET),
    ):
        if value is not None and not minimum <= value <= maximum:
            raise InvalidField(field, f"must be from {minimum} to {maximum}.")
    if page is not None and (offset is not None or skip is not None):
        raise InvalidField("page", "cannot be combined with offset or skip. Send one of them.")
    if offset is not None and skip is not None and offset != skip:
        raise InvalidField("skip", "is another name for offset and has a different value. Send one of them.")
    if limit is not None and page_size is not None and limit != page_size:
        raise InvalidField("page_size", "is another name for limit and has a different value. Send one of them.")
    size = limit or page_size or DEFAULT_PAGE_LIMIT
    start = (page - 1) * size if page is not None else (offset if offset is not None else skip or 0)
    return Page(limit=size, offset=start)


def build_listing(items: list[T], total: int, page: Page) -> Listing[T]:
    """Wrap the rows of a page. `items` may hold one row past the limit, which proves that more rows follow."""
    return Listing(
        items=items[: page.limit],
        total=total,
        limit=page.limit,
        offset=page.offset,
        has_more=len(items) > page.limit or page.offset + len(items[: page.limit]) < total,
    )
