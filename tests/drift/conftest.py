from __future__ import annotations

from tests.parts.estate import estate, first_candidate, published, site

__all__ = ["estate", "first_candidate", "published", "site"]
